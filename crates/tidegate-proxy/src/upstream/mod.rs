//! From a cluster and a request to a response head: choose an address, take or open a connection, send,
//! and send again where that is safe.
//!
//! The rule for sending again: a connection that was reused and dies before the first byte of a response
//! has most likely been closed by the backend while the request was on its way. A request that never left
//! is sent again whatever it is; one that may have left only when it has no body and is idempotent
//! (RFC 9110 §9.2.2). Failures to connect try another address.

mod agent;
mod answer;
pub(crate) mod cluster;
pub(crate) mod connect;
pub(crate) mod once;
mod pool;
mod rewind;
pub(crate) mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use http::{HeaderValue, Request, Response, Uri, Version, header, request};
use hyper::client::conn::http2;
use hyper::ext::ReasonPhrase;
use tidegate_http1::{Http1Error, Interim, Reason, Terms};
use tidegate_model::{Cluster, LoadBalancing, Target};

use crate::balance::{self, EndpointView};
use crate::body::{Body, BodyWatch};
use crate::error::{ExchangeError, ProxyError};
use crate::exchange::EarlyHints;
pub(crate) use answer::{AnswerBody, Relayed, Upgraded};
use cluster::{ActiveRequest, ClusterState, Endpoint};
use connect::{HttpConnection, ProxiedAddresses};
use pool::{Home, StreamCount, WorkerCluster};
pub(crate) use pool::{REAP_INTERVAL, Upstreams};

/// Addresses tried for one request, and connections tried after a reused one died.
const MAX_ATTEMPTS: usize = 4;

/// How a request is to be sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct SendOptions {
    /// Key for consistent hashing.
    pub(crate) hash: Option<u64>,
    /// The address that a sticky cookie names.
    pub(crate) sticky: Option<u64>,
    /// For the PROXY header.
    pub(crate) proxied: Option<ProxiedAddresses>,
    /// Time from the end of the request to the response's head.
    pub(crate) first_byte: Option<Duration>,
    /// Tells when the request's body has ended; None without one.
    pub(crate) body: Option<BodyWatch>,
    /// For a stream of an agent: it carries datagrams.
    pub(crate) datagrams: bool,
    /// A connection of its own that speaks HTTP/1.1, because it will be upgraded.
    pub(crate) upgrade: bool,
    /// Takes 1xx responses, where the client can.
    pub(crate) hints: Option<EarlyHints>,
}

/// A response head with what must live as long as its body.
pub(crate) struct Answer {
    pub(crate) response: Response<AnswerBody>,
    /// Counts the request as in flight.
    pub(crate) active: ActiveRequest,
    pub(crate) endpoint: Arc<Endpoint>,
    /// Attempts beyond the first.
    pub(crate) retries: usize,
}

/// A request that no address of a cluster answered.
pub(crate) struct SendError {
    pub(crate) error: ProxyError,
    /// The request, when nothing of it can have reached a backend: another cluster may have it.
    pub(crate) unsent: Option<Box<Request<Body>>>,
}

impl From<SendError> for ProxyError {
    fn from(failed: SendError) -> Self {
        failed.error
    }
}

/// Sends the request to one of the cluster's addresses. Expects an origin-form target and a Host field.
pub(crate) async fn send(
    upstreams: &Upstreams,
    cluster: &Arc<Cluster>,
    request: Box<Request<Body>>,
    options: &SendOptions,
) -> Result<Answer, SendError> {
    let worker = upstreams.cluster(cluster);
    let state = &worker.state;
    let mut active = match begin(state) {
        Ok(active) => active,
        Err(error) => {
            let unsent = Some(request);
            return Err(SendError { error, unsent });
        }
    };
    if let Some(behind) = behind(upstreams, cluster) {
        // Boxed: the way to most backends has no need of its room.
        return Box::pin(agent::send(behind, &worker, active, request, options)).await;
    }
    until_resolved(state).await;

    let mut attempt = Attempt::new(request);
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut retries = 0;
    loop {
        let endpoint = match choose(&worker, &tried, options) {
            Ok(endpoint) => endpoint,
            Err(error) => {
                return Err(attempt.given_up(error));
            }
        };
        active.at(&endpoint);
        match attempt.make(&worker, &endpoint, options).await {
            Ok(response) => {
                endpoint.succeeded();
                return Ok(Answer {
                    response,
                    active,
                    endpoint,
                    retries,
                });
            }
            Err(failure) => {
                let error = failure.error;
                if failure.blame && error.blames_endpoint() {
                    state.failed(&endpoint, tidegate_telemetry::chain(&error).to_string());
                    state.refresh.notify_one();
                }
                if !failure.again || retries + 1 >= MAX_ATTEMPTS {
                    return Err(attempt.given_up(error));
                }
                if error.nothing_sent() {
                    tried.push(endpoint.address);
                    if tried.len() >= state.addresses().endpoints.len() {
                        return Err(attempt.given_up(error));
                    }
                }
                retries += 1;
            }
        }
    }
}

