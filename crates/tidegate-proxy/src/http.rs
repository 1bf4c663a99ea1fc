//! One request from head to access log. [`handle`] reads as the list of phases; each phase either lets
//! the request on or stops it with an answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version, header, request, response,
};
use hyper::body::{Body as _, Incoming};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use tidegate_model::{Action, BackendGroup, HostName, PlainHttp, Published, Rule};
use tokio::time::Instant;

use crate::body::{Body, BodyOutcome, BodyWatch, RequestBody, UpstreamBody};
use crate::connection::{CachedHost, Connection, ResolvedHost};
use crate::error::ProxyError;
use crate::exchange::{RequestGuard, ResponseBody};
use crate::forwarded::{self, ForwardedFacts};
use crate::normalize::{self, Authority, Normalized, Refusal, Reuse};
use crate::upstream::cluster::ActiveRequest;
use crate::upstream::connect::ProxiedAddresses;
use crate::upstream::{self, Answer, SendOptions};
use crate::{path, redirect, respond, rewrite, router, upgrade};

/// Why a request goes no further.
pub(crate) enum Stop {
    /// The message itself is not acceptable; an HTTP/1 connection closes after the answer.
    Refused(Refusal),
    /// The edge answers with a page of its own.
    Page {
        status: StatusCode,
        reason: &'static str,
        headers: http::HeaderMap,
    },
    /// A filter or the edge has the whole answer.
    Answered(Box<Response<Body>>),
    /// No backend answered.
    Failed(ProxyError),
}

