//! HTTP/2 on the `h2` crate, without a task or a channel for each stream: what the edge's listeners and the links of
//! agents have in common.
//!
//! [`Driver`] is a server's connection whose streams run in the connection's own task (docs/adr/0024), [`Outgoing`]
//! sends a body, [`Incoming`] receives one, [`StreamIo`] is a stream that carries bytes (extended CONNECT, RFC 8441).

mod driver;
mod incoming;
mod io;
mod outgoing;
mod streams;
#[cfg(test)]
mod tests;
mod wakes;

pub use driver::{Driver, Ended};
pub use incoming::Incoming;
pub use io::StreamIo;
pub use outgoing::{Outgoing, SendBodyError, reason_of};
