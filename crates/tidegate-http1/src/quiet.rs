//! Whether anything has come on a connection that nobody reads.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Waker};

use socket2::SockRef;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

/// A stream that can be asked for news without reading it.
pub trait Quiet {
    /// Whether the peer has neither closed nor said anything.
    fn is_quiet(&mut self) -> bool;
}

/// Asks the system: what the runtime knows may be older than a close that must not be missed.
impl Quiet for TcpStream {
    fn is_quiet(&mut self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let peeked = SockRef::from(&*self).peek(&mut byte);
        matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Whether a reader would have to wait, for layers as TLS, which talk for themselves too (session tickets). One
/// byte may be lost: a stream that does not wait is of no use.
pub fn waits<S: AsyncRead + Unpin>(layer: &mut S) -> bool {
    let mut byte = [0];
    let mut buf = ReadBuf::new(&mut byte);
    // Whoever reads next sets another waker.
    let mut cx = Context::from_waker(Waker::noop());
    Pin::new(layer).poll_read(&mut cx, &mut buf).is_pending()
}
