//! TlsRoute: hostnames, certificate, rules and backends in one object.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CertificateStatus, OrderStatus, PreflightStatus, RouteRule};

/// A TlsRoute says which hostnames the edge answers, with which certificate, and where requests go.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[kube(
    group = "edge.tidegate.dev",
    version = "v1alpha1",
    kind = "TlsRoute",
    plural = "tlsroutes",
    shortname = "tlsr",
    category = "edge",
    namespaced,
    status = "TlsRouteStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A TlsRoute says which hostnames the edge answers, with which certificate, and where requests go.",
    selectable = ".spec.className",
    printcolumn(name = "Hosts", type_ = "string", json_path = ".status.hosts"),
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
    printcolumn(
        name = "Expires",
        type_ = "string",
        json_path = ".status.certificate.notAfter"
    ),
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
#[x_kube(validation = Rule::new("has(self.hostnames) || self.rules.all(r, has(r.hostnames))")
    .message("give hostnames, or give every rule its own hostnames")
    .reason(Reason::FieldValueInvalid))]
#[x_kube(validation = super::uniform::rule())]
#[x_kube(validation = Rule::new("!has(self.tls) || !has(self.tls.mode) || self.tls.mode != 'Passthrough' || self.rules.all(r, has(r.backends) && size(r.backends) == 1 && !has(r.match) && !has(r.matches) && !has(r.filters))")
    .message("with tls.mode Passthrough every rule has exactly one backend and neither match nor filters, because requests are not opened")
    .reason(Reason::FieldValueInvalid))]
#[serde(rename_all = "camelCase")]
pub struct TlsRouteSpec {
    /// Names that clients ask for, such as `blog.example.com` or `*.apps.example.com` (exactly one further
    /// label). Rules without `hostnames` of their own answer for all of these. May be left out when every
    /// rule has its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 253)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub hostnames: Vec<String>,

    /// Name of the edge that serves this object, such as `public`, where several run side by side.
    /// Default: the edge that was started without a class name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub class_name: Option<String>,

    /// Takes the route out of service without deleting it: its hostnames are not answered and its
    /// certificate is not renewed. Default: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,

    /// Joins routes whose rules lead to HTTP trackers of one tracker process, such as `torrust`.
    /// Peers must reach the trackers of a group all through this edge or all directly, because the process has
    /// one switch for all of them. What leads to the same port of one host is one process in any case.
    /// Default: the route's own rules, and those of routes without group that lead to the same Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub tracker_group: Option<String>,

    /// How TLS is spoken and where the certificate comes from. Default: TLS ends here, with a certificate
    /// of the edge's default issuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsPolicy>,

    /// What plain HTTP gets, and HSTS. Default: a redirect to HTTPS with status 308, no HSTS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpPolicy>,

    /// Where requests go. The most specific match of any rule wins: an exact path before a regular
    /// expression before the longest prefix, then a method, then more headers, then more query
    /// parameters, then the earlier rule.
    #[schemars(length(min = 1, max = 64))]
    pub rules: Vec<RouteRule>,
}

impl TlsRouteSpec {
    /// The hostnames that a rule of it answers for: its own, else those of the route.
    pub fn hostnames_of<'a>(&'a self, rule: &'a RouteRule) -> &'a [String] {
        if rule.hostnames.is_empty() {
            &self.hostnames
        } else {
            &rule.hostnames
        }
    }
}

/// How TLS is spoken for the hostnames of a route.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!(has(self.issuerRef) && has(self.secretName))")
    .message("set at most one of issuerRef and secretName"))]
#[x_kube(validation = Rule::new("!has(self.mode) || self.mode != 'Passthrough' || !(has(self.issuerRef) || has(self.secretName) || has(self.minVersion) || has(self.clientAuth))")
    .message("with mode Passthrough the backend speaks TLS: leave out issuerRef, secretName, minVersion and clientAuth"))]
#[serde(rename_all = "camelCase")]
pub struct TlsPolicy {
    /// `Terminate`: TLS ends here. `Passthrough`: the bytes go unopened to the one backend of the rule,
    /// chosen by the server name the client asks for. Default: `Terminate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["Terminate", "Passthrough"]))]
    pub mode: Option<String>,

