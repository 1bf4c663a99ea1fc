//! UDP trackers: what their rules ask for, and what is true of the addresses of their clients.
//!
//! A rule claims no virtual host. Mode `Service` compiles to nothing that is relayed here; whoever makes the Service
//! finds the tracker in [`Translation::udp_trackers`](super::Translation::udp_trackers).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tidegate_model::{
    ListenError, PortId, RuleId, Transport, UdpListenError, UdpRelay, UdpRelayMode, UdpRelayState,
    UdpWayState,
};

use super::backends::{TrackerPlace, tracker_place};
use super::balancing::count_or;
use super::ports::cannot_listen;
use super::references::{Found, References};
use super::report::{Field, Report};
use super::rules::{CompiledRule, Way, hostnames, name_of};
use super::words::one_of;
use super::{Inputs, UdpMode, UdpTracker, udp_services, udp_ways};
use crate::api::conditions::Reason;
use crate::api::{RouteRule, UdpTracker as Wire};

const MAX_SESSIONS: u32 = 65_536;
const CONNECTS_PER_SECOND: u32 = 20;

/// A UDP tracker, compiled. The names are filled in by the route.
#[derive(Debug, Clone)]
pub(super) struct CompiledUdp {
    pub(super) tracker: UdpTracker,
    /// Where in the object it stands.
    pub(super) rule: usize,
    /// What people call the backend.
    pub(super) backend: String,
    /// What is relayed, if anything is and the backend exists.
    pub(super) relay: Option<Arc<UdpRelay>>,
}

pub(super) fn is_udp(wire: &RouteRule) -> bool {
    let type_ = wire
        .tracker
        .as_ref()
        .map(|tracker| tracker.type_.as_deref());
    type_ == Some(Some("UDP"))
}

/// Reads the rule of a UDP tracker; None when something in it is wrong.
pub(super) fn compile(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &RouteRule,
    index: usize,
) -> Option<CompiledRule> {
    let before = report.count();
    let tracker = wire.tracker.as_ref()?;
    let own_hostnames = hostnames(report, &field.at("hostnames"), &wire.hostnames);
    report.forbid(
        field,
        &[
            ("match", wire.r#match.is_some()),
            ("matches", !wire.matches.is_empty()),
            ("filters", !wire.filters.is_empty()),
            ("loadBalancing", wire.load_balancing.is_some()),
            ("healthCheck", wire.health_check.is_some()),
            ("circuit", wire.circuit.is_some()),
            ("timeouts", wire.timeouts.is_some()),
            ("limits", wire.limits.is_some()),
        ],
        "a UDP tracker gets datagrams, not requests",
        "leave it out",
    );
    let at = field.at("tracker");
    report.forbid(
        &at,
        &[
            ("exposure", tracker.exposure.is_some()),
            ("port", tracker.port.is_some()),
            ("probe", tracker.probe.is_some()),
            ("addressParameters", tracker.address_parameters.is_some()),
        ],
        "it is of HTTP trackers",
        "leave it out; tracker.udp.mode says how clients reach a UDP tracker",
    );
    let default = Wire::default();
    let udp = tracker.udp.as_ref().unwrap_or(&default);
    let at = at.at("udp");
    let mode = mode(report, references, &at, udp);
    let addresses = addresses(report, &at.at("addresses"), &udp.addresses);
    let count = |report: &mut Report, member, written, default| {
        count_or(report, &at.at(member), written, default, 1)
    };
    let max_sessions = count(report, "maxSessions", udp.max_sessions, MAX_SESSIONS);
    let connects_per_second = count(
        report,
        "connectsPerSecond",
        udp.connects_per_second,
        CONNECTS_PER_SECOND,
    );
    let place = backend(report, references, &field.at("backends"), wire);
    let port = match udp.port {
        Some(port) => super::backends::port(report, &at.at("port"), port),
        None => None,
    };
    // What is missing is said, but does not make the rule wrong.
    let refused = report
        .since(before)
        .iter()
        .any(|problem| super::report::condition_of(problem.reason).as_str() == "Accepted");
    if refused {
        return None;
    }
    let place = place?;
    let port = match (port, &place) {
        (Some(port), _) => port,
        (None, Found::Here(place)) => place.port,
        (None, Found::Missing) => {
            u16::try_from(wire.backends.first()?.service.as_ref()?.port).ok()?
        }
    };
    let (mode, addresses) = (mode?, addresses?);
    if matches!(mode, UdpMode::Relayed(_))
        && references.inputs.environment.is_shared()
        && port < 1024
    {
        report.invalid(
            at.at("port"),
            format!("{port} is a port of the node's own services"),
            "choose one from 1024, such as 6969",
        );
        return None;
    }
    let id = RuleId {
        route: references.id.clone(),
        rule: name_of(wire, index),
    };
    let service = wire
        .backends
        .first()
        .and_then(|backend| backend.service.as_ref());
    let service =
        service.and_then(|service| Some((service.name.clone(), u16::try_from(service.port).ok()?)));
    let name = match &place {
        Found::Here(place) => place.name.clone(),
        Found::Missing => String::new(),
    };
    let relay = match (mode, place) {
        (UdpMode::Relayed(mode), Found::Here(place)) => Some(Arc::new(UdpRelay {
            id: id.clone(),
            addresses: addresses.clone(),
            port,
            backend: place.target,
            mode,
            max_sessions: max_sessions? as usize,
            connects_per_second: connects_per_second?,
        })),
        _ => None,
    };
    Some(CompiledRule {
        hostnames: own_hostnames?,
        entries: Vec::new(),
        way: Way::Nowhere,
        probe: None,
        udp: Some(CompiledUdp {
            tracker: UdpTracker {
                id,
                hostnames: Vec::new(),
                port,
                addresses,
                mode,
                service,
            },
            rule: index,
            backend: name,
            relay,
        }),
    })
}

fn mode(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &Wire,
) -> Option<UdpMode> {
    let shared = references.inputs.environment.is_shared();
    let default = if shared {
        UdpMode::Service
    } else {
        UdpMode::Direct
    };
    let mode = one_of(
        report,
        &field.at("mode"),
        wire.mode.as_deref(),
        default,
        &[
            ("Direct", UdpMode::Direct),
            ("Service", UdpMode::Service),
            ("Transparent", UdpMode::Relayed(UdpRelayMode::Transparent)),
            (
                "ProxyProtocol",
                UdpMode::Relayed(UdpRelayMode::ProxyProtocol),
            ),
        ],
    )?;
    if mode == UdpMode::Service && !shared {
        report.invalid(
            field.at("mode"),
            "there are no Services without Kubernetes",
            "use Direct, or Transparent if the tracker runs on this machine",
        );
        return None;
    }
    Some(mode)
}

fn addresses(report: &mut Report, field: &Field<'_>, wire: &[String]) -> Option<Vec<IpAddr>> {
    let mut found = Vec::with_capacity(wire.len());
    let mut good = true;
    for (index, written) in wire.iter().enumerate() {
        let at = field.index(index);
        match written.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
            Ok(ip) if ip.is_unspecified() || ip.is_multicast() => report.invalid(
                at,
                format!("{written:?} is no address of one machine"),
                "leave addresses out to listen on every one",
            ),
            Ok(ip) if found.contains(&ip) => {
                report.invalid(
                    at,
                    format!("{written:?} stands there twice"),
                    "leave out one",
                );
            }
            Ok(ip) => {
                found.push(ip);
                continue;
            }
            Err(_) => report.invalid(
                at,
                format!("{written:?} is no IP address"),
                "write addresses such as 203.0.113.7 or \"2001:db8::7\", without brackets and port",
            ),
        }
        good = false;
    }
    good.then_some(found)
}

