//! Datagrams to a port: each client is a session with a stream of the agent's link, where each datagram has a length in
//! front.
//!
//! Nobody waits for anybody: what does not fit into the queue of its session is dropped and counted. Sessions end when
//! their client was quiet for three minutes; a flood of forged addresses competes with itself (see
//! [`tidegate_tracker::udp::sessions`]), and there is a bound on new sessions of one network and of all.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tidegate_tracker::udp::sessions::{Room, Sessions};
use tidegate_tracker::udp::socket::{Asked, Listener, Received, control_space};
use tidegate_tunnel::datagram;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Interest};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::{Tally, Tenure, port_of};
use crate::access_log::{self, StreamLine};
use crate::filters::concurrency::InFlightGuard;
use crate::upstream::connect::ProxiedAddresses;
use crate::upstream::{self, Opened, SendOptions};
use crate::worker::Worker;

/// Datagrams of one client that wait for the link.
const QUEUE: usize = 64;
/// Datagrams taken from the socket before others have their turn.
const BATCH: usize = 64;
/// Bytes of datagrams that are written together, and read at once.
const CHUNK: usize = 32 * 1024;
/// Clients of one port.
const SESSIONS: usize = 4096;
/// New clients of one port in a second, and twice as many at once: each opens a stream and a socket.
const NEW_PER_SECOND: f64 = 256.0;
/// How long answers under way are still passed on after the end.
const LAST_ANSWERS: Duration = Duration::from_millis(300);
/// How often ended sessions are looked for.
const TICK: Duration = Duration::from_secs(5);

/// A datagram on its way to the link.
struct Datagram {
    bytes: Bytes,
    asked: Asked,
}

/// What the socket knows of a client.
struct Session {
    queue: mpsc::Sender<Datagram>,
    /// The target has answered, so that the client may be who it says.
    answered: Arc<AtomicBool>,
    established: bool,
}

/// One socket of a port.
struct Port {
    worker: Arc<Worker>,
    tenure: Arc<Tenure>,
    socket: Arc<Listener>,
    sessions: Sessions<Session>,
    budget: Budget,
}

/// Passes datagrams on until the port is taken away or the edge drains.
pub(super) async fn serve(worker: Arc<Worker>, listener: Listener, tenure: Arc<Tenure>) {
    let waiting = match listener.handle().and_then(UdpSocket::from_std) {
        Ok(waiting) => waiting,
        Err(error) => {
            tracing::error!(port = %tenure.id, %error, "listener lost");
            return;
        }
    };
    let draining = worker.shared.draining.clone();
    let closed = tenure.closed.clone();
    let mut port = Port {
        worker,
        tenure,
        socket: Arc::new(listener),
        sessions: Sessions::new(SESSIONS),
        budget: Budget::new(Instant::now()),
    };
    let (mut buffer, mut control) = (vec![0; datagram::MAX_DATAGRAM + 1], control_space());
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            ready = waiting.readable() => {
                if ready.is_err() {
                    return;
                }
                for _ in 0..BATCH {
                    let socket = &port.socket;
                    let receive = || socket.receive(&mut buffer, &mut control);
                    match waiting.try_io(Interest::READABLE, receive) {
                        Ok(received) => {
                            let bytes = buffer.get(..received.length).unwrap_or_default();
                            port.take(&received, bytes);
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        // Of one datagram, which is gone.
                        Err(_) => port.tenure.refused("Unreadable"),
                    }
                }
                tokio::task::yield_now().await;
            }
            _ = tick.tick() => {
                port.sessions.expire(Instant::now());
            }
            () = closed.cancelled() => return,
            () = draining.cancelled() => return,
        }
    }
}

