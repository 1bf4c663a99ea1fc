//! The body of a backend's response, whichever protocol it came by, with what it holds of its connection.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::http1::{ResponseBody, Upgraded};
use super::pool::StreamCount;
use crate::body::BodyError;

/// A response body as it comes from the backend. Dropped before its end it gives the connection, or the
/// stream, up.
pub(crate) enum AnswerBody {
    Http1(ResponseBody),
    Http2 {
        incoming: Incoming,
        _stream: StreamCount,
    },
}

impl AnswerBody {
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
            Self::Http2 { .. } => None,
        }
    }

    /// The connection that a 101 has made of it; None over HTTP/2, which has no 101.
    pub(crate) fn into_upgraded(self) -> Option<Upgraded> {
        match self {
            Self::Http1(body) => body.into_upgraded(),
            Self::Http2 { .. } => None,
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
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2 { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2 { incoming, .. } => incoming.size_hint(),
        }
    }
}
