//! Agents behind NAT: what the edge serves through them, and what is known of their sessions.
//!
//! ```text
//! TunnelAgent, `agent` backends ─► Agent with Mappings ─► hub ─► agent
//! agent's own wishes ─► RequestedMapping ─► judged with the objects ─► MappingVerdict ─► agent
//! hub ─► ObservedAgent ─► status, admin API
//! ```
//!
//! What came from an agent ([`RequestedMapping`], [`ObservedSession::version`]) is text that nobody has checked.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::{HostName, NameError, ObjectName, ProxyProtocolVersion, UpstreamProtocol};

/// The object of an agent.
pub type AgentId = ObjectName;

/// Identity of a [`Mapping`] on the wire: 16 hexadecimal digits that follow from its definition, so that equal
/// definitions of several routes are one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MappingId(Arc<str>);

// === impl MappingId ===

impl MappingId {
    /// The first eight bytes of a hash of the definition.
    pub fn from_hash(hash: [u8; 8]) -> Self {
        Self(format!("{:016x}", u64::from_be_bytes(hash)).into())
    }

    /// Reads what stands on the wire.
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        (text.len() == 16 && text.bytes().all(digit)).then(|| Self(text.into()))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MappingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MappingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A service as its agent reaches it. The scheme of its URL decides; h2c is [`AgentTarget::Http`] with
/// [`UpstreamProtocol::Http2`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AgentTarget {
    /// `http://host[:80]`
    Http {
        /// Name or address.
        host: HostName,
        /// TCP port.
        port: u16,
    },
    /// `https://host[:443]`
    Https {
        /// Name or address.
        host: HostName,
        /// TCP port.
        port: u16,
    },
    /// `tcp://host:port`
    Tcp {
        /// Name or address.
        host: HostName,
        /// TCP port.
        port: u16,
    },
    /// `udp://host:port`
    Udp {
        /// Name or address.
        host: HostName,
        /// UDP port.
        port: u16,
    },
}

/// Why a text is not an [`AgentTarget`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentTargetError {
    /// There is no `://`.
    #[error("{0:?} is not a URL")]
    NotUrl(String),
    /// No scheme that agents speak.
    #[error("{0:?} is not one of http, https, tcp and udp")]
    Scheme(String),
    /// A name and password before the host.
    #[error("a target has no user name")]
    UserInfo,
    /// Anything after the port.
    #[error("{0:?} has a path, which targets do not have")]
    Path(String),
    /// The host is no name and no address.
    #[error(transparent)]
    Host(NameError),
    /// The port is missing where the scheme has none of its own, or is no port.
    #[error("{0:?} has no port from 1 to 65535")]
    Port(String),
}

// === impl AgentTarget ===

impl AgentTarget {
    /// Parses `scheme://host[:port]`, with or without a slash at the end; IPv6 addresses stand in brackets.
    pub fn parse(url: &str) -> Result<Self, AgentTargetError> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| AgentTargetError::NotUrl(url.to_owned()))?;
        let scheme = scheme.to_ascii_lowercase();
        let usual = match &*scheme {
            "http" => Some(80),
            "https" => Some(443),
            "tcp" | "udp" => None,
            _ => return Err(AgentTargetError::Scheme(scheme)),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains('@') {
            return Err(AgentTargetError::UserInfo);
        }
        if authority.contains(['/', '?', '#']) {
            return Err(AgentTargetError::Path(url.to_owned()));
        }
        let (host, port) = match authority.rsplit_once(':') {
            // A colon of an address in brackets, or of one without.
            Some((_, after)) if after.ends_with(']') => (authority, None),
            Some((before, after)) => (before, Some(after)),
            None => (authority, None),
        };
        if host.contains(':') && !host.starts_with('[') {
            return Err(AgentTargetError::Host(NameError::Character {
                name: host.to_owned(),
                found: ':',
            }));
        }
        let host = HostName::parse(host).map_err(AgentTargetError::Host)?;
        let port = match port {
            None => usual,
            Some(digits) if digits.bytes().all(|c| c.is_ascii_digit()) => {
                digits.parse().ok().filter(|port| *port > 0)
            }
            Some(_) => None,
        };
        let port = port.ok_or_else(|| AgentTargetError::Port(url.to_owned()))?;
        Ok(match &*scheme {
            "http" => Self::Http { host, port },
            "https" => Self::Https { host, port },
            "tcp" => Self::Tcp { host, port },
            _ => Self::Udp { host, port },
        })
    }

    /// Name or address.
    pub fn host(&self) -> &HostName {
        match self {
            Self::Http { host, .. }
            | Self::Https { host, .. }
            | Self::Tcp { host, .. }
            | Self::Udp { host, .. } => host,
        }
    }

    /// Port of TCP or UDP.
    pub fn port(&self) -> u16 {
        match self {
            Self::Http { port, .. }
            | Self::Https { port, .. }
            | Self::Tcp { port, .. }
            | Self::Udp { port, .. } => *port,
        }
    }

    /// How its URL begins.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Http { .. } => "http",
            Self::Https { .. } => "https",
            Self::Tcp { .. } => "tcp",
            Self::Udp { .. } => "udp",
        }
    }

    /// Whether requests are sent there, and not bytes or datagrams.
    pub fn is_http(&self) -> bool {
        matches!(self, Self::Http { .. } | Self::Https { .. })
    }
}

