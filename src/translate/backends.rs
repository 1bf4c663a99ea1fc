//! Backends: clusters with an identity, and folders of files.

use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tidegate_model::{
    Cluster, ClusterKey, Fingerprint, HostName, ProxyProtocolVersion, StaticFolder, Target,
    UpstreamProtocol, UpstreamTls,
};

use super::balancing::Policy;
use super::references::{Found, References, Transport};
use super::report::{Field, Report};
use super::words::one_of;
use super::{ServiceResolution, StaticFilesPolicy, mappings, reach};
use crate::api::conditions::Reason;
use crate::api::{Backend, BackendTls, StaticFiles};

/// What a backend turned out to be.
#[derive(Debug)]
pub(super) enum Destination {
    /// Something to connect to.
    Cluster(Arc<Cluster>),
    /// Files; `strip_prefix` is left to the rule.
    Static(StaticFolder),
    /// It is named well, but cannot be reached as things are.
    Unresolved,
}

pub(super) fn port(report: &mut Report, field: &Field<'_>, written: i32) -> Option<u16> {
    match u16::try_from(written) {
        Ok(port) if port > 0 => Some(port),
        _ => {
            report.invalid(
                field,
                format!("{written} is not a port"),
                "write a number from 1 to 65535",
            );
            None
        }
    }
}

/// Reads a backend of a rule.
pub(super) fn destination(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &Backend,
    policy: &Policy,
) -> Option<Destination> {
    match exactly_one(report, field, wire)? {
        "static" => {
            let folder = wire.r#static.as_ref()?;
            plain(
                report,
                field,
                wire,
                None,
                ("a static backend", "leave it out"),
            )?;
            static_folder(report, references, &field.at("static"), folder).map(Destination::Static)
        }
        "agent" => agent(report, references, field, wire, policy).map(|found| match found {
            Found::Here(cluster) => Destination::Cluster(cluster),
            Found::Missing => Destination::Unresolved,
        }),
        _ => cluster(report, references, field, wire, policy).map(|found| match found {
            Found::Here(cluster) => Destination::Cluster(cluster),
            Found::Missing => Destination::Unresolved,
        }),
    }
}

/// Reads a backend where only something to connect to will do, such as a mirror.
pub(super) fn plain_cluster(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &Backend,
    connect_timeout: Option<Duration>,
) -> Option<Found<Arc<Cluster>>> {
    let kind = exactly_one(report, field, wire)?;
    if matches!(kind, "static" | "agent") {
        report.invalid(
            field.at(kind),
            format!("{kind} cannot be used here"),
            "use service or address",
        );
        return None;
    }
    let mut policy = Policy::default();
    if let Some(timeout) = connect_timeout {
        policy.connect_timeout = policy.connect_timeout.min(timeout);
    }
    cluster(report, references, field, wire, &policy)
}

