//! When to try again after a failure.
//!
//! certmagic's schedule: quickly at first, because the fault is often gone or mended within minutes, then
//! rarely, and never giving up. Bounded from three sides: failed validations stay below what authorities
//! allow per hour and name, a wait that the authority asked for is kept, and what is left of a
//! certificate's life has room for several attempts. A change of the object or of the DNS answer starts
//! over, because the person who mended it is watching.
//!
//! Must not count what the authority counts: that is [`super::ledger`].

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::moment::{self, HOUR, after, between, part, truncated};

/// Minutes between attempts; the last one for ever after.
const SCHEDULE: [u64; 25] = [
    1, 2, 2, 5, 10, 10, 10, 20, 20, 20, 20, 30, 30, 30, 30, 30, 30, 60, 60, 60, 120, 120, 180, 180,
    360,
];

/// Where the schedule begins when the authority refused for good: only a change will help.
const REFUSED_FROM: usize = 17;

/// After this long without success attempts go on every six hours, and it is said once.
pub const LONG_TERM: Duration = Duration::from_secs(30 * 86_400);

/// How many attempts should fit into what is left of a certificate's life.
const ATTEMPTS_LEFT: u32 = 8;

/// No attempt follows another faster, however short the life.
const LEAST: Duration = Duration::from_secs(5);

/// A wait that an authority asks for counts up to here; more would let one wrong header end renewals.
const LONGEST_TOLD: Duration = Duration::from_secs(7 * 86_400);

/// Failed validations that are remembered: more than any published limit of an hour is never needed.
const VALIDATIONS_KEPT: usize = 16;

/// Longest stored error text, bytes.
const ERROR_LONGEST: usize = 2048;

/// What kind of failure it was, as far as it matters for the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailureKind {
    /// Nothing reached the authority: pre-flight, store, DNS provider.
    Local,
    /// The authority could not be reached or answered 5xx.
    Unavailable,
    /// The authority tried to validate and could not; it counts these.
    Validation,
    /// The authority refused what was asked for: a name, a key, a profile, an account.
    Refused,
    /// The authority asked to wait.
    RateLimited,
}

/// The last failure, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// What kind it was.
    pub kind: FailureKind,
    /// One `PascalCase` name.
    pub reason: String,
    /// The whole chain in words; at most 2 KiB are kept.
    pub message: String,
}

/// The failed attempts since the last success. Persisted with the certificate's state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attempts {
    /// How many failed in a row.
    pub count: u32,
    /// When the first of them failed.
    #[serde(
        with = "moment::rfc3339_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub first_failure: Option<SystemTime>,
    /// When the last of them failed.
    #[serde(
        with = "moment::rfc3339_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_failure: Option<SystemTime>,
    /// The last of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<Failure>,
    /// [`fingerprint`] of what the attempts depended on.
    pub fingerprint: String,
    /// No attempt before this.
    #[serde(
        with = "moment::rfc3339_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub not_before: Option<SystemTime>,
    /// Until when the authority asked to wait; outlives a reset.
    #[serde(
        with = "moment::rfc3339_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub told_until: Option<SystemTime>,
    /// When validations failed within the last hour, oldest first; outlives a reset.
    #[serde(with = "moment::rfc3339_list", skip_serializing_if = "Vec::is_empty")]
    pub validations: Vec<SystemTime>,
}

/// What bounds the next attempt, besides the schedule.
#[derive(Debug, Clone, Copy)]
pub struct RetryBounds {
    /// How many validations may fail per hour and name at this authority; none where it does not say.
    /// One less is used. [`super::ledger::Limits::failures_per_hour`].
    pub failures_per_hour: Option<u32>,
    /// `Retry-After` of the answer, or the time in its text.
    pub told_until: Option<SystemTime>,
    /// End of the life of the certificate that is still served, if there is one.
    pub not_after: Option<SystemTime>,
    /// Place in the spread, `0..1`: up to a tenth is added to each wait.
    pub jitter: f64,
}

/// The next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// When.
    pub at: SystemTime,
    /// Which one it will be, 2 for the first repetition.
    pub attempt: u32,
    /// Whether attempts have failed for longer than [`LONG_TERM`].
    pub long_term: bool,
}

