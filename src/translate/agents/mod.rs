//! Agents: what their objects say, what they ask for themselves, and what is known of their sessions.
//!
//! ```text
//! spec.mappings, requests ─► read() ─► routes `AGENT:MAPPING` ─► the way of all routes ─► finish() ─► status, verdicts
//! ```
//!
//! A mapping is short for a route ([ADR 0047](../../../docs/adr/0047-a-mapping-is-a-route.md)), so certificates,
//! conflicts and limits are those of routes; only the words about them come back to the agent. What an agent asks
//! for counts after every object. Which names it may serve is decided here and nowhere else.

mod routes;
mod wishes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_model::{
    Agent, AgentId, HostPattern, MappingVerdict, PortSet, RequestedMapping, RouteId, StoredKey,
};

use self::routes::{fold, is_allowed};
use super::conflicts::id_of;
use super::credentials;
use super::durations::duration_or;
use super::ports::WantedPort;
use super::report::{Field, Report};
use super::status::{Conditions, joined};
use super::words::host_pattern;
use super::{
    Inputs, Kind, LastGood, ObjectRef, Problem, Severity, Translation, data_paths, mappings,
    sessions,
};
use crate::api::conditions::{Condition, ConditionType, Reason};
use crate::api::{
    AgentMapping, AgentPort, RequestedMappingStatus, TlsRoute, TlsRouteStatus, TunnelAgent,
    TunnelAgentStatus,
};

/// Between the names of an agent and of its mapping. No object of Kubernetes has it in its name.
pub(super) const SEPARATOR: char = ':';
/// Services are not tried more often.
const SHORTEST_PROBE: Duration = Duration::from_secs(5);

/// Whether a route stands for a mapping of an agent.
pub(super) fn is_mapping(id: &RouteId) -> bool {
    id.name.contains(SEPARATOR)
}

/// The route that a mapping stands for.
pub(super) fn route_id(agent: &AgentId, mapping: &str) -> RouteId {
    let name = format!("{}{SEPARATOR}{mapping}", agent.name);
    RouteId::new(Arc::clone(&agent.namespace), name)
}

/// The routes that an object's mappings stand for, and what its agent asked for when the status was written.
pub fn mapping_routes(id: &AgentId, agent: &TunnelAgent) -> Vec<RouteId> {
    let own = agent.spec.mappings.iter().map(|mapping| &mapping.name);
    let status = agent.status.as_ref();
    let asked = status.map_or(&[][..], |status| &status.requested_mappings);
    let asked = asked.iter().map(|mapping| &mapping.name);
    own.chain(asked).map(|name| route_id(id, name)).collect()
}

/// A route that stands for a mapping, as people know it.
pub fn in_words(id: &RouteId) -> Option<String> {
    let (agent, mapping) = id.name.split_once(SEPARATOR)?;
    Some(format!(
        "mapping {mapping} of TunnelAgent {}/{agent}",
        id.namespace
    ))
}

/// An agent whose object was read, and whose mappings wait for what becomes of their routes.
pub(super) struct ReadAgent {
    pub(super) id: AgentId,
    pub(super) wire: Arc<TunnelAgent>,
    report: Report,
    /// What is wrong with mappings, its own wishes included.
    pub(super) wrong: Report,
    keys: Vec<StoredKey>,
    hold: Duration,
    probe_interval: Option<Duration>,
    requested: Vec<RequestedMapping>,
    /// Verdicts that need no route, by place among the requests.
    refused: BTreeMap<usize, (Reason, String)>,
    /// The names that its mappings may have.
    allowed: Vec<HostPattern>,
    /// The ports that it may ask for.
    pub(super) allowed_ports: PortSet,
    /// Routes of the object's mappings.
    pub(super) mapped: Vec<Mapped>,
    /// Routes of what the agent asks for.
    pub(super) asked: Vec<Mapped>,
    /// Ports of both.
    pub(super) ports: Vec<WantedPort>,
    /// What became of the ports that the agent asks for, by place among the requests.
    pub(super) port_verdicts: BTreeMap<usize, (bool, Reason, String)>,
    /// The ports that lead to it.
    pub(super) opened: Vec<AgentPort>,
}