impl fmt::Display for AgentTarget {
    /// The URL, always with its port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host) = (self.scheme(), self.host().in_url());
        write!(f, "{scheme}://{host}:{}", self.port())
    }
}

/// How an agent verifies a target that speaks TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct AgentTls {
    /// Server name sent and verified; the target's host when None.
    pub server_name: Option<String>,
    /// Trusted CAs as DER; the agent's system's when empty.
    pub ca_der: Vec<Vec<u8>>,
    /// Accept any certificate.
    pub insecure_skip_verify: bool,
}

/// A service that an agent may be asked for, and how the agent talks to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Follows from everything below but `names`.
    pub id: MappingId,
    /// Where the agent connects to.
    pub target: AgentTarget,
    /// HTTP version that the agent speaks there.
    pub protocol: UpstreamProtocol,
    /// TLS between agent and target; always set for [`AgentTarget::Https`].
    pub tls: Option<AgentTls>,
    /// PROXY protocol header that the agent sends there before anything else.
    pub proxy_protocol: Option<ProxyProtocolVersion>,
    /// Time that the agent has for DNS, TCP and TLS together.
    pub connect_timeout: Duration,
    /// Whose it is, for people: routes, and mappings as `AGENT:MAPPING`. Sorted.
    pub names: Vec<String>,
}

/// What the edge keeps of a token (`StoredKey` of RFC 5802 §3): it recognises the token's proofs and can make none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoredKey(pub [u8; 32]);

impl fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// An agent that may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Its object.
    pub id: AgentId,
    /// Keys that its proofs may be made with, newest first; at most [`Agent::KEYS`]. None: it cannot connect.
    pub keys: Vec<StoredKey>,
    /// Its proofs are refused and its sessions end.
    pub suspended: bool,
    /// What may be asked of it, sorted by id.
    pub mappings: Vec<Arc<Mapping>>,
    /// What became of its own wishes, sorted by name.
    pub verdicts: Vec<MappingVerdict>,
    /// How long requests wait for an agent that was there a moment ago.
    pub hold: Duration,
    /// How often the way to each service is tried; never where None.
    pub probe_interval: Option<Duration>,
}

// === impl Agent ===

impl Agent {
    /// How many keys are valid at once at most.
    pub const KEYS: usize = 4;
    /// [`Agent::hold`] unless the object says otherwise.
    pub const HOLD: Duration = Duration::from_secs(10);
    /// [`Agent::probe_interval`] unless the object says otherwise.
    pub const PROBE_INTERVAL: Duration = Duration::from_secs(60);

    /// The mapping of that id.
    pub fn mapping(&self, id: &MappingId) -> Option<&Arc<Mapping>> {
        let place = self.mappings.binary_search_by(|it| it.id.cmp(id)).ok()?;
        self.mappings.get(place)
    }
}

/// What became of something that an agent asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MappingVerdict {
    /// [`RequestedMapping::name`].
    pub name: String,
    /// Whether it is served.
    pub accepted: bool,
    /// One word, such as `HostnameNotAllowed`.
    pub reason: String,
    /// What was found and how to mend it.
    pub message: String,
}

/// A mapping that an agent asks for. Nothing of it is checked yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestedMapping {
    /// Unique among what the agent asks for.
    pub name: String,
    /// The name that clients ask for; empty if there is a port.
    pub hostname: String,
    /// The port that clients connect to instead of a name.
    pub port: Option<u16>,
    /// URL of the service as the agent reaches it.
    pub target: String,
    /// PROXY protocol header that the target expects.
    pub proxy_protocol: Option<ProxyProtocolVersion>,
    /// The agent accepts any certificate of an `https` target.
    pub insecure_skip_verify: bool,
    /// Words for people.
    pub description: Option<String>,
}

// === impl RequestedMapping ===

impl RequestedMapping {
    /// What clients ask for: a hostname, or a port.
    pub fn public(&self) -> String {
        match self.port {
            None => self.hostname.clone(),
            Some(port) => format!("port {port}"),
        }
    }
}

