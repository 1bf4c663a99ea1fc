//! The state of a worker and what all workers share: known to every phase, knowing none of them.

use std::fmt;
use std::sync::Arc;

use tidegate_model::SnapshotStore;
use tidegate_tunnel::hub::Hub;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Settings;
use crate::body::Body;
use crate::filters::basic_auth::Authenticator;
use crate::filters::concurrency::InFlight;
use crate::filters::rate_limit::RateLimits;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::ports::Ports;
use crate::tls::TlsConfigs;
use crate::upstream::Upstreams;
use crate::upstream::watch::Clusters;

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) store: Arc<SnapshotStore>,
    pub(crate) tls: TlsConfigs,
    pub(crate) clusters: Arc<Clusters>,
    /// Agents and their links.
    pub(crate) hub: Hub<Body>,
    pub(crate) metrics: Metrics,
    /// Ports that lead to agents.
    pub(crate) ports: Arc<Ports>,
    /// The port that clients use for HTTPS; None without such a listener.
    pub(crate) https_port: Option<u16>,
    pub(crate) rate_limits: RateLimits,
    pub(crate) authenticator: Authenticator,
    /// Open connections per client address.
    pub(crate) connections: Arc<InFlight>,
    /// Who connected lately.
    pub(crate) peers: Peers,
    /// Requests in flight per client address and rule.
    pub(crate) requests: Arc<InFlight>,
    /// No new connections; open ones are asked to go.
    pub(crate) draining: CancellationToken,
    /// Whatever is still open ends now.
    pub(crate) cut: CancellationToken,
    /// Connections and upgraded streams of all workers.
    pub(crate) tasks: TaskTracker,
    /// Links of agents and channels of replicas, which live as long as something else may need them.
    pub(crate) links: TaskTracker,
    /// What other replicas have begun here.
    pub(crate) forwarded: TaskTracker,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// What one worker has for itself.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) upstreams: Upstreams,
}
