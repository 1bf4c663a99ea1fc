//! Mappings as the routes that they are short for, and the words about such a route as words about its mapping.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidegate_model::{AgentId, AgentTarget, HostPattern};

use super::super::ports::WantedPort;
use super::super::report::{Field, Report};
use super::{Mapped, Outcome, ReadAgent, route_id};
use crate::api::conditions::Reason;
use crate::api::{
    AgentMapping, AgentRef, Backend, BackendTls, Filter, RouteRule, TlsPolicy, TlsRoute,
    TlsRouteSpec, TunnelAgent,
};

pub(super) const TARGET_HINT: &str = "write a URL such as http://192.168.1.20:8123";

impl ReadAgent {
    /// Makes routes of the object's mappings.
    pub(super) fn map(&mut self) {
        let wire = Arc::clone(&self.wire);
        let field = Field::SPEC.at("mappings");
        let mut names: BTreeSet<&str> = BTreeSet::new();
        for (index, mapping) in wire.spec.mappings.iter().enumerate() {
            let at = field.index(index);
            let before = self.wrong.count();
            if !is_name(&mapping.name) {
                self.wrong.invalid(
                    at.at("name"),
                    format!("{:?} is not a name", mapping.name),
                    "use lower-case letters, digits and hyphens, such as nas",
                );
            } else if !names.insert(&mapping.name) {
                self.wrong.invalid(
                    at.at("name"),
                    format!("{:?} is also the name of an earlier mapping", mapping.name),
                    "give it another name",
                );
            }
            self.look_at(&at, mapping);
            if self.wrong.count() > before || mapping.enabled == Some(false) {
                // There is no route that would say so.
                if let Err(error) = AgentTarget::parse(&mapping.target) {
                    let message = format!("{}: {error}", mapping.name);
                    self.wrong.invalid(at.at("target"), message, TARGET_HINT);
                }
                continue;
            }
            if mapping.port.is_some() {
                self.ports.push(WantedPort::new(mapping.clone(), index));
                continue;
            }
            let mapped = self.mapped(mapping, index);
            self.mapped.push(mapped);
        }
    }

    /// What must be right before there can be a route: the name that it has, and the kind of its target.
    fn look_at(&mut self, at: &Field<'_>, mapping: &AgentMapping) {
        let report = &mut self.wrong;
        let Some(hostname) = &mapping.hostname else {
            if mapping.port.is_none() {
                let hint = "write the name that clients ask for, or the port that they connect to";
                report.invalid(at, "it has neither hostname nor port", hint);
            }
            return;
        };
        if mapping.port.is_some() {
            let hint =
                "leave out one; a hostname is for HTTP, or for TLS that the service speaks itself";
            report.invalid(at.at("port"), "it has a hostname too", hint);
        }
        // A name that is none is said by the route, and so is a bad target: its last good version stays in use.
        if let Ok(host) = HostPattern::parse(hostname)
            && !is_allowed(&self.allowed, &host)
        {
            report.add(
                at.at("hostname"),
                Reason::HostnameNotAllowed,
                format!("{host} is not covered by spec.allowedHostnames"),
                "add the hostname or its wildcard there",
            );
        }
        if is_tcp(mapping) {
            report.forbid(
                at,
                &[
                    ("limits", mapping.limits.is_some()),
                    ("rateLimit", mapping.rate_limit.is_some()),
                    ("access", mapping.access.is_some()),
                    ("protocol", mapping.protocol.is_some()),
                    ("tls", mapping.tls.is_some()),
                ],
                "requests to a target with tcp:// are not opened here",
                "leave it out, or write a target with http:// or https://",
            );
        }
    }

    pub(super) fn mapped(&self, mapping: &AgentMapping, index: usize) -> Mapped {
        let id = route_id(&self.id, &mapping.name);
        let mut route = TlsRoute::new(&id.name, specification(&self.wire, &self.id, mapping));
        route.metadata.namespace = Some(id.namespace.to_string());
        route.metadata.generation = self.wire.metadata.generation;
        let since = &self.wire.metadata.creation_timestamp;
        route.metadata.creation_timestamp.clone_from(since);
        Mapped {
            id,
            route: Arc::new(route),
            name: mapping.name.clone(),
            index,
        }
    }
}

