//! Connections that stop being HTTP: WebSocket and other upgrades, over HTTP/1.1 and as HTTP/2 streams
//! (RFC 8441). After the backend agreed, bytes are copied both ways until one side is idle for too long.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use http::HeaderValue;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tidegate_http2::StreamIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Per direction. A WebSocket message is small; a tunnelled download is not.
const COPY_BUFFER: usize = 16 * 1024;

/// Why an upgraded connection ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Both sides closed.
    Closed,
    /// No byte in either direction for the limit.
    Idle,
    /// The edge shut down and its grace period passed.
    Cut,
    /// A side failed.
    Failed(String),
}

/// A fresh Sec-WebSocket-Key, RFC 6455 §4.1: 16 random bytes in base64.
pub(crate) fn websocket_key() -> HeaderValue {
    let key = base64::engine::general_purpose::STANDARD.encode(fastrand::u128(..).to_be_bytes());
    // Base64 is always a valid field value.
    HeaderValue::try_from(key)
        .unwrap_or_else(|_| HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
}

/// The client's side, which comes when the answer is on its way.
pub(crate) enum ClientUpgrade {
    /// The whole connection.
    Http1(OnUpgrade),
    /// The stream of an extended CONNECT.
    Http2(oneshot::Receiver<StreamIo>),
}

/// Waits for the client's side and copies until the end. `cut` ends it at once.
pub(crate) async fn run(
    client: ClientUpgrade,
    backend: impl AsyncRead + AsyncWrite + Unpin,
    idle: Option<Duration>,
    cut: CancellationToken,
) -> Ended {
    match client {
        ClientUpgrade::Http1(client) => tokio::select! {
            client = client => match client {
                Ok(client) => copy(TokioIo::new(client), backend, idle, cut).await,
                Err(error) => Ended::Failed(error.to_string()),
            },
            () = cut.cancelled() => Ended::Cut,
        },
        ClientUpgrade::Http2(client) => tokio::select! {
            tunnel = client => match tunnel {
                Ok(tunnel) => copy(tunnel, backend, idle, cut).await,
                Err(_) => Ended::Failed("the client's stream ended".to_owned()),
            },
            () = cut.cancelled() => Ended::Cut,
        },
    }
}

/// Copies both ways between any two streams.
pub(crate) async fn copy<A, B>(
    client: A,
    backend: B,
    idle: Option<Duration>,
    cut: CancellationToken,
) -> Ended
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let activity = Arc::new(Activity {
        start: Instant::now(),
        last: AtomicU64::new(0),
    });
    let mut client = Observed {
        inner: client,
        activity: Arc::clone(&activity),
    };
    let mut backend = backend;
    let copying = tokio::io::copy_bidirectional_with_sizes(
        &mut client,
        &mut backend,
        COPY_BUFFER,
        COPY_BUFFER,
    );
    tokio::select! {
        copied = copying => match copied {
            Ok(_) => Ended::Closed,
            Err(error) => Ended::Failed(error.to_string()),
        },
        () = until_idle(&activity, idle) => Ended::Idle,
        () = cut.cancelled() => Ended::Cut,
    }
}

struct Activity {
    start: Instant,
    /// Milliseconds after `start`.
    last: AtomicU64,
}

async fn until_idle(activity: &Activity, idle: Option<Duration>) {
    let Some(idle) = idle else {
        return std::future::pending().await;
    };
    loop {
        let last = activity.start + Duration::from_millis(activity.last.load(Ordering::Relaxed));
        if last.elapsed() >= idle {
            return;
        }
        tokio::time::sleep_until(last + idle).await;
    }
}

/// Notes when bytes passed. One side is enough: what is read there is written on the other.
struct Observed<S> {
    inner: S,
    activity: Arc<Activity>,
}

impl<S> Observed<S> {
    fn touch(&self) {
        let now = u64::try_from(self.activity.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.activity.last.store(now, Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        if result.is_ready() {
            self.touch();
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        if result.is_ready() {
            self.touch();
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
