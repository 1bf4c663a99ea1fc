//! Sessions from beginning to end: pools, drains, keys that are taken back.

use std::sync::Mutex;

use tidegate_model::{Hop, MappingVerdict, RequestedMapping};
use tidegate_tunnel::wire::{AgentDrain, Bye, ProbeResult, Requested, Retry};

use super::*;

fn bye(said: FromEdge) -> Option<Bye> {
    match said {
        FromEdge::Bye(bye) => Some(bye),
        _ => None,
    }
}

#[test]
fn who_may_no_longer_be_connected_is_told_and_gone() {
    let other = Token::generate().unwrap().stored_key();
    for (reason, change) in [
        ("CredentialRevoked", Some((vec![other], false))),
        ("Suspended", Some((Vec::new(), true))),
        ("AgentDeleted", None),
    ] {
        for way in [Way::Direct, Way::WebSocket] {
            let rig = Rig::new();
            let agent = rig.connect(way, describe);
            let own = rig.token.stored_key();
            // Another key beside it changes nothing.
            rig.publish(Some(agent_with(vec![other, own])));
            assert_eq!(status_of(&rig.edge.exchange(&get("/"))), 200);
            rig.publish(change.clone().map(|(mut keys, suspended)| {
                keys.extend(suspended.then_some(own));
                Agent {
                    suspended,
                    hold: Duration::ZERO,
                    probe_interval: None,
                    ..agent_with(keys)
                }
            }));
            let said = agent.hears(bye);
            assert_eq!((said.retry(), &*said.reason), (Retry::Never, reason));
            eventually("the session is gone", || rig.sessions() == 0);
            rig.runtime.block_on(agent.ended).unwrap();
            let answer = rig.edge.exchange(&get("/"));
            assert_eq!(status_of(&answer), 503, "{answer}");
            let counted = format!("tidegate_agent_sessions_ended_total{{reason=\"{reason}\"}}");
            eventually("it is counted", || rig.edge.metric(&counted) == 1);
        }
    }
}

#[test]
fn an_agent_that_ignores_its_end_is_cut_off_in_the_middle() {
    let rig = Rig::new();
    let (tell, begins) = mpsc::channel();
    let agent = rig.connect(Way::Direct, move |_| {
        tell.send(()).unwrap();
        std::future::pending()
    });
    let mut visitor = rig.edge.connect();
    visitor.write_all(get("/").as_bytes()).unwrap();
    begins.recv_timeout(PATIENCE).unwrap();
    rig.publish(None);
    // The request that it holds ends with its session: waiting for an answer would be for ever.
    let answer = read_to_end(&mut visitor);
    assert!([502, 503].contains(&status_of(&answer)), "{answer}");
    rig.runtime.block_on(agent.ended).unwrap();
}

#[test]
fn several_instances_are_a_pool_and_none_evicts_another() {
    let mut rig = Rig::new();
    let named = |name: &'static str| move |_| async move { Response::new(full(name)) };
    let one = rig.connect(Way::Direct, named("one"));
    rig.instance = "cd".repeat(16);
    let two = rig.connect(Way::WebSocket, named("two"));
    eventually("both are in use", || {
        let clusters = rig.edge.edge.observe().clusters;
        clusters.iter().any(|it| it.endpoints.len() == 2)
    });
    let who = || {
        let answer = rig.edge.exchange(&get("/"));
        assert_eq!(status_of(&answer), 200, "{answer}");
        answer.ends_with("one")
    };
    eventually("both answer", {
        let seen = Mutex::new([false; 2]);
        let who = &who;
        move || {
            let mut seen = seen.lock().unwrap();
            seen[usize::from(who())] = true;
            *seen == [true; 2]
        }
    });
    assert_eq!(rig.sessions(), 2);
    // One that drains gets nothing new; one that is gone is not missed.
    let drain = AgentDrain {
        reason: "Update".to_owned(),
    };
    one.to_edge.blocking_send(drain.into()).unwrap();
    eventually("it drains", || {
        let clusters = rig.edge.edge.observe().clusters;
        clusters.iter().any(|it| it.endpoints.len() == 1)
    });
    let before = one.link.requests();
    for _ in 0..10 {
        assert!(!who());
    }
    assert_eq!(one.link.requests(), before);
    rig.instance = "ef".repeat(16);
    let _three = rig.connect(Way::Direct, named("one"));
    eventually("the new one is in use", who);
    two.link.cut();
    for _ in 0..10 {
        assert!(who());
    }
}

