//! HTTP/1.1 requests that two readers could read differently, sent raw through the edge to an origin
//! that records raw bytes.
//!
//! Each case says what must become of it; on top of that, nothing that reached the origin in the whole
//! run may be dangerous to a lenient one. The HTTP/2 half is in `downgrade.rs`.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::client::block_on;
use crate::support::raw::{RawOrigin, Seen};
use crate::support::{Client, Edge, eventually, route};

const HOST: &str = "raw.test";

/// How long the edge may think before a case counts as unanswered.
const ANSWER: Duration = Duration::from_secs(15);

/// What must become of a case.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// A 4xx or 5xx, the connection ends, the origin sees nothing of it.
    Refused,
    /// The origin sees it once, and only once.
    Forwarded,
    /// Both are right, as long as what the origin sees is clean.
    Either,
}
use Fate::{Either, Forwarded, Refused};

struct Case {
    name: String,
    fate: Fate,
    bytes: Vec<u8>,
}

/// A case from header lines and a body; `{P}` in the text is the case's own path.
fn case(name: &str, fate: Fate, text: &str) -> Case {
    let path = format!("/{name}");
    Case { name: name.to_owned(), fate, bytes: text.replace("{P}", &path).into_bytes() }
}

/// A POST with these header lines and this body, one request smuggled behind it.
fn framed(name: &str, fate: Fate, headers: &str, body: &str) -> Case {
    case(name, fate, &format!("POST {{P}} HTTP/1.1\r\nHost: raw.test\r\n{headers}\r\n\r\n{body}"))
}

/// A GET with these further header lines.
fn get(name: &str, fate: Fate, headers: &str) -> Case {
    case(name, fate, &format!("GET {{P}} HTTP/1.1\r\nHost: raw.test\r\n{headers}\r\n\r\n"))
}

