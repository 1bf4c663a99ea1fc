//! The edge's end: the HTTP/2 client of a connection that the agent has dialled.
//!
//! `open` speaks with the agent until its Hello; then requests go through [`EdgeLink`], messages through
//! [`EdgeControl`], and the driver must be polled for anything to happen. The link ends with its driver.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread::{self, ThreadId};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Ping as Http2Ping, PingPong, SendStream};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use tidegate_http2::Incoming;
use tidegate_model::ObjectName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout, timeout_at};

pub use super::answer::{IncomingError, LinkIncoming, LinkTunnel};
use super::control::{self, Reader, Writer};
use super::lifeline::{CutOnDrop, Lifeline, Watched};
use super::stall::{Flows, Patience, Watch, lock};
use super::upload::Upload;
use super::{CONTROL_PATH, CONTROL_QUEUE, LinkError, complete};
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
pub struct EdgeLink<B> {
    shared: Arc<Shared>,
    bodies: PhantomData<fn(B)>,
}

struct Shared {
    facts: LinkFacts,
    /// Where the codec runs.
    thread: ThreadId,
    sender: Mutex<SendRequest<Bytes>>,
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
    Untouched(#[source] h2::Error),
    /// The link or the agent failed in between.
    #[error("send a request through the link")]
    Http2(#[source] h2::Error),
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

    fn of(error: h2::Error) -> Self {
        let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
        if error.is_remote() && (refused || error.is_go_away()) {
            return Self::Untouched(error);
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
    pub unsent: Option<Box<Request<B>>>,
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
{
    let (io, line) = Watched::new(io);
    let cut = CutOnDrop(Arc::clone(&line));
    let broken = |error: h2::Error| LinkError::Http2(error.into());
    let deadline = Instant::now() + settings::HELLO_WITHIN;
    let handshake = timeout_at(deadline, settings::edge().handshake(io)).await;
    let (mut sender, mut connection) =
        handshake.map_err(|_| LinkError::NoHello)?.map_err(broken)?;
    let pings = connection.ping_pong();
    // Woken for every frame, and so apart from what is rare. Ends with the stream underneath, which is cut.
    let mut connection = tokio::spawn(connection);

    let request = Request::post(CONTROL_PATH).body(());
    let request = request.map_err(|_| LinkError::Closed)?;
    let (response, send) = sender.send_request(request, false).map_err(broken)?;
    let greet = async {
        let response = response.await.map_err(broken)?;
        if response.status() != StatusCode::OK {
            return Err(LinkError::ControlRefused(response.status()));
        }
        let (head, body) = response.into_parts();
        let mut reader = Reader::new(Incoming::new(body, &head.headers));
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
        ended = &mut connection => return Err(ended_by(ended)),
        () = sleep_until(deadline) => return Err(LinkError::NoHello),
    };
    let (reader, hello) = greeted;

    let (forward, from_agent) = mpsc::channel(CONTROL_QUEUE);
    let (to_agent, messages) = mpsc::channel(CONTROL_QUEUE);
    let shared = Arc::new(Shared {
        facts,
        thread: thread::current().id(),
        sender: Mutex::new(sender),
        flows: Flows::new(patience),
        line,
        to_agent: to_agent.clone(),
        closing: AtomicBool::new(false),
        rtt: AtomicU64::new(0),
    });
    let driver = Driver {
        connection,
        pings,
        shared: Arc::clone(&shared),
        cut,
    };
    let control = EdgeControl {
        hello,
        from_agent,
        to_agent,
    };
    let driver = driver.run(reader, forward, control::writer(send, messages));
    let edge = EdgeLink {
        shared,
        bodies: PhantomData,
    };
    Ok((edge, control, driver))
}

/// The codec's task has ended.
type CodecEnd = Result<Result<(), h2::Error>, tokio::task::JoinError>;

fn ended_by(codec: CodecEnd) -> LinkError {
    match codec {
        Ok(Err(error)) => LinkError::Http2(error.into()),
        // Without an error, or with the runtime.
        Ok(Ok(())) | Err(_) => LinkError::Closed,
    }
}

struct Driver {
    connection: JoinHandle<Result<(), h2::Error>>,
    pings: Option<PingPong>,
    shared: Arc<Shared>,
    cut: CutOnDrop,
}

impl Driver {
    async fn run(
        mut self,
        reader: Reader,
        forward: mpsc::Sender<FromAgent>,
        mut writer: Writer<FromEdge>,
    ) -> LinkError {
        let shared = &*self.shared;
        let end = {
            let listen = listen(shared, reader, forward);
            tokio::pin!(listen);
            let mut write = std::future::poll_fn(|cx| writer.poll(cx));
            let mut ping = interval(settings::PING_EVERY);
            ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut look = interval(Duration::from_secs(1));
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let start = shared.start();
            let mut keep_alive = KeepAlive {
                pings: self.pings,
                asked: false,
            };
            let mut writing = true;
            loop {
                tokio::select! {
                    ended = &mut self.connection => break ended_by(ended),
                    end = &mut listen => break end,
                    _ = &mut write, if writing => writing = false,
                    () = shared.line.ended() => break LinkError::Closed,
                    () = shared.line.silent(settings::DEAD_AFTER) => break LinkError::Dead,
                    _ = ping.tick() => {
                        let token = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
                        // A full queue says as much as a ping.
                        let _ = shared.to_agent.try_send(Ping { token }.into());
                    }
                    _ = look.tick() => {
                        let _ = shared.flows.is_refusing();
                        keep_alive.look(&shared.line);
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

/// Asks by an HTTP/2 PING after a silence. The answer is heard as every other byte is.
struct KeepAlive {
    pings: Option<PingPong>,
    asked: bool,
}

impl KeepAlive {
    fn look(&mut self, line: &Lifeline) {
        let Some(pings) = &mut self.pings else {
            return;
        };
        if self.asked {
            let mut nobody = Context::from_waker(Waker::noop());
            self.asked = pings.poll_pong(&mut nobody).is_pending();
        }
        if !self.asked && line.quiet() >= settings::KEEP_ALIVE {
            self.asked = pings.send_ping(Http2Ping::opaque()).is_ok();
        }
    }
}

/// Passes on what the agent says until it says no more.
async fn listen(
    shared: &Shared,
    mut reader: Reader,
    forward: mpsc::Sender<FromAgent>,
) -> LinkError {
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

impl<B> Clone for EdgeLink<B> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            bodies: PhantomData,
        }
    }
}

impl<B> fmt::Debug for EdgeLink<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeLink")
            .field("facts", &self.shared.facts)
            .finish_non_exhaustive()
    }
}

impl<B> EdgeLink<B> {
    /// What the handshake has found out.
    pub fn facts(&self) -> &LinkFacts {
        &self.shared.facts
    }

    /// Whether it is driven by the thread that asks, which then need not wake another one.
    pub fn is_here(&self) -> bool {
        self.shared.thread == thread::current().id()
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
        self.shared.closing.load(Ordering::Acquire) || self.shared.line.is_ended()
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
        let sending = self.begin(request);
        async move {
            let mut sending = sending?;
            if let Some(mut upload) = sending.upload {
                // Small bodies are here already and need no task.
                let going_on = std::future::poll_fn(|cx| {
                    Poll::Ready(Pin::new(&mut upload).poll(cx).is_pending())
                });
                if going_on.await {
                    tokio::spawn(upload);
                }
            }
            let watch = sending.watch;
            let answered = std::future::poll_fn(|cx| {
                if watch.flow.is_reset() {
                    return Poll::Ready(None);
                }
                watch.flow.reader.register(cx.waker());
                Pin::new(&mut sending.response).poll(cx).map(Some)
            })
            .await;
            match answered {
                None => Err(SendFailed {
                    error: SendError::Reset,
                    unsent: None,
                }),
                Some(Ok(response)) => {
                    let (head, body) = response.into_parts();
                    let body = Incoming::new(body, &head.headers);
                    let body = LinkIncoming::new(body, sending.connect, watch);
                    Ok(Response::from_parts(head, body))
                }
                Some(Err(error)) => Err(SendFailed {
                    error: SendError::of(error),
                    unsent: None,
                }),
            }
        }
    }

    /// Hands the request's head to the codec.
    fn begin(&self, mut request: Request<B>) -> Result<Sending<B>, SendFailed<B>> {
        let refused = if self.is_closed() {
            Some(SendError::Closed)
        } else if self.in_flight() >= settings::MAX_STREAMS as usize - 1 {
            Some(SendError::Full)
        } else if self.shared.flows.is_refusing() {
            Some(SendError::Stalled)
        } else {
            None
        };
        if let Some(error) = refused {
            let unsent = Some(Box::new(request));
            return Err(SendFailed { error, unsent });
        }
        let connect = request.method() == Method::CONNECT;
        let end = !connect && request.body().is_end_stream();
        let length = request
            .body()
            .size_hint()
            .exact()
            .filter(|length| !connect && (*length > 0 || has_body_by_nature(request.method())));
        complete(request.headers_mut(), length);
        let mut sender = lock(&self.shared.sender);
        match sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {}
            // A stream that waits until the agent lets it open keeps back only its own handle.
            Poll::Pending => *sender = sender.clone(),
            Poll::Ready(Err(_)) => {
                self.shared.closing.store(true, Ordering::Release);
                let unsent = Some(Box::new(request));
                let error = SendError::Closed;
                return Err(SendFailed { error, unsent });
            }
        }
        let (head, body) = request.into_parts();
        let handed = sender.send_request(Request::from_parts(head, ()), end);
        drop(sender);
        // Nothing has left: the link is gone since it was asked a moment ago, or the head is one that HTTP/2 cannot say.
        let (response, send) = handed.map_err(|error| SendFailed {
            error: SendError::Untouched(error),
            unsent: None,
        })?;
        let watch = self.shared.flows.register();
        let (upload, connect) = match (end, connect) {
            (true, _) => (None, None),
            (false, true) => (None, Some(send)),
            (false, false) => (Some(Upload::new(send, body, &watch.flow)), None),
        };
        Ok(Sending {
            response,
            upload,
            connect,
            watch,
        })
    }
}

/// Methods whose requests say that their body is empty (RFC 9110 §8.6).
fn has_body_by_nature(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

/// A request whose head is on its way.
struct Sending<B: Body> {
    response: h2::client::ResponseFuture,
    upload: Option<Upload<B>>,
    connect: Option<SendStream<Bytes>>,
    watch: Watch,
}

#[cfg(test)]
impl<B> EdgeLink<B> {
    pub(super) fn look_by_hand(&self) {
        self.shared.flows.look_by_hand();
    }

    pub(super) fn look(&self) {
        self.shared.flows.look();
    }
}
