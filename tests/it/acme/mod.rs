//! Certificates by ACME, against real authorities: Pebble with its faults on, and step-ca.

mod authority;
mod crash;
mod dns;
mod doctor;
mod fallback;
mod folder;
mod issue;
mod named;
mod notices;
mod refused;
mod renew;
mod rollback;
mod solvers;
mod take_over;
mod tap;

use std::time::Duration;

use serde_json::Value;

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
