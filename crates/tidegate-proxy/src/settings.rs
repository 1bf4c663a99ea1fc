//! What is fixed when the edge starts. Everything else is in the snapshot.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use ipnet::IpNet;
use tidegate_model::PortSet;

use crate::replicas::PeeringSettings;

/// Settings of the data plane.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Addresses for plain HTTP (redirects, challenges, routes that allow it).
    pub http: Vec<SocketAddr>,
    /// Addresses for HTTPS.
    pub https: Vec<SocketAddr>,
    /// Port that clients use for HTTPS, when it differs from the bound one (port mapping); used in redirects.
    pub public_https_port: Option<u16>,
    /// Ports that mappings of agents may open, at the addresses of the listeners.
    pub tunnel_ports: PortSet,
    /// Worker threads, each with its own runtime, listener sockets and upstream connections.
    pub workers: NonZeroUsize,
    /// Peers whose forwarding headers and PROXY protocol headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// PROXY protocol on the listeners.
    pub proxy_protocol: ProxyProtocolMode,
    /// Whether `Forwarded` (RFC 7239) is sent beside `X-Forwarded-*`.
    pub forwarded_header: bool,
    /// Bounds.
    pub limits: EdgeLimits,
    /// Clocks.
    pub timeouts: EdgeTimeouts,
    /// The access log.
    pub access_log: AccessLogSettings,
    /// Name of this replica, which agents and statuses tell links apart by.
    pub replica: String,
    /// How many replicas serve the same, this one included, until
    /// [`RunningEdge::set_peers`](crate::RunningEdge::set_peers) says otherwise.
    pub replicas: u32,
    /// How replicas reach each other, so that a request finds its agent at whichever the agent is connected to; None
    /// where there is one only.
    pub peering: Option<PeeringSettings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            http: Vec::new(),
            https: Vec::new(),
            public_https_port: None,
            tunnel_ports: PortSet::default(),
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            trusted_proxies: Vec::new(),
            proxy_protocol: ProxyProtocolMode::Off,
            forwarded_header: false,
            limits: EdgeLimits::default(),
            timeouts: EdgeTimeouts::default(),
            access_log: AccessLogSettings::default(),
            replica: "edge".to_owned(),
            replicas: 1,
            peering: None,
        }
    }
}

/// Whether connections begin with a PROXY protocol header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProxyProtocolMode {
    /// Never read.
    #[default]
    Off,
    /// Read from trusted peers that send one; a header from anybody else ends the connection.
    Optional,
    /// Trusted peers must send one; others may connect without.
    Required,
}

/// Bounds on what clients may use.
#[derive(Debug, Clone)]
pub struct EdgeLimits {
    /// Open client connections in all.
    pub connections: usize,
    /// Open connections per client address (IPv6 by /64).
    pub connections_per_client: usize,
    /// Bytes of a request head (HTTP/1) or decoded header list (HTTP/2); 431.
    pub header_bytes: usize,
    /// Header fields of a request; 431.
    pub header_count: usize,
    /// Bytes of the request target; 414.
    pub uri_bytes: usize,
    /// Concurrent streams of an HTTP/2 connection.
    pub h2_streams: u32,
    /// PING, SETTINGS and PRIORITY frames of an HTTP/2 connection in ten seconds.
    pub h2_control_frames: u32,
    /// Requests served on one connection before it is closed.
    pub requests_per_connection: u64,
}

impl Default for EdgeLimits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_client: 256,
            header_bytes: 64 * 1024,
            header_count: 100,
            uri_bytes: 65_534,
            h2_streams: 100,
            h2_control_frames: 1_000,
            requests_per_connection: 10_000,
        }
    }
}

/// Clocks that hold before a route is known.
#[derive(Debug, Clone)]
pub struct EdgeTimeouts {
    /// ClientHello and handshake together.
    pub tls_handshake: Duration,
    /// A whole request head.
    pub request_head: Duration,
    /// Between two requests of a connection.
    pub keep_alive_idle: Duration,
    /// A response that the client does not read.
    pub write_stall: Duration,
    /// Longest life of a connection before it is asked to go.
    pub connection_age: Duration,
    /// From the start of a shutdown until connections are cut.
    pub drain: Duration,
    /// How long a connection may still send one request after the edge began to drain: about what is on its
    /// way at that moment, and what busy clients are told to go by.
    pub request_grace: Duration,
    /// A draining edge goes on accepting until nobody has come for this long.
    pub accept_quiet: Duration,
    /// But no longer than this.
    pub accept_longest: Duration,
}

impl Default for EdgeTimeouts {
    fn default() -> Self {
        Self {
            tls_handshake: Duration::from_secs(10),
            request_head: Duration::from_secs(10),
            keep_alive_idle: Duration::from_secs(75),
            write_stall: Duration::from_secs(60),
            connection_age: Duration::from_secs(3600),
            drain: Duration::from_secs(30),
            request_grace: Duration::from_secs(1),
            accept_quiet: Duration::from_millis(1),
            accept_longest: Duration::from_millis(250),
        }
    }
}

/// What the access log shows.
#[derive(Debug, Clone)]
pub struct AccessLogSettings {
    /// Whether requests are logged.
    pub enabled: bool,
    /// Query parameters whose values are replaced, compared without case.
    pub redacted_query: Vec<String>,
    /// Whether the last octet (IPv4) or the last 80 bits (IPv6) of client addresses are zeroed.
    pub mask_client: bool,
}

impl Default for AccessLogSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            redacted_query: [
                "token",
                "auth_token",
                "access_token",
                "key",
                "api_key",
                "passkey",
                "authkey",
                "torrent_pass",
            ]
            .map(str::to_owned)
            .to_vec(),
            mask_client: false,
        }
    }
}
