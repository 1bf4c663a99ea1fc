//! Binds listeners, starts one worker per core, drains them.
//!
//! A worker is a thread with its own current-thread runtime, its own `SO_REUSEPORT` sockets and its own
//! upstream connections; workers share only what must be one: snapshot, health, limits, counters.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tidegate_model::{
    AgentId, ListenerState, Observed, ObservedAgent, ObservedListener, PortState, SnapshotStore,
};
use tidegate_tunnel::hub::{ChannelView, Hub, HubSettings, LinkChange, Requested};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::Settings;
use crate::agents;
use crate::filters::basic_auth::Authenticator;
use crate::filters::rate_limit::RateLimits;
use crate::listener::{self, ListenerKind};
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::ports::{self, Ports};
use crate::replicas::{self, Peer};
use crate::tls::TlsConfigs;
use crate::upstream::watch::{Clusters, watch as watch_clusters};
use crate::upstream::{REAP_INTERVAL, Upstreams};
use crate::worker::{Shared, Worker};

/// Why the edge could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener could not be bound.
    #[error("listen on {address} for {name}")]
    Bind {
        /// `http` or `https`.
        name: &'static str,
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system's random numbers could not be had.
    #[error("get random numbers from the system")]
    Random,
    /// A worker thread or its runtime could not be started.
    #[error("start a worker thread")]
    Worker(#[source] io::Error),
}

/// How long agents have to connect elsewhere once nobody needs their links here: longer than a handshake takes,
/// and not so long that ending without a successor is a nuisance.
const MOVE_WITHIN: Duration = Duration::from_secs(3);

/// How long links may take to end.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// Connections the kernel keeps for us between accepts.
const BACKLOG: i32 = 4096;

/// One listener socket of one worker.
#[derive(Debug)]
struct Bound {
    kind: ListenerKind,
    listener: TcpListener,
}

/// Sockets are bound, nothing is served yet.
#[derive(Debug)]
pub struct Edge {
    shared: Arc<Shared>,
    /// One list per worker.
    sockets: Vec<Vec<Bound>>,
    addresses: Vec<(&'static str, SocketAddr)>,
    /// Second handles of all sockets, to be passed on.
    handles: Vec<(&'static str, TcpListener)>,
    /// For other replicas.
    peering: Vec<TcpListener>,
}

impl Edge {
    /// Binds every listener of the settings, so that a port in use is an error before anything starts.
    /// Port 0 takes any free port, see [`Edge::addresses`].
    ///
    /// A port that another process holds is refused even where `SO_REUSEPORT` would let both have it.
    pub fn bind(settings: Settings, store: Arc<SnapshotStore>) -> Result<Self, StartError> {
        Self::bind_with(settings, store, None)
    }

    /// As [`Edge::bind`], but goes on with the listening sockets of a running edge (see
    /// [`RunningEdge::sockets`]), which is how a new binary takes over from an old one without a refused
    /// connection: what the kernel has queued stays queued. Sockets that are missing are bound beside them.
    pub fn bind_inherited(
        settings: Settings,
        store: Arc<SnapshotStore>,
        inherited: Vec<(String, TcpListener)>,
    ) -> Result<Self, StartError> {
        Self::bind_with(settings, store, Some(inherited))
    }

    fn bind_with(
        settings: Settings,
        store: Arc<SnapshotStore>,
        inherited: Option<Vec<(String, TcpListener)>>,
    ) -> Result<Self, StartError> {
        let exclusive = inherited.is_none();
        let mut inherited = inherited.unwrap_or_default();
        let wanted = settings
            .http
            .iter()
            .map(|address| (ListenerKind::Http, *address));
        let wanted: Vec<_> = wanted
            .chain(
                settings
                    .https
                    .iter()
                    .map(|address| (ListenerKind::Https, *address)),
            )
            .collect();
        let workers = settings.workers.get();
        let mut sockets: Vec<Vec<Bound>> = (0..workers).map(|_| Vec::new()).collect();
        let mut addresses = Vec::new();
        let mut handles = Vec::new();
        for (kind, address) in wanted {
            let name = kind.name();
            let failed = |source| StartError::Bind {
                name,
                address,
                source,
            };
            if exclusive && address.port() != 0 {
                probe_free(address).map_err(failed)?;
            }
            let mut bound = address;
            let mut given = Vec::new();
            for (of, listener) in std::mem::take(&mut inherited) {
                let local = listener.local_addr().map_err(failed)?;
                if of == name && is_wanted(address, local) {
                    bound = local;
                    given.push(listener);
                } else {
                    inherited.push((of, listener));
                }
            }
            // Every inherited socket needs a worker, or its queue would never be read; every worker needs a
            // socket.
            let count = given.len().max(workers);
            let mut given = given.into_iter();
            for index in 0..count {
                let listener = match given.next() {
                    Some(listener) => listener,
                    None => listen(bound).map_err(failed)?,
                };
                bound = listener.local_addr().map_err(failed)?;
                handles.push((name, listener.try_clone().map_err(failed)?));
                sockets[index % workers].push(Bound { kind, listener });
            }
            addresses.push((name, bound));
        }
        let https_port = settings.public_https_port.or_else(|| {
            addresses
                .iter()
                .find(|(name, _)| *name == "https")
                .map(|(_, address)| address.port())
        });
        let mut peering = Vec::new();
        for address in settings.peering.iter().flat_map(|it| &it.listen) {
            // Beside a process that is about to end, where both are in the node's network.
            let listener = listen(*address).map_err(|source| StartError::Bind {
                name: "replicas",
                address: *address,
                source,
            })?;
            peering.push(listener);
        }
        let hub = Hub::new(HubSettings {
            replica: settings.replica.clone(),
            replicas: settings.replicas,
            version: env!("CARGO_PKG_VERSION"),
        });
        let ports = Arc::new(Ports::new(&settings, !exclusive));
        let metrics = Metrics::new(&hub, &ports);
        let forwarded = metrics.replicas.forwarded.clone();
        let shared = Arc::new(Shared {
            tls: TlsConfigs::new(Arc::clone(&store)),
            clusters: Arc::new(Clusters::new(hub.clone(), forwarded)),
            metrics,
            hub,
            ports,
            peers: Peers::default(),
            https_port,
            rate_limits: RateLimits::new(std::time::Instant::now()),
            authenticator: Authenticator::new(random_salt()?),
            connections: Arc::default(),
            requests: Arc::default(),
            draining: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
            links: TaskTracker::new(),
            forwarded: TaskTracker::new(),
            settings,
            store,
        });
        Ok(Self {
            shared,
            sockets,
            addresses,
            handles,
            peering,
        })
    }

    /// Bound addresses with their listener's name (`http`, `https`).
    pub fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        self.addresses.clone()
    }

    /// Starts the workers.
    pub fn start(self) -> Result<RunningEdge, StartError> {
        let Self {
            shared,
            sockets,
            addresses,
            handles,
            peering,
        } = self;
        let published = shared.store.load_full();
        shared
            .hub
            .apply(published.revision, &published.snapshot.agents);
        drop(published);
        let mut threads = Vec::new();
        let (opened, for_workers): (Vec<_>, Vec<_>) =
            sockets.iter().map(|_| mpsc::unbounded_channel()).unzip();
        let watcher = Arc::clone(&shared);
        threads.push(spawn_thread("edge-watch".to_owned(), async move {
            let stop = watcher.cut.clone();
            let clusters = Arc::clone(&watcher.clusters);
            tokio::select! {
                () = watch_clusters(clusters, Arc::clone(&watcher.store), stop) => {}
                () = forget_unused_limits(&watcher) => {}
                () = agents::follow(&watcher) => {}
                () = ports::follow(&watcher, opened) => {}
            }
        })?);
        for (index, (sockets, opened)) in sockets.into_iter().zip(for_workers).enumerate() {
            let worker = Arc::new(Worker {
                upstreams: Upstreams::new(Arc::clone(&shared.clusters)),
                shared: Arc::clone(&shared),
            });
            // Taken before the thread runs: a drain that begins meanwhile is not over for having found nobody.
            let beginning = shared.tasks.token();
            threads.push(spawn_thread(
                format!("edge-{index}"),
                serve(worker, sockets, opened, beginning),
            )?);
        }
        let (peers, known) = watch::channel(Vec::new());
        let peer_address = peering.first().and_then(|it| it.local_addr().ok());
        if let Some(settings) = shared.settings.peering.clone() {
            let replicas = replicas::run(Arc::clone(&shared), settings, peering, known);
            threads.push(spawn_thread("edge-replicas".to_owned(), replicas)?);
        }
        let running = Running {
            peers,
            peer_address,
            shared,
            addresses,
            handles: Mutex::new(handles),
            threads: Mutex::new(threads),
            stopped: AtomicBool::new(false),
        };
        Ok(RunningEdge {
            running: Arc::new(running),
        })
    }
}

fn random_salt() -> Result<[u8; 32], StartError> {
    let mut salt = [0; 32];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider
        .secure_random
        .fill(&mut salt)
        .map_err(|_| StartError::Random)?;
    Ok(salt)
}

/// A thread with a current-thread runtime that runs the future to its end.
fn spawn_thread<F>(name: String, future: F) -> Result<std::thread::JoinHandle<()>, StartError>
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::Worker)?;
    std::thread::Builder::new()
        .name(name)
        .spawn(move || runtime.block_on(future))
        .map_err(StartError::Worker)
}

