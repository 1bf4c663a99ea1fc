//! Lives of certificates, hour by hour: which notices people get.

use super::*;
use crate::plan::moment::parse_rfc3339;
use crate::plan::retry::{Failure, FailureKind, RetryBounds};

fn start() -> SystemTime {
    parse_rfc3339("2026-11-01T00:00:00Z").unwrap()
}

fn hours(count: u64) -> SystemTime {
    start() + Duration::from_secs(count * 3600)
}

fn hosts() -> Vec<HostPattern> {
    vec![
        HostPattern::parse("a.example").unwrap(),
        HostPattern::parse("*.a.example").unwrap(),
    ]
}

const BOUNDS: RetryBounds = RetryBounds {
    failures_per_hour: None,
    told_until: None,
    not_after: None,
    jitter: 0.0,
};

fn fail(attempts: &mut Attempts, now: SystemTime) {
    let failure = Failure {
        kind: FailureKind::Validation,
        reason: "ChallengeFailed".into(),
        message: "the authority could not connect to 192.0.2.1 port 80".into(),
    };
    attempts.failed(failure, &BOUNDS, now);
}

/// Simulates a certificate of `life` hours to its end and beyond; each attempt that is due between
/// `fails_from` and `fails_until` fails. Returns `hour kind severity` of each notice.
fn story(life: u64, renew_at: u64, fails: std::ops::Range<u64>, until: u64) -> Vec<String> {
    let (mut memory, mut attempts, names) = (NoticeMemory::default(), Attempts::default(), hosts());
    let (mut validity, mut renew) = ((start(), hours(life)), hours(renew_at));
    let mut told = Vec::new();
    for hour in 0..until {
        let now = hours(hour);
        if renew <= now && attempts.due(now) {
            if fails.contains(&hour) {
                fail(&mut attempts, now);
            } else {
                attempts.succeeded();
                (validity, renew) = ((now, hours(hour + life)), hours(hour + renew_at));
            }
        }
        let subject = Subject {
            id: "default/blog",
            names: &names,
            issuer: "le",
            validity: Some(validity),
            renew_at: Some(renew),
            attempts: &attempts,
        };
        for notice in memory.due(&[subject], now) {
            told.push(format!(
                "{hour} {} {}",
                notice.kind,
                notice.severity.as_str()
            ));
        }
        // Stored and read again, it is the same.
        let json = serde_json::to_string(&memory).unwrap();
        assert_eq!(serde_json::from_str::<NoticeMemory>(&json).unwrap(), memory);
    }
    told
}

#[test]
fn a_certificate_that_renews_as_planned_is_silent() {
    assert_eq!(story(90 * 24, 60 * 24, 0..0, 400 * 24), [""; 0]);
    assert_eq!(
        story(90 * 24, 70 * 24, 0..0, 400 * 24),
        [""; 0],
        "in its last third, as planned"
    );
    assert_eq!(story(6 * 24, 3 * 24, 0..0, 60 * 24), [""; 0]);
}

#[test]
fn danger_escalates_and_ends() {
    let told = story(90 * 24, 60 * 24, 60 * 24..95 * 24, 100 * 24);
    let stages: Vec<&str> = told
        .iter()
        .map(String::as_str)
        .filter(|told| !told.contains("IssuanceFailing"))
        .collect();
    assert_eq!(
        stages,
        [
            "1440 CertificateExpiring warning",
            "1800 CertificateExpiring error",
            "2052 CertificateExpiring critical",
            "2160 CertificateExpired critical",
            "2280 IssuanceRecovered info",
        ]
    );
    // Between them at most one a day, weekly after a month.
    let times: Vec<u64> = told
        .iter()
        .map(|told| told.split(' ').next().unwrap().parse().unwrap())
        .collect();
    let repeats = told
        .iter()
        .filter(|told| told.contains("IssuanceFailing "))
        .count();
    assert!((25..=30).contains(&repeats), "{repeats}");
    assert_eq!(
        told.iter()
            .filter(|told| told.contains("IssuanceFailingForLong"))
            .count(),
        1
    );
    assert!(
        times
            .windows(2)
            .filter(|pair| pair[1] - pair[0] < 24)
            .count()
            <= 3,
        "{times:?}"
    );
}

#[test]
fn a_short_fault_is_not_worth_a_notice() {
    // A short-lived certificate: half of its life is left, two hours of failures.
    assert_eq!(story(160, 80, 80..82, 100), [""; 0]);
    // One that fails for a day is.
    let told = story(160, 80, 80..106, 150);
    assert_eq!(told.first().unwrap(), "82 IssuanceFailing warning");
    assert_eq!(told.last().unwrap(), "107 IssuanceRecovered info");
}

#[test]
fn a_life_of_hours_is_no_flood_of_notices() {
    // Twelve hours, renewed after six; the renewal at hour 6 fails for three hours.
    let told = story(12, 6, 6..9, 40);
    assert_eq!(
        told,
        ["8 IssuanceFailing warning", "9 IssuanceRecovered info"]
    );
    assert_eq!(
        story(12, 8, 8..10, 40),
        [""; 0],
        "two failures in its last third"
    );
    let told = story(12, 6, 6..14, 40);
    let kinds: Vec<&str> = told
        .iter()
        .map(|told| told.split(' ').nth(1).unwrap())
        .collect();
    assert_eq!(
        kinds,
        ["IssuanceFailing", "CertificateExpired", "IssuanceRecovered"]
    );
}

