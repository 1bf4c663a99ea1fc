//! Requests that another replica sends, because its visitors want an agent whose links end here.
//!
//! What comes is what would go to the agent, and what goes back is the agent's answer: nothing is added, judged or
//! waited for here. Where there is no link, or none that takes the request, the other replica is told in a word.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tidegate_model::{AgentId, MappingId};
use tidegate_tunnel::handshake;
use tidegate_tunnel::link::Protocol;
use tidegate_tunnel::link::agent::{Agreed, Incoming};
use tidegate_tunnel::link::edge::{SendError, SendFailed};

use crate::body::Body;
use crate::upgrade;
use crate::upstream::Relayed;
use crate::worker::Shared;

/// Whom a request is for.
struct Wanted {
    agent: AgentId,
    mapping: MappingId,
    instance: Option<HeaderValue>,
}

impl Wanted {
    /// Takes what is for this replica alone out of the head.
    fn take(headers: &mut HeaderMap) -> Option<Self> {
        let instance = headers.remove(handshake::INSTANCE);
        let agent = headers.remove(handshake::AGENT)?;
        let (namespace, name) = agent.to_str().ok()?.split_once('/')?;
        let mapping = headers.get(handshake::MAPPING)?.to_str().ok()?;
        Some(Self {
            agent: AgentId::new(namespace, name),
            mapping: MappingId::parse(mapping)?,
            instance,
        })
    }
}

/// Answers another replica.
pub(super) async fn answer(shared: &Arc<Shared>, mut request: Request<Incoming>) -> Response<Body> {
    // A drain waits for what others have begun here.
    let counted = shared.forwarded.token();
    let Some(wanted) = Wanted::take(request.headers_mut()) else {
        return failed(StatusCode::SERVICE_UNAVAILABLE, handshake::NO_LINK);
    };
    let (mut request, visitor) = rebuilt(request);
    let instance = wanted.instance.as_ref().and_then(|it| it.to_str().ok());
    let links = shared
        .hub
        .links_here(&wanted.agent, &wanted.mapping, instance);
    let mut word = handshake::NO_LINK;
    for live in links {
        let replay = matches!(request.body(), Body::Empty).then(|| copy_head(&request));
        let relayed = Relayed::new(&live);
        let request_counted = request.map(|body| relayed.request(body));
        match live.link.try_send(request_counted).await {
            Ok(mut response) if visitor.is_some() && response.status() == StatusCode::OK => {
                let mut head = Response::new(Body::Empty);
                *head.headers_mut() = std::mem::take(response.headers_mut());
                let agreed = response.into_body().into_tunnel().zip(visitor);
                let Some((tunnel, visitor)) = agreed else {
                    return failed(StatusCode::BAD_GATEWAY, handshake::LINK_LOST);
                };
                let cut = shared.cut.clone();
                tokio::spawn(async move {
                    let Some(visitor) = visitor.tunnel().await else {
                        return;
                    };
                    let agent = relayed.tunnel(tunnel);
                    // The other replica knows how long it may be idle.
                    let ended = upgrade::copy(visitor, agent, None, cut).await;
                    tracing::trace!(?ended, "a tunnel for another replica has ended");
                    drop(counted);
                });
                return head;
            }
            Ok(response) => return response.map(|body| relayed.answer(body, counted)),
            Err(SendFailed { error, unsent }) => {
                word = match &error {
                    SendError::Stalled | SendError::Full => handshake::LINK_BUSY,
                    SendError::Untouched(_) => handshake::NOT_BEGUN,
                    _ if unsent.is_some() => handshake::NO_LINK,
                    _ => handshake::LINK_LOST,
                };
                let replay = replay.filter(|_| word == handshake::NOT_BEGUN);
                match unsent.map(|unsent| *unsent).or(replay) {
                    Some(unsent) => request = unsent,
                    None => break,
                }
            }
        }
    }
    let status = if word == handshake::LINK_LOST {
        StatusCode::BAD_GATEWAY
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    failed(status, word)
}

fn failed(status: StatusCode, word: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    let word = HeaderValue::from_static(word);
    response.headers_mut().insert(handshake::ERROR, word);
    response
}

/// The request as it goes to the agent, and the stream of a CONNECT, which has no body.
fn rebuilt(request: Request<Incoming>) -> (Request<Body>, Option<Agreed>) {
    let (parts, incoming) = request.into_parts();
    let (body, visitor) = match incoming {
        Incoming::Tunnel(visitor) => (Body::Empty, Some(visitor)),
        Incoming::Body(body) if body.is_end_stream() => (Body::Empty, None),
        Incoming::Body(body) => (Body::boxed(body.map_err(Into::into)), None),
    };
    let mut built = Request::new(body);
    *built.method_mut() = parts.method;
    *built.uri_mut() = parts.uri;
    *built.headers_mut() = parts.headers;
    if let Some(protocol) = parts.extensions.get::<Protocol>() {
        built.extensions_mut().insert(protocol.clone());
    }
    (built, visitor)
}

fn copy_head(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(Body::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    if let Some(protocol) = request.extensions().get::<Protocol>() {
        copy.extensions_mut().insert(protocol.clone());
    }
    copy
}
