//! What must be done about one certificate now: nothing, wait, or order.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::issued::key_type_of;
use crate::record::CertificateRecord;
use crate::settings::Wanted;

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
    },
    /// An order is needed, but not before then.
    Wait {
        /// The next attempt.
        until: SystemTime,
        /// Why.
        need: Need,
    },
    /// Order now.
    Order(Need),
}

/// Decides.
pub fn plan(record: &CertificateRecord, wanted: &Wanted, now: SystemTime) -> Plan {
    let (need, renew_at) = need(record, wanted, now);
    let Some(need) = need else {
        return Plan::Keep {
            renew_at: renew_at.unwrap_or(now + Duration::from_secs(3600)),
        };
    };
    let failures = &record.failures;
    match failures.not_before {
        Some(until)
            if until > now
                && failures.fingerprint == wanted.fingerprint()
                && record
                    .forced
                    .is_none_or(|forced| failures.last > Some(forced)) =>
        {
            Plan::Wait { until, need }
        }
        _ => Plan::Order(need),
    }
}

fn need(
    record: &CertificateRecord,
    wanted: &Wanted,
    now: SystemTime,
) -> (Option<Need>, Option<SystemTime>) {
    let Some(current) = &record.current else {
        return (Some(Need::Missing), None);
    };
    let life = current
        .not_after
        .duration_since(current.not_before)
        .unwrap_or_default();
    let renew_at = current.not_before + life * 2 / 3;
    let issuer = &wanted.issuer;
    let need = if !current.covers(&wanted.names) {
        Some(Need::Names)
    } else if current.revoked.is_some() {
        Some(Need::Revoked)
    } else if record.forced.is_some() {
        Some(Need::Forced)
    } else if current.issuer.as_ref() != Some(&issuer.name)
        && current.issuer.as_deref() != wanted.fallback.as_ref().map(|other| other.name.as_str())
    {
        Some(Need::Issuer)
    } else if key_type_of(current.key_pem.expose()) != Some(issuer.key_type) {
        Some(Need::KeyType)
    } else if current.profile != issuer.profile && current.issuer.as_ref() == Some(&issuer.name) {
        Some(Need::Profile)
    } else if now >= renew_at {
        Some(Need::Due)
    } else {
        None
    };
    (need, Some(renew_at))
}
