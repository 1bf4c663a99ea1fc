//! Requests to services behind agents: each live link of the agent is an address of the cluster, and the link is the
//! connection. What is different from other backends is here: the form of a request on a link, what an agent's own
//! failures mean, and waiting for an agent that is about to be back.
//!
//! A request waits before anything of it is sent and before its body is touched; its own clocks go on meanwhile.
//!
//! Where another replica has the link, the channel to it stands in for it, and the request says beside the rest whose
//! it is. What that replica answers of itself is told from the agent's answers by its words.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Collected, Limited};
use tidegate_http1::RawTarget;
use tidegate_model::{AgentId, Cluster, MappingId, Target};
use tidegate_tunnel::handshake;
use tidegate_tunnel::hub::{Elsewhere, Hub, LiveLink};
use tidegate_tunnel::link::Protocol;
use tidegate_tunnel::link::edge::{LinkIncoming, SendError as SendLinkError, SendFailed};
use tokio::time::Instant;

use super::answer::{self, AnswerBody, Meter};
use super::cluster::{ActiveRequest, ClusterState, Endpoint};
use super::pool::WorkerCluster;
use super::rewind::{self, Kept};
use super::{Answer, MAX_ATTEMPTS, SendError, SendOptions};
use crate::body::Body;
use crate::error::{AgentFailure, ProxyError};
use crate::normalize::remove_tunnel;
use crate::replicas::ForwardedMetric;

/// Requests that wait for one mapping's agent at a time.
const MOST_HELD: u32 = 256;
/// When to look again whether an agent is there.
const AGAIN: Duration = Duration::from_secs(5);
/// What is read of an agent's words about its failure, and for how long.
const WORDS: usize = 1024;
const WORDS_WITHIN: Duration = Duration::from_secs(1);
/// A cluster's agent and what is asked of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Behind<'a> {
    pub(super) hub: &'a Hub<Body>,
    pub(super) agent: &'a AgentId,
    pub(super) mapping: &'a MappingId,
    /// Counts requests to other replicas.
    pub(super) forwarded: &'a ForwardedMetric,
}

/// A request on its way over links.
struct Attempt<'a> {
    request: Option<Box<Request<Body>>>,
    repeatable: bool,
    websocket_key: Option<HeaderValue>,
    agent: &'a AgentId,
    mapping: &'a MappingId,
    /// None for probes.
    forwarded: Option<&'a ForwardedMetric>,
    /// It was sent to another replica, and says so.
    elsewhere: bool,
}

/// Links that a request was sent over: their addresses, and their sessions. A replica's address stays the same when it
/// has a new link.
#[derive(Default)]
struct Tried(Vec<(SocketAddr, Option<u64>)>);

impl Tried {
    fn add(&mut self, endpoint: &Endpoint) {
        self.0.push((endpoint.address, endpoint.session()));
    }

    fn has(&self, endpoint: &Endpoint) -> bool {
        self.0.contains(&(endpoint.address, endpoint.session()))
    }

    /// Those that are still there.
    fn addresses(&self, state: &ClusterState) -> Vec<SocketAddr> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let addresses = state.addresses();
        let tried = addresses.endpoints.iter().filter(|it| self.has(it));
        tried.map(|it| it.address).collect()
    }
}

struct Failure {
    error: ProxyError,
    blame: bool,
}

/// Sends the request over one of the agent's links.
pub(super) async fn send(
    behind: Behind<'_>,
    worker: &Arc<WorkerCluster>,
    mut active: ActiveRequest,
    request: Box<Request<Body>>,
    options: &SendOptions,
) -> Result<Answer, SendError> {
    let state = &worker.state;
    let mut attempt = Attempt::new(request, behind.agent, behind.mapping, options);
    attempt.forwarded = Some(behind.forwarded);
    let mut wait = Wait::default();
    let mut tried = Tried::default();
    let mut retries = 0;
    loop {
        let Ok(endpoint) = super::choose(worker, &tried.addresses(state), options) else {
            match wait.for_link(behind, state, &tried).await {
                Ok(()) => continue,
                Err(error) => return Err(attempt.given_up(error)),
            }
        };
        active.at(&endpoint);
        match attempt.make(&endpoint, options).await {
            Ok(response) => {
                endpoint.succeeded();
                return Ok(Answer {
                    response,
                    active,
                    endpoint,
                    retries,
                });
            }
            Err(Failure { error, blame }) => {
                if blame {
                    state.failed(&endpoint, tidegate_telemetry::chain(&error).to_string());
                }
                let left = attempt.request.is_some();
                tried.add(&endpoint);
                retries += 1;
                let others = state.addresses().endpoints.iter().any(|it| !tried.has(it));
                // An agent whose link is gone is about to be back.
                let gone = matches!(
                    error,
                    ProxyError::LinkLost { .. } | ProxyError::LinkBroke { .. }
                );
                if !left || retries >= MAX_ATTEMPTS || !(others || gone) {
                    return Err(attempt.given_up(error));
                }
                wait.error = Some(error).filter(|_| !gone);
            }
        }
    }
}

