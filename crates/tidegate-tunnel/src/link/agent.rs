//! The agent's end: the HTTP/2 server of a connection that the agent has dialled.
//!
//! The service gets what visitors ask, as the edge passes it on, and answers. The control stream is answered here.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::body::{LinkBody, SteadyBody};
use super::control::{self, Reader};
use super::lifeline::{CutOnDrop, Lifeline, Watched};
use super::stall::{Flows, Patience, Ticket, lock};
use super::{CONTROL_PATH, CONTROL_QUEUE, LinkError};
use crate::settings;
use crate::wire::{FromAgent, FromEdge, Hello, Pong};

/// Messages of a link, and the link itself.
#[derive(Debug)]
pub struct AgentControl {
    /// What the edge says. Pings are not among them. Ends with the link.
    pub from_edge: mpsc::Receiver<FromEdge>,
    /// What it is told.
    pub to_edge: mpsc::Sender<FromAgent>,
    /// To end it and to count.
    pub link: AgentLink,
}

/// A link as its agent sees it.
#[derive(Debug, Clone)]
pub struct AgentLink {
    flows: Arc<Flows>,
    line: Arc<Lifeline>,
    finish: CancellationToken,
}

/// Keeps a stream counted that goes on after its answer: an agreed CONNECT. Every request has one among its
/// extensions.
#[derive(Debug, Clone)]
pub struct Busy(#[expect(dead_code, reason = "it counts until it is dropped")] Arc<Ticket>);

impl AgentLink {
    /// Requests that are being answered.
    pub fn in_flight(&self) -> usize {
        self.flows.in_flight()
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.flows.total()
    }

    /// Bytes read from the edge and written to it so far, all of them.
    pub fn bytes(&self) -> (u64, u64) {
        self.line.bytes()
    }

    /// Returns when no request is being answered.
    pub async fn idle(&self) {
        self.flows.idle().await;
    }

    /// Returns when the link is gone.
    pub async fn closed(&self) {
        self.line.ended().await;
    }

    /// Ends the link as soon as nothing is in flight. The edge should have been told to drain before.
    pub fn finish(&self) {
        self.finish.cancel();
    }

    /// Ends the link at once; what is in flight fails.
    pub fn cut(&self) {
        self.line.cut();
    }
}

/// Serves a connection whose handshake is over. The driver must be polled for anything to happen; it returns why the
/// link ended, and dropping it ends the link.
pub fn serve<I, S, B>(
    io: I,
    hello: Hello,
    service: S,
) -> (
    AgentControl,
    impl Future<Output = LinkError> + Send + use<I, S, B>,
)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Unpin + Send,
{
    let (io, lifeline) = Watched::new(io);
    let link = AgentLink {
        flows: Flows::new(Patience::default()),
        line: Arc::clone(&lifeline),
        finish: CancellationToken::new(),
    };
    let (to_edge, messages) = mpsc::channel(CONTROL_QUEUE);
    // The queue is new and has room.
    let _ = to_edge.try_send(hello.into());
    let (forward, from_edge) = mpsc::channel(CONTROL_QUEUE);
    let control = AgentControl {
        from_edge,
        to_edge: to_edge.clone(),
        link: link.clone(),
    };
    let driver = async move {
        let cut = CutOnDrop(lifeline);
        let (bytes, body) = control::body();
        let (opened, control_stream) = oneshot::channel();
        let service = Answering {
            inner: service,
            flows: Arc::clone(&link.flows),
            control: Mutex::new(Some((body, opened))),
        };
        let connection = settings::agent().serve_connection(TokioIo::new(io), service);
        tokio::pin!(connection);
        let listen = listen(control_stream, to_edge, forward);
        tokio::pin!(listen);
        let mut write = Box::pin(control::write(messages, bytes));
        let mut writing = true;
        let end = loop {
            tokio::select! {
                ended = connection.as_mut() => break match ended {
                    Err(error) => LinkError::Http2(error.into()),
                    Ok(()) => LinkError::Closed,
                },
                end = &mut listen => break end,
                () = &mut write, if writing => writing = false,
                () = link.line.ended() => break LinkError::Cut,
                () = link.line.silent(settings::DEAD_AFTER) => break LinkError::Dead,
                () = finished(&link) => break LinkError::Cut,
            }
        };
        if matches!(end, LinkError::Cut) && !link.line.is_ended() {
            // Ends our half of the control stream.
            drop(write);
            connection.as_mut().graceful_shutdown();
            let _ = timeout(Duration::from_secs(1), connection.as_mut()).await;
        }
        drop(cut);
        tracing::debug!(reason = end.reason(), "a link has ended");
        end
    };
    (control, driver)
}

async fn finished(link: &AgentLink) {
    link.finish.cancelled().await;
    link.idle().await;
}

/// Waits for the control stream and passes on what the edge says.
async fn listen(
    opened: oneshot::Receiver<Incoming>,
    to_edge: mpsc::Sender<FromAgent>,
    forward: mpsc::Sender<FromEdge>,
) -> LinkError {
    let Ok(Ok(body)) = timeout(settings::HELLO_WITHIN, opened).await else {
        return LinkError::NoHello;
    };
    let mut reader = Reader::new(body);
    loop {
        match reader.next().await {
            Ok(Some(FromEdge::Ping(ping))) => {
                let answer = Pong { token: ping.token };
                if to_edge.send(answer.into()).await.is_err() {
                    return LinkError::Cut;
                }
            }
            Ok(Some(message)) => {
                if forward.send(message).await.is_err() {
                    tracing::trace!("nobody listens to the edge");
                }
            }
            Ok(None) => return LinkError::Closed,
            Err(error) => return error,
        }
    }
}

/// Answers the control stream and passes everything else on.
struct Answering<S> {
    inner: S,
    flows: Arc<Flows>,
    control: Mutex<Option<(control::ControlBody, oneshot::Sender<Incoming>)>>,
}

/// Future of an answer.
type Answer<B, E> = Pin<Box<dyn Future<Output = Result<Response<LinkBody<B>>, E>> + Send>>;

impl<S, B> Service<Request<Incoming>> for Answering<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Send,
{
    type Response = Response<LinkBody<B>>;
    type Error = S::Error;
    type Future = Answer<B, S::Error>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        if request.method() == Method::POST && request.uri().path() == CONTROL_PATH {
            // The first of all requests, and no other: a visitor may ask for that path too.
            if let Some((body, opened)) = lock(&self.control).take() {
                let _ = opened.send(request.into_body());
                let response = Response::new(LinkBody::Control(body));
                return Box::pin(std::future::ready(Ok(response)));
            }
        }
        let ticket = Arc::new(self.flows.count());
        request.extensions_mut().insert(Busy(Arc::clone(&ticket)));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            Ok(response.map(|body| LinkBody::Answer(SteadyBody::new(body), Busy(ticket))))
        })
    }
}
