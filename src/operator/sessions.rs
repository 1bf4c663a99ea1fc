//! Sessions of agents and what these ask for, shared by all replicas.
//!
//! ```text
//! this replica's edge ─► Herald ─► Secret (one for each replica) ─► every replica's watch ─► merged()
//! ```
//!
//! An agent has a link to one replica and is served by all: what it asks for must be known everywhere, and
//! whoever leads tells of all sessions. Each replica writes its own document and no other's. One that is not renewed
//! is a dead replica's, whose sessions are dead as well; what its agents asked for stays for a day, so that
//! hostnames outlive a restart. What agents say of themselves is bounded before it is written.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tidegate_acme::plan::moment;
use tidegate_model::{
    AgentId, Carrier, Hop, ObjectName, ObservedAgent, ObservedProbe, ObservedSession, ProbeFailure,
    Secret,
};
use tidegate_telemetry::chain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::documents::{DocumentError, DocumentStore};
use super::watch::World;
use crate::source::wishes::{Wishes, WrittenWish, cut};
use crate::translate::SeenAgents;

/// Kind of the documents; each is named after its replica.
const KIND: &str = "agents";
/// How often a document with sessions is renewed.
const RENEW: Duration = Duration::from_secs(30);
/// Age at which its sessions count no more.
const DEAD: Duration = Duration::from_secs(90);
/// Age at which it goes.
const FORGOTTEN: Duration = Duration::from_hours(24);
/// Pause before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// The document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    version: u32,
    /// By the clock of the replica.
    #[serde(with = "moment::rfc3339")]
    at: SystemTime,
    agents: Vec<WrittenAgent>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenAgent {
    namespace: String,
    name: String,
    #[serde(default)]
    sessions: Vec<WrittenSession>,
    #[serde(default)]
    requested: Vec<WrittenWish>,
    #[serde(default)]
    probes: Vec<WrittenProbe>,
    /// Seconds since 1970.
    #[serde(default)]
    last_seen: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenSession {
    id: String,
    instance: String,
    link: u8,
    web_socket: bool,
    address: SocketAddr,
    /// Seconds since 1970.
    since: u64,
    #[serde(default)]
    rtt_us: Option<u64>,
    version: String,
    replica: String,
    #[serde(default)]
    draining: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenProbe {
    names: Vec<String>,
    target: String,
    instance: String,
    /// Where it failed.
    #[serde(default)]
    hop: Option<String>,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

/// Writes what this replica knows. One runs in each.
#[derive(Debug)]
pub struct Herald {
    /// Where it is written.
    pub store: DocumentStore,
    /// Where others have written.
    pub world: Arc<World>,
    /// What this replica is called.
    pub identity: String,
    /// What it knows: agents, and what they ask for.
    pub known: watch::Receiver<Known>,
}

/// What a replica knows of agents.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Known {
    /// Those that were seen.
    pub seen: Arc<Vec<ObservedAgent>>,
    /// What they ask for, also those that are away.
    pub requests: Arc<Wishes>,
}

impl Herald {
    /// Runs until the token is cancelled; then says that there are no sessions any more.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut written = false;
        loop {
            let known = self.known.borrow_and_update().clone();
            let empty = known.seen.is_empty() && known.requests.is_empty();
            let mut pause = RENEW;
            if !empty || written {
                match self.write(&known).await {
                    Ok(()) => written = true,
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "cannot tell the other replicas of agents; trying again");
                        pause = AGAIN;
                    }
                }
            }
            self.clear().await;
            let sessions = known.seen.iter().any(|agent| !agent.sessions.is_empty());
            let again = async {
                if sessions || pause == AGAIN {
                    tokio::time::sleep(pause).await;
                } else {
                    tokio::time::sleep(FORGOTTEN).await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = again => {}
                more = self.known.changed() => if more.is_err() { break },
            }
        }
        if written {
            let known = Known {
                seen: Arc::default(),
                requests: Arc::clone(&self.known.borrow().requests),
            };
            // Nobody else can do anything about it; the document grows old by itself.
            let _ = self.write(&known).await;
        }
    }

    async fn write(&self, known: &Known) -> Result<(), DocumentError> {
        let document = Written::of(known, SystemTime::now());
        // Texts and numbers: this cannot fail.
        let content = Secret::new(serde_json::to_vec(&document).unwrap_or_default());
        let written = self.store.put(KIND, &self.identity, content.clone()).await;
        if !matches!(written, Err(DocumentError::Outdated(_))) {
            return written;
        }
        // By this replica before it was started again, or by a write whose answer was lost.
        self.store.get(KIND, &self.identity).await?;
        self.store.put(KIND, &self.identity, content).await
    }

    /// Removes what replicas have left that are gone for long.
    async fn clear(&self) {
        let now = SystemTime::now();
        for document in self.world.documents_of(KIND) {
            let read = serde_json::from_slice::<Written>(document.content.expose());
            let old = read.is_ok_and(|it| it.at + FORGOTTEN < now);
            if old
                && document.name != self.identity
                && let Err(error) = self.store.delete(KIND, &document.name).await
            {
                tracing::debug!(error = %chain(&error), "cannot remove what a replica has left");
            }
        }
    }
}

