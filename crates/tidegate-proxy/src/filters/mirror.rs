//! Copies of requests to other backends, whose answers nobody waits for. A copy that cannot keep up is
//! given up; it never slows the request down.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, request};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tidegate_model::Mirror;
use tokio::sync::mpsc;

use crate::body::{Body, BodyError};
use crate::upstream::{self, SendOptions};
use crate::worker::Worker;

/// Frames that a copy may lag behind.
const LAG: usize = 64;

/// Copies and their answers end after this.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// Starts the copies that chance chooses. Returns the body for the request itself.
pub(crate) fn tee(
    worker: &Arc<Worker>,
    mirrors: &[Mirror],
    parts: &request::Parts,
    body: Body,
    options: &SendOptions,
) -> Body {
    if mirrors.is_empty() || options.upgrade {
        return body;
    }
    let mut copies = Vec::new();
    for mirror in mirrors
        .iter()
        .filter(|mirror| fastrand::u8(0..100) < mirror.percent)
    {
        let mut copy = Box::new(Request::new(if matches!(body, Body::Empty) {
            Body::Empty
        } else {
            let (sender, receiver) = mpsc::channel(LAG);
            let whole = Arc::new(AtomicBool::new(false));
            copies.push(Feed {
                sender,
                whole: Arc::clone(&whole),
            });
            Body::boxed(Copy {
                receiver,
                whole,
                hint: body.size_hint(),
            })
        }));
        *copy.method_mut() = parts.method.clone();
        *copy.uri_mut() = parts.uri.clone();
        *copy.headers_mut() = parts.headers.clone();
        let worker = Arc::clone(worker);
        let cluster = Arc::clone(&mirror.cluster);
        let options = SendOptions {
            body: None,
            hints: None,
            ..options.clone()
        };
        tokio::spawn(async move {
            let sent = async {
                let answer = upstream::send(&worker.upstreams, &cluster, copy, &options).await?;
                let mut body = answer.response.into_body();
                while let Some(Ok(_)) = body.frame().await {}
                Ok::<_, crate::error::ProxyError>(())
            };
            match tokio::time::timeout(LIMIT, sent).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    worker.shared.metrics.upstream_failed("MirrorFailed");
                    let error = tidegate_telemetry::chain(&error);
                    tracing::debug!(cluster = cluster.name, %error, "mirror failed");
                }
                Err(_) => worker.shared.metrics.upstream_failed("MirrorTimeout"),
            }
        });
    }
    if copies.is_empty() {
        body
    } else {
        Body::boxed(Tee { body, copies })
    }
}

/// The request's own body, which also feeds the copies.
struct Tee {
    body: Body,
    copies: Vec<Feed>,
}

/// What feeds one copy. Dropped as it is, the copy is broken off.
struct Feed {
    sender: mpsc::Sender<Bytes>,
    /// Whether everything was handed over.
    whole: Arc<AtomicBool>,
}

impl HttpBody for Tee {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.copies
                .retain(|copy| copy.sender.try_send(data.clone()).is_ok());
        }
        let over = match &frame {
            Some(Ok(_)) => self.body.is_end_stream(),
            Some(Err(_)) => false,
            None => true,
        };
        if over {
            for copy in self.copies.drain(..) {
                copy.whole.store(true, Ordering::Release);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a copy. It must not look complete when the request was broken off, or the copy given up.
struct Copy {
    receiver: mpsc::Receiver<Bytes>,
    whole: Arc<AtomicBool>,
    hint: SizeHint,
}

impl HttpBody for Copy {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(match std::task::ready!(self.receiver.poll_recv(cx)) {
            Some(data) => Some(Ok(Frame::data(data))),
            None if self.whole.load(Ordering::Acquire) => None,
            None => Some(Err("the copy is not whole".into())),
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}
