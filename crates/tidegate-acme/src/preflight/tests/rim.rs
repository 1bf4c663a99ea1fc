//! The rim against BIND and real listeners; what it finds, as the doctor prints it.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use tidegate_model::HostName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::super::loopback::OwnChallenge;
use super::super::probe::{Probe, Wanted};
use super::*;
use crate::dns::DnsClient;
use crate::dns::persist::PersistRecord;
use crate::dns::tests::bind::{Bind, zone};
use ChallengeType::{Dns01, DnsPersist01, Http01, TlsAlpn01};

const ZONE: &str = "\
good IN A 203.0.113.5
wrong IN A 198.51.100.9
stray IN A 203.0.113.5
stray IN AAAA 2001:db8::1
caa IN A 203.0.113.5
caa IN CAA 0 issue \"sectigo.com\"
account IN A 203.0.113.5
account IN CAA 0 issue \"letsencrypt.org; accounturi=https://ca.test/acct/9\"
below.caa IN A 203.0.113.5
dangling IN CNAME shop-17.gone.test.
loop1 IN CNAME loop2
loop2 IN CNAME loop1
local IN A 127.0.0.1
text IN TXT \"no address\"
";

fn bind() -> Option<Bind> {
    Bind::start(
        &[
            zone("test", ""),
            zone("example.test", ZONE),
            zone("gone.test", ""),
        ],
        &["broken.test"],
        "hmac-sha256",
    )
}

fn probe(bind: &Bind) -> Probe {
    Probe {
        dns: bind.client(),
        challenge: None,
        deadline: Duration::from_secs(20),
        parallel: 4,
    }
}

fn wanted(text: &str, challenge: ChallengeType) -> Wanted {
    Wanted {
        name: HostPattern::parse(text).unwrap(),
        challenge,
        solver: None,
        persist: None,
    }
}

async fn diagnosis(probe: &Probe, wanted: &[Wanted]) -> String {
    wrong(&facts(probe.names(wanted, now()).await))
}

/// The five of the issue, and their neighbours.
#[tokio::test]
async fn broken_dns_is_told_with_its_mend() {
    let Some(bind) = bind() else { return };
    let probe = probe(&bind);
    let table = [
        (
            "nothing.example.test",
            "Blocking Address nothing.example.test: nothing.example.test does not exist in DNS \
             (NXDOMAIN)\n  \
             fix: publish `nothing.example.test. IN A 203.0.113.5`",
        ),
        (
            "wrong.example.test",
            "Blocking Address wrong.example.test: A 198.51.100.9 of wrong.example.test is not this \
             machine\n  \
             fix: publish `wrong.example.test. IN A 203.0.113.5`",
        ),
        (
            "stray.example.test",
            "Blocking Address stray.example.test: AAAA 2001:db8::1 of stray.example.test is not this \
             machine\n  \
             fix: remove the record or make the edge listen on 2001:db8::1",
        ),
        (
            "caa.example.test",
            "Blocking Caa caa.example.test: CAA of caa.example.test allows only \"sectigo.com\", not \
             letsencrypt.org\n  \
             fix: add `caa.example.test. IN CAA 0 issue \"letsencrypt.org\"`, or use an issuer that is \
             allowed",
        ),
        (
            "below.caa.example.test",
            "Blocking Caa below.caa.example.test: CAA of caa.example.test allows only \"sectigo.com\", \
             not letsencrypt.org\n  \
             fix: add `caa.example.test. IN CAA 0 issue \"letsencrypt.org\"`, or use an issuer that is \
             allowed",
        ),
        (
            "www.broken.test",
            "Blocking Address www.broken.test: the name servers of www.broken.test fail: SERVFAIL\n  \
             fix: look at the zone's name servers and at DNSSEC: an expired signature or a missing key \
             answers so too\n\
             Blocking Caa www.broken.test: the name servers fail when asked for the CAA of \
             www.broken.test: SERVFAIL\n  \
             fix: look at the zone's name servers: the authority must refuse while they fail (RFC 8659 \
             §3)",
        ),
        (
            "dangling.example.test",
            "Blocking Alias dangling.example.test: dangling.example.test is an alias of \
             shop-17.gone.test, which does not exist (NXDOMAIN)\n  \
             fix: remove the CNAME and publish `dangling.example.test. IN A 203.0.113.5`",
        ),
        (
            "text.example.test",
            "Blocking Address text.example.test: text.example.test has no A or AAAA record\n  \
             fix: publish `text.example.test. IN A 203.0.113.5`",
        ),
        (
            "loop1.example.test",
            "Blocking Alias loop1.example.test: the aliases of loop1.example.test lead in a circle: \
             loop2.example.test\n  \
             fix: replace the CNAME of loop1.example.test; publish `loop1.example.test. IN A \
             203.0.113.5`",
        ),
        ("good.example.test", ""),
    ];
    for (name, expected) in table {
        assert_eq!(diagnosis(&probe, &[wanted(name, Http01)]).await, expected);
    }
    // All at once give the same, in order.
    let all: Vec<Wanted> = table.iter().map(|(name, _)| wanted(name, Http01)).collect();
    let texts: Vec<&str> = table
        .iter()
        .map(|(_, text)| *text)
        .filter(|t| !t.is_empty())
        .collect();
    assert_eq!(diagnosis(&probe, &all).await, texts.join("\n"));
}

