//! Decides on handshakes: who may connect, how often, and with which proof.
//!
//! Everything is decided before anything is kept that outlives the request, but for the nonces of proofs that were
//! right. What strangers can make this remember is bounded: a fixed number of addresses, and nothing of what they say.
//! Who has no valid proof learns nothing: not whether an agent exists, is suspended, or whether a clock is wrong.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use tidegate_model::{Agent, AgentId, StoredKey};

use crate::credential::{Claims, Proof};
use crate::handshake::{self, reason};

/// How far an agent's clock may be off, in seconds, either way.
const SKEW: u64 = 60;
/// How long a nonce is remembered at least: as long as its time would be accepted.
const NONCE_LIFE: Duration = Duration::from_secs(2 * SKEW);
/// Nonces remembered in one such time. Agents connect a few times at most, so these are many thousands of them.
const MOST_NONCES: usize = 32_768;
/// Longest nonce, in bytes.
const LONGEST_NONCE: usize = 64;
/// Handshakes of one address at once, and how fast it may go on. Agents of one household or office share one.
const OF_ADDRESS: Bucket = Bucket {
    most: 60.0,
    per_second: 2.0,
};
/// Handshakes in all.
const IN_ALL: Bucket = Bucket {
    most: 1_000.0,
    per_second: 200.0,
};
/// Addresses whose handshakes are counted. With more, the oldest start anew.
const MOST_ADDRESSES: usize = 8_192;

/// An allowance that fills up again.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    most: f64,
    per_second: f64,
}

/// What is left of an allowance.
#[derive(Debug, Clone, Copy)]
struct Level {
    left: f64,
    at: Instant,
}

/// One attempt to connect.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// Who tries.
    pub address: IpAddr,
    /// What it says.
    pub claims: Claims<'a>,
    /// What it proves that by.
    pub proof: &'a Proof,
}

/// What an agent is told that is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// No valid proof, whatever else.
    Credential,
    /// The proof is right and one of the clocks wrong.
    ClockSkew,
    /// The proof is right and the agent suspended.
    Suspended,
    /// None of the agent's versions is spoken here.
    Version,
    /// Some of them waste our time.
    TooMany {
        /// When it may try again.
        retry_after: Duration,
    },
    /// This edge is about to end.
    Draining,
}