    /// Who issues the certificate. Default: the AcmeIssuer with `default: true`, else the edge's internal CA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer_ref: Option<IssuerRef>,

    /// Name of a Secret of type `kubernetes.io/tls` in the route's namespace with an existing certificate,
    /// such as `blog-tls`. It needs the keys `tls.crt` (the chain, leaf first) and `tls.key`, is read again
    /// when it changes and never written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: Option<String>,

    /// Lowest TLS version accepted: `"1.2"` or `"1.3"` (in quotes). Default: `"1.2"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8), extend("enum" = ["1.2", "1.3"]))]
    pub min_version: Option<String>,

    /// Which clients may connect, by their certificates (mutual TLS). Default: clients need none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_auth: Option<ClientAuth>,
}

/// The issuer of a certificate.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.name) != (has(self.kind) && self.kind == 'InternalCA')")
    .message("an AcmeIssuer needs a name; kind InternalCA has none"))]
#[serde(rename_all = "camelCase")]
pub struct IssuerRef {
    /// Name of the AcmeIssuer, such as `letsencrypt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,

    /// `AcmeIssuer`, or `InternalCA` for the edge's own CA, whose root clients must be told to trust.
    /// Default: `AcmeIssuer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["AcmeIssuer", "InternalCA"]))]
    pub kind: Option<String>,
}

/// Verification of client certificates.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.caSecretName) != has(self.caConfigMapName)")
    .message("set exactly one of caSecretName and caConfigMapName"))]
#[serde(rename_all = "camelCase")]
pub struct ClientAuth {
    /// Name of a Secret in the route's namespace whose key `ca.crt` holds the accepted CAs in PEM,
    /// such as `clients-ca`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub ca_secret_name: Option<String>,

    /// Name of a ConfigMap in the route's namespace whose key `ca.crt` holds the accepted CAs in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub ca_config_map_name: Option<String>,

    /// `Required`: no certificate, no connection. `Optional`: a certificate is verified if one is sent.
    /// Default: `Required`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["Required", "Optional"]))]
    pub mode: Option<String>,
}

/// What plain HTTP gets.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpPolicy {
    /// `Redirect`: to HTTPS. `Serve`: the same rules as over HTTPS. `Refuse`: 404. Default: `Redirect`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["Redirect", "Serve", "Refuse"]))]
    pub plain: Option<String>,

    /// Status of the redirect: `308` keeps the method, `301` is what old clients know. Default: `308`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [301, 308]))]
    pub redirect_status: Option<i32>,

    /// Tells browsers to use only HTTPS for these hostnames (RFC 6797). Default: no such header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hsts: Option<Hsts>,
}

/// The Strict-Transport-Security header.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hsts {
    /// How long browsers remember it, as a duration in hours such as `8760h` (a year).
    /// Default: `8760h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub max_age: Option<String>,

    /// Whether it holds for all names below as well. Default: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_sub_domains: Option<bool>,

    /// Whether browsers may build the name into their lists, which cannot be undone quickly.
    /// Default: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preload: Option<bool>,
}

/// What the edge reports about a TlsRoute.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsRouteStatus {
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

    /// Every hostname of the route, from `hostnames` and from its rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4160), inner(length(max = 253)))]
    pub hostnames: Vec<String>,

    /// The hostnames in one line, as `kubectl get` shows them: `a.example.com,b.example.com`; of more than
    /// three the first and how many more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub hosts: Option<String>,

    /// The certificate that is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateStatus>,

    /// The ACME order that is under way, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<OrderStatus>,

    /// What was found before the last ACME order, the worst first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub preflight: Vec<PreflightStatus>,

    /// Addresses at which the edge can be reached, for DNS records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 253)))]
    pub addresses: Vec<String>,

    /// What to write into the DNS, as lines of a zone file such as `blog.example.com. IN A 203.0.113.7`. Trackers
    /// also have a TXT record with their ports (BEP 34). Lines that begin with `;` are comments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 1024)))]
    pub dns_records: Vec<String>,
}
