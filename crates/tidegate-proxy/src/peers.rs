//! Who is on the other end of connections: counted for a while, so that somebody can see whether the addresses of
//! clients arrive here or were replaced on the way.
//!
//! Bounded whatever comes: counters, and a few addresses of private networks. Told by [`Peers::observe`] and
//! judged elsewhere.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate_model::ObservedPeers;

/// Counts of before this are forgotten, half of them at a time.
const WINDOW: Duration = Duration::from_secs(600);

/// What a connection turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Began {
    /// A client, or what looks like one.
    Directly,
    /// With a PROXY header that was read.
    Proxied,
    /// From a peer that should send a PROXY header, without one.
    Unproxied,
    /// With a PROXY header where none is read.
    Unexpectedly,
}

/// The counts.
#[derive(Debug)]
pub(crate) struct Peers(Mutex<Halves>);

#[derive(Debug)]
struct Halves {
    since: Instant,
    current: ObservedPeers,
    before: ObservedPeers,
}

impl Default for Peers {
    fn default() -> Self {
        Self(Mutex::new(Halves {
            since: Instant::now(),
            current: ObservedPeers::default(),
            before: ObservedPeers::default(),
        }))
    }
}

impl Peers {
    /// Counts one connection, once.
    pub(crate) fn note(&self, peer: IpAddr, began: Began) {
        self.lock(Instant::now()).current.count(peer, began);
    }

    pub(crate) fn observe(&self) -> ObservedPeers {
        let halves = self.lock(Instant::now());
        let mut sum = halves.before.clone();
        let current = &halves.current;
        sum.public += current.public;
        sum.private += current.private;
        sum.proxied += current.proxied;
        sum.unproxied += current.unproxied;
        sum.unexpected += current.unexpected;
        for address in &current.private_addresses {
            sum.remember(*address);
        }
        sum
    }

    /// Begins anew: what was counted says nothing of what comes.
    pub(crate) fn forget(&self) {
        let mut halves = self.lock(Instant::now());
        halves.current = ObservedPeers::default();
        halves.before = ObservedPeers::default();
    }

    fn lock(&self, now: Instant) -> MutexGuard<'_, Halves> {
        let mut halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let age = now.saturating_duration_since(halves.since);
        if age >= WINDOW {
            let current = std::mem::take(&mut halves.current);
            halves.before = if age < WINDOW * 2 {
                current
            } else {
                ObservedPeers::default()
            };
            halves.since = now;
        }
        halves
    }
}

/// Only here, because nobody else counts.
trait Count {
    fn count(&mut self, peer: IpAddr, began: Began);
}

impl Count for ObservedPeers {
    fn count(&mut self, peer: IpAddr, began: Began) {
        match began {
            // The machine itself: probes and tools.
            Began::Directly if peer.is_loopback() => {}
            Began::Directly if is_private(peer) => {
                self.private += 1;
                self.remember(peer);
            }
            Began::Directly => self.public += 1,
            Began::Proxied => self.proxied += 1,
            Began::Unproxied => self.unproxied += 1,
            Began::Unexpectedly => self.unexpected += 1,
        }
    }
}

/// RFC 1918, RFC 6598, RFC 4193 and link-local addresses.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            v4.is_private() || v4.is_link_local() || (first == 100 && second & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_counted_by_what_their_addresses_are() {
        let peers = Peers::default();
        for (address, began) in [
            ("203.0.113.7", Began::Directly),
            ("2001:db8::7", Began::Directly),
            ("10.42.0.1", Began::Directly),
            ("10.42.0.1", Began::Directly),
            ("fd00::1", Began::Directly),
            ("100.64.0.1", Began::Directly),
            ("127.0.0.1", Began::Directly),
            ("10.0.0.2", Began::Proxied),
            ("10.0.0.2", Began::Unproxied),
            ("203.0.113.9", Began::Unexpectedly),
        ] {
            peers.note(address.parse().unwrap(), began);
        }
        let seen = peers.observe();
        let addresses = ["10.42.0.1", "100.64.0.1", "fd00::1"];
        let expected = ObservedPeers {
            public: 2,
            private: 4,
            private_addresses: addresses.map(|it| it.parse().unwrap()).to_vec(),
            proxied: 1,
            unproxied: 1,
            unexpected: 1,
        };
        assert_eq!(seen, expected);
    }

    #[test]
    fn what_is_old_is_forgotten_and_addresses_are_few() {
        let peers = Peers::default();
        for last in 0..=255 {
            peers.note(IpAddr::from([10, 0, 0, last]), Began::Directly);
        }
        let seen = peers.observe();
        assert_eq!(seen.private, 256);
        assert_eq!(seen.private_addresses.len(), ObservedPeers::ADDRESSES);
        let later = Instant::now() + WINDOW;
        drop(peers.lock(later));
        assert_eq!(peers.observe().private, 256);
        drop(peers.lock(later + WINDOW * 2));
        assert_eq!(peers.observe(), ObservedPeers::default());
        peers.note(IpAddr::from([10, 0, 0, 1]), Began::Directly);
        peers.forget();
        assert_eq!(peers.observe(), ObservedPeers::default());
    }
}
