//! Connections kept for reuse, per worker: no connection crosses a thread.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::client::conn::http2;
use tidegate_http1::Connection;
use tidegate_model::{Cluster, ClusterKey, LoadBalancing, UpstreamProtocol};
use tidegate_tunnel::hub::Hub;

use super::SendOptions;
use super::cluster::ClusterState;
use super::connect::{self, HttpConnection, UpstreamStream};
use super::watch::Clusters;
use crate::balance::{self, EndpointView};
use crate::body::Body;
use crate::error::ProxyError;
use crate::replicas::ForwardedMetric;

/// Idle connections kept per address and worker.
const MAX_IDLE: usize = 256;

/// Time between two calls of [`Upstreams::reap`].
pub(crate) const REAP_INTERVAL: Duration = Duration::from_secs(5);

/// How often the reaper may meet an idle connection. Together it is below the 60 s after which common
/// backends close, so that the race is rare.
const IDLE_TICKS: u32 = 10;

/// Entries of the cache in front of the clusters.
const RECENT: usize = 64;

/// Streams put on one HTTP/2 connection before another is opened.
const H2_STREAMS: usize = 100;

/// The upstream side of one worker.
#[derive(Debug)]
pub(crate) struct Upstreams {
    clusters: Arc<Clusters>,
    workers: Mutex<Workers>,
}

#[derive(Debug)]
struct Workers {
    all: HashMap<ClusterKey, Arc<WorkerCluster>>,
    /// By address in memory, for requests that name the same cluster of the same snapshot again. Emptied by
    /// the reaper, so that it keeps nothing alive.
    recent: Vec<Option<(Arc<Cluster>, Arc<WorkerCluster>)>>,
}

impl Upstreams {
    pub(crate) fn new(clusters: Arc<Clusters>) -> Self {
        Self {
            clusters,
            workers: Mutex::new(Workers {
                all: HashMap::new(),
                recent: vec![None; RECENT],
            }),
        }
    }

    pub(super) fn hub(&self) -> &Hub<Body> {
        &self.clusters.hub
    }

    pub(super) fn forwarded(&self) -> &ForwardedMetric {
        &self.clusters.forwarded
    }

    pub(crate) fn cluster(&self, cluster: &Arc<Cluster>) -> Arc<WorkerCluster> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        // Allocations of this size are some hundred bytes apart.
        let place = (Arc::as_ptr(cluster).addr() >> 6) % RECENT;
        if let Some((known, worker)) = &workers.recent[place]
            && Arc::ptr_eq(known, cluster)
            && !worker.state.retired.load(Ordering::Relaxed)
        {
            return Arc::clone(worker);
        }
        let worker = self.look_up(&mut workers.all, cluster);
        workers.recent[place] = Some((Arc::clone(cluster), Arc::clone(&worker)));
        worker
    }

    fn look_up(
        &self,
        workers: &mut HashMap<ClusterKey, Arc<WorkerCluster>>,
        cluster: &Arc<Cluster>,
    ) -> Arc<WorkerCluster> {
        // One that went and came back has a new state, which is the one that is kept up to date.
        if let Some(worker) = workers.get(&cluster.key)
            && !worker.state.retired.load(Ordering::Relaxed)
        {
            return Arc::clone(worker);
        }
        let worker = Arc::new(WorkerCluster {
            state: self.clusters.state(cluster),
            slots: Mutex::default(),
            tick: AtomicU32::new(0),
            cursor: AtomicUsize::new(0),
        });
        workers.insert(cluster.key.clone(), Arc::clone(&worker));
        worker
    }

    /// Closes what has been idle for too long and forgets clusters that nobody uses.
    pub(crate) fn reap(&self) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.recent.fill(None);
        workers.all.retain(|_, worker| {
            let kept = worker.reap();
            kept || Arc::strong_count(worker) > 1
        });
    }
}

/// One worker's view of a cluster.
#[derive(Debug)]
pub(crate) struct WorkerCluster {
    pub(crate) state: Arc<ClusterState>,
    slots: Mutex<Slots>,
    /// Calls of the reaper: time enough for idle connections, and none is read per request.
    tick: AtomicU32,
    cursor: AtomicUsize,
}

/// The connections of each address. Addresses of a cluster are few.
#[derive(Debug, Default)]
struct Slots(Vec<(SocketAddr, Slot)>);

impl Slots {
    fn get(&mut self, address: SocketAddr) -> Option<&mut Slot> {
        let mut slots = self.0.iter_mut();
        slots.find_map(|(of, slot)| (*of == address).then_some(slot))
    }

    fn get_or_add(&mut self, address: SocketAddr) -> &mut Slot {
        let place = self.0.iter().position(|(of, _)| *of == address);
        let place = place.unwrap_or_else(|| {
            self.0.push((address, Slot::default()));
            self.0.len() - 1
        });
        &mut self.0[place].1
    }
}

