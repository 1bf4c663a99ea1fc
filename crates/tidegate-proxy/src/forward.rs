//! A request that has its rule: filters, then the rule's action, then the filters of the response.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};
use http::{header, request, response};
use hyper::body::Body as _;
use tidegate_http1::RawTarget;
use tidegate_model::{
    Action, AddressParameters, BackendGroup, Cluster, ClusterKey, HashKey, LoadBalancing, Rule,
    WeightedBackend,
};
use tidegate_tracker::announce;
use tokio::time::Instant;

use crate::body::{Body, BodyOutcome, BodyWatch, ClientBody, RequestBody, UpstreamBody};
use crate::connection::{Connection, ResolvedHost};
use crate::error::ProxyError;
use crate::exchange::RequestGuard;
use crate::filters::concurrency::InFlightGuard;
use crate::filters::{basic_auth, compression, cors, forward_auth, headers, ip_access, mirror};
use crate::forwarded::{self, ClientAddress, ForwardedFacts};
use crate::normalize::{self, Normalized, Reuse};
use crate::odd_query::RawQuery;
use crate::stop::{PageWish, Stop, empty, stopped};
use crate::upgrade::ClientUpgrade;
use crate::upstream::cluster::ActiveRequest;
use crate::upstream::connect::ProxiedAddresses;
use crate::upstream::{self, Answer, SendOptions, Upgraded};
use crate::worker::Worker;
use crate::{balance, redirect, rewrite, static_files, upgrade};

/// A request with its rule.
pub(crate) struct Routed<'a> {
    connection: &'a Arc<Connection>,
    guard: &'a mut RequestGuard,
    host: &'a ResolvedHost,
    rule: &'a Arc<Rule>,
    client: ClientAddress,
    normalized: Normalized,
    client_upgrade: Option<ClientUpgrade>,
    deadline: Option<(Instant, Duration)>,
    secure: bool,
    /// For a tracker: what stands in the request line instead of the URI.
    raw_target: Option<RawTarget>,
}

/// What response filters need of the request; only kept where a rule has such filters.
struct RequestHead {
    method: Method,
    headers: HeaderMap,
}

impl<'a> Routed<'a> {
    pub(crate) fn new(
        connection: &'a Arc<Connection>,
        guard: &'a mut RequestGuard,
        host: &'a ResolvedHost,
        rule: &'a Arc<Rule>,
        client: ClientAddress,
        normalized: Normalized,
        client_upgrade: Option<ClientUpgrade>,
    ) -> Self {
        let deadline = rule
            .timeouts
            .request
            .map(|limit| (Instant::now() + limit, limit));
        let secure = connection.facts.tls.is_some();
        Self {
            connection,
            guard,
            host,
            rule,
            client,
            normalized,
            client_upgrade,
            deadline,
            secure,
            raw_target: None,
        }
    }

    /// Filters, action, response filters. The edge's own pages pass the response filters too: a script
    /// that may read an answer may also read that there is none.
    pub(crate) async fn answer(
        &mut self,
        mut parts: Box<request::Parts>,
        incoming: ClientBody,
        page: &PageWish,
    ) -> Response<Body> {
        let filters = &self.rule.filters;
        let kept = (filters.cors.is_some() || filters.compression.is_some()).then(|| RequestHead {
            method: parts.method.clone(),
            headers: parts.headers.clone(),
        });
        let acted = match self.admit(&mut parts).await {
            Ok(in_flight) => {
                self.guard.hold(in_flight);
                self.act(parts, incoming).await
            }
            Err(stop) => Err(stop),
        };
        let response = acted.unwrap_or_else(|stop| stopped(stop, page, self.guard));
        self.finish(response, kept.as_ref())
    }

