//! Times are fixed; certificates are judged as TLS judges them.

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::server::WebPkiClientVerifier;
use rustls::{Error, RootCertStore};
use rustls_pki_types::{ServerName, UnixTime};

use super::*;

const DAY: Duration = Duration::from_hours(24);

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Whether it passes as the server of that name and as a client, at that moment, with that root.
fn judged(
    certificate: &CertificateDer<'static>,
    root: &CertificateDer<'static>,
    name: &str,
    at: SystemTime,
) -> Result<(), Error> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    let servers =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let servers = servers.build().unwrap();
    servers.verify_server_cert(certificate, &[], &name, &[], at)?;
    let clients = WebPkiClientVerifier::builder_with_provider(roots, provider);
    let clients = clients.build().unwrap();
    clients.verify_client_cert(certificate, &[], at).map(drop)
}

#[test]
fn replicas_that_read_the_same_document_believe_each_other_for_a_day() {
    let (document, _) = Root::make(noon()).unwrap();
    let later = noon() + 30 * DAY;
    let one = Root::read(document.expose(), later).unwrap();
    let other = Root::read(document.expose(), later).unwrap();
    let shown = one.sign("edge-7d4f", later).unwrap();
    let believed = other.sign("edge-x", later).unwrap().root;
    let name = "edge-7d4f.replicas.tidegate.internal";
    let accepted = |name, at| judged(&shown.certificate, &believed, name, at);
    accepted(name, later).unwrap();
    // Another node's clock is half an hour behind.
    accepted(name, later - DAY / 48).unwrap();
    accepted(name, later + DAY - Duration::from_secs(1)).unwrap();
    accepted(name, later + DAY + Duration::from_secs(1)).unwrap_err();
    accepted("edge-x.replicas.tidegate.internal", later).unwrap_err();
    assert_eq!(shown.renew_at, later + DAY / 2);
    assert!(shown.serves(&one, shown.renew_at - Duration::from_secs(1)));
    assert!(!shown.serves(&one, shown.renew_at));
    // Of another root, whoever made it, nobody is believed.
    let nobody = ReplicaCertificate::of_nobody("edge-7d4f", later).unwrap();
    assert!(!nobody.serves(&one, later));
    judged(&nobody.certificate, &believed, name, later).unwrap_err();
    judged(&shown.certificate, &nobody.root, name, later).unwrap_err();
}

#[test]
fn the_root_is_good_for_names_of_replicas_only() {
    let (_, root) = Root::make(noon()).unwrap();
    let mut params = CertificateParams::new(vec!["bank.example.com".to_owned()]).unwrap();
    params.not_before = OffsetDateTime::from(noon());
    params.not_after = OffsetDateTime::from(noon() + DAY);
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate().unwrap();
    let misused = params.signed_by(&key, &root.issuer).unwrap();
    let refused = judged(
        misused.der(),
        &root.certificate,
        "bank.example.com",
        noon() + DAY / 2,
    );
    let said = format!("{:?}", refused.unwrap_err());
    assert!(said.contains("NameConstraint"), "{said}");
}

#[test]
fn what_cannot_be_used_is_told_apart() {
    let (document, root) = Root::make(noon()).unwrap();
    let read = |document: &[u8], now| Root::read(document, now).map(drop);
    assert_eq!(read(document.expose(), noon()), Ok(()));
    let last = root.not_after - DAY;
    assert_eq!(read(document.expose(), last), Ok(()));
    let over = last + Duration::from_secs(1);
    assert_eq!(read(document.expose(), over), Err(Unusable::Expired));
    for damaged in [&b""[..], b"{}", b"[1]", &document.expose()[..200]] {
        assert_eq!(read(damaged, noon()), Err(Unusable::Damaged));
    }
    // The key of one and the certificate of another.
    let (other, _) = Root::make(noon()).unwrap();
    let mut mixed: Written = serde_json::from_slice(document.expose()).unwrap();
    let other: Written = serde_json::from_slice(other.expose()).unwrap();
    mixed.key = other.key;
    let mixed = serde_json::to_vec(&mixed).unwrap();
    assert_eq!(read(&mixed, noon()), Err(Unusable::Damaged));
    // Whoever runs a newer version must not find its root replaced by ours.
    let newer = br#"{"version": 2, "roots": []}"#;
    assert_eq!(read(newer, noon()), Err(Unusable::Newer(2)));
    let error = format!("{:?}", Root::read(&mixed, noon()).err());
    assert!(!error.contains("PRIVATE"), "{error}");
}
