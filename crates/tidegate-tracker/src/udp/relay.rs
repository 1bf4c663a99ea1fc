//! One rule's relay: its listeners, the ways to its tracker, its clients.
//!
//! Everything happens on the engine's thread and waits for nothing. Datagrams are passed on as they come and in
//! their order; nothing of them is kept.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use tidegate_model::{UdpListenError, UdpListenerState, UdpRelayMode, UdpRelayState, UdpWayState};

use super::Wanted;
use super::counters::{Counters, Dropped};
use super::flood::FloodLimit;
use super::packet::{self, Action};
use super::proxy_header;
use super::sessions::{Room, Sessions};
use super::socket::{self, Asked, Listener, Received};
use super::token::{Source, Token};
use super::trial::Probe;
use super::way::Way;

/// Datagrams taken from one socket before the others have their turn.
const BATCH: usize = 64;
/// Between attempts to bind.
const RETRY: Duration = Duration::from_secs(2);
/// Answers of one client that can be under way to two addresses of ours at once.
const RECENT: usize = 4;

/// Buffers of the engine, lent to whoever has its turn.
pub(super) struct Scratch {
    pub(super) datagram: Vec<u8>,
    pub(super) control: Vec<u8>,
}

/// A rule's relay.
pub(super) struct Relay {
    number: u32,
    wanted: Wanted,
    listeners: Vec<Place>,
    ways: Vec<Way>,
    sessions: Sessions<Session>,
    flood: FloodLimit,
    pub(super) counters: Arc<Counters>,
    limit: usize,
}

/// Where a relay listens or should.
struct Place {
    address: SocketAddr,
    listener: Option<Listener>,
    error: Option<UdpListenError>,
    retry: Instant,
}

/// A client.
struct Session {
    upstream: UdpSocket,
    /// Where the last requests came in, by transaction, newest last: the answers leave there.
    recent: [(u32, usize, Asked); RECENT],
}

impl Relay {
    pub(super) fn new(number: u32, wanted: Wanted, counters: Arc<Counters>, now: Instant) -> Self {
        let relay = &wanted.relay;
        let flood = FloodLimit::new(relay.connects_per_second, now);
        let mut new = Self {
            number,
            listeners: Vec::new(),
            ways: Vec::new(),
            sessions: Sessions::new(0),
            flood,
            counters,
            limit: 0,
            wanted,
        };
        new.places(now);
        new.find_ways(now);
        new
    }

    pub(super) fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Takes over what the rule says now. Only what differs is begun anew.
    pub(super) fn change(&mut self, wanted: Wanted, now: Instant) {
        let before = std::mem::replace(&mut self.wanted, wanted);
        let (old, new) = (&before.relay, &self.wanted.relay);
        if old.connects_per_second != new.connects_per_second {
            self.flood = FloodLimit::new(new.connects_per_second, now);
        }
        let mode = old.mode != new.mode;
        let moved = before.backends != self.wanted.backends || mode;
        let rebound = old.addresses != new.addresses || old.port != new.port;
        if moved || rebound {
            // Clients notice nothing: the tracker sees them at the same address afterwards.
            self.sessions.clear();
        }
        if mode {
            self.ways.clear();
        }
        if moved {
            self.find_ways(now);
        }
        if moved || rebound {
            self.places(now);
        }
    }

    /// How many descriptors the process has for this relay.
    pub(super) fn set_budget(&mut self, descriptors: usize) {
        let limit = self.wanted.relay.max_sessions.min(descriptors);
        if limit != self.limit {
            self.limit = limit;
            let ended = self.sessions.set_limit(limit);
            self.counters.evicted(ended);
        }
    }

    pub(super) fn state(&self) -> UdpRelayState {
        UdpRelayState {
            id: self.wanted.relay.id.clone(),
            listeners: self
                .listeners
                .iter()
                .map(|place| UdpListenerState {
                    address: place.address,
                    error: place.error.clone(),
                })
                .collect(),
            ways: self.ways.iter().map(Way::view).collect(),
            resolve_error: self.wanted.error.clone(),
        }
    }