impl Port {
    fn take(&mut self, received: &Received, bytes: &[u8]) {
        let now = Instant::now();
        let mut datagram = Datagram {
            bytes: Bytes::copy_from_slice(bytes),
            asked: received.asked,
        };
        let client = received.client;
        if let Some(index) = self.sessions.heard(client, now)
            && let Some((_, session)) = self.sessions.get(index)
        {
            let establishes = !session.established && session.answered.load(Ordering::Relaxed);
            session.established |= establishes;
            match session.queue.try_send(datagram) {
                Ok(()) => {
                    if establishes {
                        self.sessions.establish(index, now);
                    }
                    return;
                }
                Err(mpsc::error::TrySendError::Full(_)) => {
                    self.tenure.refused("QueueFull");
                    return;
                }
                Err(mpsc::error::TrySendError::Closed(back)) => {
                    self.sessions.remove(index);
                    datagram = back;
                }
            }
        }
        if let Err(reason) = self.begin(client, datagram, now) {
            self.tenure.refused(reason);
        }
    }

    fn begin(
        &mut self,
        client: SocketAddr,
        first: Datagram,
        now: Instant,
    ) -> Result<(), &'static str> {
        let shared = &self.worker.shared;
        let port = port_of(shared, &self.tenure, client.ip())?;
        if !shared.ports.admits(client.ip(), now) || !self.budget.take(now) {
            return Err("Flood");
        }
        let limits = &shared.settings.limits;
        let place = shared
            .connections
            .try_enter("udp", client.ip(), limits.connections_per_client)
            .ok_or("TooManyConnectionsOfClient")?;
        let inside = AllSessions::enter(&shared.ports.udp_sessions, limits.connections);
        let inside = inside.ok_or("TooManyConnections")?;
        if self.sessions.make_room(now) == Room::None {
            return Err("TooManyConnections");
        }
        let (queue, datagrams) = mpsc::channel(QUEUE);
        let answered = Arc::<AtomicBool>::default();
        let passing = Passing {
            worker: Arc::clone(&self.worker),
            tenure: Arc::clone(&self.tenure),
            socket: Arc::clone(&self.socket),
            client,
            asked: Mutex::new(first.asked),
            answered: Arc::clone(&answered),
            tally: Tally::default(),
            _places: (place, inside),
        };
        let session = Session {
            queue,
            answered,
            established: false,
        };
        self.sessions.insert(client, session, now);
        let passing = passing.run(port, first, datagrams);
        shared.tasks.spawn(passing);
        Ok(())
    }
}

/// One client's datagrams, both ways.
struct Passing {
    worker: Arc<Worker>,
    tenure: Arc<Tenure>,
    socket: Arc<Listener>,
    client: SocketAddr,
    /// Where the client sent its last datagram to: answers leave from there.
    asked: Mutex<Asked>,
    answered: Arc<AtomicBool>,
    tally: Tally,
    _places: (InFlightGuard, AllSessions),
}

impl Passing {
    async fn run(
        self,
        port: Arc<tidegate_model::MappedPort>,
        first: Datagram,
        datagrams: mpsc::Receiver<Datagram>,
    ) {
        let begun = Instant::now();
        let _inside = self.tenure.enter();
        let local = SocketAddr::new(first.asked.ip, self.tenure.id.number);
        let options = SendOptions {
            proxied: Some(ProxiedAddresses {
                client: self.client,
                local,
            }),
            datagrams: true,
            ..SendOptions::default()
        };
        let opening = upstream::open(&self.worker.upstreams, &port.cluster, &options);
        let opened = tokio::select! {
            opened = opening => Some(opened),
            () = self.tenure.cut.cancelled() => None,
        };
        let (reason, error) = match opened {
            None => (Some("Cut"), None),
            Some(Err(error)) => {
                let reason = error.reason();
                self.worker.shared.metrics.upstream_failed(reason);
                self.tenure.refused(reason);
                let error = tidegate_telemetry::chain(&error).to_string();
                (Some(reason), Some(error))
            }
            Some(Ok((stream, _active))) => {
                let passing = async {
                    match stream {
                        Opened::Socket(stream) => self.pass(stream, first, datagrams).await,
                        Opened::Link(stream) => self.pass(stream, first, datagrams).await,
                    }
                };
                tokio::select! {
                    reason = passing => (reason, None),
                    () = self.tenure.cut.cancelled() => (Some("Cut"), None),
                }
            }
        };
        access_log::emit_stream(
            &self.worker.shared.settings.access_log,
            &StreamLine {
                client: self.client.ip(),
                port: self.tenure.id,
                route: &self.tenure.route,
                received: self.tally.received.load(Ordering::Relaxed),
                sent: self.tally.sent.load(Ordering::Relaxed),
                duration: begun.elapsed(),
                reason,
                error: error.as_deref(),
            },
        );
    }

