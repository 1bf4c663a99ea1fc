//! The one body type of responses and of requests to backends. Bodies stream; nothing here buffers.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{HeaderMap, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use crate::upstream::AnswerBody;
use crate::upstream::cluster::ActiveRequest;

/// Error of any body.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A boxed body, for the rare kinds.
pub(crate) type BoxBody = Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError> + Send>>;

/// A body in flight.
#[derive(Default)]
pub(crate) enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// Bytes at hand; None once they are sent.
    Full(Option<Bytes>),
    /// A client's request body.
    Request(Box<RequestBody>),
    /// A backend's response body.
    Upstream(Box<UpstreamBody>),
    /// Files, compressed streams, copies.
    Boxed(BoxBody),
}

impl Body {
    /// A body of bytes at hand.
    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() {
            Self::Empty
        } else {
            Self::Full(Some(bytes))
        }
    }

    /// Boxes another body.
    pub(crate) fn boxed<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes, Error = BodyError> + Send + 'static,
    {
        Self::Boxed(Box::pin(body))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Request(body) => Pin::new(&mut **body).poll_frame(cx),
            Self::Upstream(body) => Pin::new(&mut **body).poll_frame(cx),
            Self::Boxed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::Request(body) => body.incoming.is_end_stream(),
            Self::Upstream(body) => body.incoming.is_end_stream(),
            Self::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Request(body) => body.incoming.size_hint(),
            Self::Upstream(body) => body.incoming.size_hint(),
            Self::Boxed(body) => body.size_hint(),
        }
    }
}

/// A timer that runs only while somebody makes us wait.
#[derive(Debug, Default)]
struct WaitClock {
    limit: Option<Duration>,
    sleep: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl WaitClock {
    fn new(limit: Option<Duration>) -> Self {
        Self {
            limit,
            sleep: None,
            waiting: false,
        }
    }

    fn progressed(&mut self) {
        self.waiting = false;
    }

    /// Ready when the wait has lasted for the limit.
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        let Some(limit) = self.limit else {
            return Poll::Pending;
        };
        let deadline = Instant::now() + limit;
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if !self.waiting {
            self.waiting = true;
            sleep.as_mut().reset(deadline);
        }
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(limit)
    }
}

/// Why a request body ended early; told by the body to whoever waits for the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyOutcome {
    /// Nothing bad so far.
    Fine,
    /// More than the rule's limit.
    TooLarge,
    /// Nothing came for the idle time.
    TimedOut,
    /// The client broke off.
    Aborted,
}

/// Shared view of a request body's outcome.
#[derive(Debug, Default, Clone)]
pub(crate) struct BodyWatch(Arc<BodyProgress>);

#[derive(Debug, Default)]
struct BodyProgress {
    outcome: AtomicU8,
    ended: AtomicBool,
    end: Notify,
}

impl BodyWatch {
    pub(crate) fn outcome(&self) -> BodyOutcome {
        match self.0.outcome.load(Ordering::Relaxed) {
            1 => BodyOutcome::TooLarge,
            2 => BodyOutcome::TimedOut,
            3 => BodyOutcome::Aborted,
            _ => BodyOutcome::Fine,
        }
    }

    /// Waits until the whole body was read, or nobody will read more of it. For one waiter.
    pub(crate) async fn until_ended(&self) {
        while !self.0.ended.load(Ordering::Relaxed) {
            self.0.end.notified().await;
        }
    }

    fn set(&self, outcome: BodyOutcome) {
        self.0.outcome.store(outcome as u8, Ordering::Relaxed);
    }
}

/// Error of a request body that the edge itself ended.
#[derive(Debug, thiserror::Error)]
enum RequestBodyError {
    #[error("the request body is longer than {0} bytes")]
    TooLarge(u64),
    #[error("nothing of the request body came for {0:?}")]
    TimedOut(Duration),
}

/// What a client sends after a request's head.
pub(crate) enum ClientBody {
    /// Nothing.
    Empty,
    /// A body of hyper's.
    Http1(Incoming),
    /// DATA frames, whose window opens again as they are taken.
    Http2 {
        recv: RecvStream,
        /// As announced; the codec holds the client to it.
        length: Option<u64>,
        /// Only trailers can follow.
        data_ended: bool,
    },
}

impl ClientBody {
    /// The body of a stream whose header is at hand.
    pub(crate) fn http2(recv: RecvStream, headers: &HeaderMap) -> Self {
        if recv.is_end_stream() {
            return Self::Empty;
        }
        let length = headers.get(header::CONTENT_LENGTH);
        Self::Http2 {
            recv,
            length: length.and_then(|length| length.to_str().ok()?.parse().ok()),
            data_ended: false,
        }
    }
}