    /// The filters in front of the action, in the order of [`tidegate_model::Filters`].
    async fn admit(&mut self, parts: &mut request::Parts) -> Result<Option<InFlightGuard>, Stop> {
        let shared = &self.connection.worker.shared;
        let filters = &self.rule.filters;
        let client = self.client.ip();
        if let Some(access) = &filters.ip_access
            && !ip_access::is_allowed(access, client)
        {
            return Err(Stop::page(StatusCode::FORBIDDEN, "AddressNotAllowed"));
        }
        let too_many = |reason, wait| {
            Stop::page_with(
                StatusCode::TOO_MANY_REQUESTS,
                reason,
                header::RETRY_AFTER,
                wait,
            )
        };
        for limit in &filters.rate_limits {
            let now = std::time::Instant::now();
            shared
                .rate_limits
                .check(limit, client, &parts.headers, now)
                .map_err(|too_soon| too_many("RateLimited", too_soon.retry_after()))?;
        }
        let in_flight = match self.rule.limits.requests_per_client {
            None => None,
            Some(limit) => {
                let scope = format!("{}/{}", self.rule.route, self.rule.name);
                let limit = usize::try_from(limit).unwrap_or(usize::MAX);
                let entered = shared.requests.try_enter(&scope, client, limit);
                let wait = || too_many("TooManyRequestsInFlight", HeaderValue::from_static("1"));
                Some(entered.ok_or_else(wait)?)
            }
        };
        if let Some(cors) = &filters.cors
            && let Some(answer) = cors::preflight(cors, &parts.method, &parts.headers)
        {
            return Err(Stop::Answered(Box::new(answer)));
        }
        if let Some(auth) = &filters.basic_auth {
            let user = Box::pin(shared.authenticator.check(auth, &parts.headers)).await;
            let user = user.map_err(|denied| match denied {
                basic_auth::Denied::Unauthorized => Stop::page_with(
                    StatusCode::UNAUTHORIZED,
                    "Unauthorized",
                    header::WWW_AUTHENTICATE,
                    basic_auth::challenge(auth),
                ),
                basic_auth::Denied::Busy => {
                    Stop::page(StatusCode::SERVICE_UNAVAILABLE, "AuthenticationBusy")
                }
            })?;
            // The password is for the edge; a backend that wanted it would not need the filter.
            parts.headers.remove(header::AUTHORIZATION);
            if let Some(name) = &auth.user_header {
                parts.headers.insert(name.clone(), user);
            }
        }
        self.tell_who(&mut parts.headers);
        if let Some(auth) = &filters.forward_auth {
            let upstreams = &self.connection.worker.upstreams;
            Box::pin(forward_auth::ask(upstreams, auth, parts, self.proxied())).await?;
        }
        Ok(in_flight)
    }

    async fn act(
        &mut self,
        mut parts: Box<request::Parts>,
        incoming: ClientBody,
    ) -> Result<Response<Body>, Stop> {
        self.check_length(&parts, &incoming)?;
        let rule = Arc::clone(self.rule);
        match &rule.action {
            Action::Forward(group) => {
                self.edit_request(&mut parts);
                self.forward(group, parts, incoming).await
            }
            Action::Redirect(to) => {
                let facts = redirect::RedirectFacts {
                    scheme: self.scheme(),
                    host: &self.host.name,
                    port: self.client_port(),
                    target: &rewrite::target(&parts.uri),
                };
                let location = redirect::location(to, &facts)
                    .ok_or_else(|| Stop::page(StatusCode::INTERNAL_SERVER_ERROR, "BadRedirect"))?;
                let mut response = empty(to.status);
                response.headers_mut().insert(header::LOCATION, location);
                Ok(response)
            }
            Action::Respond(fixed) => {
                let mut response = empty(fixed.status);
                if let Some(kind) = &fixed.content_type {
                    response
                        .headers_mut()
                        .insert(header::CONTENT_TYPE, kind.clone());
                }
                *response.body_mut() = Body::full(fixed.body.clone());
                Ok(response)
            }
            Action::Static(folder) => {
                let target = rewrite::target(&parts.uri);
                Box::pin(static_files::serve(
                    folder,
                    &parts.method,
                    &target,
                    &parts.headers,
                ))
                .await
                .map_err(|refusal| Stop::page(refusal.status, refusal.reason))
            }
            Action::Unavailable(_) => Err(Stop::page(
                StatusCode::SERVICE_UNAVAILABLE,
                "BackendNotFound",
            )),
        }
    }

    /// 413 before the first byte, where the client says the length.
    fn check_length(&self, parts: &request::Parts, incoming: &ClientBody) -> Result<(), Stop> {
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
        let settings = &self.connection.worker.shared.settings;
        match (self.secure, settings.public_https_port) {
            (true, Some(port)) => port,
            _ => self.connection.facts.local.port(),
        }
    }

    /// Forwarding headers, and nothing of the kind that the client sent.
    fn tell_who(&self, headers: &mut HeaderMap) {
        let facts = ForwardedFacts {
            client: &self.client,
            peer_trusted: self.connection.client_trusted,
            proto: self.scheme(),
            host: &self.host.raw,
            port: self.client_port(),
            forwarded_header: self.connection.worker.shared.settings.forwarded_header,
        };
        forwarded::apply(headers, &facts);
    }

