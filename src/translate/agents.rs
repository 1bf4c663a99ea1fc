//! Agents: what their objects say, checked. Sessions and mappings are served by the tunnel.

use std::time::SystemTime;

use tidegate_model::{HostPattern, RouteId};

use super::access::{ip_access, rate_limit};
use super::quantities::quantity;
use super::references::References;
use super::report::{Field, Report};
use super::status::Conditions;
use super::words::host_pattern;
use super::{Inputs, Kind, ObjectRef};
use crate::api::conditions::{Condition, ConditionType, Reason};
use crate::api::{AgentMapping, TunnelAgent, TunnelAgentStatus};

/// Checks one agent.
pub(super) fn check(
    inputs: &Inputs,
    agent: &TunnelAgent,
    id: &RouteId,
    previous: &[Condition],
    now: SystemTime,
) -> (TunnelAgentStatus, Report) {
    let mut report = Report::new(ObjectRef {
        kind: Kind::TunnelAgent,
        namespace: Some(id.namespace.to_string()),
        name: id.name.to_string(),
    });
    let references = References { inputs, id };
    let field = Field::SPEC;
    let at = field.at("allowedHostnames");
    let mut allowed = Vec::new();
    for (index, name) in agent.spec.allowed_hostnames.iter().enumerate() {
        allowed.extend(host_pattern(&mut report, &at.index(index), name));
    }
    let at = field.at("mappings");
    let mut names: Vec<&str> = Vec::new();
    for (index, wire) in agent.spec.mappings.iter().enumerate() {
        let at = at.index(index);
        if names.contains(&wire.name.as_str()) {
            report.invalid(
                at.at("name"),
                format!("{:?} is also the name of an earlier mapping", wire.name),
                "give it another name",
            );
        }
        names.push(&wire.name);
        mapping(&mut report, &at, wire, &allowed);
    }
    let credential = Field::SPEC.at("credential");
    references.secret_key(
        &mut report,
        &credential.at("secretName"),
        &agent.spec.credential.secret_name,
        &["token"],
    );

    let generation = agent.metadata.generation;
    let mut conditions = Conditions::new(previous, generation, now);
    conditions.judge(&report, ConditionType::Accepted, Reason::Accepted, "valid");
    let missing = report.of(ConditionType::ResolvedRefs).next().is_some();
    let message = super::status::joined(report.of(ConditionType::ResolvedRefs));
    if missing {
        let reason = report
            .of(ConditionType::ResolvedRefs)
            .next()
            .map_or(Reason::SecretNotFound, |problem| problem.reason);
        conditions.set(ConditionType::CredentialReady, false, reason, message);
    } else {
        conditions.set(
            ConditionType::CredentialReady,
            true,
            Reason::ResolvedRefs,
            "the token is there",
        );
    }
    let suspended = agent.spec.suspend.unwrap_or(false);
    let (reason, message) = if suspended {
        (Reason::Suspended, "spec.suspend is true")
    } else {
        (
            Reason::AgentNotConnected,
            "no session of the agent is alive",
        )
    };
    conditions.set(ConditionType::Connected, false, reason, message);
    let optional = agent.spec.optional.unwrap_or(false) && !suspended;
    conditions.summarize(if optional {
        &[ConditionType::Accepted, ConditionType::CredentialReady]
    } else {
        &[
            ConditionType::Accepted,
            ConditionType::CredentialReady,
            ConditionType::Connected,
        ]
    });
    let status = TunnelAgentStatus {
        observed_generation: generation,
        conditions: conditions.into_inner(),
        ..TunnelAgentStatus::default()
    };
    (status, report)
}

fn mapping(report: &mut Report, field: &Field<'_>, wire: &AgentMapping, allowed: &[HostPattern]) {
    if let Some(host) = host_pattern(report, &field.at("hostname"), &wire.hostname) {
        let covered = allowed.iter().any(|pattern| match &host {
            HostPattern::Exact(name) => pattern.matches(name),
            HostPattern::Wildcard(_) => *pattern == host,
        });
        if !covered {
            report.add(
                field.at("hostname"),
                Reason::HostnameNotAllowed,
                format!("{host} is not covered by spec.allowedHostnames"),
                "add the hostname or its wildcard there",
            );
        }
    }
    if !is_target(&wire.target) {
        report.invalid(
            field.at("target"),
            format!("{:?} is not a target", wire.target),
            "write a URL such as http://192.168.1.20:8123",
        );
    }
    if let Some(limits) = &wire.limits {
        let at = field.at("limits");
        quantity(report, &at.at("requestBody"), limits.request_body.as_ref());
    }
    if let Some(limit) = &wire.rate_limit {
        rate_limit(report, &field.at("rateLimit"), limit, "");
    }
    if let Some(access) = &wire.access {
        ip_access(report, &field.at("access"), access);
    }
}

/// Whether a target is `http://host[:port]`, `https://host[:port]` or `tcp://host:port`, without path.
pub(super) fn is_target(target: &str) -> bool {
    let Some((scheme, rest)) = target.split_once("://") else {
        return false;
    };
    let Ok(authority) = rest.trim_end_matches('/').parse::<http::uri::Authority>() else {
        return false;
    };
    let plain = !authority.as_str().contains('@') && !authority.host().is_empty();
    match scheme {
        "http" | "https" => plain,
        "tcp" => plain && authority.port().is_some(),
        _ => false,
    }
}
