//! The whole Torrust stack of `examples/torrust`, from its own files: two HTTP trackers, UDP, API, health check,
//! Grafana with Live and Prometheus behind one edge; by hostname, then by path under one hostname.
//!
//! Only what is not there is replaced: the public authority (the edge's own CA signs), Grafana (a stand-in),
//! passwords that nobody knows, and the addresses that may look at the health check.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::live::{Tab, grafana, lacking};
use crate::support::netns::{Machine, Network};
use crate::support::program::{run, tools};
use crate::support::trackers::{TOKEN, Torrust};
use crate::support::{Edge, Program, eventually, missing};

const PATIENCE: Duration = Duration::from_mins(1);
const HASH: &str = "86737a4c940e74d53b44f2c3ee5f1eb0a5ac1d11";
const ESCAPED: &str = "%86szL%94%0et%d5;D%f2%c3%ee_%1e%b0%a5%ac%1d%11";
const SERVICES: [&str; 6] = ["http1", "http2", "api", "health", "grafana", "prometheus"];
const ONE_HOST: &str = "tracker.torrust.example.com";
/// The line of `stack` for Prometheus' door: `stack` is the password too.
const LOGIN: &str = "stack:$2b$04$0XpsDY9J4V/tNxccMZcuoedQysHuVgN1NxFctwmd3a3C9hlzmmyUC";

#[test]
fn the_example_of_the_torrust_stack_serves_all_of_it() {
    let prometheus = tools().join("bin/prometheus");
    if lacking() || missing(&[&prometheus]) {
        return;
    }
    Network::run(|network| {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let Some(tracker) = Torrust::start_with(
            &example("tracker.toml"),
            vec![at(7070), at(7071)],
            at(1212),
            at(1313),
        ) else {
            return;
        };
        let live = grafana(3000, "1");
        let (peer, monitor) = (network.machine("peer"), network.machine("monitor"));
        let names: Vec<_> = SERVICES
            .iter()
            .map(|service| host(service))
            .chain([ONE_HOST.to_owned()])
            .collect();
        for machine in [&peer, &monitor] {
            let hosts: Vec<_> = names
                .iter()
                .map(|name| (name.as_str(), IpAddr::V4(Network::V4)))
                .collect();
            machine.hosts(&hosts);
        }

        let edge = edge(&[
            example("routes/trackers.yaml"),
            example("routes/services.yaml")
                .replace("192.0.2.0/24", &format!("{}/32", monitor.v4))
                .replace(
                    "admin:$2y$10$2Kpg9Fk/7lNB4jVrAO89xu4G55x4ow7yfEpI9D2jt7q6McAHKzw.6",
                    LOGIN,
                ),
        ]);
        let _prometheus = start_prometheus(&prometheus, &edge);
        by_hostname(&edge, &tracker, &peer, &monitor);
        drop(edge);
        by_path(&tracker, &peer);
        assert!(live.log().contains("rpc 60"), "{}", live.log());
        assert!(tracker.interrupt().success());
    });
}

fn by_hostname(edge: &Edge, tracker: &Torrust, peer: &Machine, monitor: &Machine) {
    let visitor = Visitor {
        edge,
        machine: peer,
    };
    for (service, port) in [("http1", 6881), ("http2", 6882)] {
        let (status, body) = visitor.get(&host(service), &announce(port), &[]);
        assert_eq!(status, "200", "{body}");
        assert!(body.starts_with("d8:complete"), "{body}");
    }
    // Beside the edge, as peers reach UDP trackers.
    let udp = peer.inside(|| announce_by_udp(SocketAddr::from((Network::V4, 6969)), 6883));
    assert_eq!(udp, 1, "action of the answer");
    let peers: Vec<_> = tracker
        .peers(HASH)
        .iter()
        .map(|peer| peer.address)
        .collect();
    let expected = [6881, 6882, 6883].map(|port| SocketAddr::from((peer.v4, port)));
    assert_eq!(peers, expected);

    let counters = format!("/api/v1/stats?token={TOKEN}");
    let (status, body) = visitor.get(&host("api"), &counters, &[]);
    assert_eq!(status, "200", "{body}");
    assert!(body.contains("\"tcp4_announces_handled\":2"), "{body}");
    assert!(body.contains("\"udp4_announces_handled\":1"), "{body}");
    assert!(!edge.log().contains(TOKEN), "the token is in the log");

    let (status, _) = visitor.get(&host("health"), "/health_check", &[]);
    assert_eq!(status, "403", "the health check is the monitor's");
    let watcher = Visitor {
        edge,
        machine: monitor,
    };
    let (status, body) = watcher.get(&host("health"), "/health_check", &[]);
    assert_eq!(status, "200", "{body}");
    assert!(body.contains("\"status\":\"Ok\""), "{body}");

    let (status, body) = visitor.get(&host("grafana"), "/api/health", &[]);
    assert_eq!(
        (status.as_str(), body.trim()),
        ("200", "{\"database\": \"ok\"}")
    );
    Tab::open(edge, &host("grafana"), "/api/live/ws").call(60_000);

    let query = "/api/v1/query?query=up";
    let (status, _) = visitor.get(&host("prometheus"), query, &[]);
    assert_eq!(status, "401");
    eventually("Prometheus has asked the edge", PATIENCE, || {
        let (status, body) = visitor.get(&host("prometheus"), query, &["--user", "stack:stack"]);
        let sample = serde_json::from_str::<serde_json::Value>(&body)
            .ok()
            .and_then(|answer| {
                let all = answer["data"]["result"].as_array()?.clone();
                all.into_iter()
                    .find(|sample| sample["metric"]["job"] == "tidegate")
            });
        match sample {
            Some(sample) if sample["value"][1] == "1" => Ok(()),
            _ => Err(format!("{status} {body}")),
        }
    });
}

