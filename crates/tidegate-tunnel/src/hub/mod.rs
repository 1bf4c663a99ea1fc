//! Which agents are connected, by which links, and what they and the edge tell each other.
//!
//! ```text
//! snapshot ─► apply ─► sessions: Mappings, Verdicts, Bye          handshake ─► admit ─► serve ─► session
//! session ─► links ─► endpoints of clusters                       session ─► requested ─► translate
//! ```
//!
//! Requests never come here: they find their link in the endpoints of their cluster, which follow [`Hub::links`]. All
//! locks are held for a moment and never across a wait. Several sessions of one agent are a pool; none evicts another.
//!
//! Other replicas of the edge say which agents they have links to (`replicas`); those are links too, one hop away.

mod history;
mod probing;
mod rebalance;
mod replicas;
mod session;
#[cfg(test)]
mod tests;
mod told;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http_body::Body;
use tidegate_model::{
    Agent, AgentId, Mapping, MappingId, ObservedAgent, ObservedProbe, RequestedMapping,
};
use tokio::sync::{broadcast, watch};

use crate::admission::{Admission, Admitted, Attempt, Denial, Refused};
use crate::link::edge::EdgeLink;
use history::History;
pub use history::LinkChange;
use probing::Finding;
pub use rebalance::Rebalance;
pub use replicas::{Channel, ChannelView};
use replicas::{ChannelState, Remote};
use session::Session;
pub use session::{Arrival, Ended};

/// Requests wait for an agent that was connected less than this ago.
pub const LATELY: Duration = Duration::from_secs(60);

/// Links of one agent at a time: some instances with two each, old ones and their replacements.
const MOST_SESSIONS: usize = 64;

/// Who this edge is.
#[derive(Debug, Clone, Default)]
pub struct HubSettings {
    /// Name of this replica.
    pub replica: String,
    /// How many replicas there are, until [`Hub::set_replicas`] says otherwise.
    pub replicas: u32,
    /// Version of the edge's program.
    pub version: &'static str,
}

/// A link that requests may take.
pub struct LiveLink<B: Body + 'static> {
    /// Its session, unique for the life of the hub.
    pub session: u64,
    /// What its endpoint is called: the agent's address as the edge sees it, or the replica's. Unique among the agent's
    /// links.
    pub address: SocketAddr,
    /// The agent's process.
    pub instance: Arc<str>,
    /// The replica that the link ends at, where that is another one: `link` is then the channel to it.
    pub elsewhere: Option<Elsewhere>,
    /// The link.
    pub link: EdgeLink<B>,
    /// Mappings that the agent has and has said so, with what passes for them over all links.
    pub ready: Arc<BTreeMap<MappingId, Arc<Traffic>>>,
    /// What passes over it.
    pub traffic: Arc<Traffic>,
}

/// Another replica that has a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    /// Its name.
    pub replica: Arc<str>,
    /// It ends soon.
    pub draining: bool,
}

impl<B: Body + 'static> Clone for LiveLink<B> {
    fn clone(&self) -> Self {
        Self {
            session: self.session,
            address: self.address,
            instance: Arc::clone(&self.instance),
            elsewhere: self.elsewhere.clone(),
            link: self.link.clone(),
            ready: Arc::clone(&self.ready),
            traffic: Arc::clone(&self.traffic),
        }
    }
}

impl<B: Body + 'static> std::fmt::Debug for LiveLink<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveLink")
            .field("session", &self.session)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// The links of an agent at one moment: those that end here, oldest first, then those that end at other replicas.
pub type Links<B> = Arc<[LiveLink<B>]>;

