//! Requests of visitors over links: their form, and what becomes of failures.

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::StatusCode;
use tidegate_model::{AddressParameters, HttpTracker};

use super::super::h2_peers::h2_request;
use super::streams::near_and_far_with;
use super::*;

#[test]
fn a_request_goes_over_both_carriers_and_says_who_asks() {
    for way in [Way::Direct, Way::WebSocket] {
        let rig = Rig::new();
        let agent = rig.connect(way, describe);
        let answer = rig.edge.exchange(&format!(
            "POST /a%2Fb?c=d HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\nConnection: close, x-gone\r\n\
             X-Gone: 1\r\nX-Kept: 2\r\nTidegate-Tunnel-Client: 203.0.113.1:1\r\n\
             Tidegate-Tunnel-Mapping: ffffffffffffffff\r\nTidegate-Tunnel-Target: /x\r\n\
             X-Forwarded-For: 203.0.113.2\r\n\r\nbody"
        ));
        assert_eq!(status_of(&answer), 200, "{way:?} {answer}");
        let asked = answer.split("\r\n\r\n").nth(1).unwrap();
        assert!(
            asked.starts_with("POST http://app.test/a%2Fb?c=d\n"),
            "{asked}"
        );
        assert!(asked.ends_with("\n\nbody"), "{asked}");
        for line in [
            "tidegate-tunnel-mapping: 0707070707070707\n",
            "tidegate-tunnel-client: 127.0.0.1:",
            &format!("tidegate-tunnel-local: {}\n", rig.edge.http),
            "x-forwarded-for: 127.0.0.1\n",
            "x-forwarded-host: app.test\n",
            "x-kept: 2\n",
        ] {
            assert_eq!(asked.matches(line).count(), 1, "{line:?} in {asked}");
        }
        for gone in ["203.0.113", "ffff", "target", "x-gone", "\nconnection"] {
            assert!(!asked.contains(gone), "{gone:?} in {asked}");
        }
        assert_eq!(agent.link.requests(), 1);
        let observed = &rig.agents()[0].sessions[0];
        assert_eq!(observed.carrier.name() == "Direct", way == Way::Direct);
        assert_eq!((observed.requests, observed.bytes_sent), (1, 4));
        assert!(observed.bytes_received > 100 && observed.version == "0.9.0");
        let labels = "{agent=\"default/homelab\",mapping=\"default/app\",id=\"0707070707070707\"}";
        let metrics = rig.edge.edge.metrics();
        for line in [
            format!("tidegate_agent_requests_total{labels} 1"),
            format!("tidegate_agent_sent_bytes_total{labels} 4"),
            "tidegate_agent_handshakes_total{result=\"Accepted\"} 1".to_owned(),
        ] {
            assert!(metrics.contains(&line), "{line} in {metrics}");
        }
    }
}

#[test]
fn what_fails_at_the_agent_is_told_apart_and_in_our_own_words() {
    let rig = Rig::new();
    let _agent = rig.connect(Way::Direct, |request: Request<Incoming>| async move {
        let word = request.uri().path()[1..].to_owned();
        Response::builder()
            .status(503)
            .header("tidegate-tunnel-error", &word)
            .header("x-secret", "of the agent")
            .body(full("dial tcp 192.168.1.20: no route"))
            .unwrap()
    });
    for (word, status, reason) in [
        ("UnknownMapping", 503, "AgentUnknownMapping"),
        ("ConnectFailed", 502, "AgentConnectFailed"),
        ("ConnectTimeout", 504, "AgentConnectTimeout"),
        ("TlsFailed", 502, "AgentTlsFailed"),
        ("BadResponse", 502, "AgentBadResponse"),
        ("Later", 503, "AgentFailed"),
    ] {
        let answer = rig.edge.exchange(&get(&format!("/{word}")));
        assert_eq!(status_of(&answer), status, "{answer}");
        assert!(answer.contains(reason), "{answer}");
        for hidden in ["tidegate-tunnel", "x-secret", "192.168.1.20"] {
            assert!(!answer.contains(hidden), "{hidden} in {answer}");
        }
        let counted = format!("tidegate_upstream_failures_total{{reason=\"{reason}\"}}");
        assert_eq!(rig.edge.metric(&counted), 1);
    }
    // A field that looks like ours in an ordinary answer goes no further either.
    let rig = Rig::new();
    let _agent = rig.connect(Way::Direct, |_| async {
        let answer = Response::builder().header("tidegate-tunnel-x", "1");
        answer.status(StatusCode::CREATED).body(full("")).unwrap()
    });
    let answer = rig.edge.exchange(&get("/"));
    assert_eq!(status_of(&answer), 201);
    assert!(!answer.contains("tidegate-tunnel"), "{answer}");
}

