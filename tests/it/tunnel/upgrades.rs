//! An edge that is replaced while its agents are connected: in place, and by an end and a new start.

use std::time::Instant;

use super::life::{Life, Load};
use super::service::Service;
use super::{APP, Pair, links};
use crate::support::edge::PATIENCE;
use crate::support::{eventually, missing};

#[test]
fn an_edge_is_upgraded_in_place_under_load_and_nobody_notices() {
    if missing(&["curl"]) {
        return;
    }
    let service = Service::start();
    // Whoever still downloads then would be cut; on a busy machine this test may take that long.
    let mut pair = Pair::with(&service.url(), |edge| edge.arg("--drain-timeout").arg("3m"));
    let old = pair.edge.program().pid();
    let mut life = Life::begin(&pair.edge);
    pair.edge.program().signal("USR2");
    let begin = Instant::now();
    eventually("the agent's links to the new process", PATIENCE, || {
        let (new, links) = (pair.edge.successor()?, links(&pair.edge).len());
        if new != old && links == 2 {
            Ok(())
        } else {
            Err(format!("process {new}, {links} links"))
        }
    });
    println!(
        "two links to the new process {:?} after the signal",
        begin.elapsed()
    );
    life.goes_on();
    life.goes_on();
    assert!(
        pair.edge.program().ended().is_none(),
        "the old process left its visitors: {}",
        pair.edge.log()
    );
    life.finish_long_ones(|| service.release());
    let status = pair.edge.program().wait(PATIENCE);
    assert!(status.success(), "{status}: {}", pair.edge.log());
    life.end("the edge was upgraded in place");
    assert_eq!(links(&pair.edge).len(), 2);
}

#[test]
fn an_edge_that_ends_and_starts_again_has_its_agents_back() {
    let service = Service::start();
    let mut pair = Pair::start(&service.url());
    let mut load = Load::start(&pair.edge.client());
    load.some(25);
    pair.edge.program().signal("TERM");
    let status = pair.edge.program().wait(PATIENCE);
    assert!(status.success(), "{status}: {}", pair.edge.log());
    let (sent, failed) = load.end();
    // Who finds no edge is refused by the system, and that is all that may happen to anybody.
    let broken: Vec<_> = failed
        .iter()
        .filter(|error| !error.contains("refused"))
        .collect();
    println!(
        "{sent} requests until the edge was gone, {} found it gone",
        failed.len()
    );
    assert!(broken.is_empty(), "{broken:?}");
    let begin = Instant::now();
    pair.edge.start_again();
    let ready = begin.elapsed();
    // The first visitors wait for the agent instead of being sent away.
    let reply = pair.edge.get(APP, "/page");
    println!(
        "ready after {ready:?}, the first visitor answered {:?} after the start",
        begin.elapsed()
    );
    assert_eq!(reply.status, 200, "{}", reply.text());
    let mut load = Load::start(&pair.edge.client());
    load.some(25);
    let (_, failed) = load.end();
    assert!(failed.is_empty(), "{failed:?}");
}
