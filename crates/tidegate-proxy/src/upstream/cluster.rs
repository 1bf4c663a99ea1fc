//! A cluster as it really is: addresses, health, requests in flight. Shared by all workers and kept
//! across snapshots by its key.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tidegate_model::{Cluster, EndpointState, LoadBalancing, ObservedCluster, Target};
use tidegate_tunnel::hub::{self, LiveLink};
use tokio::sync::{Notify, watch};

use crate::balance;
use crate::body::Body;

/// One address.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// The way to a service behind an agent, whose connection this address is.
    pub(crate) link: Option<LiveLink<Body>>,
    /// What a sticky cookie and a consistent hash know it by: the address, or the process of the agent, which may have
    /// several links at several replicas.
    pub(crate) identity: u64,
    /// Requests in flight there, from all workers.
    pub(crate) active: AtomicU32,
    consecutive_failures: AtomicU32,
    /// Milliseconds of the cluster's clock until which it is ejected.
    ejected_until: AtomicU64,
    probe_failed: AtomicBool,
    last_error: Mutex<Option<String>>,
}

impl Endpoint {
    fn new(address: SocketAddr, link: Option<LiveLink<Body>>) -> Arc<Self> {
        let identity = match &link {
            Some(link) => balance::hash(link.instance.as_bytes()),
            None => balance::address_hash(address),
        };
        Arc::new(Self {
            address,
            link,
            identity,
            active: AtomicU32::new(0),
            consecutive_failures: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            probe_failed: AtomicBool::new(false),
            last_error: Mutex::new(None),
        })
    }

    pub(crate) fn succeeded(&self) {
        if self.consecutive_failures.load(Ordering::Relaxed) != 0 {
            self.consecutive_failures.store(0, Ordering::Relaxed);
            self.ejected_until.store(0, Ordering::Relaxed);
            if !self.probe_failed.load(Ordering::Relaxed) {
                self.note(None);
            }
        }
    }

    /// Records what active probes concluded. Returns whether that changed.
    pub(crate) fn probed(&self, error: Option<String>) -> bool {
        let failed = error.is_some();
        if self.probe_failed.swap(failed, Ordering::Relaxed) == failed {
            return false;
        }
        self.note(error);
        if !failed {
            self.consecutive_failures.store(0, Ordering::Relaxed);
            self.ejected_until.store(0, Ordering::Relaxed);
        }
        true
    }

    /// The session of its link.
    pub(crate) fn session(&self) -> Option<u64> {
        self.link.as_ref().map(|link| link.session)
    }

    fn note(&self, error: Option<String>) {
        *self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = error;
    }
}

/// The addresses at one moment.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    /// Whether resolution was tried at all.
    pub(crate) resolved: bool,
    pub(crate) error: Option<String>,
}

/// Live state of a cluster.
#[derive(Debug)]
pub(crate) struct ClusterState {
    pub(crate) cluster: Arc<Cluster>,
    addresses: ArcSwap<Addresses>,
    resolved: watch::Sender<bool>,
    /// Asks the watcher to resolve at once.
    pub(crate) refresh: Notify,
    pub(crate) active: AtomicU32,
    /// Requests that wait for an agent.
    pub(crate) held: AtomicU32,
    /// Set when no snapshot has the cluster any more: nobody resolves or probes it.
    pub(crate) retired: AtomicBool,
    start: Instant,
}

impl ClusterState {
    /// Address literals are usable at once; names wait for the watcher.
    pub(crate) fn new(cluster: Arc<Cluster>) -> Arc<Self> {
        let known = match &cluster.target {
            Target::Addresses(addresses) => Some(addresses.clone()),
            Target::Host { host, port } => {
                host.parse().ok().map(|ip| vec![SocketAddr::new(ip, *port)])
            }
            Target::Agent { .. } => Some(Vec::new()),
        };
        let state = Self {
            cluster,
            addresses: ArcSwap::from_pointee(Addresses::default()),
            resolved: watch::Sender::new(false),
            refresh: Notify::new(),
            active: AtomicU32::new(0),
            held: AtomicU32::new(0),
            retired: AtomicBool::new(false),
            start: Instant::now(),
        };
        if let Some(addresses) = known {
            state.set_addresses(&addresses);
        }
        Arc::new(state)
    }

    /// The name to resolve again and again, if there is one.
    pub(crate) fn name_to_resolve(&self) -> Option<(&str, u16)> {
        match &self.cluster.target {
            Target::Host { host, port } if host.parse::<std::net::IpAddr>().is_err() => {
                Some((host, *port))
            }
            _ => None,
        }
    }

    pub(crate) fn addresses(&self) -> arc_swap::Guard<Arc<Addresses>> {
        self.addresses.load()
    }

    /// Takes new addresses; endpoints that stay keep their health and counters.
    pub(crate) fn set_addresses(&self, addresses: &[SocketAddr]) {
        let before = self.addresses.load();
        let mut sorted = addresses.to_vec();
        sorted.sort();
        sorted.dedup();
        let unchanged = before.resolved
            && before.error.is_none()
            && before
                .endpoints
                .iter()
                .map(|endpoint| endpoint.address)
                .eq(sorted.iter().copied());
        if !unchanged {
            let endpoints = sorted
                .into_iter()
                .map(|address| {
                    let kept = before.endpoints.iter().find(|kept| kept.address == address);
                    kept.map_or_else(|| Endpoint::new(address, None), Arc::clone)
                })
                .collect();
            self.addresses.store(Arc::new(Addresses {
                endpoints,
                resolved: true,
                error: None,
            }));
        }
        self.resolved.send_replace(true);
    }

