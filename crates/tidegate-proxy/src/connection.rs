//! Serves HTTP on one connection: what both protocols share, and HTTP/1. HTTP/2 is in `http2`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tidegate_model::{HostName, VirtualHost};

use crate::agents::{self, Binding};
use crate::body::ClientBody;
use crate::forwarded::{self, ClientAddress};
use crate::http as phases;
use crate::http2;
use crate::io::{Ahead, ClientStream, ClockVerdict, ConnectionClock, Transport};
use crate::listener::OpenConnection;
use crate::metrics::RouteMetrics;
use crate::odd_query::{OddQueries, RequestLines};
use crate::tls::TlsFacts;
use crate::upgrade::ClientUpgrade;
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
    /// On a connection of an agent, which is for nothing else: what its proof is bound to.
    pub(crate) binding: Option<Box<Binding>>,
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

/// What the clocks ask of a connection.
pub(crate) enum Asked {
    Nothing,
    /// To take no further requests.
    Leave,
    /// To end at once.
    Close,
}

impl Connection {
    /// Asks the clocks. `head` is None where heads have no clock of their own, see
    /// [`ConnectionClock::verdict`].
    pub(crate) fn judge(&self, head: Option<Duration>, leaving: bool) -> Asked {
        let settings = &self.worker.shared.settings;
        let timeouts = &settings.timeouts;
        let clock = &self.clock;
        match clock.verdict(head, timeouts.keep_alive_idle, timeouts.write_stall) {
            ClockVerdict::Fine => {}
            ClockVerdict::SlowHead | ClockVerdict::Stalled => return Asked::Close,
            ClockVerdict::Idle if leaving => return Asked::Close,
            ClockVerdict::Idle => return Asked::Leave,
        }
        if clock.age() >= timeouts.connection_age
            || clock.served() >= settings.limits.requests_per_connection
        {
            return Asked::Leave;
        }
        Asked::Nothing
    }
}

/// Serves until the connection ends, the clocks say so, or the edge drains.
pub(crate) async fn serve(
    worker: Arc<Worker>,
    transport: Transport,
    version: Version,
    facts: ConnectionFacts,
) {
    let client_ip = facts.client.ip();
    let connection = Arc::new(Connection {
        client_trusted: forwarded::is_trusted(client_ip, &worker.shared.settings.trusted_proxies),
        client: ClientAddress::new(client_ip),
        worker,
        facts,
        clock: ConnectionClock::new(),
        cached: Mutex::new(None),
    });
    // Boxed: most connections are idle most of the time, and one kind needs no room for the other.
    if version == Version::HTTP_2 {
        let served = Box::pin(http2::serve(Arc::clone(&connection), transport)).await;
        served.unwrap_or_else(|error| connection.ended_with(&error));
    } else {
        let served = Box::pin(serve_http1(Arc::clone(&connection), transport)).await;
        served.unwrap_or_else(|error| connection.ended_with(&error));
    }
}

impl Connection {
    fn ended_with(&self, error: &(dyn std::error::Error + 'static)) {
        let client = self.facts.client;
        let error = tidegate_telemetry::chain(error);
        tracing::debug!(%client, %error, "connection ended with an error");
    }
}

async fn serve_http1(
    connection: Arc<Connection>,
    transport: Transport,
) -> Result<(), hyper::Error> {
    let shared = &connection.worker.shared;
    let (limits, timeouts) = (&shared.settings.limits, &shared.settings.timeouts);
    let clock = &connection.clock;
    let odd_queries = Arc::new(OddQueries::default());
    let lines = RequestLines::new(Arc::clone(&odd_queries));
    let service = service_fn({
        let connection = Arc::clone(&connection);
        move |mut request: Request<Incoming>| {
            let connection = Arc::clone(&connection);
            if let Some(raw) = odd_queries.take(request.uri()) {
                request.extensions_mut().insert(raw);
            }
            let upgrade = request
                .headers()
                .contains_key(header::UPGRADE)
                .then(|| hyper::upgrade::on(&mut request));
            let link = agents::is_for_agents(&connection, &request, upgrade.is_some());
            let request = request.map(ClientBody::Http1);
            async move {
                let response = if link {
                    agents::answer(&connection, &request, upgrade)
                } else {
                    let upgrade = upgrade.map(ClientUpgrade::Http1);
                    phases::handle(connection, request, upgrade, None).await
                };
                Ok::<_, Infallible>(response)
            }
        }
    });
    let io = TokioIo::new(ClientStream::new(
        transport,
        Arc::clone(clock),
        Ahead::Http1(lines),
    ));
    let mut builder = http1::Builder::new();
    builder
        // Heads have the connection's own clock, which tells a slow head from an idle connection.
        .header_read_timeout(None)
        .max_headers(limits.header_count)
        .max_header_size(limits.header_bytes + limits.uri_bytes)
        .max_buf_size(limits.header_bytes + limits.uri_bytes + 8192);
    let mut conn = pin!(builder.serve_connection(io, service).with_upgrades());
    let period = timeouts.request_head.min(timeouts.keep_alive_idle) / 2;
    let mut tick = pin!(tokio::time::sleep(timeouts.request_head));
    let mut draining = pin!(shared.draining.cancelled());
    // To take no further request, at once or after the one that is expected.
    let mut leaving = false;
    let mut asked = false;
    if shared.draining.is_cancelled() {
        // Whoever comes this late is told by the first answer, which may be ready before the alarms are looked at.
        clock.leave();
    }
    loop {
        tokio::select! {
            biased;
            result = conn.as_mut() => return result,
            () = tick.as_mut() => {
                if leaving && clock.served() == 0 {
                    return Ok(());
                }
                if leaving && !asked {
                    asked = true;
                    conn.as_mut().graceful_shutdown();
                }
                match connection.judge(Some(timeouts.request_head), leaving) {
                    Asked::Nothing => {}
                    Asked::Leave if leaving => {}
                    Asked::Leave => {
                        leaving = true;
                        asked = true;
                        conn.as_mut().graceful_shutdown();
                    }
                    Asked::Close => return Ok(()),
                }
                tick.as_mut().reset(tokio::time::Instant::now() + period);
            }
            () = draining.as_mut(), if !leaving => {
                leaving = true;
                clock.leave();
                // hyper would close an idle connection at once, and a request may be on its way to us: the
                // next answer says `Connection: close` instead, if there is one soon.
                let grace = timeouts.request_grace;
                tick.as_mut().reset(tokio::time::Instant::now() + grace);
            }
            () = shared.cut.cancelled(), if leaving => return Ok(()),
        }
    }
}
