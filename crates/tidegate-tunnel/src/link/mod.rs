//! A link: HTTP/2 whose client is the edge and whose server is the agent that dialled, and a control stream in it.
//!
//! ```text
//! edge::open ─► EdgeLink.try_send(request) ══ streams ══► agent::serve(service)
//!      │                                                     │
//!      └─ EdgeControl ◄═══ POST /.tunnel/control ═══► AgentControl
//! ```
//!
//! Files: `edge` and `agent` are the two ends, `answer` is what comes to the edge; `control` is the endless pair of bodies; `body` evens out what both
//! ends send, `upload` is what the edge sends of a visitor; `stall` bounds what visitors who stop reading may cost;
//! `lifeline` finds dead links and ends them.

pub mod agent;
mod answer;
pub mod body;
mod control;
pub mod edge;
mod lifeline;
mod stall;
#[cfg(test)]
mod tests;
mod upload;

use http::header::{self, HeaderMap, HeaderName};

use crate::wire::WireError;

/// What an extended CONNECT asks for, among the extensions of its request (RFC 8441 §4).
pub use h2::ext::Protocol;

/// Path of the control stream, which is the first request of every link.
pub const CONTROL_PATH: &str = "/.tunnel/control";

/// Messages that wait for the control stream, each way.
const CONTROL_QUEUE: usize = 64;

/// Why a link ended, or did not come up.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// HTTP/2 could not go on; the other end broke the protocol or the connection is gone.
    #[error("speak HTTP/2 on the link")]
    Http2(#[source] std::sync::Arc<h2::Error>),
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

/// Fields that HTTP/2 does not know (RFC 9113 §8.2.2).
const OF_CONNECTION: [HeaderName; 5] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Removes fields that the codec would refuse, and says the length of a body where it is known. What `Connection`
/// names is whoever fills the head's to remove.
fn complete(headers: &mut HeaderMap, length: Option<u64>) {
    for name in OF_CONNECTION {
        headers.remove(name);
    }
    if headers.get(header::TE).is_some_and(|te| te != "trailers") {
        headers.remove(header::TE);
    }
    if let Some(length) = length {
        headers
            .entry(header::CONTENT_LENGTH)
            .or_insert_with(|| length.into());
    }
}
