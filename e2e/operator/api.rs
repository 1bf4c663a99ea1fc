//! The API on a cluster: what it changes is applied under a name of its own, and what others applied stays theirs.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::{Map, Value, json};

use crate::support::edge::PATIENCE;
use crate::support::operator::Replica;
use crate::support::{Cluster, Deployment, Edge};

const AGENT: &str = "\
apiVersion: edge.tidegate.dev/v1alpha1
kind: TunnelAgent
metadata: {name: homelab}
spec:
  credential: {secretName: homelab-agent}
  allowedHostnames: [\"*.home.example.com\"]
  mappings:
  - {name: nas, hostname: nas.home.example.com, target: \"http://192.168.1.10\"}
";

/// Status and JSON of an answer of the admin listener.
fn ask(
    replica: &Replica,
    token: &str,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> (u16, Value) {
    let mut stream = TcpStream::connect(("127.0.0.1", replica.admin)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = body.map(ToString::to_string).unwrap_or_default();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_default())
}

#[test]
fn mappings_are_applied_and_what_others_own_stays_theirs() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let namespace = cluster.namespace();
    let (space, kubectl) = (namespace.name(), cluster.kubectl());
    let mut account = Edge::command();
    account.args(["account", "token", "ci", "--scopes", "read,mappings:write"]);
    let output = account.output().unwrap();
    let token = String::from_utf8(output.stderr).unwrap();
    let token = token.lines().nth(1).unwrap().to_owned();
    let folder = tempfile::tempdir().unwrap();
    let accounts = folder.path().join("accounts.yaml");
    fs::write(
        &accounts,
        [b"tokens:\n".as_slice(), &output.stdout].concat(),
    )
    .unwrap();

    let git = [
        "apply",
        "-n",
        space,
        "--server-side",
        "--field-manager=git",
        "-f",
        "-",
    ];
    let (ok, said) = kubectl.attempt_with(&git, AGENT);
    assert!(ok, "{said}");
    let edge = Deployment::new(cluster, space).accounts(&accounts);
    let one = edge.replica("one").start();
    // By name: applying moves entries.
    let spec = || -> Map<String, Value> {
        let read = ["get", "-n", space, "tagent/homelab", "-o", "json"];
        let agent: Value = serde_json::from_str(&kubectl.run(&read)).unwrap();
        let mappings = agent["spec"]["mappings"].as_array().unwrap();
        let named = |it: &Value| (it["name"].as_str().unwrap().to_owned(), it.clone());
        mappings.iter().map(named).collect()
    };
    let place = |name: &str| format!("/api/v1/mappings/{space}/homelab/{name}");
    let call = |method: &str, path: &str, body: Option<Value>| {
        ask(&one, &token, method, path, body.as_ref())
    };

    // A new one is ours.
    let photos = json!({"namespace": space, "agent": "homelab", "name": "photos", "hostname": "photos.home.example.com", "target": "http://192.168.1.20:2342"});
    let (status, created) = call("POST", "/api/v1/mappings", Some(photos));
    assert_eq!(status, 201, "{created}");
    assert_eq!(spec()["photos"]["hostname"], "photos.home.example.com");
    // Git's is switched off, which Git says nothing about, and neither deleted nor sent elsewhere.
    let (status, switched) = call(
        "PUT",
        &format!("{}/enabled", place("nas")),
        Some(json!({"enabled": false})),
    );
    assert_eq!(
        (status, &switched["enabled"]),
        (200, &json!(false)),
        "{switched}"
    );
    let (status, refused) = call("DELETE", &place("nas"), None);
    assert_eq!(
        (status, &refused["reason"]),
        (409, &json!("OwnedByOther")),
        "{refused}"
    );
    assert!(
        refused["detail"].as_str().unwrap().contains("git owns it"),
        "{refused}"
    );
    let elsewhere = json!({"hostname": "nas.home.example.com", "target": "http://192.168.1.99"});
    let (status, refused) = call("PUT", &place("nas"), Some(elsewhere));
    assert_eq!(
        (status, &refused["reason"]),
        (409, &json!("OwnedByOther")),
        "{refused}"
    );
    // Git applies the same again, and nothing of ours goes.
    let (ok, said) = kubectl.attempt_with(&git, AGENT);
    assert!(ok, "{said}");
    let now = spec();
    assert_eq!(
        (&now["nas"]["enabled"], now.len()),
        (&json!(false), 2),
        "{now:?}"
    );
    // What is wrong is told field by field.
    let wrong = json!({"hostname": "photos.elsewhere.example.com", "target": "ftp://x"});
    let (status, refused) = call("PUT", &place("photos"), Some(wrong));
    assert_eq!(status, 422, "{refused}");
    let fields: Vec<_> = refused["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["field"].clone())
        .collect();
    assert!(
        fields.contains(&json!("hostname")) && fields.contains(&json!("target")),
        "{refused}"
    );
    let (status, _) = call("DELETE", &place("photos"), None);
    assert_eq!(status, 204);
    assert_eq!(spec().len(), 1);
    let (status, listed) = call("GET", "/api/v1/mappings", None);
    assert_eq!(
        (status, &listed[0]["name"], listed.as_array().unwrap().len()),
        (200, &json!("nas"), 1)
    );
}
