//! Answers to challenges: published as values, served by the data plane, withdrawn when no longer needed.
//!
//! An answer counts as presented only when the data plane has said that it serves it: asking the
//! authority to look any earlier would waste an attempt.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tidegate_model::{ChallengeAnswers, HostName, TlsAlpn01Answer};
use tokio::sync::watch;

/// How long the data plane may take to serve a new answer.
const SERVED_WITHIN: Duration = Duration::from_secs(30);

/// One answer. Not secret from the authority or the network, but nobody else's business: not printed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Answer {
    /// RFC 8555 §8.3.
    Http01 {
        /// The name that is proven.
        #[serde(with = "host_text")]
        host: HostName,
        /// The last segment of the path.
        token: String,
        /// The content.
        key_authorization: String,
    },
    /// RFC 8737 §3.
    TlsAlpn01 {
        /// The name that is proven; an address as itself.
        #[serde(with = "host_text")]
        host: HostName,
        /// SHA-256 of the key authorization.
        digest: [u8; 32],
    },
}

/// An answer as the store keeps it, so that it is there again before anything else after a crash.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredAnswer {
    /// Type of the challenge.
    pub challenge: String,
    /// The name that is proven.
    pub host: String,
    /// RFC 8555 §8.1.
    pub key_authorization: String,
}

impl fmt::Debug for StoredAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {}", self.challenge, self.host)
    }
}

impl StoredAnswer {
    /// What the data plane serves; None for challenges that it has no part in.
    pub fn answer(&self) -> Option<Answer> {
        let host = HostName::parse(&self.host).ok()?;
        match self.challenge.as_str() {
            "http-01" => Some(Answer::Http01 {
                host,
                token: self.key_authorization.split_once('.')?.0.to_owned(),
                key_authorization: self.key_authorization.clone(),
            }),
            "tls-alpn-01" => Some(Answer::TlsAlpn01 {
                host,
                digest: Sha256::digest(self.key_authorization.as_bytes()).into(),
            }),
            _ => None,
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http01 { host, .. } => write!(f, "http-01 for {host}"),
            Self::TlsAlpn01 { host, .. } => write!(f, "tls-alpn-01 for {host}"),
        }
    }
}

/// Host names as texts, for replicas that share answers.
mod host_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use tidegate_model::HostName;

    pub(super) fn serialize<S: Serializer>(host: &HostName, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(host.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<HostName, D::Error> {
        let text = String::deserialize(from)?;
        HostName::parse(&text).map_err(D::Error::custom)
    }
}

/// All answers of this moment, by version.
#[derive(Debug, Clone, Default)]
pub struct AnswerSet {
    /// Counts changes.
    pub version: u64,
    /// The answers.
    pub answers: Arc<BTreeSet<Answer>>,
}

/// Where answers meet the data plane. Clones share.
#[derive(Debug, Clone)]
pub struct Answers {
    wanted: watch::Sender<AnswerSet>,
    served: watch::Sender<u64>,
    /// Answers of before this process, by certificate.
    restored: Arc<Mutex<BTreeMap<String, Vec<Answer>>>>,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            wanted: watch::Sender::new(AnswerSet::default()),
            served: watch::Sender::new(0),
            restored: Arc::default(),
        }
    }
}

/// The data plane did not say that it serves an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the edge did not begin to serve the answer within {} s", SERVED_WITHIN.as_secs())]
pub struct NotServed;

impl Answers {
    /// What must be served, now and from now on.
    pub fn subscribe(&self) -> watch::Receiver<AnswerSet> {
        self.wanted.subscribe()
    }

    /// Says that the data plane serves this version.
    pub fn mark_served(&self, version: u64) {
        self.served.send_if_modified(|served| {
            let newer = version > *served;
            *served = version.max(*served);
            newer
        });
    }

    /// Publishes answers and returns once they are served. They are withdrawn when the result is dropped.
    pub async fn present(&self, answers: Vec<Answer>) -> Result<Presented, NotServed> {
        let (presented, version) = self.publish(answers);
        let mut served = self.served.subscribe();
        let seen = served.wait_for(|served| *served >= version);
        match tokio::time::timeout(SERVED_WITHIN, seen).await {
            Ok(Ok(_)) => Ok(presented),
            _ => Err(NotServed),
        }
    }

