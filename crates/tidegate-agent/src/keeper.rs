//! Keeps one of an agent's links up: dials, waits, replaces.
//!
//! A link that the edge will end is replaced before it is given up. A link beside another one on the same replica, or
//! over the second-best carrier, is replaced when a better one comes up. Nothing of this touches streams.

use std::collections::HashMap;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tidegate_model::Carrier;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::board::{Board, Phase};
use crate::config::Edge;
use crate::dial::{self, DialError, Dialer, Memory, race};
use crate::link::{Common, Event, Link, establish};
use crate::reconnect::{Ending, Row};

/// Streams of a link that was replaced for a better one may go on for so long.
const LEFT_BEHIND: Duration = Duration::from_secs(3600);
/// Waits for a link on another replica. It is by chance that one is found, so there are a dozen tries in the first
/// minute; and then fewer, because whoever spreads connections may send all of an agent's to the same one.
const DISTINCT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// What a wait for another replica grows by.
const DISTINCT_GROWS: f64 = 1.3;
/// Waits for a better carrier.
const BETTER: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// What the keepers of an agent share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) common: Arc<Common>,
    /// Edges and how to dial; changes with the configuration.
    pub(crate) way: watch::Receiver<Arc<Way>>,
    pub(crate) memory: Memory,
    pub(crate) board: Arc<Board>,
    /// Woken when a link came up: the network is back.
    pub(crate) up: Notify,
    /// The agent ends.
    pub(crate) stop: CancellationToken,
    /// Links that end in their own time.
    pub(crate) leaving: TaskTracker,
    /// Streams may go on for so long after `stop`.
    pub(crate) drain: Duration,
}

/// Edges and how they are dialled.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) edges: Vec<Edge>,
    pub(crate) dialer: Dialer,
}

/// One of the agent's links.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    number: u8,
    /// When each edge may be tried, and what came before.
    tries: HashMap<Edge, Try>,
    /// What was said last of what went wrong.
    said: Option<(String, Instant)>,
}

#[derive(Debug, Clone, Copy)]
struct Try {
    row: Row,
    due: Instant,
    network: bool,
}

impl Keeper {
    pub(crate) fn new(shared: Arc<Shared>, number: u8) -> Self {
        Self {
            shared,
            number,
            tries: HashMap::new(),
            said: None,
        }
    }

    /// Until the agent ends.
    pub(crate) async fn keep(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut draining: Option<(Link, Duration)> = None;
        let mut given: Option<Link> = None;
        loop {
            let next = if given.is_some() {
                given.take()
            } else {
                tokio::select! {
                    link = self.dial() => Some(link),
                    () = shared.stop.cancelled() => None,
                }
            };
            let Some(mut link) = next else {
                if let Some((old, _)) = draining {
                    old.leave("Stopping", shared.drain).await;
                }
                break;
            };
            if let Some((old, deadline)) = draining.take() {
                shared.leaving.spawn(old.replaced(deadline));
            }
            self.came_up(&link);
            let facts = Facts {
                edge: link.edge.clone(),
                carrier: link.carrier,
                replicas: link.replicas.clone(),
            };
            let outcome = tokio::select! {
                event = link.events.recv() => Outcome::Event(event),
                better = self.improve(&facts) => Outcome::Better(Box::new(better)),
                () = shared.stop.cancelled() => Outcome::Stop,
            };
            match outcome {
                Outcome::Stop => {
                    shared.board.phase(self.number, Phase::Stopping);
                    link.leave("Stopping", shared.drain).await;
                    break;
                }
                Outcome::Better(better) => {
                    shared.leaving.spawn(leave(link, Arc::clone(&shared)));
                    given = Some(*better);
                }
                Outcome::Event(Some(Event::Drain {
                    deadline,
                    jitter,
                    reason,
                })) => {
                    tracing::info!(link = self.number, reason, "the edge asks for another link");
                    let wait = jitter.mul_f64(fastrand::f64());
                    tokio::select! {
                        () = sleep(wait) => {}
                        () = link.handle.closed() => {}
                        () = shared.stop.cancelled() => {}
                    }
                    self.forget(&link.edge);
                    draining = Some((link, deadline));
                }
                Outcome::Event(event) => self.went_down(&link, event),
            }
        }
        shared.board.phase(self.number, Phase::Stopped);
    }

    fn came_up(&mut self, link: &Link) {
        let welcome = &link.welcome;
        tracing::info!(
            link = self.number,
            edge = link.edge.authority(),
            carrier = link.carrier.name(),
            replica = &*welcome.replica,
            replicas = welcome.replicas,
            edge_version = &*welcome.edge_version,
            "connected"
        );
        self.said = None;
        self.shared.board.up(self.number, link);
        self.shared.up.notify_waiters();
    }

