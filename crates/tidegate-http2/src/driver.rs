//! The loop that drives codec and streams of a server's connection.
//!
//! One task serves the whole connection. In a turn it polls the streams that were woken, then the codec, which writes
//! what they had to say and takes new requests, and again while there is more. No stream can hold up another: none is
//! polled without having been woken, and all of them only ever wait.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::{PingPong, RecvStream, server};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::streams::Streams;
use crate::wakes::{Bell, Wakes, Whom};

/// Rounds over woken streams and codec before other connections get their turn.
const ROUNDS: usize = 16;

/// Codec and streams of one connection.
pub struct Driver<T, F, M> {
    wakes: Arc<Wakes>,
    /// Dropped before the codec, which would tell each stream that it failed.
    streams: Streams<F>,
    make: M,
    codec: server::Connection<T, Bytes>,
    codec_bell: (Arc<Bell>, Waker),
    alarms_bell: (Arc<Bell>, Waker),
    woken: Vec<usize>,
    leaving: bool,
}

/// What ended a connection.
#[derive(Debug)]
pub enum Ended<A> {
    /// The codec: both ends are done, or one of them broke the protocol.
    Codec(Result<(), h2::Error>),
    /// The alarms, with what they say.
    Alarm(A),
}

impl<T, F, M> Driver<T, F, M>
where
    T: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()>,
    M: FnMut(Request<RecvStream>, server::SendResponse<Bytes>) -> F,
{
    /// A connection whose handshake is over; each request becomes the future that `make` makes of it.
    pub fn new(codec: server::Connection<T, Bytes>, make: M) -> Self {
        let wakes = Arc::new(Wakes::default());
        let bell = |whom| {
            let bell = wakes.bell(whom);
            let rope = Waker::from(Arc::clone(&bell));
            // Everything is polled once to begin with.
            rope.wake_by_ref();
            (bell, rope)
        };
        Self {
            codec_bell: bell(Whom::Codec),
            alarms_bell: bell(Whom::Alarms),
            streams: Streams::new(Arc::clone(&wakes)),
            wakes,
            make,
            codec,
            woken: Vec::new(),
            leaving: false,
        }
    }

    /// Ready when the connection is over. `alarms` is whatever else may end it, polled only when it was woken; what is
    /// still running is to be dropped then.
    pub fn poll<A>(
        &mut self,
        cx: &mut Context<'_>,
        mut alarms: impl FnMut(&mut Self, &mut Context<'_>) -> Poll<A>,
    ) -> Poll<Ended<A>> {
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
                return Poll::Ready(Ended::Codec(ended));
            }
            if alarm {
                self.alarms_bell.0.answer();
                let waker = self.alarms_bell.1.clone();
                if let Poll::Ready(alarm) = alarms(self, &mut Context::from_waker(&waker)) {
                    return Poll::Ready(Ended::Alarm(alarm));
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

    /// GOAWAY: what is on its way is still served, nothing after it.
    pub fn leave(&mut self) {
        if !self.leaving {
            self.leaving = true;
            self.codec.graceful_shutdown();
            self.codec_bell.1.wake_by_ref();
        }
    }

    /// Whether [`Self::leave`] was called.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Pings of this end; None when they were taken before.
    pub fn ping_pong(&mut self) -> Option<PingPong> {
        self.codec.ping_pong()
    }

    /// Gives memory back where nothing runs.
    pub fn shrink(&mut self) {
        self.streams.shrink();
    }
}
