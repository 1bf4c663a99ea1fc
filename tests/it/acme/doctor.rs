//! `tidegate doctor` on DNS that is broken in five ways, and on one that is right.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::authority::{Authority, Behaviour};
use super::wait_for;
use crate::support::program::run;
use crate::support::{Edge, route_of};

/// What is broken, in the order of the golden text.
const BROKEN: [(&str, &str); 5] = [
    ("none", "no record"),
    ("wrong", "an address of somebody else"),
    ("stray", "a forgotten AAAA"),
    ("caa", "CAA that allows another authority"),
    ("servfail", "name servers that fail"),
];

fn route(name: &str) -> String {
    route_of(
        name,
        &format!(
            "
            hostnames: [{name}.example.com]
            tls: {{issuerRef: {{name: private}}}}
            rules:
            - backends: [{{address: \"127.0.0.1:9\"}}]
            "
        ),
    )
}

fn doctor(edge: &Edge, args: &[&str]) -> (bool, String) {
    run(Edge::command()
        .arg("doctor")
        .args(args)
        .arg(edge.objects())
        .arg("--state-dir")
        .arg(edge.folder().join("state")))
}

/// Addresses of the machine that the test runs on, in records to publish.
fn normalised(text: &str) -> String {
    // The authority of the test looks at ports of its own.
    let port = regex::Regex::new(r"127\.0\.0\.1:\d+").unwrap();
    let text = port.replace_all(text, "127.0.0.1:(tls)");
    let record = regex::Regex::new("( IN A{1,4}) [0-9a-f.:]+`").unwrap();
    let text = record.replace_all(&text, "$1 (ours)`");
    let several = regex::Regex::new("(` and `[a-z.]+ IN A{1,4} \\(ours\\)`)+").unwrap();
    several.replace_all(&text, "`").into_owned()
}

#[test]
fn five_kinds_of_broken_dns_are_told_with_their_fix() {
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    authority.dns("set-default-ipv4", &json!({"ip": ""}));
    let records = |action: &str, name: &str, addresses: &[&str]| {
        let host = format!("{name}.example.com.");
        authority.dns(action, &json!({"host": host, "addresses": addresses}));
    };
    for name in ["good", "stray", "caa"] {
        records("add-a", name, &["127.0.0.1"]);
    }
    // Of loopback, so that no network has a say; nobody listens there.
    records("add-a", "wrong", &["127.0.0.2"]);
    records("add-aaaa", "stray", &["2001:db8::7"]);
    authority.dns(
        "add-caa",
        &json!({"host": "caa.example.com.", "policies": [{"tag": "issue", "value": "other-ca.example"}]}),
    );
    authority.dns("set-servfail", &json!({"host": "servfail.example.com."}));
    let mut builder = authority
        .edge()
        .arg("--public-address")
        .arg("203.0.113.10")
        .object(authority.issuer("private", ""))
        .object(route("good"));
    for (name, _) in BROKEN {
        builder = builder.object(route(name));
    }
    let mut edge = builder.start();
    for (name, _) in BROKEN {
        wait_for(&edge, name, "CertificateReady", "False", "OrderFailed");
    }
    wait_for(
        &edge,
        "good",
        "CertificateReady",
        "True",
        "CertificateReady",
    );

    let mut output = String::new();
    for (name, what) in BROKEN {
        let host = format!("{name}.example.com");
        let (ok, text) = doctor(&edge, &[&host]);
        assert!(!ok, "{host}: {text}");
        writeln!(output, "# {what}\n{text}").unwrap();
    }
    let (ok, text) = doctor(&edge, &["--route", "good"]);
    assert!(ok, "{text}");
    writeln!(output, "# nothing wrong\n{text}").unwrap();
    let output = normalised(&output);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/testdata/doctor.out");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &output).unwrap();
    }
    let expected = fs::read_to_string(&golden).unwrap_or_default();
    assert_eq!(
        output, expected,
        "if the new text is right: UPDATE_GOLDEN=1 cargo test five_kinds"
    );

    // The status has the same findings.
    let (_, text) = run(Edge::command()
        .arg("status")
        .arg(edge.objects())
        .arg("--state-dir")
        .arg(edge.folder().join("state")));
    assert!(text.contains("blocking Caa caa.example.com:"), "{text}");

    let (ok, text) = doctor(&edge, &["nobody.example.net"]);
    assert!(!ok);
    assert!(text.contains("no route gets one for"), "{text}");

    // Without an edge everything but the ports is looked at.
    edge.program().signal("TERM");
    edge.program().wait(Duration::from_secs(60));
    let name_server = format!("127.0.0.1:{}", authority.dns);
    let (ok, text) = doctor(
        &edge,
        &[
            "caa.example.com",
            "--output",
            "json",
            "--name-server",
            &name_server,
        ],
    );
    assert!(!ok, "{text}");
    let examined: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(examined["running"], false, "{text}");
    assert_eq!(examined["certificate"], "default/caa");
    let findings = examined["findings"].as_array().unwrap();
    let state = |check: &str| {
        let found = findings.iter().find(|finding| finding["check"] == check);
        found.map(|finding| finding["state"].as_str().unwrap().to_owned())
    };
    assert_eq!(state("Caa").as_deref(), Some("Blocking"), "{text}");
    assert_eq!(state("Address").as_deref(), Some("Ok"), "{text}");
    assert_eq!(state("Store").as_deref(), Some("Ok"), "{text}");
    let (ok, text) = doctor(&edge, &["good.example.com", "--name-server", &name_server]);
    assert!(ok, "{text}");
    assert!(text.contains("so that no port was tried"), "{text}");
}