#[tokio::test]
async fn dns_challenges_are_looked_at_without_addresses() {
    let Some(bind) = bind() else { return };
    let probe = probe(&bind);
    assert_eq!(
        diagnosis(&probe, &[wanted("*.caa.example.test", Dns01)]).await,
        "Blocking Caa *.caa.example.test: CAA of caa.example.test allows only \"sectigo.com\", not \
         letsencrypt.org\n  \
         fix: add `caa.example.test. IN CAA 0 issuewild \"letsencrypt.org\"`, or use an issuer that is \
         allowed\n\
         Blocking DnsRecord *.caa.example.test: no dns-01 solver is set for caa.example.test\n  \
         fix: give the issuer a dns-01 solver for the zone of caa.example.test"
    );
    let mut persist = wanted("*.example.test", DnsPersist01);
    persist.persist = Some(PersistRecord {
        domain: "example.test".to_owned(),
        issuer_domain: "letsencrypt.org".to_owned(),
        account_uri: "https://ca.test/acct/1".to_owned(),
        wildcard: true,
        persist_until: None,
    });
    assert_eq!(
        diagnosis(&probe, &[persist]).await,
        "Blocking DnsRecord *.example.test: _validation-persist.example.test. has no record for this \
         authority\n  \
         fix: publish `_validation-persist.example.test. IN TXT \"letsencrypt.org; \
         accounturi=https://ca.test/acct/1; policy=wildcard\"`"
    );
    let bound = diagnosis(&probe, &[wanted("account.example.test", Http01)]).await;
    assert!(
        bound.contains("allows another account of letsencrypt.org"),
        "{bound}"
    );
}

#[tokio::test]
async fn a_silent_name_server_is_unknown_and_ends_in_time() {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let servers = vec![socket.local_addr().unwrap()];
    for (timeout, deadline) in [(50, 20_000), (20_000, 50)] {
        let probe = Probe {
            dns: DnsClient::new(servers.clone(), Duration::from_millis(timeout)),
            challenge: None,
            deadline: Duration::from_millis(deadline),
            parallel: 1,
        };
        let many = [
            wanted("a.example.test", Http01),
            wanted("b.example.test", TlsAlpn01),
        ];
        let found = judge(&facts(probe.names(&many, now()).await));
        let states: Vec<State> = found.iter().map(|f| f.state).collect();
        assert_eq!(
            states.iter().filter(|s| **s == State::Unknown).count(),
            4,
            "{found:?}"
        );
        assert!(!states.contains(&State::Blocking), "{found:?}");
    }
}

/// Answers each connection with the text after the request's head has come.
pub(super) async fn serve(answer: impl Fn(&str) -> String + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            let _ = stream
                .write_all(answer(&String::from_utf8_lossy(&head)).as_bytes())
                .await;
        }
    });
    address
}

pub(super) fn response(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nserver: box\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn own_challenge(http: u16, tls: u16) -> OwnChallenge {
    OwnChallenge {
        token: "tok".to_owned(),
        key_authorization: "tok.secret".to_owned(),
        http_port: http,
        tls_port: tls,
        timeout: Duration::from_secs(10),
    }
}

fn host() -> HostName {
    HostName::parse("local.example.test").unwrap()
}

#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// A TLS server with a challenge certificate (RFC 8737) for the key authorization.
async fn serve_tls(key_authorization: &str, protocol: &[u8]) -> SocketAddr {
    let hash = Sha256::digest(key_authorization.as_bytes());
    let mut params = rcgen::CertificateParams::new(vec![host().to_string()]).unwrap();
    params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(&hash)];
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private).unwrap();
    let certified = CertifiedKey::new(vec![certificate.der().clone()], signing);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Always(Arc::new(certified))));
    config.alpn_protocols = vec![protocol.to_vec()];
    let tls = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = tls.accept(stream).await {
                let mut head = [0; 1024];
                if stream.read(&mut head).await.is_ok_and(|n| n > 0) {
                    let _ = stream
                        .write_all(response("200 OK", "tok.secret").as_bytes())
                        .await;
                }
                let _ = stream.shutdown().await;
            }
        }
    });
    address
}

