//! TCP, with TLS or without: to an edge before its own TLS, to a proxy, to a target.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tidegate_http1::Quiet;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A connection that was dialled.
#[derive(Debug)]
pub(crate) enum Stream {
    /// Nothing but TCP.
    Plain(TcpStream),
    /// TLS on it.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// What TLS agreed on, if there is TLS and it did.
    pub(crate) fn protocol(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => tls.get_ref().1.alpn_protocol(),
        }
    }
}

impl Quiet for Stream {
    fn is_quiet(&mut self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_quiet(),
            Self::Tls(tls) => tidegate_http1::waits(&mut **tls) && tls.get_mut().0.is_quiet(),
        }
    }
}

/// Says goodbye where TLS wants that (RFC 8446 §6.1), as far as it can be said without waiting: a target should
/// not have to log every connection that waited for too long.
impl Drop for Stream {
    fn drop(&mut self) {
        if let Self::Tls(tls) = self {
            let mut cx = Context::from_waker(Waker::noop());
            let _ = Pin::new(&mut **tls).poll_shutdown(&mut cx);
        }
    }
}

macro_rules! on_stream {
    ($self:ident, $io:ident => $body:expr) => {
        match $self.get_mut() {
            Stream::Plain($io) => $body,
            Stream::Tls($io) => $body,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_stream!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
