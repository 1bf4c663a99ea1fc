//! The webhook against a real HTTP server, plain and over TLS.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tidegate_model::{Reach, Secret};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::dns::webhook::{Credentials, Settings, Webhook};
use crate::dns::{DnsSolver as _, TxtRecord};

type Calls = Arc<Mutex<Vec<String>>>;

/// Answers with the status and text; notes what came.
async fn serve(status: u16, text: &'static str, tls: Option<TlsAcceptor>) -> (SocketAddr, Calls) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let calls = Calls::default();
    let noted = Arc::clone(&calls);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let calls = Arc::clone(&noted);
            let service = service_fn(move |request: Request<Incoming>| {
                let calls = Arc::clone(&calls);
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    let authorization = parts
                        .headers
                        .get("authorization")
                        .map_or("-", |v| v.to_str().unwrap());
                    calls.lock().unwrap().push(format!(
                        "{} {} {authorization} {}",
                        parts.method,
                        parts.uri,
                        String::from_utf8_lossy(&body)
                    ));
                    let mut response = Response::new(Full::new(Bytes::from(text)));
                    *response.status_mut() = StatusCode::from_u16(status).unwrap();
                    Ok::<_, hyper::Error>(response)
                }
            });
            let tls = tls.clone();
            tokio::spawn(async move {
                let http = hyper::server::conn::http1::Builder::new();
                match tls {
                    None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            drop(http.serve_connection(TokioIo::new(stream), service).await);
                        }
                    }
                }
            });
        }
    });
    (address, calls)
}

fn settings(url: String) -> Settings {
    Settings {
        url,
        credentials: None,
        ca_bundle: None,
        timeout: Duration::from_secs(10),
        reach: Arc::default(),
    }
}

#[tokio::test]
async fn what_leads_where_connections_may_not_is_not_called() {
    let (address, calls) = serve(200, "", None).await;
    let reach = Arc::new(Reach::limited(Vec::new(), Vec::new()));
    for url in [
        format!("http://{address}"),
        format!("http://localhost:{}", address.port()),
    ] {
        let limited = Settings {
            reach: Arc::clone(&reach),
            ..settings(url)
        };
        let error = Webhook::new(&limited).unwrap_err().to_string();
        assert!(error.contains("is a loopback address"), "{error}");
    }
    // A name is judged by what it turns out to be: this one is known to every machine's own list of names.
    let turned = Settings {
        reach,
        ..settings(format!("http://LocalHost:{}", address.port()))
    };
    if let Ok(turned) = Webhook::new(&turned) {
        let error = turned
            .present(&record(), SystemTime::now())
            .await
            .unwrap_err();
        let error = tidegate_telemetry::chain(&error).to_string();
        assert!(
            error.contains("127.0.0.1 is a loopback address")
                || error.contains("::1 is a loopback address"),
            "{error}"
        );
    }
    assert!(calls.lock().unwrap().is_empty());
}

fn record() -> TxtRecord {
    TxtRecord::new("_acme-challenge.example.test", "value-1")
}

#[tokio::test]
async fn contract_is_httpreqs() {
    let (address, calls) = serve(200, "", None).await;
    let mut settings = settings(format!("http://{address}/dns/"));
    settings.credentials = Some(Credentials::Basic {
        user: "edge".to_owned(),
        password: Secret::new("pw".to_owned()),
    });
    let hook = Webhook::new(&settings).unwrap();
    let now = SystemTime::now();
    hook.present(&record(), now).await.unwrap();
    hook.remove(&record(), now).await.unwrap();
    let body = r#"{"fqdn":"_acme-challenge.example.test.","value":"value-1"}"#;
    assert_eq!(
        *calls.lock().unwrap(),
        [
            format!("POST /dns/present Basic ZWRnZTpwdw== {body}"),
            format!("POST /dns/cleanup Basic ZWRnZTpwdw== {body}"),
        ]
    );
}

#[tokio::test]
async fn trust_is_the_given_bundles() {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let private = PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], PrivateKeyDer::from(private))
        .unwrap();
    let tls = TlsAcceptor::from(Arc::new(config));
    let (address, calls) = serve(200, "", Some(tls)).await;
    let mut settings = settings(format!("https://localhost:{}", address.port()));
    settings.credentials = Some(Credentials::Bearer(Secret::new("token-9".to_owned())));
    let error = Webhook::new(&settings)
        .unwrap()
        .present(&record(), SystemTime::now())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("TLS handshake"), "{error}");
    assert!(calls.lock().unwrap().is_empty());
    settings.ca_bundle = Some(key.cert.pem());
    let hook = Webhook::new(&settings).unwrap();
    hook.present(&record(), SystemTime::now()).await.unwrap();
    assert!(calls.lock().unwrap()[0].starts_with("POST /present Bearer token-9 "));
}

#[tokio::test]
async fn failures_are_told_without_the_secret() {
    let (address, _) = serve(403, "no zone for token-9", None).await;
    let mut with_token = settings(format!("http://{address}"));
    with_token.credentials = Some(Credentials::Bearer(Secret::new("token-9".to_owned())));
    let error = Webhook::new(&with_token)
        .unwrap()
        .present(&record(), SystemTime::now())
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("call http://{address}/present: status 403: no zone for [redacted]")
    );
    assert_eq!(error.reason(), "DnsWebhookFailed");

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut slow = settings(format!("http://{}", silent.local_addr().unwrap()));
    slow.timeout = Duration::from_millis(200);
    let error = Webhook::new(&slow)
        .unwrap()
        .present(&record(), SystemTime::now())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("no answer within 0.2 s"),
        "{error}"
    );
}

#[test]
fn unsafe_addresses_are_refused() {
    let mut bare = settings("http://dns.example/hook".to_owned());
    assert!(Webhook::new(&bare).is_ok());
    bare.credentials = Some(Credentials::Bearer(Secret::new("t".to_owned())));
    for (url, what) in [
        ("http://dns.example/hook", "clear text"),
        ("https://user:pw@dns.example/", "user information"),
        ("ftp://dns.example/", "scheme"),
        ("dns.example", "no scheme"),
    ] {
        bare.url = url.to_owned();
        let error = Webhook::new(&bare).unwrap_err().to_string();
        assert!(
            error.contains(what) && !error.contains("pw@"),
            "{url}: {error}"
        );
    }
}
