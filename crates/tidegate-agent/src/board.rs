//! What the agent knows of itself, for its status page. Holds no secret.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tidegate_tunnel::link::agent::AgentLink;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use crate::config::Edge;
use crate::link::Link;
use crate::table::Table;

/// What a link does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Being dialled.
    Connecting,
    /// Up.
    Connected,
    /// Down, until the next try.
    Waiting,
    /// Ending with the agent.
    Stopping,
    /// Ended with the agent.
    Stopped,
}

/// The whole agent at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusView {
    /// Version of the program.
    pub version: String,
    /// Process number.
    pub pid: u32,
    /// The process as edges know it.
    pub instance: String,
    /// Namespace and name.
    pub agent: String,
    /// Start of the process, RFC 3339.
    pub started_at: String,
    /// In the order in which they are tried.
    pub edges: Vec<String>,
    /// Whether a link is up.
    pub connected: bool,
    /// All links.
    pub links: Vec<LinkView>,
    /// What the edge may ask for.
    pub mappings: Vec<MappingView>,
    /// What the edge wants and this agent does not serve.
    pub refused: Vec<RefusedView>,
    /// What this agent asks the edge for.
    pub requested: Vec<RequestedView>,
}

/// One link.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkView {
    /// From 0.
    pub link: u8,
    /// What it does.
    pub phase: Phase,
    /// Where it ends; only while it is up.
    #[serde(flatten)]
    pub up: Option<UpView>,
    /// What went wrong last.
    pub last_error: Option<ErrorView>,
}

/// A link that is up.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpView {
    /// The edge.
    pub edge: String,
    /// `Direct` or `WebSocket`.
    pub carrier: String,
    /// The edge's replica.
    pub replica: String,
    /// How many replicas there are.
    pub replicas: u32,
    /// The link's name at the edge.
    pub session: String,
    /// RFC 3339.
    pub since: String,
    /// Requests being answered.
    pub in_flight: usize,
    /// Requests so far.
    pub requests: u64,
    /// Bytes from the edge so far.
    pub bytes_received: u64,
    /// Bytes to the edge so far.
    pub bytes_sent: u64,
}

/// Something that went wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorView {
    /// The edge.
    pub edge: String,
    /// One word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// RFC 3339.
    pub at: String,
}

/// A mapping that is served.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MappingView {
    /// Whose it is.
    pub names: Vec<String>,
    /// Where it leads.
    pub target: String,
    /// As it stands in logs of the edge.
    pub id: String,
    /// Requests being answered.
    pub in_flight: u64,
    /// Requests so far.
    pub requests: u64,
    /// Requests that the target did not answer.
    pub failed: u64,
}

/// A mapping that is not served.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedView {
    /// As the edge calls it.
    pub id: String,
    /// One word.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// A mapping that the agent asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestedView {
    /// Its name.
    pub name: String,
    /// What visitors ask for.
    pub hostname: String,
    /// Where it leads.
    pub target: String,
    /// Whether the edge serves it; unknown until it says.
    pub accepted: Option<bool>,
    /// One word of the edge.
    pub reason: String,
    /// What the edge found.
    pub message: String,
}

/// Where keepers write.
#[derive(Debug)]
pub(crate) struct Board(Mutex<Vec<Slot>>);

#[derive(Debug)]
struct Slot {
    phase: Phase,
    up: Option<Up>,
    last_error: Option<ErrorView>,
}

#[derive(Debug)]
struct Up {
    view: UpView,
    handle: AgentLink,
    table: watch::Receiver<std::sync::Arc<Table>>,
    replicas: watch::Receiver<u32>,
}

impl Board {
    pub(crate) fn new(links: u8) -> Self {
        let slot = || Slot {
            phase: Phase::Connecting,
            up: None,
            last_error: None,
        };
        Self(Mutex::new((0..links).map(|_| slot()).collect()))
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, number: u8, change: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.slots().get_mut(usize::from(number)) {
            change(slot);
        }
    }

    /// A link does something else now; whether it is up does not change.
    pub(crate) fn phase(&self, number: u8, phase: Phase) {
        self.with(number, |slot| {
            slot.phase = phase;
            if phase == Phase::Stopped {
                slot.up = None;
            }
        });
    }