/// A mapping as a route.
pub(super) struct Mapped {
    pub(super) id: RouteId,
    pub(super) route: Arc<TlsRoute>,
    name: String,
    /// Its place in the object, or among the requests.
    index: usize,
}

/// What became of a mapping's route.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) problems: Vec<Problem>,
    pub(super) status: Option<TlsRouteStatus>,
    /// Hostnames that are served.
    pub(super) served: BTreeSet<String>,
}

/// What is said of an agent in the end.
pub(super) struct Finished {
    pub(super) agent: Agent,
    pub(super) status: TunnelAgentStatus,
    pub(super) reports: [Report; 2],
}

pub(super) fn reference(id: &AgentId) -> ObjectRef {
    ObjectRef {
        kind: Kind::TunnelAgent,
        namespace: Some(id.namespace.to_string()),
        name: id.name.to_string(),
    }
}

/// Reads every agent of this edge's class, by name. A second one of the same name is not read.
pub(super) fn read_all(inputs: &Inputs) -> Vec<ReadAgent> {
    let class = &inputs.environment.class_name;
    let mut all: BTreeMap<AgentId, &Arc<TunnelAgent>> = BTreeMap::new();
    for agent in &inputs.agents {
        if agent.spec.class_name == *class {
            all.entry(id_of(&agent.metadata)).or_insert(agent);
        }
    }
    let read = |(id, wire): (AgentId, &Arc<TunnelAgent>)| ReadAgent::new(inputs, id, wire);
    all.into_iter().map(read).collect()
}

/// Mappings whose last good version has a name that its agent may not serve any more.
pub(super) fn barred(agents: &[ReadAgent], last_good: &LastGood) -> BTreeSet<RouteId> {
    let mut barred = BTreeSet::new();
    for agent in agents {
        for mapped in agent.mapped.iter().chain(&agent.asked) {
            if let Some(good) = last_good.routes.get(&mapped.id)
                && !agent.may_serve(&good.spec.hostnames)
            {
                barred.insert(mapped.id.clone());
            }
        }
    }
    barred
}

/// Takes back what was said of mappings as routes, and says it of their agents.
pub(super) fn finish_all(
    agents: Vec<ReadAgent>,
    inputs: &Inputs,
    now: SystemTime,
    result: &mut Translation,
) {
    let mut outcomes: BTreeMap<RouteId, Outcome> = BTreeMap::new();
    for problem in std::mem::take(&mut result.problems) {
        let object = &problem.object;
        let namespace = object.namespace.as_deref().unwrap_or_default();
        let id = RouteId::new(namespace, object.name.as_str());
        // A route that has the name of a mapping is none, and said to be none.
        let route = object.kind == Kind::TlsRoute && problem.field != "metadata.name";
        if route && is_mapping(&id) {
            outcomes.entry(id).or_default().problems.push(problem);
        } else {
            result.problems.push(problem);
        }
    }
    let statuses = Arc::make_mut(&mut result.statuses);
    for (id, status) in std::mem::take(&mut statuses.routes) {
        if is_mapping(&id) {
            outcomes.entry(id).or_default().status = Some(status);
        } else {
            statuses.routes.insert(id, status);
        }
    }
    for host in result.snapshot.hosts.values() {
        if is_mapping(&host.route) {
            let outcome = outcomes.entry(host.route.clone()).or_default();
            outcome.served.insert(host.pattern.to_string());
        }
    }
    let used = mappings::used(&result.snapshot);
    for agent in agents {
        let id = agent.id.clone();
        let services = used.keys().filter(|(of, _)| *of == id).count();
        let finished = agent.finish(inputs, &mut outcomes, services, now);
        for report in finished.reports {
            report.close(result);
        }
        let agent = Arc::new(finished.agent);
        result.snapshot.agents.insert(id.clone(), agent);
        let statuses = Arc::make_mut(&mut result.statuses);
        statuses.agents.insert(id, finished.status);
    }
    mappings::hand_out(&mut result.snapshot, used, &result.mappings);
}

