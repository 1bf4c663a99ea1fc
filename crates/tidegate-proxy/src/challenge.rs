//! Answers to ACME challenges: values of the snapshot, before everything that belongs to routes.
//!
//! The challenge path wins over redirects, authentication and rules; what is not asked for at this moment
//! falls through, so that a backend with an ACME client of its own still works.

use std::sync::Arc;

use http::{HeaderValue, Method, Response, header, request};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tidegate_model::{ChallengeAnswers, HostName};

use crate::body::Body;

/// RFC 8555 §8.3.
const HTTP01_PREFIX: &str = "/.well-known/acme-challenge/";
/// RFC 8737 §6.2.
const ACME_TLS: &[u8] = b"acme-tls/1";

/// The answer to http-01, if this request is for one.
pub(crate) fn http01(
    answers: &ChallengeAnswers,
    host: &HostName,
    parts: &request::Parts,
) -> Option<Response<Body>> {
    if answers.http01.is_empty() {
        return None;
    }
    let token = parts.uri.path().strip_prefix(HTTP01_PREFIX)?;
    let answer = answers.http01.get(host)?.get(token)?;
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return None;
    }
    let mut response = Response::new(Body::full(answer.as_bytes().to_vec()));
    let headers = response.headers_mut();
    let text = HeaderValue::from_static("application/octet-stream");
    headers.insert(header::CONTENT_TYPE, text);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(response)
}

/// Whether the client offers `acme-tls/1` and nothing else.
pub(crate) fn is_tls_alpn01(hello: &ClientHello<'_>) -> bool {
    let Some(mut offered) = hello.alpn() else {
        return false;
    };
    offered.next() == Some(ACME_TLS) && offered.next().is_none()
}

/// The configuration for one tls-alpn-01 handshake; None when nothing is asked for under that name.
pub(crate) fn tls_alpn01(
    answers: &ChallengeAnswers,
    name: &HostName,
) -> Option<Result<ServerConfig, rustls::Error>> {
    let answer = answers.tls_alpn01.get(name)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Some(builder.map(|builder| {
        let mut config = builder
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Single(Arc::clone(&answer.key))));
        config.alpn_protocols = vec![ACME_TLS.to_vec()];
        config
    }))
}

/// One certificate whatever is asked for. rustls checks certificates that are given to it directly and does
/// not know the critical extension of RFC 8737.
#[derive(Debug)]
pub(crate) struct Single(pub(crate) Arc<CertifiedKey>);

impl ResolvesServerCert for Single {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[test]
    fn only_what_is_asked_for_is_answered() {
        let host = HostName::parse("a.example").unwrap();
        let mut answers = ChallengeAnswers::default();
        let tokens = [("token".into(), "token.thumb".into())].into();
        answers.http01.insert(host, tokens);
        for (method, path, asked, expected) in [
            (
                "GET",
                "/.well-known/acme-challenge/token",
                "a.example",
                true,
            ),
            (
                "HEAD",
                "/.well-known/acme-challenge/token",
                "a.example",
                true,
            ),
            (
                "GET",
                "/.well-known/acme-challenge/token?x",
                "a.example",
                true,
            ),
            (
                "GET",
                "/.well-known/acme-challenge/other",
                "a.example",
                false,
            ),
            (
                "GET",
                "/.well-known/acme-challenge/token/",
                "a.example",
                false,
            ),
            ("GET", "/.well-known/acme-challenge/", "a.example", false),
            ("GET", "/token", "a.example", false),
            (
                "POST",
                "/.well-known/acme-challenge/token",
                "a.example",
                false,
            ),
            (
                "GET",
                "/.well-known/acme-challenge/token",
                "b.example",
                false,
            ),
        ] {
            let request = Request::builder().method(method).uri(path).body(());
            let (parts, ()) = request.unwrap().into_parts();
            let asked = HostName::parse(asked).unwrap();
            let answered = http01(&answers, &asked, &parts).is_some();
            assert_eq!(answered, expected, "{method} {asked}{path}");
        }
    }
}
