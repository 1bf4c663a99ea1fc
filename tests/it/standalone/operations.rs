//! The admin listener, the internal CA over time, the commands that print.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::edge::PATIENCE;
use crate::support::program::run;
use crate::support::{Edge, Origin, eventually, route};

#[test]
fn the_internal_ca_renews_by_itself_and_its_root_can_be_printed() {
    let origin = Origin::text("x");
    let edge = Edge::builder()
        .object(route("a", "a.test", origin.address()))
        .arg("--certificate-lifetime")
        .arg("12s")
        .start();
    edge.wait_for_status("a.test", "/", 200);
    let serials = || {
        let reply = edge.admin("/api/v1/certificates").unwrap();
        let body = reply.split_once("\r\n\r\n").unwrap().1;
        let views: Vec<serde_json::Value> = serde_json::from_str(body).unwrap();
        assert!(!body.contains("PRIVATE"), "{body}");
        views
            .iter()
            .find(|view| view["servedFor"][0] == "a.test")
            .unwrap()["serial"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let first = serials();
    eventually("a new certificate", PATIENCE, || {
        let now = serials();
        if now == first { Err(now) } else { Ok(()) }
    });
    edge.wait_for_status("a.test", "/", 200);
    let state = edge.folder().join("state").display().to_string();
    let printed = Edge::run(&["ca", "--state-dir", &state]);
    assert_eq!(printed, std::fs::read_to_string(edge.ca_file()).unwrap());
    let told = Edge::run(&["ca", "--state-dir", &state, "--instructions"]);
    for system in ["update-ca-certificates", "certutil", "NODE_EXTRA_CA_CERTS"] {
        assert!(told.contains(system), "{system} in {told}");
    }
}

#[test]
fn the_admin_listener_tells_state_and_refuses_strange_hosts() {
    let origin = Origin::text("x");
    let edge = Edge::builder()
        .object(route("a", "a.test", origin.address()))
        .arg("--admin-host")
        .arg("edge.lan")
        .start();
    edge.wait_for_status("a.test", "/", 200);
    for (path, expected) in [
        ("/healthz", "ok"),
        ("/readyz", "ready"),
        ("/metrics", "# EOF"),
        ("/metrics", "tidegate_config_revision 1"),
        ("/metrics", "application/openmetrics-text"),
        ("/api/v1/status", "\"ready\":true"),
        ("/api/v1/listeners", "\"state\":\"accepting\""),
        ("/api/v1/routes", "\"hostnames\":[\"a.test\"]"),
        ("/api/v1/certificates", "\"origin\":\"internalCa\""),
        ("/api/v1/backends", "\"healthy\":true"),
    ] {
        let reply = edge.admin(path).unwrap();
        assert!(reply.starts_with("HTTP/1.1 200"), "{path}: {reply}");
        assert!(reply.contains(expected), "{path}: {expected} in {reply}");
    }
    assert!(edge.admin("/nothing").unwrap().starts_with("HTTP/1.1 404"));
    let with_host = |host: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", edge.admin)).unwrap();
        write!(
            stream,
            "GET /api/v1/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    };
    let refused = with_host("evil.example");
    assert!(refused.starts_with("HTTP/1.1 421"), "{refused}");
    assert!(refused.contains("--admin-host"), "{refused}");
    assert!(with_host("edge.lan:9180").starts_with("HTTP/1.1 200"));
}

#[test]
fn the_admin_listener_answers_however_many_are_slow_or_idle() {
    let edge = Edge::builder().start();
    let connect = || {
        let stream = TcpStream::connect(("127.0.0.1", edge.admin)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let say = |request: &str| {
        let mut stream = connect();
        // A refusal may come before the end of what is refused.
        let _ = stream.write_all(request.as_bytes());
        let mut reply = String::new();
        let _ = stream.read_to_string(&mut reply);
        reply
    };
    let large = format!(
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Large: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    assert!(say(&large).starts_with("HTTP/1.1 431"), "{}", say(&large));
    let body = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 5\r\n\r\n";
    assert!(say(body).starts_with("HTTP/1.1 413"), "{}", say(body));
    // More than are taken, since earlier ones may still be ending: half a head each.
    let mut held: Vec<_> = (0..80).map(|_| connect()).collect();
    for stream in &mut held {
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: local");
    }
    eventually("one too many is closed", PATIENCE, || {
        match say("GET /healthz HTTP/1.0\r\n\r\n").as_str() {
            "" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    // Nobody has to hang up: the clock does it.
    eventually("an answer to others", PATIENCE, || {
        match edge.admin("/healthz") {
            Ok(reply) if reply.starts_with("HTTP/1.1 200") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    for mut stream in held {
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

#[test]
fn commands_teach_and_complete() {
    let help = Edge::run(&["run", "--help"]);
    for expected in ["TIDEGATE_HTTPS", "setcap", "USR2", "--to"] {
        assert!(help.contains(expected), "{expected} in {help}");
    }
    assert!(Edge::run(&["completions", "bash"]).contains("explain"));
    let crds = Edge::run(&["crds"]);
    for kind in ["TlsRoute", "TunnelAgent", "AcmeIssuer"] {
        assert!(crds.contains(&format!("kind: {kind}")), "{kind}");
    }
    let folder = tempfile::tempdir().unwrap();
    let (ok, output) = run(Edge::command().arg("status").arg(folder.path()));
    assert!(!ok && output.contains("tidegate run"), "{output}");
}

#[test]
fn the_generated_page_of_the_command_line_is_current() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/cli.md");
    let page = tidegate::cli::reference();
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == page,
        "docs/reference/cli.md differs; run: cargo xtask codegen"
    );
}
