//! From a route to a certificate that clients trust, by each challenge.

use super::authority::{Authority, Behaviour};
use super::tap::Tap;
use super::{wait_for, wait_for_trust};
use crate::support::{Origin, route_of};

fn route(name: &str, hosts: &str, issuer: &str, origin: &Origin) -> String {
    route_of(
        name,
        &format!(
            "
            hostnames: [{hosts}]
            tls: {{issuerRef: {{name: {issuer}}}}}
            rules:
            - backends: [{{address: \"{}\"}}]
            ",
            origin.address()
        ),
    )
}

#[test]
fn a_route_gets_a_certificate_by_either_challenge_of_the_edge() {
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    let origin = Origin::echo();
    let http = "  solvers: [{name: http, http01: {}}]\n  profile: shortlived\n  keyType: P384\n";
    let edge = authority
        .edge()
        .object(authority.issuer("any", ""))
        .object(authority.issuer("http", http))
        .object(route(
            "tls",
            "tls.example.com, www.example.com",
            "any",
            &origin,
        ))
        .object(route("http", "http.example.com", "http", &origin))
        .start();
    wait_for(&edge, "tls", "CertificateReady", "True", "CertificateReady");
    wait_for(
        &edge,
        "http",
        "CertificateReady",
        "True",
        "CertificateReady",
    );
    let root = authority.root();
    for host in ["tls.example.com", "www.example.com", "http.example.com"] {
        wait_for_trust(&edge, &root, host);
    }
    let state = edge.folder().join("state/acme/certificate");
    let record = std::fs::read_to_string(state.join("default%2Fhttp.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["current"]["profile"], "shortlived");
    assert_eq!(record["current"]["names"][0], "http.example.com");
    assert!(record["pending"].is_null(), "{record:#}");
    assert!(!edge.log().contains("PRIVATE KEY"));
    let issuers = edge.admin("/api/v1/status").unwrap_or_default();
    assert!(!issuers.contains("PRIVATE KEY"));
}

#[test]
fn external_keys_are_used_and_their_lack_is_told() {
    let hmac = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let behaviour = Behaviour {
        external_keys: vec![("kid-1".to_owned(), hmac.to_owned())],
        ..Behaviour::default()
    };
    let Some(authority) = Authority::start(&behaviour) else {
        return;
    };
    let origin = Origin::echo();
    let bound = "  externalAccountBinding: {keyId: kid-1, keySecretRef: {name: eab, key: hmac}}\n";
    let edge = authority
        .edge()
        .object(authority.issuer("bound", bound))
        .object(authority.issuer("unbound", ""))
        .object(crate::support::secret("eab", "Opaque", &[("hmac", hmac)]))
        .object(route("bound", "bound.example.com", "bound", &origin))
        .object(route("unbound", "unbound.example.com", "unbound", &origin))
        .start();
    wait_for(
        &edge,
        "bound",
        "CertificateReady",
        "True",
        "CertificateReady",
    );
    wait_for_trust(&edge, &authority.root(), "bound.example.com");
    let message = wait_for(&edge, "unbound", "CertificateReady", "False", "OrderFailed");
    assert!(message.contains("externalAccountBinding"), "{message}");
    assert!(!edge.log().contains(hmac), "the HMAC key is in the log");
}

#[test]
fn a_changed_name_is_ordered_and_the_old_certificate_serves_meanwhile() {
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    let origin = Origin::echo();
    let edge = authority.edge().object(authority.issuer("any", "")).start();
    edge.write("app.yaml", &route("app", "a.example.com", "any", &origin));
    wait_for(&edge, "app", "CertificateReady", "True", "CertificateReady");
    let root = authority.root();
    wait_for_trust(&edge, &root, "a.example.com");
    edge.write(
        "app.yaml",
        &route("app", "a.example.com, b.example.com", "any", &origin),
    );
    wait_for_trust(&edge, &root, "b.example.com");
    wait_for_trust(&edge, &root, "a.example.com");
}

#[test]
fn new_names_are_tried_at_the_staging_directory_first() {
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    // The same authority behind another address stands for its staging service.
    let staging = Tap::start(&authority);
    let more = format!(
        "  stagingDirectory: https://localhost:{}/dir\n  keyType: RSA2048\n",
        staging.port
    );
    let origin = Origin::echo();
    let edge = authority
        .edge()
        .object(authority.issuer("any", &more))
        .object(route("app", "app.example.com", "any", &origin))
        .start();
    wait_for(&edge, "app", "CertificateReady", "True", "CertificateReady");
    wait_for_trust(&edge, &authority.root(), "app.example.com");
    assert_eq!(
        staging.distinct("certZ", 200),
        1,
        "{:?}",
        staging.exchanges()
    );
    let record = edge
        .folder()
        .join("state/acme/certificate/default%2Fapp.json");
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    assert!(record["trialPassed"].is_string(), "{record:#}");
    let directory = record["current"]["directory"].as_str().unwrap();
    assert!(
        directory.contains(&authority.port.to_string()),
        "{directory}"
    );
    // One account at each directory.
    let accounts = std::fs::read_dir(edge.folder().join("state/acme/account")).unwrap();
    assert_eq!(accounts.count(), 2);
}

#[test]
fn an_external_key_that_is_wrong_is_told() {
    let right = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let wrong = "b10lLJs8l1GPIzsLP0s6pMt8O0XVGnfTaCeROxQM0BIt2XrJMDHJZBM5NuQmQJQH";
    let Some(authority) = Authority::start(&Behaviour {
        external_keys: vec![("kid-1".to_owned(), right.to_owned())],
        ..Behaviour::default()
    }) else {
        return;
    };
    let origin = Origin::echo();
    let bound = "  externalAccountBinding: {keyId: kid-1, keySecretRef: {name: eab, key: hmac}}\n";
    let edge = authority
        .edge()
        .object(authority.issuer("bound", bound))
        .object(crate::support::secret("eab", "Opaque", &[("hmac", wrong)]))
        .object(route("bound", "bound.example.com", "bound", &origin))
        .start();
    let message = wait_for(&edge, "bound", "CertificateReady", "False", "OrderFailed");
    assert!(message.contains("external key"), "{message}");
    assert!(!edge.log().contains(wrong), "the HMAC key is in the log");
    // The right one is used as soon as it is there.
    edge.write(
        "object-2.yaml",
        &crate::support::secret("eab", "Opaque", &[("hmac", right)]),
    );
    wait_for_trust(&edge, &authority.root(), "bound.example.com");
}

#[test]
fn an_address_gets_a_certificate_that_clients_of_the_address_see() {
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    let origin = Origin::echo();
    let http = "  solvers: [{name: http, http01: {}}]\n";
    let edge = authority
        .edge()
        .object(authority.issuer("any", http))
        .object(route("box", "127.0.0.1", "any", &origin))
        .start();
    wait_for(&edge, "box", "CertificateReady", "True", "CertificateReady");
    // Such a client sends no server name.
    wait_for_trust(&edge, &authority.root(), "127.0.0.1");
}

#[test]
fn a_closed_port_is_no_obstacle_while_another_challenge_works() {
    let Some(authority) = Authority::start(&Behaviour::default()) else {
        return;
    };
    let origin = Origin::echo();
    // The authority would look for tls-alpn-01, which comes first, where nobody listens.
    let edge = authority
        .edge()
        .ports(authority.http, crate::support::ports::free())
        .object(authority.issuer("any", ""))
        .object(route("app", "app.example.com", "any", &origin))
        .start();
    wait_for(&edge, "app", "CertificateReady", "True", "CertificateReady");
    wait_for_trust(&edge, &authority.root(), "app.example.com");
    assert!(edge.log().contains("by http-01"), "{}", edge.log());
}