    fn went_down(&mut self, link: &Link, event: Option<Event>) {
        let (ending, reason, message) = match event {
            Some(Event::Ended {
                ending,
                reason,
                message,
            }) => (ending, reason, message),
            _ => (Ending::Network, "LinkClosed".to_owned(), String::new()),
        };
        tracing::warn!(
            link = self.number,
            edge = link.edge.authority(),
            reason,
            message,
            "a link has ended"
        );
        self.shared.board.down(self.number, &reason, &message);
        let tried = self.tries.entry(link.edge.clone()).or_insert_with(Try::new);
        tried.row.lived(link.begun.elapsed());
        tried.after(ending);
    }

    fn forget(&mut self, edge: &Edge) {
        self.tries.remove(edge);
    }

    /// A link to one of the edges, whenever that may be.
    async fn dial(&mut self) -> Link {
        let shared = Arc::clone(&self.shared);
        let mut ways = shared.way.clone();
        loop {
            let way = ways.borrow_and_update().clone();
            for edge in &way.edges {
                let due = self
                    .tries
                    .get(edge)
                    .map_or_else(Instant::now, |tried| tried.due);
                if due > Instant::now() {
                    continue;
                }
                shared.board.phase(self.number, Phase::Connecting);
                match raced(&shared, &way, edge, self.number).await {
                    Ok(link) => return link,
                    Err(error) => self.failed(edge, &error),
                }
            }
            let waiting = way.edges.iter().filter_map(|edge| self.tries.get(edge));
            let due = waiting
                .clone()
                .map(|tried| tried.due)
                .min()
                .unwrap_or_else(Instant::now);
            let network = waiting.clone().any(|tried| tried.network);
            tokio::select! {
                () = sleep_until(due) => {}
                () = shared.up.notified(), if network => {
                    let soon = Instant::now() + Duration::from_millis(250).mul_f64(fastrand::f64());
                    for tried in self.tries.values_mut().filter(|tried| tried.network) {
                        tried.due = tried.due.min(soon);
                    }
                }
                Ok(()) = ways.changed() => self.tries.clear(),
            }
        }
    }

    fn failed(&mut self, edge: &Edge, error: &DialError) {
        let tried = self.tries.entry(edge.clone()).or_insert_with(Try::new);
        let wait = tried.after(error.ending());
        let message = tidegate_telemetry::chain(error).to_string();
        let reason = error.reason().to_owned();
        self.shared
            .board
            .failed(self.number, edge, &reason, &message);
        let now = Instant::now();
        // Once a minute is enough for what stays as it is.
        let again = self.said.as_ref().is_none_or(|(said, at)| {
            *said != message || now.saturating_duration_since(*at) > Duration::from_secs(60)
        });
        let fix = dial::advice(error, edge);
        let (link, edge, next_try_ms) = (self.number, edge.authority(), wait.as_millis());
        if again {
            tracing::warn!(
                link,
                edge,
                reason,
                error = message,
                fix,
                next_try_ms,
                "no link"
            );
            self.said = Some((message, now));
        } else {
            tracing::debug!(link, edge, reason, error = message, next_try_ms, "no link");
        }
    }

    /// A better link than this one, when there is one some day.
    async fn improve(&self, link: &Facts) -> Link {
        tokio::select! {
            better = self.on_another_replica(link) => better,
            better = self.over_better_carrier(link) => better,
        }
    }

