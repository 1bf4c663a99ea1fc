//! `kill -9` at every step of an order: one certificate, no order wasted.

use std::fmt::Write as _;

use super::authority::{Authority, Behaviour};
use super::tap::{Exchange, Tap, When};
use super::wait_for_trust;
use crate::support::{Edge, route};

/// An authority without faults of its own, so that every exchange means something.
fn calm() -> Option<(Authority, Tap)> {
    let authority = Authority::start(&Behaviour {
        bad_nonces: 0,
        reused_authorizations: 0,
        ..Behaviour::default()
    })?;
    let tap = Tap::start(&authority);
    Some((authority, tap))
}

fn edge(authority: &Authority, tap: &Tap) -> Edge {
    authority
        .edge()
        .object(Authority::issuer_at(
            "tapped",
            tap.port,
            "  default: true\n",
        ))
        .start()
}

/// What became of one kill.
struct Outcome {
    at: String,
    orders: usize,
    certificates: usize,
}

fn kill_at(authority: &Authority, tap: &Tap, index: usize, when: When, name: &str) -> Outcome {
    let mut edge = edge(authority, tap);
    tap.clear();
    let pid = edge.program().pid();
    tap.act_at(index, when, move || {
        let status = std::process::Command::new("kill")
            .args(["-KILL", &pid.to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    });
    let host = format!("{name}.example.com");
    edge.write("app.yaml", &route("app", &host, "127.0.0.1:9"));
    edge.program().wait(super::ORDER);
    let at = tap.exchanges().get(index).map(|exchange: &Exchange| {
        let kind = exchange.path.split('/').nth(1).unwrap_or_default();
        format!("{when:?} {} {kind}", exchange.method)
    });
    edge.start_again();
    wait_for_trust(&edge, &authority.root(), &host);
    Outcome {
        at: at.unwrap_or_default(),
        orders: tap.count("order-plz", 201),
        // A killed client takes the tap's note of the exchange with it, so what is fetched is counted.
        certificates: tap.distinct("certZ", 200),
    }
}

#[test]
fn a_kill_at_any_step_costs_no_order() {
    let Some((authority, tap)) = calm() else {
        return;
    };
    // Undisturbed, to learn the steps.
    let undisturbed = edge(&authority, &tap);
    undisturbed.write("app.yaml", &route("app", "calm.example.com", "127.0.0.1:9"));
    wait_for_trust(&undisturbed, &authority.root(), "calm.example.com");
    let steps: Vec<Exchange> = tap.exchanges();
    drop(undisturbed);
    assert!(steps.len() > 8, "{steps:?}");
    // Polls repeat the same step; each kind of exchange is met once, and what changes something twice.
    let mut seen = Vec::new();
    let mut kills = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let kind = (
            step.method.clone(),
            step.path.split('/').nth(1).map(str::to_owned),
        );
        if seen.contains(&kind) {
            continue;
        }
        seen.push(kind);
        kills.push((index, When::After));
        if step.path.contains("order-plz") || step.path.contains("finalize-order") {
            kills.push((index, When::Before));
        }
    }
    let mut table = String::new();
    let mut wasted = Vec::new();
    for (number, (index, when)) in kills.into_iter().enumerate() {
        let outcome = kill_at(&authority, &tap, index, when, &format!("kill{number}"));
        writeln!(
            table,
            "{:<28} orders {} certificates {}",
            outcome.at, outcome.orders, outcome.certificates
        )
        .unwrap();
        // Killed between the authority's answer and its arrival, nobody can know of the order. Let's
        // Encrypt hands out the same order again for the same names; Pebble makes another.
        // And once it was told to look, it looks while nobody is there to answer.
        let unknowable = outcome.at.starts_with("After POST order-plz")
            || outcome.at.starts_with("After POST chalZ");
        let allowed = if unknowable { 1..=2 } else { 1..=1 };
        if outcome.certificates != 1 || !allowed.contains(&outcome.orders) {
            wasted.push(outcome.at);
        }
    }
    eprintln!("{table}");
    assert!(wasted.is_empty(), "wasted at {wasted:?}:\n{table}");
}
