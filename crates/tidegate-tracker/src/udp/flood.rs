//! How often one network may ask for connection ids.
//!
//! Every connect request costs the relay a session, so they are what a flood is made of. An IPv4 address counts by
//! itself, because many customers of one provider share a /24 but one customer seldom has more than an address; an
//! IPv6 network counts as /56, which is what a household gets (RIPE-690) and whose addresses it may all use.
//!
//! Memory is fixed: two rows of token buckets, which a network shares with whoever hashes there too. It is refused
//! only when both of its buckets are empty, and nobody outside can know who shares with whom.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Buckets in each row.
const BUCKETS: usize = 1 << 15;
/// A network that was quiet may ask so many seconds' worth at once.
const BURST: f32 = 5.0;

/// Token buckets of all networks.
#[derive(Debug)]
pub struct FloodLimit {
    per_second: f32,
    started: Instant,
    rows: [Row; 2],
}

#[derive(Debug)]
struct Row {
    hasher: RandomState,
    buckets: Vec<Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f32,
    /// Seconds since the start.
    at: f32,
}

impl FloodLimit {
    /// So many connect requests in a second from one network; five times as many at once.
    pub fn new(per_second: u32, now: Instant) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "rates stay below 2^23")]
        let per_second = per_second as f32;
        let row = || Row {
            hasher: RandomState::new(),
            buckets: vec![
                Bucket {
                    tokens: per_second * BURST,
                    at: 0.0,
                };
                BUCKETS
            ],
        };
        Self {
            per_second,
            started: now,
            rows: [row(), row()],
        }
    }

    /// Whether this address may ask now.
    pub fn admit(&mut self, client: IpAddr, now: Instant) -> bool {
        let network = network(client);
        let at = now
            .checked_duration_since(self.started)
            .unwrap_or(Duration::ZERO)
            .as_secs_f32();
        let most = self.per_second * BURST;
        let mut admitted = false;
        for row in &mut self.rows {
            let place = row.hasher.hash_one(network);
            let place = usize::try_from(place % BUCKETS as u64).unwrap_or_default();
            let Some(bucket) = row.buckets.get_mut(place) else {
                continue;
            };
            let since = (at - bucket.at).max(0.0);
            bucket.tokens = (bucket.tokens + since * self.per_second).min(most);
            bucket.at = at;
            if bucket.tokens >= 1.0 {
                bucket.tokens -= 1.0;
                admitted = true;
            }
        }
        admitted
    }
}

/// The network that an address is counted with.
fn network(client: IpAddr) -> u64 {
    match client {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        // The lowest byte of the upper half is the subnet within a /56; a set top bit is no IPv4 address.
        IpAddr::V6(v6) => {
            let upper = u64::try_from(v6.to_bits() >> 64).unwrap_or_default();
            (upper >> 8) | (1 << 63)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_that_asks_too_often_is_refused_and_others_are_not() {
        let start = Instant::now();
        let mut limit = FloodLimit::new(20, start);
        let burst = (0..1000)
            .filter(|_| limit.admit(ip("203.0.113.7"), start))
            .count();
        assert_eq!(burst, 100);
        assert!(limit.admit(ip("203.0.113.8"), start));
        let later = start + Duration::from_secs(1);
        let refilled = (0..1000)
            .filter(|_| limit.admit(ip("203.0.113.7"), later))
            .count();
        assert_eq!(refilled, 20);
    }

    #[test]
    fn the_addresses_of_a_household_count_together() {
        let start = Instant::now();
        let mut limit = FloodLimit::new(20, start);
        let burst = (0..1000_u128)
            .filter(|index| {
                let upper = 0x2001_0db8_0001_0200_u128 + index % 256;
                limit.admit(
                    std::net::Ipv6Addr::from_bits((upper << 64) | index).into(),
                    start,
                )
            })
            .count();
        assert_eq!(burst, 100);
        assert!(limit.admit(ip("2001:db8:1:300::1"), start));
    }

    #[test]
    fn a_flood_from_everywhere_is_bounded_by_the_rows() {
        let start = Instant::now();
        let mut limit = FloodLimit::new(1, start);
        let admitted = (0..2_000_000_u32)
            .filter(|bits| limit.admit(std::net::Ipv4Addr::from_bits(*bits).into(), start))
            .count();
        assert!(admitted <= 2 * BUCKETS * 5, "{admitted}");
    }
}
