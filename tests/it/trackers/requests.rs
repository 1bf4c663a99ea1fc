//! Requests of BitTorrent clients: the tracker gets the target byte for byte, and one client address whatever
//! the client says of itself.
//!
//! Clients write raw hashes into the target, each in its own way, so every byte that may stand in a request
//! line is sent as it is and escaped, on raw sockets to an origin that keeps raw bytes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};

use rustls::version::TLS12;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::answers::tracker;
use crate::support::client::block_on;
use crate::support::raw::{RawOrigin, Seen, find};
use crate::support::{Client, Edge, breathe, ports, route_of};

const HOST: &str = "http1.tracker.test";
const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Length: 35\r\n\r\nd8:completei1e8:intervali120e1:x0:e";

struct Bed {
    origin: RawOrigin,
    edge: Edge,
}

impl Bed {
    fn new(more: &str) -> Self {
        let origin = RawOrigin::answering(ANSWER);
        let edge = Edge::start(&[tracker(HOST, origin.address(), more)]);
        Self { origin, edge }
    }

    /// Sends these requests one after the other on one connection, each when the one before is answered.
    /// Returns the statuses.
    fn send(client: &Client, alpn: &[&str], requests: &[Vec<u8>]) -> Vec<u16> {
        block_on(async {
            let mut stream = client.connect(HOST, alpn).await.unwrap();
            let mut statuses = Vec::new();
            for request in requests {
                stream.write_all(request).await.unwrap();
                let Some(status) = answer(&mut stream).await else {
                    break;
                };
                statuses.push(status);
            }
            statuses
        })
    }

    fn send_targets(&self, targets: &[String]) -> Vec<u16> {
        let requests: Vec<_> = targets.iter().map(|target| get(target)).collect();
        Self::send(&self.edge.client(), &["http/1.1"], &requests)
    }

    /// Sends one request on a connection of its own and returns what the tracker got.
    #[track_caller]
    fn only(&self, client: &Client, alpn: &[&str], request: &str) -> Seen {
        let before = self.origin.seen().len();
        let statuses = Self::send(client, alpn, &[request.as_bytes().to_vec()]);
        assert_eq!(statuses, [200], "{request}");
        let seen = self.origin.seen();
        assert_eq!(seen.len(), before + 1, "{request}");
        seen[before].clone()
    }

    #[track_caller]
    fn gets_through(&self, targets: &[String]) {
        let before = self.origin.seen().len();
        let statuses = self.send_targets(targets);
        let wrong: Vec<_> = targets
            .iter()
            .zip(&statuses)
            .filter(|(_, status)| **status != 200)
            .collect();
        assert!(
            wrong.is_empty() && statuses.len() == targets.len(),
            "{wrong:#?}"
        );
        let seen = self.origin.seen();
        let lines: Vec<_> = seen[before..]
            .iter()
            .map(|seen| seen.line().to_owned())
            .collect();
        let sent: Vec<_> = targets
            .iter()
            .map(|target| format!("GET {target} HTTP/1.1"))
            .collect();
        let changed: Vec<_> = sent
            .iter()
            .zip(&lines)
            .filter(|(sent, got)| sent != got)
            .collect();
        assert!(
            changed.is_empty() && sent.len() == lines.len(),
            "{changed:#?}"
        );
    }
}

fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: qBittorrent/4.5.2\r\n\r\n")
        .into_bytes()
}

/// The status of the next answer, when all of it has come. None if the connection ended.
async fn answer(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<u16> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        if let Some(head) = find(&bytes, b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
            let length = text
                .split("\r\ncontent-length:")
                .nth(1)
                .and_then(|rest| rest.lines().next()?.trim().parse().ok());
            let length: usize = length.unwrap_or(0);
            if bytes.len() >= head + 4 + length {
                return text.split(' ').nth(1)?.parse().ok();
            }
        }
        match stream.read(&mut buffer).await {
            Ok(count @ 1..) => bytes.extend_from_slice(&buffer[..count]),
            _ => return None,
        }
    }
}

/// A hash and an id with this in them: at the begin, at the end, beside escapes, twice.
fn announce(piece: &str) -> String {
    format!(
        "/announce?info_hash={piece}%86zsL%94{piece}%0Et%d5B{piece}{piece}'(~&peer_id=-qB4520-{piece}(UfWm{piece}&port=17548&event=started{piece}"
    )
}

