//! Follows the clusters of the current snapshot on a thread of its own: resolves names again and again,
//! probes addresses. The request path only reads what is found here.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::{HeaderValue, Request, header};
use tidegate_model::{
    ActiveHealthCheck, Cluster, ClusterKey, ObservedCluster, SnapshotStore, Target,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::cluster::{ClusterState, Endpoint};
use super::connect;
use crate::body::Body;

/// Time between two resolutions of a name. getaddrinfo tells no TTL; this is below what DNS-based
/// service discovery promises.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(10);

/// After a failure.
const RESOLVE_RETRY: Duration = Duration::from_secs(2);

/// Time for one resolution.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// All clusters in use, by key.
#[derive(Debug, Default)]
pub(crate) struct Clusters {
    states: RwLock<HashMap<ClusterKey, Arc<ClusterState>>>,
}

impl Clusters {
    /// The state for a cluster, made on first use: a request may be faster than the watcher.
    pub(crate) fn state(&self, cluster: &Arc<Cluster>) -> Arc<ClusterState> {
        if let Some(state) = self
            .states
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&cluster.key)
        {
            return Arc::clone(state);
        }
        let mut states = self.states.write().unwrap_or_else(PoisonError::into_inner);
        let state = states
            .entry(cluster.key.clone())
            .or_insert_with(|| ClusterState::new(Arc::clone(cluster)));
        Arc::clone(state)
    }

    pub(crate) fn observe(&self) -> Vec<ObservedCluster> {
        let states = self.states.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = states.values().map(|state| state.observe()).collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    }

    fn retain(&self, wanted: &HashMap<ClusterKey, AbortOnDropHandle<()>>) {
        let mut states = self.states.write().unwrap_or_else(PoisonError::into_inner);
        states.retain(|key, state| {
            let kept = wanted.contains_key(key);
            if !kept {
                state.retired.store(true, Ordering::Relaxed);
            }
            kept
        });
    }
}

/// Runs until `stop`: one task per cluster of the current snapshot.
pub(crate) async fn watch(
    clusters: Arc<Clusters>,
    store: Arc<SnapshotStore>,
    stop: CancellationToken,
) {
    let mut revisions = store.subscribe();
    let mut tasks: HashMap<ClusterKey, AbortOnDropHandle<()>> = HashMap::new();
    loop {
        revisions.mark_unchanged();
        let wanted = store.load_full().snapshot.clusters();
        tasks.retain(|key, _| wanted.iter().any(|cluster| cluster.key == *key));
        for cluster in &wanted {
            let state = clusters.state(cluster);
            if let Target::Addresses(addresses) = &cluster.target {
                state.set_addresses(addresses);
            }
            tasks
                .entry(cluster.key.clone())
                .or_insert_with(|| AbortOnDropHandle::new(tokio::spawn(follow(state))));
        }
        clusters.retain(&tasks);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = revisions.changed() => if changed.is_err() { return },
        }
    }
}

async fn follow(state: Arc<ClusterState>) {
    tokio::join!(resolve_forever(&state), probe_forever(&state));
}

async fn resolve_forever(state: &ClusterState) {
    let Some((host, port)) = state.name_to_resolve() else {
        return;
    };
    loop {
        let lookup = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port)));
        let error = match lookup.await {
            Ok(Ok(addresses)) => {
                let addresses: Vec<_> = addresses.collect();
                if addresses.is_empty() {
                    Some("the name has no address".to_owned())
                } else {
                    state.set_addresses(&addresses);
                    None
                }
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("the name server did not answer in time".to_owned()),
        };
        let pause = match error {
            None => RESOLVE_INTERVAL,
            Some(error) => {
                tracing::warn!(
                    cluster = state.cluster.name,
                    host,
                    error,
                    "name not resolved"
                );
                state.resolve_failed(error);
                RESOLVE_RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = state.refresh.notified() => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

async fn probe_forever(state: &Arc<ClusterState>) {
    let Some(check) = &state.cluster.active_health else {
        return;
    };
    let mut streaks: HashMap<std::net::SocketAddr, (u32, u32)> = HashMap::new();
    state.until_resolved().await;
    loop {
        let addresses = state.addresses();
        let endpoints = addresses.endpoints.clone();
        drop(addresses);
        streaks.retain(|address, _| {
            endpoints
                .iter()
                .any(|endpoint| endpoint.address == *address)
        });
        // All at once: an address that does not answer must not delay what is found of the others.
        let mut probes = JoinSet::new();
        for endpoint in endpoints {
            let state = Arc::clone(state);
            probes.spawn(async move {
                let outcome = probe(&state, &endpoint).await;
                (endpoint, outcome)
            });
        }
        while let Some(joined) = probes.join_next().await {
            let Ok((endpoint, outcome)) = joined else {
                continue;
            };
            let (good, bad) = streaks.entry(endpoint.address).or_default();
            let conclusion = match outcome {
                Ok(()) => {
                    (*good, *bad) = (good.saturating_add(1), 0);
                    (*good >= check.healthy_threshold).then_some(None)
                }
                Err(error) => {
                    (*good, *bad) = (0, bad.saturating_add(1));
                    (*bad >= check.unhealthy_threshold).then_some(Some(error))
                }
            };
            if let Some(error) = conclusion {
                let healthy = error.is_none();
                if endpoint.probed(error.clone()) {
                    let cluster = &state.cluster.name;
                    let address = endpoint.address;
                    tracing::warn!(cluster, %address, healthy, error, "health changed");
                }
            }
        }
        tokio::time::sleep(check.interval).await;
    }
}

/// One probe within its time.
async fn probe(state: &ClusterState, endpoint: &Endpoint) -> Result<(), String> {
    let cluster = &state.cluster;
    let Some(check) = &cluster.active_health else {
        return Ok(());
    };
    tokio::time::timeout(check.timeout, ask(cluster, endpoint, check))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {:?}", check.timeout)))
}

async fn ask(
    cluster: &Cluster,
    endpoint: &Endpoint,
    check: &ActiveHealthCheck,
) -> Result<(), String> {
    let connected = connect::transport(cluster, endpoint.address, None, false)
        .await
        .map_err(|error| tidegate_telemetry::chain(&error).to_string())?;
    let Some(path) = &check.path else {
        return Ok(());
    };
    let host = check.host.clone().unwrap_or_else(|| match &cluster.target {
        Target::Host { host, .. } => host.clone(),
        Target::Addresses(_) => endpoint.address.to_string(),
    });
    let mut request = Request::get(path.as_str())
        .body(Body::Empty)
        .map_err(|error| error.to_string())?;
    let headers = request.headers_mut();
    headers.insert(
        header::HOST,
        HeaderValue::from_str(&host).map_err(|error| error.to_string())?,
    );
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static("tidegate-health-check"),
    );
    // Trackers exit or fail on a request without exactly one client address.
    headers.insert("x-forwarded-for", HeaderValue::from_static("127.0.0.1"));
    for (name, value) in &check.headers {
        headers.insert(name.clone(), value.clone());
    }
    let status = connect::exchange_once(cluster, connected, request)
        .await
        .map_err(|error| tidegate_telemetry::chain(&error).to_string())?
        .as_u16();
    let (lowest, highest) = check.expected_status;
    if (lowest..=highest).contains(&status) {
        Ok(())
    } else {
        Err(format!("status {status} instead of {lowest} to {highest}"))
    }
}
