//! Request bodies under their limits and clocks.

use std::io::Write;
use std::time::Duration;

use super::*;

/// Reads the head and the chunked or sized body to its end, then answers with the number of bytes read.
fn counting() -> Origin {
    Origin::scripted(|_, mut stream| {
        let head = read_head(&mut stream).to_ascii_lowercase();
        let body = if head.contains("transfer-encoding: chunked") {
            let mut all = String::new();
            while !all.ends_with("0\r\n\r\n") {
                let mut byte = [0];
                if !matches!(Read::read(&mut stream, &mut byte), Ok(1)) {
                    return;
                }
                all.push(char::from(byte[0]));
            }
            all.len()
        } else {
            let length = head.split("content-length: ").nth(1);
            let length = length.and_then(|rest| rest.split('\r').next()?.parse::<usize>().ok());
            let mut body = vec![0; length.unwrap_or(0)];
            if stream.read_exact(&mut body).is_err() {
                return;
            }
            body.len()
        };
        let body = body.to_string();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let _ = stream.write_all(answer.as_bytes());
    })
}

fn limited(origin: &Origin) -> Rule {
    let mut rule = forward_to(&[cluster(origin.address)]);
    rule.limits.request_body = Some(10);
    rule
}

#[test]
fn a_body_over_the_limit_is_413_whether_announced_or_not() {
    let origin = counting();
    let edge = TestEdge::start(limited(&origin));
    let announced = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 11\r\n\r\n");
    let answer = edge.exchange(&announced);
    assert_eq!(status_of(&answer), 413);
    assert!(answer.contains("connection: close"), "{answer}");
    let chunked = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n\
         6\r\nabcdef\r\n6\r\nabcdef\r\n0\r\n\r\n"
    );
    assert_eq!(status_of(&edge.exchange(&chunked)), 413);
    let fits = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\nConnection: close\r\n\r\n0123456789"
    );
    assert_eq!(status_of(&edge.exchange(&fits)), 200);
}

#[test]
fn a_body_that_stops_coming_is_408() {
    let origin = counting();
    let mut rule = forward_to(&[cluster(origin.address)]);
    rule.timeouts.idle = Some(Duration::from_millis(200));
    let edge = TestEdge::start(rule);
    let half = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\n\r\n01234");
    assert_eq!(status_of(&edge.exchange(&half)), 408);
}

#[test]
fn a_backend_that_does_not_answer_is_504_but_a_long_upload_is_not() {
    let silent = Origin::scripted(|_, mut stream| {
        read_head(&mut stream);
        let _ = stream.read(&mut [0]);
    });
    let mut rule = forward_to(&[cluster(silent.address)]);
    rule.timeouts.first_byte = Some(Duration::from_millis(200));
    let edge = TestEdge::start(rule);
    assert_eq!(status_of(&edge.exchange(&get("/"))), 504);

    let origin = counting();
    let mut rule = forward_to(&[cluster(origin.address)]);
    rule.timeouts.first_byte = Some(Duration::from_millis(200));
    let edge = TestEdge::start(rule);
    let mut stream = edge.connect();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    for byte in b"0123456789" {
        // Ten times 60 ms is three times the clock that must not run yet.
        stream
            .set_read_timeout(Some(Duration::from_millis(60)))
            .unwrap();
        assert!(stream.read(&mut [0]).is_err(), "answered before the end");
        stream.write_all(&[*byte]).unwrap();
    }
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(status_of(&read_to_end(&mut stream)), 200);
}

#[test]
fn expect_100_continue_is_answered_when_the_body_is_wanted() {
    let origin = counting();
    let edge = TestEdge::start(limited(&origin));
    let mut stream = edge.connect();
    let head = format!(
        "PUT / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 100 "));
    stream.write_all(b"abc").unwrap();
    assert_eq!(status_of(&read_to_end(&mut stream)), 200);

    let refused = head.replace("Content-Length: 3", "Content-Length: 300");
    assert_eq!(status_of(&edge.exchange(&refused)), 413);
}
