//! What happened lately: the logs of connections and of requests, and who wants to hear of it at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use axum::http::StatusCode;
use serde_json::{Map, Value as Json, json};
use tidegate_model::ObjectName;
use tidegate_proxy::{LinkChange, RunningEdge};
use tidegate_telemetry::{AccessEntry, AccessValue, access_entries, spawn_named};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use crate::admin::{ControlView, rfc3339};
use crate::rest::desk::{Connection, Edge, Event, EventKind};
use crate::rest::problem::Problem;

/// Entries of a log.
const KEPT: usize = 1000;
/// Events that a slow listener may be behind.
const BEHIND: usize = 256;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Happenings(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    requests: Mutex<VecDeque<Json>>,
    events: broadcast::Sender<Event>,
    logged: bool,
    edge: Arc<OnceLock<RunningEdge>>,
}

impl Happenings {
    /// Listens to the control side, and to the access log if there is one, from now on.
    pub(super) fn follow(
        control: watch::Receiver<Arc<ControlView>>,
        edge: Arc<OnceLock<RunningEdge>>,
        logged: bool,
    ) -> Self {
        let this = Self(Arc::new(Inner {
            requests: Mutex::default(),
            events: broadcast::Sender::new(BEHIND),
            logged,
            edge,
        }));
        spawn_named("api-status", this.clone().follow_control(control));
        if logged {
            spawn_named("api-requests", this.clone().follow_requests());
        }
        this
    }

    async fn follow_control(self, mut control: watch::Receiver<Arc<ControlView>>) {
        let mut listens = false;
        loop {
            // There may be an edge only after the first publication.
            if !listens && let Some(edge) = self.0.edge.get() {
                listens = true;
                let changes = edge.link_changes();
                spawn_named("api-agents", self.clone().follow_agents(changes));
            }
            if control.changed().await.is_err() {
                return;
            }
            let revision = control.borrow_and_update().revision;
            self.tell(Event {
                kind: EventKind::Status,
                data: json!({"revision": revision}),
            });
        }
    }

    async fn follow_agents(self, mut changes: broadcast::Receiver<Arc<LinkChange>>) {
        loop {
            match changes.recv().await {
                Ok(change) => self.tell(Event {
                    kind: EventKind::Agent,
                    data: json!(connection(&change)),
                }),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    async fn follow_requests(self) {
        let mut entries = access_entries();
        loop {
            let entry = match entries.recv().await {
                Ok(entry) => entry,
                // Too many at one time to be looked at anyway.
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return,
            };
            let entry = shown(&entry, SystemTime::now());
            let mut kept = self.lock();
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(entry.clone());
            drop(kept);
            self.tell(Event {
                kind: EventKind::Request,
                data: entry,
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Json>> {
        (self.0.requests.lock()).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Edge for Happenings {
    fn reconnect(&self, agent: &ObjectName) -> Result<usize, Problem> {
        let told = self
            .0
            .edge
            .get()
            .and_then(|edge| edge.reconnect_agent(agent));
        told.filter(|links| *links > 0).ok_or_else(|| {
            let detail = format!("agent {agent} is not connected to this edge");
            Problem::new(StatusCode::CONFLICT, "AgentNotConnected", detail)
        })
    }

    fn connections(&self) -> Vec<Connection> {
        let history = self.0.edge.get().map(RunningEdge::link_history);
        let history = history.unwrap_or_default();
        history.iter().map(|change| connection(change)).collect()
    }

    fn requests(&self) -> Option<Vec<Json>> {
        self.0.logged.then(|| self.lock().iter().cloned().collect())
    }

    fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.events.subscribe()
    }

    fn tell(&self, event: Event) {
        // Nobody may be listening.
        let _ = self.0.events.send(event);
    }
}

fn shown(entry: &AccessEntry, now: SystemTime) -> Json {
    let fields = entry.fields.iter().map(|(name, value)| {
        let value = match value {
            AccessValue::Text(text) => text.as_str().into(),
            AccessValue::Count(count) => (*count).into(),
            AccessValue::Number(number) => (*number).into(),
            AccessValue::Flag(flag) => (*flag).into(),
        };
        ((*name).to_owned(), value)
    });
    let time = ("time".to_owned(), rfc3339(now).into());
    Json::Object([time].into_iter().chain(fields).collect::<Map<_, _>>())
}

fn connection(change: &LinkChange) -> Connection {
    let (reason, duration, requests) = match &change.ended {
        None => (None, None, None),
        Some((ended, duration, requests)) => (
            Some(ended.reason.to_owned()),
            Some(duration.as_secs()),
            Some(*requests),
        ),
    };
    Connection {
        time: rfc3339(change.time),
        namespace: change.agent.namespace.to_string(),
        agent: change.agent.name.to_string(),
        event: if reason.is_some() {
            "disconnected"
        } else {
            "connected"
        }
        .to_owned(),
        session: change.session.clone(),
        instance: change.instance.clone(),
        carrier: change.carrier.name().to_owned(),
        address: change.address.to_string(),
        version: change.version.clone(),
        link: change.link,
        reason,
        requests,
        duration_seconds: duration,
    }
}