/// A GET whose head is exactly this.
fn line(name: &str, fate: Fate, head: &str) -> Case {
    case(name, fate, &format!("{head}\r\n\r\n"))
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: raw.test\r\n\r\n";

fn cases() -> Vec<Case> {
    let zero = format!("0\r\n\r\n{SMUGGLED}");
    let mut all = vec![
        // Two lengths.
        framed("cl-te", Refused, "Content-Length: 6\r\nTransfer-Encoding: chunked", &zero),
        framed("te-cl", Refused, "Transfer-Encoding: chunked\r\nContent-Length: 6", &zero),
        framed("cl-twice-same", Refused, "Content-Length: 5\r\nContent-Length: 5", "hello"),
        framed("cl-twice-other", Refused, "Content-Length: 5\r\nContent-Length: 6", "hello!"),
        framed("cl-list", Refused, "Content-Length: 5, 5", "hello"),
        framed("cl-list-other", Refused, "Content-Length: 5, 6", "hello!"),
        framed("te-twice", Refused, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", &zero),
        framed("te-twice-other", Refused, "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", &zero),
        // No number.
        framed("cl-plus", Refused, "Content-Length: +5", "hello"),
        framed("cl-minus", Refused, "Content-Length: -5", "hello"),
        framed("cl-hex", Refused, "Content-Length: 0x5", "hello"),
        framed("cl-empty", Refused, "Content-Length:", ""),
        framed("cl-text", Refused, "Content-Length: five", "hello"),
        framed("cl-space", Refused, "Content-Length: 5 5", "hello"),
        framed("cl-fraction", Refused, "Content-Length: 5.0", "hello"),
        framed("cl-underscore", Refused, "Content-Length: 1_0", "hello"),
        framed("cl-huge", Refused, "Content-Length: 18446744073709551621", "hello"),
        framed("cl-over-i64", Refused, "Content-Length: 9223372036854775808", "hello"),
        // A plain case, to know that the others do not fail for want of a way through.
        framed("cl-plain", Forwarded, "Content-Length: 5", "hello"),
        framed("cl-leading-zero", Either, "Content-Length: 05", "hello"),
        framed("te-plain", Forwarded, "Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
        framed("te-upper-case", Forwarded, "Transfer-Encoding: CHUNKED", "5\r\nhello\r\n0\r\n\r\n"),
        // A line end or space where none may be.
        line("space-before-colon", Refused, "GET {P} HTTP/1.1\r\nHost: raw.test\r\nX-A : 1"),
        line("te-space-before-colon", Refused, "POST {P} HTTP/1.1\r\nHost: raw.test\r\nTransfer-Encoding : chunked"),
        line("cl-space-before-colon", Refused, "POST {P} HTTP/1.1\r\nHost: raw.test\r\nContent-Length : 0"),
        line("space-first", Refused, "GET {P} HTTP/1.1\r\n Host: raw.test"),
        get("obs-fold", Refused, "X-A: 1\r\n 2"),
        get("obs-fold-te", Refused, "X-A: 1\r\n Transfer-Encoding: chunked"),
        get("nul-in-value", Refused, "X-A: a\0b"),
        get("cr-in-value", Refused, "X-A: a\rb"),
        get("control-in-value", Refused, "X-A: a\x01b"),
        get("nul-in-name", Refused, "X\0A: b"),
        get("no-colon", Refused, "X-A"),
        get("empty-name", Refused, ": b"),
        get("name-with-brackets", Refused, "X(A): b"),
        // Chunks.
        framed("chunk-plus", Refused, "Transfer-Encoding: chunked", &format!("+5\r\nhello\r\n{zero}")),
        framed("chunk-0x", Refused, "Transfer-Encoding: chunked", &format!("0x5\r\nhello\r\n{zero}")),
        framed("chunk-underscore", Refused, "Transfer-Encoding: chunked", &format!("1_0\r\nhello\r\n{zero}")),
        framed("chunk-minus", Refused, "Transfer-Encoding: chunked", &format!("-1\r\nhello\r\n{zero}")),
        framed("chunk-huge", Refused, "Transfer-Encoding: chunked", &format!("10000000000000005\r\nhello\r\n{zero}")),
        framed("chunk-empty-size", Refused, "Transfer-Encoding: chunked", &format!("\r\nhello\r\n{zero}")),
        framed("chunk-text", Refused, "Transfer-Encoding: chunked", &format!("xyz\r\nhello\r\n{zero}")),
        framed("chunk-too-long", Refused, "Transfer-Encoding: chunked", &format!("5\r\nhello!!\r\n{zero}")),
        framed("chunk-bare-lf", Refused, "Transfer-Encoding: chunked", "5\nhello\n0\n\n"),
        framed("chunk-lf-in-extension", Refused, "Transfer-Encoding: chunked", &format!("5;a\nb\r\nhello\r\n{zero}")),
        framed("chunk-bare-cr", Refused, "Transfer-Encoding: chunked", &format!("5\rX\nhello\r\n{zero}")),
        framed("chunk-extension", Either, "Transfer-Encoding: chunked", "5;a=b\r\nhello\r\n0\r\n\r\n"),
        framed("trailer-is-no-header", Either, "Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"),
        // Hosts.
        line("host-missing", Refused, "GET {P} HTTP/1.1\r\nX-A: b"),
        line("host-empty", Refused, "GET {P} HTTP/1.1\r\nHost:"),
        line("host-twice", Refused, "GET {P} HTTP/1.1\r\nHost: raw.test\r\nHost: raw.test"),
        line("host-twice-other", Refused, "GET {P} HTTP/1.1\r\nHost: raw.test\r\nHost: other.test"),
        line("host-list", Refused, "GET {P} HTTP/1.1\r\nHost: raw.test, other.test"),
        line("host-path", Refused, "GET {P} HTTP/1.1\r\nHost: raw.test/smuggled"),
        line("host-userinfo", Refused, "GET {P} HTTP/1.1\r\nHost: user@raw.test"),
        line("host-space", Refused, "GET {P} HTTP/1.1\r\nHost: raw.test other.test"),
        line("host-query", Refused, "GET {P} HTTP/1.1\r\nHost: raw.test?x"),
        line("host-fragment", Refused, "GET {P} HTTP/1.1\r\nHost: raw.test#x"),
        line("host-port-text", Refused, "GET {P} HTTP/1.1\r\nHost: raw.test:abc"),
        line("host-port-huge", Refused, "GET {P} HTTP/1.1\r\nHost: raw.test:99999"),
        line("host-upper-case", Forwarded, "GET {P} HTTP/1.1\r\nHost: RAW.test"),
        line("absolute-form", Forwarded, "GET https://raw.test{P} HTTP/1.1\r\nHost: raw.test"),
        line("absolute-form-other", Refused, "GET https://other.test{P} HTTP/1.1\r\nHost: raw.test"),
        line("absolute-form-userinfo", Refused, "GET https://a@raw.test{P} HTTP/1.1\r\nHost: raw.test"),
        // Methods, targets, versions.
        line("connect", Refused, "CONNECT raw.test:443 HTTP/1.1\r\nHost: raw.test"),
        line("connect-path", Refused, "CONNECT {P} HTTP/1.1\r\nHost: raw.test"),
        line("fragment", Refused, "GET {P}#x HTTP/1.1\r\nHost: raw.test"),
        line("space-in-target", Refused, "GET {P} x HTTP/1.1\r\nHost: raw.test"),
        line("no-slash", Refused, "GET smuggled HTTP/1.1\r\nHost: raw.test"),
        line("version-2.0", Refused, "GET {P} HTTP/2.0\r\nHost: raw.test"),
        line("version-1.2", Either, "GET {P} HTTP/1.2\r\nHost: raw.test"),
        line("version-09", Refused, "GET {P}"),
        line("version-lower-case", Refused, "GET {P} http/1.1\r\nHost: raw.test"),
        line("method-with-brackets", Refused, "GE(T {P} HTTP/1.1\r\nHost: raw.test"),
        line("tab-for-space", Refused, "GET\t{P}\tHTTP/1.1\r\nHost: raw.test"),
        case("te-on-http-1.0", Refused, &format!("POST {{P}} HTTP/1.0\r\nHost: raw.test\r\nTransfer-Encoding: chunked\r\n\r\n{zero}")),
        // What belongs to one hop, or is said by the edge.
        get("hop-by-hop", Forwarded, "Connection: close, X-Hop\r\nX-Hop: a\r\nKeep-Alive: timeout=5\r\nProxy-Authorization: Basic eA==\r\nProxy-Connection: keep-alive\r\nTE: gzip, trailers"),
        get("connection-names-host", Either, "Connection: Host, X-Forwarded-For, Authorization\r\nAuthorization: Basic eDp5"),
        get("h2c-upgrade", Forwarded, "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
        get("spoofed-client", Forwarded, "X-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-Host: 6.6.6.6\r\nX-Forwarded-Proto: 6.6.6.6\r\nX-Forwarded-Port: 6.6.6.6\r\nTrue-Client-IP: 6.6.6.6\r\nCF-Connecting-IP: 6.6.6.6"),
        get("underscore-client", Either, "X_Forwarded_For: 6.6.6.6"),
        get("underscore-te", Either, "Transfer_Encoding: chunked"),
        get("underscore-cl", Either, "Content_Length: 5"),
        get("expect-unknown", Either, "Expect: 200-maybe"),
        // Paths that lead out of a prefix in one reading.
        line("dot-segments", Either, "GET {P}/../smuggled HTTP/1.1\r\nHost: raw.test"),
        line("percent-nul", Either, "GET {P}/%00 HTTP/1.1\r\nHost: raw.test"),
        line("bad-percent", Either, "GET {P}/%zz HTTP/1.1\r\nHost: raw.test"),
        line("query-verbatim", Forwarded, "GET {P}?h=%86zsL%0et+'~!|(&&a=%2F HTTP/1.1\r\nHost: raw.test"),
    ];
    // Codings that a lenient reader may take for chunked and a strict one not.
    let codings = [
        "gzip, chunked", "identity, chunked", "chunked, chunked", ",chunked", "chunked,", "chunked, identity",
        "identity", "gzip", "xchunked", "chunkedx", "chunked;a=b", "\"chunked\"", "'chunked'", "chunked\x0b",
        "\x0bchunked", "chunked\0", "chu nked", "cow", "\u{ff}chunked", "chunked, cow",
    ];
    for (index, coding) in codings.iter().enumerate() {
        all.push(framed(&format!("te-{index}"), Refused, &format!("Transfer-Encoding: {coding}"), &zero));
        let both = format!("Content-Length: 6\r\nTransfer-Encoding: {coding}");
        all.push(framed(&format!("te-cl-{index}"), Refused, &both, &zero));
    }
    for (index, name) in ["Transfer-Encoding\x0b", "Transfer-Encoding\t", "\"Transfer-Encoding\"", "Transfer\u{ad}-Encoding"]
        .iter()
        .enumerate()
    {
        all.push(framed(&format!("te-name-{index}"), Refused, &format!("{name}: chunked"), &zero));
    }
    all
}

/// What the client got: every byte, and whether the edge ended the connection.
#[derive(Debug)]
struct Answer {
    text: String,
    closed: bool,
}

impl Answer {
    /// Status of the first final answer.
    fn status(&self) -> Option<u16> {
        self.text
            .split("HTTP/1.")
            .skip(1)
            .filter_map(|rest| rest.get(2..5)?.parse().ok())
            .find(|status| *status >= 200)
    }
}

async fn send(client: &Client, case: &Case) -> Answer {
    let mut stream = client.connect(HOST, &["http/1.1"]).await.expect("a TLS connection");
    // The edge may end the connection before it has read everything.
    let _ = stream.write_all(&case.bytes).await;
    let mut bytes = Vec::new();
    let read = async {
        let mut buffer = [0; 8192];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return true,
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            }
            // A kept connection: the answer is there, and nothing follows it.
            if case.fate != Refused && bytes.ends_with(b"\r\n\r\n") {
                return false;
            }
        }
    };
    let closed = tokio::time::timeout(ANSWER, read).await.unwrap_or(false);
    Answer { text: String::from_utf8_lossy(&bytes).into_owned(), closed }
}

/// Whether a recorded request belongs to the case.
fn belongs(seen: &Seen, case: &Case) -> bool {
    let path = format!("/{}", case.name);
    seen.line().split([' ', '/', '?', '#']).any(|part| part == case.name)
        || seen.line().contains(&format!("{path} "))
}

/// What makes a recorded request dangerous to a lenient origin.
pub(crate) fn findings(seen: &Seen) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |bad: bool, what: &str| {
        if bad {
            found.push(format!("{what}: {:?}", seen.head));
        }
    };
    let codings = seen.values("transfer-encoding");
    let lengths = seen.values("content-length");
    check(!codings.is_empty() && !lengths.is_empty(), "Content-Length beside Transfer-Encoding");
    check(codings.len() > 1 || codings.iter().any(|value| *value != "chunked"), "odd Transfer-Encoding");
    check(
        lengths.len() > 1 || lengths.iter().any(|value| !value.bytes().all(|byte| byte.is_ascii_digit())),
        "odd Content-Length",
    );
    check(seen.values("host").len() != 1, "not exactly one Host");
    check(
        seen.values("host").iter().any(|host| host.contains(['@', '/', ',', ' ', '?', '#'])),
        "odd Host",
    );
    check(!seen.line().ends_with(" HTTP/1.1"), "odd version");
    check(seen.line().contains("smuggled"), "a smuggled request");
    for line in seen.head.split("\r\n") {
        check(line.contains(['\r', '\n', '\0']), "bare CR, LF or NUL");
        check(line.starts_with([' ', '\t']), "obsolete line folding");
    }
    for (name, value) in seen.headers() {
        let lower = name.to_ascii_lowercase();
        check(name.contains('_'), "underscore alias");
        check(name.is_empty() || name.contains(|c: char| !c.is_ascii_graphic() || "()\",:;<=>?@[\\]{}".contains(c)), "odd header name");
        check(value.contains("6.6.6.6"), "a spoofed value");
        check(
            lower.starts_with("proxy-") || ["keep-alive", "http2-settings", "x-hop", "upgrade"].contains(&lower.as_str()),
            "a header of the client's hop",
        );
        check(lower == "te" && value != "trailers", "TE of the client's hop");
        check(
            lower == "connection" && !["keep-alive", "close", "te"].contains(&value.to_ascii_lowercase().as_str()),
            "Connection of the client's hop",
        );
    }
    found
}

#[test]
fn no_request_reaches_the_origin_in_two_readings() {
    let origin = RawOrigin::recording();
    let edge = Edge::start(&[route("raw", HOST, origin.address())]);
    edge.wait_for_status(HOST, "/ready", 200);
    let client = edge.client();
    let cases = cases();
    assert!(cases.len() >= 100, "only {} cases", cases.len());
    let answers = block_on(async {
        let mut answers = Vec::new();
        // A few at a time: the limit of connections per client is another test's subject.
        for group in cases.chunks(32) {
            let sent = group.iter().map(|case| send(&client, case));
            answers.extend(join_all(sent).await);
        }
        answers
    });

    let mut wrong = Vec::new();
    let seen = origin.seen();
    for (case, answer) in cases.iter().zip(&answers) {
        let reached = seen.iter().filter(|seen| belongs(seen, case)).count();
        let refused = answer.status().is_none_or(|status| status >= 400);
        let right = match case.fate {
            Refused => refused && answer.closed && reached == 0,
            Forwarded => answer.status() == Some(200) && reached == 1,
            Either => (refused && reached == 0) || (answer.status() == Some(200) && reached == 1),
        };
        if !right {
            wrong.push(format!(
                "{}: must be {:?}, but the origin saw it {reached} times, the client got {answer:?}",
                case.name, case.fate
            ));
        }
    }
    for seen in &seen {
        wrong.extend(findings(seen));
    }
    wrong.extend(origin.broken().into_iter().map(|rest| format!("half a request: {rest:?}")));
    assert!(wrong.is_empty(), "{} findings in {} cases:\n  {}", wrong.len(), cases.len(), wrong.join("\n  "));
}

/// All at once, in order.
async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        let mut ready = true;
        for (future, done) in &mut pending {
            if done.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(value) => *done = Some(value),
                    std::task::Poll::Pending => ready = false,
                }
            }
        }
        if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    pending.into_iter().filter_map(|(_, done)| done).collect()
}

