//! Must something be issued, and by whom: the one chain of triggers.
//!
//! The first that applies decides, in an order from "nothing works" to "it is time". A certificate that
//! covers more than is asked for, or that came from the fallback, is good until its renewal: no order is
//! spent on tidiness.
//!
//! Must not know limits ([`super::ledger`]) nor failures' waits ([`super::retry`]): what must be issued may
//! still have to wait.

use std::time::SystemTime;

use tidegate_model::HostPattern;

use super::moment::between;
use super::renewal::{RenewReason, Renewal};
use super::retry::FailureKind;

/// What the object asks for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Names that must be covered.
    pub names: &'a [HostPattern],
    /// Name of the issuer that is asked first.
    pub issuer: &'a str,
    /// Name of the issuer that stands in.
    pub fallback: Option<&'a str>,
    /// Key type, as the object writes it.
    pub key_type: &'a str,
    /// Profile at the first issuer.
    pub profile: Option<&'a str>,
    /// Whether a person asked for a new one.
    pub forced: bool,
}

/// The certificate that is stored.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    /// Names that it covers.
    pub names: &'a [HostPattern],
    /// Name of the issuer that it came from.
    pub issuer: &'a str,
    /// Its key type.
    pub key_type: &'a str,
    /// The profile that it was ordered with.
    pub profile: Option<&'a str>,
    /// When to renew it; [`super::renewal::renewal`].
    pub renewal: &'a Renewal,
}

/// What is stored for the object.
#[derive(Debug, Clone, Copy)]
pub enum Stored<'a> {
    /// Nothing.
    Nothing,
    /// Something that cannot be used: unreadable, or key and certificate do not match.
    Unusable {
        /// What is wrong with it.
        why: &'a str,
    },
    /// A certificate.
    Certificate(Held<'a>),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Issue now.
    Issue(RenewReason),
    /// Nothing before this time.
    Wait {
        /// When to renew.
        until: SystemTime,
        /// Why then.
        reason: RenewReason,
    },
}

/// Whether something must be issued.
pub fn decide(wanted: &Wanted<'_>, stored: Stored<'_>, now: SystemTime) -> Decision {
    let held = match stored {
        Stored::Nothing => return Decision::Issue(RenewReason::NoCertificate),
        Stored::Unusable { why } => {
            return Decision::Issue(RenewReason::Unreadable {
                why: super::moment::bounded(why, 512),
            });
        }
        Stored::Certificate(held) => held,
    };
    if let Some(reason) = differs(wanted, &held) {
        return Decision::Issue(reason);
    }
    // An overdue renewal keeps its own reason, which tells more than that someone asked.
    if held.renewal.at <= now {
        return Decision::Issue(held.renewal.reason.clone());
    }
    if wanted.forced {
        return Decision::Issue(RenewReason::Forced);
    }
    Decision::Wait {
        until: held.renewal.at,
        reason: held.renewal.reason.clone(),
    }
}

fn differs(wanted: &Wanted<'_>, held: &Held<'_>) -> Option<RenewReason> {
    let missing: Vec<String> = wanted
        .names
        .iter()
        .filter(|name| !covered(name, held.names))
        .map(ToString::to_string)
        .collect();
    if !missing.is_empty() {
        return Some(RenewReason::NamesChanged { missing });
    }
    let stands_in = wanted.fallback == Some(held.issuer);
    if held.issuer != wanted.issuer && !stands_in {
        return Some(RenewReason::IssuerChanged {
            from: held.issuer.to_owned(),
            to: wanted.issuer.to_owned(),
        });
    }
    if held.key_type != wanted.key_type {
        return Some(RenewReason::KeyTypeChanged {
            from: held.key_type.to_owned(),
            to: wanted.key_type.to_owned(),
        });
    }
    // The fallback has profiles of its own.
    if held.issuer == wanted.issuer && held.profile != wanted.profile {
        return Some(RenewReason::ProfileChanged {
            from: held.profile.map(str::to_owned),
            to: wanted.profile.map(str::to_owned),
        });
    }
    None
}

fn covered(name: &HostPattern, by: &[HostPattern]) -> bool {
    by.contains(name)
        || match name {
            HostPattern::Exact(host) => by.iter().any(|pattern| pattern.matches(host)),
            HostPattern::Wildcard(_) => false,
        }
}

/// How asking the first issuer goes.
#[derive(Debug, Clone, Copy)]
pub struct FallbackInput<'a> {
    /// Name of the issuer that stands in; none when there is none.
    pub fallback: Option<&'a str>,
    /// Failures in a row at the first issuer.
    pub failures: u32,
    /// Kind of the last of them.
    pub last_failure: Option<FailureKind>,
    /// Start and end of the certificate that is served, if there is one.
    pub validity: Option<(SystemTime, SystemTime)>,
    /// Until when the first issuer's limits forbid an order, if they do.
    pub first_not_before: Option<SystemTime>,
    /// The time.
    pub now: SystemTime,
}

/// Who is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IssuerChoice {
    /// The issuer that the object names.
    First,
    /// Its fallback.
    Fallback {
        /// Name of the issuer.
        issuer: String,
        /// Why.
        why: String,
    },
}

/// Failures in a row after which the fallback is asked while there is still time.
const FAILURES: u32 = 3;

/// Whom to ask now.
///
/// The first issuer is asked again at the next renewal, whose count of failures begins at nothing.
/// Failures that never reached the first issuer would meet the fallback too, so they do not count.
pub fn issuer(input: &FallbackInput<'_>) -> IssuerChoice {
    let Some(fallback) = input.fallback else {
        return IssuerChoice::First;
    };
    let left = match input.validity {
        Some((not_before, not_after)) => {
            let life = between(not_before, not_after);
            let left = between(input.now, not_after);
            Left::of(left, life)
        }
        None => Left::Nothing,
    };
    // The limits may hold the first issuer for longer than the certificate lives.
    let held_up = match (input.first_not_before, input.validity) {
        (Some(until), Some((not_before, not_after))) => {
            let life = between(not_before, not_after);
            until > input.now && Left::of(between(until, not_after), life) >= Left::Sixth
        }
        (Some(until), None) => between(input.now, until) > super::moment::HOUR,
        (None, _) => false,
    };
    let unreachable = input.last_failure == Some(FailureKind::Unavailable);
    let failing = input.failures > 0 && input.last_failure != Some(FailureKind::Local);
    let why = match left {
        _ if held_up => "the first issuer's limits forbid an order for too long",
        Left::Nothing if failing && unreachable => {
            "the first issuer cannot be reached and there is no certificate"
        }
        Left::Nothing if failing && input.failures >= FAILURES => {
            "the first issuer failed three times and there is no certificate"
        }
        Left::Sixth if failing => {
            "the first issuer fails and less than a sixth of the certificate's life is left"
        }
        Left::Third if failing && input.failures >= FAILURES => {
            "the first issuer failed three times and less than a third of the certificate's life is left"
        }
        _ => return IssuerChoice::First,
    };
    IssuerChoice::Fallback {
        issuer: fallback.to_owned(),
        why: why.to_owned(),
    }
}

/// How much of a life is left, by the borders that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    Enough,
    Third,
    /// Also when it is over.
    Sixth,
    /// There is no certificate at all.
    Nothing,
}

impl Left {
    fn of(left: std::time::Duration, life: std::time::Duration) -> Self {
        if left <= life / 6 {
            Self::Sixth
        } else if left <= life / 3 {
            Self::Third
        } else {
            Self::Enough
        }
    }
}

#[cfg(test)]
mod tests;
