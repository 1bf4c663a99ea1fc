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
#[x_kube(validation = Rule::new("!has(self.mappings) || has(self.allowedHostnames)")
    .message("mappings need allowedHostnames: an agent may only serve hostnames it was given")
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

    /// Whether the agent may be away, as a laptop is: it is then Ready without being connected.
    /// Default: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,

    /// Hostnames and where the agent sends them. Each is short for a TlsRoute with an `agent` backend.
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
    /// Name of a Secret in the agent's namespace whose key `token` holds the token, such as
    /// `homelab-agent`. The operator creates it if it is absent. The edge keeps only a hash.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// One hostname of an agent.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentMapping {
    /// Name of the mapping, unique within the agent, such as `nas`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,

    /// The name that clients ask for, such as `nas.home.example.com`.
    #[schemars(length(min = 1, max = 253))]
    pub hostname: String,

    /// URL of the service as the agent reaches it, such as `https://192.168.1.10:5001`.
    #[schemars(length(min = 1, max = 512))]
    pub target: String,

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
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MappingTls {
    /// Accepts any certificate of the target. Default: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure_skip_verify: Option<bool>,

    /// Name sent to and verified in the target's certificate. Default: the target's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub server_name: Option<String>,
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

    /// Version of the agent's program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub agent_version: Option<String>,

    /// Live sessions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub sessions: Vec<AgentSession>,
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

    /// Address that the agent comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub peer: Option<String>,

    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected_at: Option<Time>,
}
