//! Which backend, and which of its addresses, a request goes to.
//!
//! Pure choices over what the caller sees at that moment; counters, health and connections live with the
//! cluster. With no healthy address all of them are tried: a wrong probe must not take a service down.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::header::{self, HeaderMap};
use tidegate_model::{ClusterKey, LoadBalancing, WeightedBackend};

/// An address as it is at the moment of the choice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EndpointView {
    /// The address.
    pub(crate) address: SocketAddr,
    /// What it is known by over time: [`address_hash`], or a hash of the agent's process.
    pub(crate) identity: u64,
    /// Neither ejected nor failing its probes.
    pub(crate) healthy: bool,
    /// Requests in flight there.
    pub(crate) active: u32,
    /// Not the link of another worker: that one would have to be woken.
    pub(crate) near: bool,
}

/// Chooses an address. None only if there is none. `hash` is what a consistent hash looks at, `cursor` is
/// the state of round robin.
pub(crate) fn pick(
    policy: &LoadBalancing,
    endpoints: &[EndpointView],
    rng: &mut fastrand::Rng,
    hash: Option<u64>,
    cursor: &mut usize,
) -> Option<usize> {
    let usable = Usable::of(endpoints);
    if usable.count < 2 {
        return usable.nth(0);
    }
    match policy {
        LoadBalancing::LeastRequest | LoadBalancing::StickyCookie { .. } => {
            let first = rng.usize(0..usable.count);
            let second = (first + rng.usize(1..usable.count)) % usable.count;
            let (first, second) = (usable.nth(first)?, usable.nth(second)?);
            let (one, other) = (&endpoints[first], &endpoints[second]);
            Some(match other.active.cmp(&one.active) {
                Ordering::Less => second,
                // Links of one process with as much to do: this worker's own, or always the same, which is warm and
                // whose writes then carry more.
                Ordering::Equal if one.identity == other.identity => match (one.near, other.near) {
                    (true, false) => first,
                    (false, true) => second,
                    _ => first.min(second),
                },
                _ => first,
            })
        }
        LoadBalancing::RoundRobin => {
            let at = *cursor % usable.count;
            *cursor = cursor.wrapping_add(1);
            usable.nth(at)
        }
        LoadBalancing::Random => usable.nth(rng.usize(0..usable.count)),
        LoadBalancing::ConsistentHash(_) => match hash {
            Some(hash) => usable.rendezvous(hash),
            None => usable.nth(rng.usize(0..usable.count)),
        },
    }
}

/// The healthy endpoints, or all if none is healthy, without copying them.
struct Usable<'a> {
    endpoints: &'a [EndpointView],
    all: bool,
    count: usize,
}

impl<'a> Usable<'a> {
    fn of(endpoints: &'a [EndpointView]) -> Self {
        let healthy = endpoints.iter().filter(|view| view.healthy).count();
        let all = healthy == 0;
        Self {
            endpoints,
            all,
            count: if all { endpoints.len() } else { healthy },
        }
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &'a EndpointView)> {
        let all = self.all;
        self.endpoints
            .iter()
            .enumerate()
            .filter(move |(_, view)| all || view.healthy)
    }

    fn nth(&self, n: usize) -> Option<usize> {
        self.iter().nth(n).map(|(index, _)| index)
    }

    /// Highest random weight: an address that goes moves only its own keys.
    fn rendezvous(&self, key: u64) -> Option<usize> {
        self.iter()
            .max_by_key(|(_, view)| mix(key ^ view.identity))
            .map(|(index, _)| index)
    }
}

/// Hashes what a consistent hash looks at. The same in every process, so that replicas agree.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    // FNV-1a, whose weak low bits `mix` repairs.
    let folded = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(folded)
}

/// The finaliser of `SplitMix64`.
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

pub(crate) fn address_hash(address: SocketAddr) -> u64 {
    let mut bytes = [0; 18];
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes[..16].copy_from_slice(&ip.octets()),
    }
    bytes[16..].copy_from_slice(&address.port().to_be_bytes());
    hash(&bytes)
}

