//! The agent's end: the HTTP/2 server of a connection that the agent has dialled.
//!
//! The service gets what visitors ask, as the edge passes it on, and answers. The control stream is answered here.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tidegate_http2::{Driver, Ended, Outgoing, SendBodyError, StreamIo, reason_of};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::body::SteadyBody;
use super::control::{self, Reader, Writer};
use super::lifeline::{CutOnDrop, Lifeline, Watched};
use super::stall::{Flows, Patience, Ticket};
use super::{CONTROL_PATH, CONTROL_QUEUE, LinkError, complete};
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

/// What a visitor sends.
#[derive(Debug)]
pub enum Incoming {
    /// A body.
    Body(tidegate_http2::Incoming),
    /// Bytes without an end of their own, once the CONNECT is agreed to.
    Tunnel(Agreed),
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match self.get_mut() {
            Self::Body(body) => Pin::new(body).poll_frame(cx),
            Self::Tunnel(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Body(body) => body.is_end_stream(),
            Self::Tunnel(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Body(body) => body.size_hint(),
            Self::Tunnel(_) => SizeHint::with_exact(0),
        }
    }
}

/// The stream of a CONNECT, which is there as soon as the answer is on its way and agrees.
#[derive(Debug)]
pub struct Agreed(oneshot::Receiver<AgentTunnel>);

impl Agreed {
    /// None where the answer was no agreement, or the visitor has left.
    pub async fn tunnel(self) -> Option<AgentTunnel> {
        self.0.await.ok()
    }
}

/// A stream that carries bytes. The link counts it as long as it lasts.
#[derive(Debug)]
pub struct AgentTunnel {
    io: StreamIo,
    #[expect(dead_code, reason = "it counts until it is dropped")]
    ticket: Ticket,
}

impl AsyncRead for AgentTunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for AgentTunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

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
pub fn serve<I, S, F, B>(
    io: I,
    hello: Hello,
    service: S,
) -> (
    AgentControl,
    impl Future<Output = LinkError> + Send + use<I, S, F, B>,
)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
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
        let end = drive(
            io,
            &link,
            service,
            Talk {
                to_edge,
                messages,
                forward,
            },
        );
        let end = end.await;
        drop(cut);
        tracing::debug!(reason = end.reason(), "a link has ended");
        end
    };
    (control, driver)
}

/// The control stream's side of a link.
struct Talk {
    to_edge: mpsc::Sender<FromAgent>,
    messages: mpsc::Receiver<FromAgent>,
    forward: mpsc::Sender<FromEdge>,
}

/// Both halves of the control stream.
type Control = (SendStream<Bytes>, tidegate_http2::Incoming);

async fn drive<I, S, F, B>(io: Watched<I>, link: &AgentLink, service: S, talk: Talk) -> LinkError
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Unpin + Send,
{
    let codec = tokio::select! {
        codec = settings::agent().handshake(io) => match codec {
            Ok(codec) => codec,
            Err(error) => return LinkError::Http2(error.into()),
        },
        () = link.line.ended() => return LinkError::Cut,
        () = sleep(settings::HELLO_WITHIN) => return LinkError::NoHello,
    };
    let (opened, control) = oneshot::channel::<Control>();
    let mut opened = Some(opened);
    let flows = Arc::clone(&link.flows);
    let service = Arc::new(service);
    let mut driver = Driver::new(codec, move |request, respond| {
        let asked = asked(request, respond, &mut opened);
        stream(
            asked.map(|asked| (asked, flows.count())),
            Arc::clone(&service),
        )
    });
    let mut watch = pin!(watch(link, control, talk));
    // A turn is bounded by the driver itself.
    let ended = tokio::task::unconstrained(poll_fn(|cx| {
        driver.poll(cx, |driver, cx| {
            // Asked every few seconds, for the control stream is never silent for long.
            driver.shrink();
            watch.as_mut().poll(cx)
        })
    }));
    let (end, writer) = match ended.await {
        Ended::Codec(Err(error)) => return LinkError::Http2(error.into()),
        Ended::Codec(Ok(())) => return LinkError::Closed,
        Ended::Alarm(alarm) => alarm,
    };
    if matches!(end, LinkError::Cut) && !link.line.is_ended() {
        // The edge hears the end of our half of the control stream, and that there is nothing more to ask for.
        let mut writer = writer;
        if let Some(writer) = &mut writer {
            writer.body_mut().end();
        }
        driver.leave();
        let farewell = poll_fn(|cx| {
            if let Some(writing) = &mut writer
                && writing.poll(cx).is_ready()
            {
                writer = None;
            }
            driver.poll(cx, |_, _| Poll::<()>::Pending)
        });
        let _ = timeout(Duration::from_secs(1), farewell).await;
    }
    end
}

