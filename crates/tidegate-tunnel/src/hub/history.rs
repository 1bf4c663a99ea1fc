//! Links that came and went: the log of connections, as far as it is kept.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tidegate_model::{AgentId, Carrier};
use tokio::sync::broadcast;

use super::session::Ended;

/// Entries that are kept.
const KEPT: usize = 1000;
/// Entries that a slow listener may be behind.
const BEHIND: usize = 256;

/// A link that came or went.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkChange {
    /// When.
    pub time: SystemTime,
    /// Whose.
    pub agent: AgentId,
    /// Identity of the session.
    pub session: String,
    /// The agent's process.
    pub instance: String,
    /// Which of its links.
    pub link: u8,
    /// What it runs over.
    pub carrier: Carrier,
    /// The agent's address as the edge sees it.
    pub address: SocketAddr,
    /// Of the agent's program.
    pub version: String,
    /// How it ended, after how long and with how many requests; None for one that came.
    pub ended: Option<(Ended, Duration, u64)>,
}

/// The newest changes.
#[derive(Debug)]
pub(super) struct History {
    kept: Mutex<VecDeque<Arc<LinkChange>>>,
    told: broadcast::Sender<Arc<LinkChange>>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            told: broadcast::Sender::new(BEHIND),
        }
    }
}

impl History {
    pub(super) fn add(&self, change: LinkChange) {
        let change = Arc::new(change);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&change));
        drop(kept);
        // Nobody may be listening.
        let _ = self.told.send(change);
    }

    /// Oldest first.
    pub(super) fn all(&self) -> Vec<Arc<LinkChange>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().cloned().collect()
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<LinkChange>> {
        self.told.subscribe()
    }
}
