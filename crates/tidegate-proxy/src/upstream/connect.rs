//! Opens connections to backends: TCP, PROXY header, TLS, HTTP.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use http::{Request, Response};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tidegate_http1::{Connection, Quiet, Terms};
use tidegate_model::{AcceptAny, Cluster, Fingerprint, Target, UpstreamProtocol, UpstreamTls};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::body::Body;
use crate::error::{ExchangeError, ProxyError};
use crate::upstream::AnswerBody;
use crate::upstream::pool::StreamCount;

/// A connection to a backend before HTTP.
pub(crate) enum UpstreamStream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Quiet for UpstreamStream {
    fn is_quiet(&mut self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_quiet(),
            Self::Tls(tls) => tidegate_http1::waits(&mut **tls) && tls.get_mut().0.is_quiet(),
        }
    }
}

impl UpstreamStream {
    fn is_for_h2(&self, protocol: UpstreamProtocol) -> bool {
        match (protocol, self) {
            (UpstreamProtocol::Http2, _) => true,
            (UpstreamProtocol::Http1, _) | (UpstreamProtocol::Auto, Self::Plain(_)) => false,
            (UpstreamProtocol::Auto, Self::Tls(stream)) => {
                stream.get_ref().1.alpn_protocol() == Some(b"h2")
            }
        }
    }
}

/// Addresses written into a PROXY header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProxiedAddresses {
    pub(crate) client: SocketAddr,
    pub(crate) local: SocketAddr,
}

/// Connects, sends the PROXY header if the cluster wants one, does TLS if it wants that.
/// `http1_only` keeps HTTP/2 out of ALPN, for upgrades.
pub(crate) async fn transport(
    cluster: &Cluster,
    address: SocketAddr,
    proxied: Option<ProxiedAddresses>,
    http1_only: bool,
) -> Result<UpstreamStream, ProxyError> {
    let endpoint = || format!("{} ({address})", cluster.name);
    let connecting = async {
        let failed = |source| ProxyError::Connect {
            endpoint: endpoint(),
            source,
        };
        let mut tcp = TcpStream::connect(address).await.map_err(failed)?;
        // Small requests must not wait for acknowledgements.
        tcp.set_nodelay(true).map_err(failed)?;
        if let Some(version) = cluster.proxy_protocol {
            let header = crate::proxy_protocol::encode(
                version,
                proxied.map(|addresses| (addresses.client, addresses.local)),
            );
            tcp.write_all(&header).await.map_err(failed)?;
        }
        let Some(tls) = &cluster.tls else {
            return Ok(UpstreamStream::Plain(tcp));
        };
        let protocol = if http1_only {
            UpstreamProtocol::Http1
        } else {
            cluster.protocol
        };
        let config = client_config(tls, protocol).map_err(|source| ProxyError::UpstreamTls {
            endpoint: endpoint(),
            source,
        })?;
        let name = server_name(cluster, tls, address).map_err(failed)?;
        let stream = TlsConnector::from(config)
            .connect(name, tcp)
            .await
            .map_err(failed)?;
        Ok(UpstreamStream::Tls(Box::new(stream)))
    };
    tokio::time::timeout(cluster.connect_timeout, connecting)
        .await
        .unwrap_or_else(|_| {
            Err(ProxyError::ConnectTimeout {
                endpoint: endpoint(),
                limit: cluster.connect_timeout,
            })
        })
}

fn server_name(
    cluster: &Cluster,
    tls: &UpstreamTls,
    address: SocketAddr,
) -> io::Result<ServerName<'static>> {
    let name = match (&tls.server_name, &cluster.target) {
        (Some(name), _) => name.clone(),
        (None, Target::Host { host, .. }) => host.clone(),
        (None, Target::Addresses(_) | Target::Agent { .. }) => address.ip().to_string(),
    };
    ServerName::try_from(name).map_err(io::Error::other)
}

/// HTTP on a connection.
pub(crate) enum HttpConnection {
    H1(Box<Connection<UpstreamStream>>),
    H2 {
        sender: http2::SendRequest<Body>,
        /// Streams in use, of all requests of the worker.
        streams: Arc<AtomicUsize>,
    },
}

