//! What `translate` says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_acme::dns::DnsSolver;
use tidegate_acme::settings::Issuer;
use tidegate_model::{
    Certificate, HostPattern, ObjectName, RouteId, RuleId, Snapshot, UdpRelayMode,
};

use super::mappings::Mappings;
use super::{SecretData, TrackerProbe, UnwantedService, WantedService};
use crate::api::conditions::Reason;
use crate::api::{AcmeIssuerStatus, AgentMapping, TlsRouteSpec, TlsRouteStatus, TunnelAgentStatus};

/// The result of a translation.
#[derive(Debug, Default)]
pub struct Translation {
    /// What the data plane serves.
    pub snapshot: Snapshot,
    /// The status of each object.
    pub statuses: Arc<Statuses>,
    /// Everything that is wrong, one entry each, in the order of objects and fields. Statuses say the
    /// same in their conditions.
    pub problems: Vec<Problem>,
    /// Certificates that somebody must issue or keep renewed. Complete: what is not here is not needed.
    pub wanted_certificates: Vec<WantedCertificate>,
    /// UDP trackers of routes that are served, whoever relays them, in the order of routes and rules.
    pub udp_trackers: Vec<UdpTracker>,
    /// Services that UDP trackers should have.
    pub udp_services: Vec<WantedService>,
    /// Services that were made for rules which are gone.
    pub unwanted_services: Vec<UnwantedService>,
    /// Trackers that somebody must ask whether they read X-Forwarded-For.
    pub tracker_probes: Vec<TrackerProbe>,
    /// The issuers that can be asked, by name.
    pub issuers: BTreeMap<String, Arc<Issuer>>,
    /// Everything that was looked up by name. Whoever fetches these and nothing else has all that the objects
    /// may use; what is missing may name more once it is there.
    pub references: BTreeSet<Reference>,
    /// Definitions of backends behind agents.
    pub(super) mappings: Mappings,
    /// What the next translation needs as [`Inputs::last_good`](super::Inputs::last_good); taken out by whoever
    /// keeps it.
    pub last_good: LastGood,
}

/// A UDP tracker, as its rule has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpTracker {
    /// Route and rule.
    pub id: RuleId,
    /// Names of the tracker, for DNS records; those of the route if the rule has none.
    pub hostnames: Vec<HostPattern>,
    /// Port that clients use.
    pub port: u16,
    /// Addresses that clients use; all of the machine if empty.
    pub addresses: Vec<IpAddr>,
    /// How they reach it.
    pub mode: UdpMode,
    /// The tracker's Service and its port there, if it is named by one.
    pub service: Option<(String, u16)>,
}

/// How clients reach a UDP tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UdpMode {
    /// Without this edge.
    Direct,
    /// By a Service that the operator makes.
    Service,
    /// Through this process.
    Relayed(UdpRelayMode),
}

/// Statuses by object.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Statuses {
    /// Of TlsRoutes.
    pub routes: BTreeMap<RouteId, TlsRouteStatus>,
    /// Of TunnelAgents.
    pub agents: BTreeMap<ObjectName, TunnelAgentStatus>,
    /// Of AcmeIssuers, by name.
    pub issuers: BTreeMap<String, AcmeIssuerStatus>,
}

/// The kinds that problems speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A route.
    TlsRoute,
    /// An agent.
    TunnelAgent,
    /// An issuer.
    AcmeIssuer,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TlsRoute => "TlsRoute",
            Self::TunnelAgent => "TunnelAgent",
            Self::AcmeIssuer => "AcmeIssuer",
        })
    }
}

/// An object that a problem belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, if the kind has one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// Something that an object names, in a namespace that it may name things of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// What it is.
    pub kind: ReferenceKind,
    /// Its full name.
    pub name: ObjectName,
}

/// Kinds of things that objects name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReferenceKind {
    /// A Secret.
    Secret,
    /// A ConfigMap.
    ConfigMap,
    /// A Service.
    Service,
}

