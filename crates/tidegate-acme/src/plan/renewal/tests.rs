//! Renewal times as tables: hours after the start of a certificate in, what happens then out.

use std::time::{Duration, SystemTime};

use super::*;

const H: u64 = 3600;
const D: u64 = 24 * H;

fn start() -> SystemTime {
    moment::parse_rfc3339("2026-11-01T00:00:00Z").unwrap()
}

fn at(seconds: u64) -> SystemTime {
    start() + Duration::from_secs(seconds)
}

fn input(lifetime: u64, now: u64) -> RenewalInput<'static> {
    RenewalInput {
        not_before: start(),
        not_after: at(lifetime),
        ari: None,
        ask_ari: false,
        revoked: false,
        jitter: 0.5,
        check_interval: Duration::from_secs(600),
        awake_since: start(),
        now: at(now),
    }
}

fn offset(time: SystemTime) -> i64 {
    let seconds = between(start(), time).as_secs();
    let earlier = between(time, start()).as_secs();
    i64::try_from(seconds).unwrap() - i64::try_from(earlier).unwrap()
}

#[test]
fn the_lifetime_decides_without_ari() {
    for (lifetime, jitter, expected, reason) in [
        (90 * D, 0.5, 60 * D, "TwoThirds"),
        (90 * D, 0.0, 60 * D - 90 * D / 40, "TwoThirds"),
        (45 * D, 0.5, 30 * D, "TwoThirds"),
        (10 * D, 0.5, 160 * H, "TwoThirds"),
        (160 * H, 0.5, 80 * H, "HalfLife"),
        (6 * D, 0.0, 72 * H - 144 * H / 40, "HalfLife"),
        (300, 0.5, 150, "HalfLife"),
        (398 * D, 0.5, 398 * D * 2 / 3, "TwoThirds"),
    ] {
        let plan = renewal(&RenewalInput {
            jitter,
            ..input(lifetime, 1)
        });
        assert_eq!(plan.reason.reason(), reason, "{lifetime} {jitter}");
        let difference = offset(plan.at) - i64::try_from(expected).unwrap();
        assert!(
            (-1..=1).contains(&difference),
            "{lifetime} {jitter}: {difference}"
        );
        assert_eq!(plan.at, truncated(plan.at), "whole seconds");
        assert_eq!(plan.poll_ari_at, None);
    }
}

#[test]
fn every_jitter_stays_within_the_life() {
    for lifetime in [60, 300, H, D, 6 * D, 45 * D, 90 * D] {
        for jitter in [0.0, 0.25, 0.999, 1.0, f64::NAN, -3.0, 9.0] {
            let plan = renewal(&RenewalInput {
                jitter,
                ..input(lifetime, 0)
            });
            assert!(plan.at > at(lifetime / 3), "{lifetime} {jitter}");
            assert!(plan.at < at(lifetime * 3 / 4), "{lifetime} {jitter}");
        }
    }
}

#[test]
fn the_plan_does_not_move_while_time_passes() {
    for lifetime in [300, 6 * D, 90 * D] {
        let first = renewal(&input(lifetime, 0));
        for now in [lifetime / 10, lifetime / 3, lifetime / 2, lifetime * 3 / 4] {
            assert_eq!(renewal(&input(lifetime, now)), first, "{lifetime} at {now}");
        }
    }
}

#[test]
fn the_end_of_life_overrules_everything() {
    let window = AriWindow {
        start: at(89 * D),
        end: at(89 * D + 12 * H),
    };
    let late_ari = AriState::answered(window, None, None, at(80 * D));
    for (now, revoked, interval, reason) in [
        (70 * D, true, 600, "Revoked"),
        (85 * D, false, 600, "Emergency"), // announced: not after 19/20
        (86 * D, false, 600, "Emergency"), // past 19/20
        (90 * D, true, 600, "Expired"),
        (200 * D, false, 600, "Expired"),
        (88 * D + 20 * H, false, 600, "Emergency"),
        (80 * D, false, 3 * D, "Emergency"), // fewer than five looks left
    ] {
        let plan = renewal(&RenewalInput {
            revoked,
            ari: Some(&late_ari),
            ask_ari: true,
            check_interval: Duration::from_secs(interval),
            ..input(90 * D, now)
        });
        assert_eq!(plan.reason.reason(), reason, "at {now}");
        if now != 85 * D {
            assert_eq!(plan.at, at(now), "at {now}");
        }
    }
    // Announced early: the window lies past 19/20 of the life, so the plan is 19/20.
    let plan = renewal(&RenewalInput {
        ari: Some(&late_ari),
        ask_ari: true,
        ..input(90 * D, 10 * D)
    });
    assert_eq!(
        (offset(plan.at), plan.reason.reason()),
        (85 * 86_400 + 43_200, "Emergency")
    );
    // Five looks of ten minutes are more than a five-minute certificate has: it is not renewed at once.
    assert_eq!(offset(renewal(&input(300, 1)).at), 150);
}

