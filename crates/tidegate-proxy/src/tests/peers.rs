//! Who the client is when something stands in front of the edge, and how backends are told.

use std::io::{Read, Write};
use std::net::Ipv4Addr;

use tidegate_model::ProxyProtocolVersion;

use super::*;
use crate::ProxyProtocolMode;

/// Connects from another address of the loopback network.
fn connect_from(local: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((local, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

const TRUSTED: [u8; 4] = [127, 0, 0, 2];

fn trusting(mode: ProxyProtocolMode) -> impl FnOnce(&mut Settings) {
    move |settings| {
        settings.trusted_proxies = vec!["127.0.0.2/32".parse().unwrap()];
        settings.proxy_protocol = mode;
    }
}

fn say(mut stream: TcpStream, bytes: &[u8]) -> String {
    stream.write_all(bytes).unwrap();
    read_to_end(&mut stream)
}

#[test]
fn a_chain_of_addresses_is_believed_from_trusted_peers_only() {
    let origin = Origin::echo();
    let edge = TestEdge::start_with(
        forward_to(&[cluster(origin.address)]),
        trusting(ProxyProtocolMode::Off),
    );
    let request = get("/").replace(
        "Connection:",
        "X-Forwarded-For: 1.1.1.1, 9.9.9.9, 127.0.0.2\r\nX-Forwarded-Proto: https\r\nConnection:",
    );
    let trusted = say(connect_from(TRUSTED, edge.http), request.as_bytes());
    assert!(
        trusted.contains("\r\nX-Forwarded-For: 9.9.9.9\r\n"),
        "{trusted}"
    );
    assert!(
        trusted.contains("\r\nX-Forwarded-Proto: https\r\n"),
        "{trusted}"
    );
    assert!(!trusted.contains("1.1.1.1"), "{trusted}");
    let stranger = say(connect_from([127, 0, 0, 3], edge.http), request.as_bytes());
    assert!(
        stranger.contains("\r\nX-Forwarded-For: 127.0.0.3\r\n"),
        "{stranger}"
    );
    assert!(
        stranger.contains("\r\nX-Forwarded-Proto: http\r\n"),
        "{stranger}"
    );
}

/// PROXY v2 for TCP over IPv4, 9.9.9.9:5 to 1.2.3.4:80.
fn version_2() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend([9, 9, 9, 9, 1, 2, 3, 4, 0, 5, 0, 80]);
    header
}

#[test]
fn a_proxy_header_names_the_client() {
    let origin = Origin::echo();
    let version_1 = b"PROXY TCP4 9.9.9.9 1.2.3.4 5 80\r\n".to_vec();
    let with = |header: &[u8]| [header, get("/").as_bytes()].concat();
    for mode in [ProxyProtocolMode::Optional, ProxyProtocolMode::Required] {
        let edge = TestEdge::start_with(forward_to(&[cluster(origin.address)]), trusting(mode));
        for header in [version_1.clone(), version_2()] {
            let answer = say(connect_from(TRUSTED, edge.http), &with(&header));
            assert!(
                answer.contains("\r\nX-Forwarded-For: 9.9.9.9\r\n"),
                "{mode:?}: {answer}"
            );
            let stranger = say(edge.connect(), &with(&header));
            assert!(!stranger.contains("HTTP/1.1 200 "), "{mode:?}: {stranger}");
        }
        let without = say(connect_from(TRUSTED, edge.http), get("/").as_bytes());
        if mode == ProxyProtocolMode::Required {
            assert_eq!(without, "");
        } else {
            assert!(
                without.contains("\r\nX-Forwarded-For: 127.0.0.2\r\n"),
                "{without}"
            );
        }
        assert_eq!(
            status_of(&edge.exchange(&get("/"))),
            200,
            "strangers need none"
        );
        let broken = say(connect_from(TRUSTED, edge.http), b"PROXY TCP4 9.9.9.9\r\n");
        assert_eq!(broken, "");
    }
}

#[test]
fn backends_are_told_by_a_proxy_header() {
    for version in [ProxyProtocolVersion::V1, ProxyProtocolVersion::V2] {
        let origin = Origin::scripted(move |_, mut stream| {
            let mut first = [0; 28];
            stream.read_exact(&mut first).unwrap();
            if version == ProxyProtocolVersion::V1 {
                assert!(first.starts_with(b"PROXY TCP4 127.0.0.1 "), "{first:?}");
                let mut byte = [0];
                while byte != *b"\n" {
                    stream.read_exact(&mut byte).unwrap();
                }
            } else {
                assert_eq!(first[..16], version_2()[..16]);
                assert_eq!(first[16..20], Ipv4Addr::LOCALHOST.octets());
            }
            // One request per connection, because the header is about its client.
            assert!(read_head(&mut stream).starts_with("GET / HTTP/1.1\r\n"));
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .unwrap();
            assert_eq!(read_to_end(&mut stream), "");
        });
        let mut cluster = Arc::unwrap_or_clone(cluster(origin.address));
        cluster.proxy_protocol = Some(version);
        let edge = TestEdge::start(forward_to(&[Arc::new(cluster)]));
        for _ in 0..3 {
            assert_eq!(status_of(&edge.exchange(&get("/"))), 200, "{version:?}");
        }
        assert_eq!(origin.connections.load(Ordering::SeqCst), 3);
    }
}

#[test]
fn a_listener_for_both_families_names_ipv4_clients_as_such() {
    let origin = Origin::echo();
    let edge = TestEdge::start_with(forward_to(&[cluster(origin.address)]), |settings| {
        settings.http = vec!["[::]:0".parse().unwrap()];
    });
    let address = SocketAddr::from(([127, 0, 0, 1], edge.http.port()));
    let answer = say(connect(address), get("/").as_bytes());
    assert!(
        answer.contains("\r\nX-Forwarded-For: 127.0.0.1\r\n"),
        "{answer}"
    );
    let address: SocketAddr = format!("[::1]:{}", edge.http.port()).parse().unwrap();
    let answer = say(connect(address), get("/").as_bytes());
    assert!(answer.contains("\r\nX-Forwarded-For: ::1\r\n"), "{answer}");
}

#[test]
fn headers_that_are_missing_or_not_expected_are_counted() {
    let origin = Origin::echo();
    let rule = || forward_to(&[cluster(origin.address)]);
    let header = b"PROXY TCP4 9.9.9.9 1.2.3.4 5 443\r\n".to_vec();
    let off = TestEdge::start_with(rule(), trusting(ProxyProtocolMode::Off));
    for begin in [header.clone(), version_2()] {
        // With the begin of a ClientHello after it, as it would come.
        let tls = [&begin[..], b"\x16\x03\x01\x02\x00\x01"].concat();
        say(connect_from(TRUSTED, off.https), &tls);
        say(connect_from([127, 0, 0, 3], off.https), &tls);
        let plain = [&begin[..], get("/").as_bytes()].concat();
        say(connect_from([127, 0, 0, 3], off.http), &plain);
    }
    say(off.connect(), get("/").as_bytes());
    let seen = off.edge.observe().peers;
    assert_eq!((seen.unexpected, seen.proxied, seen.unproxied), (6, 0, 0));
    // This machine tells nothing of how clients come.
    assert_eq!((seen.public, seen.private), (0, 0));

    let required = TestEdge::start_with(rule(), trusting(ProxyProtocolMode::Required));
    let with = [&header[..], get("/").as_bytes()].concat();
    say(connect_from(TRUSTED, required.http), &with);
    say(connect_from(TRUSTED, required.http), get("/").as_bytes());
    say(connect_from([127, 0, 0, 3], required.http), &with);
    let seen = required.edge.observe().peers;
    assert_eq!((seen.unexpected, seen.proxied, seen.unproxied), (1, 1, 1));
}
