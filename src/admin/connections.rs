//! Connections of the admin listener, with bounds: it often is the last thing that still answers.
//!
//! HTTP/1 only, since everything that asks here speaks it. Must not know what is answered.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use hyper::body::Body as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at a time; more are closed at once, so that those who wait learn it.
const MOST_CONNECTIONS: usize = 64;
/// Time for a request's head, and between two requests of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 * 1024;
/// A connection takes no more requests after this.
const LIFETIME: Duration = Duration::from_secs(300);
/// Time for what runs then, or when the listener ends.
const GRACE: Duration = Duration::from_secs(10);
/// Time to wait when the system has no more file descriptors.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// What connections come from.
pub trait Listener: Send {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one, and where it comes from.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

/// Where a connection comes from, as an extension of its requests; None for a socket of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub Option<IpAddr>);

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = self.accept().await?;
        Ok((stream, Peer(Some(address.ip()))))
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, Peer)> {
        Ok((self.accept().await?.0, Peer(None)))
    }
}

/// Serves until `stop` completes; requests under way have a while to end.
pub(super) async fn serve<L, F>(listener: L, router: Router, stop: F)
where
    L: Listener,
    F: Future<Output = ()> + Send,
{
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let ending = CancellationToken::new();
    let tasks = TaskTracker::new();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.next() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of the admin listener");
                sleep(EXHAUSTED).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(MOST_CONNECTIONS, "the admin listener refuses a connection");
            continue;
        };
        let router = router.clone().layer(Extension(peer));
        let connection = connection(stream, router, ending.clone());
        tasks.spawn(async move {
            connection.await;
            drop(place);
        });
    }
    // Not with a queue that nobody reads: another process may have the port too.
    drop(listener);
    ending.cancel();
    tasks.close();
    let _ = timeout(GRACE, tasks.wait()).await;
}

async fn connection<S>(stream: S, router: Router, ending: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES);
    let service = TowerToHyperService::new(router);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // Who hangs up or sends nonsense is no concern of the operator.
        _ = &mut connection => return,
        () = ending.cancelled() => {}
        () = sleep(LIFETIME) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(GRACE, connection).await;
}

/// The views take no body, and so none is waited for.
pub(super) async fn refuse_bodies(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let message = "this takes no request body\n";
    (StatusCode::PAYLOAD_TOO_LARGE, message).into_response()
}
