//! Requests at targets: which, how, and what becomes of what fails.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tidegate_tunnel::handshake;
use tidegate_tunnel::wire::{AgentTls, FromAgent, Mapping, Probe};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{Barrier, mpsc};
use tokio_rustls::TlsAcceptor;

use super::edge::{Edge, Ways, authority, empty, full, id, mapping, text};
use super::{Agent, within};

/// A service in the agent's network that tells what it was asked.
struct Target {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Target {
    async fn start(tls: Option<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&connections);
        let acceptor = tls.map(|tls| TlsAcceptor::from(Arc::new(tls)));
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let service = service_fn(tell);
                    match acceptor {
                        None => {
                            let _ = server.serve_connection(TokioIo::new(tcp), service).await;
                        }
                        Some(acceptor) => {
                            let Ok(tls) = acceptor.accept(tcp).await else {
                                return;
                            };
                            let _ = server.serve_connection(TokioIo::new(tls), service).await;
                        }
                    }
                });
            }
        });
        Self {
            address,
            connections,
        }
    }
}

/// Answers with what was asked, in lines.
async fn tell(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    let mut lines = vec![format!(
        "{} {} {:?}",
        parts.method, parts.uri, parts.version
    )];
    for (name, value) in parts.headers.iter().chain(&trailers) {
        lines.push(format!("{name}: {}", value.to_str().unwrap_or("?")));
    }
    lines.push(String::from_utf8(body.to_bytes().to_vec()).unwrap());
    let mut response = Response::new(Full::from(lines.join("\n")));
    let headers = response.headers_mut();
    headers.insert("tidegate-tunnel-error", HeaderValue::from_static("Lie"));
    headers.insert("keep-alive", HeaderValue::from_static("timeout=5"));
    headers.insert("set-cookie", HeaderValue::from_static("a=1"));
    if parts.uri.path() == "/moved" {
        *response.status_mut() = StatusCode::FOUND;
        response
            .headers_mut()
            .insert("location", HeaderValue::from_static("/elsewhere"));
    }
    Ok(response)
}

#[tokio::test]
async fn a_request_goes_to_its_mappings_target_as_the_visitor_made_it() {
    let mut edge = Edge::start(Ways::default()).await;
    let (target, other) = (Target::start(None).await, Target::start(None).await);
    let agent = Agent::of(&edge);
    let mut session = edge.session().await;
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let refused = session
        .map(vec![
            mapping(1, &format!("http://{}", target.address)),
            mapping(2, &format!("http://{gone}")),
            mapping(3, "gopher://127.0.0.1"),
        ])
        .await;
    assert_eq!(refused, ["TargetNotSupported"]);

    let request = Request::builder()
        .method("POST")
        .uri("https://nas.example.com:8443/a%2Fb?c=d&e")
        .header(handshake::MAPPING, id(1))
        .header(handshake::CLIENT, "203.0.113.7:1234")
        .header("tidegate-tunnel-target-host", other.address.to_string())
        .header("x-forwarded-for", "203.0.113.7")
        .header("cookie", "a=1")
        .header("cookie", "b=2");
    let response = session.send(request.body(full("hello")).unwrap()).await;
    for gone in [
        "tidegate-tunnel-error",
        "keep-alive",
        "transfer-encoding",
        "connection",
    ] {
        assert!(!response.headers().contains_key(gone), "{gone}");
    }
    let (status, _, told) = text(response).await;
    assert_eq!(status, 200);
    let mut lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.remove(0), "POST /a%2Fb?c=d&e HTTP/1.1");
    lines.sort_unstable();
    let expected = [
        "content-length: 5",
        "cookie: a=1; b=2",
        "hello",
        "host: nas.example.com:8443",
        "x-forwarded-for: 203.0.113.7",
    ];
    assert_eq!(lines, expected);

    // Neither redirects nor cookies are the agent's business, and connections are used again.
    let (status, _, _) = session.get(1, "/moved").await;
    assert_eq!(status, 302);
    let (_, _, told) = session.get(1, "/").await;
    assert!(!told.contains("cookie"), "{told}");
    assert_eq!(target.connections.load(Ordering::SeqCst), 1);
    assert_eq!(other.connections.load(Ordering::SeqCst), 0);

    for (number, expected) in [(2, (502, "ConnectFailed")), (9, (503, "UnknownMapping"))] {
        let (status, error, words) = session.get(number, "/").await;
        assert_eq!((status, &*error), expected, "{words}");
        assert!(!words.is_empty());
    }
    let nameless = Request::builder()
        .uri("https://nas.example.com/")
        .body(empty())
        .unwrap();
    let (status, error, _) = text(session.send(nameless).await).await;
    assert_eq!((status, &*error), (503, "UnknownMapping"));
    agent.stop().await;
}

