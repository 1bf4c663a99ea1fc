//! HTTP/2 connections of clients, on the `h2` crate directly: handshake and limits, the loop that drives
//! codec and streams, drain. Why not hyper's server: docs/adr/0024-http2-server-on-h2.md.
//!
//! One task serves the whole connection. In a turn it polls the streams that were woken, then the codec,
//! which writes what they had to say and takes new requests, and again while there is more. No stream can
//! hold up another: none is polled without having been woken, and all of them only ever wait.

mod date;
mod stream;
mod streams;
mod tunnel;
mod wakes;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use bytes::Bytes;
use h2::{Ping, PingPong, RecvStream, server};
use http::Request;
use tokio::time::Sleep;

use crate::connection::{Asked, Connection};
use crate::io::{Ahead, ClientStream, FrameBudget, Transport};
use streams::Streams;
pub(crate) use tunnel::Tunnel;
use wakes::{Bell, Wakes, Whom};

/// What a client may send of one request before the backend has taken it.
const STREAM_WINDOW: u32 = 256 * 1024;
/// What it may send of all: eight uploads to backends that do not read leave the others their window.
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
/// What small DATA frames may cost in memory beyond their payload while nobody has taken them, at nearly
/// 256 bytes each; beyond it the codec ends the connection. Two streams of 20-byte messages that fill
/// their windows in front of a slow backend need 6 MiB of it.
const SMALL_FRAME_BUDGET: usize = 8 * 1024 * 1024;
/// Of a response that waits for the client, per stream.
const SEND_BUFFER: usize = 256 * 1024;
/// Rounds over woken streams and codec before other connections get their turn.
const ROUNDS: usize = 16;

type Codec = server::Connection<ClientStream, Bytes>;

/// Serves until the connection ends, the clocks say so, or the edge drains.
pub(crate) async fn serve(
    connection: Arc<Connection>,
    transport: Transport,
) -> Result<(), h2::Error> {
    let Some(codec) = handshake(&connection, transport).await? else {
        return Ok(());
    };
    let settings = &connection.worker.shared.settings;
    let streams = {
        let connection = Arc::clone(&connection);
        move |request, respond| stream::serve(Arc::clone(&connection), request, respond)
    };
    let mut draining = pin!(connection.worker.shared.draining.cancelled());
    let mut cut = pin!(connection.worker.shared.cut.cancelled());
    let mut tick = pin!(tokio::time::sleep(settings.timeouts.request_head));
    let mut driver = Driver::new(Arc::clone(&connection), codec, streams);
    poll_fn(|cx| {
        driver.poll(cx, |driver, cx| {
            driver.poll_alarms(cx, tick.as_mut(), draining.as_mut(), cut.as_mut())
        })
    })
    .await
}

/// None when the client does not begin in time, or does not while the edge drains.
async fn handshake(
    connection: &Connection,
    transport: Transport,
) -> Result<Option<Codec>, h2::Error> {
    let shared = &connection.worker.shared;
    let limits = &shared.settings.limits;
    let frames = FrameBudget::new(limits.h2_control_frames);
    let io = ClientStream::new(
        transport,
        Arc::clone(&connection.clock),
        Ahead::Http2(frames),
    );
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(limits.h2_streams)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .data_frame_budget(SMALL_FRAME_BUDGET)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_connect_protocol();
    let leaving = async {
        shared.draining.cancelled().await;
        tokio::time::sleep(shared.settings.timeouts.request_grace).await;
    };
    let shaking =
        tokio::time::timeout(shared.settings.timeouts.request_head, builder.handshake(io));
    tokio::select! {
        biased;
        codec = shaking => codec.ok().transpose(),
        () = leaving => Ok(None),
        () = shared.cut.cancelled() => Ok(None),
    }
}

/// Codec and streams of one connection.
struct Driver<F, M> {
    connection: Arc<Connection>,
    wakes: Arc<Wakes>,
    /// Dropped before the codec, which would tell each stream that it failed.
    streams: Streams<F>,
    make: M,
    codec: Codec,
    codec_bell: (Arc<Bell>, Waker),
    alarms_bell: (Arc<Bell>, Waker),
    woken: Vec<usize>,
    leaving: bool,
    peer: Peer,
}

