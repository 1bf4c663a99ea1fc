//! The corpus of the normaliser: HTTP/1 as raw bytes through hyper's own codec, the rest as parsed heads.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const LIMITS: (usize, usize, usize) = (65_536, 100, 65_534);

/// What became of a raw request.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// Normalised; header fields left, sorted, one a line.
    Passed(String),
    /// Refused by the normaliser with this reason.
    Refused(&'static str),
    /// hyper did not hand it over.
    Codec,
}

fn judge(parts: &mut http::request::Parts) -> Result<Normalized, Refusal> {
    if let Some(text) = authority(parts)? {
        Authority::parse(text)?;
    }
    request(parts, LIMITS)
}

fn left(headers: &HeaderMap) -> String {
    let mut lines: Vec<_> = headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    lines.sort();
    lines.join("\n")
}

/// Sends raw bytes into hyper's server and returns what the normaliser said of each request.
async fn serve(raw: &str) -> Vec<Outcome> {
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&outcomes);
    let handler = service_fn(move |request: Request<Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            let (mut parts, body) = request.into_parts();
            let outcome = match judge(&mut parts) {
                Ok(_) => Outcome::Passed(left(&parts.headers)),
                Err(refusal) => Outcome::Refused(refusal.reason),
            };
            let refused = matches!(outcome, Outcome::Refused(_));
            seen.lock().unwrap().push(outcome);
            let _ = body.collect().await;
            let mut response = Response::new(Empty::<Bytes>::new());
            if refused {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let (client, server) = tokio::io::duplex(1 << 20);
    let (mut reader, mut writer) = tokio::io::split(client);
    writer.write_all(raw.as_bytes()).await.unwrap();
    writer.shutdown().await.unwrap();
    let connection = http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(server), handler);
    let (done, ()) = tokio::join!(connection, async {
        let mut answer = Vec::new();
        let _ = reader.read_to_end(&mut answer).await;
    });
    let mut outcomes = std::mem::take(&mut *outcomes.lock().unwrap());
    if done.is_err() {
        outcomes.push(Outcome::Codec);
    }
    outcomes
}

#[track_caller]
fn wire(raw: &str, expected: &[Outcome]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let raw = raw.replace('\n', "\r\n");
    assert_eq!(runtime.block_on(serve(&raw)), expected, "{raw}");
}

#[track_caller]
fn wire_refused(raw: &str, reason: &'static str) {
    wire(raw, &[Outcome::Refused(reason)]);
}

#[track_caller]
fn wire_codec(raw: &str) {
    wire(raw, &[Outcome::Codec]);
}

#[track_caller]
fn wire_passed(raw: &str, left: &str) {
    wire(raw, &[Outcome::Passed(left.to_owned())]);
}

#[test]
fn what_only_the_edge_may_say_to_agents_is_taken_from_visitors() {
    let mut parts = Request::get("/")
        .header("tidegate-tunnel-mapping", "a")
        .header("Tidegate-Tunnel-Client", "b")
        .header("tidegate-tunnel-client", "c")
        .header("tidegate-tunnel-later", "d")
        .header("tidegate-tunne", "kept")
        .body(())
        .unwrap()
        .into_parts()
        .0;
    request(&mut parts, (1000, 100, 1000)).unwrap();
    let left: Vec<_> = parts.headers.keys().map(HeaderName::as_str).collect();
    assert_eq!(left, ["tidegate-tunne"]);
}