#[tokio::test]
async fn a_target_with_tls_is_verified_as_its_mapping_says() {
    let mut edge = Edge::start(Ways::default()).await;
    let (_, ca, mut tls) = authority();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let target = Target::start(Some(tls)).await;
    let agent = Agent::of(&edge);
    let mut session = edge.session().await;
    let url = format!("https://{}", target.address);
    let with = |number, tls: AgentTls, protocol| Mapping {
        tls: Some(tls),
        protocol,
        ..mapping(number, &url)
    };
    let own = AgentTls {
        ca_der: vec![ca.into()],
        ..AgentTls::default()
    };
    let named = |name: &str| AgentTls {
        server_name: Some(name.to_owned()),
        ..own.clone()
    };
    let any = AgentTls {
        insecure_skip_verify: true,
        ..AgentTls::default()
    };
    session
        .map(vec![
            mapping(1, &url),
            with(2, own.clone(), 1),
            with(3, own.clone(), 0),
            with(4, any, 0),
            with(5, named("other.example"), 0),
            with(6, named("localhost"), 2),
        ])
        .await;
    for number in [1, 5] {
        let (status, error, words) = session.get(number, "/").await;
        assert_eq!((status, &*error), (502, "TlsFailed"), "{number}: {words}");
    }
    for (number, version) in [
        (2, "HTTP/1.1"),
        (3, "HTTP/2.0"),
        (4, "HTTP/2.0"),
        (6, "HTTP/2.0"),
    ] {
        let (status, _, told) = session.get(number, "/x").await;
        assert_eq!(status, 200, "{number}");
        let first = told.lines().next().unwrap();
        assert!(
            first.ends_with(version) && first.contains("/x"),
            "{number}: {told}"
        );
        assert!(told.contains("nas.example.com"), "{number}: {told}");
    }
    // What TLS says for itself after its handshake does not end a connection that waits.
    let opened = target.connections.load(Ordering::SeqCst);
    assert_eq!(session.get(2, "/y").await.0, 200);
    assert_eq!(target.connections.load(Ordering::SeqCst), opened);
    agent.stop().await;
}

#[tokio::test]
async fn trailers_pass_both_ways_as_grpc_needs_them() {
    let mut edge = Edge::start(Ways::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let service = service_fn(|request: Request<Incoming>| async {
            assert_eq!(request.version(), Version::HTTP_2);
            assert_eq!(request.headers().get("te").unwrap(), "trailers");
            let asked = request.into_body().collect().await.unwrap();
            let mut trailers = HeaderMap::new();
            let echo = asked.trailers().unwrap().get("x-asked").unwrap().clone();
            trailers.insert("grpc-status", echo);
            let frames = [Frame::data(asked.to_bytes()), Frame::trailers(trailers)];
            let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, Infallible>)));
            Ok::<_, Infallible>(Response::new(body))
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(TokioIo::new(tcp), service).await;
    });
    let agent = Agent::of(&edge);
    let mut session = edge.session().await;
    let h2c = Mapping {
        protocol: 2,
        ..mapping(1, &format!("http://{address}"))
    };
    session.map(vec![h2c]).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-asked", HeaderValue::from_static("7"));
    let frames = [
        Frame::data(Bytes::from_static(b"message")),
        Frame::trailers(trailers),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, Infallible>)));
    let request = Request::builder()
        .method("POST")
        .uri("https://grpc.example.com/package.Service/Method")
        .header(handshake::MAPPING, id(1))
        .header("te", "trailers");
    let response = session
        .send(request.body(body.boxed_unsync()).unwrap())
        .await;
    let collected = within("the answer", response.into_body().collect())
        .await
        .unwrap();
    assert_eq!(
        collected.trailers().unwrap().get("grpc-status").unwrap(),
        "7"
    );
    assert_eq!(collected.to_bytes(), "message");
    agent.stop().await;
}

