//! A clock that is not the authority's: told, and no order while a new certificate would not be valid by it.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::macros::format_description;

use super::authority::{Authority, Behaviour};
use super::tap::Tap;
use super::{finding, wait_for, wait_for_trust};
use crate::support::program::run;
use crate::support::{Edge, route_of};

/// As `Date` and `Retry-After` have it (RFC 9110 §5.6.7).
pub(super) fn http_date(time: SystemTime) -> String {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    OffsetDateTime::from(time).format(format).unwrap()
}

fn route(name: &str) -> String {
    route_of(
        name,
        &format!(
            "
            hostnames: [{name}.example.com]
            tls: {{issuerRef: {{name: {name}}}}}
            rules:
            - backends: [{{address: \"127.0.0.1:9\"}}]
            "
        ),
    )
}

fn doctor(edge: &Edge, host: &str) -> (bool, String) {
    run(Edge::command()
        .args(["doctor", host])
        .arg(edge.objects())
        .arg("--state-dir")
        .arg(edge.folder().join("state")))
}

#[test]
fn a_clock_that_differs_from_the_authoritys_is_told() {
    let Some(authority) = Authority::start(&Behaviour::calm()) else {
        return;
    };
    let hours = |hours: u64| Duration::from_hours(hours);
    let now = SystemTime::now();
    let (hour, ahead, behind) = (
        Tap::start(&authority),
        Tap::start(&authority),
        Tap::start(&authority),
    );
    hour.set_header("", "date", &http_date(now + hours(3)));
    ahead.set_header("", "date", &http_date(now - hours(72)));
    behind.set_header("", "date", &http_date(now + hours(72)));
    let edge = authority
        .edge()
        .object(Authority::issuer_at("hours", hour.port, ""))
        .object(Authority::issuer_at("ahead", ahead.port, ""))
        .object(Authority::issuer_at("behind", behind.port, ""))
        .object(route("hours"))
        .object(route("ahead"))
        .object(route("behind"))
        .start();
    let root = authority.root();
    // A few hours are said, and are no reason to be without a certificate.
    wait_for_trust(&edge, &root, "hours.example.com");
    wait_for(
        &edge,
        "hours",
        "CertificateReady",
        "True",
        "CertificateReady",
    );
    let (state, message) = finding(&edge, "hours", "Clock").unwrap();
    assert_eq!(state, "Warning", "{message}");
    assert!(message.contains("behind that of hours"), "{message}");
    for (name, words) in [("ahead", "ahead of that of"), ("behind", "behind that of")] {
        let message = wait_for(&edge, name, "CertificateReady", "False", "OrderFailed");
        assert!(message.contains("ClockSkew"), "{name}: {message}");
        assert!(message.contains(words), "{name}: {message}");
        assert!(message.contains("timedatectl"), "{name}: {message}");
        assert_eq!(finding(&edge, name, "Clock").unwrap().0, "Blocking");
        let (ok, text) = doctor(&edge, &format!("{name}.example.com"));
        assert!(!ok && text.contains(words), "{name}: {text}");
    }
    for tap in [&ahead, &behind] {
        assert_eq!(tap.count("order-plz", 201), 0, "{:?}", tap.exchanges());
        tap.let_through();
    }
    // The clock was set right: what the authority said before does not count any more.
    let state = edge.folder().join("state");
    for name in ["ahead", "behind"] {
        Edge::run(&[
            "renew",
            name,
            "--state-dir",
            state.to_str().unwrap_or_default(),
        ]);
        wait_for_trust(&edge, &root, &format!("{name}.example.com"));
    }
}
