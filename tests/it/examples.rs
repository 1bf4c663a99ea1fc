//! What the documentation shows has to be right: every example passes `tidegate check`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::Edge;
use crate::support::program::run;

#[test]
fn every_example_passes_the_check() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut checked = 0;
    let mut wrong = Vec::new();
    for entry in fs::read_dir(examples).unwrap() {
        for folder in folders_of_objects(&entry.unwrap().path()) {
            let (ok, text) = run(Edge::command().arg("check").arg(&folder));
            if !ok {
                wrong.push(format!("{}:\n{text}", folder.display()));
            }
            checked += 1;
        }
    }
    assert!(checked >= 10, "only {checked} examples");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The folders of an example that an edge would be started on: those called `routes…` where other programs' files
/// lie beside them.
fn folders_of_objects(example: &Path) -> Vec<PathBuf> {
    if !example.is_dir() {
        return Vec::new();
    }
    if !example.join("compose.yaml").exists() {
        return vec![example.to_owned()];
    }
    fs::read_dir(example)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("routes"))
        .map(|entry| entry.path())
        .collect()
}

#[test]
fn routes_in_the_documents_pass_the_check() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in [
        "README.md",
        "docs/getting-started.md",
        "docs/kubernetes.md",
        "docs/migrate-ingress-nginx.md",
        "docs/trackers.md",
    ] {
        let text = fs::read_to_string(root.join(document)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let blocks: Vec<_> = text
            .split("```yaml\n")
            .skip(1)
            .filter_map(|rest| rest.split("```").next())
            .filter(|block| block.contains("apiVersion: edge.tidegate.dev"))
            .collect();
        assert!(!blocks.is_empty(), "{document} shows no object");
        for (index, block) in blocks.iter().enumerate() {
            fs::write(folder.path().join(format!("{index}.yaml")), block).unwrap();
        }
        let (ok, said) = run(Edge::command().arg("check").arg(folder.path()));
        assert!(ok, "{document}: {said}");
    }
}
