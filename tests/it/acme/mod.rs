//! Certificates by ACME, against real authorities: Pebble with its faults on, and step-ca.

mod authority;
mod budget;
mod clock;
mod crash;
mod dns;
mod doctor;
mod fallback;
mod folder;
mod full;
mod issue;
mod keys;
mod late;
mod named;
mod notices;
mod refused;
mod renew;
mod revoked;
mod rollback;
mod solvers;
mod take_over;
mod tap;
mod throttled;

use std::time::{Duration, SystemTime};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::program::run;
use crate::support::{Client, Edge, eventually};

/// How long an order may take on a busy machine, faults included.
const ORDER: Duration = Duration::from_mins(2);

/// The status of a route's condition and its message, by the admin API.
fn condition(edge: &Edge, route: &str, kind: &str) -> Option<(String, String, String)> {
    let view = route_view(edge, route)?;
    let conditions = view["conditions"].as_array()?;
    let condition = conditions
        .iter()
        .find(|condition| condition["type"] == kind)?;
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

fn route_view(edge: &Edge, route: &str) -> Option<Value> {
    let reply = edge.admin("/api/v1/routes").ok()?;
    let (_, body) = reply.split_once("\r\n\r\n")?;
    let routes: Value = serde_json::from_str(body).ok()?;
    let route = routes
        .as_array()?
        .iter()
        .find(|view| view["name"] == route)?;
    Some(route.clone())
}

/// What `tidegate certs` says of a route's certificate.
fn cert(edge: &Edge, route: &str) -> Value {
    let state = edge.folder().join("state");
    let (_, text) = run(Edge::command()
        .args(["certs", "--output", "json", "--state-dir"])
        .arg(state));
    let certs: Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let id = format!("default/{route}");
    let all = certs["certificates"].as_array().unwrap();
    let found = all.iter().find(|cert| cert["id"] == *id);
    found.cloned().unwrap_or_default()
}

/// What was found before the last order of a route, as its status shows it: state and message.
fn finding(edge: &Edge, route: &str, check: &str) -> Option<(String, String)> {
    let view = route_view(edge, route)?;
    let findings = view["preflight"].as_array()?;
    let finding = findings.iter().find(|finding| finding["check"] == check)?;
    let text = |field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    Some((text("state"), text("message")))
}

/// Reads a time as statuses and records have it.
fn time(text: &Value) -> SystemTime {
    let text = text.as_str().unwrap_or_else(|| panic!("no time: {text}"));
    let time = OffsetDateTime::parse(text, &Rfc3339);
    time.unwrap_or_else(|error| panic!("{text}: {error}"))
        .into()
}

/// Waits until the condition of the route has this status; returns reason and message.
#[track_caller]
fn wait_for(edge: &Edge, route: &str, kind: &str, status: &str, reason: &str) -> String {
    let what = format!("{kind}={status} {reason} of {route}");
    eventually(&what, ORDER, || match condition(edge, route, kind) {
        Some((found, why, message)) if found == status && why == reason => Ok(message),
        other => Err(format!("{other:?}; log:\n{}", edge.log())),
    })
}

/// Waits until a client that trusts this root is served with a certificate for the host.
#[track_caller]
fn wait_for_trust(edge: &Edge, root: &str, host: &str) {
    let client = Client::new(edge.https, root.as_bytes());
    eventually(&format!("{host} by the authority"), ORDER, || {
        client
            .try_get(host, "/")
            .map(drop)
            .map_err(|error| format!("{error}; log:\n{}", edge.log()))
    });
}
