//! Requests to services behind agents: each live link of the agent is an address of the cluster, and the link is the
//! connection. What is different from other backends is here: the form of a request on a link, what an agent's own
//! failures mean, and waiting for an agent that is about to be back.
//!
//! A request waits before anything of it is sent and before its body is touched; its own clocks go on meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Collected, Limited};
use hyper::ext::Protocol;
use tidegate_model::{AgentId, Cluster, MappingId, Target};
use tidegate_tunnel::handshake;
use tidegate_tunnel::hub::Hub;
use tidegate_tunnel::link::edge::{self, LinkIncoming, SendError as SendLinkError, SendFailed};
use tokio::time::Instant;

use super::answer::{self, AnswerBody, Meter};
use super::cluster::{ActiveRequest, ClusterState, Endpoint};
use super::pool::WorkerCluster;
use super::{Answer, MAX_ATTEMPTS, SendError, SendOptions};
use crate::body::Body;
use crate::error::{AgentFailure, ProxyError};
use crate::normalize::remove_tunnel;
use crate::odd_query::RawTarget;

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
}

/// A request on its way over links.
struct Attempt {
    request: Option<Box<Request<Body>>>,
    repeatable: bool,
    websocket_key: Option<HeaderValue>,
    mapping: MappingId,
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
    let mut attempt = Attempt::new(request, behind.mapping, options);
    let mut wait = Wait::default();
    let mut tried = Vec::new();
    let mut retries = 0;
    loop {
        let Ok(endpoint) = super::choose(worker, &tried, options) else {
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
                tried.push(endpoint.address);
                retries += 1;
                let others = tried.len() < state.addresses().endpoints.len();
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
        tried: &[SocketAddr],
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
            endpoints.any(|endpoint| !tried.contains(&endpoint.address))
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

impl Attempt {
    fn new(mut request: Box<Request<Body>>, mapping: &MappingId, options: &SendOptions) -> Self {
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
            mapping: mapping.clone(),
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
        let Some(request) = self.request.take() else {
            return Err(lost("the request was sent already".to_owned()));
        };
        let upgrade = request.method() == Method::CONNECT;
        let protocol = request.extensions().get::<Protocol>().cloned();
        let replay = (!upgrade && matches!(request.body(), Body::Empty))
            .then(|| Box::new(super::copy_head(&request)));
        let Some(mapping) = live.ready.get(&self.mapping) else {
            return Err(lost("the agent does not have the mapping".to_owned()));
        };
        let meter = Meter {
            link: Arc::clone(&live.traffic),
            mapping: Arc::clone(mapping),
        };
        meter.request();
        let request = request.map(|body| answer::counted(body, meter.clone()));
        let sending = Box::pin(live.link.try_send(request));
        let Some(sent) = super::within_first_byte(sending, options).await else {
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
                // The agent did not begin with it, or is gone with the link and repeating harms nobody.
                let untouched = matches!(error, SendLinkError::Untouched(_));
                let may_repeat = untouched || (self.repeatable && live.link.is_closed());
                self.request = unsent.map(Box::new).or(replay.filter(|_| may_repeat));
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
        if let Some(word) = response.headers_mut().remove(handshake::ERROR) {
            self.request = replay.filter(|_| self.repeatable);
            return Err(agent_failed(endpoint, &word, response).await);
        }
        remove_tunnel(response.headers_mut());
        if upgrade && response.status() == StatusCode::OK {
            let mut head = Response::new(());
            *head.headers_mut() = std::mem::take(response.headers_mut());
            let io = edge::upgrade(response).await;
            let io = io.map_err(|error| lost(error.to_string()))?;
            self.switch(&mut head, protocol.as_ref());
            return Ok(head.map(|()| AnswerBody::switched(io, meter)));
        }
        Ok(response.map(|incoming| AnswerBody::Link { incoming, meter }))
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

/// Says to whom the request is, from whom, and what stood in its request line where no URI can hold it.
fn address(request: &mut Request<Body>, mapping: &MappingId, options: &SendOptions) {
    super::to_http2(request, "http");
    let raw = request.extensions_mut().remove::<RawTarget>();
    let headers = request.headers_mut();
    fields(headers, mapping, options);
    if let Some(RawTarget(raw)) = raw
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

/// Bytes to a service behind an agent, for passed-through TLS.
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
        .insert(Protocol::from_static(handshake::PROTOCOL_TCP));
    let mut attempt = Attempt {
        request: None,
        repeatable: false,
        websocket_key: None,
        mapping: behind.mapping.clone(),
    };
    fields(request.headers_mut(), behind.mapping, options);
    let options = SendOptions {
        first_byte: Some(worker.state.cluster.connect_timeout + WORDS_WITHIN),
        ..options.clone()
    };
    let state = &worker.state;
    let (mut wait, mut tried) = (Wait::default(), Vec::new());
    loop {
        let Ok(endpoint) = super::choose(worker, &tried, &options) else {
            wait.for_link(behind, state, &tried).await?;
            continue;
        };
        active.at(&endpoint);
        let mut copy = super::copy_head(&request);
        *copy.extensions_mut() = request.extensions().clone();
        attempt.request = Some(Box::new(copy));
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
                tried.push(endpoint.address);
                if tried.len() >= MAX_ATTEMPTS {
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
    let Target::Agent { mapping, .. } = &cluster.target else {
        return Err(ProxyError::LinkLost {
            endpoint: endpoint.address.to_string(),
            detail: "the cluster has no agent".to_owned(),
        });
    };
    let options = SendOptions::default();
    let mut attempt = Attempt::new(Box::new(request), mapping, &options);
    let made = attempt.make(endpoint, &options).await;
    made.map(|response| response.status())
        .map_err(|failure| failure.error)
}