    /// Publishes answers of before a crash: whatever is served first holds them already.
    pub(crate) fn restore(&self, certificate: &str, answers: Vec<Answer>) {
        let (presented, _) = self.publish(answers);
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        restored.insert(certificate.to_owned(), presented.keep());
    }

    /// Withdraws the answers of before a crash, but those of these certificates.
    pub(crate) fn keep_restored(&self, keep: impl Fn(&str) -> bool) {
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        restored.retain(|certificate, answers| {
            let kept = keep(certificate);
            if !kept {
                self.withdraw(answers);
            }
            kept
        });
    }

    fn publish(&self, answers: Vec<Answer>) -> (Presented, u64) {
        let mut version = 0;
        self.wanted.send_modify(|wanted| {
            wanted.version += 1;
            version = wanted.version;
            let mut all = BTreeSet::clone(&wanted.answers);
            all.extend(answers.iter().cloned());
            wanted.answers = Arc::new(all);
        });
        let by = self.clone();
        (Presented { by, answers }, version)
    }

    fn withdraw(&self, answers: &[Answer]) {
        if answers.is_empty() {
            return;
        }
        self.wanted.send_modify(|wanted| {
            wanted.version += 1;
            let mut all = BTreeSet::clone(&wanted.answers);
            for answer in answers {
                all.remove(answer);
            }
            wanted.answers = Arc::new(all);
        });
    }
}

/// Answers that are being served.
#[derive(Debug)]
pub struct Presented {
    by: Answers,
    answers: Vec<Answer>,
}

impl Presented {
    /// They stay.
    fn keep(mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }
}

impl Drop for Presented {
    fn drop(&mut self) {
        self.by.withdraw(&self.answers);
    }
}

/// The answers as the data plane takes them. `known` are those of before, whose certificates are kept.
pub fn for_data_plane(
    answers: &BTreeSet<Answer>,
    known: &ChallengeAnswers,
) -> Result<ChallengeAnswers, rcgen::Error> {
    let mut all = ChallengeAnswers::default();
    for answer in answers {
        match answer {
            Answer::Http01 {
                host,
                token,
                key_authorization,
            } => {
                let tokens = all.http01.entry(host.clone()).or_default();
                tokens.insert(token.as_str().into(), key_authorization.as_str().into());
            }
            Answer::TlsAlpn01 { host, digest } => {
                let asked = server_name(host);
                let answer = match known.tls_alpn01.get(&asked) {
                    Some(known) if known.digest == *digest => known.clone(),
                    _ => TlsAlpn01Answer {
                        digest: *digest,
                        key: Arc::new(challenge_certificate(host, digest)?),
                    },
                };
                all.tls_alpn01.insert(asked, answer);
            }
        }
    }
    Ok(all)
}

/// The server name that an authority asks for: addresses are asked for by their name in `arpa`
/// (RFC 8738 §6).
fn server_name(host: &HostName) -> HostName {
    let Some(address) = host.ip() else {
        return host.clone();
    };
    let reversed = match address {
        std::net::IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        std::net::IpAddr::V6(v6) => {
            let mut name = String::with_capacity(72);
            for octet in v6.octets().iter().rev() {
                // Writing to a String cannot fail.
                let _ = write!(name, "{:x}.{:x}.", octet & 0xf, octet >> 4);
            }
            name + "ip6.arpa"
        }
    };
    HostName::parse(&reversed).unwrap_or_else(|_| host.clone())
}

