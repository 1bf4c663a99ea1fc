//! When a request is sent again, and when it must not be.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Answers the first request of each connection and promises to stay; reads the next and closes.
fn liar(seen: Arc<AtomicUsize>) -> Origin {
    Origin::scripted(move |_, mut stream| {
        read_head(&mut stream);
        seen.fetch_add(1, Ordering::SeqCst);
        stream.write_all(OK).unwrap();
        if !read_head(&mut stream).is_empty() {
            seen.fetch_add(1, Ordering::SeqCst);
        }
    })
}

#[test]
fn a_get_on_a_reused_connection_that_dies_is_sent_again() {
    let seen = Arc::new(AtomicUsize::new(0));
    let origin = liar(Arc::clone(&seen));
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    for _ in 0..20 {
        assert_eq!(status_of(&edge.exchange(&get("/announce"))), 200);
    }
    assert!(
        seen.load(Ordering::SeqCst) > 20,
        "no connection was reused, so nothing was tested"
    );
    assert!(edge.metric("tidegate_upstream_retries_total") > 0);
}

#[test]
fn a_post_that_may_have_arrived_is_not_sent_again() {
    let seen = Arc::new(AtomicUsize::new(0));
    let origin = liar(Arc::clone(&seen));
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    assert_eq!(status_of(&edge.exchange(&get("/"))), 200);
    let post = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
    );
    assert_eq!(status_of(&edge.exchange(&post)), 502);
    assert_eq!(seen.load(Ordering::SeqCst), 2);
}

#[test]
fn a_fresh_connection_that_dies_is_not_retried() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let origin = Origin::scripted(move |_, mut stream| {
        read_head(&mut stream);
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    assert_eq!(status_of(&edge.exchange(&get("/"))), 502);
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[test]
fn another_address_is_tried_when_one_refuses() {
    let refusing = {
        // Bound and closed again: nobody listens there now.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let origin = Origin::echo();
    let mut both = Arc::unwrap_or_clone(cluster(origin.address));
    both.target = Target::Addresses(vec![refusing, origin.address]);
    let edge = TestEdge::start(forward_to(&[Arc::new(both)]));
    for _ in 0..10 {
        assert_eq!(status_of(&edge.exchange(&get("/"))), 200);
    }
}

#[test]
fn an_unreachable_backend_is_a_502_and_the_limit_a_503() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let edge = TestEdge::start(forward_to(&[cluster(nobody)]));
    let answer = edge.exchange(&get("/"));
    assert_eq!(status_of(&answer), 502, "{answer}");

    let origin = Origin::scripted(|_, mut stream| {
        read_head(&mut stream);
        let _ = stream.read(&mut [0]);
    });
    let mut one = Arc::unwrap_or_clone(cluster(origin.address));
    one.circuit.max_requests = Some(1);
    let edge = TestEdge::start(forward_to(&[Arc::new(one)]));
    let mut first = edge.connect();
    first.write_all(get("/").as_bytes()).unwrap();
    while origin.connections.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    assert_eq!(status_of(&edge.exchange(&get("/"))), 503);
}

#[test]
fn another_backend_of_the_rule_is_tried_when_one_refuses() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let origin = Origin::echo();
    let edge = TestEdge::start(forward_to(&[cluster(nobody), cluster(origin.address)]));
    let post = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    for _ in 0..10 {
        assert_eq!(status_of(&edge.exchange(&post)), 200);
    }
}
