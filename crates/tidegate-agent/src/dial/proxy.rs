//! Through a proxy: HTTP CONNECT (RFC 9110 §9.3.6) to one that speaks HTTP or HTTPS, or SOCKS5 (RFC 1928).
//!
//! The proxy resolves the edge's name; where a proxy is needed the agent's own network often cannot.

use std::future::{Ready, ready};
use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::client::legacy::connect::proxy::SocksV5;
use hyper_util::client::proxy::matcher::Intercept;
use hyper_util::rt::TokioIo;
use tidegate_tunnel::settings;
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::tcp::{self, TcpError};
use crate::config::Edge;
use crate::stream::Stream;
use crate::trust::Trust;

/// Why a proxy does not lead to the edge.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The proxy itself cannot be reached.
    #[error("reach the proxy {0}")]
    Reach(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// TLS to the proxy itself.
    #[error("do TLS with the proxy {0}")]
    Tls(String, #[source] io::Error),
    /// It wants a password, or another one.
    #[error("the proxy {0} wants a user name and password, or others")]
    Login(String),
    /// It answers CONNECT with something else than success.
    #[error("the proxy {0} answers CONNECT with status {1}")]
    Status(String, StatusCode),
    /// It does not speak as a proxy does.
    #[error("speak HTTP with the proxy {0}")]
    Http(String, #[source] hyper::Error),
    /// It speaks SOCKS5 and refuses.
    #[error("the proxy {0} says: {1}")]
    Socks(String, String),
}

/// Opens the way to the edge through the proxy.
pub(super) async fn connect(
    proxy: &Intercept,
    edge: &Edge,
    trust: &Trust,
) -> Result<Stream, ProxyError> {
    let uri = proxy.uri();
    let name = shown(uri);
    let scheme = uri.scheme_str().unwrap_or("http");
    let host = uri.host().unwrap_or_default();
    let usual = match scheme {
        "https" => 443,
        "http" => 80,
        _ => 1080,
    };
    let port = uri.port_u16().unwrap_or(usual);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let reached = tcp::connect(bare, port, |_| true).await;
    let tcp = reached.map_err(|error: TcpError| ProxyError::Reach(name.clone(), error.into()))?;
    let failed = |error| ProxyError::Tls(name.clone(), error);
    settings::tune(&tcp).map_err(failed)?;
    let transport = if scheme == "https" {
        let server = rustls_pki_types::ServerName::try_from(bare.to_owned());
        let server = server.map_err(|error| failed(io::Error::other(error)))?;
        let tls = TlsConnector::from(trust.for_proxy())
            .connect(server, tcp)
            .await;
        Stream::Tls(Box::new(tls.map_err(failed)?))
    } else {
        Stream::Plain(tcp)
    };
    if scheme.starts_with("socks5") {
        socks(transport, proxy, edge, name).await
    } else {
        tunnel(transport, proxy, edge, name).await
    }
}

/// A proxy for people, without its password.
pub(crate) fn shown(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or("http");
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    format!("{scheme}://{authority}")
}

async fn tunnel(
    transport: Stream,
    proxy: &Intercept,
    edge: &Edge,
    name: String,
) -> Result<Stream, ProxyError> {
    let failed = |error| ProxyError::Http(name.clone(), error);
    let (mut sender, connection) = http1::handshake(TokioIo::new(transport))
        .await
        .map_err(failed)?;
    let connection = tokio::spawn(connection.with_upgrades());
    let authority = format!("{}:{}", edge.host.in_url(), edge.port);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = http::Method::CONNECT;
    // A host that was checked and a port are always an authority.
    *request.uri_mut() = authority.parse().unwrap_or_default();
    let headers = request.headers_mut();
    if let Ok(host) = authority.parse() {
        headers.insert(header::HOST, host);
    }
    if let Some(login) = proxy.basic_auth() {
        headers.insert(header::PROXY_AUTHORIZATION, login.clone());
    }
    let response = sender.send_request(request).await.map_err(failed)?;
    match response.status() {
        status if status.is_success() => {}
        // Some say 401 to a wrong password, such as tinyproxy.
        StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::UNAUTHORIZED => {
            connection.abort();
            return Err(ProxyError::Login(name));
        }
        status => {
            connection.abort();
            return Err(ProxyError::Status(name, status));
        }
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(failed)?;
    match upgraded.downcast::<TokioIo<Stream>>() {
        // TLS begins with the client: an edge that speaks first is none.
        Ok(parts) if parts.read_buf.is_empty() => Ok(parts.io.into_inner()),
        _ => Err(ProxyError::Status(name, StatusCode::BAD_GATEWAY)),
    }
}

async fn socks(
    transport: Stream,
    proxy: &Intercept,
    edge: &Edge,
    name: String,
) -> Result<Stream, ProxyError> {
    let destination = format!("https://{}:{}/", edge.host.in_url(), edge.port);
    let destination: Uri = destination.parse().unwrap_or_default();
    let mut socks = SocksV5::new(proxy.uri().clone(), Opened(Some(TokioIo::new(transport))));
    if let Some((user, password)) = proxy.raw_auth() {
        socks = socks.with_auth(user.to_owned(), password.to_owned());
    }
    let answer = socks.call(destination).await;
    let stream = answer.map_err(|error| ProxyError::Socks(name, format!("{error:?}")))?;
    Ok(stream.into_inner())
}

/// The connection to the proxy, for hyper-util's client of SOCKS, which wants to ask for it.
struct Opened(Option<TokioIo<Stream>>);

impl Service<Uri> for Opened {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Ready<io::Result<TokioIo<Stream>>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _proxy: Uri) -> Self::Future {
        ready(
            self.0
                .take()
                .ok_or_else(|| io::ErrorKind::NotConnected.into()),
        )
    }
}