fn backend(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &RouteRule,
) -> Option<Found<TrackerPlace>> {
    let [backend] = wire.backends.as_slice() else {
        report.invalid(
            field,
            format!("there are {} backends", wire.backends.len()),
            "a UDP tracker has exactly one: connection ids of one process mean nothing to another",
        );
        return None;
    };
    tracker_place(report, references, &field.index(0), backend)
}

/// Ports of relays, oldest route first.
#[derive(Debug, Default)]
pub(super) struct UdpPorts {
    taken: BTreeMap<u16, Vec<(Vec<IpAddr>, RuleId)>>,
}

impl UdpPorts {
    /// Gives a relay its port, unless an older one has it at one of its addresses.
    pub(super) fn claim(&mut self, report: &mut Report, shared: bool, udp: &CompiledUdp) -> bool {
        let tracker = &udp.tracker;
        let known = self.taken.entry(tracker.port).or_default();
        let owner = known.iter().find(|(addresses, _)| {
            addresses.is_empty()
                || tracker.addresses.is_empty()
                || tracker.addresses.iter().any(|ip| addresses.contains(ip))
        });
        let Some((_, owner)) = owner else {
            known.push((tracker.addresses.clone(), tracker.id.clone()));
            return true;
        };
        let whose = if shared && owner.route.namespace != tracker.id.route.namespace {
            "a tracker of another namespace".to_owned()
        } else {
            format!("{} of TlsRoute {}", owner.rule, owner.route)
        };
        let rules = Field::SPEC.at("rules");
        let rule = rules.index(udp.rule);
        let wire = rule.at("tracker");
        report.add(
            wire.at("udp"),
            Reason::UdpPortUnavailable,
            format!("UDP port {} already belongs to {whose}", tracker.port),
            "choose another port, or different addresses for the two",
        );
        false
    }
}