#[test]
fn a_visitor_waits_for_an_agent_that_is_about_to_come() {
    let rig = Rig::new();
    let mut visitor = rig.edge.connect();
    let request = get("/").replace("GET /", "PUT /");
    let request = request.replace("\r\n\r\n", "\r\nContent-Length: 4\r\n\r\n");
    visitor.write_all(request.as_bytes()).unwrap();
    visitor.write_all(b"body").unwrap();
    eventually("the request waits", || {
        rig.edge.metric("tidegate_http_requests_in_flight") == 1
    });
    let _agent = rig.connect(Way::WebSocket, describe);
    let answer = read_to_end(&mut visitor);
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(answer.ends_with("\n\nbody"), "{answer}");
}

#[test]
fn so_many_may_wait_and_the_others_are_told_at_once() {
    const CONNECTIONS: usize = 3;
    const EACH: usize = 100;
    const MOST: usize = 256;
    let rig = Rig::new();
    let (clients, mut waiting) = rig.edge.block_on(async {
        let (mut clients, waiting) = (Vec::new(), FuturesUnordered::new());
        for _ in 0..CONNECTIONS {
            let mut client = rig.edge.h2().await;
            for _ in 0..EACH {
                client = client.ready().await.unwrap();
                let sent = client.send_request(h2_request("GET", "/"), true);
                waiting.push(sent.unwrap().0);
            }
            clients.push(client);
        }
        (clients, waiting)
    });
    rig.edge.block_on(async {
        for _ in MOST..CONNECTIONS * EACH {
            let next = tokio::time::timeout(PATIENCE / 2, waiting.next()).await;
            let answer = next.expect("fewer were sent away").unwrap().unwrap();
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
    });
    assert_eq!(waiting.len(), MOST);
    eventually("the others wait", || {
        rig.edge.metric("tidegate_http_requests_in_flight") == MOST as u64
    });
    let agent = rig.connect(Way::Direct, describe);
    rig.edge.block_on(async {
        while let Some(answer) = waiting.next().await {
            assert_eq!(answer.unwrap().status(), StatusCode::OK);
        }
    });
    assert_eq!(agent.link.requests(), MOST as u64);
    drop(clients);
}

#[test]
fn who_cannot_wait_gets_a_page_that_looks_again_by_itself() {
    let rig = Rig::holding(Duration::ZERO);
    let page = |method: &str, accept: &str| {
        rig.edge.exchange(&format!(
            "{method} / HTTP/1.1\r\nHost: {HOST}\r\nAccept: {accept}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        ))
    };
    let refresh = "<meta http-equiv=\"refresh\" content=\"5\">";
    for (method, accept, reloads) in [
        ("GET", "text/html", true),
        ("POST", "text/html", false),
        ("GET", "application/json", false),
    ] {
        let answer = page(method, accept);
        assert_eq!(status_of(&answer), 503, "{answer}");
        assert!(answer.contains("retry-after: 5\r\n"), "{answer}");
        assert!(answer.contains("AgentNotConnected"), "{answer}");
        assert!(answer.contains("This service is offline"), "{answer}");
        assert_eq!(answer.contains(refresh), reloads, "{answer}");
    }
}

#[test]
fn another_backend_of_the_rule_serves_while_the_agent_is_away() {
    let origin = Origin::echo();
    let rule = forward_to(&[behind_agent(), cluster(origin.address)]);
    let rig = Rig::with(rule, |_| {});
    for _ in 0..8 {
        assert_eq!(status_of(&rig.edge.exchange(&get("/"))), 200);
    }
    assert!(origin.connections.load(Ordering::SeqCst) >= 1);
}

#[test]
fn a_tracker_behind_an_agent_gets_the_target_as_it_was_asked_for() {
    let rule = || {
        let mut rule = forward_to(&[behind_agent()]);
        rule.tracker = Some(HttpTracker {
            address_parameters: AddressParameters::Pass,
        });
        rule
    };
    let here = near_and_far_with(rule, |_| {}, raw_target);
    assert_eq!((here.forwarded("Answered"), here.forwarded("")), (1, 1));
}

fn raw_target(rig: &Rig, agents: &Rig) {
    let _agent = agents.connect(Way::Direct, describe);
    rig.sees_a_link();
    let target = "/announce?info_hash=a\"<b>%00&port=1";
    let answer = rig.edge.exchange(&get(target));
    assert_eq!(status_of(&answer), 200, "{answer}");
    let line = format!("tidegate-tunnel-target: {target}\n");
    assert_eq!(answer.matches(&line).count(), 1, "{answer}");
}