impl HttpBody for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (recv, data_ended) = match self.get_mut() {
            Self::Empty => return Poll::Ready(None),
            Self::Http1(incoming) => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
            }
            Self::Http2 {
                recv, data_ended, ..
            } => (recv, data_ended),
        };
        // RFC 9113 §8.1: NO_ERROR means that the rest is not needed, not that something is wrong.
        let failed = |error: h2::Error| match error.reason() {
            Some(Reason::NO_ERROR) => None,
            _ => Some(Err(error.into())),
        };
        if !*data_ended {
            match ready!(recv.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only for more than was received.
                    let _ = recv.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(failed(error)),
                None => *data_ended = true,
            }
        }
        Poll::Ready(match ready!(recv.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => failed(error),
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1(incoming) => incoming.is_end_stream(),
            Self::Http2 { recv, .. } => recv.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Http1(incoming) => incoming.size_hint(),
            Self::Http2 { length, .. } => length.map_or_else(SizeHint::new, SizeHint::with_exact),
        }
    }
}

/// A client's request body under the rule's size limit and idle clock.
pub(crate) struct RequestBody {
    incoming: ClientBody,
    limit: Option<u64>,
    read: u64,
    clock: WaitClock,
    watch: BodyWatch,
}

impl RequestBody {
    /// Wraps the body; the watch tells how it went.
    pub(crate) fn new(
        incoming: ClientBody,
        limit: Option<u64>,
        idle: Option<Duration>,
    ) -> (Self, BodyWatch) {
        let watch = BodyWatch::default();
        let clock = WaitClock::new(idle);
        (
            Self {
                incoming,
                limit,
                read: 0,
                clock,
                watch: watch.clone(),
            },
            watch,
        )
    }

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(cx) else {
            let limit = ready!(this.clock.poll_wait(cx));
            this.watch.set(BodyOutcome::TimedOut);
            return Poll::Ready(Some(Err(RequestBodyError::TimedOut(limit).into())));
        };
        this.clock.progressed();
        match frame {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    crate::normalize::trailers(trailers);
                }
                if let Some(data) = frame.data_ref() {
                    this.read += data.len() as u64;
                    if let Some(limit) = this.limit
                        && this.read > limit
                    {
                        this.watch.set(BodyOutcome::TooLarge);
                        return Poll::Ready(Some(Err(RequestBodyError::TooLarge(limit).into())));
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                this.watch.set(BodyOutcome::Aborted);
                Poll::Ready(Some(Err(error)))
            }
            None => Poll::Ready(None),
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.watch.0.ended.store(true, Ordering::Relaxed);
        self.watch.0.end.notify_one();
    }
}

/// Error of a response body that the edge itself ended.
#[derive(Debug, thiserror::Error)]
enum UpstreamBodyError {
    #[error("nothing of the response body came for {0:?}")]
    TimedOut(Duration),
    #[error("the request took longer than its limit")]
    Deadline,
}

/// A backend's response body under the rule's clocks.
pub(crate) struct UpstreamBody {
    incoming: AnswerBody,
    clock: WaitClock,
    deadline: Option<Pin<Box<Sleep>>>,
    keep_trailers: bool,
    _active: ActiveRequest,
}

impl UpstreamBody {
    pub(crate) fn new(
        incoming: AnswerBody,
        active: ActiveRequest,
        idle: Option<Duration>,
        deadline: Option<Instant>,
        keep_trailers: bool,
    ) -> Self {
        Self {
            incoming,
            clock: WaitClock::new(idle),
            deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
            keep_trailers,
            _active: active,
        }
    }

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(cx) else {
                if let Some(deadline) = &mut this.deadline
                    && deadline.as_mut().poll(cx).is_ready()
                {
                    return Poll::Ready(Some(Err(UpstreamBodyError::Deadline.into())));
                }
                let limit = ready!(this.clock.poll_wait(cx));
                return Poll::Ready(Some(Err(UpstreamBodyError::TimedOut(limit).into())));
            };
            this.clock.progressed();
            return match frame {
                Some(Ok(mut frame)) => {
                    if let Some(trailers) = frame.trailers_mut() {
                        if !this.keep_trailers {
                            continue;
                        }
                        crate::normalize::trailers(trailers);
                    }
                    Poll::Ready(Some(Ok(frame)))
                }
                Some(Err(error)) => Poll::Ready(Some(Err(error))),
                None => Poll::Ready(None),
            };
        }
    }
}
