//! Accepts connections and brings each to its protocol: limits, PROXY protocol, TLS, then HTTP or
//! passthrough. Nothing slow happens in the accept loop itself.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Version;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::ProxyProtocolMode;
use crate::agents;
use crate::connection::{self, ConnectionFacts};
use crate::filters::concurrency::InFlightGuard;
use crate::forwarded;
use crate::io::{Socket, Transport};
use crate::peers::Began;
use crate::proxy_protocol::{self, Parsed};
use crate::tls::{self, Decision, TlsError};
use crate::worker::{Shared, Worker};
use crate::{passthrough, upstream};

/// The two kinds of listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListenerKind {
    Http,
    Https,
}

impl ListenerKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Pause after an error that the next accept would meet again (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the edge drains, then takes who still comes and closes the socket.
pub(crate) async fn accept(worker: Arc<Worker>, kind: ListenerKind, listener: StdListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(listener = kind.name(), %error, "listener lost");
            return;
        }
    };
    let draining = worker.shared.draining.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => begin(&worker, kind, tcp, peer),
                Err(error) => accept_failed(kind.name(), &error).await,
            },
            () = draining.cancelled() => break,
        }
    }
    last_ones(&worker.shared, &listener, |tcp, peer| {
        begin(&worker, kind, tcp, peer);
    })
    .await;
}

/// Takes who has come already. Connections that finished their TCP handshake would be reset by closing the socket, and
/// those who are still sent here refused. Under load new ones come for ever, and where another process has the socket
/// too they are its to take.
pub(crate) async fn last_ones(
    shared: &Shared,
    listener: &TcpListener,
    mut take: impl FnMut(TcpStream, SocketAddr),
) {
    let timeouts = &shared.settings.timeouts;
    let latest = Instant::now() + timeouts.accept_longest;
    while Instant::now() < latest
        && let until = latest.min(Instant::now() + timeouts.accept_quiet)
        && let Ok(Ok((tcp, peer))) = tokio::time::timeout_at(until, listener.accept()).await
    {
        take(tcp, peer);
    }
}