#[test]
fn a_link_that_dies_with_a_request_on_it_leaves_it_to_another() {
    let rig = Rig::new();
    let (tell, begins) = mpsc::channel();
    let first = rig.connect(Way::Direct, move |_| {
        tell.send(()).unwrap();
        std::future::pending()
    });
    let mut visitor = rig.edge.connect();
    visitor.write_all(get("/").as_bytes()).unwrap();
    begins.recv_timeout(PATIENCE).unwrap();
    first.link.cut();
    eventually("it is gone", || rig.sessions() == 0);
    // A GET harms nobody twice; it waits for the agent to come back.
    let _second = rig.connect(Way::WebSocket, describe);
    assert_eq!(status_of(&read_to_end(&mut visitor)), 200);
}

#[test]
fn mappings_and_verdicts_are_told_and_wishes_are_heard() {
    let rig = Rig::new();
    let agent = rig.connect(Way::WebSocket, describe);
    let wishes = rig.edge.edge.agent_requests();
    let asked = Requested {
        name: "grafana".to_owned(),
        hostname: "grafana.test".to_owned(),
        target: "http://127.0.0.1:3000".to_owned(),
        ..Requested::default()
    };
    let request = tidegate_tunnel::wire::Request {
        version: 7,
        mappings: vec![asked],
    };
    agent.to_edge.blocking_send(request.into()).unwrap();
    eventually("the wish is heard", || {
        let known = wishes.borrow().clone();
        known
            .get(&agent_id())
            .is_some_and(|all: &Vec<RequestedMapping>| {
                all.len() == 1 && all[0].hostname == "grafana.test"
            })
    });
    let mut next = agent_with(vec![rig.token.stored_key()]);
    next.verdicts = vec![MappingVerdict {
        name: "grafana".to_owned(),
        accepted: false,
        reason: "HostnameNotAllowed".to_owned(),
        message: "no".to_owned(),
    }];
    let mut another = Mapping::clone(&next.mappings[0]);
    another.id = MappingId::from_hash([8; 8]);
    next.mappings.push(Arc::new(another));
    rig.publish(Some(next));
    let told = agent.hears(|said| match said {
        FromEdge::Mappings(it) if it.mappings.len() == 2 => Some(it),
        _ => None,
    });
    assert_eq!(told.mappings[0].target, "http://192.168.1.20:8123");
    let verdicts = agent.hears(|said| match said {
        FromEdge::Verdicts(it) if !it.verdicts.is_empty() => Some(it),
        _ => None,
    });
    assert_eq!(
        (verdicts.version, verdicts.verdicts[0].accepted),
        (7, false)
    );
    // What an agent wished for stays when it is away, and goes with it.
    agent.link.cut();
    eventually("it is gone", || rig.sessions() == 0);
    assert_eq!(wishes.borrow().len(), 1);
    rig.publish(None);
    eventually("nobody wishes", || wishes.borrow().is_empty());
}

#[test]
fn services_are_tried_by_one_link_and_what_is_broken_is_named() {
    let rig = Rig::new();
    let first = rig.connect(Way::Direct, describe);
    let second = rig.connect(Way::WebSocket, describe);
    let wanted = |interval: Option<u64>| {
        let mut agent = agent_with(vec![rig.token.stored_key()]);
        agent.probe_interval = interval.map(Duration::from_millis);
        Some(agent)
    };
    rig.publish(wanted(Some(500)));
    let asked = |said| match said {
        FromEdge::Probe(it) => Some(it),
        _ => None,
    };
    let probe = first.hears(asked);
    assert_eq!(probe.mapping, mapping_id().to_string());
    let answer = |id, reason: &str| ProbeResult {
        id,
        ok: reason.is_empty(),
        reason: reason.to_owned(),
        message: "connection refused".to_owned(),
        ..ProbeResult::default()
    };
    let refused = answer(probe.id, "ConnectFailed");
    first.to_edge.blocking_send(refused.into()).unwrap();
    let failure = || {
        let agents = rig.agents();
        let probe = agents.first().and_then(|it| it.probes.first().cloned());
        probe.map(|it| it.failure)
    };
    eventually("the failure is known", || {
        failure()
            .flatten()
            .is_some_and(|it| (it.hop, &*it.reason) == (Hop::Service, "ConnectFailed"))
    });
    assert!(rig.edge.edge.metrics().contains("agent_service_up{"));
    let again = first.hears(asked);
    assert!(again.id > probe.id);
    let well = answer(again.id, "");
    first.to_edge.blocking_send(well.into()).unwrap();
    eventually("it is well again", || failure() == Some(None));
    // The other link of the process takes over.
    assert!(second.said.try_iter().all(|it| asked(it).is_none()));
    first.link.cut();
    let probe = second.hears(asked);
    rig.publish(wanted(None));
    eventually("nobody wants to know", || failure().is_none());
    let late = answer(probe.id, "ConnectFailed");
    second.to_edge.blocking_send(late.into()).unwrap();
    rig.publish(wanted(Some(500)));
    second.hears(asked);
    assert_eq!(failure(), None, "an answer to what nobody asks any more");
}

