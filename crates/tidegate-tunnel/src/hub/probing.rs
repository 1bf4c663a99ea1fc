//! When a session asks its agent to try its services, and what is made of the answers. No I/O and no clock of its own.
//!
//! ```text
//! plan (each service at a time of its own) ─► due ─► asked ─► heard, or overdue ─► Finding
//! ```
//!
//! A service that fails is tried again soon, so that the status says early when it is back.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tidegate_model::{Hop, MappingId, ProbeFailure};

use crate::wire;

/// Probes of a session that are not answered yet.
const AT_ONCE: usize = 8;
/// After a failure.
const SOON: Duration = Duration::from_secs(10);
/// What an agent has for its answer beside the time that it has for the connection: it waits ten seconds for the
/// service's.
const ANSWER: Duration = Duration::from_secs(15);
/// Longest word and longest text of an agent.
const WORD: usize = 64;
const TEXT: usize = 512;

/// What a probe has shown.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finding {
    pub(super) mapping: MappingId,
    pub(super) connect: Option<Duration>,
    pub(super) total: Option<Duration>,
    pub(super) failure: Option<ProbeFailure>,
}

/// The probes of one session.
#[derive(Debug, Default)]
pub(super) struct Probing {
    last: u64,
    /// When each service is tried next; those that are due or asked about are not in here.
    plans: BTreeMap<MappingId, Instant>,
    due: VecDeque<MappingId>,
    asked: BTreeMap<u64, Asked>,
}

#[derive(Debug)]
struct Asked {
    mapping: MappingId,
    until: Instant,
}

impl Probing {
    /// Nothing is tried any more; answers on their way are nobody's. Whether anything was.
    pub(super) fn stop(&mut self) -> bool {
        let ran = !(self.plans.is_empty() && self.due.is_empty() && self.asked.is_empty());
        self.plans.clear();
        self.due.clear();
        self.asked.clear();
        ran
    }

    /// Takes the services that there are. New ones are due at once.
    pub(super) fn follow(&mut self, mappings: &[MappingId], now: Instant) {
        let is_known = |id: &MappingId| mappings.binary_search(id).is_ok();
        self.plans.retain(|id, _| is_known(id));
        self.due.retain(is_known);
        self.asked.retain(|_, asked| is_known(&asked.mapping));
        for id in mappings {
            let asked = self.asked.values().any(|it| it.mapping == *id);
            if !asked && !self.due.contains(id) {
                self.plans.entry(id.clone()).or_insert(now);
            }
        }
    }

    /// Moves on to that moment; returns what has become of probes that nobody answered.
    pub(super) fn tick(&mut self, now: Instant, interval: Duration) -> Vec<Finding> {
        let due = self.plans.extract_if(.., |_, at| *at <= now);
        self.due.extend(due.map(|(id, _)| id));
        let late = self.asked.extract_if(.., |_, asked| asked.until <= now);
        let late: Vec<MappingId> = late.map(|(_, asked)| asked.mapping).collect();
        let silent = |mapping: MappingId| {
            let message = "the agent does not answer, though its link is alive";
            Finding::failed(mapping, Hop::Agent, "AgentSilent", message)
        };
        for mapping in &late {
            self.again(mapping, now, interval, true);
        }
        late.into_iter().map(silent).collect()
    }

    /// The service to ask about next, and under which number.
    pub(super) fn next(&self) -> Option<wire::Probe> {
        let mapping = self.due.front().filter(|_| self.asked.len() < AT_ONCE)?;
        Some(wire::Probe {
            id: self.last + 1,
            mapping: mapping.to_string(),
        })
    }

    /// That is what was asked.
    pub(super) fn said(&mut self, connect_timeout: Duration, now: Instant) {
        let Some(mapping) = self.due.pop_front() else {
            return;
        };
        self.last += 1;
        let until = now + connect_timeout + ANSWER;
        self.asked.insert(self.last, Asked { mapping, until });
    }

    /// Instead of asking, it is known already: the link takes no requests.
    pub(super) fn link_is_full(&mut self, now: Instant, interval: Duration) -> Vec<Finding> {
        let due = std::mem::take(&mut self.due);
        for mapping in &due {
            self.again(mapping, now, interval, true);
        }
        let full = |mapping| {
            let message =
                "the link takes no requests: too many visitors do not read what they asked for";
            Finding::failed(mapping, Hop::Link, "LinkBusy", message)
        };
        due.into_iter().map(full).collect()
    }

    /// An answer; None if nobody waits for it.
    pub(super) fn heard(
        &mut self,
        result: &wire::ProbeResult,
        now: Instant,
        interval: Duration,
    ) -> Option<Finding> {
        let asked = self.asked.remove(&result.id)?;
        self.again(&asked.mapping, now, interval, !result.ok);
        let failure = (!result.ok).then(|| ProbeFailure {
            // The agent was told of the mapping and has confirmed it.
            hop: if result.reason == "UnknownMapping" {
                Hop::Agent
            } else {
                Hop::Service
            },
            reason: word(&result.reason),
            message: text(&result.message),
        });
        Some(Finding {
            mapping: asked.mapping,
            connect: result.connect_us.map(Duration::from_micros),
            total: result.total_us.map(Duration::from_micros),
            failure,
        })
    }

