//! Follows the clusters of the current snapshot on a thread of its own: resolves names again and again,
//! probes addresses. The request path only reads what is found here.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::{HeaderValue, Request, header};
use tidegate_model::{
    ActiveHealthCheck, Cluster, ClusterKey, ObservedCluster, Reach, SnapshotStore, Target,
};
use tidegate_tunnel::hub::Hub;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::cluster::{ClusterState, Endpoint};
use super::connect;
use crate::body::Body;
use crate::replicas::ForwardedMetric;

/// Time between two resolutions of a name. getaddrinfo tells no TTL; this is below what DNS-based
/// service discovery promises.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(10);

/// After a failure.
const RESOLVE_RETRY: Duration = Duration::from_secs(2);

/// Time for one resolution.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// All clusters in use, by key.
#[derive(Debug)]
pub(crate) struct Clusters {
    states: RwLock<HashMap<ClusterKey, Arc<ClusterState>>>,
    /// Who knows the addresses of those behind agents.
    pub(super) hub: Hub<Body>,
    /// Counts requests to other replicas.
    pub(super) forwarded: ForwardedMetric,
}

impl Clusters {
    pub(crate) fn new(hub: Hub<Body>, forwarded: ForwardedMetric) -> Self {
        Self {
            states: RwLock::default(),
            hub,
            forwarded,
        }
    }

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
            tasks.entry(cluster.key.clone()).or_insert_with(|| {
                let following = follow(state, Arc::clone(&store), clusters.hub.clone());
                AbortOnDropHandle::new(tokio::spawn(following))
            });
        }
        clusters.retain(&tasks);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = revisions.changed() => if changed.is_err() { return },
        }
    }
}

async fn follow(state: Arc<ClusterState>, store: Arc<SnapshotStore>, hub: Hub<Body>) {
    tokio::join!(
        resolve_forever(&state, &store),
        follow_links(&state, &hub),
        probe_forever(&state)
    );
}

/// The addresses of a cluster behind an agent are the agent's links.
async fn follow_links(state: &ClusterState, hub: &Hub<Body>) {
    let Target::Agent { agent, .. } = &state.cluster.target else {
        return;
    };
    let mut links = hub.links(agent);
    loop {
        let known = links.borrow_and_update().clone();
        state.set_links(&known);
        if links.changed().await.is_err() {
            links = hub.links(agent);
        }
    }
}

