//! Ports that lead to services behind agents, beside those of the listeners: opened and closed as snapshots say.
//!
//! ```text
//! snapshot.ports ─► follow() ─► sockets ─► workers ─► tcp | udp ─► link of the agent
//!                      └──────► what became of each, for statuses
//! ```
//!
//! A port that cannot be bound is tried again and concerns nobody else. Whether a number may be opened at all is in the
//! settings, and asked here once more. Nothing of what a port carries is looked at.

mod metrics;
mod tcp;
mod udp;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate_model::{
    ListenError, MappedPort, PortId, PortListener, PortState, RouteId, Transport,
};
use tidegate_tracker::udp::flood::FloodLimit;
use tidegate_tracker::udp::socket::Listener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Settings;
use crate::edge::{listen, probe_free};
use crate::filters::ip_access;
use crate::worker::{Shared, Worker};
pub(crate) use metrics::OfPorts;

/// Between attempts to bind.
const RETRY: Duration = Duration::from_secs(1);

/// Time for the workers to let go of a socket.
const LET_GO: Duration = Duration::from_millis(20);

/// What is known of all ports.
#[derive(Debug)]
pub(crate) struct Ports {
    /// Where to listen.
    addresses: Vec<IpAddr>,
    /// A process that is taken over from may still have them.
    sharing: bool,
    states: watch::Sender<Arc<Vec<PortState>>>,
    tenures: Mutex<BTreeMap<PortId, Arc<Tenure>>>,
    /// New UDP clients of one network, for all ports.
    flood: Mutex<FloodLimit>,
    /// UDP clients of all ports.
    udp_sessions: Arc<AtomicUsize>,
}

/// A mapping's time at a port.
#[derive(Debug)]
pub(crate) struct Tenure {
    id: PortId,
    route: RouteId,
    /// Takes no more connections.
    closed: CancellationToken,
    /// What is still open ends now.
    cut: CancellationToken,
    counted: Counted,
}

/// What is counted of a tenure.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    /// Connections, or clients, now.
    open: AtomicU64,
    /// So far.
    sessions: AtomicU64,
    /// Bytes from clients.
    received: AtomicU64,
    /// Bytes to clients.
    sent: AtomicU64,
    /// Who was sent away, by reason.
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

/// A socket for a worker.
#[derive(Debug)]
pub(crate) enum Opened {
    Tcp(std::net::TcpListener, Arc<Tenure>),
    Udp(Listener, Arc<Tenure>),
}

// === impl Ports ===

impl Ports {
    pub(crate) fn new(settings: &Settings, sharing: bool) -> Self {
        let all = settings.http.iter().chain(&settings.https);
        let addresses: BTreeSet<IpAddr> = all.map(SocketAddr::ip).collect();
        Self {
            addresses: addresses.into_iter().collect(),
            sharing,
            states: watch::Sender::default(),
            tenures: Mutex::default(),
            flood: Mutex::new(FloodLimit::new(udp::NEW_OF_NETWORK, Instant::now())),
            udp_sessions: Arc::default(),
        }
    }

    /// What became of each port, now and whenever it changes.
    pub(crate) fn states(&self) -> watch::Receiver<Arc<Vec<PortState>>> {
        self.states.subscribe()
    }

    fn tenures(&self) -> MutexGuard<'_, BTreeMap<PortId, Arc<Tenure>>> {
        self.tenures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, live: &BTreeMap<PortId, Live>) {
        let states: Vec<_> = live.values().map(Live::state).collect();
        let tenures = live
            .iter()
            .map(|(id, live)| (*id, Arc::clone(&live.tenure)));
        *self.tenures() = tenures.collect();
        self.states.send_if_modified(|known| {
            let differs = **known != states;
            if differs {
                *known = Arc::new(states);
            }
            differs
        });
    }

    /// Where a port listens. IPv4 and IPv6 have UDP sockets of their own, because answers must be of the family of
    /// the question.
    fn places(&self, id: PortId) -> Vec<Place> {
        let mut all = Vec::new();
        for ip in &self.addresses {
            let both = id.transport == Transport::Udp && ip.is_ipv6() && ip.is_unspecified();
            let v4 = both.then_some(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
            for ip in v4.into_iter().chain([*ip]) {
                let address = SocketAddr::new(ip, id.number);
                if !all.iter().any(|place: &Place| place.address == address) {
                    all.push(Place {
                        address,
                        bound: false,
                        error: None,
                    });
                }
            }
        }
        all
    }
}

// === impl Tenure ===

impl Tenure {
    /// Counts a connection, or a client, until the guard is dropped.
    fn enter(self: &Arc<Self>) -> Inside {
        self.counted.open.fetch_add(1, Ordering::Relaxed);
        self.counted.sessions.fetch_add(1, Ordering::Relaxed);
        Inside(Arc::clone(self))
    }

    fn refused(&self, reason: &'static str) {
        let refused = &self.counted.refused;
        let mut refused = refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused.entry(reason).or_default() += 1;
    }
}

