//! The edge's end: the HTTP/2 client of a connection that the agent has dialled.
//!
//! `open` speaks with the agent until its Hello; then requests go through [`EdgeLink`], messages through
//! [`EdgeControl`], and the driver must be polled for anything to happen. The link ends with its driver.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::client::conn::http2::{Connection, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate_model::ObjectName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout, timeout_at};

use super::body::{LinkBody, SteadyBody, UploadMark};
use super::control::{self, Reader};
use super::lifeline::{CutOnDrop, Lifeline, Watched};
use super::stall::{Flows, Held, Patience, Watch, lock};
use super::{CONTROL_PATH, CONTROL_QUEUE, LinkError};
use crate::settings;
use crate::wire::{Bye, FromAgent, FromEdge, Hello, Ping};

/// What the handshake has found out.
#[derive(Debug, Clone)]
pub struct LinkFacts {
    /// Name of the link in logs and statuses, given by the edge.
    pub session: String,
    /// The agent's object.
    pub agent: ObjectName,
    /// The agent's process.
    pub instance: String,
    /// Which of the process's links.
    pub link: u8,
}

/// Where requests go. Cheap to clone; any task of any runtime may use it.
pub struct EdgeLink<B: Body + 'static> {
    sender: SendRequest<LinkBody<B>>,
    shared: Arc<Shared>,
}

struct Shared {
    facts: LinkFacts,
    flows: Arc<Flows>,
    line: Arc<Lifeline>,
    to_agent: mpsc::Sender<FromEdge>,
    /// No new requests: the agent has said goodbye.
    closing: AtomicBool,
    /// Microseconds; 0 before the first pong.
    rtt: AtomicU64,
}

/// Messages of a link.
#[derive(Debug)]
pub struct EdgeControl {
    /// Who the agent is.
    pub hello: Hello,
    /// What it says. Pongs are not among them. Ends with the link.
    pub from_agent: mpsc::Receiver<FromAgent>,
    /// What it is told.
    pub to_agent: mpsc::Sender<FromEdge>,
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The stall budget is used up: too many visitors do not read.
    #[error("too many streams of the link are not read")]
    Stalled,
    /// As many streams as a link may have.
    #[error("the link has {} streams", settings::MAX_STREAMS)]
    Full,
    /// The link is gone, or about to.
    #[error("the link is closed")]
    Closed,
    /// The stream itself was reset because it was stalled.
    #[error("the stream was not read for too long")]
    Reset,
    /// The agent has not begun with the request: it may be sent again whatever it is, if its body is still there.
    #[error("the agent did not take the request")]
    Untouched(#[source] hyper::Error),
    /// The link or the agent failed in between.
    #[error("send a request through the link")]
    Http2(#[source] hyper::Error),
}

impl SendError {
    /// One word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Stalled => "LinkStalled",
            Self::Full => "LinkFull",
            Self::Closed => "LinkClosed",
            Self::Reset => "StreamStalled",
            Self::Untouched(_) => "StreamRefused",
            Self::Http2(_) => "LinkBroken",
        }
    }

    fn of(error: hyper::Error) -> Self {
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            if let Some(inner) = inner.downcast_ref::<h2::Error>() {
                let refused = inner.reason() == Some(h2::Reason::REFUSED_STREAM);
                if inner.is_remote() && (refused || inner.is_go_away()) {
                    return Self::Untouched(error);
                }
            }
            source = inner.source();
        }
        Self::Http2(error)
    }
}

/// A request that came to nothing.
#[derive(Debug)]
pub struct SendFailed<B> {
    /// Why.
    pub error: SendError,
    /// The request, when nothing of it was sent.
    pub unsent: Option<Request<B>>,
}

/// Starts HTTP/2 on a connection whose handshake is over, opens the control stream and waits for the agent's Hello.
/// The driver must be polled from then on; it returns why the link ended, and dropping it ends the link.
///
/// # Errors
/// [`LinkError`]
pub async fn open<I, B>(
    io: I,
    facts: LinkFacts,
) -> Result<
    (
        EdgeLink<B>,
        EdgeControl,
        impl Future<Output = LinkError> + Send + use<I, B>,
    ),
    LinkError,
>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Unpin + Send,
{
    open_with(io, facts, Patience::default()).await
}

/// [`open`] with another patience.
pub(super) async fn open_with<I, B>(
    io: I,
    facts: LinkFacts,
    patience: Patience,
) -> Result<
    (
        EdgeLink<B>,
        EdgeControl,
        impl Future<Output = LinkError> + Send + use<I, B>,
    ),
    LinkError,
