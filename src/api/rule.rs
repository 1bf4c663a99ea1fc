//! Rules of a TlsRoute: which requests, within which bounds. Words and shapes of Gateway API's `HTTPRoute`.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Backend, Circuit, Filter, HealthCheck, LoadBalancer, Quantity, Tracker};

/// Requests that match go through the filters to the backends.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!(has(self.match) && has(self.matches))")
    .message("set at most one of match and matches"))]
#[x_kube(validation = Rule::new("(has(self.backends) && size(self.backends) > 0) != (has(self.filters) && self.filters.exists(f, f.type == 'RequestRedirect' || f.type == 'FixedResponse'))")
    .message("a rule needs backends, or else a filter of type RequestRedirect or FixedResponse, and not both"))]
#[x_kube(validation = Rule::new("!has(self.backends) || size(self.backends) == 1 || !self.backends.exists(b, has(b.static))")
    .message("a static backend must be the only backend of its rule"))]
#[x_kube(validation = Rule::new("!has(self.tracker) || !has(self.tracker.udp) || has(self.tracker.type) && self.tracker.type == 'UDP'")
    .message("tracker.udp is for tracker.type UDP"))]
#[x_kube(validation = Rule::new("!has(self.tracker) || !has(self.tracker.type) || self.tracker.type != 'UDP' || has(self.backends) && size(self.backends) == 1 && self.backends.all(b, (has(b.service) || has(b.address)) && !has(b.weight) && !has(b.protocol) && !has(b.tls) && !has(b.proxyProtocol)) && !has(self.match) && !has(self.matches) && !has(self.filters) && !has(self.loadBalancing) && !has(self.healthCheck) && !has(self.circuit) && !has(self.timeouts) && !has(self.limits) && !has(self.tracker.exposure) && !has(self.tracker.addressParameters) && !has(self.tracker.probe)")
    .message("the rule of a UDP tracker has exactly one backend, a plain service or address, and nothing that speaks of requests"))]
#[serde(rename_all = "camelCase")]
pub struct RouteRule {
    /// Name for logs, metrics and messages, such as `api`. Default: the rule's position, `rules[2]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,

    /// Hostnames this rule answers for, such as `[api.example.com]`. Default: the hostnames of the route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 253)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub hostnames: Vec<String>,

    /// The condition on requests, when there is only one. Default: every request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#match: Option<Match>,

    /// Several conditions, of which one must hold. Default: every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub matches: Vec<Match>,

    /// What is done to requests and responses. Filters run in a fixed order, whatever theirs here: address
    /// lists, rate limits, CORS, authentication, header edits, rewrite, mirror; responses: header edits,
    /// compression. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub filters: Vec<Filter>,

    /// Where requests go; with several, each gets its share by `weight`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub backends: Vec<Backend>,

    /// How one of several addresses of a backend is chosen. Default: `LeastRequest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancing: Option<LoadBalancer>,

    /// How addresses that do not work are found. Default: an address that fails five times in a row to
    /// connect or to answer gets no requests for 30 s; nothing is probed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,

    /// Bounds on what may be in flight to each backend. Default: no bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit: Option<Circuit>,

    /// Clocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<RuleTimeouts>,

    /// Bounds on requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<RuleLimits>,

    /// Says that the backends are BitTorrent trackers: the raw query is kept, nothing is compressed or
    /// mirrored, request bodies are limited to 64Ki unless `limits` says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracker: Option<Tracker>,
}

/// Conditions on a request, all of which must hold.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!(has(self.path) && has(self.pathPrefix))")
    .message("set at most one of path and pathPrefix"))]
#[serde(rename_all = "camelCase")]
pub struct Match {
    /// Short for `path: {type: PathPrefix, value: …}`, such as `/ws/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub path_prefix: Option<String>,

    /// Condition on the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathCondition>,

    /// Method, such as `POST`. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub method: Option<String>,

    /// Conditions on header fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub headers: Vec<HeaderCondition>,

    /// Conditions on query parameters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub query_params: Vec<QueryCondition>,
}

/// Condition on the path of a request.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathCondition {
    /// `Exact`: the whole path. `PathPrefix`: whole leading segments, so that `/foo` matches `/foo` and
    /// `/foo/bar` and not `/foobar`. `RegularExpression`: must match the whole path; RE2 syntax.
    /// Default: `PathPrefix`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["Exact", "PathPrefix", "RegularExpression"]))]
    pub type_: Option<String>,

    /// The path, prefix or expression, such as `/api`.
    #[schemars(length(min = 1, max = 1024))]
    pub value: String,
}

/// Condition on a header field.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderCondition {
    /// `Exact`: the whole value. `RegularExpression`: must match the whole value; RE2 syntax.
    /// Default: `Exact`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["Exact", "RegularExpression"]))]
    pub type_: Option<String>,

    /// Name of the field in any case, such as `X-Version`.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,

    /// The value or expression, such as `beta`.
    #[schemars(length(max = 4096))]
    pub value: String,
}

/// Condition on a query parameter.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryCondition {
    /// `Exact`: the whole value. `RegularExpression`: must match the whole value; RE2 syntax.
    /// Default: `Exact`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["Exact", "RegularExpression"]))]
    pub type_: Option<String>,

    /// Name of the parameter, such as `version`. Only the first of that name counts.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,

    /// The value or expression after percent-decoding, such as `2`.
    #[schemars(length(max = 1024))]
    pub value: String,
}

/// Clocks of a rule, as durations such as `30s`, `1h30m` or `500ms`; `0s` means no limit.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleTimeouts {
    /// For DNS, TCP and TLS to the backend together. Default: `5s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub connect: Option<String>,

    /// From the end of the request to the start of the response, and for a backend that stops reading it; then
    /// 504. Default: `60s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub first_byte: Option<String>,

    /// Between two pieces of a body, in either direction. Default: `60s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub idle: Option<String>,

    /// For the whole request and response. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub request: Option<String>,

    /// Between two bytes of a WebSocket or other upgraded connection, in either direction. Default: `1h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub upgraded_idle: Option<String>,
}

/// Bounds of a rule.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleLimits {
    /// Size of a request body, such as `50Mi`; larger ones get 413. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_body: Option<Quantity>,

    /// Requests in flight at once per client address; further ones get 429. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests_per_client: Option<i32>,
}