    /// Target, Host and header as the backend sees them.
    fn edit_request(&mut self, parts: &mut request::Parts) {
        let filters = &self.rule.filters;
        let mut target = rewrite::target(&parts.uri);
        let mut raw = parts.extensions.remove::<RawQuery>().map(|query| {
            let path = target.path();
            format!("{path}?{}", query.as_str())
        });
        if let Some(tracker) = &self.rule.tracker
            && tracker.address_parameters == AddressParameters::Strip
            && let Some(stripped) = rewrite::without_addresses(&target)
        {
            target = stripped;
            raw = raw.map(|raw| announce::strip_addresses(&raw).unwrap_or(raw));
        }
        let mut host = None;
        if let Some(rewrite) = &filters.rewrite {
            host.clone_from(&rewrite.hostname);
            if let Some(path) = &rewrite.path
                && let Some(rewritten) = rewrite::path(&target, path)
            {
                raw = raw.and_then(|raw| rewrite::raw(&raw, &target, &rewritten));
                target = rewritten;
            }
        }
        self.raw_target = raw.and_then(RawTarget::new);
        parts.uri = target.into();
        parts
            .headers
            .insert(header::HOST, host.unwrap_or_else(|| self.host.raw.clone()));
        headers::edit(&mut parts.headers, &filters.request_headers);
    }