>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Unpin + Send,
{
    let (io, line) = Watched::new(io);
    let cut = CutOnDrop(Arc::clone(&line));
    let broken = |error: hyper::Error| LinkError::Http2(error.into());
    let deadline = Instant::now() + settings::HELLO_WITHIN;
    let handshake = settings::edge().handshake(TokioIo::new(io));
    let handshake = timeout_at(deadline, handshake).await;
    let (mut sender, connection) = handshake.map_err(|_| LinkError::NoHello)?.map_err(broken)?;
    let mut connection: Pin<Box<Connection<_, LinkBody<B>, TokioExecutor>>> = Box::pin(connection);

    let (bytes, body) = control::body();
    let (to_agent, messages) = mpsc::channel(CONTROL_QUEUE);
    let request = Request::post(CONTROL_PATH)
        .body(LinkBody::Control(body))
        .map_err(|_| LinkError::Closed)?;
    let greet = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status() != StatusCode::OK {
            return Err(LinkError::ControlRefused(response.status()));
        }
        let mut reader = Reader::new(response.into_body());
        match reader.next().await? {
            Some(FromAgent::Hello(hello))
                if hello.instance == facts.instance && hello.link == facts.link =>
            {
                Ok((reader, hello))
            }
            Some(_) => Err(LinkError::Hello),
            None => Err(LinkError::Closed),
        }
    };
    let greeted = tokio::select! {
        greeted = greet => greeted?,
        ended = &mut connection => return Err(ended.err().map_or(LinkError::Closed, broken)),
        () = sleep_until(deadline) => return Err(LinkError::NoHello),
    };
    let (reader, hello) = greeted;

    let (forward, from_agent) = mpsc::channel(CONTROL_QUEUE);
    let shared = Arc::new(Shared {
        facts,
        flows: Flows::new(patience),
        line,
        to_agent: to_agent.clone(),
        closing: AtomicBool::new(false),
        rtt: AtomicU64::new(0),
    });
    let driver = Driver {
        connection,
        shared: Arc::clone(&shared),
        cut,
    };
    let control = EdgeControl {
        hello,
        from_agent,
        to_agent,
    };
    let driver = driver.run(reader, forward, control::write(messages, bytes));
    Ok((EdgeLink { sender, shared }, control, driver))
}

struct Driver<C> {
    connection: C,
    shared: Arc<Shared>,
    cut: CutOnDrop,
}

impl<C: Future<Output = hyper::Result<()>> + Unpin> Driver<C> {
    async fn run<R>(
        mut self,
        reader: Reader<R>,
        forward: mpsc::Sender<FromAgent>,
        write: impl Future<Output = ()>,
    ) -> LinkError
    where
        R: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let shared = &*self.shared;
        let end = {
            let listen = listen(shared, reader, forward);
            tokio::pin!(listen);
            tokio::pin!(write);
            let mut ping = interval(settings::PING_EVERY);
            ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut look = interval(Duration::from_secs(1));
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let start = shared.start();
            let (mut connected, mut writing) = (true, true);
            loop {
                tokio::select! {
                    ended = &mut self.connection, if connected => {
                        if let Err(error) = ended {
                            break LinkError::Http2(error.into());
                        }
                        // The agent takes no more streams; those there are go on until their stream ends.
                        connected = false;
                        shared.closing.store(true, Ordering::Release);
                    }
                    end = &mut listen => break end,
                    () = &mut write, if writing => writing = false,
                    () = shared.line.ended() => break LinkError::Closed,
                    () = shared.line.silent(settings::DEAD_AFTER) => break LinkError::Dead,
                    _ = ping.tick() => {
                        let token = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
                        // A full queue says as much as a ping.
                        let _ = shared.to_agent.try_send(Ping { token }.into());
                    }
                    _ = look.tick() => {
                        let _ = shared.flows.is_refusing();
                    }
                }
            }
        };
        shared.closing.store(true, Ordering::Release);
        if matches!(end, LinkError::Closed) {
            // An agent that closes has nothing left, or little.
            let _ = timeout(settings::DEAD_AFTER, async {
                tokio::select! {
                    () = shared.flows.idle() => {}
                    () = shared.line.ended() => {}
                }
            })
            .await;
        }
        drop(self.cut);
        let FactsShown { session, agent } = shared.shown();
        tracing::debug!(session, %agent, reason = end.reason(), "a link has ended");
        end
    }
}

