//! The schema as the API server sees it.

use super::*;

#[test]
fn every_definition_is_complete() {
    for crd in all_crds() {
        let yaml = serde_saphyr::to_string(&crd).unwrap();
        assert!(!yaml.contains("nullable"), "{yaml}");
        assert!(yaml.contains("observedGeneration: -1"), "{yaml}");
        if std::env::var_os("SHOW").is_some() {
            println!("---\n{yaml}");
        }
    }
}
