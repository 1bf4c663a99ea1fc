//! Connections of one mapping that wait for their next request, and those of HTTP/2 that many share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use hyper::client::conn::http2;
use tidegate_http1::Connection;
use tokio::runtime::Handle;
use tokio::time::sleep;

use super::body::AskBody;
use super::proxy_header::Visitor;
use crate::stream::Stream as Socket;

/// Connections of HTTP/1 that wait: as many as the edge keeps for its own backends, so that bursts do not open and
/// close them all the time.
const MOST_IDLE: usize = 256;
/// How long one waits. Servers keep them for 60 to 75 seconds, and say when they do not.
const IDLE: Duration = Duration::from_secs(55);
/// How often those that wait are looked through: nobody reads them, so nobody else sees that one was closed.
const SWEEP: Duration = Duration::from_secs(5);
/// Streams of an HTTP/2 connection before another one is opened; servers allow 100 at least.
const STREAMS: usize = 100;

/// Connections of a mapping.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    waiting: Mutex<Waiting>,
    shared: Mutex<Vec<Shared>>,
}

/// Connections of HTTP/1, the one that was used last at the end.
#[derive(Debug, Default)]
struct Waiting {
    idle: VecDeque<Idle>,
    /// Whether a task looks through them.
    swept: bool,
}

#[derive(Debug)]
struct Idle {
    connection: Box<Connection<Socket>>,
    /// Whose it is, where the target was told by a PROXY header.
    visitor: Option<Visitor>,
    /// Whose runtime knows its socket. That ends only with the agent.
    thread: ThreadId,
    since: Instant,
}

impl Idle {
    fn is_usable(&mut self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < IDLE && self.connection.is_quiet()
    }
}

/// Where a connection of HTTP/1 waits once its exchange is over.
#[derive(Debug)]
pub(crate) struct Home {
    pool: Arc<Pool>,
    visitor: Option<Visitor>,
    thread: ThreadId,
}

impl tidegate_http1::Home<Socket> for Home {
    fn take_in(self, connection: Box<Connection<Socket>>) {
        self.pool.put(Idle {
            connection,
            visitor: self.visitor,
            thread: self.thread,
            since: Instant::now(),
        });
    }
}

#[derive(Debug, Clone)]
struct Shared {
    sender: http2::SendRequest<AskBody>,
    streams: Arc<AtomicUsize>,
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
    pub(crate) fn take(
        self: &Arc<Self>,
        visitor: Option<Visitor>,
    ) -> Option<(Box<Connection<Socket>>, Home)> {
        let now = Instant::now();
        loop {
            let mut found = self.last(visitor)?;
            if found.is_usable(now) {
                let home = Home {
                    pool: Arc::clone(self),
                    visitor,
                    thread: found.thread,
                };
                return Some((found.connection, home));
            }
        }
    }

    fn last(&self, visitor: Option<Visitor>) -> Option<Idle> {
        let idle = &mut lock(&self.waiting).idle;
        let here = thread::current().id();
        let place = idle
            .iter()
            .rposition(|it| it.visitor == visitor && it.thread == here)
            .or_else(|| idle.iter().rposition(|it| it.visitor == visitor))?;
        idle.remove(place)
    }

    /// Where a connection goes that this thread has opened.
    pub(crate) fn home(self: &Arc<Self>, visitor: Option<Visitor>) -> Home {
        Home {
            pool: Arc::clone(self),
            visitor,
            thread: thread::current().id(),
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

    fn put(self: &Arc<Self>, idle: Idle) {
        let mut waiting = lock(&self.waiting);
        let full = waiting.idle.len() >= MOST_IDLE;
        let surplus = full.then(|| waiting.idle.pop_front()).flatten();
        waiting.idle.push_back(idle);
        let swept = std::mem::replace(&mut waiting.swept, true);
        // Closing takes time.
        drop(waiting);
        drop(surplus);
        if !swept {
            self.start_sweeping();
        }
    }

    fn start_sweeping(self: &Arc<Self>) {
        // Nothing is lost where there is none: the next connection that comes tries again.
        let sweeper = Sweeper(Arc::downgrade(self));
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(sweeper.run());
        }
    }

    /// Closes what waits for too long and what its target has closed. True when nothing waits any more, and sweeping
    /// ends.
    fn sweep(&self, now: Instant) -> bool {
        let mut waiting = lock(&self.waiting);
        waiting.idle.retain_mut(|idle| idle.is_usable(now));
        waiting.swept = !waiting.idle.is_empty();
        !waiting.swept
    }
}

/// Who looks through a pool. If its thread ends before it is done, the next connection brings another one.
struct Sweeper(Weak<Pool>);

impl Sweeper {
    async fn run(mut self) {
        loop {
            sleep(SWEEP).await;
            let Some(pool) = self.0.upgrade() else {
                return;
            };
            if pool.sweep(Instant::now()) {
                return self.done();
            }
        }
    }

