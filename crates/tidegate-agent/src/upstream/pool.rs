//! Connections of one mapping that wait for their next request, and those of HTTP/2 that many share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};

use super::body::AskBody;
use super::proxy_header::Visitor;

/// Connections of HTTP/1 that wait: as many as the edge keeps for its own backends, so that bursts do not open and
/// close them all the time.
const MOST_IDLE: usize = 256;
/// How long one waits. Servers keep them for 60 to 75 seconds, and say when they do not.
const IDLE: Duration = Duration::from_secs(55);
/// Time for the rest of an exchange whose answer is read: servers may leave requests unread.
const SETTLE: Duration = Duration::from_secs(5);
/// Streams of an HTTP/2 connection before another one is opened; servers allow 100 at least.
const STREAMS: usize = 100;

/// Connections of a mapping.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<VecDeque<Idle>>,
    shared: Mutex<Vec<Shared>>,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<AskBody>,
    /// Whose it is, where the target was told by a PROXY header.
    visitor: Option<Visitor>,
    /// Who drives it.
    home: ThreadId,
    since: Instant,
}

#[derive(Debug, Clone)]
struct Shared {
    sender: http2::SendRequest<AskBody>,
    streams: Arc<AtomicUsize>,
}

/// A connection of HTTP/1 in use; waits again once its exchange is over.
#[derive(Debug)]
pub(crate) struct Lease {
    sender: Option<http1::SendRequest<AskBody>>,
    visitor: Option<Visitor>,
    home: ThreadId,
    pool: Weak<Pool>,
}

/// A stream of HTTP/2 in use.
#[derive(Debug)]
pub(crate) struct Stream(Arc<AtomicUsize>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// The connection that was used last and still lives; one that this thread drives, if there is any.
    pub(crate) fn take(self: &Arc<Self>, visitor: Option<Visitor>) -> Option<Lease> {
        let mut idle = lock(&self.idle);
        let now = Instant::now();
        let is_old = |it: &Idle| now.saturating_duration_since(it.since) >= IDLE;
        while idle.front().is_some_and(is_old) {
            idle.pop_front();
        }
        let here = thread::current().id();
        loop {
            let place = idle
                .iter()
                .rposition(|it| it.visitor == visitor && it.home == here)
                .or_else(|| idle.iter().rposition(|it| it.visitor == visitor))?;
            let found = idle.remove(place)?;
            if found.sender.is_ready() {
                return Some(Lease {
                    sender: Some(found.sender),
                    visitor,
                    home: found.home,
                    pool: Arc::downgrade(self),
                });
            }
        }
    }

    /// A connection that is new, and driven by this thread.
    pub(crate) fn lease(
        self: &Arc<Self>,
        sender: http1::SendRequest<AskBody>,
        visitor: Option<Visitor>,
    ) -> Lease {
        Lease {
            sender: Some(sender),
            visitor,
            home: thread::current().id(),
            pool: Arc::downgrade(self),
        }
    }

    /// A shared connection with room.
    pub(crate) fn join(&self) -> Option<(http2::SendRequest<AskBody>, Stream)> {
        let mut shared = lock(&self.shared);
        shared.retain(|it| !it.sender.is_closed());
        let found = shared
            .iter()
            .find(|it| it.streams.load(Ordering::Relaxed) < STREAMS)?;
        Some(found.use_it())
    }

    /// Adds a shared connection and uses it.
    pub(crate) fn share(
        &self,
        sender: http2::SendRequest<AskBody>,
    ) -> (http2::SendRequest<AskBody>, Stream) {
        let new = Shared {
            sender,
            streams: Arc::default(),
        };
        let used = new.use_it();
        lock(&self.shared).push(new);
        used
    }

    fn put(&self, idle: Idle) {
        let mut waiting = lock(&self.idle);
        if waiting.len() >= MOST_IDLE {
            waiting.retain(|it| it.sender.is_ready());
        }
        if waiting.len() >= MOST_IDLE {
            waiting.pop_front();
        }
        waiting.push_back(idle);
    }
}

impl Shared {
    fn use_it(&self) -> (http2::SendRequest<AskBody>, Stream) {
        self.streams.fetch_add(1, Ordering::Relaxed);
        (self.sender.clone(), Stream(Arc::clone(&self.streams)))
    }
}

impl Lease {
    /// What requests are sent by; None once it was given back.
    pub(crate) fn sender(&mut self) -> Option<&mut http1::SendRequest<AskBody>> {
        self.sender.as_mut()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(mut sender) = self.sender.take() else {
            return;
        };
        let (visitor, home) = (self.visitor, self.home);
        let waits = move |sender| Idle {
            sender,
            visitor,
            home,
            since: Instant::now(),
        };
        if sender.is_ready() {
            if let Some(pool) = self.pool.upgrade() {
                pool.put(waits(sender));
            }
            return;
        }
        if sender.is_closed() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let pool = self.pool.clone();
        runtime.spawn(async move {
            let settled = tokio::time::timeout(SETTLE, sender.ready()).await;
            if let (Ok(Ok(())), Some(pool)) = (settled, pool.upgrade()) {
                pool.put(waits(sender));
            }
        });
    }
}
