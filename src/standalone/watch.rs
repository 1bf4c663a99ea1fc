//! Says when the folder may have changed.
//!
//! The system's notices come at once, but not from every file system, not through links, and not after the
//! folder itself was replaced. A look at the listing every two seconds finds what they miss. A burst of changes
//! is one change: it is told when nothing has happened for a moment, at the latest after a second.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::folder::{self, Listing};

/// Quiet time after which a burst of changes is over.
const HOLD_OFF: Duration = Duration::from_millis(100);
/// Longest time that a burst is waited for.
const LONGEST_HOLD_OFF: Duration = Duration::from_secs(1);
/// Time between two looks at the listing.
const POLL: Duration = Duration::from_secs(2);
/// A look takes at most this share of the time: one part in so many.
const POLL_SHARE: u32 = 50;

/// A watched folder.
#[derive(Debug)]
pub struct FolderWatch {
    root: PathBuf,
    state: Option<PathBuf>,
    events: Arc<Notify>,
    watcher: Option<RecommendedWatcher>,
    seen: Option<Listing>,
    next_poll: Instant,
}

impl FolderWatch {
    /// Watches the folder; changes below the state folder are our own and not told.
    pub fn new(root: impl Into<PathBuf>, state: Option<PathBuf>) -> Self {
        let root = root.into();
        let mut watch = Self {
            seen: folder::list(&root, state.as_deref()).ok(),
            root,
            state,
            events: Arc::new(Notify::new()),
            watcher: None,
            next_poll: Instant::now() + POLL,
        };
        watch.subscribe();
        watch
    }

    fn subscribe(&mut self) {
        let events = Arc::clone(&self.events);
        let mut ours: Vec<PathBuf> = self.state.iter().cloned().collect();
        ours.extend(
            ours.first()
                .and_then(|state| std::fs::canonicalize(state).ok()),
        );
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            match event {
                // Reading the folder is an event too, and ours.
                Ok(event) if matches!(event.kind, EventKind::Access(_)) => {}
                Ok(event) if all_below(&event.paths, &ours) => {}
                _ => events.notify_one(),
            }
        })
        .and_then(|mut watcher| {
            watcher.watch(&self.root, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        self.watcher = match watcher {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::debug!(error = %error, folder = %self.root.display(), "no change notices from the system; looking every two seconds");
                None
            }
        };
    }

    /// Returns when the folder may have changed. Cancel safe: a change that was noticed and not told yet is told
    /// by the next call.
    pub async fn changed(&mut self) {
        loop {
            tokio::select! {
                () = self.events.notified() => {
                    self.settle().await;
                    self.seen = self.look().await;
                    return;
                }
                () = sleep_until(self.next_poll) => {
                    let before = Instant::now();
                    let now = self.look().await;
                    let pause = POLL.max(before.elapsed() * POLL_SHARE);
                    self.next_poll = Instant::now() + pause;
                    if now != self.seen {
                        // Whatever made the notice fail may have been a folder that was replaced.
                        self.subscribe();
                        self.events.notify_one();
                    }
                }
            }
        }
    }

    async fn settle(&self) {
        let latest = Instant::now() + LONGEST_HOLD_OFF;
        loop {
            let quiet = (Instant::now() + HOLD_OFF).min(latest);
            if timeout_at(quiet, self.events.notified()).await.is_err() || Instant::now() >= latest
            {
                return;
            }
        }
    }

    async fn look(&self) -> Option<Listing> {
        let (root, state) = (self.root.clone(), self.state.clone());
        tokio::task::spawn_blocking(move || folder::list(Path::new(&root), state.as_deref()).ok())
            .await
            .ok()
            .flatten()
    }
}

fn all_below(paths: &[PathBuf], folders: &[PathBuf]) -> bool {
    let below = |path: &PathBuf| folders.iter().any(|folder| path.starts_with(folder));
    !paths.is_empty() && paths.iter().all(below)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    async fn expect_change(watch: &mut FolderWatch) {
        tokio::time::timeout(Duration::from_secs(20), watch.changed())
            .await
            .expect("a change within twenty seconds");
    }

    #[tokio::test]
    async fn edits_swaps_and_a_replaced_folder_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("objects");
        fs::create_dir(&root).unwrap();
        let mut watch = FolderWatch::new(&root, None);
        fs::write(root.join("a.yaml"), "a: 1").unwrap();
        expect_change(&mut watch).await;

        fs::create_dir(root.join("..1")).unwrap();
        fs::write(root.join("..1/b.yaml"), "b: 1").unwrap();
        symlink("..1/b.yaml", root.join("b.yaml")).unwrap();
        expect_change(&mut watch).await;

        fs::rename(&root, folder.path().join("old")).unwrap();
        fs::create_dir(&root).unwrap();
        fs::write(root.join("c.yaml"), "c: 1").unwrap();
        expect_change(&mut watch).await;
        // The new folder is watched too.
        fs::write(root.join("d.yaml"), "d: 1").unwrap();
        expect_change(&mut watch).await;
    }

    #[test]
    fn our_own_state_is_no_change() {
        let state = [PathBuf::from("/x/.tidegate")];
        let below = |paths: &[&str]| {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            all_below(&paths, &state)
        };
        assert!(below(&["/x/.tidegate/status.json", "/x/.tidegate"]));
        assert!(!below(&["/x/.tidegate/status.json", "/x/a.yaml"]));
        assert!(!below(&["/x/..data"]));
        // A notice without a path may mean anything, such as an overflow.
        assert!(!below(&[]));
    }
}
