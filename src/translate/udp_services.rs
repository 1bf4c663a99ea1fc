//! Services of UDP trackers: what they should be, and what is true of the addresses of clients that come by them.
//!
//! A Service of type `LoadBalancer` with `externalTrafficPolicy: Local` sends datagrams to a pod of the node that they
//! arrive at, and leaves their source alone. It is a Service of its own beside the tracker's, with the same selector,
//! so that whoever wrote that one finds it as it was. Whoever writes Services reads
//! [`Translation::udp_services`](super::Translation::udp_services); here nothing is written. Addresses are asked for by
//! `loadBalancerIP`, which the controller of load balancers may refuse, never by `externalIPs`, with which whoever
//! may write a route could take traffic of others (CVE-2020-8554).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};
use tidegate_model::{ObjectName, RuleId};

use super::dns::PublicPlace;
use super::report::{Field, Report};
use super::udp::{CompiledUdp, Verdict};
use super::{Inputs, Translation, UdpMode, UdpTracker};
use crate::api::conditions::{ConditionType, Reason, is_true};

/// A label of DNS, which the name of a Service is (RFC 1035 §2.3.4).
const LONGEST_NAME: usize = 63;

/// A Service as it is, as far as it matters to UDP trackers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FoundService {
    /// The rule it was made for, if it was made by this program.
    pub made_for: Option<RuleId>,
    /// Its `metadata.uid`.
    pub uid: String,
    /// `metadata.uid` of the route that owns it.
    pub owner: Option<String>,
    /// What of its specification matters.
    pub spec: ServiceSpec,
    /// Where clients reach it.
    pub place: PublicPlace,
}

/// What of the specification of a Service matters to UDP trackers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceSpec {
    /// Such as `LoadBalancer`.
    pub type_: String,
    /// Whether `externalTrafficPolicy` is `Local`.
    pub local: bool,
    /// Whether datagrams of a client go to the same pod.
    pub sticky: bool,
    /// Labels of the pods.
    pub selector: BTreeMap<String, String>,
    /// UDP ports.
    pub ports: Vec<UdpServicePort>,
    /// `ipFamilies`, the first of which never changes.
    pub families: Vec<String>,
    /// `ipFamilyPolicy`.
    pub family_policy: Option<String>,
    /// Address that its load balancer is asked for.
    pub load_balancer_ip: Option<String>,
}

/// A UDP port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UdpServicePort {
    /// The port of the Service.
    pub port: u16,
    /// `targetPort`: a number or the name of a container's port.
    pub target: String,
    /// The port of the nodes, if it has one.
    pub node_port: Option<u16>,
}

impl UdpServicePort {
    /// `targetPort` as it is written: a number stands without quotes.
    pub fn target(&self) -> Json {
        match self.target.parse::<u16>() {
            Ok(number) => number.into(),
            Err(_) => self.target.as_str().into(),
        }
    }
}

/// A Service that a UDP tracker should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedService {
    /// Its full name.
    pub name: ObjectName,
    /// The rule it is for.
    pub id: RuleId,
    /// What it should be; it has one port, without `node_port`.
    pub spec: ServiceSpec,
    /// Addresses that its load balancer is asked for.
    pub addresses: Vec<IpAddr>,
}

/// A Service that was made for a rule that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnwantedService {
    /// Its full name.
    pub name: ObjectName,
    /// Its `metadata.uid`.
    pub uid: String,
}

/// Who makes the Services.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ServiceKeeper {
    /// This program.
    #[default]
    Program,
    /// A person, because the program was told so.
    Person,
}

/// What is said of a Service that could not be written, by its name.
pub type Refusals = BTreeMap<ObjectName, String>;

impl WantedService {
    /// Whether a Service is what is wanted.
    pub fn is(&self, found: &ServiceSpec) -> bool {
        let ports = |spec: &ServiceSpec| -> Vec<(u16, String)> {
            let ports = spec.ports.iter();
            ports.map(|it| (it.port, it.target.clone())).collect()
        };
        found.type_ == self.spec.type_
            && found.local
            && found.sticky
            && found.selector == self.spec.selector
            && ports(found) == ports(&self.spec)
            && (self.spec.families.is_empty() || found.families == self.spec.families)
            && (self.addresses.is_empty() || found.load_balancer_ip == self.spec.load_balancer_ip)
    }

