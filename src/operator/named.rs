//! Secrets and ConfigMaps that objects name, fetched one by one.
//!
//! Of all others only names and versions are known: they come from a watch of metadata, and what it shows
//! besides (labels, annotations with copies of the content) is dropped at once. What is fetched is fetched
//! again when its version changes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret as KubeSecret};
use kube::{Api, Client};
use tidegate_model::ObjectName;
use tidegate_telemetry::chain;

use super::cache::Cache;
use crate::translate::{ConfigMapData, Inputs, Reference, ReferenceKind, SecretData};

/// Requests that are under way at one time.
const PARALLEL: usize = 16;
/// Time for all requests of one round; what did not come until then is asked for again.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is named, and the versions of all that could be.
pub(super) struct Named {
    client: Client,
    /// Resource versions of Secrets.
    pub(super) secret_versions: Cache<String>,
    /// Resource versions of ConfigMaps.
    pub(super) map_versions: Cache<String>,
    fetched: Mutex<Fetched>,
}

/// Content by name.
pub(super) type Kept<T> = Vec<(ObjectName, Arc<T>)>;

#[derive(Default)]
struct Fetched {
    secrets: BTreeMap<ObjectName, (String, Arc<SecretData>)>,
    maps: BTreeMap<ObjectName, (String, Arc<ConfigMapData>)>,
}

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Named").finish_non_exhaustive()
    }
}

impl Named {
    pub(super) fn new(client: Client, secret_feeds: usize, map_feeds: usize) -> Self {
        Self {
            client,
            secret_versions: Cache::new(secret_feeds),
            map_versions: Cache::new(map_feeds),
            fetched: Mutex::default(),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.secret_versions.is_complete() && self.map_versions.is_complete()
    }

    /// What was fetched, to be kept over a restart.
    pub(super) fn fetched(&self) -> (Kept<SecretData>, Kept<ConfigMapData>) {
        let fetched = self.lock();
        let secrets = fetched.secrets.iter();
        let maps = fetched.maps.iter();
        (
            secrets
                .map(|(name, (_, data))| (name.clone(), Arc::clone(data)))
                .collect(),
            maps.map(|(name, (_, data))| (name.clone(), Arc::clone(data)))
                .collect(),
        )
    }

    /// Takes what was fetched in an earlier life. It is fetched again once its version is known.
    pub(super) fn restore(
        &self,
        secrets: impl Iterator<Item = (ObjectName, Arc<SecretData>)>,
        maps: impl Iterator<Item = (ObjectName, Arc<ConfigMapData>)>,
    ) {
        let mut fetched = self.lock();
        let secrets = secrets.map(|(name, data)| (name, (String::new(), data)));
        fetched.secrets.extend(secrets);
        let maps = maps.map(|(name, data)| (name, (String::new(), data)));
        fetched.maps.extend(maps);
    }

    /// Fills in what was fetched and still exists.
    pub(super) fn fill(&self, inputs: &mut Inputs) {
        let mut fetched = self.lock();
        let Fetched { secrets, maps } = &mut *fetched;
        if self.secret_versions.is_complete() {
            secrets.retain(|name, _| self.secret_versions.get(name).is_some());
        }
        if self.map_versions.is_complete() {
            maps.retain(|name, _| self.map_versions.get(name).is_some());
        }
        inputs.secrets = (secrets.iter())
            .map(|(name, (_, data))| (name.clone(), Arc::clone(data)))
            .collect();
        inputs.config_maps = (maps.iter())
            .map(|(name, (_, data))| (name.clone(), Arc::clone(data)))
            .collect();
    }

    /// What of these exists and is not known in its current version. What is not among these is forgotten.
    pub(super) fn stale<'a>(
        &self,
        references: impl IntoIterator<Item = &'a Reference>,
    ) -> Vec<Reference> {
        let mut fetched = self.lock();
        let before = std::mem::take(&mut *fetched);
        let mut stale = Vec::new();
        for reference in references {
            let name = &reference.name;
            let (current, known) = match reference.kind {
                ReferenceKind::Service => continue,
                ReferenceKind::Secret => {
                    let known = before.secrets.get(name);
                    if let Some(known) = known {
                        fetched.secrets.insert(name.clone(), known.clone());
                    }
                    (self.secret_versions.get(name), known.map(|it| &it.0))
                }
                ReferenceKind::ConfigMap => {
                    let known = before.maps.get(name);
                    if let Some(known) = known {
                        fetched.maps.insert(name.clone(), known.clone());
                    }
                    (self.map_versions.get(name), known.map(|it| &it.0))
                }
            };
            if let Some(current) = current
                && known != Some(&*current)
            {
                stale.push(reference.clone());
            }
        }
        stale
    }

    /// Fetches these. What cannot be fetched in time stays as it was.
    pub(super) async fn fetch(&self, stale: Vec<Reference>) {
        let all = futures_util::stream::iter(stale)
            .for_each_concurrent(PARALLEL, |reference| self.fetch_one(reference));
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::warn!("not everything that objects name could be fetched in time");
        }
    }

    async fn fetch_one(&self, reference: Reference) {
        let name = &reference.name;
        let outcome = match reference.kind {
            ReferenceKind::Service => return,
            ReferenceKind::Secret => {
                let api = Api::<KubeSecret>::namespaced(self.client.clone(), &name.namespace);
                let found = api.get_opt(&name.name).await;
                found.map(|secret| {
                    let mut fetched = self.lock();
                    match secret {
                        Some(secret) => {
                            let version = secret.metadata.resource_version.clone();
                            let read = (version.unwrap_or_default(), Arc::new(secret_data(secret)));
                            fetched.secrets.insert(name.clone(), read);
                        }
                        None => drop(fetched.secrets.remove(name)),
                    }
                })
            }
            ReferenceKind::ConfigMap => {
                let api = Api::<ConfigMap>::namespaced(self.client.clone(), &name.namespace);
                let found = api.get_opt(&name.name).await;
                found.map(|map| {
                    let mut fetched = self.lock();
                    match map {
                        Some(map) => {
                            let data = ConfigMapData {
                                data: map.data.unwrap_or_default(),
                            };
                            let version = map.metadata.resource_version;
                            let read = (version.unwrap_or_default(), Arc::new(data));
                            fetched.maps.insert(name.clone(), read);
                        }
                        None => drop(fetched.maps.remove(name)),
                    }
                })
            }
        };
        if let Err(error) = outcome {
            let kind = reference.kind;
            tracing::warn!(?kind, name = %reference.name, error = %chain(&error), "cannot fetch what an object names");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Fetched> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn secret_data(secret: KubeSecret) -> SecretData {
    SecretData {
        type_: secret.type_.unwrap_or_else(|| "Opaque".to_owned()),
        data: secret
            .data
            .unwrap_or_default()
            .into_iter()
            .map(|(key, value)| (key, value.0))
            .collect(),
    }
}
