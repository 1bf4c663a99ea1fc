//! Our own objects as a watch shows them: each understood, or with the reason why not.
//!
//! An object that a newer or older tidegate wrote may not be understood by this one. It harms nothing but
//! itself, and the last version of it that was understood stays in use. Why it is not understood is said in the
//! words of `tidegate check`, with the field.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::object::{HasSpec, HasStatus};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;
use tidegate_model::ObjectName;

use crate::api::{AcmeIssuer, TlsRoute, TunnelAgent};
use crate::source::yaml::kinds::{ObjectKind, misfits};
use crate::source::yaml::schema::FieldProblem;
use crate::translate::{Kind, ObjectRef};

/// A kind of ours.
pub(super) trait Ours:
    Resource<DynamicType = ()>
    + HasSpec<Spec: PartialEq>
    + HasStatus
    + DeserializeOwned
    + Clone
    + fmt::Debug
    + PartialEq
    + Send
    + Sync
    + 'static
{
    /// Which one.
    const KIND: Kind;
    /// The same for those who read it as text.
    const OBJECT: ObjectKind;

    /// The class that the object belongs to.
    fn class(&self) -> Option<&str>;
}

macro_rules! ours {
    ($($kind:ident),*) => {$(
        impl Ours for $kind {
            const KIND: Kind = Kind::$kind;
            const OBJECT: ObjectKind = ObjectKind::$kind;

            fn class(&self) -> Option<&str> {
                self.spec.class_name.as_deref()
            }
        }
    )*};
}

ours!(TlsRoute, TunnelAgent, AcmeIssuer);

/// An object of one of our kinds as it comes from the API server.
#[derive(Debug, Clone)]
pub(super) enum Seen<K> {
    /// It is understood.
    Understood(K),
    /// It is not.
    Not(Box<ObjectMeta>, Wrong),
}

/// An object of one of our kinds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Guarded<K> {
    /// The last version that was understood.
    pub(super) good: Option<Arc<K>>,
    /// What is wrong with the current one.
    pub(super) wrong: Option<Wrong>,
    /// The current version, which a status that is written must follow. None for what was kept from an earlier
    /// run of this program.
    pub(super) version: Option<String>,
}

/// An object that is not understood.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wrong {
    pub(super) generation: Option<i64>,
    pub(super) uid: Option<String>,
    pub(super) class: Option<String>,
    /// Everything that is wrong; at least one.
    pub(super) problems: Vec<FieldProblem>,
    /// What stands in its status.
    pub(super) status: Json,
}

/// Name and namespace; the namespace is empty for kinds that have none.
pub(super) fn name_of(object: &impl Resource) -> ObjectName {
    let meta = object.meta();
    ObjectName::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

/// The object of that name, for people.
pub(super) fn reference<K: Ours>(name: &ObjectName) -> ObjectRef {
    ObjectRef {
        kind: K::KIND,
        namespace: (!name.namespace.is_empty()).then(|| name.namespace.to_string()),
        name: name.name.to_string(),
    }
}

/// Takes the current version, or keeps the last one that was understood.
pub(super) fn guarded<K: Ours>(object: Seen<K>, before: Option<&Guarded<K>>) -> Guarded<K> {
    match object {
        Seen::Understood(mut object) => {
            let meta = object.meta_mut();
            // Much memory for nothing that is read here; and a version alone is no change.
            meta.managed_fields = None;
            let version = meta.resource_version.take();
            Guarded {
                good: Some(Arc::new(object)),
                wrong: None,
                version,
            }
        }
        Seen::Not(meta, wrong) => Guarded {
            good: before.and_then(|before| before.good.clone()),
            wrong: Some(wrong),
            version: meta.resource_version,
        },
    }
}

impl<K: Ours> Guarded<K> {
    /// Whether the two differ in nothing but their version and their status, which is ours to write and changes
    /// nothing of what is served.
    pub(super) fn is_alike(&self, other: &Self) -> bool {
        let wrong = |guarded: &Self| {
            guarded.wrong.as_ref().map(|wrong| Wrong {
                status: Json::Null,
                ..wrong.clone()
            })
        };
        let good = match (&self.good, &other.good) {
            (Some(a), Some(b)) => a.meta() == b.meta() && a.spec() == b.spec(),
            (None, None) => true,
            _ => false,
        };
        good && wrong(self) == wrong(other)
    }

    /// The class that the object belongs to, as far as it can be read.
    pub(super) fn class(&self) -> Option<&str> {
        match (&self.wrong, &self.good) {
            (Some(wrong), _) => wrong.class.as_deref(),
            (None, good) => good.as_ref().and_then(|good| good.class()),
        }
    }
}

impl Wrong {
    fn new(
        meta: &ObjectMeta,
        object: &Json,
        status: Json,
        kind: ObjectKind,
        error: &serde_json::Error,
    ) -> Self {
        Self {
            generation: meta.generation,
            uid: meta.uid.clone(),
            class: object["spec"]["className"].as_str().map(str::to_owned),
            problems: misfits(kind, object, error),
            status,
        }
    }
}

impl<'de, K: Ours> Deserialize<'de> for Seen<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = Json::deserialize(deserializer)?;
        if let Ok(understood) = K::deserialize(&object) {
            return Ok(Self::Understood(understood));
        }
        // What another version said of it is no reason not to serve it; our own word replaces that.
        let status = object.as_object_mut().and_then(|it| it.remove("status"));
        let error = match K::deserialize(&object) {
            Ok(understood) => return Ok(Self::Understood(understood)),
            Err(error) => error,
        };
        let meta = ObjectMeta::deserialize(&object["metadata"]).map_err(D::Error::custom)?;
        let status = status.unwrap_or_default();
        let wrong = Wrong::new(&meta, &object, status, K::OBJECT, &error);
        Ok(Self::Not(Box::new(meta), wrong))
    }
}