    /// Takes the links of the cluster's agent that are good for its mapping, as [`Self::set_addresses`] does addresses.
    pub(crate) fn set_links(&self, links: &[LiveLink<Body>]) {
        let Target::Agent { mapping, .. } = &self.cluster.target else {
            return;
        };
        let before = self.addresses.load();
        let is_of =
            |endpoint: &Endpoint, link: &LiveLink<Body>| endpoint.session() == Some(link.session);
        // Who is to come back to the same process does so wherever that is connected.
        let everywhere = matches!(
            self.cluster.load_balancing,
            LoadBalancing::StickyCookie { .. } | LoadBalancing::ConsistentHash(_)
        );
        let good = hub::usable(links, mapping, everywhere).into_iter();
        let endpoints = good.map(|link| {
            let mut known = before.endpoints.iter();
            let kept = known.find(|endpoint| is_of(endpoint, link));
            kept.map_or_else(
                || Endpoint::new(link.address, Some(link.clone())),
                Arc::clone,
            )
        });
        self.addresses.store(Arc::new(Addresses {
            endpoints: endpoints.collect(),
            resolved: true,
            error: None,
        }));
        self.resolved.send_replace(true);
    }

    /// Waits until the addresses are as wanted.
    pub(crate) async fn until(&self, wanted: impl Fn(&Addresses) -> bool) {
        let mut news = self.resolved.subscribe();
        // The sender lives in self, so this cannot end early.
        let _ = news.wait_for(|_| wanted(&self.addresses())).await;
    }

    /// Resolution failed: the addresses known so far stay in use.
    pub(crate) fn resolve_failed(&self, error: String) {
        let before = self.addresses.load();
        self.addresses.store(Arc::new(Addresses {
            endpoints: before.endpoints.clone(),
            resolved: true,
            error: Some(error),
        }));
        self.resolved.send_replace(true);
    }

    /// Waits until resolution was tried once.
    pub(crate) async fn until_resolved(&self) {
        let mut resolved = self.resolved.subscribe();
        // The sender lives in self, so this cannot end early.
        let _ = resolved.wait_for(|resolved| *resolved).await;
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn is_healthy(&self, endpoint: &Endpoint) -> bool {
        if endpoint.probe_failed.load(Ordering::Relaxed) {
            return false;
        }
        let until = endpoint.ejected_until.load(Ordering::Relaxed);
        until == 0 || self.now() >= until
    }

    /// Counts a failure to connect or to answer; enough in a row eject the endpoint.
    pub(crate) fn failed(&self, endpoint: &Endpoint, error: String) {
        let policy = &self.cluster.passive_health;
        let failures = endpoint
            .consecutive_failures
            .fetch_add(1, Ordering::Relaxed)
            + 1;
        endpoint.note(Some(error));
        if policy.consecutive_failures > 0 && failures >= policy.consecutive_failures {
            let until = self.now() + millis(policy.ejection_time);
            endpoint.ejected_until.store(until, Ordering::Relaxed);
        }
    }

    pub(crate) fn observe(&self) -> ObservedCluster {
        let addresses = self.addresses.load();
        ObservedCluster {
            key: self.cluster.key.clone(),
            name: self.cluster.name.clone(),
            endpoints: addresses
                .endpoints
                .iter()
                .map(|endpoint| EndpointState {
                    address: endpoint.address,
                    healthy: self.is_healthy(endpoint),
                    active_requests: u64::from(endpoint.active.load(Ordering::Relaxed)),
                    last_error: endpoint
                        .last_error
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .clone(),
                })
                .collect(),
            resolve_error: addresses.error.clone(),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Counts one request at a cluster and an endpoint until it is dropped.
#[derive(Debug)]
pub(crate) struct ActiveRequest {
    cluster: Arc<ClusterState>,
    endpoint: Option<Arc<Endpoint>>,
}

impl ActiveRequest {
    /// None when the cluster's limit is reached.
    pub(crate) fn begin(cluster: &Arc<ClusterState>) -> Option<Self> {
        let before = cluster.active.fetch_add(1, Ordering::Relaxed);
        let this = Self {
            cluster: Arc::clone(cluster),
            endpoint: None,
        };
        match cluster.cluster.circuit.max_requests {
            Some(limit) if before >= limit => None,
            _ => Some(this),
        }
    }

    pub(crate) fn at(&mut self, endpoint: &Arc<Endpoint>) {
        if let Some(previous) = self.endpoint.replace(Arc::clone(endpoint)) {
            previous.active.fetch_sub(1, Ordering::Relaxed);
        }
        endpoint.active.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.cluster.active.fetch_sub(1, Ordering::Relaxed);
        if let Some(endpoint) = &self.endpoint {
            endpoint.active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
