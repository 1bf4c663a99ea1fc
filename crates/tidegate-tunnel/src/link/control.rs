//! The control stream: messages of one end are the frames of a body that does not end.

use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;

use super::LinkError;
use crate::wire::{FrameReader, Message, WireError};

/// What this end says. Ends when nobody is left who could say more.
pub(super) struct ControlBody(mpsc::Receiver<Bytes>);

impl ControlBody {
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        self.0.poll_recv(cx).map(|it| it.map(Frame::data))
    }
}

/// A body and what feeds it.
pub(super) fn body() -> (mpsc::Sender<Bytes>, ControlBody) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, ControlBody(receiver))
}

/// Writes messages until there are no more. A message that is too long is dropped and said: it is the one of an
/// object with thousands of mappings.
pub(super) async fn write<M: Message>(mut messages: mpsc::Receiver<M>, body: mpsc::Sender<Bytes>) {
    while let Some(message) = messages.recv().await {
        match message.encode() {
            Ok(frame) => {
                if body.send(frame).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::error!(%error, "a control message is not sent"),
        }
    }
}

/// Reads messages of a body.
pub(super) struct Reader<B> {
    body: B,
    frames: FrameReader,
}

impl<B> Reader<B>
where
    B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
{
    pub(super) fn new(body: B) -> Self {
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
