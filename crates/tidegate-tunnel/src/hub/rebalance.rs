//! Evens out links between replicas: one that has many more than the others asks single agents to move one link.
//!
//! An agent that is asked connects elsewhere first, and gives the old link up then. Where its new link ends is up to
//! whoever spreads connections in front of the edge, so nobody is asked again soon, and only few at a time are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use http_body::Body;
use tidegate_model::AgentId;

use super::{Entry, Hub};

/// What an agent is told.
const REASON: &str = "Rebalance";
/// No agent is asked twice within this time.
const SPARED: Duration = Duration::from_secs(600);
/// Replicas that come and go, and agents that look for another one, settle within this time.
const SETTLED: Duration = Duration::from_secs(60);
/// Of all links here, one in so many moves per second.
const PACE: u32 = 100;

/// When which agents were asked.
#[derive(Debug)]
pub struct Rebalance {
    asked: BTreeMap<AgentId, Instant>,
    /// The replicas, and since when they are those.
    others: (Vec<String>, Instant),
    next: Instant,
}

impl Rebalance {
    /// Nobody was asked yet.
    pub fn new(now: Instant) -> Self {
        Self {
            asked: BTreeMap::new(),
            others: (Vec::new(), now),
            next: now,
        }
    }

    /// Asks an agent to move a link if there are too many here and it is time; to be called every second or so.
    pub fn look<B: Body + 'static>(&mut self, hub: &Hub<B>, now: Instant) -> Option<AgentId> {
        self.asked
            .retain(|_, at| now.saturating_duration_since(*at) < SPARED);
        let joined = hub.joined();
        let names: Vec<String> = joined.iter().map(|it| it.replica.to_string()).collect();
        if names != self.others.0 {
            self.others = (names, now);
        }
        if now.saturating_duration_since(self.others.1) < SETTLED || now < self.next {
            return None;
        }
        let table = hub.table();
        let own = table.values().map(live).sum::<usize>();
        let own = u32::try_from(own).unwrap_or(u32::MAX);
        let others = joined.iter().filter(|it| !it.draining).map(|it| it.links);
        if !is_crowded(own, others) || hub.0.orders.borrow().drain.is_some() {
            return None;
        }
        let mut candidates = table
            .iter()
            .filter(|(id, entry)| live(entry) > 0 && !self.asked.contains_key(id));
        // Those with several links here first: they lose least.
        let agent = candidates.by_ref().max_by_key(|(_, entry)| live(entry));
        let (agent, entry) = agent?;
        let agent = agent.clone();
        let moved: BTreeSet<u64> = hub.0.orders.borrow().moving.keys().copied().collect();
        let session = entry
            .sessions
            .iter()
            .rfind(|it| !it.is_draining() && !moved.contains(&it.id))
            .map(|it| it.id);
        drop(table);
        self.asked.insert(agent.clone(), now);
        let session = session?;
        self.next = now + Duration::from_secs(1) * PACE / own.max(1);
        hub.0.orders.send_modify(|orders| {
            orders.moving.insert(session, REASON);
        });
        Some(agent)
    }
}

fn live<B: Body + 'static>(entry: &Entry<B>) -> usize {
    let sessions = entry.sessions.iter();
    sessions.filter(|it| !it.is_draining()).count()
}

/// Whether there are more than half as many again here as there are on average, and so many that a move helps.
fn is_crowded(own: u32, others: impl Iterator<Item = u32>) -> bool {
    let (mut sum, mut count) = (u64::from(own), 1_u64);
    for other in others {
        sum += u64::from(other);
        count += 1;
    }
    let own = u64::from(own);
    count > 1 && own * count * 2 > sum * 3 && own * count >= sum + 2 * count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_replica_with_many_more_than_the_others_is_crowded() {
        for (own, others, expected) in [
            (100, &[][..], false),
            (3, &[1], false),
            (4, &[0], true),
            (3, &[0], false),
            (15, &[15], false),
            (151, &[50], true),
            (150, &[50], false),
            (40, &[10, 10], true),
            (30, &[15, 15], false),
            (0, &[0, 9], false),
        ] {
            let found = is_crowded(own, others.iter().copied());
            assert_eq!(found, expected, "{own} {others:?}");
        }
    }
}