/// Those of an agent's links that requests for a mapping take: what ends here, else what ends at another replica, and
/// at one that ends soon only where there is no other. `everywhere` is for those who are to come back to the same
/// process of the agent, wherever it is: each has a link then, one that ends here where there is one.
pub fn usable<'a, B: Body + 'static>(
    links: &'a [LiveLink<B>],
    mapping: &MappingId,
    everywhere: bool,
) -> Vec<&'a LiveLink<B>> {
    let good = || links.iter().filter(|it| it.ready.contains_key(mapping));
    let mut chosen: Vec<_> = good().filter(|it| it.elsewhere.is_none()).collect();
    for draining in [false, true] {
        if !chosen.is_empty() && !everywhere {
            break;
        }
        let here: Vec<_> = chosen.iter().map(|it| Arc::clone(&it.instance)).collect();
        let others = good().filter(|it| {
            let elsewhere = it.elsewhere.as_ref();
            elsewhere.is_some_and(|it| it.draining == draining) && !here.contains(&it.instance)
        });
        chosen.extend(others);
    }
    chosen
}

/// What has passed over a link.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Requests, tunnels included.
    pub requests: AtomicU64,
    /// Bytes of bodies and tunnels towards the agent.
    pub sent: AtomicU64,
    /// Bytes of bodies and tunnels from it.
    pub received: AtomicU64,
}

/// What has passed for a mapping of an agent, over all links.
#[derive(Debug)]
pub struct MappingTraffic {
    /// The agent.
    pub agent: AgentId,
    /// The mapping.
    pub mapping: Arc<Mapping>,
    /// What has passed.
    pub traffic: Arc<Traffic>,
}

/// What every agent asks for itself, as far as it was heard.
pub type Requested = Arc<BTreeMap<AgentId, Vec<RequestedMapping>>>;

/// All agents of an edge. Cheap to clone. `B` is the body of requests.
pub struct Hub<B: Body + 'static>(Arc<Inner<B>>);

struct Inner<B: Body + 'static> {
    settings: HubSettings,
    started: Instant,
    admission: Admission,
    next_session: AtomicU64,
    /// Makes the ids of sessions unique for good.
    process: u64,
    table: Mutex<BTreeMap<AgentId, Entry<B>>>,
    requested: watch::Sender<Requested>,
    orders: watch::Sender<Orders>,
    /// Channels to other replicas.
    channels: Mutex<Vec<Arc<ChannelState<B>>>>,
    /// Changes with what other replicas are told: the agents that have links here.
    here: watch::Sender<u64>,
    /// Sessions that live and, while the edge drains, have not said that they are replaced.
    attached: watch::Sender<usize>,
    history: History,
}

/// What the whole edge asks of all sessions.
#[derive(Debug, Clone, Default)]
struct Orders {
    drain: Option<Drain>,
    /// Sessions that are to be replaced, and why.
    moving: BTreeMap<u64, &'static str>,
    /// How many replicas there are.
    replicas: u32,
    close: bool,
}

/// When agents have to have moved.
#[derive(Debug, Clone)]
struct Drain {
    deadline: Instant,
    /// Within which each begins at a moment of its own.
    jitter: Duration,
}

/// What is known of an agent, connected or not.
struct Entry<B: Body + 'static> {
    /// Of the snapshot that told of it last.
    revision: u64,
    /// As the snapshot has it; None when it has it no more.
    agent: watch::Sender<Option<Arc<Agent>>>,
    links: watch::Sender<Links<B>>,
    /// Oldest first.
    sessions: Vec<Arc<Session<B>>>,
    /// The same at other replicas.
    remote: Vec<Remote<B>>,
    /// What the newest session asked for, kept when it goes.
    requested: Vec<RequestedMapping>,
    /// A snapshot had the agent, and the last one has it no more.
    gone: bool,
    left: Option<(Instant, SystemTime)>,
    /// When the last replica with a link to it had none any more.
    left_elsewhere: Option<Instant>,
    /// Of mappings that the agent has.
    traffic: BTreeMap<MappingId, Arc<Traffic>>,
    /// What probes have shown last, by the agent's process and the mapping.
    probes: BTreeMap<(String, MappingId), Finding>,
}

impl<B: Body + 'static> Clone for Hub<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B: Body + 'static> std::fmt::Debug for Hub<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("settings", &self.0.settings)
            .finish_non_exhaustive()
    }
}