#[test]
fn ari_decides_where_it_makes_sense() {
    type Case = (
        &'static str,
        i64,
        i64,
        Option<AriFailure>,
        &'static str,
        i64,
    );
    let cases: &[Case] = &[
        ("a window later than two thirds", 65, 67, None, "Ari", 66),
        ("a window earlier than two thirds", 20, 22, None, "Ari", 21),
        ("a window in the past means now", -2, -1, None, "Ari", 0),
        (
            "an inverted window is ignored",
            22,
            20,
            None,
            "TwoThirds",
            60,
        ),
        ("an empty window is ignored", 20, 20, None, "TwoThirds", 60),
        (
            "a window after the end is ignored",
            91,
            92,
            None,
            "TwoThirds",
            60,
        ),
        (
            "a window of another age is ignored",
            -9000,
            9000,
            None,
            "TwoThirds",
            60,
        ),
        (
            "an old later window does not postpone while the authority is away",
            65,
            67,
            Some(AriFailure::Unavailable),
            "TwoThirds",
            60,
        ),
        (
            "an old earlier window still counts",
            20,
            22,
            Some(AriFailure::Unavailable),
            "Ari",
            21,
        ),
        (
            "also after garbage",
            20,
            22,
            Some(AriFailure::Malformed),
            "Ari",
            21,
        ),
        (
            "not when it is unsupported",
            20,
            22,
            Some(AriFailure::Unsupported),
            "TwoThirds",
            60,
        ),
    ];
    let day = |days: i64| {
        let by = Duration::from_secs(days.unsigned_abs() * D);
        if days < 0 { start() - by } else { start() + by }
    };
    for (name, from, to, failure, reason, expected) in cases {
        let window = AriWindow {
            start: day(*from),
            end: day(*to),
        };
        let mut state = AriState::answered(window, Some("https://ca/why"), None, at(D));
        if let Some(failure) = failure {
            state = AriState::failed(Some(&state), *failure, None, at(2 * D));
        }
        let plan = renewal(&RenewalInput {
            ari: Some(&state),
            ask_ari: true,
            ..input(90 * D, 3 * D)
        });
        assert_eq!(plan.reason.reason(), *reason, "{name}");
        if *expected == 0 {
            assert!(plan.at <= at(3 * D), "{name}");
        } else {
            assert_eq!(plan.at, day(*expected), "{name}");
        }
        assert_eq!(
            plan.ari_ignored.is_some(),
            name.ends_with("is ignored"),
            "{name}"
        );
        // Told not to ask, nothing of it counts.
        let plan = renewal(&RenewalInput {
            ari: Some(&state),
            ..input(90 * D, 3 * D)
        });
        assert_eq!(
            (plan.at, plan.reason.reason()),
            (day(60), "TwoThirds"),
            "{name}"
        );
    }
}

#[test]
fn ari_is_asked_as_told_within_bounds() {
    use AriFailure::{Malformed, Unavailable, Unsupported};
    let window = AriWindow {
        start: at(60 * D),
        end: at(62 * D),
    };
    let answered =
        |wait: Option<u64>| AriState::answered(window, None, wait.map(Duration::from_secs), at(D));
    let failed = |failure, times: u32, wait: Option<u64>| {
        let mut state = None;
        for _ in 0..times {
            state = Some(AriState::failed(
                state.as_ref(),
                failure,
                wait.map(Duration::from_secs),
                at(D),
            ));
        }
        state.unwrap()
    };
    for (name, lifetime, state, expected) in [
        ("no Retry-After", 90 * D, answered(None), 6 * H),
        ("as told", 90 * D, answered(Some(8 * H)), 8 * H),
        ("not faster than hourly", 90 * D, answered(Some(1)), H),
        ("at least weekly", 90 * D, answered(Some(900 * D)), 7 * D),
        (
            "short-lived: a tenth of what is left",
            6 * D,
            answered(Some(2 * D)),
            12 * H,
        ),
        ("one day", D + 3 * H, answered(None), 18 * 60),
        (
            "unsupported: daily",
            90 * D,
            failed(Unsupported, 1, None),
            D,
        ),
        (
            "unavailable: soon",
            90 * D,
            failed(Unavailable, 1, None),
            600,
        ),
        (
            "unavailable again: less soon",
            90 * D,
            failed(Unavailable, 3, None),
            2400,
        ),
        (
            "unavailable for long",
            90 * D,
            failed(Unavailable, 40, None),
            6 * H,
        ),
        (
            "unavailable, with a wish",
            90 * D,
            failed(Unavailable, 1, Some(H)),
            H,
        ),
        ("malformed", 90 * D, failed(Malformed, 1, None), 6 * H),
    ] {
        let plan = renewal(&RenewalInput {
            ari: Some(&state),
            ask_ari: true,
            jitter: 0.0,
            ..input(lifetime, D)
        });
        let poll = plan
            .poll_ari_at
            .unwrap_or_else(|| panic!("{name}: {plan:?}"));
        assert_eq!(
            offset(poll) - 86_400,
            i64::try_from(expected).unwrap(),
            "{name}"
        );
    }
    let minutes = AriState::answered(window, None, None, start());
    let plan = renewal(&RenewalInput {
        ari: Some(&minutes),
        ask_ari: true,
        ..input(300, 1)
    });
    assert_eq!(
        plan.poll_ari_at,
        Some(at(60)),
        "never more than once a minute"
    );
    let never = renewal(&RenewalInput {
        ask_ari: true,
        ..input(90 * D, D)
    });
    assert_eq!(never.poll_ari_at, Some(at(D)), "never asked: now");
}