fn exactly_one(report: &mut Report, field: &Field<'_>, wire: &Backend) -> Option<&'static str> {
    let set: Vec<_> = [
        ("service", wire.service.is_some()),
        ("address", wire.address.is_some()),
        ("agent", wire.agent.is_some()),
        ("static", wire.r#static.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, set)| set.then_some(name))
    .collect();
    if let [one] = set.as_slice() {
        return Some(one);
    }
    let found = if set.is_empty() {
        "it names no backend".to_owned()
    } else {
        format!("it names {}", set.join(" and "))
    };
    report.invalid(
        field,
        found,
        "set exactly one of service, address, agent and static",
    );
    None
}

fn cluster(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &Backend,
    policy: &Policy,
) -> Option<Found<Arc<Cluster>>> {
    let place = place(report, references, field, wire, Transport::Tcp);
    let default = match &place {
        Some(Found::Here(place)) => place.protocol,
        _ => UpstreamProtocol::Auto,
    };
    let spoken = spoken_to(report, field, wire, default);
    let tls = match &wire.tls {
        None => Some(Found::Here(None)),
        Some(tls) => {
            upstream_tls(report, references, &field.at("tls"), tls).map(|found| match found {
                Found::Here(tls) => Found::Here(Some(tls)),
                Found::Missing => Found::Missing,
            })
        }
    };
    let place = place?;
    let (protocol, proxy_protocol) = spoken?;
    // A missing CA must not become a connection without verification.
    let (Found::Here(tls), Found::Here(place)) = (tls?, place) else {
        return Some(Found::Missing);
    };
    let tls = tls.map(|tls| UpstreamTls {
        server_name: tls.server_name.or(place.server_name),
        ..tls
    });
    let mut cluster = Cluster {
        key: ClusterKey("".into()),
        name: place.name,
        target: place.target,
        protocol,
        tls,
        proxy_protocol,
        load_balancing: policy.load_balancing.clone(),
        active_health: policy.active_health.clone(),
        passive_health: policy.passive_health.clone(),
        circuit: policy.circuit.clone(),
        connect_timeout: policy.connect_timeout,
    };
    cluster.key = key_of(&cluster);
    Some(Found::Here(Arc::new(cluster)))
}

/// HTTP version and PROXY protocol.
fn spoken_to(
    report: &mut Report,
    field: &Field<'_>,
    wire: &Backend,
    default: UpstreamProtocol,
) -> Option<(UpstreamProtocol, Option<ProxyProtocolVersion>)> {
    let protocol = one_of(
        report,
        &field.at("protocol"),
        wire.protocol.as_deref(),
        default,
        &[
            ("Auto", UpstreamProtocol::Auto),
            ("HTTP1", UpstreamProtocol::Http1),
            ("HTTP2", UpstreamProtocol::Http2),
        ],
    );
    let proxy_protocol = one_of(
        report,
        &field.at("proxyProtocol"),
        wire.proxy_protocol.as_deref(),
        None,
        &[
            ("v1", Some(ProxyProtocolVersion::V1)),
            ("v2", Some(ProxyProtocolVersion::V2)),
        ],
    );
    Some((protocol?, proxy_protocol?))
}

/// A service behind an agent: the mapping that the agent is told, and a cluster that leads there.
fn agent(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &Backend,
    policy: &Policy,
) -> Option<Found<Arc<Cluster>>> {
    let reference = wire.agent.as_ref()?;
    let spoken = spoken_to(report, field, wire, UpstreamProtocol::Auto);
    let place = match mappings::place(report, references, &field.at("agent"), reference)? {
        Found::Here(place) => place,
        Found::Missing => return Some(Found::Missing),
    };
    let at = field.at("tls");
    let tls = mappings::tls(report, references, &at, wire.tls.as_ref(), &place.target);
    let (protocol, proxy_protocol) = spoken?;
    let Found::Here(tls) = tls? else {
        return Some(Found::Missing);
    };
    let timeout = policy.connect_timeout;
    let mapping = mappings::define(place.target, protocol, tls, proxy_protocol, timeout);
    let mut cluster = Cluster {
        key: ClusterKey("".into()),
        name: format!("agent {} {}", place.agent, mapping.target),
        target: Target::Agent {
            agent: place.agent.clone(),
            mapping: mapping.id.clone(),
        },
        protocol: UpstreamProtocol::Auto,
        tls: None,
        proxy_protocol: None,
        load_balancing: policy.load_balancing.clone(),
        active_health: policy.active_health.clone(),
        passive_health: policy.passive_health.clone(),
        circuit: policy.circuit.clone(),
        connect_timeout: timeout,
    };
    cluster.key = key_of(&cluster);
    report.maps(place.agent, mapping);
    Some(Found::Here(Arc::new(cluster)))
}

/// None if a backend has a member that speaks of requests or connections, or this one; whose it is and the hint are
/// the words. The first of them is noted.
fn plain(
    report: &mut Report,
    field: &Field<'_>,
    wire: &Backend,
    useless: Option<&str>,
    (whose, hint): (&str, &str),
) -> Option<()> {
    let members = [
        ("weight", wire.weight.is_some()),
        ("protocol", wire.protocol.is_some()),
        ("tls", wire.tls.is_some()),
        ("proxyProtocol", wire.proxy_protocol.is_some()),
    ];
    let mut set = members.iter().filter(|(_, set)| *set);
    let Some(member) = useless.or_else(|| set.next().map(|it| it.0)) else {
        return Some(());
    };
    report.invalid(field.at(member), format!("{whose} has no {member}"), hint);
    None
}

/// Where a UDP tracker is, and its port as it is written.
pub(super) struct TrackerPlace {
    pub(super) name: String,
    pub(super) target: Target,
    pub(super) port: u16,
}

/// Reads the backend of a UDP tracker.
pub(super) fn tracker_place(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &Backend,
) -> Option<Found<TrackerPlace>> {
    let kind = exactly_one(report, field, wire)?;
    let words = (
        "the backend of a UDP tracker",
        "use service or address, and nothing else",
    );
    let useless = matches!(kind, "agent" | "static").then_some(kind);
    plain(report, field, wire, useless, words)?;
    let place = match place(report, references, field, wire, Transport::Udp)? {
        Found::Here(place) => place,
        Found::Missing => return Some(Found::Missing),
    };
    let port = match (&wire.service, &place.target) {
        (Some(service), _) => port(report, &field.at("service").at("port"), service.port)?,
        (None, Target::Host { port, .. }) => *port,
        (None, Target::Addresses(_) | Target::Agent { .. }) => return None,
    };
    Some(Found::Here(TrackerPlace {
        name: place.name,
        target: place.target,
        port,
    }))
}

/// Where a cluster is.
struct Place {
    name: String,
    target: Target,
    /// What is spoken there unless the route says otherwise.
    protocol: UpstreamProtocol,
    /// Name that its certificate must have, if the target has none.
    server_name: Option<String>,
}

fn place(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &Backend,
    transport: Transport,
) -> Option<Found<Place>> {
    let environment = &references.inputs.environment;
    let found = match (&wire.service, environment.services) {
        (Some(service), ServiceResolution::Objects) => {
            let at = field.at("service");
            port(report, &at.at("port"), service.port)?;
            let Some(found) = references.service(report, &at, service, transport) else {
                return Some(Found::Missing);
            };
            let full = references.sibling(&service.name);
            return Some(Found::Here(Place {
                name: format!("{full}:{}", service.port),
                target: Target::Addresses(found.addresses),
                protocol: match found.app_protocol.as_deref() {
                    Some("kubernetes.io/h2c") => UpstreamProtocol::Http2,
                    _ => UpstreamProtocol::Auto,
                },
                server_name: Some(format!("{}.{}.svc", full.name, full.namespace)),
            }));
        }
        (Some(service), ServiceResolution::Dns) => {
            let at = field.at("service");
            let host = super::words::host_name(report, &at.at("name"), &service.name);
            let port = port(report, &at.at("port"), service.port);
            host.zip(port)
        }
        (None, _) => {
            let written = wire.address.as_deref().unwrap_or_default();
            address(report, &field.at("address"), written)
        }
    };
    let (host, port) = found?;
    if let Err((message, hint)) = reach::judge(environment, references.id, &host, port) {
        let at = field.at("address");
        report.add(at, Reason::BackendNotAllowed, message, hint);
        return Some(Found::Missing);
    }
    Some(Found::Here(Place {
        name: format!("{}:{port}", host.in_url()),
        target: Target::Host {
            host: host.as_str().to_owned(),
            port,
        },
        protocol: UpstreamProtocol::Auto,
        server_name: None,
    }))
}

/// Splits `host:port`, `1.2.3.4:80` or `[::1]:80`.
fn address(report: &mut Report, field: &Field<'_>, written: &str) -> Option<(HostName, u16)> {
    if let Some((scheme, rest)) = written.split_once("://") {
        let rest = rest.trim_end_matches('/');
        report.invalid(
            field,
            format!("{written:?} is a URL, not host:port"),
            match scheme {
                "https" => format!("write address: \"{rest}\" and tls: {{}}"),
                _ => format!("write address: \"{rest}\""),
            },
        );
        return None;
    }
    let Some((host, port)) = written.rsplit_once(':') else {
        report.invalid(
            field,
            format!("{written:?} has no port"),
            format!("write host and port, such as \"{written}:8080\""),
        );
        return None;
    };
    if host.contains(':') && !host.starts_with('[') {
        report.invalid(
            field,
            format!("{written:?} has more than one colon"),
            "put IPv6 addresses in brackets: \"[::1]:80\"",
        );
        return None;
    }
    let Some(number) = port.parse::<u16>().ok().filter(|port| *port > 0) else {
        report.invalid(
            field,
            format!("{written:?} has no valid port"),
            "end with a number from 1 to 65535",
        );
        return None;
    };
    let host = super::words::host_name(report, field, host)?;
    Some((host, number))
}

/// Missing is what the CA may be.
fn upstream_tls(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &BackendTls,
) -> Option<Found<UpstreamTls>> {
    let insecure = wire.insecure_skip_verify.unwrap_or(false);
    let trusts = [
        wire.ca_secret_name.is_some(),
        wire.ca_config_map_name.is_some(),
        insecure,
    ];
    if trusts.iter().filter(|set| **set).count() > 1 {
        report.invalid(
            field,
            "it says more than once which certificates are trusted",
            "set at most one of caSecretName, caConfigMapName and insecureSkipVerify",
        );
        return None;
    }
    let server_name = match &wire.server_name {
        None => None,
        Some(name) => Some(super::words::host_name(
            report,
            &field.at("serverName"),
            name,
        )?),
    };
    let (roots, fingerprint) = if trusts[0] || trusts[1] {
        let roots = references.roots(
            report,
            field,
            wire.ca_secret_name.as_deref(),
            wire.ca_config_map_name.as_deref(),
        );
        match roots {
            Some((roots, fingerprint)) => (Some(roots), Some(fingerprint)),
            None => return Some(Found::Missing),
        }
    } else {
        (None, None)
    };
    Some(Found::Here(UpstreamTls {
        server_name: server_name.map(|name| name.as_str().to_owned()),
        roots,
        roots_fingerprint: fingerprint,
        insecure_skip_verify: insecure,
    }))
}

fn static_folder(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &StaticFiles,
) -> Option<StaticFolder> {
    let at = field.at("path");
    let written = Path::new(&wire.path);
    let leaves = written
        .components()
        .any(|part| matches!(part, Component::ParentDir));
    let root = match &references.inputs.environment.static_files {
        StaticFilesPolicy::RelativeTo(base) => Some(joined(base, written)),
        StaticFilesPolicy::Within(base) if !leaves && !written.is_absolute() => {
            Some(joined(base, written))
        }
        StaticFilesPolicy::Within(base) => {
            report.invalid(
                at,
                format!("{:?} leads out of the folder for static files", wire.path),
                format!("write a path relative to {}, without ..", base.display()),
            );
            None
        }
    };
    let names = [&wire.path].into_iter().chain(&wire.index);
    if names.chain(&wire.fallback).any(|name| name.contains('\0')) {
        report.invalid(field, "a name contains NUL", "no file has such a name");
        return None;
    }
    if wire.path.is_empty() {
        report.invalid(at, "the path is empty", "write one such as site, or .");
        return None;
    }
    let index = if wire.index.is_empty() {
        vec!["index.html".to_owned()]
    } else {
        wire.index.clone()
    };
    let names = field.at("index");
    for (position, name) in index.iter().enumerate() {
        if name.is_empty() || name.contains('/') || name == ".." || name == "." {
            report.invalid(
                names.index(position),
                format!("{name:?} is not the name of a file"),
                "write a name such as index.html",
            );
            return None;
        }
    }
    if let Some(fallback) = &wire.fallback {
        let inside = Path::new(fallback)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !inside {
            report.invalid(
                field.at("fallback"),
                format!("{fallback:?} leads out of the folder"),
                "write a path relative to it, such as index.html",
            );
            return None;
        }
    }
    Some(StaticFolder {
        root: root?,
        strip_prefix: String::new(),
        index,
        listing: wire.listing.unwrap_or(false),
        fallback: wire.fallback.clone(),
    })
}

/// `base/path` without `.` segments, which would make equal folders differ.
fn joined(base: &Path, path: &Path) -> PathBuf {
    base.join(path)
        .components()
        .filter(|part| !matches!(part, Component::CurDir))
        .collect()
}

/// Writes down all that makes two clusters different. What has its default is left out, so that keys
/// stay short where people read them.
fn key_of(cluster: &Cluster) -> ClusterKey {
    let default = Policy::default();
    let mut key = cluster.name.clone();
    let mut part = |args: std::fmt::Arguments<'_>| {
        key.push('|');
        // Writing to a String cannot fail.
        let _ = key.write_fmt(args);
    };
    if let Target::Agent { mapping, .. } = &cluster.target {
        part(format_args!("mapping={mapping}"));
    }
    match cluster.protocol {
        UpstreamProtocol::Auto => {}
        UpstreamProtocol::Http1 => part(format_args!("http1")),
        UpstreamProtocol::Http2 => part(format_args!("http2")),
    }
    if let Some(tls) = &cluster.tls {
        part(format_args!(
            "tls={}",
            tls.server_name.as_deref().unwrap_or("")
        ));
        if let Some(roots) = tls.roots_fingerprint {
            let roots = roots.to_string();
            part(format_args!("ca={roots:.16}"));
        }
        if tls.insecure_skip_verify {
            part(format_args!("insecure"));
        }
    }
    if let Some(version) = cluster.proxy_protocol {
        part(format_args!("proxy={version:?}"));
    }
    if cluster.load_balancing != default.load_balancing {
        part(format_args!("lb={:?}", cluster.load_balancing));
    }
    if let Some(check) = &cluster.active_health {
        // Hashed: probes may carry credentials in their headers, and keys are shown to people.
        let mut hash = Sha256::new_with_prefix(format!("{check:?}"));
        for (name, value) in &check.headers {
            hash.update(name.as_str());
            hash.update([0]);
            hash.update(value.as_bytes());
            hash.update([0]);
        }
        let hash = Fingerprint(hash.finalize().into()).to_string();
        part(format_args!("active={hash:.16}"));
    }
    if cluster.passive_health != default.passive_health {
        part(format_args!(
            "passive={}/{:?}",
            cluster.passive_health.consecutive_failures, cluster.passive_health.ejection_time
        ));
    }
    if let Some(max) = cluster.circuit.max_requests {
        part(format_args!("max={max}"));
    }
    if cluster.connect_timeout != default.connect_timeout {
        part(format_args!("connect={:?}", cluster.connect_timeout));
    }
    ClusterKey(key.into())
}
