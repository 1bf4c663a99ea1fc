//! What a relay counts. No client is named anywhere.

use std::sync::atomic::{AtomicU64, Ordering};

use super::packet::{Action, Malformed};

/// Why a datagram of a client was not passed on, or an answer not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dropped {
    /// No request of BEP 15.
    Malformed(Malformed),
    /// Too many connect requests of one network.
    Flood,
    /// The table is full of clients with the better right, or the process has no descriptors left.
    Full,
    /// No way to the tracker preserves the client's address.
    NoWay,
    /// The tracker's machine refused, or a datagram could not be sent.
    Unsent,
    /// The tracker sent something that is no answer of BEP 15.
    NoAnswer,
}

impl Dropped {
    /// All, in the order of their places.
    const ALL: [(Self, &'static str); 8] = [
        (Self::Malformed(Malformed::Short), "short"),
        (Self::Malformed(Malformed::Long), "long"),
        (Self::Malformed(Malformed::Unknown), "unknown"),
        (Self::Flood, "flood"),
        (Self::Full, "full"),
        (Self::NoWay, "no_way"),
        (Self::Unsent, "unsent"),
        (Self::NoAnswer, "no_answer"),
    ];
}

/// Counters of one relay; they live as long as the process, also while the relay is changed.
#[derive(Debug, Default)]
pub struct Counters {
    requests: [AtomicU64; 3],
    answers: [AtomicU64; 3],
    errors: AtomicU64,
    refused: AtomicU64,
    dropped: [AtomicU64; 8],
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    evicted: AtomicU64,
    expired: AtomicU64,
    sessions: AtomicU64,
    established: AtomicU64,
}

/// A moment's view of the counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Requests passed on: `connect`, `announce`, `scrape`.
    pub requests: [(&'static str, u64); 3],
    /// Answers passed on, by what they answer; then errors.
    pub answers: [(&'static str, u64); 4],
    /// Times that the tracker's machine said that nobody listens there.
    pub refused: u64,
    /// Datagrams not passed on, by reason.
    pub dropped: [(&'static str, u64); 8],
    /// Bytes of clients.
    pub received_bytes: u64,
    /// Bytes to clients.
    pub sent_bytes: u64,
    /// Sessions ended for others.
    pub evicted: u64,
    /// Sessions ended because they were idle.
    pub expired: u64,
    /// Sessions now.
    pub sessions: u64,
    /// Of those the ones whose connection id the tracker has accepted.
    pub established: u64,
}

fn place(action: Action) -> usize {
    match action {
        Action::Connect => 0,
        Action::Announce => 1,
        Action::Scrape => 2,
    }
}

fn add(counter: Option<&AtomicU64>, number: usize) {
    if let Some(counter) = counter {
        counter.fetch_add(number as u64, Ordering::Relaxed);
    }
}

impl Counters {
    pub(super) fn request(&self, action: Action, bytes: usize) {
        add(self.requests.get(place(action)), 1);
        add(Some(&self.received_bytes), bytes);
    }

    pub(super) fn answer(&self, to: Option<Action>, bytes: usize) {
        match to {
            Some(action) => add(self.answers.get(place(action)), 1),
            None => add(Some(&self.errors), 1),
        }
        add(Some(&self.sent_bytes), bytes);
    }

    pub(super) fn refused(&self) {
        add(Some(&self.refused), 1);
    }

    pub(super) fn dropped(&self, why: Dropped) {
        let place = Dropped::ALL.iter().position(|(known, _)| *known == why);
        add(place.and_then(|place| self.dropped.get(place)), 1);
    }

    pub(super) fn evicted(&self, number: usize) {
        add(Some(&self.evicted), number);
    }

    pub(super) fn expired(&self, number: usize) {
        add(Some(&self.expired), number);
    }

    pub(super) fn sessions(&self, all: usize, established: usize) {
        self.sessions.store(all as u64, Ordering::Relaxed);
        self.established
            .store(established as u64, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn read(&self) -> Counted {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [connects, announces, scrapes] = &self.requests;
        let [to_connects, to_announces, to_scrapes] = &self.answers;
        let mut dropped = Dropped::ALL.map(|(_, name)| (name, 0));
        for ((_, number), counter) in dropped.iter_mut().zip(&self.dropped) {
            *number = get(counter);
        }
        Counted {
            requests: [
                ("connect", get(connects)),
                ("announce", get(announces)),
                ("scrape", get(scrapes)),
            ],
            answers: [
                ("connect", get(to_connects)),
                ("announce", get(to_announces)),
                ("scrape", get(to_scrapes)),
                ("error", get(&self.errors)),
            ],
            refused: get(&self.refused),
            dropped,
            received_bytes: get(&self.received_bytes),
            sent_bytes: get(&self.sent_bytes),
            evicted: get(&self.evicted),
            expired: get(&self.expired),
            sessions: get(&self.sessions),
            established: get(&self.established),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_place_of_its_own() {
        let counters = Counters::default();
        for (index, (why, _)) in Dropped::ALL.iter().enumerate() {
            for _ in 0..=index {
                counters.dropped(*why);
            }
        }
        let counted = counters.read().dropped;
        for (index, (name, number)) in counted.iter().enumerate() {
            assert_eq!(*number, index as u64 + 1, "{name}");
        }
    }
}
