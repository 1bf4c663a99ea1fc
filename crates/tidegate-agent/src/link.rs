//! One link from its handshake to its end: what the edge says is done, what it must know is told.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_model::{Carrier, ProxyProtocolVersion, RequestedMapping};
use tidegate_tunnel::link::agent::{self, AgentControl, AgentLink};
use tidegate_tunnel::settings;
use tidegate_tunnel::wire::{self, FromAgent, FromEdge, Retry};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::config::{Edge, TargetRule};
use crate::dial::{Carried, DialError};
use crate::reconnect::Ending;
use crate::table::{Answering, Registry, Table};

/// How often counters are told.
const STATS: Duration = Duration::from_secs(5);
/// After a link's end was agreed on, requests that were under way to it still come.
const SETTLE: Duration = Duration::from_secs(1);
/// Probes that run at once on a link.
const PROBES: usize = 16;

/// What all links of an agent share.
#[derive(Debug)]
pub(crate) struct Common {
    /// The process: 32 hexadecimal digits.
    pub(crate) instance: Arc<str>,
    pub(crate) registry: Registry,
    /// What the agent asks for, with a number that grows.
    pub(crate) wishes: watch::Receiver<Arc<Wishes>>,
    /// Where the edge may send the agent.
    pub(crate) allow: watch::Receiver<Arc<[TargetRule]>>,
    /// What became of the wishes.
    pub(crate) verdicts: watch::Sender<Vec<wire::Verdict>>,
}

/// What the agent asks for.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    /// Grows with each change; 0 where the agent only looks and says nothing.
    pub(crate) version: u64,
    /// All of them.
    pub(crate) mappings: Vec<RequestedMapping>,
}

/// Something that a link's keeper must know.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// The edge ends this link soon: another one is needed first.
    Drain {
        /// Streams may last so long.
        deadline: Duration,
        /// The agent dials at a random moment of this time.
        jitter: Duration,
        /// One word.
        reason: String,
    },
    /// It is over.
    Ended {
        /// For the next dial.
        ending: Ending,
        /// One word.
        reason: String,
        /// For people.
        message: String,
    },
}

/// A registered link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) edge: Edge,
    pub(crate) carrier: Carrier,
    /// What the edge said first.
    pub(crate) welcome: wire::Welcome,
    /// How many replicas the edge has, as it said last.
    pub(crate) replicas: watch::Receiver<u32>,
    pub(crate) since: SystemTime,
    pub(crate) begun: Instant,
    pub(crate) handle: AgentLink,
    pub(crate) table: watch::Receiver<Arc<Table>>,
    pub(crate) events: mpsc::Receiver<Event>,
    to_edge: mpsc::Sender<FromAgent>,
}

/// Starts the link on bytes whose handshake is over, and waits for the edge's Welcome. Dropped before that, the link
/// ends in order.
pub(crate) async fn establish(
    io: Box<dyn Carried>,
    edge: Edge,
    carrier: Carrier,
    number: u8,
    common: &Arc<Common>,
) -> Result<Link, DialError> {
    let hello = wire::Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: common.instance.to_string(),
        link: number,
        os: std::env::consts::OS.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        features: Vec::new(),
    };
    let (tables, table) = watch::channel(Arc::<Table>::default());
    let answering = Answering {
        table: table.clone(),
        counters: Arc::clone(&common.registry.counters),
    };
    let service = move |request| answering.answer(request);
    let (
        AgentControl {
            from_edge,
            to_edge,
            link: handle,
        },
        driver,
    ) = agent::serve(io, hello, service);
    let (event_sender, events) = mpsc::channel(16);
    let (welcome_sender, welcome) = oneshot::channel();
    let (count, replicas) = watch::channel(0);
    let attendant = Attendant {
        common: Arc::clone(common),
        tables,
        to_edge: to_edge.clone(),
        events: event_sender.clone(),
        welcome: Some(welcome_sender),
        replicas: count,
        link: handle.clone(),
        goodbye: None,
    };
    let driving = tokio::spawn(driver);
    tokio::spawn(async move {
        let goodbye = attendant.attend(from_edge).await;
        let end = driving.await;
        let event = goodbye.unwrap_or_else(|| {
            let (reason, message) = match &end {
                Ok(error) => (error.reason(), tidegate_telemetry::chain(error).to_string()),
                Err(_) => ("LinkEnded", "the link's task ended".to_owned()),
            };
            Event::Ended {
                ending: Ending::Network,
                reason: reason.to_owned(),
                message,
            }
        });
        let _ = event_sender.send(event).await;
    });
    let mut guard = Retire {
        handle: Some(handle.clone()),
        to_edge: to_edge.clone(),
    };
    let welcome = match timeout(settings::HELLO_WITHIN, welcome).await {
        Err(_) => {
            return Err(DialError::Timeout(
                "the edge's Welcome",
                settings::HELLO_WITHIN,
            ));
        }
        Ok(Err(_)) => return Err(ended_early(events).await),
        Ok(Ok(welcome)) => welcome,
    };
    guard.handle = None;
    Ok(Link {
        edge,
        carrier,
        welcome,
        replicas,
        since: SystemTime::now(),
        begun: Instant::now(),
        handle,
        table,
        events,
        to_edge,
    })
}

