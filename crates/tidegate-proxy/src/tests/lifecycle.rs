//! Connections: limits, clocks, drain.

use std::io::{Read, Write};
use std::time::Duration;

use tidegate_model::{ListenerState, ObservedListener};

use super::*;

#[test]
fn a_slow_head_and_an_idle_connection_are_closed() {
    let origin = Origin::echo();
    let edge = TestEdge::start_with(forward_to(&[cluster(origin.address)]), |settings| {
        settings.timeouts.request_head = Duration::from_millis(200);
        settings.timeouts.keep_alive_idle = Duration::from_millis(400);
    });
    let mut slow = edge.connect();
    slow.write_all(b"GET / HTTP/1.1\r\nHos").unwrap();
    assert_eq!(read_to_end(&mut slow), "");
    let mut idle = edge.connect();
    idle.write_all(get("/").replace("Connection: close\r\n", "").as_bytes())
        .unwrap();
    assert_eq!(status_of(&read_to_end(&mut idle)), 200);
}

#[test]
fn a_client_address_has_a_limit_of_connections() {
    let origin = Origin::echo();
    let edge = TestEdge::start_with(forward_to(&[cluster(origin.address)]), |settings| {
        settings.limits.connections_per_client = 3;
    });
    let mut open: Vec<_> = (0..3).map(|_| edge.connect()).collect();
    for stream in &mut open {
        stream
            .write_all(get("/").replace("Connection: close\r\n", "").as_bytes())
            .unwrap();
        assert!(read_head(stream).starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(
        read_to_end(&mut edge.connect()),
        "",
        "the fourth is closed at once"
    );
    drop(open);
    eventually(|| {
        edge.exchange_or_nothing(&get("/"))
            .starts_with("HTTP/1.1 200 ")
    });
}

#[test]
fn a_connection_serves_its_number_of_requests() {
    let origin = Origin::echo();
    let edge = TestEdge::start_with(forward_to(&[cluster(origin.address)]), |settings| {
        settings.limits.requests_per_connection = 2;
    });
    let request = get("/").replace("Connection: close\r\n", "");
    let answers = edge.exchange(&request.repeat(2));
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2);
    assert!(answers.contains("connection: close\r\n"), "{answers}");
}

#[test]
fn a_flood_of_control_frames_ends_the_connection() {
    let origin = Origin::echo();
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    let mut stream = edge.connect();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .unwrap();
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    // A few more than the limit of 1,000 in ten seconds; then the edge hangs up by itself.
    for _ in 0..12 {
        if stream.write_all(&ping.repeat(100)).is_err() {
            break;
        }
    }
    let acknowledged = read_to_end(&mut stream).len() / ping.len();
    assert!(acknowledged <= 1010, "{acknowledged} were acknowledged");
}

#[test]
fn drain_finishes_what_runs_and_cuts_what_stays() {
    let origin = Origin::scripted(|_, mut stream| {
        read_head(&mut stream);
        // Answers only when the test lets it, by closing the other half of the pair below.
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab");
        thread::park_timeout(Duration::from_millis(300));
        let _ = stream.write_all(b"cd");
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    let mut running = edge.connect();
    running
        .write_all(get("/").replace("Connection: close\r\n", "").as_bytes())
        .unwrap();
    assert!(read_head(&mut running).starts_with("HTTP/1.1 200 "));
    let mut idle = edge.connect();
    let http = edge.http;
    let left = edge.runtime.block_on(edge.edge.drain(PATIENCE));
    assert_eq!(left, 0);
    assert_eq!(read_to_end(&mut running), "abcd");
    assert_eq!(idle.read(&mut [0]).unwrap_or(0), 0);
    assert!(TcpStream::connect(http).is_err(), "nobody listens any more");
}

#[test]
fn a_connection_may_still_ask_once_while_the_edge_drains() {
    let origin = Origin::echo();
    let edge = TestEdge::start_with(forward_to(&[cluster(origin.address)]), |settings| {
        // A busy machine may take longer than the usual second to see that nobody listens any more.
        settings.timeouts.request_grace = PATIENCE;
    });
    let request = get("/").replace("Connection: close\r\n", "");
    let fresh = edge.connect();
    let mut kept = edge.connect();
    kept.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut kept);
    assert!(!head.contains("connection: close\r\n"), "{head}");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length = length.unwrap().trim().parse().unwrap();
    kept.read_exact(&mut vec![0; length]).unwrap();
    // A third connection proves that the others were accepted before it.
    assert_eq!(status_of(&edge.exchange(&get("/"))), 200);
    let drained = edge.begin_drain();
    eventually(|| TcpStream::connect(edge.http).is_err());
    // Without this, the request of a client that is busy would meet the end of its connection on the way.
    for mut stream in [fresh, kept] {
        stream.write_all(request.as_bytes()).unwrap();
        let answer = read_to_end(&mut stream);
        assert_eq!(status_of(&answer), 200);
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }
    assert_eq!(edge.runtime.block_on(drained).unwrap(), 0);
}

#[test]
fn who_still_comes_while_the_edge_drains_is_served_once_if_it_is_to_wait_for_them() {
    let origin = Origin::echo();
    let edge = TestEdge::start_with(forward_to(&[cluster(origin.address)]), |settings| {
        settings.timeouts.request_grace = PATIENCE;
        settings.timeouts.accept_quiet = Duration::from_secs(3);
        settings.timeouts.accept_longest = PATIENCE;
    });
    let drained = edge.begin_drain();
    let draining = |it: &ObservedListener| it.state == ListenerState::Draining;
    eventually(|| edge.edge.observe().listeners.iter().all(draining));
    let mut late = edge.connect();
    let request = get("/").replace("Connection: close\r\n", "");
    late.write_all(request.as_bytes()).unwrap();
    let answer = read_to_end(&mut late);
    assert_eq!(status_of(&answer), 200);
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert_eq!(edge.runtime.block_on(drained).unwrap(), 0);
    assert!(TcpStream::connect(edge.http).is_err());
}

impl TestEdge {
    /// Drains beside the test, which goes on at once.
    fn begin_drain(&self) -> tokio::task::JoinHandle<usize> {
        let running = self.edge.clone();
        self.runtime.spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(running.drain(PATIENCE))
        })
    }

    fn exchange_or_nothing(&self, request: &str) -> String {
        let mut stream = self.connect();
        if stream.write_all(request.as_bytes()).is_err() {
            return String::new();
        }
        read_to_end(&mut stream)
    }
}

fn eventually(condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "it never came true");
        thread::yield_now();
    }
}
