//! What lasts over links: WebSocket, TLS passed through, trailers, streams, uploads, and visitors who do not read.

use std::sync::Mutex;

use h2::ext::Protocol;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::StreamBody;

use super::super::h2_peers::{h2_body, h2_request, h2_send};
use super::replicas::{Replica, replicas_from};
use super::*;

/// RFC 6455 §1.3 has this key, and what is to be answered.
const HANDSHAKE: &str = "GET /ws HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const ACCEPT: &str = "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

/// Agrees to streams of the protocol and sends back what comes.
pub(super) fn echoes(
    protocol: &'static str,
) -> impl Fn(Request<Incoming>) -> std::future::Ready<Response<AgentBody>> + Clone + Send + Sync {
    move |request| {
        let asked = request.extensions().get::<Protocol>();
        assert_eq!(asked.map(Protocol::as_str), Some(protocol));
        assert_eq!(request.method(), "CONNECT");
        for gone in ["connection", "upgrade"] {
            assert!(!request.headers().contains_key(gone), "{gone}");
        }
        let Incoming::Tunnel(agreed) = request.into_body() else {
            panic!("a CONNECT with a body");
        };
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(agreed.tunnel().await.unwrap());
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut response = Response::new(full(""));
        let chat = HeaderValue::from_static("chat");
        response
            .headers_mut()
            .insert("sec-websocket-protocol", chat);
        std::future::ready(response)
    }
}

/// The same over a link of the replica that visitors come to, and over one of another replica.
fn near_and_far(test: impl Fn(&Rig, &Rig)) {
    let here = near_and_far_with(|| forward_to(&[behind_agent()]), |_| {}, test);
    let failed = here.forwarded("") - here.forwarded("Answered");
    assert_eq!(failed, 0);
}

/// The same with another rule and other settings; returns the replica that passed everything on.
pub(super) fn near_and_far_with(
    rule: impl Fn() -> Rule,
    change: impl Fn(&mut Settings),
    test: impl Fn(&Rig, &Rig),
) -> Replica {
    let near = Rig::with(rule(), &change);
    test(&near, &near);
    // The next one may want its ports.
    drop(near);
    let certificate = certificate(&[HOST]);
    let hosts = || vec![virtual_host(HOST, rule(), policy(Arc::clone(&certificate)))];
    let mut all = replicas_from(&["a", "b"], PATIENCE, |name, identity| {
        Replica::start_hosts(name, identity, hosts(), &certificate, PATIENCE, &change)
    });
    test(&all[0].rig, &all[1].rig);
    all.swap_remove(0)
}

#[test]
fn websockets_of_both_kinds_of_visitors_go_over_the_link() {
    near_and_far(websockets);
}

fn websockets(rig: &Rig, agents: &Rig) {
    let agent = agents.connect(Way::WebSocket, echoes("websocket"));
    rig.sees_a_link();
    let mut visitor = rig.edge.connect();
    visitor.write_all(HANDSHAKE.as_bytes()).unwrap();
    let head = read_head(&mut visitor);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains(ACCEPT), "{head}");
    assert!(head.contains("sec-websocket-protocol: chat\r\n"), "{head}");
    for round in 0..50_u8 {
        visitor.write_all(&[round; 100]).unwrap();
        let mut back = [255; 100];
        visitor.read_exact(&mut back).unwrap();
        assert_eq!(back, [round; 100]);
    }
    visitor.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut visitor), "");
    let observed = &agents.agents()[0].sessions[0];
    assert_eq!((observed.bytes_sent, observed.bytes_received), (5000, 5000));

    rig.edge.block_on(async {
        let mut client = rig.edge.h2().await;
        while !client.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
        let mut request = h2_request("CONNECT", "/ws");
        let protocol = Protocol::from_static("websocket");
        request.extensions_mut().insert(protocol);
        let (response, mut up) = client.send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        let mut down = response.into_body();
        up.send_data(Bytes::from_static(b"hello"), true).unwrap();
        let (back, _) = h2_body(&mut down).await.unwrap();
        assert_eq!(back, b"hello");
    });
    eventually("nothing is left", || agent.link.in_flight() == 0);
}

