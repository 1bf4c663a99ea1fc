//! Certificates by name, misdirected requests, client certificates, passthrough.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::CertificateDer;
use tidegate_model::{ClientAuth, ClientAuthMode};

use super::*;

pub(super) fn roots(certificates: &[&Certificate]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.key.cert[0].clone()).unwrap();
    }
    roots
}

pub(super) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

pub(super) fn client(roots: RootCertStore) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

pub(super) fn tls(edge: &TestEdge, config: &Arc<ClientConfig>, name: &str) -> TlsStream {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let session = ClientConnection::new(Arc::clone(config), name).unwrap();
    StreamOwned::new(session, connect(edge.https))
}

pub(super) fn ask(stream: &mut TlsStream, host: &str) -> std::io::Result<String> {
    stream.write_all(get("/").replace(HOST, host).as_bytes())?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
        Err(error) => return Err(error),
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn each_name_gets_its_certificate_and_a_changed_one_closes_nothing() {
    let origin = Origin::echo();
    let rule = || forward_to(&[cluster(origin.address)]);
    let (first, second) = (certificate(&["a.test"]), certificate(&["*.b.test"]));
    let hosts = |first: &Arc<Certificate>| {
        vec![
            virtual_host("a.test", rule(), policy(Arc::clone(first))),
            virtual_host("*.b.test", rule(), policy(Arc::clone(&second))),
        ]
    };
    let edge = TestEdge::start_hosts(hosts(&first), |_| {});
    let config = client(roots(&[&first, &second]));
    for name in ["a.test", "x.b.test"] {
        let answer = ask(&mut tls(&edge, &config, name), name).unwrap();
        assert_eq!(status_of(&answer), 200);
        assert!(answer.contains("X-Forwarded-Proto: https"), "{answer}");
    }
    assert!(
        ask(&mut tls(&edge, &config, "c.test"), "c.test").is_err(),
        "nobody has that name"
    );

    let mut open = tls(&edge, &config, "a.test");
    open.flush().unwrap();
    let renewed = certificate(&["a.test"]);
    edge.store.publish(snapshot(hosts(&renewed)));
    assert_eq!(status_of(&ask(&mut open, "a.test").unwrap()), 200);
    // A fresh client: the old one would resume its session and see no certificate at all.
    let config = client(roots(&[&first]));
    let refused = ask(&mut tls(&edge, &config, "a.test"), "a.test");
    assert!(refused.is_err(), "the old certificate is gone");
    let config = client(roots(&[&renewed]));
    assert_eq!(
        status_of(&ask(&mut tls(&edge, &config, "a.test"), "a.test").unwrap()),
        200
    );
}

#[test]
fn a_host_that_the_connection_may_not_use_is_421() {
    let origin = Origin::echo();
    let rule = || forward_to(&[cluster(origin.address)]);
    let shared = certificate(&["a.test", "b.test"]);
    let other = certificate(&["c.test"]);
    let hosts = vec![
        virtual_host("a.test", rule(), policy(Arc::clone(&shared))),
        virtual_host("b.test", rule(), policy(Arc::clone(&shared))),
        virtual_host("c.test", rule(), policy(Arc::clone(&other))),
    ];
    let edge = TestEdge::start_hosts(hosts, |_| {});
    let config = client(roots(&[&shared]));
    for (host, expected) in [
        ("a.test", 200),
        ("A.TEST", 200),
        ("b.test", 200),
        ("c.test", 421),
        ("d.test", 421),
    ] {
        let answer = ask(&mut tls(&edge, &config, "a.test"), host).unwrap();
        assert_eq!(status_of(&answer), expected, "{host}");
    }
}

#[test]
fn a_client_certificate_cannot_be_avoided_by_another_name_or_a_ticket() {
    let origin = Origin::echo();
    let rule = || forward_to(&[cluster(origin.address)]);
    let shared = certificate(&["open.test", "closed.test"]);
    let (ca, key) = {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap(), key)
    };
    let issuer_params = {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
    };
    let mut client_roots = RootCertStore::empty();
    client_roots.add(ca.der().clone()).unwrap();
    let auth = Arc::new(ClientAuth {
        roots: Arc::new(client_roots),
        mode: ClientAuthMode::Required,
        fingerprint: Fingerprint([7; 32]),
    });
    let closed = TlsMode::Terminate(TlsPolicy {
        certificate: Some(Arc::clone(&shared)),
        min_version: TlsVersion::Tls12,
        client_auth: Some(auth),
    });
    let hosts = vec![
        virtual_host("open.test", rule(), policy(Arc::clone(&shared))),
        virtual_host("closed.test", rule(), closed),
    ];
    let edge = TestEdge::start_hosts(hosts, |_| {});
    let config = client(roots(&[&shared]));
    assert_eq!(
        status_of(&ask(&mut tls(&edge, &config, "open.test"), "open.test").unwrap()),
        200
    );
    assert_eq!(
        status_of(&ask(&mut tls(&edge, &config, "open.test"), "closed.test").unwrap()),
        421
    );
    // The second connection may resume the first one's session; the third name must not.
    assert_eq!(
        status_of(&ask(&mut tls(&edge, &config, "open.test"), "open.test").unwrap()),
        200
    );
    assert!(ask(&mut tls(&edge, &config, "closed.test"), "closed.test").is_err());

    let leaf_key = rcgen::KeyPair::generate().unwrap();
    let issuer = rcgen::Issuer::new(issuer_params, key);
    let leaf = rcgen::CertificateParams::new(vec!["client".to_owned()])
        .unwrap()
        .signed_by(&leaf_key, &issuer)
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let with_certificate = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(&[&shared]))
        .with_client_auth_cert(
            vec![CertificateDer::from(leaf.der().to_vec())],
            rustls_pki_types::PrivateKeyDer::try_from(leaf_key.serialize_der()).unwrap(),
        )
        .unwrap();
    let mut stream = tls(&edge, &Arc::new(with_certificate), "closed.test");
    assert_eq!(status_of(&ask(&mut stream, "closed.test").unwrap()), 200);
}

