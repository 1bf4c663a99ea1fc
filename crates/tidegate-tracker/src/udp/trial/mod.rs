//! One trial of a way: what is sent, by whom, and what came back.
//!
//! Two peers at addresses of the documentation (RFC 5737, RFC 3849) connect in the manner of the relay's mode, and so
//! do we as ourselves. As soon as both have their connection ids, the first announces a torrent that nobody has, then
//! the second, who is told of the first. Whatever came of it, both leave again, also when the trial is given up.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, RawFd};
use std::time::{Duration, Instant};

use tidegate_model::{UdpRelayMode, UdpUnlisted};

use super::evidence::{Heard, Listing, listing};
use super::packet::{self, Action, Event};
use super::{proxy_header, socket};

/// How long answers are waited for before the requests are sent again.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often they are sent.
const TIMES: u32 = 3;
/// Longest answer that is read.
const ANSWER: usize = 2048;
/// Characters of a tracker's own words that are logged.
const WORDS: usize = 200;

/// What is added to the transaction by each step, so that answers tell what they are to.
const CONNECT: u32 = 0;
const STARTED: u32 = 1;
const STOPPED: u32 = 2;

const V4: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 1)];
const V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1),
];

/// Which socket of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// Of the peer that announces first.
    First,
    /// Of the peer that is told of the first.
    Second,
    /// As ourselves.
    Own,
}

impl Probe {
    pub(super) const ALL: [Self; 3] = [Self::First, Self::Second, Self::Own];
}

/// How a trial stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It goes on.
    Going,
    /// This was found; the peers are still to leave.
    Found(Heard),
    /// Nobody is left.
    Over,
}

#[derive(Debug)]
pub(super) struct Trial {
    mode: UdpRelayMode,
    backend: SocketAddr,
    info_hash: [u8; 20],
    peers: [Peer; 2],
    own: UdpSocket,
    own_answered: bool,
    /// The steps are counted from here.
    transaction: u32,
    sent: u32,
    sent_at: Instant,
    leaving: bool,
}

#[derive(Debug)]
struct Peer {
    socket: UdpSocket,
    /// As whom it announces.
    address: SocketAddr,
    id: [u8; 20],
    left: u64,
    stage: Stage,
}

/// How far a peer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Connected(u64),
    /// It has announced, and may or may not be in the swarm.
    Announced(u64),
    /// It is in the swarm.
    Joined(u64),
    Left,
}

// === impl Trial ===

impl Trial {
    /// Opens the sockets and asks.
    pub(super) fn begin(
        mode: UdpRelayMode,
        backend: SocketAddr,
        info_hash: [u8; 20],
        now: Instant,
    ) -> io::Result<Self> {
        let first = Peer::new(mode, backend, 0)?;
        let mut second = Peer::new(mode, backend, 1)?;
        // By their ports they are told apart where both have become one address.
        if first.address.port() == second.address.port() {
            second.address.set_port(first.address.port() ^ 1);
        }
        let mut trial = Self {
            mode,
            backend,
            info_hash,
            own: socket::upstream(UdpRelayMode::ProxyProtocol, first.address, backend)?,
            peers: [first, second],
            own_answered: false,
            transaction: fastrand::u32(..),
            sent: 0,
            sent_at: now,
            leaving: false,
        };
        trial.ask_all(now);
        Ok(trial)
    }

    /// Its sockets, to wait on.
    pub(super) fn sockets(&self) -> [(Probe, RawFd); 3] {
        Probe::ALL.map(|probe| (probe, self.socket(probe).as_raw_fd()))
    }

    /// Asks again, or gives up.
    pub(super) fn turn(&mut self, now: Instant) -> Turn {
        if now.saturating_duration_since(self.sent_at) < PATIENCE {
            return Turn::Going;
        }
        if self.sent < TIMES {
            self.ask_all(now);
            return Turn::Going;
        }
        if self.leaving {
            return Turn::Over;
        }
        let stages = self.peers.each_ref().map(|peer| peer.stage);
        Turn::Found(match stages {
            [Stage::Connecting, Stage::Connecting] if self.own_answered => Heard::Own,
            [Stage::Connecting, Stage::Connecting] => Heard::Nothing,
            [_, Stage::Joined(_)] => Heard::Back(Listing::Unknown(UdpUnlisted::NoPeers)),
            _ => Heard::Back(Listing::Unknown(UdpUnlisted::Unanswered)),
        })
    }

