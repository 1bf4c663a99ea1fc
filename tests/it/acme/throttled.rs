//! Authorities that ask to wait: 429 and 503 at every step, in both forms of `Retry-After` and in none.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::authority::{Authority, Behaviour};
use super::clock::http_date;
use super::tap::Tap;
use super::{cert, condition, time, wait_for, wait_for_trust};
use crate::support::edge::PATIENCE;
use crate::support::{Edge, eventually, route, route_of};

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const WEEK: Duration = Duration::from_hours(7 * 24);

/// When the next attempt must be.
#[derive(Clone, Copy)]
enum Expected {
    /// This long after the answer.
    In(Duration),
    /// Then, whenever the answer came.
    At(SystemTime),
    /// As if nothing was told: the first step of the schedule, which spreads by a tenth.
    Schedule,
}

/// One way to be told to wait.
struct Case {
    name: &'static str,
    /// Part of the path at which it is told.
    path: &'static str,
    status: u16,
    retry_after: String,
    body: String,
    reason: &'static str,
    expected: Expected,
}

fn limited() -> String {
    json!({"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too much of it"})
        .to_string()
}

fn page() -> String {
    "<html>overloaded</html>".to_owned()
}

/// A whole second, this long from now.
fn later(by: Duration) -> SystemTime {
    let since = (SystemTime::now() + by)
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

fn case(
    (name, path): (&'static str, &'static str),
    (status, retry_after): (u16, &str),
    body: String,
    reason: &'static str,
    expected: Expected,
) -> Case {
    Case {
        name,
        path,
        status,
        retry_after: retry_after.to_owned(),
        body,
        reason,
        expected,
    }
}

/// Every step at which an authority can ask to wait.
fn told() -> Vec<Case> {
    use Expected::{At, In};
    let (two, three) = (later(2 * HOUR), later(3 * HOUR));
    let (two_text, three_text) = (&*http_date(two), &*http_date(three));
    let (empty, limits, down) = (String::new, "RateLimited", "ServerInternal");
    let order = |name| (name, "order-plz");
    let account = |name| (name, "sign-me-up");
    let nonce = |name| (name, "nonce-plz");
    let finalize = |name| (name, "finalize-order");
    vec![
        case(order("a1"), (429, "3600"), limited(), limits, In(HOUR)),
        case(order("a2"), (503, two_text), page(), down, At(two)),
        case(
            account("b1"),
            (429, three_text),
            limited(),
            limits,
            At(three),
        ),
        case(account("b2"), (503, "3600"), page(), down, In(HOUR)),
        case(nonce("c1"), (429, "7200"), empty(), limits, In(2 * HOUR)),
        case(nonce("c2"), (503, two_text), empty(), down, At(two)),
        case(
            finalize("d1"),
            (429, "5400"),
            limited(),
            limits,
            In(90 * MINUTE),
        ),
        case(finalize("d2"), (503, three_text), page(), down, At(three)),
        case(
            ("e1", "dir"),
            (503, "3600"),
            page(),
            "CaUnreachable",
            In(HOUR),
        ),
        case(("e2", "dir"), (429, two_text), page(), limits, At(two)),
    ]
}

/// What no authority can mean.
fn absurd() -> Vec<Case> {
    use Expected::{In, Schedule};
    let (limits, down) = ("RateLimited", "ServerInternal");
    let order = |name| (name, "order-plz");
    let long = "99999999999999999999999";
    let past = "Thu, 01 Jan 1970 00:00:00 GMT";
    vec![
        case(
            order("ten-years"),
            (429, "315360000"),
            limited(),
            limits,
            In(WEEK),
        ),
        case(order("no-number"), (503, long), page(), down, In(WEEK)),
        // A limit without a time is waited for as its kind demands, an hour at least.
        case(order("negative"), (429, "-5"), limited(), limits, In(HOUR)),
        case(order("garbage"), (503, "soon"), page(), down, Schedule),
        case(order("past"), (503, past), page(), down, Schedule),
    ]
}

fn route_to(case: &Case, more: &str) -> String {
    let name = case.name;
    route_of(
        name,
        &format!(
            "
            hostnames: [{name}.example.com{more}]
            tls: {{issuerRef: {{name: {name}}}}}
            rules:
            - backends: [{{address: \"127.0.0.1:9\"}}]
            "
        ),
    )
}

/// An edge with an issuer for each case, each behind a tap of its own.
fn start(authority: &Authority, cases: &[Case]) -> (Edge, Vec<Tap>) {
    let taps: Vec<Tap> = cases.iter().map(|_| Tap::start(authority)).collect();
    let mut builder = authority.edge();
    for (case, tap) in cases.iter().zip(&taps) {
        tap.answer(case.path, case.status, Some(&case.retry_after), &case.body);
        builder = builder.object(Authority::issuer_at(case.name, tap.port, ""));
    }
    let edge = builder.start();
    for case in cases {
        edge.write(&format!("{}.yaml", case.name), &route_to(case, ""));
    }
    (edge, taps)
}

/// When the refused request came, of which there is one only unless none was asked not to come.
#[track_caller]
fn refused_at(case: &Case, tap: &Tap) -> SystemTime {
    let all = tap.exchanges();
    let refused: Vec<_> = all
        .iter()
        .filter(|one| one.path.contains(case.path) && one.status == Some(case.status))
        .collect();
    let again = matches!(case.expected, Expected::Schedule);
    assert!(refused.len() == 1 || again, "{}: {all:?}", case.name);
    refused.last().unwrap().at
}

/// Waits until the status says why nothing is ordered, and when it will be; returns that.
#[track_caller]
fn wait_until_told(edge: &Edge, case: &Case, tap: &Tap) -> SystemTime {
    let name = case.name;
    let message = wait_for(edge, name, "CertificateReady", "False", "OrderFailed");
    assert!(message.contains(case.reason), "{name}: {message}");
    let next = eventually("the next attempt", PATIENCE, || {
        let cert = cert(edge, name);
        match &cert["nextAttempt"] {
            Value::String(_) => Ok(time(&cert["nextAttempt"])),
            _ => Err(cert.to_string()),
        }
    });
    let told = refused_at(case, tap);
    let (earliest, latest) = match case.expected {
        // The answer comes a moment after the request; whole seconds are rounded up.
        Expected::In(wait) => (told + wait, told + wait + Duration::from_secs(10)),
        Expected::At(time) => (time, time),
        Expected::Schedule => (told + MINUTE, told + MINUTE * 11 / 10 + 10 * MINUTE / 60),
    };
    assert!(
        (earliest..=latest).contains(&next),
        "{name}: {next:?} is not within {earliest:?} and {latest:?}: {message}"
    );
    next
}

/// Makes every wait of the stored records one of the past, as if the time had gone by.
fn let_time_pass(state: &Path) {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if ["notBefore", "toldUntil", "until", "lastFailure"].contains(&&**name)
                        && value.is_string()
                    {
                        *value = json!("2026-01-01T00:00:00Z");
                    } else {
                        walk(value);
                    }
                }
            }
            Value::Array(values) => values.iter_mut().for_each(walk),
            _ => {}
        }
    }
    for folder in ["acme/certificate", "acme/ledger"] {
        for entry in fs::read_dir(state.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            walk(&mut record);
            fs::write(&path, record.to_string()).unwrap();
        }
    }
}