impl Written {
    fn of(known: &Known, now: SystemTime) -> Self {
        let mut agents: BTreeMap<&AgentId, WrittenAgent> = BTreeMap::new();
        let agent = |id: &AgentId| WrittenAgent {
            namespace: id.namespace.to_string(),
            name: id.name.to_string(),
            sessions: Vec::new(),
            requested: Vec::new(),
            last_seen: None,
            probes: Vec::new(),
        };
        for seen in known.seen.iter() {
            let entry = agents.entry(&seen.id).or_insert_with(|| agent(&seen.id));
            entry.sessions = seen.sessions.iter().map(WrittenSession::of).collect();
            entry.last_seen = seen.last_seen.map(seconds);
            entry.probes = seen.probes.iter().map(WrittenProbe::of).collect();
        }
        for (id, wishes) in known.requests.iter() {
            let entry = agents.entry(id).or_insert_with(|| agent(id));
            entry.requested = WrittenWish::all_of(wishes);
        }
        Self {
            version: 1,
            at: now,
            agents: agents.into_values().collect(),
        }
    }

    fn read(self) -> Vec<ObservedAgent> {
        let agents = self.agents.into_iter().map(|agent| ObservedAgent {
            id: AgentId::new(agent.namespace, agent.name),
            sessions: agent
                .sessions
                .into_iter()
                .map(WrittenSession::read)
                .collect(),
            requested: agent.requested.into_iter().map(WrittenWish::read).collect(),
            last_seen: agent.last_seen.map(moment_of),
            probes: agent.probes.into_iter().map(WrittenProbe::read).collect(),
        });
        agents.collect()
    }
}

impl WrittenSession {
    fn of(one: &ObservedSession) -> Self {
        Self {
            id: one.id.clone(),
            instance: cut(&one.instance),
            link: one.link,
            web_socket: one.carrier == Carrier::WebSocket,
            address: one.address,
            since: seconds(one.since),
            rtt_us: one.rtt.and_then(|rtt| u64::try_from(rtt.as_micros()).ok()),
            version: cut(&one.version),
            replica: one.replica.clone(),
            draining: one.draining,
        }
    }

    fn read(self) -> ObservedSession {
        ObservedSession {
            id: self.id,
            instance: self.instance,
            link: self.link,
            carrier: if self.web_socket {
                Carrier::WebSocket
            } else {
                Carrier::Direct
            },
            address: self.address,
            since: moment_of(self.since),
            rtt: self.rtt_us.map(Duration::from_micros),
            version: self.version,
            replica: self.replica,
            draining: self.draining,
            in_flight: 0,
            requests: 0,
            bytes_sent: 0,
            bytes_received: 0,
        }
    }
}

impl WrittenProbe {
    fn of(one: &ObservedProbe) -> Self {
        let failure = one.failure.as_ref();
        Self {
            names: one.names.clone(),
            target: one.target.clone(),
            instance: cut(&one.instance),
            hop: failure.map(|it| it.hop.name().to_owned()),
            reason: failure.map(|it| it.reason.clone()).unwrap_or_default(),
            message: failure.map(|it| it.message.clone()).unwrap_or_default(),
        }
    }

    /// Times are not told: they change all the time.
    fn read(self) -> ObservedProbe {
        let hop = self.hop.and_then(|name| Hop::parse(&name));
        ObservedProbe {
            names: self.names,
            target: self.target,
            instance: self.instance,
            connect: None,
            total: None,
            failure: hop.map(|hop| ProbeFailure {
                hop,
                reason: self.reason,
                message: self.message,
            }),
        }
    }
}

