//! The conformance suite for HTTP/2 (RFC 9113, RFC 7541), run against the edge over TLS.

use std::process::Command;

use crate::support::program::{run, tools};
use crate::support::{Edge, Origin, missing, route};

#[test]
fn h2spec_passes_every_case() {
    let h2spec = tools().join("bin/h2spec");
    if missing(&[&h2spec]) {
        return;
    }
    let origin = Origin::text("hello");
    // h2spec sends no SNI that a route could know but the name it is given.
    let edge = Edge::start(&[route("spec", "localhost", origin.address())]);
    edge.wait_for_status("localhost", "/", 200);
    let (_, text) = run(Command::new(h2spec).args([
        "-h",
        "localhost",
        "-p",
        &edge.https.to_string(),
        "-t",
        "-k",
        "-o",
        "5",
    ]));
    let summary = text
        .lines()
        .rev()
        .find(|line| line.contains(" tests, "))
        .unwrap_or_else(|| panic!("no summary from h2spec:\n{text}"));
    let failures: Vec<_> = text
        .lines()
        .filter(|line| line.trim_start().starts_with('×'))
        .collect();
    assert!(
        summary.starts_with("145 tests, 145 passed"),
        "{summary}\n{}",
        failures.join("\n")
    );
}
