//! Our own objects as a watch shows them: each understood, or with the reason why not.
//!
//! An object that a newer or older tidegate wrote may not be understood by this one. It harms nothing but
//! itself, and the last version of it that was understood stays in use.

use std::sync::Arc;

use kube::Resource;
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use tidegate_model::ObjectName;

/// An object of one of our kinds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Guarded<K> {
    /// The last version that was understood.
    pub(super) good: Option<Arc<K>>,
    /// What is wrong with the current one.
    pub(super) wrong: Option<Wrong>,
}

/// An object that is not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) generation: Option<i64>,
    pub(super) error: String,
}

/// Name and namespace; the namespace is empty for kinds that have none.
pub(super) fn name_of(object: &impl Resource) -> ObjectName {
    let meta = object.meta();
    ObjectName::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

/// Takes the current version, or keeps the last one that was understood.
pub(super) fn guarded<K: Resource>(
    object: DeserializeGuard<K>,
    before: Option<&Guarded<K>>,
) -> Guarded<K> {
    match object.0 {
        Ok(mut object) => {
            let meta = object.meta_mut();
            // Much memory for nothing that is read here; and a version alone is no change.
            meta.managed_fields = None;
            meta.resource_version = None;
            Guarded {
                good: Some(Arc::new(object)),
                wrong: None,
            }
        }
        Err(InvalidObject { error, metadata }) => Guarded {
            good: before.and_then(|before| before.good.clone()),
            wrong: Some(Wrong {
                generation: metadata.generation,
                error,
            }),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::TlsRoute;

    #[test]
    fn what_is_not_understood_keeps_its_last_good_version() {
        let read = |rules: serde_json::Value, before: Option<&Guarded<TlsRoute>>| {
            let object = json!({
                "apiVersion": "edge.tidegate.dev/v1alpha1", "kind": "TlsRoute",
                "metadata": {"name": "blog", "namespace": "default", "generation": 3, "resourceVersion": "7"},
                "spec": {"hostnames": ["a.example"], "rules": rules},
            });
            guarded::<TlsRoute>(serde_json::from_value(object).unwrap(), before)
        };
        let good = read(json!([{"backends": [{"address": "127.0.0.1:80"}]}]), None);
        assert!(good.wrong.is_none());
        let bad = read(json!("everything"), Some(&good));
        assert_eq!(bad.good, good.good);
        let wrong = bad.wrong.unwrap();
        assert_eq!(wrong.generation, Some(3));
        assert!(wrong.error.contains("everything"), "{}", wrong.error);
        assert!(read(json!(7), None).good.is_none());
    }
}
