//! Lists as authorities sign them, good ones and every kind that must not be believed.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CrlIssuingDistributionPoint, CrlScope, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    RevocationReason, RevokedCertParams, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::fetch::{FetchError, fetch};
use super::list::{ListError, Standing, look_up, places};
use super::watch::next_look;

const LIST: &str = "http://lists.example/7.crl";

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new(name: &str, usages: &[KeyUsagePurpose]) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = usages.to_vec();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    fn usual() -> Self {
        Self::new(
            "authority",
            &[KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign],
        )
    }

    fn chain(&self, serial: u64, lists: &[&str]) -> Vec<CertificateDer<'static>> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        params.use_authority_key_identifier_extension = true;
        if !lists.is_empty() {
            params.crl_distribution_points = vec![CrlDistributionPoint {
                uris: lists.iter().map(|list| (*list).to_owned()).collect(),
            }];
        }
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        vec![leaf.der().clone(), self.certificate.clone()]
    }

    fn list(&self, revoked: &[(u64, Option<RevocationReason>)], scope: Option<&str>) -> Vec<u8> {
        self.list_until(revoked, scope, later(86_400))
    }

    fn list_until(
        &self,
        revoked: &[(u64, Option<RevocationReason>)],
        scope: Option<&str>,
        until: SystemTime,
    ) -> Vec<u8> {
        let params = CertificateRevocationListParams {
            this_update: OffsetDateTime::from(until) - time::Duration::days(30),
            next_update: OffsetDateTime::from(until),
            crl_number: SerialNumber::from(7_u64),
            issuing_distribution_point: scope.map(|url| CrlIssuingDistributionPoint {
                distribution_point: CrlDistributionPoint {
                    uris: vec![url.to_owned()],
                },
                scope: Some(CrlScope::UserCertsOnly),
            }),
            revoked_certs: revoked
                .iter()
                .map(|(serial, reason)| RevokedCertParams {
                    serial_number: SerialNumber::from(*serial),
                    revocation_time: OffsetDateTime::from(now()) - time::Duration::days(1),
                    reason_code: *reason,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().der().to_vec()
    }
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn later(seconds: u64) -> SystemTime {
    now() + Duration::from_secs(seconds)
}

#[test]
fn a_leaf_says_where_its_list_is() {
    let authority = Authority::usual();
    let of = |lists: &[&str]| places(&authority.chain(1, lists)[0]);
    assert_eq!(of(&[LIST]), [LIST]);
    assert_eq!(of(&["ldap://lists.example/cn=a", LIST]), [LIST]);
    assert!(of(&[]).is_empty());
    let long = format!("http://lists.example/{}", "a".repeat(2000));
    assert!(of(&[&long]).is_empty());
    assert!(places(&CertificateDer::from(vec![0; 40])).is_empty());
}

#[test]
fn a_list_tells_who_is_on_it() {
    let authority = Authority::usual();
    let chain = authority.chain(42, &[LIST]);
    let standing = |list: &[u8]| look_up(list, &chain, now()).unwrap().standing;
    let compromised = Some(RevocationReason::KeyCompromise);
    for scope in [None, Some(LIST)] {
        assert_eq!(standing(&authority.list(&[], scope)), Standing::Good);
        let others = [(41, compromised), (43, None)];
        assert_eq!(standing(&authority.list(&others, scope)), Standing::Good);
        let listed = [(41, None), (42, compromised)];
        let reason = Some("keyCompromise");
        let revoked = Standing::Revoked { reason };
        assert_eq!(standing(&authority.list(&listed, scope)), revoked);
        let revoked = Standing::Revoked { reason: None };
        assert_eq!(standing(&authority.list(&[(42, None)], scope)), revoked);
    }
    let list = authority.list(&[], None);
    let looked = look_up(&list, &chain, now()).unwrap();
    assert_eq!(looked.next_update, later(86_400));
    // Some serve it as text.
    let text = pem(&authority.list(&[(42, None)], None));
    assert_eq!(
        standing(text.as_bytes()),
        Standing::Revoked { reason: None }
    );
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN X509 CRL-----\n{text}\n-----END X509 CRL-----\n")
}

#[test]
fn what_is_not_the_authoritys_list_is_not_believed() {
    let authority = Authority::usual();
    let chain = authority.chain(42, &[LIST]);
    let error = |list: &[u8]| look_up(list, &chain, now()).unwrap_err();
    let revoked = [(42, None)];
    // Somebody else of the same name signed it.
    let impostor = Authority::usual().list(&revoked, None);
    assert!(matches!(error(&impostor), ListError::Unverified(_)));
    let mut changed = authority.list(&revoked, None);
    *changed.last_mut().unwrap() ^= 1;
    assert!(matches!(error(&changed), ListError::Unverified(_)));
    let another = Authority::new("another", &[KeyUsagePurpose::CrlSign]).list(&revoked, None);
    assert!(matches!(error(&another), ListError::NotAbout));
    // The list of another part of the same authority's certificates.
    let elsewhere = authority.list(&revoked, Some("http://lists.example/8.crl"));
    assert!(matches!(error(&elsewhere), ListError::NotAbout));
    for broken in [&b""[..], b"<html>", &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]] {
        assert!(matches!(error(broken), ListError::Malformed(_)));
    }
    let whole = authority.list(&revoked, None);
    assert!(matches!(
        error(&whole[..whole.len() - 9]),
        ListError::Malformed(_)
    ));
}

#[test]
fn an_old_list_tells_only_what_is_revoked() {
    let authority = Authority::usual();
    let chain = authority.chain(42, &[LIST]);
    let ended = now() - Duration::from_secs(60);
    let good = authority.list_until(&[], None, ended);
    assert!(matches!(
        look_up(&good, &chain, now()),
        Err(ListError::Ended(at)) if at == ended
    ));
    let revoked = authority.list_until(&[(42, None)], None, ended);
    let looked = look_up(&revoked, &chain, now()).unwrap();
    assert_eq!(looked.standing, Standing::Revoked { reason: None });
}

#[test]
fn only_the_issuer_may_say_it() {
    let authority = Authority::usual();
    let list = authority.list(&[(42, None)], None);
    let alone = &authority.chain(42, &[LIST])[..1];
    assert!(matches!(
        look_up(&list, alone, now()),
        Err(ListError::NoIssuer)
    ));
    let root = Authority::new("root", &[KeyUsagePurpose::CrlSign]).certificate;
    let wrong = [alone[0].clone(), root];
    assert!(matches!(
        look_up(&list, &wrong, now()),
        Err(ListError::NoIssuer)
    ));
    let barred = Authority::new("barred", &[KeyUsagePurpose::KeyCertSign]);
    let list = Authority::usual().list(&[(42, None)], None);
    assert!(matches!(
        look_up(&list, &barred.chain(42, &[LIST]), now()),
        Err(ListError::NotASigner)
    ));
    assert!(matches!(look_up(&list, &[], now()), Err(ListError::Leaf)));
}

#[test]
fn looks_are_spread_and_follow_the_list() {
    let hours = |count: u64| Duration::from_secs(count * 3600);
    let next = |update: Option<u64>, jitter: f64| {
        let update = update.map(|at| now() + hours(at));
        let at = next_look(hours(10), update, jitter, now());
        at.duration_since(now()).unwrap().as_secs() / 60
    };
    assert_eq!(next(None, 0.0), 540);
    assert_eq!(next(None, 0.5), 600);
    // Let's Encrypt's lists end in nine days and are made anew much sooner.
    assert_eq!(next(Some(9 * 24), 0.5), 600);
    assert_eq!(next(Some(4), 0.5), 240);
    assert_eq!(next(Some(0), 0.0), 100);
    assert_eq!(next(Some(0), 0.5), 150);
}

/// The URL of a server that gives this answer to one request.
async fn serving(head: &'static str, length: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let read = stream.read(&mut request).await.unwrap();
        assert!(request[..read].starts_with(b"GET /a/7.crl?x=1 HTTP/1.1\r\n"));
        let head = format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // The client goes away when it has had enough.
        let _ = stream.write_all(&vec![7; length]).await;
    });
    format!("http://{address}/a/7.crl?x=1")
}

#[tokio::test]
async fn a_list_is_fetched_within_limits() {
    let tls = crate::trust::client(rustls::RootCertStore::empty()).unwrap();
    let tls = std::sync::Arc::new(tls);
    let get = async |head, length| fetch(&serving(head, length).await, &tls).await;
    assert_eq!(get("200 OK", 70_000).await.unwrap().len(), 70_000);
    let error = get("200 OK", (16 << 20) + 1).await.unwrap_err();
    assert!(matches!(error, FetchError::TooLong), "{error}");
    for head in ["404 Not Found", "302 Found\r\nlocation: /elsewhere"] {
        let error = get(head, 2).await.unwrap_err();
        assert!(matches!(error, FetchError::Status { .. }), "{error}");
    }
    let error = fetch("http:///nowhere", &tls).await.unwrap_err();
    assert!(matches!(error, FetchError::Url(_)), "{error}");
    let error = fetch("http://127.0.0.1:1/", &tls).await.unwrap_err();
    assert!(matches!(error, FetchError::Exchange { .. }), "{error}");
}
