//! The content of each message. Numbers of fields are never used again; a new field is an `Option` or has a default.

use std::time::Duration;

use minicbor::bytes::ByteVec;
use minicbor::data::Type;
use minicbor::decode::Error;
use minicbor::{Decode, Decoder, Encode};

/// Most items of a list: mappings of an agent and all lists that follow from them. The edge has less.
pub const MAX_ITEMS: usize = 16 * 1024;

/// Reads the begin of a message.
pub(super) fn kind(decoder: &mut Decoder<'_>) -> Result<u32, Error> {
    match decoder.array()? {
        Some(length) if length < 2 => Err(Error::message("a message is a kind and its fields")),
        _ => decoder.u32(),
    }
}

/// A list of at most [`MAX_ITEMS`]. Nothing is kept for items that are only announced.
fn list<'b, C, T: Decode<'b, C>>(
    decoder: &mut Decoder<'b>,
    context: &mut C,
) -> Result<Vec<T>, Error> {
    let announced = decoder.array()?;
    let mut items = Vec::new();
    loop {
        match announced {
            Some(length) if items.len() as u64 >= length => break,
            None if decoder.datatype()? == Type::Break => {
                decoder.skip()?;
                break;
            }
            _ if items.len() >= MAX_ITEMS => return Err(Error::message("the list is too long")),
            _ => items.push(T::decode(decoder, context)?),
        }
    }
    Ok(items)
}

/// Who the edge is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Welcome {
    /// Version of the protocol that was agreed on.
    #[n(0)]
    pub protocol: u32,
    /// Version of the edge's program.
    #[n(1)]
    pub edge_version: String,
    /// Which replica of the edge this is: links of an agent should end at several.
    #[n(2)]
    pub replica: String,
    /// How many replicas there are.
    #[n(3)]
    pub replicas: u32,
    /// The link's name in logs and statuses.
    #[n(4)]
    pub session: String,
}

/// All that may be asked of the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Mappings {
    /// Counts the sets; [`MappingsReady::version`] names it.
    #[n(0)]
    pub version: u64,
    /// The full set.
    #[cbor(n(1), default, decode_with = "list")]
    pub mappings: Vec<Mapping>,
}

/// A service that the agent may be asked for. What the agent does not understand of one it refuses, that one alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Mapping {
    /// 16 hexadecimal digits.
    #[n(0)]
    pub id: String,
    /// URL of the target.
    #[n(1)]
    pub target: String,
    /// HTTP version: 0 is by ALPN or HTTP/1.1, 1 is HTTP/1.1, 2 is HTTP/2.
    #[cbor(n(2), default)]
    pub protocol: u8,
    /// TLS to the target.
    #[n(3)]
    pub tls: Option<AgentTls>,
    /// Version of the PROXY protocol that the target expects.
    #[n(4)]
    pub proxy_protocol: Option<u8>,
    /// For DNS, TCP and TLS together.
    #[cbor(n(5), default)]
    pub connect_timeout_ms: u64,
    /// Whose it is, for people.
    #[cbor(n(6), default, decode_with = "list")]
    pub names: Vec<String>,
}

/// TLS to a target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct AgentTls {
    /// Sent and verified; the target's host when None.
    #[n(0)]
    pub server_name: Option<String>,
    /// Trusted CAs; the system's when empty.
    #[cbor(n(1), default, decode_with = "list")]
    pub ca_der: Vec<ByteVec>,
    /// Accept any certificate.
    #[cbor(n(2), default)]
    pub insecure_skip_verify: bool,
}

/// What became of what the agent asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Verdicts {
    /// [`Request::version`].
    #[n(0)]
    pub version: u64,
    /// One for each that was asked for.
    #[cbor(n(1), default, decode_with = "list")]
    pub verdicts: Vec<Verdict>,
}

/// What became of one wish.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Verdict {
    /// [`Requested::name`].
    #[n(0)]
    pub name: String,
    /// Whether it is served.
    #[n(1)]
    pub accepted: bool,
    /// One word.
    #[cbor(n(2), default)]
    pub reason: String,
    /// What was found and how to mend it.
    #[cbor(n(3), default)]
    pub message: String,
}

/// The edge ends this link soon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Drain {
    /// Time that streams have to end.
    #[n(0)]
    pub deadline_ms: u64,
    /// The agent dials after a random part of this, so that not all do at once.
    #[cbor(n(1), default)]
    pub jitter_ms: u64,
    /// One word.
    #[cbor(n(2), default)]
    pub reason: String,
}

/// Try a target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Probe {
    /// Comes back in [`ProbeResult::id`].
    #[n(0)]
    pub id: u64,
    /// [`Mapping::id`].
    #[n(1)]
    pub mapping: String,
}

/// When an agent may dial again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// At once.
    Now,
    /// After this time.
    After(Duration),
    /// Not until its configuration is another.
    Never,
}

/// The link ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Bye {
    /// [`Bye::retry`]: never when None.
    #[n(0)]
    pub retry_after_ms: Option<u64>,
    /// One word.
    #[cbor(n(1), default)]
    pub reason: String,
    /// For people.
    #[cbor(n(2), default)]
    pub message: String,
}

impl Bye {
    /// A farewell.
    pub fn new(retry: Retry, reason: &str, message: &str) -> Self {
        Self {
            retry_after_ms: match retry {
                Retry::Now => Some(0),
                Retry::After(time) => Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
                Retry::Never => None,
            },
            reason: reason.to_owned(),
            message: message.to_owned(),
        }
    }

