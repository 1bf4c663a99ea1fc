//! What to do about one certificate now, from its record: the rules are in `plan`, the facts in the record.

use std::time::{Duration, SystemTime};

use tidegate_model::{HostPattern, Secret};

use crate::issued::key_type_of;
use crate::plan::moment::jitter_of;
use crate::plan::policy::{self, Decision, FallbackInput, Held, IssuerChoice, Stored};
use crate::plan::renewal::{RenewReason, RenewalInput, renewal};
use crate::record::{CertificateRecord, Issued};
use crate::rollback;
use crate::settings::{KeyType, RenewalSource, Wanted};

/// Longest time between two looks at a certificate.
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing until then.
    Keep {
        /// When it will be renewed.
        renew_at: SystemTime,
        /// When the authority is asked whether it should be renewed earlier.
        ask_at: Option<SystemTime>,
    },
    /// An order is needed, but not before then.
    Wait {
        /// The next attempt.
        until: SystemTime,
    },
    /// Order now.
    Order(RenewReason),
}

/// The type of the key that was asked about last: reading a key is work, and a certificate is looked at every
/// minute.
#[derive(Debug, Default)]
pub(crate) struct KnownKey {
    last: Option<(Secret<String>, Option<KeyType>)>,
}

impl KnownKey {
    fn type_of(&mut self, issued: &Issued) -> Option<KeyType> {
        self.read(&issued.key_pem, key_type_of)
    }

    fn read(
        &mut self,
        key_pem: &Secret<String>,
        read: impl FnOnce(&str) -> Option<KeyType>,
    ) -> Option<KeyType> {
        match &self.last {
            Some((known, key_type)) if known == key_pem => *key_type,
            _ => {
                let key_type = read(key_pem.expose());
                self.last = Some((key_pem.clone(), key_type));
                key_type
            }
        }
    }
}

/// Decides. `awake_since` is when this process began to be able to act.
pub(crate) fn plan(
    record: &CertificateRecord,
    wanted: &Wanted,
    key: &mut KnownKey,
    awake_since: SystemTime,
    now: SystemTime,
) -> Plan {
    let issuer = &wanted.issuer;
    let asked = policy::Wanted {
        names: &wanted.names,
        issuer: &issuer.name,
        fallback: wanted.fallback.as_ref().map(|other| other.name.as_str()),
        key_type: issuer.key_type.as_str(),
        profile: issuer.profile.as_deref(),
        forced: record.forced.is_some(),
    };
    let mut ask_at = None;
    let decision = match &record.current {
        None => policy::decide(&asked, Stored::Nothing, now),
        Some(current) => {
            let planned = renewal(&RenewalInput {
                not_before: current.not_before,
                not_after: current.not_after,
                ari: record.ari.as_ref(),
                ask_ari: issuer.renewal == RenewalSource::Ari && current.ari_id.is_some(),
                revoked: current.revoked.is_some(),
                jitter: jitter_of(current.chain_pem.as_bytes()),
                check_interval: CHECK_INTERVAL,
                awake_since,
                now,
            });
            let renewal = rollback::held_back(record, planned);
            ask_at = renewal.poll_ari_at;
            let names = names_of(current);
            // What was imported or gone back to is good until it is due; then it comes from the issuer.
            let accepted = current.issuer.is_none() || rollback::is_accepted(record, wanted);
            let held = match current.issuer.as_deref() {
                Some(issuer) if !accepted => Held {
                    names: &names,
                    issuer,
                    key_type: key.type_of(current).map_or("another", KeyType::as_str),
                    profile: current.profile.as_deref(),
                    renewal: &renewal,
                },
                _ => Held {
                    names: &names,
                    issuer: asked.issuer,
                    key_type: asked.key_type,
                    profile: asked.profile,
                    renewal: &renewal,
                },
            };
            policy::decide(&asked, Stored::Certificate(held), now)
        }
    };
    let why = match decision {
        Decision::Wait { until, .. } => {
            return Plan::Keep {
                renew_at: until,
                ask_at,
            };
        }
        Decision::Issue(why) => why,
    };
    let attempts = &record.attempts;
    let asked_since = record
        .forced
        .is_some_and(|forced| attempts.last_failure.is_none_or(|last| last <= forced));
    match attempts.not_before {
        Some(until) if !attempts.due(now) && !asked_since => Plan::Wait { until },
        _ => Plan::Order(why),
    }
}