// === backends of a rule ===

/// Chooses a backend by weight among those that are up; the one that a sticky cookie names wins while it
/// has any weight and is up. With none up the weights alone decide. None if all weights are 0.
pub(crate) fn choose_backend(
    backends: &[WeightedBackend],
    sticky: Option<u64>,
    is_up: impl Fn(&WeightedBackend) -> bool,
) -> Option<&WeightedBackend> {
    if let [only] = backends {
        return (only.weight > 0).then_some(only);
    }
    let up: Vec<&WeightedBackend> = backends
        .iter()
        .filter(|backend| backend.weight > 0 && is_up(backend))
        .collect();
    let candidates = if up.is_empty() {
        backends
            .iter()
            .filter(|backend| backend.weight > 0)
            .collect()
    } else {
        up
    };
    let named = sticky.and_then(|id| {
        let mut candidates = candidates.iter();
        candidates.find(|backend| names_cluster(id, &backend.cluster.key))
    });
    if let Some(named) = named {
        return Some(named);
    }
    let total: u64 = candidates
        .iter()
        .map(|backend| u64::from(backend.weight))
        .sum();
    (total > 0).then(|| at(&candidates, fastrand::u64(0..total)))?
}

/// The backend whose share of the weights the point falls into.
fn at<'a>(backends: &[&'a WeightedBackend], mut point: u64) -> Option<&'a WeightedBackend> {
    backends.iter().copied().find(|backend| {
        let weight = u64::from(backend.weight);
        let found = point < weight;
        point = point.saturating_sub(weight);
        found
    })
}

// === sticky cookies ===

/// Bits of an id that name the endpoint; those above name the cluster.
const ADDRESS_BITS: u32 = 48;
const ADDRESS_MASK: u64 = (1 << ADDRESS_BITS) - 1;

/// What a sticky cookie holds: names the endpoint to the edge and to nobody else, and is the same in every
/// replica.
pub(crate) fn endpoint_id(cluster: &ClusterKey, identity: u64) -> u64 {
    cluster_id(cluster) << ADDRESS_BITS | identity & ADDRESS_MASK
}

fn cluster_id(cluster: &ClusterKey) -> u64 {
    hash(cluster.0.as_bytes()) >> ADDRESS_BITS
}

fn names_cluster(id: u64, cluster: &ClusterKey) -> bool {
    id >> ADDRESS_BITS == cluster_id(cluster)
}

/// The id in the request's cookie, if there is a well-formed one.
pub(crate) fn sticky_id(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(found, value)| *found == name && value.len() == 16)
        .find_map(|(_, value)| {
            let digits = value.bytes().all(|byte| byte.is_ascii_hexdigit());
            digits
                .then(|| u64::from_str_radix(value, 16).ok())
                .flatten()
        })
}

/// The endpoint that an id names, unless it is gone or unhealthy while others are not. Of several links to a process of
/// an agent it is the one with the least to do.
pub(crate) fn sticky_endpoint(endpoints: &[EndpointView], wanted: u64) -> Option<usize> {
    Usable::of(endpoints)
        .iter()
        .filter(|(_, view)| view.identity & ADDRESS_MASK == wanted & ADDRESS_MASK)
        .min_by_key(|(_, view)| view.active)
        .map(|(index, _)| index)
}

/// Value of Set-Cookie that makes a client come back to the endpoint. `secure` for clients that came by
/// HTTPS.
pub(crate) fn sticky_cookie(
    name: &str,
    id: u64,
    max_age: Option<Duration>,
    secure: bool,
) -> String {
    let mut cookie = format!("{name}={id:016x}; Path=/; HttpOnly; SameSite=Lax");
    if secure {
        cookie.push_str("; Secure");
    }
    if let Some(max_age) = max_age {
        let _ = write!(cookie, "; Max-Age={}", max_age.as_secs());
    }
    cookie
}

#[cfg(test)]
mod tests;
