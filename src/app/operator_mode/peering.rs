//! Replicas that pass on what is for agents: who they are, and by which certificate this one is known, told to the data
//! plane.
//!
//! ```text
//! EndpointSlices ─► World::other_replicas ─► set_peers
//! shared root ────► Certifier ─────────────► PeerIdentity
//! ```
//!
//! Both are known from what was watched, so that a lost API server changes nothing. Until the root is known this replica
//! shows a certificate that nobody believes, and knows nobody.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_model::ObjectName;
use tidegate_proxy::{Peer, PeerIdentity, PeerIdentityError, PeeringSettings, RunningEdge};
use tidegate_telemetry::{chain, spawn_named};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::OperatorOptions;
use crate::app::process::RunError;
use crate::operator::documents::DocumentStore;
use crate::operator::replica_ca::{Certifier, ReplicaCertificate};
use crate::operator::{Cluster, FoundReplica, World};

/// Quiet time before it is looked who is there: pods come and go in several steps.
const HOLD_OFF: Duration = Duration::from_millis(50);

/// What is needed to be one of several replicas.
pub(super) struct Peering {
    service: ObjectName,
    replica: String,
    own: Vec<IpAddr>,
    identity: watch::Sender<Arc<PeerIdentity>>,
}

impl Peering {
    /// Has the data plane listen for other replicas. None where these are not to pass anything on.
    pub(super) fn prepare(
        options: &mut OperatorOptions,
        cluster: &Cluster,
    ) -> Result<Option<Self>, RunError> {
        let Some(service) = &options.replicas_service else {
            if !options.replicas_listen.is_empty() {
                tracing::warn!(
                    "--replicas-listen without --replicas-service: other replicas cannot be found"
                );
            }
            return Ok(None);
        };
        if options.replicas_listen.is_empty() {
            return Ok(None);
        }
        let replica = cluster.identity.clone();
        let nobody = ReplicaCertificate::of_nobody(&replica, SystemTime::now())
            .map_err(|error| RunError::Peering(Box::new(error)))?;
        let nobody = identity_of(&nobody).map_err(|error| RunError::Peering(Box::new(error)))?;
        let identity = watch::Sender::new(Arc::new(nobody));
        options.settings.peering = Some(PeeringSettings {
            listen: options.replicas_listen.clone(),
            identity: identity.subscribe(),
        });
        Ok(Some(Self {
            service: ObjectName::new(cluster.namespace.as_str(), service.as_str()),
            replica,
            own: options.own_addresses.clone(),
            identity,
        }))
    }

    /// Keeps the edge told until the token is cancelled.
    pub(super) fn begin(
        self,
        edge: RunningEdge,
        world: Arc<World>,
        store: Arc<DocumentStore>,
        (stop, tasks): (&CancellationToken, &TaskTracker),
    ) {
        if let Some(address) = edge.peer_address() {
            tracing::info!(listener = "replicas", %address, "listening");
        }
        let certifier = Certifier {
            store,
            world: Arc::clone(&world),
            replica: self.replica.clone(),
            issued: watch::Sender::default(),
        };
        let certificate = certifier.issued.subscribe();
        let certifying = certifier.run(stop.clone());
        spawn_named("replica-certificate", tasks.track_future(certifying));
        let stop = stop.clone();
        let telling = async move {
            let telling = self.tell(&edge, &world, certificate);
            stop.run_until_cancelled(telling).await;
        };
        spawn_named("replicas", tasks.track_future(telling));
    }

    async fn tell(
        self,
        edge: &RunningEdge,
        world: &World,
        mut certificate: watch::Receiver<Option<Arc<ReplicaCertificate>>>,
    ) {
        let mut changes = world.changes();
        let mut shown: Option<Arc<ReplicaCertificate>> = None;
        let mut told = Vec::new();
        loop {
            changes.mark_unchanged();
            let issued = certificate.borrow_and_update().clone();
            if let Some(issued) = issued {
                if !shown.as_ref().is_some_and(|it| Arc::ptr_eq(it, &issued)) {
                    self.show(&issued);
                    shown = Some(issued);
                }
                let peers = self.others(world);
                if peers != told {
                    let names: Vec<&str> = peers.iter().map(|it| &*it.name).collect();
                    tracing::info!(replicas = names.join(","), "other replicas of this edge");
                    told.clone_from(&peers);
                    edge.set_peers(peers);
                }
            }
            tokio::select! {
                signed = certificate.changed() => if signed.is_err() { return },
                more = changes.changed() => {
                    if more.is_err() {
                        return;
                    }
                    tokio::time::sleep(HOLD_OFF).await;
                }
            }
        }
    }

    fn others(&self, world: &World) -> Vec<Peer> {
        let found = world.other_replicas(&self.service, &self.replica, &self.own);
        let peer = |it: FoundReplica| Peer {
            name: it.name,
            address: it.address,
        };
        found.into_iter().map(peer).collect()
    }

    fn show(&self, certificate: &ReplicaCertificate) {
        match identity_of(certificate) {
            Ok(identity) => {
                self.identity.send_replace(Arc::new(identity));
            }
            Err(error) => {
                tracing::error!(error = %chain(&error), "other replicas cannot know this one by its certificate");
            }
        }
    }
}

fn identity_of(certificate: &ReplicaCertificate) -> Result<PeerIdentity, PeerIdentityError> {
    PeerIdentity::new(
        vec![certificate.certificate.clone()],
        certificate.key.clone_key(),
        certificate.root.clone(),
    )
}
