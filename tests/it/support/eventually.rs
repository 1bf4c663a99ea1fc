//! The one place where a test lets time pass: polling until a condition holds, with a deadline.

use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Polls until `check` returns a value; panics with what it last said when the time is over.
#[track_caller]
pub(crate) fn eventually<T>(
    what: &str,
    patience: Duration,
    mut check: impl FnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match check() {
            Ok(value) => return value,
            Err(last) if Instant::now() >= deadline => {
                panic!("{what} did not happen within {patience:?}; last: {last}")
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// A breath between two rounds of a load that must not take the whole machine.
pub(crate) fn breathe() {
    std::thread::sleep(POLL);
}
