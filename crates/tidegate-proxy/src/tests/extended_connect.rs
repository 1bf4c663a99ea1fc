//! WebSocket as an HTTP/2 stream (RFC 8441) in front of backends that only know HTTP/1.1.

use std::io::{Read, Write};

use bytes::Bytes;
use h2::ext::Protocol;
use http::{Request, StatusCode};

use super::h2_peers::{h2_body, h2_request};
use super::*;

fn websocket(path: &str) -> Request<()> {
    let mut request = h2_request("CONNECT", path);
    request
        .extensions_mut()
        .insert(Protocol::from_static("websocket"));
    let headers = request.headers_mut();
    headers.insert("sec-websocket-version", "13".parse().unwrap());
    headers.insert("sec-websocket-protocol", "chat".parse().unwrap());
    request
}

fn answering(answer: &'static str) -> Origin {
    Origin::scripted(move |_, mut stream| {
        let head = read_head(&mut stream);
        let lower = head.to_ascii_lowercase();
        assert!(head.starts_with("GET /ws?a=1 HTTP/1.1\r\n"), "{head}");
        for field in [
            "\r\nhost: app.test\r\n",
            "\r\nconnection: upgrade\r\n",
            "\r\nupgrade: websocket\r\n",
            "\r\nsec-websocket-version: 13\r\n",
            "\r\nsec-websocket-protocol: chat\r\n",
        ] {
            assert!(lower.contains(field), "{field:?} in {head}");
        }
        let key = lower.split("\r\nsec-websocket-key: ").nth(1).unwrap();
        assert_eq!(key.split('\r').next().unwrap().len(), 24, "{head}");
        for field in ["content-length", "transfer-encoding", ":protocol"] {
            assert!(!lower.contains(field), "{field} in {head}");
        }
        stream.write_all(answer.as_bytes()).unwrap();
        let mut buffer = [0; 256];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    })
}

#[test]
fn a_websocket_on_an_http_2_stream_reaches_an_http_1_backend() {
    let origin = answering(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: chat\r\n\r\nhello",
    );
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    edge.block_on(async {
        let mut client = edge.h2().await;
        while !client.is_extended_connect_protocol_enabled() {
            // Told in the edge's first SETTINGS.
            tokio::task::yield_now().await;
        }
        let (response, mut up) = client.send_request(websocket("/ws?a=1"), false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let headers = response.headers();
        assert_eq!(headers["sec-websocket-protocol"], "chat");
        for gone in [
            "connection",
            "upgrade",
            "sec-websocket-accept",
            "content-length",
        ] {
            assert!(!headers.contains_key(gone), "{gone} in {headers:?}");
        }
        let mut down = response.into_body();
        let first = down.data().await.unwrap().unwrap();
        assert_eq!(first, "hello", "what came with the backend's head");
        for round in 0..100_u32 {
            let message = Bytes::from(format!("message {round}"));
            up.send_data(message.clone(), false).unwrap();
            let mut back = Vec::new();
            while back.len() < message.len() {
                let data = down.data().await.unwrap().unwrap();
                down.flow_control().release_capacity(data.len()).unwrap();
                back.extend_from_slice(&data);
            }
            assert_eq!(back, message);
        }
        // Our end closes, the backend reads it and closes too.
        up.send_data(Bytes::new(), true).unwrap();
        let (rest, trailers) = h2_body(&mut down).await.unwrap();
        assert!(rest.is_empty() && trailers.is_none());
    });
}

#[test]
fn an_answer_other_than_101_opens_no_websocket() {
    let refusing = answering("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
    let edge = TestEdge::start(forward_to(&[cluster(refusing.address)]));
    edge.block_on(async {
        let mut client = edge.h2().await;
        let (response, _up) = client.send_request(websocket("/ws?a=1"), false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        let mut body = response.into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "no");
    });
    let misled = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let edge = TestEdge::start(forward_to(&[cluster(misled.address)]));
    edge.block_on(async {
        let mut client = edge.h2().await;
        let (response, _up) = client.send_request(websocket("/ws?a=1"), false).unwrap();
        let status = response.await.unwrap().status();
        assert_eq!(
            status,
            StatusCode::BAD_GATEWAY,
            "200 would mean an open WebSocket"
        );
    });
}

#[test]
fn a_plain_connect_is_refused() {
    let origin = Origin::echo();
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    edge.block_on(async {
        let mut client = edge.h2().await;
        let request = Request::connect("app.test:443").body(()).unwrap();
        let (response, _up) = client.send_request(request, false).unwrap();
        let status = response.await.unwrap().status();
        assert!(status.is_client_error() || status.is_server_error());
    });
    let over_h1 = format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n");
    let status = status_of(&edge.exchange(&over_h1));
    assert!((400..600).contains(&status), "{status}");
    assert_eq!(origin.connections.load(Ordering::SeqCst), 0);
}

#[test]
fn an_upgrade_that_has_a_body_is_an_ordinary_request() {
    let origin = Origin::scripted(|_, mut stream| {
        let head = read_head(&mut stream).to_ascii_lowercase();
        assert!(!head.contains("\r\nupgrade:"), "{head}");
        let mut body = [0; 3];
        stream.read_exact(&mut body).unwrap();
        assert_eq!(&body, b"abc");
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    let answer = edge.exchange(&format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Content-Length: 3\r\n\r\nabc{}",
        get("/").replace(HOST, "other.test")
    ));
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(answer.contains("HTTP/1.1 404 "), "{answer}");
}
