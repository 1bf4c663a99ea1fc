//! Whether a way to the tracker preserves the addresses of clients: tried, not believed.
//!
//! A connect request is sent as if it came from an address of the documentation (RFC 5737, RFC 3849), in the manner
//! of the relay's mode, and another one as ourselves. If the first is answered to us, the answers to clients are as
//! well. If only the second is, the way back is missing; if neither, the tracker is.
//! Tried at the start, then every minute, and oftener while it fails.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, RawFd};
use std::time::{Duration, Instant};

use tidegate_model::{UdpRelayMode, UdpWay, UdpWayState};

use super::{packet, proxy_header, socket};

/// Between attempts while all is well.
const CALM: Duration = Duration::from_mins(1);
/// Longest time between attempts otherwise.
const UNREST: Duration = Duration::from_secs(15);
/// How long answers are waited for before the requests are sent again.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often they are sent.
const TIMES: u32 = 3;

const STRANGER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const STRANGER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Which of the two requests a socket belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// As if from somebody else.
    Stranger,
    /// As ourselves.
    Own,
}

/// A way and what is known of it.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) backend: SocketAddr,
    mode: UdpRelayMode,
    state: UdpWayState,
    next: Instant,
    failures: u32,
    trial: Option<Trial>,
}

#[derive(Debug)]
struct Trial {
    stranger: UdpSocket,
    own: UdpSocket,
    transaction: u32,
    sent: u32,
    sent_at: Instant,
    /// Whether the tracker answered ourselves.
    answered: bool,
}

impl Way {
    pub(super) fn new(backend: SocketAddr, mode: UdpRelayMode, now: Instant) -> Self {
        Self {
            backend,
            mode,
            state: UdpWayState::Trying,
            next: now,
            failures: 0,
            trial: None,
        }
    }

    pub(super) fn state(&self) -> UdpWayState {
        self.state
    }

    pub(super) fn view(&self) -> UdpWay {
        UdpWay {
            backend: self.backend,
            state: self.state,
        }
    }

    /// Begins anew what was under way; what is known stays known until then.
    pub(super) fn restart(&mut self, now: Instant) {
        if self.trial.take().is_some() {
            self.next = now;
        }
    }

    /// Begins, repeats or gives up a trial, whichever is due. Gives sockets to wait on when one begins.
    pub(super) fn turn(&mut self, now: Instant) -> Option<[(Probe, RawFd); 2]> {
        if let Some(trial) = &mut self.trial {
            if now.saturating_duration_since(trial.sent_at) < PATIENCE {
                return None;
            }
            if trial.sent < TIMES {
                trial.send(self.mode, self.backend, now);
            } else {
                let found = verdict(self.state, self.mode, trial.answered);
                self.conclude(found, now);
            }
            return None;
        }
        if now < self.next {
            return None;
        }
        match Trial::begin(self.mode, self.backend, now) {
            Ok(trial) => {
                let sockets = [
                    (Probe::Stranger, trial.stranger.as_raw_fd()),
                    (Probe::Own, trial.own.as_raw_fd()),
                ];
                self.trial = Some(trial);
                Some(sockets)
            }
            Err(error) => {
                let found = match error.kind() {
                    io::ErrorKind::PermissionDenied => UdpWayState::NotPermitted,
                    // No route of this family, no descriptors: as good as no tracker.
                    _ => UdpWayState::NoAnswer,
                };
                tracing::debug!(backend = %self.backend, %error, "cannot try the way to a tracker");
                self.conclude(found, now);
                None
            }
        }
    }

    /// Reads what came to a socket of the trial.
    pub(super) fn hear(&mut self, probe: Probe, now: Instant) {
        let Some(trial) = &mut self.trial else {
            return;
        };
        match (probe, trial.heard(probe)) {
            (_, false) => {}
            (Probe::Stranger, true) => self.conclude(UdpWayState::Preserved, now),
            (Probe::Own, true) => trial.answered = true,
        }
    }

    fn conclude(&mut self, found: UdpWayState, now: Instant) {
        self.trial = None;
        self.state = found;
        if found == UdpWayState::Preserved {
            self.failures = 0;
            self.next = now + CALM;
            return;
        }
        let pause = Duration::from_secs(1 << self.failures.min(4));
        self.failures = self.failures.saturating_add(1);
        self.next = now + pause.min(UNREST);
    }
}

