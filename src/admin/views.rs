//! The JSON of the admin API and of `status.json`: types of their own, converted explicitly.
//!
//! None of them can hold a key, a token or a header value. Times are RFC 3339 in UTC. Fields are only ever
//! added.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tidegate_model::{
    Certificate, CertificateOrigin, ListenerState, ObservedAgent, ObservedCluster,
    ObservedListener, Snapshot, TlsMode,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// `/api/v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusView {
    /// Whether traffic should be sent here.
    pub ready: bool,
    /// Why not, if so.
    pub not_ready_reason: Option<String>,
    /// Open client connections.
    pub connections: u64,
    /// Requests in flight.
    pub requests: u64,
    /// What the control side last said.
    #[serde(flatten)]
    pub control: ControlView,
}

/// What the control side knows; also `status.json` in the state folder.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlView {
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// When the process started.
    pub started_at: String,
    /// When this was last true.
    pub updated_at: String,
    /// The folder that is served, if one is.
    pub folder: Option<String>,
    /// Address of the admin listener, if there is one.
    pub admin: Option<String>,
    /// Bound addresses by listener name.
    pub listeners: Vec<BoundView>,
    /// Number of the published configuration.
    pub revision: u64,
    /// Objects by kind.
    pub objects: Vec<ObjectCount>,
    /// Everything that is wrong.
    pub problems: Vec<ProblemView>,
    /// Every route with its conditions.
    pub routes: Vec<RouteView>,
    /// Every agent with its conditions and sessions.
    #[serde(default)]
    pub agents: Vec<AgentView>,
}

/// A bound address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundView {
    /// `http` or `https`.
    pub name: String,
    /// Address and port.
    pub address: String,
}

/// Objects of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectCount {
    /// The kind.
    pub kind: String,
    /// How many are in use, old versions included.
    pub count: usize,
    /// How many of them are in use in their last good version.
    pub kept: usize,
}

/// How much a problem matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeverityView {
    /// Somebody must act.
    #[default]
    Error,
    /// The object is served, but not quite as people may think.
    Warning,
    /// It mends itself.
    Progress,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProblemView {
    /// File, relative to the folder.
    pub file: Option<String>,
    /// Line, from 1.
    pub line: Option<u64>,
    /// Column, from 1.
    pub column: Option<u64>,
    /// Document of the file, from 1, if it has more than one.
    pub document: Option<usize>,
    /// Kind and name of the object.
    pub object: Option<String>,
    /// Field path.
    pub field: Option<String>,
    /// How much it matters.
    #[serde(default)]
    pub severity: SeverityView,
    /// What kind of problem.
    pub reason: String,
    /// What was found.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
    /// Whether an older version is served because of it.
    pub kept: bool,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Hostnames that it serves.
    pub hostnames: Vec<String>,
    /// Conditions of its status.
    pub conditions: Vec<ConditionView>,
    /// What was found before the last ACME order, the worst first.
    #[serde(default)]
    pub preflight: Vec<FindingView>,
    /// What to write into the DNS, as lines of a zone file.
    #[serde(default)]
    pub dns_records: Vec<String>,
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Hostnames that its mappings serve.
    pub hostnames: Vec<String>,
    /// Ports that lead to its mappings, such as `TCP 25565 (minecraft) at 203.0.113.7:25565`.
    #[serde(default)]
    pub ports: Vec<String>,
    /// Conditions of its status.
    pub conditions: Vec<ConditionView>,
    /// Links of the agent, at all replicas.
    pub sessions: Vec<SessionView>,
    /// When it was last connected, if it is not.
    pub last_seen: Option<String>,
    /// What to write into the DNS, as lines of a zone file.
    pub dns_records: Vec<String>,
}

/// A link of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionView {
    /// Given by the edge.
    pub id: String,
    /// The replica that holds it.
    pub replica: Option<String>,
    /// `Direct` or `WebSocket`.
    pub carrier: Option<String>,
    /// Address and port of the agent.
    pub address: Option<String>,
    /// Since when.
    pub since: Option<String>,
    /// Round trip, such as `12ms`, as it was when something else changed.
    pub rtt: Option<String>,
    /// Version of the agent's program.
    pub version: Option<String>,
    /// Whether it is about to end.
    pub draining: bool,
}

/// A link that this replica holds, as it is at this moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkView {
    /// Namespace of the agent.
    pub namespace: String,
    /// Its name.
    pub agent: String,
    /// Given by the edge.
    pub id: String,
    /// The agent's process.
    pub instance: String,
    /// Which of its links, from 0.
    pub link: u8,
    /// `Direct` or `WebSocket`.
    pub carrier: String,
    /// Address and port of the agent.
    pub address: String,
    /// Since when.
    pub since: String,
    /// Milliseconds of the last round trip.
    pub rtt_ms: Option<f64>,
    /// Version of the agent's program.
    pub version: String,
    /// Whether it is about to end.
    pub draining: bool,
    /// Requests in flight.
    pub in_flight: u64,
    /// Requests so far.
    pub requests: u64,
    /// Bytes towards the agent so far.
    pub bytes_sent: u64,
    /// Bytes from the agent so far.
    pub bytes_received: u64,
}

