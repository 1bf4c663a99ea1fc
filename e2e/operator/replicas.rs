//! Who leads: killed, stopped, ended. Whatever becomes of the leader, an order is made once.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::certificates::{ORDER, Site, holds_for, signal};
use crate::support::acme::{Behaviour, Exchange, When};
use crate::support::{Cluster, Replica, eventually};

/// Within which another replica leads after one has died.
const TAKE_OVER: Duration = Duration::from_secs(20);

/// An authority without faults of its own, so that every exchange means something.
const CALM: Behaviour = Behaviour {
    lifetime: 7_776_000,
    bad_nonces: 0,
    reused_authorizations: 0,
    external_keys: Vec::new(),
    refused_names: Vec::new(),
    name_server: None,
};

/// Nobody waits in a test for the end of a Lease that is known to end: it is taken away.
fn take_the_lease_away(site: &Site<'_>) {
    let space = site.edge.namespace();
    let args = ["delete", "lease", "tidegate", "-n", space];
    site.edge.cluster.kubectl().run(&args);
}

/// Each kind of exchange is met once, and what changes something on both sides of it.
fn moments(steps: &[Exchange]) -> Vec<(usize, When)> {
    let mut seen = Vec::new();
    let mut moments = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let kind = step.path.split('/').nth(1).map(str::to_owned);
        let kind = (step.method.clone(), kind);
        // Directory, nonces and accounts are met by the engine's first order only, and by no later one.
        if seen.contains(&kind) || step.path.contains("dir") || step.path.contains("nonce") {
            continue;
        }
        seen.push(kind);
        moments.push((index, When::After));
        if step.path.contains("order-plz") || step.path.contains("finalize-order") {
            moments.push((index, When::Before));
        }
    }
    moments
}

#[test]
fn a_leader_killed_at_any_step_of_an_order_costs_no_order() {
    let Some(cluster) = Cluster::own() else {
        return;
    };
    let namespace = cluster.namespace();
    let Some(site) = Site::new(&cluster, namespace.name(), &CALM) else {
        return;
    };
    let edge = &site.edge;
    let mut leader = edge.replica("one").start();
    edge.wait_for_leader("one", ORDER);
    let mut other = edge.replica("two").start();
    edge.replicas_service("replicas", &[&leader, &other]);
    site.front.lead_to(&[&leader, &other]);
    // Once undisturbed, and once more to learn the steps of an order that is not the first.
    for name in ["calm", "steps"] {
        site.tap.clear();
        let host = site.route(name, "by-http");
        site.wait_for_trust(&leader, &host);
    }
    let moments = moments(&site.tap.exchanges());
    assert!(moments.len() >= 7, "{:?}", site.tap.exchanges());

    let mut table = String::new();
    let mut wasted = false;
    for (number, (index, when)) in moments.into_iter().enumerate() {
        site.tap.clear();
        let before = site.authority.orders();
        let pid = leader.pid();
        // An authority whose question dies with the leader takes that for a wrong answer.
        site.front.lead_to(&[&other]);
        site.tap.act_at(index, when, move || signal(pid, "KILL"));
        let host = site.route(&format!("kill{number}"), "by-http");
        leader.program().wait(ORDER);
        let killed = Instant::now();
        edge.replicas_service("replicas", &[&other]);
        let step = site.tap.exchanges().get(index).map(|step| {
            let kind = step.path.split('/').nth(1).unwrap_or_default().to_owned();
            format!("{when:?} {} {kind}", step.method)
        });
        // The first is left to the clock.
        if number > 0 {
            take_the_lease_away(&site);
        }
        edge.wait_for_leader(&other.name, TAKE_OVER.saturating_sub(killed.elapsed()));
        let took_over = killed.elapsed();
        site.wait_for_trust(&other, &host);
        let (orders, certificates) = (
            site.authority.orders() - before,
            site.tap.distinct("certZ", 200),
        );
        writeln!(
            table,
            "{:<28} orders {orders} certificates {certificates}, taken over after {took_over:.1?}, served after {:.1?}",
            step.unwrap_or_default(),
            killed.elapsed()
        )
        .unwrap();
        wasted |= orders != 1 || certificates != 1;
        leader.start_again();
        site.wait_for_trust(&leader, &host);
        edge.replicas_service("replicas", &[&leader, &other]);
        std::mem::swap(&mut leader, &mut other);
    }
    eprintln!("{table}");
    assert!(!wasted, "{table}");
    hand_over(&site, leader, &other);
}

/// Who ends in order does not let the other wait.
fn hand_over(site: &Site<'_>, mut leader: Replica, other: &Replica) {
    leader.program().signal("TERM");
    site.edge
        .wait_for_leader(&other.name, Duration::from_secs(6));
    let status = leader.program().wait(ORDER);
    assert!(status.success(), "{}", leader.log());
    assert!(
        leader.log().contains("gave the Lease back"),
        "{}",
        leader.log()
    );
}

#[test]
fn a_leader_that_was_stopped_for_a_while_orders_nothing_and_writes_nothing() {
    let Some(cluster) = Cluster::own() else {
        return;
    };
    let namespace = cluster.namespace();
    let Some(site) = Site::new(&cluster, namespace.name(), &CALM) else {
        return;
    };
    let edge = &site.edge;
    let mut one = edge.replica("one").start();
    edge.wait_for_leader("one", ORDER);
    let two = edge.replica("two").start();
    edge.replicas_service("replicas", &[&one, &two]);
    site.front.lead_to(&[&two]);
    let first = site.route("first", "by-http");
    site.wait_for_trust(&two, &first);

    site.tap.clear();
    let before = site.authority.orders();
    // Its order is made and it does not know it yet.
    let pid = one.pid();
    site.tap
        .act_on("order-plz", When::After, move || signal(pid, "STOP"));
    let stopped = Instant::now();
    let second = site.route("second", "by-http");
    edge.wait_for_leader("two", TAKE_OVER + Duration::from_secs(5));
    // As Kubernetes does with one that does not answer its probes.
    edge.replicas_service("replicas", &[&two]);
    site.wait_for_trust(&two, &second);
    edge.wait_for("second", "Ready", "True", "Ready");
    eventually("thirty seconds", Duration::from_mins(1), || {
        let time = stopped.elapsed();
        (time >= Duration::from_secs(30))
            .then_some(())
            .ok_or_else(|| format!("{time:?}"))
    });
    let state = |route: &str| {
        let route = edge.route(route).unwrap();
        (route.metadata.resource_version, route.status)
    };
    let states = ["first", "second"].map(state);
    one.program().signal("CONT");
    eventually("that it knows", ORDER, || {
        one.log()
            .contains("not leading any more")
            .then_some(())
            .ok_or_else(|| one.log())
    });
    holds_for(Duration::from_secs(4), || {
        assert_eq!(edge.leader().as_deref(), Some("two"));
        assert_eq!(["first", "second"].map(state), states);
    });
    assert_eq!(site.authority.orders() - before, 1, "{}", one.log());
    assert_eq!(site.tap.distinct("certZ", 200), 1, "{}", one.log());
    site.wait_for_trust(&one, &second);

    // And it leads again when it is its turn.
    let third = site.route("third", "by-http");
    site.wait_for_trust(&one, &third);
    hand_over(&site, two, &one);
    site.front.lead_to(&[&one]);
    edge.replicas_service("replicas", &[&one]);
    let fourth = site.route("fourth", "by-http");
    site.wait_for_trust(&one, &fourth);
    assert_eq!(site.authority.orders() - before, 3);
}
