//! Backends that speak HTTP/1.1 in every way they may, and in some that they may not.

use std::io::{Read, Write};
use std::sync::mpsc;

use http::{HeaderValue, StatusCode};

use super::h2_peers::{h2_body, h2_request};
use super::*;

/// Answers every request with these bytes, on as many connections as the edge opens.
fn answering(answer: &'static str) -> Origin {
    Origin::scripted(move |_, mut stream| {
        while !read_head(&mut stream).is_empty() {
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

/// Answers with these bytes and closes.
fn answering_once(answer: &'static str) -> Origin {
    Origin::scripted(move |_, mut stream| {
        read_head(&mut stream);
        let _ = stream.write_all(answer.as_bytes());
    })
}

fn edge_for(origin: &Origin) -> TestEdge {
    TestEdge::start(forward_to(&[cluster(origin.address)]))
}

#[test]
fn an_answer_that_comes_during_the_upload_is_delivered_at_once() {
    let (tell, told) = mpsc::channel();
    let origin = Origin::scripted(move |_, mut stream| {
        read_head(&mut stream);
        let answer = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 8\r\n\r\ntoo long";
        stream.write_all(answer.as_bytes()).unwrap();
        let _ = read_to_end(&mut stream);
        tell.send(()).unwrap();
    });
    let edge = edge_for(&origin);
    let mut client = edge.connect();
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\nbegin");
    client.write_all(head.as_bytes()).unwrap();
    assert_eq!(status_of(&read_head(&mut client)), 413);
    let mut body = [0; 8];
    client.read_exact(&mut body).unwrap();
    assert_eq!(&body, b"too long");
    // The backend's connection ends with the answer: nobody knows what it would make of the rest.
    told.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn an_answer_and_its_request_stream_at_the_same_time() {
    let origin = Origin::scripted(|_, mut stream| {
        read_head(&mut stream);
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        for _ in 0..6 {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
        }
        // Both are over: the connection is used again.
        assert!(read_head(&mut stream).starts_with("GET /next "));
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
    });
    let edge = edge_for(&origin);
    let mut client = edge.connect();
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 6\r\n\r\n");
    client.write_all(head.as_bytes()).unwrap();
    assert_eq!(status_of(&read_head(&mut client)), 200);
    for byte in b"abcdef" {
        client.write_all(&[*byte]).unwrap();
        let mut echoed = [0];
        client.read_exact(&mut echoed).unwrap();
        assert_eq!(echoed, [*byte]);
    }
    assert_eq!(status_of(&edge.exchange(&get("/next"))), 200);
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn bytes_behind_an_answer_are_nobodys() {
    let origin = answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    );
    let edge = edge_for(&origin);
    for expected in 1..=3 {
        let answer = edge.exchange(&get("/"));
        assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
        assert_eq!(origin.connections.load(Ordering::SeqCst), expected);
    }
}

#[test]
fn bytes_that_come_between_requests_are_nobodys() {
    let (tell, told) = mpsc::channel();
    let origin = Origin::scripted(move |number, mut stream| {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        read_head(&mut stream);
        stream.write_all(answer.as_bytes()).unwrap();
        if number == 0 {
            stream
                .write_all(answer.replace("ok", "no").as_bytes())
                .unwrap();
        }
        tell.send(()).unwrap();
        let _ = read_to_end(&mut stream);
    });
    let edge = edge_for(&origin);
    assert!(edge.exchange(&get("/")).ends_with("\r\n\r\nok"));
    told.recv_timeout(PATIENCE).unwrap();
    let post = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    let second = edge.exchange(&post);
    assert!(second.ends_with("\r\n\r\nok"), "{second}");
    assert_eq!(origin.connections.load(Ordering::SeqCst), 2);
}

#[test]
fn a_connection_that_the_backend_closed_meanwhile_is_not_used_even_for_a_post() {
    let (tell, told) = mpsc::channel();
    let origin = Origin::scripted(move |_, mut stream| {
        read_head(&mut stream);
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        stream.write_all(answer).unwrap();
        drop(stream);
        tell.send(()).unwrap();
    });
    let edge = edge_for(&origin);
    let post = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
    );
    for _ in 0..5 {
        assert_eq!(status_of(&edge.exchange(&post)), 200);
        told.recv_timeout(PATIENCE).unwrap();
    }
    assert_eq!(edge.metric("tidegate_upstream_retries_total"), 0);
}

#[test]
fn informational_answers_are_passed_over_but_not_for_ever() {
    let origin = answering(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    );
    let edge = edge_for(&origin);
    for _ in 0..2 {
        let answer = edge.exchange(&get("/"));
        assert_eq!(status_of(&answer), 200, "{answer}");
        assert!(
            answer.ends_with("\r\n\r\nok") && !answer.contains("preload"),
            "{answer}"
        );
    }
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);

    let (tell, told) = mpsc::channel();
    let endless = Origin::scripted(move |_, mut stream| {
        read_head(&mut stream);
        while stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").is_ok() {}
        tell.send(()).unwrap();
    });
    let edge = edge_for(&endless);
    assert_eq!(status_of(&edge.exchange(&get("/"))), 502);
    told.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn an_answer_without_a_length_ends_with_its_connection() {
    let origin = answering_once("HTTP/1.1 200 OK\r\n\r\nall there is");
    let edge = edge_for(&origin);
    for expected in 1..=2 {
        let answer = edge.exchange(&get("/"));
        assert_eq!(status_of(&answer), 200);
        assert!(answer.contains("all there is"), "{answer}");
        assert!(answer.ends_with("0\r\n\r\n"), "a clean end: {answer}");
        assert_eq!(origin.connections.load(Ordering::SeqCst), expected);
    }
    let old = answering("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok");
    let edge = edge_for(&old);
    for _ in 0..2 {
        assert!(edge.exchange(&get("/")).ends_with("\r\n\r\nok"));
    }
    assert_eq!(old.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn an_answer_that_is_cut_off_does_not_look_complete() {
    for cut in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalfX",
        "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf",
    ] {
        let origin = answering_once(cut);
        let edge = edge_for(&origin);
        let answer = edge.exchange(&get("/"));
        assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
        edge.block_on(async {
            let mut client = edge.h2().await;
            let (response, _) = client.send_request(h2_request("GET", "/"), true).unwrap();
            // The reset may be faster than the head.
            if let Ok(response) = response.await {
                let mut body = response.into_body();
                assert!(h2_body(&mut body).await.is_err(), "{cut:?}");
            }
        });
    }
}

#[test]
fn trailers_of_a_chunked_answer_reach_a_client_that_can_take_them() {
    let origin = answering(
        "HTTP/1.1 200 OK\r\nTrailer: X-Checksum\r\nTransfer-Encoding: chunked\r\n\r\n\
         2\r\nok\r\n0\r\nX-Checksum: 42\r\nContent-Length: 7\r\n\r\n",
    );
    let edge = edge_for(&origin);
    edge.block_on(async {
        let mut client = edge.h2().await;
        for _ in 0..2 {
            let (response, _) = client.send_request(h2_request("GET", "/"), true).unwrap();
            let mut body = response.await.unwrap().into_body();
            let (body, trailers) = h2_body(&mut body).await.unwrap();
            assert_eq!(body, b"ok");
            let trailers = trailers.unwrap();
            assert_eq!(trailers["x-checksum"], HeaderValue::from_static("42"));
            assert_eq!(trailers.len(), 1, "{trailers:?}");
        }
    });
    let plain = edge.exchange(&get("/"));
    assert!(plain.ends_with("2\r\nok\r\n0\r\n\r\n"), "{plain}");
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_head_with_two_readings_is_502() {
    for fields in [
        "Content-Length: 1\r\nContent-Length: 2\r\n",
        "Transfer-Encoding: gzip\r\n",
        "A: b\r\n folded\r\n",
        "A : b\r\n",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{fields}\r\nx");
        let origin = answering_once(answer.leak());
        let edge = edge_for(&origin);
        assert_eq!(status_of(&edge.exchange(&get("/"))), 502, "{fields:?}");
    }
}

#[test]
fn a_backend_that_stops_reading_an_upload_is_504() {
    let (done, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let origin = Origin::scripted(move |_, mut stream| {
        read_head(&mut stream);
        let _ = wait.lock().unwrap().recv();
    });
    let mut rule = forward_to(&[cluster(origin.address)]);
    rule.timeouts.first_byte = Some(Duration::from_millis(300));
    let edge = TestEdge::start(rule);
    let mut client = edge.connect();
    let mut sending = client.try_clone().unwrap();
    let upload = thread::spawn(move || {
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 999999999\r\n\r\n");
        let _ = sending.write_all(head.as_bytes());
        while sending.write_all(&[7; 16384]).is_ok() {}
    });
    assert_eq!(status_of(&read_head(&mut client)), 504);
    drop(client);
    drop(edge);
    drop(done);
    upload.join().unwrap();
}

#[test]
fn a_client_that_goes_away_takes_the_backends_connection_with_it() {
    let (tell, told) = mpsc::channel();
    let origin = Origin::scripted(move |_, mut stream| {
        let head = read_head(&mut stream);
        if head.starts_with("GET /slow ") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin");
        }
        // Ends when the edge closes, not before.
        let _ = read_to_end(&mut stream);
        tell.send(()).unwrap();
    });
    let edge = edge_for(&origin);
    for (connections, path) in [(1, "/slow"), (2, "/silent")] {
        edge.block_on(async {
            let mut client = edge.h2().await;
            let (response, mut reset) =
                client.send_request(h2_request("GET", path), false).unwrap();
            if path == "/slow" {
                assert_eq!(response.await.unwrap().status(), StatusCode::OK);
            }
            while origin.connections.load(Ordering::SeqCst) < connections {
                tokio::task::yield_now().await;
            }
            reset.send_reset(h2::Reason::CANCEL);
            while told.try_recv().is_err() {
                tokio::task::yield_now().await;
            }
        });
    }
}

#[test]
fn a_body_that_was_cut_off_stays_so_however_often_one_asks() {
    use http_body_util::BodyExt as _;
    use tidegate_http1::{Connection, Terms};

    use crate::body::Body;
    use crate::upstream::AnswerBody;
    use crate::upstream::connect::UpstreamStream;

    let origin = answering_once("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let tcp = tokio::net::TcpStream::connect(origin.address)
            .await
            .unwrap();
        let connection = Connection::new(UpstreamStream::Plain(tcp));
        let terms = Terms {
            first_byte: Some(PATIENCE),
            interim: None,
            home: None,
        };
        let mut request = http::Request::get("/").body(Body::Empty).unwrap();
        let answer = connection.exchange(&mut request, terms).await.unwrap();
        assert_eq!(answer.headers()["content-length"], "8");
        let mut body = answer.map(AnswerBody::Http1).into_body();
        assert_eq!(
            body.frame().await.unwrap().unwrap().into_data().unwrap(),
            "half"
        );
        for _ in 0..2 {
            assert!(body.frame().await.unwrap().is_err());
        }
    });
}