/// The agent that a cluster is behind, if it is.
fn behind<'a>(upstreams: &'a Upstreams, cluster: &'a Cluster) -> Option<agent::Behind<'a>> {
    let Target::Agent { agent, mapping } = &cluster.target else {
        return None;
    };
    Some(agent::Behind {
        hub: upstreams.hub(),
        forwarded: upstreams.forwarded(),
        agent,
        mapping,
    })
}

/// Counts a request as in flight, unless the cluster's limit is reached.
fn begin(state: &Arc<ClusterState>) -> Result<ActiveRequest, ProxyError> {
    ActiveRequest::begin(state).ok_or_else(|| ProxyError::CircuitOpen {
        cluster: state.cluster.name.clone(),
        limit: state.cluster.circuit.max_requests.unwrap_or_default(),
    })
}

/// The first request to a name may be faster than its first resolution. Still unresolved after the time to
/// connect: choosing an address says so.
async fn until_resolved(state: &ClusterState) {
    if !state.addresses().resolved {
        let resolved = tokio::time::timeout(state.cluster.connect_timeout, state.until_resolved());
        // Boxed: rare, and its state is larger than the rest.
        let _ = Box::pin(resolved).await;
    }
}

/// Whether any address of the cluster is believed to answer; true while nothing is known.
pub(crate) fn is_up(upstreams: &Upstreams, cluster: &Arc<Cluster>) -> bool {
    let worker = upstreams.cluster(cluster);
    let addresses = worker.state.addresses();
    let mut endpoints = addresses.endpoints.iter();
    !addresses.resolved || endpoints.any(|endpoint| worker.state.is_healthy(endpoint))
}

fn choose(
    worker: &WorkerCluster,
    tried: &[SocketAddr],
    options: &SendOptions,
) -> Result<Arc<Endpoint>, ProxyError> {
    let state: &ClusterState = &worker.state;
    let addresses = state.addresses();
    let endpoints = &addresses.endpoints;
    if let [only] = &endpoints[..]
        && tried.is_empty()
    {
        return Ok(Arc::clone(only));
    }
    let views: Vec<EndpointView> = endpoints
        .iter()
        .map(|endpoint| EndpointView {
            address: endpoint.address,
            identity: endpoint.identity,
            healthy: !tried.contains(&endpoint.address) && state.is_healthy(endpoint),
            active: endpoint.active.load(std::sync::atomic::Ordering::Relaxed),
            near: endpoint.link.as_ref().is_none_or(|it| it.link.is_here()),
        })
        .collect();
    if let Some(wanted) = options.sticky
        && let Some(index) = balance::sticky_endpoint(&views, wanted)
    {
        return Ok(Arc::clone(&endpoints[index]));
    }
    let index = worker.pick(&state.cluster.load_balancing, &views, options.hash);
    // With every address unhealthy the chooser uses all of them; one that was just tried comes last.
    let index = match index {
        Some(index) if tried.contains(&views[index].address) => {
            views.iter().position(|view| !tried.contains(&view.address))
        }
        index => index,
    };
    index
        .map(|index| Arc::clone(&endpoints[index]))
        .ok_or_else(|| ProxyError::Resolve {
            cluster: state.cluster.name.clone(),
            detail: addresses
                .error
                .clone()
                .unwrap_or_else(|| "it has no address".to_owned()),
        })
}

/// The cookie that names the endpoint, when the cluster wants one. `secure` for clients that came by HTTPS.
pub(crate) fn sticky_cookie(
    cluster: &Cluster,
    endpoint: &Endpoint,
    secure: bool,
) -> Option<HeaderValue> {
    let LoadBalancing::StickyCookie { name, max_age } = &cluster.load_balancing else {
        return None;
    };
    let id = balance::endpoint_id(&cluster.key, endpoint.identity);
    HeaderValue::from_str(&balance::sticky_cookie(name, id, *max_age, secure)).ok()
}

struct Failure {
    error: ProxyError,
    /// Whether another attempt is safe and may help.
    again: bool,
    /// Whether the endpoint is to blame: a reused connection that was closed is nobody's fault.
    blame: bool,
}

