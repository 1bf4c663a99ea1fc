//! HTTP/2 connections of clients, on the `h2` crate directly: handshake and limits; the loop that drives
//! codec and streams is `tidegate-http2`'s, the clocks and the drain are here. Why not hyper's server:
//! docs/adr/0024-http2-server-on-h2.md.

mod date;
mod stream;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use h2::{Ping, PingPong, RecvStream, server};
use http::Request;
use tidegate_http2::{Driver, Ended};
use tokio::time::Sleep;

use crate::connection::{Asked, Connection};
use crate::io::{Ahead, ClientStream, FrameBudget, Transport};

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
    let mut driver = Driver::new(codec, streams);
    let mut alarms = Alarms {
        connection: &connection,
        peer: Peer {
            pings: driver.ping_pong(),
            heard: Instant::now(),
            pinged: None,
        },
    };
    let ended = poll_fn(|cx| {
        driver.poll(cx, |driver, cx| {
            alarms.poll(driver, cx, tick.as_mut(), draining.as_mut(), cut.as_mut())
        })
    });
    match ended.await {
        Ended::Codec(ended) => ended,
        Ended::Alarm(()) => Ok(()),
    }
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

/// What ends a connection beside its codec.
struct Alarms<'a> {
    connection: &'a Connection,
    peer: Peer,
}

impl Alarms<'_> {
    /// Ready when the connection is to be closed at once.
    fn poll<F, M>(
        &mut self,
        driver: &mut Driver<ClientStream, F, M>,
        cx: &mut Context<'_>,
        mut tick: Pin<&mut Sleep>,
        draining: Pin<&mut impl Future<Output = ()>>,
        cut: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<()>
    where
        F: Future<Output = ()>,
        M: FnMut(Request<RecvStream>, server::SendResponse<Bytes>) -> F,
    {
        let connection = self.connection;
        let timeouts = &connection.worker.shared.settings.timeouts;
        let period = timeouts.request_head.min(timeouts.keep_alive_idle) / 2;
        while tick.as_mut().poll(cx).is_ready() {
            if driver.is_leaving() && connection.clock.served() == 0 {
                return Poll::Ready(());
            }
            match connection.judge(None, driver.is_leaving()) {
                Asked::Nothing => {}
                Asked::Leave => driver.leave(),
                Asked::Close => return Poll::Ready(()),
            }
            if self.peer.is_dead(connection, cx) {
                return Poll::Ready(());
            }
            driver.shrink();
            tick.as_mut().reset(tokio::time::Instant::now() + period);
        }
        if !connection.clock.is_leaving() && draining.poll(cx).is_ready() {
            connection.clock.leave();
            driver.leave();
        }
        if connection.clock.is_leaving() && cut.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        Poll::Pending
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