    /// Another one may have begun already.
    fn done(&mut self) {
        self.0 = Weak::new();
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            lock(&pool.waiting).swept = false;
        }
    }
}

impl Shared {
    fn use_it(&self) -> (http2::SendRequest<AskBody>, Stream) {
        self.streams.fetch_add(1, Ordering::Relaxed);
        (self.sender.clone(), Stream(Arc::clone(&self.streams)))
    }
}

#[cfg(test)]
mod tests {
    use tidegate_http1::Home as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    struct Targets(TcpListener);

    impl Targets {
        async fn new() -> Self {
            Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
        }

        /// A connection that waits in the pool, and its other end.
        async fn connect(&self, pool: &Arc<Pool>, visitor: Option<Visitor>) -> TcpStream {
            let near = TcpStream::connect(self.0.local_addr().unwrap()).await;
            let connection = Connection::new(Socket::Plain(near.unwrap()));
            pool.home(visitor).take_in(connection);
            self.0.accept().await.unwrap().0
        }
    }

    /// Waits until the end of a connection has come.
    fn until_noticed(pool: &Pool) {
        while lock(&pool.waiting)
            .idle
            .iter_mut()
            .all(|it| it.connection.is_quiet())
        {
            thread::yield_now();
        }
    }

    #[tokio::test]
    async fn a_connection_is_used_again_unless_its_target_closed_it() {
        let targets = Targets::new().await;
        let pool = Arc::<Pool>::default();
        assert!(pool.take(None).is_none());
        let kept = targets.connect(&pool, None).await;
        let closed = targets.connect(&pool, None).await;
        drop(closed);
        until_noticed(&pool);
        let (_connection, home) = pool.take(None).unwrap();
        assert_eq!(home.thread, thread::current().id());
        assert!(pool.take(None).is_none(), "only one was open");
        drop(kept);
    }

    #[tokio::test]
    async fn a_visitor_gets_no_connection_of_another_one() {
        let targets = Targets::new().await;
        let pool = Arc::<Pool>::default();
        let visitor = |port: u16| {
            let client = ([203, 0, 113, 7], port).into();
            let local = ([192, 0, 2, 1], 443).into();
            Some(Visitor { client, local })
        };
        let _far = targets.connect(&pool, visitor(1)).await;
        assert!(pool.take(None).is_none());
        assert!(pool.take(visitor(2)).is_none());
        assert!(pool.take(visitor(1)).is_some());
    }

    #[tokio::test]
    async fn a_connection_of_this_thread_comes_first() {
        let targets = Targets::new().await;
        let pool = Arc::<Pool>::default();
        let _here = targets.connect(&pool, None).await;
        let _there = targets.connect(&pool, None).await;
        let other = thread::spawn(|| thread::current().id()).join().unwrap();
        lock(&pool.waiting).idle[1].thread = other;
        assert_eq!(pool.take(None).unwrap().1.thread, thread::current().id());
        assert_eq!(pool.take(None).unwrap().1.thread, other);
    }

    #[tokio::test]
    async fn what_waits_too_long_or_was_closed_is_swept() {
        let targets = Targets::new().await;
        let pool = Arc::<Pool>::default();
        let closed = targets.connect(&pool, None).await;
        let _open = targets.connect(&pool, None).await;
        drop(closed);
        until_noticed(&pool);
        let now = Instant::now();
        assert!(!pool.sweep(now));
        assert_eq!(lock(&pool.waiting).idle.len(), 1);
        assert!(pool.sweep(now + IDLE));
        assert!(!lock(&pool.waiting).swept);
    }

    #[tokio::test]
    async fn no_more_wait_than_are_allowed() {
        let targets = Targets::new().await;
        let pool = Arc::<Pool>::default();
        let mut far = Vec::new();
        for _ in 0..=MOST_IDLE {
            far.push(targets.connect(&pool, None).await);
        }
        assert_eq!(lock(&pool.waiting).idle.len(), MOST_IDLE);
    }
}
