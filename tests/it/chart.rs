//! What is made from the Helm chart or copied into it is what would be made now, and the chart's own files agree.
//!
//! Renders and what an API server says of them are in `e2e/chart/`. `cargo xtask codegen` rewrites.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;
use serde_json::Value;

use crate::support::program::{self, tools};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn chart() -> PathBuf {
    root().join("charts/tidegate")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_default()
}

/// Compares, or writes when told to.
#[track_caller]
fn is_current(path: &str, content: &str) {
    if read(path) == content {
        return;
    }
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        let path = root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        return;
    }
    panic!("{path} is not what it is made from; run: cargo xtask codegen");
}

/// A value with its comment.
#[derive(Debug)]
struct Documented {
    path: Vec<String>,
    section: String,
    text: String,
}

/// Reads what `# -- ` comments say of the key below them; `# == ` begins a section.
fn documented(values: &str) -> Vec<Documented> {
    let mut all = Vec::new();
    let mut path: Vec<(usize, String)> = Vec::new();
    let (mut section, mut text) = (String::new(), None::<String>);
    for line in values.lines() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        if let Some(title) = trimmed.strip_prefix("# == ") {
            title.clone_into(&mut section);
        } else if let Some(begin) = trimmed.strip_prefix("# -- ") {
            text = Some(begin.to_owned());
        } else if let Some(more) = trimmed.strip_prefix("# ") {
            if let Some(text) = &mut text {
                let _ = write!(text, " {more}");
            }
        } else if let Some((key, _)) = trimmed.split_once(':') {
            path.retain(|(depth, _)| *depth < indent);
            path.push((indent, key.to_owned()));
            if let Some(text) = text.take() {
                all.push(Documented {
                    path: path.iter().map(|(_, key)| key.clone()).collect(),
                    section: section.clone(),
                    text,
                });
            }
        }
    }
    all
}

/// Paths of everything that a user can set: scalars, lists and maps without keys of the chart's own.
fn leaves(value: &Value, path: &mut Vec<String>, known: &[Documented], into: &mut Vec<String>) {
    let here = known.iter().any(|it| it.path == *path);
    match value.as_object() {
        Some(map) if !here => {
            for (key, value) in map {
                path.push(key.clone());
                leaves(value, path, known, into);
                path.pop();
            }
        }
        _ => into.push(path.join(".")),
    }
}

#[test]
fn generated_readme_of_the_chart_is_current() {
    let values = read("charts/tidegate/values.yaml");
    let parsed: Value = serde_saphyr::from_str(&values).unwrap();
    let all = documented(&values);
    let mut settable = Vec::new();
    leaves(&parsed, &mut Vec::new(), &all, &mut settable);
    let named: BTreeSet<String> = all.iter().map(|it| it.path.join(".")).collect();
    for path in &settable {
        assert!(named.contains(path), "values.yaml: {path} has no `# --`");
    }

    let mut readme = String::from(
        "<!-- Generated from values.yaml, do not edit: cargo xtask codegen -->\n\
         \n\
         # Tidegate on Kubernetes\n\
         \n\
         ```sh\n\
         helm install tidegate oci://ghcr.io/tidegate/charts/tidegate --namespace tidegate-system --create-namespace \\\n  \
           --set defaultIssuer.enabled=true --set defaultIssuer.email=you@example.com --set defaultIssuer.termsOfServiceAgreed=true\n\
         ```\n\
         \n\
         From a checkout, `charts/tidegate` takes the place of the address. The whole way is in [docs/kubernetes.md](../../docs/kubernetes.md).\n\
         \n\
         ## Values\n",
    );
    let mut section = "";
    for value in &all {
        if value.section != section || section.is_empty() && readme.ends_with("## Values\n") {
            section = &value.section;
            if !section.is_empty() {
                let _ = writeln!(readme, "\n### {section}");
            }
            readme.push_str("\n| Value | Default | |\n| --- | --- | --- |\n");
        }
        let found = value.path.iter().fold(&parsed, |value, key| &value[key]);
        let text = value.text.replace('|', "\\|");
        let _ = writeln!(
            readme,
            "| `{}` | `{found}` | {text} |",
            value.path.join(".")
        );
    }
    is_current("charts/tidegate/README.md", &readme);
}