#[test]
fn rule_1_exactly_one_valid_host() {
    wire_passed("GET / HTTP/1.1\nHost: a.example\n\n", "host: a.example");
    wire_passed(
        "GET / HTTP/1.1\nHost: A.Example:8443\n\n",
        "host: A.Example:8443",
    );
    wire_passed("GET / HTTP/1.1\nHost: [::1]:80\n\n", "host: [::1]:80");
    wire_passed("GET / HTTP/1.0\n\n", "");
    wire_passed("GET / HTTP/1.0\nHost: a\n\n", "host: a");
    wire_passed(
        "GET http://a.example/x HTTP/1.1\nHost: A.example\n\n",
        "host: A.example",
    );
    wire_refused("GET / HTTP/1.1\n\n", "MissingHost");
    wire_refused("GET http://a.example/ HTTP/1.1\n\n", "MissingHost");
    wire_refused("GET / HTTP/1.1\nHost: a\nHost: a\n\n", "HostConflict");
    wire_refused("GET / HTTP/1.1\nHost: a\nHost: b\n\n", "HostConflict");
    wire_refused(
        "GET http://a.example/ HTTP/1.1\nHost: b.example\n\n",
        "HostConflict",
    );
    wire_refused(
        "GET http://u@a.example/ HTTP/1.1\nHost: a.example\n\n",
        "HostConflict",
    );
    wire_refused("GET http://u@a/ HTTP/1.1\nHost: u@a\n\n", "InvalidHost");
    wire_refused(
        "GET ftp://a.example/ HTTP/1.1\nHost: a.example\n\n",
        "Scheme",
    );
    for host in [
        "",
        "a b",
        "a,b",
        "a/b",
        "u@a",
        "a:",
        "a:0",
        "a:65536",
        "a:+80",
        "a:80:80",
        "::1",
        "[::1",
        "[::1]x",
        "[::1%25eth0]",
        "a..b",
        "*",
        "a?b",
        "a#b",
        "a\\b",
        "ä.example",
    ] {
        wire_refused(&format!("GET / HTTP/1.1\nHost: {host}\n\n"), "InvalidHost");
    }
}

#[test]
fn rule_3_transfer_encoding() {
    let post = |fields: &str| format!("POST / HTTP/1.1\nHost: a\n{fields}\n\n0\n\n");
    wire_passed(&post("Transfer-Encoding: chunked"), "host: a");
    wire_passed(&post("Transfer-Encoding: Chunked"), "host: a");
    // hyper reads the body as chunked, drops the length and closes: the pipelined request is not served.
    let smuggle = "GET /smuggled HTTP/1.1\nHost: a\n\n";
    for fields in [
        "Content-Length: 5\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\nContent-Length: 5",
    ] {
        wire_passed(&(post(fields) + smuggle), "host: a");
    }
    wire_refused(
        &post("Transfer-Encoding: chunked\nTransfer-Encoding: chunked"),
        "TransferEncoding",
    );
    for value in [
        "gzip, chunked",
        "chunked, chunked",
        ",chunked",
        "identity, chunked",
        "x chunked, chunked",
    ] {
        wire_refused(
            &post(&format!("Transfer-Encoding: {value}")),
            "TransferEncoding",
        );
    }
    for value in [
        "gzip",
        "chunked, gzip",
        "identity",
        "xchunked",
        "\"chunked\"",
        "chunked;q=1",
    ] {
        wire_codec(&post(&format!("Transfer-Encoding: {value}")));
    }
    wire_codec("POST / HTTP/1.0\nTransfer-Encoding: chunked\n\n0\n\n");
    wire_codec("POST / HTTP/1.1\nHost: a\nTransfer-Encoding : chunked\n\n0\n\n");
    wire_codec("POST / HTTP/1.1\nHost: a\nTransfer-Encoding:\n chunked\n\n0\n\n");
    wire_refused(&post("Transfer_Encoding: chunked"), "UnderscoreInHeader");
}

#[test]
fn rule_4_content_length() {
    let post = |value: &str| format!("POST / HTTP/1.1\nHost: a\nContent-Length: {value}\n\nhello");
    wire_passed(&post("5"), "content-length: 5\nhost: a");
    wire_passed(&post("005"), "content-length: 005\nhost: a");
    wire_passed(&post("5\nContent-Length: 5"), "content-length: 5\nhost: a");
    for bad in [
        "",
        "+5",
        "-5",
        "5,5",
        "5, 5",
        "5 5",
        "0x5",
        "5.0",
        "5_0",
        "5;",
        "five",
        "18446744073709551616",
        "9223372036854775808000",
        "5\nContent-Length: 6",
        "\"5\"",
    ] {
        wire_codec(&post(bad));
    }
}

