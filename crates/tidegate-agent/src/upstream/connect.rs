//! Connections to a mapping's target: TCP, PROXY header, TLS.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use socket2::{SockRef, TcpKeepalive};
use tidegate_model::{AgentTarget, AgentTls, UpstreamProtocol};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Upstream;
use super::failure::{Failure, Reason};
use super::proxy_header::{self, Carried, Visitor};
use crate::config::target_rule;
use crate::dial::tcp;
use crate::stream::Stream;
use crate::trust;

/// A quiet connection is asked after so long whether its other end lives.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// How TLS is done with a target.
#[derive(Debug)]
pub(super) struct TlsSetup {
    name: ServerName<'static>,
    /// For requests.
    usual: Arc<ClientConfig>,
    /// For connections that will be upgraded.
    http1: Arc<ClientConfig>,
}

impl TlsSetup {
    pub(super) fn new(
        target: &AgentTarget,
        tls: &AgentTls,
        protocol: UpstreamProtocol,
    ) -> Result<Self, String> {
        let name = tls
            .server_name
            .clone()
            .unwrap_or_else(|| target.host().as_str().to_owned());
        let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
        let both: &[&[u8]] = match protocol {
            UpstreamProtocol::Auto => &[b"h2", b"http/1.1"],
            UpstreamProtocol::Http1 => &[b"http/1.1"],
            UpstreamProtocol::Http2 => &[b"h2"],
        };
        let config = |protocols| -> Result<Arc<ClientConfig>, String> {
            let config = if tls.insecure_skip_verify {
                trust::unverified(protocols)
            } else {
                trust::client(&roots(tls)?, protocols)
            };
            config.map(Arc::new).map_err(|error| error.to_string())
        };
        Ok(Self {
            name,
            usual: config(both)?,
            http1: config(&[b"http/1.1"])?,
        })
    }
}

fn roots(tls: &AgentTls) -> Result<Arc<RootCertStore>, String> {
    if tls.ca_der.is_empty() {
        return Ok(trust::system_roots());
    }
    let mut roots = RootCertStore::empty();
    for der in &tls.ca_der {
        roots
            .add(CertificateDer::from(der.clone()))
            .map_err(|error| format!("an authority of the mapping is no certificate: {error}"))?;
    }
    Ok(Arc::new(roots))
}

/// For what a connection is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// Requests.
    Requests,
    /// One upgrade of HTTP/1.1, or a request that only HTTP/1.1 can carry.
    Http1,
    /// Bytes.
    Bytes,
}

impl Upstream {
    /// Opens a connection within the mapping's time.
    pub(super) async fn open(
        &self,
        visitor: Option<Visitor>,
        purpose: For,
    ) -> Result<Stream, Failure> {
        let limit = self.connect_timeout;
        timeout(limit, self.open_unbounded(visitor, purpose))
            .await
            .unwrap_or_else(|_| {
                let (target, seconds) = (&self.target, limit.as_secs_f32());
                let message = format!("{target} does not answer within {seconds} s");
                Err(Failure::new(Reason::ConnectTimeout, message))
            })
    }

    async fn open_unbounded(
        &self,
        visitor: Option<Visitor>,
        purpose: For,
    ) -> Result<Stream, Failure> {
        let (host, port) = (self.target.host().as_str(), self.target.port());
        let allowed = |address| target_rule::allows(&self.allow, &self.target, address);
        let mut tcp = tcp::connect(host, port, allowed).await.map_err(|error| {
            let failure = Failure::from(error);
            Failure::new(
                failure.reason,
                format!("{}: {}", self.target, failure.message),
            )
        })?;
        let failed = |error: io::Error| {
            Failure::new(Reason::ConnectFailed, format!("{}: {error}", self.target))
        };
        prepare(&tcp).map_err(failed)?;
        if let Some(version) = self.proxy_protocol {
            let header = proxy_header::encode(version, Carried::Stream, visitor);
            tcp.write_all(&header).await.map_err(failed)?;
        }
        let Some(tls) = &self.tls else {
            return Ok(Stream::Plain(tcp));
        };
        let config = match purpose {
            For::Requests | For::Bytes => &tls.usual,
            For::Http1 => &tls.http1,
        };
        let stream = TlsConnector::from(Arc::clone(config))
            .connect(tls.name.clone(), tcp)
            .await;
        let stream = stream.map_err(|error| {
            Failure::new(
                Reason::TlsFailed,
                format!("do TLS with {}: {error}", self.target),
            )
        })?;
        Ok(Stream::Tls(Box::new(stream)))
    }

    /// Whether HTTP/2 is spoken on the connection.
    pub(super) fn is_http2(&self, stream: &Stream) -> bool {
        match self.protocol {
            UpstreamProtocol::Http2 => true,
            UpstreamProtocol::Http1 => false,
            UpstreamProtocol::Auto => stream.protocol() == Some(b"h2"),
        }
    }
}

fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let keep_alive = TcpKeepalive::new()
        .with_time(KEEP_ALIVE)
        .with_interval(KEEP_ALIVE / 4);
    SockRef::from(tcp).set_tcp_keepalive(&keep_alive)
}
