//! Options of everything that serves: listeners, client addresses, limits, certificates, log.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use tidegate_acme::engine::Surroundings;
use tidegate_model::{HostName, PortSet};
use tidegate_telemetry::{LogFormat, LogOptions};

use super::values::{self, Listen};
use crate::app::{AccessLogSettings, EdgeLimits, EdgeTimeouts, ProxyProtocolMode, Settings};

/// How the edge listens and how much it takes.
#[derive(Debug, Args)]
pub(super) struct EdgeArgs {
    /// Where to listen for plain HTTP: a port, an address with port, or off.
    #[arg(long, env = "TIDEGATE_HTTP", value_name = "ADDRESS", default_value = "80", value_parser = values::listen, value_delimiter = ',', help_heading = "Listeners")]
    http: Vec<Listen>,

    /// Where to listen for HTTPS. A bare port means every address, IPv4 and IPv6.
    #[arg(long, env = "TIDEGATE_HTTPS", value_name = "ADDRESS", default_value = "443", value_parser = values::listen, value_delimiter = ',', help_heading = "Listeners")]
    https: Vec<Listen>,

    /// Port of HTTPS as clients see it, when a router or container maps it; used in redirects.
    #[arg(
        long,
        env = "TIDEGATE_PUBLIC_HTTPS_PORT",
        value_name = "PORT",
        help_heading = "Listeners"
    )]
    public_https_port: Option<u16>,

    /// Ports that mappings of agents may open, besides those of the listeners: numbers and ranges, at most 256, such
    /// as 25565,51820/udp,20000-20100; without /tcp or /udp both. Default: none.
    #[arg(
        long,
        env = "TIDEGATE_TUNNEL_PORTS",
        value_name = "PORTS",
        value_parser = values::ports,
        help_heading = "Listeners"
    )]
    tunnel_ports: Option<PortSet>,

    /// Where to listen for health checks, metrics and the read-only API, or off. Keep it private: it has no login but with accounts.
    #[arg(long, env = "TIDEGATE_ADMIN", value_name = "ADDRESS", default_value = "127.0.0.1:9180", value_parser = values::listen, help_heading = "Listeners")]
    admin: Listen,

    /// Name under which the admin listener may be asked, besides localhost and addresses.
    #[arg(long, env = "TIDEGATE_ADMIN_HOST", value_name = "NAME", value_delimiter = ',', value_parser = host_name, help_heading = "Listeners")]
    admin_host: Vec<HostName>,

    /// File of those who may use the API of the admin listener; see `tidegate account`. With it the listener asks who
    /// is there.
    #[arg(
        long,
        env = "TIDEGATE_ACCOUNTS",
        value_name = "FILE",
        help_heading = "Listeners"
    )]
    accounts: Option<PathBuf>,

    /// Networks of load balancers in front whose X-Forwarded-For, Forwarded and PROXY headers are believed.
    #[arg(long, env = "TIDEGATE_TRUSTED_PROXIES", value_name = "CIDR", value_delimiter = ',', value_parser = network, help_heading = "Client address")]
    trusted_proxies: Vec<IpNet>,

    /// Whether connections from trusted proxies begin with a PROXY protocol header (version 1 or 2).
    #[arg(
        long,
        env = "TIDEGATE_PROXY_PROTOCOL",
        value_name = "WHEN",
        value_enum,
        default_value = "off",
        help_heading = "Client address"
    )]
    proxy_protocol: ProxyProtocol,

    /// Send Forwarded (RFC 7239) to backends too.
    #[arg(long, env = "TIDEGATE_FORWARDED", help_heading = "Client address")]
    forwarded: bool,

    /// Worker threads; default: one per core.
    #[arg(
        long,
        env = "TIDEGATE_WORKERS",
        value_name = "N",
        help_heading = "Limits and timeouts"
    )]
    workers: Option<NonZeroUsize>,

    /// Open client connections in all.
    #[arg(long, env = "TIDEGATE_MAX_CONNECTIONS", value_name = "N", help_heading = "Limits and timeouts", default_value_t = EdgeLimits::default().connections)]
    max_connections: usize,

    /// Open connections per client address (IPv6 by /64).
    #[arg(long, env = "TIDEGATE_MAX_CONNECTIONS_PER_CLIENT", value_name = "N", help_heading = "Limits and timeouts", default_value_t = EdgeLimits::default().connections_per_client)]
    max_connections_per_client: usize,

    /// Bytes of a request's header; beyond it 431.
    #[arg(long, env = "TIDEGATE_MAX_HEADER_BYTES", value_name = "SIZE", help_heading = "Limits and timeouts", default_value = "64Ki", value_parser = values::size)]
    max_header_bytes: usize,

    /// Header fields of a request; beyond it 431.
    #[arg(long, env = "TIDEGATE_MAX_HEADER_COUNT", value_name = "N", help_heading = "Limits and timeouts", default_value_t = EdgeLimits::default().header_count)]
    max_header_count: usize,

    /// Bytes of a request's URI, at most 65534; beyond it 414.
    #[arg(long, env = "TIDEGATE_MAX_URI_BYTES", value_name = "SIZE", help_heading = "Limits and timeouts", default_value = "65534", value_parser = values::size)]
    max_uri_bytes: usize,

    /// Time for a TLS handshake.
    #[arg(long, env = "TIDEGATE_HANDSHAKE_TIMEOUT", value_name = "TIME", help_heading = "Limits and timeouts", default_value = "10s", value_parser = values::duration)]
    handshake_timeout: Duration,

    /// Time for a whole request header to arrive.
    #[arg(long, env = "TIDEGATE_HEADER_TIMEOUT", value_name = "TIME", help_heading = "Limits and timeouts", default_value = "10s", value_parser = values::duration)]
    header_timeout: Duration,

    /// Time between two requests of a connection.
    #[arg(long, env = "TIDEGATE_KEEP_ALIVE", value_name = "TIME", help_heading = "Limits and timeouts", default_value = "75s", value_parser = values::duration)]
    keep_alive: Duration,

    /// Time after which a client that does not read its response is cut.
    #[arg(long, env = "TIDEGATE_WRITE_TIMEOUT", value_name = "TIME", help_heading = "Limits and timeouts", default_value = "60s", value_parser = values::duration)]
    write_timeout: Duration,

    /// Time that running requests and WebSockets have when the edge stops.
    #[arg(long, env = "TIDEGATE_DRAIN_TIMEOUT", value_name = "TIME", help_heading = "Limits and timeouts", default_value = "30s", value_parser = values::duration)]
    drain_timeout: Duration,

    /// Life of certificates of the internal CA; renewed after two thirds of it.
    #[arg(long, env = "TIDEGATE_CERTIFICATE_LIFETIME", value_name = "TIME", help_heading = "Certificates", default_value = "90d", value_parser = values::duration)]
    certificate_lifetime: Duration,

    /// An address at which the edge is reached from outside, such as that of the router or load balancer in
    /// front; checks before an ACME order count it as this machine's. May be given several times.
    #[arg(
        long,
        env = "TIDEGATE_PUBLIC_ADDRESS",
        value_name = "IP",
        help_heading = "Certificates",
        value_delimiter = ','
    )]
    public_address: Vec<IpAddr>,

    /// A name server to ask in checks before an ACME order, instead of this machine's. May be given several
    /// times.
    #[arg(
        long,
        env = "TIDEGATE_NAME_SERVER",
        value_name = "IP:PORT",
        help_heading = "Certificates",
        value_delimiter = ','
    )]
    name_server: Vec<SocketAddr>,

    /// How often the lists are read in which authorities name what they have revoked (CRL), of certificates
    /// that say where theirs is; `off` for never.
    #[arg(long, env = "TIDEGATE_REVOCATION_CHECK", value_name = "TIME", help_heading = "Certificates", default_value = "6h", value_parser = values::every)]
    revocation_check: values::Every,

    /// Port at which a private ACME authority looks for http-01 answers.
    #[arg(
        long,
        env = "TIDEGATE_ACME_HTTP_PORT",
        value_name = "PORT",
        help_heading = "Certificates",
        default_value_t = 80,
        hide = true
    )]
    acme_http_port: u16,

    /// Port at which a private ACME authority looks for tls-alpn-01 answers.
    #[arg(
        long,
        env = "TIDEGATE_ACME_TLS_PORT",
        value_name = "PORT",
        help_heading = "Certificates",
        default_value_t = 443,
        hide = true
    )]
    acme_tls_port: u16,

    /// Whether requests are logged.
    #[arg(
        long,
        env = "TIDEGATE_ACCESS_LOG",
        value_name = "WHEN",
        value_enum,
        default_value = "on",
        help_heading = "Log"
    )]
    access_log: Switch,

    /// Query parameters whose values the access log hides, besides token, auth_token, key, passkey and the like.
    #[arg(
        long,
        env = "TIDEGATE_REDACT_QUERY",
        value_name = "NAME",
        value_delimiter = ',',
        help_heading = "Log"
    )]
    redact_query: Vec<String>,

    /// Zero the last part of client addresses in the access log.
    #[arg(long, env = "TIDEGATE_MASK_CLIENT_IP", help_heading = "Log")]
    mask_client_ip: bool,

    /// For people or for machines.
    #[arg(
        long,
        env = "TIDEGATE_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value = "human",
        help_heading = "Log"
    )]
    log_format: Format,

    /// error, warn, info, debug or trace; or per part, as in info,tidegate_proxy=debug.
    #[arg(
        long,
        env = "TIDEGATE_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info",
        help_heading = "Log"
    )]
    log_level: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProxyProtocol {
    /// Never.
    Off,
    /// Those that send one are believed.
    Optional,
    /// All must.
    Required,
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Human,
    Json,
}

