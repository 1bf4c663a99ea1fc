//! HTTP/1.1 towards backends, driven by the request itself: no task per connection, no channel.
//!
//! A [`Connection`] carries one exchange at a time: [`Connection::exchange`] takes it, the response's body
//! keeps it, and gives it to its [`Home`] only when both messages ended exactly where their framing says
//! (RFC 9112 §6.3, §9.3). Everything else (an error, a dropped future, bytes left over, an upload that is
//! still going on) closes it. Codec (`head`, `chunked`) and driving (`upload`, `exchange`) are apart;
//! the codec knows no socket. docs/adr/0023 says why this is not hyper's client.
//!
//! Which sockets, bodies and pools there are is the caller's: everything is generic over them.

mod chunked;
mod exchange;
mod head;
mod quiet;
mod read_ahead;
mod upload;

#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

pub use exchange::{Failed, Home, Interim, ResponseBody, Terms};
pub use head::{RawTarget, Reason, parse_length};
pub use quiet::{Quiet, waits};
pub use read_ahead::ReadAhead;
use upload::Outbox;

/// Error of a request body, whatever it is.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Largest response head taken from a backend, in bytes.
pub const MAX_HEAD: usize = 128 * 1024;

/// Room made for one read. It doubles while reads fill it, for large bodies.
const READ_SIZE: usize = 8 * 1024;
const MAX_READ_SIZE: usize = 128 * 1024;

/// Failure of an exchange.
#[derive(Debug, thiserror::Error)]
pub enum Http1Error {
    /// The backend takes no more of the request.
    #[error("send the request")]
    Write(#[source] io::Error),
    /// The connection broke.
    #[error("read the response")]
    Read(#[source] io::Error),
    /// The connection ended in the middle of a response, or instead of one.
    #[error("the backend closed the connection before its response was complete")]
    Closed,
    /// [`Terms::first_byte`] is over.
    #[error("no response head within {0:?}")]
    FirstByte(Duration),
    /// What came is no HTTP/1 response.
    #[error("parse the response head")]
    Head(#[source] httparse::Error),
    /// The head has two readings, or more than is accepted.
    #[error("the response head has {0}")]
    BadHead(&'static str),
    /// The chunks have two readings, or more around them than is accepted.
    #[error("the chunked response has {0}")]
    BadChunk(&'static str),
    /// Not the backend failed but whoever sends the request's body.
    #[error("read the request body")]
    RequestBody(#[source] BodyError),
}

/// One connection to a backend between or within exchanges.
pub struct Connection<S> {
    io: S,
    /// What has been read and not yet been used.
    inbox: BytesMut,
    read_size: usize,
    outbox: Outbox,
    /// Made with the first exchange that has to wait and kept: setting a timer later costs next to nothing.
    clock: Option<Pin<Box<Sleep>>>,
}

impl<S> std::fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl<S: Quiet> Connection<S> {
    /// Whether an idle connection can carry a request: its peer has neither closed it nor sent anything
    /// that nobody asked for.
    pub fn is_quiet(&mut self) -> bool {
        self.inbox.is_empty() && self.io.is_quiet()
    }
}

impl<S> Connection<S> {
    /// A connection on which nothing was said yet. Boxed, because it is passed on from request to body to pool.
    pub fn new(io: S) -> Box<Self> {
        Box::new(Self {
            io,
            inbox: BytesMut::new(),
            read_size: READ_SIZE,
            outbox: Outbox::new(),
            clock: None,
        })
    }

    /// Makes it ready to wait for the next request. False when it must be closed: something is left over.
    fn rest(&mut self) -> bool {
        if !self.inbox.is_empty() || !self.outbox.is_empty() {
            return false;
        }
        // Idle connections are many; what a large message needed is not kept.
        self.read_size = READ_SIZE;
        if self.inbox.capacity() > 2 * READ_SIZE {
            self.inbox = BytesMut::new();
        }
        self.outbox.shrink();
        true
    }

    /// Starts the clock anew.
    fn set_clock(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        match &mut self.clock {
            Some(clock) => clock.as_mut().reset(deadline),
            None => self.clock = Some(Box::pin(tokio::time::sleep_until(deadline))),
        }
    }

    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.clock {
            Some(clock) => clock.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Reads once. Ready(0) is the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Http1Error>> {
        self.inbox.reserve(self.read_size);
        let n = ready!(tokio_util::io::poll_read_buf(
            Pin::new(&mut self.io),
            cx,
            &mut self.inbox
        ))
        .map_err(Http1Error::Read)?;
        if n >= self.read_size {
            self.read_size = (self.read_size * 2).min(MAX_READ_SIZE);
        } else if n < self.read_size / 4 {
            self.read_size = (self.read_size / 2).max(READ_SIZE);
        }
        Poll::Ready(Ok(n))
    }

    /// Writes what waits in the outbox until nothing is left of it.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbox.is_empty() {
            ready!(self.outbox.poll_write_to(Pin::new(&mut self.io), cx))?;
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

/// A connection that has stopped being HTTP, with what came after the response's head.
pub type Upgraded<S> = ReadAhead<S>;