#[tokio::test]
async fn own_challenge_tells_this_edge_from_others() {
    let here = ip("127.0.0.1");
    let ours = serve(|head| {
        assert!(
            head.starts_with("GET /.well-known/acme-challenge/tok HTTP/1.1\r\n"),
            "{head}"
        );
        assert!(head.contains("host: local.example.test\r\n"), "{head}");
        response("200 OK", "tok.secret\n")
    })
    .await;
    assert_eq!(
        own_challenge(ours.port(), 1).http(&host(), here).await,
        LoopbackAnswer::Ours
    );
    let other = serve(|_| response("404 Not Found", "no")).await;
    assert_eq!(
        own_challenge(other.port(), 1).http(&host(), here).await,
        LoopbackAnswer::Stranger("server \"box\" with status 404".to_owned())
    );
    let lies = serve(|_| response("200 OK", "tok.other")).await;
    assert_eq!(
        own_challenge(lies.port(), 1).http(&host(), here).await,
        LoopbackAnswer::Stranger("server \"box\" with status 200".to_owned())
    );
    let tls = serve_tls("tok.secret", b"http/1.1").await;
    let to = |location: &'static str| {
        serve(move |_| {
            format!("HTTP/1.1 301 Moved\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")
        })
    };
    let secure = to("https://local.example.test/.well-known/acme-challenge/tok").await;
    assert_eq!(
        own_challenge(secure.port(), tls.port())
            .http(&host(), here)
            .await,
        LoopbackAnswer::Ours
    );
    let away = to("https://elsewhere.test/x").await;
    assert_eq!(
        own_challenge(away.port(), tls.port())
            .http(&host(), here)
            .await,
        LoopbackAnswer::Stranger(
            "a server that redirects to \"https://elsewhere.test/x\"".to_owned()
        )
    );
    let round = to("/again").await;
    assert_eq!(
        own_challenge(round.port(), 1).http(&host(), here).await,
        LoopbackAnswer::Stranger("a server that redirects without end".to_owned())
    );
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap().port();
    let mut impatient = own_challenge(port, port);
    impatient.timeout = Duration::from_millis(100);
    let silent = LoopbackAnswer::Silent("no answer within 0.1 s".to_owned());
    assert_eq!(impatient.http(&host(), here).await, silent);
    assert_eq!(impatient.tls_alpn(&host(), here).await, silent);
    drop(closed);
    assert_eq!(impatient.http(&host(), here).await, LoopbackAnswer::Refused);
}

#[tokio::test]
async fn tls_alpn_wants_the_hash_of_our_answer() {
    let here = ip("127.0.0.1");
    let table = [
        ("tok.secret", b"acme-tls/1".as_slice(), LoopbackAnswer::Ours),
        (
            "tok.other",
            b"acme-tls/1",
            LoopbackAnswer::Stranger("a server without our challenge certificate".to_owned()),
        ),
        (
            "tok.secret",
            b"h2",
            LoopbackAnswer::Stranger("a server without acme-tls/1".to_owned()),
        ),
    ];
    for (answer, protocol, expected) in table {
        let server = serve_tls(answer, protocol).await;
        let challenge = own_challenge(1, server.port());
        assert_eq!(challenge.tls_alpn(&host(), here).await, expected);
        let address = HostName::parse("127.0.0.1").unwrap();
        assert_eq!(challenge.tls_alpn(&address, here).await, expected);
    }
}

#[tokio::test]
async fn from_dns_to_the_port_and_back() {
    let Some(bind) = bind() else { return };
    let ours = serve(|_| response("200 OK", "tok.secret")).await;
    let mut probe = probe(&bind);
    probe.challenge = Some(own_challenge(ours.port(), 1));
    let names = [
        wanted("local.example.test", Http01),
        wanted("127.0.0.1", Http01),
    ];
    let mut facts = facts(probe.names(&names, now()).await);
    facts.authority.public = false;
    facts.own = OwnAddresses::default();
    assert_eq!(wrong(&facts), "");
    for name in &facts.names {
        assert_eq!(name.loopback, [answered("127.0.0.1", LoopbackAnswer::Ours)]);
    }
}
