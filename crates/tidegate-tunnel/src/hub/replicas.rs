//! Links of agents that end at other replicas of the edge: what the others say of theirs, and what they are told of
//! ours.
//!
//! ```text
//! this hub ─► registrations ─► channel ─► the other's hub        requests go the other way, over the same channel
//! ```
//!
//! A channel is a link in which the other replica is the agent's end. What it has said is true as long as the channel
//! stands, and gone with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use http_body::Body;
use tidegate_model::{AgentId, MappingId};
use tokio::sync::watch;

use super::{Elsewhere, Entry, Hub, LiveLink, Traffic};
use crate::link::edge::EdgeLink;
use crate::wire;

/// Bytes of a message of registrations, about.
const MESSAGE: usize = 256 * 1024;
/// Registrations of one replica that are kept: more than agents that one can have.
const MOST: usize = 256 * 1024;

/// A channel as the hub knows it.
pub(super) struct ChannelState<B: Body + 'static> {
    id: u64,
    replica: Arc<str>,
    address: SocketAddr,
    link: EdgeLink<B>,
    traffic: Arc<Traffic>,
    draining: AtomicBool,
    links: AtomicU32,
    agents: AtomicU32,
}

/// A process of an agent that another replica has a link to.
pub(super) struct Remote<B: Body + 'static> {
    channel: Arc<ChannelState<B>>,
    session: u64,
    pub(super) address: SocketAddr,
    instance: Arc<str>,
    draining: bool,
    mappings: Vec<MappingId>,
    ready: Arc<BTreeMap<MappingId, Arc<Traffic>>>,
}

/// A channel that this replica has opened to another one, as long as it stands.
pub struct Channel<B: Body + 'static> {
    hub: Hub<B>,
    state: Arc<ChannelState<B>>,
    gathered: Vec<wire::Registration>,
}

/// What a channel has brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelView {
    /// The other replica.
    pub replica: Arc<str>,
    /// Where it is reached.
    pub address: SocketAddr,
    /// It ends soon.
    pub draining: bool,
    /// Links of agents that end there.
    pub links: u32,
    /// Processes of agents that requests can be sent to there.
    pub agents: u32,
}

/// A set of registrations, by agent and process.
type Told = BTreeMap<AgentId, BTreeMap<String, Vec<MappingId>>>;

impl<B: Body + 'static> Remote<B> {
    pub(super) fn live(&self) -> Option<LiveLink<B>> {
        (!self.channel.link.is_closed()).then(|| LiveLink {
            session: self.session,
            address: self.address,
            instance: Arc::clone(&self.instance),
            elsewhere: Some(Elsewhere {
                replica: Arc::clone(&self.channel.replica),
                draining: self.draining,
            }),
            link: self.channel.link.clone(),
            ready: Arc::clone(&self.ready),
            traffic: Arc::clone(&self.channel.traffic),
        })
    }
}

impl<B: Body + 'static> Channel<B> {
    /// Takes what the other replica says of its agents.
    pub fn heard(&mut self, said: wire::Registrations) {
        let wire::Registrations {
            agents,
            more,
            links,
            draining,
        } = said;
        let room = MOST.saturating_sub(self.gathered.len());
        self.gathered.extend(agents.into_iter().take(room));
        if more {
            return;
        }
        let mut told = Told::new();
        for it in std::mem::take(&mut self.gathered) {
            let Some((namespace, name)) = it.agent.split_once('/') else {
                continue;
            };
            let ids = it.mappings.iter();
            let mut ids: Vec<_> = ids.filter_map(|id| MappingId::parse(id)).collect();
            ids.sort();
            let of_agent = told.entry(AgentId::new(namespace, name)).or_default();
            of_agent.insert(it.instance, ids);
        }
        let agents = told.values().map(BTreeMap::len).sum::<usize>();
        let state = &self.state;
        let agents = u32::try_from(agents).unwrap_or(u32::MAX);
        state.agents.store(agents, Ordering::Relaxed);
        state.links.store(links, Ordering::Relaxed);
        state.draining.store(draining, Ordering::Relaxed);
        self.hub.register(state, told, draining);
    }
}

