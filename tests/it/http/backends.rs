//! Choosing a backend, and what becomes of requests when one does not answer.

use std::time::Duration;

use http_body_util::Full;

use crate::support::{Edge, Origin, eventually, ports, route_of};

const HOST: &str = "backend.test";

#[track_caller]
fn edge(rule: &str) -> Edge {
    Edge::start(&[route_of(
        "backend",
        &format!("hostnames: [{HOST}]\nrules:\n- {rule}\n"),
    )])
}

#[test]
fn weights_are_kept_and_zero_gets_nothing() {
    let (heavy, light, none) = (
        Origin::text("heavy"),
        Origin::text("light"),
        Origin::text("none"),
    );
    let edge = edge(&format!(
        "backends: [{{address: \"{}\", weight: 9}}, {{address: \"{}\", weight: 1}}, {{address: \"{}\", weight: 0}}]",
        heavy.address(),
        light.address(),
        none.address()
    ));
    for _ in 0..200 {
        assert_eq!(edge.get(HOST, "/").status, 200);
    }
    assert_eq!(none.requests(), 0);
    assert!(
        light.requests() > 0,
        "a weight of one in ten was never chosen in 200"
    );
    assert!(
        heavy.requests() > 3 * light.requests(),
        "{} {}",
        heavy.requests(),
        light.requests()
    );
}

#[test]
fn a_cookie_keeps_a_client_on_its_backend() {
    let (one, two) = (Origin::text("one"), Origin::text("two"));
    let edge = edge(&format!(
        "loadBalancing: {{policy: StickyCookie, cookie: {{name: node}}}}\n  backends: [{{address: \"{}\"}}, {{address: \"{}\"}}]",
        one.address(),
        two.address()
    ));
    let first = edge.get(HOST, "/");
    let cookie = first
        .header("set-cookie")
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    assert!(cookie.starts_with("node="), "{first:?}");
    for _ in 0..20 {
        assert_eq!(
            edge.request(HOST, "GET", "/", &[("Cookie", &cookie)])
                .text(),
            first.text()
        );
    }
    assert!(one.requests() == 0 || two.requests() == 0);
}

#[test]
fn a_backend_that_refuses_is_502_and_comes_back_by_itself() {
    let port = ports::free();
    let edge = edge(&format!("backends: [{{address: \"127.0.0.1:{port}\"}}]"));
    let reply = edge.get(HOST, "/");
    assert_eq!(reply.status, 502);
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nup");
        }
    });
    assert_eq!(edge.wait_for_status(HOST, "/", 200).text(), "up");
}

#[test]
fn a_backend_that_says_nothing_is_504() {
    // Accepts, and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let edge = edge(&format!(
        "timeouts: {{firstByte: 300ms}}\n  backends: [{{address: \"{}\"}}]",
        listener.local_addr().unwrap()
    ));
    assert_eq!(edge.get(HOST, "/").status, 504);
}

#[test]
fn a_post_is_never_sent_twice() {
    // Keeps connections, and closes each at its second request without a word.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let posts = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&posts);
    std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        while let Ok((mut stream, _)) = listener.accept() {
            let counted = std::sync::Arc::clone(&counted);
            std::thread::spawn(move || {
                for round in 0..2 {
                    let mut head = Vec::new();
                    let mut buffer = [0; 4096];
                    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                        match stream.read(&mut buffer) {
                            Ok(count @ 1..) => head.extend_from_slice(&buffer[..count]),
                            _ => return,
                        }
                    }
                    if head.starts_with(b"POST") {
                        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    }
                    if round == 1 {
                        return;
                    }
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                }
            });
        }
    });
    let edge = edge(&format!("backends: [{{address: \"{address}\"}}]"));
    assert_eq!(edge.get(HOST, "/").status, 200);
    let post = edge.send(HOST, "POST", "/", &[], "");
    let count = posts.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(
        count, 1,
        "the POST came {count} times; the client got {}",
        post.status
    );
    // A GET in the same place is sent again, and succeeds.
    assert_eq!(edge.wait_for_status(HOST, "/", 200).status, 200);
    for _ in 0..10 {
        assert_eq!(edge.get(HOST, "/").status, 200);
    }
}

#[test]
fn probes_take_an_address_out_and_bring_it_back() {
    let healthy = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = std::sync::Arc::clone(&healthy);
    let shaky = Origin::serve(move |request| {
        let up = flag.load(std::sync::atomic::Ordering::SeqCst);
        let probe = request.uri().path() == "/health";
        async move {
            let status = if probe && !up { 503 } else { 200 };
            http::Response::builder()
                .status(status)
                .body(Full::new("shaky".into()))
                .unwrap()
        }
    });
    let steady = Origin::text("steady");
    let edge = edge(&format!(
        "loadBalancing: {{policy: RoundRobin}}\n  healthCheck: {{active: {{path: /health, interval: 1s, timeout: 1s, healthyThreshold: 1, unhealthyThreshold: 1}}}}\n  backends: [{{address: \"{}\"}}, {{address: \"{}\"}}]",
        shaky.address(),
        steady.address()
    ));
    let answers = || {
        (0..10)
            .map(|_| edge.get(HOST, "/").text())
            .collect::<Vec<_>>()
    };
    let patience = Duration::from_secs(20);
    eventually("both answer", patience, || {
        let got = answers();
        if got.iter().any(|text| text == "shaky") {
            Ok(())
        } else {
            Err(format!("{got:?}"))
        }
    });
    healthy.store(false, std::sync::atomic::Ordering::SeqCst);
    eventually("only the healthy one answers", patience, || {
        let got = answers();
        if got.iter().all(|text| text == "steady") {
            Ok(())
        } else {
            Err(format!("{got:?}"))
        }
    });
    healthy.store(true, std::sync::atomic::Ordering::SeqCst);
    eventually("both answer again", patience, || {
        let got = answers();
        if got.iter().any(|text| text == "shaky") {
            Ok(())
        } else {
            Err(format!("{got:?}"))
        }
    });
}

#[test]
fn upstream_connections_are_kept() {
    let origin = Origin::text("x");
    let edge = edge(&format!(
        "backends: [{{address: \"{}\"}}]",
        origin.address()
    ));
    for _ in 0..50 {
        assert_eq!(edge.get(HOST, "/").status, 200);
    }
    assert!(
        origin.connections() <= 3,
        "{} connections for 50 requests",
        origin.connections()
    );
}

#[test]
fn a_dead_backend_is_passed_over() {
    let alive = Origin::text("alive");
    let edge = edge(&format!(
        "backends: [{{address: \"127.0.0.1:{}\"}}, {{address: \"{}\"}}]",
        ports::free(),
        alive.address()
    ));
    // A refused connection is found out by the first requests; after them nobody notices.
    for _ in 0..20 {
        edge.get(HOST, "/");
    }
    for _ in 0..50 {
        assert_eq!(edge.get(HOST, "/").status, 200);
    }
}
