//! Solvers of an AcmeIssuer: how it is proven to an authority that a hostname is ours.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One key of a Secret in the operator's namespace.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret, such as `hetzner-dns`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,

    /// Key within it, such as `token`.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A way to answer challenges: exactly one of `http01`, `tlsAlpn01`, `dns01` and `dnsPersist01`.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.http01), has(self.tlsAlpn01), has(self.dns01), has(self.dnsPersist01)].filter(x, x).size() == 1")
    .message("set exactly one of http01, tlsAlpn01, dns01 and dnsPersist01"))]
#[serde(rename_all = "camelCase")]
pub struct Solver {
    /// Name, unique within the issuer, such as `wildcard`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,

    /// Hostnames that this solver is for. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<SolverSelector>,

    /// A file under `/.well-known/acme-challenge/` on port 80.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http01: Option<Http01Solver>,

    /// A certificate on port 443.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_alpn01: Option<TlsAlpn01Solver>,

    /// A TXT record `_acme-challenge.HOSTNAME` that is written for each order and removed after it; a CNAME
    /// there is followed. The only way besides `dnsPersist01` to get wildcards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns01: Option<Dns01Solver>,

    /// A TXT record `_validation-persist.HOSTNAME` that you publish once and leave there: no credentials for
    /// the DNS are needed. Its text is in `status.preflight` of the route until it is found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_persist01: Option<DnsPersist01Solver>,
}

/// Which hostnames a solver is for; all given conditions must hold.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SolverSelector {
    /// Zones that the hostname is in, such as `[example.com]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub dns_zones: Vec<String>,

    /// Hostnames as such, such as `["*.example.com"]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub dns_names: Vec<String>,
}

/// http-01 has no settings: the edge answers by itself.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Http01Solver {}

/// tls-alpn-01 has no settings: the edge answers by itself.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsAlpn01Solver {}

/// dns-persist-01 has no settings: you publish the record, the edge looks whether it is there.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsPersist01Solver {}

/// dns-01: exactly one of `rfc2136`, `webhook`, `exec` and `provider` says who writes the record.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.rfc2136), has(self.webhook), has(self.exec), has(self.provider)].filter(x, x).size() == 1")
    .message("set exactly one of rfc2136, webhook, exec and provider"))]
#[serde(rename_all = "camelCase")]
pub struct Dns01Solver {
    /// A dynamic update of the zone (RFC 2136), which BIND, Knot, Windows DNS and many others accept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rfc2136: Option<Rfc2136Solver>,

    /// A web service that writes the record, with the contract of lego's `httpreq`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookSolver>,

    /// A program on the edge's machine that writes the record, called as lego's `exec` does. Standalone only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecSolver>,

    /// A hoster of DNS by its own API. Needs a build with the feature `dns-providers`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<ProviderSolver>,

    /// How long to wait for all name servers of the zone to show the record, such as `2m`. Default: `2m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub propagation_timeout: Option<String>,

    /// Name servers, such as `["192.0.2.53", "[2001:db8::53]:5353"]`, that are asked for the zone and whether
    /// the record is there, where those of this machine see another DNS than the world. Default: this
    /// machine's to find the zone, and then the zone's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 64)))]
    pub name_servers: Vec<String>,
}

/// Dynamic update of a zone, signed with a TSIG key (RFC 8945).
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rfc2136Solver {
    /// Address and port of the zone's primary server, such as `192.0.2.53:53`.
    #[schemars(length(min = 1, max = 64))]
    pub server: String,

    /// The zone to change, such as `example.com`. Default: found by asking the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub zone: Option<String>,

    /// The key that signs updates.
    pub tsig: TsigKey,
}

/// A TSIG key.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TsigKey {
    /// Name of the key, as the server knows it, such as `edge`.
    #[schemars(length(min = 1, max = 253))]
    pub key_name: String,

    /// `hmac-sha256`, `hmac-sha384` or `hmac-sha512`. Default: `hmac-sha256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("enum" = ["hmac-sha256", "hmac-sha384", "hmac-sha512"]))]
    pub algorithm: Option<String>,

    /// Where the key is, in base64 as `tsig-keygen` prints it.
    pub secret_ref: SecretKeyRef,
}

/// `POST URL/present` and `POST URL/cleanup` with `{"fqdn": …, "value": …}`.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WebhookSolver {
    /// Where the service is, such as `https://dns.example.com/acme`. With `auth` it must be https, but on this
    /// machine.
    #[schemars(length(min = 1, max = 1024))]
    pub url: String,

    /// How the edge identifies itself. Default: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<WebhookAuth>,

    /// Name of a Secret in the operator's namespace whose key `ca.crt` holds the CAs that the service's
    /// certificate is verified with. Default: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub ca_secret_name: Option<String>,
}

/// Credentials for a web service: exactly one of `basic` and `bearer`.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.basic) != has(self.bearer)")
    .message("set exactly one of basic and bearer"))]
#[serde(rename_all = "camelCase")]
pub struct WebhookAuth {
    /// User name and password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<WebhookBasicAuth>,

    /// A token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<WebhookBearerAuth>,
}

/// User name and password.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WebhookBasicAuth {
    /// Name of a Secret in the operator's namespace with the keys `username` and `password`, as those of type
    /// `kubernetes.io/basic-auth` have.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// A token.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WebhookBearerAuth {
    /// Where the token is.
    pub secret_ref: SecretKeyRef,
}

/// `COMMAND ARGS… present|cleanup FQDN VALUE`.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecSolver {
    /// Whole path of the program, such as `/usr/local/bin/dns-update`.
    #[schemars(length(min = 1, max = 4096))]
    pub command: String,

    /// Arguments before `present` or `cleanup`. No credentials: every user of the machine can read them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 1024)))]
    pub args: Vec<String>,

    /// Name of a Secret whose keys and values the program finds in its environment, besides PATH, HOME, LANG
    /// and TZ. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub environment_secret_name: Option<String>,
}

/// A hoster of DNS.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderSolver {
    /// Which one, such as `hetzner` or `cloudflare`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,

    /// What it wants to know.
    pub credentials: ProviderCredentials,

    /// The zone as the provider knows it, such as `example.com`. Default: found by asking the DNS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub zone: Option<String>,
}

/// Credentials in a Secret.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderCredentials {
    /// Name of a Secret in the operator's namespace, such as `hetzner-dns`.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,

    /// Which key of the Secret holds which credential, such as `{apiToken: token}`. Default: every key of the
    /// Secret is named as the credential it holds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    pub keys: BTreeMap<String, String>,
}
