//! Which notices are due: told once per stage of danger, repeated at most daily, taken back on recovery.
//!
//! A certificate that is renewed as planned causes no notice at all, also when its renewal is planned for
//! its last third: only a renewal that failed or is overdue does. The memory of what was told is the
//! caller's to store; it is bounded by the certificates that exist.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tidegate_model::HostPattern;

use super::pending::{self, Pending};
use crate::plan::moment::{self, DAY, HOUR, between, span, stamp};
use crate::plan::renewal::listed;
use crate::plan::retry::{Attempts, LONG_TERM};

/// The form of the stored document.
const VERSION: u32 = 1;

/// Failures in a row before the first notice that nothing but failures causes.
const FAILURES: u32 = 3;

/// Least time between two notices about the same failing certificate.
const REPEAT: Duration = DAY;

/// The same once failures have gone on for [`LONG_TERM`].
const REPEAT_LONG_TERM: Duration = Duration::from_secs(7 * 86_400);

/// How long after the planned renewal it is overdue, at most; a hundredth of the life when that is less.
const GRACE: Duration = HOUR;

/// Of certificates that live less than this, nobody is told before a twentieth is left: nobody could act
/// within minutes, and a failed attempt in each life would be a notice in each life.
const TOO_SHORT: Duration = DAY;

/// How much of the last error a notice repeats, bytes.
const ERROR_SHOWN: usize = 1000;

/// How urgent a notice is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Look at it these days.
    Warning,
    /// Look at it today.
    Error,
    /// Visitors see or soon see an error.
    Critical,
}

impl Severity {
    /// One lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

/// How little of a certificate's life is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// A third.
    Third,
    /// A sixth.
    Sixth,
    /// A twentieth.
    Twentieth,
    /// Nothing.
    Expired,
}

impl Stage {
    fn of(validity: (SystemTime, SystemTime), now: SystemTime) -> Option<Self> {
        let life = between(validity.0, validity.1);
        let left = between(now, validity.1);
        if left.is_zero() {
            Some(Self::Expired)
        } else if left <= life / 20 {
            Some(Self::Twentieth)
        } else if left <= life / 6 {
            Some(Self::Sixth)
        } else if left <= life / 3 {
            Some(Self::Third)
        } else {
            None
        }
    }
}

/// What a notice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NoticeKind {
    /// The certificate expires and its renewal failed or is overdue.
    Expiring,
    /// It has expired.
    Expired,
    /// The authority has revoked it.
    Revoked,
    /// Issuance keeps failing.
    Failing,
    /// Issuance has failed for a month.
    LongTermFailing,
    /// After one of the others: there is a new certificate.
    Recovered,
    /// Sent on request, to see whether it arrives.
    Test,
}

impl NoticeKind {
    /// One `PascalCase` name for log and metric.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Expiring => "CertificateExpiring",
            Self::Expired => "CertificateExpired",
            Self::Revoked => "CertificateRevoked",
            Self::Failing => "IssuanceFailing",
            Self::LongTermFailing => "IssuanceFailingForLong",
            Self::Recovered => "IssuanceRecovered",
            Self::Test => "Test",
        }
    }
}

impl fmt::Display for NoticeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

/// A message to people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// The object it is about, such as `default/blog`.
    pub subject: String,
    /// What it is about.
    pub kind: NoticeKind,
    /// How urgent it is.
    pub severity: Severity,
    /// One line.
    pub title: String,
    /// Some lines, plain text.
    pub body: String,
    /// When it was decided.
    #[serde(with = "moment::rfc3339")]
    pub at: SystemTime,
}

impl Notice {
    /// A notice that says nothing but that it arrived.
    pub fn test(edge: &str, now: SystemTime) -> Self {
        Self {
            subject: "test".to_owned(),
            kind: NoticeKind::Test,
            severity: Severity::Info,
            title: moment::bounded(&format!("Test notice of {edge}"), 200),
            body: format!("Notices of {edge} arrive here. Sent at {}.", stamp(now)),
            at: now,
        }
    }
}

impl Notice {
    /// The authority has revoked a certificate. To be told once: nothing here remembers it.
    pub fn revoked(subject: &Subject<'_>, reason: Option<&str>, now: SystemTime) -> Self {
        let title = match reason {
            Some(reason) => format!("Certificate for {} is revoked ({reason})", names(subject)),
            None => format!("Certificate for {} is revoked", names(subject)),
        };
        let mut notice = notice(
            subject,
            NoticeKind::Revoked,
            Severity::Critical,
            &title,
            now,
        );
        notice.body.push_str(
            "\nIts authority says so in its list, and browsers refuse it. Another is ordered with a new key.",
        );
        notice
    }
}