#[test]
fn every_byte_of_a_target_gets_through() {
    let bed = Bed::new("");
    let mut targets: Vec<String> = (0x21..=0x7E)
        .map(|byte: u8| announce(&char::from(byte).to_string()))
        .collect();
    for byte in 0..=u8::MAX {
        targets.push(announce(&format!("%{byte:02x}")));
        targets.push(announce(&format!("%{byte:02X}")));
        targets.push(announce(&format!("%{byte:02X}{byte:02x}%{byte:02x}")));
    }
    // What strict trackers refuse is theirs to refuse.
    for target in [
        "/announce?info_hash=a&&info_hash=b&",
        "/announce?&=&==&compact=2&x",
        "/announce?",
        "/announce??a?b",
        "//announce?x=1",
        "/announce/?x=1",
        "/announce/KEY;v=1?ip=1.2.3.4&ipv4=5.6.7.8&ipv6=%3A%3A1",
        "/a//b/announce.php?x=%&y=%4&z=%zz&u=%u0041",
        "/announce?b=2&a=1&b=1&A=3",
        "/announce?x=/../..//./%2e%2e%2f",
    ] {
        targets.push(target.to_owned());
    }
    bed.gets_through(&targets);
    let mut rng = fastrand::Rng::with_seed(6);
    let random: Vec<String> = (0..400)
        .map(|_| {
            let query: String = (0..rng.usize(1..120))
                .map(|_| char::from(rng.u8(0x21..=0x7E)))
                .collect();
            format!("/announce?{query}")
        })
        .collect();
    bed.gets_through(&random);
}

/// The four bytes that no query may hold: trackers get them, other backends are kept from them, and a request
/// that comes before its turn is the codec's.
#[test]
fn bytes_that_no_query_may_hold_are_for_trackers_only() {
    let origin = RawOrigin::answering(ANSWER);
    let other = "other.tracker.test";
    let edge = Edge::start(&[
        tracker(HOST, origin.address(), ", addressParameters: Strip"),
        route_of(
            "other",
            &format!(
                "hostnames: [{other}]\nrules:\n- matches: [{{queryParams: [{{name: a, value: \"1\"}}]}}]\n  backends: [{{address: \"{0}\"}}]\n\
                 - match: {{pathPrefix: /announce}}\n  tracker: {{}}\n  backends: [{{address: \"{0}\"}}]\n",
                origin.address()
            ),
        ),
    ]);
    let client = edge.client();
    // In two pieces, with addresses taken out of both readings.
    let statuses = block_on(async {
        let mut stream = client.connect(HOST, &[]).await.unwrap();
        let mut statuses = Vec::new();
        for (one, two) in [
            ("GET /announce?a=\"&ip=1&b=<", "x>&c=#d&ipv6=2 HTTP/1.1\r\n"),
            ("GET /announce?a", "=!#! HTTP/1.1\r\n"),
            ("GET /announce?a=!&b=", "! HTTP/1.1\r\n"),
        ] {
            stream.write_all(one.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            breathe();
            stream.write_all(two.as_bytes()).await.unwrap();
            let rest = format!("Host: {HOST}\r\nX: \"<>#\r\n\r\n");
            stream.write_all(rest.as_bytes()).await.unwrap();
            statuses.extend(answer(&mut stream).await);
        }
        statuses
    });
    assert_eq!(statuses, [200; 3]);
    let seen = origin.seen();
    assert_eq!(
        seen.iter().map(Seen::line).collect::<Vec<_>>(),
        [
            "GET /announce?a=\"&b=<x>&c=#d HTTP/1.1",
            "GET /announce?a=!#! HTTP/1.1",
            "GET /announce?a=!&b=! HTTP/1.1",
        ]
    );
    assert!(seen.iter().all(|seen| seen.values("x") == ["\"<>#"]));
    assert!(
        edge.log()
            .contains("query=\"a=\\\"&ip=1&b=<x>&c=#d&ipv6=2\""),
        "{}",
        edge.log()
    );

    let of = |host: &'static str, target: &str| {
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\n\r\n");
        let client = edge.client();
        let before = origin.seen().len();
        let status = block_on(async move {
            let mut stream = client.connect(host, &[]).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            answer(&mut stream).await
        });
        let seen = origin.seen();
        (
            status,
            seen[before..]
                .iter()
                .map(|seen| seen.line().to_owned())
                .collect::<String>(),
        )
    };
    for (target, status, line) in [
        // Two rules of one host: the tracker's gets it all, the other one what RFC 3986 says.
        ("/announce?b=\"#", 200, "GET /announce?b=\"# HTTP/1.1"),
        ("/x?a=1#\"", 200, "GET /x?a=1 HTTP/1.1"),
        ("/x?a=1&b=\"", 400, ""),
        ("/x?a=\"", 400, ""),
        // Not in the query: the codec's.
        ("/announce/<x>", 400, ""),
        ("/announce#x?y", 200, "GET /announce HTTP/1.1"),
    ] {
        assert_eq!(
            of(other, target),
            (Some(status), line.to_owned()),
            "{target}"
        );
    }
    assert!(
        edge.admin("/metrics")
            .unwrap()
            .contains("tidegate_http_refusals_total{reason=\"InvalidTarget\"} 2")
    );

    // Sent before the answer to the one before: refused, and never with another byte in its place.
    let before = origin.seen().len();
    let pair = [get("/announce?n=\"1"), get("/announce?n=\"2")].concat();
    let statuses = block_on(async {
        let mut stream = client.connect(HOST, &[]).await.unwrap();
        stream.write_all(&pair).await.unwrap();
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text).await;
        let text = String::from_utf8_lossy(&text).into_owned();
        let found: Vec<u16> = text
            .split("HTTP/1.1 ")
            .skip(1)
            .filter_map(|rest| rest.get(..3)?.parse().ok())
            .collect();
        found
    });
    assert_eq!(statuses, [200, 400]);
    let seen = origin.seen();
    assert_eq!(
        seen[before..].iter().map(Seen::line).collect::<Vec<_>>(),
        ["GET /announce?n=\"1 HTTP/1.1"]
    );
}