    /// Why it ended, unless it was time.
    async fn pass(
        &self,
        stream: impl AsyncRead + AsyncWrite,
        first: Datagram,
        datagrams: mpsc::Receiver<Datagram>,
    ) -> Option<&'static str> {
        let (from_agent, to_agent) = tokio::io::split(stream);
        tokio::select! {
            well = self.up(to_agent, first, datagrams) => (!well).then_some("Broken"),
            () = self.down(from_agent) => Some("EndedByAgent"),
        }
    }

    /// Whether it ended because the client was quiet.
    async fn up(
        &self,
        mut to_agent: impl AsyncWrite + Unpin,
        first: Datagram,
        mut datagrams: mpsc::Receiver<Datagram>,
    ) -> bool {
        let mut frames = BytesMut::new();
        let mut next = Some(first);
        loop {
            while let Some(Datagram { bytes, asked }) = next {
                *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = asked;
                self.tally.received(&self.tenure, bytes.len());
                // It fits: no datagram is longer.
                let _ = datagram::encode(&bytes, &mut frames);
                next = (frames.len() < CHUNK)
                    .then(|| datagrams.try_recv().ok())
                    .flatten();
            }
            let written = to_agent.write_all_buf(&mut frames).await;
            if written.is_err() || to_agent.flush().await.is_err() {
                return false;
            }
            next = datagrams.recv().await;
            if next.is_none() {
                tokio::time::sleep(LAST_ANSWERS).await;
                return true;
            }
        }
    }

    async fn down(&self, mut from_agent: impl AsyncRead + Unpin) {
        // A frame is 64 KiB at most, so what is left over is bounded.
        let mut frames = BytesMut::new();
        loop {
            frames.reserve(CHUNK);
            if !matches!(from_agent.read_buf(&mut frames).await, Ok(1..)) {
                return;
            }
            while let Some(datagram) = datagram::decode(&mut frames) {
                let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
                match self.socket.answer(&datagram, self.client, asked) {
                    Ok(()) => {
                        self.tally.sent(&self.tenure, datagram.len());
                        self.answered.store(true, Ordering::Relaxed);
                    }
                    Err(_) => self.tenure.refused("Unsent"),
                }
            }
        }
    }
}

/// A place among the UDP clients of all ports.
struct AllSessions(Arc<AtomicUsize>);

impl AllSessions {
    fn enter(count: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        let place = Self(Arc::clone(count));
        (before < most).then_some(place)
    }
}

impl Drop for AllSessions {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// New sessions of one socket.
struct Budget {
    left: f64,
    at: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            left: 2.0 * NEW_PER_SECOND,
            at: now,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + since * NEW_PER_SECOND).min(2.0 * NEW_PER_SECOND);
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

/// How often one network may begin a session, for all ports together: sessions in a second, five times as many at once.
pub(super) const NEW_OF_NETWORK: u32 = 20;

impl super::Ports {
    fn admits(&self, client: IpAddr, now: Instant) -> bool {
        let mut flood = self.flood.lock().unwrap_or_else(PoisonError::into_inner);
        flood.admit(client, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_from_everywhere_opens_a_bounded_number_of_sessions() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let taken = |budget: &mut Budget, now| (0..10_000).filter(|_| budget.take(now)).count();
        assert_eq!(taken(&mut budget, start), 512);
        assert_eq!(taken(&mut budget, start + Duration::from_secs(1)), 256);
        assert_eq!(taken(&mut budget, start + Duration::from_secs(60)), 512);
    }
}
