//! House rules that neither rustfmt, clippy nor Cargo can keep: area edges, module docs, sizes, names.
//!
//! Reads the sources as text. A failure lists every place and the rule, so that it can be mended at once.

use std::fs;
use std::path::{Path, PathBuf};

/// Which areas of `src/` may name which others. ADR 0001 and ARCHITECTURE.md tell why.
const AREAS: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("translate", &["api"]),
    ("source", &["api", "translate"]),
    ("standalone", &["api", "source", "translate"]),
    ("operator", &["api", "source", "translate"]),
    ("admin", &[]),
    ("rest", &["admin", "api"]),
    ("import", &[]),
    (
        "app",
        &[
            "admin",
            "api",
            "import",
            "operator",
            "rest",
            "source",
            "standalone",
            "translate",
        ],
    ),
    (
        "cli",
        &[
            "api",
            "app",
            "import",
            "operator",
            "source",
            "standalone",
            "translate",
        ],
    ),
    ("codegen", &["api", "rest"]),
];

/// Which packages of the workspace a crate may depend on.
const CRATES: &[(&str, &[&str])] = &[
    ("tidegate-model", &[]),
    ("tidegate-http1", &[]),
    ("tidegate-telemetry", &[]),
    (
        "tidegate-tracker",
        &["tidegate-model", "tidegate-telemetry"],
    ),
    ("tidegate-http2", &[]),
    (
        "tidegate-tunnel",
        &["tidegate-http2", "tidegate-model", "tidegate-telemetry"],
    ),
    (
        "tidegate-agent",
        &[
            "tidegate-http1",
            "tidegate-http2",
            "tidegate-model",
            "tidegate-telemetry",
            "tidegate-tunnel",
        ],
    ),
    (
        "tidegate-proxy",
        &[
            "tidegate-http1",
            "tidegate-http2",
            "tidegate-model",
            "tidegate-telemetry",
            "tidegate-tracker",
            "tidegate-tunnel",
        ],
    ),
    ("tidegate-acme", &["tidegate-model", "tidegate-telemetry"]),
    ("xtask", &[]),
    (
        "tidegate",
        &[
            "tidegate-model",
            "tidegate-telemetry",
            "tidegate-proxy",
            "tidegate-acme",
            "tidegate-tracker",
            "tidegate-tunnel",
            "tidegate-agent",
        ],
    ),
];

const LONGEST_FILE: usize = 800;

/// Names that say nothing about what is inside.
const DRAWERS: &[&str] = &[
    "utils", "util", "helpers", "helper", "common", "misc", "manager",
];