impl<B: Body + 'static> Default for Entry<B> {
    fn default() -> Self {
        Self {
            revision: 0,
            agent: watch::Sender::new(None),
            links: watch::Sender::new(Arc::new([])),
            sessions: Vec::new(),
            remote: Vec::new(),
            requested: Vec::new(),
            gone: false,
            left: None,
            left_elsewhere: None,
            traffic: BTreeMap::new(),
            probes: BTreeMap::new(),
        }
    }
}

// === what the edge calls ===

impl<B: Body + 'static> Hub<B> {
    /// A hub without agents.
    pub fn new(settings: HubSettings) -> Self {
        let now = Instant::now();
        let orders = Orders {
            replicas: settings.replicas,
            ..Orders::default()
        };
        Self(Arc::new(Inner {
            settings,
            started: now,
            admission: Admission::new(now, SystemTime::now()),
            next_session: AtomicU64::new(1),
            process: fastrand::u64(..),
            table: Mutex::default(),
            requested: watch::Sender::default(),
            orders: watch::Sender::new(orders),
            channels: Mutex::default(),
            here: watch::Sender::default(),
            attached: watch::Sender::default(),
            history: History::default(),
        }))
    }

    /// Takes the agents of a snapshot, of which `revision` counts: sessions are told what concerns them, those that
    /// may no longer be end.
    pub fn apply(&self, revision: u64, agents: &BTreeMap<AgentId, Arc<Agent>>) {
        let mut table = self.table();
        for (id, agent) in agents {
            let entry = table.entry(id.clone()).or_default();
            let news = entry.learn(revision, agent);
            entry.traffic.retain(|id, _| agent.mapping(id).is_some());
            entry
                .probes
                .retain(|(_, id), _| agent.mapping(id).is_some());
            if news && !entry.remote.is_empty() {
                entry.count_elsewhere();
                entry.publish_links();
            }
        }
        let mut gone = false;
        table.retain(|id, entry| {
            if agents.contains_key(id) || entry.revision > revision {
                return true;
            }
            entry.revision = revision;
            entry.gone |= entry.agent.send_if_modified(|known| known.take().is_some());
            gone |= !std::mem::take(&mut entry.requested).is_empty();
            // Whoever follows the links of an agent goes on to do so if it comes back.
            !entry.sessions.is_empty()
                || !entry.remote.is_empty()
                || entry.links.receiver_count() > 0
        });
        if gone {
            self.publish_requested(&table);
        }
    }

    /// Judges a handshake against the agents of the current snapshot, which may be newer than what was applied.
    ///
    /// # Errors
    /// Says what to answer, and what to log.
    pub fn admit(
        &self,
        revision: u64,
        agents: &BTreeMap<AgentId, Arc<Agent>>,
        attempt: &Attempt<'_>,
        now: SystemTime,
    ) -> Result<Admitted, Refused> {
        if self.0.orders.borrow().drain.is_some() {
            return Err(Refused {
                denial: Denial::Draining,
                why: "Draining",
            });
        }
        let admission = &self.0.admission;
        let admitted = admission.judge(agents, attempt, Instant::now(), now)?;
        let mut table = self.table();
        let entry = table.entry(admitted.agent.id.clone()).or_default();
        entry.learn(revision, &admitted.agent);
        if entry.sessions.len() >= MOST_SESSIONS {
            return Err(Refused {
                denial: Denial::TooMany {
                    retry_after: Duration::from_secs(30),
                },
                why: "TooManyLinks",
            });
        }
        Ok(admitted)
    }

    /// The links of an agent, now and from now on. Those that an agent drains are not among them.
    pub fn links(&self, agent: &AgentId) -> watch::Receiver<Links<B>> {
        let mut table = self.table();
        let entry = table.entry(agent.clone()).or_default();
        entry.links.subscribe()
    }

    /// How long a request may wait for the agent; None when it was not here lately.
    pub fn patience(&self, agent: &AgentId) -> Option<Duration> {
        let table = self.table();
        let entry = table.get(agent);
        let here = entry.is_some_and(Entry::was_here_lately);
        // It may have been connected to the process before this one.
        if !here && self.0.started.elapsed() >= LATELY {
            return None;
        }
        let Some(entry) = entry else {
            // A request may be faster than those who look at a new snapshot.
            return Some(Agent::HOLD);
        };
        let agent = entry.agent.borrow();
        match agent.as_ref() {
            None if entry.gone => None,
            agent => Some(agent.map_or(Agent::HOLD, |it| it.hold)),
        }
    }

    /// What agents ask for.
    pub fn requested(&self) -> watch::Receiver<Requested> {
        self.0.requested.subscribe()
    }

    /// Live sessions of all agents.
    pub fn sessions(&self) -> usize {
        self.table().values().map(|it| it.sessions.len()).sum()
    }

    /// Everything that is known of agents that are connected or were, sorted by id.
    pub fn observe(&self) -> Vec<ObservedAgent> {
        let now = SystemTime::now();
        let table = self.table();
        let known = table
            .iter()
            .filter(|(_, entry)| !entry.sessions.is_empty() || entry.left.is_some());
        known
            .map(|(id, entry)| ObservedAgent {
                id: id.clone(),
                sessions: entry.sessions.iter().map(|it| it.observe()).collect(),
                requested: entry.requested.clone(),
                last_seen: if entry.sessions.is_empty() {
                    entry.left.map(|(_, at)| at)
                } else {
                    Some(now)
                },
                probes: entry.observe_probes(),
            })
            .collect()
    }

    /// How many links of each connected agent take no requests, because too many of their visitors do not read.
    pub fn full(&self) -> Vec<(AgentId, usize)> {
        let table = self.table();
        let connected = table.iter().filter(|(_, it)| !it.sessions.is_empty());
        connected
            .map(|(id, entry)| {
                let full = entry.sessions.iter().filter(|it| it.is_full());
                (id.clone(), full.count())
            })
            .collect()
    }

    /// What has passed for each mapping that an agent has taken.
    pub fn traffic(&self) -> Vec<MappingTraffic> {
        let table = self.table();
        let mut all = Vec::new();
        for (id, entry) in &*table {
            let Some(agent) = entry.agent.borrow().clone() else {
                continue;
            };
            let known = agent.mappings.iter().filter_map(|mapping| {
                let traffic = entry.traffic.get(&mapping.id)?;
                Some(MappingTraffic {
                    agent: id.clone(),
                    mapping: Arc::clone(mapping),
                    traffic: Arc::clone(traffic),
                })
            });
            all.extend(known);
        }
        all
    }

    /// Asks an agent to replace each of its links by a new one. Old ones are used until then. Returns how many there are;
    /// None where the agent was never heard of.
    pub fn reconnect(&self, agent: &AgentId) -> Option<usize> {
        let table = self.table();
        let sessions: Vec<u64> = table.get(agent)?.sessions.iter().map(|it| it.id).collect();
        drop(table);
        let count = sessions.len();
        let sessions = sessions.into_iter();
        self.0
            .orders
            .send_modify(|orders| orders.moving.extend(sessions.map(|id| (id, "Reconnect"))));
        Some(count)
    }

    /// The newest links that came and went, oldest first.
    pub fn history(&self) -> Vec<Arc<LinkChange>> {
        self.0.history.all()
    }

    /// Links that come and go from now on.
    pub fn changes(&self) -> broadcast::Receiver<Arc<LinkChange>> {
        self.0.history.subscribe()
    }

    /// Asks every agent to connect elsewhere, or to the next process, before the deadline. New handshakes are
    /// refused. Links stay in use until [`Hub::close`].
    ///
    /// Returns within what time agents begin to do so.
    pub fn begin_drain(&self, within: Duration) -> Duration {
        let agents = u32::try_from(self.sessions()).unwrap_or(u32::MAX);
        // Fifty a second, but never so late that the last ones have no time.
        let jitter = (Duration::from_secs(1) / 50 * agents)
            .min(Duration::from_secs(10))
            .min(within / 2);
        self.0.orders.send_modify(|orders| {
            orders.drain.get_or_insert(Drain {
                deadline: Instant::now() + within,
                jitter,
            });
        });
        self.here_changed();
        jitter
    }

    /// After [`Hub::begin_drain`]: waits until every agent has said that it is connected elsewhere, or has gone.
    pub async fn until_moved(&self) {
        let mut attached = self.0.attached.subscribe();
        // The sender lives in self.
        let _ = attached.wait_for(|attached| *attached == 0).await;
    }

    /// Ends every session; agents come back at once, to whoever serves then.
    pub fn close(&self) {
        self.0.orders.send_modify(|orders| orders.close = true);
    }

    /// Returns after [`Hub::close`].
    pub async fn closed(&self) {
        let mut orders = self.0.orders.subscribe();
        // The sender lives in self.
        let _ = orders.wait_for(|orders| orders.close).await;
    }

    /// Takes over how many replicas there are; agents are told.
    pub fn set_replicas(&self, replicas: u32) {
        self.0.orders.send_if_modified(|orders| {
            let news = orders.replicas != replicas;
            orders.replicas = replicas;
            news
        });
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<AgentId, Entry<B>>> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === what sessions call ===

impl<B: Body + 'static> Hub<B> {
    /// Takes a session in; it ends at once if its key was taken back meanwhile. Its endpoint's address is made unique.
    fn enter(
        &self,
        admitted: &Admitted,
        mut address: SocketAddr,
        make: impl FnOnce(SocketAddr) -> Session<B>,
    ) -> Entered<B> {
        let mut table = self.table();
        let entry = table.entry(admitted.agent.id.clone()).or_default();
        address = entry.free_address(address);
        let session = Arc::new(make(address));
        entry.sessions.push(Arc::clone(&session));
        self.0.attached.send_modify(|attached| *attached += 1);
        Entered {
            session,
            agent: entry.agent.subscribe(),
        }
    }

    fn leave(&self, session: &Session<B>) {
        let mut table = self.table();
        let Some(entry) = table.get_mut(&session.agent) else {
            return;
        };
        entry.sessions.retain(|it| it.id != session.id);
        entry.left = Some((Instant::now(), SystemTime::now()));
        let instance = session.instance();
        if !entry.sessions.iter().any(|it| it.instance() == instance) {
            entry.probes.retain(|(of, _), _| of != instance);
        }
        entry.publish_links();
        self.here_changed();
        if session.detach() {
            self.0.attached.send_modify(|attached| *attached -= 1);
        }
        // Nobody needs to hear that.
        self.0.orders.send_if_modified(|orders| {
            orders.moving.remove(&session.id);
            false
        });
    }

    /// The session's agent is connected elsewhere too.
    fn moved(&self, session: &Session<B>) {
        if session.detach() {
            self.0.attached.send_modify(|attached| *attached -= 1);
        }
    }

    /// What a session is good for has changed.
    fn changed(&self, session: &Session<B>) {
        if let Some(entry) = self.table().get(&session.agent) {
            entry.publish_links();
            self.here_changed();
        }
    }

    /// Whether it is the session's to try the services of its agent's process: one of its links does.
    fn is_to_probe(&self, session: &Session<B>) -> bool {
        let table = self.table();
        let sessions = table.get(&session.agent).map_or(&[][..], |it| &it.sessions);
        let mut staying = sessions
            .iter()
            .filter(|it| it.instance() == session.instance() && it.live().is_some());
        staying.next().is_some_and(|first| first.id == session.id)
    }

    fn probed(&self, session: &Session<B>, findings: impl IntoIterator<Item = Finding>) {
        let mut table = self.table();
        let Some(entry) = table.get_mut(&session.agent) else {
            return;
        };
        for finding in findings {
            let key = (session.instance().to_owned(), finding.mapping.clone());
            entry.probes.insert(key, finding);
        }
    }

    fn forget_probes(&self, session: &Session<B>) {
        if let Some(entry) = self.table().get_mut(&session.agent) {
            let instance = session.instance();
            entry.probes.retain(|(of, _), _| of != instance);
        }
    }

    fn here_changed(&self) {
        self.0.here.send_modify(|version| *version += 1);
    }

    fn asked(&self, session: &Session<B>, wishes: Vec<RequestedMapping>) {
        let mut table = self.table();
        let Some(entry) = table.get_mut(&session.agent) else {
            return;
        };
        if entry.requested != wishes {
            entry.requested = wishes;
            self.publish_requested(&table);
        }
    }

    fn publish_requested(&self, table: &BTreeMap<AgentId, Entry<B>>) {
        let wishes = table.iter().filter(|(_, it)| !it.requested.is_empty());
        let wishes: BTreeMap<_, _> = wishes
            .map(|(id, entry)| (id.clone(), entry.requested.clone()))
            .collect();
        self.0.requested.send_if_modified(|known| {
            let news = **known != wishes;
            if news {
                *known = Arc::new(wishes);
            }
            news
        });
    }

    fn next_session(&self) -> (u64, String) {
        let id = self.0.next_session.fetch_add(1, Ordering::Relaxed);
        (id, format!("{:016x}-{id}", self.0.process))
    }

    /// The counters of the mappings that a session is good for.
    fn traffic_of(
        &self,
        session: &Session<B>,
        mappings: &[Arc<Mapping>],
    ) -> BTreeMap<MappingId, Arc<Traffic>> {
        let mut table = self.table();
        let entry = table.entry(session.agent.clone()).or_default();
        entry.counters(mappings.iter().map(|mapping| &mapping.id))
    }
}