    /// When the agent may dial again.
    pub fn retry(&self) -> Retry {
        match self.retry_after_ms {
            None => Retry::Never,
            Some(0) => Retry::Now,
            Some(time) => Retry::After(Duration::from_millis(time)),
        }
    }
}

/// Is somebody there?
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ping {
    /// Comes back.
    #[n(0)]
    pub token: u64,
}

/// Who the agent is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// Version of the agent's program.
    #[n(0)]
    pub version: String,
    /// The process: the same 32 hexadecimal digits as in the handshake.
    #[n(1)]
    pub instance: String,
    /// Which of the process's links, as in the handshake.
    #[n(2)]
    pub link: u8,
    /// Operating system.
    #[cbor(n(3), default)]
    pub os: String,
    /// Kind of processor.
    #[cbor(n(4), default)]
    pub arch: String,
    /// What the agent knows beyond the first version of the protocol.
    #[cbor(n(5), default, decode_with = "list")]
    pub features: Vec<String>,
}

/// All that the agent wishes to be reachable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Request {
    /// Counts the sets; [`Verdicts::version`] names it.
    #[n(0)]
    pub version: u64,
    /// The full set.
    #[cbor(n(1), default, decode_with = "list")]
    pub mappings: Vec<Requested>,
}

/// One wish.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Requested {
    /// Unique among what the agent asks for.
    #[n(0)]
    pub name: String,
    /// The name that clients ask for.
    #[n(1)]
    pub hostname: String,
    /// URL of the service as the agent reaches it.
    #[n(2)]
    pub target: String,
    /// The agent accepts any certificate of the target.
    #[cbor(n(3), default)]
    pub insecure_skip_verify: bool,
    /// For people.
    #[n(4)]
    pub description: Option<String>,
    /// The port that clients connect to; the hostname is empty then.
    #[n(5)]
    pub port: Option<u16>,
    /// Version of the PROXY protocol that the target expects.
    #[n(6)]
    pub proxy_protocol: Option<u8>,
}

/// A set of mappings is in force at the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct MappingsReady {
    /// [`Mappings::version`].
    #[n(0)]
    pub version: u64,
    /// Mappings that the agent cannot or may not serve.
    #[cbor(n(1), default, decode_with = "list")]
    pub refused: Vec<Refused>,
}

/// A mapping that the agent does not serve.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Refused {
    /// [`Mapping::id`].
    #[n(0)]
    pub id: String,
    /// One word.
    #[cbor(n(1), default)]
    pub reason: String,
    /// For people.
    #[cbor(n(2), default)]
    pub message: String,
}

/// The replacement for this link is up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DrainDone {}

/// The agent ends this link soon: no new requests, please.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct AgentDrain {
    /// One word.
    #[cbor(n(0), default)]
    pub reason: String,
}

/// How a probe went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ProbeResult {
    /// [`Probe::id`].
    #[n(0)]
    pub id: u64,
    /// Whether the target answered.
    #[n(1)]
    pub ok: bool,
    /// One word.
    #[cbor(n(2), default)]
    pub reason: String,
    /// For people.
    #[cbor(n(3), default)]
    pub message: String,
    /// Until it was connected.
    #[n(4)]
    pub connect_us: Option<u64>,
    /// Until it had answered.
    #[n(5)]
    pub total_us: Option<u64>,
}

/// Counters of the agent since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Stats {
    /// Requests at targets now, over all links.
    #[cbor(n(0), default)]
    pub in_flight: u64,
    /// Requests so far.
    #[cbor(n(1), default)]
    pub requests: u64,
    /// Requests that no target answered.
    #[cbor(n(2), default)]
    pub failed: u64,
    /// The same for each mapping.
    #[cbor(n(3), default, decode_with = "list")]
    pub mappings: Vec<MappingCount>,
}

/// Counters of one mapping.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct MappingCount {
    /// [`Mapping::id`].
    #[n(0)]
    pub id: String,
    /// Requests at the target now.
    #[cbor(n(1), default)]
    pub in_flight: u64,
    /// Requests so far.
    #[cbor(n(2), default)]
    pub requests: u64,
    /// Requests that it did not answer.
    #[cbor(n(3), default)]
    pub failed: u64,
}

/// Agents that a replica of the edge has links to; said on the channel between two replicas, never by an agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Registrations {
    /// All of them, or the next ones; replaces what was said before once the set is whole.
    #[cbor(n(0), default, decode_with = "list")]
    pub agents: Vec<Registration>,
    /// The set goes on in the next message.
    #[cbor(n(1), default)]
    pub more: bool,
    /// Links of all agents there.
    #[cbor(n(2), default)]
    pub links: u32,
    /// The replica ends soon and wants no more of them.
    #[cbor(n(3), default)]
    pub draining: bool,
}

/// A process of an agent, as a replica has links to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Registration {
    /// Namespace and name.
    #[n(0)]
    pub agent: String,
    /// The process, as in its handshakes.
    #[n(1)]
    pub instance: String,
    /// [`Mapping::id`] of those that may be asked for.
    #[cbor(n(2), default, decode_with = "list")]
    pub mappings: Vec<String>,
}

/// Somebody is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pong {
    /// [`Ping::token`].
    #[n(0)]
    pub token: u64,
}
