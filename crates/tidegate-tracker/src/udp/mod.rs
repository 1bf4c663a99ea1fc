//! UDP trackers (BEP 15) behind this edge: the relay of their datagrams.
//!
//! ```text
//! client ─► listener ─► session ─► socket with the client's own address ─► tracker
//!        ◄─ from the address that was asked ◄────────────────────────────┘
//! ```
//!
//! A tracker must learn the true address of each client, so nothing is relayed unless a trial has shown that it
//! does ([`UdpWayState`](tidegate_model::UdpWayState)); there is no falling back to an address of ours.
//! The engine has a thread of its own. It is told what to relay and says what became of it; names are resolved
//! beside it ([`follow`]).

mod counters;
mod engine;
mod evidence;
pub mod flood;
mod follow;
pub mod packet;
mod proxy_header;
mod relay;
pub mod sessions;
pub mod socket;
mod token;
mod trial;
mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tidegate_model::{RuleId, UdpRelay, UdpRelayState};
use tokio::sync::watch;

pub use counters::{Counted, Counters, Dropped};
pub use follow::follow;
pub use sessions::IDLE;

use engine::Engine;

/// Something to relay, with the addresses of its tracker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What to relay.
    pub relay: Arc<UdpRelay>,
    /// Addresses of the tracker; the first of each family is used.
    pub backends: Vec<SocketAddr>,
    /// Why there are none, if so.
    pub error: Option<String>,
}

impl Wanted {
    fn name(&self) -> impl fmt::Display {
        let id = &self.relay.id;
        format!("{}/{}", id.route, id.rule)
    }
}

/// All relays of a process. Cheap to clone. The thread is started when the first relay is wanted.
#[derive(Debug, Clone)]
pub struct UdpRelays {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    port_sharing: bool,
    thread: Mutex<Option<Thread>>,
}

#[derive(Debug)]
struct Thread {
    waker: mio::Waker,
    handle: JoinHandle<()>,
}

/// What the thread and its masters both see.
#[derive(Debug)]
struct Shared {
    wanted: Mutex<Option<Vec<Wanted>>>,
    stop: AtomicBool,
    states: watch::Sender<Arc<Vec<UdpRelayState>>>,
    counters: Mutex<BTreeMap<RuleId, Arc<Counters>>>,
}

impl UdpRelays {
    /// Nothing is relayed yet. `port_sharing` says that a process which is taken over from may still have the ports.
    pub fn new(port_sharing: bool) -> Self {
        Self {
            inner: Arc::new(Inner {
                shared: Arc::new(Shared {
                    wanted: Mutex::default(),
                    stop: AtomicBool::new(false),
                    states: watch::Sender::default(),
                    counters: Mutex::default(),
                }),
                port_sharing,
                thread: Mutex::new(None),
            }),
        }
    }

    /// Relays these from now on, and nothing else. Relays that stay as they are notice nothing.
    pub fn apply(&self, wanted: Vec<Wanted>) -> io::Result<()> {
        let mut thread = locked(&self.inner.thread);
        if self.inner.shared.stop.load(Ordering::Acquire) || (thread.is_none() && wanted.is_empty())
        {
            return Ok(());
        }
        *locked(&self.inner.shared.wanted) = Some(wanted);
        if thread.is_none() {
            let shared = Arc::clone(&self.inner.shared);
            let (engine, waker) = Engine::new(shared, self.inner.port_sharing)?;
            let handle = std::thread::Builder::new()
                .name("udp-relay".to_owned())
                .spawn(move || engine.run())?;
            *thread = Some(Thread { waker, handle });
        }
        thread.as_ref().map_or(Ok(()), |thread| thread.waker.wake())
    }

    /// What became of each relay, now and whenever it changes. What is known already counts as a change.
    pub fn states(&self) -> watch::Receiver<Arc<Vec<UdpRelayState>>> {
        let mut states = self.inner.shared.states.subscribe();
        states.mark_changed();
        states
    }

    /// What each relay has counted.
    pub fn counted(&self) -> Vec<(RuleId, Counted)> {
        locked(&self.inner.shared.counters)
            .iter()
            .map(|(id, counters)| (id.clone(), counters.read()))
            .collect()
    }

    /// Passes the last answers on and ends the thread; waits for it, less than a second.
    pub fn stop(&self) {
        self.inner.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = locked(&self.inner.thread).take() {
            let woken = thread.waker.wake();
            if woken.is_ok() && thread.handle.join().is_err() {
                tracing::error!("the relay of datagrams panicked");
            }
        }
    }
}

impl Shared {
    fn take_wanted(&self) -> Option<Vec<Wanted>> {
        locked(&self.wanted).take()
    }

    fn counters_of(&self, id: &RuleId) -> Arc<Counters> {
        Arc::clone(locked(&self.counters).entry(id.clone()).or_default())
    }

    fn forget_others(&self, ids: &BTreeSet<&RuleId>) {
        locked(&self.counters).retain(|id, _| ids.contains(id));
    }

    fn tell(&self, states: Vec<UdpRelayState>) {
        self.states.send_if_modified(|known| {
            let differs = **known != states;
            if differs {
                *known = Arc::new(states);
            }
            differs
        });
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
