//! What to do about one certificate now, from its record: the rules are in `plan`, the facts in the record.

use std::time::{Duration, SystemTime};

use tidegate_model::HostPattern;

use crate::issued::key_type_of;
use crate::plan::moment::jitter_of;
use crate::plan::policy::{self, Decision, FallbackInput, Held, IssuerChoice, Stored};
use crate::plan::renewal::{RenewReason, RenewalInput, renewal};
use crate::record::{CertificateRecord, Issued};
use crate::settings::{RenewalSource, Wanted};

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

/// Decides. `awake_since` is when this process began to be able to act.
pub(crate) fn plan(
    record: &CertificateRecord,
    wanted: &Wanted,
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
            let renewal = renewal(&RenewalInput {
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
            ask_at = renewal.poll_ari_at;
            let names = names_of(current);
            let key_type = key_type_of(current.key_pem.expose());
            // What was imported is good until it is due; then it comes from the issuer.
            let imported = current.issuer.is_none();
            let held = Held {
                names: &names,
                issuer: current.issuer.as_deref().unwrap_or(asked.issuer),
                key_type: match key_type {
                    _ if imported => asked.key_type,
                    Some(key_type) => key_type.as_str(),
                    None => "another",
                },
                profile: if imported {
                    asked.profile
                } else {
                    current.profile.as_deref()
                },
                renewal: &renewal,
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
