//! The vocabulary that the control side and the data plane share.
//!
//! ```text
//! objects ─► translate() ─► Snapshot ─► SnapshotStore ─► data plane ─► Observed
//! ```
//!
//! Plain values only: no I/O, no Kubernetes, no serde. Everything here is already parsed and valid:
//! a hostname is a [`HostName`], a certificate holds its parsed key, a filter holds typed headers.
//! What crosses a boundary (custom resources, admin JSON) has its own type there and is converted.

mod accept_any;
mod backend;
mod certificate;
mod challenge;
mod filter;
mod names;
mod observed;
mod port;
mod reach;
mod rule;
mod secret;
mod snapshot;
mod store;
mod tickets;
mod tunnel;
mod udp;

pub use accept_any::AcceptAny;
pub use backend::{
    ActiveHealthCheck, BackendGroup, CircuitLimits, Cluster, ClusterKey, HashKey, LoadBalancing,
    PassiveHealthCheck, ProxyProtocolVersion, Target, UpstreamProtocol, UpstreamTls,
    WeightedBackend,
};
pub use certificate::{Certificate, CertificateOrigin, Fingerprint};
pub use challenge::{ChallengeAnswers, TlsAlpn01Answer};
pub use filter::{
    BasicAuth, Compression, CompressionAlgorithm, Cors, Filters, ForwardAuth, HeaderEdits,
    IpAccess, Mirror, OriginPattern, PathRewrite, RateLimit, RateLimitKey, Rewrite,
};
pub use names::{HostName, HostPattern, NameError, ObjectName, RouteId, RuleId};
pub use observed::{
    EndpointState, ListenerState, Observed, ObservedCluster, ObservedListener, ObservedPeers,
};
pub use port::{
    ListenError, MappedPort, PortId, PortListener, PortSet, PortSetError, PortState, Transport,
};
pub use reach::{Reach, Special};
pub use rule::{
    Action, AddressParameters, FixedResponse, HeaderMatch, HttpTracker, Limits, PathMatch,
    QueryMatch, Redirect, RedirectPath, RequestMatch, RouteEntry, Rule, StaticFolder, Timeouts,
    ValueMatch,
};
pub use secret::Secret;
pub use snapshot::{
    ClientAuth, ClientAuthMode, HostMap, Hostless, PlainHttp, PlainRules, Snapshot, TlsMode,
    TlsPolicy, TlsVersion, VirtualHost,
};
pub use store::{Published, SnapshotStore};
pub use tickets::{TicketKey, TicketKeys};
pub use tunnel::{
    Agent, AgentId, AgentTarget, AgentTargetError, AgentTls, Carrier, Hop, Mapping, MappingId,
    MappingVerdict, ObservedAgent, ObservedProbe, ObservedSession, ProbeFailure, RequestedMapping,
    StoredKey,
};
pub use udp::{
    UdpListenError, UdpListenerState, UdpRelay, UdpRelayMode, UdpRelayState, UdpUnlisted, UdpWay,
    UdpWayState,
};