fn seconds(moment: SystemTime) -> u64 {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn moment_of(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// What one replica says of one agent.
struct Told {
    agent: ObservedAgent,
    written_at: SystemTime,
}

/// What all replicas know, and what agents ask for. `own` is what this one knows itself, which is newer than what
/// it has written.
pub(super) fn merged(
    world: &World,
    identity: &str,
    own: &Known,
    replicas: usize,
    now: SystemTime,
) -> (SeenAgents, Wishes) {
    let documents = world.documents_of(KIND);
    let others = documents.iter().filter(|it| it.name != identity);
    let others = others.filter_map(|document| {
        // A damaged one is as none: its replica writes it again.
        serde_json::from_slice::<Written>(document.content.expose()).ok()
    });
    let mut all: Vec<Written> = others.collect();
    all.push(Written::of(own, now));
    merge(all, replicas, now)
}

fn merge(all: Vec<Written>, replicas: usize, now: SystemTime) -> (SeenAgents, Wishes) {
    let mut told: BTreeMap<ObjectName, Vec<Told>> = BTreeMap::new();
    for written in all {
        let written_at = written.at;
        // Clocks differ: one that is ahead is not dead for it.
        let dead = now
            .duration_since(written_at)
            .is_ok_and(|since| since > DEAD);
        for mut agent in written.read() {
            if dead {
                let alive = agent.sessions.drain(..).count() > 0;
                agent.probes.clear();
                agent.last_seen = agent.last_seen.or(alive.then_some(written_at));
            }
            let entry = told.entry(agent.id.clone()).or_default();
            entry.push(Told { agent, written_at });
        }
    }
    let mut seen = SeenAgents {
        agents: BTreeMap::new(),
        replicas: replicas.max(1),
    };
    let mut requests = Wishes::new();
    for (id, mut told) in told {
        // Its newest session says what an agent wants; without one, whoever wrote last.
        let newest = |one: &Told| one.agent.sessions.iter().map(|it| it.since).max();
        told.sort_by_key(|one| (newest(one), one.written_at));
        let last_seen = told.iter().filter_map(|one| one.agent.last_seen).max();
        let Some(newest) = told.last() else {
            continue;
        };
        let requested = newest.agent.requested.clone();
        if !requested.is_empty() {
            requests.insert(id.clone(), requested.clone());
        }
        let (mut sessions, mut probes) = (Vec::new(), Vec::new());
        for one in told {
            sessions.extend(one.agent.sessions);
            probes.extend(one.agent.probes);
        }
        sessions.sort_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id)));
        sessions.dedup_by(|a, b| a.id == b.id);
        let agent = ObservedAgent {
            id: id.clone(),
            sessions,
            requested,
            last_seen,
            probes,
        };
        seen.agents.insert(id, agent);
    }
    (seen, requests)
}

#[cfg(test)]
mod tests {
    use tidegate_model::RequestedMapping;

    use super::*;

    fn known(replica: &str, since: &[u64], asks: &[&str]) -> Known {
        let id = AgentId::new("default", "homelab");
        let session = |since: &u64| ObservedSession {
            id: format!("{replica}-{since}"),
            instance: "i".to_owned(),
            link: 0,
            carrier: Carrier::WebSocket,
            address: ([203, 0, 113, 7], 40000).into(),
            since: moment_of(*since),
            rtt: Some(Duration::from_millis(12)),
            version: "1".to_owned(),
            replica: replica.to_owned(),
            draining: false,
            in_flight: 0,
            requests: 0,
            bytes_sent: 0,
            bytes_received: 0,
        };
        let wishes: Vec<_> = asks
            .iter()
            .map(|name| RequestedMapping {
                name: (*name).to_owned(),
                ..RequestedMapping::default()
            })
            .collect();
        Known {
            seen: Arc::new(vec![ObservedAgent {
                id: id.clone(),
                sessions: since.iter().map(session).collect(),
                requested: wishes.clone(),
                last_seen: Some(moment_of(100)),
                probes: vec![ObservedProbe {
                    names: vec!["homelab:nas".to_owned()],
                    target: "http://nas:80".to_owned(),
                    instance: "i".to_owned(),
                    connect: None,
                    total: None,
                    failure: Some(ProbeFailure {
                        hop: Hop::Service,
                        reason: "ConnectFailed".to_owned(),
                        message: "connection refused".to_owned(),
                    }),
                }],
            }]),
            requests: Arc::new([(id, wishes)].into()),
        }
    }

    #[test]
    fn a_document_holds_what_was_known() {
        let known = known("a", &[50], &["nas"]);
        let text = serde_json::to_vec(&Written::of(&known, moment_of(100))).unwrap();
        let read: Written = serde_json::from_slice(&text).unwrap();
        assert_eq!(read.read(), *known.seen);
    }

    #[test]
    fn sessions_of_all_replicas_count_until_one_is_silent() {
        let at = |replica, since: &[u64], asks: &[&str], when| {
            Written::of(&known(replica, since, asks), moment_of(when))
        };
        let (a, b) = (
            at("a", &[50], &["old"], 100),
            at("b", &[60, 40], &["new"], 90),
        );
        let look = |now| merge(vec![a.clone(), b.clone()], 2, moment_of(now));
        let id = AgentId::new("default", "homelab");
        let ids = |seen: &SeenAgents| -> Vec<String> {
            seen.agents[&id]
                .sessions
                .iter()
                .map(|it| it.id.clone())
                .collect()
        };
        let (seen, requests) = look(100);
        assert_eq!(ids(&seen), ["b-40", "a-50", "b-60"]);
        assert_eq!((seen.replicas, &*requests[&id][0].name), (2, "new"));
        // The clock of one is ahead.
        assert_eq!(ids(&look(0).0).len(), 3);
        let (seen, requests) = look(185);
        assert_eq!(ids(&seen), ["a-50"]);
        assert_eq!(&*requests[&id][0].name, "old");
        let (seen, requests) = look(1000);
        assert!(ids(&seen).is_empty());
        assert_eq!(&*requests[&id][0].name, "old", "whoever wrote last");
        assert_eq!(seen.agents[&id].last_seen, Some(moment_of(100)));
    }
}
