//! Mappings with a port: who gets it, where it leads, and whether it could be opened.
//!
//! They are no routes: they have no name, no certificate and no requests. What they have in common with routes is
//! done alike: the oldest owner wins, what agents ask for comes after every object, and a mapping that was right
//! before stays in use while it is wrong. Which ports there may be at all is the word of whoever starts the edge.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_model::{
    AgentTarget, Cluster, IpAccess, ListenError, MappedPort, PortId, PortSet, PortState, RouteId,
    Transport,
};

use super::agents::{self, ReadAgent};
use super::backends::{self, Destination};
use super::balancing::Policy;
use super::references::References;
use super::report::{Field, Report};
use super::{Inputs, Translation, access};
use crate::api::conditions::Reason;
use crate::api::{AgentMapping, AgentPort, AgentRef, Backend};

/// Which ports mappings may have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortPolicy {
    /// Those that the edge was started with.
    pub allowed: PortSet,
    /// TCP ports that the edge itself has.
    pub own: BTreeSet<u16>,
}

/// A mapping with a port, before it is known whether it gets it.
pub(super) struct WantedPort {
    mapping: AgentMapping,
    /// Its place in the object, or among the requests.
    index: usize,
    asked: bool,
}

impl WantedPort {
    /// Of the agent's object.
    pub(super) fn new(mapping: AgentMapping, index: usize) -> Self {
        Self {
            mapping,
            index,
            asked: false,
        }
    }

    /// By the agent's own wish.
    pub(super) fn asked(mapping: AgentMapping, index: usize) -> Self {
        Self {
            mapping,
            index,
            asked: true,
        }
    }
}

/// A mapping in the order in which ports are given away.
struct Turn {
    asked: bool,
    age: SystemTime,
    id: RouteId,
    agent: usize,
    wanted: WantedPort,
}

/// A mapping that is right by itself.
struct Compiled {
    id: PortId,
    cluster: Arc<Cluster>,
    access: Option<IpAccess>,
}

/// Gives ports to mappings, and tells their agents what became of them.
pub(super) fn assign(
    inputs: &Inputs,
    now: SystemTime,
    agents: &mut [ReadAgent],
    result: &mut Translation,
) {
    let mut turns = Vec::new();
    for (place, agent) in agents.iter_mut().enumerate() {
        let created = &agent.wire.metadata.creation_timestamp;
        let created = created.as_ref().map(|time| SystemTime::from(time.0));
        for wanted in std::mem::take(&mut agent.ports) {
            let id = agents::route_id(&agent.id, &wanted.mapping.name);
            let seen = inputs.last_good.first_seen.get(&id).copied();
            let age = created.or(seen).unwrap_or(now);
            result.last_good.first_seen.insert(id.clone(), age);
            turns.push(Turn {
                asked: wanted.asked,
                age,
                id,
                agent: place,
                wanted,
            });
        }
    }
    turns.sort_by(|a, b| (a.asked, a.age, &a.id).cmp(&(b.asked, b.age, &b.id)));
    let mut owners: Owners = BTreeMap::new();
    for turn in turns {
        let Some(agent) = agents.get_mut(turn.agent) else {
            continue;
        };
        let mut work = Work {
            inputs,
            report: Report::new(agents::reference(&agent.id)),
            agent,
            turn: &turn,
        };
        let served = work.serve(&mut owners, result);
        let report = work.report;
        turn.tell(inputs, agent, served.as_deref(), report);
        if let Some(port) = served {
            result.snapshot.ports.insert(port.id, port);
        }
    }
}

/// Who has each port: since when, and whether by an agent's own wish.
type Owners = BTreeMap<PortId, (bool, SystemTime, RouteId)>;

struct Work<'a> {
    inputs: &'a Inputs,
    report: Report,
    agent: &'a ReadAgent,
    turn: &'a Turn,
}

