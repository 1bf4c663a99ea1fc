//! How often a client may come: the generic cell rate algorithm, one cell per key.
//!
//! A cell is one number, the theoretical arrival time, so a changed quota applies at once and state
//! survives snapshots by the limit's id. Written out instead of taken from a library, because the number of
//! keys must be bounded: a client that can invent keys (a header, a /48 of IPv6) must not fill the memory.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};
use tidegate_model::{RateLimit, RateLimitKey};

use super::concurrency::client_group;

const SHARDS: usize = 16;
const KEYS_PER_SHARD: usize = 4096;

/// The cells of every rate limit, shared by all workers.
#[derive(Debug)]
pub(crate) struct RateLimits {
    start: Instant,
    hasher: RandomState,
    limits: RwLock<HashMap<Arc<str>, Arc<Cells>>>,
}

/// Theoretical arrival times by hashed key, in nanoseconds since the start.
#[derive(Debug, Default)]
struct Cells {
    shards: [Mutex<HashMap<u64, u64>>; SHARDS],
}

/// The request comes too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooSoon {
    /// After which it would pass.
    pub wait: Duration,
}

// === impl TooSoon ===

impl TooSoon {
    /// Whole seconds, rounded up, for Retry-After (RFC 9110 §10.2.3).
    pub(crate) fn retry_after(self) -> HeaderValue {
        let rounded = self.wait.as_nanos().div_ceil(1_000_000_000);
        HeaderValue::from(u64::try_from(rounded).unwrap_or(u64::MAX).max(1))
    }
}

// === impl RateLimits ===

impl RateLimits {
    /// No state yet; `start` is the zero of its clock.
    pub(crate) fn new(start: Instant) -> Self {
        Self {
            start,
            hasher: RandomState::new(),
            limits: RwLock::default(),
        }
    }

    /// Counts one request, or says when it may come again. What is refused is not counted.
    pub(crate) fn check(
        &self,
        limit: &RateLimit,
        client: IpAddr,
        headers: &HeaderMap,
        now: Instant,
    ) -> Result<(), TooSoon> {
        let key = match &limit.key {
            RateLimitKey::ClientIp => self.hasher.hash_one(client_group(client)),
            RateLimitKey::Header(name) => self.hasher.hash_one(headers.get(name)),
            RateLimitKey::Route => 0,
        };
        let now = nanoseconds(now.saturating_duration_since(self.start));
        let interval = nanoseconds(limit.period) / u64::from(limit.requests.max(1));
        let tolerance = interval.saturating_mul(u64::from(limit.burst.max(1) - 1));
        self.cells(&limit.id)
            .take(key, now, interval.max(1), tolerance)
    }

