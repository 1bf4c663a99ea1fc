//! A visitor's body on its way to the agent, watched for an agent that does not take it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body, Frame, SizeHint};
use tidegate_http2::{Outgoing, SendBodyError, reason_of};

use super::body::SteadyBody;
use super::stall::Flow;

/// Error of any body.
type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Ends when all is sent, the agent wants no more, or the visitor has left.
pub(super) struct Upload<B: Body> {
    outgoing: Outgoing<Fed<B>>,
    flow: Arc<Flow>,
}

impl<B> Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError> + Unpin,
{
    pub(super) fn new(send: SendStream<Bytes>, body: B, flow: &Arc<Flow>) -> Self {
        let body = Fed {
            body: SteadyBody::new(body),
            flow: Arc::clone(flow),
        };
        Self {
            outgoing: Outgoing::new(send, body),
            flow: Arc::clone(flow),
        }
    }
}

impl<B> Future for Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError> + Unpin,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { outgoing, flow } = self.get_mut();
        flow.feeder.register(cx.waker());
        if flow.is_reset() {
            outgoing.reset(Reason::CANCEL);
            return Poll::Ready(());
        }
        outgoing.poll(cx).map(|sent| {
            if let Err(SendBodyError::Body(error)) = sent {
                outgoing.reset(reason_of(&*error));
            }
        })
    }
}

/// Marks when a chunk was handed out and when the next is asked for.
struct Fed<B: Body> {
    body: SteadyBody<B>,
    flow: Arc<Flow>,
}

impl<B> Body for Fed<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError> + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { body, flow } = self.get_mut();
        flow.upload_taken();
        let polled = Pin::new(body).poll_frame(cx).map_err(Into::into);
        if let Poll::Ready(Some(Ok(_))) = &polled {
            flow.upload_given();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: Body> Drop for Fed<B> {
    /// An upload that is gone waits for nobody.
    fn drop(&mut self) {
        self.flow.upload_taken();
    }
}
