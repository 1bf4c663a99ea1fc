//! What goes over the control socket. Fields are only ever added, and unknown ones are tolerated: an edge
//! may be older or newer than the command that asks it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tidegate_acme::engine::CertificateState;
use tidegate_acme::watchman::Tested;

use crate::admin::rfc3339;

/// `POST /v1/renew`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Renew {
    /// Id of the certificate, name of its route, or a hostname.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Every certificate instead.
    pub all: bool,
}

/// `POST /v1/rollback`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollback {
    /// Id of the certificate, name of its route, or a hostname.
    pub id: String,
}

/// `POST /v1/revoke`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revoke {
    /// Id of the certificate, name of its route, or a hostname.
    pub id: String,
    /// A word of RFC 5280 §5.3.1, such as `keyCompromise`.
    #[serde(default)]
    pub reason: String,
}

/// `POST /v1/preflight`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Preflight {
    /// Id of the certificate, name of its route, or a hostname.
    pub id: String,
}

/// `POST /v1/notices/test`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TestNotice {
    /// The issuer whose receivers are told; all if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
}

/// To whom a test notice was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TestedNotice {
    /// Each receiver.
    pub receivers: Vec<TestedReceiver>,
}

/// What came of it at one receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TestedReceiver {
    /// The issuer that names it.
    pub issuer: String,
    /// Its name.
    pub name: String,
    /// Why it did not arrive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Refusal>,
}

impl From<Tested> for TestedReceiver {
    fn from(tested: Tested) -> Self {
        Self {
            issuer: tested.issuer,
            name: tested.target,
            error: tested.outcome.err().map(|error| Refusal {
                id: None,
                reason: error.reason().to_owned(),
                message: error.to_string(),
            }),
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Done {
    /// The certificates that it was done with.
    pub certificates: Vec<String>,
    /// Those that refused, each with its reason.
    pub refused: Vec<Refusal>,
}

/// Why something was not done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Refusal {
    /// The certificate, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `PascalCase`.
    pub reason: String,
    /// A sentence's fragment.
    pub message: String,
}

/// `GET /v1/certificates`: what the engine is doing with one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Certificate {
    /// Its id.
    pub id: String,
    /// `PascalCase`; empty when nothing is going on.
    pub reason: String,
    /// The same in a sentence.
    pub message: String,
    /// Whether the last attempt failed.
    pub failed: bool,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renew_at: Option<String>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<String>,
}

impl Certificate {
    /// The view of what the engine says.
    pub(super) fn of(id: &str, state: &CertificateState) -> Self {
        let report = &state.report;
        let text = |time: Option<SystemTime>| time.map(rfc3339);
        Self {
            id: id.to_owned(),
            reason: report.reason.clone(),
            message: report.message.clone(),
            failed: report.failed,
            renew_at: text(report.renew_at),
            next_attempt: text(report.next_attempt),
        }
    }
}