    /// Whether clients who come by a Service reach the tracker under their own addresses.
    fn is_served_by(&self, found: &ServiceSpec) -> bool {
        let port = |wanted: &UdpServicePort| {
            let mut ports = found.ports.iter();
            ports.any(|it| (it.port, &it.target) == (wanted.port, &wanted.target))
        };
        matches!(&*found.type_, "LoadBalancer" | "NodePort")
            && found.local
            && found.selector == self.spec.selector
            && self.spec.ports.iter().all(port)
    }

    /// The object, to be applied by hand.
    fn manifest(&self) -> String {
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {}, namespace: {}}}\nspec:\n  type: LoadBalancer\n  externalTrafficPolicy: Local\n  sessionAffinity: ClientIP\n",
            self.name.name, self.name.namespace
        );
        let quoted = |text: &str| Json::from(text).to_string();
        if let Some(policy) = &self.spec.family_policy {
            let families = self.spec.families.join(", ");
            let _ = writeln!(
                text,
                "  ipFamilyPolicy: {policy}\n  ipFamilies: [{families}]"
            );
        }
        if let Some(address) = &self.spec.load_balancer_ip {
            let _ = writeln!(text, "  loadBalancerIP: {}", quoted(address));
        }
        let selector = self.spec.selector.iter();
        let selector: Vec<String> = selector
            .map(|(key, value)| format!("{key}: {}", quoted(value)))
            .collect();
        let _ = writeln!(text, "  selector: {{{}}}", selector.join(", "));
        for port in &self.spec.ports {
            let _ = writeln!(
                text,
                "  ports: [{{name: udp, protocol: UDP, port: {}, targetPort: {}}}]",
                port.port,
                port.target()
            );
        }
        text
    }
}

/// Name of the Service of a rule: `ROUTE-RULE`, made a label of DNS if it is none.
pub(super) fn service_name(id: &RuleId) -> ObjectName {
    let text = format!("{}-{}", id.route.name, id.rule);
    let plain: String = text
        .chars()
        .map(|it| match it {
            'a'..='z' | '0'..='9' | '-' => it,
            'A'..='Z' => it.to_ascii_lowercase(),
            _ => '-',
        })
        .collect();
    let first = plain.starts_with(|it: char| it.is_ascii_lowercase());
    let name = if plain == text && first && plain.len() <= LONGEST_NAME && !plain.ends_with('-') {
        plain
    } else {
        // Two that become alike stay apart.
        let digest = Sha256::digest(text.as_bytes());
        let mark: String = digest.iter().take(4).fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        let start = if first { "" } else { "t-" };
        let mut name = format!("{start}{}", plain.trim_matches('-'));
        name.truncate(LONGEST_NAME - 1 - mark.len());
        format!("{}-{mark}", name.trim_end_matches('-'))
    };
    ObjectName::new(Arc::clone(&id.route.namespace), name)
}

/// Where clients reach a tracker by its Service. One of somebody else that leads to something else counts for nothing.
pub(super) fn place(inputs: &Inputs, tracker: &UdpTracker) -> PublicPlace {
    let service = inputs.services.get(&service_name(&tracker.id));
    let found = service.and_then(|it| it.udp.as_deref());
    let found = found.filter(|found| {
        let same = || {
            Some(&found.spec.selector)
                == wanted(inputs, tracker).map(|it| it.spec.selector).as_ref()
        };
        found.made_for.as_ref() == Some(&tracker.id) || same()
    });
    found.map(|it| it.place.clone()).unwrap_or_default()
}

/// What the Service of a tracker should be. None if its backend is no Service that has pods: the verdict says so.
pub(super) fn wanted(inputs: &Inputs, tracker: &UdpTracker) -> Option<WantedService> {
    let (service, port) = tracker.service.as_ref()?;
    let backend = ObjectName::new(Arc::clone(&tracker.id.route.namespace), service.as_str());
    let backend = &inputs.services.get(&backend)?.udp.as_deref()?.spec;
    let target = backend.ports.iter().find(|it| it.port == *port)?;
    if backend.selector.is_empty() {
        return None;
    }
    Some(WantedService {
        name: service_name(&tracker.id),
        id: tracker.id.clone(),
        spec: ServiceSpec {
            type_: "LoadBalancer".to_owned(),
            local: true,
            sticky: true,
            selector: backend.selector.clone(),
            ports: vec![UdpServicePort {
                port: tracker.port,
                target: target.target.clone(),
                node_port: None,
            }],
            families: backend.families.clone(),
            family_policy: backend.family_policy.clone(),
            load_balancer_ip: tracker.addresses.first().map(IpAddr::to_string),
        },
        addresses: tracker.addresses.clone(),
    })
}

