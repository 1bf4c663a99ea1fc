//! What is told about a folder without serving it.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};

use crate::support::program::run;
use crate::support::{Edge, route};

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/testdata")
        .join(name)
}

/// A copy of a folder of testdata that ends with the test.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(testdata(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn write_secret(folder: &Path, name: &str, certificate: &str, key: &str) {
    let folder = folder.join("secrets/default").join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("tls.crt"), certificate).unwrap();
    fs::write(folder.join("tls.key"), key).unwrap();
}

/// The ten mistakes with the two Secrets that cannot be committed, because they hold keys.
fn ten_mistakes() -> tempfile::TempDir {
    let folder = copy("ten-mistakes");
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::new(vec!["key-of-another.example.com".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    write_secret(
        folder.path(),
        "key-of-another",
        &certificate.pem(),
        &other.serialize_pem(),
    );
    params = CertificateParams::new(vec!["expired.example.com".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2020, 12, 31);
    let certificate = params.self_signed(&key).unwrap();
    write_secret(
        folder.path(),
        "expired",
        &certificate.pem(),
        &key.serialize_pem(),
    );
    folder
}

#[test]
fn ten_mistakes_are_told_at_once_each_with_its_place_and_remedy() {
    let folder = ten_mistakes();
    let (ok, output) = run(Edge::command().arg("check").arg(folder.path()));
    assert!(!ok);
    let golden = testdata("ten-mistakes.out");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &output).unwrap();
    }
    let expected = fs::read_to_string(&golden).unwrap();
    assert_eq!(
        output, expected,
        "if the new text is right: UPDATE_GOLDEN=1 cargo test ten_mistakes"
    );
}

#[test]
fn the_json_says_the_same() {
    let folder = ten_mistakes();
    let (ok, output) = run(Edge::command()
        .arg("check")
        .arg(folder.path())
        .args(["--output", "json"]));
    assert!(!ok);
    let report: serde_json::Value = serde_json::from_str(&output).unwrap();
    assert_eq!(report["ok"], false);
    let problems = report["problems"].as_array().unwrap();
    let unknown = problems
        .iter()
        .find(|problem| problem["reason"] == "UnknownField")
        .unwrap();
    assert_eq!(unknown["file"], "02-unknown-field.yaml");
    assert_eq!(unknown["line"], 8);
    assert_eq!(unknown["severity"], "error");
    assert_eq!(unknown["field"], "spec.rules[0].backend");
    assert_eq!(unknown["object"], "TlsRoute default/unknown-field");
    assert!(unknown["hint"].as_str().unwrap().contains("backends"));
    // Every field is described where people look for it.
    let documented = include_str!("../../../docs/reference/check-output.md");
    for name in report
        .as_object()
        .unwrap()
        .keys()
        .chain(unknown.as_object().unwrap().keys())
    {
        assert!(
            documented.contains(&format!("`{name}`")),
            "{name} is not documented"
        );
    }
}

#[test]
fn the_samples_are_right_and_strict_takes_their_warnings_for_errors() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/samples");
    let check = |options: &[&str]| run(Edge::command().arg("check").arg(&samples).args(options));
    let (ok, output) = check(&[]);
    assert!(ok, "{output}");
    // The object of another program that a sample brings along.
    assert!(output.contains("[ForeignKind, warning]"), "{output}");
    assert!(
        output.contains(" warning") && !output.contains(" error"),
        "{output}"
    );
    let (ok, json) = check(&["--output", "json"]);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(ok && report["ok"] == true && report["errors"] == 0);
    let problems = report["problems"].as_array().unwrap();
    assert_eq!(report["warnings"], problems.len());
    assert!(problems.iter().all(|it| it["severity"] == "warning"));
    let (ok, _) = check(&["--strict"]);
    assert!(!ok);
    let (ok, json) = check(&["--strict", "-o", "json"]);
    assert!(!ok && json.contains("\"ok\": false"), "{json}");
}

#[test]
fn a_right_folder_and_an_empty_one_are_ok_and_a_missing_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (ok, output) = run(Edge::command().arg("check").arg(folder.path()));
    assert!(ok && output.contains("holds no objects"), "{output}");
    fs::write(
        folder.path().join("a.yaml"),
        route("a", "a.test", "127.0.0.1:1"),
    )
    .unwrap();
    let (ok, output) = run(Edge::command().arg("check").arg(folder.path()));
    assert!(ok && output.contains("1 object in 1 file"), "{output}");
    let (ok, output) = run(Edge::command().arg("check").arg(folder.path().join("none")));
    assert!(!ok && output.contains("does not exist"), "{output}");
}

#[test]
fn explain_tells_why_a_rule_does_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("a.yaml"),
        "apiVersion: edge.tidegate.dev/v1alpha1\n\
         kind: TlsRoute\n\
         metadata: {name: shop}\n\
         spec:\n\
         \x20 hostnames: [shop.test]\n\
         \x20 rules:\n\
         \x20 - name: all\n\
         \x20   backends: [{address: '127.0.0.1:1'}]\n\
         \x20 - name: api\n\
         \x20   match: {path: {type: PathPrefix, value: /api}}\n\
         \x20   backends: [{address: '127.0.0.1:2'}]\n\
         \x20 - name: api-again\n\
         \x20   match: {path: {type: PathPrefix, value: /api}}\n\
         \x20   backends: [{address: '127.0.0.1:3'}]\n",
    )
    .unwrap();
    let explain = |args: &[&str]| {
        run(Edge::command()
            .arg("explain")
            .args(args)
            .arg("--dir")
            .arg(folder.path()))
    };
    let (ok, output) = explain(&["https://shop.test/api/x?y=1"]);
    assert!(ok, "{output}");
    for expected in [
        "shop.test belongs to TlsRoute default/shop",
        "→ default/shop api ",
        "would match, but default/shop api comes first",
        "backend 127.0.0.1:2",
    ] {
        assert!(output.contains(expected), "{expected} in\n{output}");
    }
    let (ok, output) = explain(&["shop.tset"]);
    assert!(
        !ok && output.contains("the nearest that exists is shop.test"),
        "{output}"
    );
    let (ok, output) = explain(&["http://shop.test/x"]);
    assert!(ok && output.contains("308"), "{output}");
}

#[test]
fn how_clients_reach_a_udp_tracker_is_told_with_what_to_mind() {
    let folder = tempfile::tempdir().unwrap();
    let yaml = "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TlsRoute\nmetadata: {name: torrust}\nspec:\n  hostnames: [udp.example.com]\n  rules:\n  - name: udp1\n    tracker: {type: UDP}\n    backends: [{address: \"127.0.0.1:6969\"}]\n  - name: udp2\n    tracker: {type: UDP, udp: {mode: Transparent}}\n    backends: [{address: \"127.0.0.1:6868\"}]\n";
    fs::write(folder.path().join("torrust.yaml"), yaml).unwrap();
    let (ok, text) = run(Edge::command().arg("check").arg(folder.path()));
    assert!(ok, "{text}");
    assert!(
        text.contains("udp1: clients reach UDP port 6969 without this edge"),
        "{text}"
    );
    assert!(
        text.contains("let the tracker listen on 0.0.0.0:6969"),
        "{text}"
    );
    assert!(text.contains("udp2: tried when the edge runs"), "{text}");
}
