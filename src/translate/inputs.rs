//! What `translate` looks at: objects as they were written, and what is true of this edge.
//!
//! Plain data without clocks, files or clients, so that `check`, `explain`, the standalone loader and the
//! operator can all ask the same question.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_acme::notices::DeliveryState;
use tidegate_acme::preflight::Finding;
use tidegate_model::{
    AgentId, Certificate, ChallengeAnswers, ObjectName, ObservedAgent, PortState, Reach,
    RequestedMapping, RouteId, RuleId, TicketKeys, UdpRelayState,
};

use super::{
    Exposure, FoundService, LastGood, PortPolicy, ProbeReport, PublicPlace, Refusals, ServiceKeeper,
};
use crate::api::{AcmeIssuer, TlsRoute, TunnelAgent};

/// Everything that decides what the data plane serves.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Routes in any order. Of two with one name the first counts and the second is reported.
    pub routes: Vec<Arc<TlsRoute>>,
    /// Agents in any order.
    pub agents: Vec<Arc<TunnelAgent>>,
    /// Issuers in any order.
    pub issuers: Vec<Arc<AcmeIssuer>>,
    /// Where the default issuer should come from, if not from an object.
    pub issuer_file: Option<IssuerFile>,
    /// Secrets that routes may name.
    pub secrets: BTreeMap<ObjectName, Arc<SecretData>>,
    /// ConfigMaps that routes may name.
    pub config_maps: BTreeMap<ObjectName, Arc<ConfigMapData>>,
    /// Services that routes may name, where [`Environment::services`] says that there are such objects.
    pub services: BTreeMap<ObjectName, Arc<ServiceData>>,
    /// Certificates that were already issued for routes, by the internal CA or by ACME.
    pub issued: BTreeMap<RouteId, Arc<Certificate>>,
    /// Served for a route until its first certificate is issued.
    pub placeholders: BTreeMap<RouteId, Arc<Certificate>>,
    /// How ACME orders stand, by route.
    pub orders: BTreeMap<RouteId, OrderReport>,
    /// How ACME issuers stand, by name.
    pub issuer_reports: BTreeMap<String, IssuerReport>,
    /// Where certificates of ACME issuers are published, by route.
    pub published: BTreeMap<RouteId, PublishedSecret>,
    /// Answers to challenges that are asked for at this moment.
    pub challenges: Arc<ChallengeAnswers>,
    /// Keys of TLS session tickets that are shared with other edges, or kept for the next process.
    pub ticket_keys: Option<Arc<TicketKeys>>,
    /// Served to clients without SNI, and until a route's own certificate exists.
    pub default_certificate: Option<Arc<Certificate>>,
    /// How clients reach this edge, where that is watched.
    pub exposure: Option<Exposure>,
    /// Where clients reach this edge, as far as it is known.
    pub place: PublicPlace,
    /// Port of HTTPS as clients see it; 443 if it is not known.
    pub https_port: Option<u16>,
    /// What became of the relays of UDP trackers, where there are any.
    pub udp_relays: Option<Arc<Vec<UdpRelayState>>>,
    /// Why Services of UDP trackers cannot be written, where this program writes them.
    pub service_refusals: Arc<Refusals>,
    /// What became of the ports of mappings, where an edge runs.
    pub ports: Option<Arc<Vec<PortState>>>,
    /// What trackers have told of themselves that were asked.
    pub tracker_reports: Arc<BTreeMap<RuleId, ProbeReport>>,
    /// What agents ask for themselves.
    pub agent_requests: Arc<BTreeMap<AgentId, Vec<RequestedMapping>>>,
    /// The sessions of agents; None where no edge runs, as in a check.
    pub agents_seen: Option<Arc<SeenAgents>>,
    /// What is true of this edge.
    pub environment: Environment,
    /// What the last translation returned; empty at the start.
    pub last_good: Arc<LastGood>,
}

/// What all replicas of the edge know of agents.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SeenAgents {
    /// Every agent that was seen, with the sessions of all replicas.
    pub agents: BTreeMap<AgentId, ObservedAgent>,
    /// How many replicas there are.
    pub replicas: usize,
}

/// A file that stands for an AcmeIssuer which is the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerFile {
    /// As it was given.
    pub path: String,
    /// Name of the issuer among [`Inputs::issuers`] that was read from it; None when the file has none that can
    /// be used, or an object stands for it.
    pub issuer: Option<String>,
}

impl Inputs {
    /// Issuers of this edge's class: each edge has accounts of its own and says nothing about another's.
    pub(crate) fn own_issuers(&self) -> impl Iterator<Item = &Arc<AcmeIssuer>> {
        let class = &self.environment.class_name;
        let all = self.issuers.iter();
        all.filter(move |issuer| issuer.spec.class_name == *class)
    }
}

