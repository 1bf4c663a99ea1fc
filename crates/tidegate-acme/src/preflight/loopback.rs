//! A challenge of our own: each address of a name is asked for an answer that only this edge knows.
//!
//! Asks as an authority would (RFC 8555 §8.3, RFC 8737 §3): the certificate it meets is not verified, and a
//! redirect is followed to https of the same host only. Nothing is sent but a name and a token made for this.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::Full;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use sha2::{Digest as _, Sha256};
use tidegate_model::HostName;
use x509_parser::prelude::FromDer as _;

use super::facts::LoopbackAnswer;
use crate::answers::Answer;
use crate::oneshot::{self, Call, OneshotError, Reply};

/// Bytes of an answer that are looked at; a key authorization has about 87.
const BODY_LIMIT: usize = 4096;

const MAX_REDIRECTS: usize = 3;

/// `id-pe-acmeIdentifier` (RFC 8737 §6.1).
const ACME_IDENTIFIER: &str = "1.3.6.1.5.5.7.1.31";

/// What the edge was told to answer before the probe began.
#[derive(Debug, Clone)]
pub struct OwnChallenge {
    /// Last part of the path; random.
    pub token: String,
    /// The answer; random, not an account's.
    pub key_authorization: String,
    /// Port for http-01: 80 but in tests.
    pub http_port: u16,
    /// Port for tls-alpn-01 and redirects to https: 443 but in tests.
    pub tls_port: u16,
    /// Time for one address.
    pub timeout: Duration,
}

impl OwnChallenge {
    /// Asks one address of the name by http-01.
    pub async fn http(&self, host: &HostName, address: IpAddr) -> LoopbackAnswer {
        let path = format!("/.well-known/acme-challenge/{}", self.token);
        let mut target = Target {
            https: false,
            path: path.clone(),
        };
        for _ in 0..=MAX_REDIRECTS {
            let reply = match self.get(host, address, &target).await {
                Ok(reply) => reply,
                Err(error) => return failure(&error),
            };
            if reply.status.is_redirection() {
                match redirected(&reply, host, &target) {
                    Ok(next) => target = next,
                    Err(answer) => return answer,
                }
                continue;
            }
            let body = String::from_utf8_lossy(&reply.body);
            if reply.status.is_success() && body.trim_end() == self.key_authorization {
                return LoopbackAnswer::Ours;
            }
            return LoopbackAnswer::Stranger(stranger(&reply));
        }
        LoopbackAnswer::Stranger("a server that redirects without end".to_owned())
    }

    async fn get(
        &self,
        host: &HostName,
        address: IpAddr,
        target: &Target,
    ) -> Result<Reply, OneshotError> {
        let invalid = |what: &str| {
            OneshotError::Connect(std::io::Error::new(std::io::ErrorKind::InvalidInput, what))
        };
        let request = Request::get(&target.path)
            .header(header::HOST, host.in_url())
            .header(header::USER_AGENT, "tidegate-preflight")
            .header(header::ACCEPT, "*/*")
            .body(Full::new(Bytes::new()))
            .map_err(|_| invalid("the redirect's path cannot be asked for"))?;
        let tls = if target.https {
            let name = ServerName::try_from(host.as_str().to_owned())
                .map_err(|_| invalid("no host name"))?;
            let config = config(&[b"http/1.1"]).ok_or_else(|| invalid("no TLS"))?;
            Some((config, name))
        } else {
            None
        };
        let port = if target.https {
            self.tls_port
        } else {
            self.http_port
        };
        let call = Call {
            address: SocketAddr::new(address, port),
            tls,
            timeout: self.timeout,
            body_limit: BODY_LIMIT,
        };
        oneshot::send(call, request).await
    }

    /// Asks one address of the name by tls-alpn-01.
    pub async fn tls_alpn(&self, host: &HostName, address: IpAddr) -> LoopbackAnswer {
        let digest = Sha256::digest(self.key_authorization.as_bytes()).into();
        let address = SocketAddr::new(address, self.tls_port);
        tls_alpn(host, address, &digest, self.timeout).await
    }
}

/// Asks this address for an answer as the authority will ask for it.
pub async fn ask(answer: &Answer, address: SocketAddr, timeout: Duration) -> LoopbackAnswer {
    match answer {
        Answer::Http01 {
            host,
            token,
            key_authorization,
        } => {
            let challenge = OwnChallenge {
                token: token.clone(),
                key_authorization: key_authorization.clone(),
                http_port: address.port(),
                // A redirect would be a wrong answer.
                tls_port: 0,
                timeout,
            };
            challenge.http(host, address.ip()).await
        }
        Answer::TlsAlpn01 { host, digest } => tls_alpn(host, address, digest, timeout).await,
    }
}