async fn ended_early(mut events: mpsc::Receiver<Event>) -> DialError {
    match timeout(Duration::from_secs(1), events.recv()).await {
        Ok(Some(Event::Ended {
            ending,
            reason,
            message,
        })) => DialError::Bye(format!("{reason}: {message}"), ending),
        _ => DialError::Link(tidegate_tunnel::link::LinkError::Closed),
    }
}

/// Ends a link in order that nobody waits for any more.
struct Retire {
    handle: Option<AgentLink>,
    to_edge: mpsc::Sender<FromAgent>,
}

impl Drop for Retire {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            let _ = self.to_edge.try_send(drain("NotNeeded"));
            handle.finish();
        }
    }
}

fn drain(reason: &str) -> FromAgent {
    FromAgent::Drain(wire::AgentDrain {
        reason: reason.to_owned(),
    })
}

impl Link {
    /// Tells the edge that another link is up; this one ends once its streams have, or at the deadline.
    pub(crate) async fn replaced(self, deadline: Duration) {
        let _ = self
            .to_edge
            .send(FromAgent::DrainDone(wire::DrainDone {}))
            .await;
        self.end_within(deadline).await;
    }

    /// Asks the edge for no more requests, then ends as [`Self::replaced`] does.
    pub(crate) async fn leave(self, reason: &str, deadline: Duration) {
        let _ = self.to_edge.send(drain(reason)).await;
        self.end_within(deadline).await;
    }

    async fn end_within(mut self, deadline: Duration) {
        let ended = async {
            tokio::select! {
                () = self.handle.closed() => return,
                () = sleep(SETTLE) => {}
            }
            self.handle.finish();
            tokio::select! {
                () = self.handle.closed() => {}
                // Somebody must listen, or the link's attendant waits.
                () = async { while self.events.recv().await.is_some() {} } => {}
            }
        };
        if timeout(deadline.max(SETTLE * 2), ended).await.is_err() {
            tracing::info!(
                in_flight = self.handle.in_flight(),
                "a link ends with requests that took too long"
            );
        }
        self.handle.cut();
    }
}

/// Listens to the edge.
struct Attendant {
    common: Arc<Common>,
    tables: watch::Sender<Arc<Table>>,
    to_edge: mpsc::Sender<FromAgent>,
    events: mpsc::Sender<Event>,
    welcome: Option<oneshot::Sender<wire::Welcome>>,
    replicas: watch::Sender<u32>,
    link: AgentLink,
    goodbye: Option<Event>,
}