impl Attempts {
    /// Starts over if what the attempts depend on has changed. Returns whether it has.
    ///
    /// What the authority counts and asked for is not forgotten: it does not know of the change.
    pub fn begin(&mut self, fingerprint: &str, bounds: &RetryBounds, now: SystemTime) -> bool {
        if self.fingerprint == fingerprint {
            return false;
        }
        let had_failed = self.count > 0;
        self.start_over(bounds, now);
        fingerprint.clone_into(&mut self.fingerprint);
        had_failed
    }

    /// Starts over because what the attempts failed at is mended.
    pub fn start_over(&mut self, bounds: &RetryBounds, now: SystemTime) {
        let mut fresh = Self {
            fingerprint: std::mem::take(&mut self.fingerprint),
            told_until: self.told_until.filter(|until| *until > now),
            validations: std::mem::take(&mut self.validations),
            ..Self::default()
        };
        fresh.not_before = fresh
            .told_until
            .max(fresh.validations_allow_at(bounds))
            .filter(|at| *at > now);
        *self = fresh;
    }

    /// Whether an attempt may be made now.
    pub fn due(&self, now: SystemTime) -> bool {
        // What failed in the future failed before the clock was set back, and its wait was reckoned from
        // a wrong time.
        let set_back = self
            .last_failure
            .is_some_and(|failed| between(now, failed) > moment::MINUTE);
        set_back || self.not_before.is_none_or(|at| at <= now)
    }

    /// Takes down a failure and says when to try again.
    pub fn failed(&mut self, failure: Failure, bounds: &RetryBounds, now: SystemTime) -> Retry {
        self.count = self.count.saturating_add(1);
        let first = *self.first_failure.get_or_insert(now);
        self.last_failure = Some(now);
        if failure.kind == FailureKind::Validation {
            self.validations.push(truncated(now));
            let excess = self.validations.len().saturating_sub(VALIDATIONS_KEPT);
            self.validations.drain(..excess);
        }
        self.validations.retain(|at| after(*at, HOUR) > now);
        if let Some(until) = bounds.told_until {
            let until = until.min(after(now, LONGEST_TOLD));
            self.told_until = self.told_until.max(Some(until));
        }
        let long_term = between(first, now) >= LONG_TERM;
        let at = self.next(failure.kind, long_term, bounds, now);
        self.last_error = Some(Failure {
            message: moment::bounded(&failure.message, ERROR_LONGEST),
            ..failure
        });
        self.not_before = Some(at);
        Retry {
            at,
            attempt: self.count.saturating_add(1),
            long_term,
        }
    }

    /// Forgets the failures after a success.
    pub fn succeeded(&mut self) {
        *self = Self {
            fingerprint: std::mem::take(&mut self.fingerprint),
            ..Self::default()
        };
    }

    fn next(
        &self,
        kind: FailureKind,
        long_term: bool,
        bounds: &RetryBounds,
        now: SystemTime,
    ) -> SystemTime {
        let last = SCHEDULE.len() - 1;
        let step = usize::try_from(self.count.saturating_sub(1)).unwrap_or(last);
        let step = match kind {
            _ if long_term => last,
            FailureKind::Refused => step.saturating_add(REFUSED_FROM),
            _ => step,
        };
        let mut wait = Duration::from_secs(SCHEDULE[step.min(last)] * 60);
        wait += part(wait / 10, bounds.jitter);
        if let Some(not_after) = bounds.not_after.filter(|end| *end > now) {
            wait = wait.min((between(now, not_after) / ATTEMPTS_LEFT).max(LEAST));
        }
        let at = after(now, wait)
            .max(self.told_until.unwrap_or(now))
            .max(self.validations_allow_at(bounds).unwrap_or(now));
        moment::rounded_up(at)
    }

    /// When one more failed validation would still be below the authority's limit.
    fn validations_allow_at(&self, bounds: &RetryBounds) -> Option<SystemTime> {
        let allowed = usize::try_from(bounds.failures_per_hour?.saturating_sub(1).max(1)).ok()?;
        let index = self.validations.len().checked_sub(allowed)?;
        self.validations.get(index).map(|at| after(*at, HOUR))
    }
}

