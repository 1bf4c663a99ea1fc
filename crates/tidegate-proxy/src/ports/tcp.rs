//! Connections to a port: accepted, counted, and copied to and from a stream of the agent's link.
//!
//! The edge does not know what they carry. Whoever cannot be served is reset, so that nobody takes it for an answer.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Tally, Tenure, port_of};
use crate::ProxyProtocolMode;
use crate::access_log::{self, StreamLine};
use crate::io::{CountBytes, Counting, Socket};
use crate::listener::{self, OpenConnection, canonical};
use crate::upgrade::{self, Ended};
use crate::upstream::connect::ProxiedAddresses;
use crate::upstream::{self, Opened, SendOptions};
use crate::worker::Worker;

/// No byte for this long ends a connection: what RFC 5382 §5 asks of NATs, two hours and four minutes.
const IDLE: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
/// A quiet connection is asked after so long whether its client lives.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// How long a trusted proxy that need not send a PROXY header may take to begin one. Many protocols wait for the
/// server's first word.
const HEADER_BEGINS: Duration = Duration::from_secs(1);

/// Accepts until the port is taken away or the edge drains.
pub(super) async fn accept(
    worker: Arc<Worker>,
    listener: std::net::TcpListener,
    tenure: Arc<Tenure>,
) {
    let port = tenure.id;
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%port, %error, "listener lost");
            return;
        }
    };
    let draining = worker.shared.draining.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => begin(&worker, &tenure, tcp, peer),
                Err(error) => listener::accept_failed("port", &error).await,
            },
            () = tenure.closed.cancelled() => return,
            () = draining.cancelled() => break,
        }
    }
    listener::last_ones(&worker.shared, &listener, |tcp, peer| {
        begin(&worker, &tenure, tcp, peer);
    })
    .await;
}

fn begin(worker: &Arc<Worker>, tenure: &Arc<Tenure>, tcp: TcpStream, peer: SocketAddr) {
    let shared = &worker.shared;
    let peer = canonical(peer);
    match listener::admit(shared, "port", peer) {
        Ok((trusted, open)) => {
            let connection = Connection {
                worker: Arc::clone(worker),
                tenure: Arc::clone(tenure),
                _open: open,
            };
            shared.tasks.spawn(connection.run(tcp, peer, trusted));
        }
        Err(reason) => tenure.refused(reason),
    }
}

struct Connection {
    worker: Arc<Worker>,
    tenure: Arc<Tenure>,
    _open: OpenConnection,
}

