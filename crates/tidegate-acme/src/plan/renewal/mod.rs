//! When a certificate is renewed, and why then.
//!
//! The certification authority is asked first (ARI, RFC 9773); what it says is a suggestion that may
//! neither postpone a renewal into danger nor be garbage that counts. Without it, two thirds of the real
//! lifetime decide (half of it below ten days), moved a little so that many certificates do not fall due
//! together. Short lifetimes are first-class: nothing here is a fixed number of days.
//!
//! Must not order anything: [`super::ledger`] says whether an order may be placed, [`super::retry`] when to
//! try again after a failure.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::moment::{
    self, DAY, HOUR, MINUTE, after, before, between, part, span, stamp, truncated,
};

/// Lifetimes below this are renewed at half of them instead of two thirds: a third of six days is too
/// little for a weekend.
pub const SHORT_LIVED: Duration = Duration::from_secs(10 * 86_400);

/// How far the answers of ARI may be asked for apart: `Retry-After` is clamped into this.
pub const ARI_POLL: (Duration, Duration) = (HOUR, Duration::from_secs(7 * 86_400));

/// How often ARI is asked when the answer has no `Retry-After` (RFC 9773 §4.3.3 names six hours).
pub const ARI_POLL_DEFAULT: Duration = Duration::from_secs(6 * 3600);

/// How far another clock may be from ours before it is said.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(300);

/// The whole spread of the lifetime rule, as a part of the lifetime: half of it before, half after.
const SPREAD: f64 = 1.0 / 20.0;

/// Past this part of its life a certificate is renewed whatever ARI says.
const ARI_IGNORED_LEFT: u32 = 20;

/// With this part of its life left a certificate is renewed whatever anything says.
const IMMINENT_LEFT: u32 = 50;

/// A window that begins this long before the certificate is no answer about this certificate.
const ABSURDLY_EARLY: Duration = Duration::from_secs(366 * 86_400);

/// What the authority said about when to renew (RFC 9773 §4.1), and how asking went. Persisted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AriState {
    /// When it was last asked, with or without success.
    #[serde(with = "moment::rfc3339")]
    pub fetched_at: SystemTime,
    /// The last window that could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<AriWindow>,
    /// A page that says why the window is where it is. For people; never fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation_url: Option<String>,
    /// `Retry-After` of the last answer, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
    /// Why the last question brought no window; none after a good answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<AriFailure>,
    /// How many questions in a row failed.
    #[serde(default)]
    pub failures: u32,
}

/// The suggested window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AriWindow {
    /// Its first moment.
    #[serde(with = "moment::rfc3339")]
    pub start: SystemTime,
    /// Its last moment.
    #[serde(with = "moment::rfc3339")]
    pub end: SystemTime,
}

/// Why ARI gave no window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AriFailure {
    /// The authority does not offer it, or does not know this certificate (4xx).
    Unsupported,
    /// The network, or the authority, is not well (5xx, timeout).
    Unavailable,
    /// The answer could not be read.
    Malformed,
}

impl AriState {
    /// The state after a good answer.
    pub fn answered(
        window: AriWindow,
        explanation_url: Option<&str>,
        retry_after: Option<Duration>,
        now: SystemTime,
    ) -> Self {
        Self {
            fetched_at: now,
            window: Some(window),
            explanation_url: explanation_url.map(|url| moment::bounded(url, 1024)),
            retry_after_seconds: retry_after.map(|wait| wait.as_secs()),
            failure: None,
            failures: 0,
        }
    }

    /// The state after a question that failed; the last good window stays known.
    pub fn failed(
        previous: Option<&Self>,
        failure: AriFailure,
        retry_after: Option<Duration>,
        now: SystemTime,
    ) -> Self {
        let kept = previous.filter(|_| failure != AriFailure::Unsupported);
        Self {
            fetched_at: now,
            window: kept.and_then(|state| state.window),
            explanation_url: kept.and_then(|state| state.explanation_url.clone()),
            retry_after_seconds: retry_after.map(|wait| wait.as_secs()),
            failure: Some(failure),
            failures: previous.map_or(0, |state| state.failures).saturating_add(1),
        }
    }
}