#[tokio::test]
async fn events_pass_one_by_one_and_a_visitor_who_leaves_is_noticed() {
    let mut edge = Edge::start(Ways::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (next, mut wanted) = mpsc::channel::<&'static [u8]>(1);
    let target = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut asked = [0; 1024];
        let _ = tcp.read(&mut asked).await.unwrap();
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
        tcp.write_all(head).await.unwrap();
        while let Some(event) = wanted.recv().await {
            tcp.write_all(event).await.unwrap();
        }
        // The visitor's end reaches the target.
        assert_eq!(tcp.read(&mut asked).await.unwrap_or(0), 0);
    });
    let agent = Agent::of(&edge);
    let mut session = edge.session().await;
    session
        .map(vec![mapping(1, &format!("http://{address}"))])
        .await;
    let request = Request::builder()
        .uri("https://x/")
        .header(handshake::MAPPING, id(1));
    let response = session.send(request.body(empty()).unwrap()).await;
    let mut body = response.into_body();
    for event in [&b"data: 1\n\n"[..], b"data: 2\n\n"] {
        next.send(event).await.unwrap();
        let frame = within("an event", body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), event);
    }
    drop((body, next));
    within("the end at the target", target).await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn a_target_that_closes_a_waiting_connection_costs_nobody_a_request() {
    let mut edge = Edge::start(Ways::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            // Keeps the connection as it says, and closes it when it is used again.
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut asked = [0; 1024];
                let _ = tcp.read(&mut asked).await;
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                let _ = tcp.write_all(answer).await;
                let _ = tcp.read(&mut asked).await;
            });
        }
    });
    let agent = Agent::of(&edge);
    let mut session = edge.session().await;
    session
        .map(vec![mapping(1, &format!("http://{address}"))])
        .await;
    for _ in 0..10 {
        assert_eq!(
            session.get(1, "/").await,
            (200, String::new(), "ok".to_owned())
        );
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_burst_leaves_its_connections_to_the_next_one() {
    const BURST: usize = 100;
    let mut edge = Edge::start(Ways::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        // Answers when all of a burst are there.
        let all = Arc::new(Barrier::new(BURST));
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let all = Arc::clone(&all);
            tokio::spawn(async move {
                let mut asked = [0; 1024];
                while tcp.read(&mut asked).await.is_ok_and(|length| length > 0) {
                    all.wait().await;
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    let _ = tcp.write_all(answer).await;
                }
            });
        }
    });
    let agent = Agent::of(&edge);
    let mut session = edge.session().await;
    session
        .map(vec![mapping(1, &format!("http://{address}"))])
        .await;
    for _ in 0..3 {
        let burst = (0..BURST).map(|_| session.get(1, "/"));
        for (status, ..) in within("a burst", join_all(burst)).await {
            assert_eq!(status, 200);
        }
    }
    // One that is not back yet when the next burst begins is replaced.
    let opened = connections.load(Ordering::SeqCst);
    assert!(opened < BURST + BURST / 5, "{opened}");
    agent.stop().await;
}

#[tokio::test]
async fn bytes_that_no_uri_holds_reach_the_target() {
    let mut edge = Edge::start(Ways::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let target = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        // The second one comes on the same connection.
        for _ in 0..2 {
            let mut asked = vec![0; 1024];
            let length = tcp.read(&mut asked).await.unwrap();
            asked.truncate(length);
            heard.push(asked);
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await
                .unwrap();
        }
        heard
    });
    let agent = Agent::of(&edge);
    let mut session = edge.session().await;
    session
        .map(vec![mapping(1, &format!("http://{address}"))])
        .await;
    let raw = b"/announce?info_hash=\x81\"<>|^";
    for _ in 0..2 {
        let request = Request::builder()
            .uri("https://tracker/announce")
            .header(handshake::MAPPING, id(1))
            .header(handshake::TARGET, HeaderValue::from_bytes(raw).unwrap());
        let (status, _, _) = text(session.send(request.body(empty()).unwrap()).await).await;
        assert_eq!(status, 200);
    }
    let expected = [b"GET ", &raw[..], b" HTTP/1.1\r\n"].concat();
    for asked in within("the requests", target).await.unwrap() {
        assert!(
            asked.starts_with(&expected),
            "{}",
            String::from_utf8_lossy(&asked)
        );
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_probe_tells_whether_the_target_answers() {
    let mut edge = Edge::start(Ways::default()).await;
    let target = Target::start(None).await;
    let agent = Agent::of(&edge);
    let mut session = edge.session().await;
    let refused = session
        .map(vec![
            mapping(1, &format!("http://{}", target.address)),
            mapping(2, "tcp://127.0.0.1:1"),
        ])
        .await;
    assert!(refused.is_empty());
    for (number, expected) in [(1, ""), (2, "ConnectFailed"), (3, "UnknownMapping")] {
        session
            .tell(Probe {
                id: number,
                mapping: id(number),
            })
            .await;
        let result = session
            .hears(|message| match message {
                FromAgent::ProbeResult(result) if result.id == number => Some(result),
                _ => None,
            })
            .await;
        assert_eq!(
            (result.ok, &*result.reason),
            (number == 1, expected),
            "{result:?}"
        );
        assert_eq!(result.connect_us.is_some(), number == 1);
    }
    agent.stop().await;
}
