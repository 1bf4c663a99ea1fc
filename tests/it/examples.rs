//! What the documentation shows has to be right: every example passes `tidegate check`.

use std::fs;
use std::path::Path;

use crate::support::Edge;
use crate::support::program::run;

#[test]
fn every_example_passes_the_check() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut checked = 0;
    let mut wrong = Vec::new();
    for entry in fs::read_dir(examples).unwrap() {
        let folder = entry.unwrap().path();
        if folder.is_dir() {
            let (ok, text) = run(Edge::command().arg("check").arg(&folder));
            if !ok {
                wrong.push(format!("{}:\n{text}", folder.display()));
            }
            checked += 1;
        }
    }
    assert!(checked >= 5, "only {checked} examples");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn routes_in_the_documents_pass_the_check() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in [
        "README.md",
        "docs/getting-started.md",
        "docs/kubernetes.md",
        "docs/migrate-ingress-nginx.md",
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
