//! What is done to requests and responses on their way.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::client::block_on;
use crate::support::{Edge, Origin, Reply, route_of, secret};

const HOST: &str = "filter.test";

/// An edge with one rule that has this filter, in front of an origin that tells what it received.
#[track_caller]
fn edge(origin: &Origin, filter: &str) -> Edge {
    let spec = format!(
        "hostnames: [{HOST}]\nrules:\n- filters:\n  - {filter}\n  backends: [{{address: \"{}\"}}]\n",
        origin.address()
    );
    Edge::start(&[route_of("filter", &spec)])
}

/// Values of a header field as the origin saw it.
fn seen(reply: &Reply, name: &str) -> Vec<String> {
    reply.json()["headers"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|field| field[0].as_str().unwrap().eq_ignore_ascii_case(name))
        .map(|field| field[1].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn request_headers_are_removed_set_and_added() {
    let origin = Origin::echo();
    let edge = edge(
        &origin,
        "{type: RequestHeaderModifier, requestHeaderModifier: {remove: [X-Gone], set: [{name: X-Set, value: edge}], add: [{name: X-Add, value: two}]}}",
    );
    let headers = [("X-Gone", "1"), ("X-Set", "client"), ("X-Add", "one")];
    let reply = edge.request(HOST, "GET", "/", &headers);
    assert_eq!(seen(&reply, "X-Gone"), Vec::<String>::new());
    assert_eq!(seen(&reply, "X-Set"), ["edge"]);
    assert_eq!(seen(&reply, "X-Add"), ["one", "two"]);
}

#[test]
fn response_headers_are_edited() {
    let origin = Origin::echo();
    let edge = edge(
        &origin,
        "{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [Content-Type], set: [{name: X-Frame-Options, value: DENY}]}}",
    );
    let reply = edge.get(HOST, "/");
    assert_eq!(reply.header("x-frame-options"), "DENY");
    assert_eq!(reply.header("content-type"), "");
}

#[test]
fn a_prefix_is_rewritten_and_the_query_is_not() {
    let origin = Origin::echo();
    let spec = format!(
        "hostnames: [{HOST}]
rules:
- match: {{pathPrefix: /old}}
  filters:
  - type: URLRewrite
    urlRewrite: {{hostname: inner.test, path: {{type: ReplacePrefixMatch, replacePrefixMatch: /new}}}}
  backends: [{{address: \"{}\"}}]
",
        origin.address()
    );
    let edge = Edge::start(&[route_of("filter", &spec)]);
    let reply = edge.get(HOST, "/old/a%20b?x=%2Fold+'");
    assert_eq!(reply.json()["target"], "/new/a%20b?x=%2Fold+'");
    assert_eq!(seen(&reply, "host"), ["inner.test"]);
}

#[test]
fn who_comes_too_often_gets_429_with_a_time() {
    let origin = Origin::echo();
    let edge = edge(
        &origin,
        "{type: RateLimit, rateLimit: {requests: 3, period: 1h}}",
    );
    let statuses: Vec<_> = (0..5).map(|_| edge.get(HOST, "/").status).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    let refused = edge.get(HOST, "/");
    assert!(
        refused.header("retry-after").parse::<u64>().unwrap() > 0,
        "{refused:?}"
    );
    assert_eq!(origin.requests(), 3);
}

#[test]
fn a_denied_address_gets_403() {
    let origin = Origin::echo();
    let denied = edge(&origin, "{type: IPAccess, ipAccess: {deny: [127.0.0.0/8]}}");
    assert_eq!(denied.get(HOST, "/").status, 403);
    let elsewhere = edge(&origin, "{type: IPAccess, ipAccess: {allow: [10.0.0.0/8]}}");
    assert_eq!(
        elsewhere
            .request(HOST, "GET", "/", &[("X-Forwarded-For", "10.1.1.1")])
            .status,
        403
    );
    let allowed = edge(&origin, "{type: IPAccess, ipAccess: {allow: [127.0.0.1]}}");
    assert_eq!(allowed.get(HOST, "/").status, 200);
    assert_eq!(origin.requests(), 1);
}

#[test]
fn a_password_is_asked_for_and_kept_from_forgery() {
    let origin = Origin::echo();
    let spec = format!(
        "hostnames: [{HOST}]\nrules:\n- filters:\n  - {{type: BasicAuth, basicAuth: {{secretName: users, realm: staff, userHeader: X-User}}}}\n  backends: [{{address: \"{}\"}}]\n",
        origin.address()
    );
    // A published test vector of bcrypt: the password is U*U.
    let users = "ann:$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";
    let edge = Edge::start(&[
        secret("users", "Opaque", &[("auth", users)]),
        route_of("filter", &spec),
    ]);
    let asked = edge.get(HOST, "/");
    assert_eq!(asked.status, 401);
    assert!(
        asked.header("www-authenticate").contains("staff"),
        "{asked:?}"
    );
    let wrong = edge.request(HOST, "GET", "/", &[("Authorization", "Basic YW5uOndyb25n")]);
    assert_eq!(wrong.status, 401);
    // ann:U*U
    let headers = [("Authorization", "Basic YW5uOlUqVQ=="), ("X-User", "root")];
    let right = edge.request(HOST, "GET", "/", &headers);
    assert_eq!(right.status, 200, "{right:?}");
    assert_eq!(seen(&right, "X-User"), ["ann"]);
}

#[test]
fn another_service_decides_and_names_the_user() {
    let origin = Origin::echo();
    let guard = Origin::serve(|request| async move {
        let allowed = request
            .headers()
            .get("cookie")
            .is_some_and(|value| value == "session=1");
        let answer = http::Response::builder().header("X-Auth-User", "ann");
        let answer = if allowed { answer } else { answer.status(401) };
        answer
            .body(http_body_util::Full::new("who are you?".into()))
            .unwrap()
    });
    let edge = edge(
        &origin,
        &format!(
            "{{type: ForwardAuth, forwardAuth: {{backend: {{address: \"{}\"}}, path: /auth, responseHeaders: [X-Auth-User]}}}}",
            guard.address()
        ),
    );
    let refused = edge.request(HOST, "GET", "/", &[("X-Auth-User", "root")]);
    assert_eq!(
        (refused.status, refused.text().as_str()),
        (401, "who are you?")
    );
    assert_eq!(origin.requests(), 0);
    let passed = edge.request(
        HOST,
        "GET",
        "/",
        &[("Cookie", "session=1"), ("X-Auth-User", "root")],
    );
    assert_eq!(passed.status, 200);
    assert_eq!(seen(&passed, "X-Auth-User"), ["ann"]);
}

#[test]
fn preflights_are_answered_here() {
    let origin = Origin::echo();
    let edge = edge(
        &origin,
        "{type: CORS, cors: {allowOrigins: ['https://*.app.test'], allowMethods: [PUT], allowHeaders: [X-A]}}",
    );
    let ask = |from: &str| {
        let headers = [("Origin", from), ("Access-Control-Request-Method", "PUT")];
        edge.request(HOST, "OPTIONS", "/", &headers)
    };
    let allowed = ask("https://one.app.test");
    assert_eq!(
        allowed.header("access-control-allow-origin"),
        "https://one.app.test"
    );
    assert!(
        allowed
            .header("access-control-allow-methods")
            .contains("PUT")
    );
    assert_eq!(
        ask("https://app.test.evil.test").header("access-control-allow-origin"),
        ""
    );
    assert_eq!(origin.requests(), 0, "a preflight reached the backend");
}

#[test]
fn compression_is_only_for_those_who_ask() {
    let origin = Origin::serve(|_| async {
        http::Response::builder()
            .header("content-type", "text/plain")
            .body(http_body_util::Full::new("x".repeat(100_000).into()))
            .unwrap()
    });
    let edge = edge(
        &origin,
        "{type: Compression, compression: {algorithms: [gzip]}}",
    );
    let plain = edge.get(HOST, "/");
    assert_eq!(
        (plain.header("content-encoding"), plain.body.len()),
        ("", 100_000)
    );
    let small = edge.request(HOST, "GET", "/", &[("Accept-Encoding", "gzip")]);
    assert_eq!(small.header("content-encoding"), "gzip");
    assert!(small.body.len() < 10_000, "{} bytes", small.body.len());
    assert!(
        small
            .header("vary")
            .to_ascii_lowercase()
            .contains("accept-encoding")
    );
}

#[test]
fn copies_go_to_the_mirror_and_its_answers_nowhere() {
    let (origin, mirror) = (Origin::text("origin"), Origin::text("mirror"));
    let edge = edge(
        &origin,
        &format!(
            "{{type: RequestMirror, requestMirror: {{backend: {{address: \"{}\"}}}}}}",
            mirror.address()
        ),
    );
    for _ in 0..5 {
        assert_eq!(edge.get(HOST, "/").text(), "origin");
    }
    crate::support::eventually("five copies", std::time::Duration::from_secs(10), || {
        if mirror.requests() == 5 {
            Ok(())
        } else {
            Err(format!("{} copies", mirror.requests()))
        }
    });
}

#[test]
fn a_mirror_that_lags_slows_nothing_and_never_gets_half_a_request_that_looks_whole() {
    const LENGTH: usize = 64 << 20;
    let origin = Origin::echo();
    let mirror = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut edge = edge(
        &origin,
        &format!(
            "{{type: RequestMirror, requestMirror: {{backend: {{address: \"{}\"}}}}}}",
            mirror.local_addr().unwrap()
        ),
    );
    edge.wait_for_status(HOST, "/", 200);
    // The copy of the first request, which only waited for the edge.
    drop(mirror.accept().unwrap());
    let before = edge.program().peak_memory();
    // Without a length, so that only the end of the chunks tells whether it is whole.
    let answer = block_on(async {
        let mut stream = edge.client().connect(HOST, &["http/1.1"]).await.unwrap();
        let head = format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        for _ in 0..LENGTH / 0x10000 {
            stream.write_all(chunk.as_bytes()).await.unwrap();
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        // TLS keeps what the socket had no room for, and reading does not send it.
        stream.flush().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    });
    assert!(
        answer.contains(&format!("\"body_bytes\":{LENGTH}")),
        "{answer}"
    );
    let grown = edge.program().peak_memory() - before;
    assert!(grown < 16 << 20, "{grown} bytes were held for a mirror");
    // Nothing of the copy was read before the request was answered.
    let (mut copy, _) = mirror.accept().unwrap();
    let mut bytes = Vec::new();
    let _ = std::io::Read::read_to_end(&mut copy, &mut bytes);
    assert!(bytes.starts_with(b"POST / HTTP/1.1\r\n"));
    assert!(bytes.len() < LENGTH, "the mirror did not lag");
    assert!(!bytes.ends_with(b"0\r\n\r\n"), "half a request looks whole");
}

#[test]
fn hsts_is_said_over_https() {
    let origin = Origin::text("x");
    let spec = format!(
        "hostnames: [{HOST}]\nhttp: {{hsts: {{maxAge: 24h, includeSubDomains: true}}}}\nrules:\n- backends: [{{address: \"{}\"}}]\n",
        origin.address()
    );
    let edge = Edge::start(&[route_of("filter", &spec)]);
    let value = edge
        .get(HOST, "/")
        .header("strict-transport-security")
        .to_owned();
    assert_eq!(
        value.replace(' ', "").to_ascii_lowercase(),
        "max-age=86400;includesubdomains"
    );
}