/// Passes on what the agent says until it says no more.
async fn listen<R>(
    shared: &Shared,
    mut reader: Reader<R>,
    forward: mpsc::Sender<FromAgent>,
) -> LinkError
where
    R: Body<Data = Bytes, Error = hyper::Error> + Unpin,
{
    let start = shared.start();
    loop {
        match reader.next().await {
            Ok(Some(FromAgent::Pong(pong))) => {
                let now = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
                if let Some(rtt) = now.checked_sub(pong.token) {
                    shared.rtt.store(rtt.max(1), Ordering::Relaxed);
                }
            }
            Ok(Some(message)) => {
                if forward.send(message).await.is_err() {
                    tracing::trace!("nobody listens to an agent");
                }
            }
            Ok(None) => return LinkError::Closed,
            Err(error) => return error,
        }
    }
}

struct FactsShown<'a> {
    session: &'a str,
    agent: &'a ObjectName,
}

impl Shared {
    fn shown(&self) -> FactsShown<'_> {
        FactsShown {
            session: &self.facts.session,
            agent: &self.facts.agent,
        }
    }

    fn start(&self) -> Instant {
        self.line.start()
    }
}

impl<B: Body + 'static> Clone for EdgeLink<B> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<B: Body + 'static> fmt::Debug for EdgeLink<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeLink")
            .field("facts", &self.shared.facts)
            .finish_non_exhaustive()
    }
}

impl<B: Body + 'static> EdgeLink<B> {
    /// What the handshake has found out.
    pub fn facts(&self) -> &LinkFacts {
        &self.shared.facts
    }

    /// Streams of visitors that are open.
    pub fn in_flight(&self) -> usize {
        self.shared.flows.in_flight()
    }

    /// Streams of visitors so far.
    pub fn requests(&self) -> u64 {
        self.shared.flows.total()
    }

    /// Bytes read from the agent and written to it so far, all of them.
    pub fn bytes(&self) -> (u64, u64) {
        self.shared.line.bytes()
    }

    /// Round trip of the last ping.
    pub fn rtt(&self) -> Option<Duration> {
        let rtt = self.shared.rtt.load(Ordering::Relaxed);
        (rtt > 0).then(|| Duration::from_micros(rtt))
    }

    /// Whether it takes no requests any more.
    pub fn is_closed(&self) -> bool {
        self.shared.closing.load(Ordering::Acquire)
            || self.shared.line.is_ended()
            || self.sender.is_closed()
    }

    /// Whether a request would be refused now for the number of streams, or of those that are stalled.
    pub fn is_full(&self) -> bool {
        self.in_flight() >= settings::MAX_STREAMS as usize - 1 || self.shared.flows.is_refusing()
    }

    /// Returns when the link is gone.
    pub async fn closed(&self) {
        self.shared.line.ended().await;
    }

    /// Returns when there is no stream of a visitor.
    pub async fn idle(&self) {
        self.shared.flows.idle().await;
    }

    /// Ends the link at once; what is in flight fails.
    pub fn cut(&self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.line.cut();
    }

    /// Tells the agent and ends the link; the agent has `within` to go by itself.
    pub async fn end(&self, bye: Bye, within: Duration) {
        self.shared.closing.store(true, Ordering::Release);
        let farewell = async {
            let _ = self.shared.to_agent.send(bye.into()).await;
            self.closed().await;
        };
        let _ = timeout(within, farewell).await;
        self.cut();
    }
}

impl<B> EdgeLink<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Unpin + Send,
{
    /// Sends a request. Dropping the future, or the answer's body, resets the stream.
    pub fn try_send(
        &self,
        request: Request<B>,
    ) -> impl Future<Output = Result<Response<LinkIncoming>, SendFailed<B>>> + Send + use<B> {
        let refused = if self.is_closed() {
            Some(SendError::Closed)
        } else if self.in_flight() >= settings::MAX_STREAMS as usize - 1 {
            Some(SendError::Full)
        } else if self.shared.flows.is_refusing() {
            Some(SendError::Stalled)
        } else {
            None
        };
        let sending = if let Some(error) = refused {
            let unsent = Some(request);
            Err(SendFailed { error, unsent })
        } else {
            let watch = self.shared.flows.register();
            let mark = UploadMark(Arc::clone(&watch.flow));
            let request = request.map(|body| LinkBody::Upload(SteadyBody::new(body), mark));
            Ok((self.sender.clone().try_send_request(request), watch))
        };
        async move {
            let (sent, watch) = sending?;
            tokio::pin!(sent);
            let answered = std::future::poll_fn(|cx| {
                if watch.flow.is_reset() {
                    return Poll::Ready(None);
                }
                watch.flow.reader.register(cx.waker());
                sent.as_mut().poll(cx).map(Some)
            })
            .await;
            match answered {
                None => Err(SendFailed {
                    error: SendError::Reset,
                    unsent: None,
                }),
                Some(Ok(response)) => Ok(response.map(|body| LinkIncoming::new(body, watch))),
                Some(Err(mut failed)) => {
                    let unsent = failed.take_message().and_then(unwrap_body);
                    Err(SendFailed {
                        error: SendError::of(failed.into_error()),
                        unsent,
                    })
                }
            }
        }
    }
}