/// One thing that is wrong with one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The object.
    pub object: ObjectRef,
    /// The field, such as `spec.rules[1].timeouts.idle`.
    pub field: String,
    /// The condition reason.
    pub reason: Reason,
    /// What was found, quoting the value.
    pub message: String,
    /// What to do about it, in one sentence without full stop.
    pub hint: Option<String>,
}

/// How much a problem matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// It mends itself, such as a certificate that is being issued.
    Progress,
    /// The object is served, but not quite as people may think.
    Warning,
    /// Somebody must act.
    Error,
}

impl Problem {
    /// How much it matters. `check` fails on errors only.
    pub fn severity(&self) -> Severity {
        match (self.object.kind, self.reason) {
            (_, Reason::Issuing) => Severity::Progress,
            (
                _,
                Reason::AddressLost
                | Reason::TrackerSilent
                | Reason::LoadBalancerPending
                | Reason::TrackerNotReady
                | Reason::NoReadyEndpoints
                | Reason::AgentNotConnected
                | Reason::NoticesNotDelivered,
            )
            // Such an agent stays away; nothing else is harmed.
            | (Kind::TunnelAgent, Reason::SecretNotFound)
                if self.reason != Reason::SecretNotFound
                    || self.field.starts_with("spec.credential") =>
            {
                Severity::Warning
            }
            // What an agent asks for is nobody's mistake here.
            (Kind::TunnelAgent, _) if self.field.starts_with("status.") => Severity::Warning,
            _ => Severity::Error,
        }
    }

    /// Message and hint.
    pub(super) fn words(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{}; {hint}", self.message),
            None => self.message.clone(),
        }
    }

    /// Field, message and hint in one line, as conditions show it.
    pub fn summary(&self) -> String {
        match self.reason {
            // No field is wrong, and most people have not written this one.
            Reason::Issuing | Reason::OrderFailed | Reason::Revoked => self.words(),
            _ => format!("{}: {}", self.field, self.words()),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.object, self.field, self.words())
    }
}

/// A certificate that somebody must issue or keep renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedCertificate {
    /// The route it is for; [`Inputs::issued`](super::Inputs::issued) is searched by it.
    pub route: RouteId,
    /// Names it must cover, sorted, without duplicates, never empty.
    pub names: Vec<HostPattern>,
    /// Who issues it.
    pub issuer: IssuerChoice,
}

/// Who issues a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IssuerChoice {
    /// The edge's own CA.
    InternalCa,
    /// The AcmeIssuer of that name.
    Acme(String),
}

/// The last good version of each object. Opaque to callers, who hand it back.
#[derive(Debug, Clone, Default)]
pub struct LastGood {
    /// By route.
    pub routes: BTreeMap<RouteId, GoodRoute>,
    /// The statuses that the last translation reported, for the times of transitions.
    pub statuses: Arc<Statuses>,
    /// Mappings with a port, as they were when they were right.
    pub(super) ports: BTreeMap<RouteId, Arc<AgentMapping>>,
    /// When a route was first seen, which is its age if it has no creationTimestamp.
    pub(super) first_seen: BTreeMap<RouteId, SystemTime>,
    /// Certificates by the Secret they were read from.
    pub(super) parsed: BTreeMap<ObjectName, (Arc<SecretData>, Arc<Certificate>)>,
    /// Writers of DNS records by the digest of everything they were made from.
    pub(super) dns_solvers: BTreeMap<[u8; 32], Arc<dyn DnsSolver>>,
}

/// What was last good about a route.
#[derive(Debug, Clone)]
pub struct GoodRoute {
    /// Its specification.
    pub spec: Arc<TlsRouteSpec>,
    /// The generation of that specification.
    pub generation: Option<i64>,
    /// The certificate it was served with.
    pub certificate: Option<Arc<Certificate>>,
}
