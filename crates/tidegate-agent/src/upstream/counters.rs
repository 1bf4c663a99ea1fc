//! Counts what a mapping does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::pool::Stream;

/// Counters of one mapping, or of all.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    in_flight: AtomicU64,
    requests: AtomicU64,
    failed: AtomicU64,
}

/// Counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Being answered.
    pub(crate) in_flight: u64,
    /// So far.
    pub(crate) requests: u64,
    /// Of those, the ones that the target did not answer, or not to the end.
    pub(crate) failed: u64,
}

impl Counters {
    /// As they are.
    pub(crate) fn read(&self) -> Counts {
        Counts {
            in_flight: self.in_flight.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }

    /// A request got no answer.
    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request until what is returned is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Counted {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        Counted {
            counters: Arc::clone(self),
            failed: false,
            stream: None,
        }
    }
}

/// A request that runs.
#[derive(Debug)]
pub(crate) struct Counted {
    counters: Arc<Counters>,
    failed: bool,
    stream: Option<Stream>,
}

impl Counted {
    /// Holds the place on a shared connection for as long.
    pub(super) fn keep(&mut self, stream: Option<Stream>) {
        self.stream = stream;
    }

    /// The target broke its answer off.
    pub(crate) fn failed(&mut self) {
        if !std::mem::replace(&mut self.failed, true) {
            self.counters.failed();
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counters.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
