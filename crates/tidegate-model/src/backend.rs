//! Where requests go.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use rustls::RootCertStore;

use crate::{AgentId, Fingerprint, MappingId};

/// The weighted backends of a rule.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendGroup {
    /// At least one; weights may be 0 (never chosen).
    pub backends: Vec<WeightedBackend>,
}

/// One backend of a rule.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedBackend {
    /// Share of requests relative to the sum of weights.
    pub weight: u32,
    /// Where they go.
    pub cluster: Arc<Cluster>,
}

/// Stable identity of a cluster: equal keys share connections, health and counters across snapshots.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterKey(pub Arc<str>);

impl fmt::Display for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A set of addresses that serve the same thing, and how to talk to them.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Identity; must differ whenever a connection of one could not serve the other.
    pub key: ClusterKey,
    /// What people call it in logs and messages, such as `blog:80`.
    pub name: String,
    /// Where its addresses come from.
    pub target: Target,
    /// HTTP version spoken upstream.
    pub protocol: UpstreamProtocol,
    /// TLS to the backend, if any.
    pub tls: Option<UpstreamTls>,
    /// PROXY protocol header sent before anything else, if any.
    pub proxy_protocol: Option<ProxyProtocolVersion>,
    /// How one of several addresses is chosen.
    pub load_balancing: LoadBalancing,
    /// Active probes, if asked for.
    pub active_health: Option<ActiveHealthCheck>,
    /// Ejection after failures in real traffic.
    pub passive_health: PassiveHealthCheck,
    /// Bounds on what may be in flight.
    pub circuit: CircuitLimits,
    /// Time for DNS, TCP and TLS together.
    pub connect_timeout: Duration,
}

/// Source of a cluster's addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A DNS name or address literal, re-resolved while in use; all addresses are used.
    Host {
        /// Name or address without brackets.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// Addresses that the control side already knows. They are not part of the cluster's identity: a snapshot
    /// may bring others under the same key.
    Addresses(Vec<std::net::SocketAddr>),
    /// A service behind an agent. Its addresses are those of the agent's live links; what the cluster says of
    /// protocol, TLS and PROXY protocol is the agent's task, and stands in the mapping.
    Agent {
        /// The agent.
        agent: AgentId,
        /// What is asked of it.
        mapping: MappingId,
    },
}

/// HTTP version spoken to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpstreamProtocol {
    /// HTTP/1.1; over TLS, HTTP/2 when the backend's ALPN agrees to it.
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only: prior knowledge on cleartext (h2c), ALPN over TLS. What gRPC needs.
    Http2,
}

/// TLS to a backend.
#[derive(Clone)]
pub struct UpstreamTls {
    /// Server name sent and verified; the target's host when None.
    pub server_name: Option<String>,
    /// Which CAs are trusted; None means the system's.
    pub roots: Option<Arc<RootCertStore>>,
    /// Identity of `roots`.
    pub roots_fingerprint: Option<Fingerprint>,
    /// Accept any certificate. For devices with self-signed certificates on a trusted network.
    pub insecure_skip_verify: bool,
}

impl PartialEq for UpstreamTls {
    fn eq(&self, other: &Self) -> bool {
        self.server_name == other.server_name
            && self.roots_fingerprint == other.roots_fingerprint
            && self.insecure_skip_verify == other.insecure_skip_verify
    }
}

impl fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamTls")
            .field("server_name", &self.server_name)
            .field("roots", &self.roots_fingerprint)
            .field("insecure_skip_verify", &self.insecure_skip_verify)
            .finish()
    }
}

/// Versions of HAProxy's PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProxyProtocolVersion {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// How one of a cluster's addresses is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadBalancing {
    /// The less busy of two random addresses (power of two choices).
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The same address for the same key, with few moves when addresses change.
    ConsistentHash(HashKey),
    /// The address named by a cookie that the edge sets.
    StickyCookie {
        /// Cookie name.
        name: String,
        /// Max-Age; a session cookie when None.
        max_age: Option<Duration>,
    },
}

/// What consistent hashing looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// The client's address.
    ClientIp,
    /// A request header's value; the client's address when absent.
    Header(HeaderName),
    /// The request path.
    Path,
}

/// Probes sent to each address.
#[derive(Debug, Clone, PartialEq)]
pub struct ActiveHealthCheck {
    /// Path of a GET; a TCP connect when None.
    pub path: Option<String>,
    /// Host header; the target's host when None.
    pub host: Option<String>,
    /// Further headers, sent in title case.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Statuses that count as healthy, inclusive; 200 to 399 unless said otherwise.
    pub expected_status: (u16, u16),
    /// Time between probes.
    pub interval: Duration,
    /// Time a probe may take.
    pub timeout: Duration,
    /// Successes in a row that make an address healthy.
    pub healthy_threshold: u32,
    /// Failures in a row that make it unhealthy.
    pub unhealthy_threshold: u32,
}

/// Ejection of an address after failures to connect or to answer. HTTP statuses never eject:
/// trackers answer a wrong token with 500.
#[derive(Debug, Clone, PartialEq)]
pub struct PassiveHealthCheck {
    /// Failures in a row that eject; 0 turns it off.
    pub consecutive_failures: u32,
    /// How long an address stays ejected.
    pub ejection_time: Duration,
}

/// Bounds on what may be in flight to a cluster, per edge process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CircuitLimits {
    /// Requests at once; further ones get 503. None is unbounded.
    pub max_requests: Option<u32>,
}