/// The request while it is being tried; None while it is on its way.
struct Attempt {
    request: Option<Box<Request<Body>>>,
    repeatable: bool,
    fresh: bool,
}

impl Attempt {
    fn new(request: Box<Request<Body>>) -> Self {
        let repeatable = matches!(request.body(), Body::Empty) && request.method().is_idempotent();
        Self {
            request: Some(request),
            repeatable,
            fresh: false,
        }
    }

    fn given_up(self, error: ProxyError) -> SendError {
        let unsent = self.request.filter(|_| error.nothing_sent());
        SendError { error, unsent }
    }

    async fn make(
        &mut self,
        worker: &Arc<WorkerCluster>,
        endpoint: &Arc<Endpoint>,
        options: &SendOptions,
    ) -> Result<Response<AnswerBody>, Failure> {
        let cluster = &worker.state.cluster;
        let shared = !options.upgrade && cluster.proxy_protocol.is_none();
        let reusable = shared && !self.fresh;
        let (connection, reused) = match reusable.then(|| worker.idle(endpoint.address)).flatten() {
            Some(connection) => (connection, true),
            // Boxed: connecting is rare and its state is larger than all the rest.
            None => Box::pin(worker.connect(endpoint.address, reusable, options))
                .await
                .map_err(|error| Failure {
                    again: error.nothing_sent(),
                    error,
                    blame: true,
                })?,
        };
        let Some(mut request) = self.request.take() else {
            // Unreachable by construction: every failure that allows another attempt restores it.
            let detail = "the request was already sent";
            let endpoint = cluster.name.clone();
            let error = ProxyError::BadResponse { endpoint, detail };
            return Err(Failure {
                error,
                again: false,
                blame: false,
            });
        };
        let h2 = matches!(connection, HttpConnection::H2 { .. });
        prepare(&mut request, h2, cluster);
        let lost = match connection {
            HttpConnection::H1(connection) => {
                let home = shared.then(|| Home {
                    pool: Arc::clone(worker),
                    address: endpoint.address,
                });
                let terms = Terms {
                    first_byte: options.first_byte,
                    interim: options.hints.as_ref().map(|hints| hints as &dyn Interim),
                    home,
                };
                match connection.exchange(&mut request, terms).await {
                    Ok(mut response) => {
                        keep_reason(&mut response);
                        return Ok(response.map(AnswerBody::Http1));
                    }
                    Err(failed) => {
                        let again =
                            failed.unsent || (reused && self.repeatable && !failed.answered);
                        Lost {
                            error: failed.error.into(),
                            request: again.then_some(request),
                        }
                    }
                }
            }
            HttpConnection::H2 { sender, streams } => {
                // Only a reused connection can die of the race that makes repeating safe.
                let replay = (reused && self.repeatable).then(|| Box::new(copy_head(&request)));
                let sending = Box::pin(exchange_h2(sender, streams, request));
                match within_first_byte(sending, options).await {
                    Some(Ok(response)) => return Ok(response),
                    Some(Err((error, unsent))) => Lost {
                        request: unsent.or(replay.filter(|_| !error.is_parse())),
                        error: LostBy::Exchange(error.into()),
                    },
                    None => Lost {
                        error: LostBy::Time(options.first_byte.unwrap_or_default()),
                        request: None,
                    },
                }
            }
        };
        Err(self.lost(lost, reused, || {
            format!("{} ({})", cluster.name, endpoint.address)
        }))
    }

    /// Keeps what may be sent again of an exchange that brought no response.
    fn lost(&mut self, lost: Lost, reused: bool, endpoint: impl FnOnce() -> String) -> Failure {
        let endpoint = endpoint();
        match lost.error {
            LostBy::Time(limit) => Failure {
                error: ProxyError::FirstByteTimeout { endpoint, limit },
                again: false,
                blame: true,
            },
            LostBy::Exchange(source) => {
                let by_client = source.is_of_request_body();
                self.request = lost.request.filter(|_| !by_client);
                // The other idle connections to this address are likely to be as dead.
                self.fresh = true;
                Failure {
                    error: ProxyError::Exchange { endpoint, source },
                    again: self.request.is_some(),
                    blame: !reused && !by_client,
                }
            }
        }
    }
}

/// An exchange without a response, and the request where it may be sent again.
struct Lost {
    error: LostBy,
    request: Option<Box<Request<Body>>>,
}

enum LostBy {
    Time(Duration),
    Exchange(ExchangeError),
}

impl From<Http1Error> for LostBy {
    fn from(error: Http1Error) -> Self {
        match error {
            Http1Error::FirstByte(limit) => Self::Time(limit),
            error => Self::Exchange(error.into()),
        }
    }
}

