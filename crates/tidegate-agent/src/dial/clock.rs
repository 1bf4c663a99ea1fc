//! The time as the edge sees it. Machines without a clock of their own, such as many small boards, start in the past.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The system's clock and how far it is off.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// Seconds to add to the system's time.
    offset: AtomicI64,
}

impl Clock {
    /// Seconds since 1970, corrected.
    pub(crate) fn now(&self) -> u64 {
        self.at(seconds(SystemTime::now()))
    }

    /// Takes over the edge's time.
    pub(crate) fn correct(&self, edge: SystemTime) {
        let offset = self.correct_at(edge, seconds(SystemTime::now()));
        tracing::warn!(
            seconds = offset,
            "this machine's clock is off; the edge's time is used for the handshake"
        );
    }

    fn correct_at(&self, edge: SystemTime, now: i64) -> i64 {
        let offset = seconds(edge).saturating_sub(now);
        self.offset.store(offset, Ordering::Relaxed);
        offset
    }

    fn at(&self, now: i64) -> u64 {
        let corrected = now.saturating_add(self.offset.load(Ordering::Relaxed));
        u64::try_from(corrected).unwrap_or_default()
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wrong_clock_is_corrected_both_ways() {
        let clock = Clock::default();
        assert_eq!(clock.at(100), 100);
        let edge = UNIX_EPOCH + Duration::from_secs(1_000);
        assert_eq!(clock.correct_at(edge, 100), 900);
        assert_eq!(clock.at(105), 1_005);
        assert_eq!(clock.correct_at(edge, 5_000), -4_000);
        assert_eq!(clock.at(5_001), 1_001);
        assert_eq!(clock.at(0), 0);
    }
}
