//! What a link carries.

use std::sync::Arc;

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::support::*;
use crate::link::agent::Incoming;
use crate::link::edge::LinkTunnel;
use crate::link::stall::Patience;
use crate::link::{CONTROL_PATH, Protocol};
use crate::websocket::{Role, WebSocketStream};
use crate::{datagram, handshake, settings};

#[tokio::test]
async fn a_request_with_trailers_passes() {
    let mut pair = pair(|request| async move {
        assert_eq!(request.uri(), "http://app.example.com/a?b=c");
        let collected = request.into_body().collect().await.unwrap();
        let trailers = collected.trailers().cloned().unwrap();
        let data = collected.to_bytes();
        let frames = [Ok(Frame::data(data)), Ok(Frame::trailers(trailers))];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        Response::new(BodyExt::boxed_unsync(body))
    })
    .await;
    assert_eq!(pair.control.hello, hello());

    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [
        Ok(Frame::data("hello".into())),
        Ok(Frame::trailers(trailers.clone())),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let request = Request::post("http://app.example.com/a?b=c").body(BodyExt::boxed_unsync(body));
    let response = within(pair.edge.try_send(request.unwrap())).await.unwrap();
    assert_eq!(pair.edge.in_flight(), 1);
    let collected = within(response.into_body().collect()).await.unwrap();
    assert_eq!(collected.trailers(), Some(&trailers));
    assert_eq!(collected.to_bytes(), "hello");
    assert_eq!((pair.edge.in_flight(), pair.edge.requests()), (0, 1));

    let mappings = crate::wire::Mappings::default();
    let said = crate::wire::FromEdge::from(mappings);
    pair.control.to_agent.send(said.clone()).await.unwrap();
    assert_eq!(within(pair.agent.from_edge.recv()).await, Some(said));
}

#[tokio::test]
async fn an_end_that_goes_is_noticed_by_the_other() {
    let pair = pair(|_| async { Response::new(full("hello")) }).await;
    let request = Request::get("http://a.example/").body(full(""));
    let answer = within(pair.edge.try_send(request.unwrap())).await.unwrap();
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        "hello"
    );
    pair.agent.link.finish();
    let end = within(pair.agent_end).await.unwrap();
    assert_eq!(end.reason(), "LinkEnded", "{end:?}");
    let end = within(pair.edge_end).await.unwrap();
    assert_eq!(end.reason(), "LinkClosed", "{end:?}");
    assert!(pair.edge.is_closed());
    let request = Request::get("http://a.example/").body(full(""));
    let failed = within(pair.edge.try_send(request.unwrap()))
        .await
        .unwrap_err();
    assert_eq!(failed.error.reason(), "LinkClosed");
    assert!(failed.unsent.is_some());
}

/// The edge's control stream is the first request; a visitor's is one as any other.
#[tokio::test]
async fn a_visitor_may_ask_for_the_path_of_the_control_stream() {
    let pair = pair(echo).await;
    let uri = format!("http://a.example{CONTROL_PATH}");
    let request = Request::post(uri).body(full("a visitor's")).unwrap();
    let answer = within(pair.edge.try_send(request)).await.unwrap();
    let body = within(answer.into_body().collect()).await.unwrap();
    assert_eq!(body.to_bytes(), "a visitor's");
}

/// The same link in WebSocket frames over TCP, as it is behind another proxy; with all sockets set up.
#[tokio::test]
async fn a_link_runs_over_a_websocket() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    for socket in [&dialled, &accepted] {
        settings::tune(socket).unwrap();
        assert!(socket.nodelay().unwrap());
        #[cfg(target_os = "linux")]
        {
            let socket = socket2::SockRef::from(socket);
            let low_water = socket.tcp_notsent_lowat().unwrap();
            assert_eq!(low_water, settings::NOT_SENT_LOW_WATER);
            let timeout = socket.tcp_user_timeout().unwrap();
            assert_eq!(timeout, Some(settings::USER_TIMEOUT));
        }
    }
    let edge_io = WebSocketStream::new(accepted, Role::Server);
    let agent_io = WebSocketStream::new(dialled, Role::Client);
    let (gate, patience) = (Arc::new(Gate::default()), Patience::default());
    let pair = pair_over(edge_io, agent_io, gate, patience, echo).await;
    // Full in both directions at once, many times.
    let sent: Vec<_> = (0..8_u8)
        .map(|n| {
            let content = vec![n; 8_000_000];
            let request = Request::post("http://a.example/")
                .body(full(content))
                .unwrap();
            let sent = pair.edge.try_send(request);
            tokio::spawn(async move {
                let answer = sent.await.unwrap().into_body().collect().await.unwrap();
                let found = answer.to_bytes();
                assert!(found.len() == 8_000_000 && found.iter().all(|byte| *byte == n));
            })
        })
        .collect();
    for request in sent {
        within(request).await.unwrap();
    }
    pair.edge.cut();
    within(pair.agent_end).await.unwrap();
}

