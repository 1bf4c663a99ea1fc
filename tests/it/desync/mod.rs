//! HTTP/1.1 requests that two readers could read differently, sent raw through the edge to an origin
//! that records raw bytes.
//!
//! Each case says what must become of it; on top of that, nothing that reached the origin in the whole
//! run may be dangerous to a lenient one. The HTTP/2 half is in `downgrade.rs`.

mod cases;

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use self::cases::Fate::{Closed, Either, Forwarded, Refused};
use self::cases::{Case, cases};
use crate::support::client::block_on;
use crate::support::raw::{RawOrigin, Seen, find};
use crate::support::{Client, Edge, eventually, route};

const HOST: &str = "raw.test";

/// How long the edge may think before a case counts as unanswered.
const ANSWER: Duration = Duration::from_secs(15);

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
    let mut stream = client
        .connect(HOST, &["http/1.1"])
        .await
        .expect("a TLS connection");
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
            if !matches!(case.fate, Refused | Closed) && complete(&bytes) {
                return false;
            }
        }
    };
    let closed = tokio::time::timeout(ANSWER, read).await.unwrap_or(false);
    Answer {
        text: String::from_utf8_lossy(&bytes).into_owned(),
        closed,
    }
}

/// Whether the bytes hold a whole answer.
fn complete(bytes: &[u8]) -> bool {
    let Some(head) = find(bytes, b"\r\n\r\n") else {
        return false;
    };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length = text
        .split("\r\ncontent-length:")
        .nth(1)
        .and_then(|rest| rest.lines().next()?.trim().parse::<usize>().ok());
    length.is_some_and(|length| bytes.len() >= head + 4 + length)
}

/// Whether a recorded request belongs to the case.
fn belongs(seen: &Seen, case: &Case) -> bool {
    let path = format!("/{}", case.name);
    seen.line()
        .split([' ', '/', '?', '#'])
        .any(|part| part == case.name)
        || seen.line().contains(&format!("{path} "))
}

/// Fails with everything that is wrong with the cases or with what the origin received.
#[track_caller]
pub(crate) fn conclude(origin: &RawOrigin, mut wrong: Vec<String>, count: usize) {
    wrong.extend(origin.seen().iter().flat_map(findings));
    // Heads go on before bodies are there, so a broken body leaves half a request; nothing may be in it.
    let broken = origin.broken();
    wrong.extend(broken.into_iter().filter(|rest| rest.contains("smuggled")));
    assert!(
        wrong.is_empty(),
        "{} findings in {count} cases:\n  {}",
        wrong.len(),
        wrong.join("\n  ")
    );
}

/// What makes a recorded request dangerous to a lenient origin.
fn findings(seen: &Seen) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |bad: bool, what: &str| {
        if bad {
            found.push(format!("{what}: {:?}", seen.head));
        }
    };
    let codings = seen.values("transfer-encoding");
    let lengths = seen.values("content-length");
    check(
        !codings.is_empty() && !lengths.is_empty(),
        "Content-Length beside Transfer-Encoding",
    );
    check(
        codings.len() > 1
            || codings
                .iter()
                .any(|value| !value.eq_ignore_ascii_case("chunked")),
        "odd Transfer-Encoding",
    );
    check(
        lengths.len() > 1
            || lengths
                .iter()
                .any(|value| !value.bytes().all(|byte| byte.is_ascii_digit())),
        "odd Content-Length",
    );
    check(seen.values("host").len() != 1, "not exactly one Host");
    check(
        seen.values("host")
            .iter()
            .any(|host| host.contains(['@', '/', ',', ' ', '?', '#'])),
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
        check(
            name.is_empty()
                || name
                    .contains(|c: char| !c.is_ascii_graphic() || "()\",:;<=>?@[\\]{}".contains(c)),
            "odd header name",
        );
        check(value.contains("6.6.6.6"), "a spoofed value");
        check(
            lower.starts_with("proxy-")
                || ["keep-alive", "http2-settings", "x-hop", "upgrade"].contains(&lower.as_str()),
            "a header of the client's hop",
        );
        check(
            lower == "te" && value != "trailers",
            "TE of the client's hop",
        );
        check(
            lower == "connection"
                && !["keep-alive", "close", "te"].contains(&value.to_ascii_lowercase().as_str()),
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
            Closed => answer.closed && reached <= 1,
            Either => (refused && reached == 0) || (answer.status() == Some(200) && reached == 1),
        };
        if !right {
            wrong.push(format!(
                "{}: must be {:?}, but the origin saw it {reached} times, the client got {answer:?}",
                case.name, case.fate
            ));
        }
    }
    conclude(&origin, wrong, cases.len());
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
        if ready {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
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
    let lines: Vec<_> = origin
        .seen()
        .iter()
        .map(|seen| seen.line().to_owned())
        .collect();
    assert!(
        lines.contains(&"GET /one HTTP/1.1".to_owned())
            && lines.contains(&"GET /two HTTP/1.1".to_owned())
    );
}

#[test]
fn header_names_go_out_in_title_case_with_one_client_address() {
    let origin = RawOrigin::recording();
    let edge = Edge::start(&[route("raw", HOST, origin.address())]);
    edge.wait_for_status(HOST, "/ready", 200);
    let seen = eventually("the recorded request", Duration::from_secs(5), || {
        origin
            .seen()
            .pop()
            .ok_or_else(|| "nothing recorded".to_owned())
    });
    // A tracker ends its whole process on `x-forwarded-for`: the spelling is part of the contract.
    assert!(
        seen.head.contains("\r\nX-Forwarded-For: 127.0.0.1\r\n"),
        "{}",
        seen.head
    );
    assert!(
        seen.head.contains("\r\nX-Real-Ip: 127.0.0.1\r\n"),
        "{}",
        seen.head
    );
    assert!(
        seen.head.contains("\r\nX-Forwarded-Proto: https\r\n"),
        "{}",
        seen.head
    );
    assert!(findings(&seen).is_empty(), "{:?}", findings(&seen));
}

#[test]
fn a_response_with_two_lengths_ends_there() {
    // CL beside TE in a response: the chunks are read, the connection is not used again.
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";
    let origin = RawOrigin::answering(answer);
    let edge = Edge::start(&[route("raw", HOST, origin.address())]);
    eventually("an answer", Duration::from_secs(10), || {
        match edge.client().try_get(HOST, "/") {
            Ok(reply) if reply.status == 404 => Err("no route yet".to_owned()),
            other => Ok(other),
        }
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
        assert_ne!(
            reply.text(),
            "smuggled",
            "the leftover of a response answered another request"
        );
    }
}
