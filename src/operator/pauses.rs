//! How long a watch pauses before it tries again.
//!
//! Never longer than some seconds: what changed while the API server was away must not wait for half a minute
//! once it is back, and a handful of requests every five seconds is nothing to it.

use std::time::{Duration, Instant};

use kube::runtime::utils::Backoff;

const FIRST: Duration = Duration::from_millis(800);
const LONGEST: Duration = Duration::from_secs(5);
/// Time without a failure after which the first pause is short again.
const QUIET: Duration = Duration::from_secs(30);

/// Doubling pauses, each a little different so that many replicas do not come at once.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    /// The last one, and when it was over.
    last: Option<(Duration, Instant)>,
}

impl Pauses {
    /// The pause of a failure at this time; `share` is from 0 to 1.
    fn after(&mut self, now: Instant, share: f64) -> Duration {
        let base = match self.last {
            Some((base, over)) if now.saturating_duration_since(over) < QUIET => {
                (base * 2).min(LONGEST)
            }
            _ => FIRST,
        };
        let pause = base.mul_f64(0.75 + share / 4.0);
        self.last = Some((base, now + pause));
        pause
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.after(Instant::now(), fastrand::f64()))
    }
}

impl Backoff for Pauses {
    /// The beginning of a list counts as success before the API server has answered, so only time resets.
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_five_seconds_and_begin_anew_after_a_quiet_time() {
        let mut pauses = Pauses::default();
        let mut now = Instant::now();
        for (base, share) in [
            (800, 0.0),
            (1600, 1.0),
            (3200, 0.0),
            (5000, 1.0),
            (5000, 0.0),
        ] {
            let expected = Duration::from_millis(base).mul_f64(0.75 + share / 4.0);
            let pause = pauses.after(now, share);
            assert_eq!(pause, expected);
            pauses.reset();
            now += pause;
        }
        now += QUIET;
        assert_eq!(pauses.after(now, 1.0), FIRST);
    }
}
