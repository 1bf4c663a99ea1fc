//! Changes mappings of TunnelAgents in the cluster, as one writer among several.
//!
//! By server-side apply under a name of its own, so that the API server keeps apart what people, Argo CD or Flux
//! wrote and what was changed here: what others own is never overwritten, only what nobody owns or we do. What is
//! applied is all that we own, the change included; leaving something out gives it up.

mod owned;

use kube::api::{ListParams, ObjectMeta, Patch, PatchParams};
use kube::{Api, Error as KubeError};
use serde_json::{Map, Value as Json, json};
use tidegate_model::ObjectName;

use super::Cluster;
use crate::api::TunnelAgent;

/// The name under which changes by the API own fields.
pub(crate) const MANAGER: &str = "tidegate-api";

/// Why an object was not changed. Nothing is then different from before.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EditError<E> {
    /// The change itself is refused.
    #[error("change the object")]
    Refused(#[source] E),
    /// There is no such object.
    #[error("find TunnelAgent {0}: there is none")]
    NotFound(ObjectName),
    /// Somebody else owns what would be changed.
    #[error("change mapping {mapping} of TunnelAgent {agent}: {owners} owns it; change it there")]
    Owned {
        /// The object.
        agent: ObjectName,
        /// The mapping.
        mapping: String,
        /// The managers.
        owners: String,
    },
    /// The API server finds it invalid.
    #[error("change TunnelAgent {agent}: the API server refuses it: {message}")]
    Invalid {
        /// The object.
        agent: ObjectName,
        /// What it said.
        message: String,
        /// Field and message of each mistake.
        causes: Vec<(String, String)>,
    },
    /// The API server could not be asked, or refused for another reason.
    #[error("change TunnelAgent {agent}: {message}")]
    Api {
        /// The object.
        agent: ObjectName,
        /// What it said.
        message: String,
    },
}

/// Reads and changes TunnelAgents.
#[derive(Debug, Clone)]
pub(crate) struct AgentEditor {
    cluster: Cluster,
}

impl AgentEditor {
    pub(crate) fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    /// Every agent of the watched namespaces, as it is now.
    pub(crate) async fn all(&self) -> Result<Vec<TunnelAgent>, KubeError> {
        let client = &self.cluster.client;
        let mut all = Vec::new();
        let scopes: Vec<Api<TunnelAgent>> = if self.cluster.watched.is_empty() {
            vec![Api::all(client.clone())]
        } else {
            let watched = self.cluster.watched.iter();
            watched
                .map(|namespace| Api::namespaced(client.clone(), namespace))
                .collect()
        };
        for scope in scopes {
            all.extend(scope.list(&ListParams::default()).await?.items);
        }
        Ok(all)
    }

    /// Changes mappings of one agent. `change` gets its `spec` and leaves what it shall be.
    pub(crate) async fn edit<E>(
        &self,
        name: &ObjectName,
        change: impl FnOnce(&mut Json) -> Result<(), E>,
    ) -> Result<(), EditError<E>> {
        let agents: Api<TunnelAgent> =
            Api::namespaced(self.cluster.client.clone(), &name.namespace);
        let found = agents.get_opt(&name.name).await;
        let found = found.map_err(|error| failed(name, error))?;
        let found = found.ok_or_else(|| EditError::NotFound(name.clone()))?;
        let mut spec = json!(found.spec);
        let before = spec["mappings"].clone();
        change(&mut spec).map_err(EditError::Refused)?;
        let managed = managed(&found.metadata);
        let applied =
            applied(&before, &spec["mappings"], &managed).map_err(|owned| EditError::Owned {
                agent: name.clone(),
                mapping: owned.mapping,
                owners: owned.owners.join(", "),
            })?;
        let mut object = json!({
            "apiVersion": "edge.tidegate.dev/v1alpha1",
            "kind": "TunnelAgent",
            "metadata": {"name": &*name.name, "namespace": &*name.namespace},
        });
        if !applied.is_empty() {
            object["spec"] = json!({"mappings": applied});
        }
        let params = PatchParams::apply(MANAGER);
        let patch = Patch::Apply(&object);
        let patched = agents.patch(&name.name, &params, &patch);
        patched.await.map(drop).map_err(|error| failed(name, error))
    }
}

/// A mapping that somebody else owns.
#[derive(Debug, PartialEq, Eq)]
struct Owned {
    mapping: String,
    owners: Vec<String>,
}

