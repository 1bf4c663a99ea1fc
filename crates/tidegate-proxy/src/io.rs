//! Client sockets with clocks: unread prefixes, stalled writes, slow heads, floods of control frames.
//!
//! Everything here costs a compare and a store while data moves; timers exist only while a peer makes us wait.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_http1::ReadAhead;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::odd_query::RequestLines;

// === Socket ===

/// A TCP socket that first yields bytes read ahead (PROXY header leftovers, ClientHello) and fails a
/// write that makes no progress for `write_stall`.
pub(crate) struct Socket {
    tcp: ReadAhead<TcpStream>,
    write_stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Socket {
    pub(crate) fn new(tcp: TcpStream, ahead: Bytes, write_stall: Duration) -> Self {
        Self {
            tcp: ReadAhead::new(tcp, ahead),
            write_stall,
            stalled: None,
            waiting: false,
        }
    }

    fn check_stall(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let deadline = tokio::time::Instant::now() + self.write_stall;
        let sleep = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if !self.waiting {
            self.waiting = true;
            sleep.as_mut().reset(deadline);
        }
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client does not read",
        ))
    }

    fn after_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_pending() {
            return self.check_stall(cx).map(Err);
        }
        self.waiting = false;
        result
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.tcp).poll_write(cx, buf);
        self.after_write(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs);
        self.after_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

// === Counting ===

/// Told of bytes as they pass.
pub(crate) trait CountBytes {
    /// So many were read.
    fn read(&self, bytes: usize);

    /// So many were written.
    fn written(&self, bytes: usize);
}

/// A stream whose bytes are counted.
pub(crate) struct Counting<S, C> {
    io: S,
    counts: C,
}

impl<S, C> Counting<S, C> {
    pub(crate) fn new(io: S, counts: C) -> Self {
        Self { io, counts }
    }
}

