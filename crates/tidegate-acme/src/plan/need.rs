//! What must be done about one certificate now: nothing, wait, or order.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::moment::jitter_of;
use super::renewal::{RenewalInput, renewal};
use crate::issued::key_type_of;
use crate::record::CertificateRecord;
use crate::settings::{RenewalSource, Wanted};

/// Longest time between two looks at a certificate.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Why an order is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// There is none.
    Missing,
    /// It does not cover every name.
    Names,
    /// It comes from another issuer.
    Issuer,
    /// Its key is of another type.
    KeyType,
    /// It was ordered with another profile.
    Profile,
    /// It was revoked.
    Revoked,
    /// It is time.
    Due,
    /// A person asked.
    Forced,
}

impl Need {
    /// The reason for conditions and metrics.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Missing => "Issuing",
            _ => "Renewing",
        }
    }

    /// Whether names are proven that were not proven before.
    pub const fn is_new_names(self) -> bool {
        matches!(self, Self::Missing | Self::Names)
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "there is no certificate yet",
            Self::Names => "the certificate does not cover every name",
            Self::Issuer => "the certificate comes from another issuer",
            Self::KeyType => "the certificate's key is of another type",
            Self::Profile => "the certificate has another profile",
            Self::Revoked => "the certificate was revoked",
            Self::Due => "it is time to renew",
            Self::Forced => "a renewal was asked for",
        })
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
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
    Order(Need),
}

/// Decides. `awake_since` is when this process began to be able to act.
pub fn plan(
    record: &CertificateRecord,
    wanted: &Wanted,
    awake_since: SystemTime,
    now: SystemTime,
) -> Plan {
    let need = match need(record, wanted, awake_since, now) {
        Ok(plan) => return plan,
        Err(need) => need,
    };
    let attempts = &record.attempts;
    let asked_since = record
        .forced
        .is_some_and(|forced| attempts.last_failure.is_none_or(|last| last <= forced));
    match attempts.not_before {
        Some(until) if !attempts.due(now) && !asked_since => Plan::Wait { until },
        _ => Plan::Order(need),
    }
}

fn need(
    record: &CertificateRecord,
    wanted: &Wanted,
    awake_since: SystemTime,
    now: SystemTime,
) -> Result<Plan, Need> {
    let issuer = &wanted.issuer;
    let Some(current) = &record.current else {
        return Err(Need::Missing);
    };
    if !current.covers(&wanted.names) {
        return Err(Need::Names);
    }
    if current.revoked.is_some() {
        return Err(Need::Revoked);
    }
    if record.forced.is_some() {
        return Err(Need::Forced);
    }
    // What was imported is renewed when it is due; then it comes from the issuer.
    if let Some(by) = &current.issuer {
        let fallback = wanted.fallback.as_ref();
        if *by != issuer.name && fallback.is_none_or(|fallback| *by != fallback.name) {
            return Err(Need::Issuer);
        }
        if key_type_of(current.key_pem.expose()) != Some(issuer.key_type) {
            return Err(Need::KeyType);
        }
        if *by == issuer.name && current.profile != issuer.profile {
            return Err(Need::Profile);
        }
    }
    let renewal = renewal(&RenewalInput {
        not_before: current.not_before,
        not_after: current.not_after,
        ari: record.ari.as_ref(),
        ask_ari: issuer.renewal == RenewalSource::Ari && current.ari_id.is_some(),
        revoked: false,
        jitter: jitter_of(current.chain_pem.as_bytes()),
        check_interval: CHECK_INTERVAL,
        awake_since,
        now,
    });
    if renewal.at <= now {
        return Err(Need::Due);
    }
    Ok(Plan::Keep {
        renew_at: renewal.at,
        ask_at: renewal.poll_ari_at,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384};
    use tidegate_model::{HostPattern, Secret};

    use super::*;
    use crate::issued::inspect;
    use crate::settings::{Issuer, KeyType, Method, RenewalSource, Solver};

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
        let decided = |wanted: &Wanted, now| plan(&record, wanted, begin, now);
        // Neither its issuer nor its key nor its profile is what is asked for.
        assert!(matches!(decided(&wanted, day(1)), Plan::Keep { .. }));
        assert_eq!(decided(&wanted, day(80)), Plan::Order(Need::Due));
        wanted
            .names
            .push(HostPattern::parse("b.example.com").unwrap());
        assert_eq!(decided(&wanted, day(1)), Plan::Order(Need::Names));
    }
}