/// Strict, and of the same keys: a value that is in one of them alone is a mistake.
#[test]
fn the_schema_has_the_keys_of_the_values() {
    fn compare(schema: &Value, values: &Value, path: &str, wrong: &mut Vec<String>) {
        let Some(properties) = schema["properties"].as_object() else {
            return;
        };
        if schema["additionalProperties"] != false {
            wrong.push(format!("{path}: takes any key"));
        }
        let values = values.as_object().unwrap();
        for key in properties.keys() {
            // What Helm hands to every chart.
            if !values.contains_key(key) && key != "global" {
                wrong.push(format!("{path}{key}: not in values.yaml"));
            }
        }
        for (key, value) in values {
            match properties.get(key) {
                Some(schema) => compare(schema, value, &format!("{path}{key}."), wrong),
                None => wrong.push(format!("{path}{key}: not in the schema")),
            }
        }
    }
    let schema: Value = serde_json::from_str(&read("charts/tidegate/values.schema.json")).unwrap();
    let values: Value = serde_saphyr::from_str(&read("charts/tidegate/values.yaml")).unwrap();
    let mut wrong = Vec::new();
    compare(&schema, &values, "", &mut wrong);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_chart_is_of_the_program_s_version() {
    let chart: Value = serde_saphyr::from_str(&read("charts/tidegate/Chart.yaml")).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn generated_copy_of_the_alerts_is_current() {
    let rules = read("packaging/prometheus/tidegate.rules.yaml");
    is_current("charts/tidegate/files/tidegate.rules.yaml", &rules);
}

/// Every metric of a panel exists, and every metric that exists is on a panel.
#[test]
fn the_dashboard_shows_every_metric() {
    let text = read("charts/tidegate/files/dashboard.json");
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let metrics = read("docs/reference/metrics.md");
    let name = Regex::new(r"\b(?:tidegate|process)_[a-z0-9_]+").unwrap();
    let mut shown = BTreeSet::new();
    let mut count = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            count += 1;
            for used in name.find_iter(expression) {
                let used = used.as_str();
                let base = used.strip_suffix("_bucket").unwrap_or(used);
                assert!(metrics.contains(&format!("`{base}`")), "{used}");
                shown.insert(base.to_owned());
            }
        }
    }
    assert!(count > 30);
    for row in metrics.lines().filter(|line| line.starts_with("| `")) {
        let names = row.split('|').nth(1).unwrap();
        // The page has a table of reasons too.
        if !name.is_match(names) {
            continue;
        }
        let known = name.find_iter(names).any(|it| shown.contains(it.as_str()));
        assert!(known, "on no panel: {names}");
    }
}

