//! One link while it lives: tells the agent what concerns it, listens to what it says, and ends when it must.
//!
//! What is to be said is worked out when there is room to say it, so that an agent that does not listen costs nothing
//! and is told the newest state when it does. A session that must end does so within [`FAREWELL`], heard or not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http_body::Body;
use tidegate_model::{
    Agent, AgentId, Carrier, Mapping, MappingId, MappingVerdict, ObservedSession, StoredKey,
};

use tokio::io::{AsyncRead, AsyncWrite};

use super::probing::Probing;
use super::{Entered, Hub, LinkChange, LiveLink, Orders, Traffic, told};
use crate::admission::Admitted;
use crate::link::LinkError;
use crate::link::edge::{self, EdgeControl, EdgeLink, LinkFacts};
use crate::wire::{self, FromAgent, FromEdge, Retry};

/// How long a session that must end may go on to say so.
const FAREWELL: Duration = Duration::from_millis(500);
/// How often it is looked whether a service is to be tried.
const LOOK: Duration = Duration::from_secs(1);
/// How long an agent has to replace a link that somebody wants replaced.
const MOVE_WITHIN: Duration = Duration::from_secs(30);

/// What is known of a link when it begins.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The agent's process.
    pub instance: String,
    /// Which of its links.
    pub link: u8,
    /// What it runs over.
    pub carrier: Carrier,
    /// The agent's address as the edge sees it.
    pub address: SocketAddr,
    /// Version of the protocol that was agreed on.
    pub protocol: u16,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// One word.
    pub reason: &'static str,
    /// What exactly, if there is more to say.
    pub detail: Option<String>,
}

impl Ended {
    fn new(reason: &'static str) -> Self {
        Self {
            reason,
            detail: None,
        }
    }

    fn of(error: &LinkError) -> Self {
        Self {
            reason: error.reason(),
            detail: Some(tidegate_telemetry::chain(error).to_string()),
        }
    }
}

/// A live link of an agent.
pub(super) struct Session<B: Body + 'static> {
    pub(super) id: u64,
    pub(super) agent: AgentId,
    /// Name of its endpoint.
    pub(super) address: SocketAddr,
    name: String,
    replica: String,
    /// The key that opened it; gone from the agent, the session ends.
    key: StoredKey,
    arrival: Arrival,
    /// Of the agent's program, as it says.
    version: String,
    since: SystemTime,
    link: EdgeLink<B>,
    traffic: Arc<Traffic>,
    /// Whether a drain waits for it.
    attached: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Mappings that the agent has.
    ready: Arc<BTreeMap<MappingId, Arc<Traffic>>>,
    draining: bool,
}

