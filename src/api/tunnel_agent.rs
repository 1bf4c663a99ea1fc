//! TunnelAgent: identity of one agent behind NAT, the hostnames it may claim, and its mappings.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{IpAccessFilter, RateLimitFilter, RuleLimits};

/// A TunnelAgent is one agent that dials out to the edge and serves what only it can reach.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[kube(
    group = "edge.tidegate.dev",
    version = "v1alpha1",
    kind = "TunnelAgent",
    plural = "tunnelagents",
    shortname = "tagent",
    category = "edge",
    namespaced,
    status = "TunnelAgentStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A TunnelAgent is one agent that dials out to the edge and serves what only it can reach.",
    selectable = ".spec.className",
    printcolumn(
        name = "Connected",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Connected')].status"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.agentVersion"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Class",
        type_ = "string",
        priority = 1,
        json_path = ".spec.className"
    )
)]
#[x_kube(validation = Rule::new("!has(self.mappings) || has(self.allowedHostnames) || self.mappings.all(m, has(m.port))")
    .message("mappings with a hostname need allowedHostnames: an agent may only serve hostnames it was given")
    .reason(Reason::FieldValueInvalid))]
#[serde(rename_all = "camelCase")]
pub struct TunnelAgentSpec {
    /// Name of the edge that this agent may connect to, where several run side by side.
    /// Default: the edge that was started without a class name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub class_name: Option<String>,

    /// Refuses the agent and ends its sessions without deleting anything. Default: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,

    /// How the agent proves who it is.
    pub credential: AgentCredential,

    /// Hostnames that the agent's mappings may claim, such as `["*.home.example.com"]`. Routes whose
    /// backends name this agent are not bound by it. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 253)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub allowed_hostnames: Vec<String>,

    /// Ports of the edge that the agent itself may ask for, such as `["25565", "51820/udp", "20000-20100"]`;
    /// without `/tcp` or `/udp` both. Mappings of this object are not bound by it. Of all of them only those can
    /// be opened that the edge was started with (`--tunnel-ports`). Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(max = 16), regex(pattern = "^[0-9]{1,5}(-[0-9]{1,5})?(/(tcp|udp))?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub allowed_ports: Vec<String>,

    /// Whether the agent may be away, as a laptop is: it is then Ready without being connected.
    /// Default: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,

    /// How long requests wait for the agent when its connection was lost a moment ago, such as `10s`; `0s`
    /// lets them fail at once. Default: `10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub hold: Option<String>,

    /// How often the agent tries each of its services, so that `DataPathHealthy` can tell which part of the way is
    /// broken: it connects, and asks for the head of `/` where HTTP is spoken. At least `5s`; `0s` for never.
    /// Default: `60s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub probe_interval: Option<String>,

    /// Hostnames and ports, and where the agent sends them. One with a hostname is short for a TlsRoute with an
    /// `agent` backend.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 256),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub mappings: Vec<AgentMapping>,
}

/// The credential of an agent.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentCredential {
    /// Name of a Secret in the agent's namespace whose key `token` holds the token, or `tokenHash` its hash,
    /// as `tidegate agent token` prints them, such as `homelab-agent`. What stands under `previousToken` or
    /// `previousTokenHash` is valid as well, for the time in which agents change. The operator creates the
    /// Secret if it is absent. The edge keeps only hashes.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// One hostname or port of an agent.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.hostname) != has(self.port)")
    .message("set exactly one of hostname and port"))]
#[x_kube(validation = Rule::new("!has(self.port) || self.target.matches('^(?i)(tcp|udp)://')")
    .message("a port leads to a target with tcp:// or udp://; for HTTP set hostname"))]
#[x_kube(validation = Rule::new("has(self.port) || !self.target.matches('^(?i)udp://')")
    .message("datagrams have no hostname: a target with udp:// needs port"))]
#[x_kube(validation = Rule::new("!has(self.port) || !(has(self.protocol) || has(self.tls) || has(self.limits) || has(self.rateLimit))")
    .message("what a port carries is not opened here: leave out protocol, tls, limits and rateLimit"))]
#[x_kube(validation = Rule::new("!has(self.proxyProtocol) || self.proxyProtocol != 'v1' || !self.target.matches('^(?i)udp://')")
    .message("datagrams can have a PROXY protocol header of version v2 only"))]
#[serde(rename_all = "camelCase")]
pub struct AgentMapping {
    /// Name of the mapping, unique within the agent, such as `nas`: lower-case letters, digits and hyphens.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,

    /// The name that clients ask for, such as `nas.home.example.com`. Either this or `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub hostname: Option<String>,

    /// Port of the edge that clients connect to, such as `25565`: TCP if the target is `tcp://`, UDP if it is
    /// `udp://`. Whoever starts the edge allows it (`--tunnel-ports`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<i32>,

