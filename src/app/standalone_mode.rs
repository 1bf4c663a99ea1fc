//! `tidegate run`: the standalone source and the data plane in one process.
//!
//! ```text
//! signals, folder watch, clock ─► refresh ─► publish ─► edge
//!                                    └─────► log, status.json, admin
//! ```
//!
//! The control side has a small runtime of its own; the edge brings its worker threads. Order of the end:
//! not ready any more, edge drains, admin stops.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use sd_notify::NotifyState;
use tidegate_acme::engine::{Engine, Surroundings};
use tidegate_acme::store::StoreError;
use tidegate_model::{HostName, SnapshotStore};
use tidegate_proxy::{RunningEdge, Settings};
use tidegate_telemetry::{chain, spawn_named};
use tidegate_tracker::udp::{UdpRelays, follow};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::acme::Acme;
use super::agents::AgentsWatch;
use super::folder_desk::FolderDesk;
use super::happenings::Happenings;
use super::process::{self, RunError};
use super::publish::Tracked;
use super::report::Process;
use super::signals::{Asked, Signals};
use super::tracker_probes::TrackerProbes;
use super::upgrade::{self, Predecessor, UpgradeError};
use crate::admin::{Admin, ControlView, Gate, HostGuard, Readiness};
use crate::api::TlsRoute;
use crate::rest::accounts::Accounts;
use crate::rest::{ApiGate, Rest};
use crate::source::state::StateFolder;
use crate::source::wishes::{self, Wishes};
use crate::source::{AcmeStore, Issuance, Place, Refreshed};
use crate::standalone::{FolderWatch, Source};
use crate::translate::Statuses;

/// Where the objects come from.
#[derive(Debug, Clone)]
pub enum ObjectsFrom {
    /// The files of a folder, watched.
    Folder(PathBuf),
    /// These, for as long as the process runs.
    Given(Vec<TlsRoute>),
}

/// Everything that is fixed when the edge starts.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Where the objects come from.
    pub objects: ObjectsFrom,
    /// The state folder.
    pub state: PathBuf,
    /// The data plane.
    pub settings: Settings,
    /// The admin listener, unless it is off.
    pub admin: Option<SocketAddr>,
    /// Host headers that the admin listener answers besides `localhost` and addresses.
    pub admin_hosts: Vec<HostName>,
    /// Life of certificates of the internal CA.
    pub certificate_lifetime: Duration,
    /// How ACME authorities see this edge, and whom it asks about names.
    pub surroundings: Surroundings,
    /// Who may use the API, if anybody.
    pub accounts: Option<PathBuf>,
}

