//! The uniform tracker rule: peers reach the HTTP trackers of one process all through this edge or all directly.
//!
//! A tracker process has one switch that says whether addresses of clients come from X-Forwarded-For. Mixed
//! trackers would make it record wrong addresses for one half, silently. What is one process is decided here, from
//! what is written and what Services are known to lead to; nothing is looked up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tidegate_model::{HostName, ObjectName, RouteId};

use super::conflicts::id_of;
use super::report::{Field, Report};
use super::udp::is_udp;
use super::{Inputs, reach};
use crate::api::conditions::Reason;
use crate::api::uniform::mixed;
use crate::api::{RouteRule, TlsRoute, TlsRouteSpec};

/// The HTTP trackers of a route, and whether peers come to each through the edge.
fn trackers(spec: &TlsRouteSpec) -> impl Iterator<Item = (&RouteRule, bool)> {
    spec.rules.iter().filter_map(|rule| {
        let tracker = rule.tracker.as_ref()?;
        (!is_udp(rule)).then_some((rule, tracker.exposure.as_deref() != Some("Direct")))
    })
}

/// A tracker as people know it: `http1 (http1.example.com)`.
pub(super) fn label(spec: &TlsRouteSpec, rule: &RouteRule) -> String {
    let hosts = spec.hostnames_of(rule).join(", ");
    match &rule.name {
        Some(name) => format!("{name} ({hosts})"),
        None => hosts,
    }
}

/// Checks the rules of one object.
pub(super) fn check_within(report: &mut Report, spec: &TlsRouteSpec) {
    let side = |wanted| {
        trackers(spec)
            .filter(|(_, through)| *through == wanted)
            .map(|(rule, _)| label(spec, rule))
            .collect::<Vec<_>>()
    };
    complain(report, &side(true), &side(false));
}

/// Whether there was something to complain about.
fn complain(report: &mut Report, through: &[String], direct: &[String]) -> bool {
    if through.is_empty() || direct.is_empty() {
        return false;
    }
    let (message, hint) = mixed(&through.join(", "), &direct.join(", "));
    let at = Field::SPEC.at("rules");
    report.add(at, Reason::MixedTrackerProxy, message, hint);
    true
}

/// What makes trackers those of one process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Process {
    /// The user says so, within a namespace.
    Group(String, String),
    /// A Service, or a host that is named like one; whatever the port.
    Host(String),
    /// The same port of the same host.
    Port(String, u16),
    /// The same port of the same address.
    Address(SocketAddr),
}

/// What the trackers of a route are.
#[derive(Debug, Clone)]
struct Known {
    through: bool,
    labels: Vec<String>,
}

/// The processes seen so far.
#[derive(Debug)]
pub(super) struct TrackerGroups<'a> {
    inputs: &'a Inputs,
    seen: BTreeMap<Process, BTreeMap<RouteId, Known>>,
    of_route: BTreeMap<RouteId, BTreeSet<Process>>,
}

// === impl TrackerGroups ===

impl<'a> TrackerGroups<'a> {
    pub(super) fn new(inputs: &'a Inputs) -> Self {
        Self {
            inputs,
            seen: BTreeMap::new(),
            of_route: BTreeMap::new(),
        }
    }

    /// Notes a route that was served as it is before: a change of another one, however old, must not take it out
    /// of service. To be called in order of age, before any [`TrackerGroups::admit`].
    pub(super) fn settle(&mut self, route: &TlsRoute) {
        if trackers(&route.spec).next().is_none() || route.spec.suspend.unwrap_or(false) {
            return;
        }
        let id = id_of(&route.metadata);
        let good = self.inputs.last_good.routes.get(&id);
        if good.is_some_and(|good| *good.spec == route.spec) {
            self.take(None, &id, &route.spec);
        }
    }

    /// Adds a route to its processes, unless it would mix one; then nothing is added, and the report says so.
    pub(super) fn admit(&mut self, report: &mut Report, id: &RouteId, spec: &TlsRouteSpec) -> bool {
        self.take(Some(report), id, spec)
    }

    fn take(&mut self, report: Option<&mut Report>, id: &RouteId, spec: &TlsRouteSpec) -> bool {
        for process in self.of_route.remove(id).unwrap_or_default() {
            if let Some(routes) = self.seen.get_mut(&process) {
                routes.remove(id);
            }
        }
        // A route by itself is not mixed; that was looked at before.
        let Some((_, through)) = trackers(spec).next() else {
            return true;
        };
        let own = Known {
            through,
            labels: trackers(spec)
                .map(|(rule, _)| format!("{} of {id}", label(spec, rule)))
                .collect(),
        };
        let processes = self.processes(id, spec);
        for process in processes.keys() {
            let others = self.seen.get(process);
            let others = || others.into_iter().flatten();
            if others().all(|(_, other)| other.through == own.through) {
                continue;
            }
            let side = |wanted| {
                let mut side: Vec<String> = others()
                    .filter(|(_, known)| known.through == wanted)
                    .flat_map(|(of, known)| self.told(id, of, known))
                    .collect();
                if own.through == wanted {
                    side.extend(own.labels.iter().cloned());
                }
                side.dedup();
                side
            };
            if let Some(report) = report {
                complain(report, &side(true), &side(false));
            }
            return false;
        }
        for (process, _) in processes.into_iter().filter(|(_, own)| *own) {
            let routes = self.seen.entry(process.clone()).or_default();
            routes.insert(id.clone(), own.clone());
            self.of_route.entry(id.clone()).or_default().insert(process);
        }
        true
    }