    /// Plans the next time, a tenth earlier or later, so that services and sessions do not come to march in step.
    fn again(&mut self, mapping: &MappingId, now: Instant, interval: Duration, failed: bool) {
        let pause = if failed { interval.min(SOON) } else { interval };
        let pause = pause.mul_f64(0.9 + 0.2 * fastrand::f64());
        self.plans.insert(mapping.clone(), now + pause);
    }
}

impl Finding {
    fn failed(mapping: MappingId, hop: Hop, reason: &str, message: &str) -> Self {
        Self {
            mapping,
            connect: None,
            total: None,
            failure: Some(ProbeFailure {
                hop,
                reason: reason.to_owned(),
                message: message.to_owned(),
            }),
        }
    }
}

/// A reason as reasons are; agents may say anything.
fn word(said: &str) -> String {
    let word: String = said
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(WORD)
        .collect();
    if word.is_empty() {
        "Unknown".to_owned()
    } else {
        word
    }
}

fn text(said: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    said.chars().map(plain).take(TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(60);

    fn ids(count: u8) -> Vec<MappingId> {
        let id = |last| MappingId::from_hash([0, 0, 0, 0, 0, 0, 0, last]);
        (0..count).map(id).collect()
    }

    fn answer(id: u64, reason: &str) -> wire::ProbeResult {
        wire::ProbeResult {
            id,
            ok: reason.is_empty(),
            reason: reason.to_owned(),
            message: "line\nbreak".to_owned(),
            connect_us: Some(700),
            total_us: Some(1900),
        }
    }

    /// Asks about everything that may be asked about.
    fn ask(probing: &mut Probing, now: Instant) -> Vec<u64> {
        let mut asked = Vec::new();
        while let Some(probe) = probing.next() {
            asked.push(probe.id);
            probing.said(Duration::from_secs(5), now);
        }
        asked
    }

    #[test]
    fn every_service_is_tried_at_once_and_then_again_after_its_time() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut probing = Probing::default();
        let all = ids(20);
        probing.follow(&all, begin);
        assert_eq!(probing.tick(begin, INTERVAL), []);
        assert_eq!(ask(&mut probing, begin), [1, 2, 3, 4, 5, 6, 7, 8]);
        let found = probing.heard(&answer(1, ""), at(1), INTERVAL).unwrap();
        assert_eq!((&found.mapping, found.failure), (&all[0], None));
        assert_eq!(found.connect, Some(Duration::from_micros(700)));
        assert_eq!(ask(&mut probing, at(1)), [9], "one has room");
        assert_eq!(probing.heard(&answer(1, ""), at(1), INTERVAL), None);
        for id in 2..=20 {
            assert!(probing.heard(&answer(id, ""), at(2), INTERVAL).is_some());
            ask(&mut probing, at(2));
        }
        probing.tick(at(50), INTERVAL);
        assert_eq!(probing.next(), None, "a tenth earlier or later");
        probing.tick(at(70), INTERVAL);
        assert_eq!(ask(&mut probing, at(70)).len(), 8);
    }

    #[test]
    fn what_fails_is_named_and_tried_again_soon() {
        let begin = Instant::now();
        let mut probing = Probing::default();
        probing.follow(&ids(4), begin);
        probing.tick(begin, INTERVAL);
        ask(&mut probing, begin);
        let failure = |found: Option<Finding>| found.unwrap().failure.unwrap();
        let refused = failure(probing.heard(&answer(1, "ConnectFailed"), begin, INTERVAL));
        assert_eq!(refused.hop, Hop::Service);
        assert_eq!(refused.message, "line break");
        let unknown = failure(probing.heard(&answer(2, "UnknownMapping"), begin, INTERVAL));
        assert_eq!(unknown.hop, Hop::Agent);
        let strange = failure(probing.heard(&answer(3, "no such\nword"), begin, INTERVAL));
        assert_eq!(strange.reason, "nosuchword");
        let late = probing.tick(begin + Duration::from_secs(20), INTERVAL);
        assert_eq!(late.len(), 1);
        let silent = late[0].failure.as_ref().unwrap();
        assert_eq!((silent.hop, &*silent.reason), (Hop::Agent, "AgentSilent"));
        assert_eq!(ask(&mut probing, begin).len(), 3, "those that failed");
        let later = begin + Duration::from_secs(32);
        probing.tick(later, Duration::from_secs(2));
        assert_eq!(ask(&mut probing, later).len(), 1);
    }

    #[test]
    fn a_full_link_is_found_without_asking_and_what_is_gone_is_forgotten() {
        let begin = Instant::now();
        let mut probing = Probing::default();
        let all = ids(3);
        probing.follow(&all, begin);
        probing.tick(begin, INTERVAL);
        let full = probing.link_is_full(begin, INTERVAL);
        let hop = |it: &Finding| it.failure.as_ref().unwrap().hop;
        assert_eq!(full.iter().map(hop).collect::<Vec<_>>(), [Hop::Link; 3]);
        assert_eq!(probing.next(), None);
        let later = begin + Duration::from_secs(11);
        probing.tick(later, INTERVAL);
        assert_eq!(ask(&mut probing, later), [1, 2, 3]);
        probing.follow(&all[..1], later);
        assert!(probing.heard(&answer(1, ""), later, INTERVAL).is_some());
        assert_eq!(probing.heard(&answer(2, ""), later, INTERVAL), None);
        assert!(probing.stop());
        assert!(!probing.stop());
        probing.tick(later + INTERVAL * 2, INTERVAL);
        assert_eq!(probing.next(), None);
    }
}