// === impl ReadAgent ===

impl ReadAgent {
    fn new(inputs: &Inputs, id: AgentId, wire: &Arc<TunnelAgent>) -> Self {
        let mut report = Report::new(reference(&id));
        let field = Field::SPEC;
        let at = field.at("allowedHostnames");
        let mut allowed = Vec::new();
        for (index, name) in wire.spec.allowed_hostnames.iter().enumerate() {
            allowed.extend(host_pattern(&mut report, &at.index(index), name));
        }
        let allowed_ports = PortSet::parse(&wire.spec.allowed_ports);
        let hint = "write ports such as 25565, 51820/udp and 20000-20100";
        let allowed_ports = report.keep(field.at("allowedPorts"), allowed_ports, hint);
        let hold = wire.spec.hold.as_deref();
        let hold = duration_or(&mut report, &field.at("hold"), hold, Agent::HOLD);
        let probe_interval = read_probe_interval(&mut report, &field, wire);
        let keys = credentials::keys(&mut report, inputs, &id, &wire.spec.credential);
        let requested = inputs.agent_requests.get(&id);
        let mut read = Self {
            wrong: Report::new(reference(&id)),
            wire: Arc::clone(wire),
            report,
            keys,
            hold: hold.unwrap_or(Agent::HOLD),
            probe_interval,
            requested: requested.cloned().unwrap_or_default(),
            refused: BTreeMap::new(),
            allowed,
            allowed_ports: allowed_ports.unwrap_or_default(),
            mapped: Vec::new(),
            asked: Vec::new(),
            ports: Vec::new(),
            port_verdicts: BTreeMap::new(),
            opened: Vec::new(),
            id,
        };
        read.map();
        read.ask();
        read
    }

    /// Whether its mappings may have these names.
    pub(super) fn may_serve(&self, hostnames: &[String]) -> bool {
        let mut all = hostnames.iter().map(|name| HostPattern::parse(name));
        all.all(|host| host.is_ok_and(|host| is_allowed(&self.allowed, &host)))
    }

