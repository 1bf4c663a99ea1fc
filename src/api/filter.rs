//! Filters of a rule: one `type` and the one member that belongs to it, as in Gateway API.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Backend, HttpField, Quantity};

/// Something that is done to requests or responses. The member that belongs to `type` must be set, and
/// no other.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("(self.type == 'RequestHeaderModifier') == has(self.requestHeaderModifier) && (self.type == 'ResponseHeaderModifier') == has(self.responseHeaderModifier) && (self.type == 'RequestRedirect') == has(self.requestRedirect) && (self.type == 'URLRewrite') == has(self.urlRewrite) && (self.type == 'RequestMirror') == has(self.requestMirror) && (self.type == 'CORS') == has(self.cors)")
    .message("the member that belongs to type must be set and no other"))]
#[x_kube(validation = Rule::new("(self.type == 'RateLimit') == has(self.rateLimit) && (self.type == 'IPAccess') == has(self.ipAccess) && (self.type == 'BasicAuth') == has(self.basicAuth) && (self.type == 'ForwardAuth') == has(self.forwardAuth) && (self.type == 'Compression') == has(self.compression) && (self.type == 'FixedResponse') == has(self.fixedResponse)")
    .message("the member that belongs to type must be set and no other"))]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// What is done; see the members.
    #[serde(rename = "type")]
    #[schemars(
        length(max = 32),
        extend("enum" = [
            "RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite",
            "RequestMirror", "CORS", "RateLimit", "IPAccess", "BasicAuth", "ForwardAuth",
            "Compression", "FixedResponse"
        ])
    )]
    pub type_: String,

    /// Edits of the request's header, for type `RequestHeaderModifier`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,

    /// Edits of the response's header, for type `ResponseHeaderModifier`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,

    /// A redirect instead of backends, for type `RequestRedirect`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<RedirectFilter>,

    /// Another host or path for the backend, for type `URLRewrite`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<RewriteFilter>,

    /// Copies of requests whose answers are dropped, for type `RequestMirror`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<MirrorFilter>,

    /// Which other origins may read responses, for type `CORS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<CorsFilter>,

    /// How often clients may come, for type `RateLimit`; then 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimitFilter>,

    /// Which addresses may come, for type `IPAccess`; others get 403.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_access: Option<IpAccessFilter>,

    /// Name and password, for type `BasicAuth`; otherwise 401.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic_auth: Option<BasicAuthFilter>,

    /// Another service decides, for type `ForwardAuth`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_auth: Option<ForwardAuthFilter>,

    /// Compression of responses, for type `Compression`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<CompressionFilter>,

    /// A response written here instead of backends, for type `FixedResponse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed_response: Option<FixedResponseFilter>,
}

/// Edits of a header: `remove`, then `set`, then `add`.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderModifier {
    /// Fields that replace all of their name, such as `[{name: X-Env, value: production}]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub set: Vec<HttpField>,

    /// Fields that come beside others of their name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub add: Vec<HttpField>,

    /// Names of fields that are removed, such as `[Server]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)))]
    pub remove: Vec<String>,
}

/// A redirect. What is left out stays as in the request.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedirectFilter {
    /// `http` or `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8), extend("enum" = ["http", "https"]))]
    pub scheme: Option<String>,

    /// Hostname, such as `www.example.com`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub hostname: Option<String>,

    /// Path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,

    /// Port. Default: the scheme's, if `scheme` is given, else the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<i32>,

    /// Status: `301`, `302`, `303`, `307` or `308`. Default: `302`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [301, 302, 303, 307, 308]))]
    pub status_code: Option<i32>,
}

/// What the backend sees instead. The query is never touched.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RewriteFilter {
    /// Host header, such as `internal.example.com`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub hostname: Option<String>,

    /// Path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
}

/// How a path is replaced. The member that belongs to `type` must be set.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("(self.type == 'ReplaceFullPath') == has(self.replaceFullPath) && (self.type == 'ReplacePrefixMatch') == has(self.replacePrefixMatch) && (self.type == 'RegularExpression') == has(self.regularExpression)")
    .message("the member that belongs to type must be set and no other"))]
#[serde(rename_all = "camelCase")]
pub struct PathModifier {
    /// `ReplaceFullPath`, `ReplacePrefixMatch` (the part that the rule's prefix matched) or
    /// `RegularExpression` (only in `URLRewrite`).
    #[serde(rename = "type")]
    #[schemars(
        length(max = 32),
        extend("enum" = ["ReplaceFullPath", "ReplacePrefixMatch", "RegularExpression"])
    )]
    pub type_: String,

    /// The new path, such as `/maintenance.html`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub replace_full_path: Option<String>,

    /// What stands in place of the matched prefix, such as `/v2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub replace_prefix_match: Option<String>,

    /// Replaces what an expression matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regular_expression: Option<PathSubstitution>,
}

/// Replaces every match of an expression.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathSubstitution {
    /// Expression in RE2 syntax, such as `^/users/(\d+)`.
    #[schemars(length(min = 1, max = 1024))]
    pub pattern: String,

    /// What stands instead, with groups as `$1` or `${name}`, such as `/u/$1`.
    #[schemars(length(max = 1024))]
    pub substitution: String,
}

