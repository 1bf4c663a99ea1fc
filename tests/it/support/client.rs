//! An HTTPS client on hyper that trusts one edge, blocking at the surface.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A response, read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Status code.
    pub(crate) status: u16,
    /// Header fields.
    pub(crate) headers: HeaderMap,
    /// Trailer fields.
    pub(crate) trailers: Option<HeaderMap>,
    /// The body.
    pub(crate) body: Bytes,
}

impl Reply {
    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header field's value, or nothing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {} {}", self.status, self.text()))
    }
}

/// Connects anew for each request, so that each sees the newest configuration.
#[derive(Clone)]
pub(crate) struct Client {
    port: u16,
    config: ClientConfig,
}

impl Client {
    /// A client for the edge on this port that trusts this root.
    pub(crate) fn new(port: u16, ca_pem: &[u8]) -> Self {
        let roots = Self::roots(ca_pem);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { port, config }
    }

    /// The same with another TLS set-up, such as fewer versions or a client certificate.
    pub(crate) fn with_config(mut self, change: impl FnOnce(ClientConfig) -> ClientConfig) -> Self {
        self.config = change(self.config);
        self
    }

    /// Trust anchors from PEM.
    pub(crate) fn roots(ca_pem: &[u8]) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        for certificate in rustls::pki_types::CertificateDer::pem_slice_iter(ca_pem) {
            roots.add(certificate.unwrap()).unwrap();
        }
        roots
    }

    /// A TLS connection with this SNI and these protocols offered.
    pub(crate) async fn connect(
        &self,
        host: &str,
        alpn: &[&str],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config = self.config.clone();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    /// Sends over HTTP/1.1 and reads the whole answer.
    pub(crate) async fn send(
        &self,
        host: &str,
        request: Request<Full<Bytes>>,
    ) -> Result<Reply, String> {
        let stream = self
            .connect(host, &["http/1.1"])
            .await
            .map_err(|error| error.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let driver = tokio::spawn(connection);
        let reply = read(sender.send_request(request).await).await;
        driver.abort();
        reply
    }

    /// Sends over HTTP/2 and reads the whole answer.
    pub(crate) async fn send_h2(
        &self,
        host: &str,
        request: Request<Full<Bytes>>,
    ) -> Result<Reply, String> {
        let stream = self
            .connect(host, &["h2"])
            .await
            .map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(|error| error.to_string())?;
        let driver = tokio::spawn(connection);
        let reply = read(sender.send_request(request).await).await;
        driver.abort();
        reply
    }

    /// `GET`, or why there is no answer.
    pub(crate) fn try_get(&self, host: &str, path: &str) -> Result<Reply, String> {
        let request = Request::get(path)
            .header("host", format!("{host}:{}", self.port))
            .body(Full::default())
            .unwrap();
        block_on(self.send(host, request))
    }

    /// `GET`; panics without an answer.
    #[track_caller]
    pub(crate) fn get(&self, host: &str, path: &str) -> Reply {
        self.try_get(host, path)
            .unwrap_or_else(|error| panic!("GET {host}{path}: {error}"))
    }
}

async fn read(
    response: Result<http::Response<hyper::body::Incoming>, hyper::Error>,
) -> Result<Reply, String> {
    let (parts, body) = response.map_err(|error| format!("{error:?}"))?.into_parts();
    let collected = body.collect().await.map_err(|error| error.to_string())?;
    Ok(Reply {
        status: parts.status.as_u16(),
        headers: parts.headers,
        trailers: collected.trailers().cloned(),
        body: collected.to_bytes(),
    })
}

/// Runs to the end on a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}