    fn backend(&self, v6: bool) -> Option<SocketAddr> {
        let mut all = self.wanted.backends.iter().copied();
        all.find(|backend| backend.is_ipv6() == v6)
    }

    /// Lays out where to listen; keeps sockets of addresses that stay.
    fn places(&mut self, now: Instant) {
        let relay = &self.wanted.relay;
        let every: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let named = !relay.addresses.is_empty();
        let addresses = if named { &relay.addresses[..] } else { &every };
        let mut places = Vec::with_capacity(addresses.len());
        for ip in addresses {
            let address = SocketAddr::new(*ip, relay.port);
            let reachable = self.backend(ip.is_ipv6()).is_some();
            if !reachable && !named {
                continue;
            }
            let kept = self
                .listeners
                .iter_mut()
                .find(|place| place.address == address)
                .and_then(|place| place.listener.take());
            places.push(Place {
                address,
                listener: kept.filter(|_| reachable),
                error: (!reachable).then_some(UdpListenError::NoBackend),
                retry: now,
            });
        }
        self.listeners = places;
    }

    fn find_ways(&mut self, now: Instant) {
        let mode = self.wanted.relay.mode;
        let backends: Vec<SocketAddr> = [false, true]
            .into_iter()
            .filter_map(|v6| self.backend(v6))
            .collect();
        let mut known = std::mem::take(&mut self.ways);
        self.ways = backends
            .into_iter()
            .map(|backend| {
                let at = known.iter().position(|way| way.backend == backend);
                at.map_or_else(|| Way::new(backend, mode, now), |at| known.swap_remove(at))
            })
            .collect();
        // Their sockets were registered under other places.
        for way in &mut self.ways {
            way.restart(now);
        }
    }

    /// Does what is due: binds, tries ways, ends idle sessions. Called a few times each second.
    pub(super) fn tick(&mut self, registry: &Registry, shared: bool, now: Instant) {
        for (index, place) in self.listeners.iter_mut().enumerate() {
            if place.listener.is_some()
                || place.error == Some(UdpListenError::NoBackend)
                || now < place.retry
            {
                continue;
            }
            let token = Token::new(self.number, Source::Listener, index);
            let bound = Listener::bind(place.address, shared).and_then(|listener| {
                let fd = listener.fd();
                registry.register(&mut SourceFd(&fd), token.into(), Interest::READABLE)?;
                Ok(listener)
            });
            place.retry = now + RETRY;
            match bound {
                Ok(listener) => {
                    tracing::info!(relay = %self.wanted.name(), address = %place.address, "relaying datagrams");
                    place.listener = Some(listener);
                    place.error = None;
                }
                Err(error) => {
                    let found = UdpListenError::Socket((&error).into());
                    if place.error.as_ref() != Some(&found) {
                        tracing::warn!(relay = %self.wanted.name(), address = %place.address, %error, "cannot listen for datagrams; it is tried again");
                    }
                    place.error = Some(found);
                }
            }
        }
        for (index, way) in self.ways.iter_mut().enumerate() {
            let before = way.state();
            for (probe, fd) in way.turn(now).into_iter().flatten() {
                let place = index * Probe::ALL.len() + probe as usize;
                let token = Token::new(self.number, Source::Trial, place);
                let interest = Interest::READABLE;
                if let Err(error) = registry.register(&mut SourceFd(&fd), token.into(), interest) {
                    tracing::warn!(%error, "cannot wait for a tracker's answer");
                }
            }
            tell(&self.wanted, before, way);
        }
        let expired = self.sessions.expire(now);
        self.counters.expired(expired);
        self.counters
            .sessions(self.sessions.len(), self.sessions.established());
    }