/// The state of one certificate.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The object that asks for it, such as `default/blog`.
    pub id: &'a str,
    /// Its names.
    pub names: &'a [HostPattern],
    /// The issuer that is asked.
    pub issuer: &'a str,
    /// Start and end of the certificate that is served; none while there is none.
    pub validity: Option<(SystemTime, SystemTime)>,
    /// When it should be, or should have been, renewed.
    pub renew_at: Option<SystemTime>,
    /// The failed attempts since the last success.
    pub attempts: &'a Attempts,
}

/// What was told. Persisted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NoticeMemory {
    /// Form of the document.
    pub version: u32,
    /// By object; only objects about which something was told.
    #[serde(default)]
    told: BTreeMap<String, Told>,
    /// What is on its way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) pending: Vec<Pending>,
}

impl Default for NoticeMemory {
    fn default() -> Self {
        Self {
            version: VERSION,
            told: BTreeMap::new(),
            pending: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Told {
    /// End of the certificate that was held then.
    #[serde(
        with = "moment::rfc3339_option",
        skip_serializing_if = "Option::is_none"
    )]
    not_after: Option<SystemTime>,
    /// The latest stage told of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<Stage>,
    /// When failures were last told.
    #[serde(
        with = "moment::rfc3339_option",
        skip_serializing_if = "Option::is_none"
    )]
    failing_at: Option<SystemTime>,
    /// Whether it was told that they have gone on for long.
    long_term: bool,
}

impl NoticeMemory {
    /// The notices that are due, in the order of the subjects, and remembers them as told.
    ///
    /// Objects that are not among the subjects are forgotten: their certificate is no longer wanted.
    pub fn due(&mut self, subjects: &[Subject<'_>], now: SystemTime) -> Vec<Notice> {
        let mut before = std::mem::take(&mut self.told);
        let mut notices = Vec::new();
        for subject in subjects {
            let told = before.remove(subject.id);
            let (notice, told) = look_at(subject, told, now);
            notices.extend(notice);
            if let Some(told) = told {
                self.told.insert(subject.id.to_owned(), told);
            }
        }
        notices
    }

    /// Takes over what another edge told, when state is imported: nothing is told twice, and what did not
    /// arrive there is told from here.
    pub fn merge(&mut self, other: &Self) {
        for (id, theirs) in &other.told {
            match self.told.get_mut(id) {
                None => {
                    self.told.insert(id.clone(), theirs.clone());
                }
                Some(mine) => mine.merge(theirs),
            }
        }
        self.pending = pending::joined(&self.pending, &other.pending);
    }
}

impl Told {
    /// Of two certificates the later one counts, of the stages of one the last.
    fn merge(&mut self, other: &Self) {
        match other.not_after.cmp(&self.not_after) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => self.stage = self.stage.max(other.stage),
            std::cmp::Ordering::Greater => {
                self.not_after = other.not_after;
                self.stage = other.stage;
            }
        }
        self.failing_at = self.failing_at.max(other.failing_at);
        self.long_term |= other.long_term;
    }
}

fn look_at(
    subject: &Subject<'_>,
    told: Option<Told>,
    now: SystemTime,
) -> (Option<Notice>, Option<Told>) {
    let not_after = subject.validity.map(|(_, end)| moment::truncated(end));
    let renewed = told.as_ref().is_some_and(|told| not_after > told.not_after);
    if renewed && subject.attempts.count == 0 {
        return (Some(recovered(subject, now)), None);
    }
    let fresh = Told {
        not_after,
        ..Told::default()
    };
    // Another certificate that fails already: its stages begin anew, what was told of failures holds.
    let mut told = told.unwrap_or_else(|| fresh.clone());
    if told.not_after != not_after {
        told.stage = None;
        told.not_after = not_after;
    }
    let notice = expiring(subject, &mut told, now).or_else(|| failing(subject, &mut told, now));
    let remembered = told != fresh;
    (notice, remembered.then_some(told))
}

fn expiring(subject: &Subject<'_>, told: &mut Told, now: SystemTime) -> Option<Notice> {
    let validity = subject.validity?;
    let stage = Stage::of(validity, now)?;
    if told.stage >= Some(stage) || !in_trouble(subject, stage, validity, now) {
        return None;
    }
    told.stage = Some(stage);
    // It says what failed, so that a separate notice can wait.
    told.failing_at = Some(now);
    let names = names(subject);
    let left = span(between(now, validity.1));
    let (kind, severity, title) = match stage {
        Stage::Third => (
            NoticeKind::Expiring,
            Severity::Warning,
            format!("Certificate for {names} expires in {left}"),
        ),
        Stage::Sixth => (
            NoticeKind::Expiring,
            Severity::Error,
            format!("Certificate for {names} expires in {left}"),
        ),
        Stage::Twentieth => (
            NoticeKind::Expiring,
            Severity::Critical,
            format!("Certificate for {names} expires in {left}"),
        ),
        Stage::Expired => (
            NoticeKind::Expired,
            Severity::Critical,
            format!("Certificate for {names} has expired"),
        ),
    };
    Some(notice(subject, kind, severity, &title, now))
}

