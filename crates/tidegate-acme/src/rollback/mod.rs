//! Rollback: the certificate that was served before is served again, because a person said so.
//!
//! Pure. The one that gives way becomes the previous one, so that doing it twice undoes it. What is restored
//! is good until its renewal, as what was imported is: an issuer, key type or profile that the object asked
//! for at that moment orders nothing. Its renewal waits for the usual time; where that has passed, as it has
//! for most certificates that were replaced by their renewal, for half of what was left of its life, so that
//! whoever rolled back has time and the certificate does not run out.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::issued::inspect;
use crate::plan::moment::{self, after, between, stamp};
use crate::plan::renewal::{RenewReason, Renewal, lifetime_renewal, listed};
use crate::plan::retry;
use crate::record::CertificateRecord;
use crate::settings::Wanted;

/// That a person went back to what is served now. Persisted until the next certificate is issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolledBack {
    /// When.
    #[serde(with = "moment::rfc3339")]
    pub at: SystemTime,
    /// No renewal that is only due to time comes before.
    #[serde(with = "moment::rfc3339")]
    pub renew_not_before: SystemTime,
    /// Digest of the issuer, key type and profile that were asked for then.
    asked: String,
}

/// Why the certificate of before cannot be served. Each is a sentence's fragment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RollbackError {
    /// There is none.
    #[error("no earlier certificate is kept, there was only this one")]
    NoPrevious,
    /// It is over.
    #[error("the earlier certificate expired at {}", stamp(*.0))]
    Expired(SystemTime),
    /// Clients may refuse it.
    #[error("the earlier certificate was revoked at {}", stamp(*.0))]
    Revoked(SystemTime),
    /// It is for other names.
    #[error("the earlier certificate does not cover {}", listed(.0))]
    NamesNotCovered(Vec<String>),
    /// It is damaged.
    #[error("the earlier certificate cannot be used: {0}")]
    Unusable(String),
    /// It must not be forgotten by a restart.
    #[error("it could not be written down, so that nothing was changed; the log says why")]
    NotStored,
    /// Nobody keeps the certificate.
    #[error("{0}")]
    NotKept(&'static str),
}

impl RollbackError {
    /// One `PascalCase` name.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoPrevious => "NoPrevious",
            Self::Expired(_) => "PreviousExpired",
            Self::Revoked(_) => "PreviousRevoked",
            Self::NamesNotCovered(_) => "PreviousOfOtherNames",
            Self::Unusable(_) => "PreviousUnusable",
            Self::NotStored => "StoreUnwritable",
            Self::NotKept(_) => "NotKept",
        }
    }
}

/// Makes the previous certificate the current one.
pub(crate) fn roll_back(
    record: &mut CertificateRecord,
    wanted: &Wanted,
    now: SystemTime,
) -> Result<(), RollbackError> {
    let previous = record.previous.as_ref().ok_or(RollbackError::NoPrevious)?;
    if let Some(at) = previous.revoked {
        return Err(RollbackError::Revoked(at));
    }
    if previous.not_after <= now {
        return Err(RollbackError::Expired(previous.not_after));
    }
    let missing: Vec<String> = wanted
        .names
        .iter()
        .filter(|name| !previous.covers(std::slice::from_ref(name)))
        .map(ToString::to_string)
        .collect();
    if !missing.is_empty() {
        return Err(RollbackError::NamesNotCovered(missing));
    }
    inspect(&previous.chain_pem, &previous.key_pem).map_err(RollbackError::Unusable)?;
    let usual = lifetime_renewal(previous.not_before, previous.not_after);
    let renew_not_before = if usual > now {
        usual
    } else {
        after(now, between(now, previous.not_after) / 2)
    };
    record.rolled_back = Some(RolledBack {
        at: moment::truncated(now),
        renew_not_before: moment::truncated(renew_not_before),
        asked: asked(wanted),
    });
    std::mem::swap(&mut record.current, &mut record.previous);
    // What was planned and what failed was about the one that gave way.
    record.ari = None;
    record.forced = None;
    record.attempts.succeeded();
    Ok(())
}

/// Whether a person accepted what is served although the object asks for another issuer, key type or
/// profile; no longer once it asks for something else again.
pub(crate) fn is_accepted(record: &CertificateRecord, wanted: &Wanted) -> bool {
    let back = record.rolled_back.as_ref();
    back.is_some_and(|back| back.asked == asked(wanted))
}

/// The renewal as a rollback lets it be: what is expired or revoked waits for nothing.
pub(crate) fn held_back(record: &CertificateRecord, planned: Renewal) -> Renewal {
    match &record.rolled_back {
        Some(back)
            if !matches!(
                planned.reason,
                RenewReason::Expired { .. } | RenewReason::Revoked
            ) =>
        {
            Renewal {
                at: planned.at.max(back.renew_not_before),
                ..planned
            }
        }
        _ => planned,
    }
}

fn asked(wanted: &Wanted) -> String {
    let issuer = &wanted.issuer;
    let profile = issuer.profile.as_deref().unwrap_or_default();
    retry::fingerprint([issuer.name.as_str(), issuer.key_type.as_str(), profile])
}

#[cfg(test)]
mod tests;
