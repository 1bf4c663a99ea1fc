//! Certificates with keys of every type that an issuer can ask for.

use x509_parser::public_key::PublicKey;

use super::authority::{Authority, Behaviour};
use super::{wait_for, wait_for_trust};
use crate::support::client::block_on;
use crate::support::{Client, route_of};

/// Type and bits of the key that a client of the host is shown.
fn key_of(client: &Client, host: &str) -> (&'static str, usize) {
    let stream = block_on(client.connect(host, &[])).unwrap();
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    match leaf.public_key().parsed().unwrap() {
        PublicKey::RSA(key) => ("RSA", key.key_size()),
        // An uncompressed point has two coordinates.
        PublicKey::EC(point) => ("EC", point.data().len() / 2 * 8),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_key_type_is_made_certified_and_served() {
    let Some(authority) = Authority::start(&Behaviour::calm()) else {
        return;
    };
    let types = [
        ("p256", "P256", ("EC", 256)),
        ("p384", "P384", ("EC", 384)),
        ("rsa2048", "RSA2048", ("RSA", 2048)),
        ("rsa4096", "RSA4096", ("RSA", 4096)),
    ];
    let mut builder = authority.edge();
    for (name, key_type, _) in types {
        let more = format!("  keyType: {key_type}\n");
        let route = format!(
            "
            hostnames: [{name}.example.com]
            tls: {{issuerRef: {{name: {name}}}}}
            rules:
            - backends: [{{address: \"127.0.0.1:9\"}}]
            "
        );
        builder = builder
            .object(authority.issuer(name, &more))
            .object(route_of(name, &route));
    }
    let edge = builder.start();
    let root = authority.root();
    let client = Client::new(edge.https, root.as_bytes());
    for (name, _, expected) in types {
        let host = format!("{name}.example.com");
        // The handshake proves the key, the client the chain.
        wait_for_trust(&edge, &root, &host);
        assert_eq!(key_of(&client, &host), expected, "{name}");
        wait_for(&edge, name, "CertificateReady", "True", "CertificateReady");
    }
    // Another type is another certificate, with the old one served meanwhile.
    edge.write(
        "object-1.yaml",
        &authority.issuer("p256", "  keyType: P384\n"),
    );
    crate::support::eventually("the other key", super::ORDER, || {
        match key_of(&client, "p256.example.com") {
            ("EC", 384) => Ok(()),
            other => Err(format!("{other:?}; log:\n{}", edge.log())),
        }
    });
}