    /// What came to a socket of ours. Whether there may be more.
    pub(super) fn ready(
        &mut self,
        source: Source,
        index: usize,
        registry: &Registry,
        scratch: &mut Scratch,
        now: Instant,
    ) -> bool {
        match source {
            Source::Listener => self.take_requests(index, registry, scratch, now),
            Source::Session => self.take_answers(index, scratch, now),
            Source::Trial => {
                let sockets = Probe::ALL.len();
                let probe = Probe::ALL.get(index % sockets);
                if let (Some(way), Some(probe)) = (self.ways.get_mut(index / sockets), probe) {
                    let before = way.state();
                    way.hear(*probe, now);
                    tell(&self.wanted, before, way);
                }
                false
            }
        }
    }

    fn take_requests(
        &mut self,
        index: usize,
        registry: &Registry,
        scratch: &mut Scratch,
        now: Instant,
    ) -> bool {
        for _ in 0..BATCH {
            let Some(listener) = self
                .listeners
                .get(index)
                .and_then(|place| place.listener.as_ref())
            else {
                return false;
            };
            let buffer = scratch
                .datagram
                .get_mut(proxy_header::LONGEST..)
                .unwrap_or_default();
            match listener.receive(buffer, &mut scratch.control) {
                Ok(received) => self.pass(index, &received, registry, scratch, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // What the kernel has to say of an earlier answer.
                Err(error) => tracing::trace!(%error, "a listener of datagrams has an error"),
            }
        }
        true
    }

    /// Passes one request on, or counts why not.
    fn pass(
        &mut self,
        place: usize,
        received: &Received,
        registry: &Registry,
        scratch: &mut Scratch,
        now: Instant,
    ) {
        let start = proxy_header::LONGEST;
        let datagram = scratch
            .datagram
            .get(start..start + received.length)
            .unwrap_or_default();
        let outcome = if received.length > packet::LONGEST_REQUEST {
            Err(Dropped::Malformed(packet::Malformed::Long))
        } else {
            packet::request(datagram).map_err(Dropped::Malformed)
        };
        let outcome = outcome.and_then(|request| {
            self.session(place, received, request, registry, now)
                .map(|session| (request, session))
        });
        let (request, session) = match outcome {
            Ok(found) => found,
            Err(why) => return self.counters.dropped(why),
        };
        let length = received.length;
        let mut from = start;
        if self.wanted.relay.mode == UdpRelayMode::ProxyProtocol {
            let mut header = [0; proxy_header::LONGEST];
            let port = self.wanted.relay.port;
            let header_length =
                proxy_header::write(&mut header, received.client, received.asked.ip, port);
            from = start - header_length;
            if let (Some(room), Some(header)) = (
                scratch.datagram.get_mut(from..start),
                header.get(..header_length),
            ) {
                room.copy_from_slice(header);
            }
        }
        let datagram = scratch
            .datagram
            .get(from..start + length)
            .unwrap_or_default();
        match self.send(session, datagram) {
            Ok(()) => self.counters.request(request.action, length),
            Err(()) => self.counters.dropped(Dropped::Unsent),
        }
    }

    fn send(&mut self, session: usize, datagram: &[u8]) -> Result<(), ()> {
        let (_, session) = self.sessions.get(session).ok_or(())?;
        match session.upstream.send(datagram) {
            Ok(_) => Ok(()),
            // Said of an earlier datagram; this one was not sent.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.counters.refused();
                session.upstream.send(datagram).map(drop).map_err(drop)
            }
            Err(error) => {
                tracing::trace!(%error, "cannot send to a tracker");
                Err(())
            }
        }
    }