/// The links of an agent.
pub(super) fn links(agent: &ObservedAgent) -> impl Iterator<Item = LinkView> + '_ {
    agent.sessions.iter().map(|one| LinkView {
        namespace: agent.id.namespace.to_string(),
        agent: agent.id.name.to_string(),
        id: one.id.clone(),
        instance: one.instance.clone(),
        link: one.link,
        carrier: one.carrier.name().to_owned(),
        address: one.address.to_string(),
        since: rfc3339(one.since),
        rtt_ms: one.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
        version: one.version.clone(),
        draining: one.draining,
        in_flight: one.in_flight,
        requests: one.requests,
        bytes_sent: one.bytes_sent,
        bytes_received: one.bytes_received,
    })
}

/// What was looked at before an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FindingView {
    /// Such as `Address`.
    pub check: String,
    /// The hostname, if it is about one.
    pub name: Option<String>,
    /// `Ok`, `Unknown`, `Warning` or `Blocking`.
    pub state: String,
    /// What was found.
    pub message: String,
    /// How to mend it.
    pub fix: Option<String>,
}

/// A condition of a status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionView {
    /// Such as `Ready`.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Why, in `PascalCase`.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
}

/// A listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerView {
    /// `http` or `https`.
    pub name: String,
    /// Address and port.
    pub address: String,
    /// `accepting` or `draining`.
    pub state: String,
}

impl From<&ObservedListener> for ListenerView {
    fn from(listener: &ObservedListener) -> Self {
        Self {
            name: listener.name.clone(),
            address: listener.address.to_string(),
            state: match listener.state {
                ListenerState::Accepting => "accepting",
                ListenerState::Draining => "draining",
            }
            .to_owned(),
        }
    }
}

/// A certificate that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateView {
    /// DNS names and addresses.
    pub names: Vec<String>,
    /// Hostnames that it is served for; `(default)` for clients without server name.
    pub served_for: Vec<String>,
    /// Start of validity.
    pub not_before: String,
    /// End of validity.
    pub not_after: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Issuer's distinguished name.
    pub issuer: String,
    /// SHA-256, hexadecimal.
    pub fingerprint: String,
    /// `internalCa`, `secret` or `selfSigned`.
    pub origin: String,
    /// The Secret, if it came from one.
    pub secret: Option<String>,
}

/// Every certificate of the snapshot, by fingerprint.
pub(super) fn certificates(snapshot: &Snapshot) -> Vec<CertificateView> {
    let mut views: BTreeMap<_, CertificateView> = BTreeMap::new();
    let mut add = |certificate: &Certificate, host: String| {
        views
            .entry(certificate.fingerprint)
            .or_insert_with(|| certificate_view(certificate))
            .served_for
            .push(host);
    };
    for host in snapshot.hosts.values() {
        if let TlsMode::Terminate(policy) = &host.tls
            && let Some(certificate) = &policy.certificate
        {
            add(certificate, host.pattern.to_string());
        }
    }
    if let Some(certificate) = &snapshot.default_certificate {
        add(certificate, "(default)".to_owned());
    }
    let mut views: Vec<_> = views.into_values().collect();
    for view in &mut views {
        view.served_for.sort();
    }
    views.sort_by(|a, b| (&a.names, &a.serial).cmp(&(&b.names, &b.serial)));
    views
}

fn certificate_view(certificate: &Certificate) -> CertificateView {
    let (origin, secret) = match &certificate.origin {
        CertificateOrigin::Acme(_) => ("acme", None),
        CertificateOrigin::InternalCa => ("internalCa", None),
        CertificateOrigin::Secret(name) => ("secret", Some(name.clone())),
        CertificateOrigin::SelfSigned => ("selfSigned", None),
    };
    CertificateView {
        names: certificate.names.iter().map(ToString::to_string).collect(),
        served_for: Vec::new(),
        not_before: rfc3339(certificate.not_before),
        not_after: rfc3339(certificate.not_after),
        serial: certificate.serial.clone(),
        issuer: certificate.issuer.clone(),
        fingerprint: certificate.fingerprint.to_string(),
        origin: origin.to_owned(),
        secret,
    }
}

/// A backend in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendView {
    /// Stable identity.
    pub key: String,
    /// What people call it.
    pub name: String,
    /// Its addresses.
    pub endpoints: Vec<EndpointView>,
    /// Why its name could not be resolved, if so.
    pub resolve_error: Option<String>,
}

/// An address of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointView {
    /// Address and port.
    pub address: String,
    /// Whether requests are sent there.
    pub healthy: bool,
    /// Requests in flight.
    pub active_requests: u64,
    /// The last failure, if it is not healthy.
    pub last_error: Option<String>,
}

impl From<&ObservedCluster> for BackendView {
    fn from(cluster: &ObservedCluster) -> Self {
        Self {
            key: cluster.key.to_string(),
            name: cluster.name.clone(),
            endpoints: cluster
                .endpoints
                .iter()
                .map(|endpoint| EndpointView {
                    address: endpoint.address.to_string(),
                    healthy: endpoint.healthy,
                    active_requests: endpoint.active_requests,
                    last_error: endpoint.last_error.clone(),
                })
                .collect(),
            resolve_error: cluster.resolve_error.clone(),
        }
    }
}

/// RFC 3339 in UTC, to the second.
pub fn rfc3339(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    time.replace_nanosecond(0)
        .unwrap_or(time)
        .format(&Rfc3339)
        .unwrap_or_default()
}