impl EdgeArgs {
    /// Begins to log as it is asked for.
    pub(super) fn start_log(&self) -> anyhow::Result<()> {
        // The client of the API server tells each failed request as an error of its own; whoever asked tells it
        // as what it is.
        let level = format!("kube_client=off,{}", self.log_level);
        tidegate_telemetry::init(&LogOptions {
            format: match self.log_format {
                Format::Human => LogFormat::Human,
                Format::Json => LogFormat::Json,
            },
            level,
        })?;
        Ok(())
    }

    /// Where to listen for people who look after the edge.
    pub(super) fn admin(&self) -> Option<SocketAddr> {
        self.admin.resolve()
    }

    /// Names under which the admin listener may be asked.
    pub(super) fn admin_hosts(&self) -> Vec<HostName> {
        self.admin_host.clone()
    }

    /// Who may use the API.
    pub(super) fn accounts(&self) -> Option<PathBuf> {
        self.accounts.clone()
    }

    /// Life of certificates of the internal CA.
    pub(super) fn certificate_lifetime(&self) -> Duration {
        self.certificate_lifetime
    }

    /// How ACME authorities see this edge.
    pub(super) fn surroundings(&self) -> Surroundings {
        Surroundings {
            name_servers: self.name_server.clone(),
            addresses: self.public_address.clone(),
            http_port: self.acme_http_port,
            tls_port: self.acme_tls_port,
            revocation_interval: self.revocation_check.interval(),
            ..Surroundings::default()
        }
    }

