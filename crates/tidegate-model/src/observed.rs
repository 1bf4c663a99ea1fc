//! What is really so: the data plane's report to status, admin API and people.

use std::net::{IpAddr, SocketAddr};

use crate::{ClusterKey, ObservedAgent};

/// A moment's view of the data plane.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Bound listeners.
    pub listeners: Vec<ObservedListener>,
    /// Clusters in use.
    pub clusters: Vec<ObservedCluster>,
    /// Open client connections.
    pub connections: u64,
    /// Requests in flight.
    pub requests: u64,
    /// Who connected lately.
    pub peers: ObservedPeers,
    /// Agents that are known to be connected or were, sorted by id.
    pub agents: Vec<ObservedAgent>,
}

/// Who connected to the listeners within the last ten to twenty minutes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedPeers {
    /// Connections from addresses of the internet, without PROXY header.
    pub public: u64,
    /// Connections from addresses of private networks, without PROXY header. Trusted proxies do not count.
    pub private: u64,
    /// Addresses of those, sorted; not all if there are [`Self::ADDRESSES`].
    pub private_addresses: Vec<IpAddr>,
    /// Connections that began with a PROXY header, which was read.
    pub proxied: u64,
    /// Connections of trusted proxies without the PROXY header that is read from them.
    pub unproxied: u64,
    /// Connections that began with a PROXY header where none is read.
    pub unexpected: u64,
}

impl ObservedPeers {
    /// How many addresses are remembered.
    pub const ADDRESSES: usize = 16;

    /// Adds an address, unless there are enough.
    pub fn remember(&mut self, address: IpAddr) {
        if self.private_addresses.len() < Self::ADDRESSES
            && let Err(place) = self.private_addresses.binary_search(&address)
        {
            self.private_addresses.insert(place, address);
        }
    }
}

/// A bound listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedListener {
    /// `http` or `https`.
    pub name: String,
    /// The address it is bound to.
    pub address: SocketAddr,
    /// Whether it accepts.
    pub state: ListenerState,
}

/// Whether a listener accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerState {
    /// New connections are taken.
    Accepting,
    /// Shutting down.
    Draining,
}

/// A cluster in use.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedCluster {
    /// Identity.
    pub key: ClusterKey,
    /// What people call it.
    pub name: String,
    /// Its addresses; empty while unresolved.
    pub endpoints: Vec<EndpointState>,
    /// Why the addresses could not be found, if so.
    pub resolve_error: Option<String>,
}

/// One address of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointState {
    /// The address.
    pub address: SocketAddr,
    /// Whether requests are sent there.
    pub healthy: bool,
    /// Requests in flight there.
    pub active_requests: u64,
    /// The last failure, if it is not healthy.
    pub last_error: Option<String>,
}
