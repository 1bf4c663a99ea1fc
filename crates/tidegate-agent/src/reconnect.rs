//! When an agent dials again. Pure: randomness is an argument.
//!
//! A link that was up for a while is replaced at once, with a little spread so that the agents of an edge that went
//! away do not come as one. A network that is away is tried every few seconds, because people wait for it. A refusal
//! is not made better by asking often.

use std::time::Duration;

use tidegate_tunnel::wire::Retry;

/// A link that lived so long was a good one: what failed before it is forgotten.
pub const GOOD_AFTER: Duration = Duration::from_secs(10);
/// Spread of the first try after a loss.
const FIRST: Duration = Duration::from_millis(250);
/// Never longer without a try while the network may be away.
const LONGEST: Duration = Duration::from_secs(3);
/// First wait after a refusal.
const REFUSED: Duration = Duration::from_secs(30);
/// Longest wait after refusals.
const REFUSED_LONGEST: Duration = Duration::from_secs(5 * 60);
/// Wait where the edge says that it is busy and not for how long.
const BUSY: Duration = Duration::from_secs(5);

/// What a try, or a link, ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// No edge was reached, or a link was lost.
    Network,
    /// An edge does not want this agent as it is: 401, 403, 426.
    Refused,
    /// An edge cannot take it now: 429, 503.
    Busy(Option<Duration>),
    /// An edge said goodbye.
    Bye(Retry),
}

/// How long to wait before the next try. `failures`: how many of the same kind came before this one in a row;
/// `random`: from 0 to below 1.
pub fn wait(ending: Ending, failures: u32, random: f64) -> Duration {
    let random = random.clamp(0.0, 1.0);
    match ending {
        Ending::Network => network(failures, random),
        Ending::Refused => {
            let base = REFUSED
                .saturating_mul(1 << failures.min(4))
                .min(REFUSED_LONGEST);
            base.mul_f64(0.8 + 0.4 * random)
                .clamp(REFUSED, REFUSED_LONGEST)
        }
        Ending::Busy(asked) => {
            let asked = asked.unwrap_or(BUSY).max(network(failures, random));
            asked.mul_f64(1.0 + 0.25 * random).min(REFUSED_LONGEST)
        }
        Ending::Bye(Retry::Now) => FIRST.mul_f64(random),
        Ending::Bye(Retry::After(asked)) => {
            let spread = (asked / 4).min(Duration::from_secs(1)).mul_f64(random);
            asked.saturating_add(spread).min(REFUSED_LONGEST)
        }
        // An administrator who takes it back should not have to visit the agent's machine.
        Ending::Bye(Retry::Never) => REFUSED_LONGEST,
    }
}

fn network(failures: u32, random: f64) -> Duration {
    let base = match failures {
        0 => return FIRST.mul_f64(random),
        1 => Duration::from_millis(500),
        2 => Duration::from_secs(1),
        _ => Duration::from_secs(2),
    };
    base.mul_f64(0.5 + random).min(LONGEST)
}

/// Failures in a row, and what the next wait is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Row {
    failures: u32,
    refused: bool,
}

impl Row {
    /// Counts the ending and tells the wait after it.
    pub fn after(&mut self, ending: Ending, random: f64) -> Duration {
        let refused = ending == Ending::Refused;
        if refused != self.refused {
            *self = Self {
                failures: 0,
                refused,
            };
        }
        let wait = wait(ending, self.failures, random);
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// A link lived for so long.
    pub fn lived(&mut self, time: Duration) {
        if time >= GOOD_AFTER {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_those_of_the_table() {
        let after = |seconds| Ending::Bye(Retry::After(Duration::from_secs(seconds)));
        let busy = |seconds| Ending::Busy(Some(Duration::from_secs(seconds)));
        // Milliseconds with the least, the middle and the greatest random number.
        for (ending, failures, expected) in [
            (Ending::Network, 0, [0, 125, 250]),
            (Ending::Network, 1, [250, 500, 750]),
            (Ending::Network, 2, [500, 1_000, 1_500]),
            (Ending::Network, 3, [1_000, 2_000, 3_000]),
            (Ending::Network, u32::MAX, [1_000, 2_000, 3_000]),
            (Ending::Refused, 0, [30_000, 30_000, 36_000]),
            (Ending::Refused, 1, [48_000, 60_000, 72_000]),
            (Ending::Refused, 3, [192_000, 240_000, 288_000]),
            (Ending::Refused, u32::MAX, [240_000, 300_000, 300_000]),
            (Ending::Busy(None), 0, [5_000, 5_625, 6_250]),
            (busy(60), 9, [60_000, 67_500, 75_000]),
            (busy(86_400), 0, [300_000, 300_000, 300_000]),
            (Ending::Bye(Retry::Now), 5, [0, 125, 250]),
            (after(2), 5, [2_000, 2_250, 2_500]),
            (after(60), 5, [60_000, 60_500, 61_000]),
            (after(1 << 40), 0, [300_000, 300_000, 300_000]),
            (Ending::Bye(Retry::Never), 0, [300_000, 300_000, 300_000]),
        ] {
            for (random, expected) in [0.0, 0.5, 1.0].into_iter().zip(expected) {
                let found = wait(ending, failures, random);
                assert_eq!(
                    found.as_millis(),
                    expected,
                    "{ending:?} {failures} {random}"
                );
            }
        }
    }

    #[test]
    fn a_row_grows_with_failures_of_a_kind_and_ends_with_a_good_link() {
        let mut row = Row::default();
        let mut after = |ending| row.after(ending, 0.5).as_millis();
        let network = [125, 500, 1_000, 2_000, 2_000];
        assert_eq!(network.map(|_| after(Ending::Network)), network);
        assert_eq!([0; 2].map(|_| after(Ending::Refused)), [30_000, 60_000]);
        assert_eq!([0; 2].map(|_| after(Ending::Network)), [125, 500]);
        row.lived(Duration::from_millis(9_999));
        assert_eq!(row.after(Ending::Network, 0.5).as_millis(), 1_000);
        row.lived(GOOD_AFTER);
        assert_eq!(row.after(Ending::Network, 0.5).as_millis(), 125);
    }
}
