//! Committed files that are made from types: definitions for clusters, reference pages for people.
//!
//! Pure: content only. `tests/it/generated.rs` compares it with what is committed and rewrites it when told
//! to; `tidegate crds` prints the same definitions.

mod conditions;
mod definitions;
mod reference;

pub use definitions::{crds_yaml, definition_yaml, policies_yaml};

use crate::api::all_crds;

/// Folders of nothing but definitions.
pub const DEFINITION_FOLDERS: [&str; 2] = ["charts/tidegate/files/crds", "crds"];

/// A file that must look like this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratedFile {
    /// Path from the root of the repository.
    pub path: String,
    /// Whole content.
    pub content: String,
}

/// Why a file could not be made.
#[derive(Debug, thiserror::Error)]
#[error("render {what}")]
pub struct CodegenError {
    what: String,
    source: serde_saphyr::SerializeError,
}

/// Returns every generated file, sorted by path.
pub fn generated_files() -> Result<Vec<GeneratedFile>, CodegenError> {
    let mut files = Vec::new();
    for crd in all_crds() {
        let plural = &crd.spec.names.plural;
        let definition = definition_yaml(&crd)?;
        // Helm takes nothing from outside of the chart's folder.
        for folder in DEFINITION_FOLDERS {
            files.push(GeneratedFile {
                path: format!("{folder}/{plural}.yaml"),
                content: definition.clone(),
            });
        }
        files.push(GeneratedFile {
            path: format!("docs/reference/{}.md", crd.spec.names.kind.to_lowercase()),
            content: reference::page(&crd),
        });
    }
    let policies = policies_yaml()?;
    for path in [
        "charts/tidegate/files/policies.yaml",
        "manifests/policies.yaml",
    ] {
        files.push(GeneratedFile {
            path: path.to_owned(),
            content: policies.clone(),
        });
    }
    files.push(GeneratedFile {
        path: "docs/reference/conditions.md".to_owned(),
        content: conditions::page(),
    });
    files.push(GeneratedFile {
        path: "docs/reference/openapi.json".to_owned(),
        content: format!("{:#}\n", crate::rest::description()),
    });
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}