fn unwrap_body<B: Body<Data = Bytes>>(request: Request<LinkBody<B>>) -> Option<Request<B>> {
    let (head, body) = request.into_parts();
    Some(Request::from_parts(head, body.into_inner()?))
}

#[cfg(test)]
impl<B: Body + 'static> EdgeLink<B> {
    pub(super) fn look_by_hand(&self) {
        self.shared.flows.look_by_hand();
    }

    pub(super) fn look(&self) {
        self.shared.flows.look();
    }
}

/// Body of an agent's answer.
#[derive(Debug)]
pub struct LinkIncoming {
    watch: Watch,
    hint: SizeHint,
}

/// Why an answer's body broke off.
#[derive(Debug, thiserror::Error)]
pub enum IncomingError {
    /// The stream was reset because nobody read it while many others were not read either.
    #[error("the stream was not read for too long")]
    Stalled,
    /// The link or the agent failed.
    #[error("read an answer from the link")]
    Http2(#[source] hyper::Error),
}

impl LinkIncoming {
    fn new(body: hyper::body::Incoming, mut watch: Watch) -> Self {
        let hint = body.size_hint();
        watch.ended = body.is_end_stream();
        *lock(&watch.flow.held) = Held::Body(body);
        Self { watch, hint }
    }
}

impl Body for LinkIncoming {
    type Data = Bytes;
    type Error = IncomingError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, IncomingError>>> {
        let Self { watch, hint } = self.get_mut();
        if watch.ended {
            return Poll::Ready(None);
        }
        let flow = &watch.flow;
        flow.download_taken();
        let mut held = lock(&flow.held);
        let Held::Body(body) = &mut *held else {
            watch.ended = true;
            return Poll::Ready(Some(Err(IncomingError::Stalled)));
        };
        flow.reader.register(cx.waker());
        let polled = ready!(Pin::new(&mut *body).poll_frame(cx));
        *hint = body.size_hint();
        match polled {
            Some(Ok(frame)) => {
                watch.ended = body.is_end_stream();
                if !watch.ended {
                    flow.download_given();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                watch.ended = true;
                Poll::Ready(Some(Err(IncomingError::Http2(error))))
            }
            None => {
                watch.ended = true;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.watch.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

/// The stream that an agreed CONNECT has become: what is written is sent, what is read was received. Counted and
/// watched as any other stream of the link.
#[derive(Debug)]
pub struct LinkTunnel {
    watch: Watch,
}

/// Takes the stream out of the answer to a CONNECT request.
///
/// # Errors
/// The answer is no agreement, or the stream is gone.
pub async fn upgrade(mut response: Response<LinkIncoming>) -> Result<LinkTunnel, hyper::Error> {
    let upgraded = hyper::upgrade::on(&mut response).await?;
    let mut watch = response.into_body().watch;
    watch.ended = false;
    *lock(&watch.flow.held) = Held::Tunnel(TokioIo::new(upgraded));
    Ok(LinkTunnel { watch })
}

impl LinkTunnel {
    fn with<T>(
        &self,
        act: impl FnOnce(Pin<&mut TokioIo<hyper::upgrade::Upgraded>>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut *lock(&self.watch.flow.held) {
            Held::Tunnel(stream) => act(Pin::new(stream)),
            _ => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl AsyncRead for LinkTunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let flow = &self.watch.flow;
        flow.download_taken();
        flow.reader.register(cx.waker());
        let before = buf.filled().len();
        let polled = self.with(|stream| stream.poll_read(cx, buf));
        if polled.is_ready() && buf.filled().len() > before {
            flow.download_given();
        }
        polled
    }
}

impl AsyncWrite for LinkTunnel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
    }
}
