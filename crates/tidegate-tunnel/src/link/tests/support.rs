//! An agent's end and an edge's end, connected.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use tidegate_model::ObjectName;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::link::LinkError;
use crate::link::agent::{self, AgentControl, Incoming};
use crate::link::edge::{self, EdgeControl, EdgeLink, LinkFacts, LinkIncoming};
use crate::link::stall::Patience;
use crate::wire::Hello;

pub(super) type TestBody = UnsyncBoxBody<Bytes, Infallible>;

pub(super) fn full(text: impl Into<Bytes>) -> TestBody {
    Full::new(text.into()).boxed_unsync()
}

pub(super) fn facts() -> LinkFacts {
    LinkFacts {
        session: "s1".to_owned(),
        agent: ObjectName::new("default", "homelab"),
        instance: "ab".repeat(16),
        link: 0,
    }
}

pub(super) fn hello() -> Hello {
    Hello {
        version: "1.0.0".to_owned(),
        instance: "ab".repeat(16),
        ..Hello::default()
    }
}

pub(super) struct Pair {
    pub(super) edge: EdgeLink<TestBody>,
    pub(super) control: EdgeControl,
    pub(super) agent: AgentControl,
    pub(super) edge_end: JoinHandle<LinkError>,
    pub(super) agent_end: JoinHandle<LinkError>,
    /// Of the wire between them.
    pub(super) gate: Arc<Gate>,
}

/// Connects both ends; the function answers at the agent.
pub(super) async fn pair<F, R>(answer: F) -> Pair
where
    F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = Response<TestBody>> + Send + 'static,
{
    pair_with(Patience::default(), answer).await
}

pub(super) async fn pair_with<F, R>(patience: Patience, answer: F) -> Pair
where
    F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = Response<TestBody>> + Send + 'static,
{
    let (edge_io, agent_io) = tokio::io::duplex(256 * 1024);
    let gate = Arc::new(Gate::default());
    let agent_io = Gated(agent_io, Arc::clone(&gate));
    pair_over(edge_io, agent_io, gate, patience, answer).await
}

/// Over any two streams that are connected.
pub(super) async fn pair_over<E, A, F, R>(
    edge_io: E,
    agent_io: A,
    gate: Arc<Gate>,
    patience: Patience,
    answer: F,
) -> Pair
where
    E: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = Response<TestBody>> + Send + 'static,
{
    let (agent, driver) = agent::serve(agent_io, hello(), answer);
    let agent_end = tokio::spawn(driver);
    let opened = within(edge::open_with(edge_io, facts(), patience)).await;
    let (edge, control, driver) = opened.unwrap();
    let edge_end = tokio::spawn(driver);
    Pair {
        edge,
        control,
        agent,
        edge_end,
        agent_end,
        gate,
    }
}

impl Pair {
    pub(super) async fn get(&self, path: &str) -> Response<LinkIncoming> {
        let request = Request::get(format!("http://app.example.com{path}")).body(full(""));
        within(self.edge.try_send(request.unwrap())).await.unwrap()
    }

    /// A request that must pass whatever the others do.
    pub(super) async fn still_works(&self) {
        let request = Request::post("http://app.example.com/echo").body(full("still works"));
        let answer = within(self.edge.try_send(request.unwrap())).await.unwrap();
        let body = within(answer.into_body().collect()).await.unwrap();
        assert_eq!(body.to_bytes(), "still works");
    }
}

/// Nothing here takes a minute, unless it never ends.
pub(super) async fn within<F: Future>(future: F) -> F::Output {
    let bounded = tokio::time::timeout(Duration::from_secs(60), future);
    bounded.await.expect("it never ends")
}

/// What `/echo` is answered with.
pub(super) async fn echo(request: Request<Incoming>) -> Response<TestBody> {
    let body = request.into_body();
    Response::new(body.map_err(|_| unreachable!()).boxed_unsync())
}

/// Lets all other tasks have their turns, with the one thread of a test.
pub(super) async fn turns() {
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
}

/// A body that has always more, and tells how much was taken of all of them.
pub(super) struct Endless(pub(super) watch::Sender<usize>);

/// The bytes of one chunk.
pub(super) static CHUNK: [u8; 32 * 1024] = [7; 32 * 1024];

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.send_modify(|taken| *taken += CHUNK.len());
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&CHUNK)))))
    }
}

/// A body of so many small chunks, none of which is ready together with the next.
pub(super) struct Events {
    pub(super) left: usize,
    pub(super) taken: watch::Sender<usize>,
    pub(super) rest: bool,
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        this.rest = !this.rest;
        if this.rest {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if this.left == 0 {
            return Poll::Ready(None);
        }
        this.left -= 1;
        this.taken.send_modify(|taken| *taken += 1);
        let chunk = Bytes::from_static(b"data: twenty bytes\n\n");
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }
}

/// Stops a wire: what is written goes nowhere, and nothing comes.
#[derive(Default)]
pub(super) struct Gate {
    shut: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Gate {
    pub(super) fn shut(&self) {
        self.shut.store(true, Ordering::SeqCst);
    }

    pub(super) fn open(&self) {
        self.shut.store(false, Ordering::SeqCst);
        self.reader.wake();
        self.writer.wake();
    }

    fn stops(&self, waker: &AtomicWaker, cx: &Context<'_>) -> bool {
        waker.register(cx.waker());
        self.shut.load(Ordering::SeqCst)
    }
}

pub(super) struct Gated(pub(super) DuplexStream, pub(super) Arc<Gate>);

impl AsyncRead for Gated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.1.stops(&self.1.reader, cx) {
            return Poll::Pending;
        }
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.1.stops(&self.1.writer, cx) {
            return Poll::Pending;
        }
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
