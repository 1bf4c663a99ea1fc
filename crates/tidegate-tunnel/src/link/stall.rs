//! What visitors who stop reading, and targets who stop taking, may cost a link.
//!
//! The connection's window is without limit, so that nobody who waits stops others. What lies unread is bounded here
//! instead: a stream is *stalled* when its last chunk was handed out long ago and nobody asked for the next. Too many
//! of them and new requests are refused; more and the longest is reset. A stream costs at most one stream window.
//!
//! On the hot path this is an atomic store per chunk. Streams are looked at only while there are many of them, and
//! then a few times per second.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::SendStream;
use tidegate_http2::{Incoming, StreamIo};
use tokio::sync::Notify;
use tokio::time::Instant;

/// More stalled streams than this and the link takes no new requests.
pub(super) const REFUSE_ABOVE: usize = 64;
/// More stalled streams than this and those stalled longest are reset.
pub(super) const RESET_ABOVE: usize = 128;
/// Crowds are judged earlier: so many times as many streams that wait at least [`Patience::crowd`] count as well.
pub(super) const CROWD: usize = 4;

/// How long a stream may wait before it counts as stalled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// A chunk that nobody comes back from for so long. Slow visitors take longer over nothing but a full buffer.
    pub(super) stalled: Duration,
    /// The same where hundreds wait at once, because it is their number that costs memory.
    pub(super) crowd: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            stalled: Duration::from_secs(5),
            crowd: Duration::from_millis(500),
        }
    }
}

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Registration is spread, so that workers do not meet.
const SHARDS: usize = 8;

/// All streams of a link's end.
#[derive(Debug)]
pub(super) struct Flows {
    start: Instant,
    patience: Patience,
    in_flight: AtomicUsize,
    total: AtomicU64,
    shards: [Mutex<Vec<Arc<Flow>>>; SHARDS],
    /// Milliseconds after `start` when it is time for the next look.
    look_at: AtomicU64,
    refusing: AtomicBool,
    idle: Notify,
}

/// One stream of the edge's end.
#[derive(Debug)]
pub(super) struct Flow {
    start: Instant,
    shard: usize,
    /// Where in its shard; changed under the shard's lock.
    place: AtomicUsize,
    /// Milliseconds after `start`, plus one, when the last chunk was handed out; 0 when the next is asked for.
    download: AtomicU64,
    /// The same for the other direction.
    upload: AtomicU64,
    /// What the agent answers with, so that it can be dropped without whoever reads it.
    pub(super) held: Mutex<Held>,
    reset: AtomicBool,
    /// Of whoever waits for the answer or reads it.
    pub(super) reader: AtomicWaker,
    /// Of whoever takes the visitor's body.
    pub(super) feeder: AtomicWaker,
}

/// The receiving half of a stream.
#[derive(Debug, Default)]
pub(super) enum Held {
    /// Not there yet, or gone.
    #[default]
    Nothing,
    /// An answer's body; to CONNECT, with the other half of the stream.
    Body(Incoming, Option<SendStream<Bytes>>),
    /// A stream that carries bytes, with both its halves.
    Tunnel(StreamIo),
}

