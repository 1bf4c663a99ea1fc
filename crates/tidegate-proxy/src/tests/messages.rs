//! What the origin sees of a request, and the client of a response.

use std::io::{Read, Write};

use super::*;

#[test]
fn the_origin_sees_one_client_address_and_nothing_the_client_claims() {
    let origin = Origin::echo();
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    let answer = edge.exchange(&format!(
        "GET /announce?info_hash=%86zsL%0Et'%7e HTTP/1.1\r\nHost: {HOST}\r\n\
         X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-For: 8.8.8.8\r\nX-Real-IP: 9.9.9.9\r\n\
         Forwarded: for=1.1.1.1\r\nTrue-Client-IP: 9.9.9.9\r\nX-Forwarded-Proto: https\r\n\
         Connection: close, X-Forwarded-For\r\n\r\n"
    ));
    assert_eq!(status_of(&answer), 200);
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    assert!(
        body.starts_with("GET /announce?info_hash=%86zsL%0Et'%7e HTTP/1.1\r\n"),
        "{body}"
    );
    assert!(
        body.contains("\r\nX-Forwarded-For: 127.0.0.1\r\n"),
        "title case, one value: {body}"
    );
    assert!(body.contains("\r\nX-Forwarded-Proto: http\r\n"), "{body}");
    assert_eq!(body.matches("orwarded-For").count(), 1, "{body}");
    for lie in ["9.9.9.9", "8.8.8.8", "1.1.1.1", "True-Client"] {
        assert!(!body.contains(lie), "{lie} in {body}");
    }
}

#[test]
fn http_1_0_without_a_host_is_refused_on_plain_http_and_pipelined_requests_are_both_answered() {
    let origin = Origin::echo();
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    assert_eq!(status_of(&edge.exchange("GET / HTTP/1.0\r\n\r\n")), 400);
    let with_host = edge.exchange(&format!("GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n"));
    assert!(with_host.starts_with("HTTP/1.0 200 "), "{with_host}");
    let first = format!("GET /1 HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let both = edge.exchange(&(first + &get("/2")));
    assert_eq!(both.matches("HTTP/1.1 200 OK").count(), 2, "{both}");
}

#[test]
fn a_backend_whose_message_has_two_readings_gives_one_clean_answer_and_no_second_request() {
    let origin = Origin::scripted(|_, mut stream| {
        read_head(&mut stream);
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\nTransfer-Encoding: chunked\r\n\r\n\
                      2\r\nok\r\n0\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
        assert!(
            read_head(&mut stream).is_empty(),
            "the connection was used again"
        );
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    for expected in 1..=2 {
        let answer = edge.exchange(&get("/"));
        assert_eq!(status_of(&answer), 200);
        assert!(
            !answer.to_ascii_lowercase().contains("content-length"),
            "{answer}"
        );
        assert_eq!(origin.connections.load(Ordering::SeqCst), expected);
    }
}

#[test]
fn bodyless_answers_end_at_their_head_and_free_the_connection() {
    let origin = Origin::scripted(|_, mut stream| {
        loop {
            let head = read_head(&mut stream);
            let status = match head.split(' ').next() {
                Some("HEAD") => "200 OK",
                Some("GET") => "304 Not Modified",
                _ => return,
            };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 1234\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    for method in ["HEAD", "GET", "HEAD"] {
        let answer = edge.exchange(&get("/").replacen("GET", method, 1));
        let answer = answer.to_ascii_lowercase();
        assert!(answer.ends_with("\r\n\r\n"), "{method}: {answer}");
        if method == "HEAD" {
            assert!(answer.contains("content-length: 1234\r\n"), "{answer}");
        }
    }
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn an_unknown_host_is_404_and_a_long_target_passes() {
    let origin = Origin::echo();
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    let unknown = edge.exchange(&get("/").replace(HOST, "other.test"));
    assert_eq!(status_of(&unknown), 404);
    let id = unknown.split("x-request-id: ").nth(1).unwrap();
    let id = id.split('\r').next().unwrap();
    assert_eq!(id.len(), 32);
    assert_eq!(
        unknown.matches(id).count(),
        2,
        "in the head and on the page: {unknown}"
    );
    let long = format!(
        "/scrape?{}",
        "info_hash=%00%01%02%03%04%05%06%07&".repeat(1800)
    );
    assert!(long.len() > 60_000);
    assert_eq!(status_of(&edge.exchange(&get(&long))), 200);
    let longer = format!("/{}", "a".repeat(66_000));
    assert_eq!(
        status_of(&edge.exchange(&get(&longer))),
        414,
        "too long a target"
    );
    let many = "X-Many: 1\r\n".repeat(101);
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{many}Connection: close\r\n\r\n");
    assert_eq!(status_of(&edge.exchange(&request)), 431);
}

#[test]
fn a_get_keeps_a_body_whose_length_is_not_known() {
    let origin = Origin::scripted(|_, mut stream| {
        let head = read_head(&mut stream);
        assert!(
            head.contains("\r\nTransfer-Encoding: chunked\r\n"),
            "{head}"
        );
        let mut body = String::new();
        while !body.ends_with("0\r\n\r\n") {
            let mut byte = [0];
            Read::read_exact(&mut stream, &mut byte).unwrap();
            body.push(char::from(byte[0]));
        }
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    let answer = edge.exchange(&format!(
        "GET /_search HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
         5\r\nquery\r\n0\r\n\r\n"
    ));
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(answer.ends_with("5\r\nquery\r\n0\r\n\r\n"), "{answer}");
}