/// Waiting for an agent that was there a moment ago.
#[derive(Default)]
struct Wait {
    until: Option<Instant>,
    /// Why the request is still without an answer, if it was on a link already.
    error: Option<ProxyError>,
}

impl Wait {
    /// Ok when there is a link that was not tried.
    async fn for_link(
        &mut self,
        behind: Behind<'_>,
        state: &ClusterState,
        tried: &Tried,
    ) -> Result<(), ProxyError> {
        let hold = behind.hub.patience(behind.agent);
        let mut gone = |agent: &AgentId| {
            self.error
                .take()
                .unwrap_or_else(|| ProxyError::AgentNotConnected {
                    agent: agent.to_string(),
                    retry_after: AGAIN,
                })
        };
        let Some(hold) = hold else {
            return Err(gone(behind.agent));
        };
        let until = *self.until.get_or_insert_with(|| Instant::now() + hold);
        let Some(_held) = Held::take(state) else {
            return Err(gone(behind.agent));
        };
        let news = state.until(|addresses| {
            let mut endpoints = addresses.endpoints.iter();
            endpoints.any(|endpoint| !tried.has(endpoint))
        });
        tokio::time::timeout_at(until, news)
            .await
            .map_err(|_| gone(behind.agent))
    }
}

/// A place among those who wait for a mapping.
struct Held<'a>(&'a ClusterState);

