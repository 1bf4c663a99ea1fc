//! Whether the ways to an agent's services work, as a condition that names the part that is broken.
//!
//! `DataPathHealthy` is no part of Ready: a service behind an agent may be switched off on purpose.

use std::collections::BTreeMap;

use tidegate_model::{Hop, ObservedAgent, ObservedProbe, ProbeFailure};

use super::status::Conditions;
use crate::api::conditions::{ConditionType, Reason};

/// Services that a message names at most.
const MOST: usize = 5;

/// Sets the condition from what probes have shown. `wanted` is whether services are to be tried at all, `served` how
/// many there are.
pub(super) fn judge(
    conditions: &mut Conditions,
    seen: Option<&ObservedAgent>,
    wanted: bool,
    served: usize,
) {
    let type_ = ConditionType::DataPathHealthy;
    if !wanted || served == 0 {
        conditions.remove(type_);
        return;
    }
    let Some(seen) = seen.filter(|agent| !agent.sessions.is_empty()) else {
        let message = "the agent is not connected, so none of its services can be reached";
        conditions.set(type_, false, Reason::AgentNotConnected, message);
        return;
    };
    let services = by_service(&seen.probes);
    if services.is_empty() {
        conditions.set_unknown(type_, Reason::Pending, "no service has been tried yet");
        return;
    }
    let failing: Vec<_> = services
        .iter()
        .filter_map(|(service, probes)| Some((service, worst(probes)?)))
        .collect();
    let Some((_, first)) = failing.iter().min_by_key(|(_, (_, failure))| failure.hop) else {
        let message = match services.len() {
            1 => "the service behind the agent answers".to_owned(),
            count => format!("all {count} services behind the agent answer"),
        };
        conditions.set(type_, true, Reason::ServicesAnswer, message);
        return;
    };
    let reason = match first.1.hop {
        Hop::Link => Reason::LinkBusy,
        Hop::Agent => Reason::AgentSilent,
        Hop::Service => Reason::ServiceUnreachable,
    };
    let mut parts = vec![format!(
        "{} of {} services fail",
        failing.len(),
        services.len()
    )];
    parts.extend(
        failing
            .iter()
            .take(MOST)
            .map(|(service, (probe, failure))| {
                let (target, names) = *service;
                let process = match services.get(*service).map_or(0, Vec::len) {
                    0 | 1 => String::new(),
                    count => format!(
                        ", as process {} of {count} finds it",
                        short(&probe.instance)
                    ),
                };
                format!("{}: {}", in_words(names, target), way(failure, &process))
            }),
    );
    if failing.len() > MOST {
        parts.push(format!("and {} more", failing.len() - MOST));
    }
    conditions.set(type_, false, reason, parts.join("; "));
}

/// Target and names of a service, and what each process of the agent has found.
type Services<'a> = BTreeMap<(&'a str, &'a [String]), Vec<&'a ObservedProbe>>;

fn by_service(probes: &[ObservedProbe]) -> Services<'_> {
    let mut all = Services::new();
    for probe in probes {
        let service = (&*probe.target, &*probe.names);
        all.entry(service).or_default().push(probe);
    }
    all
}

/// The failure that comes first on the way.
fn worst<'a>(probes: &[&'a ObservedProbe]) -> Option<(&'a ObservedProbe, &'a ProbeFailure)> {
    let failing = probes.iter().filter_map(|probe| {
        let failure = probe.failure.as_ref()?;
        Some((*probe, failure))
    });
    failing.min_by_key(|(_, failure)| failure.hop)
}

/// Which parts work, which does not, and what to look at.
fn way(failure: &ProbeFailure, process: &str) -> String {
    let ProbeFailure {
        hop,
        reason,
        message,
    } = failure;
    match hop {
        Hop::Link => format!("the edge is well, the link is not{process}: {reason}: {message}"),
        Hop::Agent => format!(
            "edge and link are well, the agent's program is not{process}: {reason}: {message}; see its log, or start it anew"
        ),
        Hop::Service => format!(
            "edge, link and agent are well, the service is not{process}: {reason}: {message}; see whether it runs and listens there"
        ),
    }
}

/// Such as `mapping nas (http://192.168.1.10:80)`.
fn in_words(names: &[String], target: &str) -> String {
    let Some(first) = names.first() else {
        return target.to_owned();
    };
    let name = match first.split_once(super::agents::SEPARATOR) {
        Some((_, mapping)) => format!("mapping {mapping}"),
        None => format!("route {first}"),
    };
    format!("{name} ({target})")
}

fn short(instance: &str) -> String {
    instance.chars().take(8).collect()
}
