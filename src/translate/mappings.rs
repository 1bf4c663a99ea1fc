//! Backends behind agents: each is a mapping of its agent, and a cluster that leads there.
//!
//! Equal definitions are one mapping, whoever wrote them. What the snapshot's clusters lead to is what agents are
//! told, no more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tidegate_model::{
    Agent, AgentId, AgentTarget, AgentTargetError, AgentTls, Cluster, Mapping, MappingId,
    ProxyProtocolVersion, RouteId, Snapshot, Target, TlsMode, UpstreamProtocol,
};

use super::references::{Found, References};
use super::report::{Field, Report};
use crate::api::conditions::Reason;
use crate::api::{AgentRef, Backend, BackendTls, RouteRule};

/// Definitions by agent and identity, whether anything leads there or not.
pub(super) type Mappings = BTreeMap<(AgentId, MappingId), Mapping>;

/// Where a backend behind an agent is, before it is known how to speak there.
pub(super) struct AgentPlace {
    pub(super) agent: AgentId,
    pub(super) target: AgentTarget,
}

/// Reads `agent` of a backend. Missing is the agent.
pub(super) fn place(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &AgentRef,
) -> Option<Found<AgentPlace>> {
    let agent = references.sibling(&wire.name);
    let target = AgentTarget::parse(&wire.target);
    if let Err(error) = &target {
        report.invalid(
            field.at("target"),
            match error {
                AgentTargetError::NotUrl(_) => format!("{:?} is not a target", wire.target),
                error => error.to_string(),
            },
            "write a URL such as http://192.168.1.20:8123",
        );
    }
    let Some(object) = references.agent(&agent) else {
        report.add(
            field.at("name"),
            Reason::AgentNotFound,
            format!("TunnelAgent {agent} does not exist"),
            format!("create it in namespace {}", agent.namespace),
        );
        target.ok()?;
        return Some(Found::Missing);
    };
    if object.spec.class_name != references.inputs.environment.class_name {
        report.add(
            field.at("name"),
            Reason::AgentNotFound,
            format!("TunnelAgent {agent} belongs to another edge"),
            "give both the same className",
        );
        target.ok()?;
        return Some(Found::Missing);
    }
    let seen = references.inputs.agents_seen.as_ref();
    let away = seen.is_some_and(|seen| {
        let agent = seen.agents.get(&agent);
        agent.is_none_or(|agent| agent.sessions.is_empty())
    });
    if away {
        report.add(
            field.at("name"),
            Reason::AgentNotConnected,
            format!("TunnelAgent {agent} is not connected"),
            "start the agent",
        );
    }
    let target = target.ok()?;
    Some(Found::Here(AgentPlace { agent, target }))
}

/// Reads `tls` of a backend behind an agent, which verifies it.
pub(super) fn tls(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: Option<&BackendTls>,
    target: &AgentTarget,
) -> Option<Found<Option<AgentTls>>> {
    let secure = matches!(target, AgentTarget::Https { .. });
    let Some(wire) = wire else {
        return Some(Found::Here(secure.then(AgentTls::default)));
    };
    if !secure {
        let host = target.host().in_url();
        report.invalid(
            field,
            format!("TLS is spoken to targets with https://, and this one is {target}"),
            format!("leave tls out, or write https://{host}:{}", target.port()),
        );
        return None;
    }
    let insecure = wire.insecure_skip_verify.unwrap_or(false);
    let named = wire.ca_secret_name.is_some() || wire.ca_config_map_name.is_some();
    let both = wire.ca_secret_name.is_some() && wire.ca_config_map_name.is_some();
    if both || (named && insecure) {
        report.invalid(
            field,
            "it says more than once which certificates are trusted",
            "set at most one of caSecretName, caConfigMapName and insecureSkipVerify",
        );
        return None;
    }
    let server_name = match &wire.server_name {
        None => None,
        Some(name) => {
            let at = field.at("serverName");
            Some(super::words::host_name(report, &at, name)?)
        }
    };
    let ca_der = if named {
        let found = references.ca_der(
            report,
            field,
            wire.ca_secret_name.as_deref(),
            wire.ca_config_map_name.as_deref(),
        );
        match found {
            Some(found) => found,
            // A missing CA must not become another one.
            None => return Some(Found::Missing),
        }
    } else {
        Vec::new()
    };
    Some(Found::Here(Some(AgentTls {
        server_name: server_name.map(|name| name.as_str().to_owned()),
        ca_der,
        insecure_skip_verify: insecure,
    })))
}

