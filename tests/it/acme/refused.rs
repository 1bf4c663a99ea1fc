//! Orders that must fail are not placed, and the reason is on the object.

use serde_json::json;

use super::authority::{Authority, Behaviour};
use super::wait_for;
use crate::support::route_of;

fn route(name: &str, host: &str, issuer: &str) -> String {
    route_of(
        name,
        &format!(
            "
            hostnames: [\"{host}\"]
            tls: {{issuerRef: {{name: {issuer}}}}}
            rules:
            - backends: [{{address: \"127.0.0.1:9\"}}]
            "
        ),
    )
}

#[test]
fn what_must_fail_is_not_ordered() {
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    authority.dns(
        "add-a",
        &json!({"host": "elsewhere.example.com.", "addresses": ["198.51.100.7"]}),
    );
    authority.dns(
        "add-caa",
        &json!({"host": "caa.example.com.", "policies": [{"tag": "issue", "value": "other-ca.example"}]}),
    );
    authority.dns("set-servfail", &json!({"host": "broken.example.com."}));
    let edge = authority
        .edge()
        .object(authority.issuer("any", ""))
        .object(authority.issuer("http", "  solvers: [{name: http, http01: {}}]\n"))
        .object(route("elsewhere", "elsewhere.example.com", "any"))
        .object(route("broken", "broken.example.com", "any"))
        .object(route("wildcard", "*.example.com", "http"))
        .start();
    for (name, words) in [
        ("elsewhere", "198.51.100.7"),
        ("broken", "SERVFAIL"),
        ("wildcard", "wildcard"),
    ] {
        let message = wait_for(&edge, name, "CertificateReady", "False", "OrderFailed");
        assert!(message.contains(words), "{name}: {message}");
    }
    // Nothing was asked of the authority: no order is in any ledger.
    let ledgers = edge.folder().join("state/acme/ledger");
    let orders = std::fs::read_dir(ledgers).map_or(0, Iterator::count);
    assert_eq!(orders, 0, "{}", edge.log());
    // A corrected record is noticed without anybody asking.
    authority.dns("clear-a", &json!({"host": "elsewhere.example.com."}));
    wait_for(
        &edge,
        "elsewhere",
        "CertificateReady",
        "True",
        "CertificateReady",
    );
}

#[test]
fn a_directory_that_is_none_is_told() {
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    let untrusted = authority
        .issuer("untrusted", "")
        .replace("  caSecretName: authority-ca\n", "");
    let wrong = authority
        .issuer("wrong", "")
        .replace("/dir\n", "/nonsense\n");
    let nobody = Authority::issuer_at("nobody", crate::support::ports::free(), "");
    let edge = authority
        .edge()
        .object(untrusted)
        .object(wrong)
        .object(nobody)
        .object(route("untrusted", "a.example.com", "untrusted"))
        .object(route("wrong", "b.example.com", "wrong"))
        .object(route("nobody", "c.example.com", "nobody"))
        .start();
    for (name, reason, mend) in [
        ("untrusted", "CaUntrusted", "caSecretName"),
        ("wrong", "NotADirectory", "spec.directory"),
        ("nobody", "CaUnreachable", "spec.directory"),
    ] {
        let message = wait_for(&edge, name, "CertificateReady", "False", "OrderFailed");
        assert!(message.contains(reason), "{name}: {message}");
        assert!(message.contains(mend), "{name}: {message}");
    }
}
