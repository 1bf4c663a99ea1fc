//! Targets that speak HTTP/1.1 in ways of their own, and what becomes of their connections.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::Request;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tidegate_tunnel::handshake;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::edge::{Body, Edge, Session, Ways, empty, full, id, mapping, text};
use super::{Agent, within};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A target that treats each connection as the function says; and how many there were.
async fn target<F, Served>(serve: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(usize, TcpStream) -> Served + Send + 'static,
    Served: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let number = count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(number, tcp));
        }
    });
    (address, connections)
}

/// Reads up to the end of a head; false when there is none any more.
async fn read_head(tcp: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match tcp.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return false,
        }
    }
    true
}

async fn session(edge: &mut Edge, address: SocketAddr) -> Session {
    let mut session = edge.session().await;
    session
        .map(vec![mapping(1, &format!("http://{address}"))])
        .await;
    session
}

fn post(body: Body) -> Request<Body> {
    Request::builder()
        .method("POST")
        .uri("https://nas.example.com/")
        .header(handshake::MAPPING, id(1))
        .body(body)
        .unwrap()
}

#[tokio::test]
async fn a_whole_answer_frees_its_connection_whether_it_is_read_or_not() {
    let mut edge = Edge::start(Ways::default()).await;
    let (address, connections) = target(|_, mut tcp| async move {
        while read_head(&mut tcp).await {
            tcp.write_all(OK).await.unwrap();
        }
    })
    .await;
    let agent = Agent::of(&edge);
    let session = session(&mut edge, address).await;
    let mut unread = Vec::new();
    for _ in 0..5 {
        let request = Request::builder()
            .uri("https://x/")
            .header(handshake::MAPPING, id(1))
            .body(empty());
        unread.push(session.send(request.unwrap()).await);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    for answer in unread {
        assert_eq!(text(answer).await, (200, String::new(), "ok".to_owned()));
    }
    agent.stop().await;
}

#[tokio::test]
async fn an_answer_before_the_end_of_an_upload_is_the_last_of_its_connection() {
    let mut edge = Edge::start(Ways::default()).await;
    let (ended, mut ends) = mpsc::channel(1);
    let (address, connections) = target(move |_, mut tcp| {
        let ended = ended.clone();
        async move {
            // Answers without a look at what is uploaded.
            while read_head(&mut tcp).await {
                tcp.write_all(OK).await.unwrap();
            }
            let _ = ended.send(()).await;
        }
    })
    .await;
    let agent = Agent::of(&edge);
    let session = session(&mut edge, address).await;
    let begun = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"begun")))]);
    let endless = StreamBody::new(begun.chain(futures_util::stream::pending()));
    let answer = session.send(post(endless.boxed_unsync())).await;
    assert_eq!(text(answer).await, (200, String::new(), "ok".to_owned()));
    within("the end of the connection", ends.recv()).await;
    for _ in 0..2 {
        assert_eq!(session.get(1, "/").await.0, 200);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 2);
    agent.stop().await;
}

#[tokio::test]
async fn only_what_may_be_repeated_is_sent_again_when_a_kept_connection_ends() {
    let mut edge = Edge::start(Ways::default()).await;
    let (address, connections) = target(|_, mut tcp| async move {
        // Takes the second request and says nothing to it.
        read_head(&mut tcp).await;
        tcp.write_all(OK).await.unwrap();
        read_head(&mut tcp).await;
    })
    .await;
    let agent = Agent::of(&edge);
    let session = session(&mut edge, address).await;
    for count in [1, 2] {
        assert_eq!(session.get(1, "/").await.0, 200);
        assert_eq!(connections.load(Ordering::SeqCst), count);
    }
    let (status, error, words) = text(session.send(post(full("once"))).await).await;
    assert_eq!((status, &*error), (502, "BadResponse"), "{words}");
    assert_eq!(connections.load(Ordering::SeqCst), 2);
    agent.stop().await;
}

#[tokio::test]
async fn what_servers_in_homes_answer_is_understood() {
    let many = (0..250).fold(String::new(), |all, n| all + &format!("x-{n}: {n}\r\n"));
    let large = format!("x-large: {}\r\n", "x".repeat(50 * 1024));
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}content-length: 2\r\n\r\nok");
    let answers = [
        "HTTP/1.0 200 OK\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\n\r\nok".to_owned(),
        "HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok".to_owned(),
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 Certainly\r\ntransfer-encoding: chunked\r\n\r\n1;x=y\r\no\r\n1\r\nk\r\n0\r\nx-trailer: 1\r\n\r\n".to_owned(),
        head(&many),
        head(&large),
    ];
    let count = answers.len();
    let answers = Arc::new(Mutex::new(answers.into_iter()));
    let mut edge = Edge::start(Ways::default()).await;
    let (address, _) = target(move |_, mut tcp| {
        let answers = Arc::clone(&answers);
        async move {
            while read_head(&mut tcp).await {
                let answer = answers.lock().unwrap().next().unwrap();
                tcp.write_all(answer.as_bytes()).await.unwrap();
                if answer.ends_with("OK\r\n\r\nok") {
                    break;
                }
            }
        }
    })
    .await;
    let agent = Agent::of(&edge);
    let session = session(&mut edge, address).await;
    for number in 0..count {
        assert_eq!(
            session.get(1, "/").await,
            (200, String::new(), "ok".to_owned()),
            "{number}"
        );
    }
    agent.stop().await;
}
