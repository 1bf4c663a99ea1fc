//! Which address and which backend gets a request: probes, ejection, names, weights, affinity.

use std::collections::HashMap;
use std::time::Instant;

use http::HeaderName;
use socket2::{Domain, Socket, Type};
use tidegate_model::{ActiveHealthCheck, HashKey};

use super::h2_peers::{H2Origin, describe};
use super::*;

/// Answers each request with the name.
fn named(name: &'static str) -> Origin {
    Origin::scripted(move |_, mut stream| {
        while !read_head(&mut stream).is_empty() {
            let length = name.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}");
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

/// A port where nobody listens: it is taken, or another test might get it.
struct Closed(Socket);

impl Closed {
    fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&anywhere.into()).unwrap();
        Self(socket)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap().as_socket().unwrap()
    }

    fn open(self) -> TcpListener {
        self.0.listen(16).unwrap();
        self.0.into()
    }
}

fn cluster_of(addresses: &[SocketAddr]) -> Cluster {
    let mut cluster = Arc::unwrap_or_clone(cluster(addresses[0]));
    cluster.target = Target::Addresses(addresses.to_vec());
    cluster
}

#[track_caller]
fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it never came true");
        thread::yield_now();
    }
}

fn body_of(answer: &str) -> String {
    assert_eq!(status_of(answer), 200, "{answer}");
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

fn count(edge: &TestEdge, requests: usize, request: &str) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for _ in 0..requests {
        *counts.entry(body_of(&edge.exchange(request))).or_default() += 1;
    }
    counts
}

fn probing(path: Option<&str>) -> ActiveHealthCheck {
    ActiveHealthCheck {
        path: path.map(str::to_owned),
        host: None,
        headers: vec![(
            HeaderName::from_static("x-api-key"),
            "secret".parse().unwrap(),
        )],
        expected_status: (200, 299),
        interval: Duration::from_millis(20),
        timeout: Duration::from_secs(5),
        healthy_threshold: 2,
        unhealthy_threshold: 2,
    }
}

impl TestEdge {
    fn healthy(&self) -> Vec<bool> {
        let observed = self.edge.observe();
        let endpoints = observed.clusters.iter().flat_map(|c| &c.endpoints);
        endpoints.map(|endpoint| endpoint.healthy).collect()
    }
}