#[test]
fn a_pipelined_pair_gets_two_answers() {
    let origin = RawOrigin::recording();
    let edge = Edge::start(&[route("raw", HOST, origin.address())]);
    edge.wait_for_status(HOST, "/ready", 200);
    let case = Case {
        name: "pair".to_owned(),
        fate: Refused, // Read to the end of the connection.
        bytes: b"GET /one HTTP/1.1\r\nHost: raw.test\r\n\r\nGET /two HTTP/1.1\r\nHost: raw.test\r\nConnection: close\r\n\r\n".to_vec(),
    };
    let answer = block_on(send(&edge.client(), &case));
    assert_eq!(answer.text.matches("HTTP/1.1 200").count(), 2, "{answer:?}");
    let lines: Vec<_> = origin.seen().iter().map(|seen| seen.line().to_owned()).collect();
    assert!(lines.contains(&"GET /one HTTP/1.1".to_owned()) && lines.contains(&"GET /two HTTP/1.1".to_owned()));
}

#[test]
fn header_names_go_out_in_title_case_with_one_client_address() {
    let origin = RawOrigin::recording();
    let edge = Edge::start(&[route("raw", HOST, origin.address())]);
    edge.wait_for_status(HOST, "/ready", 200);
    let seen = eventually("the recorded request", Duration::from_secs(5), || {
        origin.seen().pop().ok_or_else(|| "nothing recorded".to_owned())
    });
    // A tracker ends its whole process on `x-forwarded-for`: the spelling is part of the contract.
    assert!(seen.head.contains("\r\nX-Forwarded-For: 127.0.0.1\r\n"), "{}", seen.head);
    assert!(seen.head.contains("\r\nX-Real-Ip: 127.0.0.1\r\n"), "{}", seen.head);
    assert!(seen.head.contains("\r\nX-Forwarded-Proto: https\r\n"), "{}", seen.head);
    assert!(findings(&seen).is_empty(), "{:?}", findings(&seen));
}

#[test]
fn a_response_with_two_lengths_ends_there() {
    // CL beside TE in a response: the chunks are read, the connection is not used again.
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";
    let origin = RawOrigin::answering(answer);
    let edge = Edge::start(&[route("raw", HOST, origin.address())]);
    eventually("an answer", Duration::from_secs(10), || match edge.client().try_get(HOST, "/") {
        Ok(reply) if reply.status == 404 => Err("no route yet".to_owned()),
        other => Ok(other),
    })
    .map_or_else(
        |error| panic!("no clean answer: {error}"),
        |reply| {
            let clean = reply.status == 502
                || (reply.text() == "hi"
                    && !(reply.headers.contains_key("content-length")
                        && reply.headers.contains_key("transfer-encoding")));
            assert!(clean, "{reply:?}");
        },
    );
    for _ in 0..5 {
        let reply = edge.get(HOST, "/again");
        assert_ne!(reply.text(), "smuggled", "the leftover of a response answered another request");
    }
}