/// Copies of requests.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorFilter {
    /// Where copies go: a `service` or an `address`.
    pub backend: Backend,

    /// Share of requests in percent. Default: `100`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub percent: Option<i32>,
}

/// Cross-origin resource sharing. Preflight requests are answered by the edge.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CorsFilter {
    /// Origins that may read responses: `https://app.example.com`, `https://*.example.com` or `*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 253)))]
    pub allow_origins: Vec<String>,

    /// Methods they may use; `*` for any. Default: GET, HEAD and POST.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 32)))]
    pub allow_methods: Vec<String>,

    /// Request header fields they may send; `*` for any. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub allow_headers: Vec<String>,

    /// Response header fields that scripts may read. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub expose_headers: Vec<String>,

    /// Whether cookies and authorization may be sent. Default: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_credentials: Option<bool>,

    /// Seconds for which a browser may keep the answer to a preflight. Default: `5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86_400))]
    pub max_age: Option<i32>,
}

/// How often clients may come.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.requestsPerSecond) != has(self.requests)")
    .message("set exactly one of requestsPerSecond and requests (with period)"))]
#[x_kube(validation = Rule::new("has(self.requests) == has(self.period)")
    .message("requests and period belong together"))]
#[x_kube(validation = Rule::new("has(self.header) == (has(self.key) && self.key == 'Header')")
    .message("header belongs to key Header, which needs it"))]
#[serde(rename_all = "camelCase")]
pub struct RateLimitFilter {
    /// Requests per second in the long run, such as `20`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests_per_second: Option<i32>,

    /// Requests per `period` in the long run, such as `100`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: Option<i32>,

    /// The period that `requests` speaks of, such as `1m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub period: Option<String>,

    /// Requests that may come at once, such as `40`. Default: `requestsPerSecond` or `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<i32>,

    /// What is counted together: `ClientIP` (IPv6 by /64), `Header` (each value of a field) or `Route`
    /// (everything). Default: `ClientIP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["ClientIP", "Header", "Route"]))]
    pub key: Option<String>,

    /// Name of the field for key `Header`, such as `X-API-Key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub header: Option<String>,
}

/// Addresses that may or may not come. `deny` wins; with `allow`, everybody else is refused.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.allow) || has(self.deny)")
    .message("set allow, deny or both"))]
#[serde(rename_all = "camelCase")]
pub struct IpAccessFilter {
    /// Networks or addresses that may come, such as `[10.0.0.0/8, "2001:db8::/32"]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 2, max = 64)))]
    pub allow: Vec<String>,

    /// Networks or addresses that may not come, such as `[203.0.113.7]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 2, max = 64)))]
    pub deny: Vec<String>,
}

/// Name and password (RFC 7617).
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BasicAuthFilter {
    /// Name of a Secret in the route's namespace whose key `auth` (or `.htpasswd`) holds lines of
    /// `user:hash`, as `htpasswd -B` writes them; hashes are bcrypt or argon2.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,

    /// Text that browsers show, such as `staff only`. Default: `restricted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub realm: Option<String>,

    /// Request header field that tells the backend the user, such as `X-User`; what clients send under
    /// this name is dropped. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub user_header: Option<String>,
}

/// Another service decides: it gets a GET with the request's header, and a 2xx lets the request pass;
/// anything else is the answer to the client.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForwardAuthFilter {
    /// The service: a `service` or an `address`.
    pub backend: Backend,

    /// Path and query of the question, such as `/oauth2/auth`. Default: `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub path: Option<String>,

    /// Request header fields that the service sees, such as `[Cookie, Authorization]`. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub request_headers: Vec<String>,

    /// Fields of its answer that the backend gets, such as `[X-Auth-Request-User]`; what clients send under
    /// these names is dropped. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub response_headers: Vec<String>,

    /// How long it may take; then 504. Default: `5s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub timeout: Option<String>,
}

/// Compression of responses that are compressible and not yet compressed. Do not use it where a secret
/// and text chosen by others stand in one response (the BREACH attack).
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CompressionFilter {
    /// In order of preference: `zstd`, `br`, `gzip`. Default: `[zstd, br, gzip]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 3),
        inner(length(max = 8)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub algorithms: Vec<String>,

    /// Bodies known to be smaller are left alone. Default: `1Ki`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_size: Option<Quantity>,

    /// Media types, such as `[text/*, application/json]`. Default: the usual texts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 3, max = 128)))]
    pub content_types: Vec<String>,
}

/// A response written in the object.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FixedResponseFilter {
    /// Status, such as `503`. Default: `200`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 200, max = 599))]
    pub status: Option<i32>,

    /// Body, such as `back at noon`. Default: empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65_536))]
    pub body: Option<String>,

    /// Media type of the body, such as `text/html; charset=utf-8`. Default: `text/plain; charset=utf-8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 128))]
    pub content_type: Option<String>,
}