/// The route that a mapping is short for.
fn specification(agent: &TunnelAgent, id: &AgentId, mapping: &AgentMapping) -> TlsRouteSpec {
    let tls = mapping.tls.as_ref().map(|tls| BackendTls {
        server_name: tls.server_name.clone(),
        ca_secret_name: tls.ca_secret_name.clone(),
        ca_config_map_name: tls.ca_config_map_name.clone(),
        insecure_skip_verify: tls.insecure_skip_verify,
    });
    let access = mapping.access.as_ref().map(|access| Filter {
        type_: "IPAccess".to_owned(),
        ip_access: Some(access.clone()),
        ..Filter::default()
    });
    let rate_limit = mapping.rate_limit.as_ref().map(|limit| Filter {
        type_: "RateLimit".to_owned(),
        rate_limit: Some(limit.clone()),
        ..Filter::default()
    });
    TlsRouteSpec {
        hostnames: mapping.hostname.iter().cloned().collect(),
        class_name: agent.spec.class_name.clone(),
        tls: is_tcp(mapping).then(|| TlsPolicy {
            mode: Some("Passthrough".to_owned()),
            ..TlsPolicy::default()
        }),
        rules: vec![RouteRule {
            name: Some(mapping.name.clone()),
            filters: access.into_iter().chain(rate_limit).collect(),
            backends: vec![Backend {
                agent: Some(AgentRef {
                    name: id.name.to_string(),
                    target: mapping.target.clone(),
                }),
                protocol: mapping.protocol.clone(),
                proxy_protocol: mapping.proxy_protocol.clone(),
                tls,
                ..Backend::default()
            }],
            limits: mapping.limits.clone(),
            ..RouteRule::default()
        }],
        ..TlsRouteSpec::default()
    }
}

/// Reports what was said of a mapping's route as what it is: about a mapping.
pub(super) fn fold(wrong: &mut Report, mapped: &Mapped, outcome: Outcome) {
    let kept = outcome.status.as_ref().is_some_and(|status| {
        let mut all = status.conditions.iter();
        all.any(|it| it.reason == Reason::LastGoodKept.as_str())
    });
    for problem in outcome.problems {
        // That the agent is away is said once, by Connected.
        if problem.reason == Reason::AgentNotConnected {
            continue;
        }
        let mut message = format!("{}: {}", mapped.name, problem.message);
        if kept {
            message.push_str(" (the last good version of the mapping stays in use)");
        }
        let field = match place(&problem.field) {
            place if place.is_empty() => format!("spec.mappings[{}]", mapped.index),
            place => format!("spec.mappings[{}].{place}", mapped.index),
        };
        wrong.add(
            field,
            problem.reason,
            message,
            problem.hint.unwrap_or_default(),
        );
    }
}

/// Where in a mapping stands what stands there in its route.
fn place(field: &str) -> String {
    if field.starts_with("spec.hostnames") || field.starts_with("spec.tls") {
        return "hostname".to_owned();
    }
    let Some(rest) = field.strip_prefix("spec.rules") else {
        return String::new();
    };
    let rest = rest.strip_prefix("[0]").unwrap_or(rest);
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    if let Some(backend) = rest.strip_prefix("backends[0]") {
        let member = backend.strip_prefix('.').unwrap_or_default();
        return match member {
            "" => "target".to_owned(),
            _ if member.starts_with("agent") => "target".to_owned(),
            member => member.to_owned(),
        };
    }
    if rest.starts_with("filters") {
        let member = rest.split_once("].").map_or("", |(_, member)| member);
        return match member.strip_prefix("ipAccess") {
            Some(member) => format!("access{member}"),
            None => member.to_owned(),
        };
    }
    match rest {
        // A passthrough that hides who comes.
        "" => "proxyProtocol".to_owned(),
        rest => rest.to_owned(),
    }
}

/// A label, so that the mapping can be part of names of files and Secrets.
pub(super) fn is_name(name: &str) -> bool {
    let good = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=63).contains(&name.len())
        && name.bytes().all(good)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

pub(super) fn is_allowed(allowed: &[HostPattern], host: &HostPattern) -> bool {
    allowed.iter().any(|pattern| match host {
        HostPattern::Exact(name) => pattern.matches(name),
        HostPattern::Wildcard(_) => pattern == host,
    })
}

fn is_tcp(mapping: &AgentMapping) -> bool {
    let target = AgentTarget::parse(&mapping.target);
    matches!(target, Ok(AgentTarget::Tcp { .. }))
}
