//! The documents of the store: what is known of one certificate and of one account.
//!
//! A certificate is one document, so that each step of an order is one write: the key is in it before
//! the order is placed, the order's URL before anything is proven, the certificate before the order is
//! forgotten. Whatever moment a crash chooses, the next start finds where it was.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tidegate_model::{HostPattern, Secret};

use crate::answers::StoredAnswer;
use crate::plan::challenge::ChallengeType;
use crate::plan::moment;
use crate::plan::renewal::AriState;
use crate::plan::retry::Attempts;
use crate::preflight::Finding;
use crate::rollback::RolledBack;

/// Least time between two orders because what was ordered is revoked.
const AGAIN: Duration = Duration::from_secs(86_400);

/// What is known of one certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateRecord {
    /// Version of this document.
    pub version: u32,
    /// Identity, such as `default/blog`.
    pub id: String,
    /// What is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Issued>,
    /// What was served before, kept for rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Issued>,
    /// The order that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// Fingerprint of the wanted certificate whose trial at the staging directory went well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial_passed: Option<String>,
    /// A person went back to `current`, which was `previous` until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<RolledBack>,
    /// A person asked for a renewal at this time, and none was made since.
    #[serde(
        default,
        with = "moment::rfc3339_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub forced: Option<SystemTime>,
    /// Attempts since the last success.
    #[serde(default)]
    pub attempts: Attempts,
    /// Challenge types that failed since the last success, by name, the latest last.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed_challenges: BTreeMap<String, Vec<ChallengeType>>,
    /// What the authority said about when to renew what is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ari: Option<AriState>,
    /// Of an imported certificate that waits for routes: the names that routes have taken it for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<String>,
    /// What was found before the last order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preflight: Vec<Finding>,
}

impl CertificateRecord {
    /// Nothing known yet.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            version: 1,
            id: id.into(),
            current: None,
            previous: None,
            pending: None,
            trial_passed: None,
            rolled_back: None,
            forced: None,
            attempts: Attempts::default(),
            failed_challenges: BTreeMap::new(),
            ari: None,
            taken: Vec::new(),
            preflight: Vec::new(),
        }
    }

    /// Takes down that the authority has revoked what is held, unless that is another one by now or was
    /// known; whether it was news.
    ///
    /// Another is ordered at once, whatever failed before. Only an authority that revoked the one before
    /// as well, within a day, is not asked again before a day has passed.
    pub fn note_revoked(&mut self, held: &Issued, reason: Option<&str>, now: SystemTime) -> bool {
        let Some(current) = &mut self.current else {
            return false;
        };
        if current.chain_pem != held.chain_pem || current.revoked.is_some() {
            return false;
        }
        current.revoked = Some(now);
        current.revoked_because = reason.map(str::to_owned);
        let before = self.previous.as_ref().and_then(|before| before.revoked);
        let again = before
            .map(|before| before + AGAIN)
            .filter(|again| *again > now);
        self.attempts.not_before = again.max(self.attempts.told_until);
        true
    }
}

/// A certificate with its key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Issued {
    /// Leaf first, then intermediates, PEM.
    pub chain_pem: String,
    /// Its key, PKCS#8 PEM.
    #[serde(with = "secret_text")]
    pub key_pem: Secret<String>,
    /// Names of the leaf.
    pub names: Vec<String>,
    /// The issuer's object that it was ordered by; None when it was imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The directory it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// The profile it was ordered with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Start of the validity.
    #[serde(with = "moment::rfc3339")]
    pub not_before: SystemTime,
    /// End of the validity.
    #[serde(with = "moment::rfc3339")]
    pub not_after: SystemTime,
    /// Identifier for renewal information (RFC 9773 §4.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ari_id: Option<String>,
    /// When the authority was found to have revoked it.
    #[serde(
        default,
        with = "moment::rfc3339_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub revoked: Option<SystemTime>,
    /// Why, in the words of RFC 5280 §5.3.1, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_because: Option<String>,
}

impl Issued {
    /// The leaf.
    pub fn leaf(&self) -> Option<CertificateDer<'static>> {
        CertificateDer::from_pem_slice(self.chain_pem.as_bytes()).ok()
    }

    /// Whether the names cover all of these.
    pub fn covers(&self, names: &[HostPattern]) -> bool {
        names.iter().all(|name| {
            let text = name.to_string();
            self.names.iter().any(|own| {
                own.eq_ignore_ascii_case(&text)
                    || match (HostPattern::parse(own), name) {
                        (Ok(own), HostPattern::Exact(host)) => own.matches(host),
                        _ => false,
                    }
            })
        })
    }
}

