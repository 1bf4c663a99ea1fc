//! What is really so: the data plane's report to status, admin API and people.

use std::net::SocketAddr;

use crate::ClusterKey;

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