/// Half of the connection's window is the codec's budget for the overhead of small frames that wait for
/// their reader (256 bytes each). A slow client of a stream of small messages must not exhaust it: the
/// connection would end for all other clients too.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// Speaks HTTP on the connection; HTTP/2 has a driver, a task of this worker. `http1_only` as in [`transport`].
pub(crate) async fn http(
    cluster: &Cluster,
    address: SocketAddr,
    stream: UpstreamStream,
    http1_only: bool,
) -> Result<HttpConnection, ProxyError> {
    if http1_only || !stream.is_for_h2(cluster.protocol) {
        return Ok(HttpConnection::H1(Connection::new(stream)));
    }
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(tidegate_http1::MAX_HEAD).unwrap_or(u32::MAX))
        .keep_alive_interval(std::time::Duration::from_secs(30))
        .keep_alive_timeout(std::time::Duration::from_secs(15))
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|source| ProxyError::Handshake {
            endpoint: format!("{} ({address})", cluster.name),
            source,
        })?;
    tokio::spawn(quietly(connection));
    Ok(HttpConnection::H2 {
        sender,
        streams: Arc::default(),
    })
}

/// Drives a connection. Its errors reach whoever waits for a response; here they would be said twice.
async fn quietly(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        tracing::debug!(error = %tidegate_telemetry::chain(&error), "upstream connection ended");
    }
}

/// One request, in origin form and with a Host, on a connection of its own; for probes.
pub(crate) async fn exchange_once(
    cluster: &Cluster,
    stream: UpstreamStream,
    mut request: Request<Body>,
) -> Result<Response<AnswerBody>, ExchangeError> {
    let h2 = stream.is_for_h2(cluster.protocol);
    super::prepare(&mut request, h2, cluster);
    if h2 {
        let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(quietly(connection));
        let answer = sender.send_request(request).await?;
        let streams = Arc::default();
        Ok(answer.map(|incoming| AnswerBody::Http2 {
            incoming,
            _stream: StreamCount::begin(&streams),
        }))
    } else {
        // The probe has a clock of its own.
        let terms = Terms {
            first_byte: None,
            interim: None,
            home: None,
        };
        let connection = Connection::new(stream);
        let answer = connection.exchange(&mut request, terms).await;
        Ok(answer
            .map_err(|failed| failed.error)?
            .map(AnswerBody::Http1))
    }
}

type ConfigKey = (Option<Fingerprint>, bool, UpstreamProtocol);

static CONFIGS: LazyLock<Mutex<HashMap<ConfigKey, Arc<ClientConfig>>>> =
    LazyLock::new(|| Mutex::new(HashMap::new()));

/// The system's CAs, read once.
static SYSTEM_ROOTS: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "system CA not read");
    }
    roots.add_parsable_certificates(found.certs);
    Arc::new(roots)
});

fn client_config(
    tls: &UpstreamTls,
    protocol: UpstreamProtocol,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let key = (tls.roots_fingerprint, tls.insecure_skip_verify, protocol);
    let mut configs = CONFIGS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(config) = configs.get(&key) {
        return Ok(Arc::clone(config));
    }
    if configs.len() >= 256 {
        configs.clear();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let mut config = if tls.insecure_skip_verify {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAny::new(provider)))
            .with_no_client_auth()
    } else {
        let roots = tls
            .roots
            .clone()
            .unwrap_or_else(|| Arc::clone(&SYSTEM_ROOTS));
        builder.with_root_certificates(roots).with_no_client_auth()
    };
    config.alpn_protocols = match protocol {
        UpstreamProtocol::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        UpstreamProtocol::Http1 => vec![b"http/1.1".to_vec()],
        UpstreamProtocol::Http2 => vec![b"h2".to_vec()],
    };
    let config = Arc::new(config);
    configs.insert(key, Arc::clone(&config));
    Ok(config)
}

/// Says goodbye where TLS wants that (RFC 8446 §6.1), as far as it can be said without waiting: a backend
/// should not have to log every connection that was idle for too long.
impl Drop for UpstreamStream {
    fn drop(&mut self) {
        if let Self::Tls(tls) = self {
            let mut cx = Context::from_waker(Waker::noop());
            let _ = Pin::new(&mut **tls).poll_shutdown(&mut cx);
        }
    }
}

macro_rules! on_stream {
    ($self:ident, $io:ident => $body:expr) => {
        match $self.get_mut() {
            UpstreamStream::Plain($io) => $body,
            UpstreamStream::Tls($io) => $body,
        }
    };
}

impl AsyncRead for UpstreamStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_stream!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for UpstreamStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
