//! Real programs at both ends of the tunnel: git, a gRPC service, a FastAPI application with a WebSocket.

use std::process::Command;

use super::{Pair, mapping};
use crate::real::git::Hosted;
use crate::support::program::{python, real_file, succeed};
use crate::support::{Program, missing, ports};

#[test]
fn a_repository_at_home_is_pushed_to_and_cloned() {
    let Some(hosted) = Hosted::start() else {
        return;
    };
    let pair = Pair::start(&format!("http://127.0.0.1:{}", hosted.port));
    for version in ["HTTP/1.1", "HTTP/2"] {
        hosted.push_and_clone(&pair.edge, super::APP, version, 12 << 20);
    }
}

#[test]
fn grpc_and_websockets_pass_with_everything_that_is_theirs() {
    let (python, uvicorn) = (python("python"), python("uvicorn"));
    if missing(&[&python, &uvicorn]) {
        return;
    }
    let (rpc, app) = (ports::free(), ports::free());
    let _server = Program::start(
        Command::new(&python)
            .arg(real_file("grpc_peer.py"))
            .args(["serve", &rpc.to_string()]),
    )
    .wait_for_port(rpc);
    let _uvicorn = Program::start(
        Command::new(uvicorn)
            .args([
                "app:app",
                "--host",
                "127.0.0.1",
                "--forwarded-allow-ips",
                "127.0.0.1",
            ])
            .args(["--port", &app.to_string(), "--app-dir"])
            .arg(real_file("")),
    )
    .wait_for_port(app);
    let pair = Pair::mapping(&[
        mapping("app", &format!("http://127.0.0.1:{app}"), ""),
        mapping(
            "rpc",
            &format!("http://127.0.0.1:{rpc}"),
            ", protocol: HTTP2",
        ),
    ]);
    let text = succeed(
        Command::new(&python)
            .arg(real_file("grpc_peer.py"))
            .args(["call", "rpc.home.example.com", &pair.edge.https.to_string()])
            .arg(pair.edge.ca_file()),
    );
    for step in ["unary ok", "3 MB ok", "stream ok", "error ok"] {
        assert!(text.contains(step), "{text}");
    }
    let socket = |token: &str, mode: &[&str]| {
        let mut client = Command::new(&python);
        client
            .arg(real_file("ws_client.py"))
            .arg(format!(
                "wss://{}:{}/ws/?token={token}",
                super::APP,
                pair.edge.https
            ))
            .arg(pair.edge.ca_file())
            .args(mode);
        succeed(&mut client)
    };
    // Longer than links are quiet.
    let text = socket("right", &["idle", "7"]);
    assert!(text.contains("alive after 7"), "{text}");
    let text = socket("wrong", &["refused"]);
    assert!(text.contains("refused with 403"), "{text}");
}
