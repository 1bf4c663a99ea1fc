//! `tidegate operator`: the Kubernetes source and the data plane in one process.
//!
//! ```text
//! watches, Lease, engine, clock ─► refresh ─► publish ─► edge          (every replica)
//!                                     └─────► statuses, orders, Secrets (whoever leads)
//! ```
//!
//! Nothing is published before every list was read, and nothing is accepted before it is published; from then on a
//! lost API server changes nothing of what is served. Order of the end: not ready any more, the Lease is given back, the edge drains, the admin stops.

mod leading;
mod options;
mod peering;
mod place;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tidegate_acme::engine::Engine;
use tidegate_model::{ObjectName, PortState, Reach, SnapshotStore, UdpRelayState};
use tidegate_proxy::{ProxyProtocolMode, RunningEdge};
use tidegate_telemetry::{chain, spawn_named};
use tidegate_tracker::udp::{UdpRelays, follow};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::leading::Leader;
pub use self::options::OperatorOptions;
use self::peering::Peering;
use super::acme::Acme;
use super::agents::AgentsWatch;
use super::cluster_desk::ClusterDesk;
use super::control;
use super::handover::Handover;
use super::happenings::Happenings;
use super::opening::Opening;
use super::operator_desk::OperatorDesk;
use super::process::{self, RunError};
use super::publish::Tracked;
use super::report::Process;
use super::signals::{Asked, Signals};
use crate::admin::{Admin, ControlView, Gate, HostGuard, Readiness};
use crate::operator::default_issuer::DefaultIssuerFile;
use crate::operator::documents::DocumentStore;
use crate::operator::edit::AgentEditor;
use crate::operator::internal_ca;
use crate::operator::lease::{Elector, Leadership, Tenure};
use crate::operator::memory;
use crate::operator::published::{Publications, PublishedSecrets};
use crate::operator::relay::Relay;
use crate::operator::sessions::{Herald, Known};
use crate::operator::trackers::TrackerServices;
use crate::operator::{Cluster, Source, World};
use crate::rest::accounts::Accounts;
use crate::rest::{ApiGate, Rest};
use crate::source::state::StateFolder;
use crate::source::wishes::Wishes;
use crate::source::{InternalIssuer, Refreshed};
use crate::translate::{
    Environment, ExposedService, Exposure, ProgramPolicy, Refusals, ServiceKeeper,
    ServiceResolution, StaticFilesPolicy, Statuses,
};

/// Quiet time before a refresh, so that many changes become one.
const HOLD_OFF: Duration = Duration::from_millis(50);
/// Longest time that changes wait for quiet.
const LONGEST_HOLD_OFF: Duration = Duration::from_millis(500);
/// Rounds of fetching what objects name before something is published all the same.
const ROUNDS: usize = 4;
/// Time after which a start without the API server serves what it told last.
const REMEMBER_AFTER: Duration = Duration::from_secs(5);
/// How long a start waits for Secrets and ConfigMaps that exist and cannot be fetched.
const NAMED_PATIENCE: Duration = Duration::from_secs(30);
/// Pause before they are asked for again.
const NAMED_AGAIN: Duration = Duration::from_secs(1);
/// Pause before a lost engine is tried again.
const ENGINE_RETRY: Duration = Duration::from_secs(5);

/// Runs until the process is asked to end.
pub fn run(options: OperatorOptions) -> Result<(), RunError> {
    process::run(async {
        let mut running = Running::start(options).await?;
        let outcome = running.run().await;
        running.stop().await;
        outcome
    })
}

