//! Serves HTTP on one connection: codec by protocol, clocks, drain.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Version};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tidegate_model::{HostName, VirtualHost};

use crate::forwarded::{self, ClientAddress};
use crate::http as phases;
use crate::io::{ClientStream, ClockVerdict, ConnectionClock, FrameBudget, Transport};
use crate::listener::OpenConnection;
use crate::metrics::RouteMetrics;
use crate::tls::TlsFacts;
use crate::worker::Worker;

/// What is known of a connection before its first request.
#[derive(Debug)]
pub(crate) struct ConnectionFacts {
    /// The other end of the socket, or whom the PROXY protocol names.
    pub(crate) client: SocketAddr,
    /// Our end.
    pub(crate) local: SocketAddr,
    /// None on plain HTTP.
    pub(crate) tls: Option<TlsFacts>,
    /// Its place among the open connections.
    pub(crate) _open: OpenConnection,
}

/// The host of the last request: most connections ask for one host only.
pub(crate) struct CachedHost {
    pub(crate) revision: u64,
    pub(crate) resolved: Arc<ResolvedHost>,
}

/// A host name with what serves it.
pub(crate) struct ResolvedHost {
    pub(crate) name: HostName,
    /// Host or `:authority` as the client wrote it.
    pub(crate) raw: HeaderValue,
    /// None when no route has the name.
    pub(crate) serving: Option<(Arc<VirtualHost>, Arc<RouteMetrics>)>,
}

/// A connection while it is served.
pub(crate) struct Connection {
    pub(crate) worker: Arc<Worker>,
    pub(crate) facts: ConnectionFacts,
    pub(crate) clock: Arc<ConnectionClock>,
    /// Whether the client (after the PROXY protocol) may name another by headers.
    pub(crate) client_trusted: bool,
    client: ClientAddress,
    cached: Mutex<Option<CachedHost>>,
}

impl Connection {
    /// Who sent a request: the same for all of a connection unless a trusted proxy multiplexes clients.
    pub(crate) fn client_of(&self, headers: &HeaderMap) -> ClientAddress {
        if !self.client_trusted {
            return self.client.clone();
        }
        let trusted = &self.worker.shared.settings.trusted_proxies;
        ClientAddress::new(forwarded::client_ip(
            self.facts.client.ip(),
            headers,
            trusted,
        ))
    }

    /// The cached host, if raw text and revision still are the same.
    pub(crate) fn cached(&self, raw: &[u8], revision: u64) -> Option<Arc<ResolvedHost>> {
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = cached.as_ref()?;
        (cached.revision == revision && cached.resolved.raw.as_bytes() == raw)
            .then(|| Arc::clone(&cached.resolved))
    }

    pub(crate) fn remember(&self, cached: CachedHost) {
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) = Some(cached);
    }
}

/// Small writes of HTTP/2 are joined up to this; more only adds memory per stream.
const H2_SEND_BUFFER: usize = 256 * 1024;
const H2_STREAM_WINDOW: u32 = 256 * 1024;
/// Half of it is the codec's budget for small frames that wait for their reader, at nearly 256 bytes each.
/// A stream of 20-byte messages that fills its window in front of a slow backend needs 3 MiB of it; beyond
/// the budget the codec ends the connection.
const H2_CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

/// How long a connection may still send its first request after the edge began to drain: about what is on
/// its way at that moment.
pub(crate) const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(1);

/// Serves until the connection ends, the clocks say so, or the edge drains.
pub(crate) async fn serve(
    worker: Arc<Worker>,
    transport: Transport,
    version: Version,
    facts: ConnectionFacts,
) {
    let clock = ConnectionClock::new();
    let settings = &worker.shared.settings;
    let limits = settings.limits.clone();
    let timeouts = settings.timeouts.clone();
    let draining = worker.shared.draining.clone();
    let cut = worker.shared.cut.clone();
    let client_ip = facts.client.ip();
    let connection = Arc::new(Connection {
        client_trusted: forwarded::is_trusted(client_ip, &settings.trusted_proxies),
        client: ClientAddress::new(client_ip),
        worker,
        facts,
        clock: Arc::clone(&clock),
        cached: Mutex::new(None),
    });
    let service = service_fn({
        let connection = Arc::clone(&connection);
        move |request| {
            let connection = Arc::clone(&connection);
            async move { Ok::<_, Infallible>(phases::handle(connection, request).await) }
        }
    });

    /// The loop is the same for both codecs; their connection types share no trait.
    macro_rules! drive {
        ($conn:expr, $head:expr) => {{
            let mut conn = pin!($conn);
            let period = timeouts.request_head.min(timeouts.keep_alive_idle) / 2;
            let mut tick = pin!(tokio::time::sleep(timeouts.request_head));
            let mut draining = pin!(draining.cancelled());
            let mut leaving = false;
            loop {
                tokio::select! {
                    biased;
                    result = conn.as_mut() => break result,
                    () = tick.as_mut() => {
                        if leaving && clock.served() == 0 {
                            break Ok(());
                        }
                        match clock.verdict($head, timeouts.keep_alive_idle, timeouts.write_stall) {
                            ClockVerdict::Fine => {}
                            ClockVerdict::SlowHead | ClockVerdict::Stalled => break Ok(()),
                            ClockVerdict::Idle if leaving => break Ok(()),
                            ClockVerdict::Idle => {
                                leaving = true;
                                conn.as_mut().graceful_shutdown();
                            }
                        }
                        if !leaving
                            && (clock.age() >= timeouts.connection_age
                                || clock.served() >= limits.requests_per_connection)
                        {
                            leaving = true;
                            conn.as_mut().graceful_shutdown();
                        }
                        tick.as_mut().reset(tokio::time::Instant::now() + period);
                    }
                    () = draining.as_mut(), if !leaving => {
                        leaving = true;
                        clock.leave();
                        // hyper would close an HTTP/1 connection that has not asked anything yet,
                        // and its first request may be on its way.
                        if version == Version::HTTP_2 || clock.served() > 0 {
                            conn.as_mut().graceful_shutdown();
                        } else {
                            tick.as_mut().reset(tokio::time::Instant::now() + FIRST_REQUEST_GRACE);
                        }
                    }
                    () = cut.cancelled(), if leaving => break Ok(()),
                }
            }
        }};
    }

    let result = if version == Version::HTTP_2 {
        let frames = FrameBudget::new(limits.h2_control_frames);
        let io = TokioIo::new(ClientStream::new(
            transport,
            Arc::clone(&clock),
            Some(frames),
        ));
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.h2_streams)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_send_buf_size(H2_SEND_BUFFER)
            .keep_alive_interval(timeouts.keep_alive_idle)
            .keep_alive_timeout(timeouts.request_head)
            .enable_connect_protocol();
        drive!(builder.serve_connection(io, service), None)
    } else {
        let io = TokioIo::new(ClientStream::new(transport, Arc::clone(&clock), None));
        let mut builder = http1::Builder::new();
        builder
            // Heads have the connection's own clock, which tells a slow head from an idle connection.
            .header_read_timeout(None)
            .max_headers(limits.header_count)
            .max_header_size(limits.header_bytes + limits.uri_bytes)
            .max_buf_size(limits.header_bytes + limits.uri_bytes + 8192);
        let conn = builder.serve_connection(io, service).with_upgrades();
        drive!(conn, Some(timeouts.request_head))
    };
    if let Err(error) = result {
        let client = connection.facts.client;
        let error = tidegate_telemetry::chain(&error);
        tracing::debug!(%client, %error, "connection ended with an error");
    }
}
