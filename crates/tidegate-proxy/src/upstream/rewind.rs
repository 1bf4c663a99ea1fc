//! A request body whose beginning is kept until the replica that it goes to has begun to answer: if that has no link to
//! the agent any more, the body can begin again somewhere else.
//!
//! A bounded beginning is kept, by reference. A longer body goes on as ever, and cannot begin again.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::body::{Body, BodyError};

/// Bytes that are kept.
const KEPT: usize = 64 * 1024;

/// What was read of a body, and the rest.
#[derive(Default)]
struct State {
    read: VecDeque<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
    /// None at its end.
    rest: Option<Body>,
    /// More was read than is kept, or reading failed.
    lost: bool,
}

/// The handle by which a body can be had back.
pub(super) struct Kept(Arc<Mutex<State>>);

struct Reading(Arc<Mutex<State>>);

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Splits a body into what is sent and what keeps its beginning; an empty one needs no keeping.
pub(super) fn keep(body: Body) -> (Body, Option<Kept>) {
    if body.is_end_stream() {
        return (body, None);
    }
    let state = State {
        rest: Some(body),
        ..State::default()
    };
    let state = Arc::new(Mutex::new(state));
    let sent = Body::boxed(Reading(Arc::clone(&state)));
    (sent, Some(Kept(state)))
}

impl Kept {
    /// The body from its beginning, if all that was read of it is here. Whoever still reads the other half gets an
    /// error.
    pub(super) fn take_back(self) -> Option<Body> {
        let mut state = lock(&self.0);
        let state = std::mem::replace(
            &mut *state,
            State {
                lost: true,
                ..State::default()
            },
        );
        (!state.lost).then(|| {
            Body::boxed(Rewound {
                read: state.read,
                trailers: state.trailers,
                rest: state.rest,
            })
        })
    }
}

impl HttpBody for Reading {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = lock(&self.0);
        let Some(rest) = &mut state.rest else {
            return Poll::Ready(
                state
                    .lost
                    .then(|| Err("the request is sent elsewhere".into())),
            );
        };
        let frame = ready!(Pin::new(rest).poll_frame(cx));
        match &frame {
            // Whoever waits for the body's end learns of it by its being dropped.
            None => state.rest = None,
            Some(Err(_)) => state.lost = true,
            Some(Ok(frame)) => match frame.data_ref() {
                Some(data) if !state.lost && state.bytes + data.len() <= KEPT => {
                    state.bytes += data.len();
                    state.read.push_back(data.clone());
                }
                Some(_) => {
                    state.read.clear();
                    state.lost = true;
                }
                None => state.trailers = frame.trailers_ref().cloned(),
            },
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let state = lock(&self.0);
        !state.lost && state.rest.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let state = lock(&self.0);
        let rest = state.rest.as_ref();
        rest.map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

/// A body that begins again.
struct Rewound {
    read: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    rest: Option<Body>,
}

impl HttpBody for Rewound {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(data) = self.read.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        let rest = self.rest.as_ref();
        self.read.is_empty() && self.trailers.is_none() && rest.is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.read.iter().map(|it| it.len() as u64).sum::<u64>();
        let rest = self.rest.as_ref();
        let rest = rest.map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + read);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + read);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    fn body(chunks: &[usize]) -> Body {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "1".parse().unwrap());
        let frames: Vec<Result<_, BodyError>> = chunks
            .iter()
            .enumerate()
            .map(|(n, size)| {
                let byte = u8::try_from(n % 250).unwrap();
                Ok(Frame::data(Bytes::from(vec![byte; *size])))
            })
            .chain([Ok(Frame::trailers(trailers))])
            .collect();
        Body::boxed(StreamBody::new(futures_util::stream::iter(frames)))
    }

    async fn all(body: Body) -> (Bytes, bool) {
        let read = body.collect().await.unwrap();
        let trailers = read.trailers().is_some_and(|it| it.contains_key("x-sum"));
        (read.to_bytes(), trailers)
    }

    #[tokio::test]
    async fn a_body_begins_again_wherever_it_was_left() {
        let chunks = [10, 0, 20, 65_000];
        let whole = all(body(&chunks)).await;
        for taken in 0..=5 {
            let (mut sent, kept) = keep(body(&chunks));
            for _ in 0..taken {
                let _ = sent.frame().await;
            }
            let again = kept.unwrap().take_back().unwrap();
            assert!(taken >= 5 || sent.frame().await.unwrap().is_err());
            let (sent, kept) = keep(again);
            drop(sent);
            let again = kept.unwrap().take_back().unwrap();
            assert_eq!(all(again).await, whole, "{taken}");
        }
    }

    #[tokio::test]
    async fn what_was_not_kept_is_not_made_up() {
        let (mut sent, kept) = keep(body(&[KEPT, 1, 1]));
        sent.frame().await.unwrap().unwrap();
        sent.frame().await.unwrap().unwrap();
        // Nobody is held up by that.
        assert_eq!(all(sent).await.0.len(), 1);
        assert!(kept.unwrap().take_back().is_none());
        assert!(keep(Body::Empty).1.is_none());
    }
}