impl<S: AsyncRead + Unpin, C: CountBytes + Unpin> AsyncRead for Counting<S, C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.counts.read(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin, C: CountBytes + Unpin> AsyncWrite for Counting<S, C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.counts.written(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

// === ConnectionClock ===

/// When what happened on a connection, in milliseconds since its start.
#[derive(Debug)]
pub(crate) struct ConnectionClock {
    start: Instant,
    /// Requests in flight, upgraded ones included.
    in_flight: AtomicU32,
    served: AtomicU64,
    /// 0: no head is being read; else the moment of its first byte plus one.
    head_since: AtomicU64,
    idle_since: AtomicU64,
    /// HTTP/2 response bodies of which the client has yet to take something.
    offered: AtomicU32,
    /// When one of them was last asked for more.
    taken_at: AtomicU64,
    /// The next response is the last one.
    leaving: AtomicBool,
    /// Something was read since somebody asked.
    heard: AtomicBool,
}

/// What the clock says about an open connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClockVerdict {
    Fine,
    SlowHead,
    Idle,
    /// The client holds responses open and reads none of them (zero window).
    Stalled,
}

impl ConnectionClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            in_flight: AtomicU32::new(0),
            served: AtomicU64::new(0),
            // A connection owes its first head from the start.
            head_since: AtomicU64::new(1),
            idle_since: AtomicU64::new(0),
            offered: AtomicU32::new(0),
            taken_at: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            heard: AtomicBool::new(true),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns whether a head begins with what was read.
    fn on_read(&self) -> bool {
        self.heard.store(true, Ordering::Relaxed);
        let begins = self.in_flight.load(Ordering::Relaxed) == 0
            && self.head_since.load(Ordering::Relaxed) == 0;
        if begins {
            self.head_since.store(self.now() + 1, Ordering::Relaxed);
        }
        begins
    }

    /// A head is complete. Returns how many requests the connection has had, this one included.
    pub(crate) fn request_begins(&self) -> u64 {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
        self.served.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A response is complete or given up.
    pub(crate) fn request_ends(&self) {
        if self.in_flight.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.idle_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// A body has something for the client. On HTTP/1 the socket's own clock sees a client that does not
    /// read; on HTTP/2 the socket may be fine while every stream's window is zero.
    pub(crate) fn offer(&self) {
        self.offered.fetch_add(1, Ordering::Relaxed);
        self.taken_at.store(self.now(), Ordering::Relaxed);
    }

    /// The client took something.
    pub(crate) fn taken(&self) {
        self.taken_at.store(self.now(), Ordering::Relaxed);
    }

    /// The body waits for its source, or is gone.
    pub(crate) fn withdraw(&self) {
        self.offered.fetch_sub(1, Ordering::Relaxed);
    }

    /// The edge drains: the next response closes the connection.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Whether anything was read since this was last asked.
    pub(crate) fn heard_anything(&self) -> bool {
        self.heard.swap(false, Ordering::Relaxed)
    }

    /// Requests so far.
    pub(crate) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    pub(crate) fn age(&self) -> Duration {
        self.start.elapsed()
    }

    /// Judges. `head` is None where heads have no clock of their own (HTTP/2, whose control frames
    /// also arrive between requests).
    pub(crate) fn verdict(
        &self,
        head: Option<Duration>,
        idle: Duration,
        stall: Duration,
    ) -> ClockVerdict {
        let now = self.now();
        let since = |then: u64| Duration::from_millis(now.saturating_sub(then));
        if self.offered.load(Ordering::Relaxed) > 0
            && since(self.taken_at.load(Ordering::Relaxed)) >= stall
        {
            return ClockVerdict::Stalled;
        }
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            return ClockVerdict::Fine;
        }
        let head_since = self.head_since.load(Ordering::Relaxed);
        if let Some(limit) = head
            && head_since > 0
            && since(head_since - 1) >= limit
        {
            return ClockVerdict::SlowHead;
        }
        if since(self.idle_since.load(Ordering::Relaxed)) >= idle {
            return ClockVerdict::Idle;
        }
        ClockVerdict::Fine
    }
}

// === ClientStream ===

/// What the codecs read requests from: plain or decrypted, with the clock and the frame budget.
pub(crate) struct ClientStream {
    inner: Transport,
    clock: Arc<ConnectionClock>,
    ahead: Ahead,
    /// Bytes read since a read last had to wait.
    in_a_row: usize,
}

/// Bytes that HTTP/2 reads before whoever consumes them gets a turn. Many small DATA frames read at once
/// would exhaust the codec's budget for buffered frames, though they are honest and somebody wants them.
const READ_IN_A_ROW: usize = 32 * 1024;

/// What is done with bytes before the codec gets them.
pub(crate) enum Ahead {
    Http1(RequestLines),
    Http2(FrameBudget),
    /// Nothing: HTTP has ended here.
    Nothing,
}

/// The two kinds of transport.
pub(crate) enum Transport {
    Plain(Socket),
    Tls(Box<tokio_rustls::server::TlsStream<Socket>>),
}

impl ClientStream {
    pub(crate) fn new(inner: Transport, clock: Arc<ConnectionClock>, ahead: Ahead) -> Self {
        Self {
            inner,
            clock,
            ahead,
            in_a_row: 0,
        }
    }

    /// The connection goes on as something else.
    pub(crate) fn end_http(&mut self) {
        self.ahead = Ahead::Nothing;
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        match &self.inner {
            Transport::Plain(socket) => socket.tcp.get_ref(),
            Transport::Tls(tls) => tls.get_ref().0.tcp.get_ref(),
        }
    }
}

macro_rules! on_transport {
    ($self:ident, $io:ident => $body:expr) => {
        match &mut $self.get_mut().inner {
            Transport::Plain($io) => $body,
            Transport::Tls($io) => $body,
        }
    };
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.in_a_row >= READ_IN_A_ROW {
            this.in_a_row = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let result = match &mut this.inner {
            Transport::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Transport::Tls(io) => Pin::new(io).poll_read(cx, buf),
        };
        if result.is_pending() {
            this.in_a_row = 0;
        }
        ready!(result)?;
        let read = &mut buf.filled_mut()[before..];
        if !read.is_empty() {
            let head_begins = this.clock.on_read();
            match &mut this.ahead {
                Ahead::Http1(lines) => {
                    if head_begins {
                        lines.begin();
                    }
                    lines.read(read);
                }
                Ahead::Http2(frames) => {
                    frames.account(read)?;
                    this.in_a_row += read.len();
                }
                Ahead::Nothing => {}
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_transport!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_transport!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.inner {
            Transport::Plain(io) => io.is_write_vectored(),
            Transport::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_transport!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_transport!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

// === FrameBudget ===

/// Counts HTTP/2 control frames that cost the sender nothing (PING, SETTINGS, PRIORITY; RFC 9113 §10.5)
/// and ends connections that flood with them. The codec has no such limit.
#[derive(Debug)]
pub(crate) struct FrameBudget {
    limit: u32,
    window_start: Instant,
    seen: u32,
    /// Bytes of the preface or of the current frame's payload still to come.
    skip: usize,
    head: [u8; 9],
    head_len: usize,
}

const FRAME_WINDOW: Duration = Duration::from_secs(10);
const PREFACE_LEN: usize = 24;

impl FrameBudget {
    /// At most `limit` such frames in ten seconds.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            limit,
            window_start: Instant::now(),
            seen: 0,
            skip: PREFACE_LEN,
            head: [0; 9],
            head_len: 0,
        }
    }

    fn account(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return Ok(());
            }
            let n = (9 - self.head_len).min(bytes.len());
            self.head[self.head_len..self.head_len + n].copy_from_slice(&bytes[..n]);
            self.head_len += n;
            bytes = &bytes[n..];
            if self.head_len < 9 {
                return Ok(());
            }
            self.head_len = 0;
            self.skip = usize::from(self.head[0]) << 16
                | usize::from(self.head[1]) << 8
                | usize::from(self.head[2]);
            // PRIORITY, SETTINGS, PING.
            if matches!(self.head[3], 0x2 | 0x4 | 0x6) {
                self.count()?;
            }
        }
    }

    fn count(&mut self) -> io::Result<()> {
        self.seen += 1;
        if self.seen <= self.limit {
            return Ok(());
        }
        let now = Instant::now();
        if now.duration_since(self.window_start) < FRAME_WINDOW {
            return Err(io::Error::other("too many HTTP/2 control frames"));
        }
        self.window_start = now;
        self.seen = 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, len: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, len, kind, 0, 0, 0, 0, 1];
        bytes.extend(std::iter::repeat_n(0x6, usize::from(len)));
        bytes
    }

    #[test]
    fn only_control_frames_are_counted_however_they_are_cut() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        for _ in 0..3 {
            bytes.extend(frame(0x0, 40));
            bytes.extend(frame(0x6, 8));
        }
        for piece in [1, 2, 7, 1000] {
            let mut budget = FrameBudget::new(3);
            for chunk in bytes.chunks(piece) {
                budget.account(chunk).unwrap();
            }
            assert_eq!(budget.seen, 3, "in pieces of {piece}");
            budget.account(&frame(0x0, 3)).unwrap();
            assert!(budget.account(&frame(0x2, 5)).is_err());
        }
    }

    #[test]
    fn a_connection_owes_a_head_but_not_while_a_request_runs() {
        let clock = ConnectionClock::new();
        let minute = Duration::from_secs(60);
        let check = |head, idle| clock.verdict(head, idle, minute);
        assert_eq!(check(Some(Duration::ZERO), minute), ClockVerdict::SlowHead);
        assert_eq!(check(None, minute), ClockVerdict::Fine);
        assert_eq!(check(None, Duration::ZERO), ClockVerdict::Idle);
        assert_eq!(clock.request_begins(), 1);
        assert_eq!(
            check(Some(Duration::ZERO), Duration::ZERO),
            ClockVerdict::Fine
        );
        clock.request_ends();
        assert_eq!(check(Some(Duration::ZERO), minute), ClockVerdict::Fine);
    }

    #[test]
    fn a_client_that_takes_nothing_of_what_is_offered_is_stalled() {
        let clock = ConnectionClock::new();
        let minute = Duration::from_secs(60);
        let check = |stall| clock.verdict(None, minute, stall);
        clock.request_begins();
        assert_eq!(
            check(Duration::ZERO),
            ClockVerdict::Fine,
            "the backend is thinking"
        );
        clock.offer();
        assert_eq!(check(Duration::ZERO), ClockVerdict::Stalled);
        assert_eq!(check(minute), ClockVerdict::Fine);
        clock.withdraw();
        assert_eq!(check(Duration::ZERO), ClockVerdict::Fine);
    }
}
