//! Clients that break the rules or keep to them only to harm. Frames are written by hand here.

use std::io::Write;
use std::sync::mpsc;

use bytes::Bytes;
use http::StatusCode;

use super::h2_peers::{h2_body, h2_over, h2_request};
use super::*;

const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const DATA: u8 = 0;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `:method`, `:scheme: http`, `:path: /`, `:authority: app.test` in HPACK (RFC 7541, static table).
fn head(method: u8) -> Vec<u8> {
    let mut block = vec![method, 0x86, 0x84, 0x41, 8];
    block.extend(HOST.as_bytes());
    block
}

const GET: u8 = 0x82;
const POST: u8 = 0x83;

/// A connection whose own limits would keep nothing from being sent.
fn raw(edge: &TestEdge) -> TcpStream {
    let mut stream = edge.connect();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .unwrap();
    stream
}

/// Writes one after the other, at most `most`, until the edge hangs up. Then nothing of it may be left.
#[track_caller]
fn flood(edge: &TestEdge, mut stream: TcpStream, most: u32, make: impl Fn(u32) -> Vec<u8>) {
    for n in 0..most {
        if stream.write_all(&make(n)).is_err() {
            break;
        }
    }
    // Ends only when the edge has closed: the client's half stays open.
    read_to_end(&mut stream);
    let deadline = std::time::Instant::now() + PATIENCE;
    while edge.edge.observe().requests > 0 {
        assert!(std::time::Instant::now() < deadline, "requests are left");
        thread::yield_now();
    }
    assert_eq!(
        status_of(&edge.exchange(&get("/"))),
        200,
        "others are served"
    );
}

#[test]
fn streams_opened_and_reset_end_the_connection_early() {
    let origin = Origin::echo();
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    flood(&edge, raw(&edge), 20_000, |n| {
        let stream = 2 * n + 1;
        let mut both = frame(HEADERS, END_HEADERS | END_STREAM, stream, &head(GET));
        both.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        both
    });
    let seen = edge.metric("tidegate_http_requests_total");
    assert!((1..1000).contains(&seen), "{seen} requests were begun");
}

#[test]
fn streams_that_make_the_edge_reset_them_end_the_connection_early() {
    let origin = Origin::echo();
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    flood(&edge, raw(&edge), 20_000, |n| {
        let stream = 2 * n + 1;
        let mut both = frame(HEADERS, END_HEADERS | END_STREAM, stream, &head(GET));
        both.extend(frame(WINDOW_UPDATE, 0, stream, &[0; 4]));
        both
    });
    let seen = edge.metric("tidegate_http_requests_total");
    assert!((1..1000).contains(&seen), "{seen} requests were begun");
    let reached = origin.connections.load(Ordering::SeqCst);
    assert!(reached <= 100, "{reached} reached the backend");
}

#[test]
fn a_small_head_that_decodes_to_a_large_one_is_refused() {
    let origin = Origin::echo();
    let edge = TestEdge::start_with(forward_to(&[cluster(origin.address)]), |settings| {
        settings.timeouts.request_head = Duration::from_millis(100);
        settings.timeouts.keep_alive_idle = Duration::from_millis(100);
    });
    // A field of 4,000 bytes goes into the dynamic table, then 10,000 references of one byte each.
    let mut block = head(GET);
    block.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    block.extend([b'y'; 4000]);
    block.extend([0xbe; 10_000]);
    let mut stream = raw(&edge);
    stream
        .write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block))
        .unwrap();
    read_to_end(&mut stream);
    assert_eq!(origin.connections.load(Ordering::SeqCst), 0);
    assert_eq!(status_of(&edge.exchange(&get("/"))), 200);
}

#[test]
fn frames_that_cost_nothing_end_the_connection() {
    let origin = Origin::echo();
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    flood(&edge, raw(&edge), 100_000, |_| frame(SETTINGS, 0, 0, &[]));
    flood(&edge, raw(&edge), 200_000, |_| {
        frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])
    });
}

#[test]
fn a_head_without_end_ends_the_connection() {
    let origin = Origin::echo();
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    let filler = {
        // x-<n>: literals that are not indexed.
        let mut block = Vec::new();
        while block.len() < 16_000 {
            block.extend([0x00, 1, b'x', 100]);
            block.extend([b'y'; 100]);
        }
        block
    };
    let mut stream = raw(&edge);
    stream.write_all(&frame(HEADERS, 0, 1, &head(GET))).unwrap();
    flood(&edge, stream, 4_000, |_| frame(CONTINUATION, 0, 1, &filler));
    let mut stream = raw(&edge);
    stream.write_all(&frame(HEADERS, 0, 1, &head(GET))).unwrap();
    flood(&edge, stream, 200_000, |_| frame(CONTINUATION, 0, 1, &[]));
}