#[test]
fn an_upgrade_that_the_service_refuses_is_an_answer_like_any_other() {
    near_and_far(refused_upgrade);
}

fn refused_upgrade(rig: &Rig, agents: &Rig) {
    let _agent = agents.connect(Way::Direct, |_| async {
        let mut response = Response::new(full("not here"));
        *response.status_mut() = http::StatusCode::FORBIDDEN;
        response
    });
    rig.sees_a_link();
    let mut visitor = rig.edge.connect();
    visitor.write_all(HANDSHAKE.as_bytes()).unwrap();
    let head = read_head(&mut visitor);
    assert_eq!(status_of(&head), 403, "{head}");
    let mut body = [0; 8];
    visitor.read_exact(&mut body).unwrap();
    assert_eq!(&body, b"not here");
}

#[test]
fn tls_that_is_not_opened_goes_to_a_tcp_mapping() {
    let cert = certificate(&[HOST]);
    let hosts = || {
        let rule = || forward_to(&[behind_agent()]);
        let passed = TlsMode::Passthrough(behind_agent());
        vec![
            virtual_host(HOST, rule(), policy(Arc::clone(&cert))),
            virtual_host("passed.test", rule(), passed),
        ]
    };
    let rig = Rig::hosts(hosts(), Arc::clone(&cert), PATIENCE, |_| {});
    passed_through(&rig, &rig);
    let start =
        |name, identity| Replica::start_hosts(name, identity, hosts(), &cert, PATIENCE, |_| {});
    let all = replicas_from(&["a", "b"], PATIENCE, start);
    passed_through(&all[0].rig, &all[1].rig);
}

fn passed_through(rig: &Rig, agents: &Rig) {
    let _agent = agents.connect(Way::Direct, echoes("tidegate-tcp"));
    rig.sees_a_link();
    // What comes back is what was sent: a ClientHello, which no client takes for an answer, but we can read.
    let config = tls::client(roots(&[&rig.certificate]));
    let mut hello = Vec::new();
    let name = "passed.test".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(config, name).unwrap();
    client.write_tls(&mut hello).unwrap();
    let mut visitor = connect(rig.edge.https);
    visitor.write_all(&hello).unwrap();
    let mut back = vec![0; hello.len()];
    visitor.read_exact(&mut back).unwrap();
    assert!(back == hello);
}

#[test]
fn trailers_pass_both_ways() {
    near_and_far(trailers);
}

