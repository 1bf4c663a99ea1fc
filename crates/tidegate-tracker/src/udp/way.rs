//! Whether a way to the tracker preserves the addresses of clients: tried, not believed.
//!
//! [`trial`](super::trial) asks the tracker as somebody else, [`evidence`](super::evidence) judges what came back.
//! Here is when it is tried, at the start, then every minute, and oftener while nothing is proven, and what is known
//! meanwhile.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use tidegate_model::{UdpRelayMode, UdpUnlisted, UdpWay, UdpWayState};

use super::evidence::{Heard, Listing, verdict};
use super::trial::{Probe, Trial, Turn};

/// Between attempts while all is well.
const CALM: Duration = Duration::from_mins(1);
/// Longest time between attempts otherwise.
const UNREST: Duration = Duration::from_secs(15);

/// A way and what is known of it.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) backend: SocketAddr,
    mode: UdpRelayMode,
    /// Of a torrent that nobody has; always the same, so that trackers do not fill with them.
    info_hash: [u8; 20],
    state: UdpWayState,
    /// The replaced address that was seen, until something else is.
    replaced: Option<UdpWayState>,
    next: Instant,
    failures: u32,
    trial: Option<Trial>,
}

impl Way {
    pub(super) fn new(backend: SocketAddr, mode: UdpRelayMode, now: Instant) -> Self {
        let mut info_hash = [0; 20];
        fastrand::fill(&mut info_hash);
        Self {
            backend,
            mode,
            info_hash,
            state: UdpWayState::Trying,
            replaced: None,
            next: now,
            failures: 0,
            trial: None,
        }
    }

    pub(super) fn state(&self) -> UdpWayState {
        self.state
    }

    #[cfg(test)]
    pub(super) fn is_being_tried(&self) -> bool {
        self.trial.is_some()
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
    pub(super) fn turn(&mut self, now: Instant) -> Option<[(Probe, RawFd); 3]> {
        if let Some(trial) = &mut self.trial {
            let turn = trial.turn(now);
            self.go_on(turn, now);
            return None;
        }
        if now < self.next {
            return None;
        }
        match Trial::begin(self.mode, self.backend, self.info_hash, now) {
            Ok(trial) => {
                let sockets = trial.sockets();
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
        if let Some(trial) = &mut self.trial {
            let turn = trial.hear(probe, now);
            self.go_on(turn, now);
        }
    }

    fn go_on(&mut self, turn: Turn, now: Instant) {
        match turn {
            Turn::Going => {}
            Turn::Found(heard) => self.find(heard, now),
            Turn::Over => self.trial = None,
        }
    }

    fn find(&mut self, heard: Heard, now: Instant) {
        let found = verdict(self.state, self.replaced, self.mode, heard);
        if let Heard::Back(listing) = heard {
            match listing {
                Listing::Other { .. } => self.replaced = Some(found),
                Listing::Same | Listing::Unknown(UdpUnlisted::Refused) => self.replaced = None,
                Listing::Unknown(UdpUnlisted::NoPeers | UdpUnlisted::Unanswered) => {}
            }
        }
        self.conclude(found, now);
        if let Some(trial) = &mut self.trial
            && !trial.leave(now)
        {
            self.trial = None;
        }
    }

    fn conclude(&mut self, found: UdpWayState, now: Instant) {
        self.state = found;
        // Of those that will not tell, nothing else is to be expected.
        let told = UdpWayState::Unlisted(UdpUnlisted::Unanswered) != found;
        if found.is_open() && found != UdpWayState::Silent && told {
            self.failures = 0;
            self.next = now + CALM;
            return;
        }
        let pause = Duration::from_secs(1 << self.failures.min(4));
        self.failures = self.failures.saturating_add(1);
        self.next = now + pause.min(UNREST);
    }
}

#[cfg(test)]
mod tests {
    use UdpRelayMode::Transparent;
    use UdpWayState::{NoAnswer, Preserved};

    use super::*;

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