impl Stop {
    pub(crate) fn page(status: StatusCode, reason: &'static str) -> Self {
        Self::Page {
            status,
            reason,
            headers: http::HeaderMap::new(),
        }
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ProxyError> for Stop {
    fn from(error: ProxyError) -> Self {
        Self::Failed(error)
    }
}

/// Answers one request.
pub(crate) async fn handle(
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let mut guard = RequestGuard::begin(&connection, &request);
    let version = request.version();
    let head_only = request.method() == Method::HEAD;
    let accept = request.headers().get(header::ACCEPT).cloned();
    let language = request.headers().get(header::ACCEPT_LANGUAGE).cloned();

    let mut response = match serve(&connection, request, &mut guard).await {
        Ok(response) => response,
        Err(stop) => {
            let page = |status, reason: &str, guard: &RequestGuard| {
                let id = guard.request_id();
                respond::error_page(
                    status,
                    reason,
                    &id,
                    accept.as_ref(),
                    language.as_ref(),
                    head_only,
                )
            };
            match stop {
                Stop::Answered(response) => *response,
                Stop::Refused(refusal) => {
                    guard.refused(refusal.reason);
                    let mut response = page(refusal.status, refusal.reason, &guard);
                    close_after(&mut response, version);
                    response
                }
                Stop::Page {
                    status,
                    reason,
                    headers,
                } => {
                    guard.refused(reason);
                    let mut response = page(status, reason, &guard);
                    response.headers_mut().extend(headers);
                    response
                }
                Stop::Failed(error) => {
                    guard.failed(&error);
                    let mut response = page(error.status(), error.reason(), &guard);
                    if matches!(
                        error.status(),
                        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT
                    ) {
                        close_after(&mut response, version);
                    }
                    response
                }
            }
        }
    };
    if guard.is_last_of_connection() {
        close_after(&mut response, version);
    }
    guard.answered(response.status());
    response.map(|body| ResponseBody::new(body, guard))
}

fn close_after(response: &mut Response<Body>, version: Version) {
    if version < Version::HTTP_2 {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// The phases. What they learn for the access log goes into the guard.
async fn serve(
    connection: &Arc<Connection>,
    mut request: Request<Incoming>,
    guard: &mut RequestGuard,
) -> Result<Response<Body>, Stop> {
    let shared = &connection.worker.shared;
    let settings = &shared.settings;

    // Snapshot: one for the whole request.
    let published = shared.store.load_full();

    // Host: who is asked for, and whether this connection may ask for it.
    let client_upgrade = wants_upgrade(&request).then(|| hyper::upgrade::on(&mut request));
    let (mut parts, incoming) = request.into_parts();
    let host = resolve_host(connection, &published, normalize::authority(&parts)?)?;
    guard.host(&host.name);
    let Some((virtual_host, metrics)) = &host.serving else {
        return Err(not_served(connection, &host.name));
    };
    guard.route(&virtual_host.route, metrics);
    match &connection.facts.tls {
        Some(tls) if !tls.may_serve(&host.name, virtual_host) => return Err(MISDIRECTED.into()),
        Some(_) => {}
        None => match virtual_host.plain_http {
            PlainHttp::Serve => {}
            PlainHttp::Refuse => return Err(Stop::page(StatusCode::NOT_FOUND, "PlainHttpRefused")),
            PlainHttp::Redirect(status) => {
                if let Some(port) = shared.https_port {
                    return redirect_to_https(&host.name, port, status, &parts);
                }
            }
        },
    }

    // Normalise: from here on router, filters and backend read one message.
    let limits = &settings.limits;
    let normalized = normalize::request(
        &mut parts,
        (limits.header_bytes, limits.header_count, limits.uri_bytes),
    )?;

    // Route.
    let canonical = path::canonical(parts.uri.path());
    let entry = router::choose(virtual_host, &canonical, &parts)?;
    let Some(entry) = entry else {
        return Err(Stop::page(StatusCode::NOT_FOUND, "NoRule"));
    };
    let rule = Arc::clone(&entry.rule);
    drop(canonical);
    guard.rule(&rule);

    // Client address.
    let client = connection.client_of(&parts.headers);
    guard.client(client.ip());

    let mut context = Context {
        connection,
        guard,
        host: &host,
        rule: &rule,
        client,
        normalized,
        client_upgrade,
        deadline: rule
            .timeouts
            .request
            .map(|limit| (Instant::now() + limit, limit)),
        secure: connection.facts.tls.is_some(),
    };
    let request_head = context.filters_need_head().then(|| copy_head(&parts));
    let response = context.answer(parts, incoming).await;
    let mut response = match response {
        Ok(response) => response,
        Err(stop) => return Err(stop),
    };
    context.finish(&mut response, request_head.as_ref());
    if context.secure
        && let Some(hsts) = &virtual_host.hsts
    {
        response
            .headers_mut()
            .insert(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
    }
    Ok(response)
}

fn copy_head(parts: &request::Parts) -> request::Parts {
    let mut copy = Request::new(()).into_parts().0;
    copy.method = parts.method.clone();
    copy.headers = parts.headers.clone();
    copy.version = parts.version;
    copy
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
) -> Result<ResolvedHost, Refusal> {
    let server_name = connection
        .facts
        .tls
        .as_ref()
        .and_then(|tls| tls.server_name.as_ref());
    // HTTP/1.0 without Host: the server name says whom the client means.
    let Some(raw) = raw.or(server_name.map(HostName::as_str)) else {
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
    let resolved = ResolvedHost {
        name: authority.host,
        raw,
        serving,
    };
    let revision = published.revision;
    connection.remember(CachedHost {
        revision,
        resolved: resolved.clone(),
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
    let root = http::uri::PathAndQuery::from_static("/");
    let target = parts.uri.path_and_query().unwrap_or(&root);
    let Some(location) = redirect::to_https(host, port, target) else {
        return Err(Stop::page(StatusCode::BAD_REQUEST, "BadTarget"));
    };
    Ok(plain_answer(status, Some((header::LOCATION, location))))
}

fn plain_answer(
    status: StatusCode,
    field: Option<(http::HeaderName, HeaderValue)>,
) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    response
        .headers_mut()
        .extend(field.map(|(name, value)| (Some(name), value)));
    response
}

fn wants_upgrade(request: &Request<Incoming>) -> bool {
    request.headers().contains_key(header::UPGRADE)
        || (request.method() == Method::CONNECT && request.extensions().get::<Protocol>().is_some())
}

/// A request that has its rule.
struct Context<'a> {
    connection: &'a Arc<Connection>,
    guard: &'a mut RequestGuard,
    host: &'a ResolvedHost,
    rule: &'a Arc<Rule>,
    client: forwarded::ClientAddress,
    normalized: Normalized,
    client_upgrade: Option<OnUpgrade>,
    deadline: Option<(Instant, Duration)>,
    secure: bool,
}

impl Context<'_> {
    fn filters_need_head(&self) -> bool {
        self.rule.filters.cors.is_some() || self.rule.filters.compression.is_some()
    }

    async fn answer(
        &mut self,
        mut parts: request::Parts,
        incoming: Incoming,
    ) -> Result<Response<Body>, Stop> {
        self.check_length(&parts, &incoming)?;
        let rule = Arc::clone(self.rule);
        match &rule.action {
            Action::Forward(group) => {
                self.tell_backend(&mut parts);
                self.forward(group, parts, incoming).await
            }
            Action::Redirect(to) => {
                let root = http::uri::PathAndQuery::from_static("/");
                let facts = redirect::RedirectFacts {
                    scheme: self.scheme(),
                    host: &self.host.name,
                    port: self.client_port(),
                    target: parts.uri.path_and_query().unwrap_or(&root),
                };
                let location = redirect::location(to, &facts)
                    .ok_or_else(|| Stop::page(StatusCode::INTERNAL_SERVER_ERROR, "BadRedirect"))?;
                Ok(plain_answer(to.status, Some((header::LOCATION, location))))
            }
            Action::Respond(fixed) => {
                let kind = fixed.content_type.clone();
                let mut response =
                    plain_answer(fixed.status, kind.map(|kind| (header::CONTENT_TYPE, kind)));
                *response.body_mut() = Body::full(fixed.body.clone());
                Ok(response)
            }
            Action::Static(_) => Err(Stop::page(StatusCode::NOT_IMPLEMENTED, "Static")),
            Action::Unavailable(_) => Err(Stop::page(
                StatusCode::SERVICE_UNAVAILABLE,
                "BackendNotFound",
            )),
        }
    }

    /// 413 before the first byte, where the client says the length.
    fn check_length(&self, parts: &request::Parts, incoming: &Incoming) -> Result<(), Stop> {
        let Some(limit) = self.rule.limits.request_body else {
            return Ok(());
        };
        let announced = parts
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
            .unwrap_or_else(|| incoming.size_hint().lower());
        if announced > limit {
            Err(ProxyError::BodyTooLarge { limit }.into())
        } else {
            Ok(())
        }
    }

    const fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    /// The port that the client connected to, as far as it can be known.
    fn client_port(&self) -> u16 {
        let shared = &self.connection.worker.shared;
        match (self.secure, shared.https_port) {
            (true, Some(port)) => port,
            _ => self.connection.facts.local.port(),
        }
    }

    /// Host, forwarding headers, request header edits, rewrite.
    fn tell_backend(&self, parts: &mut request::Parts) {
        let filters = &self.rule.filters;
        let facts = ForwardedFacts {
            client: &self.client,
            peer_trusted: self.connection.client_trusted,
            proto: self.scheme(),
            host: &self.host.raw,
            port: self.client_port(),
            forwarded_header: self.connection.worker.shared.settings.forwarded_header,
        };
        forwarded::apply(&mut parts.headers, &facts);
        let target = parts.uri.path_and_query().cloned();
        let mut target = target.unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
        let mut host = None;
        if let Some(rewrite) = &filters.rewrite {
            host.clone_from(&rewrite.hostname);
            if let Some(path) = &rewrite.path
                && let Some(rewritten) = rewrite::path(&target, path)
            {
                target = rewritten;
            }
        }
        parts.uri = target.into();
        parts
            .headers
            .insert(header::HOST, host.unwrap_or_else(|| self.host.raw.clone()));
        crate::filters::edit(&mut parts.headers, &filters.request_headers);
    }

    async fn forward(
        &mut self,
        group: &BackendGroup,
        mut parts: request::Parts,
        incoming: Incoming,
    ) -> Result<Response<Body>, Stop> {
        let extended_connect = parts.method == Method::CONNECT;
        let upgrading = self.prepare_upgrade(&mut parts, extended_connect);
        if self.normalized.trailers {
            parts
                .headers
                .insert(header::TE, HeaderValue::from_static("trailers"));
        }
        let backend = crate::balance::choose_backend(group)
            .ok_or_else(|| Stop::page(StatusCode::SERVICE_UNAVAILABLE, "NoBackend"))?;
        let cluster = Arc::clone(&backend.cluster);
        let timeouts = &self.rule.timeouts;
        let method = parts.method.clone();
        let (body, watch) = self.request_body(incoming, upgrading);
        let options = SendOptions {
            hash: None,
            sticky: None,
            proxied: Some(self.proxied()),
            first_byte: timeouts.first_byte,
            body: watch.clone(),
            upgrade: upgrading,
        };
        let request = upstream::request(parts, body);
        let sending = upstream::send(
            &self.connection.worker.upstreams,
            &cluster,
            request,
            &options,
        );
        let answer = match self.deadline {
            None => sending.await,
            Some((at, limit)) => tokio::time::timeout_at(at, sending)
                .await
                .unwrap_or(Err(ProxyError::RequestTimeout { limit })),
        };
        let answer = answer.map_err(|error| explain_failure(error, watch.as_ref(), self.rule))?;
        self.guard.upstream(answer.endpoint.address, answer.retries);
        self.take_answer(answer, &method, extended_connect)
    }

    fn proxied(&self) -> ProxiedAddresses {
        let facts = &self.connection.facts;
        let port = if self.client.ip() == facts.client.ip() {
            facts.client.port()
        } else {
            0
        };
        ProxiedAddresses {
            client: SocketAddr::new(self.client.ip(), port),
            local: facts.local,
        }
    }

    fn request_body(&self, incoming: Incoming, upgrading: bool) -> (Body, Option<BodyWatch>) {
        if upgrading || incoming.is_end_stream() {
            return (Body::Empty, None);
        }
        let limit = self.rule.limits.request_body;
        let (body, watch) = RequestBody::new(incoming, limit, self.rule.timeouts.idle);
        (Body::Request(Box::new(body)), Some(watch))
    }

    /// Asks the backend for the upgrade the client asked for. Returns whether there is one.
    fn prepare_upgrade(&self, parts: &mut request::Parts, extended_connect: bool) -> bool {
        let Some(protocol) = &self.normalized.upgrade else {
            return false;
        };
        if self.client_upgrade.is_none() || protocol.as_bytes().eq_ignore_ascii_case(b"h2c") {
            return false;
        }
        let headers = &mut parts.headers;
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
        if extended_connect {
            // RFC 8441 §5: HTTP/2 needs no key; HTTP/1.1 does.
            parts.method = Method::GET;
            parts.version = Version::HTTP_11;
            headers.insert(header::SEC_WEBSOCKET_KEY, upgrade::websocket_key());
            headers
                .entry(header::SEC_WEBSOCKET_VERSION)
                .or_insert(HeaderValue::from_static("13"));
        }
        true
    }

    fn take_answer(
        &mut self,
        answer: Answer,
        method: &Method,
        extended_connect: bool,
    ) -> Result<Response<Body>, Stop> {
        let Answer {
            mut response,
            mut lease,
            active,
            endpoint,
            ..
        } = answer;
        let endpoint_name = || endpoint.address.to_string();
        let bad = |detail| ProxyError::BadResponse {
            endpoint: endpoint_name(),
            detail,
        };
        let backend_upgrade = (response.status() == StatusCode::SWITCHING_PROTOCOLS)
            .then(|| hyper::upgrade::on(&mut response));
        let (mut parts, incoming) = response.into_parts();
        if normalize::response(&mut parts, method).map_err(|refusal| bad(refusal.message))?
            == Reuse::Forbidden
        {
            lease = None;
        }
        if let Some(backend) = backend_upgrade {
            let asked = self
                .client_upgrade
                .take()
                .filter(|_| self.normalized.upgrade.is_some());
            let Some(client) = asked else {
                return Err(bad("it switched protocols without being asked").into());
            };
            self.start_upgrade(client, backend, active);
            return Ok(switched(parts, &self.normalized, extended_connect));
        }
        if extended_connect && parts.status.is_success() {
            // 2xx would tell the client that its WebSocket is open.
            return Err(bad("it did not switch to WebSocket").into());
        }
        parts.version = Version::HTTP_11;
        let keep_trailers = self.normalized.trailers || self.guard.version() == Version::HTTP_2;
        let body = if incoming.is_end_stream() {
            if let Some(lease) = lease {
                lease.release();
            }
            Body::Empty
        } else {
            let idle = self.rule.timeouts.idle;
            let deadline = self.deadline.map(|(at, _)| at);
            Body::Upstream(Box::new(UpstreamBody::new(
                incoming,
                lease,
                active,
                idle,
                deadline,
                keep_trailers,
            )))
        };
        Ok(Response::from_parts(parts, body))
    }

    /// Copies both ways in a task of its own; the guard ends with it, so that drain and log see it.
    fn start_upgrade(&mut self, client: OnUpgrade, backend: OnUpgrade, active: ActiveRequest) {
        let shared = Arc::clone(&self.connection.worker.shared);
        let idle = self.rule.timeouts.upgraded_idle;
        let open = self.guard.split_for_upgrade();
        shared.metrics.upgraded.inc();
        let cut = shared.cut.clone();
        let tracker = shared.tasks.clone();
        tracker.spawn(async move {
            let ended = upgrade::run(client, backend, idle, cut).await;
            shared.metrics.upgraded.dec();
            tracing::debug!(?ended, "upgraded connection ended");
            drop((active, open));
        });
    }

    fn finish(&self, response: &mut Response<Body>, _request: Option<&request::Parts>) {
        crate::filters::edit(response.headers_mut(), &self.rule.filters.response_headers);
    }
}

/// The answer that tells a client that its protocol has changed.
fn switched(
    mut parts: response::Parts,
    normalized: &Normalized,
    extended_connect: bool,
) -> Response<Body> {
    let headers = &mut parts.headers;
    if extended_connect {
        // RFC 8441 §5: 200 says it all; the HTTP/1.1 handshake fields have no place.
        parts.status = StatusCode::OK;
        headers.remove(header::UPGRADE);
        headers.remove(header::CONNECTION);
        headers.remove(header::SEC_WEBSOCKET_ACCEPT);
    } else {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = &normalized.upgrade {
            headers
                .entry(header::UPGRADE)
                .or_insert_with(|| protocol.clone());
        }
    }
    Response::from_parts(parts, Body::Empty)
}

/// A failed exchange may really be a request body that the edge ended.
fn explain_failure(error: ProxyError, watch: Option<&BodyWatch>, rule: &Rule) -> ProxyError {
    match watch.map_or(BodyOutcome::Fine, BodyWatch::outcome) {
        BodyOutcome::Fine => error,
        BodyOutcome::TooLarge => ProxyError::BodyTooLarge {
            limit: rule.limits.request_body.unwrap_or_default(),
        },
        BodyOutcome::TimedOut => ProxyError::BodyTimeout {
            limit: rule.timeouts.idle.unwrap_or_default(),
        },
        BodyOutcome::Aborted => ProxyError::BodyAborted,
    }
}
