//! The solvers against a real name server, real programs and a real web service.

use std::io::Write as _;

pub(crate) mod bind;
mod exec;
#[cfg(feature = "dns-providers")]
mod pdns;
mod pebble;
mod provider;
mod update;
mod webhook;

/// Says that the test of this thread is skipped because a program is missing; under `CI` that is a failure.
/// Not by `eprintln`: the harness swallows what passing tests print.
#[track_caller]
fn missing(program: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "{program} is not installed, and nothing may be skipped under CI: `cargo xtask tools`"
    );
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED {test}: {program} is not installed; `cargo xtask tools` does it"
    );
}

/// Between two looks at a program that is starting.
pub(crate) fn breathe() {
    std::thread::sleep(std::time::Duration::from_millis(20));
}