/// The mapping with its identity.
pub(super) fn define(
    target: AgentTarget,
    protocol: UpstreamProtocol,
    tls: Option<AgentTls>,
    proxy_protocol: Option<ProxyProtocolVersion>,
    connect_timeout: Duration,
) -> Mapping {
    // Every part with its length, so that no two definitions have one text.
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(bytes);
    };
    part(target.to_string().as_bytes());
    part(match protocol {
        UpstreamProtocol::Auto => b"auto",
        UpstreamProtocol::Http1 => b"http1",
        UpstreamProtocol::Http2 => b"http2",
    });
    part(match proxy_protocol {
        None => b"",
        Some(ProxyProtocolVersion::V1) => b"v1",
        Some(ProxyProtocolVersion::V2) => b"v2",
    });
    part(&connect_timeout.as_millis().to_be_bytes());
    if let Some(tls) = &tls {
        part(b"tls");
        part(tls.server_name.as_deref().unwrap_or_default().as_bytes());
        part(&[u8::from(tls.insecure_skip_verify)]);
        for ca in &tls.ca_der {
            part(ca);
        }
    }
    let digest: [u8; 32] = hash.finalize().into();
    let mut short = [0; 8];
    short.copy_from_slice(&digest[..8]);
    Mapping {
        id: MappingId::from_hash(short),
        target,
        protocol,
        tls,
        proxy_protocol,
        connect_timeout,
        names: Vec::new(),
    }
}

/// Says when a backend's target is not of the kind that the route's TLS mode needs.
pub(super) fn check_mode(
    report: &mut Report,
    field: &Field<'_>,
    rule: &RouteRule,
    passthrough: bool,
) {
    if super::udp::is_udp(rule) {
        return;
    }
    let field = field.at("backends");
    let agent = |backend: &Backend| Some(AgentTarget::parse(&backend.agent.as_ref()?.target));
    for (index, backend) in rule.backends.iter().enumerate() {
        let Some(Ok(target)) = agent(backend) else {
            continue;
        };
        let (host, port) = (target.host().in_url(), target.port());
        let at = field.index(index);
        let at = at.at("agent");
        let at = at.at("target");
        match target {
            AgentTarget::Udp { .. } => report.invalid(
                at,
                format!("datagrams to {target} have no hostname"),
                "give them a port: a mapping with `port` in the TunnelAgent",
            ),
            AgentTarget::Tcp { .. } if !passthrough => report.invalid(
                at,
                format!("requests cannot be sent to {target}"),
                format!(
                    "write http://{host}:{port} or https://{host}:{port}, or set tls.mode: Passthrough"
                ),
            ),
            AgentTarget::Http { .. } | AgentTarget::Https { .. } if passthrough => report.invalid(
                at,
                format!("bytes, not requests, are passed through, and {target} is a target for requests"),
                format!("write tcp://{host}:{port}, or set tls.mode: Terminate"),
            ),
            _ => {}
        }
    }
}

/// The mapping that a cluster leads to.
pub(super) fn of_cluster(cluster: &Cluster) -> Option<(AgentId, MappingId)> {
    match &cluster.target {
        Target::Agent { agent, mapping } => Some((agent.clone(), mapping.clone())),
        Target::Host { .. } | Target::Addresses(_) => None,
    }
}

/// Mappings that are asked for, by agent and identity, and whose they are.
pub(super) type Used = BTreeMap<(AgentId, MappingId), BTreeSet<String>>;

/// The mappings that the hosts of the snapshot lead to.
pub(super) fn used(snapshot: &Snapshot) -> Used {
    let mut used = Used::new();
    let mut note = |cluster: &Cluster, route: &RouteId| {
        if let Some(key) = of_cluster(cluster) {
            used.entry(key).or_default().insert(route.name.to_string());
        }
    };
    for port in snapshot.ports.values() {
        note(&port.cluster, &port.route);
    }
    for host in snapshot.hosts.values() {
        if let TlsMode::Passthrough(cluster) = &host.tls {
            note(cluster, &host.route);
        }
        for entry in host.all_entries() {
            for cluster in entry.rule.clusters() {
                note(cluster, &entry.rule.route);
            }
        }
    }
    used
}

/// Gives the agents of the snapshot their mappings.
pub(super) fn hand_out(snapshot: &mut Snapshot, used: Used, known: &Mappings) {
    // By agent and identity, which is the order that agents want.
    for (key, names) in used {
        if let (Some(agent), Some(mapping)) = (snapshot.agents.get_mut(&key.0), known.get(&key)) {
            Arc::<Agent>::make_mut(agent)
                .mappings
                .push(Arc::new(Mapping {
                    names: names.into_iter().collect(),
                    ..mapping.clone()
                }));
        }
    }
}