struct Running {
    options: OperatorOptions,
    cluster: Cluster,
    process: Process,
    world: Arc<World>,
    source: Arc<Mutex<Source>>,
    state: Arc<StateFolder>,
    documents: Arc<DocumentStore>,
    store: Arc<SnapshotStore>,
    /// Until the edge serves.
    opening: Option<Opening>,
    peering: Option<Peering>,
    edge: Arc<OnceLock<RunningEdge>>,
    /// The edge's Service as it was last seen.
    exposed: Option<ExposedService>,
    readiness: Readiness,
    control: watch::Sender<Arc<ControlView>>,
    engine: watch::Sender<Option<Engine>>,
    statuses: watch::Sender<Arc<Statuses>>,
    publications: watch::Sender<Arc<Publications>>,
    published: watch::Sender<Arc<PublishedSecrets>>,
    published_seen: watch::Receiver<Arc<PublishedSecrets>>,
    tracker_services: TrackerServices,
    services_refused: watch::Receiver<Arc<Refusals>>,
    served_answers: watch::Sender<u64>,
    tracked: Tracked,
    signals: Signals,
    stop: CancellationToken,
    tasks: TaskTracker,
    admin_stop: CancellationToken,
    /// Ends what another process has taken over.
    handed_on: CancellationToken,
    leadership: watch::Receiver<Leadership>,
    tenure: Tenure,
    leader: Option<Leader>,
    udp: UdpRelays,
    udp_states: watch::Receiver<Arc<Vec<UdpRelayState>>>,
    /// Once the edge serves.
    ports: Option<watch::Receiver<Arc<Vec<PortState>>>>,
    agents: AgentsWatch,
    agents_known: watch::Sender<Known>,
    next: SystemTime,
}

/// How waiting for the lists ended.
enum Completion {
    Complete,
    /// Not in time.
    Late,
    Stop,
}

/// What woke the loop.
enum Woken {
    /// Something changed, or it is time.
    Refresh,
    Leadership,
    Stop,
}

impl Running {
    async fn start(mut options: OperatorOptions) -> Result<Self, RunError> {
        let started_at = SystemTime::now();
        let signals = Signals::new().map_err(RunError::Process)?;
        let state = Arc::new(StateFolder::open(&options.state)?);
        let cluster = Cluster::connect(&options.cluster).await?;
        options.settings.replica.clone_from(&cluster.identity);
        let peering = Peering::prepare(&mut options, &cluster)?;
        let store = Arc::new(SnapshotStore::new());
        let (control, control_receiver) = watch::channel(Arc::new(ControlView::default()));
        let engine = watch::Sender::new(None);
        let readiness = Readiness::default();
        let admin_stop = CancellationToken::new();
        let edge = Arc::<OnceLock<RunningEdge>>::default();
        let udp = UdpRelays::new(options.handover);
        let gate = match &options.accounts {
            None => None,
            Some(path) => {
                let accounts = Accounts::open(path)?;
                let logged = options.settings.access_log.enabled;
                let happenings =
                    Happenings::follow(control_receiver.clone(), Arc::clone(&edge), logged);
                let editor = AgentEditor::new(cluster.clone());
                let desk = Arc::new(ClusterDesk::new(editor));
                Some(
                    Arc::new(ApiGate(Rest::new(accounts, desk, Arc::new(happenings))))
                        as Arc<dyn Gate>,
                )
            }
        };
        let admin = Admin {
            readiness: readiness.clone(),
            control: control_receiver,
            edge: Arc::clone(&edge),
            engine: engine.subscribe(),
            store: Arc::clone(&store),
            udp: udp.clone(),
            hosts: HostGuard::new(options.admin_hosts.iter().cloned()),
            gate,
        };
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let handover = (options.handover).then(|| Handover::of(&cluster.namespace, &options.lease));
        let opening = Opening::prepare(
            (&options.settings, options.admin),
            handover,
            state.path(),
            admin,
            (&admin_stop, &tasks),
        )?;
        let world = World::watch(&cluster, options.service.as_deref(), &stop, &tasks);
        let elector = Elector::new(
            cluster.client.clone(),
            &cluster.namespace,
            &options.lease,
            &cluster.identity,
        );
        let (leadership, tenure) = (elector.leadership(), elector.tenure());
        spawn_named("lease", tasks.track_future(elector.run(stop.clone())));
        let desk = OperatorDesk {
            engine: engine.subscribe(),
            leadership: leadership.clone(),
            relay: Relay {
                store: Arc::new(DocumentStore::new(
                    cluster.client.clone(),
                    cluster.namespace.clone(),
                )),
                world: Arc::clone(&world),
                identity: cluster.identity.clone(),
            },
            namespace: cluster.namespace.clone(),
        };
        control::serve(state.path(), Arc::new(desk), stop.clone(), &tasks);
        tracing::info!(
            namespace = cluster.namespace,
            identity = cluster.identity,
            watched = if cluster.watched.is_empty() {
                "every namespace".to_owned()
            } else {
                cluster.watched.join(",")
            },
            "watching the API server"
        );
        let environment = Environment {
            class_name: options.class.clone(),
            services: ServiceResolution::Objects,
            plain_ports: Some(process::plain_ports(&opening.listeners)),
            ports: Some(Arc::new(process::port_policy(
                &options.settings,
                &opening.listeners,
                options.admin,
            ))),
            static_files: StaticFilesPolicy::Within(options.static_files.clone()),
            programs: ProgramPolicy::Refused,
            name_servers: options.surroundings.name_servers.clone(),
            system_namespace: cluster.namespace.clone(),
            reach: Arc::new(Reach::limited(
                options.allow_addresses.clone(),
                options.refuse_addresses.clone(),
            )),
            cluster_domain: cluster.domain.clone(),
            replica: Some(cluster.identity.clone()),
            service_keeper: if options.tracker_services {
                ServiceKeeper::Program
            } else {
                ServiceKeeper::Person
            },
        };
        let agents = AgentsWatch::new(Arc::clone(&edge), Wishes::new());
        let published = watch::Sender::<Arc<PublishedSecrets>>::default();
        let tracker_services = TrackerServices::default();
        let mut source = Source::new(Arc::clone(&world), environment, published.subscribe());
        source.follow_refusals(tracker_services.refused());
        if let Some(path) = &options.default_issuer {
            let file = Arc::new(DefaultIssuerFile::new(path));
            source.set_default_issuer(Arc::clone(&file));
            let follow = file.follow(Arc::clone(&world), stop.clone());
            spawn_named("default-issuer", tasks.track_future(follow));
        }
        Ok(Self {
            process: Process {
                started_at,
                folder: None,
                admin: opening.admin_address.map(|address| address.to_string()),
                listeners: opening.listeners.clone(),
            },
            source: Arc::new(Mutex::new(source)),
            publications: watch::Sender::default(),
            published_seen: published.subscribe(),
            published,
            documents: Arc::new(DocumentStore::new(
                cluster.client.clone(),
                cluster.namespace.clone(),
            )),
            options,
            cluster,
            world,
            state,
            store,
            handed_on: opening.handed_on(),
            opening: Some(opening),
            peering,
            edge,
            exposed: None,
            readiness,
            control,
            engine,
            statuses: watch::Sender::default(),
            services_refused: tracker_services.refused(),
            tracker_services,
            served_answers: watch::Sender::default(),
            tracked: Tracked::default(),
            signals,
            stop,
            tasks,
            admin_stop,
            leadership,
            tenure,
            leader: None,
            udp_states: udp.states(),
            ports: None,
            agents,
            agents_known: watch::Sender::default(),
            udp,
            next: started_at,
        })
    }

