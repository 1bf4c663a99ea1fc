//! Who of a connection has something to do: its streams, the codec itself, its alarms.
//!
//! All of them are polled by the connection's one task. Each has a waker of its own, so that a backend's
//! answer polls one stream and not all of them; and while the task polls, waking only notes: a stream that
//! hands frames to the codec does not schedule the task that will look at the codec anyway.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

/// Shared by the task and all wakers of a connection.
#[derive(Debug, Default)]
pub(super) struct Wakes(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    codec: bool,
    alarms: bool,
    streams: Vec<usize>,
    /// The task is looking: no need to wake it.
    looking: bool,
    task: Option<Waker>,
}

impl Noted {
    fn nothing(&self) -> bool {
        !self.codec && !self.alarms && self.streams.is_empty()
    }
}

/// Whom a waker is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom {
    Codec,
    Alarms,
    Stream(usize),
}

impl Wakes {
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A waker, and whether it was used since [`Bell::answer`].
    pub(super) fn bell(self: &Arc<Self>, whom: Whom) -> Arc<Bell> {
        Arc::new(Bell {
            whom,
            rung: AtomicBool::new(false),
            wakes: Arc::clone(self),
        })
    }

    /// The task begins to look; from now on it is not woken.
    pub(super) fn look(&self, task: &Waker) {
        let mut noted = self.noted();
        noted.looking = true;
        match &noted.task {
            Some(known) if known.will_wake(task) => {}
            _ => noted.task = Some(task.clone()),
        }
    }

    /// Moves the woken streams into the empty list. Returns false when nobody at all was woken, and then
    /// the task has stopped looking.
    pub(super) fn take_streams(&self, streams: &mut Vec<usize>) -> bool {
        let mut noted = self.noted();
        if noted.nothing() {
            noted.looking = false;
            return false;
        }
        std::mem::swap(&mut noted.streams, streams);
        true
    }

    /// Whether the codec, and whether the alarms were woken.
    pub(super) fn take_rest(&self) -> (bool, bool) {
        let mut noted = self.noted();
        (
            std::mem::take(&mut noted.codec),
            std::mem::take(&mut noted.alarms),
        )
    }

    /// The task stops looking though there is more to do, to let others have a turn.
    pub(super) fn pause(&self) {
        let mut noted = self.noted();
        noted.looking = false;
        if let Some(task) = &noted.task {
            task.wake_by_ref();
        }
    }
}

/// The waker of one.
#[derive(Debug)]
pub(super) struct Bell {
    whom: Whom,
    rung: AtomicBool,
    wakes: Arc<Wakes>,
}

impl Bell {
    /// Called before polling: a later ring counts again.
    pub(super) fn answer(&self) {
        self.rung.store(false, Ordering::Release);
    }

    fn ring(&self) {
        if self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut noted = self.wakes.noted();
        match self.whom {
            Whom::Codec => noted.codec = true,
            Whom::Alarms => noted.alarms = true,
            Whom::Stream(index) => noted.streams.push(index),
        }
        if !noted.looking {
            // Once: whoever wakes next finds that the task was told.
            noted.looking = true;
            if let Some(task) = &noted.task {
                task.wake_by_ref();
            }
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_task_is_woken_once_and_never_while_it_looks() {
        let counter = Arc::new(Counter::default());
        let task = Waker::from(Arc::clone(&counter));
        let wakes = Arc::new(Wakes::default());
        let codec = wakes.bell(Whom::Codec);
        let stream = wakes.bell(Whom::Stream(7));
        let mut streams = Vec::new();

        wakes.look(&task);
        Waker::from(Arc::clone(&stream)).wake();
        Waker::from(Arc::clone(&stream)).wake();
        assert!(wakes.take_streams(&mut streams));
        assert_eq!(streams, [7], "noted once");
        assert_eq!(wakes.take_rest(), (false, false));
        assert_eq!(counter.0.load(Ordering::SeqCst), 0);

        streams.clear();
        stream.answer();
        assert!(!wakes.take_streams(&mut streams));
        Waker::from(Arc::clone(&codec)).wake();
        Waker::from(stream).wake();
        assert_eq!(counter.0.load(Ordering::SeqCst), 1);
        wakes.look(&task);
        assert!(wakes.take_streams(&mut streams));
        assert_eq!(wakes.take_rest(), (true, false));
        assert_eq!(streams, [7]);
    }
}
