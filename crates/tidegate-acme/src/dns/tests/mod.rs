//! The solvers against a real name server, real programs and a real web service.

pub(crate) mod bind;
mod exec;
#[cfg(feature = "dns-providers")]
mod pdns;
mod pebble;
mod provider;
mod update;
mod webhook;

/// Between two looks at a program that is starting.
pub(crate) fn breathe() {
    std::thread::sleep(std::time::Duration::from_millis(20));
}
