//! Ends a link on which nothing arrives any more, and ends it when told to.
//!
//! h2 finds a dead peer by pings, but cannot end a connection while it waits for room to write its farewell. So the
//! stream underneath is watched too: it says when it last read something, and fails as soon as it is cut.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// What both the stream and whoever ends it hold.
#[derive(Debug)]
pub(super) struct Lifeline {
    start: Instant,
    /// Milliseconds after `start`.
    read_at: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    cut: AtomicBool,
    /// Of the task that drives HTTP/2, which both reads and writes.
    task: AtomicWaker,
    /// Cancelled when the stream is gone or cut.
    ended: CancellationToken,
}

impl Lifeline {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            read_at: AtomicU64::new(0),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            task: AtomicWaker::new(),
            ended: CancellationToken::new(),
        }
    }

    /// Ends the link: whatever is on it fails.
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.task.wake();
        self.ended.cancel();
    }

    pub(super) fn start(&self) -> Instant {
        self.start
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Bytes read and written so far.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (
            self.read.load(Ordering::Relaxed),
            self.written.load(Ordering::Relaxed),
        )
    }

    /// Time since something was read.
    pub(super) fn quiet(&self) -> Duration {
        let last = Duration::from_millis(self.read_at.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(last)
    }

    /// Returns when nothing was read for the time.
    pub(super) async fn silent(&self, time: Duration) {
        loop {
            let last = Duration::from_millis(self.read_at.load(Ordering::Relaxed));
            let due = self.start + last + time;
            if due <= Instant::now() {
                return;
            }
            sleep_until(due).await;
        }
    }

    fn check(&self, cx: &Context<'_>) -> io::Result<()> {
        self.task.register(cx.waker());
        if self.cut.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

/// Cuts when dropped: a link whose driver is gone is gone.
pub(super) struct CutOnDrop(pub(super) Arc<Lifeline>);

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        self.0.cut();
    }
}

/// The stream underneath.
pub(super) struct Watched<I> {
    io: I,
    line: Arc<Lifeline>,
}

impl<I> Watched<I> {
    pub(super) fn new(io: I) -> (Self, Arc<Lifeline>) {
        let line = Arc::new(Lifeline::new());
        let stream = Self {
            io,
            line: Arc::clone(&line),
        };
        (stream, line)
    }
}

impl<I> Drop for Watched<I> {
    fn drop(&mut self) {
        self.line.ended.cancel();
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.line.check(cx)?;
        let before = buf.filled().len();
        let result = Pin::new(&mut this.io).poll_read(cx, buf);
        let count = buf.filled().len() - before;
        if count > 0 {
            let line = &this.line;
            let now = u64::try_from(line.start.elapsed().as_millis()).unwrap_or(u64::MAX);
            line.read_at.store(now, Ordering::Relaxed);
            line.read.fetch_add(count as u64, Ordering::Relaxed);
        }
        result
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.line.check(cx)?;
        let result = Pin::new(&mut this.io).poll_write(cx, buf);
        this.line.count_written(&result);
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.line.check(cx)?;
        let result = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.line.count_written(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.line.check(cx)?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.line.check(cx)?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

impl Lifeline {
    fn count_written(&self, result: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(count)) = result {
            self.written.fetch_add(*count as u64, Ordering::Relaxed);
        }
    }
}