/// Which of the two issuers is asked now; why, if it is not the first.
pub(crate) fn fallback(
    record: &CertificateRecord,
    wanted: &Wanted,
    now: SystemTime,
) -> Option<String> {
    let choice = policy::issuer(&FallbackInput {
        fallback: wanted.fallback.as_ref().map(|other| other.name.as_str()),
        failures: record.attempts.count,
        last_failure: record.attempts.last_error.as_ref().map(|last| last.kind),
        validity: record
            .current
            .as_ref()
            .map(|current| (current.not_before, current.not_after)),
        first_not_before: record.attempts.told_until,
        now,
    });
    match choice {
        IssuerChoice::First => None,
        IssuerChoice::Fallback { why, .. } => Some(why),
    }
}

fn names_of(issued: &Issued) -> Vec<HostPattern> {
    issued
        .names
        .iter()
        .filter_map(|name| HostPattern::parse(name).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::issued::inspect;
    use crate::settings::{Issuer, Method, Solver};
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384};

    #[test]
    fn a_key_is_read_once() {
        let mut known = KnownKey::default();
        let (one, other) = (
            Secret::new("one".to_owned()),
            Secret::new("other".to_owned()),
        );
        let reads = std::cell::Cell::new(0);
        let mut read = |key: &Secret<String>| {
            known.read(key, |pem| {
                reads.set(reads.get() + 1);
                (pem == "one").then_some(KeyType::P384)
            })
        };
        assert_eq!(read(&one), Some(KeyType::P384));
        assert_eq!(read(&one), Some(KeyType::P384));
        assert_eq!(read(&other), None);
        assert_eq!(read(&other), None);
        assert_eq!(reads.get(), 2);
    }

    #[test]
    fn an_imported_certificate_is_good_until_it_is_due() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let params = CertificateParams::new(vec!["blog.example.com".to_owned()]).unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let mut leaf = inspect(&pem, &Secret::new(key.serialize_pem())).unwrap();
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        leaf.not_before = begin;
        leaf.not_after = begin + Duration::from_secs(90 * 86_400);
        let issuer = Issuer {
            name: "le".to_owned(),
            directory: "https://ca.example/dir".to_owned(),
            staging_directory: None,
            contact: Vec::new(),
            profile: Some("shortlived".to_owned()),
            key_type: KeyType::P256,
            external_account: None,
            roots: None,
            renewal: RenewalSource::Lifetime,
            fallback: None,
            notifications: Vec::new(),
            solvers: vec![Solver {
                name: "http".to_owned(),
                zones: Vec::new(),
                names: Vec::new(),
                method: Method::Http01,
            }],
        };
        let mut wanted = Wanted {
            id: "default/blog".to_owned(),
            names: vec![HostPattern::parse("blog.example.com").unwrap()],
            issuer: Arc::new(issuer),
            fallback: None,
        };
        let mut record = CertificateRecord::new("default/blog");
        record.current = Some(leaf);
        let day = |number: u64| begin + Duration::from_secs(number * 86_400);
        let decided =
            |wanted: &Wanted, now| plan(&record, wanted, &mut KnownKey::default(), begin, now);
        // Neither its issuer nor its key nor its profile is what is asked for.
        assert!(matches!(decided(&wanted, day(1)), Plan::Keep { .. }));
        assert!(matches!(
            decided(&wanted, day(80)),
            Plan::Order(RenewReason::TwoThirds { .. })
        ));
        wanted
            .names
            .push(HostPattern::parse("b.example.com").unwrap());
        assert!(matches!(
            decided(&wanted, day(1)),
            Plan::Order(RenewReason::NamesChanged { .. })
        ));
    }
}