/// Says so, and waits where the next accept would fail as well.
pub(crate) async fn accept_failed(listener: &'static str, error: &io::Error) {
    if !is_about_one_connection(error) {
        tracing::warn!(listener, %error, "accept failed");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn begin(worker: &Arc<Worker>, kind: ListenerKind, tcp: TcpStream, peer: SocketAddr) {
    let shared = &worker.shared;
    let peer = canonical(peer);
    if let Ok((trusted, open)) = admit(shared, kind.name(), peer) {
        let worker = Arc::clone(worker);
        let tracker = shared.tasks.clone();
        tracker.spawn(run(worker, kind, tcp, peer, trusted, open));
    }
}

/// Counts a new connection; the error is why there may not be one more. Whether it comes from a trusted proxy is said
/// besides.
pub(crate) fn admit(
    shared: &Shared,
    listener: &'static str,
    peer: SocketAddr,
) -> Result<(bool, OpenConnection), &'static str> {
    shared.metrics.accepted(listener);
    let refused = |reason| {
        shared.metrics.connection_refused(reason);
        Err(reason)
    };
    let limits = &shared.settings.limits;
    let in_all = usize::try_from(shared.metrics.connections.get()).unwrap_or_default();
    if in_all >= limits.connections {
        return refused("TooManyConnections");
    }
    // Behind a trusted proxy all clients share its address; the limit is for direct clients.
    let trusted = forwarded::is_trusted(peer.ip(), &shared.settings.trusted_proxies);
    let place = if trusted {
        None
    } else {
        let limit = limits.connections_per_client;
        let Some(place) = shared.connections.try_enter("", peer.ip(), limit) else {
            return refused("TooManyConnectionsOfClient");
        };
        Some(place)
    };
    let open = OpenConnection::new(shared.metrics.connections.clone(), place);
    Ok((trusted, open))
}

/// Counts a connection for as long as its socket lives, which may be longer than HTTP on it: an upgraded
/// connection holds it too.
#[derive(Debug)]
pub(crate) struct OpenConnection {
    gauge: Gauge,
    _place: Option<InFlightGuard>,
}

impl OpenConnection {
    fn new(gauge: Gauge, place: Option<InFlightGuard>) -> Self {
        gauge.inc();
        Self {
            gauge,
            _place: place,
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// A connection that is ready for HTTP.
struct Ready {
    transport: Transport,
    version: Version,
    facts: ConnectionFacts,
}

async fn run(
    worker: Arc<Worker>,
    kind: ListenerKind,
    tcp: TcpStream,
    peer: SocketAddr,
    trusted: bool,
    open: OpenConnection,
) {
    // Boxed for itself: hello and handshake need room that a connection does not for the rest of its life.
    let ready = Box::pin(begin_protocol(&worker, kind, tcp, peer, trusted, open)).await;
    if let Some(Ready {
        transport,
        version,
        facts,
    }) = ready
    {
        connection::serve(worker, transport, version, facts).await;
    }
}

/// Brings a connection to HTTP. None when it ended before, or was passed through.
async fn begin_protocol(
    worker: &Arc<Worker>,
    kind: ListenerKind,
    mut tcp: TcpStream,
    peer: SocketAddr,
    trusted: bool,
    open: OpenConnection,
) -> Option<Ready> {
    // Failing to set an option is no reason to refuse the client.
    let _ = tcp.set_nodelay(true);
    let local = canonical(tcp.local_addr().ok()?);
    let deadline = Instant::now() + worker.shared.settings.timeouts.tls_handshake;
    let mode = worker.shared.settings.proxy_protocol;
    let (client, local, ahead) = if trusted && mode != ProxyProtocolMode::Off {
        let reading = read_proxy_header(&mut tcp, mode);
        match tokio::time::timeout_at(deadline, reading).await {
            // Where the client connected to is the balancer's address, not this listener's.
            Ok(Ok((Some((source, destination)), ahead))) => {
                worker.shared.peers.note(peer.ip(), Began::Proxied);
                (source, destination, ahead)
            }
            Ok(Ok((None, ahead))) => {
                // Nothing comes after the header of a health check that is the proxy's own.
                if !ahead.is_empty() {
                    worker.shared.peers.note(peer.ip(), Began::Unproxied);
                }
                (peer, local, ahead)
            }
            Ok(Err(error)) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    worker.shared.peers.note(peer.ip(), Began::Unproxied);
                }
                tracing::debug!(%peer, %error, "PROXY header refused");
                worker.shared.metrics.connection_refused("BadProxyHeader");
                return None;
            }
            Err(_) => {
                worker
                    .shared
                    .metrics
                    .connection_refused("ProxyHeaderTimeout");
                return None;
            }
        }
    } else {
        (peer, local, Bytes::new())
    };
    let facts = ConnectionFacts {
        client,
        local,
        tls: None,
        binding: None,
        _open: open,
    };
    // What a trusted proxy is asked for is told by header fields.
    let direct = !trusted;
    match kind {
        ListenerKind::Http => begin_plain(worker, tcp, ahead, facts, direct).await,
        ListenerKind::Https => {
            let limit = worker.shared.settings.timeouts.tls_handshake;
            begin_tls(worker, tcp, ahead, facts, direct, (deadline, limit))
                .await
                .unwrap_or_else(|error| {
                    worker.shared.metrics.tls_failed(error.reason());
                    let error = tidegate_telemetry::chain(&error);
                    tracing::debug!(%client, %error, "TLS connection failed");
                    None
                })
        }
    }
}

/// Waits for the first bytes of a connection; None when they do not come in time. Once the edge drains they
/// may still be on their way, but browsers also open connections that they never use.
async fn first_bytes<T>(
    worker: &Worker,
    limit: Duration,
    reading: impl Future<Output = T>,
) -> Option<T> {
    let leaving = async {
        worker.shared.draining.cancelled().await;
        tokio::time::sleep(worker.shared.settings.timeouts.request_grace).await;
    };
    tokio::select! {
        biased;
        read = tokio::time::timeout(limit, reading) => read.ok(),
        () = leaving => None,
    }
}

async fn begin_plain(
    worker: &Worker,
    mut tcp: TcpStream,
    ahead: Bytes,
    facts: ConnectionFacts,
    direct: bool,
) -> Option<Ready> {
    let limit = worker.shared.settings.timeouts.request_head;
    let sniffing = sniff_version(&mut tcp, ahead);
    let (version, ahead) = first_bytes(worker, limit, sniffing).await?.ok()?;
    let peers = &worker.shared.peers;
    if proxy_protocol::begins(&ahead) {
        peers.note(facts.client.ip(), Began::Unexpectedly);
    } else if direct {
        peers.note(facts.client.ip(), Began::Directly);
    }
    let stall = worker.shared.settings.timeouts.write_stall;
    Some(Ready {
        transport: Transport::Plain(Socket::new(tcp, ahead, stall)),
        version,
        facts,
    })
}

/// HTTP/2 with prior knowledge begins with a preface that is no HTTP/1 request (RFC 9113 §3.4).
async fn sniff_version(tcp: &mut TcpStream, ahead: Bytes) -> io::Result<(Version, Bytes)> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut read = BytesMut::from(&ahead[..]);
    loop {
        let n = read.len().min(PREFACE.len());
        if n > 0 && read[..n] != PREFACE[..n] {
            return Ok((Version::HTTP_11, read.freeze()));
        }
        if n == PREFACE.len() {
            return Ok((Version::HTTP_2, read.freeze()));
        }
        if tcp.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// None for what was passed through, and for authorities that only wanted to see a certificate.
async fn begin_tls(
    worker: &Arc<Worker>,
    mut tcp: TcpStream,
    ahead: Bytes,
    mut facts: ConnectionFacts,
    direct: bool,
    (deadline, limit): (Instant, Duration),
) -> Result<Option<Ready>, TlsError> {
    let shared = &worker.shared;
    let timed_out = |_| TlsError::Timeout(limit);
    let left = deadline.saturating_duration_since(Instant::now());
    let hello = first_bytes(worker, left, tls::read_hello(&mut tcp, ahead))
        .await
        .ok_or(TlsError::Timeout(limit))?
        .inspect_err(|error| {
            if matches!(error, TlsError::ProxyHeader) {
                shared.peers.note(facts.client.ip(), Began::Unexpectedly);
            }
        })?;
    if direct {
        shared.peers.note(facts.client.ip(), Began::Directly);
    }
    let published = shared.store.load_full();
    let decision = tls::decide(
        &shared.tls,
        &published.snapshot,
        &hello.accepted.client_hello(),
        facts.local.ip(),
    )?;
    drop(published);
    match decision {
        Decision::Passthrough(cluster) => {
            let proxied = upstream::connect::ProxiedAddresses {
                client: facts.client,
                local: facts.local,
            };
            passthrough::run(worker, tcp, hello.raw, &cluster, proxied).await;
            Ok(None)
        }
        Decision::Challenge(config) => {
            let handshake =
                tokio_rustls::StartHandshake::from_parts(hello.accepted, tcp).into_stream(config);
            let mut stream = tokio::time::timeout_at(deadline, handshake)
                .await
                .map_err(timed_out)?
                .map_err(TlsError::Handshake)?;
            // The authority has what it came for and may be gone already.
            let _ = tokio::time::timeout_at(deadline, stream.shutdown()).await;
            Ok(None)
        }
        Decision::Terminate {
            config,
            facts: pending,
        } => {
            let socket = Socket::new(tcp, Bytes::new(), shared.settings.timeouts.write_stall);
            let handshake = tokio_rustls::StartHandshake::from_parts(hello.accepted, socket)
                .into_stream(config);
            let stream = tokio::time::timeout_at(deadline, handshake)
                .await
                .map_err(timed_out)?
                .map_err(TlsError::Handshake)?;
            shared.metrics.handshakes.inc();
            let session = stream.get_ref().1;
            facts.binding = agents::binding(session);
            let version = match session.alpn_protocol() {
                Some(b"h2") => Version::HTTP_2,
                _ => Version::HTTP_11,
            };
            facts.tls = Some(pending.negotiated(session.protocol_version()));
            Ok(Some(Ready {
                transport: Transport::Tls(Box::new(stream)),
                version,
                facts,
            }))
        }
    }
}

/// Reads a PROXY header. Returns the client it names and where that connected to (None for health checks of the proxy itself and,
/// where the header is optional, when there is none) and what was read beyond it.
pub(crate) async fn read_proxy_header(
    tcp: &mut TcpStream,
    mode: ProxyProtocolMode,
) -> io::Result<(Option<(SocketAddr, SocketAddr)>, Bytes)> {
    let mut read = BytesMut::with_capacity(1024);
    loop {
        let parsed = proxy_protocol::parse(&read)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        match parsed {
            Parsed::Header {
                source,
                destination,
                len,
            } => {
                let rest = read.split_off(len).freeze();
                return Ok((Some((source, destination)), rest));
            }
            Parsed::Local { len } => return Ok((None, read.split_off(len).freeze())),
            Parsed::NotProxy if mode == ProxyProtocolMode::Optional => {
                return Ok((None, read.freeze()));
            }
            Parsed::NotProxy => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a PROXY header is required and none came",
                ));
            }
            Parsed::Incomplete => {}
        }
        if tcp.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