/// What is known about a certificate that is held.
#[derive(Debug, Clone, Copy)]
pub struct RenewalInput<'a> {
    /// Start of the validity.
    pub not_before: SystemTime,
    /// End of the validity.
    pub not_after: SystemTime,
    /// What the authority said; none when it was never asked.
    pub ari: Option<&'a AriState>,
    /// Whether the authority is asked at all (`renewalInformationSource`, and its directory offers it).
    pub ask_ari: bool,
    /// Whether the certificate is known to be revoked.
    pub revoked: bool,
    /// Place of this certificate in every spread, `0..1`; [`moment::jitter_of`] its fingerprint.
    pub jitter: f64,
    /// Longest time between two looks at this certificate.
    pub check_interval: Duration,
    /// Since when this process can act: its start, or the end of a sleep. What fell due before is caught
    /// up with from here, spread.
    pub awake_since: SystemTime,
    /// The time.
    pub now: SystemTime,
}

/// When to renew and to ask ARI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// When to renew; due when it is not after now.
    pub at: SystemTime,
    /// Why then.
    pub reason: RenewReason,
    /// When to ask ARI next; none when it is not asked.
    pub poll_ari_at: Option<SystemTime>,
    /// How late `at` is against the plan because nothing could act before.
    pub late: Option<Duration>,
    /// What is wrong with the authority's window, when it was not used.
    pub ari_ignored: Option<&'static str>,
}

/// Why a certificate is issued. Every reason has a name for status and metrics and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RenewReason {
    /// There is none yet.
    NoCertificate,
    /// Its file, chain or key cannot be used.
    Unreadable {
        /// What is wrong with it.
        why: String,
    },
    /// Names that it does not cover.
    NamesChanged {
        /// The names.
        missing: Vec<String>,
    },
    /// It is from another issuer than the object asks for.
    IssuerChanged {
        /// Who issued it.
        from: String,
        /// Who is asked for.
        to: String,
    },
    /// Its key is of another type than the object asks for.
    KeyTypeChanged {
        /// What it has.
        from: String,
        /// What is asked for.
        to: String,
    },
    /// It was ordered with another profile.
    ProfileChanged {
        /// What it was ordered with.
        from: Option<String>,
        /// What is asked for.
        to: Option<String>,
    },
    /// It is revoked.
    Revoked,
    /// Its life is over.
    Expired {
        /// Since when.
        since: SystemTime,
    },
    /// So little of its life is left that nothing else counts.
    Emergency {
        /// End of its life.
        not_after: SystemTime,
    },
    /// The authority suggested it (RFC 9773).
    Ari {
        /// The suggested window.
        window: AriWindow,
        /// The authority's page about it.
        explanation_url: Option<String>,
    },
    /// Two thirds of its life are over.
    TwoThirds {
        /// Length of its life.
        lifetime: Duration,
    },
    /// Half of its short life is over.
    HalfLife {
        /// Length of its life.
        lifetime: Duration,
    },
    /// A person asked for it.
    Forced,
}

impl RenewReason {
    /// One `PascalCase` name for status, log and metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate => "NoCertificate",
            Self::Unreadable { .. } => "Unreadable",
            Self::NamesChanged { .. } => "NamesChanged",
            Self::IssuerChanged { .. } => "IssuerChanged",
            Self::KeyTypeChanged { .. } => "KeyTypeChanged",
            Self::ProfileChanged { .. } => "ProfileChanged",
            Self::Revoked => "Revoked",
            Self::Expired { .. } => "Expired",
            Self::Emergency { .. } => "Emergency",
            Self::Ari { .. } => "Ari",
            Self::TwoThirds { .. } => "TwoThirds",
            Self::HalfLife { .. } => "HalfLife",
            Self::Forced => "Forced",
        }
    }

    /// Whether the new certificate has the same names from the same issuer: a renewal in the sense of the
    /// authorities' limits and of `replaces` (RFC 9773 §5).
    pub fn is_renewal(&self) -> bool {
        matches!(
            self,
            Self::Revoked
                | Self::Expired { .. }
                | Self::Emergency { .. }
                | Self::Ari { .. }
                | Self::TwoThirds { .. }
                | Self::HalfLife { .. }
                | Self::KeyTypeChanged { .. }
                | Self::ProfileChanged { .. }
                | Self::Forced
        )
    }
}

