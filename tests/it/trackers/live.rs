//! Grafana Live: a WebSocket for each open dashboard, with Grafana's own client library and its rules for
//! Origin, Host and session on the other side.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::program::{python, succeed, tools};
use crate::support::{Edge, Origin, Program, eventually, missing, ports, route, route_of};

const HOST: &str = "grafana.test";
const OTHER: &str = "other.test";
const PATIENCE: Duration = Duration::from_mins(1);

/// What opens the WebSocket, but for Origin and Cookie.
const UPGRADE: [&str; 4] = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

/// The stand-in for Grafana, with these seconds between its pings.
pub(super) fn grafana(port: u16, ping: &str) -> Program {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/trackers/grafana.py");
    Program::start(
        Command::new(python("python"))
            .arg(script)
            .args([&port.to_string(), ping]),
    )
    .wait_for_port(port)
}

/// What a test of Live needs and this machine lacks.
#[track_caller]
pub(super) fn lacking() -> bool {
    missing(&["node", "curl"])
        || missing(&[
            python("websockets"),
            tools().join("node-test/node_modules/centrifuge"),
        ])
}

/// A browser's tab with a dashboard of this site.
pub(super) struct Tab(Program);

impl Tab {
    pub(super) fn open(edge: &Edge, host: &str, path: &str) -> Self {
        let mut command = Command::new("node");
        command
            .current_dir(tools().join("node-test"))
            .args([
                "--input-type=module",
                "--eval",
                include_str!("grafana_tab.mjs"),
            ])
            .arg(edge.url(host, path).replacen("https", "wss", 1))
            .arg(edge.ca_file())
            .arg(edge.url(host, ""));
        let mut tab = Self(Program::start_held(&mut command));
        tab.wait_for("subscribed", 1);
        tab
    }

    /// How often it said this.
    fn count(&self, line: &str) -> usize {
        let log = self.0.log();
        log.lines().filter(|said| said.starts_with(line)).count()
    }

    fn wait_for(&mut self, line: &str, times: usize) {
        eventually(line, PATIENCE, || {
            assert!(self.0.ended().is_none(), "{}", self.0.log());
            (self.count(line) >= times)
                .then_some(())
                .ok_or_else(|| self.0.log())
        });
    }

    /// A call with an argument of that many bytes, which comes back.
    pub(super) fn call(&mut self, bytes: usize) {
        let answered = format!("answered {bytes}.");
        let before = self.count(&answered);
        self.0.say(&bytes.to_string());
        self.wait_for(&answered, before + 1);
    }

    /// It connected once, and has been ever since.
    fn assert_undisturbed(&self) {
        for (line, times) in [
            ("connecting", 1),
            ("connected", 1),
            ("disconnected", 0),
            ("error", 0),
        ] {
            assert_eq!(self.count(line), times, "{line} in {}", self.0.log());
        }
    }
}

#[test]
fn grafana_live_stays_through_edits_and_comes_back_after_a_restart() {
    if lacking() {
        return;
    }
    let port = ports::free();
    let server = grafana(port, "1");
    let other = Origin::text("other");
    // Pings alone keep it open for longer than it may be idle.
    let edge = Edge::start(&[
        route_of(
            "grafana",
            &format!(
                "hostnames: [{HOST}]\nrules:\n- timeouts: {{upgradedIdle: 10s}}\n  backends: [{{address: \"127.0.0.1:{port}\"}}]"
            ),
        ),
        route("other", OTHER, other.address()),
    ]);
    let mut tab = Tab::open(&edge, HOST, "/api/live/ws");
    tab.call(60_000);
    assert!(
        tab.0.log().contains("extensions permessage-deflate"),
        "{}",
        tab.0.log()
    );
    assert!(
        server.log().contains("opened for 127.0.0.1"),
        "{}",
        server.log()
    );

    for round in 0..20 {
        let path = format!("/{round}");
        let yaml = route("other", OTHER, other.address()).replace(
            "  - backends",
            &format!("  - match: {{paths: [\"{path}\"]}}\n    backends"),
        );
        edge.write("object-1.yaml", &yaml);
        edge.wait_for_status(OTHER, &path, 200);
    }
    eventually("pings for longer than the idle time", PATIENCE, || {
        server
            .log()
            .contains("pong 12.")
            .then_some(())
            .ok_or_else(|| server.log())
    });
    tab.call(60_001);
    tab.wait_for("publication 12", 1);
    tab.assert_undisturbed();

    drop(server);
    tab.wait_for("connecting 1", 1);
    let server = grafana(port, "1");
    tab.wait_for("connected", 2);
    tab.wait_for("subscribed", 2);
    tab.call(60_002);
    assert_eq!(tab.count("disconnected"), 0, "{}", tab.0.log());
    assert!(
        server.log().contains("subscribed 1/grafana"),
        "{}",
        server.log()
    );
}

#[test]
fn grafana_refuses_a_foreign_origin_through_the_edge() {
    if lacking() {
        return;
    }
    let port = ports::free();
    let server = grafana(port, "1");
    let edge = Edge::start(&[route("grafana", HOST, format!("127.0.0.1:{port}"))]);
    let own = edge.url(HOST, "");
    let session = "Cookie: grafana_session=5b1c";
    for (origin, cookie, status) in [
        ("https://evil.test", session, "403"),
        (&format!("https://{HOST}.evil.test"), session, "403"),
        (&own, "Cookie: theme=dark", "401"),
    ] {
        let mut curl = edge.curl(&[HOST]);
        curl.args(["--http1.1", "--write-out", "%{http_code}"])
            .args(["-H", &format!("Origin: {origin}"), "-H", cookie]);
        for line in UPGRADE {
            curl.args(["-H", line]);
        }
        let said = succeed(curl.arg(edge.url(HOST, "/api/live/ws")));
        let body = if status == "403" {
            "Request Origin is not authorized"
        } else {
            "Unauthorized"
        };
        assert!(
            said.ends_with(status) && said.contains(body),
            "{origin}: {said}; {}",
            server.log()
        );
    }
    let refused = format!("origin not allowed https://evil.test {HOST}:{}", edge.https);
    assert!(server.log().contains(&refused), "{}", server.log());
    let health = succeed(edge.curl(&[HOST]).arg(edge.url(HOST, "/api/health")));
    assert!(health.contains("ok"), "{health}");
}

#[test]
#[ignore = "it takes five minutes; the gate runs it beside the others: --ignored five_minutes"]
fn grafana_live_stays_idle_and_open_for_five_minutes() {
    if lacking() {
        return;
    }
    let port = ports::free();
    let server = grafana(port, "140");
    let edge = Edge::start(&[route("grafana", HOST, format!("127.0.0.1:{port}"))]);
    let mut tab = Tab::open(&edge, HOST, "/api/live/ws");
    let begin = Instant::now();
    eventually("five minutes", 6 * PATIENCE, || {
        let open = begin.elapsed();
        (open > 5 * PATIENCE)
            .then_some(())
            .ok_or_else(|| format!("{open:?}"))
    });
    tab.call(60_000);
    tab.assert_undisturbed();
    assert!(server.log().contains("pong 2."), "{}", server.log());
}
