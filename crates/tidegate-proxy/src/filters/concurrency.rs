//! How much one client may have open at once: connections to the edge, requests to a rule.
//!
//! An entry exists only while something of that client is open, so the maps are bounded by the number of
//! connections and streams, which have limits of their own.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SHARDS: usize = 16;

/// What counts as one client: an IPv4 address, or the /64 that an IPv6 customer gets.
pub(crate) fn client_group(client: IpAddr) -> u64 {
    match client.to_canonical() {
        // Cannot meet an IPv6 prefix: those below ::/32 are not assigned.
        IpAddr::V4(ip) => u64::from(ip.to_bits()),
        IpAddr::V6(ip) => u64::try_from(ip.to_bits() >> 64).unwrap_or_default(),
    }
}

/// Counts what is open per scope and client. Shared by all workers, because a client's connections land on
/// any of them; the shards keep them out of each other's way.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    hasher: RandomState,
    shards: [Mutex<HashMap<u64, u32>>; SHARDS],
}

/// Counts as open until dropped.
#[derive(Debug)]
pub(crate) struct InFlightGuard {
    counts: Arc<InFlight>,
    key: u64,
}

// === impl InFlight ===

impl InFlight {
    /// Takes one of `limit` places of the client within the scope (a rule, or `""` for connections).
    pub(crate) fn try_enter(
        self: &Arc<Self>,
        scope: &str,
        client: IpAddr,
        limit: usize,
    ) -> Option<InFlightGuard> {
        let key = self.hasher.hash_one((scope, client_group(client)));
        let mut shard = self.shard(key);
        let count = shard.entry(key).or_insert(0);
        if usize::try_from(*count).is_ok_and(|count| count >= limit) {
            if *count == 0 {
                shard.remove(&key);
            }
            return None;
        }
        *count += 1;
        Some(InFlightGuard {
            counts: Arc::clone(self),
            key,
        })
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, HashMap<u64, u32>> {
        let [first, ..] = key.to_be_bytes();
        self.shards[usize::from(first) % SHARDS]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl InFlightGuard ===

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let mut shard = self.counts.shard(self.key);
        if let Some(count) = shard.get_mut(&self.key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                shard.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn entries(counts: &InFlight) -> usize {
        counts.shards.iter().map(|s| s.lock().unwrap().len()).sum()
    }

    #[test]
    fn a_client_gets_its_places_back() {
        let counts = Arc::new(InFlight::default());
        let client = ip("203.0.113.7");
        let first = counts.try_enter("", client, 2).unwrap();
        let _second = counts.try_enter("", ip("::ffff:203.0.113.7"), 2).unwrap();
        assert!(counts.try_enter("", client, 2).is_none());
        assert!(counts.try_enter("", ip("203.0.113.8"), 2).is_some());
        assert!(counts.try_enter("other", client, 2).is_some());
        drop(first);
        assert!(counts.try_enter("", client, 2).is_some());
        assert_eq!(entries(&counts), 1);
        assert!(counts.try_enter("none", client, 0).is_none());
        assert_eq!(entries(&counts), 1);
    }

    #[test]
    fn an_ipv6_customer_is_one_client() {
        assert_eq!(
            client_group(ip("2001:db8::1")),
            client_group(ip("2001:db8::ffff:1"))
        );
        assert_ne!(
            client_group(ip("2001:db8::1")),
            client_group(ip("2001:db8:0:1::1"))
        );
        assert_ne!(client_group(ip("10.0.0.1")), client_group(ip("10.0.0.2")));
    }
}
