//! Which clients are being relayed: a bounded table with an end for everyone.
//!
//! A session is *fresh* until the tracker has answered an announce or a scrape of it other than with an error: only
//! then the client has used a connection id that was sent to its address, so that the address is no forgery. When
//! the table is full, the fresh session that was quiet longest makes room. Established ones make room only if they
//! were quiet for a minute, in which their connection id has ended for the client (BEP 15). So a flood of forged
//! addresses fights with itself.
//!
//! Pure: the time is passed in, sockets are somebody else's `T`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A session that was quiet for so long is over. Trackers accept a connection id for two minutes, Torrust's for up
/// to two slots of a minute; a minute more is for late answers.
pub const IDLE: Duration = Duration::from_mins(3);
/// An established session that was quiet for so long makes room for others if it must.
const QUIET: Duration = Duration::from_mins(1);

/// No neighbour in a list.
const NOBODY: usize = usize::MAX;

/// Sessions by client.
#[derive(Debug)]
pub struct Sessions<T> {
    limit: usize,
    by_client: HashMap<SocketAddr, usize>,
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
    /// Oldest first, as all are moved to the end when they are heard of.
    fresh: List,
    established: List,
}

#[derive(Debug)]
struct Slot<T> {
    client: SocketAddr,
    value: Option<T>,
    established: bool,
    heard: Instant,
    before: usize,
    after: usize,
}

/// Ends of a list that runs through the slots.
#[derive(Debug, Clone, Copy)]
struct List {
    first: usize,
    last: usize,
    len: usize,
}

const EMPTY: List = List {
    first: NOBODY,
    last: NOBODY,
    len: 0,
};

/// What the table says to a new client.
#[derive(Debug, PartialEq, Eq)]
pub enum Room {
    /// There is room.
    Free,
    /// There is, after this session was ended.
    Evicted,
    /// Everyone there has the better right.
    None,
}