impl<B: Body + 'static> Session<B> {
    /// The link, if new requests may take it.
    pub(super) fn live(&self) -> Option<LiveLink<B>> {
        let state = self.state();
        (!state.draining).then(|| LiveLink {
            session: self.id,
            address: self.address,
            instance: self.arrival.instance.as_str().into(),
            elsewhere: None,
            link: self.link.clone(),
            ready: Arc::clone(&state.ready),
            traffic: Arc::clone(&self.traffic),
        })
    }

    /// The agent's process.
    pub(super) fn instance(&self) -> &str {
        &self.arrival.instance
    }

    /// Takes no new requests, because its agent said so.
    pub(super) fn is_draining(&self) -> bool {
        self.state().draining
    }

    pub(super) fn is_full(&self) -> bool {
        self.link.is_full()
    }

    /// True the first time.
    pub(super) fn detach(&self) -> bool {
        self.attached.swap(false, Ordering::AcqRel)
    }

    pub(super) fn observe(&self) -> ObservedSession {
        let state = self.state();
        let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        ObservedSession {
            id: self.name.clone(),
            instance: self.arrival.instance.clone(),
            link: self.arrival.link,
            carrier: self.arrival.carrier,
            address: self.arrival.address,
            since: self.since,
            rtt: self.link.rtt(),
            version: self.version.clone(),
            replica: self.replica.clone(),
            draining: state.draining,
            in_flight: u64::try_from(self.link.in_flight()).unwrap_or(u64::MAX),
            requests: count(&self.traffic.requests),
            bytes_sent: count(&self.traffic.sent),
            bytes_received: count(&self.traffic.received),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Hub<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Unpin + Send,
{
    /// Serves a link from the end of its handshake to its own. Dropping the future ends it too. `address` is what the
    /// link is told apart by among those of the agent.
    pub async fn serve<I>(
        &self,
        admitted: Admitted,
        arrival: Arrival,
        address: SocketAddr,
        io: I,
    ) -> Ended
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (id, name) = self.next_session();
        let facts = LinkFacts {
            session: name.clone(),
            agent: admitted.agent.id.clone(),
            instance: arrival.instance.clone(),
            link: arrival.link,
        };
        let began = Instant::now();
        let agent = &admitted.agent.id;
        let (carrier, from) = (arrival.carrier.name(), arrival.address);
        let Arrival { instance, link, .. } = &arrival;
        let (way, control, driver) = match edge::open(io, facts).await {
            Ok(open) => open,
            Err(error) => {
                let ended = Ended::of(&error);
                let Ended { reason, detail } = &ended;
                tracing::warn!(%agent, instance, link, carrier, address = %from, session = name, reason, detail, "the link of an agent did not come up");
                return ended;
            }
        };
        let version = control.hello.version.clone();
        let entered = self.enter(&admitted, address, |address| Session {
            id,
            agent: agent.clone(),
            address,
            name: name.clone(),
            replica: self.0.settings.replica.clone(),
            key: admitted.key,
            arrival: arrival.clone(),
            version: version.clone(),
            since: SystemTime::now(),
            link: way,
            traffic: Arc::default(),
            attached: AtomicBool::new(true),
            state: Mutex::default(),
        });
        let session = Arc::clone(&entered.session);
        let left = Leave {
            hub: self.clone(),
            session: Arc::clone(&session),
        };
        tracing::info!(%agent, instance, link, carrier, address = %from, version, session = name, "agent connected");
        let change = LinkChange {
            time: SystemTime::now(),
            agent: agent.clone(),
            session: name.clone(),
            instance: instance.clone(),
            link: *link,
            carrier: arrival.carrier,
            address: from,
            version: version.clone(),
            ended: None,
        };
        self.0.history.add(change.clone());
        let mut talk = Talk::new(self, &session, entered);
        let ended = talk.run(control, driver).await;
        drop(left);
        let seconds = began.elapsed().as_secs_f64();
        let requests = session.traffic.requests.load(Ordering::Relaxed);
        let Ended { reason, detail } = &ended;
        tracing::info!(%agent, instance, link, carrier, address = %from, version, session = name, reason, detail, seconds, requests, "agent disconnected");
        self.0.history.add(LinkChange {
            time: SystemTime::now(),
            ended: Some((ended.clone(), began.elapsed(), requests)),
            ..change
        });
        ended
    }
}

/// Takes the session out, however it ends.
struct Leave<B: Body + 'static> {
    hub: Hub<B>,
    session: Arc<Session<B>>,
}

impl<B: Body + 'static> Drop for Leave<B> {
    fn drop(&mut self) {
        self.hub.leave(&self.session);
    }
}

/// What has been said, and what is to be.
struct Talk<'a, B: Body + 'static> {
    hub: &'a Hub<B>,
    session: &'a Session<B>,
    agent: tokio::sync::watch::Receiver<Option<Arc<Agent>>>,
    orders: tokio::sync::watch::Receiver<Orders>,
    /// How many replicas the agent was told of; None before its Welcome.
    welcomed: Option<u32>,
    /// The last set told, with its number.
    mappings: Option<(u64, Vec<Arc<Mapping>>)>,
    /// Number of the agent's own request, once there is one.
    request: Option<u64>,
    verdicts: Option<(u64, Vec<MappingVerdict>)>,
    drain_told: bool,
    probing: Probing,
    /// When to look at the services again.
    look: Instant,
}