/// The Services that this program has made for rules which are gone. With a route they go by themselves; as long as
/// it is wrong, nobody knows what it should have.
pub(super) fn unwanted(inputs: &Inputs, result: &Translation) -> Vec<UnwantedService> {
    let is_gone = |id: &RuleId| {
        let status = result.statuses.routes.get(&id.route);
        let mut trackers = result.udp_trackers.iter();
        status.is_some_and(|it| is_true(&it.conditions, ConditionType::Accepted))
            && !trackers.any(|it| it.id == *id && it.mode == UdpMode::Service)
    };
    let unwanted = inputs.services.iter().filter_map(|(name, service)| {
        let found = service.udp.as_deref()?;
        let id = found.made_for.as_ref()?;
        // A copy that somebody made elsewhere is theirs.
        let ours = id.route.namespace == name.namespace && service_name(id) == *name;
        (ours && is_gone(id)).then(|| UnwantedService {
            name: name.clone(),
            uid: found.uid.clone(),
        })
    });
    unwanted.collect()
}

/// Judges a tracker whose clients come by a Service; notes problems.
pub(super) fn judge(report: &mut Report, inputs: &Inputs, udp: &CompiledUdp) -> Verdict {
    let tracker = &udp.tracker;
    debug_assert_eq!(tracker.mode, UdpMode::Service);
    let rules = Field::SPEC.at("rules");
    let rule = rules.index(udp.rule);
    let label = &tracker.id.rule;
    let Some((backend, _)) = &tracker.service else {
        let backends = rule.at("backends");
        report.add(
            backends.index(0),
            Reason::ServiceWithoutSelector,
            "mode Service needs a backend that is a Service, whose pods it finds",
            "name the tracker's Service, or set tracker.udp.mode: Direct",
        );
        return Verdict::Bad;
    };
    let full = ObjectName::new(Arc::clone(&tracker.id.route.namespace), backend.as_str());
    let Some(wanted) = wanted(inputs, tracker) else {
        let known = inputs.services.get(&full).and_then(|it| it.udp.as_deref());
        if known.is_none_or(|it| !it.spec.selector.is_empty()) {
            // What does not exist is told by ResolvedRefs.
            return Verdict::Pending(format!("{label}: Service {full} has no such UDP port yet"));
        }
        let backends = rule.at("backends");
        let backend = backends.index(0);
        report.add(
            backend.at("service"),
            Reason::ServiceWithoutSelector,
            format!("Service {full} has no selector, so that nobody can tell which pods its tracker runs in"),
            "give it one, or set tracker.udp.mode: Direct and make a Service with externalTrafficPolicy: Local and endpoints of its own",
        );
        return Verdict::Bad;
    };
    let tracker_field = rule.at("tracker");
    let field = tracker_field.at("udp");
    let name = &wanted.name;
    let found = inputs.services.get(name);
    let refused = inputs.service_refusals.get(name);
    let by_hand = inputs.environment.service_keeper == ServiceKeeper::Person;
    let problem = match found.map(|it| it.udp.as_deref()) {
        None if by_hand => Some((
            Reason::ServiceNotManaged,
            format!(
                "Service {name} does not exist, and this edge makes none (--tracker-services=off)"
            ),
            format!("apply it by hand:\n{}", wanted.manifest()),
        )),
        None => match refused {
            Some(error) => Some((
                Reason::ServiceNotManaged,
                format!("Service {name} cannot be made: {error}"),
                format!(
                    "let the program write Services (trackers.manageServices of the chart), or apply it by hand:\n{}",
                    wanted.manifest()
                ),
            )),
            None => return Verdict::Pending(format!("{label}: Service {name} is being made")),
        },
        Some(None) => Some(foreign(&wanted)),
        Some(Some(found)) => differs(&wanted, found, refused, by_hand),
    };
    if let Some((reason, message, hint)) = problem {
        report.add(field, reason, message, hint);
        return Verdict::Bad;
    }
    let place = found.and_then(|it| it.udp.as_deref());
    let ready = inputs
        .services
        .get(&full)
        .and_then(|it| {
            it.udp_ports
                .iter()
                .find(|port| Some(port.port) == backend_port(tracker))
        })
        .is_some_and(|port| !port.addresses.is_empty());
    let node_port = place
        .and_then(|it| it.spec.ports.first())
        .and_then(|it| it.node_port);
    let place = place.map(|it| it.place.list()).unwrap_or_default();
    let problem = if !ready {
        Some((
            Reason::TrackerNotReady,
            format!(
                "no pod behind Service {full} is ready, and nodes without one drop what arrives"
            ),
            "see whether the pods run and their probes succeed".to_owned(),
        ))
    } else if place.is_empty() {
        let by_node = node_port.map_or_else(String::new, |port| {
            format!(
                "; until then clients reach it at UDP port {port} of the nodes that run the tracker"
            )
        });
        Some((
            Reason::LoadBalancerPending,
            format!("no load balancer has given Service {name} an address yet"),
            format!(
                "install a controller of load balancers that knows UDP, such as k3s has one and MetalLB is one{by_node}"
            ),
        ))
    } else {
        let asked = wanted.addresses.iter().map(IpAddr::to_string);
        let missing: Vec<String> = asked.filter(|it| !place.contains(it)).collect();
        (!missing.is_empty()).then(|| {
            (
                Reason::LoadBalancerPending,
                format!(
                    "the load balancer of Service {name} has {}, and not {} as tracker.udp.addresses asks",
                    place.join(", "),
                    missing.join(", ")
                ),
                "configure the controller of load balancers for these addresses, or take them out".to_owned(),
            )
        })
    };
    if let Some((reason, message, hint)) = problem {
        report.add(field, reason, message, hint);
        return Verdict::Bad;
    }
    Verdict::Good(
        Reason::ServiceLocal,
        format!(
            "{label}: Service {name} ({}) keeps them: externalTrafficPolicy is Local",
            place.join(", ")
        ),
    )
}

