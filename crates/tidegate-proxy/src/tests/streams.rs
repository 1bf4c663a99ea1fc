//! HTTP/2 streams of clients: what comes before a response, streams beside slow or broken ones, tunnels.

use std::future::{Future as _, poll_fn};
use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::mpsc;
use std::task::Poll;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{Reason, RecvStream};
use http::{Response, StatusCode};
use tidegate_model::FixedResponse;

use super::h2_peers::{H2Origin, h2_body, h2_over, h2_request};
use super::*;

/// The next interim response, or the response itself.
async fn next_head(
    response: &mut ResponseFuture,
) -> Result<Response<()>, Box<Response<RecvStream>>> {
    poll_fn(|cx| {
        if let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
            return Poll::Ready(Ok(interim.unwrap()));
        }
        Pin::new(&mut *response)
            .poll(cx)
            .map(|head| Err(Box::new(head.unwrap())))
    })
    .await
}

#[test]
fn early_hints_reach_http_2_clients_before_the_response() {
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let origin = Origin::scripted(move |_, mut stream| {
        read_head(&mut stream);
        let hints = "HTTP/1.1 100 Continue\r\n\r\n\
             HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x-own\r\n\
             X-Own: 1\r\nContent-Length: 5\r\n\r\n\
             HTTP/1.1 103 Early Hints\r\nLink: </b.js>; rel=preload\r\n\r\n";
        stream.write_all(hints.as_bytes()).unwrap();
        wait.lock().unwrap().recv().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    edge.block_on(async {
        let mut client = edge.h2().await;
        let (mut response, _) = client.send_request(h2_request("GET", "/"), true).unwrap();
        for link in ["</a.css>; rel=preload", "</b.js>; rel=preload"] {
            // The backend has not answered yet.
            let hint = next_head(&mut response).await.unwrap();
            assert_eq!(hint.status(), StatusCode::EARLY_HINTS);
            assert_eq!(hint.headers()["link"], link);
            assert_eq!(hint.headers().len(), 1, "{:?}", hint.headers());
        }
        go_on.send(()).unwrap();
        let answer = next_head(&mut response).await.unwrap_err();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(h2_body(&mut answer.into_body()).await.unwrap().0, b"ok");
    });
    go_on.send(()).unwrap();
    let over_h1 = edge.exchange(&get("/"));
    assert_eq!(status_of(&over_h1), 200);
    assert!(
        !over_h1.contains("103"),
        "browsers take it from HTTP/2 only: {over_h1}"
    );
}

#[test]
fn a_backend_has_only_so_many_hints() {
    let origin = Origin::scripted(|_, mut stream| {
        read_head(&mut stream);
        let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let _ = stream.write_all((hint.repeat(60) + answer).as_bytes());
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    edge.block_on(async {
        let mut client = edge.h2().await;
        let (mut response, _) = client.send_request(h2_request("GET", "/"), true).unwrap();
        let mut hints = 0;
        let answer = loop {
            match next_head(&mut response).await {
                Ok(_) => hints += 1,
                Err(answer) => break answer,
            }
        };
        assert_eq!((answer.status(), hints), (StatusCode::OK, 16));
    });
}

/// A client that gives each stream a small window and the connection a large one.
async fn narrow(edge: &TestEdge) -> SendRequest<Bytes> {
    let tcp = tokio::net::TcpStream::connect(edge.http).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(16 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024);
    h2_over(tcp, builder).await
}

#[test]
fn streams_that_nobody_reads_do_not_hold_up_others() {
    const LENGTH: usize = 300_000;
    let origin = Origin::scripted(|_, mut stream| {
        read_head(&mut stream);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&vec![7; LENGTH]);
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    edge.block_on(async {
        let mut client = narrow(&edge).await;
        let mut unread = Vec::new();
        for _ in 0..20 {
            let (response, _) = client.send_request(h2_request("GET", "/"), true).unwrap();
            unread.push(response.await.unwrap().into_body());
        }
        let (response, _) = client.send_request(h2_request("GET", "/"), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(h2_body(&mut body).await.unwrap().0.len(), LENGTH);
        for mut body in unread {
            assert_eq!(h2_body(&mut body).await.unwrap().0.len(), LENGTH);
        }
    });
}

#[test]
fn uploads_that_no_backend_reads_do_not_hold_up_others() {
    let (end, ended) = mpsc::channel::<()>();
    let ended = std::sync::Mutex::new(ended);
    let origin = Origin::scripted(move |_, mut stream| {
        if read_head(&mut stream).starts_with("POST /slow") {
            // Whoever comes first holds the lock, the others wait for it.
            let _ = ended.lock().unwrap().recv();
            return;
        }
        let mut body = vec![0; 100_000];
        stream.read_exact(&mut body).unwrap();
        // A POST on a connection that is just being closed would fail.
        let _ =
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    edge.block_on(async {
        let mut client = edge.h2().await;
        let mut stuck = Vec::new();
        for _ in 0..6 {
            let (_, mut up) = client
                .send_request(h2_request("POST", "/slow"), false)
                .unwrap();
            // More than the stream's window and what the sockets on the way take.
            up.send_data(Bytes::from(vec![7; 8 * 1024 * 1024]), false)
                .unwrap();
            stuck.push(up);
        }
        for _ in 0..20 {
            let (response, mut up) = client.send_request(h2_request("POST", "/"), false).unwrap();
            up.send_data(Bytes::from(vec![7; 100_000]), true).unwrap();
            assert_eq!(response.await.unwrap().status(), StatusCode::OK);
        }
    });
    drop(end);
}

#[test]
fn small_messages_may_fill_the_windows_of_two_streams() {
    const MESSAGES: usize = 13_000;
    let go_on = Arc::new(tokio::sync::Notify::new());
    let wait = Arc::clone(&go_on);
    let origin = H2Origin::scripted(move |request: http::Request<RecvStream>, mut respond| {
        let wait = Arc::clone(&wait);
        async move {
            // Both at once: the one that does not read has the window of the backend's connection.
            if request.uri().path() == "/slow" {
                wait.notified().await;
            }
            let (body, _) = h2_body(&mut request.into_body()).await.unwrap();
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            let length = Bytes::from(body.len().to_string());
            stream.send_data(length, true).unwrap();
        }
    });
    let mut cluster = (*cluster(origin.address)).clone();
    cluster.protocol = UpstreamProtocol::Http2;
    let edge = TestEdge::start(forward_to(&[Arc::new(cluster)]));
    edge.block_on(async {
        let mut client = edge.h2().await;
        let mut slow = Vec::new();
        for _ in 0..2 {
            let request = h2_request("POST", "/slow");
            let (response, mut up) = client.send_request(request, false).unwrap();
            for message in 1..=MESSAGES {
                let last = message == MESSAGES;
                up.send_data(Bytes::from_static(&[7; 20]), last).unwrap();
            }
            slow.push(response);
        }
        // All of that is in front of the backend, which the edge knows before this request.
        let (response, _) = client.send_request(h2_request("POST", "/"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
        go_on.notify_waiters();
        for response in slow {
            let (length, _) = h2_body(&mut response.await.unwrap().into_body())
                .await
                .unwrap();
            assert_eq!(length, (MESSAGES * 20).to_string().as_bytes());
        }
    });
}

#[test]
fn a_reset_stream_takes_its_exchange_with_it_and_nothing_else() {
    let (tell, told) = mpsc::channel();
    let origin = Origin::scripted(move |_, mut stream| {
        if read_head(&mut stream).starts_with("GET /wait") {
            tell.send("asked").unwrap();
            assert_eq!(read_to_end(&mut stream), "");
            tell.send("closed").unwrap();
        } else {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    edge.block_on(async {
        let mut client = edge.h2().await;
        let (response, mut up) = client
            .send_request(h2_request("GET", "/wait"), true)
            .unwrap();
        let asked = tokio::task::spawn_blocking(move || (told.recv_timeout(PATIENCE), told));
        let (asked, told) = asked.await.unwrap();
        assert_eq!(asked.unwrap(), "asked");
        up.send_reset(Reason::CANCEL);
        drop(response);
        let closed = tokio::task::spawn_blocking(move || told.recv_timeout(PATIENCE));
        assert_eq!(closed.await.unwrap().unwrap(), "closed");
        let (response, _) = client.send_request(h2_request("GET", "/"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    });
    assert_eq!(edge.edge.observe().requests, 0);
}

#[test]
fn a_backend_that_breaks_off_resets_the_stream() {
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let origin = Origin::scripted(move |_, mut stream| {
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        wait.lock().unwrap().recv().unwrap();
    });
    let edge = TestEdge::start(forward_to(&[cluster(origin.address)]));
    edge.block_on(async {
        let mut client = edge.h2().await;
        let (response, _) = client.send_request(h2_request("GET", "/"), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        // A reset takes with it what the edge has not written yet.
        go_on.send(()).unwrap();
        let error = h2_body(&mut body).await.unwrap_err();
        assert!(error.is_reset() && error.is_remote(), "{error}");
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
    });
}

#[test]
fn answers_without_a_body_end_with_their_head() {
    let edge = TestEdge::start(rule(Action::Respond(FixedResponse {
        status: StatusCode::OK,
        body: Bytes::from_static(b"hello"),
        content_type: None,
    })));
    edge.block_on(async {
        let mut client = edge.h2().await;
        for (method, body) in [("GET", "hello"), ("HEAD", "")] {
            let (response, _) = client.send_request(h2_request(method, "/"), true).unwrap();
            let response = response.await.unwrap();
            assert_eq!(response.headers()["content-length"], "5");
            assert_eq!(response.headers()["date"].len(), 29);
            assert_eq!(response.body().is_end_stream(), method == "HEAD");
            let (read, _) = h2_body(&mut response.into_body()).await.unwrap();
            assert_eq!(read, body.as_bytes(), "{method}");
        }
    });
}

#[test]
fn a_tunnel_over_tls_outlives_the_goaway_of_a_drain() {
    let origin = Origin::scripted(|_, mut stream| {
        read_head(&mut stream);
        let switch =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        stream.write_all(switch.as_bytes()).unwrap();
        let mut buffer = [0; 256];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    });
    let identity = certificate(&[HOST]);
    let host = virtual_host(
        HOST,
        forward_to(&[cluster(origin.address)]),
        policy(Arc::clone(&identity)),
    );
    let edge = TestEdge::start_hosts(vec![host], |_| {});
    let mut config = (*tls::client(tls::roots(&[&identity]))).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let drained = edge.block_on(async {
        let tcp = tokio::net::TcpStream::connect(edge.https).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from(HOST).unwrap();
        let secured = connector.connect(name, tcp).await.unwrap();
        let mut client = h2_over(secured, h2::client::Builder::new()).await;
        while !client.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
        let mut request = h2_request("CONNECT", "/ws");
        let websocket = Protocol::from_static("websocket");
        request.extensions_mut().insert(websocket);
        let (response, mut up) = client.send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let mut down = response.into_body();

        let running = edge.edge.clone();
        let drained = tokio::spawn(async move { running.drain(PATIENCE).await });
        // Refused once the GOAWAY is here.
        while client.clone().ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
        for round in 0..50 {
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
        up.send_data(Bytes::new(), true).unwrap();
        assert!(h2_body(&mut down).await.unwrap().0.is_empty());
        drained.await.unwrap()
    });
    assert_eq!(drained, 0, "nothing was cut");
}
