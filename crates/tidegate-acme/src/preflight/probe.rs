//! Collecting the facts about names: DNS at the given servers, CAA by climbing, our own challenge at each
//! address found.
//!
//! Bounded in every direction: time for one question, time for everything, names at a time, addresses per
//! name. What was not reached in time is a fact of its own ("no answer"), never an error.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, RecordType};
use tidegate_model::{HostName, HostPattern};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::caa::{CaaFacts, CaaRecord};
use super::facts::{DnsRecordProblem, Lookup, Loopback, NameFacts};
use super::loopback::OwnChallenge;
use crate::dns::persist::{PersistProblem, PersistRecord};
use crate::dns::query::{Walk, address};
use crate::dns::{DnsClient, DnsSolver, QueryError, zone};
use crate::plan::challenge::ChallengeType;

/// Addresses of one name that our challenge is tried at.
const MAX_ADDRESSES: usize = 8;

/// A name has at most 127 labels; nobody issues for so many.
const MAX_LEVELS: usize = 24;

/// A name to look at.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The name in the certificate.
    pub name: HostPattern,
    /// How it is going to be proven.
    pub challenge: ChallengeType,
    /// What writes TXT records, for dns-01.
    pub solver: Option<Arc<dyn DnsSolver>>,
    /// What must be there, for dns-persist-01.
    pub persist: Option<PersistRecord>,
}

/// How to look.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Who is asked.
    pub dns: DnsClient,
    /// Our own challenge, when the edge has been told its answer.
    pub challenge: Option<OwnChallenge>,
    /// Time for everything.
    pub deadline: Duration,
    /// Names looked at at the same time.
    pub parallel: usize,
}

impl Probe {
    /// Looks at the names; one result for each, in order. `now` is for the dates in records.
    pub async fn names(&self, wanted: &[Wanted], now: SystemTime) -> Vec<NameFacts> {
        let deadline = Instant::now() + self.deadline;
        let places = Arc::new(Semaphore::new(self.parallel.max(1)));
        let mut tasks = JoinSet::new();
        for (position, wanted) in wanted.iter().cloned().enumerate() {
            let (probe, places) = (self.clone(), Arc::clone(&places));
            tasks.spawn(async move {
                let late = unanswered(&wanted);
                let look = async {
                    let _place = places.acquire().await.ok();
                    probe.name(wanted, now).await
                };
                let facts = tokio::time::timeout_at(deadline, look).await;
                (position, facts.unwrap_or(late))
            });
        }
        let mut found = tasks.join_all().await;
        found.sort_by_key(|(position, _)| *position);
        found.into_iter().map(|(_, facts)| facts).collect()
    }

    async fn name(&self, wanted: Wanted, now: SystemTime) -> NameFacts {
        let mut facts = unanswered(&wanted);
        facts.v4 = Lookup::NotAsked;
        facts.v6 = Lookup::NotAsked;
        let (host, wildcard) = match &wanted.name {
            HostPattern::Exact(host) => (host.clone(), false),
            HostPattern::Wildcard(parent) => (parent.clone(), true),
        };
        if let Some(ip) = host.ip() {
            facts.caa = CaaFacts::NotAsked;
            facts.loopback = self.loopback(&host, wanted.challenge, &[ip]).await;
            return facts;
        }
        let Ok(mut name) = Name::from_ascii(host.as_str()) else {
            facts.v4 = Lookup::NoAnswer("the name cannot be asked for".to_owned());
            return facts;
        };
        name.set_fqdn(true);
        if !wildcard && wanted.challenge.connects() {
            let (v4, v6) = tokio::join!(
                self.dns.walk(&name, RecordType::A),
                self.dns.walk(&name, RecordType::AAAA)
            );
            facts.aliases = aliases(&v4, &v6);
            facts.v4 = lookup(v4);
            facts.v6 = lookup(v6);
            let both = [&facts.v4, &facts.v6];
            let found: Vec<IpAddr> = both.iter().flat_map(|l| l.addresses()).copied().collect();
            facts.loopback = self.loopback(&host, wanted.challenge, &found).await;
        }
        facts.caa = self.caa(&name).await;
        facts.dns_record = self.dns_record(&wanted, &host, now).await;
        facts
    }

    async fn loopback(
        &self,
        host: &HostName,
        kind: ChallengeType,
        addresses: &[IpAddr],
    ) -> Vec<Loopback> {
        let Some(challenge) = self.challenge.as_ref().filter(|_| kind.connects()) else {
            return Vec::new();
        };
        let mut tasks = JoinSet::new();
        for (position, &address) in addresses.iter().take(MAX_ADDRESSES).enumerate() {
            let (challenge, host) = (challenge.clone(), host.clone());
            tasks.spawn(async move {
                let answer = match kind {
                    ChallengeType::TlsAlpn01 => challenge.tls_alpn(&host, address).await,
                    _ => challenge.http(&host, address).await,
                };
                (position, Loopback { address, answer })
            });
        }
        let mut found = tasks.join_all().await;
        found.sort_by_key(|(position, _)| *position);
        found.into_iter().map(|(_, loopback)| loopback).collect()
    }

