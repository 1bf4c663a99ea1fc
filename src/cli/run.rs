//! `tidegate run`.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use tidegate_acme::engine::Surroundings;
use tidegate_model::{HostName, HostPattern};
use tidegate_telemetry::{LogFormat, LogOptions};

use super::terminal::{Look, Terminal};
use super::values::{self, Listen, StateArgs};
use crate::api::TlsRoute;
use crate::app::standalone_mode::{self, ObjectsFrom, RunOptions, Serving};
use crate::app::{AccessLogSettings, EdgeLimits, EdgeTimeouts, ProxyProtocolMode, Settings};

const AFTER: &str = "\
Signals:
  TERM, INT  drain: finish what runs (see --drain-timeout), then end; a second one ends at once
  HUP        read the folder again now
  USR2       hand over to a new process of the binary on disk, without refusing a connection

Ports below 1024 need a permission: `sudo setcap cap_net_bind_service=+ep $(command -v tidegate)`, \
the systemd unit in packaging/, or higher ports with --http and --https.";

/// Serve the objects of a folder over HTTPS.
///
/// Reads every .yaml, .yml and .json file below DIR (TlsRoute, AcmeIssuer, TunnelAgent, Secret, ConfigMap; several
/// documents per file), and Secrets from DIR/secrets/NAMESPACE/NAME/{tls.crt,tls.key}. Hidden files and the folders
/// of static backends are left out. Watches the folder. A
/// mistake in an object is told in the log and by `tidegate status`, harms only that object, and its last good
/// version stays in use.
///
/// Hosts without certificate of their own get one from an internal CA; see `tidegate ca`.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER)]
pub(super) struct RunArgs {
    /// Folder of objects.
    #[arg(
        required_unless_present = "to",
        conflicts_with = "to",
        env = "TIDEGATE_DIR"
    )]
    dir: Option<PathBuf>,

    /// Without any file: the service to serve, as HOST:PORT or http(s)://HOST:PORT.
    #[arg(long, requires = "host", value_name = "ADDRESS")]
    to: Option<String>,

    /// With --to: the hostname to serve it under; can be given more than once.
    #[arg(long, requires = "to", value_name = "NAME")]
    host: Vec<String>,

    #[command(flatten)]
    state: StateArgs,

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

    /// Where to listen for health checks, metrics and the read-only API, or off. Has no login: keep it private.
    #[arg(long, env = "TIDEGATE_ADMIN", value_name = "ADDRESS", default_value = "127.0.0.1:9180", value_parser = values::listen, help_heading = "Listeners")]
    admin: Listen,

    /// Name under which the admin listener may be asked, besides localhost and addresses.
    #[arg(long, env = "TIDEGATE_ADMIN_HOST", value_name = "NAME", value_delimiter = ',', value_parser = host_name, help_heading = "Listeners")]
    admin_host: Vec<HostName>,

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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Human,
    Json,
}

