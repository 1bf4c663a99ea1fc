//! What is not a request and an answer: `WebSocket`s and other upgrades, TCP, UDP.
//!
//! All come as extended CONNECT (RFC 8441). The answer says whether the target agreed; then bytes are copied until one
//! side ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Response, StatusCode, Uri};
use tidegate_http1::{Connection, Http1Error, Terms};
use tidegate_model::AgentTarget;
use tidegate_tunnel::datagram;
use tidegate_tunnel::link::Protocol;
use tidegate_tunnel::link::agent::Agreed;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until, timeout};

use super::body::{AnswerBody, AskBody, TargetBody};
use super::connect::For;
use super::counters::Counted;
use super::failure::{Failure, Reason};
use super::proxy_header::{self, Carried, Visitor};
use super::{Upstream, fields};
use crate::config::target_rule;

/// Per direction.
const COPY_BUFFER: usize = 16 * 1024;
/// Time for a target's answer to an upgrade.
const UPGRADE: Duration = Duration::from_secs(60);
/// A UDP flow that is quiet for so long has been forgotten by the edge, which decides.
const UDP_IDLE: Duration = Duration::from_secs(240);
/// Bytes of datagrams that are written together.
const BATCH: usize = 32 * 1024;

/// The edge's side of a tunnel, once the answer is on its way, and what keeps it counted.
pub(super) struct Side {
    pub(super) agreed: Agreed,
    pub(super) counted: Counted,
}

fn agreed() -> Response<AnswerBody> {
    Response::new(AnswerBody::text(Bytes::new()))
}

impl Upstream {
    /// TCP: what the visitor sends goes to the target, and back.
    pub(super) async fn tcp(
        self: &Arc<Self>,
        side: Side,
        visitor: Option<Visitor>,
    ) -> Result<Response<AnswerBody>, Failure> {
        if !matches!(self.target, AgentTarget::Tcp { .. }) {
            return Err(unfit(&self.target, "TCP"));
        }
        let stream = self.open(visitor, For::Bytes).await?;
        tokio::spawn(copy(side, stream));
        Ok(agreed())
    }

    /// UDP: datagrams in frames, one socket for each flow.
    pub(super) async fn udp(
        self: &Arc<Self>,
        side: Side,
        visitor: Option<Visitor>,
    ) -> Result<Response<AnswerBody>, Failure> {
        if !matches!(self.target, AgentTarget::Udp { .. }) {
            return Err(unfit(&self.target, "UDP"));
        }
        let late = || {
            Failure::new(
                Reason::ConnectTimeout,
                format!("{} is not resolved", self.target),
            )
        };
        let socket = timeout(self.connect_timeout, self.udp_socket())
            .await
            .map_err(|_| late())??;
        let header = self
            .proxy_protocol
            .map(|version| proxy_header::encode(version, Carried::Datagrams, visitor))
            .unwrap_or_default();
        tokio::spawn(relay(side, socket, header));
        Ok(agreed())
    }

    async fn udp_socket(&self) -> Result<UdpSocket, Failure> {
        let failed = |reason| {
            move |error: io::Error| Failure::new(reason, format!("{}: {error}", self.target))
        };
        let (host, port) = (self.target.host().as_str(), self.target.port());
        let found = tokio::net::lookup_host((host, port)).await;
        let mut found = found.map_err(failed(Reason::NameNotResolved))?;
        let address = found
            .find(|address| target_rule::allows(&self.allow, &self.target, address.ip()))
            .ok_or_else(|| {
                let message = format!(
                    "{}: none of its addresses is among allowTargets",
                    self.target
                );
                Failure::new(Reason::TargetNotAllowed, message)
            })?;
        let local = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(local)
            .await
            .map_err(failed(Reason::ConnectFailed))?;
        socket
            .connect(address)
            .await
            .map_err(failed(Reason::ConnectFailed))?;
        Ok(socket)
    }

    /// A WebSocket, or whatever else the target switches to (RFC 9110 §7.8).
    pub(super) async fn upgrade(
        self: &Arc<Self>,
        protocol: &Protocol,
        authority: Option<&Authority>,
        path: PathAndQuery,
        mut headers: HeaderMap,
        visitor: Option<Visitor>,
        side: Side,
    ) -> Result<Response<AnswerBody>, Failure> {
        if !self.target.is_http() {
            return Err(unfit(&self.target, "HTTP"));
        }
        let websocket = protocol.as_str().eq_ignore_ascii_case("websocket");
        let token = HeaderValue::from_str(protocol.as_str())
            .map_err(|error| Failure::of(Reason::BadRequest, &error))?;
        fields::join_cookies(&mut headers);
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, token.clone());
        if websocket {
            headers.insert(header::SEC_WEBSOCKET_KEY, websocket_key());
            let version = HeaderValue::from_static("13");
            headers
                .entry(header::SEC_WEBSOCKET_VERSION)
                .or_insert(version);
        }
        let host = authority.and_then(|it| HeaderValue::from_str(it.as_str()).ok());
        if let Some(host) = host {
            headers.insert(header::HOST, host);
        }
        let mut request = Request::new(AskBody::None);
        *request.method_mut() = Method::GET;
        *request.uri_mut() = Uri::from(path);
        *request.headers_mut() = headers;

