//! The thread that relays: waits for sockets, lets each relay do its part, reports what changed.
//!
//! One thread is enough for more datagrams than trackers answer; it shares nothing with the proxy's workers but the
//! process's descriptors.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Waker};
use tidegate_model::RuleId;

use super::relay::{Relay, Scratch};
use super::token::Token;
use super::{Shared, Wanted, proxy_header, socket};

/// How often what is due is looked for while there are relays.
const TICK: Duration = Duration::from_millis(200);
/// How long answers under way are still passed on after the end was asked for.
const LAST_ANSWERS: Duration = Duration::from_millis(300);
/// Largest datagram.
const DATAGRAM: usize = 1 << 16;

/// The engine, before and on its thread.
pub(super) struct Engine {
    poll: Poll,
    shared: Arc<Shared>,
    relays: BTreeMap<u32, Relay>,
    next_number: u32,
    scratch: Scratch,
    /// Sockets that had more than their share.
    pending: Vec<Token>,
    /// Ports may be held by the process that is taken over from.
    port_sharing: bool,
}

impl Engine {
    pub(super) fn new(shared: Arc<Shared>, port_sharing: bool) -> io::Result<(Self, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), Token::WAKE)?;
        let engine = Self {
            poll,
            shared,
            relays: BTreeMap::new(),
            next_number: 0,
            scratch: Scratch {
                datagram: vec![0; DATAGRAM + proxy_header::LONGEST],
                control: socket::control_space(),
            },
            pending: Vec::new(),
            port_sharing,
        };
        Ok((engine, waker))
    }

    /// Relays until the end is asked for.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        let mut next_tick = Instant::now();
        let mut end = None;
        loop {
            let timeout = if !self.pending.is_empty() {
                Some(Duration::ZERO)
            } else if self.relays.is_empty() && end.is_none() {
                None
            } else {
                Some(next_tick.saturating_duration_since(Instant::now()))
            };
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "cannot wait for datagrams; nothing is relayed any more");
                return;
            }
            let now = Instant::now();
            // Who has waited comes first.
            for token in std::mem::take(&mut self.pending) {
                self.ready(token, now);
            }
            for event in &events {
                if event.token() != Token::WAKE {
                    self.ready(event.token().into(), now);
                }
            }
            if let Some(wanted) = self.shared.take_wanted() {
                self.apply(wanted, now);
                next_tick = now;
            }
            if now >= next_tick {
                self.tick(now);
                next_tick = now + TICK;
            }
            if self.shared.stop.load(Ordering::Acquire) {
                let end = *end.get_or_insert(now + LAST_ANSWERS);
                if now >= end {
                    return;
                }
            }
        }
    }

    fn ready(&mut self, token: Token, now: Instant) {
        let (number, source, place) = token.parts();
        if let Some(relay) = self.relays.get_mut(&number) {
            let registry = self.poll.registry();
            let more = relay.ready(source, place, registry, &mut self.scratch, now);
            if more && !self.pending.contains(&token) {
                self.pending.push(token);
            }
        }
    }

    fn apply(&mut self, wanted: Vec<Wanted>, now: Instant) {
        let mut by_id: BTreeMap<RuleId, Wanted> = wanted
            .into_iter()
            .map(|wanted| (wanted.relay.id.clone(), wanted))
            .collect();
        self.relays
            .retain(|_, relay| by_id.contains_key(&relay.wanted().relay.id));
        for relay in self.relays.values_mut() {
            let Some(wanted) = by_id.remove(&relay.wanted().relay.id) else {
                continue;
            };
            if *relay.wanted() != wanted {
                relay.change(wanted, now);
            }
        }
        for wanted in by_id.into_values() {
            let counters = self.shared.counters_of(&wanted.relay.id);
            let relay = Relay::new(self.next_number, wanted, counters, now);
            self.relays.insert(self.next_number, relay);
            self.next_number += 1;
        }
        let ids = self.relays.values().map(|relay| &relay.wanted().relay.id);
        self.shared.forget_others(&ids.collect());
        // Half of what the process may open is the proxy's.
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let half = descriptors.map_or(usize::MAX, |all| usize::try_from(all / 2).unwrap_or(0));
        let each = half / self.relays.len().max(1);
        for relay in self.relays.values_mut() {
            relay.set_budget(each);
        }
    }

    fn tick(&mut self, now: Instant) {
        for relay in self.relays.values_mut() {
            relay.tick(self.poll.registry(), self.port_sharing, now);
        }
        let mut states: Vec<_> = self.relays.values().map(Relay::state).collect();
        states.sort_by(|a, b| a.id.cmp(&b.id));
        self.shared.tell(states);
    }
}
