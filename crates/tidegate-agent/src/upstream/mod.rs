//! What the edge asks for, at the mapping's target and nowhere else.
//!
//! A request names its mapping; host, path and all header fields of it are the visitor's and choose nothing.
//! Redirects are the visitor's to follow, cookies the visitor's to keep.

mod body;
mod connect;
mod counters;
mod exchange;
mod failure;
mod fields;
mod pool;
mod probe;
mod proxy_header;
mod tunnel;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Request, Response};
use tidegate_http1::RawTarget;
use tidegate_model::{
    AgentTarget, AgentTls, HostName, MappingId, ProxyProtocolVersion, UpstreamProtocol,
};
use tidegate_tunnel::link::Protocol;
use tidegate_tunnel::link::agent::Incoming;
use tidegate_tunnel::{handshake, wire};

use crate::config::{TargetRule, target_rule};
use body::{AskBody, VisitorBody};
use connect::TlsSetup;
use exchange::Ask;
use pool::Pool;
use proxy_header::Visitor;
use tunnel::Side;

pub(crate) use body::AnswerBody;
pub(crate) use counters::Counters;
pub(crate) use failure::{Failure, Reason};

/// Where the edge does not say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Whatever the edge says.
const LONGEST_CONNECT: Duration = Duration::from_secs(60);

/// A mapping, ready for requests.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) id: MappingId,
    pub(crate) target: AgentTarget,
    protocol: UpstreamProtocol,
    tls: Option<TlsSetup>,
    proxy_protocol: Option<ProxyProtocolVersion>,
    connect_timeout: Duration,
    allow: Arc<[TargetRule]>,
    pool: Arc<Pool>,
    pub(crate) counters: Arc<Counters>,
}

impl Upstream {
    /// What the edge has told of; the error says why this agent cannot or will not serve it.
    pub(crate) fn new(
        mapping: &wire::Mapping,
        allow: &Arc<[TargetRule]>,
    ) -> Result<Self, (&'static str, String)> {
        let id = MappingId::parse(&mapping.id)
            .ok_or(("NotSupported", "the mapping has no fitting id".to_owned()))?;
        let target = AgentTarget::parse(&mapping.target)
            .map_err(|error| ("TargetNotSupported", error.to_string()))?;
        if !target_rule::may_be(allow, &target) {
            return Err((
                "TargetNotAllowed",
                format!("{target} is not among the agent's allowTargets"),
            ));
        }
        let not = |what: &str| ("NotSupported", format!("this agent does not know {what}"));
        let protocol = match mapping.protocol {
            0 => UpstreamProtocol::Auto,
            1 => UpstreamProtocol::Http1,
            2 => UpstreamProtocol::Http2,
            other => return Err(not(&format!("HTTP version {other}"))),
        };
        let proxy_protocol = match mapping.proxy_protocol {
            None => None,
            Some(1) if !matches!(target, AgentTarget::Udp { .. }) => Some(ProxyProtocolVersion::V1),
            Some(2) => Some(ProxyProtocolVersion::V2),
            Some(other) => return Err(not(&format!("PROXY protocol {other} for {target}"))),
        };
        let wanted = matches!(target, AgentTarget::Https { .. });
        let tls = match &mapping.tls {
            Some(tls) => Some(model_tls(tls)),
            None => wanted.then(AgentTls::default),
        };
        let tls = tls.filter(|_| !matches!(target, AgentTarget::Udp { .. }));
        let tls = tls
            .map(|tls| TlsSetup::new(&target, &tls, protocol))
            .transpose();
        let tls = tls.map_err(|message| ("TlsNotPossible", message))?;
        let asked = Duration::from_millis(mapping.connect_timeout_ms);
        Ok(Self {
            id,
            target,
            protocol,
            tls,
            proxy_protocol,
            connect_timeout: match asked {
                Duration::ZERO => CONNECT_TIMEOUT,
                asked => asked.min(LONGEST_CONNECT),
            },
            allow: Arc::clone(allow),
            pool: Arc::default(),
            counters: Arc::default(),
        })
    }