    /// Returns when the process is asked to end, or when it cannot listen.
    async fn run(&mut self) -> Result<(), RunError> {
        let mut changes = self.world.changes();
        match self.complete(&mut changes, Some(REMEMBER_AFTER)).await {
            Completion::Complete => {}
            Completion::Stop => return Ok(()),
            Completion::Late => {
                if !self.remember().await? {
                    return Ok(());
                }
                if let Completion::Stop = self.complete(&mut changes, None).await {
                    return Ok(());
                }
            }
        }
        self.open_internal_ca().await;
        if !self.know_everything().await || !self.open().await? {
            return Ok(());
        }
        let keep = memory::keep(
            Arc::clone(&self.world),
            Arc::clone(&self.state),
            self.stop.clone(),
        );
        spawn_named("memory", self.tasks.track_future(keep));
        let herald = Herald {
            store: DocumentStore::new(self.cluster.client.clone(), self.cluster.namespace.clone()),
            world: Arc::clone(&self.world),
            identity: self.cluster.identity.clone(),
            known: self.agents_known.subscribe(),
        };
        let herald = herald.run(self.stop.clone());
        spawn_named("agents", self.tasks.track_future(herald));
        self.lead_or_not().await;
        loop {
            match self.woken(&mut changes).await {
                Woken::Stop => return Ok(()),
                Woken::Leadership => {
                    self.lead_or_not().await;
                    self.refresh().await;
                }
                Woken::Refresh => {
                    hold_off(&mut changes).await;
                    self.refresh().await;
                    self.lead_or_not().await;
                }
            }
        }
    }