#[test]
fn a_machine_that_was_off_catches_up_spread() {
    let off = |jitter| {
        renewal(&RenewalInput {
            awake_since: at(70 * D),
            jitter,
            ..input(90 * D, 70 * D + 5)
        })
    };
    let (first, last) = (off(0.0), off(0.99));
    assert_eq!(first.at, at(70 * D));
    assert!(first.late.unwrap() > Duration::from_secs(10 * D));
    assert!(last.at > first.at && last.at <= at(70 * D + 300));
    // Time passing does not push it away.
    let later = renewal(&RenewalInput {
        awake_since: at(70 * D),
        jitter: 0.99,
        ..input(90 * D, 70 * D + 900)
    });
    assert_eq!(later.at, last.at);
    // Late by less than one look is not late.
    let plan = renewal(&RenewalInput {
        awake_since: at(60 * D + 300),
        ..input(90 * D, 60 * D + 301)
    });
    assert_eq!((plan.at, plan.late), (at(60 * D), None));
}

#[test]
fn a_wrong_clock_is_found() {
    let now = at(30 * D);
    let at_date = |offset: i64| {
        let by = Duration::from_secs(offset.unsigned_abs());
        Some((if offset < 0 { now - by } else { now + by }, now))
    };
    for (name, not_before, date, expected) in [
        ("fine", Some(start()), at_date(2), None),
        ("just within tolerance", Some(start()), at_date(-300), None),
        (
            "behind the authority",
            Some(start()),
            at_date(301),
            Some((false, 301)),
        ),
        (
            "ahead of the authority",
            None,
            at_date(-7200),
            Some((true, 7200)),
        ),
        (
            "certificate not valid yet",
            Some(now + HOUR),
            None,
            Some((false, 3600)),
        ),
        (
            "a certificate of this second",
            Some(now + Duration::from_secs(2)),
            None,
            None,
        ),
        ("nothing to compare with", None, None, None),
    ] {
        let found = clock_skew(not_before, date, now);
        assert_eq!(
            found.map(|skew| (skew.ahead, skew.by.as_secs())),
            expected,
            "{name}"
        );
    }
    let skew = clock_skew(None, at_date(-7200), now).unwrap();
    assert_eq!(skew.corrected(now), now - 2 * HOUR);
    assert!(
        skew.to_string()
            .starts_with("this machine's clock is 2 hours ahead of the authority's")
    );
}

#[test]
fn every_reason_has_a_sentence() {
    let window = AriWindow {
        start: at(0),
        end: at(H),
    };
    for (reason, sentence) in [
        (
            RenewReason::NamesChanged {
                missing: (0..7).map(|n| format!("{n}.example")).collect(),
            },
            "the certificate does not cover 0.example, 1.example, 2.example, 3.example, 4.example and 2 more",
        ),
        (
            RenewReason::ProfileChanged {
                from: None,
                to: Some("shortlived".into()),
            },
            "the certificate was ordered with no profile, profile \"shortlived\" is asked for",
        ),
        (
            RenewReason::Ari {
                window,
                explanation_url: Some("https://ca/why".into()),
            },
            "the authority suggests to renew between 2026-11-01 00:00 UTC and 2026-11-01 01:00 UTC (https://ca/why)",
        ),
        (
            RenewReason::TwoThirds {
                lifetime: Duration::from_secs(90 * D),
            },
            "two thirds of the certificate's life of 90 days are over",
        ),
    ] {
        assert_eq!(reason.to_string(), sentence);
    }
}

#[test]
fn ari_state_survives_its_json() {
    let state = AriState::answered(
        AriWindow {
            start: at(0),
            end: at(H),
        },
        Some("https://ca/why"),
        Some(HOUR),
        at(5),
    );
    let json = serde_json::to_value(&state).unwrap();
    assert_eq!(json["window"]["start"], "2026-11-01T00:00:00Z");
    assert_eq!(json["retryAfterSeconds"], 3600);
    assert_eq!(serde_json::from_value::<AriState>(json).unwrap(), state);
    let old = r#"{"fetchedAt":"2026-11-01T00:00:00Z","of the future":1}"#;
    assert_eq!(serde_json::from_str::<AriState>(old).unwrap().failures, 0);
}
