//! What a rule says of the BitTorrent tracker behind it.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Says that a rule leads to a BitTorrent tracker.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.port) || has(self.exposure) && self.exposure == 'HTTP'")
    .message("port belongs to exposure HTTP"))]
#[serde(rename_all = "camelCase")]
pub struct Tracker {
    /// `HTTP` or `UDP` (BEP 15). A rule of a UDP tracker has one backend, which is a `service` or an `address`,
    /// and neither matches, filters, timeouts, limits nor health checks; its hostnames are for DNS records and
    /// need no certificate. Default: `HTTP`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["HTTP", "UDP"]))]
    pub type_: Option<String>,

    /// How announces reach an HTTP tracker. `HTTPS`: over TLS through this edge, which says in X-Forwarded-For
    /// who announces. `HTTP`: without TLS through this edge, which says so too; needs no certificate. `Direct`:
    /// without this edge; the rule lists such a tracker and is not served. Either all trackers of one process
    /// are `Direct` or none is. Default: `HTTPS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["HTTPS", "HTTP", "Direct"]))]
    pub exposure: Option<String>,

    /// With `exposure: HTTP`, the port in the announce URL, such as `7070`: that of one of the edge's listeners
    /// for plain HTTP. Default: every one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,

    /// What becomes of the parameters `ip`, `ipv4` and `ipv6` of announces, by which clients claim addresses.
    /// `Pass`: they go on; a tracker that believes them lets clients name anybody. `Strip`: they are taken
    /// out, and every other byte of the target stays. Default: `Pass`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["Pass", "Strip"]))]
    pub address_parameters: Option<String>,

    /// Asks the tracker now and then whether it reads X-Forwarded-For, by announces of a torrent and of peers
    /// that do not exist; the condition `ClientAddressPreserved` tells. Default: it is not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<TrackerProbe>,

    /// How clients reach a UDP tracker; only with type `UDP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpTracker>,
}

/// How clients reach a UDP tracker so that it learns their addresses.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UdpTracker {
    /// Port that clients use. Default: the backend's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<i32>,

    /// Local addresses to listen on, such as floating IPs: `[203.0.113.7, "2001:db8::7"]`. Answers leave from the
    /// address that was asked. Default: every address, IPv4 and IPv6 apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 2, max = 45)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub addresses: Vec<String>,

    /// `Direct`: nothing passes through here; the status says how to let clients reach the tracker. `Service`: on
    /// Kubernetes, a Service of type `LoadBalancer` that keeps addresses (`externalTrafficPolicy: Local`).
    /// `Transparent`: datagrams pass through this process and keep their source address, for which the tracker must
    /// run on the same machine; the status names what is missing. `ProxyProtocol`: an experiment; each datagram
    /// begins with a PROXY protocol header, version 2, which the tracker must read. Nothing is ever relayed under
    /// another address. Default: `Service` on Kubernetes, else `Direct`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["Direct", "Service", "Transparent", "ProxyProtocol"]))]
    pub mode: Option<String>,

    /// Most clients that are relayed at a time; each costs a file descriptor for three minutes. Default: `65536`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_sessions: Option<i32>,

    /// Most connect requests relayed in a second of one IPv4 address or one IPv6 network of length 56; five times
    /// as many at once. Default: `20`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connects_per_second: Option<i32>,
}

/// Whether and how often a tracker is asked which address it takes for a peer's.
#[derive(JsonSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrackerProbe {
    /// Time between two questions, as a duration such as `1h`; at least `1m`. Default: `1h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub interval: Option<String>,
}