impl<K: Ours> Resource for Seen<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Understood(object) => object.meta(),
            Self::Not(meta, _) => meta,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Understood(object) => object.meta_mut(),
            Self::Not(meta, _) => meta,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(rules: &Json, status: &Json, before: Option<&Guarded<TlsRoute>>) -> Guarded<TlsRoute> {
        let object = json!({
            "apiVersion": "edge.tidegate.dev/v1alpha1", "kind": "TlsRoute",
            "metadata": {"name": "blog", "namespace": "default", "generation": 3, "resourceVersion": "7"},
            "spec": {"hostnames": ["a.example"], "className": "inner", "rules": rules, "later": {"a": 1}},
            "status": status,
        });
        guarded(serde_json::from_value(object).unwrap(), before)
    }

    #[test]
    fn what_is_not_understood_keeps_its_last_good_version() {
        let rules = json!([{"backends": [{"address": "127.0.0.1:80"}]}]);
        let good = read(&rules, &json!({}), None);
        assert!(good.wrong.is_none());
        let said = json!({"observedGeneration": 2});
        let bad = read(&json!("secret"), &said, Some(&good));
        assert_eq!(bad.good, good.good);
        assert!(!bad.is_alike(&good));
        assert_eq!(bad.class(), Some("inner"));
        let wrong = bad.wrong.unwrap();
        assert_eq!((wrong.generation, wrong.status), (Some(3), said));
        assert!(read(&json!(7), &json!({}), None).good.is_none());
    }

    #[test]
    fn what_is_wrong_is_told_by_its_field_in_the_words_of_check() {
        let told = |rules: Json| {
            let wrong = read(&rules, &json!({}), None).wrong.unwrap();
            let problems = wrong.problems.iter().map(ToString::to_string);
            problems.collect::<Vec<_>>()
        };
        // A field that is not known is no reason, and a value may be a credential.
        assert_eq!(
            told(
                json!([{"backends": [{"address": "127.0.0.1:80", "weight": "much"}], "later": 1}])
            ),
            [
                "spec.rules[0].backends[0].weight: should be an integer, found a string; write it without quotes"
            ]
        );
        assert_eq!(
            told(json!({"backends": "secret"})),
            ["spec.rules: should be a list, found a mapping; put `- ` in front of each item"]
        );
        assert_eq!(
            told(json!([{"backends": [{"agent": {"name": "a"}}]}, {"timeouts": true}])),
            [
                "spec.rules[0].backends[0].agent.target: is missing; URL of the service as the agent reaches it, such as `http://192.168.1.20:8123`",
                "spec.rules[1].timeouts: should be a mapping, found the boolean true"
            ]
        );
    }

    #[test]
    fn a_status_that_is_not_understood_is_as_none() {
        let rules = json!([{"backends": [{"address": "127.0.0.1:80"}]}]);
        let without = read(&rules, &Json::Null, None);
        let good = read(&rules, &json!({"conditions": "fine"}), None);
        assert_eq!(good, without);
        let known = read(&rules, &json!({"observedGeneration": 3}), None);
        assert!(known != good && known.is_alike(&good));
    }
}
