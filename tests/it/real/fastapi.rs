//! uvicorn with a FastAPI application: WebSocket under /ws/, server-sent events, the client's address.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::eventually;
use crate::support::program::{python, real_file, run, succeed};
use crate::support::{Edge, Origin, Program, missing, ports, route};

const HOST: &str = "app.localhost";

struct App {
    _uvicorn: Program,
    edge: Edge,
}

/// The application behind an edge; None when uvicorn is missing.
#[track_caller]
fn start() -> Option<App> {
    let uvicorn = python("uvicorn");
    if missing(&[&uvicorn]) {
        return None;
    }
    let port = ports::free();
    let uvicorn = Program::start(
        Command::new(uvicorn)
            .args([
                "app:app",
                "--host",
                "127.0.0.1",
                "--forwarded-allow-ips",
                "127.0.0.1",
            ])
            .args(["--port", &port.to_string(), "--app-dir"])
            .arg(real_file("")),
    )
    .wait_for_port(port);
    let edge = Edge::start(&[route("app", HOST, format!("127.0.0.1:{port}"))]);
    edge.wait_for_status(HOST, "/whoami", 200);
    Some(App {
        _uvicorn: uvicorn,
        edge,
    })
}

fn client(edge: &Edge, token: &str, mode: &[&str]) -> Command {
    let mut command = Command::new(python("python"));
    command
        .arg(real_file("ws_client.py"))
        .arg(format!("wss://{HOST}:{}/ws/?token={token}", edge.https))
        .arg(edge.ca_file())
        .args(mode);
    command
}

#[test]
fn the_application_sees_the_client_and_https() {
    let Some(app) = start() else { return };
    let text = succeed(
        app.edge
            .curl(&[HOST])
            .args(["-H", "X-Forwarded-For: 6.6.6.6"])
            .arg(app.edge.url(HOST, "/whoami?h=%86z+'~!")),
    );
    let seen: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(seen["client"], "127.0.0.1");
    assert_eq!(seen["scheme"], "https");
    assert_eq!(seen["forwarded_for"], serde_json::json!(["127.0.0.1"]));
    assert_eq!(seen["query"], "h=%86z+'~!");
    assert_eq!(seen["host"], format!("{HOST}:{}", app.edge.https));
}

#[test]
fn a_websocket_idle_for_over_a_minute_lives() {
    let Some(app) = start() else { return };
    let text = succeed(&mut client(&app.edge, "right", &["idle", "65"]));
    assert!(text.contains("alive after 65"), "{text}");
}

#[test]
fn a_refused_upgrade_is_passed_on() {
    let Some(app) = start() else { return };
    let text = succeed(&mut client(&app.edge, "wrong", &["refused"]));
    assert!(text.contains("refused with 403"), "{text}");
}

#[test]
fn a_websocket_stays_open_while_other_routes_are_edited_fifty_times() {
    let Some(app) = start() else { return };
    let (one, two) = (Origin::text("one"), Origin::text("two"));
    let mut held = client(&app.edge, "right", &["hold"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(held.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "open");
    for edit in 0..50 {
        let (origin, text) = if edit % 2 == 0 {
            (&one, "one")
        } else {
            (&two, "two")
        };
        app.edge.write(
            "other.yaml",
            &route("other", "other.test", origin.address()),
        );
        // Each edit has to be in force before the next one, or there were fewer than fifty.
        eventually(
            &format!("edit {edit}"),
            Duration::from_secs(20),
            || match app.edge.client().try_get("other.test", "/") {
                Ok(reply) if reply.text() == text => Ok(()),
                other => Err(format!("{other:?}")),
            },
        );
    }
    drop(held.stdin.take());
    let status = held.wait().unwrap();
    let (mut rest, mut errors) = (String::new(), String::new());
    said.read_to_string(&mut rest).unwrap();
    held.stderr
        .take()
        .unwrap()
        .read_to_string(&mut errors)
        .unwrap();
    assert!(
        status.success() && rest.contains("held for"),
        "{rest}{errors}"
    );
}

#[test]
fn server_sent_events_arrive_one_by_one() {
    let Some(app) = start() else { return };
    for option in ["--http1.1", "--http2"] {
        let mut curl = app
            .edge
            .curl(&[HOST])
            .args([option, "-N"])
            .arg(app.edge.url(HOST, "/events?count=6&pause=0.4"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut times = Vec::new();
        for line in BufReader::new(curl.stdout.take().unwrap()).lines() {
            if line.unwrap().starts_with("data: ") {
                times.push(Instant::now());
            }
        }
        assert!(curl.wait().unwrap().success(), "{option}");
        assert_eq!(times.len(), 6, "{option}");
        // The origin takes two seconds for them; buffered, they would come together.
        let spread = times[5] - times[0];
        assert!(
            spread > Duration::from_secs(1),
            "{option}: all within {spread:?}"
        );
    }
}

#[test]
fn an_ended_application_is_told_as_502() {
    let Some(app) = start() else { return };
    let App {
        _uvicorn: uvicorn,
        edge,
    } = app;
    drop(uvicorn);
    edge.wait_for_status(HOST, "/whoami", 502);
    let (_, text) = run(edge.curl(&[HOST]).arg(edge.url(HOST, "/whoami")));
    assert!(!text.is_empty(), "a 502 without a word");
}