#[test]
fn what_the_authority_asks_for_is_waited_for_at_every_step() {
    let Some(authority) = Authority::start(&Behaviour::calm()) else {
        return;
    };
    let cases = told();
    let (mut edge, taps) = start(&authority, &cases);
    let told: Vec<SystemTime> = cases
        .iter()
        .zip(&taps)
        .map(|(case, tap)| wait_until_told(&edge, case, tap))
        .collect();
    let root = authority.root();
    // Neither a new start nor a changed object is a reason to ask earlier.
    edge.start_again();
    for case in &cases {
        let more = format!(", www.{}.example.com", case.name);
        edge.write(&format!("{}.yaml", case.name), &route_to(case, &more));
    }
    for (case, told) in cases.iter().zip(&told) {
        eventually("the new name and the old wait", PATIENCE, || {
            let cert = cert(&edge, case.name);
            let names = cert["names"].as_array().map_or(0, Vec::len);
            match &cert["nextAttempt"] {
                next @ Value::String(_) if names == 2 && time(next) == *told => Ok(()),
                _ => Err(format!("{cert:#}; log:\n{}", edge.log())),
            }
        });
    }
    for (case, tap) in cases.iter().zip(&taps) {
        refused_at(case, tap);
        tap.let_through();
    }
    edge.program().signal("KILL");
    edge.program().wait(PATIENCE);
    for case in &cases {
        edge.write(&format!("{}.yaml", case.name), &route_to(case, ""));
    }
    let_time_pass(&edge.folder().join("state"));
    edge.start_again();
    for (case, tap) in cases.iter().zip(&taps) {
        wait_for_trust(&edge, &root, &format!("{}.example.com", case.name));
        // What was ordered before the wait was taken up again.
        assert_eq!(tap.count("order-plz", 201), 1, "{}", case.name);
        assert_eq!(tap.distinct("certZ", 200), 1, "{}", case.name);
    }
}

