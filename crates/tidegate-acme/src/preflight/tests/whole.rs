//! The whole pre-flight: a directory over TLS, BIND, and a listener that serves what it is told to.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::rim::{response, serve};
use super::*;
use crate::answers::{Answer, Answers};
use crate::checks::{Subject, Surroundings, check};
use crate::client::AcmeClient;
use crate::dns::tests::bind::{Bind, zone};
use crate::settings::{Issuer, KeyType, Method, RenewalSource, Solver, TrustedRoots};

const DIRECTORY: &str = r#"{"newOrder":"https://ca.test/order","meta":{
    "termsOfService":"https://ca.test/terms","caaIdentities":["ca.test"],
    "externalAccountRequired":true,"profiles":{"classic":"90 days"}}}"#;

async fn serve_directory() -> (SocketAddr, TrustedRoots) {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(key.cert.der().clone()).unwrap();
    let private = PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], PrivateKeyDer::from(private))
        .unwrap();
    let tls = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = tls.accept(stream).await else {
                continue;
            };
            let mut head = [0; 2048];
            let _ = stream.read(&mut head).await;
            let _ = stream
                .write_all(response("200 OK", DIRECTORY).as_bytes())
                .await;
            let _ = stream.shutdown().await;
        }
    });
    let roots = TrustedRoots {
        roots: Arc::new(roots),
        fingerprint: [0; 32],
    };
    (address, roots)
}

fn issuer(directory: &str, roots: TrustedRoots) -> Issuer {
    Issuer {
        name: "test-ca".to_owned(),
        directory: directory.to_owned(),
        staging_directory: None,
        contact: Vec::new(),
        profile: Some("shortlived".to_owned()),
        key_type: KeyType::P256,
        external_account: None,
        roots: Some(roots),
        renewal: RenewalSource::Lifetime,
        fallback: None,
        notifications: Vec::new(),
        solvers: vec![Solver {
            name: "http".to_owned(),
            zones: Vec::new(),
            names: Vec::new(),
            method: Method::Http01,
        }],
    }
}

/// A data plane: serves the answers that are wanted and says so.
async fn data_plane(answers: &Answers) -> SocketAddr {
    let mut wanted = answers.subscribe();
    let told = answers.clone();
    tokio::spawn(async move {
        while wanted.changed().await.is_ok() {
            let version = wanted.borrow_and_update().version;
            told.mark_served(version);
        }
    });
    let current = answers.subscribe();
    serve(move |head| {
        let set = current.borrow().answers.clone();
        let found = set.iter().find_map(|answer| match answer {
            Answer::Http01 {
                host,
                token,
                key_authorization,
            } => (head.contains(&format!("host: {host}\r\n"))
                && head.starts_with(&format!("GET /.well-known/acme-challenge/{token} ")))
            .then(|| key_authorization.clone()),
            Answer::TlsAlpn01 { .. } => None,
        });
        match found {
            Some(text) => response("200 OK", &text),
            None => response("404 Not Found", "no"),
        }
    })
    .await
}

#[tokio::test]
async fn one_call_from_directory_to_port() {
    let Some(bind) = Bind::start(
        &[
            zone("test", ""),
            zone(
                "example.test",
                "local IN A 127.0.0.1\nlocal IN CAA 0 issue \"ca.test\"\naway IN A 127.0.0.9",
            ),
        ],
        &[],
        "hmac-sha256",
    ) else {
        return;
    };
    let (directory, roots) = serve_directory().await;
    let issuer = issuer(
        &format!("https://localhost:{}/dir", directory.port()),
        roots,
    );
    let client = AcmeClient::new(issuer.roots.as_ref()).unwrap();
    let answers = Answers::default();
    let edge = data_plane(&answers).await;
    let names =
        ["local.example.test", "away.example.test"].map(|name| HostPattern::parse(name).unwrap());
    let directory = client.directory(&issuer.directory).await.unwrap();
    let subject = Subject {
        failed: &std::collections::BTreeMap::new(),
        issuer: &issuer,
        names: &names,
        directory: Ok(&directory),
        account_url: None,
        clock_ahead: Some(-7200),
        budget: None,
        store: Some(Ok(())),
    };
    let surroundings = Surroundings {
        name_servers: vec![bind.address],
        http_port: edge.port(),
        tls_port: 1,
        revocation_interval: None,
        ..Surroundings::default()
    };
    surroundings.learned.set(vec![ip("192.0.2.1")]);
    let found = check(&surroundings, Some(&answers), &subject, now()).await;
    let text = shown(found.findings);
    let expected = "Blocking Directory: test-ca wants an external account and none is given\n  \
         fix: create key id and HMAC key in the authority's console and give them as externalAccountBinding\n\
         Blocking Directory: test-ca has no profile \"shortlived\"\n  \
         fix: use one of classic\n\
         Warning Clock: this machine's clock is 2 hours ahead of that of test-ca\n  \
         fix: switch on time synchronisation: `timedatectl set-ntp true`\n\
         Ok Store: certificates can be kept\n\
         Ok Address local.example.test: 127.0.0.1 leads to this edge\n\
         Ok Reachability local.example.test: 127.0.0.1:PORT answers our challenge\n\
         Ok Caa local.example.test: CAA of local.example.test allows it: \"ca.test\"\n\
         Blocking Address away.example.test: A 127.0.0.9 of away.example.test is not this machine\n  \
         fix: publish `away.example.test. IN A 192.0.2.1`";
    let expected = expected.replace("PORT", &edge.port().to_string());
    assert!(text.starts_with(&expected), "{text}");
    // Everything is withdrawn again.
    assert!(answers.subscribe().borrow().answers.is_empty());
    // Without a data plane the ports are not tried.
    let found = check(&surroundings, None, &subject, now()).await;
    let text = shown(found.findings);
    assert!(!text.contains("Reachability"), "{text}");
}

#[tokio::test]
async fn a_directory_out_of_reach_is_told_with_its_causes() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let (_, roots) = serve_directory().await;
    let issuer = issuer(&format!("https://localhost:{port}/dir"), roots);
    let client = AcmeClient::new(issuer.roots.as_ref()).unwrap();
    let error = client.directory(&issuer.directory).await.unwrap_err();
    let subject = Subject {
        failed: &std::collections::BTreeMap::new(),
        issuer: &issuer,
        names: &[],
        directory: Err(&error),
        account_url: None,
        clock_ahead: None,
        budget: None,
        store: None,
    };
    let surroundings = Surroundings {
        name_servers: vec!["127.0.0.1:1".parse().unwrap()],
        ..Surroundings::default()
    };
    let text = shown(check(&surroundings, None, &subject, now()).await.findings);
    assert!(
        text.starts_with("Blocking Directory: test-ca cannot be reached: "),
        "{text}"
    );
    assert!(text.contains("refused"), "{text}");
}