#[test]
fn head_grammar_is_hypers() {
    for raw in [
        "GET / HTTP/1.1\nHost: a\nX: a\0b\n\n",
        "GET / HTTP/1.1\nHost: a\nX : b\n\n",
        "GET / HTTP/1.1\nHost: a\n folded\n\n",
        "GET / HTTP/1.1\nHost: a\nX\n\n",
        "GET / HTTP/1.1\nHost: a\n: x\n\n",
        "GET / HTTP/1.1\nHost: a\nX: a\u{7f}b\n\n",
        "GET  / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/2.0\nHost: a\n\n",
        "GET / HTTP/1.2\nHost: a\n\n",
        "G(T / HTTP/1.1\nHost: a\n\n",
        "GET /\u{1} HTTP/1.1\nHost: a\n\n",
    ] {
        wire_codec(raw);
    }
}

#[test]
fn rule_5_hop_by_hop_fields_go() {
    wire_passed(
        "GET / HTTP/1.1\nHost: a\nConnection: close, X-Hop, x-other\nX-Hop: 1\nX-Other: 2\nKeep-Alive: 5\n\
         Proxy-Connection: close\nProxy-Authorization: x\nProxy-Foo: x\nTE: gzip\nTrailer: X-T\n\
         HTTP2-Settings: AAMAAABk\nUpgrade: h2c\nAccept: */*\n\n",
        "accept: */*\nhost: a",
    );
    wire_passed(
        "GET / HTTP/1.1\nHost: a\nConnection: close, host, X-Forwarded-For, authorization, cookie, \
         content-type, forwarded, x-real-ip\nX-Forwarded-For: 1.1.1.1\nAuthorization: b\nCookie: c\n\
         Content-Type: d\nForwarded: e\nX-Real-IP: f\n\n",
        "authorization: b\ncontent-type: d\ncookie: c\nforwarded: e\nhost: a\nx-forwarded-for: 1.1.1.1\n\
         x-real-ip: f",
    );
    let many = "x,".repeat(65);
    wire_refused(
        &format!("GET / HTTP/1.1\nHost: a\nConnection: {many}\n\n"),
        "Connection",
    );
}

#[test]
fn rule_6_underscores() {
    for name in ["X_Forwarded_For", "Content_Length", "X_A", "_"] {
        wire_refused(
            &format!("GET / HTTP/1.1\nHost: a\n{name}: 1\n\n"),
            "UnderscoreInHeader",
        );
    }
}

#[test]
fn targets_other_than_origin_and_absolute_form() {
    wire_passed("OPTIONS * HTTP/1.1\nHost: a\n\n", "host: a");
    wire_refused("GET * HTTP/1.1\nHost: a\n\n", "TargetForm");
    wire_refused("CONNECT a:443 HTTP/1.1\nHost: a:443\n\n", "Connect");
    wire_refused("GET a HTTP/1.1\nHost: a\n\n", "TargetForm");
    let long = "a".repeat(65_534);
    wire_passed(
        &format!("GET /{} HTTP/1.1\nHost: a\n\n", &long[1..]),
        "host: a",
    );
}

fn parts(
    build: impl FnOnce(http::request::Builder) -> http::request::Builder,
) -> http::request::Parts {
    build(Request::builder()).body(()).unwrap().into_parts().0
}

fn h2(fields: &[(&str, &str)]) -> http::request::Parts {
    parts(|builder| {
        let builder = builder.version(Version::HTTP_2).uri("https://a.example/x");
        fields
            .iter()
            .fold(builder, |b, (name, value)| b.header(*name, *value))
    })
}

