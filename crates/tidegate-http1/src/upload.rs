//! Sending: what waits to be written, and the request body that fills it.
//!
//! The head and a small body leave in one write; a large piece is written from where it lies. One piece of
//! the body is taken at a time, so that a backend that does not read makes the client wait.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{BodyError, Connection, Http1Error};

/// Pieces up to this are copied behind what waits already; larger ones are not worth it.
const COPIED: usize = 4 * 1024;

/// What may wait before it must be written.
const MAX_WAITING: usize = 16 * 1024;

/// Room for the head of a request, before the first one.
const USUAL_HEAD: usize = 1024;

/// Capacity that an idle connection keeps.
const KEPT: usize = 4 * 1024;

/// How the end of a request body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is no body.
    None,
    /// Bytes still to come.
    Length(u64),
    Chunked,
}

/// What waits to be written, in this order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    small: Vec<u8>,
    /// Bytes of `small` that are written.
    written: usize,
    large: Bytes,
    tail: &'static [u8],
    /// Bytes written since the connection was opened.
    total: u64,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self {
            small: Vec::with_capacity(USUAL_HEAD),
            ..Self::default()
        }
    }

    /// For the head of the next request; nothing may wait.
    pub(super) fn begin(&mut self) -> &mut Vec<u8> {
        &mut self.small
    }

    pub(super) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty() && self.tail.is_empty()
    }

    /// Bytes written since the connection was opened.
    pub(super) const fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn shrink(&mut self) {
        self.small.shrink_to(KEPT);
    }

    fn has_room(&self) -> bool {
        self.large.is_empty() && self.tail.is_empty() && self.small.len() < MAX_WAITING
    }

    fn push(&mut self, piece: Bytes, tail: &'static [u8]) {
        if piece.len() <= COPIED {
            self.small.extend_from_slice(&piece);
            self.small.extend_from_slice(tail);
        } else {
            self.large = piece;
            self.tail = tail;
        }
    }

    /// Writes once.
    pub(super) fn poll_write_to<W: AsyncWrite>(
        &mut self,
        io: Pin<&mut W>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let small = &self.small[self.written..];
        let n = if self.large.is_empty() && self.tail.is_empty() {
            ready!(io.poll_write(cx, small))?
        } else {
            let slices = [small, &self.large, self.tail].map(IoSlice::new);
            ready!(io.poll_write_vectored(cx, &slices))?
        };
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.total += n as u64;
        let of_small = n.min(small.len());
        self.written += of_small;
        if self.written == self.small.len() {
            self.small.clear();
            self.written = 0;
        }
        let of_large = (n - of_small).min(self.large.len());
        if of_large == self.large.len() {
            // Frees it: an idle connection holds on to nothing.
            self.large = Bytes::new();
        } else {
            self.large.advance(of_large);
        }
        self.tail = &self.tail[n - of_small - of_large..];
        Poll::Ready(Ok(()))
    }
}

/// A request body on its way.
pub(super) struct Upload<B> {
    body: B,
    framing: Framing,
    ended: bool,
    /// Whether anything was taken from the body.
    pub(super) touched: bool,
}

impl<B> Upload<B> {
    pub(super) fn new(body: B, framing: Framing) -> Self {
        Self {
            body,
            framing,
            ended: framing == Framing::None,
            touched: false,
        }
    }

    /// Gives the body back, for a request that was not sent.
    pub(super) fn into_body(self) -> B {
        self.body
    }
}

impl<B> Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    /// Sends until all is sent, or somebody makes us wait.
    pub(super) fn poll_send<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        connection: &mut Connection<S>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Http1Error>> {
        loop {
            self.fill(&mut connection.outbox, cx)?;
            let waits_for_client = !self.ended && connection.outbox.is_empty();
            ready!(connection.poll_drain(cx)).map_err(Http1Error::Write)?;
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if waits_for_client {
                return Poll::Pending;
            }
        }
    }

    /// Takes from the body what there is and there is room for.
    fn fill(&mut self, outbox: &mut Outbox, cx: &mut Context<'_>) -> Result<(), Http1Error> {
        while !self.ended && outbox.has_room() {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                return Ok(());
            };
            self.touched = true;
            let Some(frame) = frame else {
                return self.end(outbox);
            };
            let frame = frame.map_err(|error| Http1Error::RequestBody(error.into()))?;
            // Trailers of a request stop here: backends may merge them into the head.
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if data.is_empty() {
                continue;
            }
            self.push(outbox, data)?;
        }
        Ok(())
    }

    fn push(&mut self, outbox: &mut Outbox, data: Bytes) -> Result<(), Http1Error> {
        match &mut self.framing {
            Framing::None => {}
            Framing::Length(left) => {
                *left = left
                    .checked_sub(data.len() as u64)
                    .ok_or_else(|| Http1Error::RequestBody("it is longer than it said".into()))?;
                // The body stays: whoever sends it may have its own end to tell.
                self.ended = *left == 0;
                outbox.push(data, b"");
            }
            Framing::Chunked => {
                write_size(&mut outbox.small, data.len());
                self.ended = self.body.is_end_stream();
                let tail: &[u8] = if self.ended {
                    b"\r\n0\r\n\r\n"
                } else {
                    b"\r\n"
                };
                outbox.push(data, tail);
            }
        }
        Ok(())
    }

    fn end(&mut self, outbox: &mut Outbox) -> Result<(), Http1Error> {
        self.ended = true;
        match self.framing {
            Framing::Length(left) if left > 0 => {
                return Err(Http1Error::RequestBody("it is shorter than it said".into()));
            }
            Framing::Chunked => outbox.small.extend_from_slice(b"0\r\n\r\n"),
            Framing::None | Framing::Length(_) => {}
        }
        Ok(())
    }
}

/// The line before a chunk.
fn write_size(out: &mut Vec<u8>, size: usize) {
    use std::io::Write as _;
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{size:x}\r\n");
}
