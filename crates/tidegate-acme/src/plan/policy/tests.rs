//! The chain of triggers and the choice of the issuer as tables.

use std::time::Duration;

use super::*;
use crate::plan::moment::{DAY, HOUR, parse_rfc3339};

fn start() -> SystemTime {
    parse_rfc3339("2026-11-01T00:00:00Z").unwrap()
}

fn names(list: &str) -> Vec<HostPattern> {
    list.split_whitespace()
        .map(|name| HostPattern::parse(name).unwrap())
        .collect()
}

fn renewal(at: SystemTime, reason: RenewReason) -> Renewal {
    Renewal {
        at,
        reason,
        poll_ari_at: None,
        late: None,
        ari_ignored: None,
    }
}

#[test]
fn the_first_trigger_decides() {
    let (wants, has) = (
        names("a.example b.a.example"),
        names("a.example *.a.example z.example"),
    );
    let lifetime = 90 * DAY;
    let due = start() + 60 * DAY;
    let plan = renewal(due, RenewReason::TwoThirds { lifetime });
    let revoked = renewal(start(), RenewReason::Revoked);
    let wanted = Wanted {
        names: &wants,
        issuer: "le",
        fallback: Some("zero"),
        key_type: "P256",
        profile: Some("tlsserver"),
        forced: false,
    };
    let held = Held {
        names: &has,
        issuer: "le",
        key_type: "P256",
        profile: Some("tlsserver"),
        renewal: &plan,
    };
    let (star, other) = (names("*.b.example"), names("a.example c.example"));
    let forced = Wanted {
        forced: true,
        ..wanted
    };
    let good = Stored::Certificate(held);
    let day = start() + DAY;
    for (name, wanted, stored, now, expected) in [
        (
            "nothing there",
            wanted,
            Stored::Nothing,
            day,
            "NoCertificate",
        ),
        (
            "unusable",
            wanted,
            Stored::Unusable {
                why: "the key does not match",
            },
            day,
            "Unreadable",
        ),
        ("all is well", wanted, good, day, ""),
        (
            "a further name is no reason",
            Wanted {
                names: &wants[..1],
                ..wanted
            },
            good,
            day,
            "",
        ),
        (
            "a missing name",
            Wanted {
                names: &other,
                ..wanted
            },
            good,
            day,
            "NamesChanged",
        ),
        (
            "a wildcard is not covered by names",
            Wanted {
                names: &star,
                ..wanted
            },
            good,
            day,
            "NamesChanged",
        ),
        (
            "another issuer",
            Wanted {
                issuer: "other",
                fallback: None,
                ..wanted
            },
            good,
            day,
            "IssuerChanged",
        ),
        (
            "from the fallback",
            wanted,
            Stored::Certificate(Held {
                issuer: "zero",
                profile: None,
                ..held
            }),
            day,
            "",
        ),
        (
            "the fallback was taken away",
            Wanted {
                fallback: None,
                ..wanted
            },
            Stored::Certificate(Held {
                issuer: "zero",
                ..held
            }),
            day,
            "IssuerChanged",
        ),
        (
            "another key type",
            Wanted {
                key_type: "P384",
                ..wanted
            },
            good,
            day,
            "KeyTypeChanged",
        ),
        (
            "another profile",
            Wanted {
                profile: None,
                ..wanted
            },
            good,
            day,
            "ProfileChanged",
        ),
        (
            "revoked",
            wanted,
            Stored::Certificate(Held {
                renewal: &revoked,
                ..held
            }),
            day,
            "Revoked",
        ),
        ("due", wanted, good, due, "TwoThirds"),
        (
            "due a second later",
            wanted,
            good,
            due - Duration::from_secs(1),
            "",
        ),
        ("asked for", forced, good, day, "Forced"),
        ("asked for when due", forced, good, due, "TwoThirds"),
        (
            "names before all else",
            Wanted {
                names: &other,
                issuer: "other",
                ..forced
            },
            good,
            due,
            "NamesChanged",
        ),
    ] {
        let decision = decide(&wanted, stored, now);
        let reason = match &decision {
            Decision::Issue(reason) => reason.reason(),
            Decision::Wait { until, .. } => {
                assert_eq!(*until, due, "{name}");
                ""
            }
        };
        assert_eq!(reason, expected, "{name}");
    }
    let Decision::Issue(reason) = decide(
        &Wanted {
            names: &other,
            ..wanted
        },
        good,
        day,
    ) else {
        panic!("waits")
    };
    assert_eq!(
        reason.to_string(),
        "the certificate does not cover c.example"
    );
}

#[test]
fn the_fallback_stands_in_when_it_must() {
    use FailureKind::{Local, RateLimited, Unavailable, Validation};
    let day = |n: u64| start() + Duration::from_secs(n * 86_400);
    let life = Some((start(), day(90)));
    let base = FallbackInput {
        fallback: Some("zero"),
        failures: 0,
        last_failure: None,
        validity: life,
        first_not_before: None,
        now: day(60),
    };
    let failed = |failures, kind, days| FallbackInput {
        failures,
        last_failure: Some(kind),
        now: day(days),
        ..base
    };
    let without = |failures, kind| FallbackInput {
        validity: None,
        ..failed(failures, kind, 1)
    };
    let limited = |until, validity, now| FallbackInput {
        first_not_before: Some(until),
        validity,
        now,
        ..base
    };
    for (name, input, stands_in) in [
        ("nothing failed", base, false),
        (
            "nothing failed, even late",
            FallbackInput {
                now: day(89),
                ..base
            },
            false,
        ),
        (
            "there is none",
            FallbackInput {
                fallback: None,
                ..failed(99, Unavailable, 89)
            },
            false,
        ),
        ("much time left", failed(99, Unavailable, 59), false),
        ("a third left, twice", failed(2, Unavailable, 61), false),
        (
            "a third left, three times",
            failed(3, Unavailable, 61),
            true,
        ),
        (
            "a third left, three times refused",
            failed(3, Validation, 61),
            true,
        ),
        ("a sixth left, once", failed(1, Unavailable, 75), true),
        ("a sixth left, our own fault", failed(9, Local, 89), false),
        ("expired, once", failed(1, Validation, 91), true),
        ("expired, unreachable", failed(1, Unavailable, 91), true),
        ("no certificate, unreachable", without(1, Unavailable), true),
        ("no certificate, twice", without(2, Validation), false),
        ("no certificate, three times", without(3, Validation), true),
        ("no certificate, our own fault", without(30, Local), false),
        (
            "no certificate, told to wait",
            without(3, RateLimited),
            true,
        ),
        (
            "limits until tomorrow",
            limited(day(62), life, day(61)),
            false,
        ),
        (
            "limits into the last sixth",
            limited(day(80), life, day(74)),
            true,
        ),
        ("limits of the past", limited(day(80), life, day(81)), false),
        (
            "limits for two hours, no certificate",
            limited(day(1) + 2 * HOUR, None, day(1)),
            true,
        ),
        (
            "limits for a minute, no certificate",
            limited(day(1) + HOUR / 60, None, day(1)),
            false,
        ),
    ] {
        let choice = issuer(&input);
        assert_eq!(
            choice != IssuerChoice::First,
            stands_in,
            "{name}: {choice:?}"
        );
        if let IssuerChoice::Fallback { issuer, .. } = choice {
            assert_eq!(issuer, "zero");
        }
    }
}
