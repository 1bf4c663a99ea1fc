//! Bodies between link and target. None is kept; each is passed on as it comes.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tidegate_http1::{BodyError, ResponseBody};

use super::counters::Counted;
use super::pool::Home;
use crate::stream::Stream;

/// What a target that speaks HTTP/1 answers.
pub(super) type TargetBody = ResponseBody<Stream, AskBody, Home>;

/// What a visitor sends, as it comes over the link.
pub(crate) type VisitorBody = tidegate_http2::Incoming;

/// What a target is sent.
#[derive(Debug, Default)]
pub(crate) enum AskBody {
    /// The visitor's.
    Visitor(VisitorBody),
    /// Nothing.
    #[default]
    None,
}

impl Body for AskBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Visitor(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Visitor(body) => body.is_end_stream(),
            Self::None => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Visitor(body) => body.size_hint(),
            Self::None => SizeHint::with_exact(0),
        }
    }
}

/// What the edge gets.
pub(crate) enum AnswerBody {
    /// A target's, with the connection that it comes on.
    Http1(TargetBody, Counted),
    /// A target's, of one of many streams.
    Http2(Incoming, Counted),
    /// Bytes at hand: an answer that came whole, or the agent's own words. None once they are sent.
    Whole(
        Option<Bytes>,
        #[expect(dead_code, reason = "it counts until it is dropped")] Option<Counted>,
    ),
}

impl AnswerBody {
    /// Frees the connection at once where nothing more will come.
    pub(super) fn http1(mut body: TargetBody, counted: Counted) -> Self {
        let whole = body.take_whole();
        if whole.is_some() || body.is_end_stream() {
            return Self::Whole(whole, Some(counted));
        }
        Self::Http1(body, counted)
    }

    /// A text; may be empty.
    pub(crate) fn text(text: Bytes) -> Self {
        Self::Whole((!text.is_empty()).then_some(text), None)
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (polled, counted) = match self.get_mut() {
            Self::Http1(body, counted) => {
                let polled = Pin::new(body).poll_frame(cx);
                (polled.map_err(BodyError::from), counted)
            }
            Self::Http2(incoming, counted) => {
                let polled = Pin::new(incoming).poll_frame(cx);
                (polled.map_err(BodyError::from), counted)
            }
            Self::Whole(bytes, _) => {
                return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))));
            }
        };
        if let Poll::Ready(Some(Err(_))) = &polled {
            counted.failed();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body, _) => body.is_end_stream(),
            Self::Http2(incoming, _) => incoming.is_end_stream(),
            Self::Whole(bytes, _) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body, _) => body.size_hint(),
            Self::Http2(incoming, _) => incoming.size_hint(),
            Self::Whole(bytes, _) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
        }
    }
}
