//! Who is told when a certificate is in danger.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::SecretKeyRef;

/// A receiver of notices: exactly one of `webhook` and `smtp`.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.webhook) != has(self.smtp)")
    .message("set exactly one of webhook and smtp"))]
#[x_kube(validation = Rule::new("!has(self.events) || self.events.all(event, event in ['Expiring', 'Failing', 'Recovered'])")
    .message("events are Expiring, Failing and Recovered"))]
#[serde(rename_all = "camelCase")]
pub struct Notification {
    /// Name, unique within the issuer, such as `phone`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,

    /// What is told: `Expiring` (too little of a certificate's life is left, or none, or it is revoked),
    /// `Failing` (several attempts failed) and `Recovered` (all is well again). Default: everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 16)))]
    pub events: Vec<String>,

    /// An HTTP request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookNotification>,

    /// A mail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smtp: Option<SmtpNotification>,
}

/// An HTTP request in the form that the receiver understands.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.url) != has(self.urlSecretRef)")
    .message("set exactly one of url and urlSecretRef"))]
#[x_kube(validation = Rule::new("has(self.matrixRoom) == (self.template == 'matrix')")
    .message("matrixRoom belongs to template matrix, which needs it"))]
#[serde(rename_all = "camelCase")]
pub struct WebhookNotification {
    /// Form of the request: `ntfy`, `slack` (also Mattermost and Rocket.Chat), `discord`, `matrix` or
    /// `json` (see the page on certificates).
    #[schemars(length(max = 16), extend("enum" = ["ntfy", "slack", "discord", "matrix", "json"]))]
    pub template: String,

    /// URL, such as `https://ntfy.sh/my-topic`; of a Matrix homeserver without path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,

    /// Where the URL is, for those that are secrets themselves, such as Slack's and Discord's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKeyRef>,

    /// Where the token is that is sent as `Authorization: Bearer`. Default: none is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization_secret_ref: Option<SecretKeyRef>,

    /// Room of template `matrix`, such as `!abc:example.org`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub matrix_room: Option<String>,

    /// Name of a Secret in the operator's namespace whose key `ca.crt` holds the CAs that the receiver's
    /// certificate is verified with. Default: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub ca_secret_name: Option<String>,
}

/// A mail through a submission server.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.username) == has(self.passwordSecretRef)")
    .message("username and passwordSecretRef belong together"))]
#[serde(rename_all = "camelCase")]
pub struct SmtpNotification {
    /// Host of the server, such as `mail.example.com`.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,

    /// Port. Default: 465 for `TLS`, 587 for `StartTLS`, 25 for `Plain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<i32>,

    /// How the connection is protected: `TLS` from the first byte, `StartTLS` (never without), or `Plain`,
    /// which is refused unless the server is this machine. Default: `TLS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("enum" = ["TLS", "StartTLS", "Plain"]))]
    pub security: Option<String>,

    /// Sender, such as `Tidegate <edge@example.com>`.
    #[schemars(length(min = 3, max = 320))]
    pub from: String,

    /// Receivers, such as `[admin@example.com]`.
    #[schemars(length(min = 1, max = 50), inner(length(min = 3, max = 320)))]
    pub to: Vec<String>,

    /// User name. Default: no login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 320))]
    pub username: Option<String>,

    /// Where the password is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretKeyRef>,

    /// Name of a Secret in the operator's namespace whose key `ca.crt` holds the CAs that the server's
    /// certificate is verified with. Default: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub ca_secret_name: Option<String>,
}