#[test]
fn absurd_waits_are_bounded() {
    let Some(authority) = Authority::start(&Behaviour::calm()) else {
        return;
    };
    let cases = absurd();
    let (edge, taps) = start(&authority, &cases);
    // An order that is signed for ever, and that nobody wants to be looked at before the end of time.
    let endless = Tap::start(&authority);
    let processing = json!({
        "status": "processing", "authorizations": [], "finalize": "https://localhost/finalize",
        "identifiers": [{"type": "dns", "value": "endless.example.com"}],
    });
    let never = u64::MAX.to_string();
    endless.answer("my-order", 200, Some(&never), &processing.to_string());
    edge.write(
        "endless-issuer.yaml",
        &Authority::issuer_at("endless", endless.port, ""),
    );
    let endless_case = case(
        ("endless", "my-order"),
        (200, ""),
        String::new(),
        "OrderProcessing",
        Expected::In(WEEK),
    );
    edge.write("endless.yaml", &route_to(&endless_case, ""));
    for (case, tap) in cases.iter().zip(&taps) {
        wait_until_told(&edge, case, tap);
    }
    wait_until_told(&edge, &endless_case, &endless);
    assert!(!edge.log().contains("panicked"), "{}", edge.log());
}

#[test]
fn a_short_wait_is_kept_and_one_order_follows() {
    // So short a life that even the shortest wait counts; half of it is not over within this test.
    let behaviour = Behaviour {
        lifetime: 60,
        ..Behaviour::calm()
    };
    let Some(authority) = Authority::start(&behaviour) else {
        return;
    };
    let tap = Tap::start(&authority);
    let edge = authority
        .edge()
        .object(Authority::issuer_at("any", tap.port, "  default: true\n"))
        .object(route("app", "app.example.com", "127.0.0.1:9"))
        .start();
    wait_for_trust(&edge, &authority.root(), "app.example.com");
    tap.clear();
    tap.answer("order-plz", 429, Some("9"), &limited());
    let state = edge.folder().join("state");
    Edge::run(&[
        "renew",
        "app",
        "--state-dir",
        state.to_str().unwrap_or_default(),
    ]);
    eventually("a refused renewal", PATIENCE, || {
        match condition(&edge, "app", "CertificateReady") {
            // What is served is still good.
            Some((status, _, message)) if message.contains("RateLimited") => {
                assert_eq!(status, "True", "{message}");
                Ok(())
            }
            other => Err(format!("{other:?}; log:\n{}", edge.log())),
        }
    });
    tap.let_through();
    eventually("the renewal", PATIENCE, || {
        match condition(&edge, "app", "CertificateReady") {
            // It is also said while the second attempt is under way.
            Some((_, _, message))
                if message == "valid and served" && tap.count("order-plz", 201) > 0 =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}; log:\n{}", edge.log())),
        }
    });
    let all = tap.exchanges();
    let orders: Vec<_> = all
        .iter()
        .filter(|one| one.path.contains("order-plz"))
        .collect();
    let statuses: Vec<_> = orders.iter().map(|one| one.status).collect();
    assert_eq!(statuses[..2], [Some(429), Some(201)], "{all:?}");
    let waited = orders[1].at.duration_since(orders[0].at).unwrap();
    assert!(waited >= Duration::from_secs(9), "{waited:?}");
}