/// What is known once the edge serves.
#[derive(Debug)]
pub struct Serving {
    /// Bound addresses by listener name.
    pub listeners: Vec<(&'static str, SocketAddr)>,
    /// The root certificate's file.
    pub root_certificate: PathBuf,
}

/// Runs until the process is asked to end. `on_serving` is called once everything is bound and published.
pub fn run(options: RunOptions, on_serving: impl FnOnce(&Serving)) -> Result<(), RunError> {
    let aside = upgrade::step_aside();
    if aside.map_err(|error| RunError::Upgrade(Box::new(error)))? {
        return Ok(());
    }
    process::run(async { Running::start(options, on_serving).await?.run().await })
}

struct Running {
    options: RunOptions,
    process: Process,
    source: Arc<Mutex<Source>>,
    state: Arc<StateFolder>,
    store: Arc<SnapshotStore>,
    edge: RunningEdge,
    readiness: Readiness,
    control: watch::Sender<Arc<ControlView>>,
    admin_stop: CancellationToken,
    signals: Signals,
    acme: Acme,
    probes: TrackerProbes,
    agents: AgentsWatch,
    /// What they ask for, as it is written down.
    wishes: Arc<Wishes>,
    engine: watch::Sender<Option<Engine>>,
    udp: UdpRelays,
    tracked: Tracked,
    /// What the API shows of agents.
    statuses: watch::Sender<Arc<Statuses>>,
    next: SystemTime,
}

impl Running {
    /// Needs a runtime, whose reactor its sockets and signals use.
    async fn start(
        options: RunOptions,
        on_serving: impl FnOnce(&Serving),
    ) -> Result<Self, RunError> {
        let started_at = SystemTime::now();
        let signals = Signals::new().map_err(RunError::Process)?;
        let predecessor =
            Predecessor::of_this_process().map_err(|error| RunError::Upgrade(Box::new(error)))?;
        check_folder(&options.objects)?;
        let accounts = options
            .accounts
            .as_deref()
            .map(Accounts::open)
            .transpose()?;
        let (state, inherited, predecessor) = take_state(&options.state, predecessor)?;
        let shared = inherited.is_some();
        let source = new_source(&options, &state, started_at)?;
        let acme = start_acme(&state, &options.surroundings).await?;
        let store = Arc::new(SnapshotStore::new());
        let edge = process::bind_edge(&options.settings, &store, inherited)?;
        let listeners = edge.addresses();
        let wishes = wishes::load(&state);
        let policy = process::port_policy(&options.settings, &listeners, options.admin);
        let source = source
            .with_agent_requests(&wishes)
            .with_acme(Issuance::new(&acme.engine))
            .with_plain_ports(process::plain_ports(&listeners))
            .with_ports(policy);
        let source = Arc::new(Mutex::new(source));
        let refreshed = refresh(&source, started_at);
        let admin_listener = process::bind_admin(options.admin, shared)?;
        let admin_address = admin_listener
            .as_ref()
            .and_then(|listener| listener.local_addr().ok());
        let process = Process {
            started_at,
            folder: match &options.objects {
                ObjectsFrom::Folder(folder) => Some(folder.display().to_string()),
                ObjectsFrom::Given(_) => None,
            },
            admin: admin_address.map(|address| address.to_string()),
            listeners: listeners.clone(),
        };
        let engine = watch::Sender::new(Some(acme.engine.clone()));
        let (control, control_receiver) = watch::channel(Arc::new(ControlView::default()));
        let mut tracked = Tracked::default();
        let next = refreshed.next;
        let asked = Acme::asked_by(&refreshed);
        let probes = TrackerProbes::start();
        probes.tell(refreshed.translation.tracker_probes.clone());
        let statuses = watch::Sender::new(Arc::clone(&refreshed.translation.statuses));
        tracked.apply(refreshed, &process, &store, &state, &control, started_at);
        acme.served(&asked);
        acme.tell(asked);
        let edge = edge.start().map_err(RunError::Start)?;
        let udp = UdpRelays::new(shared);
        spawn_named("udp-relays", follow(udp.clone(), Arc::clone(&store)));
        let readiness = Readiness::default();
        let admin_stop = CancellationToken::new();
        let running = Arc::new(OnceLock::from(edge.clone()));
        if let Some(listener) = admin_listener {
            let gate = accounts.map(|accounts| {
                let control = control_receiver.clone();
                let edge = Arc::new(OnceLock::from(edge.clone()));
                new_gate(&options, accounts, (control, edge), statuses.subscribe())
            });
            let admin = Admin {
                readiness: readiness.clone(),
                control: control_receiver,
                edge: Arc::clone(&running),
                engine: engine.subscribe(),
                store: Arc::clone(&store),
                udp: udp.clone(),
                hosts: HostGuard::new(options.admin_hosts.iter().cloned()),
                gate,
            };
            process::serve_admin(listener, admin, &admin_stop)?;
        }
        process::tell_listeners(&listeners, admin_address);
        readiness.set_ready();
        process::notify_manager(&[NotifyState::Ready]);
        on_serving(&Serving {
            listeners,
            root_certificate: state.path().join("ca/ca.crt"),
        });
        if let Some(predecessor) = predecessor {
            predecessor
                .ready()
                .map_err(|error| RunError::Upgrade(Box::new(error)))?;
            tracing::info!("took over from the running process");
        }
        Ok(Self {
            options,
            process,
            source,
            state,
            store,
            edge,
            readiness,
            control,
            admin_stop,
            signals,
            acme,
            probes,
            agents: AgentsWatch::new(running, wishes.clone()),
            wishes: Arc::new(wishes),
            engine,
            udp,
            tracked,
            statuses,
            next,
        })
    }

