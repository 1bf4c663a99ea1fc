//! What an operator is told when it starts.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use tidegate_acme::engine::Surroundings;
use tidegate_model::HostName;
use tidegate_proxy::Settings;

use crate::operator::ClusterOptions;

/// Everything that is fixed when the operator starts.
#[derive(Debug, Clone)]
pub struct OperatorOptions {
    /// The API server.
    pub cluster: ClusterOptions,
    /// The class of objects that are served.
    pub class: Option<String>,
    /// Name of the Lease.
    pub lease: String,
    /// Service whose endpoints are the replicas.
    pub replicas_service: Option<String>,
    /// Where other replicas reach this one; nowhere if empty.
    pub replicas_listen: Vec<SocketAddr>,
    /// Service by which clients reach the edge.
    pub service: Option<String>,
    /// Addresses of this replica.
    pub own_addresses: Vec<IpAddr>,
    /// Folder of `static` backends.
    pub static_files: PathBuf,
    /// Networks that backends may lead to although they otherwise may not.
    pub allow_addresses: Vec<IpNet>,
    /// Networks that backends may not lead to.
    pub refuse_addresses: Vec<IpNet>,
    /// File with the AcmeIssuer that is the default.
    pub default_issuer: Option<PathBuf>,
    /// Whether the ports are shared with the process of the same Lease on this machine, see [`Handover`].
    pub handover: bool,
    /// How long documents of certificates are kept after these have expired, when their route is gone.
    pub keep_unused: Duration,
    /// Whether Services of UDP trackers are made.
    pub tracker_services: bool,
    /// The state folder; it may be empty at each start.
    pub state: PathBuf,
    /// The data plane.
    pub settings: Settings,
    /// The admin listener, unless it is off.
    pub admin: Option<SocketAddr>,
    /// Host headers that the admin listener answers besides `localhost` and addresses.
    pub admin_hosts: Vec<HostName>,
    /// Who may use the API, if anybody.
    pub accounts: Option<PathBuf>,
    /// Life of certificates of the internal CA.
    pub certificate_lifetime: Duration,
    /// How ACME authorities see this edge, and whom it asks about names.
    pub surroundings: Surroundings,
}