/// How a connection ended, for the log: one word unless all was well, and what there is to say.
type End = (Option<&'static str>, Option<String>);

impl Connection {
    async fn run(self, mut tcp: TcpStream, peer: SocketAddr, trusted: bool) {
        let begun = Instant::now();
        let _inside = self.tenure.enter();
        // Failing to set an option is no reason to refuse the client.
        let _ = tcp.set_nodelay(true);
        let keep_alive = TcpKeepalive::new()
            .with_time(KEEP_ALIVE)
            .with_interval(KEEP_ALIVE / 4);
        let _ = SockRef::from(&tcp).set_tcp_keepalive(&keep_alive);
        let tally = Arc::new(Tally::default());
        let mut client = peer;
        let (reason, error) = match self.who(&mut tcp, peer, trusted).await {
            Ok((addresses, ahead)) => {
                client = addresses.client;
                self.pass(tcp, addresses, ahead, &tally).await
            }
            Err(error) => {
                self.tenure.refused("BadProxyHeader");
                reset(&tcp);
                (Some("BadProxyHeader"), Some(error.to_string()))
            }
        };
        access_log::emit_stream(
            &self.worker.shared.settings.access_log,
            &StreamLine {
                client: client.ip(),
                port: self.tenure.id,
                route: &self.tenure.route,
                received: tally.received.load(Ordering::Relaxed),
                sent: tally.sent.load(Ordering::Relaxed),
                duration: begun.elapsed(),
                reason,
                error: error.as_deref(),
            },
        );
    }

    /// The client and where it connected to, after a PROXY header of a trusted proxy; and what was read beyond that.
    async fn who(
        &self,
        tcp: &mut TcpStream,
        peer: SocketAddr,
        trusted: bool,
    ) -> io::Result<(ProxiedAddresses, Bytes)> {
        let settings = &self.worker.shared.settings;
        let direct = ProxiedAddresses {
            client: peer,
            local: canonical(tcp.local_addr()?),
        };
        let mode = settings.proxy_protocol;
        if !trusted || mode == ProxyProtocolMode::Off {
            return Ok((direct, Bytes::new()));
        }
        if mode == ProxyProtocolMode::Optional {
            let begins = tokio::time::timeout(HEADER_BEGINS, tcp.peek(&mut [0])).await;
            if begins.is_err() {
                return Ok((direct, Bytes::new()));
            }
        }
        let reading = listener::read_proxy_header(tcp, mode);
        let read = tokio::time::timeout(settings.timeouts.tls_handshake, reading).await;
        let (named, ahead) = read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let named = named.map(|(client, local)| ProxiedAddresses { client, local });
        Ok((named.unwrap_or(direct), ahead))
    }

    /// Copies both ways until the end.
    async fn pass(
        &self,
        tcp: TcpStream,
        addresses: ProxiedAddresses,
        ahead: Bytes,
        tally: &Arc<Tally>,
    ) -> End {
        let (worker, tenure) = (&self.worker, &self.tenure);
        let shared = &worker.shared;
        let port = match port_of(shared, tenure, addresses.client.ip()) {
            Ok(port) => port,
            Err(reason) => {
                tenure.refused(reason);
                reset(&tcp);
                return (Some(reason), None);
            }
        };
        let options = SendOptions {
            proxied: Some(addresses),
            ..SendOptions::default()
        };
        let opening = upstream::open(&worker.upstreams, &port.cluster, &options);
        let opened = tokio::select! {
            opened = opening => opened,
            () = tenure.cut.cancelled() => {
                reset(&tcp);
                return (Some("Cut"), None);
            }
        };
        let (stream, _active) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let reason = error.reason();
                shared.metrics.upstream_failed(reason);
                tenure.refused(reason);
                reset(&tcp);
                return (
                    Some(reason),
                    Some(tidegate_telemetry::chain(&error).to_string()),
                );
            }
        };
        let socket = Socket::new(tcp, ahead, shared.settings.timeouts.write_stall);
        let counts = OfClient {
            tenure: Arc::clone(tenure),
            tally: Arc::clone(tally),
        };
        let client = Counting::new(socket, counts);
        let cut = tenure.cut.clone();
        match copied(client, stream, cut).await {
            Ended::Closed => (None, None),
            Ended::Idle => (Some("Idle"), None),
            Ended::Cut => (Some("Cut"), None),
            Ended::Failed(error) => (Some("Broken"), Some(error)),
        }
    }
}

async fn copied(
    client: Counting<Socket, OfClient>,
    stream: Opened,
    cut: CancellationToken,
) -> Ended {
    match stream {
        Opened::Socket(stream) => upgrade::copy(client, stream, Some(IDLE), cut).await,
        Opened::Link(stream) => upgrade::copy(client, stream, Some(IDLE), cut).await,
    }
}

/// Lets the end of the connection be a reset, not an end of data.
fn reset(tcp: &TcpStream) {
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

/// Who counts what passes a client's side.
struct OfClient {
    tenure: Arc<Tenure>,
    tally: Arc<Tally>,
}

impl CountBytes for OfClient {
    fn read(&self, bytes: usize) {
        self.tally.received(&self.tenure, bytes);
    }

    fn written(&self, bytes: usize) {
        self.tally.sent(&self.tenure, bytes);
    }
}
