//! What goes over the control socket. Fields are only ever added, and unknown ones are tolerated: an edge
//! may be older or newer than the command that asks it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tidegate_acme::engine::CertificateState;
use tidegate_acme::record::CertificateRecord;
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
    /// What is kept of it, where that is not in the state folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// What is kept of a certificate, without its key. Times are RFC 3339.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Kept {
    /// What is served, if there is anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<Held>,
    /// Failed attempts since the last success.
    pub attempts: u32,
    /// The last of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When the next attempt is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<String>,
    /// When a person went back to it from a newer one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rolled_back_at: Option<String>,
    /// End of the certificate that a rollback would go back to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_not_after: Option<String>,
}

/// A certificate that can be served. Times are RFC 3339.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Held {
    /// Its names.
    pub names: Vec<String>,
    /// Name of the AcmeIssuer; none when it was imported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Start of validity.
    pub not_before: String,
    /// End of validity.
    pub not_after: String,
    /// Whether its authority takes it back.
    pub revoked: bool,
}

impl Kept {
    /// What of the document a person may see.
    pub(in super::super) fn of(record: &CertificateRecord) -> Self {
        let attempts = &record.attempts;
        let failed = attempts.count > 0;
        Self {
            current: record.current.as_ref().map(|issued| Held {
                names: issued.names.clone(),
                issuer: issued.issuer.clone(),
                not_before: rfc3339(issued.not_before),
                not_after: rfc3339(issued.not_after),
                revoked: issued.revoked.is_some(),
            }),
            attempts: attempts.count,
            last_error: (attempts.last_error.as_ref())
                .filter(|_| failed)
                .map(|error| error.message.clone()),
            next_attempt: attempts.not_before.filter(|_| failed).map(rfc3339),
            rolled_back_at: record.rolled_back.as_ref().map(|back| rfc3339(back.at)),
            previous_not_after: (record.previous.as_ref())
                .map(|previous| rfc3339(previous.not_after)),
        }
    }
}

impl Certificate {
    /// The view of what is kept, by a replica that does not order.
    pub(in super::super) fn of_record(record: &CertificateRecord) -> Self {
        let kept = Kept::of(record);
        Self {
            id: record.id.clone(),
            message: kept.last_error.clone().unwrap_or_default(),
            failed: kept.attempts > 0,
            next_attempt: kept.next_attempt.clone(),
            kept: Some(kept),
            ..Self::default()
        }
    }

    /// The view of what the engine says.
    pub(in super::super) fn of(id: &str, state: &CertificateState) -> Self {
        let report = &state.report;
        let text = |time: Option<SystemTime>| time.map(rfc3339);
        Self {
            id: id.to_owned(),
            reason: report.reason.clone(),
            message: report.message.clone(),
            failed: report.failed,
            renew_at: text(report.renew_at),
            next_attempt: text(report.next_attempt),
            kept: None,
        }
    }
}