/// What a trial without an answer to the stranger means.
fn verdict(before: UdpWayState, mode: UdpRelayMode, own_answered: bool) -> UdpWayState {
    match (own_answered, mode) {
        (true, UdpRelayMode::Transparent) => UdpWayState::NoWayBack,
        (true, UdpRelayMode::ProxyProtocol) => UdpWayState::HeaderNotRead,
        // A tracker that is started again is found at the same end of the same way.
        (false, _) if before.is_open() => UdpWayState::Silent,
        (false, _) => UdpWayState::NoAnswer,
    }
}

impl Trial {
    fn begin(mode: UdpRelayMode, backend: SocketAddr, now: Instant) -> io::Result<Self> {
        let stranger = SocketAddr::new(stranger(backend), 0);
        let mut trial = Self {
            stranger: socket::upstream(mode, stranger, backend)?,
            own: socket::upstream(UdpRelayMode::ProxyProtocol, stranger, backend)?,
            transaction: fastrand::u32(..),
            sent: 0,
            sent_at: now,
            answered: false,
        };
        trial.send(mode, backend, now);
        Ok(trial)
    }

    /// Lost requests are sent again, and a refusal is as good as silence, so nothing is made of errors.
    fn send(&mut self, mode: UdpRelayMode, backend: SocketAddr, now: Instant) {
        let request = packet::connect(self.transaction);
        let mut datagram = [0; proxy_header::LONGEST];
        let mut length = 0;
        if mode == UdpRelayMode::ProxyProtocol {
            let client = SocketAddr::new(stranger(backend), 6881);
            length = proxy_header::write(&mut datagram, client, backend.ip(), backend.port());
        }
        let header = datagram.get(..length).unwrap_or_default();
        let _ = self.stranger.send(&[header, &request].concat());
        let _ = self.own.send(&request);
        self.sent += 1;
        self.sent_at = now;
    }

    fn heard(&self, probe: Probe) -> bool {
        let socket = match probe {
            Probe::Stranger => &self.stranger,
            Probe::Own => &self.own,
        };
        let mut buffer = [0; 64];
        // An error may stand before an answer.
        for _ in 0..8 {
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    let answer = buffer.get(..length).and_then(packet::answer);
                    if answer.is_some_and(|answer| answer.transaction == self.transaction) {
                        return true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => {}
            }
        }
        false
    }
}

fn stranger(backend: SocketAddr) -> IpAddr {
    match backend {
        SocketAddr::V4(_) => STRANGER_V4.into(),
        SocketAddr::V6(_) => STRANGER_V6.into(),
    }
}

#[cfg(test)]
mod tests {
    use UdpRelayMode::{ProxyProtocol, Transparent};
    use UdpWayState::{
        HeaderNotRead, NoAnswer, NoWayBack, NotPermitted, Preserved, Silent, Trying,
    };

    use super::*;

    #[test]
    fn silence_is_told_from_a_way_that_does_not_come_back() {
        for (before, mode, answered, found) in [
            (Trying, Transparent, true, NoWayBack),
            (Trying, Transparent, false, NoAnswer),
            (Trying, ProxyProtocol, true, HeaderNotRead),
            (Trying, ProxyProtocol, false, NoAnswer),
            (Preserved, Transparent, true, NoWayBack),
            (Preserved, Transparent, false, Silent),
            (Silent, ProxyProtocol, false, Silent),
            (NotPermitted, Transparent, false, NoAnswer),
        ] {
            assert_eq!(
                verdict(before, mode, answered),
                found,
                "{before:?} {mode:?}"
            );
        }
    }

    #[test]
    fn attempts_become_fewer_while_it_fails() {
        let start = Instant::now();
        let mut way = Way::new("127.0.0.1:6969".parse().unwrap(), Transparent, start);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            way.conclude(NoAnswer, start);
            pauses.push((way.next - start).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 15, 15]);
        way.conclude(Preserved, start);
        assert_eq!(way.next, start + CALM);
    }
}