/// One file for `kubectl apply`: the chart with its defaults, without what only Helm needs.
#[test]
fn generated_manifests_are_current() {
    let helm = tools().join("bin/helm");
    if !helm.exists() {
        assert!(
            std::env::var_os("CI").is_none(),
            "helm is not installed: cargo xtask tools"
        );
        eprintln!("SKIPPED: helm is not installed: cargo xtask tools");
        return;
    }
    let output = Command::new(helm)
        .args(["template", "tidegate"])
        .arg(chart())
        .args(["--namespace", "tidegate-system", "--skip-tests"])
        .args(["--set", "crds.keep=false"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut manifest = String::from(
        "# Generated from charts/tidegate, do not edit: cargo xtask codegen\n\
         #\n\
         #   kubectl apply --server-side -f install.yaml\n\
         apiVersion: v1\n\
         kind: Namespace\n\
         metadata:\n\
         \x20 name: tidegate-system\n\
         \x20 labels:\n\
         \x20   app.kubernetes.io/part-of: tidegate\n\
         \x20   pod-security.kubernetes.io/enforce: restricted\n",
    );
    let mut blank = false;
    for line in text.lines() {
        let of_helm = ["helm.sh/chart:", "app.kubernetes.io/managed-by: Helm"]
            .iter()
            .any(|it| line.trim_start().starts_with(it));
        if of_helm || line.starts_with("# Source:") || line.starts_with("# Generated from") {
            continue;
        }
        // Helm leaves blank lines between documents, but those within texts are texts.
        blank = line.is_empty();
        if line == "---" && manifest.ends_with("\n\n") {
            manifest.pop();
        }
        let _ = writeln!(manifest, "{line}");
    }
    if blank {
        manifest.pop();
    }
    is_current("manifests/install.yaml", &manifest);
    is_current("manifests/kustomize/base/tidegate.yaml", &manifest);
}

/// Whoever reads a reason in a status finds what to do.
#[test]
fn troubleshooting_names_every_reason_that_asks_for_a_person() {
    // Nothing is wrong, or it passes by itself.
    const QUIET: &[&str] = &[
        "Accepted",
        "ResolvedRefs",
        "CertificateReady",
        "NotNeeded",
        "Programmed",
        "Ready",
        "ForwardedHeaders",
        "NotProxied",
        "TransparentRelay",
        "ProxyProtocol",
        "BackendsReady",
        "CredentialReady",
        "Connected",
        "Redundant",
        "MappingsAccepted",
        "ServicesAnswer",
        "Registered",
        "NoticesDelivered",
    ];
    let page = read("docs/troubleshooting.md");
    let conditions = read("docs/reference/conditions.md");
    let (_, reasons) = conditions.split_once("## Reasons").unwrap();
    let reason = Regex::new(r"(?m)^\| `([A-Za-z]+)` \|").unwrap();
    let all: BTreeSet<&str> = reason
        .captures_iter(reasons)
        .map(|found| found.get(1).unwrap().as_str())
        .collect();
    for quiet in QUIET {
        assert!(all.contains(quiet), "{quiet} is no reason any more");
    }
    let heading = Regex::new(r"(?m)^### `([A-Za-z]+)`$").unwrap();
    let told: BTreeSet<&str> = heading
        .captures_iter(&page)
        .map(|found| found.get(1).unwrap().as_str())
        .collect();
    let missing: Vec<_> = (all.iter())
        .filter(|it| !QUIET.contains(it) && !told.contains(*it))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/troubleshooting.md lacks {missing:?}"
    );
    let unknown: Vec<_> = told.difference(&all).collect();
    assert!(unknown.is_empty(), "no such reasons: {unknown:?}");
}

/// What the pages tell people to set exists.
#[test]
fn values_that_the_guides_name_exist() {
    let values: Value = serde_saphyr::from_str(&read("charts/tidegate/values.yaml")).unwrap();
    let set = Regex::new(r"--set(?:-string)? '?([A-Za-z.]+)(?:\[\d\])?=").unwrap();
    let mut count = 0;
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        for found in set.captures_iter(&text) {
            count += 1;
            let path_of_value = found.get(1).unwrap().as_str();
            let mut value = &values;
            for key in path_of_value.split('.') {
                // Below a map without keys anything goes.
                if value.as_object().is_some_and(serde_json::Map::is_empty) {
                    break;
                }
                value = value
                    .get(key)
                    .unwrap_or_else(|| panic!("{}: {path_of_value}", path.display()));
            }
        }
    }
    assert!(count > 5);
}

#[test]
fn helm_finds_nothing_to_complain_about() {
    let helm = tools().join("bin/helm");
    if helm.exists() {
        let mut command = Command::new(helm);
        program::succeed(command.args(["lint", "--strict"]).arg(chart()));
    }
}