/// Rate limits keep their counts across snapshots; those that no snapshot names any more go.
async fn forget_unused_limits(shared: &Shared) {
    let mut revisions = shared.store.subscribe();
    while revisions.changed().await.is_ok() {
        let published = shared.store.load_full();
        let hosts = published.snapshot.hosts.values();
        let rules = hosts.flat_map(|host| host.all_entries().map(|entry| &entry.rule));
        let limits = rules.flat_map(|rule| &rule.filters.rate_limits);
        let used: HashSet<&str> = limits.map(|limit| &*limit.id).collect();
        shared.rate_limits.retain(|id| used.contains(id));
    }
    // The store lives in `shared`, so this is never reached; the watch must not end for it.
    std::future::pending::<()>().await;
}

async fn serve(
    worker: Arc<Worker>,
    sockets: Vec<Bound>,
    opened: mpsc::UnboundedReceiver<ports::Opened>,
    beginning: TaskTrackerToken,
) {
    let accepting = TaskTracker::new();
    for Bound { kind, listener } in sockets {
        let accept = listener::accept(Arc::clone(&worker), kind, listener);
        // Counted among the connections too: a drain is not over while one may still be taken.
        accepting.spawn(worker.shared.tasks.track_future(accept));
    }
    drop(beginning);
    accepting.close();
    let cut = worker.shared.cut.clone();
    let reaping = Arc::clone(&worker);
    let reaper = async move {
        let mut tick = tokio::time::interval(REAP_INTERVAL);
        loop {
            tick.tick().await;
            reaping.upstreams.reap();
        }
    };
    tokio::select! {
        () = ports::serve(Arc::clone(&worker), opened, accepting.clone()) => {}
        () = async {
            accepting.wait().await;
            worker.shared.tasks.wait().await;
            worker.shared.links.wait().await;
        } => {}
        () = async { cut.cancelled().await; cut_grace().await } => {}
        () = reaper => {}
    }
}