impl<'a> Held<'a> {
    fn take(state: &'a ClusterState) -> Option<Self> {
        let before = state.held.fetch_add(1, Ordering::Relaxed);
        let place = Self(state);
        (before < MOST_HELD).then_some(place)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<'a> Attempt<'a> {
    fn new(
        mut request: Box<Request<Body>>,
        agent: &'a AgentId,
        mapping: &'a MappingId,
        options: &SendOptions,
    ) -> Self {
        let repeatable = !options.upgrade
            && matches!(request.body(), Body::Empty)
            && request.method().is_idempotent();
        let websocket_key = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned();
        address(&mut request, mapping, options);
        if options.upgrade {
            to_connect(&mut request);
        }
        Self {
            request: Some(request),
            repeatable,
            websocket_key,
            agent,
            mapping,
            forwarded: None,
            elsewhere: false,
        }
    }

    /// The request, where nothing of it left, as it was: another cluster may have it.
    fn given_up(self, error: ProxyError) -> SendError {
        let unsent = self.request.filter(|_| error.nothing_sent());
        let unsent = unsent.map(|mut request| {
            remove_tunnel(request.headers_mut());
            from_connect(&mut request);
            request
        });
        SendError { error, unsent }
    }

    async fn make(
        &mut self,
        endpoint: &Endpoint,
        options: &SendOptions,
    ) -> Result<Response<AnswerBody>, Failure> {
        let lost = |detail: String| Failure {
            error: ProxyError::LinkLost {
                endpoint: endpoint.address.to_string(),
                detail,
            },
            blame: false,
        };
        let Some(live) = &endpoint.link else {
            return Err(lost("the endpoint has no link".to_owned()));
        };
        let Some(mut request) = self.request.take() else {
            return Err(lost("the request was sent already".to_owned()));
        };
        let upgrade = request.method() == Method::CONNECT;
        let protocol = request.extensions().get::<Protocol>().cloned();
        let elsewhere = live.elsewhere.is_some();
        let empty = matches!(request.body(), Body::Empty);
        let head = (elsewhere || (empty && !upgrade)).then(|| copy(&request));
        let Some(mapping) = live.ready.get(self.mapping) else {
            return Err(lost("the agent does not have the mapping".to_owned()));
        };
        let meter = Meter {
            link: Arc::clone(&live.traffic),
            mapping: Some(Arc::clone(mapping)),
        };
        let mut again = Again {
            head,
            empty,
            kept: None,
        };
        if self.elsewhere {
            let headers = request.headers_mut();
            headers.remove(handshake::AGENT);
            headers.remove(handshake::INSTANCE);
            self.elsewhere = false;
        }
        if elsewhere {
            self.say_whose(request.headers_mut(), live);
        } else {
            meter.request();
        }
        let request = request.map(|body| {
            let body = if elsewhere { again.keep(body) } else { body };
            answer::counted(body, meter.clone())
        });
        let sending = Box::pin(live.link.try_send(request));
        let Some(sent) = super::within_first_byte(sending, options).await else {
            self.count(live, "Timeout", Some(&meter));
            return Err(Failure {
                error: ProxyError::FirstByteTimeout {
                    endpoint: endpoint.address.to_string(),
                    limit: options.first_byte.unwrap_or_default(),
                },
                blame: true,
            });
        };
        let mut response = match sent {
            Ok(response) => response,
            Err(SendFailed { error, unsent }) => {
                let never_left = unsent.is_some();
                self.count(live, error.reason(), (!never_left).then_some(&meter));
                // The agent did not begin with it, or is gone with the link and repeating harms nobody.
                let untouched = matches!(error, SendLinkError::Untouched(_));
                let may_repeat = untouched || (self.repeatable && live.link.is_closed());
                self.request = unsent;
                if self.request.is_none() && may_repeat {
                    self.request = again.request();
                }
                let endpoint = endpoint.address.to_string();
                let detail = tidegate_telemetry::chain(&error).to_string();
                let error = match error {
                    SendLinkError::Stalled | SendLinkError::Full => {
                        ProxyError::LinkBusy { endpoint }
                    }
                    _ if never_left => ProxyError::LinkLost { endpoint, detail },
                    _ => ProxyError::LinkBroke { endpoint, detail },
                };
                let blame = false;
                return Err(Failure { error, blame });
            }
        };
        let word = response.headers_mut().remove(handshake::ERROR);
        if let Some(other) = &live.elsewhere
            && let Some(word) = &word
            && let Some((word, error)) = of_replica(word, endpoint, other)
        {
            let nothing_sent = error.nothing_sent();
            self.count(live, word, (!nothing_sent).then_some(&meter));
            if nothing_sent || self.repeatable {
                self.request = again.request();
            }
            let blame = false;
            return Err(Failure { error, blame });
        }
        self.count(live, "Answered", Some(&meter));
        if let Some(word) = word {
            if self.repeatable {
                self.request = again.request();
            }
            return Err(agent_failed(endpoint, &word, response).await);
        }
        remove_tunnel(response.headers_mut());
        if upgrade && response.status() == StatusCode::OK {
            let mut head = Response::new(());
            *head.headers_mut() = std::mem::take(response.headers_mut());
            let io = response.into_body().into_tunnel();
            let io = io.ok_or_else(|| lost("the stream is gone".to_owned()))?;
            self.switch(&mut head, protocol.as_ref());
            return Ok(head.map(|()| AnswerBody::switched(io, meter)));
        }
        Ok(response.map(|incoming| AnswerBody::Link { incoming, meter }))
    }

    /// For another replica, which has links of many agents.
    fn say_whose(&mut self, headers: &mut HeaderMap, live: &LiveLink<Body>) {
        self.elsewhere = true;
        // Names of objects and hexadecimal digits: these conversions do not fail.
        if let Ok(agent) = HeaderValue::try_from(self.agent.to_string()) {
            headers.insert(handshake::AGENT, agent);
        }
        if let Ok(instance) = HeaderValue::from_str(&live.instance) {
            headers.insert(handshake::INSTANCE, instance);
        }
    }

    /// Counts what became of a request at another replica; for the mapping only if the agent can have seen it.
    fn count(&self, live: &LiveLink<Body>, outcome: &'static str, meter: Option<&Meter>) {
        if live.elsewhere.is_none() {
            return;
        }
        if let Some(forwarded) = self.forwarded {
            forwarded.count(outcome);
        }
        if let Some(meter) = meter {
            meter.request();
        }
    }

    /// A 200 to extended CONNECT, as HTTP/1.1 says it (RFC 8441 §5, RFC 6455 §4.2.2).
    fn switch(&self, head: &mut Response<()>, protocol: Option<&Protocol>) {
        *head.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let protocol = protocol.map_or("", Protocol::as_str);
        let headers = head.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Ok(value) = HeaderValue::from_str(protocol) {
            headers.insert(header::UPGRADE, value);
        }
        if let Some(key) = &self.websocket_key
            && protocol.eq_ignore_ascii_case("websocket")
            && let Some(accept) = handshake::Upgrade::accept(key)
        {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
    }
}

/// What it takes to send a request once more.
struct Again {
    head: Option<Request<Body>>,
    /// It has no body.
    empty: bool,
    kept: Option<Kept>,
}

impl Again {
    fn keep(&mut self, body: Body) -> Body {
        let (body, kept) = rewind::keep(body);
        self.kept = kept;
        body
    }

    /// As it was; None where its body is gone.
    fn request(&mut self) -> Option<Box<Request<Body>>> {
        let mut request = self.head.take()?;
        if !self.empty {
            *request.body_mut() = self.kept.take()?.take_back()?;
        }
        Some(Box::new(request))
    }
}

/// A request without its body.
fn copy(request: &Request<Body>) -> Request<Body> {
    let mut copy = super::copy_head(request);
    if let Some(protocol) = request.extensions().get::<Protocol>() {
        copy.extensions_mut().insert(protocol.clone());
    }
    copy
}

/// What another replica says of itself; None for words of the agent.
fn of_replica(
    word: &HeaderValue,
    endpoint: &Endpoint,
    other: &Elsewhere,
) -> Option<(&'static str, ProxyError)> {
    let said = |detail: &str| format!("replica {}: {detail}", other.replica);
    let endpoint = endpoint.address.to_string();
    let lost = |endpoint, detail| ProxyError::LinkLost { endpoint, detail };
    match word.as_bytes() {
        it if it == handshake::NO_LINK.as_bytes() => {
            let detail = said("it has no link to the agent any more");
            Some((handshake::NO_LINK, lost(endpoint, detail)))
        }
        it if it == handshake::NOT_BEGUN.as_bytes() => {
            let detail = said("the agent did not take the request");
            Some((handshake::NOT_BEGUN, lost(endpoint, detail)))
        }
        it if it == handshake::LINK_BUSY.as_bytes() => {
            Some((handshake::LINK_BUSY, ProxyError::LinkBusy { endpoint }))
        }
        it if it == handshake::LINK_LOST.as_bytes() => {
            let detail = said("its link to the agent ended with the request on it");
            Some((
                handshake::LINK_LOST,
                ProxyError::LinkBroke { endpoint, detail },
            ))
        }
        _ => None,
    }
}

/// Says to whom the request is, from whom, and what stood in its request line where no URI can hold it.
fn address(request: &mut Request<Body>, mapping: &MappingId, options: &SendOptions) {
    super::to_http2(request, "http");
    let raw = request.extensions_mut().remove::<RawTarget>();
    let headers = request.headers_mut();
    fields(headers, mapping, options);
    if let Some(raw) = raw
        && let Ok(value) = HeaderValue::from_bytes(raw.as_bytes())
    {
        headers.insert(handshake::TARGET, value);
    }
}

fn fields(headers: &mut HeaderMap, mapping: &MappingId, options: &SendOptions) {
    // Digits, dots, colons, brackets: these conversions do not fail.
    if let Ok(value) = HeaderValue::from_str(mapping.as_str()) {
        headers.insert(handshake::MAPPING, value);
    }
    if let Some(proxied) = &options.proxied {
        for (name, address) in [
            (handshake::CLIENT, proxied.client),
            (handshake::LOCAL, proxied.local),
        ] {
            if let Ok(value) = HeaderValue::try_from(address.to_string()) {
                headers.insert(name, value);
            }
        }
    }
}

/// An upgrade of HTTP/1.1 as an extended CONNECT (RFC 8441 §5). One that is no GET is no upgrade any more: CONNECT
/// could not say what it was.
fn to_connect(request: &mut Request<Body>) {
    let headers = request.headers_mut();
    headers.remove(header::CONNECTION);
    let protocol = headers.remove(header::UPGRADE);
    let protocol = protocol.as_ref().and_then(|value| value.to_str().ok());
    let Some(protocol) = protocol.map(str::to_owned) else {
        return;
    };
    if request.method() == Method::GET {
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(Protocol::from(&*protocol));
    }
}

fn from_connect(request: &mut Request<Body>) {
    let Some(protocol) = request.extensions_mut().remove::<Protocol>() else {
        return;
    };
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(value) = HeaderValue::from_str(protocol.as_str()) {
        headers.insert(header::UPGRADE, value);
    }
}

/// The agent could not do what was asked.
async fn agent_failed(
    endpoint: &Endpoint,
    word: &HeaderValue,
    response: Response<LinkIncoming>,
) -> Failure {
    let status = response.status();
    let words = Limited::new(response.into_body(), WORDS).collect();
    let words = tokio::time::timeout(WORDS_WITHIN, words).await;
    let words = words.ok().and_then(Result::ok).map(Collected::to_bytes);
    let words = words.unwrap_or_default();
    let detail: String = String::from_utf8_lossy(&words)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let failure = AgentFailure::parse(word.as_bytes(), status);
    Failure {
        blame: failure.blames_target(),
        error: ProxyError::Agent {
            endpoint: endpoint.address.to_string(),
            failure,
            detail: detail.trim().to_owned(),
        },
    }
}

/// Bytes to a service behind an agent, for passed-through TLS and ports; or datagrams.
pub(super) async fn open(
    behind: Behind<'_>,
    worker: &Arc<WorkerCluster>,
    mut active: ActiveRequest,
    options: &SendOptions,
) -> Result<(answer::LinkStream, ActiveRequest), ProxyError> {
    let authority = behind.mapping.as_str();
    let mut request = Request::new(Body::Empty);
    *request.method_mut() = Method::CONNECT;
    if let Ok(uri) = format!("http://{authority}/").parse() {
        *request.uri_mut() = uri;
    }
    request
        .extensions_mut()
        .insert(Protocol::from_static(if options.datagrams {
            handshake::PROTOCOL_UDP
        } else {
            handshake::PROTOCOL_TCP
        }));
    let mut attempt = Attempt {
        request: None,
        repeatable: false,
        websocket_key: None,
        agent: behind.agent,
        mapping: behind.mapping,
        forwarded: Some(behind.forwarded),
        elsewhere: false,
    };
    fields(request.headers_mut(), behind.mapping, options);
    let options = SendOptions {
        first_byte: Some(worker.state.cluster.connect_timeout + WORDS_WITHIN),
        ..options.clone()
    };
    let state = &worker.state;
    let (mut wait, mut tried) = (Wait::default(), Tried::default());
    let mut attempts = 0;
    loop {
        let Ok(endpoint) = super::choose(worker, &tried.addresses(state), &options) else {
            wait.for_link(behind, state, &tried).await?;
            continue;
        };
        active.at(&endpoint);
        attempt.request = Some(Box::new(copy(&request)));
        attempt.elsewhere = false;
        match attempt.make(&endpoint, &options).await {
            Ok(response) => {
                let status = response.status();
                let stream = response.into_body().into_link();
                return stream.map(|stream| (stream, active)).ok_or_else(|| {
                    ProxyError::LinkBroke {
                        endpoint: endpoint.address.to_string(),
                        detail: format!("it opened no stream: status {status}"),
                    }
                });
            }
            Err(Failure { error, blame }) => {
                if blame {
                    state.failed(&endpoint, tidegate_telemetry::chain(&error).to_string());
                }
                tried.add(&endpoint);
                attempts += 1;
                if attempts >= MAX_ATTEMPTS {
                    return Err(error);
                }
                wait.error = Some(error);
            }
        }
    }
}

/// A probe over one link. Agents tell it from visitors by nothing.
pub(super) async fn probe(
    cluster: &Cluster,
    endpoint: &Endpoint,
    request: Request<Body>,
) -> Result<StatusCode, ProxyError> {
    let Target::Agent { agent, mapping } = &cluster.target else {
        return Err(ProxyError::LinkLost {
            endpoint: endpoint.address.to_string(),
            detail: "the cluster has no agent".to_owned(),
        });
    };
    let options = SendOptions::default();
    let mut attempt = Attempt::new(Box::new(request), agent, mapping, &options);
    let made = attempt.make(endpoint, &options).await;
    made.map(|response| response.status())
        .map_err(|failure| failure.error)
}