#[test]
fn addresses_that_clients_claim_are_taken_out_where_asked_and_nothing_else() {
    let bed = Bed::new(", addressParameters: Strip");
    let before = [
        "/announce?info_hash=%0e%0E'(~|{}&ip=1.2.3.4&port=1&&ipv4=::1&ipv6=x&key=%CD%CA%21",
        "/announce?%69p=1&port=1",
        "/KEY/announce?ip=1",
        "/other?ip=1",
    ];
    let statuses = bed.send_targets(&before.map(str::to_owned));
    assert_eq!(statuses, [200; 4]);
    let seen = bed.origin.seen();
    let lines: Vec<_> = seen.iter().map(Seen::line).collect();
    assert_eq!(
        lines,
        [
            "GET /announce?info_hash=%0e%0E'(~|{}&port=1&&key=%CD%CA%21 HTTP/1.1",
            "GET /announce?port=1 HTTP/1.1",
            "GET /KEY/announce HTTP/1.1",
            "GET /other?ip=1 HTTP/1.1",
        ]
    );
}

#[test]
fn a_scrape_of_hundreds_of_torrents_gets_through() {
    let bed = Bed::new("");
    let targets: Vec<String> = [5_000, 14_000, 35_000, 64_000]
        .map(|length| {
            let mut target = String::from("/scrape?");
            while target.len() < length {
                target.push_str("info_hash=%86%00zsL%94%0Et%D5B'(%ff%FF~%01%02%03%04&");
            }
            target.truncate(length);
            target
        })
        .to_vec();
    bed.gets_through(&targets);
}

#[test]
fn the_tracker_gets_one_address_whatever_the_client_says() {
    let bed = Bed::new("");
    let client = bed.edge.client();
    let spoofed = "X-Forwarded-For: 9.9.9.9\r\nx-forwarded-for: 8.8.8.8, 7.7.7.7\r\nX-FORWARDED-FOR: unknown\r\n\
                   X-Real-IP: 9.9.9.9\r\nForwarded: for=9.9.9.9;proto=http\r\nTrue-Client-IP: 9.9.9.9\r\n\
                   CF-Connecting-IP: 9.9.9.9\r\nX-Client-IP: 9.9.9.9\r\nX-Forwarded-Host: evil.test\r\n\
                   X-Forwarded-Proto: http\r\nConnection: X-Forwarded-For\r\n";
    for (version, alpn) in [("1.1", &["http/1.1"][..]), ("1.1", &[]), ("1.0", &[])] {
        for fields in ["", spoofed] {
            let request = format!(
                "GET /announce?info_hash=%86z HTTP/{version}\r\nHost: {HOST}\r\n{fields}\r\n"
            );
            let seen = bed.only(&client, alpn, &request);
            let of = |name: &str| seen.values(name).join(" | ");
            // The spelling too: one tracker ends its process over another.
            assert_eq!(
                seen.head
                    .matches("\r\nX-Forwarded-For: 127.0.0.1\r\n")
                    .count(),
                1,
                "{}",
                seen.head
            );
            assert_eq!(of("x-forwarded-for"), "127.0.0.1", "{}", seen.head);
            assert_eq!(of("x-real-ip"), "127.0.0.1");
            assert_eq!(of("x-forwarded-proto"), "https");
            assert_eq!(of("x-forwarded-host"), HOST);
            assert_eq!(of("host"), HOST);
            assert!(
                !seen.head.contains("9.9.9.9") && !seen.head.contains("8.8.8.8"),
                "{}",
                seen.head
            );
            assert!(seen.values("accept-encoding").is_empty(), "{}", seen.head);
        }
    }
}