/// The clock for the response's head starts when the request's body has ended: a long upload is no slow
/// answer, and has an idle clock of its own. None when it has run out.
async fn within_first_byte<F: Future + Unpin>(
    mut sending: F,
    options: &SendOptions,
) -> Option<F::Output> {
    let Some(limit) = options.first_byte else {
        return Some(sending.await);
    };
    if let Some(body) = &options.body {
        tokio::select! {
            biased;
            output = &mut sending => return Some(output),
            () = body.until_ended() => {}
        }
    }
    tokio::time::timeout(limit, sending).await.ok()
}

async fn exchange_h2(
    mut sender: http2::SendRequest<Body>,
    streams: Arc<AtomicUsize>,
    request: Box<Request<Body>>,
) -> Result<Response<AnswerBody>, (hyper::Error, Option<Box<Request<Body>>>)> {
    let stream = StreamCount::begin(&streams);
    let sent = sender.try_send_request(*request).await;
    let response = sent.map_err(|mut error| {
        let unsent = error.take_message().map(Box::new);
        (error.into_error(), unsent)
    })?;
    Ok(response.map(|incoming| AnswerBody::Http2 {
        incoming,
        _stream: stream,
    }))
}

/// An unusual reason goes on to clients of HTTP/1, whose codec knows it by another name.
fn keep_reason<B>(response: &mut Response<B>) {
    if let Some(Reason(reason)) = response.extensions_mut().remove()
        && let Ok(reason) = ReasonPhrase::try_from(reason)
    {
        response.extensions_mut().insert(reason);
    }
}

fn copy_head(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(Body::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Gives target and Host the form of the protocol: origin-form and Host, or absolute and no Host.
fn prepare(request: &mut Request<Body>, h2: bool, cluster: &Cluster) {
    if h2 {
        let tls = cluster.tls.is_some();
        to_http2(request, if tls { "https" } else { "http" });
    } else {
        *request.version_mut() = Version::HTTP_11;
        if request.uri().authority().is_some() {
            // Prepared for HTTP/2 by an earlier attempt.
            let mut parts = std::mem::take(request.uri_mut()).into_parts();
            if let Some(authority) = parts.authority.take()
                && let Ok(value) = HeaderValue::from_str(authority.as_str())
            {
                request.headers_mut().insert(header::HOST, value);
            }
            parts.scheme = None;
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
    }
}

fn to_http2(request: &mut Request<Body>, scheme: &'static str) {
    *request.version_mut() = Version::HTTP_2;
    if request.uri().authority().is_some() {
        return;
    }
    if let Some(host) = request.headers_mut().remove(header::HOST) {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = scheme.parse().ok();
        parts.authority = http::uri::Authority::try_from(host.as_bytes()).ok();
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

/// Builds the request to a backend from the client's head.
pub(crate) fn request(parts: Box<request::Parts>, body: Body) -> Box<Request<Body>> {
    let mut parts = *parts;
    // What the client's connection has put there ends here.
    parts.extensions = http::Extensions::new();
    Box::new(Request::from_parts(parts, body))
}

/// Bytes to a backend, for passthrough.
pub(crate) enum Opened {
    Socket(connect::UpstreamStream),
    Link(answer::LinkStream),
}

/// Opens a bare connection to one of the cluster's addresses, for passthrough.
pub(crate) async fn open(
    upstreams: &Upstreams,
    cluster: &Arc<Cluster>,
    options: &SendOptions,
) -> Result<(Opened, ActiveRequest), ProxyError> {
    let worker = upstreams.cluster(cluster);
    let state = &worker.state;
    let mut active = begin(state)?;
    if let Some(behind) = behind(upstreams, cluster) {
        let opening = Box::pin(agent::open(behind, &worker, active, options));
        let (stream, active) = opening.await?;
        return Ok((Opened::Link(stream), active));
    }
    until_resolved(state).await;
    let mut tried = Vec::new();
    loop {
        let endpoint = choose(&worker, &tried, options)?;
        active.at(&endpoint);
        match connect::transport(cluster, endpoint.address, options.proxied, true).await {
            Ok(stream) => {
                endpoint.succeeded();
                return Ok((Opened::Socket(stream), active));
            }
            Err(error) => {
                state.failed(&endpoint, tidegate_telemetry::chain(&error).to_string());
                tried.push(endpoint.address);
                let all = state.addresses().endpoints.len();
                if tried.len() >= all.min(MAX_ATTEMPTS) {
                    return Err(error);
                }
            }
        }
    }
}