    /// From the name up to the top-level domain, the nearest set applies (RFC 8659 §3).
    async fn caa(&self, name: &Name) -> CaaFacts {
        let mut here = name.clone();
        for _ in 0..MAX_LEVELS {
            if here.is_root() {
                break;
            }
            let level = here.to_ascii().trim_end_matches('.').to_owned();
            let walk = match self.dns.walk(&here, RecordType::CAA).await {
                Ok(walk) => walk,
                Err(error) => {
                    let problem = error.to_string();
                    return CaaFacts::NoAnswer { level, problem };
                }
            };
            // A circle of aliases is told with the addresses; here it only means "none at this level".
            if !walk.answered() && !walk.circular {
                let code = code(walk.code);
                return CaaFacts::Failed { level, code };
            }
            let records: Vec<CaaRecord> = walk.records.iter().filter_map(caa_record).collect();
            if !records.is_empty() {
                return CaaFacts::Found { level, records };
            }
            here = here.base_name();
        }
        CaaFacts::None
    }

    async fn dns_record(
        &self,
        wanted: &Wanted,
        host: &HostName,
        now: SystemTime,
    ) -> Option<Result<String, DnsRecordProblem>> {
        match wanted.challenge {
            ChallengeType::Dns01 => Some(self.solver(wanted, host).await),
            ChallengeType::DnsPersist01 => Some(self.persist(wanted, host, now).await),
            _ => None,
        }
    }

    /// Where the record would go and who would write it. Nothing is written.
    async fn solver(&self, wanted: &Wanted, host: &HostName) -> Result<String, DnsRecordProblem> {
        let Some(solver) = &wanted.solver else {
            return Err(DnsRecordProblem {
                message: format!("no dns-01 solver is set for {host}"),
                fix: format!("give the issuer a dns-01 solver for the zone of {host}"),
                certain: true,
            });
        };
        match zone::challenge_fqdn(&self.dns, host.as_str()).await {
            Ok(fqdn) => Ok(format!("{} writes {fqdn}", solver.name())),
            Err(error) => Err(DnsRecordProblem {
                message: described(&error),
                fix: error.fix(),
                certain: error.reason() == "DnsAliasBroken",
            }),
        }
    }

    async fn persist(
        &self,
        wanted: &Wanted,
        host: &HostName,
        now: SystemTime,
    ) -> Result<String, DnsRecordProblem> {
        let Some(record) = &wanted.persist else {
            return Err(DnsRecordProblem {
                message: format!("the lasting TXT record for {host} is not known yet"),
                fix: "register the account first: the record names it".to_owned(),
                certain: false,
            });
        };
        let publish = format!("publish `{}`", record.zone_line());
        match record.look(&self.dns, now).await {
            Ok(Ok(())) => Ok(format!("{} allows the account", record.fqdn())),
            Ok(Err(PersistProblem::Missing)) => Err(DnsRecordProblem {
                message: format!("{} has no record for this authority", record.fqdn()),
                fix: publish,
                certain: true,
            }),
            Ok(Err(PersistProblem::Unfit(problems))) => Err(DnsRecordProblem {
                message: format!("{} does not do: {}", record.fqdn(), problems.join("; ")),
                fix: publish,
                certain: true,
            }),
            Err(error) => Err(DnsRecordProblem {
                message: described(&error),
                fix: error.fix(),
                certain: false,
            }),
        }
    }
}

/// An error and what caused it.
fn described(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What is known when time was up before anything was.
fn unanswered(wanted: &Wanted) -> NameFacts {
    let late = || "time for the checks was up".to_owned();
    let level = match &wanted.name {
        HostPattern::Exact(host) | HostPattern::Wildcard(host) => host.to_string(),
    };
    NameFacts {
        name: wanted.name.clone(),
        challenge: wanted.challenge,
        v4: Lookup::NoAnswer(late()),
        v6: Lookup::NoAnswer(late()),
        aliases: Vec::new(),
        caa: CaaFacts::NoAnswer {
            level,
            problem: late(),
        },
        loopback: Vec::new(),
        dns_record: None,
    }
}

fn aliases(v4: &Result<Walk, QueryError>, v6: &Result<Walk, QueryError>) -> Vec<String> {
    let longest = [v4, v6]
        .into_iter()
        .filter_map(|walk| walk.as_ref().ok())
        .max_by_key(|walk| walk.aliases.len());
    longest.map_or_else(Vec::new, |walk| {
        let names = walk.aliases.iter();
        names.map(|name| name.to_ascii().to_lowercase()).collect()
    })
}

fn lookup(walk: Result<Walk, QueryError>) -> Lookup {
    match walk {
        Err(error) => Lookup::NoAnswer(error.to_string()),
        Ok(walk) if walk.circular => Lookup::Circular,
        Ok(walk) => match walk.code {
            ResponseCode::NoError => {
                let found: Vec<IpAddr> = walk.records.iter().filter_map(address).collect();
                if found.is_empty() {
                    Lookup::Empty
                } else {
                    Lookup::Found(found)
                }
            }
            ResponseCode::NXDomain => Lookup::NoName,
            other => Lookup::Failed(code(other)),
        },
    }
}

/// As the tools of DNS write it.
fn code(code: ResponseCode) -> String {
    match code {
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        other => other.to_string(),
    }
}

fn caa_record(record: &hickory_proto::rr::Record) -> Option<CaaRecord> {
    match &record.data {
        RData::CAA(caa) => Some(CaaRecord {
            critical: caa.issuer_critical,
            tag: caa.tag.clone(),
            value: String::from_utf8_lossy(&caa.value).into_owned(),
        }),
        _ => None,
    }
}