#[derive(Debug, Default)]
struct Slot {
    h1: Vec<IdleConnection>,
    h2: Vec<SharedConnection>,
    /// Held while an HTTP/2 connection is opened, so that a burst opens one and not many.
    opening: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct IdleConnection {
    connection: Box<Connection<UpstreamStream>>,
    /// The pool's tick when it came.
    since: u32,
}

impl IdleConnection {
    fn is_usable(&mut self, tick: u32) -> bool {
        tick.wrapping_sub(self.since) < IDLE_TICKS && self.connection.is_quiet()
    }
}

#[derive(Debug)]
struct SharedConnection {
    sender: http2::SendRequest<Body>,
    streams: Arc<AtomicUsize>,
}

/// Counts one stream of a shared connection until it is dropped.
#[derive(Debug)]
pub(crate) struct StreamCount(Arc<AtomicUsize>);

impl StreamCount {
    pub(crate) fn begin(streams: &Arc<AtomicUsize>) -> Self {
        streams.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(streams))
    }
}

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl WorkerCluster {
    pub(crate) fn pick(
        &self,
        policy: &LoadBalancing,
        views: &[EndpointView],
        hash: Option<u64>,
    ) -> Option<usize> {
        let mut cursor = self.cursor.load(Ordering::Relaxed);
        let mut rng = fastrand::Rng::new();
        let index = balance::pick(policy, views, &mut rng, hash, &mut cursor);
        self.cursor.store(cursor, Ordering::Relaxed);
        index
    }

    /// Opens a connection to the address, or gets one that another request has opened meanwhile; the flag
    /// says whether it was used before. `shared` connections may be used by other requests later.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        address: SocketAddr,
        shared: bool,
        options: &SendOptions,
    ) -> Result<(HttpConnection, bool), ProxyError> {
        let cluster = &self.state.cluster;
        let may_be_h2 = match cluster.protocol {
            UpstreamProtocol::Http2 => true,
            UpstreamProtocol::Auto => cluster.tls.is_some(),
            UpstreamProtocol::Http1 => false,
        };
        if !shared || !may_be_h2 {
            return Ok((self.open(address, options).await?, false));
        }
        let opening = Arc::clone(&self.lock().get_or_add(address).opening);
        let _one_at_a_time = opening.lock().await;
        if let Some(connection) = self.idle(address) {
            return Ok((connection, true));
        }
        let connection = self.open(address, options).await?;
        if let HttpConnection::H2 { sender, streams } = &connection {
            let shared = SharedConnection {
                sender: sender.clone(),
                streams: Arc::clone(streams),
            };
            self.lock().get_or_add(address).h2.push(shared);
        }
        Ok((connection, false))
    }

    async fn open(
        &self,
        address: SocketAddr,
        options: &SendOptions,
    ) -> Result<HttpConnection, ProxyError> {
        let cluster = &self.state.cluster;
        let stream = connect::transport(cluster, address, options.proxied, options.upgrade).await?;
        connect::http(cluster, address, stream, options.upgrade).await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that is free now.
    pub(crate) fn idle(&self, address: SocketAddr) -> Option<HttpConnection> {
        let tick = self.tick.load(Ordering::Relaxed);
        let mut slots = self.lock();
        let slot = slots.get(address)?;
        while let Some(mut idle) = slot.h1.pop() {
            if idle.is_usable(tick) {
                return Some(HttpConnection::H1(idle.connection));
            }
        }
        slot.h2.retain(|shared| !shared.sender.is_closed());
        let shared = slot
            .h2
            .iter()
            .find(|shared| shared.streams.load(Ordering::Relaxed) < H2_STREAMS)?;
        Some(HttpConnection::H2 {
            sender: shared.sender.clone(),
            streams: Arc::clone(&shared.streams),
        })
    }

    fn give_back(&self, address: SocketAddr, connection: Box<Connection<UpstreamStream>>) {
        let mut slots = self.lock();
        let slot = slots.get_or_add(address);
        if slot.h1.len() < MAX_IDLE {
            let since = self.tick.load(Ordering::Relaxed);
            slot.h1.push(IdleConnection { connection, since });
        }
    }

    fn reap(&self) -> bool {
        let tick = self.tick.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let mut slots = self.lock();
        slots.0.retain_mut(|(_, slot)| {
            slot.h1.retain_mut(|idle| idle.is_usable(tick));
            slot.h2.retain(|shared| !shared.sender.is_closed());
            !slot.h1.is_empty() || !slot.h2.is_empty()
        });
        !slots.0.is_empty()
    }
}

/// Where a connection goes when its exchange is over.
#[derive(Debug)]
pub(crate) struct Home {
    pub(super) pool: Arc<WorkerCluster>,
    pub(super) address: SocketAddr,
}

impl tidegate_http1::Home<UpstreamStream> for Home {
    fn take_in(self, connection: Box<Connection<UpstreamStream>>) {
        self.pool.give_back(self.address, connection);
    }
}