impl Work<'_> {
    fn serve(&mut self, owners: &mut Owners, result: &mut Translation) -> Option<Arc<MappedPort>> {
        let id = &self.turn.id;
        let good = self.inputs.last_good.ports.get(id);
        let mut report = Report::new(agents::reference(&self.agent.id));
        let mut compiled = self.compile(&mut report, &self.turn.wanted.mapping);
        let mut used = Arc::new(self.turn.wanted.mapping.clone());
        if compiled.is_none()
            && let Some(good) = good
        {
            let mut aside = Report::new(agents::reference(&self.agent.id));
            compiled = self.compile(&mut aside, good);
            used = Arc::clone(good);
            if compiled.is_some() {
                let kept = " (the last good version of the mapping stays in use)";
                for problem in report.since(0) {
                    problem.message.push_str(kept);
                }
                report.append(aside);
            }
        }
        self.report.append(report);
        if compiled.is_some() {
            result.last_good.ports.insert(id.clone(), used);
        } else if let Some(good) = good {
            result.last_good.ports.insert(id.clone(), Arc::clone(good));
        }
        let compiled = compiled?;
        if !self.may_have(compiled.id, result) || !self.claim(compiled.id, owners) {
            return None;
        }
        self.say_what_became(compiled.id);
        Some(Arc::new(MappedPort {
            id: compiled.id,
            route: id.clone(),
            cluster: compiled.cluster,
            access: compiled.access,
        }))
    }

    /// The mapping by itself; what is wrong is noted.
    fn compile(&self, report: &mut Report, mapping: &AgentMapping) -> Option<Compiled> {
        let field = Field::SPEC.at("mappings");
        let field = field.index(self.turn.wanted.index);
        let before = report.count();
        let number = backends::port(report, &field.at("port"), mapping.port?);
        let target = AgentTarget::parse(&mapping.target);
        let transport = match &target {
            Ok(AgentTarget::Tcp { .. }) => Some(Transport::Tcp),
            Ok(AgentTarget::Udp { .. }) => Some(Transport::Udp),
            Ok(target) => {
                report.invalid(
                    field.at("target"),
                    format!("{target} is a target for requests, and nothing of what a port carries is opened"),
                    "write tcp:// or udp://, or set hostname instead of port",
                );
                None
            }
            Err(error) => {
                let hint = "write a URL such as tcp://192.168.1.5:25565 or udp://192.168.1.5:51820";
                report.invalid(field.at("target"), error.to_string(), hint);
                None
            }
        };
        report.forbid(
            &field,
            &[
                ("limits", mapping.limits.is_some()),
                ("rateLimit", mapping.rate_limit.is_some()),
                ("protocol", mapping.protocol.is_some()),
                ("tls", mapping.tls.is_some()),
            ],
            "nothing of what a port carries is opened here",
            "leave it out, or set hostname instead of port",
        );
        if transport == Some(Transport::Udp) && mapping.proxy_protocol.as_deref() == Some("v1") {
            report.invalid(
                field.at("proxyProtocol"),
                "version v1 is for connections only",
                "write v2, which stands before each datagram",
            );
        }
        let access = match &mapping.access {
            None => Some(None),
            Some(wire) => access::ip_access(report, &field.at("access"), wire).map(Some),
        };
        if report.count() > before {
            return None;
        }
        let backend = Backend {
            agent: Some(AgentRef {
                name: self.agent.id.name.to_string(),
                target: mapping.target.clone(),
            }),
            proxy_protocol: mapping.proxy_protocol.clone(),
            ..Backend::default()
        };
        let references = References {
            inputs: self.inputs,
            id: &self.turn.id,
        };
        let policy = Policy::default();
        let mut aside = Report::new(agents::reference(&self.agent.id));
        let found = backends::destination(&mut aside, &references, &field, &backend, &policy);
        // That the agent is away is said once, by Connected.
        aside.retain(|problem| problem.reason != Reason::AgentNotConnected);
        report.append(aside);
        let Some(Destination::Cluster(cluster)) = found else {
            return None;
        };
        Some(Compiled {
            id: PortId {
                number: number?,
                transport: transport?,
            },
            cluster,
            access: access?,
        })
    }

    fn add(&mut self, reason: Reason, message: String, hint: String) {
        let field = Field::SPEC.at("mappings");
        let field = field.index(self.turn.wanted.index);
        self.report.add(field.at("port"), reason, message, hint);
    }

    /// Whether anybody here may have the port.
    fn may_have(&mut self, port: PortId, result: &Translation) -> bool {
        let number = port.number;
        if self.turn.wanted.asked && !self.agent.allowed_ports.contains(port) {
            self.add(
                Reason::PortNotAllowed,
                format!(
                    "{port} is not among spec.allowedPorts of TunnelAgent {}",
                    self.agent.id
                ),
                "add it there".to_owned(),
            );
            return false;
        }
        if let Some(policy) = &self.inputs.environment.ports {
            if port.transport == Transport::Tcp && policy.own.contains(&number) {
                self.add(
                    Reason::PortConflict,
                    format!("{port} is the edge's own"),
                    "choose another port".to_owned(),
                );
                return false;
            }
            if !policy.allowed.contains(port) {
                let hint = if self.inputs.environment.is_shared() {
                    format!(
                        "add {number} to tunnel.ports of the chart, or to --tunnel-ports of the operator"
                    )
                } else {
                    format!("start the edge with --tunnel-ports {number} (TIDEGATE_TUNNEL_PORTS)")
                };
                let message = if policy.allowed.is_empty() {
                    format!("{port} is not opened: this edge opens no ports for agents")
                } else {
                    format!("{port} is not among the ports that this edge opens for agents")
                };
                self.add(Reason::PortNotAllowed, message, hint);
                return false;
            }
        }
        let relays = &result.snapshot.udp_relays;
        if port.transport == Transport::Udp && relays.iter().any(|it| it.port == number) {
            self.add(
                Reason::PortConflict,
                format!("{port} belongs to a UDP tracker"),
                "choose another port".to_owned(),
            );
            return false;
        }
        true
    }

    /// Gives the port to the mapping, unless an older one has it.
    fn claim(&mut self, port: PortId, owners: &mut Owners) -> bool {
        let Some((asked, since, owner)) = owners.get(&port) else {
            let Turn { asked, age, id, .. } = self.turn;
            owners.insert(port, (*asked, *age, id.clone()));
            return true;
        };
        let why = match (*since).cmp(&self.turn.age) {
            _ if self.turn.asked && !asked => ", and objects count before what an agent asks for",
            Ordering::Less => ", which is older",
            Ordering::Equal | Ordering::Greater => ", which comes first by name",
        };
        let hidden =
            self.inputs.environment.is_shared() && owner.namespace != self.turn.id.namespace;
        let owner = match agents::in_words(owner) {
            Some(words) if !hidden => words,
            _ => "a TunnelAgent of another namespace".to_owned(),
        };
        self.add(
            Reason::PortConflict,
            format!("{port} already belongs to {owner}{why}"),
            "choose another port for one of the two".to_owned(),
        );
        false
    }

    /// Whether somebody listens at the port.
    fn say_what_became(&mut self, port: PortId) {
        let states = self.inputs.ports.iter().flat_map(|states| states.iter());
        let state: Option<&PortState> = states.into_iter().find(|state| state.id == port);
        let replica = &self.inputs.environment.replica;
        let whose = replica.as_ref().map(|name| format!(" (at replica {name})"));
        let whose = whose.unwrap_or_default();
        let number = port.number;
        let mut told = BTreeSet::new();
        for listener in state.into_iter().flat_map(|state| &state.listeners) {
            let Some(error) = &listener.error else {
                continue;
            };
            let ip = listener.address.ip();
            let message = cannot_listen(error, port, ip);
            let hint = match error {
                ListenError::InUse => format!(
                    "`sudo ss -lntup 'sport = :{number}'` tells which: stop it, or choose another port"
                ),
                ListenError::NotLocal => {
                    "correct --http and --https: the ports of agents are opened at the same addresses".to_owned()
                }
                ListenError::NotPermitted => {
                    "ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher one".to_owned()
                }
                ListenError::Other(_) => "it is tried again every few seconds".to_owned(),
            };
            if told.insert(message.clone()) {
                self.add(Reason::PortUnavailable, format!("{message}{whose}"), hint);
            }
        }
    }
}

