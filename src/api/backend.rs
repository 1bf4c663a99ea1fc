//! Backends of a rule: where requests go and how the edge talks to them.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A backend: exactly one of `service`, `address`, `agent` and `static`.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.service), has(self.address), has(self.agent), has(self.static)].filter(x, x).size() == 1")
    .message("set exactly one of service, address, agent and static"))]
#[x_kube(validation = Rule::new("!has(self.static) || !(has(self.protocol) || has(self.tls) || has(self.proxyProtocol) || has(self.weight))")
    .message("a static backend has neither weight, protocol, tls nor proxyProtocol"))]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// A Service of the route's namespace. Without Kubernetes: the DNS name `name`, such as the name of a
    /// Compose service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,

    /// Host and port, such as `127.0.0.1:3000`, `nas.lan:8080` or `[2001:db8::1]:80`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 260))]
    pub address: Option<String>,

    /// A service behind a TunnelAgent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentRef>,

    /// Files of a folder on the edge itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#static: Option<StaticFiles>,

    /// Share of requests relative to the sum of the weights; `0` gets none. Default: `1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: Option<i32>,

    /// HTTP version spoken to the backend. `Auto`: HTTP/1.1, over TLS also HTTP/2 if the backend offers it.
    /// `HTTP1`: HTTP/1.1 only. `HTTP2`: HTTP/2 only, over cleartext by prior knowledge (h2c), which gRPC
    /// needs. Default: `Auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["Auto", "HTTP1", "HTTP2"]))]
    pub protocol: Option<String>,

    /// Speaks TLS to the backend; `tls: {}` verifies with the system's CAs. Default: cleartext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<BackendTls>,

    /// Sends HAProxy's PROXY protocol header, `v1` (text) or `v2` (binary), before anything else.
    /// The backend must expect it. Default: no header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["v1", "v2"]))]
    pub proxy_protocol: Option<String>,
}

/// A Service.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Name, such as `blog`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,

    /// Port number, such as `80`.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: i32,
}

/// A service behind an agent.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentRef {
    /// Name of the TunnelAgent in the route's namespace, such as `homelab`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,

    /// URL of the service as the agent reaches it, such as `http://192.168.1.20:8123`.
    #[schemars(length(min = 1, max = 512))]
    pub target: String,
}

/// Files of a folder.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StaticFiles {
    /// The folder, such as `site`. Relative paths start at the edge's folder of objects. The part of the
    /// request path that the rule's prefix names is not part of the file's path.
    #[schemars(length(min = 1, max = 1024))]
    pub path: String,

    /// Files tried for a folder. Default: `[index.html]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8), inner(length(min = 1, max = 255)))]
    pub index: Vec<String>,

    /// Whether a folder without index is listed. Default: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listing: Option<bool>,

    /// File served for what does not exist, such as `index.html` for single-page applications.
    /// Default: 404.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub fallback: Option<String>,
}

/// TLS to a backend.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.caSecretName), has(self.caConfigMapName), has(self.insecureSkipVerify) && self.insecureSkipVerify].filter(x, x).size() <= 1")
    .message("set at most one of caSecretName, caConfigMapName and insecureSkipVerify"))]
#[serde(rename_all = "camelCase")]
pub struct BackendTls {
    /// Name sent to and verified in the backend's certificate, such as `nas.lan`. Default: the backend's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub server_name: Option<String>,

    /// Name of a Secret in the route's namespace whose key `ca.crt` holds the trusted CAs in PEM.
    /// Default: the system's CAs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub ca_secret_name: Option<String>,

    /// Name of a ConfigMap in the route's namespace whose key `ca.crt` holds the trusted CAs in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub ca_config_map_name: Option<String>,

    /// Accepts any certificate. Only for devices with self-signed certificates on a trusted network.
    /// Default: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure_skip_verify: Option<bool>,
}

/// How one of several addresses is chosen.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.hash) || (has(self.policy) && self.policy == 'ConsistentHash')")
    .message("hash belongs to policy ConsistentHash"))]
#[x_kube(validation = Rule::new("!has(self.cookie) || (has(self.policy) && self.policy == 'StickyCookie')")
    .message("cookie belongs to policy StickyCookie"))]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancer {
    /// `LeastRequest`: the less busy of two random addresses. `RoundRobin`: one after the other. `Random`.
    /// `ConsistentHash`: the same address for the same key. `StickyCookie`: the address that a cookie
    /// names. Default: `LeastRequest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 32),
        extend("enum" = ["LeastRequest", "RoundRobin", "Random", "ConsistentHash", "StickyCookie"])
    )]
    pub policy: Option<String>,

    /// What `ConsistentHash` looks at. Default: the client's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashPolicy>,

    /// The cookie of `StickyCookie`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<StickyCookie>,
}

/// The key of consistent hashing.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.header) == (has(self.key) && self.key == 'Header')")
    .message("header belongs to key Header, which needs it"))]
#[serde(rename_all = "camelCase")]
pub struct HashPolicy {
    /// `ClientIP`, `Header` or `Path`. Default: `ClientIP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["ClientIP", "Header", "Path"]))]
    pub key: Option<String>,

    /// Name of the header field for key `Header`, such as `X-Session`; requests without it go by the
    /// client's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub header: Option<String>,
}

/// A cookie that binds a client to an address.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StickyCookie {
    /// Name, such as `shop-node`. Default: `tidegate-sticky`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub name: Option<String>,

    /// How long clients keep it, such as `24h`. Default: until the browser is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub max_age: Option<String>,
}

/// How addresses that do not work are found.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// Probes sent to each address. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<ActiveHealth>,

    /// What failures in real traffic do. Default: see its fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passive: Option<PassiveHealth>,
}

/// Probes.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActiveHealth {
    /// Path of a GET, such as `/healthz`. Default: only a TCP connection is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub path: Option<String>,

    /// Host header of the probe. Default: the backend's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub host: Option<String>,

    /// Further header fields of the probe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub headers: Vec<HttpField>,

    /// Statuses that count as healthy, one (`204`) or a range (`200-399`). Default: `200-399`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 7))]
    pub expected_status: Option<String>,

    /// Time between probes. Default: `10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub interval: Option<String>,

    /// Time a probe may take. Default: `5s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub timeout: Option<String>,

    /// Successes in a row that make an address healthy. Default: `2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub healthy_threshold: Option<i32>,

    /// Failures in a row that make an address unhealthy. Default: `3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_threshold: Option<i32>,
}

/// Ejection after failures to connect or to answer. A status never ejects, because many programs answer
/// a bad request with 500.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PassiveHealth {
    /// Failures in a row after which an address gets no requests; `0` turns it off. Default: `5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub consecutive_failures: Option<i32>,

    /// How long it then gets none. Default: `30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub ejection_time: Option<String>,
}

/// Bounds on what may be in flight to a backend.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Circuit {
    /// Requests at once; further ones get 503. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_requests: Option<i32>,
}

/// A header field.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpField {
    /// Name in any case, such as `X-Env`.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,

    /// Value, such as `production`.
    #[schemars(length(max = 4096))]
    pub value: String,
}