impl<B: Body + 'static> Drop for Channel<B> {
    fn drop(&mut self) {
        self.hub.channels().retain(|it| it.id != self.state.id);
        self.hub.register(&self.state, Told::new(), false);
    }
}

impl<B: Body + 'static> Hub<B> {
    /// Takes a channel to another replica in; it counts until it is dropped.
    pub fn join(&self, replica: &str, address: SocketAddr, link: EdgeLink<B>) -> Channel<B> {
        let state = Arc::new(ChannelState {
            id: self.next_session().0,
            replica: replica.into(),
            address,
            link,
            traffic: Arc::default(),
            draining: AtomicBool::new(false),
            links: AtomicU32::new(0),
            agents: AtomicU32::new(0),
        });
        self.channels().push(Arc::clone(&state));
        Channel {
            hub: self.clone(),
            state,
            gathered: Vec::new(),
        }
    }

    /// Channels that stand, sorted by name.
    pub fn joined(&self) -> Vec<ChannelView> {
        let channels = self.channels();
        let mut all: Vec<_> = channels
            .iter()
            .map(|it| ChannelView {
                replica: Arc::clone(&it.replica),
                address: it.address,
                draining: it.draining.load(Ordering::Relaxed),
                links: it.links.load(Ordering::Relaxed),
                agents: it.agents.load(Ordering::Relaxed),
            })
            .collect();
        drop(channels);
        all.sort_by(|a, b| (&a.replica, a.address).cmp(&(&b.replica, b.address)));
        all
    }

    /// Changes whenever [`Hub::registrations`] may have.
    pub fn here(&self) -> watch::Receiver<u64> {
        self.0.here.subscribe()
    }

    /// What other replicas are told: agents with links that end here. A whole set, in as many messages as it takes.
    pub fn registrations(&self) -> Vec<wire::Registrations> {
        let draining = self.0.orders.borrow().drain.is_some();
        let mut links = 0;
        let mut told = Vec::new();
        let table = self.table();
        for (id, entry) in &*table {
            let mut instances: BTreeMap<Arc<str>, BTreeSet<MappingId>> = BTreeMap::new();
            for live in entry.sessions.iter().filter_map(|it| it.live()) {
                links += 1;
                let ready = live.ready.keys().cloned();
                instances.entry(live.instance).or_default().extend(ready);
            }
            for (instance, mappings) in instances {
                told.push(wire::Registration {
                    agent: id.to_string(),
                    instance: instance.to_string(),
                    mappings: mappings.iter().map(ToString::to_string).collect(),
                });
            }
        }
        drop(table);
        in_messages(told, links, draining)
    }

    /// Links of an agent that end here and are good for the mapping, those of the process that is asked for first and
    /// otherwise those with the least to do.
    pub fn links_here(
        &self,
        agent: &AgentId,
        mapping: &MappingId,
        instance: Option<&str>,
    ) -> Vec<LiveLink<B>> {
        let table = self.table();
        let Some(entry) = table.get(agent) else {
            return Vec::new();
        };
        let live = entry.sessions.iter().filter_map(|it| it.live());
        let mut links: Vec<_> = live
            .filter(|it| it.ready.contains_key(mapping) && !it.link.is_closed())
            .collect();
        drop(table);
        links.sort_by_key(|it| {
            let other = instance.is_some_and(|wanted| *wanted != *it.instance);
            (other, it.link.in_flight())
        });
        links
    }

    /// Puts what a channel's other end has said in the place of what it said before.
    fn register(&self, channel: &Arc<ChannelState<B>>, mut told: Told, draining: bool) {
        let mut table = self.table();
        for agent in told.keys() {
            if !table.contains_key(agent) {
                table.insert(agent.clone(), Entry::default());
            }
        }
        for (agent, entry) in &mut *table {
            let instances = told.remove(agent).unwrap_or_default();
            let known = entry.remote.iter().filter(|it| it.channel.id == channel.id);
            let same = known.clone().count() == instances.len()
                && known.clone().all(|it| {
                    it.draining == draining && instances.get(&*it.instance) == Some(&it.mappings)
                });
            if same {
                continue;
            }
            let before = entry.remote.len();
            let (old, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut entry.remote)
                .into_iter()
                .partition(|it| it.channel.id == channel.id);
            entry.remote = kept;
            for (instance, mappings) in instances {
                let known = old.iter().find(|it| *it.instance == instance);
                let (session, address) = match known {
                    Some(known) => (known.session, known.address),
                    None => (self.next_session().0, entry.free_address(channel.address)),
                };
                let ready = Arc::new(entry.counters(mappings.iter()));
                entry.remote.push(Remote {
                    channel: Arc::clone(channel),
                    session,
                    address,
                    instance: instance.into(),
                    draining,
                    ready,
                    mappings,
                });
            }
            if entry.remote.is_empty() && before > 0 {
                entry.left_elsewhere = Some(Instant::now());
            }
            entry.publish_links();
        }
    }

    fn channels(&self) -> std::sync::MutexGuard<'_, Vec<Arc<ChannelState<B>>>> {
        let channels = self.0.channels.lock();
        channels.unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Body + 'static> Entry<B> {
    /// Counters of mappings that the snapshot has brought meanwhile.
    pub(super) fn count_elsewhere(&mut self) {
        let mut remote = std::mem::take(&mut self.remote);
        for it in &mut remote {
            it.ready = Arc::new(self.counters(it.mappings.iter()));
        }
        self.remote = remote;
    }
}