/// Tasks see the cut and write their last bytes.
async fn cut_grace() {
    tokio::time::sleep(Duration::from_millis(250)).await;
}

/// A serving edge. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RunningEdge {
    running: Arc<Running>,
}

#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
    /// The other replicas.
    peers: watch::Sender<Vec<Peer>>,
    peer_address: Option<SocketAddr>,
    addresses: Vec<(&'static str, SocketAddr)>,
    /// Dropped before draining: a socket that anybody holds goes on queueing connections.
    handles: Mutex<Vec<(&'static str, TcpListener)>>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    stopped: AtomicBool,
}

impl RunningEdge {
    /// What is really so at this moment.
    pub fn observe(&self) -> Observed {
        let shared = &self.running.shared;
        let state = if shared.draining.is_cancelled() {
            ListenerState::Draining
        } else {
            ListenerState::Accepting
        };
        let listeners = self
            .running
            .addresses
            .iter()
            .map(|(name, address)| ObservedListener {
                name: (*name).to_owned(),
                address: *address,
                state,
            });
        Observed {
            listeners: listeners.collect(),
            clusters: shared.clusters.observe(),
            connections: u64::try_from(shared.metrics.connections.get()).unwrap_or_default(),
            requests: u64::try_from(shared.metrics.in_flight.get()).unwrap_or_default(),
            peers: shared.peers.observe(),
            agents: self.agents(),
        }
    }

    /// Agents that are connected or were, and nothing else.
    pub fn agents(&self) -> Vec<ObservedAgent> {
        self.running.shared.hub.observe()
    }

    /// Every listening socket with its listener's name, for a process that takes over. Empty once draining.
    pub fn sockets(&self) -> io::Result<Vec<(&'static str, TcpListener)>> {
        self.handles()
            .iter()
            .map(|(name, handle)| Ok((*name, handle.try_clone()?)))
            .collect()
    }

    fn handles(&self) -> std::sync::MutexGuard<'_, Vec<(&'static str, TcpListener)>> {
        self.running
            .handles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops accepting (what the kernel has queued is still served), asks every connection to go
    /// (GOAWAY, `Connection: close`), cuts what is left after `deadline`. Returns the number of
    /// connections and upgraded streams cut. A second call returns at once.
    pub async fn drain(&self, deadline: Duration) -> usize {
        if self.running.stopped.swap(true, Ordering::AcqRel) {
            return 0;
        }
        let shared = &self.running.shared;
        self.handles().clear();
        // Told first: whoever comes from now on is refused and goes to whom others go.
        let jitter = shared.hub.begin_drain(deadline);
        shared.draining.cancel();
        shared.tasks.close();
        shared.links.close();
        shared.forwarded.close();
        let drained = tokio::time::timeout(deadline, async {
            shared.tasks.wait().await;
            // Nobody needs the links any more; agents get the time to be somewhere else before.
            let moved = shared.hub.until_moved();
            let _ = tokio::time::timeout(jitter + MOVE_WITHIN, moved).await;
            // Other replicas have sent nothing more since they know another way.
            shared.forwarded.wait().await;
        });
        let drained =
            drained.await.is_ok() || (shared.tasks.is_empty() && shared.forwarded.is_empty());
        shared.hub.close();
        let _ = tokio::time::timeout(CLOSE_WITHIN, shared.links.wait()).await;
        let left = if drained {
            0
        } else {
            shared.tasks.len() + shared.forwarded.len()
        };
        shared.cut.cancel();
        let threads = std::mem::take(
            &mut *self
                .running
                .threads
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a worker thread panicked");
                }
            }
        });
        if joined.await.is_err() {
            tracing::error!("the workers could not be joined");
        }
        left
    }

    /// What agents ask for, now and from now on.
    pub fn agent_requests(&self) -> watch::Receiver<Requested> {
        self.running.shared.hub.requested()
    }

    /// Asks an agent to replace its links; how many there are. None where it was never heard of.
    pub fn reconnect_agent(&self, agent: &AgentId) -> Option<usize> {
        self.running.shared.hub.reconnect(agent)
    }

    /// Links of agents that came and went, oldest first.
    pub fn link_history(&self) -> Vec<Arc<LinkChange>> {
        self.running.shared.hub.history()
    }

    /// Links of agents that come and go from now on.
    pub fn link_changes(&self) -> broadcast::Receiver<Arc<LinkChange>> {
        self.running.shared.hub.changes()
    }

    /// Tells who the other replicas are: all of them, each time. Channels to those that stay go on; agents are told how
    /// many replicas there are. Does nothing without [`Settings::peering`].
    pub fn set_peers(&self, mut peers: Vec<Peer>) {
        let shared = &self.running.shared;
        if shared.settings.peering.is_none() {
            return;
        }
        peers.retain(|peer| peer.name != shared.settings.replica);
        peers.sort();
        peers.dedup();
        let mut names: Vec<&str> = peers.iter().map(|peer| &*peer.name).collect();
        names.dedup();
        let others = u32::try_from(names.len()).unwrap_or(u32::MAX);
        shared.metrics.replicas.known(others);
        shared.hub.set_replicas(others.saturating_add(1));
        self.running.peers.send_if_modified(|known| {
            let news = *known != peers;
            *known = peers;
            news
        });
    }

    /// Where other replicas reach this one, when they may.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.running.peer_address
    }

    /// Channels to other replicas that stand, sorted by name.
    pub fn channels(&self) -> Vec<ChannelView> {
        self.running.shared.hub.joined()
    }

    /// What became of the ports that lead to agents, now and from now on.
    pub fn ports(&self) -> watch::Receiver<Arc<Vec<PortState>>> {
        self.running.shared.ports.states()
    }

    /// Counts from now on who connects: the way here was changed.
    pub fn forget_peers(&self) {
        self.running.shared.peers.forget();
    }

    /// The metrics of the data plane in the OpenMetrics text format, without the `# EOF` line.
    pub fn metrics(&self) -> String {
        self.running.shared.metrics.encode()
    }
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if let IpAddr::V6(ip) = address.ip() {
        // `[::]` serves both families; addresses are made canonical on accept.
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    Ok(socket)
}

/// Whether a socket bound to `local` is what `address` asks for.
fn is_wanted(address: SocketAddr, local: SocketAddr) -> bool {
    address == local || (address.port() == 0 && address.ip() == local.ip())
}

/// Whether nobody else listens there: without `SO_REUSEPORT` the kernel tells.
pub(crate) fn probe_free(address: SocketAddr) -> io::Result<()> {
    let socket = socket(address)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