/// Whether the stage is worth a word: near the end always, earlier only when the renewal did not go as
/// planned.
fn in_trouble(
    subject: &Subject<'_>,
    stage: Stage,
    validity: (SystemTime, SystemTime),
    now: SystemTime,
) -> bool {
    if stage >= Stage::Twentieth {
        // A plan for the very last hours, as for certificates of minutes, is a plan all the same.
        return stage == Stage::Expired
            || subject.attempts.count > 0
            || subject.renew_at.is_none_or(|at| at <= now);
    }
    let life = between(validity.0, validity.1);
    if life < TOO_SHORT {
        return false;
    }
    let grace = (life / 100).min(GRACE);
    subject.attempts.count > 0
        || subject
            .renew_at
            .is_some_and(|at| moment::after(at, grace) < now)
}

fn failing(subject: &Subject<'_>, told: &mut Told, now: SystemTime) -> Option<Notice> {
    if subject.attempts.count < FAILURES {
        return None;
    }
    let since = subject.attempts.first_failure.unwrap_or(now);
    let long_term = between(since, now) >= LONG_TERM;
    let repeat = if long_term { REPEAT_LONG_TERM } else { REPEAT };
    let first_of_long_term = long_term && !told.long_term;
    if let Some(last) = told.failing_at
        && between(last, now) < repeat
        && !first_of_long_term
    {
        return None;
    }
    told.failing_at = Some(now);
    told.long_term = long_term;
    let names = names(subject);
    let without = if subject.validity.is_none() {
        ", and there is none yet"
    } else {
        ""
    };
    let (kind, severity, title) = if long_term {
        (
            NoticeKind::LongTermFailing,
            Severity::Error,
            format!(
                "No certificate for {names} in {}{without}",
                span(between(since, now))
            ),
        )
    } else {
        (
            NoticeKind::Failing,
            Severity::Warning,
            format!("Getting a certificate for {names} keeps failing{without}"),
        )
    };
    Some(notice(subject, kind, severity, &title, now))
}

fn recovered(subject: &Subject<'_>, now: SystemTime) -> Notice {
    let title = format!("New certificate for {}", names(subject));
    notice(subject, NoticeKind::Recovered, Severity::Info, &title, now)
}

fn notice(
    subject: &Subject<'_>,
    kind: NoticeKind,
    severity: Severity,
    title: &str,
    now: SystemTime,
) -> Notice {
    let attempts = subject.attempts;
    let mut lines = vec![
        format!("Route: {}", subject.id),
        format!("Issuer: {}", subject.issuer),
    ];
    if let Some((_, end)) = subject.validity {
        let word = if end > now { "Expires" } else { "Expired" };
        lines.push(format!("{word}: {}", stamp(end)));
    }
    if let Some(first) = attempts.first_failure.filter(|_| attempts.count > 0) {
        let times = if attempts.count == 1 { "once" } else { "times" };
        let count = match attempts.count {
            1 => times.to_owned(),
            count => format!("{count} {times}"),
        };
        lines.push(format!("Failed: {count} since {}", stamp(first)));
    } else if kind == NoticeKind::Expiring {
        lines.push("The renewal is overdue; nothing has failed that was taken down.".to_owned());
    }
    if let Some(error) = attempts.last_error.as_ref().filter(|_| attempts.count > 0) {
        lines.push(format!(
            "Last error: {} ({})",
            moment::bounded(&error.message, ERROR_SHOWN),
            error.reason
        ));
    }
    if let Some(at) = attempts.not_before.filter(|at| *at > now) {
        lines.push(format!("Next attempt: {}", stamp(at)));
    }
    if severity >= Severity::Warning
        && let Some(name) = subject.names.first()
    {
        let name = name.to_string();
        let host = name.strip_prefix("*.").unwrap_or(&name);
        lines.push(format!("What to do: tidegate doctor {host}"));
    }
    Notice {
        subject: subject.id.to_owned(),
        kind,
        severity,
        title: moment::bounded(title, 400),
        body: lines.join("\n"),
        at: now,
    }
}

fn names(subject: &Subject<'_>) -> String {
    let names: Vec<String> = subject.names.iter().map(ToString::to_string).collect();
    listed(&names)
}

#[cfg(test)]
mod tests;
