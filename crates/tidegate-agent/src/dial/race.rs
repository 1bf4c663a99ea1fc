//! Both carriers, and the faster one. Nobody waits for a carrier that a firewall swallows.
//!
//! The winner is remembered for a day and for the network that the agent is in: there it goes first.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidegate_model::Carrier;
use tokio::time::sleep;

use super::DialError;
use crate::config::Edge;

/// The first carrier's head start.
pub(crate) const HEAD_START: Duration = Duration::from_millis(300);
/// How long a winner is remembered.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// Winners remembered.
const MOST: usize = 256;

/// What both carriers failed with, in the order in which they began.
pub(crate) type Failures = Vec<(Carrier, DialError)>;

/// Runs `attempt` for one carrier and, after the head start or its failure, for the other one too. The first that
/// succeeds wins; what becomes of the other is the attempt's business when it is dropped.
pub(crate) async fn race<T, A, F>(first: Carrier, attempt: A) -> Result<(Carrier, T), Failures>
where
    A: Fn(Carrier) -> F,
    F: Future<Output = Result<T, DialError>>,
{
    let second = other(first);
    let leader = attempt(first);
    tokio::pin!(leader);
    let lost = tokio::select! {
        biased;
        result = &mut leader => match result {
            Ok(won) => return Ok((first, won)),
            Err(error) if error.is_final() => return Err(vec![(first, error)]),
            Err(error) => Some(error),
        },
        () = sleep(HEAD_START) => None,
    };
    let follower = attempt(second);
    tokio::pin!(follower);
    if let Some(error) = lost {
        return match follower.await {
            Ok(won) => Ok((second, won)),
            Err(late) => Err(vec![(first, error), (second, late)]),
        };
    }
    tokio::select! {
        biased;
        result = &mut leader => match result {
            Ok(won) => Ok((first, won)),
            Err(error) if error.is_final() => Err(vec![(first, error)]),
            Err(error) => match follower.await {
                Ok(won) => Ok((second, won)),
                Err(late) => Err(vec![(first, error), (second, late)]),
            },
        },
        result = &mut follower => match result {
            Ok(won) => Ok((second, won)),
            Err(error) if error.is_final() => Err(vec![(second, error)]),
            Err(error) => match leader.await {
                Ok(won) => Ok((first, won)),
                Err(late) => Err(vec![(first, late), (second, error)]),
            },
        },
    }
}

pub(crate) fn other(carrier: Carrier) -> Carrier {
    match carrier {
        Carrier::Direct => Carrier::WebSocket,
        Carrier::WebSocket => Carrier::Direct,
    }
}

/// Which carrier won where.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<HashMap<Place, (Carrier, Instant)>>);

/// An edge as seen from a network.
type Place = (Edge, Option<IpAddr>);

impl Memory {
    /// Who goes first to this edge from this network, which is known by the agent's own address in it.
    pub(crate) fn first(&self, edge: &Edge, network: Option<IpAddr>, now: Instant) -> Carrier {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&(edge.clone(), network)) {
            Some((carrier, at)) if now.saturating_duration_since(*at) < REMEMBERED => *carrier,
            _ => Carrier::Direct,
        }
    }

    /// This one came through.
    pub(crate) fn won(&self, edge: &Edge, network: Option<IpAddr>, carrier: Carrier, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert((edge.clone(), network), (carrier, now));
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    /// What a carrier does.
    #[derive(Debug, Clone, Copy)]
    enum Does {
        Win,
        Fail,
        Refuse,
        Hang,
    }

    async fn run(direct: Does, websocket: Does) -> Result<Carrier, Vec<Carrier>> {
        let attempt = |carrier| async move {
            let does = match carrier {
                Carrier::Direct => direct,
                Carrier::WebSocket => websocket,
            };
            match does {
                Does::Win => Ok(()),
                Does::Fail => Err(DialError::NotDirect),
                Does::Refuse => Err(DialError::Token("none".to_owned())),
                Does::Hang => pending().await,
            }
        };
        let raced = race(Carrier::Direct, attempt).await;
        raced
            .map(|(carrier, ())| carrier)
            .map_err(|failures| failures.iter().map(|(carrier, _)| *carrier).collect())
    }

    #[tokio::test]
    async fn the_first_that_comes_through_wins() {
        use Carrier::{Direct, WebSocket};
        use Does::{Fail, Hang, Refuse, Win};
        for (direct, websocket, expected) in [
            (Win, Win, Ok(Direct)),
            (Hang, Win, Ok(WebSocket)),
            (Fail, Win, Ok(WebSocket)),
            (Fail, Fail, Err(vec![Direct, WebSocket])),
            // The edge has decided: it would not say anything else to another carrier.
            (Refuse, Win, Err(vec![Direct])),
            (Hang, Refuse, Err(vec![WebSocket])),
        ] {
            assert_eq!(
                run(direct, websocket).await,
                expected,
                "{direct:?} {websocket:?}"
            );
        }
    }

    #[test]
    fn winners_are_remembered_for_a_day_in_their_network() {
        let (memory, now) = (Memory::default(), Instant::now());
        let edge = Edge::parse("edge.example.com").unwrap();
        let home = Some("192.168.1.2".parse().unwrap());
        memory.won(&edge, home, Carrier::WebSocket, now);
        assert_eq!(memory.first(&edge, home, now), Carrier::WebSocket);
        assert_eq!(memory.first(&edge, None, now), Carrier::Direct);
        let tomorrow = now + REMEMBERED;
        assert_eq!(memory.first(&edge, home, tomorrow), Carrier::Direct);
    }
}
