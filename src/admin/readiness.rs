//! Whether traffic should be sent to this edge, and if not, why.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const STARTING: u8 = 0;
const READY: u8 = 1;
const DRAINING: u8 = 2;

/// A flag that starts at "not yet" and ends at "no more". Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicU8>);

impl Readiness {
    /// The first snapshot is published and every listener is bound.
    pub fn set_ready(&self) {
        // Draining is final: a slow start must not undo it.
        let _ = self
            .0
            .compare_exchange(STARTING, READY, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The edge is going.
    pub fn set_draining(&self) {
        self.0.store(DRAINING, Ordering::Release);
    }

    /// None while ready.
    pub fn why_not(&self) -> Option<&'static str> {
        match self.0.load(Ordering::Acquire) {
            READY => None,
            STARTING => Some("starting: no configuration is published yet"),
            _ => Some("draining: this edge is shutting down"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draining_is_final() {
        let readiness = Readiness::default();
        assert!(readiness.why_not().unwrap().starts_with("starting"));
        readiness.set_ready();
        assert_eq!(readiness.why_not(), None);
        readiness.set_draining();
        readiness.set_ready();
        assert!(readiness.why_not().unwrap().starts_with("draining"));
    }
}