    /// URL of the service as the agent reaches it, such as `https://192.168.1.10:5001`. With a hostname and
    /// `tcp://` the service speaks TLS with the client itself, with a certificate of its own; with a port
    /// `tcp://` and `udp://` are passed on whatever they carry.
    #[schemars(length(min = 1, max = 512))]
    pub target: String,

    /// HTTP version spoken to the target: `Auto`, `HTTP1` or `HTTP2`, as of a backend of a TlsRoute.
    /// Default: `Auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["Auto", "HTTP1", "HTTP2"]))]
    pub protocol: Option<String>,

    /// The agent sends the target HAProxy's PROXY protocol header, `v1` or `v2`, before anything else; before
    /// each datagram with `udp://`, which knows `v2` only. Default: no header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["v1", "v2"]))]
    pub proxy_protocol: Option<String>,

    /// How the agent verifies a target with `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<MappingTls>,

    /// Whether the mapping is served. Default: `true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,

    /// Words for people, such as `Synology in the cellar`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,

    /// Bounds on requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<RuleLimits>,

    /// How often clients may come. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimitFilter>,

    /// Which addresses may come. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<IpAccessFilter>,
}

/// TLS between agent and target.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.caSecretName), has(self.caConfigMapName), has(self.insecureSkipVerify) && self.insecureSkipVerify].filter(x, x).size() <= 1")
    .message("set at most one of caSecretName, caConfigMapName and insecureSkipVerify"))]
#[serde(rename_all = "camelCase")]
pub struct MappingTls {
    /// Accepts any certificate of the target. Default: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure_skip_verify: Option<bool>,

    /// Name sent to and verified in the target's certificate. Default: the target's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub server_name: Option<String>,

    /// Name of a Secret in the agent's namespace whose key `ca.crt` holds the CAs in PEM that the agent trusts.
    /// Default: those of the agent's system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub ca_secret_name: Option<String>,

    /// Name of a ConfigMap in the agent's namespace whose key `ca.crt` holds them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub ca_config_map_name: Option<String>,
}

/// What the edge reports about a TunnelAgent.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelAgentStatus {
    /// The generation of the object that this status speaks of; -1 until an edge has looked at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// The state, one entry per type. See the page on conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,

    /// Hostnames that are served by mappings of the agent, its own wishes included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512), inner(length(max = 253)))]
    pub hostnames: Vec<String>,

    /// Ports that lead to mappings of the agent, its own wishes included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub ports: Vec<AgentPort>,

    /// What to write into the DNS for these, as lines of a zone file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512), inner(length(max = 1024)))]
    pub dns_records: Vec<String>,

    /// Version of the agent's program, as that of its newest session says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub agent_version: Option<String>,

    /// When a session of the agent was last seen; absent while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Time>,

    /// Live sessions, the oldest first. An agent holds two links if it can.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub sessions: Vec<AgentSession>,

    /// What the agent itself asks for, and what became of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub requested_mappings: Vec<RequestedMappingStatus>,
}

/// A port that leads to a mapping of an agent.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentPort {
    /// Name of the mapping.
    #[schemars(length(max = 63))]
    pub name: String,

    /// `TCP` or `UDP`.
    #[schemars(length(max = 8))]
    pub protocol: String,

    /// Number of the port.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: i32,

    /// Where clients reach it, such as `203.0.113.7:25565`; empty while the edge does not know its addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 300)))]
    pub addresses: Vec<String>,
}

/// A live session of an agent.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentSession {
    /// Identity of the session.
    #[schemars(length(max = 64))]
    pub id: String,

    /// Name of the edge replica that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub replica: Option<String>,

    /// The agent's process: one identity for each start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub instance: Option<String>,

    /// Which link of that process it is, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 255))]
    pub link: Option<i32>,

    /// What the link runs over: `Direct` or `WebSocket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub carrier: Option<String>,

    /// Address and port that the agent comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub address: Option<String>,

    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,

    /// Round trip between edge and agent, such as `12ms`, as it was when something else changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub rtt: Option<String>,

    /// Version of the agent's program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub version: Option<String>,

    /// Whether it is about to end and gets no new requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<bool>,
}

/// Something that an agent asked for.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestedMappingStatus {
    /// Name that the agent gave it.
    #[schemars(length(max = 63))]
    pub name: String,

    /// The name that clients ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub hostname: Option<String>,

    /// The port that clients connect to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<i32>,

    /// URL of the service as the agent reaches it.
    #[schemars(length(max = 512))]
    pub target: String,

    /// Words for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,

    /// Whether it is served.
    pub accepted: bool,

    /// Why, in one word.
    #[schemars(length(max = 64))]
    pub reason: String,

    /// Why, and how to mend it.
    #[schemars(length(max = 4096))]
    pub message: String,
}
