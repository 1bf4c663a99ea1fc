//! How an operator gets to its ports: they are bound at its start and served later, or taken over from the process
//! that serves on them.
//!
//! In both ways nothing is accepted before it can be served well.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidegate_model::SnapshotStore;
use tidegate_proxy::{Edge, RunningEdge, Settings};
use tidegate_telemetry::spawn_named;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::handover::{Handover, Sockets};
use super::process::{self, RunError};
use crate::admin::Admin;

/// A pod that ends goes on accepting until nobody has come for this long: whoever sends traffic to it hears of its end
/// when it can (see [`linger`]).
const QUIET: Duration = Duration::from_secs(1);

/// What a replica will listen on.
pub(super) struct Opening {
    /// Addresses by listener name.
    pub(super) listeners: Vec<(&'static str, SocketAddr)>,
    /// That of the admin listener.
    pub(super) admin_address: Option<SocketAddr>,
    ports: Ports,
    store: Arc<SnapshotStore>,
    settings: Settings,
    admin: Admin,
    /// Ends what another process has taken over.
    handed_on: CancellationToken,
    tasks: TaskTracker,
}

enum Ports {
    /// They are its own, and the kernel queues who comes too early.
    Bound(Box<Edge>),
    /// Another process may serve on them.
    Shared(Handover),
}

impl Opening {
    /// Binds what is this process's alone. `admin` is answered from now on, with `handover` by its socket in the state
    /// folder only.
    pub(super) fn prepare(
        (settings, admin_address): (&Settings, Option<SocketAddr>),
        handover: Option<Handover>,
        state: &Path,
        admin: Admin,
        (stop, tasks): (&CancellationToken, &TaskTracker),
    ) -> Result<Self, RunError> {
        // Who may open the state folder may see everything.
        let here = Admin {
            gate: None,
            ..admin.clone()
        };
        process::serve_admin_here(state, here, stop);
        let store = Arc::clone(&admin.store);
        let (ports, listeners, admin_address) = if let Some(handover) = handover {
            (Ports::Shared(handover), configured(settings), admin_address)
        } else {
            let edge = process::bind_edge(&linger(settings.clone()), &store, None)?;
            let listeners = edge.addresses();
            let listener = process::bind_admin(admin_address, false)?;
            let address = listener.as_ref().and_then(|it| it.local_addr().ok());
            if let Some(listener) = listener {
                process::serve_admin(listener, admin.clone(), stop)?;
            }
            process::tell_listeners(&listeners, address);
            (Ports::Bound(Box::new(edge)), listeners, address)
        };
        Ok(Self {
            listeners,
            admin_address,
            ports,
            store,
            settings: settings.clone(),
            admin,
            handed_on: stop.child_token(),
            tasks: tasks.clone(),
        })
    }

    /// What to cancel once this process is to end: then another one answers and offers at shared ports.
    pub(super) fn handed_on(&self) -> CancellationToken {
        self.handed_on.clone()
    }

    /// Begins to serve what is published; waits for ports that another process has.
    pub(super) async fn open(self) -> Result<RunningEdge, RunError> {
        match self.ports {
            Ports::Bound(edge) => edge.start().map_err(RunError::Start),
            Ports::Shared(ref handover) => {
                let handover = handover.clone();
                let taking = handover.take(&self.settings, self.admin_address, &self.store);
                let Sockets { edge, admin } = taking.await?;
                process::tell_listeners(&edge.addresses(), self.admin_address);
                let edge = edge.start().map_err(RunError::Start)?;
                self.share(handover, &edge, admin)?;
                Ok(edge)
            }
        }
    }

    /// The next process will have these sockets too.
    fn share(
        &self,
        handover: Handover,
        edge: &RunningEdge,
        admin: Option<TcpListener>,
    ) -> Result<(), RunError> {
        let offered = admin.as_ref().map(TcpListener::try_clone).transpose();
        let offered = offered.map_err(RunError::Process)?;
        if let Some(admin) = admin {
            process::serve_admin(admin, self.admin.clone(), &self.handed_on)?;
        }
        let offer = handover.offer(edge.clone(), offered, self.handed_on.clone());
        spawn_named("handover", self.tasks.track_future(offer));
        Ok(())
    }
}

/// What it is to listen on.
fn configured(settings: &Settings) -> Vec<(&'static str, SocketAddr)> {
    let http = settings.http.iter().map(|address| ("http", *address));
    let https = settings.https.iter().map(|address| ("https", *address));
    http.chain(https).collect()
}

/// kube-proxies and load balancers go on sending to a pod that ends for as long as they need to hear of it, which may be
/// longer than the pause that Kubernetes makes before the end. Who has handed on their sockets is sent nobody.
fn linger(mut settings: Settings) -> Settings {
    settings.timeouts.accept_quiet = QUIET;
    settings.timeouts.accept_longest = settings.timeouts.drain / 2;
    settings
}
