//! Every pair of HTTP versions: streaming, trailers and lengths as gRPC needs them, and TLS to backends.

use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use rustls::RootCertStore;
use tidegate_model::{UpstreamProtocol, UpstreamTls};
use tokio_rustls::TlsAcceptor;

use super::h2_peers::{H2Origin, accepting, describe, h2_body, h2_request, h2_send, serve_h2};
use super::*;

fn h2c(address: SocketAddr) -> Arc<Cluster> {
    let mut cluster = Arc::unwrap_or_clone(cluster(address));
    cluster.protocol = UpstreamProtocol::Http2;
    Arc::new(cluster)
}

fn grpc_call() -> Request<()> {
    let mut request = h2_request("POST", "/pkg.Service/Call");
    let headers = request.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("te", HeaderValue::from_static("trailers"));
    request
}

fn status_trailers(code: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(code));
    trailers
}

/// Sends each frame back as it comes, then `grpc-status: 0`.
async fn echo_frames(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    assert_eq!(request.headers()["te"], "trailers");
    assert!(!request.headers().contains_key("content-length"));
    assert!(!request.headers().contains_key("transfer-encoding"));
    assert!(!request.headers().contains_key("host"));
    assert_eq!(request.uri().authority().unwrap(), HOST);
    let mut body = request.into_body();
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).unwrap();
        h2_send(&mut stream, data, false).await;
    }
    let asked = body.trailers().await.unwrap();
    let mut trailers = status_trailers("0");
    if let Some(asked) = asked {
        assert!(!asked.contains_key("x-forwarded-for"), "{asked:?}");
        trailers.insert("x-checksum", asked["x-checksum"].clone());
    }
    stream.send_trailers(trailers).unwrap();
}