struct Entered<B: Body + 'static> {
    session: Arc<Session<B>>,
    agent: watch::Receiver<Option<Arc<Agent>>>,
}

impl<B: Body + 'static> Entry<B> {
    /// Takes the agent as a snapshot has it, unless a newer one is known.
    /// Returns whether it is another than before.
    fn learn(&mut self, revision: u64, agent: &Arc<Agent>) -> bool {
        if revision < self.revision {
            return false;
        }
        self.revision = revision;
        self.gone = false;
        self.agent.send_if_modified(|known| {
            let news = known.as_ref() != Some(agent);
            if news {
                *known = Some(Arc::clone(agent));
            }
            news
        })
    }

    fn was_here_lately(&self) -> bool {
        let lately = |left: Instant| left.elapsed() < LATELY;
        !self.sessions.is_empty()
            || !self.remote.is_empty()
            || self.left.is_some_and(|(left, _)| lately(left))
            || self.left_elsewhere.is_some_and(lately)
    }

    /// The address, or one like it, that no link of the agent has.
    fn free_address(&self, mut address: SocketAddr) -> SocketAddr {
        while self.sessions.iter().any(|it| it.address == address)
            || self.remote.iter().any(|it| it.address == address)
        {
            address.set_port(address.port().wrapping_add(1));
        }
        address
    }

    fn counters<'a>(
        &mut self,
        mappings: impl Iterator<Item = &'a MappingId>,
    ) -> BTreeMap<MappingId, Arc<Traffic>> {
        let counted = mappings.map(|id| {
            let traffic = self.traffic.entry(id.clone()).or_default();
            (id.clone(), Arc::clone(traffic))
        });
        counted.collect()
    }

    fn publish_links(&self) {
        let here = self.sessions.iter().filter_map(|it| it.live());
        let elsewhere = self.remote.iter().filter_map(Remote::live);
        self.links.send_replace(here.chain(elsewhere).collect());
    }

    fn observe_probes(&self) -> Vec<ObservedProbe> {
        let agent = self.agent.borrow();
        let Some(agent) = agent.as_deref() else {
            return Vec::new();
        };
        let of = |((instance, id), finding): (&(String, MappingId), &Finding)| {
            let mapping = agent.mapping(id)?;
            Some(ObservedProbe {
                names: mapping.names.clone(),
                target: mapping.target.to_string(),
                instance: instance.clone(),
                connect: finding.connect,
                total: finding.total,
                failure: finding.failure.clone(),
            })
        };
        self.probes.iter().filter_map(of).collect()
    }
}
