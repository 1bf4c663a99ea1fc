//! A body on its way out, frame by frame: the next one is asked for when the window has begun to take the one before.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

/// Why a body was not sent whole.
#[derive(Debug)]
pub enum SendBodyError<E> {
    /// The other end wants no more of it.
    Reset(Reason),
    /// The connection, or the stream, is gone.
    Send(h2::Error),
    /// The body itself failed. The stream is still open.
    Body(E),
}

/// A body and the stream it is sent on. Dropped before its end, it resets the stream.
#[derive(Debug)]
pub struct Outgoing<B> {
    send: SendStream<Bytes>,
    body: B,
    /// Waits for the window, and whether it is the last.
    waiting: Option<(Bytes, bool)>,
}

impl<B: Body<Data = Bytes> + Unpin> Outgoing<B> {
    /// A body of which nothing was sent.
    pub fn new(send: SendStream<Bytes>, body: B) -> Self {
        Self {
            send,
            body,
            waiting: None,
        }
    }

    /// The body.
    pub fn body_mut(&mut self) -> &mut B {
        &mut self.body
    }

    /// Ends the stream at once, both ways.
    pub fn reset(&mut self, reason: Reason) {
        self.send.send_reset(reason);
    }

    /// Ready when all is handed to the codec.
    ///
    /// # Errors
    /// [`SendBodyError`]
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendBodyError<B::Error>>> {
        loop {
            if let Some((data, last)) = self.waiting.take() {
                match self.poll_window(cx) {
                    Poll::Pending => {
                        self.waiting = Some((data, last));
                        return self.poll_reset(cx).map(Err);
                    }
                    Poll::Ready(window) => window?,
                }
                self.send
                    .send_data(data, last)
                    .map_err(SendBodyError::Send)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                return self.poll_reset(cx).map(Err);
            };
            let frame = match frame {
                None => {
                    let end = self.send.send_data(Bytes::new(), true);
                    return Poll::Ready(end.map_err(SendBodyError::Send));
                }
                Some(Err(error)) => return Poll::Ready(Err(SendBodyError::Body(error))),
                Some(Ok(frame)) => frame,
            };
            let data = match frame.into_data() {
                Ok(data) => data,
                Err(frame) => {
                    // HTTP/2 has no other kinds of frames in a body.
                    let Ok(trailers) = frame.into_trailers() else {
                        continue;
                    };
                    let end = self.send.send_trailers(trailers);
                    return Poll::Ready(end.map_err(SendBodyError::Send));
                }
            };
            let last = self.body.is_end_stream();
            if data.is_empty() {
                if last {
                    let end = self.send.send_data(data, true);
                    return Poll::Ready(end.map_err(SendBodyError::Send));
                }
                continue;
            }
            // One byte: more would be kept from streams that have something to send, and the codec raises it to what
            // it is given.
            self.send.reserve_capacity(1);
            self.waiting = Some((data, last));
        }
    }

    fn poll_window(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendBodyError<B::Error>>> {
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(SendBodyError::Send(error))),
                None => return Poll::Ready(Err(SendBodyError::Reset(Reason::STREAM_CLOSED))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Asked while there is nothing else to do: a reset wakes the task.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<SendBodyError<B::Error>> {
        self.send.poll_reset(cx).map(|reset| match reset {
            Ok(reason) => SendBodyError::Reset(reason),
            Err(error) => SendBodyError::Send(error),
        })
    }
}

/// What a stream is reset with whose body failed: what the other side of it was reset with, else that something went
/// wrong here.
pub fn reason_of(error: &(dyn std::error::Error + 'static)) -> Reason {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(reason) = error
            .downcast_ref::<h2::Error>()
            .and_then(h2::Error::reason)
        {
            return reason;
        }
        source = error.source();
    }
    Reason::INTERNAL_ERROR
}