/// Also when the visitor's own body has not ended, as with calls that stream both ways.
#[tokio::test]
async fn a_visitor_who_leaves_in_the_middle_is_noticed_by_the_agent() {
    let (taken, _) = watch::channel(0);
    let pair = pair(move |request| {
        let taken = taken.clone();
        async move {
            // Reads what comes, and answers without end.
            tokio::spawn(request.into_body().collect());
            Response::new(Endless(taken).boxed_unsync())
        }
    })
    .await;
    let open = StreamBody::new(futures_util::stream::pending()).boxed_unsync();
    let request = Request::post("http://a.example/").body(open).unwrap();
    let mut answer = within(pair.edge.try_send(request))
        .await
        .unwrap()
        .into_body();
    within(answer.frame()).await.unwrap().unwrap();
    assert_eq!(pair.agent.link.in_flight(), 1);
    drop(answer);
    assert_eq!(pair.edge.in_flight(), 0);
    within(pair.agent.link.idle()).await;
}

/// A visitor who gives an upload up must not leave the target with one that looks complete.
#[tokio::test]
async fn an_upload_that_is_given_up_is_not_whole() {
    let (told, mut tells) = watch::channel(None);
    let pair = pair(move |request| {
        let told = told.clone();
        async move {
            // Reads on, whatever becomes of the request.
            let read = tokio::spawn(async move {
                let whole = request.into_body().collect().await.is_ok();
                told.send_replace(Some(whole));
            });
            read.await.unwrap();
            Response::new(full(""))
        }
    })
    .await;
    let half = StreamBody::new(futures_util::stream::StreamExt::chain(
        futures_util::stream::iter([Ok(Frame::data("half".into()))]),
        futures_util::stream::pending(),
    ));
    let request = Request::post("http://a.example/").body(half.boxed_unsync());
    let sent = tokio::spawn(pair.edge.try_send(request.unwrap()));
    while pair.agent.link.in_flight() == 0 {
        within(tokio::task::yield_now()).await;
    }
    sent.abort();
    let told = within(tells.wait_for(Option::is_some)).await.unwrap();
    assert_eq!(*told, Some(false));
}

/// Answers CONNECT with an echo of its bytes.
async fn tunnels(request: Request<Incoming>) -> Response<TestBody> {
    assert_eq!(request.method(), "CONNECT");
    let protocol = request.extensions().get::<Protocol>().unwrap();
    let protocol = protocol.as_str().to_owned();
    let Incoming::Tunnel(agreed) = request.into_body() else {
        panic!("a CONNECT with a body");
    };
    tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(agreed.tunnel().await.unwrap());
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    });
    Response::builder()
        .header("protocol", protocol)
        .body(full(""))
        .unwrap()
}

async fn connect(pair: &Pair, protocol: &'static str) -> LinkTunnel {
    let request = Request::connect("http://app.example.com/path")
        .extension(Protocol::from_static(protocol))
        .body(full(""));
    let answer = within(pair.edge.try_send(request.unwrap())).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["protocol"]),
        (200, &HeaderValue::from_static(protocol))
    );
    answer.into_body().into_tunnel().unwrap()
}

#[tokio::test]
async fn upgrades_and_tcp_are_streams_of_bytes() {
    let pair = pair(tunnels).await;
    for protocol in ["websocket", handshake::PROTOCOL_TCP] {
        let mut tunnel = connect(&pair, protocol).await;
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let expected = sent.clone();
        let (mut read, mut write) = tokio::io::split(&mut tunnel);
        let writes = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut found = Vec::new();
        let reads = async { read.read_to_end(&mut found).await.unwrap() };
        within(async { tokio::join!(writes, reads) }).await;
        assert!(found == expected);
        // It is a stream of the link for as long as somebody holds it.
        assert_eq!(pair.edge.in_flight(), 1);
        drop(tunnel);
        assert_eq!(pair.edge.in_flight(), 0);
        within(pair.agent.link.idle()).await;
    }
}

#[tokio::test]
async fn datagrams_keep_their_borders() {
    let pair = pair(tunnels).await;
    let mut tunnel = connect(&pair, handshake::PROTOCOL_UDP).await;
    let longest = vec![3; 65_535];
    let datagrams = [&b"one"[..], b"", &longest];
    let mut sent = BytesMut::new();
    for it in datagrams {
        datagram::encode(it, &mut sent).unwrap();
    }
    within(tunnel.write_all(&sent)).await.unwrap();
    let mut read = BytesMut::new();
    for expected in datagrams {
        let found = loop {
            match datagram::decode(&mut read) {
                Some(found) => break found,
                None => assert!(within(tunnel.read_buf(&mut read)).await.unwrap() > 0),
            }
        };
        assert!(found == expected);
    }
}

/// Refused by the target: no tunnel, and an answer with a body.
#[tokio::test]
async fn a_refused_upgrade_is_an_answer() {
    let pair = pair(|_| async { Response::builder().status(403).body(full("no")).unwrap() }).await;
    let request = Request::connect("http://app.example.com/path")
        .extension(Protocol::from_static("websocket"))
        .body(full(""));
    let answer = within(pair.edge.try_send(request.unwrap())).await.unwrap();
    assert_eq!(answer.status(), 403);
    assert_eq!(
        within(answer.into_body().collect())
            .await
            .unwrap()
            .to_bytes(),
        "no"
    );
}
