//! What the edge knows of agents, as the control side wants it: told when something changes, and not when only
//! figures do.
//!
//! Round trips and counters change all the time. Sessions are told of at once, but not again within ten seconds,
//! so that an agent whose network comes and goes does not keep writers of statuses busy; what agents ask for is
//! told at once always.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tidegate_model::ObservedAgent;
use tidegate_proxy::RunningEdge;
use tokio::time::Instant;

use crate::source::wishes::Wishes;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);
/// Time between two tellings of sessions.
const QUIET: Duration = Duration::from_secs(10);

/// Follows the agents of an edge.
#[derive(Debug)]
pub(super) struct AgentsWatch {
    edge: Arc<OnceLock<RunningEdge>>,
    next: Instant,
    memory: Memory,
}

/// What was told last.
#[derive(Debug, Default)]
struct Memory {
    told: Arc<Vec<ObservedAgent>>,
    told_at: Option<Instant>,
    requests: Arc<Wishes>,
}

impl AgentsWatch {
    /// `wishes` is what agents asked for before.
    pub(super) fn new(edge: Arc<OnceLock<RunningEdge>>, wishes: Wishes) -> Self {
        Self {
            edge,
            next: Instant::now(),
            memory: Memory {
                requests: Arc::new(wishes),
                ..Memory::default()
            },
        }
    }

    /// Waits until there is something to tell. Nothing is lost if it is not waited to the end.
    pub(super) async fn changed(&mut self) {
        loop {
            tokio::time::sleep_until(self.next).await;
            let now = Instant::now();
            self.next = now + LOOK;
            if let Some(edge) = self.edge.get()
                && self.memory.look(edge.agents(), now)
            {
                return;
            }
        }
    }

    /// What there was to tell last.
    pub(super) fn seen(&self) -> Arc<Vec<ObservedAgent>> {
        Arc::clone(&self.memory.told)
    }

    /// What agents ask for, also those that are away.
    pub(super) fn requests(&self) -> Arc<Wishes> {
        Arc::clone(&self.memory.requests)
    }
}

// === impl Memory ===

impl Memory {
    /// Whether there is something to tell.
    fn look(&mut self, seen: Vec<ObservedAgent>, now: Instant) -> bool {
        let mut requests = (*self.requests).clone();
        for agent in seen.iter().filter(|agent| !agent.sessions.is_empty()) {
            requests.insert(agent.id.clone(), agent.requested.clone());
        }
        requests.retain(|_, wishes| !wishes.is_empty());
        let asked = requests != *self.requests;
        let quiet = self.told_at.is_some_and(|at| now < at + QUIET);
        let changed = !seen.iter().map(still).eq(self.told.iter().map(still));
        if !asked && (!changed || quiet) {
            return false;
        }
        self.requests = Arc::new(requests);
        self.told = Arc::new(seen);
        self.told_at = Some(now);
        true
    }
}

/// An agent without what always changes.
fn still(agent: &ObservedAgent) -> ObservedAgent {
    let mut agent = agent.clone();
    agent.last_seen = None;
    for probe in &mut agent.probes {
        (probe.connect, probe.total) = (None, None);
    }
    for session in &mut agent.sessions {
        session.rtt = None;
        session.in_flight = 0;
        session.requests = 0;
        session.bytes_sent = 0;
        session.bytes_received = 0;
    }
    agent
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tidegate_model::{AgentId, Carrier, ObservedSession, RequestedMapping};

    use super::*;

    fn agent(sessions: &[&str], requests: &[&str]) -> ObservedAgent {
        let session = |id: &&str| ObservedSession {
            id: (*id).to_owned(),
            instance: String::new(),
            link: 0,
            carrier: Carrier::Direct,
            address: ([203, 0, 113, 7], 40000).into(),
            since: SystemTime::UNIX_EPOCH,
            rtt: None,
            version: String::new(),
            replica: String::new(),
            draining: false,
            in_flight: 0,
            requests: 0,
            bytes_sent: 0,
            bytes_received: 0,
        };
        let request = |name: &&str| RequestedMapping {
            name: (*name).to_owned(),
            ..RequestedMapping::default()
        };
        ObservedAgent {
            id: AgentId::new("default", "homelab"),
            sessions: sessions.iter().map(session).collect(),
            requested: requests.iter().map(request).collect(),
            last_seen: None,
            probes: Vec::new(),
        }
    }

    #[test]
    fn figures_are_no_news_and_sessions_are_told_in_peace() {
        let mut memory = Memory::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert!(!memory.look(Vec::new(), at(0)), "nobody is there");
        assert!(memory.look(vec![agent(&["a"], &[])], at(0)));
        let mut busy = agent(&["a"], &[]);
        busy.sessions[0].rtt = Some(Duration::from_millis(7));
        busy.sessions[0].requests = 100;
        assert!(!memory.look(vec![busy], at(20)));
        assert!(memory.look(vec![agent(&["a", "b"], &[])], at(20)));
        assert!(!memory.look(vec![agent(&["b"], &[])], at(25)), "too soon");
        assert!(memory.look(vec![agent(&["b"], &["nas"])], at(26)), "a wish");
        assert!(memory.look(vec![agent(&[], &[])], at(40)));
        let id = AgentId::new("default", "homelab");
        let wishes = |memory: &Memory| memory.requests.get(&id).map(Vec::len);
        assert_eq!(wishes(&memory), Some(1), "what is away is still wanted");
        assert!(memory.look(vec![agent(&["c"], &[])], at(60)));
        assert_eq!(wishes(&memory), None);
    }
}