#[track_caller]
fn h2_refused(fields: &[(&str, &str)], reason: &str) {
    let refusal = judge(&mut h2(fields)).unwrap_err();
    assert_eq!(refusal.reason, reason);
}

#[test]
fn rule_2_http2_names_one_host() {
    for fields in [
        &[] as &[_],
        &[("host", "a.example")],
        &[("host", "A.example")],
    ] {
        assert!(judge(&mut h2(fields)).is_ok(), "{fields:?}");
    }
    h2_refused(&[("host", "b.example")], "HostConflict");
    h2_refused(&[("host", "")], "HostConflict");
    h2_refused(
        &[("host", "a.example"), ("host", "a.example")],
        "HostConflict",
    );
    let uri = |uri: &str| parts(|b| b.version(Version::HTTP_2).uri(uri.to_owned()));
    for (text, reason) in [
        ("https://u@a.example/", "InvalidHost"),
        ("https://u:p@a.example/", "InvalidHost"),
        ("ftp://a.example/", "Scheme"),
        ("/", "MissingHost"),
        ("https://a.example:0/", "InvalidHost"),
    ] {
        assert_eq!(judge(&mut uri(text)).unwrap_err().reason, reason, "{text}");
    }
    // Translated from HTTP/1 by another proxy: RFC 9113 §8.3.1 allows Host alone.
    let mut translated = parts(|b| b.version(Version::HTTP_2).uri("/").header("host", "a"));
    assert!(judge(&mut translated).is_ok());
}

#[test]
fn http2_lengths_are_checked_too() {
    h2_refused(
        &[("content-length", "5"), ("content-length", "5")],
        "ContentLength",
    );
    for bad in ["+5", "5,5", "", " 5", "9223372036854775808"] {
        h2_refused(&[("content-length", bad)], "ContentLength");
    }
    let mut fine = h2(&[("content-length", "9223372036854775807")]);
    assert!(judge(&mut fine).is_ok());
    h2_refused(&[("transfer-encoding", "chunked")], "TransferEncoding");
}

#[test]
fn http2_cookie_crumbs_become_one_field() {
    let mut found = h2(&[
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("x", "y"),
        ("cookie", "c=3"),
    ]);
    judge(&mut found).unwrap();
    assert_eq!(left(&found.headers), "cookie: a=1; b=2; c=3\nx: y");
}

#[test]
fn connect_opens_websockets_only() {
    let connect = |protocol: Option<&'static str>| {
        let mut found = parts(|b| {
            b.version(Version::HTTP_2)
                .method(Method::CONNECT)
                .uri("https://a.example/ws")
        });
        if let Some(protocol) = protocol {
            let protocol = h2::ext::Protocol::from_static(protocol);
            found.extensions.insert(protocol);
        }
        judge(&mut found)
    };
    let opened = connect(Some("websocket")).unwrap().upgrade.unwrap();
    assert_eq!(opened, "websocket");
    assert_eq!(connect(Some("connect-udp")).unwrap_err().status, 501);
    assert_eq!(connect(None).unwrap_err().status, 405);
}

fn h1(fields: &[(&str, &str)]) -> http::request::Parts {
    parts(|builder| {
        let builder = builder.uri("/").header("host", "a");
        fields
            .iter()
            .fold(builder, |b, (name, value)| b.header(*name, *value))
    })
}

