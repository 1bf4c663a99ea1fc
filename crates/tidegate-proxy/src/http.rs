//! One request from head to access log. [`handle`] reads as the list of phases; each phase either lets
//! the request on or stops it with an answer.

use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http::{header, request};
use tidegate_model::{HostName, PlainHttp, Published, TlsMode, VirtualHost};

use crate::body::{Body, ClientBody};
use crate::connection::{CachedHost, Connection, ResolvedHost};
use crate::exchange::{EarlyHints, RequestGuard, ResponseBody};
use crate::forward::Routed;
use crate::normalize::{self, Authority, Refusal};
use crate::odd_query::{self, RawQuery};
use crate::router::Candidates;
use crate::stop::{PageWish, Stop, close_after, empty, stopped};
use crate::upgrade::ClientUpgrade;
use crate::{challenge, forwarded, path, redirect, rewrite, router};

/// Answers one request. `upgrade` is there where the client may ask for one, `hints` where it can be told
/// what the backend says before its response.
pub(crate) async fn handle(
    connection: Arc<Connection>,
    request: Request<ClientBody>,
    upgrade: Option<ClientUpgrade>,
    hints: Option<EarlyHints>,
) -> Response<ResponseBody> {
    let mut guard = RequestGuard::begin(&connection, &request, hints);
    let page = PageWish::of(&request);
    let mut response = match serve(&connection, request, upgrade, &page, &mut guard).await {
        Ok(response) => response,
        Err(stop) => stopped(stop, &page, &mut guard),
    };
    if guard.is_last_of_connection() {
        close_after(&mut response, page.version);
    }
    guard.answered(response.status());
    response.map(|body| ResponseBody::new(body, guard))
}

/// The phases up to the host. What they learn for the access log goes into the guard.
async fn serve(
    connection: &Arc<Connection>,
    request: Request<ClientBody>,
    client_upgrade: Option<ClientUpgrade>,
    page: &PageWish,
    guard: &mut RequestGuard,
) -> Result<Response<Body>, Stop> {
    let shared = &connection.worker.shared;
    let (parts, incoming) = request.into_parts();
    // Boxed: it is handed from phase to phase, and each would keep room for it.
    let mut parts = Box::new(parts);
    let odd = parts.extensions.get::<RawQuery>().map(RawQuery::escaped);
    if let Some(escaped) = odd {
        parts.uri = odd_query::with_query(&parts.uri, &escaped).ok_or(BAD_TARGET)?;
    }

    // Snapshot and host: who is asked for, and whether this connection may ask for it. What serves the
    // host is kept for the whole request.
    let host = {
        let published = shared.store.load();
        let host = resolve_host(connection, &published, normalize::authority(&parts)?)?;
        let challenges = &published.snapshot.challenges;
        if let Some(answer) = challenge::http01(challenges, &host.name, &parts) {
            guard.host(&host.name);
            return Ok(answer);
        }
        host
    };
    guard.host(&host.name);
    let Some((virtual_host, metrics)) = &host.serving else {
        return Err(not_served(connection, &host.name));
    };
    guard.route(&virtual_host.route, metrics);
    let secure = is_secure(connection, virtual_host, &parts.headers);
    match &connection.facts.tls {
        Some(tls) if !tls.may_serve(&host.name, virtual_host) => return Err(MISDIRECTED.into()),
        Some(_) => {}
        // Some rules may answer here by themselves: which one is asked decides.
        None if secure || !virtual_host.plain.is_empty() => {}
        None => {
            if let Some(answer) = instead(connection, &host.name, virtual_host, &mut parts)? {
                return Ok(answer);
            }
        }
    }

    let hsts = virtual_host.hsts.clone().filter(|_| secure);
    let message = (parts, incoming, client_upgrade);
    let host = (&*host, &**virtual_host, secure);
    let served = serve_host(connection, host, message, page, guard).await;
    let mut response = served.unwrap_or_else(|stop| stopped(stop, page, guard));
    if let Some(hsts) = hsts {
        // On error pages too: it is about the host, not about the answer (RFC 6797 §7.2).
        response
            .headers_mut()
            .insert(header::STRICT_TRANSPORT_SECURITY, hsts);
    }
    Ok(response)
}

/// The phases of a request whose host is known.
async fn serve_host(
    connection: &Arc<Connection>,
    (host, virtual_host, secure): (&ResolvedHost, &VirtualHost, bool),
    (mut parts, incoming, client_upgrade): (Box<request::Parts>, ClientBody, Option<ClientUpgrade>),
    page: &PageWish,
    guard: &mut RequestGuard,
) -> Result<Response<Body>, Stop> {
    // Normalise: from here on router, filters and backend read one message.
    let limits = &connection.worker.shared.settings.limits;
    let limits = (limits.header_bytes, limits.header_count, limits.uri_bytes);
    let normalized = normalize::request(&mut parts, limits)?;

    // Route.
    let plain = if secure {
        None
    } else {
        virtual_host.plain_rules(connection.facts.local.port())
    };
    let among = plain.map_or_else(|| Candidates::from(virtual_host), Candidates::from);
    let entry = {
        let choose = |parts: &request::Parts| {
            let canonical = path::canonical(parts.uri.path());
            router::choose(among, &canonical, parts)
        };
        let entry = choose(&parts)?;
        let wants_raw = entry.is_some_and(|entry| entry.rule.tracker.is_some());
        if !wants_raw && odd_query_is_strict(&mut parts)? {
            choose(&parts)?
        } else {
            entry
        }
    };
    // Over plain HTTP a rule answers by itself, or what the host says of plain HTTP holds.
    let answers = match (plain, entry) {
        (Some(_), Some(entry)) => entry.rule.plain,
        (Some(_), None) => virtual_host.entries.is_empty(),
        (None, _) => secure || virtual_host.plain.is_empty(),
    };
    if !answers && let Some(answer) = instead(connection, &host.name, virtual_host, &mut parts)? {
        return Ok(answer);
    }
    let Some(entry) = entry else {
        return Err(Stop::page(StatusCode::NOT_FOUND, "NoRule"));
    };
    guard.rule(&entry.rule);
    if entry.rule.tracker.is_some() {
        let target = parts.uri.path_and_query();
        guard.tracker(
            &entry.rule,
            &parts.method,
            target.map_or("/", PathAndQuery::as_str),
        );
    }

    // Client address.
    let client = connection.client_of(&parts.headers);
    guard.client(client.ip());

    // Filters, upstream, answer.
    let mut routed = Routed::new(
        connection,
        guard,
        host,
        &entry.rule,
        client,
        normalized,
        client_upgrade,
    );
    Ok(routed.answer(parts, incoming, page).await)
}

