//! Real programs behind the edge and real clients in front of it, as people run them.
//!
//! What a test needs and the machine lacks is skipped loudly, and a failure under `CI`;
//! `cargo xtask tools` installs it all.

mod curl;
mod fastapi;
pub(crate) mod git;
mod grpc;
mod registry;
mod tracker;
