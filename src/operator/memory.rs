//! What the API server last told, kept in the state folder, so that a restart while it is away serves what was
//! served before.
//!
//! One file, readable by nobody else: it holds what objects name, private keys among it. In a cluster the
//! state folder is a volume in memory that lives as long as the pod. What is restored is replaced as soon as the
//! lists can be read again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tidegate_model::{ObjectName, Secret};
use tidegate_telemetry::chain;
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::documents::Document;
use super::objects::{Guarded, name_of};
use super::services::{ServiceShape, SliceShape};
use super::unused::Mark;
use super::watch::World;
use crate::api::{AcmeIssuer, TlsRoute, TunnelAgent};
use crate::source::state::{StateError, StateFolder};
use crate::translate::{ConfigMapData, SecretData};

/// The file.
const FILE: &str = "cluster.json";
const VERSION: u32 = 1;
/// Quiet time before changes are written down, which is also the most that a crash can forget.
const PAUSE: Duration = Duration::from_secs(10);

/// Everything that a translation needs.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    version: u32,
    /// Seconds since 1970.
    saved_at: u64,
    routes: Vec<TlsRoute>,
    agents: Vec<TunnelAgent>,
    issuers: Vec<AcmeIssuer>,
    services: Vec<Named<ServiceShape>>,
    slices: Vec<Named<SliceShape>>,
    secrets: Vec<Named<KeptSecret>>,
    config_maps: Vec<Named<std::collections::BTreeMap<String, String>>>,
    documents: Vec<Named<KeptDocument>>,
}

#[derive(Serialize, Deserialize)]
struct Named<T> {
    namespace: String,
    name: String,
    value: T,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptSecret {
    type_: String,
    /// In base64.
    data: std::collections::BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptDocument {
    kind: String,
    name: String,
    /// In base64.
    content: String,
}

/// Why nothing could be remembered.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The state folder.
    #[error("keep what the API server told")]
    State(#[from] StateError),
    /// The file is damaged; its position is told, its text is not.
    #[error(
        "read what the API server told last: the file is damaged at line {line}, column {column}"
    )]
    Damaged {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// Another version of this program wrote it.
    #[error("read what the API server told last: another version of tidegate wrote it ({0})")]
    Version(u32),
}

impl<T> Named<T> {
    fn new(name: &ObjectName, value: T) -> Self {
        Self {
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            value,
        }
    }

    fn split(self) -> (ObjectName, T) {
        (ObjectName::new(self.namespace, self.name), self.value)
    }
}

/// Writes down what changes, until the token is cancelled.
pub async fn keep(world: Arc<World>, state: Arc<StateFolder>, stop: CancellationToken) {
    let mut changes = world.changes();
    changes.mark_changed();
    while let Some(Ok(())) = stop.run_until_cancelled(changes.changed()).await {
        if stop
            .run_until_cancelled(tokio::time::sleep(PAUSE))
            .await
            .is_none()
        {
            return;
        }
        changes.mark_unchanged();
        if !world.is_complete() {
            continue;
        }
        let (world, state) = (Arc::clone(&world), Arc::clone(&state));
        let saved = tokio::task::spawn_blocking(move || save(&world, &state, SystemTime::now()));
        if let Ok(Err(error)) = saved.await {
            tracing::warn!(error = %chain(&error), "a restart without the API server would serve nothing");
        }
    }
}

/// Writes down what is known.
pub(super) fn save(world: &World, state: &StateFolder, now: SystemTime) -> Result<(), MemoryError> {
    let text = |bytes: &[u8]| STANDARD.encode(bytes);
    let (secrets, maps) = world.named.fetched();
    let memory = Memory {
        version: VERSION,
        saved_at: now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs(),
        routes: good(&world.routes),
        agents: good(&world.agents),
        issuers: good(&world.issuers),
        services: named(&world.services),
        slices: {
            let mut slices = named(&world.slices);
            slices.extend(named(&world.api_servers));
            slices
        },
        secrets: secrets
            .iter()
            .map(|(name, secret)| {
                let data = secret.data.iter();
                let data = data
                    .map(|(key, value)| (key.clone(), text(value)))
                    .collect();
                let type_ = secret.type_.clone();
                Named::new(name, KeptSecret { type_, data })
            })
            .collect(),
        config_maps: maps
            .iter()
            .map(|(name, map)| Named::new(name, map.data.clone()))
            .collect(),
        documents: world
            .documents
            .all()
            .iter()
            .map(|(name, document)| {
                let kept = KeptDocument {
                    kind: document.kind.clone(),
                    name: document.name.clone(),
                    content: text(document.content.expose()),
                };
                Named::new(name, kept)
            })
            .collect(),
    };
    let Ok(text) = serde_json::to_string(&memory) else {
        return Ok(());
    };
    Ok(state.write_unsynced(FILE, &text)?)
}

/// Puts what was written down into a world whose lists were not read yet. Returns when it was written down, or
/// None if nothing was.
pub fn restore(world: &World, state: &StateFolder) -> Result<Option<SystemTime>, MemoryError> {
    let Some(text) = state.read(FILE)? else {
        return Ok(None);
    };
    let memory: Memory = serde_json::from_str(&text).map_err(|error| MemoryError::Damaged {
        line: error.line(),
        column: error.column(),
    })?;
    if memory.version != VERSION {
        return Err(MemoryError::Version(memory.version));
    }
    let bytes = |text: &str| STANDARD.decode(text).unwrap_or_default();
    world.routes.restore(guard(memory.routes));
    world.agents.restore(guard(memory.agents));
    world.issuers.restore(guard(memory.issuers));
    world
        .services
        .restore(memory.services.into_iter().map(Named::split));
    world
        .slices
        .restore(memory.slices.into_iter().map(Named::split));
    let documents = memory.documents.into_iter().map(|named| {
        let (name, kept) = named.split();
        let document = Document {
            kind: kept.kind,
            name: kept.name,
            content: Secret::new(bytes(&kept.content)),
            unused: Mark::No,
        };
        (name, document)
    });
    world.documents.restore(documents);
    let secrets = memory.secrets.into_iter().map(|named| {
        let (name, kept) = named.split();
        let data = kept.data.iter();
        let secret = SecretData {
            data: data
                .map(|(key, value)| (key.clone(), bytes(value)))
                .collect(),
            type_: kept.type_,
        };
        (name, Arc::new(secret))
    });
    let maps = memory.config_maps.into_iter().map(|named| {
        let (name, data) = named.split();
        (name, Arc::new(ConfigMapData { data }))
    });
    world.named.restore(secrets, maps);
    Ok(Some(
        SystemTime::UNIX_EPOCH + Duration::from_secs(memory.saved_at),
    ))
}

fn good<K: Clone + PartialEq>(cache: &Cache<Guarded<K>>) -> Vec<K> {
    let all = cache.all().into_iter();
    all.filter_map(|(_, object)| object.good.as_deref().cloned())
        .collect()
}

fn guard<K: kube::Resource>(objects: Vec<K>) -> impl Iterator<Item = (ObjectName, Guarded<K>)> {
    objects.into_iter().map(|object| {
        let guarded = |object| Guarded {
            good: Some(Arc::new(object)),
            wrong: None,
            version: None,
        };
        (name_of(&object), guarded(object))
    })
}

fn named<T: Clone + PartialEq>(cache: &Cache<T>) -> Vec<Named<T>> {
    let all = cache.all();
    all.iter()
        .map(|(name, value)| Named::new(name, (**value).clone()))
        .collect()
}