/// What is known of one agent at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedAgent {
    /// Its object.
    pub id: AgentId,
    /// Live sessions, oldest first.
    pub sessions: Vec<ObservedSession>,
    /// What its newest session asked for.
    pub requested: Vec<RequestedMapping>,
    /// When a session of it was last alive, as long as this process runs.
    pub last_seen: Option<SystemTime>,
    /// How the ways to its services were when they were tried last, for each process of the agent that is connected.
    pub probes: Vec<ObservedProbe>,
}

/// How the way to a service was when it was tried last.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedProbe {
    /// Whose service it is, for people: [`Mapping::names`].
    pub names: Vec<String>,
    /// The service as the agent reaches it.
    pub target: String,
    /// The process of the agent that tried: [`ObservedSession::instance`].
    pub instance: String,
    /// Until the service was connected.
    pub connect: Option<Duration>,
    /// Until it had answered.
    pub total: Option<Duration>,
    /// What is wrong; None if the service answers.
    pub failure: Option<ProbeFailure>,
}

/// What keeps visitors from a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeFailure {
    /// The part of the way that is broken. All before it work.
    pub hop: Hop,
    /// One word, such as `ConnectFailed`.
    pub reason: String,
    /// What was found.
    pub message: String,
}

/// A part of the way from the edge to a service behind an agent, in the order in which a request passes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hop {
    /// Between edge and agent.
    Link,
    /// The agent's program.
    Agent,
    /// Between the agent and its service, and the service itself.
    Service,
}

// === impl Hop ===

impl Hop {
    /// As it stands in statuses and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Link => "Link",
            Self::Agent => "Agent",
            Self::Service => "Service",
        }
    }

    /// The one of that name.
    pub fn parse(name: &str) -> Option<Self> {
        let all = [Self::Link, Self::Agent, Self::Service];
        all.into_iter().find(|hop| hop.name() == name)
    }
}

/// One link of an agent.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedSession {
    /// Given by the edge, unique for good.
    pub id: String,
    /// The process of the agent: 32 hexadecimal digits that it made up at its start.
    pub instance: String,
    /// Which of the instance's links, from 0.
    pub link: u8,
    /// What the link runs over.
    pub carrier: Carrier,
    /// The agent's address as the edge sees it.
    pub address: SocketAddr,
    /// When it was established.
    pub since: SystemTime,
    /// Round trip of the last ping.
    pub rtt: Option<Duration>,
    /// Version of the agent's program, as it says.
    pub version: String,
    /// The replica of the edge that holds it.
    pub replica: String,
    /// No new requests go there.
    pub draining: bool,
    /// Requests in flight.
    pub in_flight: u64,
    /// Requests so far.
    pub requests: u64,
    /// Bytes of request bodies and tunnels so far, towards the agent.
    pub bytes_sent: u64,
    /// Bytes of answers and tunnels so far, from the agent.
    pub bytes_received: u64,
}

/// What a link runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// TLS with an ALPN of its own.
    Direct,
    /// WebSocket, which proxies pass on.
    WebSocket,
}

// === impl Carrier ===

impl Carrier {
    /// As it stands in statuses and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "Direct",
            Self::WebSocket => "WebSocket",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_url_without_path() {
        for (written, expected) in [
            ("http://192.168.1.20:8123", "http://192.168.1.20:8123"),
            ("http://NAS.lan/", "http://nas.lan:80"),
            ("HTTPS://nas", "https://nas:443"),
            ("https://[2001:db8::1]", "https://[2001:db8::1]:443"),
            ("tcp://[::1]:22", "tcp://[::1]:22"),
            ("udp://10.0.0.1:6969", "udp://10.0.0.1:6969"),
        ] {
            let target = AgentTarget::parse(written).unwrap();
            assert_eq!(target.to_string(), expected, "{written}");
        }
        for bad in [
            "",
            "nas:80",
            "ftp://nas:21",
            "http://",
            "http://a@b",
            "http://nas/path",
            "http://nas?q",
            "http://nas:0",
            "http://nas:+80",
            "http://nas:65536",
            "http://nas:",
            "tcp://nas",
            "http://::1",
            "http://a b",
            "http://nas//",
            "http://*.nas",
        ] {
            assert!(AgentTarget::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_id_is_sixteen_digits() {
        let id = MappingId::from_hash([0, 1, 2, 3, 4, 5, 0xfe, 0xff]);
        assert_eq!(id.as_str(), "000102030405feff");
        assert_eq!(MappingId::parse(id.as_str()), Some(id));
        for bad in [
            "",
            "000102030405fef",
            "000102030405FEFF",
            "000102030405feffa",
        ] {
            assert_eq!(MappingId::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_key_is_not_printed() {
        assert_eq!(format!("{:?}", StoredKey([7; 32])), "[redacted]");
    }
}
