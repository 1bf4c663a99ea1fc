//! Replicas of one edge among each other: each dials every other one, so that a request finds its agent whichever
//! replica the agent is connected to.
//!
//! ```text
//! visitor ─► this replica ══ channel: a link over TLS with client certificates ══► the agent's replica ─► agent
//!              `dial`                                                               `listen`, `serve`
//! ```
//!
//! The one who dials is the edge's end of the channel and asks; the one who listens answers with links that end at it,
//! never by asking a third one. All of it runs on a thread of its own.

mod dial;
mod identity;
mod listen;
mod metrics;
mod serve;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_tunnel::hub::Rebalance;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::worker::Shared;
pub use identity::{PeerIdentity, PeerIdentityError};
pub(crate) use metrics::{ForwardedMetric, ReplicaMetrics};

/// How this replica is one among several.
#[derive(Debug, Clone)]
pub struct PeeringSettings {
    /// Addresses at which the others reach this one. Port 0 takes any free port.
    pub listen: Vec<SocketAddr>,
    /// Who this one is; new connections use what is there when they begin.
    pub identity: watch::Receiver<Arc<PeerIdentity>>,
}

/// Another replica.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// Its name, which its certificate has to have.
    pub name: String,
    /// Where it listens for others.
    pub address: SocketAddr,
}

/// How often links are counted.
const LOOK: Duration = Duration::from_secs(1);

/// Until the edge is cut.
pub(crate) async fn run(
    shared: Arc<Shared>,
    settings: PeeringSettings,
    sockets: Vec<TcpListener>,
    peers: watch::Receiver<Vec<Peer>>,
) {
    let cut = shared.cut.clone();
    for socket in sockets {
        let identity = settings.identity.clone();
        let accepting = listen::accept(Arc::clone(&shared), identity, socket);
        shared.links.spawn(accepting);
    }
    let all = async {
        tokio::join!(
            dial::follow(&shared, &settings.identity, peers),
            rebalance(&shared),
        )
    };
    let _ = cut.run_until_cancelled(all).await;
}

async fn rebalance(shared: &Shared) {
    let mut balance = Rebalance::new(Instant::now());
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        if let Some(agent) = balance.look(&shared.hub, Instant::now()) {
            tracing::info!(%agent, "too many links end here; an agent is asked to move one");
        }
    }
}
