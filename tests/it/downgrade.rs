//! HTTP/2 requests that could become another request, or two, when they are sent on as HTTP/1.1.
//!
//! The cases are in `real/h2_cases.py`, because they need a client that can send what no library for
//! honest clients lets out. The judge of what reached the origin is that of `desync.rs`.

use std::process::Command;

use crate::desync::conclude;
use crate::support::program::{python, real_file, succeed};
use crate::support::raw::RawOrigin;
use crate::support::{Edge, missing, route};

const HOST: &str = "raw.test";

#[test]
fn no_http2_request_changes_on_its_way_down_to_http1() {
    let python = python("python");
    if missing(&[&python]) {
        return;
    }
    let origin = RawOrigin::recording();
    let edge = Edge::start(&[route("raw", HOST, origin.address())]);
    edge.wait_for_status(HOST, "/ready", 200);
    let text = succeed(
        Command::new(python)
            .arg(real_file("h2_cases.py"))
            .arg(edge.https.to_string())
            .arg(edge.ca_file())
            .arg(HOST),
    );
    let seen = origin.seen();
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in text.lines() {
        let [name, fate, outcome] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line:?} in:\n{text}");
        };
        count += 1;
        let own = format!(" /{name}");
        let reached = seen
            .iter()
            .filter(|seen| {
                seen.line()
                    .split(['?', '\t'])
                    .any(|part| part.trim_end_matches(" HTTP/1.1").ends_with(&own))
            })
            .count();
        let status = outcome.parse::<u16>().ok();
        let refused = reached == 0
            && (matches!(outcome, "reset" | "closed")
                || status.is_some_and(|status| status >= 400));
        let forwarded = reached == 1 && status == Some(200);
        let right = match fate {
            "refused" => refused,
            "forwarded" => forwarded,
            _ => refused || forwarded,
        };
        if !right {
            wrong.push(format!(
                "{name}: must be {fate}, was {outcome}, the origin saw it {reached} times"
            ));
        }
    }
    assert!(count >= 60, "only {count} cases ran:\n{text}");
    conclude(&origin, wrong, count);
}