    async fn forward(
        &mut self,
        group: &BackendGroup,
        mut parts: Box<request::Parts>,
        incoming: ClientBody,
    ) -> Result<Response<Body>, Stop> {
        let extended_connect = parts.method == Method::CONNECT;
        // A request with a body is no handshake: it goes on as what it is otherwise (RFC 9110 §7.8).
        let upgrading = (extended_connect || incoming.is_end_stream())
            && self.prepare_upgrade(&mut parts, extended_connect);
        if self.normalized.trailers {
            parts
                .headers
                .insert(header::TE, HeaderValue::from_static("trailers"));
        }
        let sticky = sticky(group, &parts.headers);
        let worker = &self.connection.worker;
        let mut tried = Vec::new();
        let mut cluster = choose_cluster(worker, group, sticky, &tried)
            .ok_or_else(|| Stop::page(StatusCode::SERVICE_UNAVAILABLE, "NoBackend"))?;
        let method = parts.method.clone();
        let (body, watch) = self.request_body(incoming, upgrading);
        let options = SendOptions {
            hash: self.hash(&cluster, &parts),
            sticky,
            proxied: Some(self.proxied()),
            first_byte: self.rule.timeouts.first_byte,
            body: watch.clone(),
            upgrade: upgrading,
            datagrams: false,
            hints: self.guard.hints(),
        };
        let body = mirror::tee(worker, &self.rule.filters.mirrors, &parts, body, &options);
        let mut request = upstream::request(parts, body);
        if let Some(raw) = self.raw_target.take() {
            request.extensions_mut().insert(raw);
        }
        let answer = loop {
            let sending = upstream::send(&worker.upstreams, &cluster, request, &options);
            let sent = match self.deadline {
                None => sending.await,
                Some((at, limit)) => match tokio::time::timeout_at(at, sending).await {
                    Ok(sent) => sent,
                    Err(_) => return Err(ProxyError::RequestTimeout { limit }.into()),
                },
            };
            let failed = match sent {
                Ok(answer) => break answer,
                Err(failed) => failed,
            };
            // Nothing of it left: another backend of the rule may have it.
            tried.push(cluster.key.clone());
            let next = choose_cluster(worker, group, sticky, &tried);
            match (failed.unsent, next) {
                (Some(unsent), Some(next)) if !tried.contains(&next.key) => {
                    request = unsent;
                    cluster = next;
                }
                _ => return Err(explain_failure(failed.error, watch.as_ref(), self.rule).into()),
            }
        };
        self.guard.upstream(answer.endpoint.address, answer.retries);
        let cookie = (sticky != Some(balance::endpoint_id(&cluster.key, answer.endpoint.identity)))
            .then(|| upstream::sticky_cookie(&cluster, &answer.endpoint, self.secure))
            .flatten();
        let mut response = self.take_answer(answer, &method, extended_connect)?;
        if let Some(cookie) = cookie {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
        Ok(response)
    }

    fn hash(&self, cluster: &Cluster, parts: &request::Parts) -> Option<u64> {
        let LoadBalancing::ConsistentHash(key) = &cluster.load_balancing else {
            return None;
        };
        let client = || self.client.ip().to_string();
        Some(match key {
            HashKey::ClientIp => balance::hash(client().as_bytes()),
            HashKey::Header(name) => match parts.headers.get(name) {
                Some(value) => balance::hash(value.as_bytes()),
                None => balance::hash(client().as_bytes()),
            },
            HashKey::Path => balance::hash(parts.uri.path().as_bytes()),
        })
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

    fn request_body(&self, incoming: ClientBody, upgrading: bool) -> (Body, Option<BodyWatch>) {
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
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
        if extended_connect {
            // RFC 8441 §5: HTTP/2 needs no key; HTTP/1.1 does.
            parts.method = Method::GET;
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
            response,
            active,
            endpoint,
            ..
        } = answer;
        let bad = |detail| ProxyError::BadResponse {
            endpoint: endpoint.address.to_string(),
            detail,
        };
        let (mut parts, mut incoming) = response.into_parts();
        if normalize::response(&mut parts, method).map_err(|refusal| bad(refusal.message))?
            == Reuse::Forbidden
        {
            incoming.forbid_reuse();
        }
        self.guard.answered_by_backend(&parts.headers);
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            let asked = self
                .client_upgrade
                .take()
                .filter(|_| self.normalized.upgrade.is_some());
            let Some((client, backend)) = asked.zip(incoming.into_upgraded()) else {
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
        if incoming.is_end_stream() {
            return Ok(Response::from_parts(parts, Body::Empty));
        }
        if let Some(whole) = incoming.take_whole() {
            return Ok(Response::from_parts(parts, Body::full(whole)));
        }
        let keep_trailers = self.normalized.trailers || self.guard.version() == Version::HTTP_2;
        let idle = self.rule.timeouts.idle;
        let deadline = self.deadline.map(|(at, _)| at);
        let body = UpstreamBody::new(incoming, active, idle, deadline, keep_trailers);
        Ok(Response::from_parts(parts, Body::Upstream(Box::new(body))))
    }

    /// Copies both ways in a task of its own, which keeps the connection busy until its end.
    fn start_upgrade(&mut self, client: ClientUpgrade, backend: Upgraded, active: ActiveRequest) {
        let shared = Arc::clone(&self.connection.worker.shared);
        let idle = self.rule.timeouts.upgraded_idle;
        let busy = self.guard.stay_busy();
        shared.metrics.upgraded.inc();
        let cut = shared.cut.clone();
        let tracker = shared.tasks.clone();
        tracker.spawn(async move {
            let ended = upgrade::run(client, backend, idle, cut).await;
            shared.metrics.upgraded.dec();
            tracing::debug!(?ended, "upgraded connection ended");
            drop((active, busy));
        });
    }

    /// The filters of the response, in the order of [`tidegate_model::Filters`].
    fn finish(&self, mut response: Response<Body>, head: Option<&RequestHead>) -> Response<Body> {
        let filters = &self.rule.filters;
        headers::edit(response.headers_mut(), &filters.response_headers);
        let Some(head) = head else {
            return response;
        };
        if let Some(cors) = &filters.cors {
            let origin = head.headers.get(header::ORIGIN);
            // A preflight's answer has been made by the same filter.
            if !is_preflight(head) {
                cors::apply(cors, origin, response.headers_mut());
            }
        }
        match &filters.compression {
            Some(wish) => compression::apply(wish, &head.method, &head.headers, response),
            None => response,
        }
    }
}

/// The address that the client's cookie names.
fn sticky(group: &BackendGroup, headers: &HeaderMap) -> Option<u64> {
    group
        .backends
        .iter()
        .find_map(|backend| match &backend.cluster.load_balancing {
            LoadBalancing::StickyCookie { name, .. } => balance::sticky_id(headers, name),
            _ => None,
        })
}

fn is_preflight(head: &RequestHead) -> bool {
    head.method == Method::OPTIONS
        && head
            .headers
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
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

/// A backend of the rule that is up and was not tried for this request.
fn choose_cluster(
    worker: &Worker,
    group: &BackendGroup,
    sticky: Option<u64>,
    tried: &[ClusterKey],
) -> Option<Arc<Cluster>> {
    let is_up = |backend: &WeightedBackend| {
        !tried.contains(&backend.cluster.key)
            && upstream::is_up(&worker.upstreams, &backend.cluster)
    };
    balance::choose_backend(&group.backends, sticky, is_up)
        .map(|backend| Arc::clone(&backend.cluster))
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