    /// Forgets limits that no snapshot names any more.
    pub(crate) fn retain(&self, is_used: impl Fn(&str) -> bool) {
        self.limits
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|id, _| is_used(id));
    }

    fn cells(&self, id: &Arc<str>) -> Arc<Cells> {
        let known = self.limits.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(cells) = known.get(id) {
            return Arc::clone(cells);
        }
        drop(known);
        let mut limits = self.limits.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(limits.entry(Arc::clone(id)).or_default())
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

// === impl Cells ===

impl Cells {
    fn take(&self, key: u64, now: u64, interval: u64, tolerance: u64) -> Result<(), TooSoon> {
        let [first, ..] = key.to_be_bytes();
        let mut shard = self.shards[usize::from(first) % SHARDS]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let arrival = shard.get(&key).map_or(now, |arrival| now.max(*arrival));
        let ahead = arrival - now;
        if ahead > tolerance {
            return Err(TooSoon {
                wait: Duration::from_nanos(ahead - tolerance),
            });
        }
        if shard.len() >= KEYS_PER_SHARD && !shard.contains_key(&key) {
            make_room(&mut shard, now);
        }
        shard.insert(key, arrival.saturating_add(interval));
        Ok(())
    }
}

/// Drops cells that are full again; if there are too few, the half that will be first.
fn make_room(shard: &mut HashMap<u64, u64>, now: u64) {
    shard.retain(|_, arrival| *arrival > now);
    if shard.len() > KEYS_PER_SHARD / 2 {
        let mut arrivals: Vec<u64> = shard.values().copied().collect();
        let middle = arrivals.len() / 2;
        let (_, median, _) = arrivals.select_nth_unstable(middle);
        let median = *median;
        shard.retain(|_, arrival| *arrival > median);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use http::HeaderName;

    use super::*;

    fn limit(key: RateLimitKey) -> RateLimit {
        RateLimit {
            id: "default/app/0".into(),
            requests: 10,
            period: Duration::from_secs(1),
            burst: 3,
            key,
        }
    }

    fn client(last: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + last).into()
    }

    #[test]
    fn a_burst_passes_then_the_rate_holds() {
        let start = Instant::now();
        let limits = RateLimits::new(start);
        let limit = limit(RateLimitKey::ClientIp);
        let at = |millis: u64, who: u32| {
            let now = start + Duration::from_millis(millis);
            limits.check(&limit, client(who), &HeaderMap::new(), now)
        };
        for _ in 0..3 {
            assert_eq!(at(0, 1), Ok(()));
        }
        let wait = Duration::from_millis(100);
        assert_eq!(at(0, 1), Err(TooSoon { wait }));
        assert_eq!(at(0, 2), Ok(()));
        assert_eq!(
            at(99, 1),
            Err(TooSoon {
                wait: Duration::from_millis(1)
            })
        );
        assert_eq!(at(100, 1), Ok(()));
        assert!(at(100, 1).is_err());
        assert_eq!(at(5000, 1), Ok(()));
    }

    #[test]
    fn the_long_run_rate_is_the_quota() {
        let start = Instant::now();
        let limits = RateLimits::new(start);
        let limit = limit(RateLimitKey::Route);
        let passed = (0..10_000)
            .filter(|i| {
                let now = start + Duration::from_millis(*i);
                limits
                    .check(&limit, client(1), &HeaderMap::new(), now)
                    .is_ok()
            })
            .count();
        assert!((100..=103).contains(&passed), "{passed}");
    }

    #[test]
    fn keys_are_what_the_limit_says() {
        let start = Instant::now();
        let limits = RateLimits::new(start);
        let name = HeaderName::from_static("x-key");
        let by_header = limit(RateLimitKey::Header(name.clone()));
        let with = |value: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.extend(value.map(|v| (name.clone(), HeaderValue::from_static(v))));
            (0..9)
                .filter(|who| {
                    limits
                        .check(&by_header, client(*who), &headers, start)
                        .is_ok()
                })
                .count()
        };
        assert_eq!(
            (with(Some("a")), with(Some("b")), with(None), with(None)),
            (3, 3, 3, 0)
        );
    }

    #[test]
    fn state_survives_until_the_limit_is_gone() {
        let start = Instant::now();
        let limits = RateLimits::new(start);
        let strict = RateLimit {
            burst: 1,
            ..limit(RateLimitKey::Route)
        };
        let check = || limits.check(&strict.clone(), client(1), &HeaderMap::new(), start);
        assert!(check().is_ok());
        limits.retain(|id| id == "default/app/0");
        assert!(check().is_err());
        limits.retain(|_| false);
        assert!(check().is_ok());
    }

    #[test]
    fn invented_keys_do_not_fill_the_memory() {
        let start = Instant::now();
        let limits = RateLimits::new(start);
        let limit = RateLimit {
            burst: 1,
            period: Duration::from_secs(3600),
            ..limit(RateLimitKey::ClientIp)
        };
        for who in 0..200_000 {
            let _ = limits.check(&limit, client(who), &HeaderMap::new(), start);
        }
        let cells = limits.cells(&limit.id);
        for shard in &cells.shards {
            assert!(shard.lock().unwrap().len() <= KEYS_PER_SHARD);
        }
    }

    #[test]
    fn retry_after_is_rounded_up() {
        let wait = |nanos| TooSoon {
            wait: Duration::from_nanos(nanos),
        };
        assert_eq!(wait(1).retry_after(), "1");
        assert_eq!(wait(1_000_000_000).retry_after(), "1");
        assert_eq!(wait(1_000_000_001).retry_after(), "2");
    }
}
