//! Connections kept for reuse, per worker: no connection crosses a thread.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::http2;
use tidegate_model::{Cluster, ClusterKey, LoadBalancing, UpstreamProtocol};

use super::SendOptions;
use super::cluster::ClusterState;
use super::connect::{self, HttpConnection};
use super::http1;
use super::watch::Clusters;
use crate::balance::{self, EndpointView};
use crate::body::Body;
use crate::error::ProxyError;

/// Idle connections kept per address and worker.
const MAX_IDLE: usize = 256;

/// Below the 60 s after which common backends close, so that the race is rare.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// Streams put on one HTTP/2 connection before another is opened.
const H2_STREAMS: usize = 100;

/// The upstream side of one worker.
#[derive(Debug)]
pub(crate) struct Upstreams {
    clusters: Arc<Clusters>,
    workers: Mutex<HashMap<ClusterKey, Arc<WorkerCluster>>>,
}

impl Upstreams {
    pub(crate) fn new(clusters: Arc<Clusters>) -> Self {
        Self {
            clusters,
            workers: Mutex::new(HashMap::new()),
        }
    }

    pub(crate) fn cluster(&self, cluster: &Arc<Cluster>) -> Arc<WorkerCluster> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        // One that went and came back has a new state, which is the one that is kept up to date.
        if let Some(worker) = workers.get(&cluster.key)
            && !worker.state.retired.load(Ordering::Relaxed)
        {
            return Arc::clone(worker);
        }
        let worker = Arc::new(WorkerCluster {
            state: self.clusters.state(cluster),
            slots: Mutex::new(HashMap::new()),
            cursor: AtomicUsize::new(0),
        });
        workers.insert(cluster.key.clone(), Arc::clone(&worker));
        worker
    }

    /// Closes what has been idle for too long and forgets clusters that nobody uses.
    pub(crate) fn reap(&self) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.retain(|_, worker| {
            let kept = worker.reap();
            kept || Arc::strong_count(worker) > 1
        });
    }
}

/// One worker's view of a cluster.
#[derive(Debug)]
pub(crate) struct WorkerCluster {
    pub(crate) state: Arc<ClusterState>,
    slots: Mutex<HashMap<SocketAddr, Slot>>,
    cursor: AtomicUsize,
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
    connection: Box<http1::Connection>,
    since: Instant,
}

impl IdleConnection {
    fn is_usable(&mut self) -> bool {
        self.since.elapsed() < IDLE_TIMEOUT && self.connection.is_quiet()
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
        let opening = Arc::clone(&self.lock().entry(address).or_default().opening);
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
            self.lock().entry(address).or_default().h2.push(shared);
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

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that is free now.
    pub(crate) fn idle(&self, address: SocketAddr) -> Option<HttpConnection> {
        let mut slots = self.lock();
        let slot = slots.get_mut(&address)?;
        while let Some(mut idle) = slot.h1.pop() {
            if idle.is_usable() {
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

    fn give_back(&self, address: SocketAddr, connection: Box<http1::Connection>) {
        let mut slots = self.lock();
        let slot = slots.entry(address).or_default();
        if slot.h1.len() < MAX_IDLE {
            slot.h1.push(IdleConnection {
                connection,
                since: Instant::now(),
            });
        }
    }

    fn reap(&self) -> bool {
        let mut slots = self.lock();
        slots.retain(|_, slot| {
            slot.h1.retain_mut(IdleConnection::is_usable);
            slot.h2.retain(|shared| !shared.sender.is_closed());
            !slot.h1.is_empty() || !slot.h2.is_empty()
        });
        !slots.is_empty()
    }
}

/// Where a connection goes when its exchange is over.
#[derive(Debug)]
pub(crate) struct Home {
    pub(super) pool: Arc<WorkerCluster>,
    pub(super) address: SocketAddr,
}

impl Home {
    /// The connection is free.
    pub(super) fn take_in(self, connection: Box<http1::Connection>) {
        self.pool.give_back(self.address, connection);
    }
}
