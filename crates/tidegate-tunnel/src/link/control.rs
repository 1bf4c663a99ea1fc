//! The control stream: messages of one end are the frames of a body that does not end.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use tidegate_http2::{Incoming, Outgoing};
use tokio::sync::mpsc;

use super::LinkError;
use crate::wire::{FrameReader, Message, WireError};

/// Writes messages until there are no more.
pub(super) type Writer<M> = Outgoing<Messages<M>>;

/// What this end says. Ends when nobody is left who could say more.
#[derive(Debug)]
pub(super) struct Messages<M>(mpsc::Receiver<M>);

pub(super) fn writer<M: Message>(
    send: SendStream<Bytes>,
    messages: mpsc::Receiver<M>,
) -> Writer<M> {
    Outgoing::new(send, Messages(messages))
}

impl<M> Messages<M> {
    /// What was said already is the last.
    pub(super) fn end(&mut self) {
        self.0.close();
    }
}

impl<M: Message> Body for Messages<M> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            let Some(message) = ready!(self.0.poll_recv(cx)) else {
                return Poll::Ready(None);
            };
            match message.encode() {
                Ok(frame) => return Poll::Ready(Some(Ok(Frame::data(frame)))),
                // It is the one of an object with thousands of mappings.
                Err(error) => tracing::error!(%error, "a control message is not sent"),
            }
        }
    }
}

/// Reads messages of a body.
pub(super) struct Reader {
    body: Incoming,
    frames: FrameReader,
}

impl Reader {
    pub(super) fn new(body: Incoming) -> Self {
        Self {
            body,
            frames: FrameReader::default(),
        }
    }

    /// The next message of a known kind; None at the end. May be dropped halfway: what was read is kept.
    pub(super) async fn next<M: Message>(&mut self) -> Result<Option<M>, LinkError> {
        let broken = |error: WireError| LinkError::Control(error.into());
        loop {
            while let Some(frame) = self.frames.next_frame().map_err(broken)? {
                if let Some(message) = M::decode(&frame).map_err(broken)? {
                    return Ok(Some(message));
                }
                tracing::debug!("a control message of an unknown kind is passed over");
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(LinkError::Http2(error.into())),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.frames.push(data);
                    }
                }
            }
        }
    }
}