    /// Whether it was made under these rules.
    pub(crate) fn is_under(&self, allow: &Arc<[TargetRule]>) -> bool {
        self.allow == *allow
    }

    /// Answers what the edge asks.
    pub(crate) async fn serve(
        self: &Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<AnswerBody>, Failure> {
        let counted = self.counters.begin();
        // Nobody else asks.
        let visitor = (self.proxy_protocol.is_some())
            .then(|| visitor(request.headers()))
            .flatten();
        let (head, body) = request.into_parts();
        let result = match body {
            Incoming::Body(body) => self.request(head, body, visitor, counted).await,
            // Boxed, as all that is rare: every request in flight would have room for it.
            Incoming::Tunnel(agreed) => {
                let side = Side { agreed, counted };
                Box::pin(self.tunnel(head, visitor, side)).await
            }
        };
        if result.is_err() {
            self.counters.failed();
        }
        result
    }

    async fn request(
        self: &Arc<Self>,
        head: Parts,
        body: VisitorBody,
        visitor: Option<Visitor>,
        counted: counters::Counted,
    ) -> Result<Response<AnswerBody>, Failure> {
        if !self.target.is_http() {
            let message = format!("{} is no target for requests", self.target);
            return Err(Failure::new(Reason::BadRequest, message));
        }
        let ask = Ask {
            method: head.method,
            authority: head.uri.authority().cloned(),
            path: path(&head.uri)?,
            raw: raw_target(&head.headers)?,
            headers: stripped(head.headers),
            body: AskBody::Visitor(body),
        };
        self.exchange(ask, visitor, counted).await
    }

    async fn tunnel(
        self: &Arc<Self>,
        head: Parts,
        visitor: Option<Visitor>,
        side: Side,
    ) -> Result<Response<AnswerBody>, Failure> {
        let Some(protocol) = head.extensions.get::<Protocol>() else {
            let message = "CONNECT without a protocol";
            return Err(Failure::new(Reason::BadRequest, message));
        };
        match protocol.as_str() {
            handshake::PROTOCOL_TCP => self.tcp(side, visitor).await,
            handshake::PROTOCOL_UDP => self.udp(side, visitor).await,
            _ => {
                let path = path(&head.uri)?;
                let headers = stripped(head.headers);
                let authority = head.uri.authority();
                self.upgrade(protocol, authority, path, headers, visitor, side)
                    .await
            }
        }
    }
}

/// The path as it goes to the target. A whole URL in its place chooses nothing.
fn path(uri: &http::Uri) -> Result<PathAndQuery, Failure> {
    let path = uri.path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    if path.as_str().starts_with('/') || path.as_str() == "*" {
        return Ok(path);
    }
    Err(Failure::new(
        Reason::BadRequest,
        "the path does not begin with a slash",
    ))
}

/// What stands in the request line where no URI may hold it.
fn raw_target(headers: &HeaderMap) -> Result<Option<RawTarget>, Failure> {
    let Some(raw) = headers.get(handshake::TARGET) else {
        return Ok(None);
    };
    let raw = RawTarget::new(Bytes::copy_from_slice(raw.as_bytes()));
    let unfit = || Failure::new(Reason::BadRequest, "the request target would end its line");
    raw.map(Some).ok_or_else(unfit)
}

fn stripped(mut headers: HeaderMap) -> HeaderMap {
    fields::strip_tunnel(&mut headers);
    fields::strip_connection(&mut headers);
    headers
}

/// Who the visitor is, as the edge says.
fn visitor(headers: &HeaderMap) -> Option<Visitor> {
    let address =
        |name: HeaderName| -> Option<SocketAddr> { headers.get(name)?.to_str().ok()?.parse().ok() };
    let client = address(handshake::CLIENT)?;
    let local = address(handshake::LOCAL)?;
    Some(Visitor { client, local })
}

fn model_tls(tls: &wire::AgentTls) -> AgentTls {
    let known = |name: &String| HostName::parse(name).is_ok();
    AgentTls {
        server_name: tls.server_name.clone().filter(known),
        ca_der: tls.ca_der.iter().map(|der| der.to_vec()).collect(),
        insecure_skip_verify: tls.insecure_skip_verify,
    }
}