/// What is true of one tracker's clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Their addresses are preserved, or the edge has no part in it.
    Good(Reason, String),
    /// Not known yet.
    Pending(String),
    /// They would be lost; a problem says so.
    Bad,
}

/// Judges one tracker by what was found; notes problems.
pub(super) fn judge(report: &mut Report, inputs: &Inputs, udp: &CompiledUdp) -> Verdict {
    let shared = inputs.environment.is_shared();
    let name = &udp.tracker.id.rule;
    let relay = match (udp.tracker.mode, &udp.relay) {
        (UdpMode::Direct, _) => {
            let what = format!("{name}: {}", recipe(&udp.tracker, shared));
            return Verdict::Good(Reason::NotRelayed, what);
        }
        (UdpMode::Service, _) => return udp_services::judge(report, inputs, udp),
        (UdpMode::Relayed(_), None) => {
            return Verdict::Pending(format!("{name}: there is no backend yet"));
        }
        (UdpMode::Relayed(_), Some(relay)) => relay,
    };
    let mut states = inputs.udp_relays.iter().flat_map(|states| states.iter());
    let Some(state) = states.find(|it| it.id == relay.id) else {
        return Verdict::Pending(format!("{name}: tried when the edge runs"));
    };
    let rules = Field::SPEC.at("rules");
    let field = rules.index(udp.rule);
    let whose = udp_ways::whose(inputs);
    listeners(report, &field, udp, state, &whose);
    if let Some(error) = &state.resolve_error
        && state.ways.is_empty()
    {
        report.add(
            field.at("backends"),
            Reason::TrackerSilent,
            format!("the address of {} cannot be found: {error}", udp.backend),
            "correct the name, or write the address itself",
        );
        return Verdict::Bad;
    }
    let mut good = true;
    let mut pending = false;
    for way in &state.ways {
        if way.state == UdpWayState::Trying {
            pending = true;
        } else if let Some(trouble) = udp_ways::trouble(way, relay.mode, shared) {
            good = false;
            let message = format!("{}{whose}", trouble.message);
            let at = field.at("tracker");
            report.add(at.at("udp"), trouble.reason, message, trouble.hint);
        }
    }
    match (good, pending, &state.ways[..]) {
        (false, ..) => Verdict::Bad,
        (true, true, _) | (true, false, []) => {
            Verdict::Pending(format!("{name}: the way to the tracker is being tried"))
        }
        (true, false, ways) => {
            let (reason, found) = udp_ways::found(ways, relay.mode);
            Verdict::Good(reason, format!("{name}: {found}{whose}"))
        }
    }
}

fn listeners(
    report: &mut Report,
    field: &Field<'_>,
    udp: &CompiledUdp,
    state: &UdpRelayState,
    whose: &str,
) {
    let number = udp.tracker.port;
    let port = PortId {
        number,
        transport: Transport::Udp,
    };
    for listener in &state.listeners {
        let ip = listener.address.ip();
        let (message, hint) = match &listener.error {
            None => continue,
            Some(UdpListenError::NoBackend) => (
                format!("the tracker {} has no address of the family of {ip}", udp.backend),
                "an IPv6 client can only be shown to a tracker on IPv6: name a host that has both, such as localhost, or leave the address out".to_owned(),
            ),
            Some(UdpListenError::Socket(error)) => {
                let hint = match error {
                    ListenError::InUse => format!("`sudo ss -lunp 'sport = :{number}'` tells which; often it is the tracker itself, bound to every address: bind it to 127.0.0.1 only, or choose another tracker.udp.port"),
                    ListenError::NotLocal => "add it to an interface (`ip address add`), or correct tracker.udp.addresses; it is tried again every few seconds".to_owned(),
                    ListenError::NotPermitted => "ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher tracker.udp.port".to_owned(),
                    ListenError::Other(_) => "it is tried again every few seconds".to_owned(),
                };
                (cannot_listen(error, port, ip), hint)
            }
        };
        report.add(
            field.at("tracker").at("udp"),
            Reason::UdpPortUnavailable,
            format!("{message}{whose}"),
            hint,
        );
    }
}

/// How to let clients reach a tracker without the edge so that it sees their addresses.
fn recipe(tracker: &UdpTracker, shared: bool) -> String {
    let port = tracker.port;
    if shared {
        return format!(
            "clients reach UDP port {port} without this edge; use a Service with externalTrafficPolicy: Local, or a hostPort"
        );
    }
    format!(
        "clients reach UDP port {port} without this edge: let the tracker listen on 0.0.0.0:{port} and, with a socket for IPv6 only, on [::]:{port}; one [::] socket for both would record IPv4 clients as IPv6 ones. In a container publish the port by a rule that keeps addresses (`iptables -t nat -A PREROUTING -p udp --dport {port} -j DNAT --to-destination CONTAINER:{port}`, the same with ip6tables) and not by a program that relays it. Open UDP {port} in the firewall for both families"
    )
}