    /// The client's session, begun if need be.
    fn session(
        &mut self,
        place: usize,
        received: &Received,
        request: packet::Request,
        registry: &Registry,
        now: Instant,
    ) -> Result<usize, Dropped> {
        let client = received.client;
        let backend = self
            .ways
            .iter()
            .find(|way| way.backend.is_ipv6() == client.is_ipv6() && way.state().is_open())
            .map(|way| way.backend)
            .ok_or(Dropped::NoWay)?;
        let known = self.sessions.heard(client, now);
        // Both cost more than a request of a client that is known.
        if (known.is_none() || request.action == Action::Connect)
            && !self.flood.admit(client.ip(), now)
        {
            return Err(Dropped::Flood);
        }
        let entry = (request.transaction, place, received.asked);
        if let Some(index) = known {
            if let Some((_, session)) = self.sessions.get(index) {
                session.recent.rotate_left(1);
                session.recent[RECENT - 1] = entry;
            }
            return Ok(index);
        }
        match self.sessions.make_room(now) {
            Room::Free => {}
            Room::Evicted => self.counters.evicted(1),
            Room::None => return Err(Dropped::Full),
        }
        let index = self.sessions.next_index();
        let token = Token::new(self.number, Source::Session, index);
        let upstream = match open(self.wanted.relay.mode, client, backend, registry, token) {
            Ok(upstream) => upstream,
            Err(error) => {
                tracing::debug!(%error, "cannot open a socket to a tracker for a client");
                return Err(if is_exhausted(&error) {
                    Dropped::Full
                } else {
                    Dropped::Unsent
                });
            }
        };
        let session = Session {
            upstream,
            recent: [entry; RECENT],
        };
        Ok(self.sessions.insert(client, session, now))
    }

    /// Passes the tracker's answers to one client on.
    fn take_answers(&mut self, index: usize, scratch: &mut Scratch, now: Instant) -> bool {
        for _ in 0..BATCH {
            let Some((client, session)) = self.sessions.get(index) else {
                return false;
            };
            let length = match session.upstream.recv(&mut scratch.datagram) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    self.counters.refused();
                    continue;
                }
                Err(error) => {
                    tracing::trace!(%error, "cannot receive from a tracker");
                    continue;
                }
            };
            let datagram = scratch.datagram.get(..length).unwrap_or_default();
            let Some(answer) = packet::answer(datagram) else {
                self.counters.dropped(Dropped::NoAnswer);
                continue;
            };
            let mut newest_first = session.recent.iter().rev();
            let newest = session.recent[RECENT - 1];
            let (_, place, asked) = newest_first
                .find(|(transaction, ..)| *transaction == answer.transaction)
                .copied()
                .unwrap_or(newest);
            let listener = self
                .listeners
                .get(place)
                .and_then(|place| place.listener.as_ref());
            let sent = listener.map(|listener| listener.answer(datagram, client, asked));
            match sent {
                Some(Ok(())) => self.counters.answer(answer.to, length),
                _ => self.counters.dropped(Dropped::Unsent),
            }
            if matches!(answer.to, Some(Action::Announce | Action::Scrape)) {
                self.sessions.establish(index, now);
            }
        }
        true
    }
}

fn open(
    mode: UdpRelayMode,
    client: SocketAddr,
    backend: SocketAddr,
    registry: &Registry,
    token: Token,
) -> io::Result<UdpSocket> {
    let upstream = socket::upstream(mode, client, backend)?;
    let fd = upstream.as_raw_fd();
    registry.register(&mut SourceFd(&fd), token.into(), Interest::READABLE)?;
    Ok(upstream)
}

/// Whether process or machine have no descriptors left.
fn is_exhausted(error: &io::Error) -> bool {
    use nix::libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    matches!(
        error.raw_os_error(),
        Some(EMFILE | ENFILE | ENOBUFS | ENOMEM)
    )
}

/// Logs a change of a way, which is seldom.
fn tell(wanted: &Wanted, before: UdpWayState, way: &Way) {
    let (relay, backend, after) = (wanted.name(), way.backend, way.state());
    if before == after {
        return;
    }
    match after {
        UdpWayState::Preserved => {
            tracing::info!(%relay, %backend, "the tracker sees the addresses of clients");
        }
        UdpWayState::Unlisted(why) => {
            tracing::warn!(%relay, %backend, ?why, "answers to clients come back; the tracker does not tell whose addresses it sees");
        }
        UdpWayState::Silent => {
            tracing::warn!(%relay, %backend, "the tracker answers nobody");
        }
        _ => {
            tracing::warn!(%relay, %backend, why = ?after, "nothing is relayed this way, because addresses of clients would be lost");
        }
    }
}