#[test]
fn an_upgrade_is_returned_and_not_passed_on() {
    let upgrade = |fields: &[(&str, &str)]| {
        let mut found = h1(fields);
        let normalized = judge(&mut found).unwrap();
        assert!(
            !found.headers.contains_key("upgrade") && !found.headers.contains_key("connection")
        );
        normalized.upgrade
    };
    let some = |protocol| Some(HeaderValue::from_static(protocol));
    let websocket = some("websocket");
    for (connection, offer, expected) in [
        ("Upgrade", "websocket", websocket.clone()),
        ("keep-alive, upgrade", "WebSocket", websocket.clone()),
        ("upgrade", "foo, websocket", websocket),
        ("upgrade", "SPDY/3.1", some("SPDY/3.1")),
        ("upgrade, http2-settings", "h2c", None),
        ("upgrade", "h2c, foo", some("foo")),
        ("close", "websocket", None),
    ] {
        let found = upgrade(&[("connection", connection), ("upgrade", offer)]);
        assert_eq!(found, expected, "{connection} {offer}");
    }
    assert_eq!(upgrade(&[("upgrade", "websocket")]), None);
    let mut old = h1(&[("connection", "upgrade"), ("upgrade", "websocket")]);
    old.version = Version::HTTP_10;
    assert_eq!(judge(&mut old).unwrap().upgrade, None);
}

#[test]
fn te_and_expect_are_returned_and_not_passed_on() {
    let mut found = h1(&[
        ("te", "gzip, Trailers"),
        ("connection", "TE"),
        ("expect", "100-Continue"),
    ]);
    let normalized = judge(&mut found).unwrap();
    assert!(normalized.trailers && normalized.expect_continue && !normalized.chunked);
    assert_eq!(left(&found.headers), "host: a");
    let refusal = judge(&mut h1(&[("expect", "200-maybe")])).unwrap_err();
    assert_eq!(refusal.status, StatusCode::EXPECTATION_FAILED);
    let mut found = h1(&[("transfer-encoding", "chunked")]);
    assert!(judge(&mut found).unwrap().chunked);
    assert_eq!(left(&found.headers), "host: a");
}

#[test]
fn limits_have_their_own_statuses() {
    let status =
        |parts: &mut http::request::Parts, limits| request(parts, limits).unwrap_err().status;
    let mut found = h1(&[("a", "1"), ("b", "2")]);
    assert!(request(&mut found.clone(), (100, 3, 1)).is_ok());
    assert_eq!(status(&mut found.clone(), (100, 2, 1)), 431);
    assert_eq!(status(&mut found.clone(), (10, 3, 1)), 431);
    found.uri = "/a?b".parse().unwrap();
    assert!(request(&mut found.clone(), (100, 3, 4)).is_ok());
    assert_eq!(status(&mut found, (100, 3, 3)), 414);
}

fn answer(status: u16, fields: &[(&str, &str)]) -> http::response::Parts {
    let builder = Response::builder().status(status);
    let builder = fields
        .iter()
        .fold(builder, |b, (name, value)| b.header(*name, *value));
    builder.body(()).unwrap().into_parts().0
}

#[test]
fn rule_7_responses_have_one_reading() {
    let get = Method::GET;
    for (status, fields, expected, reuse) in [
        (
            200,
            &[("content-length", "5")] as &[_],
            "content-length: 5",
            Reuse::Allowed,
        ),
        (200, &[("transfer-encoding", "chunked")], "", Reuse::Allowed),
        (
            200,
            &[("content-length", "5"), ("transfer-encoding", "chunked")],
            "",
            Reuse::Forbidden,
        ),
        (
            200,
            &[("content-length", "5"), ("content-length", "5")],
            "content-length: 5",
            Reuse::Forbidden,
        ),
        (
            200,
            &[("content-length", "5, 5")],
            "content-length: 5",
            Reuse::Forbidden,
        ),
        (204, &[("content-length", "0")], "", Reuse::Allowed),
        (
            304,
            &[("content-length", "7")],
            "content-length: 7",
            Reuse::Allowed,
        ),
        (
            200,
            &[
                ("connection", "x-hop, set-cookie, content-type"),
                ("x-hop", "1"),
                ("set-cookie", "a"),
                ("content-type", "b"),
                ("keep-alive", "timeout=5"),
                ("proxy-authenticate", "x"),
                ("upgrade", "h2,h2c"),
                ("trailer", "x"),
            ],
            "content-type: b\nset-cookie: a",
            Reuse::Allowed,
        ),
        (
            101,
            &[
                ("connection", "Upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-accept", "x"),
            ],
            "sec-websocket-accept: x\nupgrade: websocket",
            Reuse::Allowed,
        ),
    ] {
        let mut found = answer(status, fields);
        assert_eq!(response(&mut found, &get), Ok(reuse), "{fields:?}");
        assert_eq!(left(&found.headers), expected, "{fields:?}");
    }
    for fields in [
        &[("content-length", "5"), ("content-length", "6")] as &[_],
        &[("content-length", "5, 6")],
        &[("content-length", "-1")],
        &[("content-length", "")],
        &[("content-length", "5,")],
        &[("transfer-encoding", "gzip, chunked")],
        &[("transfer-encoding", "identity")],
        &[
            ("transfer-encoding", "chunked"),
            ("transfer-encoding", "chunked"),
        ],
    ] {
        let refusal = response(&mut answer(200, fields), &get).unwrap_err();
        assert_eq!(refusal.status, StatusCode::BAD_GATEWAY, "{fields:?}");
    }
}

