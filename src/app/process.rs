//! What every mode of a long-lived process does alike: limits, runtime, listeners, the words for what fails.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tidegate_acme::store::StoreError;
use tidegate_model::{HostPattern, SnapshotStore};
use tidegate_proxy::{Edge, Settings, StartError};
use tidegate_telemetry::spawn_named;
use tidegate_tracker::udp::UdpRelays;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::control;
use super::ports;
use super::signals::{Asked, Signals};
use super::status::ADMIN_SOCKET;
use crate::admin::Admin;
use crate::operator::ClusterError;
use crate::rest::accounts::AccountsError;
use crate::source::ca::CaError;
use crate::source::state::StateError;
use crate::translate::PortPolicy;

/// Why the edge could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The folder cannot be read at the start; later this would be told and survived.
    #[error("read the folder {0:?}: {1}")]
    Folder(PathBuf, String),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The accounts of the API cannot be used.
    #[error(transparent)]
    Accounts(#[from] AccountsError),
    /// The internal CA cannot be used.
    #[error("start the internal CA")]
    Ca(#[from] CaError),
    /// What is known of certificates cannot be read.
    #[error("read the certificates of the state folder")]
    Acme(#[from] StoreError),
    /// A listener cannot be bound.
    #[error("listen on {address} for {flag}: {source}; {advice}")]
    Bind {
        /// `--http`, `--https`, `--admin` or `--replicas-listen`.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// What to do.
        advice: String,
        /// What the system said; part of the text.
        source: std::io::Error,
    },
    /// What replicas know each other by cannot be made.
    #[error("prepare to be one of several replicas")]
    Peering(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The edge cannot start for another reason.
    #[error("start the edge")]
    Start(#[source] StartError),
    /// The control side's runtime or signal handlers cannot be set up.
    #[error("set up the process")]
    Process(#[source] std::io::Error),
    /// The API server cannot be asked.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The process that should be taken over from does not answer.
    #[error("take over from the running process")]
    Upgrade(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Runs the control side of the process to its end.
pub(super) fn run(mode: impl Future<Output = Result<(), RunError>>) -> Result<(), RunError> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(RunError::Process)?;
    let outcome = runtime.block_on(mode);
    // Blocking file operations on a hung network file system must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Binds the admin listener, if it is on.
pub(super) fn bind_admin(
    address: Option<SocketAddr>,
    shared: bool,
) -> Result<Option<TcpListener>, RunError> {
    let Some(address) = address else {
        return Ok(None);
    };
    ports::bind_admin(address, shared)
        .map(Some)
        .map_err(|source| RunError::Bind {
            flag: "--admin",
            address,
            advice: ports::advice("--admin", address, &source),
            source,
        })
}

/// Serves the admin listener until the token is cancelled.
pub(super) fn serve_admin(
    listener: TcpListener,
    admin: Admin,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    let listener = tokio::net::TcpListener::from_std(listener).map_err(RunError::Process)?;
    let stop = stop.clone().cancelled_owned();
    spawn_named("admin", crate::admin::serve(listener, admin, stop));
    Ok(())
}

/// Answers the same on a socket in the state folder, for `tidegate ready` and `tidegate status`: whoever asks at
/// the admin port of a node may meet another pod. The lock of the folder must be ours.
pub(super) fn serve_admin_here(state: &Path, admin: Admin, stop: &CancellationToken) {
    let bind = || {
        let path = state.join(ADMIN_SOCKET);
        if fs::symlink_metadata(&path).is_ok_and(|found| found.file_type().is_socket()) {
            fs::remove_file(&path)?;
        }
        let (reachable, _folder) = control::reachable(state, ADMIN_SOCKET)?;
        let listener = UnixListener::bind(reachable)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok::<_, std::io::Error>(listener)
    };
    match bind() {
        Ok(listener) => {
            let stop = stop.clone().cancelled_owned();
            spawn_named("admin-here", crate::admin::serve(listener, admin, stop));
        }
        Err(error) => {
            tracing::warn!(%error, state = %state.display(), "cannot listen on the admin socket; `tidegate ready` will not find this edge");
        }
    }
}

/// Says what is listened on.
pub(super) fn tell_listeners(listeners: &[(&'static str, SocketAddr)], admin: Option<SocketAddr>) {
    for (name, address) in listeners {
        tracing::info!(listener = name, %address, "listening");
    }
    if let Some(address) = admin {
        tracing::info!(listener = "admin", %address, "listening");
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "the admin listener has no login and can be reached from other machines");
        }
    }
}

/// Names that clients without SNI may have meant: this machine.
pub(super) fn default_names(settings: &Settings) -> Vec<HostPattern> {
    let bound = settings
        .https
        .iter()
        .map(SocketAddr::ip)
        .filter(|ip| !ip.is_unspecified())
        .map(|ip| ip.to_string());
    ["localhost", "127.0.0.1", "::1"]
        .map(str::to_owned)
        .into_iter()
        .chain(bound)
        .filter_map(|name| HostPattern::parse(&name).ok())
        .collect()
}

pub(super) fn bind_edge(
    settings: &Settings,
    store: &Arc<SnapshotStore>,
    inherited: Option<Vec<(String, TcpListener)>>,
) -> Result<Edge, RunError> {
    let settings = settings.clone();
    let bound = match inherited {
        Some(inherited) => Edge::bind_inherited(settings, Arc::clone(store), inherited),
        None => Edge::bind(settings, Arc::clone(store)),
    };
    bound.map_err(|error| {
        let StartError::Bind {
            name,
            address,
            source,
        } = error
        else {
            return RunError::Start(error);
        };
        let flag = match name {
            "http" => "--http",
            "replicas" => "--replicas-listen",
            _ => "--https",
        };
        RunError::Bind {
            flag,
            address,
            advice: ports::advice(flag, address, &source),
            source,
        }
    })
}

/// Passes the last answers of UDP trackers on; takes less than a second.
pub(super) async fn stop_relays(relays: &UdpRelays) {
    let relays = relays.clone();
    if tokio::task::spawn_blocking(move || relays.stop())
        .await
        .is_err()
    {
        tracing::error!("the relay of datagrams could not be ended");
    }
}

pub(super) async fn stop_again(signals: &mut Signals) {
    while signals.next().await != Asked::Stop {}
}

/// Tells systemd, if it asked to be told.
pub(super) fn notify_manager(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(error = %error, "cannot notify the service manager");
    }
}

/// Two descriptors per proxied connection soon pass the usual soft limit of 1024; the hard limit is what the
/// administrator allows.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(error = %error, "cannot raise the limit of open files");
    }
}

/// Which ports mappings of agents may have.
pub(super) fn port_policy(
    settings: &Settings,
    listeners: &[(&'static str, SocketAddr)],
    admin: Option<SocketAddr>,
) -> PortPolicy {
    let replicas = settings.peering.iter().flat_map(|it| &it.listen).copied();
    let own = listeners.iter().map(|(_, address)| *address);
    let own = own.chain(admin).chain(replicas);
    PortPolicy {
        allowed: settings.tunnel_ports.clone(),
        own: own.map(|address| address.port()).collect(),
    }
}

/// Ports of the listeners for plain HTTP, sorted.
pub(super) fn plain_ports(listeners: &[(&'static str, SocketAddr)]) -> Vec<u16> {
    let plain = listeners.iter().filter(|(name, _)| *name == "http");
    let mut ports: Vec<u16> = plain.map(|(_, address)| address.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}