    /// What the writer of a route may read of another.
    fn told(&self, reader: &RouteId, of: &RouteId, known: &Known) -> Vec<String> {
        if self.inputs.environment.is_shared() && reader.namespace != of.namespace {
            vec!["a tracker of another namespace".to_owned()]
        } else {
            known.labels.clone()
        }
    }

    /// The processes of a route's trackers, and whether the route has a say in each: one that leads to pods of
    /// another namespace has none, or it could keep those from being served.
    fn processes(&self, id: &RouteId, spec: &TlsRouteSpec) -> BTreeMap<Process, bool> {
        let namespace = id.namespace.to_string();
        let mut all = BTreeMap::new();
        if let Some(group) = &spec.tracker_group {
            all.insert(Process::Group(namespace.clone(), group.clone()), true);
        }
        let grouped = spec.tracker_group.is_some();
        for backend in trackers(spec).flat_map(|(rule, _)| &rule.backends) {
            if let Some(service) = &backend.service {
                let Ok(port) = u16::try_from(service.port) else {
                    continue;
                };
                if self.inputs.environment.is_shared() {
                    self.service(&mut all, id, &namespace, &service.name, port, grouped);
                } else {
                    host(&mut all, &service.name.to_ascii_lowercase(), port, grouped);
                }
            } else if let Some((name, port)) = backend.address.as_deref().and_then(split) {
                self.address(&mut all, id, &name, port);
            }
        }
        all
    }

    /// A Service object: itself, and where its endpoints are.
    fn service(
        &self,
        all: &mut BTreeMap<Process, bool>,
        reader: &RouteId,
        namespace: &str,
        name: &str,
        port: u16,
        grouped: bool,
    ) {
        let own = *reader.namespace == *namespace;
        let host = format!("{name}.{namespace}.svc");
        if !grouped {
            all.insert(Process::Host(host.clone()), own);
        }
        all.insert(Process::Port(host, port), own);
        let Some(data) = (self.inputs.services).get(&ObjectName::new(namespace, name)) else {
            return;
        };
        if let Some(elsewhere) = &data.external_name {
            all.insert(Process::Port(elsewhere.to_ascii_lowercase(), port), own);
        }
        let ports = data.ports.iter().filter(|it| it.port == port);
        for address in ports.flat_map(|it| &it.addresses) {
            all.insert(Process::Address(canonical(*address)), own);
        }
    }

    /// `address: "host:port"`: the same port is the same process, other ports of the host are who knows what.
    fn address(
        &self,
        all: &mut BTreeMap<Process, bool>,
        reader: &RouteId,
        name: &HostName,
        port: u16,
    ) {
        let local = name.as_str() == "localhost";
        if let Some(ip) = name.ip().or(local.then_some(Ipv4Addr::LOCALHOST.into())) {
            let address = canonical(SocketAddr::new(ip, port));
            let own = !self.is_of_another(reader, address);
            all.insert(Process::Address(address), own);
            return;
        }
        let environment = &self.inputs.environment;
        match reach::service_in_cluster(name.as_str(), &environment.cluster_domain) {
            Some((service, namespace)) if environment.is_shared() => {
                self.service(all, reader, namespace, service, port, true);
            }
            _ => {
                all.insert(Process::Port(name.as_str().to_owned(), port), true);
            }
        }
    }

    /// Whether only Services of other namespaces lead there.
    fn is_of_another(&self, reader: &RouteId, address: SocketAddr) -> bool {
        let mut owners = self.inputs.services.iter().filter(|(_, service)| {
            let mut ports = service.ports.iter();
            ports.any(|port| port.addresses.iter().any(|it| canonical(*it) == address))
        });
        let first = owners.next();
        first.is_some_and(|(name, _)| name.namespace != reader.namespace)
            && owners.all(|(name, _)| name.namespace != reader.namespace)
    }
}

/// A name of the DNS, such as a service of Compose.
fn host(all: &mut BTreeMap<Process, bool>, name: &str, port: u16, grouped: bool) {
    if !grouped {
        all.insert(Process::Host(name.to_owned()), true);
    }
    all.insert(Process::Port(name.to_owned(), port), true);
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(IpAddr::to_canonical(&address.ip()), address.port())
}

/// `host:port`, whose mistakes are told elsewhere.
fn split(address: &str) -> Option<(HostName, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    Some((HostName::parse(host).ok()?, port.parse().ok()?))
}
