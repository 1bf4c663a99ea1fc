//! The service at home: pages, bodies of any length, answers that wait for a word, a WebSocket.
//!
//! ```text
//! /bytes/N   N bytes        /count     how many bytes were sent to it
//! /trickle   numbered lines until `release`, then `end`
//! /hold      answers at `release`
//! /ws        echoes         anything else: who asked
//! ```

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio::time::Interval;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::support::Origin;

type Answer = UnsyncBoxBody<Bytes, Infallible>;

static CHUNK: [u8; 65_536] = [b'x'; 65_536];
const LINE_EVERY: Duration = Duration::from_millis(20);

/// A serving service. Dropping ends it.
pub(super) struct Service {
    origin: Origin,
    shared: Shared,
}

#[derive(Clone)]
struct Shared {
    released: watch::Sender<bool>,
    waiting: Arc<AtomicUsize>,
    sent: Arc<AtomicU64>,
}

/// Releases when it is dropped.
pub(super) struct Released<'a>(&'a Service);

impl Service {
    pub(super) fn start() -> Self {
        let shared = Shared {
            released: watch::Sender::new(false),
            waiting: Arc::default(),
            sent: Arc::default(),
        };
        let for_answers = shared.clone();
        let origin = Origin::serve(move |request| answer(request, for_answers.clone()));
        Self { origin, shared }
    }

    /// As a mapping's target.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.origin.address())
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.origin.address()
    }

    /// Requests of `/hold` that wait now.
    pub(super) fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// Bytes of `/bytes` that were taken from here so far.
    pub(super) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Whatever becomes of the test: nobody waits in vain.
    pub(super) fn released_at_the_end(&self) -> Released<'_> {
        Released(self)
    }

    /// Lets everything end that waits.
    pub(super) fn release(&self) {
        self.shared.released.send_replace(true);
    }
}

impl Drop for Released<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

async fn answer(request: Request<Incoming>, shared: Shared) -> Response<Answer> {
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').split('/');
    match parts.next().unwrap_or_default() {
        "bytes" => {
            let left = parts.next().and_then(|it| it.parse().ok()).unwrap_or(0);
            let sent = shared.sent;
            Response::new(Many { left, sent }.boxed_unsync())
        }
        "count" => text(count(request.into_body()).await.to_string()),
        "trickle" => {
            let trickle = Trickle {
                line: 0,
                every: tokio::time::interval(LINE_EVERY),
                released: shared.released.subscribe(),
                over: false,
            };
            Response::new(trickle.boxed_unsync())
        }
        "hold" => {
            shared.waiting.fetch_add(1, Ordering::Relaxed);
            let mut released = shared.released.subscribe();
            let _ = released.wait_for(|it| *it).await;
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
            text("released")
        }
        "ws" => websocket(request),
        _ => text(who(&request)),
    }
}

fn text(text: impl Into<Bytes>) -> Response<Answer> {
    Response::new(Full::new(text.into()).boxed_unsync())
}

fn who(request: &Request<Incoming>) -> String {
    let fields = request.headers().iter();
    let fields: serde_json::Map<_, _> = fields
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.to_string(), value.into())
        })
        .collect();
    serde_json::json!({"headers": fields, "target": request.uri().to_string()}).to_string()
}

async fn count(mut body: Incoming) -> u64 {
    let mut count = 0;
    while let Some(Ok(frame)) = body.frame().await {
        count += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
    count
}

fn websocket(request: Request<Incoming>) -> Response<Answer> {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        return text("no WebSocket");
    };
    let response = Response::builder()
        .status(101)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(
            header::SEC_WEBSOCKET_ACCEPT,
            derive_accept_key(key.as_bytes()),
        );
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else {
            return;
        };
        let io = TokioIo::new(upgraded);
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    });
    response.body(Full::default().boxed_unsync()).unwrap()
}

/// So many bytes.
struct Many {
    left: u64,
    sent: Arc<AtomicU64>,
}

impl Body for Many {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = self.left.min(CHUNK.len() as u64);
        self.left -= length;
        self.sent.fetch_add(length, Ordering::Relaxed);
        let length = usize::try_from(length).unwrap_or(0);
        let chunk = Bytes::from_static(&CHUNK[..length]);
        Poll::Ready((length > 0).then(|| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Lines until it is released.
struct Trickle {
    line: u64,
    every: Interval,
    released: watch::Receiver<bool>,
    over: bool,
}

impl Body for Trickle {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.over {
            return Poll::Ready(None);
        }
        std::task::ready!(self.every.poll_tick(cx));
        let over = *self.released.borrow();
        self.over = over;
        let line = if self.over {
            "end\n".to_owned()
        } else {
            self.line += 1;
            format!("{}\n", self.line)
        };
        Poll::Ready(Some(Ok(Frame::data(line.into()))))
    }
}