/// A lock that no panic can spoil: what it guards is whole at every moment.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Flows {
    pub(super) fn new(patience: Patience) -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            patience,
            in_flight: AtomicUsize::new(0),
            total: AtomicU64::new(0),
            shards: Default::default(),
            look_at: AtomicU64::new(0),
            refusing: AtomicBool::new(false),
            idle: Notify::new(),
        })
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Counts a stream until the ticket is dropped.
    pub(super) fn count(self: &Arc<Self>) -> Ticket {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.total.fetch_add(1, Ordering::Relaxed);
        Ticket(Arc::clone(self))
    }

    /// Returns when there is no stream.
    pub(super) async fn idle(&self) {
        loop {
            let notified = self.idle.notified();
            if self.in_flight() == 0 {
                return;
            }
            notified.await;
        }
    }

    /// Counts and watches a stream.
    pub(super) fn register(self: &Arc<Self>) -> Watch {
        let ticket = self.count();
        let shard = usize::try_from(self.total()).unwrap_or_default() % SHARDS;
        let flow = Arc::new(Flow {
            start: self.start,
            shard,
            place: AtomicUsize::new(0),
            download: AtomicU64::new(0),
            upload: AtomicU64::new(0),
            held: Mutex::default(),
            reset: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            feeder: AtomicWaker::new(),
        });
        let mut all = lock(&self.shards[shard]);
        flow.place.store(all.len(), Ordering::Relaxed);
        all.push(Arc::clone(&flow));
        drop(all);
        Watch {
            flow,
            ended: false,
            ticket,
        }
    }

    fn remove(&self, flow: &Flow) {
        let mut all = lock(&self.shards[flow.shard]);
        let place = flow.place.load(Ordering::Relaxed);
        if place < all.len() {
            all.swap_remove(place);
            if let Some(moved) = all.get(place) {
                moved.place.store(place, Ordering::Relaxed);
            }
        }
    }

    /// Whether too many streams are stalled for new ones. Looks at them when there are many and it is time.
    pub(super) fn is_refusing(&self) -> bool {
        if self.in_flight() <= REFUSE_ABOVE {
            return false;
        }
        let now = millis(self.start);
        let due = self.look_at.load(Ordering::Relaxed);
        let next = now + u64::try_from(LOOK_EVERY.as_millis()).unwrap_or_default();
        let mine = now >= due
            && self
                .look_at
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if mine {
            self.look();
        }
        self.refusing.load(Ordering::Relaxed)
    }

    /// From now on only when a test says so.
    #[cfg(test)]
    pub(super) fn look_by_hand(&self) {
        self.look_at.store(u64::MAX, Ordering::Relaxed);
    }

    /// Counts stalled streams and resets those stalled longest when there are far too many.
    pub(super) fn look(&self) {
        let now = millis(self.start);
        let mut waiting: Vec<(u64, Arc<Flow>)> = Vec::new();
        let crowd = u64::try_from(self.patience.crowd.as_millis()).unwrap_or_default();
        for shard in &self.shards {
            for flow in lock(shard).iter() {
                let since = flow.waits_since();
                if since > 0 && now.saturating_sub(since) >= crowd && !flow.is_reset() {
                    waiting.push((since, Arc::clone(flow)));
                }
            }
        }
        waiting.sort_unstable_by_key(|(since, _)| *since);
        let patience = u64::try_from(self.patience.stalled.as_millis()).unwrap_or_default();
        let stalled = waiting.partition_point(|(since, _)| now.saturating_sub(*since) >= patience);
        let over = |limit: usize| {
            let patient = stalled.saturating_sub(limit);
            patient.max(waiting.len().saturating_sub(limit * CROWD))
        };
        let (refuse, reset) = (over(REFUSE_ABOVE) > 0, over(RESET_ABOVE));
        self.refusing.store(refuse, Ordering::Relaxed);
        if reset > 0 {
            tracing::warn!(
                stalled,
                waiting = waiting.len(),
                reset,
                "too many streams of a link are not read; those that wait longest are reset"
            );
        }
        for (_, flow) in waiting.drain(..).take(reset) {
            flow.reset();
        }
    }
}

impl Flow {
    pub(super) fn download_given(&self) {
        self.download
            .store(millis(self.start) + 1, Ordering::Relaxed);
    }

    pub(super) fn download_taken(&self) {
        self.download.store(0, Ordering::Relaxed);
    }

    pub(super) fn upload_given(&self) {
        self.upload.store(millis(self.start) + 1, Ordering::Relaxed);
    }

    pub(super) fn upload_taken(&self) {
        self.upload.store(0, Ordering::Relaxed);
    }

    /// The earlier of both directions; 0 when none waits.
    fn waits_since(&self) -> u64 {
        let (down, up) = (
            self.download.load(Ordering::Relaxed),
            self.upload.load(Ordering::Relaxed),
        );
        match (down, up) {
            (0, since) | (since, 0) => since,
            _ => down.min(up),
        }
    }

    pub(super) fn is_reset(&self) -> bool {
        self.reset.load(Ordering::Acquire)
    }

    /// Drops what the stream holds, and tells whoever reads it and whoever feeds it. The agent is told as soon as
    /// neither half is in use.
    fn reset(&self) {
        self.reset.store(true, Ordering::Release);
        let held = std::mem::take(&mut *lock(&self.held));
        drop(held);
        self.reader.wake();
        self.feeder.wake();
    }
}

/// A stream that is counted and watched.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) flow: Arc<Flow>,
    /// The answer is there as a whole.
    pub(super) ended: bool,
    ticket: Ticket,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ticket.0.remove(&self.flow);
        // After the whole answer, the rest of an upload may go on.
        if !self.ended {
            self.flow.reset();
        }
    }
}

/// A stream that is counted.
#[derive(Debug)]
pub(super) struct Ticket(Arc<Flows>);

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