        let stream = self.open(visitor, For::Http1).await?;
        let terms = Terms {
            first_byte: Some(UPGRADE),
            interim: None,
            home: None,
        };
        let answer = Connection::new(stream).exchange(&mut request, terms).await;
        let answer = answer.map_err(|failed| match failed.error {
            Http1Error::FirstByte(_) => {
                let message = format!("{} does not answer the upgrade", self.target);
                Failure::new(Reason::ResponseTimeout, message)
            }
            error => self.lost(&error),
        })?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return self.not_switched(answer, side.counted);
        }
        let switched = answer.headers().get(header::UPGRADE);
        let fits = switched.is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(token.as_bytes()));
        if !fits {
            let message = format!("{} switches to another protocol", self.target);
            return Err(Failure::new(Reason::BadResponse, message));
        }
        let (parts, body) = answer.into_parts();
        let upgraded = body.into_upgraded();
        let upgraded = upgraded.ok_or_else(|| self.lost(&Http1Error::Closed))?;
        let mut response = agreed();
        let headers = response.headers_mut();
        *headers = parts.headers;
        fields::strip_connection(headers);
        fields::strip_tunnel(headers);
        headers.remove(header::SEC_WEBSOCKET_ACCEPT);
        headers.remove(header::CONTENT_LENGTH);
        tokio::spawn(copy(side, upgraded));
        Ok(response)
    }

    /// 2xx would tell the visitor that its WebSocket is open.
    fn not_switched(
        &self,
        answer: Response<TargetBody>,
        counted: Counted,
    ) -> Result<Response<AnswerBody>, Failure> {
        let status = answer.status();
        if status.is_success() || status.is_informational() {
            let message = format!("{} answers the upgrade with {status}", self.target);
            return Err(Failure::new(Reason::UpgradeRefused, message));
        }
        self.answer(answer, |body| AnswerBody::http1(body, counted))
    }
}

fn unfit(target: &AgentTarget, wanted: &str) -> Failure {
    Failure::new(
        Reason::BadRequest,
        format!("{target} is no target for {wanted}"),
    )
}

/// A fresh Sec-WebSocket-Key (RFC 6455 §4.1).
fn websocket_key() -> HeaderValue {
    let key = base64::engine::general_purpose::STANDARD.encode(fastrand::u128(..).to_be_bytes());
    // Base64 is always a valid field value.
    HeaderValue::try_from(key)
        .unwrap_or_else(|_| HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
}

async fn copy(side: Side, mut target: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    let Side {
        agreed,
        counted: _counted,
    } = side;
    let Some(mut visitor) = agreed.tunnel().await else {
        tracing::debug!("the edge's side of a tunnel did not come");
        return;
    };
    let copied = tokio::io::copy_bidirectional_with_sizes(
        &mut visitor,
        &mut target,
        COPY_BUFFER,
        COPY_BUFFER,
    )
    .await;
    if let Err(error) = copied {
        tracing::debug!(%error, "a tunnel broke");
    }
}

async fn relay(side: Side, socket: UdpSocket, header: Vec<u8>) {
    let Side {
        agreed,
        counted: _counted,
    } = side;
    let Some(visitor) = agreed.tunnel().await else {
        return;
    };
    // One direction must not wait for the other.
    let (from_edge, to_edge) = tokio::io::split(visitor);
    let quiet = Quiet::new();
    tokio::select! {
        () = to_target(from_edge, &socket, &header, &quiet) => {}
        () = from_target(to_edge, &socket, &quiet) => {}
        () = quiet.for_long() => {}
    }
}

async fn to_target(
    mut from_edge: impl tokio::io::AsyncRead + Unpin,
    socket: &UdpSocket,
    header: &[u8],
    quiet: &Quiet,
) {
    // A frame is 64 KiB at most, so what is left over is bounded.
    let mut frames = BytesMut::new();
    loop {
        frames.reserve(BATCH);
        if !matches!(from_edge.read_buf(&mut frames).await, Ok(1..)) {
            return;
        }
        while let Some(datagram) = datagram::decode(&mut frames) {
            send(socket, header, &datagram).await;
        }
        quiet.broken();
    }
}

async fn from_target(
    mut to_edge: impl tokio::io::AsyncWrite + Unpin,
    socket: &UdpSocket,
    quiet: &Quiet,
) {
    let mut received = vec![0; datagram::MAX_DATAGRAM];
    let mut frames = BytesMut::new();
    loop {
        // A port that nobody listens at: later datagrams may reach somebody.
        let Ok(length) = socket.recv(&mut received).await else {
            continue;
        };
        let mut next = Some(length);
        while let Some(length) = next {
            // It fits: no datagram is longer.
            let _ = datagram::encode(received.get(..length).unwrap_or_default(), &mut frames);
            next = (frames.len() < BATCH)
                .then(|| socket.try_recv(&mut received).ok())
                .flatten();
        }
        // Small answers must not wait for others.
        if to_edge.write_all_buf(&mut frames).await.is_err() || to_edge.flush().await.is_err() {
            return;
        }
        quiet.broken();
    }
}

/// Since when nothing came from either side.
struct Quiet {
    start: Instant,
    /// Milliseconds after `start`.
    last: AtomicU64,
}

impl Quiet {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    fn broken(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    async fn for_long(&self) {
        loop {
            let last = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed));
            if last.elapsed() >= UDP_IDLE {
                return;
            }
            sleep_until(last + UDP_IDLE).await;
        }
    }
}

async fn send(socket: &UdpSocket, header: &[u8], datagram: &Bytes) {
    let result = if header.is_empty() {
        socket.send(datagram).await
    } else {
        socket.send(&[header, datagram].concat()).await
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a datagram is not sent");
    }
}
