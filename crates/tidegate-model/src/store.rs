//! The one place where control side and data plane meet.

use std::sync::Arc;
use std::sync::Mutex;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use crate::Snapshot;

/// A snapshot with the number of its publication.
#[derive(Debug)]
pub struct Published {
    /// Counts publications from 1; 0 before the first.
    pub revision: u64,
    /// The configuration.
    pub snapshot: Snapshot,
}

/// Holds the current snapshot. Readers never wait; equal snapshots are not published.
#[derive(Debug)]
pub struct SnapshotStore {
    current: ArcSwap<Published>,
    revisions: watch::Sender<u64>,
    publishing: Mutex<()>,
}

impl Default for SnapshotStore {
    fn default() -> Self {
        Self::new()
    }
}

impl SnapshotStore {
    /// An empty store: revision 0, no hosts.
    pub fn new() -> Self {
        Self {
            current: ArcSwap::from_pointee(Published {
                revision: 0,
                snapshot: Snapshot::default(),
            }),
            revisions: watch::Sender::new(0),
            publishing: Mutex::new(()),
        }
    }

    /// The current snapshot, cheap enough for each request.
    pub fn load(&self) -> Guard<Arc<Published>> {
        self.current.load()
    }

    /// The current snapshot, to be kept.
    pub fn load_full(&self) -> Arc<Published> {
        self.current.load_full()
    }

    /// Publishes and returns the new revision, or None when nothing differs.
    pub fn publish(&self, snapshot: Snapshot) -> Option<u64> {
        let _one_at_a_time = self
            .publishing
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let current = self.current.load();
        if current.revision > 0 && current.snapshot == snapshot {
            return None;
        }
        let revision = current.revision + 1;
        self.current
            .store(Arc::new(Published { revision, snapshot }));
        self.revisions.send_replace(revision);
        Some(revision)
    }

    /// Notified of each publication.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revisions.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_equal_snapshot_is_not_published() {
        let store = SnapshotStore::new();
        assert_eq!(store.publish(Snapshot::default()), Some(1));
        assert_eq!(store.publish(Snapshot::default()), None);
        assert_eq!(store.load().revision, 1);
    }
}