#[test]
fn empty_frames_of_a_body_end_the_connection() {
    let origin = Origin::scripted(|_, mut stream| {
        let head = read_head(&mut stream);
        if head.starts_with("GET") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        } else {
            read_to_end(&mut stream);
        }
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    let mut stream = raw(&edge);
    stream
        .write_all(&frame(HEADERS, END_HEADERS, 1, &head(POST)))
        .unwrap();
    flood(&edge, stream, 200_000, |_| frame(DATA, 0, 1, &[]));
}

#[test]
fn too_large_a_header_list_is_refused_and_the_connection_goes_on() {
    let origin = Origin::echo();
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    edge.block_on(async {
        let mut client = edge.h2().await;
        let mut request = h2_request("GET", "/");
        for n in 0..80 {
            let name: http::HeaderName = format!("x-{n}").parse().unwrap();
            let value = "v".repeat(1000).parse().unwrap();
            request.headers_mut().insert(name, value);
        }
        let (response, _) = client.send_request(request, true).unwrap();
        if let Ok(response) = response.await {
            let status = response.status();
            assert_eq!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
        let (response, _) = client.send_request(h2_request("GET", "/"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    });
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
}

/// Sends without end, and tells when it can no more.
fn endless() -> (Origin, mpsc::Receiver<()>) {
    let (tell, told) = mpsc::channel();
    let origin = Origin::scripted(move |_, mut stream| {
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n");
        while stream.write_all(&[7; 16384]).is_ok() {}
        let _ = tell.send(());
    });
    (origin, told)
}

fn impatient(settings: &mut Settings) {
    settings.timeouts.write_stall = Duration::from_millis(300);
    // The clock of a connection ticks twice in this time.
    settings.timeouts.request_head = Duration::from_millis(200);
}

#[test]
fn a_window_that_stays_shut_ends_the_connection() {
    let (origin, told) = endless();
    let edge = TestEdge::start_with(forward_to(&[cluster(origin.address)]), impatient);
    edge.block_on(async {
        let tcp = tokio::net::TcpStream::connect(edge.http).await.unwrap();
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(0);
        let mut client = h2_over(tcp, builder).await;
        let (response, _) = client.send_request(h2_request("GET", "/"), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert!(h2_body(&mut body).await.is_err());
    });
    told.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn a_client_that_does_not_read_is_cut_on_http_1_too() {
    let (origin, told) = endless();
    let edge = TestEdge::start_with(forward_to(&[cluster(origin.address)]), impatient);
    let mut client = edge.connect();
    client.write_all(get("/").as_bytes()).unwrap();
    told.recv_timeout(PATIENCE).unwrap();
    // The backend sees the end of its connection a moment before the request is counted off.
    let deadline = std::time::Instant::now() + PATIENCE;
    while edge.edge.observe().requests > 0 {
        assert!(std::time::Instant::now() < deadline, "the request is left");
        thread::yield_now();
    }
}

#[test]
fn a_body_that_stops_coming_on_a_stream_is_408_and_the_connection_goes_on() {
    let origin = Origin::scripted(|_, mut stream| {
        let head = read_head(&mut stream);
        if head.starts_with("GET") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        } else {
            read_to_end(&mut stream);
        }
    });
    let mut rule = forward_to(&[cluster(origin.address)]);
    rule.timeouts.idle = Some(Duration::from_millis(200));
    let edge = TestEdge::start(rule);
    edge.block_on(async {
        let mut client = edge.h2().await;
        let (response, mut up) = client.send_request(h2_request("POST", "/"), false).unwrap();
        up.send_data(Bytes::from_static(b"half"), false).unwrap();
        let status = response.await.unwrap().status();
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
        let (response, _) = client.send_request(h2_request("GET", "/"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    });
}

#[test]
fn a_client_that_vanishes_without_a_word_is_noticed_though_a_stream_waits() {
    let (tell, told) = mpsc::channel();
    let origin = Origin::scripted(move |_, mut stream| {
        read_head(&mut stream);
        // The answer never comes; the edge hangs up.
        read_to_end(&mut stream);
        tell.send(()).unwrap();
    });
    let edge = TestEdge::start_with(forward_to(&[cluster(origin.address)]), |settings| {
        settings.timeouts.request_head = Duration::from_millis(200);
        settings.timeouts.keep_alive_idle = Duration::from_millis(300);
    });
    let mut silent = raw(&edge);
    let request = frame(HEADERS, END_HEADERS | END_STREAM, 1, &head(GET));
    silent.write_all(&request).unwrap();
    told.recv_timeout(PATIENCE).unwrap();
    let mut sent = Vec::new();
    let _ = Read::read_to_end(&mut silent, &mut sent);
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0];
    assert!(
        sent.windows(9).any(|bytes| bytes == ping),
        "it was asked before"
    );
}