async fn resolve_forever(state: &ClusterState, store: &SnapshotStore) {
    let Some((host, port)) = state.name_to_resolve() else {
        return;
    };
    loop {
        let reach = Arc::clone(&store.load_full().snapshot.reach);
        let name = asked_for(host, &reach);
        let lookup = tokio::net::lookup_host((&*name, port));
        let error = match tokio::time::timeout(RESOLVE_TIMEOUT, lookup).await {
            Ok(Ok(addresses)) => take(state, &reach, addresses.collect()),
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

/// The name as the name server is asked for it. A name of the cluster's search domains would be one of some
/// namespace's Services.
pub(super) fn asked_for<'a>(host: &'a str, reach: &Reach) -> Cow<'a, str> {
    if reach.is_limited() && !host.ends_with('.') {
        Cow::Owned(format!("{host}."))
    } else {
        Cow::Borrowed(host)
    }
}

/// Takes those of a name's addresses that connections may lead to; says why, if there is none. Connections are
/// made to these very addresses, so that nothing can come between the question and its answer.
fn take(state: &ClusterState, reach: &Reach, found: Vec<SocketAddr>) -> Option<String> {
    let (good, refused) = reach.sort_out(found);
    if good.is_empty() {
        return Some(match refused {
            Some(refused) => format!("the name leads where backends may not: {refused}"),
            None => "the name has no address".to_owned(),
        });
    }
    if let Some(refused) = refused {
        let cluster = &state.cluster.name;
        tracing::warn!(cluster, refused, "an address of the name is left out");
    }
    state.set_addresses(&good);
    None
}

async fn probe_forever(state: &Arc<ClusterState>) {
    let Some(check) = &state.cluster.active_health else {
        return;
    };
    let mut streaks: HashMap<SocketAddr, (u32, u32)> = HashMap::new();
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

fn words(error: &(dyn std::error::Error + 'static)) -> String {
    tidegate_telemetry::chain(error).to_string()
}

async fn ask(
    cluster: &Cluster,
    endpoint: &Endpoint,
    check: &ActiveHealthCheck,
) -> Result<(), String> {
    let connected = if endpoint.link.is_some() {
        // That the link lives is known; whether there is more is up to the agent.
        None
    } else {
        let connecting = connect::transport(cluster, endpoint.address, None, false);
        Some(connecting.await.map_err(|error| words(&error))?)
    };
    let Some(path) = &check.path else {
        return Ok(());
    };
    let host = check.host.clone().unwrap_or_else(|| match &cluster.target {
        Target::Host { host, .. } => host.clone(),
        Target::Addresses(_) | Target::Agent { .. } => endpoint.address.to_string(),
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
    let status = match connected {
        Some(stream) => connect::exchange_once(cluster, stream, request)
            .await
            .map_err(|error| words(&error))?
            .status(),
        None => super::agent::probe(cluster, endpoint, request)
            .await
            .map_err(|error| words(&error))?,
    };
    let status = status.as_u16();
    let (lowest, highest) = check.expected_status;
    if (lowest..=highest).contains(&status) {
        Ok(())
    } else {
        Err(format!("status {status} instead of {lowest} to {highest}"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_model::{
        CircuitLimits, LoadBalancing, PassiveHealthCheck, Snapshot, UpstreamProtocol,
    };

    use tidegate_tunnel::hub::HubSettings;

    use super::*;

    fn named(host: &str) -> Arc<ClusterState> {
        ClusterState::new(Arc::new(Cluster {
            key: ClusterKey(host.into()),
            name: host.to_owned(),
            target: Target::Host {
                host: host.to_owned(),
                port: 80,
            },
            protocol: UpstreamProtocol::Auto,
            tls: None,
            proxy_protocol: None,
            load_balancing: LoadBalancing::LeastRequest,
            active_health: None,
            passive_health: PassiveHealthCheck {
                consecutive_failures: 5,
                ejection_time: Duration::from_secs(30),
            },
            circuit: CircuitLimits { max_requests: None },
            connect_timeout: Duration::from_secs(5),
        }))
    }

    fn addresses(state: &ClusterState) -> Vec<String> {
        let known = state.addresses();
        let all = known.endpoints.iter();
        all.map(|endpoint| endpoint.address.to_string()).collect()
    }

    #[test]
    fn a_name_that_is_bound_anew_leads_nowhere_else() {
        let reach = Reach::limited(Vec::new(), Vec::new());
        let state = named("app.example.com");
        let parse = |all: &[&str]| all.iter().map(|it| it.parse().unwrap()).collect();
        let both = parse(&["192.0.2.1:80", "169.254.169.254:80"]);
        assert_eq!(take(&state, &reach, both), None);
        assert_eq!(addresses(&state), ["192.0.2.1:80"]);
        let rebound = take(&state, &reach, parse(&["127.0.0.1:80"])).unwrap();
        assert!(
            rebound.contains("127.0.0.1 is a loopback address"),
            "{rebound}"
        );
        assert_eq!(addresses(&state), ["192.0.2.1:80"], "what was known stays");
        assert_eq!(
            take(&state, &Reach::default(), parse(&["127.0.0.1:80"])),
            None
        );
        assert_eq!(addresses(&state), ["127.0.0.1:80"]);
    }

    #[tokio::test]
    async fn the_name_of_this_machine_is_looked_up_and_refused() {
        let store = Arc::new(SnapshotStore::new());
        store.publish(Snapshot {
            reach: Arc::new(Reach::limited(Vec::new(), Vec::new())),
            ..Snapshot::default()
        });
        let state = named("localhost");
        let hub = Hub::new(HubSettings::default());
        let following = tokio::spawn(follow(Arc::clone(&state), store, hub));
        state.until_resolved().await;
        following.abort();
        assert!(addresses(&state).is_empty());
        assert!(state.addresses().error.is_some());
    }

    #[test]
    fn search_domains_are_left_out_where_reach_is_limited() {
        let limited = Reach::limited(Vec::new(), Vec::new());
        assert_eq!(asked_for("blog.web", &limited), "blog.web.");
        assert_eq!(asked_for("blog", &Reach::default()), "blog");
    }
}