#[test]
fn an_ipv4_client_of_a_dual_stack_listener_has_an_ipv4_address() {
    let origin = RawOrigin::answering(ANSWER);
    let port = ports::free();
    let edge = Edge::builder()
        .object(tracker(HOST, origin.address(), ""))
        .arg("--http")
        .arg(&format!("[::]:{port}"))
        .start();
    for (to, expected) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
        let before = origin.seen().len();
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let mut stream = std::net::TcpStream::connect(to).unwrap();
        write!(
            stream,
            "GET /announce HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
        assert_eq!(origin.seen()[before].values("x-forwarded-for"), [expected]);
    }
    drop(edge);
}

#[test]
fn old_and_plain_clients_are_served() {
    let bed = Bed::new("");
    let client = bed.edge.client();
    let old = client.clone().with_config(|_| {
        let roots = Client::roots(&std::fs::read(bed.edge.ca_file()).unwrap());
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS12])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    });
    let port = bed.edge.https;
    for (client, alpn, request) in [
        (
            &client,
            &[][..],
            "GET /announce?x=%0e HTTP/1.0\r\n\r\n".to_owned(),
        ),
        (
            &client,
            &[],
            format!("GET /announce?x=%0e HTTP/1.0\r\nHost: {HOST}\r\n\r\n"),
        ),
        (&old, &[], "GET /announce?x=%0e HTTP/1.0\r\n\r\n".to_owned()),
        (
            &old,
            &["http/1.1"],
            format!(
                "GET /announce?x=%0e HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n"
            ),
        ),
        (
            &client,
            &[],
            format!("GET https://{HOST}/announce?x=%0e HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        ),
        (
            &client,
            &[],
            format!(
                "GET /announce?x=%0e HTTP/1.1\r\nHost: {}\r\n\r\n",
                HOST.to_uppercase()
            ),
        ),
    ] {
        let seen = bed.only(client, alpn, &request);
        assert_eq!(seen.line(), "GET /announce?x=%0e HTTP/1.1", "{request}");
        assert_eq!(seen.values("host").len(), 1, "{request}");
        assert_eq!(seen.values("x-forwarded-for"), ["127.0.0.1"], "{request}");
    }
    // A pair sent at once gets two answers in order.
    let pair = [get("/announce?n=1"), get("/announce?n=2")].concat();
    let before = bed.origin.seen().len();
    let statuses = block_on(async {
        let mut stream = client.connect(HOST, &[]).await.unwrap();
        stream.write_all(&pair).await.unwrap();
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        while String::from_utf8_lossy(&text).matches("1:x0:e").count() < 2 {
            match stream.read(&mut buffer).await {
                Ok(count @ 1..) => text.extend_from_slice(&buffer[..count]),
                _ => break,
            }
        }
        String::from_utf8_lossy(&text)
            .matches("HTTP/1.1 200 OK")
            .count()
    });
    assert_eq!(statuses, 2);
    let seen = bed.origin.seen();
    let lines: Vec<_> = seen[before..].iter().map(Seen::line).collect();
    assert_eq!(
        lines,
        ["GET /announce?n=1 HTTP/1.1", "GET /announce?n=2 HTTP/1.1"]
    );
}

/// A tracker that answers without `Connection: close` and closes all the same, as opentracker does: between
/// two announces, or just when the next one is on its way.
#[test]
fn a_tracker_that_closes_kept_connections_costs_no_announce() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut served = 0_u32;
        while let Ok((mut stream, _)) = listener.accept() {
            served += 1;
            let mut buffer = [0; 16_384];
            // One answer, or two and then a request read and not answered.
            let answers = if served.is_multiple_of(2) { 1 } else { 2 };
            for _ in 0..answers {
                let Ok(count @ 1..) = stream.read(&mut buffer) else {
                    break;
                };
                assert!(buffer[..count].ends_with(b"\r\n\r\n"));
                let _ = stream.write_all(ANSWER);
            }
            if answers == 2 {
                let _ = stream.read(&mut buffer);
            }
        }
    });
    let edge = Edge::start(&[tracker(HOST, address, "")]);
    let client = edge.client();
    let statuses = block_on(async {
        let mut stream = client.connect(HOST, &[]).await.unwrap();
        let mut statuses = Vec::new();
        for index in 0..300 {
            stream
                .write_all(&get(&format!("/announce?n={index}")))
                .await
                .unwrap();
            statuses.extend(answer(&mut stream).await);
        }
        statuses
    });
    assert_eq!(statuses, vec![200; 300]);
}
