//! Certificates that are renewed while they are in use.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::authority::{Authority, Behaviour};
use super::{wait_for, wait_for_trust};
use crate::support::client::block_on;
use crate::support::{Client, Origin, breathe, eventually, route_of};

/// Serial number of what is served to a client that trusts the root.
fn serial(client: &Client) -> Option<String> {
    let stream = block_on(client.connect("app.example.com", &[])).ok()?;
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.raw_serial_as_string())
}

#[test]
fn ten_renewals_under_load_fail_no_request() {
    // Half of this is a renewal every eight seconds.
    let behaviour = Behaviour {
        lifetime: 16,
        ..Behaviour::default()
    };
    let Some(authority) = Authority::start(&behaviour) else {
        return;
    };
    let origin = Origin::echo();
    let edge = authority
        .edge()
        .arg("--access-log=off")
        .object(authority.issuer("any", ""))
        .object(route_of(
            "app",
            &format!(
                "
                hostnames: [app.example.com]
                tls: {{issuerRef: {{name: any}}}}
                rules:
                - backends: [{{address: \"{}\"}}]
                ",
                origin.address()
            ),
        ))
        .start();
    let root = authority.root();
    wait_for_trust(&edge, &root, "app.example.com");
    let ended = Arc::new(AtomicBool::new(false));
    let requests = Arc::new(AtomicUsize::new(0));
    // A resumed session shows no certificate.
    let client = Client::new(edge.https, root.as_bytes()).with_config(|mut config| {
        config.resumption = rustls::client::Resumption::disabled();
        config
    });
    let load: Vec<_> = (0..2)
        .map(|_| {
            let (client, ended, requests) =
                (client.clone(), Arc::clone(&ended), Arc::clone(&requests));
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                while !ended.load(Ordering::Relaxed) {
                    // Each on a connection of its own, verified to the root.
                    match client.try_get("app.example.com", "/") {
                        Ok(reply) if reply.status == 200 => {
                            requests.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(reply) => failures.push(format!("status {}", reply.status)),
                        Err(error) => failures.push(error),
                    }
                    breathe();
                }
                failures
            })
        })
        .collect();
    let mut serials = BTreeSet::new();
    eventually("eleven certificates", Duration::from_mins(5), || {
        serials.extend(serial(&client));
        if serials.len() > 10 {
            Ok(())
        } else {
            Err(format!("{} so far; log:\n{}", serials.len(), edge.log()))
        }
    });
    ended.store(true, Ordering::Relaxed);
    let failures: Vec<String> = load
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect();
    assert!(failures.is_empty(), "{failures:?}; log:\n{}", edge.log());
    assert!(requests.load(Ordering::Relaxed) > 100);
    wait_for(&edge, "app", "CertificateReady", "True", "CertificateReady");
    let record = edge
        .folder()
        .join("state/acme/certificate/default%2Fapp.json");
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    assert!(record["ari"]["window"].is_object(), "{record:#}");
    assert_ne!(
        record["current"]["keyPem"], record["previous"]["keyPem"],
        "a renewal has a new key"
    );
}