impl fmt::Display for RenewReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCertificate => f.write_str("there is no certificate yet"),
            Self::Unreadable { why } => write!(f, "the stored certificate cannot be used: {why}"),
            Self::NamesChanged { missing } => {
                write!(f, "the certificate does not cover {}", listed(missing))
            }
            Self::IssuerChanged { from, to } => {
                write!(
                    f,
                    "the certificate is from issuer {from:?}, {to:?} is asked for"
                )
            }
            Self::KeyTypeChanged { from, to } => {
                write!(f, "the certificate's key is {from}, {to} is asked for")
            }
            Self::ProfileChanged { from, to } => write!(
                f,
                "the certificate was ordered with {}, {} is asked for",
                profile(from.as_deref()),
                profile(to.as_deref())
            ),
            Self::Revoked => f.write_str("the certificate is revoked"),
            Self::Expired { since } => write!(f, "the certificate expired at {}", stamp(*since)),
            Self::Emergency { not_after } => write!(
                f,
                "the certificate expires at {}, too soon to wait for anything",
                stamp(*not_after)
            ),
            Self::Ari {
                window,
                explanation_url,
            } => {
                write!(
                    f,
                    "the authority suggests to renew between {} and {}",
                    stamp(window.start),
                    stamp(window.end)
                )?;
                match explanation_url {
                    Some(url) => write!(f, " ({url})"),
                    None => Ok(()),
                }
            }
            Self::TwoThirds { lifetime } => {
                write!(
                    f,
                    "two thirds of the certificate's life of {} are over",
                    span(*lifetime)
                )
            }
            Self::HalfLife { lifetime } => {
                write!(
                    f,
                    "half of the certificate's life of {} is over",
                    span(*lifetime)
                )
            }
            Self::Forced => f.write_str("a renewal was asked for"),
        }
    }
}

fn profile(name: Option<&str>) -> String {
    name.map_or_else(
        || "no profile".to_owned(),
        |name| format!("profile {name:?}"),
    )
}

/// Up to five names and how many more.
pub(crate) fn listed(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let text = names
        .iter()
        .take(SHOWN)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

/// When a held certificate is renewed.
pub fn renewal(input: &RenewalInput<'_>) -> Renewal {
    let lifetime = between(input.not_before, input.not_after);
    let left = between(input.now, input.not_after);
    let now = |reason| Renewal {
        at: truncated(input.now),
        reason,
        poll_ari_at: None,
        late: None,
        ari_ignored: None,
    };
    if left.is_zero() {
        return now(RenewReason::Expired {
            since: input.not_after,
        });
    }
    if input.revoked {
        return now(RenewReason::Revoked);
    }
    // Five looks must fit in, but looking rarely at a short-lived certificate must not renew it all the time.
    let looks = input.check_interval.saturating_mul(5).min(lifetime / 6);
    let imminent = (lifetime / IMMINENT_LEFT).max(looks);
    let deadline = before(input.not_after, (lifetime / ARI_IGNORED_LEFT).max(imminent));
    if input.now >= deadline {
        return now(RenewReason::Emergency {
            not_after: input.not_after,
        });
    }

    let (by_lifetime, lifetime_reason) = by_lifetime(input, lifetime);
    let (mut at, mut reason) = (by_lifetime, lifetime_reason);
    let mut ari_ignored = None;
    if let Some(state) = input.ari.filter(|_| input.ask_ari)
        && let Some(window) = state.window
    {
        ari_ignored = refusal(window, input);
        let chosen = chosen(window, input.jitter);
        // While the authority cannot be asked, an old window may only bring a renewal forward.
        if ari_ignored.is_none() && (state.failure.is_none() || chosen < at) {
            at = chosen;
            reason = RenewReason::Ari {
                window,
                explanation_url: state.explanation_url.clone(),
            };
        }
    }
    if at > deadline {
        at = deadline;
        reason = RenewReason::Emergency {
            not_after: input.not_after,
        };
    }
    let at = truncated(at);
    let late = between(at, input.awake_since);
    let (at, late) = if late > input.check_interval {
        let spread = (between(input.awake_since, input.not_after) / 50).min(5 * MINUTE);
        let caught_up = truncated(after(input.awake_since, part(spread, input.jitter)));
        (caught_up.min(truncated(deadline)), Some(late))
    } else {
        (at, None)
    };
    Renewal {
        at,
        reason,
        poll_ari_at: input.ask_ari.then(|| poll_ari_at(input, lifetime)),
        late,
        ari_ignored,
    }
}

/// When a certificate of this life is renewed if nobody says otherwise, in the middle of the spread.
pub fn lifetime_renewal(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    let lifetime = between(not_before, not_after);
    let fraction = if lifetime < SHORT_LIVED {
        1.0 / 2.0
    } else {
        2.0 / 3.0
    };
    after(not_before, part(lifetime, fraction))
}

fn by_lifetime(input: &RenewalInput<'_>, lifetime: Duration) -> (SystemTime, RenewReason) {
    let (fraction, reason) = if lifetime < SHORT_LIVED {
        (1.0 / 2.0, RenewReason::HalfLife { lifetime })
    } else {
        (2.0 / 3.0, RenewReason::TwoThirds { lifetime })
    };
    let fraction = fraction + (moment::unit_interval(input.jitter) - 0.5) * SPREAD;
    (after(input.not_before, part(lifetime, fraction)), reason)
}

/// Why a window is not believed.
fn refusal(window: AriWindow, input: &RenewalInput<'_>) -> Option<&'static str> {
    if window.end <= window.start {
        Some("the authority's renewal window ends before it begins")
    } else if window.start >= input.not_after {
        Some("the authority's renewal window begins after the certificate's end")
    } else if window.start < before(input.not_before, ABSURDLY_EARLY) {
        Some("the authority's renewal window begins long before the certificate")
    } else {
        None
    }
}

/// A time in the window (RFC 9773 §4.2: uniformly at random); one in the past means now.
fn chosen(window: AriWindow, jitter: f64) -> SystemTime {
    after(
        window.start,
        part(between(window.start, window.end), jitter),
    )
}

fn poll_ari_at(input: &RenewalInput<'_>, lifetime: Duration) -> SystemTime {
    let Some(state) = input.ari else {
        return truncated(input.now);
    };
    let told = state.retry_after_seconds.map(Duration::from_secs);
    let wait = match state.failure {
        None => told
            .unwrap_or(ARI_POLL_DEFAULT)
            .clamp(ARI_POLL.0, ARI_POLL.1),
        // The certificate may be too new for the authority's database: ask again, rarely.
        Some(AriFailure::Unsupported) => told.unwrap_or(DAY).clamp(DAY, ARI_POLL.1),
        Some(AriFailure::Malformed) => told.unwrap_or(ARI_POLL_DEFAULT).clamp(ARI_POLL.0, DAY),
        Some(AriFailure::Unavailable) => {
            let doublings = state.failures.saturating_sub(1).min(6);
            (10 * MINUTE * 2_u32.pow(doublings))
                .min(ARI_POLL_DEFAULT)
                .max(told.unwrap_or_default().min(DAY))
        }
    };
    // Later by up to a tenth, never earlier than the authority asked for.
    let wait = wait + part(wait / 10, input.jitter);
    let wait = if lifetime < SHORT_LIVED {
        // One minute is the least that RFC 9773 §4.3.2 lets a client be told.
        wait.min((between(state.fetched_at, input.not_after) / 10).max(MINUTE))
    } else {
        wait
    };
    truncated(after(state.fetched_at, wait))
}

/// Our clock and another one differ by more than [`CLOCK_TOLERANCE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockSkew {
    /// Whether our clock is the later one.
    pub ahead: bool,
    /// At least how far.
    pub by: Duration,
    /// What it was compared with.
    pub evidence: SkewEvidence,
}

/// What our clock was compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkewEvidence {
    /// The start of a certificate's validity, which no authority puts into the future.
    NotBefore,
    /// The `Date` of the authority's answer.
    Date,
}