    pub(crate) fn up(&self, number: u8, link: &Link) {
        let view = UpView {
            edge: link.edge.authority(),
            carrier: link.carrier.name().to_owned(),
            replica: link.welcome.replica.clone(),
            replicas: link.welcome.replicas,
            session: link.welcome.session.clone(),
            since: stamp(link.since),
            in_flight: 0,
            requests: 0,
            bytes_received: 0,
            bytes_sent: 0,
        };
        let up = Up {
            view,
            handle: link.handle.clone(),
            table: link.table.clone(),
            replicas: link.replicas.clone(),
        };
        self.with(number, |slot| {
            slot.phase = Phase::Connected;
            slot.up = Some(up);
        });
    }

    pub(crate) fn down(&self, number: u8, reason: &str, message: &str) {
        self.with(number, |slot| {
            let edge = slot.up.take().map(|up| up.view.edge).unwrap_or_default();
            slot.phase = Phase::Waiting;
            slot.last_error = Some(error(edge, reason, message));
        });
    }

    pub(crate) fn failed(&self, number: u8, edge: &Edge, reason: &str, message: &str) {
        self.with(number, |slot| {
            slot.phase = Phase::Waiting;
            slot.last_error = Some(error(edge.authority(), reason, message));
        });
    }

    /// The replica of each link that is up.
    pub(crate) fn replicas(&self) -> Vec<Option<String>> {
        let replica = |up: &Up| (!up.handle_is_gone()).then(|| up.view.replica.clone());
        self.slots()
            .iter()
            .map(|slot| slot.up.as_ref().and_then(replica))
            .collect()
    }

    /// How many links are up.
    pub(crate) fn count_up(&self) -> usize {
        self.slots().iter().filter(|slot| slot.up.is_some()).count()
    }

    pub(crate) fn links(&self) -> Vec<LinkView> {
        let slots = self.slots();
        let view = |(number, slot): (usize, &Slot)| LinkView {
            link: u8::try_from(number).unwrap_or(u8::MAX),
            phase: slot.phase,
            up: slot.up.as_ref().map(Up::view),
            last_error: slot.last_error.clone(),
        };
        slots.iter().enumerate().map(view).collect()
    }

    /// What is served on any link, and what on none.
    pub(crate) fn mappings(&self) -> (Vec<MappingView>, Vec<RefusedView>) {
        let (mut served, mut refused) = (Vec::new(), Vec::new());
        for up in self.slots().iter().filter_map(|slot| slot.up.as_ref()) {
            let table = up.table.borrow();
            served.extend(table.entries.values().map(|entry| {
                let counts = entry.upstream.counters.read();
                MappingView {
                    names: entry.names.clone(),
                    target: entry.upstream.target.to_string(),
                    id: entry.upstream.id.to_string(),
                    in_flight: counts.in_flight,
                    requests: counts.requests,
                    failed: counts.failed,
                }
            }));
            refused.extend(table.refused.iter().map(|it| RefusedView {
                id: it.id.clone(),
                reason: it.reason.clone(),
                message: it.message.clone(),
            }));
        }
        served.sort();
        served.dedup_by(|one, other| one.id == other.id);
        refused.sort();
        refused.dedup();
        (served, refused)
    }
}

impl Up {
    fn handle_is_gone(&self) -> bool {
        // The link is dropped before its slot is told.
        self.table.has_changed().is_err()
    }

    fn view(&self) -> UpView {
        let (received, sent) = self.handle.bytes();
        UpView {
            replicas: *self.replicas.borrow(),
            in_flight: self.handle.in_flight(),
            requests: self.handle.requests(),
            bytes_received: received,
            bytes_sent: sent,
            ..self.view.clone()
        }
    }
}

fn error(edge: String, reason: &str, message: &str) -> ErrorView {
    ErrorView {
        edge,
        reason: reason.to_owned(),
        message: message.to_owned(),
        at: stamp(SystemTime::now()),
    }
}

/// A moment as people and programs read it.
pub(crate) fn stamp(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    let whole = time.replace_nanosecond(0).unwrap_or(time);
    whole.format(&Rfc3339).unwrap_or_default()
}
