//! What is known of an agent's sessions, as conditions and status.
//!
//! Sessions come and go and their figures change all the time: a round trip alone changes no status.

use std::collections::BTreeSet;
use std::time::Duration;

use tidegate_model::{AgentId, ObservedAgent, ObservedSession};

use super::Inputs;
use super::status::Conditions;
use crate::api::conditions::{ConditionType, Reason, timestamp};
use crate::api::{AgentSession, TunnelAgentStatus};

/// Sessions that a status has at most.
const MOST: usize = 64;

/// Sets what sessions decide; returns what is known of the agent.
pub(super) fn judge<'a>(
    conditions: &mut Conditions,
    inputs: &'a Inputs,
    id: &AgentId,
    suspended: bool,
) -> Option<&'a ObservedAgent> {
    let (connected, redundant) = (ConditionType::Connected, ConditionType::Redundant);
    if suspended {
        let message = "spec.suspend is true";
        conditions.set(connected, false, Reason::Suspended, message);
        conditions.remove(redundant);
        return None;
    }
    let Some(seen) = &inputs.agents_seen else {
        let message = "no edge runs that could be asked";
        conditions.set_unknown(connected, Reason::Pending, message);
        conditions.remove(redundant);
        return None;
    };
    let agent = seen.agents.get(id);
    let sessions = agent.map_or(&[][..], |agent| &agent.sessions);
    if sessions.is_empty() {
        let message = "no session of the agent is alive; start it with `tidegate agent`";
        conditions.set(connected, false, Reason::AgentNotConnected, message);
        let message = "the agent is not connected";
        conditions.set(redundant, false, Reason::AgentNotConnected, message);
        return agent;
    }
    let instances: BTreeSet<_> = sessions.iter().map(|one| &one.instance).collect();
    let message = match (sessions.len(), instances.len()) {
        (1, _) => "by one link".to_owned(),
        (links, 1) => format!("by {links} links"),
        (links, instances) => format!("by {links} links of {instances} processes"),
    };
    conditions.set(connected, true, Reason::Connected, message);
    let staying = || sessions.iter().filter(|one| !one.draining);
    let replicas: BTreeSet<_> = staying().map(|one| &one.replica).collect();
    match (staying().count(), replicas.len()) {
        (0 | 1, _) => conditions.set(
            redundant,
            false,
            Reason::SingleLink,
            "only one link is alive; the agent opens a second one by itself unless it is told `links: 1`; its log says what it meets",
        ),
        (_, 1) if seen.replicas > 1 => conditions.set(
            redundant,
            false,
            Reason::SingleReplica,
            format!(
                "all links end at replica {}, and the edge has {}; the agent looks for another one by itself and finds it if the \
                 address that it dials leads to all of them: take session affinity out of the edge's Service",
                replicas.first().map_or("", |name| name),
                seen.replicas
            ),
        ),
        (links, 1) => conditions.set(
            redundant,
            true,
            Reason::Redundant,
            format!("{links} links"),
        ),
        (links, replicas) => conditions.set(
            redundant,
            true,
            Reason::Redundant,
            format!("{links} links to {replicas} replicas"),
        ),
    }
    agent
}

/// The part of the status that speaks of sessions.
pub(super) fn status(
    seen: Option<&ObservedAgent>,
    previous: Option<&TunnelAgentStatus>,
) -> TunnelAgentStatus {
    let Some(seen) = seen else {
        return TunnelAgentStatus {
            last_seen: previous.and_then(|previous| previous.last_seen.clone()),
            agent_version: previous.and_then(|previous| previous.agent_version.clone()),
            ..TunnelAgentStatus::default()
        };
    };
    let newest = seen.sessions.iter().max_by_key(|one| one.since);
    let version = newest.map(|one| one.version.chars().take(64).collect());
    let before = previous.map_or(&[][..], |previous| &previous.sessions);
    let sessions: Vec<_> = seen.sessions.iter().take(MOST).map(session).collect();
    TunnelAgentStatus {
        agent_version: version.or_else(|| previous?.agent_version.clone()),
        last_seen: match seen.last_seen {
            Some(moment) if sessions.is_empty() => Some(timestamp(moment)),
            _ if sessions.is_empty() => previous.and_then(|it| it.last_seen.clone()),
            _ => None,
        },
        sessions: if alike(before, &sessions) {
            before.to_vec()
        } else {
            sessions
        },
        ..TunnelAgentStatus::default()
    }
}

fn session(one: &ObservedSession) -> AgentSession {
    AgentSession {
        id: one.id.clone(),
        replica: Some(one.replica.clone()).filter(|name| !name.is_empty()),
        instance: Some(one.instance.clone()),
        link: Some(i32::from(one.link)),
        carrier: Some(one.carrier.name().to_owned()),
        address: Some(one.address.to_string()),
        since: Some(timestamp(one.since)),
        rtt: one.rtt.map(in_milliseconds),
        version: Some(one.version.chars().take(64).collect()),
        draining: one.draining.then_some(true),
    }
}

/// Whether nothing but round trips differs. One that was not known is news.
fn alike(a: &[AgentSession], b: &[AgentSession]) -> bool {
    let still = |one: &AgentSession| AgentSession {
        rtt: one.rtt.as_ref().map(|_| String::new()),
        ..one.clone()
    };
    a.iter().map(still).eq(b.iter().map(still))
}

/// Such as `12ms` or `0.4ms`.
pub(super) fn in_milliseconds(rtt: Duration) -> String {
    let milliseconds = rtt.as_secs_f64() * 1000.0;
    if milliseconds < 10.0 {
        format!("{milliseconds:.1}ms")
    } else {
        format!("{milliseconds:.0}ms")
    }
}
