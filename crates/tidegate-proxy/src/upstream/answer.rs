//! The body of a backend's response, whichever way it came, with what it holds of its connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tidegate_tunnel::hub::{LiveLink, Traffic};
use tidegate_tunnel::link::edge::{LinkIncoming, LinkTunnel};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::connect::UpstreamStream;
use super::pool::{Home, StreamCount};
use crate::body::{Body, BodyError};
use crate::io::{CountBytes, Counting};

/// A response body as it comes from the backend. Dropped before its end it gives the connection, or the
/// stream, up.
pub(crate) enum AnswerBody {
    Http1(tidegate_http1::ResponseBody<UpstreamStream, Body, Home>),
    Http2 {
        incoming: Incoming,
        _stream: StreamCount,
    },
    /// Of an agent.
    Link {
        incoming: LinkIncoming,
        meter: Meter,
    },
    /// What an agent has made of a stream. It has no body any more.
    Switched(Box<LinkStream>),
}

impl AnswerBody {
    pub(super) fn switched(io: LinkTunnel, meter: Meter) -> Self {
        Self::Switched(Box::new(Counting::new(io, meter)))
    }

    /// The message had two readings: its connection carries no other one.
    pub(crate) fn forbid_reuse(&mut self) {
        if let Self::Http1(body) = self {
            body.forbid_reuse();
        }
    }

    /// The whole body, where it is here already; nothing of the backend is then waited for.
    pub(crate) fn take_whole(&mut self) -> Option<Bytes> {
        match self {
            Self::Http1(body) => body.take_whole(),
            Self::Link { incoming, meter } => {
                let whole = incoming.take_whole()?;
                meter.received(whole.len());
                Some(whole)
            }
            Self::Http2 { .. } | Self::Switched(_) => None,
        }
    }

    /// The connection that a 101 has made of it; None over HTTP/2, which has no 101.
    pub(crate) fn into_upgraded(self) -> Option<Upgraded> {
        match self {
            Self::Http1(body) => body.into_upgraded().map(Upgraded::Http1),
            Self::Switched(stream) => Some(Upgraded::Link(stream)),
            Self::Http2 { .. } | Self::Link { .. } => None,
        }
    }

    /// The stream of an agent, if it agreed to one.
    pub(super) fn into_link(self) -> Option<LinkStream> {
        match self {
            Self::Switched(stream) => Some(*stream),
            _ => None,
        }
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Http2 { incoming, .. } => Pin::new(incoming).poll_frame(cx).map_err(Into::into),
            Self::Link { incoming, meter } => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                if let Some(Ok(frame)) = &frame {
                    meter.received(frame.data_ref().map_or(0, Bytes::len));
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Self::Switched(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2 { incoming, .. } => incoming.is_end_stream(),
            Self::Link { incoming, .. } => incoming.is_end_stream(),
            Self::Switched(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2 { incoming, .. } => incoming.size_hint(),
            Self::Link { incoming, .. } => incoming.size_hint(),
            Self::Switched(_) => SizeHint::with_exact(0),
        }
    }
}

/// A backend's side of an upgraded connection.
pub(crate) enum Upgraded {
    Http1(tidegate_http1::Upgraded<UpstreamStream>),
    Link(Box<LinkStream>),
}

/// A stream of a link that carries bytes.
pub(crate) type LinkStream = Counting<LinkTunnel, Meter>;

macro_rules! on_upgraded {
    ($self:ident, $io:ident => $body:expr) => {
        match $self.get_mut() {
            Upgraded::Http1($io) => $body,
            Upgraded::Link($io) => $body,
        }
    };
}

impl AsyncRead for Upgraded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_upgraded!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_upgraded!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_upgraded!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_upgraded!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

/// A request body whose bytes are counted as sent.
pub(super) fn counted(body: Body, meter: Meter) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::boxed(Counted { body, meter })
}

struct Counted {
    body: Body,
    meter: Meter,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            self.meter.sent(frame.data_ref().map_or(0, Bytes::len));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What another replica sends over a link that ends here, and what comes back. Counted for the link alone: whose
/// visitor it is counts for the mapping.
pub(crate) struct Relayed(Meter);

impl Relayed {
    pub(crate) fn new(live: &LiveLink<Body>) -> Self {
        let meter = Meter {
            link: Arc::clone(&live.traffic),
            mapping: None,
        };
        meter.request();
        Self(meter)
    }

    pub(crate) fn request(&self, body: Body) -> Body {
        counted(body, self.0.clone())
    }

    /// `busy` lives as long as the body.
    pub(crate) fn answer(self, incoming: LinkIncoming, busy: TaskTrackerToken) -> Body {
        let body = AnswerBody::Link {
            incoming,
            meter: self.0,
        };
        if body.is_end_stream() {
            return Body::Empty;
        }
        Body::boxed(Held { body, _busy: busy })
    }

    pub(crate) fn tunnel(self, io: LinkTunnel) -> LinkStream {
        Counting::new(io, self.0)
    }
}

struct Held {
    body: AnswerBody,
    _busy: TaskTrackerToken,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Counts what passes, for the link and for the mapping.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    pub(super) link: Arc<Traffic>,
    pub(super) mapping: Option<Arc<Traffic>>,
}

impl Meter {
    fn each(&self) -> impl Iterator<Item = &Traffic> {
        std::iter::once(&*self.link).chain(self.mapping.as_deref())
    }

    pub(super) fn request(&self) {
        for traffic in self.each() {
            traffic.requests.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn sent(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        for traffic in self.each() {
            traffic.sent.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn received(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        for traffic in self.each() {
            traffic.received.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

impl CountBytes for Meter {
    fn read(&self, bytes: usize) {
        self.received(bytes);
    }

    fn written(&self, bytes: usize) {
        self.sent(bytes);
    }
}
