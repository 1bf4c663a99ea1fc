//! What an agent answers: a body, or a stream that carries bytes. Both are watched for visitors who do not read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use http_body::{Body, Frame, SizeHint};
use tidegate_http2::{Incoming, StreamIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stall::{Held, Watch, lock};

/// Body of an agent's answer.
#[derive(Debug)]
pub struct LinkIncoming {
    watch: Watch,
    hint: SizeHint,
}

/// Why an answer's body broke off.
#[derive(Debug, thiserror::Error)]
pub enum IncomingError {
    /// The stream was reset because nobody read it while many others were not read either.
    #[error("the stream was not read for too long")]
    Stalled,
    /// The link or the agent failed.
    #[error("read an answer from the link")]
    Http2(#[source] h2::Error),
}

impl LinkIncoming {
    pub(super) fn new(
        body: Incoming,
        connect: Option<SendStream<Bytes>>,
        mut watch: Watch,
    ) -> Self {
        let hint = body.size_hint();
        watch.ended = body.is_end_stream();
        *lock(&watch.flow.held) = Held::Body(body, connect);
        Self { watch, hint }
    }

    /// The whole body, if it is short and came together with its head. None of it is lost otherwise.
    pub fn take_whole(&mut self) -> Option<Bytes> {
        let Held::Body(body, _) = &mut *lock(&self.watch.flow.held) else {
            return None;
        };
        let whole = body.take_whole();
        self.watch.ended |= whole.is_some();
        whole
    }

    /// The stream that an agreed CONNECT has become; None where there was none, or it is gone.
    pub fn into_tunnel(self) -> Option<LinkTunnel> {
        let mut watch = self.watch;
        let mut held = lock(&watch.flow.held);
        *held = match std::mem::take(&mut *held) {
            Held::Body(body, Some(send)) => Held::Tunnel(StreamIo::new(body.into_stream(), send)),
            _ => return None,
        };
        drop(held);
        watch.ended = false;
        Some(LinkTunnel { watch })
    }
}

impl Body for LinkIncoming {
    type Data = Bytes;
    type Error = IncomingError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, IncomingError>>> {
        let Self { watch, hint } = self.get_mut();
        if watch.ended {
            return Poll::Ready(None);
        }
        let flow = &watch.flow;
        flow.download_taken();
        let mut held = lock(&flow.held);
        let Held::Body(body, _) = &mut *held else {
            watch.ended = true;
            return Poll::Ready(Some(Err(IncomingError::Stalled)));
        };
        flow.reader.register(cx.waker());
        let polled = ready!(Pin::new(&mut *body).poll_frame(cx));
        *hint = body.size_hint();
        match polled {
            Some(Ok(frame)) => {
                watch.ended = body.is_end_stream();
                if !watch.ended {
                    flow.download_given();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                watch.ended = true;
                Poll::Ready(Some(Err(IncomingError::Http2(error))))
            }
            None => {
                watch.ended = true;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.watch.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

/// The stream that an agreed CONNECT has become: what is written is sent, what is read was received. Counted and
/// watched as any other stream of the link.
#[derive(Debug)]
pub struct LinkTunnel {
    watch: Watch,
}

impl LinkTunnel {
    fn with<T>(
        &self,
        act: impl FnOnce(Pin<&mut StreamIo>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut *lock(&self.watch.flow.held) {
            Held::Tunnel(stream) => act(Pin::new(stream)),
            _ => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl AsyncRead for LinkTunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let flow = &self.watch.flow;
        flow.download_taken();
        flow.reader.register(cx.waker());
        let before = buf.filled().len();
        let polled = self.with(|stream| stream.poll_read(cx, buf));
        if polled.is_ready() && buf.filled().len() > before {
            flow.download_given();
        }
        polled
    }
}

impl AsyncWrite for LinkTunnel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
    }
}