async fn tls_alpn(
    host: &HostName,
    address: SocketAddr,
    digest: &[u8; 32],
    timeout: Duration,
) -> LoopbackAnswer {
    let (Ok(name), Some(config)) = (ServerName::try_from(sni(host)), config(&[b"acme-tls/1"]))
    else {
        return LoopbackAnswer::Silent("the name cannot be asked for by TLS".to_owned());
    };
    match oneshot::certificate(address, config, name, timeout).await {
        Ok(Some(certificate)) if is_answer(&certificate, digest) => LoopbackAnswer::Ours,
        Ok(Some(_)) => {
            LoopbackAnswer::Stranger("a server without our challenge certificate".to_owned())
        }
        Ok(None) => LoopbackAnswer::Stranger("a server without certificate".to_owned()),
        // Who refuses the protocol is there and is not us.
        Err(OneshotError::Tls(_)) => {
            LoopbackAnswer::Stranger("a server without acme-tls/1".to_owned())
        }
        Err(error) => failure(&error),
    }
}

/// The extension holds the hash of the key authorization as an OCTET STRING (RFC 8737 §3).
fn is_answer(certificate: &[u8], digest: &[u8; 32]) -> bool {
    let Ok((_, certificate)) = x509_parser::certificate::X509Certificate::from_der(certificate)
    else {
        return false;
    };
    let mut wanted = vec![0x04, 0x20];
    wanted.extend_from_slice(digest);
    certificate
        .extensions()
        .iter()
        .any(|e| e.oid.to_id_string() == ACME_IDENTIFIER && e.value == wanted)
}

struct Target {
    https: bool,
    path: String,
}

/// For an address the name of its reverse zone (RFC 8738 §6).
fn sni(host: &HostName) -> String {
    match host.ip() {
        None => host.to_string(),
        Some(IpAddr::V4(ip)) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        Some(IpAddr::V6(ip)) => {
            let digits: Vec<String> = format!("{:032x}", ip.to_bits())
                .chars()
                .rev()
                .map(String::from)
                .collect();
            format!("{}.ip6.arpa", digits.join("."))
        }
    }
}

fn redirected(reply: &Reply, host: &HostName, from: &Target) -> Result<Target, LoopbackAnswer> {
    let location = reply
        .headers
        .get(header::LOCATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let elsewhere = || {
        let shown: String = location.chars().take(120).collect();
        LoopbackAnswer::Stranger(format!("a server that redirects to {shown:?}"))
    };
    let uri: Uri = location.parse().map_err(|_| elsewhere())?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    match (uri.scheme_str(), uri.host()) {
        (None, None) if path.starts_with('/') => Ok(Target {
            https: from.https,
            path,
        }),
        (Some(scheme @ ("http" | "https")), Some(to))
            if HostName::parse(to).is_ok_and(|to| to == *host) =>
        {
            Ok(Target {
                https: scheme == "https",
                path,
            })
        }
        _ => Err(elsewhere()),
    }
}

fn stranger(reply: &Reply) -> String {
    let server = reply
        .headers
        .get(header::SERVER)
        .and_then(|value| value.to_str().ok())
        .map(|value| value.chars().take(60).collect::<String>());
    let status = reply.status.as_u16();
    match server {
        Some(server) => format!("server {server:?} with status {status}"),
        None => format!("a server with status {status}"),
    }
}

fn failure(error: &OneshotError) -> LoopbackAnswer {
    match error {
        OneshotError::Connect(io) if io.kind() == std::io::ErrorKind::ConnectionRefused => {
            LoopbackAnswer::Refused
        }
        OneshotError::Connect(_) | OneshotError::Timeout(_) => {
            LoopbackAnswer::Silent(error.to_string())
        }
        OneshotError::Tls(_) | OneshotError::Http(_) => {
            LoopbackAnswer::Stranger(format!("a server that fails ({error})"))
        }
    }
}

fn config(protocols: &[&[u8]]) -> Option<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let schemes = provider
        .signature_verification_algorithms
        .supported_schemes();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(schemes)))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    Some(Arc::new(config))
}

/// Takes every certificate, as an authority does when it validates: before the first certificate there is
/// none to trust, and what proves the edge is the token. Nothing confidential is sent on such a connection.
#[derive(Debug)]
struct AnyCertificate(Vec<SignatureScheme>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    // The helpers of rustls refuse the challenge certificate for its critical extension.
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
