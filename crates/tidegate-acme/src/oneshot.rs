//! One HTTP/1.1 request on a connection of its own, to an address of the caller's choosing, with limits.
//!
//! The pre-flight asks each address of a name apart, and a DNS webhook is called twice a certificate:
//! neither wants a pool. Redirects and proxies are the caller's affair, bodies are cut at a limit.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use thiserror::Error;
use tidegate_model::Reach;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Why the host, as it is written, is nothing to connect to: names are judged when they are looked up, but
/// for the one that everybody knows.
pub(crate) fn refused(reach: &Reach, host: &str, port: u16) -> Option<String> {
    let ip = match host.trim_end_matches('.') {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        host => host.parse().ok(),
    }?;
    let special = reach.refuses(SocketAddr::new(ip, port))?;
    Some(format!("{host} is {special}"))
}

/// The addresses of a host that connections may lead to.
pub(crate) async fn addresses(
    reach: &Reach,
    host: &str,
    port: u16,
    timeout: Duration,
) -> Result<Vec<SocketAddr>, String> {
    let found = match tokio::time::timeout(timeout, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => found.take(8).collect(),
        Ok(Err(error)) => return Err(format!("find its address: {error}")),
        Err(_) => return Err("its address was not found in time".to_owned()),
    };
    match reach.sort_out(found) {
        (good, Some(refused)) if good.is_empty() => Err(format!(
            "the host leads where connections may not: {refused}"
        )),
        (good, _) => Ok(good),
    }
}

/// How a refused address is mended.
pub(crate) const ALLOW: &str =
    "name another host; whoever runs this edge can allow networks with --allow-addresses";

/// Which part of the exchange failed.
#[derive(Debug, Error)]
pub(crate) enum OneshotError {
    /// No connection.
    #[error("connect: {0}")]
    Connect(#[source] std::io::Error),
    /// No TLS.
    #[error("TLS handshake: {0}")]
    Tls(#[source] std::io::Error),
    /// No HTTP, or the connection broke.
    #[error("HTTP: {0}")]
    Http(#[source] hyper::Error),
    /// Not in time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
}

/// A whole answer, its body cut at the limit.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// How one request is made.
pub(crate) struct Call {
    /// Where to connect.
    pub(crate) address: SocketAddr,
    /// For https: the settings and the name to ask for.
    pub(crate) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// For everything together.
    pub(crate) timeout: Duration,
    /// Bytes of the answer's body that are kept.
    pub(crate) body_limit: usize,
}

/// Sends the request; its URI must be in origin form and it must carry `host`.
pub(crate) async fn send(call: Call, request: Request<Full<Bytes>>) -> Result<Reply, OneshotError> {
    let timeout = call.timeout;
    tokio::time::timeout(timeout, exchange(call, request))
        .await
        .unwrap_or(Err(OneshotError::Timeout(timeout)))
}

/// Makes the TLS handshake alone and returns the server's certificate.
pub(crate) async fn certificate(
    address: SocketAddr,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    timeout: Duration,
) -> Result<Option<CertificateDer<'static>>, OneshotError> {
    let handshake = async {
        let stream = TcpStream::connect(address)
            .await
            .map_err(OneshotError::Connect)?;
        let stream = TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(OneshotError::Tls)?;
        let (_, session) = stream.get_ref();
        let certificates = session.peer_certificates().unwrap_or_default();
        Ok(certificates.first().map(|c| c.clone().into_owned()))
    };
    tokio::time::timeout(timeout, handshake)
        .await
        .unwrap_or(Err(OneshotError::Timeout(timeout)))
}

async fn exchange(call: Call, request: Request<Full<Bytes>>) -> Result<Reply, OneshotError> {
    let stream = TcpStream::connect(call.address)
        .await
        .map_err(OneshotError::Connect)?;
    over(stream, call, request).await
}

/// The same on a connection that somebody made, such as one through a proxy; the call's address and its
/// time are the caller's affair.
pub(crate) async fn over(
    stream: TcpStream,
    call: Call,
    request: Request<Full<Bytes>>,
) -> Result<Reply, OneshotError> {
    match call.tls {
        None => talk(stream, request, call.body_limit).await,
        Some((config, name)) => {
            let stream = TlsConnector::from(config)
                .connect(name, stream)
                .await
                .map_err(OneshotError::Tls)?;
            talk(stream, request, call.body_limit).await
        }
    }
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
    body_limit: usize,
) -> Result<Reply, OneshotError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(OneshotError::Http)?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let reply = read(response, body_limit).await;
        drop(sender);
        reply
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    // The connection is driven here rather than in a task, so that the deadline ends both.
    tokio::select! {
        reply = &mut exchange => reply,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error),
        },
    }
    .map_err(OneshotError::Http)
}

async fn read(response: Response<hyper::body::Incoming>, limit: usize) -> hyper::Result<Reply> {
    let (parts, mut incoming) = response.into_parts();
    let mut body = Vec::new();
    while body.len() < limit
        && let Some(frame) = incoming.frame().await
    {
        if let Ok(data) = frame?.into_data() {
            let room = limit - body.len();
            body.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    Ok(Reply {
        status: parts.status,
        headers: parts.headers,
        body,
    })
}