    /// The data plane.
    pub(super) fn settings(&self) -> Settings {
        let defaults = Settings::default();
        let mut redacted_query = AccessLogSettings::default().redacted_query;
        redacted_query.extend(self.redact_query.iter().cloned());
        Settings {
            http: addresses(&self.http),
            https: addresses(&self.https),
            public_https_port: self.public_https_port,
            tunnel_ports: self.tunnel_ports.clone().unwrap_or_default(),
            workers: self.workers.unwrap_or(defaults.workers),
            trusted_proxies: self.trusted_proxies.clone(),
            proxy_protocol: match self.proxy_protocol {
                ProxyProtocol::Off => ProxyProtocolMode::Off,
                ProxyProtocol::Optional => ProxyProtocolMode::Optional,
                ProxyProtocol::Required => ProxyProtocolMode::Required,
            },
            forwarded_header: self.forwarded,
            limits: EdgeLimits {
                connections: self.max_connections,
                connections_per_client: self.max_connections_per_client,
                header_bytes: self.max_header_bytes,
                header_count: self.max_header_count,
                uri_bytes: self.max_uri_bytes.min(defaults.limits.uri_bytes),
                ..defaults.limits
            },
            timeouts: EdgeTimeouts {
                tls_handshake: self.handshake_timeout,
                request_head: self.header_timeout,
                keep_alive_idle: self.keep_alive,
                write_stall: self.write_timeout,
                drain: self.drain_timeout,
                ..defaults.timeouts
            },
            access_log: AccessLogSettings {
                enabled: self.access_log == Switch::On,
                redacted_query,
                mask_client: self.mask_client_ip,
            },
            replica: replica().unwrap_or(defaults.replica),
            replicas: defaults.replicas,
            peering: defaults.peering,
        }
    }
}

/// What tells this process from others of the same edge: the name of the machine, which in Kubernetes is the pod's.
fn replica() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

fn addresses(listen: &[Listen]) -> Vec<SocketAddr> {
    listen
        .iter()
        .filter_map(|listen| listen.resolve())
        .collect()
}

fn host_name(text: &str) -> Result<HostName, String> {
    HostName::parse(text).map_err(|error| error.to_string())
}

fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| {
            format!("{text:?} is not a network: write one such as 10.0.0.0/8 or 192.168.1.2")
        })
}