#[test]
fn rule_9_trailers_cannot_act_as_headers() {
    let mut found = answer(
        200,
        &[
            ("grpc-status", "0"),
            ("grpc-message", "ok"),
            ("x-checksum", "1"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("host", "b"),
            ("authorization", "x"),
            ("set-cookie", "x"),
            ("x-forwarded-for", "1.1.1.1"),
            ("if-match", "x"),
            ("cache-control", "x"),
            ("proxy-x", "x"),
            ("x_real_ip", "x"),
            ("connection", "close"),
        ],
    )
    .headers;
    trailers(&mut found);
    assert_eq!(
        left(&found),
        "grpc-message: ok\ngrpc-status: 0\nx-checksum: 1"
    );
}

mod hosts {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use tidegate_model::{HostMap, HostName, HostPattern};

    use super::Authority;

    static MAPS: LazyLock<[(usize, HostMap<usize>); 2]> =
        LazyLock::new(|| [1, 10_000].map(|size| (size, map(size))));

    /// Every tenth host is a wildcard; the value is the pattern's number.
    fn map(size: usize) -> HostMap<usize> {
        let mut map = HostMap::default();
        for i in 0..size {
            let text = if i % 10 == 9 {
                format!("*.h{i}.example")
            } else {
                format!("h{i}.example")
            };
            map.insert(HostPattern::parse(&text).unwrap(), i);
        }
        map
    }

    proptest! {
        #[test]
        fn every_spelling_of_a_host_finds_the_same_route(
            pick in any::<prop::sample::Index>(), upper in any::<u64>(), dot in any::<bool>(),
            port in proptest::option::of(1_u16..),
        ) {
            for (size, hosts) in &*MAPS {
                let i = pick.index(*size);
                let plain = if i % 10 == 9 { format!("x.h{i}.example") } else { format!("h{i}.example") };
                let mut spelled: String = plain
                    .chars()
                    .enumerate()
                    .map(|(at, c)| if upper >> (at % 64) & 1 == 1 { c.to_ascii_uppercase() } else { c })
                    .collect();
                if dot {
                    spelled.push('.');
                }
                if let Some(port) = port {
                    spelled = format!("{spelled}:{port}");
                }
                let authority = Authority::parse(&spelled).unwrap();
                prop_assert_eq!(authority.port, port);
                prop_assert_eq!(hosts.lookup(&authority.host), Some(&i));
                let canonical = HostName::parse(authority.host.as_str()).unwrap();
                prop_assert_eq!(&canonical, &authority.host);
            }
        }

        #[test]
        fn no_authority_makes_the_parser_panic(text in ".{0,40}|[\\[\\]:.0-9a-f@%]{0,40}") {
            if let Ok(authority) = Authority::parse(&text) {
                prop_assert!(HostName::parse(authority.host.as_str()).is_ok());
                prop_assert!(!text.contains(['@', '/', ',', ' ']));
            }
        }
    }
}
