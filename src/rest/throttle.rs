//! How often somebody may fail to log in. Pure: time is passed in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Failures are forgotten after this.
const WINDOW: Duration = Duration::from_mins(15);
/// Failures of one address with one name.
const OF_PAIR: u32 = 5;
/// Failures of one address (IPv6 by /64).
const OF_ADDRESS: u32 = 20;
/// Failures with one name from anywhere. High, because whoever knows a name could lock its owner out.
const OF_NAME: u32 = 100;
/// Counters at one time.
const COUNTERS: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Pair(IpAddr, String),
    Address(IpAddr),
    Name(String),
}

/// Counts failures.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    failures: HashMap<Key, (u32, Instant)>,
}

impl Throttle {
    /// How long to wait before the next attempt, if there have been too many.
    pub(super) fn wait(&self, address: IpAddr, name: &str, now: Instant) -> Option<Duration> {
        keys(address, name)
            .iter()
            .filter_map(|(key, limit)| {
                let (count, since) = self.failures.get(key)?;
                let left = WINDOW.checked_sub(now.saturating_duration_since(*since))?;
                (*count >= *limit).then_some(left)
            })
            .max()
    }

    /// Counts a failure.
    pub(super) fn failed(&mut self, address: IpAddr, name: &str, now: Instant) {
        let fresh = |since: Instant| now.saturating_duration_since(since) < WINDOW;
        if self.failures.len() + 3 > COUNTERS {
            self.failures.retain(|_, (_, since)| fresh(*since));
        }
        for (key, _) in keys(address, name) {
            if self.failures.len() >= COUNTERS && !self.failures.contains_key(&key) {
                // So many at once is an attack: the counters that are there go on counting.
                continue;
            }
            let (count, since) = self.failures.entry(key).or_insert((0, now));
            if !fresh(*since) {
                (*count, *since) = (0, now);
            }
            *count = count.saturating_add(1);
        }
    }

    /// Whoever knows the password may have mistyped it before.
    pub(super) fn succeeded(&mut self, address: IpAddr, name: &str) {
        self.failures
            .remove(&Key::Pair(network(address), name.to_owned()));
    }
}

fn keys(address: IpAddr, name: &str) -> [(Key, u32); 3] {
    let address = network(address);
    [
        (Key::Pair(address, name.to_owned()), OF_PAIR),
        (Key::Address(address), OF_ADDRESS),
        (Key::Name(name.to_owned()), OF_NAME),
    ]
}

/// One customer has a whole /64 of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn five_failures_of_a_pair_close_the_door_for_a_while() {
        let start = Instant::now();
        let mut throttle = Throttle::default();
        let (here, there) = (address("2001:db8::1"), address("2001:db8:0:1::1"));
        for second in 0..5 {
            assert_eq!(throttle.wait(here, "anna", start), None, "{second}");
            throttle.failed(here, "anna", start);
        }
        let later = start + Duration::from_mins(5);
        assert_eq!(
            throttle.wait(here, "anna", later),
            Some(Duration::from_mins(10))
        );
        assert_eq!(
            throttle.wait(address("2001:db8::2"), "anna", later),
            Some(Duration::from_mins(10))
        );
        assert_eq!(throttle.wait(there, "anna", later), None);
        assert_eq!(throttle.wait(here, "bert", later), None);
        assert_eq!(
            throttle.wait(here, "anna", start + WINDOW),
            None.or(Some(Duration::ZERO))
        );
        throttle.succeeded(here, "anna");
        assert_eq!(throttle.wait(here, "anna", later), None);
    }

    #[test]
    fn many_names_or_many_addresses_are_noticed_and_bounded() {
        let now = Instant::now();
        let mut throttle = Throttle::default();
        for number in 0..20 {
            throttle.failed(address("192.0.2.1"), &format!("name{number}"), now);
        }
        assert!(throttle.wait(address("192.0.2.1"), "other", now).is_some());
        for number in 0..100_u8 {
            throttle.failed(address(&format!("198.51.100.{number}")), "anna", now);
        }
        assert!(throttle.wait(address("203.0.113.1"), "anna", now).is_some());
        for number in 0..10_000 {
            throttle.failed(address("192.0.2.7"), &format!("flood{number}"), now);
        }
        assert!(throttle.failures.len() <= COUNTERS);
        assert!(throttle.wait(address("203.0.113.1"), "anna", now).is_some());
    }
}