    /// Reads what came to a socket.
    pub(super) fn hear(&mut self, probe: Probe, now: Instant) -> Turn {
        let mut buffer = [0; ANSWER];
        let mut found = Turn::Going;
        // Until nothing is left, since the next event tells of new datagrams only. An error may stand before one.
        for _ in 0..64 {
            match self.socket(probe).recv(&mut buffer) {
                Ok(length) => {
                    let datagram = buffer.get(..length).unwrap_or_default();
                    match self.take(probe, datagram, now) {
                        Turn::Going => {}
                        turn => found = turn,
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {}
            }
        }
        found
    }

    /// The peers leave. Whether there is anybody to wait for.
    pub(super) fn leave(&mut self, now: Instant) -> bool {
        self.leaving = true;
        self.sent = 0;
        self.ask_all(now);
        !self.is_left()
    }

    fn is_left(&self) -> bool {
        let mut peers = self.peers.iter();
        peers.all(|peer| !matches!(peer.stage, Stage::Announced(_) | Stage::Joined(_)))
    }

    fn socket(&self, probe: Probe) -> &UdpSocket {
        match probe {
            Probe::First => &self.peers[0].socket,
            Probe::Second => &self.peers[1].socket,
            Probe::Own => &self.own,
        }
    }

    fn take(&mut self, probe: Probe, datagram: &[u8], now: Instant) -> Turn {
        let Some(answer) = packet::answer(datagram) else {
            return Turn::Going;
        };
        let step = answer.transaction.wrapping_sub(self.transaction);
        let at = match probe {
            Probe::First => 0,
            Probe::Second => 1,
            Probe::Own => {
                self.own_answered |= step == CONNECT;
                return Turn::Going;
            }
        };
        let before = self.peers[at].stage;
        let refused = match answer.to {
            None => true,
            Some(to) => to == Action::Announce && datagram.len() < packet::ANNOUNCED,
        };
        let after = match (step, answer.to, before) {
            (CONNECT, _, Stage::Connecting) | (STARTED, _, Stage::Announced(_)) if refused => {
                let words = String::from_utf8_lossy(datagram.get(8..).unwrap_or_default());
                let words: String = words.chars().take(WORDS).collect();
                tracing::debug!(backend = %self.backend, ?words, "a tracker refuses a trial");
                // It is in no swarm.
                Stage::Left
            }
            (CONNECT, Some(Action::Connect), Stage::Connecting) => {
                match packet::connection(datagram) {
                    Some(id) => Stage::Connected(id),
                    None => return Turn::Going,
                }
            }
            (STARTED, Some(Action::Announce), Stage::Announced(id) | Stage::Joined(id)) => {
                Stage::Joined(id)
            }
            (STOPPED, _, Stage::Announced(_) | Stage::Joined(_)) => Stage::Left,
            _ => return Turn::Going,
        };
        self.peers[at].stage = after;
        if self.leaving {
            return if self.is_left() {
                Turn::Over
            } else {
                Turn::Going
            };
        }
        match after {
            Stage::Left => {
                return Turn::Found(Heard::Back(Listing::Unknown(UdpUnlisted::Refused)));
            }
            Stage::Joined(_) if at == 1 => {
                let announced = self.peers.each_ref().map(|peer| peer.address);
                let told = packet::peers(datagram, self.backend.is_ipv6());
                match listing(announced, told) {
                    // Some need a moment: it asks again when its time has come.
                    Listing::Unknown(_) => {}
                    found => return Turn::Found(Heard::Back(found)),
                }
            }
            _ if after == before => {}
            _ => {
                self.sent = 1;
                self.sent_at = now;
                self.ask(at);
                if matches!(after, Stage::Joined(_)) {
                    self.ask(1);
                }
            }
        }
        Turn::Going
    }

    /// Asks whatever is not answered yet. Lost requests are sent again, and a refusal by the system is as good as
    /// silence, so nothing is made of errors.
    fn ask_all(&mut self, now: Instant) {
        self.sent += 1;
        self.sent_at = now;
        if !self.own_answered && !self.leaving {
            let _ = self.own.send(&packet::connect(self.transaction));
        }
        for at in 0..self.peers.len() {
            self.ask(at);
        }
    }

    fn ask(&mut self, at: usize) {
        let first_joined = matches!(self.peers[0].stage, Stage::Joined(_));
        let peer = &mut self.peers[at];
        let (connection, event) = match (peer.stage, self.leaving) {
            (Stage::Connecting, false) => {
                return peer.send(
                    self.mode,
                    self.backend,
                    &packet::connect(self.transaction.wrapping_add(CONNECT)),
                );
            }
            (Stage::Connected(_), false) if at == 1 && !first_joined => return,
            (Stage::Connected(id), false) => {
                peer.stage = Stage::Announced(id);
                (id, Event::Started)
            }
            (Stage::Announced(id), false) => (id, Event::Started),
            // Until it is told of the first.
            (Stage::Joined(id), false) if at == 1 => (id, Event::Started),
            (Stage::Announced(id) | Stage::Joined(id), true) => (id, Event::Stopped),
            (Stage::Joined(_) | Stage::Left, false)
            | (Stage::Connecting | Stage::Connected(_) | Stage::Left, true) => return,
        };
        let step = match event {
            Event::Started => STARTED,
            Event::Stopped => STOPPED,
        };
        let announce = packet::Announce {
            connection,
            transaction: self.transaction.wrapping_add(step),
            info_hash: &self.info_hash,
            peer_id: &peer.id,
            left: peer.left,
            event,
            port: peer.address.port(),
        };
        peer.send(self.mode, self.backend, &announce.datagram());
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.leaving = true;
        for at in 0..self.peers.len() {
            self.ask(at);
        }
    }
}

// === impl Peer ===

impl Peer {
    fn new(mode: UdpRelayMode, backend: SocketAddr, at: usize) -> io::Result<Self> {
        let ip: IpAddr = if backend.is_ipv6() {
            V6[at].into()
        } else {
            V4[at].into()
        };
        let socket = socket::upstream(mode, SocketAddr::new(ip, 0), backend)?;
        let port = match mode {
            UdpRelayMode::Transparent => socket.local_addr()?.port(),
            UdpRelayMode::ProxyProtocol => fastrand::u16(1024..),
        };
        let mut id = *b"-TG0001-            ";
        for byte in &mut id[8..] {
            *byte = fastrand::alphanumeric() as u8;
        }
        Ok(Self {
            socket,
            address: SocketAddr::new(ip, port),
            id,
            // One that has everything is told to one that lacks something.
            left: at as u64,
            stage: Stage::Connecting,
        })
    }

    fn send(&self, mode: UdpRelayMode, backend: SocketAddr, request: &[u8]) {
        let mut header = [0; proxy_header::LONGEST];
        let mut length = 0;
        if mode == UdpRelayMode::ProxyProtocol {
            length = proxy_header::write(&mut header, self.address, backend.ip(), backend.port());
        }
        let header = header.get(..length).unwrap_or_default();
        let _ = self.socket.send(&[header, request].concat());
    }
}

#[cfg(test)]
mod tests;
