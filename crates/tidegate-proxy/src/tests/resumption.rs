//! Sessions that are resumed at another edge with the same ticket keys, and those that must not be.

use std::sync::Arc;

use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::CertificateDer;
use tidegate_model::{ClientAuth, ClientAuthMode, Secret, TicketKey, TicketKeys};

use super::tls::{ask, roots, tls};
use super::*;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

fn keys(secret: u8) -> Arc<TicketKeys> {
    let now = SystemTime::now();
    Arc::new(TicketKeys::new(vec![TicketKey {
        secret: Secret::new([secret; 32]),
        encrypts_from: now,
        expires: now + Duration::from_hours(1),
    }]))
}

/// An edge that serves [`HOST`] with this certificate and these ticket keys.
fn edge(
    certificate: &Arc<Certificate>,
    client_auth: Option<&Arc<ClientAuth>>,
    ticket_keys: Option<Arc<TicketKeys>>,
) -> (TestEdge, Origin) {
    let origin = Origin::echo();
    let edge = TestEdge::start_hosts(Vec::new(), |_| {});
    let tls = TlsMode::Terminate(TlsPolicy {
        certificate: Some(Arc::clone(certificate)),
        min_version: TlsVersion::Tls12,
        client_auth: client_auth.cloned(),
    });
    let rule = forward_to(&[cluster(origin.address)]);
    edge.store.publish(Snapshot {
        ticket_keys,
        ..snapshot(vec![virtual_host(HOST, rule, tls)])
    });
    (edge, origin)
}

/// A CA whose clients are let in, and what one of its clients shows.
struct Clients {
    auth: Arc<ClientAuth>,
    certificate: CertificateDer<'static>,
    key: rcgen::KeyPair,
}

impl Clients {
    fn new(fingerprint: u8) -> Self {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut roots = RootCertStore::empty();
        let ca = params.self_signed(&ca_key).unwrap();
        roots.add(ca.der().clone()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::Issuer::new(params, ca_key);
        let leaf = rcgen::CertificateParams::new(vec!["client".to_owned()])
            .unwrap()
            .signed_by(&key, &issuer)
            .unwrap();
        Self {
            auth: Arc::new(ClientAuth {
                roots: Arc::new(roots),
                mode: ClientAuthMode::Required,
                fingerprint: Fingerprint([fingerprint; 32]),
            }),
            certificate: leaf.der().clone(),
            key,
        }
    }
}

/// A client with no session to resume yet.
fn client(
    version: &'static SupportedProtocolVersion,
    server: &Certificate,
    shows: Option<&Clients>,
) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots(&[server]));
    Arc::new(match shows {
        None => config.with_no_client_auth(),
        Some(clients) => {
            let key = clients.key.serialize_der();
            let key = rustls_pki_types::PrivateKeyDer::try_from(key).unwrap();
            let chain = vec![clients.certificate.clone()];
            config.with_client_auth_cert(chain, key).unwrap()
        }
    })
}

/// Makes a request; how the handshake was made, or None if it failed.
fn handshake(edge: &TestEdge, client: &Arc<ClientConfig>) -> Option<HandshakeKind> {
    let mut stream = tls(edge, client, HOST);
    let answer = ask(&mut stream, HOST).ok()?;
    if answer.is_empty() {
        return None;
    }
    assert_eq!(status_of(&answer), 200);
    stream.conn.handshake_kind()
}

#[test]
fn a_session_is_resumed_at_another_edge_with_the_same_keys_only() {
    let certificate = certificate(&[HOST]);
    let (first, _origin) = edge(&certificate, None, Some(keys(1)));
    let (second, _origin) = edge(&certificate, None, Some(keys(1)));
    let (stranger, _origin) = edge(&certificate, None, Some(keys(2)));
    let (alone, _origin) = edge(&certificate, None, None);
    for version in VERSIONS {
        let client = client(version, &certificate, None);
        let full = |edge| {
            let kind = handshake(edge, &client).unwrap();
            assert_ne!(kind, HandshakeKind::Resumed, "{version:?}");
        };
        full(&first);
        assert_eq!(handshake(&second, &client), Some(HandshakeKind::Resumed));
        assert_eq!(handshake(&first, &client), Some(HandshakeKind::Resumed));
        full(&stranger);
        full(&alone);
        // An edge without shared keys has its own.
        assert_eq!(handshake(&alone, &client), Some(HandshakeKind::Resumed));
    }
}

#[test]
fn new_keys_are_used_without_a_new_connection_to_anything() {
    let certificate = certificate(&[HOST]);
    let (first, origin) = edge(&certificate, None, Some(keys(1)));
    let (second, _origin) = edge(&certificate, None, Some(keys(2)));
    let client = client(&rustls::version::TLS13, &certificate, None);
    assert!(handshake(&first, &client).is_some());
    let rule = forward_to(&[cluster(origin.address)]);
    first.store.publish(Snapshot {
        ticket_keys: Some(keys(2)),
        ..snapshot(vec![virtual_host(
            HOST,
            rule,
            policy(Arc::clone(&certificate)),
        )])
    });
    let kind = handshake(&first, &client).unwrap();
    assert_ne!(kind, HandshakeKind::Resumed, "the old key is gone");
    assert_eq!(handshake(&second, &client), Some(HandshakeKind::Resumed));
}

#[test]
fn a_ticket_carries_nobody_past_another_client_authentication() {
    let certificate = certificate(&[HOST]);
    let (ours, theirs) = (Clients::new(7), Clients::new(8));
    let (open, _origin) = edge(&certificate, None, Some(keys(1)));
    let (closed, _origin) = edge(&certificate, Some(&ours.auth), Some(keys(1)));
    let (also_closed, _origin) = edge(&certificate, Some(&ours.auth), Some(keys(1)));
    let (of_others, _origin) = edge(&certificate, Some(&theirs.auth), Some(keys(1)));
    for version in VERSIONS {
        let nobody = client(version, &certificate, None);
        assert!(handshake(&open, &nobody).is_some());
        assert_eq!(handshake(&open, &nobody), Some(HandshakeKind::Resumed));
        assert_eq!(handshake(&closed, &nobody), None, "{version:?}");

        let one_of_ours = client(version, &certificate, Some(&ours));
        assert!(handshake(&closed, &one_of_ours).is_some());
        let resumed = handshake(&also_closed, &one_of_ours);
        assert_eq!(resumed, Some(HandshakeKind::Resumed), "{version:?}");
        assert_eq!(handshake(&of_others, &one_of_ours), None, "{version:?}");
    }
}