/// Somebody at a port.
#[derive(Debug)]
struct Inside(Arc<Tenure>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.counted.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes of one connection or client.
#[derive(Debug, Default)]
struct Tally {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Tally {
    fn received(&self, tenure: &Tenure, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.received.fetch_add(bytes, Ordering::Relaxed);
        tenure.counted.received.fetch_add(bytes, Ordering::Relaxed);
    }

    fn sent(&self, tenure: &Tenure, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        tenure.counted.sent.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// An address of a port.
struct Place {
    address: SocketAddr,
    bound: bool,
    error: Option<ListenError>,
}

/// A port that is open, or should be.
struct Live {
    tenure: Arc<Tenure>,
    places: Vec<Place>,
}

impl Live {
    /// Tries to bind what is not bound. Whether something is left to be tried.
    fn bind(&mut self, sharing: bool, workers: &[mpsc::UnboundedSender<Opened>]) -> bool {
        let id = self.tenure.id;
        let mut left = false;
        for place in self.places.iter_mut().filter(|place| !place.bound) {
            match bind(place.address, sharing, &self.tenure, workers.len()) {
                Ok(sockets) => {
                    place.bound = true;
                    place.error = None;
                    tracing::info!(port = %id, address = %place.address, mapping = %self.tenure.route, "listening for an agent");
                    // UDP is one worker's, another one's for each port.
                    let first = usize::from(id.number) % workers.len().max(1);
                    let workers = workers.iter().cycle().skip(first);
                    for (socket, worker) in sockets.into_iter().zip(workers) {
                        // A worker that is gone has ended with all others.
                        let _ = worker.send(socket);
                    }
                }
                Err(error) => {
                    left = true;
                    let error = ListenError::from(&error);
                    if place.error.as_ref() != Some(&error) {
                        tracing::warn!(port = %id, address = %place.address, mapping = %self.tenure.route, ?error, "cannot listen for an agent; it is tried again");
                        place.error = Some(error);
                    }
                }
            }
        }
        left
    }

    fn state(&self) -> PortState {
        let listeners = self.places.iter().map(|place| PortListener {
            address: place.address,
            error: place.error.clone(),
        });
        PortState {
            id: self.tenure.id,
            listeners: listeners.collect(),
        }
    }

    /// Takes nobody any more; who is there has the time of a drain to end.
    fn close(&self, grace: Duration) {
        let tenure = &self.tenure;
        tracing::info!(port = %tenure.id, mapping = %tenure.route, "not listening for an agent any more");
        tenure.closed.cancel();
        let cut = tenure.cut.clone();
        tokio::spawn(async move {
            tokio::time::sleep(grace).await;
            cut.cancel();
        });
    }
}

/// Where the port leads at this moment, for this client; or why it does not.
fn port_of(
    shared: &Shared,
    tenure: &Tenure,
    client: IpAddr,
) -> Result<Arc<MappedPort>, &'static str> {
    let published = shared.store.load_full();
    let port = published.snapshot.ports.get(&tenure.id);
    let port = port.filter(|port| port.route == tenure.route);
    let port = port.ok_or("Closed")?;
    match &port.access {
        Some(access) if !ip_access::is_allowed(access, client) => Err("AccessDenied"),
        _ => Ok(Arc::clone(port)),
    }
}

/// The sockets of a port at one address.
fn bind(
    address: SocketAddr,
    sharing: bool,
    tenure: &Arc<Tenure>,
    workers: usize,
) -> io::Result<Vec<Opened>> {
    match tenure.id.transport {
        Transport::Tcp => {
            if !sharing {
                probe_free(address)?;
            }
            (0..workers)
                .map(|_| Ok(Opened::Tcp(listen(address)?, Arc::clone(tenure))))
                .collect()
        }
        Transport::Udp => {
            let listener = Listener::bind(address, sharing)?;
            Ok(vec![Opened::Udp(listener, Arc::clone(tenure))])
        }
    }
}

/// Opens and closes ports as snapshots say, until the edge drains.
pub(crate) async fn follow(shared: &Arc<Shared>, workers: Vec<mpsc::UnboundedSender<Opened>>) {
    let ports = &shared.ports;
    let grace = shared.settings.timeouts.drain;
    let mut revisions = shared.store.subscribe();
    let mut live: BTreeMap<PortId, Live> = BTreeMap::new();
    loop {
        revisions.borrow_and_update();
        let published = shared.store.load_full();
        let wanted = &published.snapshot.ports;
        let before = live.len();
        live.retain(|id, live| {
            let stays = wanted
                .get(id)
                .is_some_and(|it| it.route == live.tenure.route);
            if !stays {
                live.close(grace);
            }
            stays
        });
        let closed = live.len() < before;
        for (id, port) in wanted {
            if shared.settings.tunnel_ports.contains(*id) && !live.contains_key(id) {
                let tenure = Arc::new(Tenure {
                    id: *id,
                    route: port.route.clone(),
                    closed: CancellationToken::new(),
                    cut: shared.cut.child_token(),
                    counted: Counted::default(),
                });
                let places = ports.places(*id);
                live.insert(*id, Live { tenure, places });
            }
        }
        drop(published);
        if closed {
            // A port that only changes hands is not told to be taken.
            tokio::time::sleep(LET_GO).await;
        }
        let mut left = false;
        for live in live.values_mut() {
            left |= live.bind(ports.sharing, &workers);
        }
        ports.tell(&live);
        tokio::select! {
            changed = revisions.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(RETRY), if left => {}
            () = shared.draining.cancelled() => break,
        }
    }
    // What runs beside this must not end for it.
    std::future::pending::<()>().await;
}

/// Serves what is opened for this worker. `accepting` has who listens.
pub(crate) async fn serve(
    worker: Arc<Worker>,
    mut sockets: mpsc::UnboundedReceiver<Opened>,
    accepting: TaskTracker,
) {
    while let Some(opened) = sockets.recv().await {
        let worker = Arc::clone(&worker);
        let tasks = worker.shared.tasks.clone();
        match opened {
            Opened::Tcp(listener, tenure) => {
                let accept = tcp::accept(worker, listener, tenure);
                accepting.spawn(tasks.track_future(accept));
            }
            Opened::Udp(listener, tenure) => {
                let serve = udp::serve(worker, listener, tenure);
                accepting.spawn(tasks.track_future(serve));
            }
        }
    }
    std::future::pending::<()>().await;
}