    async fn run(mut self) -> Result<(), RunError> {
        let mut watch = match &self.options.objects {
            ObjectsFrom::Folder(folder) => {
                Some(FolderWatch::new(folder, Some(self.options.state.clone())))
            }
            ObjectsFrom::Given(_) => None,
        };
        // What changed between the first load and the watch is found by looking once more.
        let mut due = watch.is_some();
        let mut relays = self.udp.states();
        let mut ports = self.edge.ports();
        ports.mark_changed();
        let watchdog = sd_notify::watchdog_enabled().map(|limit| limit / 2);
        loop {
            if std::mem::take(&mut due) {
                self.reload().await;
            }
            let pause = self
                .next
                .duration_since(SystemTime::now())
                .unwrap_or_default()
                // A clock that was set is noticed within this time.
                .clamp(Duration::from_secs(1), Duration::from_secs(60));
            tokio::select! {
                asked = self.signals.next() => match asked {
                    Asked::Stop => {
                        self.stop(NotifyState::Stopping).await;
                        return Ok(());
                    }
                    Asked::Reload => {
                        tracing::info!("reloading");
                        let mut state = vec![NotifyState::Reloading];
                        state.extend(NotifyState::monotonic_usec_now().ok());
                        process::notify_manager(&state);
                        self.reload().await;
                        process::notify_manager(&[NotifyState::Ready]);
                    }
                    Asked::Upgrade => {
                        if let Some(pid) = self.upgrade().await {
                            self.stop(NotifyState::MainPid(pid)).await;
                            return Ok(());
                        }
                    }
                },
                () = changed(watch.as_mut()) => due = true,
                () = self.acme.changed() => due = true,
                Ok(()) = relays.changed() => {
                    let states = Arc::clone(&relays.borrow_and_update());
                    self.lock_source().set_udp_relays(states);
                    due = true;
                }
                Ok(()) = ports.changed() => {
                    let states = Arc::clone(&ports.borrow_and_update());
                    self.lock_source().set_ports(states);
                    due = true;
                }
                () = self.probes.changed() => due = true,
                () = self.agents.changed() => due = true,
                () = tokio::time::sleep(pause) => due = SystemTime::now() >= self.next,
                () = sleep_if(watchdog) => process::notify_manager(&[NotifyState::Watchdog]),
            }
        }
    }

    async fn reload(&mut self) {
        let source = Arc::clone(&self.source);
        let now = SystemTime::now();
        self.lock_source()
            .set_tracker_reports(self.probes.reports());
        self.note_wishes().await;
        self.lock_source()
            .set_agents(&self.agents.seen(), self.agents.requests());
        let Ok(refreshed) = tokio::task::spawn_blocking(move || refresh(&source, now)).await else {
            tracing::error!("the refresh panicked; what was served before is still served");
            self.next = now + Duration::from_secs(60);
            return;
        };
        self.next = refreshed.next;
        let asked = Acme::asked_by(&refreshed);
        self.probes
            .tell(refreshed.translation.tracker_probes.clone());
        self.statuses
            .send_replace(Arc::clone(&refreshed.translation.statuses));
        self.tracked.apply(
            refreshed,
            &self.process,
            &self.store,
            &self.state,
            &self.control,
            now,
        );
        self.acme.served(&asked);
        self.acme.tell(asked);
    }

    /// Hostnames that agents ask for are served again at once when the edge is started anew.
    async fn note_wishes(&mut self) {
        let wishes = self.agents.requests();
        if wishes == self.wishes {
            return;
        }
        self.wishes = Arc::clone(&wishes);
        let state = Arc::clone(&self.state);
        if let Err(error) = tokio::task::spawn_blocking(move || wishes::save(&state, &wishes)).await
        {
            tracing::error!(%error, "writing what agents ask for panicked");
        }
    }

    async fn upgrade(&mut self) -> Option<u32> {
        tracing::info!("starting a new process to take over");
        // Two engines on one store would order twice.
        self.acme.stop().await;
        let state = Arc::clone(&self.state);
        let edge = self.edge.clone();
        let outcome = tokio::task::spawn_blocking(move || {
            let listeners = edge.sockets().map_err(UpgradeError::Talk)?;
            upgrade::hand_over(state.lock(), &listeners)
        })
        .await;
        match outcome {
            Ok(Ok(pid)) => {
                tracing::info!(pid, "the new process serves; this one ends");
                Some(pid)
            }
            Ok(Err(error)) => {
                tracing::error!(error = %chain(&error), "upgrade failed; this process goes on");
                self.resume_acme().await;
                None
            }
            Err(_) => {
                tracing::error!("upgrade panicked; this process goes on");
                self.resume_acme().await;
                None
            }
        }
    }