impl<'a, B: Body + 'static> Talk<'a, B> {
    fn new(hub: &'a Hub<B>, session: &'a Session<B>, entered: Entered<B>) -> Self {
        Self {
            hub,
            session,
            agent: entered.agent,
            orders: hub.0.orders.subscribe(),
            welcomed: None,
            mappings: None,
            request: None,
            verdicts: None,
            drain_told: false,
            probing: Probing::default(),
            look: Instant::now() + LOOK,
        }
    }

    async fn run(
        &mut self,
        mut control: EdgeControl,
        driver: impl Future<Output = LinkError>,
    ) -> Ended {
        let mut driver = pin!(driver);
        let bye = loop {
            if let Some(bye) = self.must_end() {
                break bye;
            }
            // Worked out again when there is room: what is told is what is noted as told.
            let speaks = self.next(self.agent.borrow().as_deref()).is_some();
            let room = control.to_agent.reserve();
            tokio::select! {
                biased;
                ended = driver.as_mut() => return self.link_ended(&ended),
                message = control.from_agent.recv() => match message {
                    Some(message) => self.heard(message),
                    None => return self.control_ended(driver.as_mut()).await,
                },
                permit = room, if speaks => {
                    let agent = self.agent.borrow().clone();
                    if let Ok(permit) = permit
                        && let Some(next) = self.next(agent.as_deref())
                    {
                        self.said(&next, agent.as_deref());
                        permit.send(next);
                    }
                }
                changed = self.agent.changed() => if changed.is_err() {
                    // The entry is gone with its hub.
                    break Bye::CLOSING;
                },
                _ = self.orders.changed() => {}
                () = tokio::time::sleep_until(self.look.into()) => self.look_at_services(),
            }
        };
        let message = wire::Bye::new(bye.retry, bye.reason, bye.message);
        let farewell = self.session.link.end(message, FAREWELL);
        tokio::select! {
            _ = driver => {}
            () = farewell => {}
        }
        Ended::new(bye.reason)
    }

    /// Why the session must not go on, if so.
    fn must_end(&mut self) -> Option<Bye> {
        if self.orders.borrow_and_update().close {
            return Some(Bye::CLOSING);
        }
        let agent = self.agent.borrow_and_update();
        match agent.as_deref() {
            None => Some(Bye::DELETED),
            Some(agent) if agent.suspended => Some(Bye::SUSPENDED),
            Some(agent) if !agent.keys.contains(&self.session.key) => Some(Bye::REVOKED),
            Some(_) => None,
        }
    }

    /// What is to be said next, if anything.
    fn next(&self, agent: Option<&Agent>) -> Option<FromEdge> {
        let settings = &self.hub.0.settings;
        let replicas = self.orders.borrow().replicas;
        if self.welcomed != Some(replicas) {
            let welcome = wire::Welcome {
                protocol: u32::from(self.session.arrival.protocol),
                edge_version: settings.version.to_owned(),
                replica: settings.replica.clone(),
                replicas,
                session: self.session.name.clone(),
            };
            return Some(welcome.into());
        }
        let agent = agent?;
        let number = match &self.mappings {
            None => Some(1),
            Some((number, told)) if *told != agent.mappings => Some(number + 1),
            Some(_) => None,
        };
        if let Some(version) = number {
            let mappings = agent.mappings.iter().map(|it| told::mapping(it));
            let mappings = mappings.collect();
            return Some(wire::Mappings { version, mappings }.into());
        }
        if let Some(version) = self.request
            && self
                .verdicts
                .as_ref()
                .is_none_or(|(of, told)| *of != version || *told != agent.verdicts)
        {
            let verdicts = agent.verdicts.iter().map(told::verdict).collect();
            return Some(wire::Verdicts { version, verdicts }.into());
        }
        if !self.drain_told
            && let Some(drain) = &self.orders.borrow().drain
        {
            let left = drain.deadline.saturating_duration_since(Instant::now());
            let drain = wire::Drain {
                deadline_ms: millis(left),
                jitter_ms: millis(drain.jitter),
                reason: "EdgeStops".to_owned(),
            };
            return Some(drain.into());
        }
        if !self.drain_told
            && let Some(reason) = self.orders.borrow().moving.get(&self.session.id)
        {
            let drain = wire::Drain {
                deadline_ms: millis(MOVE_WITHIN),
                jitter_ms: 0,
                reason: (*reason).to_owned(),
            };
            return Some(drain.into());
        }
        self.probing.next().map(FromEdge::from)
    }

    /// Notes what goes out.
    fn said(&mut self, message: &FromEdge, agent: Option<&Agent>) {
        match message {
            FromEdge::Welcome(wire::Welcome { replicas, .. }) => self.welcomed = Some(*replicas),
            FromEdge::Mappings(wire::Mappings { version, .. }) => {
                let told = agent.map(|it| it.mappings.clone()).unwrap_or_default();
                self.mappings = Some((*version, told));
            }
            FromEdge::Verdicts(wire::Verdicts { version, .. }) => {
                let told = agent.map(|it| it.verdicts.clone()).unwrap_or_default();
                self.verdicts = Some((*version, told));
            }
            FromEdge::Drain(_) => self.drain_told = true,
            FromEdge::Probe(wire::Probe { mapping, .. }) => {
                let id = MappingId::parse(mapping);
                let mapping = id.and_then(|id| agent?.mapping(&id).cloned());
                let timeout = mapping.map(|it| it.connect_timeout).unwrap_or_default();
                self.probing.said(timeout, Instant::now());
            }
            _ => {}
        }
    }

    fn heard(&mut self, message: FromAgent) {
        let session = self.session;
        match message {
            FromAgent::Request(wire::Request { version, mappings }) => {
                self.request = Some(version);
                let wishes = mappings.into_iter().map(told::wish).collect();
                self.hub.asked(session, wishes);
            }
            FromAgent::MappingsReady(wire::MappingsReady { version, refused }) => {
                for it in &refused {
                    let (agent, id) = (&session.agent, &it.id);
                    let (reason, message) = (&it.reason, &it.message);
                    tracing::warn!(%agent, mapping = id, reason, message, "the agent cannot serve a mapping");
                }
                if let Some((told, mappings)) = &self.mappings
                    && *told == version
                {
                    let ready = self.hub.traffic_of(session, mappings);
                    session.state().ready = Arc::new(ready);
                    self.hub.changed(session);
                    self.look_at_services();
                }
            }
            FromAgent::Drain(wire::AgentDrain { reason }) => {
                let agent = &session.agent;
                tracing::info!(%agent, session = session.name, reason, "agent drains a link");
                session.state().draining = true;
                self.hub.changed(session);
                self.hub.moved(session);
            }
            FromAgent::DrainDone(_) => {
                if self.orders.borrow().moving.contains_key(&session.id) {
                    session.state().draining = true;
                    self.hub.changed(session);
                }
                self.hub.moved(session);
            }
            FromAgent::ProbeResult(result) => {
                if let Some(interval) = self.probe_interval() {
                    let found = self.probing.heard(&result, Instant::now(), interval);
                    self.hub.probed(session, found);
                }
            }
            // Said once, before the session began; what comes with later versions is not for this one.
            _ => {}
        }
    }

    fn probe_interval(&self) -> Option<Duration> {
        self.agent.borrow().as_ref()?.probe_interval
    }

    /// Sees which services are to be tried, and what has become of those that were.
    fn look_at_services(&mut self) {
        let (session, now) = (self.session, Instant::now());
        self.look = now + LOOK;
        // Another link of the same process does it, or nobody wants it.
        let interval = self.probe_interval();
        let Some(interval) = interval.filter(|_| self.hub.is_to_probe(session)) else {
            if self.probing.stop() && interval.is_none() {
                self.hub.forget_probes(session);
            }
            return;
        };
        let ready: Vec<MappingId> = session.state().ready.keys().cloned().collect();
        self.probing.follow(&ready, now);
        let mut found = self.probing.tick(now, interval);
        if session.is_full() {
            found.extend(self.probing.link_is_full(now, interval));
        }
        self.hub.probed(session, found);
    }

    fn link_ended(&self, error: &LinkError) -> Ended {
        if matches!(error, LinkError::Closed) && self.session.state().draining {
            return Ended::new("AgentLeft");
        }
        Ended::of(error)
    }

    /// The link may be about to say why.
    async fn control_ended(&self, driver: Pin<&mut impl Future<Output = LinkError>>) -> Ended {
        match tokio::time::timeout(FAREWELL, driver).await {
            Ok(ended) => self.link_ended(&ended),
            Err(_) => Ended::new("ControlStreamEnded"),
        }
    }
}

/// The last words of an edge to a session.
struct Bye {
    retry: Retry,
    reason: &'static str,
    message: &'static str,
}

impl Bye {
    const CLOSING: Self = Self {
        retry: Retry::Now,
        reason: "EdgeStops",
        message: "this edge ends; another one, or the next one, has room",
    };
    const DELETED: Self = Self {
        retry: Retry::Never,
        reason: "AgentDeleted",
        message: "the edge knows this agent no more",
    };
    const SUSPENDED: Self = Self {
        retry: Retry::Never,
        reason: "Suspended",
        message: "the agent is suspended",
    };
    const REVOKED: Self = Self {
        retry: Retry::Never,
        reason: "CredentialRevoked",
        message: "the token that this link was opened with is good no more",
    };
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