impl RunArgs {
    pub(super) fn run(self, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
        tidegate_telemetry::init(&LogOptions {
            format: match self.log_format {
                Format::Human => LogFormat::Human,
                Format::Json => LogFormat::Json,
            },
            level: self.log_level.clone(),
        })?;
        let objects = match &self.to {
            Some(to) => ObjectsFrom::Given(vec![route(to, &self.host)?]),
            None => ObjectsFrom::Folder(self.dir.clone().context("find the folder of objects")?),
        };
        let options = RunOptions {
            state: self.state.resolve(self.dir.as_deref())?,
            settings: self.settings(),
            admin: self.admin.resolve(),
            admin_hosts: self.admin_host.clone(),
            certificate_lifetime: self.certificate_lifetime,
            surroundings: Surroundings {
                name_servers: self.name_server.clone(),
                addresses: self.public_address.clone(),
                http_port: self.acme_http_port,
                tls_port: self.acme_tls_port,
            },
            objects,
        };
        let greeting = self.to.clone().map(|to| (to, self.host.clone()));
        standalone_mode::run(options, |serving| {
            if let Some((to, hosts)) = greeting {
                // A closed standard output is no reason to stop serving.
                let _ = greet(terminal, &to, &hosts, serving);
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn settings(&self) -> Settings {
        let defaults = Settings::default();
        let mut redacted_query = AccessLogSettings::default().redacted_query;
        redacted_query.extend(self.redact_query.iter().cloned());
        Settings {
            http: addresses(&self.http),
            https: addresses(&self.https),
            public_https_port: self.public_https_port,
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
        }
    }
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

/// The object that `--to` and `--host` stand for.
fn route(to: &str, hosts: &[String]) -> anyhow::Result<TlsRoute> {
    for host in hosts {
        HostPattern::parse(host).with_context(|| format!("use --host {host:?}"))?;
    }
    let (tls, address) = match to.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        Some((scheme, _)) => anyhow::bail!("use --to {to:?}: {scheme:?} is not http or https"),
        None => (false, to),
    };
    let address = address.trim_end_matches('/');
    if address.contains('/') {
        anyhow::bail!(
            "use --to {to:?}: it may have no path; write a TlsRoute with a rewrite filter for that"
        );
    }
    let address = match address.parse::<u16>() {
        Ok(port) => format!("127.0.0.1:{port}"),
        Err(_) if !has_port(address) => {
            anyhow::bail!(
                "use --to {to:?}: it has no port; write {address}:{}",
                if tls { 443 } else { 80 }
            )
        }
        Err(_) => address.to_owned(),
    };
    let mut backend = serde_json::json!({"address": address});
    if tls {
        backend["tls"] = serde_json::json!({});
    }
    serde_json::from_value(serde_json::json!({
        "apiVersion": "edge.tidegate.dev/v1alpha1",
        "kind": "TlsRoute",
        "metadata": {"name": "command-line", "namespace": "default"},
        "spec": {"hostnames": hosts, "rules": [{"backends": [backend]}]},
    }))
    .context("build the route")
}

fn has_port(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn greet(
    terminal: &mut Terminal,
    to: &str,
    hosts: &[String],
    serving: &Serving,
) -> std::io::Result<()> {
    let port = serving
        .listeners
        .iter()
        .find(|(name, _)| *name == "https")
        .map_or(443, |(_, address)| address.port());
    let authority = |host: &str| match port {
        443 => format!("https://{host}"),
        port => format!("https://{host}:{port}"),
    };
    for host in hosts {
        terminal.line(format_args!(
            "{}  →  {to}",
            terminal.paint(Look::Strong, format!("{}/", authority(host)))
        ))?;
    }
    if let Some(host) = hosts.first() {
        terminal.line(format_args!(
            "try it:    curl --cacert {} --resolve {host}:{port}:127.0.0.1 {}/",
            serving.root_certificate.display(),
            authority(host)
        ))?;
    }
    let state = serving
        .root_certificate
        .parent()
        .and_then(std::path::Path::parent)
        .map(|state| state.display().to_string())
        .unwrap_or_default();
    terminal.line(format_args!("trust it:  tidegate ca --state-dir {state}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_without_files_becomes_a_route() {
        let hosts = ["app.localhost".to_owned()];
        let backend = |to: &str| {
            let route = route(to, &hosts).unwrap();
            let backend = route.spec.rules[0].backends[0].clone();
            (backend.address.unwrap(), backend.tls.is_some())
        };
        assert_eq!(
            backend("127.0.0.1:3000"),
            ("127.0.0.1:3000".to_owned(), false)
        );
        assert_eq!(backend("3000"), ("127.0.0.1:3000".to_owned(), false));
        assert_eq!(
            backend("https://nas.lan:5001/"),
            ("nas.lan:5001".to_owned(), true)
        );
        for bad in ["nas.lan", "ftp://x:1", "http://x:1/path"] {
            assert!(route(bad, &hosts).is_err(), "{bad}");
        }
        assert!(route("3000", &["a b".to_owned()]).is_err());
    }
}