    /// Says what became of everything.
    pub(super) fn finish(
        mut self,
        inputs: &Inputs,
        outcomes: &mut BTreeMap<RouteId, Outcome>,
        services: usize,
        now: SystemTime,
    ) -> Finished {
        let previous = inputs.last_good.statuses.agents.get(&self.id);
        let wire = Arc::clone(&self.wire);
        let previous = previous.or(wire.status.as_ref());
        let mut hostnames = BTreeSet::new();
        let mut dns_records = Vec::new();
        let mut served = |outcome: &Outcome| {
            hostnames.extend(outcome.served.iter().cloned());
            if let Some(status) = &outcome.status
                && !outcome.served.is_empty()
            {
                for line in &status.dns_records {
                    if !dns_records.contains(line) {
                        dns_records.push(line.clone());
                    }
                }
            }
        };
        for mapped in std::mem::take(&mut self.mapped) {
            let outcome = outcomes.remove(&mapped.id).unwrap_or_default();
            served(&outcome);
            fold(&mut self.wrong, &mapped, outcome);
        }
        let mut asked: BTreeMap<usize, Outcome> = BTreeMap::new();
        for mapped in std::mem::take(&mut self.asked) {
            let outcome = outcomes.remove(&mapped.id).unwrap_or_default();
            served(&outcome);
            asked.insert(mapped.index, outcome);
        }
        let requested = self.verdicts(&asked);

        let generation = self.wire.metadata.generation;
        let before: &[Condition] = previous.map_or(&[], |status| &status.conditions);
        let mut conditions = Conditions::new(before, generation, now);
        let accepted = ConditionType::Accepted;
        conditions.judge(&self.report, accepted, Reason::Accepted, "valid");
        credentials::judge(&mut conditions, &self.report, self.keys.len());
        let seen = sessions::judge(&mut conditions, inputs, &self.id, self.is_suspended());
        self.mappings_accepted(&mut conditions, &requested);
        if self.is_suspended() || inputs.agents_seen.is_none() {
            conditions.remove(ConditionType::DataPathHealthy);
        } else {
            data_paths::judge(
                &mut conditions,
                seen,
                self.probe_interval.is_some(),
                services,
            );
        }
        let mut summary = vec![
            ConditionType::Accepted,
            ConditionType::CredentialReady,
            ConditionType::Connected,
            ConditionType::MappingsAccepted,
        ];
        if self.wire.spec.optional == Some(true) && !self.is_suspended() {
            summary.retain(|type_| *type_ != ConditionType::Connected);
        }
        conditions.summarize(&summary);
        let status = TunnelAgentStatus {
            observed_generation: generation,
            conditions: conditions.into_inner(),
            hostnames: hostnames.into_iter().take(512).collect(),
            ports: std::mem::take(&mut self.opened),
            dns_records: dns_records.into_iter().take(512).collect(),
            requested_mappings: requested,
            ..sessions::status(seen, previous)
        };
        let verdicts = status.requested_mappings.iter().map(|one| MappingVerdict {
            name: one.name.clone(),
            accepted: one.accepted,
            reason: one.reason.clone(),
            message: one.message.clone(),
        });
        let mut verdicts: Vec<_> = verdicts.collect();
        verdicts.sort();
        let agent = Agent {
            id: self.id.clone(),
            keys: self.keys.clone(),
            suspended: self.is_suspended(),
            mappings: Vec::new(),
            verdicts,
            hold: self.hold,
            probe_interval: self.probe_interval,
        };
        Finished {
            agent,
            status,
            reports: [self.report, self.wrong],
        }
    }

    fn is_suspended(&self) -> bool {
        self.wire.spec.suspend == Some(true)
    }

    fn mappings_accepted(&self, conditions: &mut Conditions, asked: &[RequestedMappingStatus]) {
        let type_ = ConditionType::MappingsAccepted;
        let enabled = |it: &&AgentMapping| it.enabled != Some(false);
        let count = self.wire.spec.mappings.iter().filter(enabled).count() + asked.len();
        if count == 0 && self.wrong.count() == 0 {
            conditions.remove(type_);
            return;
        }
        // What somebody must mend comes before what mends itself.
        let mut all: Vec<_> = self.wrong.all().filter(|it| matters(it)).collect();
        all.sort_by_key(|it| it.severity() == Severity::Progress);
        if let Some(first) = all.first() {
            conditions.set(type_, false, first.reason, joined(all.into_iter()));
            return;
        }
        let message = match count {
            1 => "the mapping is served".to_owned(),
            _ => format!("all {count} mappings are served"),
        };
        conditions.set(type_, true, Reason::MappingsAccepted, message);
    }
}

/// Whether a problem keeps a mapping from being served as it should. Of wishes all count.
fn matters(problem: &Problem) -> bool {
    problem.severity() != Severity::Warning || problem.field.starts_with("status.")
}

/// How often services are tried; None for never.
fn read_probe_interval(
    report: &mut Report,
    field: &Field<'_>,
    wire: &TunnelAgent,
) -> Option<Duration> {
    let at = field.at("probeInterval");
    let written = wire.spec.probe_interval.as_deref();
    let interval = duration_or(report, &at, written, Agent::PROBE_INTERVAL)?;
    if !interval.is_zero() && interval < SHORTEST_PROBE {
        report.invalid(
            at,
            format!("{} is too often", written.unwrap_or_default()),
            "write at least 5s, or 0s for never",
        );
        return Some(Agent::PROBE_INTERVAL);
    }
    (!interval.is_zero()).then_some(interval)
}