impl<F, M> Driver<F, M>
where
    F: Future<Output = ()>,
    M: FnMut(Request<RecvStream>, server::SendResponse<Bytes>) -> F,
{
    fn new(connection: Arc<Connection>, mut codec: Codec, make: M) -> Self {
        let wakes = Arc::new(Wakes::default());
        let bell = |whom| {
            let bell = wakes.bell(whom);
            let rope = Waker::from(Arc::clone(&bell));
            // Everything is polled once to begin with.
            rope.wake_by_ref();
            (bell, rope)
        };
        let peer = Peer {
            pings: codec.ping_pong(),
            heard: Instant::now(),
            pinged: None,
        };
        Self {
            codec_bell: bell(Whom::Codec),
            alarms_bell: bell(Whom::Alarms),
            streams: Streams::new(Arc::clone(&wakes)),
            connection,
            wakes,
            make,
            codec,
            woken: Vec::new(),
            leaving: false,
            peer,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut alarms: impl FnMut(&mut Self, &mut Context<'_>) -> Poll<()>,
    ) -> Poll<Result<(), h2::Error>> {
        self.wakes.look(cx.waker());
        for _ in 0..ROUNDS {
            if !self.wakes.take_streams(&mut self.woken) {
                return Poll::Pending;
            }
            for index in self.woken.drain(..) {
                self.streams.poll(index);
            }
            // Asked after the streams, which give the codec something to write.
            let (codec, alarm) = self.wakes.take_rest();
            if codec && let Poll::Ready(ended) = self.poll_codec() {
                return Poll::Ready(ended);
            }
            if alarm {
                self.alarms_bell.0.answer();
                let waker = self.alarms_bell.1.clone();
                if alarms(self, &mut Context::from_waker(&waker)).is_ready() {
                    return Poll::Ready(Ok(()));
                }
            }
        }
        self.wakes.pause();
        Poll::Pending
    }

    /// Reads, writes, and starts the streams of new requests.
    fn poll_codec(&mut self) -> Poll<Result<(), h2::Error>> {
        self.codec_bell.0.answer();
        let mut cx = Context::from_waker(&self.codec_bell.1);
        loop {
            match ready!(self.codec.poll_accept(&mut cx)) {
                Some(Ok((request, respond))) => {
                    self.streams.start((self.make)(request, respond));
                }
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Ready when the connection is to be closed at once.
    fn poll_alarms(
        &mut self,
        cx: &mut Context<'_>,
        mut tick: Pin<&mut Sleep>,
        draining: Pin<&mut impl Future<Output = ()>>,
        cut: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<()> {
        let timeouts = &self.connection.worker.shared.settings.timeouts;
        let period = timeouts.request_head.min(timeouts.keep_alive_idle) / 2;
        while tick.as_mut().poll(cx).is_ready() {
            if self.leaving && self.connection.clock.served() == 0 {
                return Poll::Ready(());
            }
            match self.connection.judge(None, self.leaving) {
                Asked::Nothing => {}
                Asked::Leave => self.leave(),
                Asked::Close => return Poll::Ready(()),
            }
            if self.peer.is_dead(&self.connection, cx) {
                return Poll::Ready(());
            }
            self.streams.shrink();
            tick.as_mut().reset(tokio::time::Instant::now() + period);
        }
        if !self.connection.clock.is_leaving() && draining.poll(cx).is_ready() {
            self.connection.clock.leave();
            self.leave();
        }
        if self.connection.clock.is_leaving() && cut.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// GOAWAY: what is on its way is still served, nothing after it.
    fn leave(&mut self) {
        if !self.leaving {
            self.leaving = true;
            self.codec.graceful_shutdown();
            self.codec_bell.1.wake_by_ref();
        }
    }
}

/// Whether anybody is still there: a client that vanished without a word holds its streams until then.
struct Peer {
    pings: Option<PingPong>,
    /// The tick before which something was read.
    heard: Instant,
    pinged: Option<Instant>,
}

impl Peer {
    /// Asks by a PING after a long silence. True when that was not answered.
    fn is_dead(&mut self, connection: &Connection, cx: &mut Context<'_>) -> bool {
        let timeouts = &connection.worker.shared.settings.timeouts;
        if connection.clock.heard_anything() {
            self.heard = Instant::now();
            self.pinged = None;
            return false;
        }
        if let Some(pinged) = self.pinged {
            return pinged.elapsed() >= timeouts.request_head;
        }
        if self.heard.elapsed() >= timeouts.keep_alive_idle
            && let Some(pings) = &mut self.pings
        {
            // The answer to the last one, if there was one, must have been taken.
            let _ = pings.poll_pong(cx);
            if pings.send_ping(Ping::opaque()).is_ok() {
                self.pinged = Some(Instant::now());
            }
        }
        false
    }
}