/// The self-signed certificate of RFC 8737 §3.
fn challenge_certificate(host: &HostName, digest: &[u8; 32]) -> Result<CertifiedKey, rcgen::Error> {
    let mut params = CertificateParams::new(vec![host.to_string()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)
        .map_err(|_| rcgen::Error::CouldNotParseKeyPair)?;
    Ok(CertifiedKey::new(vec![certificate.der().clone()], signing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_asked_for_by_their_reverse_name() {
        for (host, expected) in [
            ("a.example", "a.example"),
            ("192.0.2.7", "7.2.0.192.in-addr.arpa"),
            (
                "2001:db8::1",
                "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            ),
        ] {
            let host = HostName::parse(host).unwrap();
            assert_eq!(server_name(&host).as_str(), expected);
        }
    }

    #[test]
    fn replicas_share_answers_as_they_are() {
        let answers = BTreeSet::from([
            Answer::Http01 {
                host: HostName::parse("a.example").unwrap(),
                token: "t".to_owned(),
                key_authorization: "t.key".to_owned(),
            },
            Answer::TlsAlpn01 {
                host: HostName::parse("2001:db8::1").unwrap(),
                digest: [7; 32],
            },
        ]);
        let text = serde_json::to_string(&answers).unwrap();
        assert!(
            text.contains(
                r#"{"http01":{"host":"a.example","token":"t","keyAuthorization":"t.key"}}"#
            ),
            "{text}"
        );
        assert_eq!(
            serde_json::from_str::<BTreeSet<Answer>>(&text).unwrap(),
            answers
        );
        let bad = r#"[{"http01":{"host":"..","token":"t","keyAuthorization":"t.key"}}]"#;
        assert!(serde_json::from_str::<BTreeSet<Answer>>(bad).is_err());
    }

    #[tokio::test]
    async fn an_answer_is_presented_once_it_is_served_and_withdrawn_when_dropped() {
        let answers = Answers::default();
        let mut wanted = answers.subscribe();
        let served = answers.clone();
        let plane = tokio::spawn(async move {
            wanted.changed().await.unwrap();
            let set = wanted.borrow_and_update().clone();
            let plane = for_data_plane(&set.answers, &ChallengeAnswers::default()).unwrap();
            served.mark_served(set.version);
            (wanted, plane)
        });
        let answer = Answer::TlsAlpn01 {
            host: HostName::parse("a.example").unwrap(),
            digest: [7; 32],
        };
        let presented = answers.present(vec![answer]).await.unwrap();
        let (mut wanted, plane) = plane.await.unwrap();
        assert_eq!(plane.tls_alpn01.len(), 1);
        // The same answer keeps its certificate.
        let again = for_data_plane(&wanted.borrow().answers, &plane).unwrap();
        let host = HostName::parse("a.example").unwrap();
        assert!(Arc::ptr_eq(
            &again.tls_alpn01[&host].key,
            &plane.tls_alpn01[&host].key
        ));
        drop(presented);
        assert!(wanted.borrow_and_update().answers.is_empty());
    }

    #[test]
    fn answers_of_before_a_crash_are_there_until_they_are_not_needed() {
        let stored = |challenge: &str, host: &str| StoredAnswer {
            challenge: challenge.to_owned(),
            host: host.to_owned(),
            key_authorization: "token.thumbprint".to_owned(),
        };
        let http = stored("http-01", "a.example").answer().unwrap();
        let host = HostName::parse("a.example").unwrap();
        let expected = Answer::Http01 {
            host: host.clone(),
            token: "token".to_owned(),
            key_authorization: "token.thumbprint".to_owned(),
        };
        assert!(http == expected);
        let alpn = stored("tls-alpn-01", "a.example").answer().unwrap();
        let digest = Sha256::digest(b"token.thumbprint").into();
        assert!(alpn == Answer::TlsAlpn01 { host, digest });
        assert!(stored("dns-01", "a.example").answer().is_none());
        assert!(stored("http-01", "not a host").answer().is_none());
        let answers = Answers::default();
        let wanted = answers.subscribe();
        answers.restore("default/a", vec![http.clone()]);
        answers.restore("default/b", vec![alpn]);
        assert_eq!(wanted.borrow().answers.len(), 2);
        answers.keep_restored(|id| id == "default/a");
        let all: Vec<Answer> = wanted.borrow().answers.iter().cloned().collect();
        assert!(all == [http]);
        answers.keep_restored(|_| false);
        assert!(wanted.borrow().answers.is_empty());
    }
}