#[test]
fn an_overdue_renewal_is_told_though_nothing_failed() {
    let (mut memory, attempts, names) = (NoticeMemory::default(), Attempts::default(), hosts());
    let subject = Subject {
        id: "default/blog",
        names: &names,
        issuer: "le",
        validity: Some((start(), hours(2160))),
        renew_at: Some(hours(1440)),
        attempts: &attempts,
    };
    assert!(memory.due(&[subject], hours(1440)).is_empty(), "just due");
    let told = memory.due(&[subject], hours(1442));
    assert_eq!(told.len(), 1);
    assert!(
        told[0].body.contains("The renewal is overdue"),
        "{}",
        told[0].body
    );
    assert!(memory.due(&[subject], hours(1443)).is_empty());
}

#[test]
fn without_any_certificate_failures_are_told() {
    let (mut memory, mut attempts, names) = (NoticeMemory::default(), Attempts::default(), hosts());
    for (minute, expected) in [
        (0, 0),
        (1, 0),
        (3, 1),
        (5, 0),
        (10, 0),
        (1443, 1),
        (1500, 0),
    ] {
        let now = start() + Duration::from_secs(minute * 60);
        fail(&mut attempts, now);
        let subject = Subject {
            id: "default/blog",
            names: &names,
            issuer: "le",
            validity: None,
            renew_at: None,
            attempts: &attempts,
        };
        let told = memory.due(&[subject], now);
        assert_eq!(told.len(), expected, "{minute}: {told:?}");
    }
    // A changed object starts the count over; that is no recovery.
    attempts = Attempts::default();
    let subject = |validity, attempts| Subject {
        id: "default/blog",
        names: &names,
        issuer: "le",
        validity,
        renew_at: None,
        attempts,
    };
    assert!(
        memory
            .due(&[subject(None, &attempts)], hours(26))
            .is_empty()
    );
    let told = memory.due(
        &[subject(Some((hours(26), hours(2000))), &attempts)],
        hours(27),
    );
    assert_eq!(told[0].kind, NoticeKind::Recovered);
    assert_eq!(memory, NoticeMemory::default());
}

#[test]
fn a_notice_says_what_is_needed() {
    let (mut memory, mut attempts, names) = (NoticeMemory::default(), Attempts::default(), hosts());
    fail(&mut attempts, hours(1440));
    fail(&mut attempts, hours(1441));
    let subject = Subject {
        id: "default/blog",
        names: &names,
        issuer: "le",
        validity: Some((start(), hours(2160))),
        renew_at: Some(hours(1440)),
        attempts: &attempts,
    };
    let told = memory.due(&[subject], hours(1441)).remove(0);
    assert_eq!(
        told.title,
        "Certificate for a.example, *.a.example expires in 29 days"
    );
    assert_eq!(
        told.body,
        "Route: default/blog\n\
         Issuer: le\n\
         Expires: 2027-01-30 00:00 UTC\n\
         Failed: 2 times since 2026-12-31 00:00 UTC\n\
         Last error: the authority could not connect to 192.0.2.1 port 80 (ChallengeFailed)\n\
         Next attempt: 2026-12-31 01:02 UTC\n\
         What to do: tidegate doctor a.example"
    );
    // What is no longer wanted is forgotten.
    assert!(memory.due(&[], hours(1442)).is_empty());
    assert_eq!(memory, NoticeMemory::default());
}

#[test]
fn joined_memories_tell_nothing_twice() {
    let told = |hour: u64| {
        let (mut memory, mut attempts, names) =
            (NoticeMemory::default(), Attempts::default(), hosts());
        fail(&mut attempts, hours(60));
        let subject = Subject {
            id: "default/blog",
            names: &names,
            issuer: "le",
            validity: Some((start(), hours(90))),
            renew_at: Some(hours(60)),
            attempts: &attempts,
        };
        let count = |memory: &mut NoticeMemory, now| memory.due(&[subject], now).len();
        assert_eq!(count(&mut memory, hours(hour)), 1);
        let again = move |mut memory: NoticeMemory, hour| {
            let mut attempts = Attempts::default();
            fail(&mut attempts, hours(60));
            let names = hosts();
            let subject = Subject {
                id: "default/blog",
                names: &names,
                issuer: "le",
                validity: Some((start(), hours(90))),
                renew_at: Some(hours(60)),
                attempts: &attempts,
            };
            memory.due(&[subject], hours(hour)).len()
        };
        (memory, again)
    };
    let ((third, again), (sixth, _)) = (told(61), told(76));
    for (mut mine, theirs) in [(third.clone(), &sixth), (sixth.clone(), &third)] {
        mine.merge(theirs);
        assert_eq!(
            again(mine.clone(), 77),
            0,
            "the sixth was told there or here"
        );
        assert_eq!(again(mine, 86), 1, "the twentieth was not");
    }
    assert_eq!(again(third.clone(), 77), 1);
    let mut empty = NoticeMemory::default();
    empty.merge(&sixth);
    assert_eq!(empty, sixth);
}

#[test]
fn a_revocation_is_told_with_its_reason() {
    let (attempts, names) = (Attempts::default(), hosts());
    let subject = Subject {
        id: "default/blog",
        names: &names,
        issuer: "le",
        validity: Some((start(), hours(90 * 24))),
        renew_at: Some(hours(60 * 24)),
        attempts: &attempts,
    };
    let told = Notice::revoked(&subject, Some("keyCompromise"), hours(1));
    assert_eq!(told.kind, NoticeKind::Revoked);
    assert_eq!(told.severity, Severity::Critical);
    assert_eq!(
        told.title,
        "Certificate for a.example, *.a.example is revoked (keyCompromise)"
    );
    assert!(told.body.contains("Issuer: le\n"), "{}", told.body);
    assert!(told.body.ends_with("with a new key."), "{}", told.body);
    let told = Notice::revoked(&subject, None, hours(1));
    assert!(told.title.ends_with(" is revoked"), "{}", told.title);
}