#[test]
fn a_host_can_ask_for_tls_1_3() {
    let origin = Origin::echo();
    let own = certificate(&[HOST]);
    let modern = TlsMode::Terminate(TlsPolicy {
        certificate: Some(Arc::clone(&own)),
        min_version: TlsVersion::Tls13,
        client_auth: None,
    });
    let rule = forward_to(&[cluster(origin.address)]);
    let edge = TestEdge::start_hosts(vec![virtual_host(HOST, rule, modern)], |_| {});
    let with = |version: &'static rustls::SupportedProtocolVersion| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots(&[&own]))
            .with_no_client_auth();
        ask(&mut tls(&edge, &Arc::new(config), HOST), HOST)
    };
    assert_eq!(status_of(&with(&rustls::version::TLS13).unwrap()), 200);
    assert!(with(&rustls::version::TLS12).is_err());
}

#[test]
fn passthrough_hands_the_backend_the_bytes_as_they_came() {
    let origin = Origin::echo();
    let inner_certificate = certificate(&[HOST]);
    let inner = TestEdge::start_hosts(
        vec![virtual_host(
            HOST,
            forward_to(&[cluster(origin.address)]),
            policy(Arc::clone(&inner_certificate)),
        )],
        |_| {},
    );
    let outer_rule = forward_to(&[cluster(origin.address)]);
    let passthrough = TlsMode::Passthrough(cluster(inner.https));
    let outer = TestEdge::start_hosts(vec![virtual_host(HOST, outer_rule, passthrough)], |_| {});
    let config = client(roots(&[&inner_certificate]));
    let answer = ask(&mut tls(&outer, &config, HOST), HOST).unwrap();
    assert_eq!(
        status_of(&answer),
        200,
        "terminated by the inner edge with its own certificate"
    );
}

#[test]
fn the_hybrid_group_is_negotiated_with_whoever_offers_it() {
    use rustls::NamedGroup;
    use rustls::crypto::aws_lc_rs::{default_provider, kx_group};

    let origin = Origin::echo();
    let own = certificate(&[HOST]);
    let rule = forward_to(&[cluster(origin.address)]);
    let host = virtual_host(HOST, rule, policy(Arc::clone(&own)));
    let edge = TestEdge::start_hosts(vec![host], |_| {});
    for (offered, expected) in [
        (vec![kx_group::X25519MLKEM768], NamedGroup::X25519MLKEM768),
        (
            vec![kx_group::X25519MLKEM768, kx_group::X25519],
            NamedGroup::X25519MLKEM768,
        ),
        (vec![kx_group::X25519], NamedGroup::X25519),
        (vec![kx_group::SECP256R1], NamedGroup::secp256r1),
    ] {
        let mut provider = default_provider();
        provider.kx_groups = offered;
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots(&[&own]))
            .with_no_client_auth();
        let mut stream = tls(&edge, &Arc::new(config), HOST);
        assert_eq!(status_of(&ask(&mut stream, HOST).unwrap()), 200);
        let group = stream.conn.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), expected);
    }
}
