//! Relays of UDP trackers: what the control side asks for, and what became of it.

use std::net::{IpAddr, SocketAddr};

use crate::{ListenError, RuleId, Target};

/// A UDP tracker (BEP 15) whose datagrams pass through this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpRelay {
    /// Which rule asks for it; no two relays have the same.
    pub id: RuleId,
    /// Local addresses to listen on; every one, in both families, if empty.
    pub addresses: Vec<IpAddr>,
    /// Port to listen on.
    pub port: u16,
    /// The tracker. Of several addresses of a family one is used.
    pub backend: Target,
    /// How the tracker learns who asks.
    pub mode: UdpRelayMode,
    /// Most clients at a time.
    pub max_sessions: usize,
    /// Most connect requests in a second of one network (IPv4 address, IPv6 /56).
    pub connects_per_second: u32,
}

/// How a tracker behind a relay learns the addresses of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UdpRelayMode {
    /// Datagrams keep their source address and port (`IP_TRANSPARENT`).
    Transparent,
    /// Each datagram begins with a PROXY protocol header, version 2.
    ProxyProtocol,
}

/// What became of a relay. Holds nothing that changes with traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpRelayState {
    /// Which one.
    pub id: RuleId,
    /// Where it listens or should.
    pub listeners: Vec<UdpListenerState>,
    /// The ways to the tracker, one for each family that it has an address of.
    pub ways: Vec<UdpWay>,
    /// Why the tracker's name has no address, if so.
    pub resolve_error: Option<String>,
}

/// An address that a relay listens on or should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpListenerState {
    /// The address asked for.
    pub address: SocketAddr,
    /// What keeps it from listening.
    pub error: Option<UdpListenError>,
}

/// Why nothing can be received at an address. It is tried again every few seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UdpListenError {
    /// Of the socket.
    Socket(ListenError),
    /// The tracker has no address of this family, so that nothing could be passed on.
    NoBackend,
}

/// The way to one address of a tracker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpWay {
    /// The tracker's address.
    pub backend: SocketAddr,
    /// Whether it preserves the addresses of clients, as was found by trying.
    pub state: UdpWayState,
}

/// Whether a way preserves the addresses of clients. Nothing is relayed but on those that do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UdpWayState {
    /// Not known yet.
    Trying,
    /// The tracker lists another's address as it is, and its answers to that address come back here.
    Preserved,
    /// The answers come back here; which address the tracker sees could not be found out.
    Unlisted(UdpUnlisted),
    /// It was open, but lately the tracker has answered nobody.
    Silent,
    /// The tracker answers nobody.
    NoAnswer,
    /// The process may not send from addresses that are not its own.
    NotPermitted,
    /// The tracker answers this machine, but its answers to clients do not come back here.
    NoWayBack,
    /// The tracker answers, but not if a PROXY protocol header comes first.
    HeaderNotRead,
    /// The answers come back here, but the tracker takes the client for somebody else.
    Replaced {
        /// As whom it was announced.
        announced: IpAddr,
        /// As whom the tracker lists it.
        seen: IpAddr,
    },
}

/// Why a tracker does not tell which address it sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UdpUnlisted {
    /// It refuses announces of a torrent that nobody knows.
    Refused,
    /// It answers connect requests, but no announces.
    Unanswered,
    /// It does not tell one announcer of the other.
    NoPeers,
}

impl UdpWayState {
    /// Whether datagrams are passed on.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Preserved | Self::Unlisted(_) | Self::Silent)
    }
}
