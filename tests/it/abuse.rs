//! Clients that want to cost more than they spend: slow ones, many of one address, floods of frames.
//! The bars are those of SECURITY.md.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::client::block_on;
use crate::support::program::{python, real_file, succeed};
use crate::support::{Edge, Origin, eventually, missing, route};

const HOST: &str = "abuse.test";

#[track_caller]
fn edge(origin: &Origin, args: &[&str]) -> Edge {
    let builder = Edge::builder().object(route("abuse", HOST, origin.address()));
    let edge = args
        .iter()
        .fold(builder, |builder, arg| builder.arg(arg))
        .start();
    edge.wait_for_status(HOST, "/", 200);
    edge
}

#[test]
fn half_a_client_hello_is_not_waited_for() {
    let origin = Origin::echo();
    let edge = edge(&origin, &["--handshake-timeout", "1s"]);
    let mut stream = TcpStream::connect(("127.0.0.1", edge.https)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    // A record header that promises more than ever comes.
    stream.write_all(&[22, 3, 1, 2, 0, 1, 0]).unwrap();
    let start = Instant::now();
    let ended = stream.read_to_end(&mut Vec::new());
    assert!(
        ended.is_ok() || start.elapsed() < Duration::from_secs(20),
        "{ended:?}"
    );
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "held for {:?}",
        start.elapsed()
    );
}

#[test]
fn half_a_request_head_is_not_waited_for() {
    let origin = Origin::echo();
    let edge = edge(&origin, &["--header-timeout", "1s"]);
    let before = origin.requests();
    let client = edge.client();
    block_on(async {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut slow = client.connect(HOST, &["http/1.1"]).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nHost: abuse.test\r\nX-Slow: ")
            .await
            .unwrap();
        let mut answer = Vec::new();
        let ended =
            tokio::time::timeout(Duration::from_secs(15), slow.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "the connection was held");
        let text = String::from_utf8_lossy(&answer);
        assert!(
            text.is_empty() || text.starts_with("HTTP/1.1 408"),
            "{text}"
        );
    });
    assert_eq!(
        origin.requests(),
        before,
        "half a request reached the origin"
    );
}

#[test]
fn one_address_cannot_take_all_connections() {
    let origin = Origin::echo();
    let edge = edge(&origin, &["--max-connections-per-client", "5"]);
    let client = edge.client();
    block_on(async {
        let mut held = Vec::new();
        for _ in 0..5 {
            held.push(client.connect(HOST, &["http/1.1"]).await.unwrap());
        }
        assert!(
            client.connect(HOST, &["http/1.1"]).await.is_err(),
            "a sixth connection was served"
        );
        drop(held);
    });
    // Closed connections are given back.
    eventually(
        "a connection after the others are closed",
        Duration::from_secs(20),
        || client.try_get(HOST, "/"),
    );
}

#[test]
fn floods_of_frames_end_and_honest_small_frames_arrive() {
    let python = python("python");
    if missing(&[&python]) {
        return;
    }
    let origin = Origin::echo();
    let mut edge = edge(&origin, &[]);
    let (memory, cpu) = (edge.program().peak_memory(), edge.program().cpu_time());
    let text = succeed(
        Command::new(python)
            .arg(real_file("h2_abuse.py"))
            .arg(edge.https.to_string())
            .arg(edge.ca_file())
            .arg(HOST),
    );
    assert!(text.contains("honest delivered 20000"), "{text}");
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in text.lines().filter(|line| !line.starts_with("honest")) {
        count += 1;
        if !line.contains(" ended ") {
            wrong.push(line);
        }
    }
    assert_eq!(count, 7, "{text}");
    assert!(
        wrong.is_empty(),
        "floods that were endured:\n{}\nof\n{text}",
        wrong.join("\n")
    );
    // Of 28,000 frames, and 20,000 honest ones: few become requests, little is held, and little is spent.
    assert!(origin.requests() < 1000, "{} requests", origin.requests());
    let grown = edge.program().peak_memory() - memory;
    assert!(grown < 16 << 20, "{grown} bytes were held for floods");
    let spent = edge.program().cpu_time().saturating_sub(cpu);
    assert!(spent < Duration::from_secs(5), "floods cost {spent:?}");
    // And it still serves.
    assert_eq!(edge.get(HOST, "/").status, 200);
}

#[test]
fn many_slow_heads_hold_little_and_nobody_up() {
    const CONNECTIONS: usize = 200;
    const SENT: usize = 32 * 1024;
    let origin = Origin::echo();
    let mut edge = edge(&origin, &["--header-timeout", "8s"]);
    let (requests, memory) = (origin.requests(), edge.program().peak_memory());
    let client = edge.client();
    block_on(async {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let line = format!("X-Slow: {}\r\n", "x".repeat(1000));
        let head = format!(
            "GET / HTTP/1.1\r\nHost: {HOST}\r\n{}",
            line.repeat(SENT / line.len())
        );
        let mut waiting = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut slow = client.connect(HOST, &["http/1.1"]).await.unwrap();
            slow.write_all(head.as_bytes()).await.unwrap();
            waiting.push(slow);
        }
        let request = http::Request::get("/").header("host", HOST);
        let honest = request.body(http_body_util::Full::default()).unwrap();
        assert_eq!(client.send(HOST, honest).await.unwrap().status, 200);
        for mut slow in waiting {
            let mut answer = Vec::new();
            let end = slow.read_to_end(&mut answer);
            let ended = tokio::time::timeout(Duration::from_secs(30), end).await;
            assert!(ended.is_ok(), "a connection was held");
        }
    });
    assert_eq!(origin.requests(), requests + 1, "half a request arrived");
    // Four times the longest head: its buffer, room to grow, and what any TLS connection costs.
    let grown = edge.program().peak_memory() - memory;
    let each = grown / CONNECTIONS as u64;
    assert!(each < 256 << 10, "{each} bytes were held per connection");
}
