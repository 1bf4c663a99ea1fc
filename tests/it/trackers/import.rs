//! `tidegate import torrust`: from the deployer's environment file to announces that a real tracker stores.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::program::run;
use crate::support::trackers::{Settings, Torrust};
use crate::support::{Edge, ports};

const HASH: &str = "86737a4c940e74d53b44f2c3ee5f1eb0a5ac1d11";
const ESCAPED: &str = "%86szL%94%0et%d5;D%f2%c3%ee_%1e%b0%a5%ac%1d%11";
/// What must never be seen again.
const SECRETS: [&str; 3] = [
    "token-of-the-api",
    "password-of-mysql",
    "password-of-grafana",
];

/// An environment with names of which no public authority is asked.
fn environment(http: [u16; 2], api: u16, health: u16) -> Value {
    let tracker = |name: &str, port: u16| {
        json!({
            "bind_address": format!("0.0.0.0:{port}"),
            "domain": format!("{name}.tracker.local"),
            "use_tls_proxy": true,
        })
    };
    let mut api_section = tracker("api", api);
    api_section["admin_token"] = json!(SECRETS[0]);
    json!({
        "environment": {"name": "round-trip"},
        "ssh_credentials": {"private_key_path": "/keys/id", "public_key_path": "/keys/id.pub"},
        "provider": {"provider": "lxd", "profile_name": "torrust-profile-round-trip"},
        "https": {"admin_email": "admin@tracker.local", "use_staging": true},
        "tracker": {
            "core": {
                "database": {
                    "driver": "mysql",
                    "host": "mysql",
                    "port": 3306,
                    "database_name": "tracker",
                    "username": "tracker",
                    "password": SECRETS[1],
                },
                "private": false,
            },
            "udp_trackers": [{"bind_address": "0.0.0.0:6969", "domain": "udp.tracker.local"}],
            "http_trackers": [tracker("http1", http[0]), tracker("http2", http[1])],
            "http_api": api_section,
            "health_check_api": tracker("health", health),
        },
        "prometheus": {"scrape_interval_in_secs": 15},
        "grafana": {
            "admin_user": "admin",
            "admin_password": SECRETS[2],
            "domain": "grafana.tracker.local",
            "use_tls_proxy": true,
        },
    })
}

fn write(folder: &Path, environment: &Value) -> std::path::PathBuf {
    let file = folder.join("environment.json");
    fs::write(&file, environment.to_string()).unwrap();
    file
}

fn import(file: &Path, dir: &Path) -> Command {
    let mut command = Edge::command();
    command.args(["import", "torrust"]).arg(file);
    command.arg("--dir").arg(dir);
    command
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[test]
fn an_imported_environment_serves_its_trackers() {
    let http = [ports::free(), ports::free()];
    let (api, health) = (ports::free(), ports::free());
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), &environment(http, api, health));
    let objects = folder.path().join("edge");
    let (ok, said) = run(&mut import(&file, &objects));
    assert!(ok, "{said}");
    assert!(said.contains("on_reverse_proxy = true"), "{said}");
    let (ok, checked) = run(Edge::command().arg("check").arg(&objects));
    assert!(ok, "{checked}");
    // The same once more changes nothing.
    let (ok, again) = run(&mut import(&file, &objects));
    assert!(ok && !again.contains("written "), "{again}");
    for secret in SECRETS {
        assert!(
            !said.contains(secret) && !again.contains(secret),
            "{secret}"
        );
        for file in fs::read_dir(&objects).unwrap() {
            let text = fs::read_to_string(file.unwrap().path()).unwrap();
            assert!(!text.contains(secret), "{secret} in\n{text}");
        }
    }

    let Some(tracker) = Torrust::start(Settings {
        on_reverse_proxy: true,
        http: http.map(local).to_vec(),
        api: Some(local(api)),
        health: Some(local(health)),
        ..Settings::default()
    }) else {
        return;
    };
    let edge = Edge::builder()
        .prepare(move |folder| {
            for file in fs::read_dir(&objects).unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), folder.join("objects").join(file.file_name())).unwrap();
            }
        })
        .start();
    for (index, host) in ["http1.tracker.local", "http2.tracker.local"]
        .into_iter()
        .enumerate()
    {
        let target = format!(
            "/announce?info_hash={ESCAPED}&peer_id=-XX0001-{index:012}&port={}&uploaded=0&downloaded=0&left=0&compact=1",
            6881 + index
        );
        let reply = edge.request(host, "GET", &target, &[("X-Forwarded-For", "198.51.100.9")]);
        assert_eq!(reply.status, 200, "{}", reply.text());
        // Without the header that the edge adds, the tracker would fail.
        assert!(reply.text().starts_with("d8:complete"), "{}", reply.text());
    }
    let peers = tracker.peers(HASH);
    assert_eq!(peers.len(), 2, "{peers:?}");
    assert!(
        peers
            .iter()
            .all(|peer| peer.address.ip().to_string() != "198.51.100.9"),
        "{peers:?}"
    );
    let stats = edge.get("api.tracker.local", "/api/v1/stats?token=MyAccessToken");
    assert!(
        stats.text().contains("\"tcp4_announces_handled\":2"),
        "{}",
        stats.text()
    );
    let health = edge.get("health.tracker.local", "/health_check");
    assert!(
        health.text().contains("\"status\":\"Ok\""),
        "{}",
        health.text()
    );
    drop(tracker);
}

