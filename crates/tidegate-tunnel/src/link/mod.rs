//! A link: HTTP/2 whose client is the edge and whose server is the agent that dialled, and a control stream in it.
//!
//! ```text
//! edge::open ─► EdgeLink.try_send(request) ══ streams ══► agent::serve(service)
//!      │                                                     │
//!      └─ EdgeControl ◄═══ POST /.tunnel/control ═══► AgentControl
//! ```
//!
//! Files: `edge` and `agent` are the two ends; `control` is the endless pair of bodies; `body` evens out what both
//! ends send; `stall` bounds what visitors who stop reading may cost; `lifeline` finds dead links and ends them.

pub mod agent;
pub mod body;
mod control;
pub mod edge;
mod lifeline;
mod stall;
#[cfg(test)]
mod tests;

use crate::wire::WireError;

/// Path of the control stream, which is the first request of every link.
pub const CONTROL_PATH: &str = "/.tunnel/control";

/// Messages that wait for the control stream, each way.
const CONTROL_QUEUE: usize = 64;

/// Why a link ended, or did not come up.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// HTTP/2 could not go on; the other end broke the protocol or the connection is gone.
    #[error("speak HTTP/2 on the link")]
    Http2(#[source] std::sync::Arc<hyper::Error>),
    /// No byte arrived for [`crate::settings::DEAD_AFTER`].
    #[error("nothing arrives on the link")]
    Dead,
    /// The control stream did not come up in time.
    #[error("the control stream does not come up in time")]
    NoHello,
    /// The agent answers to the control stream with another status.
    #[error("the agent refuses the control stream with status {0}")]
    ControlRefused(http::StatusCode),
    /// The first message is another than Hello, or that of another agent than the handshake was for.
    #[error("the agent's Hello does not fit its handshake")]
    Hello,
    /// The control stream cannot be read.
    #[error("read the control stream")]
    Control(#[source] std::sync::Arc<WireError>),
    /// The other end has closed the link.
    #[error("the link is closed by the other end")]
    Closed,
    /// This end has ended the link.
    #[error("the link is ended")]
    Cut,
}

impl LinkError {
    /// One word for logs, statuses and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Http2(_) => "LinkBroken",
            Self::Dead => "LinkDead",
            Self::NoHello => "NoHello",
            Self::ControlRefused(_) | Self::Hello | Self::Control(_) => "ControlStreamBroken",
            Self::Closed => "LinkClosed",
            Self::Cut => "LinkEnded",
        }
    }
}