/// Only trackers get bytes that no query may hold. Returns whether there were some and the query is now
/// another one.
fn odd_query_is_strict(parts: &mut request::Parts) -> Result<bool, Refusal> {
    let Some(raw) = parts.extensions.remove::<RawQuery>() else {
        return Ok(false);
    };
    parts.uri = odd_query::with_query(&parts.uri, raw.strict()?).ok_or(BAD_TARGET)?;
    Ok(true)
}

const BAD_TARGET: Refusal =
    Refusal::bad_request("InvalidTarget", "the request target cannot be read as one");

/// Whether the client came by HTTPS: to this edge, or to something in front that ended TLS and may say so. That cannot
/// have asked for the certificate that a host wants of its clients.
fn is_secure(connection: &Connection, host: &VirtualHost, headers: &HeaderMap) -> bool {
    connection.facts.tls.is_some()
        || (connection.client_trusted
            && matches!(host.tls, TlsMode::Terminate(_))
            && !wants_certificates(host)
            && forwarded::says_https(headers))
}

fn wants_certificates(host: &VirtualHost) -> bool {
    matches!(&host.tls, TlsMode::Terminate(policy) if policy.client_auth.is_some())
}

/// What a request over plain HTTP gets in place of the host's rules, if so.
fn instead(
    connection: &Connection,
    name: &HostName,
    host: &VirtualHost,
    parts: &mut request::Parts,
) -> Result<Option<Response<Body>>, Stop> {
    match (&host.plain_http, connection.worker.shared.https_port) {
        (PlainHttp::Serve, _) => Ok(None),
        (PlainHttp::Redirect(_), None) if !wants_certificates(host) => Ok(None),
        (PlainHttp::Refuse, _) | (PlainHttp::Redirect(_), None) => {
            Err(Stop::page(StatusCode::NOT_FOUND, "PlainHttpRefused"))
        }
        (PlainHttp::Redirect(status), Some(port)) => {
            odd_query_is_strict(parts)?;
            redirect_to_https(name, port, *status, parts).map(Some)
        }
    }
}

const MISDIRECTED: Refusal = Refusal {
    status: StatusCode::MISDIRECTED_REQUEST,
    reason: "Misdirected",
    message: "this connection may not be used for that host",
};

const NO_HOST: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    reason: "NoHost",
    message: "the request names no host",
};

/// The host of the request: from the cache of the connection, else parsed and looked up.
fn resolve_host(
    connection: &Connection,
    published: &Published,
    raw: Option<&str>,
) -> Result<Arc<ResolvedHost>, Refusal> {
    let server_name = connection
        .facts
        .tls
        .as_ref()
        .and_then(|tls| tls.server_name.as_ref());
    // HTTP/1.0 without Host: the server name says whom the client means, and without TLS the listener may.
    let hostless = || {
        let plain = connection.facts.tls.is_none();
        let port = connection.facts.local.port();
        plain
            .then(|| published.snapshot.hostless.on(port))
            .flatten()
    };
    let named = raw.or(server_name.map(HostName::as_str));
    let Some(raw) = named.or_else(hostless) else {
        return Err(NO_HOST);
    };
    if let Some(resolved) = connection.cached(raw.as_bytes(), published.revision) {
        return Ok(resolved);
    }
    let authority = Authority::parse(raw)?;
    let raw = HeaderValue::from_str(raw).map_err(|_| NO_HOST)?;
    let serving = published
        .snapshot
        .hosts
        .lookup(&authority.host)
        .map(|virtual_host| {
            let metrics = connection.worker.shared.metrics.route(&virtual_host.route);
            (Arc::clone(virtual_host), metrics)
        });
    let resolved = Arc::new(ResolvedHost {
        name: authority.host,
        raw,
        serving,
    });
    let revision = published.revision;
    connection.remember(CachedHost {
        revision,
        resolved: Arc::clone(&resolved),
    });
    Ok(resolved)
}

fn not_served(connection: &Connection, host: &HostName) -> Stop {
    let misdirected = connection.facts.tls.as_ref().is_some_and(|tls| {
        tls.server_name.as_ref().is_some_and(|name| name != host)
            && !tls
                .certificate
                .as_ref()
                .is_some_and(|certificate| certificate.covers(host))
    });
    if misdirected {
        MISDIRECTED.into()
    } else {
        Stop::page(StatusCode::NOT_FOUND, "UnknownHost")
    }
}

fn redirect_to_https(
    host: &HostName,
    port: u16,
    status: StatusCode,
    parts: &request::Parts,
) -> Result<Response<Body>, Stop> {
    let target = rewrite::target(&parts.uri);
    let Some(location) = redirect::to_https(host, port, &target) else {
        return Err(Stop::page(StatusCode::BAD_REQUEST, "BadTarget"));
    };
    let mut response = empty(status);
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}