/// An order that is under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// The issuer's object.
    pub issuer: String,
    /// The directory, which is the staging one in a trial.
    pub directory: String,
    /// Whether the certificate will be thrown away.
    #[serde(default)]
    pub trial: bool,
    /// Names that were ordered.
    pub names: Vec<String>,
    /// The key that the certificate will have, PKCS#8 PEM.
    #[serde(with = "secret_text")]
    pub key_pem: Secret<String>,
    /// The profile that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// URL of the order, once it is placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_url: Option<String>,
    /// Answers that the authority was told to look at: it may look while this process starts again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<StoredAnswer>,
    /// When the key was made.
    #[serde(with = "moment::rfc3339")]
    pub started_at: SystemTime,
}

/// An account at one directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountRecord {
    /// Version of this document.
    pub version: u32,
    /// The directory.
    pub directory: String,
    /// Its key, PKCS#8 PEM.
    #[serde(with = "secret_text")]
    pub key_pem: Secret<String>,
    /// URL of the account, once it is registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The contacts that the authority knows.
    #[serde(default)]
    pub contact: Vec<String>,
    /// Identifier of the external key it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_key_id: Option<String>,
    /// When it was made.
    #[serde(with = "moment::rfc3339")]
    pub created_at: SystemTime,
}

impl AccountRecord {
    /// The key in DER.
    pub fn key_der(&self) -> Option<PrivatePkcs8KeyDer<'static>> {
        PrivatePkcs8KeyDer::from_pem_slice(self.key_pem.expose().as_bytes()).ok()
    }
}

/// Secrets in documents of the store, which are secret as a whole.
mod secret_text {
    use serde::{Deserialize as _, Deserializer, Serializer};
    use tidegate_model::Secret;

    pub(super) fn serialize<S: Serializer>(
        secret: &Secret<String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(secret.expose())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Secret<String>, D::Error> {
        String::deserialize(deserializer).map(Secret::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_store_and_never_shows_its_key() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let mut record = CertificateRecord::new("default/blog");
        record.pending = Some(Pending {
            issuer: "letsencrypt".to_owned(),
            directory: "https://ca.example/dir".to_owned(),
            trial: false,
            names: vec!["blog.example.com".to_owned()],
            key_pem: Secret::new("very private".to_owned()),
            profile: None,
            order_url: Some("https://ca.example/order/1".to_owned()),
            answers: vec![StoredAnswer {
                challenge: "http-01".to_owned(),
                host: "blog.example.com".to_owned(),
                key_authorization: "token.thumbprint".to_owned(),
            }],
            started_at: at,
        });
        record.attempts.count = 1;
        record.attempts.not_before = Some(at);
        let text = serde_json::to_string(&record).unwrap();
        assert!(
            text.contains(r#""startedAt":"2023-11-14T22:13:20Z""#),
            "{text}"
        );
        assert_eq!(
            serde_json::from_str::<CertificateRecord>(&text).unwrap(),
            record
        );
        assert!(!format!("{record:?}").contains("very private"));
    }

    #[test]
    fn a_revoked_certificate_is_replaced_at_once_but_not_all_the_time() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let hour = |count: u64| start + Duration::from_secs(count * 3600);
        let issued = |serial: &str| Issued {
            chain_pem: serial.to_owned(),
            key_pem: Secret::new(String::new()),
            names: Vec::new(),
            issuer: None,
            directory: None,
            profile: None,
            not_before: start,
            not_after: hour(2000),
            ari_id: None,
            revoked: None,
            revoked_because: None,
        };
        let mut record = CertificateRecord::new("default/blog");
        assert!(!record.note_revoked(&issued("1"), None, hour(0)));
        record.current = Some(issued("1"));
        record.attempts.not_before = Some(hour(6));
        // Asked about another that was replaced meanwhile.
        assert!(!record.note_revoked(&issued("0"), None, hour(0)));
        assert!(record.note_revoked(&issued("1"), Some("superseded"), hour(0)));
        assert!(!record.note_revoked(&issued("1"), None, hour(1)));
        let current = record.current.as_ref().unwrap();
        assert_eq!(current.revoked, Some(hour(0)));
        assert_eq!(current.revoked_because.as_deref(), Some("superseded"));
        assert!(record.attempts.due(hour(0)));
        // The next one is revoked as well.
        record.previous = record.current.replace(issued("2"));
        assert!(record.note_revoked(&issued("2"), None, hour(2)));
        assert_eq!(record.attempts.not_before, Some(hour(24)));
        record.previous = record.current.replace(issued("3"));
        record.attempts.told_until = Some(hour(40));
        assert!(record.note_revoked(&issued("3"), None, hour(30)));
        assert_eq!(record.attempts.not_before, Some(hour(40)));
    }
}