/// A request for the service.
struct Asked {
    request: Request<Incoming>,
    /// Of a CONNECT: who waits for its stream, and the half that is there already.
    tunnel: Option<(oneshot::Sender<AgentTunnel>, RecvStream)>,
    respond: SendResponse<Bytes>,
}

/// Answers the control stream, which is the first of all requests; everything else is for the service. A visitor may
/// ask for that path too.
fn asked(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    opened: &mut Option<oneshot::Sender<Control>>,
) -> Option<Asked> {
    let (head, body) = request.into_parts();
    if head.method == Method::POST
        && head.uri.path() == CONTROL_PATH
        && let Some(opened) = opened.take()
    {
        if let Ok(send) = respond.send_response(Response::new(()), false) {
            let _ = opened.send((send, tidegate_http2::Incoming::new(body, &head.headers)));
        }
        return None;
    }
    let (body, tunnel) = if head.method == Method::CONNECT {
        let (give, take) = oneshot::channel();
        (Incoming::Tunnel(Agreed(take)), Some((give, body)))
    } else {
        let body = tidegate_http2::Incoming::new(body, &head.headers);
        (Incoming::Body(body), None)
    };
    Some(Asked {
        request: Request::from_parts(head, body),
        tunnel,
        respond,
    })
}

/// Everything of a link but its requests. Returns why it ends.
async fn watch(
    link: &AgentLink,
    control: oneshot::Receiver<Control>,
    talk: Talk,
) -> (LinkError, Option<Writer<FromAgent>>) {
    let ends = async {
        tokio::select! {
            () = link.line.ended() => LinkError::Cut,
            () = link.line.silent(settings::DEAD_AFTER) => LinkError::Dead,
            () = finished(link) => LinkError::Cut,
        }
    };
    let mut ends = pin!(ends);
    let opened = tokio::select! {
        end = &mut ends => return (end, None),
        opened = timeout(settings::HELLO_WITHIN, control) => opened,
    };
    let Ok(Ok((send, body))) = opened else {
        return (LinkError::NoHello, None);
    };
    let mut writer = control::writer(send, talk.messages);
    let mut listen = pin!(listen(Reader::new(body), talk.to_edge, talk.forward));
    let mut writing = true;
    let end = loop {
        tokio::select! {
            end = &mut listen => break end,
            _ = poll_fn(|cx| writer.poll(cx)), if writing => writing = false,
            end = &mut ends => break end,
        }
    };
    (end, writing.then_some(writer))
}

async fn finished(link: &AgentLink) {
    link.finish.cancelled().await;
    link.idle().await;
}

/// Passes on what the edge says.
async fn listen(
    mut reader: Reader,
    to_edge: mpsc::Sender<FromAgent>,
    forward: mpsc::Sender<FromEdge>,
) -> LinkError {
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

/// One request, to the end of its answer. A visitor who leaves ends it.
///
/// The service's future is made in here, where it stays: as an argument it would be moved, and have its place twice.
async fn stream<S, F, B>(asked: Option<(Asked, Ticket)>, service: Arc<S>)
where
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Unpin,
{
    let Some((asked, ticket)) = asked else {
        return;
    };
    let Asked {
        request,
        tunnel,
        mut respond,
    } = asked;
    let answered = {
        let mut answer = pin!(service(request));
        poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => respond.poll_reset(cx).map(|_| None),
        })
        .await
    };
    let Some(response) = answered else {
        return;
    };
    let (mut head, body) = response.into_parts();
    let agreed = tunnel.filter(|_| head.status == StatusCode::OK);
    let end = agreed.is_none() && body.is_end_stream();
    let length = body
        .size_hint()
        .exact()
        .filter(|_| !end && agreed.is_none());
    complete(&mut head.headers, length);
    let send = match respond.send_response(Response::from_parts(head, ()), end) {
        Ok(send) => send,
        Err(error) => {
            tracing::debug!(%error, "an answer cannot be sent");
            respond.send_reset(Reason::INTERNAL_ERROR);
            return;
        }
    };
    if let Some((give, recv)) = agreed {
        let io = StreamIo::new(recv, send);
        // Nobody waits for it where the link is just ending.
        let _ = give.send(AgentTunnel { io, ticket });
        return;
    }
    if end {
        return;
    }
    let mut outgoing = Outgoing::new(send, SteadyBody::new(body));
    if let Err(SendBodyError::Body(error)) = poll_fn(|cx| outgoing.poll(cx)).await {
        outgoing.reset(reason_of(&*error.into()));
    }
}