/// What is true of this edge, whatever the objects say.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// The class of objects that are this edge's; None: those that name no class.
    pub class_name: Option<String>,
    /// How `service` backends become addresses.
    pub services: ServiceResolution,
    /// Ports of the edge's listeners for plain HTTP, sorted; None where nobody listens, as in a check.
    pub plain_ports: Option<Vec<u16>>,
    /// Which ports mappings may have; None where nobody listens, as in a check.
    pub ports: Option<Arc<PortPolicy>>,
    /// Where `static` backends may lie.
    pub static_files: StaticFilesPolicy,
    /// Whether solvers may run programs of this machine.
    pub programs: ProgramPolicy,
    /// Name servers to ask for the zone of a challenge; this machine's if empty.
    pub name_servers: Vec<SocketAddr>,
    /// Namespace of the Secrets that cluster-wide objects name; `default` if empty.
    pub system_namespace: String,
    /// Where backends and the receivers of calls may be.
    pub reach: Arc<Reach>,
    /// DNS domain of the cluster's own names; `cluster.local` if empty.
    pub cluster_domain: String,
    /// Who makes the Services of UDP trackers.
    pub service_keeper: ServiceKeeper,
    /// Name of this replica, where there may be others, of which only one writes statuses.
    pub replica: Option<String>,
}

impl Environment {
    /// Whether objects come from a cluster, where those who write in one namespace must learn nothing of
    /// another.
    pub fn is_shared(&self) -> bool {
        self.services == ServiceResolution::Objects
    }
}

/// Whether objects may name programs to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProgramPolicy {
    /// Whoever writes the objects owns the machine.
    #[default]
    Allowed,
    /// Whoever may write an object must not thereby run programs within the edge.
    Refused,
}

/// How the ACME order for a route stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OrderReport {
    /// Why there is none, or why it is being replaced, in `PascalCase`.
    pub reason: String,
    /// The same in one sentence.
    pub message: String,
    /// Whether the last attempt failed.
    pub failed: bool,
    /// That what is served is revoked, and why, in one sentence.
    pub revoked: Option<String>,
    /// URL of the order that is under way.
    pub url: Option<String>,
    /// When it was begun.
    pub started_at: Option<SystemTime>,
    /// Failed attempts since the last success.
    pub attempts: u32,
    /// When the next attempt is made.
    pub next_attempt: Option<SystemTime>,
    /// When the certificate will be renewed.
    pub renew_at: Option<SystemTime>,
    /// What was found before the last order.
    pub preflight: Vec<Finding>,
}

/// What became of publishing a certificate as a Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishedSecret {
    /// It is in the Secret of that name, in the route's namespace.
    Here(String),
    /// Somebody else made a Secret of that full name.
    Foreign(String),
}

/// How an ACME issuer stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IssuerReport {
    /// URL of the account, once it is registered.
    pub account_url: Option<String>,
    /// What is wrong with it.
    pub problem: Option<String>,
    /// What became of notices, by receiver.
    pub notices: Vec<DeliveryState>,
}

/// How `service: {name, port}` becomes addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServiceResolution {
    /// The name is a DNS name, as in Compose or `/etc/hosts`.
    #[default]
    Dns,
    /// The name is that of a Service object of the route's namespace.
    Objects,
}

/// Where the folders of `static` backends may lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StaticFilesPolicy {
    /// Anywhere; relative paths start at this folder.
    RelativeTo(PathBuf),
    /// Only within this folder; absolute paths are refused.
    Within(PathBuf),
}

impl Default for StaticFilesPolicy {
    fn default() -> Self {
        Self::RelativeTo(PathBuf::new())
    }
}

/// Type and content of a Secret.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SecretData {
    /// Such as `kubernetes.io/tls`; `Opaque` when none is given.
    pub type_: String,
    /// Values by key, decoded.
    pub data: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for SecretData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretData")
            .field("type_", &self.type_)
            .field("keys", &self.data.keys().collect::<Vec<_>>())
            .finish()
    }
}

/// A Service and who is behind it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceData {
    /// Its `spec.externalName`, if it is but another name of something else.
    pub external_name: Option<String>,
    /// Its TCP ports.
    pub ports: Vec<ServicePortData>,
    /// Its UDP ports.
    pub udp_ports: Vec<ServicePortData>,
    /// What else matters of one that has UDP ports.
    pub udp: Option<Arc<FoundService>>,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServicePortData {
    /// The port of the Service.
    pub port: u16,
    /// What the Service says is spoken there, such as `https` or `kubernetes.io/h2c`.
    pub app_protocol: Option<String>,
    /// Addresses that are ready to serve, sorted.
    pub addresses: Vec<SocketAddr>,
}

/// Content of a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigMapData {
    /// Values by key.
    pub data: BTreeMap<String, String>,
}