impl<T> Sessions<T> {
    /// So many at most.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            by_client: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            fresh: EMPTY,
            established: EMPTY,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_client.len()
    }

    /// How many are established.
    pub(super) fn established(&self) -> usize {
        self.established.len
    }

    /// Another limit; returns how many sessions it ended.
    pub(super) fn set_limit(&mut self, limit: usize) -> usize {
        self.limit = limit;
        let mut ended = 0;
        while self.len() > limit {
            let oldest = match self.fresh.first {
                NOBODY => self.established.first,
                fresh => fresh,
            };
            self.remove(oldest);
            ended += 1;
        }
        ended
    }

    /// The session of a client, which was heard of now.
    pub fn heard(&mut self, client: SocketAddr, now: Instant) -> Option<usize> {
        let index = *self.by_client.get(&client)?;
        self.touch(index, now);
        Some(index)
    }

    /// Makes room for one more.
    pub fn make_room(&mut self, now: Instant) -> Room {
        if self.len() < self.limit {
            return Room::Free;
        }
        let oldest = self.fresh.first;
        if oldest != NOBODY {
            self.remove(oldest);
            return Room::Evicted;
        }
        let oldest = self.established.first;
        let quiet = self
            .slots
            .get(oldest)
            .is_some_and(|slot| now.saturating_duration_since(slot.heard) >= QUIET);
        if quiet {
            self.remove(oldest);
            return Room::Evicted;
        }
        Room::None
    }

    /// The place that [`Self::insert`] will use next.
    pub(super) fn next_index(&self) -> usize {
        self.free.last().copied().unwrap_or(self.slots.len())
    }

    /// Adds a session; there must be room and none of that client.
    pub fn insert(&mut self, client: SocketAddr, value: T, now: Instant) -> usize {
        let slot = Slot {
            client,
            value: Some(value),
            established: false,
            heard: now,
            before: NOBODY,
            after: NOBODY,
        };
        let index = if let Some(index) = self.free.pop() {
            self.slots[index] = slot;
            index
        } else {
            self.slots.push(slot);
            self.slots.len() - 1
        };
        self.by_client.insert(client, index);
        self.append(index);
        index
    }

    /// A session by its place.
    pub fn get(&mut self, index: usize) -> Option<(SocketAddr, &mut T)> {
        let slot = self.slots.get_mut(index)?;
        let client = slot.client;
        slot.value.as_mut().map(|value| (client, value))
    }

    /// The tracker has accepted a connection id of this client.
    pub fn establish(&mut self, index: usize, now: Instant) {
        self.unlink(index);
        if let Some(slot) = self.slots.get_mut(index) {
            slot.established = true;
            slot.heard = now;
        }
        self.append(index);
    }

    /// Ends what was quiet for [`IDLE`]; returns how many.
    pub fn expire(&mut self, now: Instant) -> usize {
        let mut ended = 0;
        for first in [|it: &Self| it.fresh.first, |it: &Self| it.established.first] {
            loop {
                let oldest = first(self);
                let over = self
                    .slots
                    .get(oldest)
                    .is_some_and(|slot| now.saturating_duration_since(slot.heard) >= IDLE);
                if !over {
                    break;
                }
                self.remove(oldest);
                ended += 1;
            }
        }
        ended
    }

    /// Ends one session.
    pub fn remove(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        if slot.value.take().is_none() {
            return;
        }
        let client = slot.client;
        self.unlink(index);
        self.by_client.remove(&client);
        self.free.push(index);
    }

    /// Ends all.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.limit);
    }

    fn touch(&mut self, index: usize, now: Instant) {
        self.unlink(index);
        if let Some(slot) = self.slots.get_mut(index) {
            slot.heard = now;
        }
        self.append(index);
    }

    fn list(&mut self, established: bool) -> &mut List {
        if established {
            &mut self.established
        } else {
            &mut self.fresh
        }
    }

    fn unlink(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let (before, after, established) = (slot.before, slot.after, slot.established);
        slot.before = NOBODY;
        slot.after = NOBODY;
        if let Some(slot) = self.slots.get_mut(before) {
            slot.after = after;
        }
        if let Some(slot) = self.slots.get_mut(after) {
            slot.before = before;
        }
        let list = self.list(established);
        if before == NOBODY {
            list.first = after;
        }
        if after == NOBODY {
            list.last = before;
        }
        list.len -= 1;
    }

    fn append(&mut self, index: usize) {
        let Some(established) = self.slots.get(index).map(|slot| slot.established) else {
            return;
        };
        let list = self.list(established);
        let before = std::mem::replace(&mut list.last, index);
        list.len += 1;
        if before == NOBODY {
            list.first = index;
        }
        if let Some(slot) = self.slots.get_mut(before) {
            slot.after = index;
        }
        if let Some(slot) = self.slots.get_mut(index) {
            slot.before = before;
            slot.after = NOBODY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(port: u16) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, 7], port))
    }

    fn add(sessions: &mut Sessions<u16>, port: u16, now: Instant) -> Option<usize> {
        (sessions.make_room(now) != Room::None).then(|| sessions.insert(client(port), port, now))
    }

    fn ports(sessions: &Sessions<u16>) -> Vec<u16> {
        let mut all: Vec<u16> = sessions.by_client.keys().map(SocketAddr::port).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn a_session_ends_when_it_was_quiet_for_three_minutes() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut sessions = Sessions::new(10);
        add(&mut sessions, 1, at(0));
        let kept = add(&mut sessions, 2, at(0)).unwrap();
        add(&mut sessions, 3, at(0));
        sessions.establish(kept, at(10));
        assert!(sessions.heard(client(3), at(100)).is_some());
        assert_eq!(sessions.expire(at(179)), 0);
        assert_eq!(sessions.expire(at(180)), 1);
        assert_eq!(ports(&sessions), [2, 3]);
        assert_eq!(sessions.expire(at(190)), 1);
        assert_eq!(sessions.expire(at(279)), 0);
        assert_eq!(sessions.expire(at(280)), 1);
        assert_eq!((sessions.len(), sessions.established()), (0, 0));
        assert!(sessions.heard(client(3), at(280)).is_none());
    }

    #[test]
    fn a_flood_evicts_itself_and_never_an_established_client() {
        let now = Instant::now();
        let mut sessions = Sessions::new(100);
        for port in 0..40 {
            let index = add(&mut sessions, port, now).unwrap();
            sessions.establish(index, now);
        }
        for port in 1000..30_000 {
            assert!(add(&mut sessions, port, now).is_some());
        }
        assert_eq!((sessions.len(), sessions.established()), (100, 40));
        let mut expected: Vec<u16> = (0..40).collect();
        expected.extend(29_940..30_000);
        assert_eq!(ports(&sessions), expected);
        assert!(sessions.slots.len() <= 100);
    }

    #[test]
    fn a_table_of_busy_clients_refuses_until_one_was_quiet_for_a_minute() {
        let now = Instant::now();
        let mut sessions = Sessions::new(2);
        for port in [1, 2] {
            let index = add(&mut sessions, port, now).unwrap();
            sessions.establish(index, now);
        }
        let later = now + Duration::from_secs(59);
        assert!(sessions.heard(client(1), later).is_some());
        assert_eq!(add(&mut sessions, 3, later), None);
        assert!(add(&mut sessions, 3, later + Duration::from_secs(1)).is_some());
        assert_eq!(ports(&sessions), [1, 3]);
    }

    #[test]
    fn a_lower_limit_ends_fresh_sessions_first() {
        let now = Instant::now();
        let mut sessions = Sessions::new(10);
        let first = add(&mut sessions, 1, now).unwrap();
        sessions.establish(first, now);
        for port in 2..=5 {
            add(&mut sessions, port, now);
        }
        assert_eq!(sessions.set_limit(2), 3);
        assert_eq!(ports(&sessions), [1, 5]);
        sessions.clear();
        assert_eq!(sessions.len(), 0);
        assert_eq!(sessions.next_index(), 0);
    }

    #[test]
    fn a_place_is_used_again_only_after_its_session_ended() {
        let now = Instant::now();
        let mut sessions = Sessions::new(10);
        let first = add(&mut sessions, 1, now).unwrap();
        let second = add(&mut sessions, 2, now).unwrap();
        sessions.remove(first);
        sessions.remove(first);
        assert!(sessions.get(first).is_none());
        assert_eq!(sessions.next_index(), first);
        assert_eq!(add(&mut sessions, 3, now), Some(first));
        assert_eq!(sessions.get(second).map(|(_, value)| *value), Some(2));
        assert_ne!(add(&mut sessions, 4, now), Some(second));
    }
}