/// What is to be applied so that `before` becomes `after`.
fn applied(before: &Json, after: &Json, managed: &Json) -> Result<Vec<Json>, Owned> {
    let ours = managed.as_array().into_iter().flatten();
    let ours = ours.filter(|entry| entry["manager"] == MANAGER && entry["operation"] == "Apply");
    let mut applied: Vec<Json> = Vec::new();
    for entry in ours {
        if let Json::Array(part) = owned::part(before, owned::mappings(entry)) {
            applied.extend(part);
        }
    }
    let list = |value: &Json| value.as_array().cloned().unwrap_or_default();
    let by_name = |items: &[Json], name: &Json| items.iter().position(|item| item["name"] == *name);
    let (before, after) = (list(before), list(after));
    let owned_by_others = |name: &Json| {
        let mapping = name.as_str().unwrap_or_default().to_owned();
        let owners = owned::others(managed, MANAGER, &mapping);
        Owned { mapping, owners }
    };
    for old in &before {
        let name = &old["name"];
        let own = by_name(&applied, name);
        match by_name(&after, name).map(|at| &after[at]) {
            Some(new) if new == old => {}
            Some(new) => {
                let at = own.unwrap_or_else(|| {
                    applied.push(json!({"name": name}));
                    applied.len() - 1
                });
                if !merge(&mut applied[at], old, new) {
                    return Err(owned_by_others(name));
                }
            }
            None => {
                let owned = owned_by_others(name);
                if !owned.owners.is_empty() {
                    return Err(owned);
                }
                if let Some(at) = own {
                    applied.remove(at);
                }
            }
        }
    }
    for new in &after {
        if by_name(&before, &new["name"]).is_none() {
            applied.push(new.clone());
        }
    }
    Ok(applied)
}

/// Brings what differs into our part of an entry. False where something is to go that is not ours to take away.
fn merge(ours: &mut Json, old: &Json, new: &Json) -> bool {
    let empty = Map::new();
    let old = old.as_object().unwrap_or(&empty);
    let new = new.as_object().unwrap_or(&empty);
    let Json::Object(ours) = ours else {
        return false;
    };
    for (key, value) in new {
        if old.get(key) != Some(value) {
            ours.insert(key.clone(), value.clone());
        }
    }
    old.keys()
        .filter(|key| !new.contains_key(*key))
        .all(|key| ours.remove(key).is_some())
}

fn managed(metadata: &ObjectMeta) -> Json {
    json!(metadata.managed_fields)
}

fn failed<E>(name: &ObjectName, error: KubeError) -> EditError<E> {
    let agent = name.clone();
    let KubeError::Api(status) = error else {
        let message = tidegate_telemetry::chain(&error).to_string();
        return EditError::Api { agent, message };
    };
    let causes = status.details.as_ref().map(|details| &details.causes);
    let causes: Vec<_> = causes
        .into_iter()
        .flatten()
        .map(|cause| (cause.field.clone(), cause.message.clone()))
        .collect();
    match status.code {
        404 => EditError::NotFound(agent),
        409 => EditError::Owned {
            agent,
            mapping: causes
                .iter()
                .map(|(field, _)| field.as_str())
                .collect::<Vec<_>>()
                .join(", "),
            owners: causes
                .first()
                .map_or_else(|| status.message.clone(), |(_, message)| message.clone()),
        },
        422 => EditError::Invalid {
            agent,
            message: status.message.clone(),
            causes,
        },
        _ => EditError::Api {
            agent,
            message: status.message.clone(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn managed() -> Json {
        json!([
            {"manager": "argocd", "operation": "Apply", "fieldsV1": {"f:spec": {"f:mappings": {
                "k:{\"name\":\"nas\"}": {".": {}, "f:name": {}, "f:hostname": {}, "f:target": {}}}}}},
            {"manager": MANAGER, "operation": "Apply", "fieldsV1": {"f:spec": {"f:mappings": {
                "k:{\"name\":\"nas\"}": {"f:enabled": {}},
                "k:{\"name\":\"own\"}": {".": {}, "f:name": {}, "f:hostname": {}, "f:target": {}}}}}},
        ])
    }

    fn before() -> Json {
        json!([
            {"name": "nas", "hostname": "nas.example.com", "target": "http://a", "enabled": false},
            {"name": "own", "hostname": "own.example.com", "target": "http://b"},
        ])
    }

    #[test]
    fn all_that_is_ours_is_applied_and_the_change_with_it() {
        let mut after = before();
        after[0]["enabled"] = json!(true);
        after
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "new", "hostname": "n", "target": "t"}));
        assert_eq!(
            applied(&before(), &after, &managed()).unwrap(),
            [
                json!({"name": "nas", "enabled": true}),
                json!({"name": "own", "hostname": "own.example.com", "target": "http://b"}),
                json!({"name": "new", "hostname": "n", "target": "t"}),
            ]
        );
        let without: Vec<_> = vec![before()[0].clone()];
        assert_eq!(
            applied(&before(), &json!(without), &managed()).unwrap(),
            [json!({"name": "nas", "enabled": false})]
        );
    }

    #[test]
    fn what_others_own_is_neither_deleted_nor_taken_apart() {
        let without = json!([before()[1].clone()]);
        let owned = applied(&before(), &without, &managed()).unwrap_err();
        assert_eq!(owned.owners, ["argocd"]);
        let mut bare = before();
        bare[0].as_object_mut().unwrap().remove("target");
        assert!(applied(&before(), &bare, &managed()).is_err());
        // What is ours may go.
        let mut bare = before();
        bare[0].as_object_mut().unwrap().remove("enabled");
        let kept = applied(&before(), &bare, &managed()).unwrap();
        assert_eq!(kept[0], json!({"name": "nas"}));
    }
}