fn trailers(rig: &Rig, agents: &Rig) {
    let _agent = agents.connect(Way::WebSocket, |request: Request<Incoming>| async move {
        assert_eq!(request.headers()["te"], "trailers");
        let collected = request.into_body().collect().await.unwrap();
        let sent = collected.trailers().unwrap().clone();
        assert!(!sent.contains_key("tidegate-tunnel-mapping"), "{sent:?}");
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", sent["x-sent"].clone());
        let frames = [
            Ok(Frame::data(collected.to_bytes())),
            Ok(Frame::trailers(trailers)),
        ];
        Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync())
    });
    rig.sees_a_link();
    rig.edge.block_on(async {
        let mut client = rig.edge.h2().await;
        let mut request = h2_request("POST", "/pkg.Service/Call");
        let headers = request.headers_mut();
        headers.insert("te", HeaderValue::from_static("trailers"));
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        let (response, mut up) = client.send_request(request, false).unwrap();
        up.send_data(Bytes::from_static(b"message"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sent", HeaderValue::from_static("7"));
        trailers.insert("tidegate-tunnel-mapping", HeaderValue::from_static("x"));
        up.send_trailers(trailers).unwrap();
        let mut body = response.await.unwrap().into_body();
        let (body, trailers) = h2_body(&mut body).await.unwrap();
        assert_eq!(body, b"message");
        assert_eq!(trailers.unwrap()["grpc-status"], "7");
    });
}

#[test]
fn large_bodies_and_events_stream_both_ways() {
    near_and_far(large_bodies);
}

fn large_bodies(rig: &Rig, agents: &Rig) {
    const CHUNKS: usize = 1024;
    // Sends back each piece as it comes: neither side could wait for the whole.
    let _agent = agents.connect(Way::WebSocket, |request: Request<Incoming>| async move {
        let body = request.into_body();
        Response::new(body.map_err(|error| panic!("{error}")).boxed_unsync())
    });
    rig.sees_a_link();
    rig.edge.block_on(async {
        let mut client = rig.edge.h2().await;
        let (response, mut up) = client.send_request(h2_request("POST", "/"), false).unwrap();
        up.send_data(Bytes::from_static(b"event"), false).unwrap();
        let mut body = response.await.unwrap().into_body();
        let first = body.data().await.unwrap().unwrap();
        assert_eq!(first, "event", "before the upload has ended");
        body.flow_control().release_capacity(first.len()).unwrap();
        let chunk = Bytes::from(vec![7; 32 * 1024]);
        let sending = async {
            for round in 1..=CHUNKS {
                h2_send(&mut up, chunk.clone(), round == CHUNKS).await;
            }
        };
        let (back, ()) = tokio::join!(h2_body(&mut body), sending);
        assert_eq!(back.unwrap().0.len(), CHUNKS * chunk.len());
    });
}

#[test]
fn visitors_who_do_not_read_leave_the_link_to_the_others() {
    let here = near_and_far_with(|| forward_to(&[behind_agent()]), |_| {}, slow_visitors);
    // Whoever was refused there was refused because of the budget.
    let others = ["Answered", "LinkBusy", "LinkStalled"].map(|outcome| here.forwarded(outcome));
    assert_eq!(here.forwarded(""), others.iter().sum::<u64>());
}

fn slow_visitors(rig: &Rig, agents: &Rig) {
    const SLOW: usize = 30;
    let agent = agents.connect(Way::Direct, |request: Request<Incoming>| async move {
        if request.uri().path() == "/small" {
            return Response::new(full("small"));
        }
        let endless = futures_util::stream::repeat_with(|| {
            Ok(Frame::data(Bytes::from_static(&[0; 16 * 1024])))
        });
        Response::new(StreamBody::new(endless).boxed_unsync())
    });
    rig.sees_a_link();
    let slow: Vec<TcpStream> = (0..SLOW)
        .map(|_| {
            let mut visitor = rig.edge.connect();
            visitor.write_all(get("/large").as_bytes()).unwrap();
            visitor
        })
        .collect();
    eventually("all of them have begun", || agent.link.in_flight() == SLOW);
    for _ in 0..50 {
        let answer = rig.edge.exchange(&get("/small"));
        assert!(answer.ends_with("small"), "{answer}");
    }
    // So many of them that the link must not take more: who comes now is told, and those who read are not held up.
    let more: Vec<TcpStream> = (0..60)
        .map(|_| {
            let mut visitor = rig.edge.connect();
            visitor.write_all(get("/large").as_bytes()).unwrap();
            visitor
        })
        .collect();
    let told = Mutex::new(String::new());
    eventually("new ones are refused", || {
        let answer = rig.edge.exchange(&get("/small"));
        let refused = status_of(&answer) == 503;
        *told.lock().unwrap() = answer;
        refused
    });
    let told = told.into_inner().unwrap();
    assert!(
        told.contains("AgentLinkBusy") && told.contains("retry-after: 1\r\n"),
        "{told}"
    );
    drop((slow, more));
    eventually("they are forgotten", || agent.link.in_flight() == 0);
}