/// The port that the tracker's own Service has.
fn backend_port(tracker: &UdpTracker) -> Option<u16> {
    tracker.service.as_ref().map(|(_, port)| *port)
}

type Complaint = (Reason, String, String);

fn foreign(wanted: &WantedService) -> Complaint {
    let name = &wanted.name;
    (
        Reason::ServiceForeign,
        format!("somebody else made a Service {name}, and it is not touched"),
        format!(
            "rename or delete it, give the rule another name, or make it so:\n{}",
            wanted.manifest()
        ),
    )
}

/// What is wrong with the Service that is there, if anything is.
fn differs(
    wanted: &WantedService,
    found: &FoundService,
    refused: Option<&String>,
    by_hand: bool,
) -> Option<Complaint> {
    let name = &wanted.name;
    let ours = found.made_for.as_ref() == Some(&wanted.id);
    // Whoever made another, it may differ where it harms nothing.
    if wanted.is(&found.spec) || (!ours && wanted.is_served_by(&found.spec)) {
        return None;
    }
    let spread = found.spec.selector == wanted.spec.selector && !found.spec.local;
    if !ours && !spread {
        return Some(foreign(wanted));
    }
    let mended = match (ours && !by_hand, refused) {
        (true, None) => "; it is being set back",
        (true, Some(_)) | (false, _) => "",
    };
    let mut message = if spread {
        format!(
            "externalTrafficPolicy of Service {name} is not Local, so that the tracker sees addresses of nodes instead of those of peers{mended}"
        )
    } else {
        format!("Service {name} is not as it should be{mended}")
    };
    if let Some(error) = refused {
        let _ = write!(message, "; it cannot be set back: {error}");
    }
    let hint = if spread {
        format!("set externalTrafficPolicy: Local in Service {name}")
    } else {
        format!("make it so:\n{}", wanted.manifest())
    };
    Some((Reason::SourceAddressReplaced, message, hint))
}

#[cfg(test)]
mod tests {
    use tidegate_model::RouteId;

    use super::*;

    fn name(route: &str, rule: &str) -> String {
        let id = RuleId {
            route: RouteId::new("default", route),
            rule: rule.to_owned(),
        };
        service_name(&id).name.to_string()
    }

    #[test]
    fn every_name_is_a_label_and_none_is_that_of_another() {
        assert_eq!(name("torrust", "udp1"), "torrust-udp1");
        let odd = [
            ("torrust", "rules[0]"),
            ("torrust", "rules(0)"),
            ("torrust.example", "udp1"),
            ("Torrust", "udp1"),
            ("7th", "udp"),
            ("torrust", "ü"),
            ("torrust", "a-"),
            (&*"a".repeat(200), "udp1"),
            (&*"a".repeat(200), "udp2"),
        ]
        .map(|(route, rule)| name(route, rule));
        for (index, one) in odd.iter().enumerate() {
            let label = one.len() <= LONGEST_NAME
                && one.starts_with(|it: char| it.is_ascii_lowercase())
                && !one.ends_with('-')
                && one
                    .chars()
                    .all(|it| matches!(it, 'a'..='z' | '0'..='9' | '-'));
            assert!(label, "{one}");
            assert!(
                !odd[..index].contains(one) && one != "torrust-udp1",
                "{one}"
            );
        }
    }
}
