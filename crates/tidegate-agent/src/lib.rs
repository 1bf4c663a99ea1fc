//! The agent: serves through an edge what only the agent's machine can reach.
//!
//! ```text
//! visitor ─► edge ══ link, dialled by the agent ══► agent ─► upstream ─► service in the agent's network
//! ```
//!
//! `config` is what it is told to do; `dial` makes a connection into bytes between agent and edge, `link` runs one link
//! on them, `keeper` keeps it up; `table` and `upstream` answer requests; `board` and `status` tell how it is doing;
//! `run` starts all of it. Protocol and link are those of `tidegate-tunnel`.
//!
//! Where a request goes is decided by its mapping alone. The agent listens on loopback only, and for its status only.

mod board;
pub mod cli;
pub mod config;
mod dial;
pub mod doctor;
mod keeper;
mod link;
pub mod reconnect;
pub mod run;
pub mod status;
mod stream;
mod system;
mod table;
#[cfg(test)]
mod tests;
mod trust;
mod upstream;

pub use board::{
    ErrorView, LinkView, MappingView, Phase, RefusedView, RequestedView, StatusView, UpView,
};
pub use dial::{DialError, ProxyError};
pub use trust::TrustError;