    /// Waits until every list was read, but not longer than `patience`.
    async fn complete(
        &mut self,
        changes: &mut watch::Receiver<u64>,
        patience: Option<Duration>,
    ) -> Completion {
        let patience = async {
            match patience {
                Some(patience) => tokio::time::sleep(patience).await,
                None => std::future::pending().await,
            }
        };
        let mut patience = std::pin::pin!(patience);
        while !self.world.is_complete() {
            tokio::select! {
                asked = self.signals.next() => {
                    if asked == Asked::Stop {
                        return Completion::Stop;
                    }
                }
                more = changes.changed() => {
                    if more.is_err() {
                        return Completion::Stop;
                    }
                }
                () = &mut patience => return Completion::Late,
            }
        }
        tracing::info!(objects = ?self.world.counts(), "every list was read");
        Completion::Complete
    }

    /// The first refresh. A certificate that exists and could not be fetched is waited for: traffic that an older
    /// replica serves well must not come here yet. False when the process is asked to end.
    async fn know_everything(&mut self) -> bool {
        let latest = Instant::now() + NAMED_PATIENCE;
        while !self.refresh().await {
            // One Secret that is forbidden must not keep every other host from being served.
            if Instant::now() >= latest {
                tracing::warn!(
                    "not everything that objects name could be fetched; serving without it"
                );
                break;
            }
            tokio::select! {
                () = process::stop_again(&mut self.signals) => return false,
                () = tokio::time::sleep(NAMED_AGAIN) => {}
            }
        }
        true
    }

    /// Begins to serve, if it has not, and says so. False when the process is asked to end instead.
    async fn open(&mut self) -> Result<bool, RunError> {
        let Some(opening) = self.opening.take() else {
            return Ok(true);
        };
        let edge = tokio::select! {
            edge = opening.open() => edge?,
            () = process::stop_again(&mut self.signals) => return Ok(false),
        };
        self.ports = Some(edge.ports());
        let edge = self.edge.get_or_init(|| edge).clone();
        if let Some(peering) = self.peering.take() {
            let (world, documents) = (Arc::clone(&self.world), Arc::clone(&self.documents));
            peering.begin(edge, world, documents, (&self.stop, &self.tasks));
        }
        let relays = follow(self.udp.clone(), Arc::clone(&self.store));
        spawn_named("udp-relays", relays);
        self.readiness.set_ready();
        Ok(true)
    }

    /// The API server is away: what it told last is served, if this replica has been told anything. False when the
    /// process is asked to end.
    async fn remember(&mut self) -> Result<bool, RunError> {
        match memory::restore(&self.world, &self.state) {
            Ok(None) => {
                tracing::warn!(
                    "the API server does not answer, and nothing is known from before; waiting"
                );
            }
            Err(error) => {
                tracing::error!(error = %chain(&error), "the API server does not answer, and what it told last cannot be read; waiting");
            }
            Ok(Some(at)) => {
                let now = SystemTime::now();
                let age = now.duration_since(at).unwrap_or_default();
                tracing::warn!(age = ?Duration::from_secs(age.as_secs()), "the API server does not answer: serving what it told last");
                self.set_internal_ca(now);
                if let Some(refreshed) = self.translate(now).await {
                    self.publish(refreshed, now);
                }
                return self.open().await;
            }
        }
        Ok(true)
    }