/// The only place where a test may wait for time to pass.
const WAITING: &[&str] = &[
    "tests/it/support/eventually.rs",
    "crates/tidegate-acme/src/dns/tests/mod.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the repository, with its path from the root.
struct File {
    path: String,
    text: String,
}

impl File {
    fn is_test(&self) -> bool {
        self.path.starts_with("tests/")
            || self.path.starts_with("e2e/")
            || self.path.ends_with("/tests.rs")
            || self.path.contains("/tests/")
    }

    /// Lines of code with their numbers: comments are left out.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("read {}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(
                name.as_str(),
                "target" | ".git" | ".tidegate" | "node_modules"
            ) {
                walk(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

fn files(wanted: impl Fn(&str) -> bool) -> Vec<File> {
    let mut found = Vec::new();
    walk(root(), &mut found);
    found
        .into_iter()
        .filter_map(|path| {
            let shown = path
                .strip_prefix(root())
                .unwrap()
                .to_string_lossy()
                .into_owned();
            if !wanted(&shown) {
                return None;
            }
            // Golden inputs may hold bytes that are no text on purpose.
            let text = String::from_utf8(fs::read(&path).ok()?).ok()?;
            Some(File { path: shown, text })
        })
        .collect()
}

fn rust_files() -> Vec<File> {
    let files = files(|path| has_extension(path, "rs"));
    assert!(files.len() > 10, "the walk found hardly any source");
    files
}

fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path)
        .extension()
        .is_some_and(|found| found == extension)
}

#[track_caller]
fn refuse(rule: &str, places: &[String]) {
    assert!(places.is_empty(), "{rule}:\n  {}", places.join("\n  "));
}

#[test]
fn areas_of_src_name_only_those_below_them() {
    let areas: Vec<&str> = AREAS.iter().map(|(area, _)| *area).collect();
    let mut places = Vec::new();
    for file in rust_files() {
        let Some(inside) = file.path.strip_prefix("src/") else {
            continue;
        };
        let Some((area, _)) = inside.split_once('/') else {
            continue;
        };
        let Some((_, allowed)) = AREAS.iter().find(|(name, _)| *name == area) else {
            places.push(format!(
                "src/{area}/ is no known area: add it to AREAS and ARCHITECTURE.md"
            ));
            continue;
        };
        if file.is_test() {
            continue;
        }
        for (number, line) in file.code() {
            for other in areas
                .iter()
                .filter(|other| **other != area && !allowed.contains(other))
            {
                if names_area(line, other) {
                    places.push(format!("{}:{number} names crate::{other}", file.path));
                }
            }
        }
    }
    refuse(
        &format!("allowed edges between areas are {AREAS:?}"),
        &places,
    );
}

/// Whether the line names `crate::area`, also inside `crate::{…}`.
fn names_area(line: &str, area: &str) -> bool {
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    line.split("crate::").skip(1).any(|rest| {
        rest.strip_prefix(area).is_some_and(ends)
            || rest.strip_prefix('{').is_some_and(|group| {
                let group = group.split('}').next().unwrap_or(group);
                group
                    .split(',')
                    .any(|item| item.trim().strip_prefix(area).is_some_and(ends))
            })
    })
}

#[test]
fn an_area_is_found_in_a_path_and_in_a_group() {
    assert!(names_area("use crate::api::TlsRoute;", "api"));
    assert!(names_area("use crate::{api, translate};", "translate"));
    assert!(names_area("use crate::{api::TlsRoute};", "api"));
    assert!(!names_area("use crate::api_types;", "api"));
    assert!(!names_area("use tidegate_model::api;", "api"));
}

#[test]
fn packages_depend_only_on_those_below_them() {
    let mut places = Vec::new();
    for file in files(|path| path.ends_with("Cargo.toml")) {
        let name = file
            .text
            .lines()
            .find_map(|line| line.strip_prefix("name = \""))
            .map(|rest| rest.trim_end_matches('"'));
        let Some((name, allowed)) = CRATES.iter().find(|(known, _)| Some(*known) == name) else {
            places.push(format!(
                "{}: package {name:?} has no row in CRATES",
                file.path
            ));
            continue;
        };
        let mut dependencies = false;
        for line in file.text.lines() {
            if line.starts_with('[') {
                dependencies = line.contains("dependencies") && !line.contains("workspace");
            } else if dependencies && line.starts_with("tidegate") {
                let other = line.split(['.', ' ', '=']).next().unwrap_or_default();
                if !allowed.contains(&other) {
                    places.push(format!("{}: {name} depends on {other}", file.path));
                }
            }
        }
    }
    refuse(
        &format!("allowed edges between packages are {CRATES:?}"),
        &places,
    );
}

#[test]
fn the_model_has_no_serde_and_no_io() {
    let manifest = fs::read_to_string(root().join("crates/tidegate-model/Cargo.toml")).unwrap();
    for refused in ["serde", "hyper", "kube", "tokio-rustls"] {
        assert!(
            !manifest.lines().any(|line| line.starts_with(refused)),
            "tidegate-model must not depend on {refused}: what crosses a boundary has its own type there"
        );
    }
}

#[test]
fn kubernetes_is_spoken_by_the_operator_only() {
    let mut places = Vec::new();
    for file in rust_files() {
        if !file.path.starts_with("src/") || file.path.starts_with("src/operator/") {
            continue;
        }
        for (number, line) in file.code() {
            if line.contains("kube::Client") || line.contains("kube::Api<") {
                places.push(format!("{}:{number}", file.path));
            }
        }
    }
    refuse(
        "kube::Client and kube::Api are named only under src/operator/",
        &places,
    );
}

#[test]
fn every_source_file_says_what_it_is() {
    let mut places: Vec<String> = rust_files()
        .iter()
        .filter(|file| !file.text.starts_with("//! ") || file.text.starts_with("//! x\n"))
        .map(|file| file.path.clone())
        .collect();
    let go = files(|path| has_extension(path, "go"));
    let silent = go.iter().filter(|file| !file.text.starts_with("// "));
    places.extend(silent.map(|file| file.path.clone()));
    refuse(
        "a source file begins with a `//!` comment (`//` in Go) that says what it is",
        &places,
    );
}

#[test]
fn no_source_file_is_too_long() {
    let places: Vec<String> = rust_files()
        .iter()
        .filter(|file| file.text.lines().count() > LONGEST_FILE)
        .map(|file| format!("{}: {} lines", file.path, file.text.lines().count()))
        .collect();
    refuse(
        &format!("a source file has at most {LONGEST_FILE} lines"),
        &places,
    );
}

#[test]
fn no_file_or_folder_is_a_drawer() {
    let mut places = Vec::new();
    for file in rust_files() {
        let drawer = Path::new(&file.path)
            .components()
            .map(|part| part.as_os_str().to_string_lossy().into_owned())
            .any(|part| DRAWERS.contains(&part.trim_end_matches(".rs")));
        if drawer {
            places.push(file.path);
        }
    }
    refuse(
        &format!("nothing is named {DRAWERS:?}: name it for what it does"),
        &places,
    );
}

#[test]
fn tests_wait_for_conditions_not_for_time() {
    // In two parts, so that this line is no finding itself.
    let needle = concat!("sle", "ep(");
    let mut places = Vec::new();
    for file in rust_files() {
        if !file.is_test() || WAITING.contains(&file.path.as_str()) {
            continue;
        }
        for (number, line) in file.code() {
            if line.contains(needle) {
                places.push(format!("{}:{number}", file.path));
            }
        }
    }
    refuse(
        &format!(
            "tests wait with `eventually` ({}), never for a time",
            WAITING.join(", ")
        ),
        &places,
    );
}

#[test]
fn nothing_names_a_developers_machine() {
    let needles = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/home", "/runner"),
    ];
    let mut places = Vec::new();
    let text = |path: &str| {
        !path.ends_with("Cargo.lock")
            && [
                "rs", "go", "md", "toml", "yaml", "yml", "sh", "py", "txt", "service",
            ]
            .iter()
            .any(|extension| has_extension(path, extension))
    };
    for file in files(text) {
        for (index, line) in file.text.lines().enumerate() {
            if needles.iter().any(|needle| line.contains(needle)) {
                places.push(format!("{}:{}", file.path, index + 1));
            }
        }
    }
    refuse(
        "no path of a developer's machine in the repository",
        &places,
    );
}

#[test]
fn markdown_links_lead_somewhere() {
    let mut places = Vec::new();
    for file in files(|path| has_extension(path, "md")) {
        let folder = root().join(&file.path).parent().unwrap().to_path_buf();
        for target in file.text.split("](").skip(1) {
            let Some(target) = target.split([')', '#', ' ']).next() else {
                continue;
            };
            let elsewhere = target.contains("://") || target.starts_with("mailto:");
            if !target.is_empty() && !elsewhere && !folder.join(target).exists() {
                places.push(format!("{}: {target}", file.path));
            }
        }
    }
    refuse(
        "a link between documents leads to a file that is there",
        &places,
    );
}
