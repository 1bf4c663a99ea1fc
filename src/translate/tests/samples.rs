//! Samples and the YAML blocks of the documentation are valid and understood.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{input, now};
use crate::api::conditions::ConditionType;
use crate::api::{GROUP, validate_cel};
use crate::translate::report::condition_of;
use crate::translate::{Inputs, translate};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|end| end == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Every object of ours is accepted, by the schema's rules and by `translate`.
#[track_caller]
fn accepted(origin: &str, text: &str) -> usize {
    let documents = input::documents(text);
    let ours = |document: &&Value| {
        document["apiVersion"]
            .as_str()
            .is_some_and(|version| version.starts_with(GROUP))
    };
    let count = documents.iter().filter(ours).count();
    let mut inputs = Inputs::default();
    for document in documents {
        input::add(&mut inputs, document);
    }
    for route in &inputs.routes {
        assert_eq!(validate_cel(&**route), Vec::new(), "{origin}");
    }
    for agent in &inputs.agents {
        assert_eq!(validate_cel(&**agent), Vec::new(), "{origin}");
    }
    for issuer in &inputs.issuers {
        assert_eq!(validate_cel(&**issuer), Vec::new(), "{origin}");
    }
    let translation = translate(&inputs, now());
    let refused: Vec<_> = translation
        .problems
        .iter()
        .filter(|problem| condition_of(problem.reason) == ConditionType::Accepted)
        .map(ToString::to_string)
        .collect();
    assert_eq!(refused, Vec::<String>::new(), "{origin}");
    count
}

#[test]
fn every_sample_is_accepted() {
    let samples = files(&root().join("manifests/samples"), "yaml");
    assert!(samples.len() >= 6, "samples are missing");
    for path in samples {
        let count = accepted(
            &path.display().to_string(),
            &fs::read_to_string(&path).unwrap(),
        );
        assert!(count > 0, "{} has no object of ours", path.display());
    }
}

#[test]
fn every_yaml_block_of_the_documentation_is_accepted() {
    let mut pages = files(&root().join("docs"), "md");
    pages.push(root().join("README.md"));
    for path in pages {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        for block in yaml_blocks(&text) {
            if block.contains(GROUP) {
                accepted(&path.display().to_string(), &block);
            }
        }
    }
}

fn yaml_blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut current: Option<String> = None;
    // A block in a list is indented with it.
    let mut indent = 0;
    for line in text.lines() {
        match &mut current {
            None if line.trim() == "```yaml" => {
                indent = line.len() - line.trim_start().len();
                current = Some(String::new());
            }
            None => {}
            Some(_) if line.trim() == "```" => blocks.extend(current.take()),
            Some(block) => {
                block.push_str(line.get(indent..).unwrap_or_default());
                block.push('\n');
            }
        }
    }
    blocks
}
