//! What edge and agent say to each other on the control stream, and how it stands in bytes.
//!
//! ```text
//! frame = u32 length, big-endian, at most 1 MiB | CBOR: [kind, {field number: value, …}]
//! ```
//!
//! The compatibility rule: kinds and fields have numbers, which are never used again. A kind or a field that is not
//! known is passed over; a new field is optional for ever, and what it says may be ignored. Nothing here is checked
//! beyond its form: names, addresses and identifiers are the other end's words.

mod convert;
mod frame;
mod message;
#[cfg(test)]
mod tests;

pub use convert::{UnknownMapping, mappings, proxy_protocol};
pub use frame::{FrameReader, MAX_FRAME};
pub use message::{
    AgentDrain, AgentTls, Bye, Drain, DrainDone, Hello, MAX_ITEMS, Mapping, MappingCount, Mappings,
    MappingsReady, Ping, Pong, Probe, ProbeResult, Refused, Registration, Registrations, Request,
    Requested, Retry, Stats, Verdict, Verdicts, Welcome,
};

use bytes::Bytes;
use minicbor::{Decoder, Encoder};

/// Why bytes of a control stream are no message, or a message has no bytes.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The length of a frame is more than [`MAX_FRAME`].
    #[error("a control frame of {0} bytes is longer than {MAX_FRAME}")]
    TooLong(usize),
    /// The frame holds something else than a kind and its fields.
    #[error("read a control message")]
    Decode(#[source] minicbor::decode::Error),
    /// Never happens: messages are written to memory.
    #[error("write a control message")]
    Encode(String),
}

/// Something that one end says to the other.
pub trait Message: Sized + Send + 'static {
    /// The message in its frame.
    ///
    /// # Errors
    /// [`WireError::TooLong`]
    fn encode(&self) -> Result<Bytes, WireError>;

    /// Reads the content of a frame; None when its kind is not known here.
    ///
    /// # Errors
    /// [`WireError::Decode`]
    fn decode(frame: &[u8]) -> Result<Option<Self>, WireError>;
}

macro_rules! messages {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $kind:literal $variant:ident($body:ty),)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant($body),)*
        }

        impl Message for $name {
            fn encode(&self) -> Result<Bytes, WireError> {
                let mut encoder = Encoder::new(frame::open());
                let written = match self {
                    $(Self::$variant(body) => encoder
                        .array(2)
                        .and_then(|it| it.u32($kind))
                        .and_then(|it| it.encode(body))
                        .map(|_| ()),)*
                };
                written.map_err(|error| WireError::Encode(error.to_string()))?;
                frame::close(encoder.into_writer())
            }

            fn decode(frame: &[u8]) -> Result<Option<Self>, WireError> {
                let mut decoder = Decoder::new(frame);
                let read = message::kind(&mut decoder).and_then(|kind| match kind {
                    $($kind => decoder.decode().map(|body| Some(Self::$variant(body))),)*
                    _ => Ok(None),
                });
                read.map_err(WireError::Decode)
            }
        }

        $(impl From<$body> for $name {
            fn from(body: $body) -> Self {
                Self::$variant(body)
            }
        })*
    };
}

messages! {
    /// What the edge says.
    FromEdge {
        /// Who the edge is, first of all.
        0 Welcome(Welcome),
        /// Everything that may be asked of the agent; replaces what was said before.
        1 Mappings(Mappings),
        /// What became of what the agent asked for.
        2 Verdicts(Verdicts),
        /// The edge will end this link: dial another first.
        3 Drain(Drain),
        /// Connect to a mapping's target and tell how it went.
        4 Probe(Probe),
        /// The link ends now.
        5 Bye(Bye),
        /// Answered at once by [`FromAgent::Pong`].
        6 Ping(Ping),
    }
}

messages! {
    /// What the agent says.
    FromAgent {
        /// Who the agent is, first of all.
        0 Hello(Hello),
        /// Everything that the agent wishes to be reachable; replaces what was said before.
        1 Request(Request),
        /// The agent has taken over a set of mappings.
        2 MappingsReady(MappingsReady),
        /// The replacement for this link is up.
        3 DrainDone(DrainDone),
        /// The agent will end this link.
        4 Drain(AgentDrain),
        /// How a probe went.
        5 ProbeResult(ProbeResult),
        /// Counters of the agent.
        6 Stats(Stats),
        /// Answer to [`FromEdge::Ping`].
        7 Pong(Pong),
        /// Agents that a replica has links to: said by the other end of a channel between replicas.
        8 Registrations(Registrations),
    }
}