#[test]
fn a_token_is_rotated_with_an_overlap_and_without_a_gap() {
    let mut rig = Rig::new();
    let old = rig.token.stored_key();
    let _first = rig.connect(Way::Direct, describe);
    rig.token = Token::generate().unwrap();
    let new = rig.token.stored_key();
    // At once: an agent may be faster than whoever looks at a new snapshot.
    rig.publish(Some(agent_with(vec![new, old])));
    let second = rig.connect(Way::Direct, describe);
    eventually("both are in", || rig.sessions() == 2);
    rig.publish(Some(agent_with(vec![new])));
    eventually("the old one is out", || rig.sessions() == 1);
    assert_eq!(status_of(&rig.edge.exchange(&get("/"))), 200);
    assert!(!second.ended.is_finished());
}

#[test]
fn a_draining_edge_keeps_its_links_until_visitors_and_agents_have_gone() {
    let rig = Rig::with(forward_to(&[behind_agent()]), |settings| {
        // Who has connected before may still ask once, however busy the machine is.
        settings.timeouts.request_grace = PATIENCE;
    });
    let (go, gate) = tokio::sync::watch::channel(false);
    let agent = rig.connect(Way::Direct, move |_| {
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|open| *open).await.unwrap();
            Response::new(full("late"))
        }
    });
    let mut visitor = rig.edge.connect();
    visitor.write_all(get("/").as_bytes()).unwrap();
    eventually("it is on its way", || agent.link.in_flight() == 1);
    let mut waiting = rig.runtime.block_on(rig.dial(Way::WebSocket));
    let draining = {
        let edge = rig.edge.edge.clone();
        rig.runtime.spawn(async move { edge.drain(PATIENCE).await })
    };
    agent.hears(|said| matches!(said, FromEdge::Drain(_)).then_some(()));
    let late = rig.runtime.block_on(async {
        let authorization = rig.authorization(b"");
        let request = handshake::request(HOST, &Upgrade::websocket(), &authorization);
        shake(&mut waiting, &request.unwrap()).await
    });
    assert_eq!(
        (late.status().as_u16(), &late.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    assert_eq!(rig.sessions(), 1, "though it has said that it is elsewhere");
    assert!(!draining.is_finished());
    go.send(true).unwrap();
    let answer = read_to_end(&mut visitor);
    assert!(answer.ends_with("late"), "{answer}");
    let said = agent.hears(bye);
    assert_eq!(said.retry(), Retry::Now);
    assert_eq!(rig.runtime.block_on(draining).unwrap(), 0);
}

#[test]
fn links_are_replaced_on_request_and_the_log_tells_who_came_and_went() {
    let rig = Rig::new();
    let named = |name: &'static str| move |_| async move { Response::new(full(name)) };
    let old = rig.connect(Way::Direct, named("old"));
    let edge = &rig.edge.edge;
    assert_eq!(
        edge.reconnect_agent(&AgentId::new("default", "nobody")),
        None
    );
    assert_eq!(edge.reconnect_agent(&agent_id()), Some(1));
    let drain = old.hears(|said| match said {
        FromEdge::Drain(it) => Some(it),
        _ => None,
    });
    assert_eq!(drain.reason, "Reconnect");
    // As long as it has said nothing more it is in use; its answer to the order is that it is connected elsewhere.
    eventually("it takes no new requests", || {
        let clusters = edge.observe().clusters;
        clusters.iter().all(|it| it.endpoints.is_empty())
    });
    let new = rig.connect(Way::WebSocket, named("new"));
    let mut visitor = rig.edge.connect();
    visitor.write_all(get("/").as_bytes()).unwrap();
    assert!(read_to_end(&mut visitor).ends_with("new"));
    old.link.cut();
    eventually("the old one is gone", || rig.sessions() == 1);
    eventually("the log has it", || edge.link_history().len() == 3);
    let log = edge.link_history();
    assert!(log[0].ended.is_none() && log[1].ended.is_none());
    assert_eq!(log[2].session, log[0].session);
    assert_eq!(log[1].carrier, tidegate_model::Carrier::WebSocket);
    assert!(log[2].ended.is_some());
    drop(new);
}
