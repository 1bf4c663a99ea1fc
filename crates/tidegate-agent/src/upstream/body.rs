//! Bodies between link and target. None is kept; each is passed on as it comes.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::counters::Counted;
use super::pool::Lease;

/// What a visitor sends, as it comes over the link.
pub(crate) type VisitorBody = tidegate_http2::Incoming;

/// What a target is sent.
#[derive(Debug)]
pub(crate) enum AskBody {
    /// The visitor's.
    Visitor(VisitorBody),
    /// Nothing.
    None,
}

impl Body for AskBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match self.get_mut() {
            Self::Visitor(body) => Pin::new(body).poll_frame(cx),
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
#[derive(Debug)]
pub(crate) enum AnswerBody {
    /// The target's.
    Target {
        /// What comes.
        incoming: Incoming,
        /// The connection, which others may use afterwards.
        lease: Option<Lease>,
        /// Ends with the body.
        counted: Counted,
    },
    /// The agent's own words.
    Text(Option<Bytes>),
}

impl AnswerBody {
    /// A text; may be empty.
    pub(crate) fn text(text: Bytes) -> Self {
        Self::Text((!text.is_empty()).then_some(text))
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Target {
                incoming,
                lease,
                counted,
            } => {
                let polled = Pin::new(incoming).poll_frame(cx);
                match &polled {
                    Poll::Ready(None) => drop(lease.take()),
                    Poll::Ready(Some(Err(_))) => counted.failed(),
                    _ => {}
                }
                polled
            }
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Target { incoming, .. } => incoming.is_end_stream(),
            Self::Text(text) => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Target { incoming, .. } => incoming.size_hint(),
            Self::Text(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
        }
    }
}