#[test]
fn an_address_that_fails_its_probes_is_avoided_until_it_passes_them() {
    let status = Arc::new(AtomicUsize::new(200));
    let told = Arc::clone(&status);
    let probed = Origin::scripted(move |_, mut stream| {
        loop {
            let head = read_head(&mut stream);
            let answer = if head.starts_with("GET /health HTTP/1.1\r\n") {
                for field in [
                    "\r\nX-Forwarded-For: 127.0.0.1\r\n",
                    "\r\nX-Api-Key: secret\r\n",
                    "\r\nUser-Agent: tidegate-health-check\r\n",
                ] {
                    assert!(head.contains(field), "title case, {field:?}: {head}");
                }
                let status = told.load(Ordering::SeqCst);
                format!("HTTP/1.1 {status} Said\r\nContent-Length: 0\r\n\r\n")
            } else {
                "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nprobed".to_owned()
            };
            if head.is_empty() || stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    });
    let mut cluster = cluster_of(&[probed.address]);
    cluster.active_health = Some(probing(Some("/health")));
    let edge = TestEdge::start(forward_to(&[Arc::new(cluster.clone())]));
    until(|| edge.healthy() == [true]);
    status.store(500, Ordering::SeqCst);
    until(|| edge.healthy() == [false]);
    let observed = edge.edge.observe();
    let error = observed.clusters[0].endpoints[0]
        .last_error
        .clone()
        .unwrap();
    assert!(error.contains("500"), "{error}");
    // With no healthy address all are used: an answer may still come.
    assert_eq!(body_of(&edge.exchange(&get("/"))), "probed");
    status.store(204, Ordering::SeqCst);
    until(|| edge.healthy() == [true]);
    drop(edge);

    // Beside one that does not answer probes like that, all requests go to the other.
    let other = Origin::scripted(|_, mut stream| {
        while !read_head(&mut stream).is_empty() {
            let answer = "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    });
    cluster.target = Target::Addresses(vec![probed.address, other.address]);
    let host = |cluster: Cluster| {
        let rule = forward_to(&[Arc::new(cluster)]);
        vec![virtual_host(HOST, rule, policy(certificate(&[HOST])))]
    };
    let edge = TestEdge::start_hosts(host(cluster.clone()), |_| {});
    let counts = |wanted| {
        let answers = (0..20).map(|_| status_of(&edge.exchange(&get("/"))));
        answers.filter(|status| *status == wanted).count()
    };
    until(|| counts(200) > 0 && counts(201) > 0);
    // While the cluster is in no snapshot nobody probes it; afterwards what is found counts again.
    edge.store
        .publish(snapshot(host(cluster_of(&[other.address]))));
    until(|| edge.healthy().len() == 1);
    status.store(503, Ordering::SeqCst);
    edge.store.publish(snapshot(host(cluster)));
    until(|| edge.healthy().len() == 2 && edge.healthy().contains(&false));
    assert_eq!(counts(201), 20);
}

#[test]
fn an_address_that_does_not_answer_its_probe_delays_no_other() {
    let silent = Origin::scripted(|_, mut stream| {
        read_to_end(&mut stream);
    });
    let closed = Closed::new();
    let mut cluster = cluster_of(&[silent.address, closed.address()]);
    let mut check = probing(Some("/"));
    check.timeout = PATIENCE * 10;
    check.unhealthy_threshold = 1;
    cluster.active_health = Some(check);
    let edge = TestEdge::start(forward_to(&[Arc::new(cluster)]));
    until(|| edge.healthy().iter().filter(|healthy| **healthy).count() == 1);
}

#[test]
fn probes_speak_the_version_of_the_cluster() {
    let origin = H2Origin::scripted(describe);
    let mut cluster = cluster_of(&[origin.address]);
    cluster.protocol = UpstreamProtocol::Http2;
    let mut check = probing(Some("/health"));
    check.unhealthy_threshold = 1;
    cluster.active_health = Some(check);
    let edge = TestEdge::start(forward_to(&[Arc::new(cluster)]));
    until(|| origin.connections.load(Ordering::SeqCst) > 3);
    assert_eq!(edge.healthy(), [true]);
}

#[test]
fn a_probe_without_a_path_only_connects() {
    let closed = Closed::new();
    let origin = named("open");
    let mut cluster = cluster_of(&[closed.address(), origin.address]);
    cluster.active_health = Some(probing(None));
    let edge = TestEdge::start(forward_to(&[Arc::new(cluster)]));
    until(|| edge.healthy().iter().filter(|healthy| **healthy).count() == 1);
    // Somebody listens there now, and nobody has to ask.
    let listener = closed.open();
    until(|| edge.healthy() == [true, true]);
    drop(listener);
}

#[test]
fn failures_to_connect_eject_an_address_and_success_takes_it_back() {
    let closed = Closed::new();
    let origin = named("open");
    let mut cluster = cluster_of(&[closed.address(), origin.address]);
    cluster.passive_health.consecutive_failures = 2;
    cluster.passive_health.ejection_time = Duration::from_millis(300);
    let edge = TestEdge::start(forward_to(&[Arc::new(cluster)]));
    until(|| {
        assert_eq!(body_of(&edge.exchange(&get("/"))), "open");
        edge.healthy().contains(&false)
    });
    let retries = edge.metric("tidegate_upstream_retries_total");
    assert!(retries >= 2, "{retries}");
    until(|| edge.healthy() == [true, true]);
}

#[test]
fn requests_are_split_by_weight() {
    let (first, second, none) = (named("first"), named("second"), named("none"));
    let backend = |origin: &Origin, weight| WeightedBackend {
        weight,
        cluster: cluster(origin.address),
    };
    let backends = vec![backend(&first, 3), backend(&second, 1), backend(&none, 0)];
    let edge = TestEdge::start(rule(Action::Forward(BackendGroup { backends })));
    let counts = count(&edge, 200, &get("/"));
    assert!(counts["first"] > counts["second"], "{counts:?}");
    assert!(counts["second"] > 10, "{counts:?}");
    assert!(!counts.contains_key("none"), "{counts:?}");
    let unused = vec![backend(&none, 0)];
    let edge = TestEdge::start(rule(Action::Forward(BackendGroup { backends: unused })));
    assert_eq!(status_of(&edge.exchange(&get("/"))), 503);
}

#[test]
fn a_cookie_brings_a_client_back_to_its_address() {
    let (first, second) = (named("first"), named("second"));
    let mut cluster = cluster_of(&[first.address, second.address]);
    cluster.load_balancing = LoadBalancing::StickyCookie {
        name: "lb".to_owned(),
        max_age: None,
    };
    let edge = TestEdge::start(forward_to(&[Arc::new(cluster)]));
    let mut seen = HashMap::new();
    for _ in 0..20 {
        let answer = edge.exchange(&get("/"));
        let cookie = answer.split("set-cookie: ").nth(1).unwrap();
        assert!(cookie.to_ascii_lowercase().contains("httponly"), "{cookie}");
        let cookie = cookie.split([';', '\r']).next().unwrap().to_owned();
        let with = get("/").replace(
            "Connection",
            &format!("Cookie: a=1; {cookie}\r\nConnection"),
        );
        for _ in 0..5 {
            let again = edge.exchange(&with);
            assert_eq!(body_of(&again), body_of(&answer));
            assert!(!again.contains("set-cookie"), "it has one already: {again}");
        }
        seen.insert(cookie, body_of(&answer));
    }
    assert_eq!(seen.len(), 2, "both addresses are in use: {seen:?}");
    let forged = get("/").replace("Connection", "Cookie: lb=0000\r\nConnection");
    assert!(edge.exchange(&forged).contains("set-cookie: lb="));
}

#[test]
fn the_same_key_goes_to_the_same_address() {
    let (first, second) = (named("first"), named("second"));
    let mut cluster = cluster_of(&[first.address, second.address]);
    cluster.load_balancing =
        LoadBalancing::ConsistentHash(HashKey::Header(HeaderName::from_static("x-room")));
    let edge = TestEdge::start(forward_to(&[Arc::new(cluster)]));
    let mut seen = HashMap::new();
    for room in 0..16 {
        let request = get("/").replace("Connection", &format!("X-Room: {room}\r\nConnection"));
        let counts = count(&edge, 5, &request);
        assert_eq!(counts.len(), 1, "room {room}: {counts:?}");
        seen.extend(counts);
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
}

#[test]
fn a_name_is_resolved_before_the_first_request_and_all_its_addresses_are_tried() {
    let origin = named("by name");
    let mut named_cluster = Arc::unwrap_or_clone(cluster(origin.address));
    named_cluster.target = Target::Host {
        host: "localhost".to_owned(),
        port: origin.address.port(),
    };
    let edge = TestEdge::start(forward_to(&[Arc::new(named_cluster.clone())]));
    for _ in 0..10 {
        assert_eq!(body_of(&edge.exchange(&get("/"))), "by name");
    }
    // Gone and back: the new state is resolved like the first one.
    let host = |cluster: &Arc<Cluster>| {
        let rule = forward_to(std::slice::from_ref(cluster));
        vec![virtual_host(HOST, rule, policy(certificate(&[HOST])))]
    };
    for _ in 0..3 {
        edge.store.publish(snapshot(host(&cluster(origin.address))));
        until(|| edge.edge.observe().clusters[0].name == origin.address.to_string());
        named_cluster.name = "by name".to_owned();
        named_cluster.key = ClusterKey("by name".into());
        edge.store
            .publish(snapshot(host(&Arc::new(named_cluster.clone()))));
        assert_eq!(body_of(&edge.exchange(&get("/"))), "by name");
        until(|| !edge.healthy().is_empty());
    }
}

#[test]
fn a_name_that_does_not_exist_is_503() {
    let mut missing = Arc::unwrap_or_clone(cluster(Closed::new().address()));
    missing.target = Target::Host {
        host: "missing.invalid".to_owned(),
        port: 80,
    };
    missing.connect_timeout = Duration::from_millis(500);
    let edge = TestEdge::start(forward_to(&[Arc::new(missing)]));
    assert_eq!(status_of(&edge.exchange(&get("/"))), 503);
}