#[test]
fn a_mixed_environment_is_refused_and_has_three_ways_out() {
    let mut environment = environment([7070, 7071], 1212, 1313);
    let second = &mut environment["tracker"]["http_trackers"][1];
    second["use_tls_proxy"] = json!(false);
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), &environment);
    let objects = folder.path().join("edge");
    let (ok, said) = run(&mut import(&file, &objects));
    assert!(!ok, "{said}");
    // The words of every place that refuses such a set.
    for part in [
        "HTTP trackers of one process are mixed",
        "http1 (http1.tracker.local) through the edge",
        "http2 (http2.tracker.local) directly",
    ] {
        assert!(said.contains(part), "{said}");
    }
    for way in ["https", "http", "direct"] {
        assert!(said.contains(&format!("--mixed-as {way}  ")), "{said}");
    }
    assert!(!objects.exists(), "written all the same");
    for (way, first, second) in [
        ("https", "HTTPS}", "HTTPS}"),
        ("http", "HTTPS}", "HTTP, port: 7071}"),
        ("direct", "Direct}", "Direct}"),
    ] {
        let objects = folder.path().join(way);
        let (ok, said) = run(import(&file, &objects).args(["--mixed-as", way]));
        assert!(ok, "{said}");
        let trackers = fs::read_to_string(objects.join("torrust-trackers.yaml")).unwrap();
        let exposures: Vec<_> = trackers
            .lines()
            .filter_map(|line| line.split_once("exposure: "))
            .map(|(_, exposure)| exposure)
            .collect();
        assert_eq!(exposures, [first, second], "{trackers}");
    }
}

#[test]
fn nothing_of_other_people_is_replaced_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), &environment([7070, 7071], 1212, 1313));
    let objects = folder.path().join("edge");
    fs::create_dir(&objects).unwrap();
    let theirs = objects.join("torrust-services.yaml");
    fs::write(&theirs, "# mine\n").unwrap();
    let (ok, said) = run(&mut import(&file, &objects));
    assert!(!ok, "{said}");
    assert!(
        said.contains("torrust-services.yaml") && said.contains("--overwrite"),
        "{said}"
    );
    assert_eq!(fs::read_dir(&objects).unwrap().count(), 1, "all or none");
    let (ok, said) = run(import(&file, &objects).arg("--overwrite"));
    assert!(ok, "{said}");
    assert!(said.contains("replaced"), "{said}");

    let output = Edge::command()
        .args(["import", "torrust", "--dry-run", "--home", "kubernetes"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success());
    let dry = tempfile::tempdir().unwrap();
    fs::write(dry.path().join("all.yaml"), output.stdout).unwrap();
    let (ok, said) = run(Edge::command().arg("check").arg(dry.path()));
    assert!(ok, "standard output is objects and nothing else: {said}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("kubectl apply"), "{told}");
}

#[test]
fn a_file_that_is_wrong_is_told_by_path() {
    let mut environment = environment([7070, 7071], 1212, 1313);
    environment["tracker"]["http_trackers"][0]["bind_address"] = json!("127.0.0.1:7070");
    environment["https"] = Value::Null;
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), &environment);
    let (ok, said) = run(&mut import(&file, &folder.path().join("edge")));
    assert!(!ok, "{said}");
    for wanted in [
        "tracker.http_trackers[0].bind_address: 127.0.0.1:7070 can only be reached from inside",
        "https.admin_email: is missing although tracker.http_trackers[0].use_tls_proxy is true",
    ] {
        assert!(said.contains(wanted), "{said}");
    }
    for secret in SECRETS {
        assert!(!said.contains(secret), "{said}");
    }
}
