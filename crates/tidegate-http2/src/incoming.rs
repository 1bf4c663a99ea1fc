//! A body that comes on a stream. What is read makes room for more.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::header::{CONTENT_LENGTH, HeaderMap};
use http_body::{Body, Frame, SizeHint};

/// A body that comes on a stream. It is whole only if the other end said so: a stream that was reset, whatever the
/// reason, is an error (RFC 9113 §8.1.1). Dropped before its end, it lets the stream be reset once nothing is sent on
/// it either.
#[derive(Debug)]
pub struct Incoming {
    recv: RecvStream,
    /// Bytes still to come, where their number was said.
    left: Option<u64>,
    /// What was looked at before it was asked for.
    peeked: Option<Bytes>,
    data_done: bool,
}

impl Incoming {
    /// The body that follows these fields. The codec compares its length with what they say.
    pub fn new(recv: RecvStream, headers: &HeaderMap) -> Self {
        let said = headers.get(CONTENT_LENGTH);
        let said = said.and_then(|length| length.to_str().ok()?.parse().ok());
        let left = said.or_else(|| recv.is_end_stream().then_some(0));
        Self {
            recv,
            left,
            peeked: None,
            data_done: false,
        }
    }

    /// The stream itself, of which nothing was read.
    pub fn into_stream(self) -> RecvStream {
        self.recv
    }

    /// The whole body, if it is one frame, has come and has no trailers; nothing is waited for. None of it is lost
    /// otherwise.
    pub fn take_whole(&mut self) -> Option<Bytes> {
        if self.peeked.is_none() {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let Poll::Ready(Some(Ok(data))) = self.poll_data(&mut cx) else {
                return None;
            };
            self.peeked = Some(data);
        }
        if self.recv.is_end_stream() {
            self.data_done = true;
            return self.peeked.take();
        }
        None
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let polled = ready!(self.recv.poll_data(cx));
        if let Some(Ok(data)) = &polled {
            // Fails only for more than was received.
            let _ = self.recv.flow_control().release_capacity(data.len());
            if let Some(left) = &mut self.left {
                *left = left.saturating_sub(data.len() as u64);
            }
        }
        Poll::Ready(polled)
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = self.get_mut();
        if let Some(data) = this.peeked.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if !this.data_done {
            match ready!(this.poll_data(cx)) {
                Some(data) => return Poll::Ready(Some(data.map(Frame::data))),
                None => this.data_done = true,
            }
        }
        let trailers = ready!(this.recv.poll_trailers(cx));
        Poll::Ready(trailers.map(|it| it.map(Frame::trailers)).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.peeked.is_none() && self.recv.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let peeked = self.peeked.as_ref().map_or(0, |data| data.len() as u64);
        match self.left {
            Some(left) => SizeHint::with_exact(left + peeked),
            None => SizeHint::default(),
        }
    }
}