    async fn on_another_replica(&self, link: &Facts) -> Link {
        let mut wait = DISTINCT.0;
        let mut rotation = 0;
        let mut replicas = link.replicas.clone();
        loop {
            let changed = self.shared.up.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let seen = self.shared.board.replicas();
            let count = *replicas.borrow_and_update();
            if !should_move(self.number, &seen, count) {
                // Others come and go.
                tokio::select! {
                    () = changed => {}
                    Ok(()) = replicas.changed() => {}
                    () = sleep(DISTINCT.1.mul_f64(0.75 + fastrand::f64() / 2.0)) => {}
                }
                wait = DISTINCT.0;
                continue;
            }
            sleep(wait.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
            wait = wait.mul_f64(DISTINCT_GROWS).min(DISTINCT.1);
            rotation += 1;
            let way = self.shared.way.borrow().clone();
            // Other names may lead to other replicas.
            let Some(edge) = way.edges.get(rotation % way.edges.len().max(1)) else {
                continue;
            };
            let Ok(other) = raced(&self.shared, &way, edge, self.number).await else {
                continue;
            };
            let held = self.shared.board.replicas();
            let taken = held.iter().enumerate().any(|(number, replica)| {
                number != usize::from(self.number)
                    && replica.as_deref() == Some(&*other.welcome.replica)
            });
            if !taken {
                tracing::info!(
                    link = self.number,
                    replica = other.welcome.replica,
                    "moves to another replica"
                );
                return other;
            }
            self.shared
                .leaving
                .spawn(leave(other, Arc::clone(&self.shared)));
        }
    }

    async fn over_better_carrier(&self, link: &Facts) -> Link {
        if link.carrier == Carrier::Direct {
            return std::future::pending().await;
        }
        let mut wait = BETTER.0;
        loop {
            sleep(wait.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
            wait = (wait * 2).min(BETTER.1);
            let way = self.shared.way.borrow().clone();
            let direct = Carrier::Direct;
            let attempt = attempt(&self.shared, &way, &link.edge, self.number, direct).await;
            if let Ok(better) = attempt {
                self.shared.memory.won(
                    &link.edge,
                    network(&link.edge),
                    direct,
                    std::time::Instant::now(),
                );
                tracing::info!(link = self.number, "the direct carrier works here too");
                return better;
            }
        }
    }
}

enum Outcome {
    Event(Option<Event>),
    Better(Box<Link>),
    Stop,
}

/// What a better link is measured by.
struct Facts {
    edge: Edge,
    carrier: Carrier,
    replicas: watch::Receiver<u32>,
}

impl Try {
    fn new() -> Self {
        Self {
            row: Row::default(),
            due: Instant::now(),
            network: true,
        }
    }

    fn after(&mut self, ending: Ending) -> Duration {
        let wait = self.row.after(ending, fastrand::f64());
        self.due = Instant::now() + wait;
        self.network = ending == Ending::Network;
        wait
    }
}

async fn leave(link: Link, shared: Arc<Shared>) {
    let handle = link.handle.clone();
    tokio::select! {
        () = link.leave("Replaced", LEFT_BEHIND) => {}
        () = async {
            shared.stop.cancelled().await;
            let _ = tokio::time::timeout(shared.drain, handle.idle()).await;
            handle.cut();
        } => {}
    }
}

/// Both carriers, the one that won the last time first.
async fn raced(
    shared: &Arc<Shared>,
    way: &Arc<Way>,
    edge: &Edge,
    number: u8,
) -> Result<Link, DialError> {
    let here = network(edge);
    let first = shared.memory.first(edge, here, std::time::Instant::now());
    let raced = race(first, |carrier| attempt(shared, way, edge, number, carrier)).await;
    match raced {
        Ok((carrier, link)) => {
            shared
                .memory
                .won(edge, here, carrier, std::time::Instant::now());
            Ok(link)
        }
        Err(mut failures) => {
            for (carrier, error) in &failures {
                let (carrier, error) = (carrier.name(), tidegate_telemetry::chain(error));
                tracing::debug!(number, carrier, %error, "a carrier failed");
            }
            // What the edge itself says counts most; then what the carrier that passes everywhere met.
            let place = failures.iter().position(|(_, error)| error.is_final());
            let place = place.or_else(|| {
                failures
                    .iter()
                    .position(|(carrier, _)| *carrier == Carrier::WebSocket)
            });
            Err(failures.swap_remove(place.unwrap_or_default()).1)
        }
    }
}

async fn attempt(
    shared: &Arc<Shared>,
    way: &Arc<Way>,
    edge: &Edge,
    number: u8,
    carrier: Carrier,
) -> Result<Link, DialError> {
    let bytes = way.dialer.carry(edge, carrier, number).await?;
    establish(bytes, edge.clone(), carrier, number, &shared.common).await
}

/// The agent's own address in the network that it is in, by which networks are told apart. Sends nothing.
fn network(_edge: &Edge) -> Option<IpAddr> {
    // Any address beyond the nearest router; those of documentation are nobody's.
    let probe = |local: &str, far: &str| -> Option<IpAddr> {
        let socket = UdpSocket::bind(local).ok()?;
        socket.connect(far).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    probe("0.0.0.0:0", "192.0.2.1:9").or_else(|| probe("[::]:0", "[2001:db8::1]:9"))
}

/// Whether this link should look for another replica: one with a lower number is on the same, and there are replicas
/// without any.
fn should_move(number: u8, seen: &[Option<String>], replicas: u32) -> bool {
    let Some(Some(mine)) = seen.get(usize::from(number)) else {
        return false;
    };
    if mine.is_empty() {
        return false;
    }
    let before = seen.iter().take(usize::from(number));
    let doubled = before.flatten().any(|other| other == mine);
    let mut distinct: Vec<&String> = seen.iter().flatten().collect();
    distinct.sort();
    distinct.dedup();
    doubled && u32::try_from(distinct.len()).is_ok_and(|distinct| distinct < replicas)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_of_two_links_on_a_replica_moves_while_others_are_free() {
        for (number, seen, replicas, expected) in [
            (1, &["a", "a"][..], 2, true),
            (0, &["a", "a"], 2, false),
            (1, &["a", "a"], 1, false),
            (1, &["a", "b"], 2, false),
            (2, &["a", "b", "b"], 2, false),
            (2, &["a", "b", "b"], 3, true),
            (1, &["-", "a"], 2, false),
            (1, &["", ""], 2, false),
            (1, &["a"], 2, false),
        ] {
            let known = |it: &&str| (*it != "-").then(|| (*it).to_owned());
            let replicas_seen: Vec<Option<String>> = seen.iter().map(known).collect();
            let moves = should_move(number, &replicas_seen, replicas);
            assert_eq!(moves, expected, "{number} {seen:?} {replicas}");
        }
    }
}