impl Attendant {
    /// Until the link's end; returns what the edge said last if that was a goodbye.
    async fn attend(mut self, mut from_edge: mpsc::Receiver<FromEdge>) -> Option<Event> {
        let mut wishes = self.common.wishes.clone();
        let mut allow = self.common.allow.clone();
        let mut told = wire::Mappings::default();
        let mut ticks = interval(STATS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let probes = Arc::new(tokio::sync::Semaphore::new(PROBES));
        let first = wishes.borrow_and_update().clone();
        self.wish(&first).await;
        allow.mark_unchanged();
        loop {
            tokio::select! {
                message = from_edge.recv() => match message {
                    None => return self.goodbye,
                    Some(FromEdge::Mappings(mappings)) => {
                        told = mappings;
                        let rules = allow.borrow_and_update().clone();
                        self.take_over(&told, &rules).await;
                    }
                    Some(message) => self.hear(message, &probes).await,
                },
                Ok(()) = wishes.changed() => {
                    let now = wishes.borrow_and_update().clone();
                    self.wish(&now).await;
                }
                Ok(()) = allow.changed() => {
                    let rules = allow.borrow_and_update().clone();
                    self.take_over(&told, &rules).await;
                }
                _ = ticks.tick() => self.tell_stats(),
            }
        }
    }

    async fn hear(&mut self, message: FromEdge, probes: &Arc<tokio::sync::Semaphore>) {
        match message {
            // Said again when the number of replicas has changed.
            FromEdge::Welcome(welcome) => {
                self.replicas.send_replace(welcome.replicas);
                if let Some(waiting) = self.welcome.take() {
                    let _ = waiting.send(welcome);
                }
            }
            FromEdge::Verdicts(verdicts) => self.judge(&verdicts),
            FromEdge::Drain(drain) => {
                let event = Event::Drain {
                    deadline: Duration::from_millis(drain.deadline_ms),
                    jitter: Duration::from_millis(drain.jitter_ms).min(Duration::from_secs(60)),
                    reason: drain.reason,
                };
                let _ = self.events.send(event).await;
            }
            FromEdge::Probe(probe) => self.probe(probe, probes),
            FromEdge::Bye(bye) => {
                let ending = Ending::Bye(bye.retry());
                if bye.retry() == Retry::Never {
                    tracing::error!(
                        reason = &*bye.reason,
                        message = &*bye.message,
                        "the edge does not want this agent any more"
                    );
                }
                let (reason, message) = (bye.reason, bye.message);
                self.goodbye = Some(Event::Ended {
                    ending,
                    reason,
                    message,
                });
                // What is in flight has as long as the edge gives it.
                self.link.finish();
            }
            // Answered by the link itself; and mappings are taken before.
            FromEdge::Ping(_) | FromEdge::Mappings(_) => {}
        }
    }

    /// Streams of mappings that stay are not touched, and those of mappings that go end by themselves.
    async fn take_over(&self, told: &wire::Mappings, allow: &Arc<[TargetRule]>) {
        let table = self.common.registry.table(told, allow);
        tracing::info!(
            mappings = table.entries.len(),
            refused = table.refused.len(),
            version = table.version,
            "mappings taken over"
        );
        for refused in &table.refused {
            let (id, reason, message) = (&*refused.id, &*refused.reason, &*refused.message);
            tracing::warn!(id, reason, message, "a mapping is not served");
        }
        let ready = wire::MappingsReady {
            version: table.version,
            refused: table.refused.clone(),
        };
        self.tables.send_replace(Arc::new(table));
        let _ = self.to_edge.send(ready.into()).await;
    }

    async fn wish(&self, wishes: &Wishes) {
        if wishes.version == 0 {
            return;
        }
        let mappings = wishes.mappings.iter().map(|mapping| wire::Requested {
            name: mapping.name.clone(),
            hostname: mapping.hostname.clone(),
            target: mapping.target.clone(),
            insecure_skip_verify: mapping.insecure_skip_verify,
            description: mapping.description.clone(),
            port: mapping.port,
            proxy_protocol: mapping.proxy_protocol.map(|version| match version {
                ProxyProtocolVersion::V1 => 1,
                ProxyProtocolVersion::V2 => 2,
            }),
        });
        let request = wire::Request {
            version: wishes.version,
            mappings: mappings.collect(),
        };
        let _ = self.to_edge.send(request.into()).await;
    }

    fn judge(&self, verdicts: &wire::Verdicts) {
        self.common.verdicts.send_if_modified(|known| {
            if *known == verdicts.verdicts {
                return false;
            }
            for verdict in verdicts.verdicts.iter().filter(|it| !known.contains(it)) {
                let (name, reason, message) = (&*verdict.name, &*verdict.reason, &*verdict.message);
                if verdict.accepted {
                    tracing::info!(name, "the edge serves a mapping that this agent asks for");
                } else {
                    tracing::warn!(name, reason, message, "the edge does not serve a mapping");
                }
            }
            known.clone_from(&verdicts.verdicts);
            true
        });
    }

    fn probe(&self, probe: wire::Probe, probes: &Arc<tokio::sync::Semaphore>) {
        let to_edge = self.to_edge.clone();
        let table = self.tables.borrow().clone();
        let Ok(permit) = Arc::clone(probes).try_acquire_owned() else {
            tracing::debug!(
                id = probe.id,
                "too many probes at once; one is not answered"
            );
            return;
        };
        tokio::spawn(async move {
            let _permit = permit;
            let micros = |time: Duration| u64::try_from(time.as_micros()).ok();
            let id = tidegate_model::MappingId::parse(&probe.mapping);
            let mut result = wire::ProbeResult {
                id: probe.id,
                ..Default::default()
            };
            match id.and_then(|id| table.entries.get(&id)) {
                None => {
                    "UnknownMapping".clone_into(&mut result.reason);
                    "the agent was not told of that mapping".clone_into(&mut result.message);
                }
                Some(entry) => {
                    let went = entry.upstream.probe().await;
                    result.connect_us = went.connect.and_then(micros);
                    result.total_us = micros(went.total);
                    match went.result {
                        Ok(found) => (result.ok, result.message) = (true, found),
                        Err(failure) => {
                            failure.reason.name().clone_into(&mut result.reason);
                            result.message = failure.message;
                        }
                    }
                }
            }
            let _ = to_edge.send(result.into()).await;
        });
    }

    /// Counters that find no room are told the next time.
    fn tell_stats(&self) {
        let all = self.common.registry.counters.read();
        let table = self.tables.borrow().clone();
        let mut mappings: Vec<wire::MappingCount> = table
            .entries
            .values()
            .map(|entry| {
                let counts = entry.upstream.counters.read();
                wire::MappingCount {
                    id: entry.upstream.id.to_string(),
                    in_flight: counts.in_flight,
                    requests: counts.requests,
                    failed: counts.failed,
                }
            })
            .collect();
        mappings.sort_by(|one, other| one.id.cmp(&other.id));
        let stats = wire::Stats {
            in_flight: all.in_flight,
            requests: all.requests,
            failed: all.failed,
            mappings,
        };
        let _ = self.to_edge.try_send(stats.into());
    }
}
