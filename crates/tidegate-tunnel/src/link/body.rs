//! What both ends send: bodies without empty frames, and with small chunks merged.
//!
//! h2 ends a connection after 100 empty frames over its whole life, and charges each frame of a few bytes; and a frame
//! costs the same whether it carries 20 bytes or 20 000.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// Chunks shorter than this are worth merging, in bytes.
pub const SMALL: usize = 1024;
/// Merging stops at this size, in bytes.
const MERGED: usize = 16 * 1024;
/// Empty chunks passed over before another task gets its turn.
const EMPTY_IN_A_ROW: usize = 64;

/// A body as the link likes it. What is ready in the same poll is merged; nothing waits for more to come.
#[derive(Debug)]
pub struct SteadyBody<B: Body> {
    inner: B,
    next: Option<Next<B::Error>>,
    done: bool,
}

/// What was read but not handed out.
#[derive(Debug)]
enum Next<E> {
    Data(Bytes),
    Trailers(HeaderMap),
    Failed(E),
}

impl<B: Body<Data = Bytes>> SteadyBody<B> {
    /// Wraps a body that nothing was read of yet.
    pub fn new(inner: B) -> Self {
        Self {
            inner,
            next: None,
            done: false,
        }
    }

    /// The body itself; what was read of it is gone.
    pub fn into_inner(self) -> B {
        self.inner
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for SteadyBody<B>
where
    B::Error: Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let mut merged = Merged::Nothing;
        match this.next.take() {
            None => {}
            Some(Next::Data(data)) if data.len() >= SMALL => {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            Some(Next::Data(data)) => merged.add(data),
            Some(Next::Trailers(trailers)) => {
                this.done = true;
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            Some(Next::Failed(error)) => {
                this.done = true;
                return Poll::Ready(Some(Err(error)));
            }
        }
        let mut empty = 0;
        while !this.done {
            let next = match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Pending => match merged.take() {
                    Some(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    None => return Poll::Pending,
                },
                Poll::Ready(None) => {
                    this.done = true;
                    break;
                }
                Poll::Ready(Some(Err(error))) => Next::Failed(error),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {
                        empty += 1;
                        if empty < EMPTY_IN_A_ROW {
                            continue;
                        }
                        cx.waker().wake_by_ref();
                        return match merged.take() {
                            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
                            None => Poll::Pending,
                        };
                    }
                    Ok(data) if data.len() < SMALL && merged.len() < MERGED => {
                        merged.add(data);
                        continue;
                    }
                    Ok(data) => Next::Data(data),
                    Err(frame) => match frame.into_trailers() {
                        Ok(trailers) => Next::Trailers(trailers),
                        // HTTP/2 has no other kinds of frames in a body.
                        Err(_) => continue,
                    },
                },
            };
            if let Some(data) = merged.take() {
                this.next = Some(next);
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            let frame = match next {
                Next::Data(data) => Ok(Frame::data(data)),
                Next::Trailers(trailers) => {
                    this.done = true;
                    Ok(Frame::trailers(trailers))
                }
                Next::Failed(error) => {
                    this.done = true;
                    Err(error)
                }
            };
            return Poll::Ready(Some(frame));
        }
        Poll::Ready(merged.take().map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_none() && (self.done || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let kept = match &self.next {
            Some(Next::Data(data)) => data.len() as u64,
            _ => 0,
        };
        let mut hint = self.inner.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(kept));
        }
        hint.set_lower(hint.lower().saturating_add(kept));
        hint
    }
}

/// Small chunks, copied together only when there is more than one.
enum Merged {
    Nothing,
    One(Bytes),
    Many(BytesMut),
}

impl Merged {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::One(data) => data.len(),
            Self::Many(data) => data.len(),
        }
    }

    fn add(&mut self, data: Bytes) {
        *self = match std::mem::replace(self, Self::Nothing) {
            Self::Nothing => Self::One(data),
            Self::One(first) => {
                let mut both = BytesMut::with_capacity(4 * SMALL);
                both.extend_from_slice(&first);
                both.extend_from_slice(&data);
                Self::Many(both)
            }
            Self::Many(mut all) => {
                all.extend_from_slice(&data);
                Self::Many(all)
            }
        };
    }

    fn take(&mut self) -> Option<Bytes> {
        match std::mem::replace(self, Self::Nothing) {
            Self::Nothing => None,
            Self::One(data) => Some(data),
            Self::Many(data) => Some(data.freeze()),
        }
    }
}
