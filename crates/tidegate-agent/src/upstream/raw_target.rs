//! A request target with bytes that no URI may hold, as BitTorrent clients send them to trackers.
//!
//! hyper writes a request line of ours; what is written to the target has the visitor's bytes in its place.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::{HeaderValue, Method};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What hyper is told to ask for.
pub(super) const PLACEHOLDER: &str = "/raw-target";

/// A stream whose first line is another than the one written.
#[derive(Debug)]
pub(crate) struct RawTarget<S> {
    inner: S,
    /// Bytes of the line that is written by hyper; none once it was replaced.
    line: usize,
    instead: Bytes,
}

impl<S> RawTarget<S> {
    /// For one request of the method; None when the bytes could end the line.
    pub(super) fn new(inner: S, method: &Method, target: &HeaderValue) -> Option<Self> {
        let bytes = target.as_bytes();
        let fine = |c: &u8| matches!(c, 0x21..=0x7e | 0x80..);
        if bytes.first() != Some(&b'/') || !bytes.iter().all(fine) {
            return None;
        }
        let line = |target: &[u8]| -> Vec<u8> {
            [method.as_str().as_bytes(), b" ", target, b" HTTP/1.1\r\n"].concat()
        };
        Some(Self {
            inner,
            line: line(PLACEHOLDER.as_bytes()).len(),
            instead: line(bytes).into(),
        })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RawTarget<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RawTarget<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.line == 0 {
            return Pin::new(&mut this.inner).poll_write(cx, buf);
        }
        if buf.len() < this.line {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        while this.instead.has_remaining() {
            let written = ready!(Pin::new(&mut this.inner).poll_write(cx, &this.instead))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            this.instead.advance(written);
        }
        Poll::Ready(Ok(std::mem::take(&mut this.line)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn the_first_line_is_replaced_whatever_the_socket_takes_at_once() {
        let target = HeaderValue::from_bytes(b"/announce?info_hash=\x80\"<|").unwrap();
        // Takes three bytes at a time.
        let (near, mut far) = tokio::io::duplex(3);
        let mut raw = RawTarget::new(near, &Method::GET, &target).unwrap();
        let written = tokio::spawn(async move {
            raw.write_all(b"GET /raw-target HTTP/1.1\r\nhost: a\r\n\r\n")
                .await
                .unwrap();
        });
        let mut seen = Vec::new();
        far.read_to_end(&mut seen).await.unwrap();
        written.await.unwrap();
        assert_eq!(
            seen,
            b"GET /announce?info_hash=\x80\"<| HTTP/1.1\r\nhost: a\r\n\r\n"
        );
        for bad in ["announce", "/a b", "http://x/"] {
            let bad = HeaderValue::from_static(bad);
            assert!(RawTarget::new((), &Method::GET, &bad).is_none(), "{bad:?}");
        }
    }
}