impl Turn {
    fn tell(
        &self,
        inputs: &Inputs,
        agent: &mut ReadAgent,
        served: Option<&MappedPort>,
        mut report: Report,
    ) {
        let mapping = &self.wanted.mapping;
        let closed = report.all().any(|it| it.reason == Reason::PortUnavailable);
        if let Some(port) = served
            && !closed
        {
            agent.opened.push(AgentPort {
                name: mapping.name.clone(),
                protocol: port.id.transport.to_string(),
                port: i32::from(port.id.number),
                addresses: addresses(inputs, port.id.number),
            });
        }
        if !self.wanted.asked {
            for problem in report.since(0) {
                problem.message = format!("{}: {}", mapping.name, problem.message);
                let place = problem.field.replace(".agent.", ".");
                problem.field = place;
            }
            agent.wrong.append(report);
            return;
        }
        let verdict = if let Some(problem) = report.all().next() {
            (false, problem.reason, problem.words())
        } else {
            let words = served.map_or_else(String::new, |port| {
                match addresses(inputs, port.id.number).first() {
                    Some(address) => format!("{} at {address}", port.id),
                    None => port.id.to_string(),
                }
            });
            (served.is_some(), Reason::Accepted, words)
        };
        // What it names is told to the agent all the same.
        report.retain(|_| false);
        agent.wrong.append(report);
        agent.port_verdicts.insert(self.wanted.index, verdict);
    }
}

/// Why nobody listens, in words that are the same for every kind of port.
pub(super) fn cannot_listen(error: &ListenError, port: PortId, ip: IpAddr) -> String {
    match error {
        ListenError::InUse => format!("another program has {port} at {ip}"),
        ListenError::NotLocal => format!("{ip} is no address of this machine"),
        ListenError::NotPermitted => format!("the edge may not listen on {port}"),
        ListenError::Other(error) => format!("cannot listen on {port} at {ip}: {error}"),
    }
}

/// Where clients reach a port.
fn addresses(inputs: &Inputs, number: u16) -> Vec<String> {
    let places = inputs.place.list().into_iter();
    let places = places.map(|place| match place.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{number}"),
        _ => format!("{place}:{number}"),
    });
    places.take(64).collect()
}