/// At least one message; none longer than a frame.
fn in_messages(
    told: Vec<wire::Registration>,
    links: u32,
    draining: bool,
) -> Vec<wire::Registrations> {
    let mut messages = Vec::new();
    let (mut agents, mut bytes) = (Vec::new(), 0);
    for it in told {
        let size = it.agent.len() + it.instance.len() + 18 * it.mappings.len() + 16;
        if bytes + size > MESSAGE && !agents.is_empty() {
            messages.push(wire::Registrations {
                agents: std::mem::take(&mut agents),
                more: true,
                links,
                draining,
            });
            bytes = 0;
        }
        bytes += size;
        agents.push(it);
    }
    messages.push(wire::Registrations {
        agents,
        more: false,
        links,
        draining,
    });
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{FromAgent, Message as _};

    #[test]
    fn a_set_of_any_size_goes_in_messages_that_fit() {
        let mappings: Vec<String> = (0..wire::MAX_ITEMS).map(|n| format!("{n:016x}")).collect();
        let told: Vec<_> = (0..20)
            .map(|n| wire::Registration {
                agent: format!("default/agent-{n}"),
                instance: format!("{n:032x}"),
                mappings: mappings[..mappings.len() / (n + 1)].to_vec(),
            })
            .collect();
        let messages = in_messages(told.clone(), 40, true);
        assert!(messages.len() > 3);
        let (last, others) = messages.split_last().unwrap();
        assert!(others.iter().all(|it| it.more) && !last.more);
        let read: Vec<_> = messages
            .iter()
            .flat_map(|it| {
                let bytes = FromAgent::from(it.clone()).encode().unwrap();
                match FromAgent::decode(&bytes[4..]).unwrap() {
                    Some(FromAgent::Registrations(read)) => read.agents,
                    other => panic!("{other:?}"),
                }
            })
            .collect();
        assert_eq!(read, told);
        let nobody = in_messages(Vec::new(), 0, false);
        assert_eq!(nobody, [wire::Registrations::default()]);
    }
}
