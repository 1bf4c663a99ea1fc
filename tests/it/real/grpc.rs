//! gRPC by grpcio: HTTP/2 from end to end, trailers, flow control, errors.

use std::process::Command;

use crate::support::program::{python, real_file, succeed};
use crate::support::{Edge, Program, missing, ports, route};

const HOST: &str = "grpc.test";

#[test]
fn grpc_calls_streams_and_errors_pass_with_their_trailers() {
    let python = python("python");
    if missing(&[&python]) {
        return;
    }
    let port = ports::free();
    let _server = Program::start(
        Command::new(&python)
            .arg(real_file("grpc_peer.py"))
            .arg("serve")
            .arg(port.to_string()),
    )
    .wait_for_port(port);
    let yaml = route("grpc", HOST, format!("127.0.0.1:{port}")).replace(
        &format!("{port}\"}}"),
        &format!("{port}\", protocol: HTTP2}}"),
    );
    assert!(yaml.contains("protocol: HTTP2"), "{yaml}");
    let edge = Edge::start(&[yaml]);
    let text = succeed(
        Command::new(&python)
            .arg(real_file("grpc_peer.py"))
            .args(["call", HOST])
            .arg(edge.https.to_string())
            .arg(edge.ca_file()),
    );
    for step in ["unary ok", "3 MB ok", "stream ok", "error ok"] {
        assert!(text.contains(step), "{text}");
    }
}
