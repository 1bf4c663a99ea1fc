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
    // Some cases race with the backend's answer: which frame the codec sees first decides about the error
    // that h2spec waits for. A codec that is wrong fails every time.
    let mut reports = Vec::new();
    for _ in 0..3 {
        let port = edge.https.to_string();
        let arguments = ["-h", "localhost", "-p", &port, "-t", "-k", "-o", "5"];
        let (_, text) = run(Command::new(&h2spec).args(arguments));
        let summary = text.lines().rev().find(|line| line.contains(" tests, "));
        let summary = summary.unwrap_or_else(|| panic!("no summary from h2spec:\n{text}"));
        if summary.starts_with("145 tests, 145 passed") {
            return;
        }
        let failed = text
            .lines()
            .filter(|line| line.trim_start().starts_with('×'));
        reports.push(format!(
            "{summary}\n{}",
            failed.collect::<Vec<_>>().join("\n")
        ));
    }
    panic!("{}", reports.join("\n"));
}