impl Denial {
    /// One word, as the agent gets it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Credential => reason::CREDENTIAL_REFUSED,
            Self::ClockSkew => reason::CLOCK_SKEW,
            Self::Suspended => reason::SUSPENDED,
            Self::Version => reason::VERSION_NOT_SUPPORTED,
            Self::TooMany { .. } => reason::TOO_MANY_HANDSHAKES,
            Self::Draining => reason::DRAINING,
        }
    }

    /// The whole answer but `Date`, which the agent's clock is set by and whoever sends this adds.
    pub fn response(self) -> Response<Bytes> {
        let (status, message) = match self {
            Self::Credential => (
                StatusCode::UNAUTHORIZED,
                "no agent of this edge has proved itself by this; look at the agent's name, its token and whether the \
                 edge knows the token",
            ),
            Self::ClockSkew => (
                StatusCode::UNAUTHORIZED,
                "the clocks of edge and agent are more than a minute apart",
            ),
            Self::Suspended => (StatusCode::FORBIDDEN, "the agent is suspended"),
            Self::Version => (
                StatusCode::UPGRADE_REQUIRED,
                "edge and agent have no version of the protocol in common; update the older one",
            ),
            Self::TooMany { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "too many handshakes of this address, or in all",
            ),
            Self::Draining => (
                StatusCode::SERVICE_UNAVAILABLE,
                "this edge is about to end; another one, or the next one, has room",
            ),
        };
        let refusal = handshake::Refusal {
            reason: self.reason().to_owned(),
            message: message.to_owned(),
        };
        let body = Bytes::from(refusal.body());
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        let no_store = HeaderValue::from_static("no-store");
        headers.insert(header::CACHE_CONTROL, no_store);
        // RFC 9110 §11.6.1: a 401 names the scheme.
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static(handshake::SCHEME);
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        if self == Self::Version
            && let Ok(spoken) = HeaderValue::try_from(handshake::format_versions(handshake::SPOKEN))
        {
            headers.insert(handshake::VERSIONS, spoken);
        }
        let wait = match self {
            Self::TooMany { retry_after } => Some(retry_after),
            Self::Draining => Some(Duration::from_secs(1)),
            _ => None,
        };
        if let Some(wait) = wait {
            let seconds = wait.as_secs().max(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Why an attempt failed, in more words than its maker gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// What the maker is told.
    pub denial: Denial,
    /// For log and metrics: which of the things that look alike from outside it was.
    pub why: &'static str,
}

/// Who was let in.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// The agent.
    pub agent: Arc<Agent>,
    /// The key that its proof was made with. The session ends with it.
    pub key: StoredKey,
}

/// Counts attempts and remembers nonces.
#[derive(Debug)]
pub struct Admission {
    /// Nonces of a process before this one are not known: neither are times before it accepted.
    started: u64,
    /// What a proof for nobody is compared with.
    nobody: StoredKey,
    nonces: Mutex<Nonces>,
    levels: Mutex<Levels>,
}

#[derive(Debug)]
struct Nonces {
    current: HashSet<(AgentId, String)>,
    before: HashSet<(AgentId, String)>,
    since: Instant,
}

#[derive(Debug)]
struct Levels {
    all: Level,
    by_address: HashMap<IpAddr, Level>,
}

impl Admission {
    /// Begins at `now`, as clock and wall clock have it.
    pub fn new(now: Instant, wall: SystemTime) -> Self {
        let mut nobody = [0; 32];
        // Nobody is let in by this key, whatever it is.
        let _ = aws_lc_rs::rand::fill(&mut nobody);
        Self {
            started: seconds(wall),
            nobody: StoredKey(nobody),
            nonces: Mutex::new(Nonces {
                current: HashSet::new(),
                before: HashSet::new(),
                since: now,
            }),
            levels: Mutex::new(Levels {
                all: IN_ALL.full(now),
                by_address: HashMap::new(),
            }),
        }
    }

    /// Judges an attempt.
    ///
    /// # Errors
    /// Says what the agent is to be told, and what the log is.
    pub fn judge(
        &self,
        agents: &BTreeMap<AgentId, Arc<Agent>>,
        attempt: &Attempt<'_>,
        now: Instant,
        wall: SystemTime,
    ) -> Result<Admitted, Refused> {
        self.count(attempt.address, now)?;
        let claims = &attempt.claims;
        let agent = claims.agent.split_once('/');
        let agent = agent.map(|(namespace, name)| AgentId::new(namespace, name));
        let agent = agent.and_then(|id| agents.get(&id));
        let keys = match agent {
            Some(agent) if !agent.keys.is_empty() => &agent.keys[..],
            _ => std::slice::from_ref(&self.nobody),
        };
        let key = attempt.proof.made_with(keys, claims);
        let (agent, key) = match (agent, key) {
            (Some(agent), Some(key)) => (agent, key),
            (Some(_), None) => return Err(refused("WrongProof")),
            (None, _) => return Err(refused("UnknownAgent")),
        };
        let time = seconds(wall);
        let oldest = time.saturating_sub(SKEW).max(self.started);
        if claims.time < oldest || claims.time > time + SKEW {
            return Err(Refused {
                denial: Denial::ClockSkew,
                why: "ClockSkew",
            });
        }
        self.remember(&agent.id, claims.nonce, now)?;
        if agent.suspended {
            return Err(Refused {
                denial: Denial::Suspended,
                why: "Suspended",
            });
        }
        Ok(Admitted {
            agent: Arc::clone(agent),
            key: *key,
        })
    }

    fn count(&self, address: IpAddr, now: Instant) -> Result<(), Refused> {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        let too_many = |wait: f64, why| {
            // At least a second, at most a minute: what comes of two buckets as small as these.
            let retry_after = Duration::from_secs_f64(wait.clamp(0.0, 60.0));
            Err(Refused {
                denial: Denial::TooMany { retry_after },
                why,
            })
        };
        let address = group(address);
        if levels.by_address.len() >= MOST_ADDRESSES && !levels.by_address.contains_key(&address) {
            levels.forget(now);
        }
        let level = levels.by_address.entry(address);
        let level = level.or_insert_with(|| OF_ADDRESS.full(now));
        if let Err(wait) = OF_ADDRESS.take(level, now) {
            return too_many(wait, "TooManyOfAddress");
        }
        if let Err(wait) = IN_ALL.take(&mut levels.all, now) {
            return too_many(wait, "TooManyInAll");
        }
        Ok(())
    }

    fn remember(&self, agent: &AgentId, nonce: &str, now: Instant) -> Result<(), Refused> {
        if nonce.is_empty() || nonce.len() > LONGEST_NONCE {
            return Err(refused("BadNonce"));
        }
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(nonces.since) >= NONCE_LIFE {
            nonces.before = std::mem::take(&mut nonces.current);
            nonces.since = now;
        }
        let nonce = (agent.clone(), nonce.to_owned());
        if nonces.before.contains(&nonce) || nonces.current.contains(&nonce) {
            return Err(refused("NonceUsedBefore"));
        }
        if nonces.current.len() >= MOST_NONCES {
            return Err(Refused {
                denial: Denial::TooMany {
                    retry_after: NONCE_LIFE,
                },
                why: "TooManyNonces",
            });
        }
        nonces.current.insert(nonce);
        Ok(())
    }
}

impl Bucket {
    fn full(self, now: Instant) -> Level {
        Level {
            left: self.most,
            at: now,
        }
    }

    /// Takes one, or says in how many seconds there is one.
    fn take(self, level: &mut Level, now: Instant) -> Result<(), f64> {
        let passed = now.saturating_duration_since(level.at).as_secs_f64();
        level.left = (level.left + passed * self.per_second).min(self.most);
        level.at = now;
        if level.left < 1.0 {
            return Err((1.0 - level.left) / self.per_second);
        }
        level.left -= 1.0;
        Ok(())
    }
}

impl Levels {
    /// Makes room: addresses whose allowance is whole again; if there is none, those heard of least lately.
    fn forget(&mut self, now: Instant) {
        let whole = Duration::from_secs_f64(OF_ADDRESS.most / OF_ADDRESS.per_second);
        self.by_address
            .retain(|_, level| now.saturating_duration_since(level.at) < whole);
        if self.by_address.len() >= MOST_ADDRESSES {
            let mut times: Vec<Instant> = self.by_address.values().map(|it| it.at).collect();
            times.sort_unstable();
            let middle = times[times.len() / 2];
            self.by_address.retain(|_, level| level.at > middle);
        }
    }
}

/// The same words for everything that a stranger could ask about.
fn refused(why: &'static str) -> Refused {
    Refused {
        denial: Denial::Credential,
        why,
    }
}

fn seconds(wall: SystemTime) -> u64 {
    wall.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// What counts as one: an IPv4 address, or the /64 that an IPv6 customer gets.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::Token;

    struct Case {
        admission: Admission,
        agents: BTreeMap<AgentId, Arc<Agent>>,
        token: Token,
        now: Instant,
        wall: SystemTime,
        nonce: u32,
    }

    impl Case {
        /// An edge that has run for ten minutes.
        fn new() -> Self {
            let token = Token::generate().unwrap();
            let now = Instant::now();
            let wall = UNIX_EPOCH + Duration::from_secs(1_795_300_000);
            let mut case = Self {
                admission: Admission::new(now, wall),
                agents: BTreeMap::new(),
                now: now + Duration::from_secs(600),
                wall: wall + Duration::from_secs(600),
                token: token.clone(),
                nonce: 0,
            };
            case.agent(vec![token.stored_key()], false);
            case
        }

        fn agent(&mut self, keys: Vec<StoredKey>, suspended: bool) {
            let id = AgentId::new("default", "homelab");
            let agent = Agent {
                id: id.clone(),
                keys,
                suspended,
                mappings: Vec::new(),
                verdicts: Vec::new(),
                hold: Agent::HOLD,
                probe_interval: None,
            };
            self.agents.insert(id, Arc::new(agent));
        }

        fn claims(&self) -> Claims<'static> {
            Claims {
                version: 1,
                edge: "edge.example.com",
                agent: "default/homelab",
                instance: "00",
                link: 0,
                time: seconds(self.wall),
                nonce: "n",
                binding: &[],
            }
        }

        fn judge(&mut self, claims: &Claims<'_>) -> Result<Admitted, Refused> {
            let proof = self.token.prove(claims);
            self.judge_proof(claims.clone(), &proof, "192.0.2.1")
        }

        fn judge_proof(
            &mut self,
            claims: Claims<'_>,
            proof: &Proof,
            address: &str,
        ) -> Result<Admitted, Refused> {
            let attempt = Attempt {
                address: address.parse().unwrap(),
                claims,
                proof,
            };
            self.admission
                .judge(&self.agents, &attempt, self.now, self.wall)
        }

        /// A fresh nonce each time.
        fn why(&mut self, change: impl FnOnce(&mut Claims<'_>)) -> Result<(), &'static str> {
            self.nonce += 1;
            let nonce = self.nonce.to_string();
            let mut claims = Claims {
                nonce: &nonce,
                ..self.claims()
            };
            change(&mut claims);
            let judged = self.judge(&claims);
            judged.map(|_| ()).map_err(|refused| refused.why)
        }
    }

    #[test]
    fn who_has_the_token_is_let_in_once_for_each_nonce() {
        let mut case = Case::new();
        let claims = case.claims();
        let admitted = case.judge(&claims).unwrap();
        assert_eq!(admitted.key, case.token.stored_key());
        let replayed = case.judge(&claims).unwrap_err();
        assert_eq!(replayed.why, "NonceUsedBefore");
        assert_eq!(replayed.denial, Denial::Credential);
        // As long as its time is accepted, which may be from a minute before to a minute after.
        for passed in [60, 59] {
            case.now += Duration::from_secs(passed);
            let again = case.judge(&claims).unwrap_err();
            assert_eq!(again.why, "NonceUsedBefore", "{passed}");
        }
        case.wall += Duration::from_secs(61);
        assert_eq!(case.judge(&claims).unwrap_err().why, "ClockSkew");
        assert_eq!(case.why(|_| {}), Ok(()));
        assert_eq!(case.why(|claims| claims.nonce = ""), Err("BadNonce"));
    }

    #[test]
    fn a_clock_may_be_a_minute_off() {
        let mut case = Case::new();
        for off in [-60, 0, 60] {
            let judged = case.why(|claims| claims.time = claims.time.saturating_add_signed(off));
            assert_eq!(judged, Ok(()), "{off}");
        }
        for off in [-61, 61, -1_795_000_000] {
            let judged = case.why(|claims| claims.time = claims.time.saturating_add_signed(off));
            assert_eq!(judged, Err("ClockSkew"), "{off}");
        }
        // What was said to the process before this one is not known to this one.
        case.admission = Admission::new(case.now, case.wall);
        assert_eq!(case.why(|claims| claims.time -= 1), Err("ClockSkew"));
        assert_eq!(case.why(|_| {}), Ok(()));
    }

    #[test]
    fn strangers_are_all_told_the_same() {
        let mut case = Case::new();
        let stranger = Token::generate().unwrap();
        let mut refused = Vec::new();
        for (suspended, agent, off) in [
            (false, "default/homelab", 0),
            (false, "default/homelab", 1000),
            (true, "default/homelab", 0),
            (false, "default/other", 0),
            (false, "none", 0),
        ] {
            let keys = vec![case.token.stored_key()];
            case.agent(keys, suspended);
            let mut claims = Claims {
                agent,
                ..case.claims()
            };
            claims.time += off;
            let proof = stranger.prove(&claims);
            let judged = case.judge_proof(claims, &proof, "192.0.2.1");
            refused.push(judged.unwrap_err().denial);
        }
        assert!(
            refused.iter().all(|it| *it == Denial::Credential),
            "{refused:?}"
        );
        let keys = vec![case.token.stored_key()];
        case.agent(keys, true);
        assert_eq!(case.why(|_| {}), Err("Suspended"));
        case.agent(Vec::new(), false);
        assert_eq!(case.why(|_| {}), Err("WrongProof"));
    }

    #[test]
    fn old_and_new_keys_hold_until_one_goes() {
        let mut case = Case::new();
        let new = Token::generate().unwrap();
        case.agent(vec![new.stored_key(), case.token.stored_key()], false);
        assert_eq!(case.why(|_| {}), Ok(()));
        let claims = case.claims();
        let proof = new.prove(&claims);
        let admitted = case.judge_proof(claims, &proof, "192.0.2.1").unwrap();
        assert_eq!(admitted.key, new.stored_key());
        case.agent(vec![new.stored_key()], false);
        assert_eq!(case.why(|_| {}), Err("WrongProof"));
    }

    #[test]
    fn floods_fill_nothing_and_leave_other_addresses_alone() {
        let mut case = Case::new();
        let stranger = Token::generate().unwrap();
        let claims = case.claims();
        let proof = stranger.prove(&claims);
        let mut told = Vec::new();
        for _ in 0..100 {
            let judged = case.judge_proof(claims.clone(), &proof, "203.0.113.9");
            told.push(judged.unwrap_err());
        }
        assert_eq!(told[59].denial, Denial::Credential);
        assert_eq!(told[60].why, "TooManyOfAddress");
        assert_eq!(case.why(|_| {}), Ok(()), "another address");
        case.now += Duration::from_secs(1);
        let judged = case.judge_proof(claims.clone(), &proof, "203.0.113.9");
        assert_eq!(judged.unwrap_err().denial, Denial::Credential);
        assert_eq!(case.admission.nonces.lock().unwrap().current.len(), 1);
        // Many addresses: each may try, all together may not for long, and the table stays as it is.
        for n in 0..3 * u32::try_from(MOST_ADDRESSES).unwrap() {
            let address = std::net::Ipv4Addr::from_bits(n).to_string();
            let _ = case.judge_proof(claims.clone(), &proof, &address);
        }
        let levels = case.admission.levels.lock().unwrap();
        assert!(levels.by_address.len() <= MOST_ADDRESSES);
        assert!(levels.all.left < 1.0);
    }
}
