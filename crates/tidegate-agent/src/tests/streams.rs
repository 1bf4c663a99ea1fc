//! What is not a request and an answer: WebSocket, TCP, UDP, the PROXY protocol.

use http::{Method, Request, Version};
use tidegate_tunnel::link::Protocol;
use tidegate_tunnel::link::edge::LinkTunnel;
use tidegate_tunnel::wire::Mapping;
use tidegate_tunnel::{datagram, handshake};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

use super::edge::{Body, Edge, Session, Ways, empty, id, mapping, text};
use super::{Agent, within};

fn connect(number: u64, protocol: &'static str) -> Request<Body> {
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .version(Version::HTTP_2)
        .uri("https://ws.example.com/socket?x")
        .header(handshake::MAPPING, id(number))
        .header(handshake::CLIENT, "203.0.113.7:1234")
        .header(handshake::LOCAL, "192.0.2.1:443")
        .header("sec-websocket-protocol", "chat")
        .body(empty())
        .unwrap();
    request
        .extensions_mut()
        .insert(Protocol::from_static(protocol));
    request
}

async fn tunnel(session: &Session, number: u64, protocol: &'static str) -> LinkTunnel {
    let response = session.send(connect(number, protocol)).await;
    assert_eq!(response.status(), 200, "{:?}", response.headers());
    response.into_body().into_tunnel().unwrap()
}

#[tokio::test]
async fn a_websocket_becomes_an_upgrade_at_the_target() {
    let mut edge = Edge::start(Ways::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let target = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut asked = vec![0; 2048];
        let length = tcp.read(&mut asked).await.unwrap();
        let head =
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: chat\r\n\r\nfirst";
        tcp.write_all(head).await.unwrap();
        let mut said = [0; 5];
        tcp.read_exact(&mut said).await.unwrap();
        tcp.write_all(&said).await.unwrap();
        assert_eq!(tcp.read(&mut said).await.unwrap(), 0);
        // The second one does not switch.
        let (mut tcp, _) = listener.accept().await.unwrap();
        let _ = tcp.read(&mut [0; 2048]).await.unwrap();
        tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await
            .unwrap();
        String::from_utf8(asked[..length].to_vec()).unwrap()
    });
    let agent = Agent::of(&edge);
    let mut session = edge.session().await;
    session
        .map(vec![mapping(1, &format!("http://{address}"))])
        .await;
    let response = session.send(connect(1, "websocket")).await;
    assert_eq!(response.status(), 200);
    assert_eq!(
        response.headers().get("sec-websocket-protocol").unwrap(),
        "chat"
    );
    for gone in ["sec-websocket-accept", "upgrade", "connection"] {
        assert!(!response.headers().contains_key(gone), "{gone}");
    }
    let mut tunnel = response.into_body().into_tunnel().unwrap();
    let mut first = [0; 5];
    within("what came with the head", tunnel.read_exact(&mut first))
        .await
        .unwrap();
    assert_eq!(&first, b"first");
    tunnel.write_all(b"hello").await.unwrap();
    within("the echo", tunnel.read_exact(&mut first))
        .await
        .unwrap();
    assert_eq!(&first, b"hello");
    drop(tunnel);
    let (status, error, _) = text(session.send(connect(1, "websocket")).await).await;
    assert_eq!((status, &*error), (502, "UpgradeRefused"));
    let asked = within("the request", target).await.unwrap().to_lowercase();
    let (line, fields) = asked.split_once("\r\n").unwrap();
    assert_eq!(line, "get /socket?x http/1.1");
    for field in [
        "connection: upgrade\r\n",
        "upgrade: websocket\r\n",
        "host: ws.example.com\r\n",
        "sec-websocket-version: 13\r\n",
        "sec-websocket-protocol: chat\r\n",
        "sec-websocket-key: ",
    ] {
        assert!(fields.contains(field), "{field:?} in {fields}");
    }
    assert!(!fields.contains("tidegate-tunnel"), "{fields}");
    agent.stop().await;
}

#[tokio::test]
async fn tcp_is_copied_with_its_half_close_and_a_proxy_header() {
    let mut edge = Edge::start(Ways::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        // To the end of what the visitor sends; then the answer.
        tcp.read_to_end(&mut all).await.unwrap();
        all.reverse();
        tcp.write_all(&all).await.unwrap();
    });
    let agent = Agent::of(&edge);
    let mut session = edge.session().await;
    let with_header = Mapping {
        proxy_protocol: Some(1),
        ..mapping(1, &format!("tcp://{address}"))
    };
    let unfit = mapping(2, &format!("http://{address}"));
    session.map(vec![with_header, unfit]).await;
    let mut tunnel = tunnel(&session, 1, handshake::PROTOCOL_TCP).await;
    tunnel.write_all(b"bytes").await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut all = Vec::new();
    within("the answer", tunnel.read_to_end(&mut all))
        .await
        .unwrap();
    all.reverse();
    let expected = "PROXY TCP4 203.0.113.7 192.0.2.1 1234 443\r\nbytes";
    assert_eq!(String::from_utf8(all).unwrap(), expected);
    let refused = session.send(connect(2, handshake::PROTOCOL_TCP)).await;
    let (status, error, _) = text(refused).await;
    assert_eq!((status, &*error), (502, "BadRequest"));
    agent.stop().await;
}

#[tokio::test]
async fn datagrams_keep_their_boundaries() {
    let mut edge = Edge::start(Ways::default()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut datagram = vec![0; 65_536];
        loop {
            let (length, from) = socket.recv_from(&mut datagram).await.unwrap();
            socket.send_to(&datagram[..length], from).await.unwrap();
        }
    });
    let agent = Agent::of(&edge);
    let mut session = edge.session().await;
    session
        .map(vec![mapping(1, &format!("udp://{address}"))])
        .await;
    let mut tunnel = tunnel(&session, 1, handshake::PROTOCOL_UDP).await;
    let large = vec![8; 20_000];
    let datagrams: [&[u8]; 4] = [b"one", b"", &[7; 1400], &large];
    let mut read = bytes::BytesMut::new();
    for datagram in datagrams {
        let mut frame = bytes::BytesMut::new();
        datagram::encode(datagram, &mut frame).unwrap();
        tunnel.write_all(&frame).await.unwrap();
        let echo = within("the echo", async {
            loop {
                if let Some(datagram) = datagram::decode(&mut read) {
                    return datagram;
                }
                assert!(tunnel.read_buf(&mut read).await.unwrap() > 0);
            }
        });
        assert_eq!(echo.await, datagram);
    }
    drop(tunnel);
    agent.stop().await;
}