impl ClockSkew {
    /// One `PascalCase` name for status, log and metric.
    pub fn reason(&self) -> &'static str {
        "ClockSkew"
    }

    /// What our clock would show if the other one is right.
    pub fn corrected(&self, now: SystemTime) -> SystemTime {
        if self.ahead {
            before(now, self.by)
        } else {
            after(now, self.by)
        }
    }
}

impl fmt::Display for ClockSkew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.ahead { "ahead" } else { "behind" };
        let evidence = match self.evidence {
            SkewEvidence::NotBefore => "of a certificate that is not valid yet by it",
            SkewEvidence::Date => "of the authority's",
        };
        write!(
            f,
            "this machine's clock is {} {direction} {evidence}; set it, and keep it set by NTP \
             (timedatectl set-ntp true)",
            span(self.by)
        )
    }
}

/// Compares our clock with a certificate's start and with the `Date` of an answer of the authority.
///
/// `date` is the header's time and our time when the answer came. The header is the better evidence
/// because a certificate's start only shows a clock that is behind.
pub fn clock_skew(
    not_before: Option<SystemTime>,
    date: Option<(SystemTime, SystemTime)>,
    now: SystemTime,
) -> Option<ClockSkew> {
    if let Some((theirs, ours)) = date {
        let ahead = ours > theirs;
        let by = between(theirs, ours).max(between(ours, theirs));
        if by > CLOCK_TOLERANCE {
            return Some(ClockSkew {
                ahead,
                by,
                evidence: SkewEvidence::Date,
            });
        }
    }
    let by = between(now, not_before?);
    (by > MINUTE).then_some(ClockSkew {
        ahead: false,
        by,
        evidence: SkewEvidence::NotBefore,
    })
}

#[cfg(test)]
mod tests;