fn by_path(tracker: &Torrust, peer: &Machine) {
    // Its first document is the public authority.
    let objects = example("routes-one-host/routes.yaml");
    let (authority, route) = objects.split_once("\n---\n").unwrap();
    assert!(authority.contains("kind: AcmeIssuer"), "{authority}");
    let edge = edge(&[route.to_owned()]);
    let visitor = Visitor {
        edge: &edge,
        machine: peer,
    };
    let (status, body) = visitor.get(ONE_HOST, &announce(6884), &[]);
    assert_eq!(status, "200", "{body}");
    let listed = tracker.peers(HASH);
    let own = SocketAddr::from((peer.v4, 6884));
    assert!(listed.iter().any(|peer| peer.address == own), "{listed:?}");
    for (path, part) in [
        (format!("/scrape?info_hash={ESCAPED}"), "5:files"),
        ("/health_check".to_owned(), "Ok"),
        (
            format!("/api/v1/stats?token={TOKEN}"),
            "tcp4_scrapes_handled",
        ),
        ("/grafana/d/stack".to_owned(), "Grafana at /grafana/d/stack"),
    ] {
        let (status, body) = visitor.get(ONE_HOST, &path, &[]);
        assert_eq!(status, "200", "{path}: {body}");
        assert!(body.contains(part), "{path}: {body}");
    }
    Tab::open(&edge, ONE_HOST, "/grafana/api/live/ws").call(60_001);
}

fn example(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/torrust");
    fs::read_to_string(folder.join(name)).unwrap()
}

fn host(service: &str) -> String {
    format!("{service}.torrust.example.com")
}

fn edge(objects: &[String]) -> Edge {
    let builder = objects.iter().fold(Edge::builder(), |builder, yaml| {
        builder.object(yaml.clone())
    });
    builder.arg("--https=443").arg("--http=80").start()
}

/// Prometheus with the example's scrape jobs and address, in a hurry.
fn start_prometheus(program: &PathBuf, edge: &Edge) -> Program {
    let config = example("prometheus.yml")
        .replace("15s", "1s")
        .replace("127.0.0.1:9180", &format!("127.0.0.1:{}", edge.admin))
        .replace("CHANGE-ME", TOKEN);
    let file = edge.folder().join("prometheus.yml");
    fs::write(&file, config).unwrap();
    Program::start(
        Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                edge.folder().join("prometheus").display()
            ))
            .arg("--web.listen-address=127.0.0.1:9090")
            .arg(format!(
                "--web.external-url=https://{}/",
                host("prometheus")
            )),
    )
    .wait_for_port(9090)
}

/// Somebody on a machine of the network, with curl.
struct Visitor<'a> {
    edge: &'a Edge,
    machine: &'a Machine,
}

impl Visitor<'_> {
    /// Status and body.
    fn get(&self, host: &str, target: &str, options: &[&str]) -> (String, String) {
        let (_, said) = run(self
            .machine
            .command("curl")
            .args(["--silent", "--show-error", "--max-time", "60"])
            .args(["--write-out", "\n%{http_code}"])
            .args(options)
            .arg("--cacert")
            .arg(self.edge.ca_file())
            .env_remove("CURL_CA_BUNDLE")
            .arg(format!("https://{host}{target}")));
        let (body, status) = said.rsplit_once('\n').unwrap();
        (status.to_owned(), body.to_owned())
    }
}

fn announce(port: u16) -> String {
    format!(
        "/announce?info_hash={ESCAPED}&peer_id=-XX0001-0000000{port:05}&port={port}&uploaded=0&downloaded=0&left=0&compact=1"
    )
}

/// Connects and announces as BEP 15 says: the action of the answer, 1 for an announce.
fn announce_by_udp(tracker: SocketAddr, port: u16) -> u32 {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(tracker).unwrap();
    let mut answer = [0; 1500];
    let connect = [
        &0x0417_2710_1980_u64.to_be_bytes()[..],
        &[0, 0, 0, 0, 0, 0, 0, 7],
    ];
    socket.send(&connect.concat()).unwrap();
    assert_eq!(socket.recv(&mut answer).unwrap(), 16);
    let connection = answer[8..16].to_vec();
    let hash: Vec<u8> = (0..20)
        .map(|index| u8::from_str_radix(&HASH[2 * index..][..2], 16).unwrap())
        .collect();
    let id = format!("-XX0001-0000000{port:05}");
    let announce = [
        &connection[..],
        &[0, 0, 0, 1, 0, 0, 0, 8],
        &hash,
        id.as_bytes(),
        // downloaded, left, uploaded, no event, any address, key
        &[0; 24],
        &[0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9],
        &50_u32.to_be_bytes(),
        &port.to_be_bytes(),
    ];
    socket.send(&announce.concat()).unwrap();
    let count = socket.recv(&mut answer).unwrap();
    assert!(count >= 20, "{count} bytes");
    u32::from_be_bytes([answer[0], answer[1], answer[2], answer[3]])
}
