//! AcmeIssuer: a certification authority that speaks ACME (RFC 8555), and how challenges are answered.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Notification, SecretKeyRef, Solver};

/// An AcmeIssuer is an account at a certification authority that speaks ACME.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[kube(
    group = "edge.tidegate.dev",
    version = "v1alpha1",
    kind = "AcmeIssuer",
    plural = "acmeissuers",
    shortname = "acmei",
    category = "edge",
    status = "AcmeIssuerStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "An AcmeIssuer is an account at a certification authority that speaks ACME.",
    selectable = ".spec.className",
    printcolumn(name = "Default", type_ = "boolean", json_path = ".spec.default"),
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
        name = "Directory",
        type_ = "string",
        priority = 1,
        json_path = ".spec.directory"
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
#[x_kube(validation = Rule::new("has(self.termsOfServiceAgreed) && self.termsOfServiceAgreed")
    .message("read the authority's terms of service and set termsOfServiceAgreed: true")
    .reason(Reason::FieldValueInvalid))]
#[serde(rename_all = "camelCase")]
pub struct AcmeIssuerSpec {
    /// Whether routes that name no issuer use this one. At most one AcmeIssuer of a class may say so; of
    /// several, the oldest wins. Default: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<bool>,

    /// Name of the edge that orders from this issuer, where several run side by side.
    /// Default: the edge that was started without a class name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub class_name: Option<String>,

    /// URL of the directory, such as `https://acme-v02.api.letsencrypt.org/directory`.
    #[schemars(length(min = 1, max = 1024))]
    pub directory: String,

    /// URL of the authority's staging directory, where new sets of names are tried before the first real
    /// order, such as `https://acme-staging-v02.api.letsencrypt.org/directory`. Default: none, no trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub staging_directory: Option<String>,

    /// Where the authority may write to, such as `["mailto:admin@example.com"]`. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 256)))]
    pub contact: Vec<String>,

    /// Whether you agree to the authority's terms of service. Must be `true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms_of_service_agreed: Option<bool>,

    /// Profile of the certificates, such as `tlsserver` or `shortlived`. Default: the authority's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub profile: Option<String>,

    /// Key type of the certificates: `P256`, `P384`, `RSA2048` or `RSA4096`. Default: `P256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("enum" = ["P256", "P384", "RSA2048", "RSA4096"]))]
    pub key_type: Option<String>,

    /// External account binding, where the authority asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_account_binding: Option<ExternalAccountBinding>,

    /// Name of the Secret with the account's key in the operator's namespace; made if absent.
    /// Default: `acme-account-` and the issuer's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub account_secret_name: Option<String>,

    /// Name of a Secret in the operator's namespace whose key `ca.crt` holds the CAs that the directory's
    /// certificate is verified with, for private authorities. Default: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub ca_secret_name: Option<String>,

    /// Whom to ask when to renew: `ARI` (the authority, RFC 9773) or `Lifetime` (at two thirds of the
    /// certificate's life). Default: `ARI`, and `Lifetime` where the authority does not offer it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("enum" = ["ARI", "Lifetime"]))]
    pub renewal_information_source: Option<String>,

    /// Name of another AcmeIssuer that is asked while this one fails, such as `zerossl`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub fallback_issuer: Option<String>,

    /// How challenges are answered; the first solver whose selector fits a hostname is used. Wildcards
    /// need `dns01` or `dnsPersist01`. Default: `tlsAlpn01`, then `http01`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub solvers: Vec<Solver>,

    /// Who is told when a certificate of this issuer is in danger, and when it is well again.
    /// Default: nobody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub notifications: Vec<Notification>,
}

/// External account binding (RFC 8555 §7.3.4).
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalAccountBinding {
    /// Identifier of the key, as the authority shows it.
    #[schemars(length(min = 1, max = 256))]
    pub key_id: String,

    /// Where the HMAC key is, base64url as the authority shows it.
    pub key_secret_ref: SecretKeyRef,
}

/// What the edge reports about an AcmeIssuer.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AcmeIssuerStatus {
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

    /// URL of the account at the authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub account_url: Option<String>,
}