    async fn woken(&mut self, changes: &mut watch::Receiver<u64>) -> Woken {
        let pause = self
            .next
            .duration_since(SystemTime::now())
            .unwrap_or_default()
            .clamp(Duration::from_secs(1), Duration::from_secs(60));
        let leader = self.leader.as_mut();
        // Whoever should lead and does not, tries again soon.
        let pause = match (&leader, self.leadership.borrow().leading) {
            (None, true) => pause.min(ENGINE_RETRY),
            _ => pause,
        };
        let engine = async {
            match leader {
                Some(leader) => tokio::select! {
                    () = leader.acme.changed() => {}
                    () = leader.probes.changed() => {}
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            asked = self.signals.next() => match asked {
                Asked::Stop => Woken::Stop,
                Asked::Reload | Asked::Upgrade => Woken::Refresh,
            },
            another = self.leadership.changed() => match another {
                Ok(()) => Woken::Leadership,
                Err(_) => Woken::Stop,
            },
            more = changes.changed() => match more {
                Ok(()) => Woken::Refresh,
                Err(_) => Woken::Stop,
            },
            () = engine => Woken::Refresh,
            Ok(()) = self.published_seen.changed() => Woken::Refresh,
            Ok(()) = self.udp_states.changed() => Woken::Refresh,
            () = changed(self.ports.as_mut()) => Woken::Refresh,
            Ok(()) = self.services_refused.changed() => Woken::Refresh,
            () = self.agents.changed() => Woken::Refresh,
            () = tokio::time::sleep(pause) => Woken::Refresh,
        }
    }

    /// The internal CA's root is the same for all replicas.
    async fn open_internal_ca(&mut self) {
        let now = SystemTime::now();
        if let Err(error) = internal_ca::share_root(&self.documents, &self.state, now).await {
            tracing::error!(error = %chain(&error), "cannot share the internal CA's root; this replica uses one of its own until its next start");
        }
        self.set_internal_ca(now);
    }

    fn set_internal_ca(&self, now: SystemTime) {
        let opened = InternalIssuer::open(
            Arc::clone(&self.state),
            self.options.certificate_lifetime,
            process::default_names(&self.options.settings),
            now,
        );
        match opened {
            Ok(internal) => self.lock_source().set_internal(internal),
            Err(error) => {
                tracing::error!(error = %chain(&error), "no internal CA; hosts without a certificate refuse connections");
            }
        }
    }

    /// Fetches what is named, translates, publishes. Whether everything is known that is named and exists.
    async fn refresh(&mut self) -> bool {
        let now = SystemTime::now();
        let exposure = self.exposure();
        if let Some(service) = &exposure.service {
            let addresses = service.addresses.clone();
            self.options.surroundings.learned.set(addresses);
        }
        let place = self.place(&exposure);
        let https_port = self.options.settings.public_https_port;
        self.lock_source().set_place(place, https_port);
        self.lock_source().set_exposure(exposure);
        let relays = Arc::clone(&self.udp_states.borrow_and_update());
        self.lock_source().set_udp_relays(relays);
        if let Some(ports) = &mut self.ports {
            let states = Arc::clone(&ports.borrow_and_update());
            self.lock_source().set_ports(states);
        }
        self.tell_of_agents();
        let reports = self.leader.as_ref().map(|leader| leader.probes.reports());
        self.lock_source()
            .set_tracker_reports(reports.unwrap_or_default());
        let mut refreshed = None;
        let mut known = false;
        for _ in 0..ROUNDS {
            let Some(new) = self.translate(now).await else {
                return false;
            };
            let stale = self.world.stale(&new.translation.references);
            known = stale.is_empty();
            refreshed = Some(new);
            if known {
                break;
            }
            self.world.fetch(stale).await;
        }
        if let Some(refreshed) = refreshed {
            self.publish(refreshed, now);
        }
        known
    }

    /// What this replica knows of agents, for itself and for the others.
    fn tell_of_agents(&self) {
        let known = Known {
            seen: self.agents.seen(),
            requests: self.agents.requests(),
        };
        let service = self.options.replicas_service.as_ref();
        let replicas = service.map_or(1, |name| {
            let name = ObjectName::new(self.cluster.namespace.as_str(), name.as_str());
            self.world.replica_count(&name)
        });
        let identity = &self.cluster.identity;
        self.lock_source()
            .set_agents(known.clone(), identity, replicas);
        self.agents_known.send_if_modified(|before| {
            let changed = *before != known;
            *before = known;
            changed
        });
    }

    /// How clients reach this replica, as far as it can see.
    fn exposure(&mut self) -> Exposure {
        let service = self.options.service.as_ref().and_then(|name| {
            let name = ObjectName::new(self.cluster.namespace.as_str(), name.as_str());
            self.world.exposed(&name)
        });
        let edge = self.edge.get();
        // Who connected by another way tells nothing of this one.
        if service != self.exposed {
            self.exposed.clone_from(&service);
            if let Some(edge) = edge {
                edge.forget_peers();
            }
        }
        Exposure {
            peers: edge.map(|edge| edge.observe().peers).unwrap_or_default(),
            proxy_protocol: self.options.settings.proxy_protocol != ProxyProtocolMode::Off,
            service,
            own_addresses: self.options.own_addresses.clone(),
        }
    }

    async fn translate(&mut self, now: SystemTime) -> Option<Refreshed> {
        let source = Arc::clone(&self.source);
        let task = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
            let refreshed = source.refresh(now);
            tracing::debug!(took = ?began.elapsed(), objects = ?refreshed.counts, "translated");
            refreshed
        });
        if let Ok(refreshed) = task.await {
            return Some(refreshed);
        }
        tracing::error!("the refresh panicked; what was served before is still served");
        self.next = now + Duration::from_secs(60);
        None
    }

