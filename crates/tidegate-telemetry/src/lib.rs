//! How the process speaks about itself: log set-up, error chains, named tasks.
//!
//! Every binary calls [`init`] once. Every other crate only emits `tracing` events, prints errors through
//! [`chain`] and starts long-lived tasks through [`spawn_named`]. No configuration, no metrics of the
//! data plane, no secrets.

mod access;
mod chain;
mod logging;
mod task;

pub use access::{AccessEntry, AccessValue, access_entries};
pub use chain::{Chain, chain};
pub use logging::{InitError, LogFormat, LogOptions, init};
pub use task::spawn_named;
