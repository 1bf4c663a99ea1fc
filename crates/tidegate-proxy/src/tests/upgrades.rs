//! Upgraded connections and passthrough.

use std::io::{Read, Write};
use std::sync::mpsc;
use std::time::Duration;

use super::*;

const HANDSHAKE: &str = "GET /ws HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-Websocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[test]
fn bytes_pass_both_ways_after_101_and_survive_other_changes() {
    let origin = Origin::scripted(|_, mut stream| {
        let head = read_head(&mut stream);
        assert!(head.contains("\r\nUpgrade: websocket\r\n"), "{head}");
        assert!(head.contains("\r\nConnection: Upgrade\r\n"), "{head}");
        assert!(
            head.contains("\r\nSec-WebSocket-Key: "),
            "title case: {head}"
        );
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                      Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
        let mut buffer = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..n]).unwrap();
        }
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    let mut client = edge.connect();
    client.write_all(HANDSHAKE.as_bytes()).unwrap();
    let head = read_head(&mut client);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("sec-websocket-accept: x\r\n"), "{head}");
    for round in 0..50_u8 {
        let host = format!("other{round}.test");
        let other = virtual_host(
            &host,
            forward_to(&[cluster(origin.address)]),
            policy(certificate(&[&host])),
        );
        let own = virtual_host(
            HOST,
            forward_to(&[cluster(origin.address)]),
            policy(certificate(&[HOST])),
        );
        assert!(edge.store.publish(snapshot(vec![own, other])).is_some());
        client.write_all(&[round]).unwrap();
        let mut byte = [255];
        client.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [round]);
    }
}

#[test]
fn a_refused_upgrade_is_passed_on_and_nothing_behind_the_head_reaches_the_backend() {
    let (tell, told) = mpsc::channel();
    let origin = Origin::scripted(move |_, mut stream| {
        let _head = read_head(&mut stream);
        stream
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let mut early = [0; 64];
        tell.send(stream.read(&mut early).unwrap_or(0)).unwrap();
        let answer = "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
        let _ = stream.write_all(answer.as_bytes());
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    let mut client = edge.connect();
    client.write_all(HANDSHAKE.as_bytes()).unwrap();
    client
        .write_all(get("/smuggled").replace(HOST, "nobody.test").as_bytes())
        .unwrap();
    let answers = read_to_end(&mut client);
    assert_eq!(status_of(&answers), 403);
    assert_eq!(
        told.recv().unwrap(),
        0,
        "bytes behind the head reached the backend before its 101"
    );
    let second = answers.split_once("\r\n\r\nno").unwrap().1;
    assert!(second.starts_with("HTTP/1.1 404 "), "routed anew: {second}");
}

#[test]
fn a_backend_that_switches_unasked_is_a_bad_gateway() {
    let origin = Origin::scripted(|_, mut stream| {
        read_head(&mut stream);
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
        let _ = stream.write_all(answer.as_bytes());
        let _ = stream.read(&mut [0]);
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    assert_eq!(status_of(&edge.exchange(&get("/"))), 502);
}

#[test]
fn an_upgraded_connection_without_traffic_ends_after_its_idle_time() {
    let origin = Origin::scripted(|_, mut stream| {
        read_head(&mut stream);
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                      Upgrade: websocket\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
        let _ = stream.read(&mut [0]);
    });
    let mut rule = forward_to(&[cluster(origin.address)]);
    rule.timeouts.upgraded_idle = Some(Duration::from_millis(200));
    let edge = TestEdge::start(rule);
    let mut client = edge.connect();
    client.write_all(HANDSHAKE.as_bytes()).unwrap();
    assert!(read_to_end(&mut client).starts_with("HTTP/1.1 101 "));
}

#[test]
fn an_upgraded_connection_keeps_its_place_among_the_connections_of_its_client() {
    let origin = Origin::scripted(|_, mut stream| {
        read_head(&mut stream);
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                      Upgrade: websocket\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
        let _ = stream.read(&mut [0]);
    });
    let edge = TestEdge::start_with(forward_to(&[cluster(origin.address)]), |settings| {
        settings.limits.connections_per_client = 2;
    });
    let _open: Vec<_> = (0..2)
        .map(|_| {
            let mut client = edge.connect();
            client.write_all(HANDSHAKE.as_bytes()).unwrap();
            assert!(read_head(&mut client).starts_with("HTTP/1.1 101 "));
            client
        })
        .collect();
    let mut third = edge.connect();
    let _ = third.write_all(get("/").as_bytes());
    assert_eq!(read_to_end(&mut third), "");
    assert_eq!(edge.metric("tidegate_connections_open"), 2);
}