    fn lock_source(&self) -> std::sync::MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Orders go on in this process after all.
    async fn resume_acme(&mut self) {
        match start_acme(&self.state, &self.options.surroundings).await {
            Ok(acme) => {
                let issuance = Issuance::new(&acme.engine);
                self.engine.send_replace(Some(acme.engine.clone()));
                self.acme = acme;
                self.lock_source().set_acme(issuance);
                self.reload().await;
            }
            Err(error) => {
                tracing::error!(error = %chain(&error), "certificates are not renewed until the next start");
            }
        }
    }

    async fn stop(&mut self, said: NotifyState<'_>) {
        let deadline = self.options.settings.timeouts.drain;
        tracing::info!(deadline = ?deadline, "draining; a second signal ends at once");
        self.readiness.set_draining();
        self.acme.stop().await;
        process::stop_relays(&self.udp).await;
        process::notify_manager(&[said]);
        tokio::select! {
            cut = self.edge.drain(deadline) => {
                if cut > 0 {
                    tracing::warn!(connections = cut, "connections were cut at the deadline");
                }
            }
            () = process::stop_again(&mut self.signals) => tracing::warn!("ending at once"),
        }
        self.admin_stop.cancel();
        tracing::info!("stopped");
    }
}

type Taken = (
    Arc<StateFolder>,
    Option<Vec<(String, TcpListener)>>,
    Option<Predecessor>,
);

fn take_state(path: &Path, predecessor: Option<Predecessor>) -> Result<Taken, RunError> {
    match predecessor {
        Some(mut predecessor) => {
            let lock = predecessor
                .lock
                .take()
                .ok_or_else(|| RunError::Upgrade(Box::new(UpgradeError::Ended)))?;
            let state = StateFolder::inherit(path, lock);
            let listeners = std::mem::take(&mut predecessor.listeners);
            Ok((Arc::new(state), Some(listeners), Some(predecessor)))
        }
        None => Ok((Arc::new(StateFolder::open(path)?), None, None)),
    }
}

/// A folder that is wrong from the start is more likely a slip than a loss. Looked at before the state folder is
/// made, which may lie inside.
fn check_folder(objects: &ObjectsFrom) -> Result<(), RunError> {
    if let ObjectsFrom::Folder(folder) = objects
        && let Err(error) = std::fs::read_dir(folder)
    {
        let why = match error.kind() {
            std::io::ErrorKind::NotFound => "it does not exist; `mkdir` makes it".to_owned(),
            _ => error.to_string(),
        };
        return Err(RunError::Folder(folder.clone(), why));
    }
    Ok(())
}

fn new_gate(
    options: &RunOptions,
    accounts: Accounts,
    (control, edge): (
        watch::Receiver<Arc<ControlView>>,
        Arc<OnceLock<RunningEdge>>,
    ),
    statuses: watch::Receiver<Arc<Statuses>>,
) -> Arc<dyn Gate> {
    let happenings = Happenings::follow(control, edge, options.settings.access_log.enabled);
    let folder = match &options.objects {
        ObjectsFrom::Folder(folder) => Some(folder.as_path()),
        ObjectsFrom::Given(_) => None,
    };
    let desk = FolderDesk::new(folder, options.state.clone(), statuses);
    Arc::new(ApiGate(Rest::new(
        accounts,
        Arc::new(desk),
        Arc::new(happenings),
    )))
}

async fn start_acme(
    state: &Arc<StateFolder>,
    surroundings: &Surroundings,
) -> Result<Acme, StoreError> {
    let store = Arc::new(AcmeStore::new(Arc::clone(state)));
    Acme::start(store, Some(state.path()), surroundings.clone()).await
}

fn new_source(
    options: &RunOptions,
    state: &Arc<StateFolder>,
    now: SystemTime,
) -> Result<Source, RunError> {
    let source = match &options.objects {
        ObjectsFrom::Folder(folder) => Source::folder(folder, Some(options.state.clone())),
        ObjectsFrom::Given(routes) => Source::given(routes.clone()),
    };
    let source = source
        .with_name_servers(options.surroundings.name_servers.clone())
        .with_place(Place {
            told: options.surroundings.addresses.clone(),
            listening: options.settings.https.clone(),
            https_port: options.settings.public_https_port,
        });
    let names = process::default_names(&options.settings);
    Ok(source.with_ca(Arc::clone(state), options.certificate_lifetime, names, now)?)
}

fn refresh(source: &Mutex<Source>, now: SystemTime) -> Refreshed {
    source
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .refresh(now)
}

async fn changed(watch: Option<&mut FolderWatch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

async fn sleep_if(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}