#[test]
fn a_call_streams_both_ways_and_ends_with_its_trailers() {
    let origin = H2Origin::scripted(echo_frames);
    let edge = TestEdge::start(forward_to(&[h2c(origin.address)]));
    edge.block_on(async {
        let mut client = edge.h2().await;
        for call in 0..3 {
            let (response, mut up) = client.send_request(grpc_call(), false).unwrap();
            let mut down = None;
            let mut response = Some(response);
            for round in 0..20_u8 {
                // The next frame leaves only after the last one came back.
                h2_send(&mut up, Bytes::from(vec![round; 7]), false).await;
                if let Some(response) = response.take() {
                    let response = response.await.unwrap();
                    assert_eq!(response.status(), StatusCode::OK);
                    assert!(!response.headers().contains_key("content-length"));
                    down = Some(response.into_body());
                }
                let down = down.as_mut().unwrap();
                let data = down.data().await.unwrap().unwrap();
                down.flow_control().release_capacity(data.len()).unwrap();
                assert_eq!(data, vec![round; 7]);
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", HeaderValue::from_static("7"));
            trailers.insert("x-forwarded-for", HeaderValue::from_static("9.9.9.9"));
            up.send_trailers(trailers).unwrap();
            let (rest, trailers) = h2_body(down.as_mut().unwrap()).await.unwrap();
            assert!(rest.is_empty(), "call {call}");
            let trailers = trailers.unwrap();
            assert_eq!(trailers["grpc-status"], "0");
            assert_eq!(trailers["x-checksum"], "7", "the client's own trailer");
        }
    });
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn an_answer_of_nothing_but_trailers_stays_one() {
    let origin = H2Origin::scripted(|_, mut respond| async move {
        let mut response = Response::new(());
        *response.headers_mut() = status_trailers("5");
        respond.send_response(response, true).unwrap();
    });
    let edge = TestEdge::start(forward_to(&[h2c(origin.address)]));
    edge.block_on(async {
        let mut client = edge.h2().await;
        let (response, mut up) = client.send_request(grpc_call(), false).unwrap();
        h2_send(&mut up, Bytes::from_static(b"\0\0\0\0\0"), true).await;
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "5");
        assert!(!response.headers().contains_key("content-length"));
        assert!(response.body().is_end_stream());
    });
}

#[test]
fn a_hundred_thousand_small_frames_pass_both_ways() {
    const FRAMES: usize = 100_000;
    let origin = H2Origin::scripted(|request, mut respond| async move {
        let mut body = request.into_body();
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        let mut uploaded = 0;
        while let Some(Ok(data)) = body.data().await {
            body.flow_control().release_capacity(data.len()).unwrap();
            uploaded += data.len();
        }
        assert_eq!(uploaded, FRAMES * 20);
        for _ in 0..FRAMES {
            h2_send(&mut stream, Bytes::from_static(&[7; 20]), false).await;
        }
        stream.send_trailers(status_trailers("0")).unwrap();
    });
    let edge = TestEdge::start(forward_to(&[h2c(origin.address)]));
    edge.block_on(async {
        let mut client = edge.h2().await;
        let (response, mut up) = client.send_request(grpc_call(), false).unwrap();
        for n in 1..=FRAMES {
            h2_send(&mut up, Bytes::from_static(&[7; 20]), n == FRAMES).await;
        }
        let mut down = response.await.unwrap().into_body();
        let (body, trailers) = h2_body(&mut down).await.unwrap();
        assert_eq!(body.len(), FRAMES * 20);
        assert_eq!(trailers.unwrap()["grpc-status"], "0");
    });
}

#[test]
fn a_slow_reader_of_small_frames_does_not_end_the_connection_that_others_share() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let origin = H2Origin::scripted(move |request, mut respond| {
        let counter = Arc::clone(&counter);
        async move {
            if request.uri().path() != "/stream" {
                return describe(request, respond).await;
            }
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            loop {
                h2_send(&mut stream, Bytes::from_static(&[7; 20]), false).await;
                counter.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let edge = TestEdge::start(forward_to(&[h2c(origin.address)]));
    edge.block_on(async {
        let mut slow = edge.h2().await;
        let (response, _) = slow
            .send_request(h2_request("GET", "/stream"), true)
            .unwrap();
        let unread = response.await.unwrap();
        // All windows on the way are full then.
        while sent.load(Ordering::SeqCst) < 26_000 {
            tokio::task::yield_now().await;
        }
        let mut other = edge.h2().await;
        let (response, _) = other.send_request(h2_request("GET", "/"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
        assert!(!unread.body().is_end_stream());
    });
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn http_2_in_front_of_http_1() {
    let origin = Origin::scripted(|_, mut stream| {
        let head = read_head(&mut stream).to_ascii_lowercase();
        assert!(head.contains("\r\nhost: app.test\r\n"), "{head}");
        assert!(head.contains("\r\ntransfer-encoding: chunked\r\n"));
        assert!(
            head.contains("\r\ncookie: a=1; b=2\r\n"),
            "RFC 9113 §8.2.3: {head}"
        );
        let mut body = String::new();
        while !body.ends_with("0\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            body.push(char::from(byte[0]));
        }
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\
                      Keep-Alive: timeout=5\r\nConnection: keep-alive\r\n\r\n\
                      2\r\nok\r\n0\r\nX-Sum: 9\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    edge.block_on(async {
        let mut client = edge.h2().await;
        let mut request = h2_request("PUT", "/");
        let headers = request.headers_mut();
        headers.append("cookie", HeaderValue::from_static("a=1"));
        headers.append("cookie", HeaderValue::from_static("b=2"));
        headers.insert("te", HeaderValue::from_static("trailers"));
        let (response, mut up) = client.send_request(request, false).unwrap();
        h2_send(&mut up, Bytes::from_static(b"body"), true).await;
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        for gone in ["connection", "keep-alive", "transfer-encoding"] {
            assert!(!response.headers().contains_key(gone), "{gone}");
        }
        let (body, trailers) = h2_body(&mut response.into_body()).await.unwrap();
        assert_eq!(body, b"ok");
        assert_eq!(trailers.unwrap()["x-sum"], "9");
    });
}

#[test]
fn http_1_in_front_of_http_2() {
    let origin = H2Origin::scripted(describe);
    let edge = TestEdge::start(forward_to(&[h2c(origin.address)]));
    let answer = edge.exchange(&get("/x?y=1"));
    assert_eq!(status_of(&answer), 200);
    assert!(
        answer.contains("HTTP/2.0 GET http://app.test/x?y=1"),
        "{answer}"
    );
    assert!(!answer.contains("\"host\""), "{answer}");
    let chunked = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
         3\r\nabc\r\n0\r\n\r\n"
    );
    let answer = edge.exchange(&chunked);
    assert!(answer.contains("body abc"), "{answer}");
    let described = answer.split("\r\n\r\n").nth(1).unwrap();
    assert!(!described.contains("transfer-encoding"), "{answer}");
    let sized = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
    );
    let answer = edge.exchange(&sized);
    assert!(answer.contains("\"content-length\": \"3\""), "{answer}");
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_backend_that_says_goodbye_costs_no_request() {
    // One request per connection: GOAWAY comes with the answer.
    let address = accepting(|tcp| {
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                connection.graceful_shutdown();
                tokio::spawn(describe(request, respond));
            }
        });
    });
    let edge = TestEdge::start(forward_to(&[h2c(address)]));
    for n in 0..20 {
        let post = format!(
            "POST /{n} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
        );
        assert_eq!(status_of(&edge.exchange(&post)), 200, "request {n}");
    }
}

/// A TLS origin with these ALPN protocols, by the rustls server: HTTP/2 as [`describe`], else each request's
/// head and which of its connection it was.
fn tls_origin(names: &[&str], alpn: &[&[u8]]) -> (SocketAddr, Arc<RootCertStore>) {
    let made = rcgen::generate_simple_self_signed(
        names.iter().map(ToString::to_string).collect::<Vec<_>>(),
    )
    .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let address = accepting(move |tcp| {
        tokio::spawn(serve_tls(acceptor.accept(tcp)));
    });
    (address, Arc::new(roots))
}

async fn serve_tls(accepting: tokio_rustls::Accept<tokio::net::TcpStream>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Ok(mut stream) = accepting.await else {
        return;
    };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        return serve_h2(stream, describe).await;
    }
    for served in 1.. {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else {
                return;
            };
            head.push(byte);
        }
        let length = head.len();
        let answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nX-Served: {served}\r\n\r\n");
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.write_all(&head).await;
    }
}

fn over_tls(
    address: SocketAddr,
    protocol: UpstreamProtocol,
    server_name: &str,
    roots: Option<Arc<RootCertStore>>,
) -> Cluster {
    let mut cluster = Arc::unwrap_or_clone(cluster(address));
    cluster.protocol = protocol;
    let mut fingerprint = [0; 32];
    fastrand::fill(&mut fingerprint);
    cluster.tls = Some(UpstreamTls {
        server_name: Some(server_name.to_owned()),
        roots_fingerprint: roots.is_some().then_some(Fingerprint(fingerprint)),
        insecure_skip_verify: false,
        roots,
    });
    cluster
}

#[test]
fn tls_backends_choose_the_version_by_alpn() {
    let both: &[&[u8]] = &[b"h2", b"http/1.1"];
    for (alpn, protocol, expected) in [
        (
            both,
            UpstreamProtocol::Auto,
            "HTTP/2.0 GET https://app.test/",
        ),
        (
            both,
            UpstreamProtocol::Http2,
            "HTTP/2.0 GET https://app.test/",
        ),
        (both, UpstreamProtocol::Http1, "GET / HTTP/1.1\r\n"),
        (&both[1..], UpstreamProtocol::Auto, "GET / HTTP/1.1\r\n"),
        (&both[..0], UpstreamProtocol::Auto, "GET / HTTP/1.1\r\n"),
    ] {
        let (address, roots) = tls_origin(&["origin.test"], alpn);
        let cluster = over_tls(address, protocol, "origin.test", Some(roots));
        let edge = TestEdge::start(forward_to(&[Arc::new(cluster)]));
        let answer = edge.exchange(&get("/"));
        assert_eq!(status_of(&answer), 200, "{protocol:?}: {answer}");
        assert!(answer.contains(expected), "{protocol:?}: {answer}");
    }
}

#[test]
fn a_tls_connection_is_used_again() {
    let (address, roots) = tls_origin(&["origin.test"], &[]);
    let cluster = over_tls(address, UpstreamProtocol::Auto, "origin.test", Some(roots));
    let edge = TestEdge::start(forward_to(&[Arc::new(cluster)]));
    for served in 1..=3 {
        let answer = edge.exchange(&get("/"));
        assert!(
            answer.contains(&format!("\r\nx-served: {served}\r\n")),
            "{answer}"
        );
    }
}

#[test]
fn a_tls_backend_that_cannot_prove_its_name_is_a_bad_gateway() {
    let (address, roots) = tls_origin(&["origin.test"], &[]);
    let status = |cluster: Cluster| {
        let edge = TestEdge::start(forward_to(&[Arc::new(cluster)]));
        status_of(&edge.exchange(&get("/")))
    };
    let auto = UpstreamProtocol::Auto;
    let own = || Some(Arc::clone(&roots));
    assert_eq!(status(over_tls(address, auto, "origin.test", own())), 200);
    assert_eq!(status(over_tls(address, auto, "other.test", own())), 502);
    assert_eq!(
        status(over_tls(address, auto, "origin.test", None)),
        502,
        "the system does not know it"
    );
    let mut unverified = over_tls(address, auto, "other.test", None);
    unverified.tls.as_mut().unwrap().insecure_skip_verify = true;
    assert_eq!(status(unverified), 200);
}

#[test]
fn a_websocket_to_a_backend_that_prefers_http_2_uses_http_1() {
    let origin = Origin::scripted(|_, mut stream| {
        let head = read_head(&mut stream);
        assert!(head.starts_with("GET /ws HTTP/1.1\r\n"), "{head}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                      Upgrade: websocket\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let edge = TestEdge::start(forward_to(&[h2c(origin.address)]));
    let answer = edge.exchange(&format!(
        "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ));
    assert_eq!(status_of(&answer), 101, "{answer}");
}