    fn publish(&mut self, refreshed: Refreshed, now: SystemTime) {
        self.next = refreshed.next;
        let asked = Acme::asked_by(&refreshed);
        let answers = refreshed.answers;
        let publications = Arc::new(self.lock_source().publications(&refreshed.translation));
        self.publications.send_if_modified(|known| {
            let changed = *known != publications;
            *known = publications;
            changed
        });
        self.tracker_services.want(&refreshed.translation);
        let statuses = Arc::clone(&refreshed.translation.statuses);
        let probes = refreshed.translation.tracker_probes.clone();
        self.tracked.apply(
            refreshed,
            &self.process,
            &self.store,
            &self.state,
            &self.control,
            now,
        );
        self.served_answers.send_replace(answers);
        self.statuses.send_if_modified(|known| {
            let changed = *known != statuses;
            *known = statuses;
            changed
        });
        if let Some(leader) = &self.leader {
            leader.acme.tell(asked);
            leader.probes.tell(probes);
        }
    }

    /// Begins or ends what only the leader does.
    async fn lead_or_not(&mut self) {
        let leading = self.leadership.borrow_and_update().leading;
        match (leading, self.leader.take()) {
            (true, None) => {
                self.leader = self.lead().await;
                if self.leader.is_some() {
                    self.refresh().await;
                }
            }
            (false, Some(leader)) => self.follow(leader).await,
            (_, leader) => self.leader = leader,
        }
    }

    async fn stop(mut self) {
        let deadline = self.options.settings.timeouts.drain;
        tracing::info!(deadline = ?deadline, "draining; a second signal ends at once");
        self.readiness.set_draining();
        // Who asks at a shared admin port is answered by the one that stays.
        self.handed_on.cancel();
        if let Some(leader) = self.leader.take() {
            self.follow(leader).await;
        }
        self.stop.cancel();
        process::stop_relays(&self.udp).await;
        let edge = self.edge.get().cloned();
        let draining = async {
            match edge {
                Some(edge) => edge.drain(deadline).await,
                None => 0,
            }
        };
        tokio::select! {
            cut = draining => {
                if cut > 0 {
                    tracing::warn!(connections = cut, "connections were cut at the deadline");
                }
            }
            () = process::stop_again(&mut self.signals) => tracing::warn!("ending at once"),
        }
        self.tasks.close();
        // The Lease is given back by now; a dead API server must not hold up the end.
        if tokio::time::timeout(Duration::from_secs(3), self.tasks.wait())
            .await
            .is_err()
        {
            tracing::debug!("tasks were still under way at the end");
        }
        self.admin_stop.cancel();
        tracing::info!("stopped");
    }

    fn lock_source(&self) -> std::sync::MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn changed<T>(news: Option<&mut watch::Receiver<T>>) {
    let changed = match news {
        Some(news) => news.changed().await.ok(),
        None => None,
    };
    if changed.is_none() {
        std::future::pending::<()>().await;
    }
}

/// Waits until nothing changes for a moment.
async fn hold_off(changes: &mut watch::Receiver<u64>) {
    let quiet = async {
        loop {
            changes.mark_unchanged();
            let change = tokio::time::timeout(HOLD_OFF, changes.changed()).await;
            if !matches!(change, Ok(Ok(()))) {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(LONGEST_HOLD_OFF, quiet).await;
    changes.mark_unchanged();
}