/// Digest of everything that an attempt's outcome depends on: the names, the issuer and solvers of the
/// object, the addresses and CAA records in DNS. The order of parts counts; their borders do too.
pub fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(part.as_bytes());
    }
    digest
        .finalize()
        .iter()
        .take(16)
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::moment::DAY;

    const NO_BOUNDS: RetryBounds = RetryBounds {
        failures_per_hour: None,
        told_until: None,
        not_after: None,
        jitter: 0.0,
    };
    const LETS_ENCRYPT: RetryBounds = RetryBounds {
        failures_per_hour: Some(5),
        ..NO_BOUNDS
    };

    fn start() -> SystemTime {
        moment::parse_rfc3339("2026-11-01T00:00:00Z").unwrap()
    }

    fn failure(kind: FailureKind) -> Failure {
        Failure {
            kind,
            reason: "ChallengeFailed".into(),
            message: "connection refused".into(),
        }
    }

    /// Fails at every allowed time; minutes between the attempts.
    fn waits(kind: FailureKind, bounds: RetryBounds, attempts: usize) -> Vec<u64> {
        let (mut state, mut now) = (Attempts::default(), start());
        (0..attempts)
            .map(|_| {
                let next = state.failed(failure(kind), &bounds, now).at;
                let wait = between(now, next);
                now = next;
                wait.as_secs() / 60
            })
            .collect()
    }

    #[test]
    fn attempts_follow_the_schedule() {
        use FailureKind::{Local, Refused, Unavailable};
        for kind in [Local, Unavailable] {
            assert_eq!(waits(kind, NO_BOUNDS, 27)[..24], SCHEDULE[..24]);
            assert_eq!(waits(kind, NO_BOUNDS, 27)[24..], [360, 360, 360]);
        }
        assert_eq!(
            waits(Refused, NO_BOUNDS, 9),
            [60, 60, 60, 120, 120, 180, 180, 360, 360]
        );
        let late = RetryBounds {
            jitter: 0.5,
            ..NO_BOUNDS
        };
        assert_eq!(waits(Local, late, 12)[11], 31, "a twentieth later");
    }

    #[test]
    fn a_clock_that_was_set_back_ends_the_wait_that_was_reckoned_by_it() {
        let mut state = Attempts::default();
        let wrong = start() + 3 * HOUR;
        let next = state
            .failed(failure(FailureKind::Local), &NO_BOUNDS, wrong)
            .at;
        assert!(!state.due(wrong));
        assert!(state.due(next));
        assert!(state.due(start()), "not three hours later");
        // The next failure is at the right time, and its wait holds.
        state.failed(failure(FailureKind::Local), &NO_BOUNDS, start());
        assert!(!state.due(start()));
        assert!(!state.due(start() - Duration::from_secs(5)));
    }

    #[test]
    fn failed_validations_stay_below_the_limit_in_every_hour() {
        let (mut state, mut now) = (Attempts::default(), start());
        let mut failed = Vec::new();
        for _ in 0..60 {
            failed.push(now);
            now = state
                .failed(failure(FailureKind::Validation), &LETS_ENCRYPT, now)
                .at;
        }
        for at in &failed {
            let hour = failed
                .iter()
                .filter(|t| *t <= at && after(**t, HOUR) > *at)
                .count();
            assert!(hour <= 4, "{hour} in the hour before {at:?}");
        }
        // The first three repetitions are not held up by it.
        assert_eq!(
            waits(FailureKind::Validation, LETS_ENCRYPT, 4),
            [1, 2, 2, 55]
        );
    }

    #[test]
    fn the_authority_is_obeyed_within_reason() {
        let tell = |seconds: u64| RetryBounds {
            told_until: Some(start() + Duration::from_secs(seconds)),
            not_after: Some(start() + HOUR),
            ..NO_BOUNDS
        };
        for (told, expected) in [(5, 60), (7200, 7200), (4000 * 86_400, 7 * 86_400)] {
            let mut state = Attempts::default();
            let retry = state.failed(failure(FailureKind::RateLimited), &tell(told), start());
            assert_eq!(between(start(), retry.at).as_secs(), expected, "{told}");
            assert!(!state.due(start()) && state.due(retry.at));
        }
    }

    #[test]
    fn several_attempts_fit_into_a_short_life() {
        for (left, bounds, least) in [
            (150, NO_BOUNDS, 8),
            (3 * 3600, NO_BOUNDS, 12),
            (2 * 86_400, LETS_ENCRYPT, 20),
            (2 * 86_400, NO_BOUNDS, 20),
        ] {
            let end = start() + Duration::from_secs(left);
            let bounds = RetryBounds {
                not_after: Some(end),
                ..bounds
            };
            let (mut state, mut now, mut attempts) = (Attempts::default(), start(), 0);
            while now < end {
                now = state
                    .failed(failure(FailureKind::Validation), &bounds, now)
                    .at;
                attempts += 1;
                assert!(attempts < 1000, "{left}");
            }
            assert!(attempts >= least, "{left}: {attempts}");
        }
        // After the end there is nothing left to fit into.
        let over = RetryBounds {
            not_after: Some(start() - HOUR),
            ..NO_BOUNDS
        };
        assert_eq!(waits(FailureKind::Local, over, 3), [1, 2, 2]);
    }

    #[test]
    fn after_thirty_days_it_goes_on_and_is_said() {
        let (mut state, mut now, mut said) = (Attempts::default(), start(), None);
        for _ in 0..200 {
            let retry = state.failed(failure(FailureKind::Local), &NO_BOUNDS, now);
            if retry.long_term {
                said.get_or_insert(between(start(), now));
                assert_eq!(between(now, retry.at), 6 * HOUR);
            }
            now = retry.at;
        }
        let said = said.unwrap();
        assert!(said >= LONG_TERM && said < LONG_TERM + DAY);
    }

    #[test]
    fn a_change_starts_over_but_not_what_the_authority_counts() {
        let mut state = Attempts::default();
        assert!(
            !state.begin("one", &LETS_ENCRYPT, start()),
            "nothing had failed"
        );
        let mut now = start();
        for _ in 0..3 {
            now = state
                .failed(failure(FailureKind::Validation), &LETS_ENCRYPT, now)
                .at;
        }
        assert!(!state.begin("one", &LETS_ENCRYPT, now));
        assert!(state.begin("two", &LETS_ENCRYPT, now));
        assert_eq!(
            (state.count, state.not_before, &state.last_error),
            (0, None, &None)
        );
        assert!(state.due(now));
        // The fourth failure of the hour: a change may not be used to get past the limit.
        state.failed(failure(FailureKind::Validation), &LETS_ENCRYPT, now);
        assert!(state.begin("three", &LETS_ENCRYPT, now));
        assert_eq!(state.not_before, Some(start() + HOUR));
        // Nor past a wait that the authority asked for.
        let told = RetryBounds {
            told_until: Some(now + DAY),
            ..LETS_ENCRYPT
        };
        state.failed(failure(FailureKind::RateLimited), &told, now);
        assert!(state.begin("four", &LETS_ENCRYPT, now));
        assert_eq!(state.not_before, Some(now + DAY));
        state.succeeded();
        assert_eq!(
            state,
            Attempts {
                fingerprint: "four".into(),
                ..Attempts::default()
            }
        );
    }

    #[test]
    fn attempts_survive_their_json() {
        let mut state = Attempts::default();
        let long = Failure {
            message: "x\n".repeat(5000),
            ..failure(FailureKind::Validation)
        };
        state.failed(long, &LETS_ENCRYPT, start());
        assert!(state.last_error.as_ref().unwrap().message.len() <= ERROR_LONGEST);
        let json = serde_json::to_value(&state).unwrap();
        assert_eq!(json["lastError"]["kind"], "validation");
        assert_eq!(json["notBefore"], "2026-11-01T00:01:00Z");
        assert_eq!(serde_json::from_value::<Attempts>(json).unwrap(), state);
        assert_eq!(
            serde_json::from_str::<Attempts>(r#"{"new":1}"#).unwrap(),
            Attempts::default()
        );
    }

    #[test]
    fn a_fingerprint_keeps_its_borders() {
        assert_eq!(fingerprint(["a", "b"]), fingerprint(["a", "b"]));
        assert_ne!(fingerprint(["ab", ""]), fingerprint(["a", "b"]));
        assert_ne!(fingerprint(["a"]), fingerprint(["a", ""]));
        assert_eq!(fingerprint([]).len(), 32);
    }
}
