//! What was seen, as plain values: the only input of the verdicts.

use std::net::IpAddr;
use std::time::SystemTime;

use tidegate_model::HostPattern;

use super::caa::CaaFacts;
use crate::plan::challenge::ChallengeType;
use crate::plan::ledger;

/// Everything the verdicts are made from.
#[derive(Debug, Clone)]
pub struct Facts {
    /// When they were collected.
    pub now: SystemTime,
    /// The names of the order.
    pub names: Vec<NameFacts>,
    /// Addresses that lead to this edge.
    pub own: OwnAddresses,
    /// The authority.
    pub authority: Authority,
    /// Result of the write test of the store: the error's text.
    pub store: Option<Result<(), String>>,
    /// What the authority's limits leave; none when nobody counted.
    pub budget: Option<Budget>,
    /// Where authorities look for answers.
    pub ports: Ports,
}

/// What the limits of the authority leave.
#[derive(Debug, Clone, Default)]
pub struct Budget {
    /// Why the order must wait, in a sentence that says until when; none when it need not.
    pub refused: Option<String>,
    /// What is left of each limit, the scarcest first; empty where none is known.
    pub left: Vec<ledger::Budget>,
}

/// The ports at which authorities look for answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// For http-01.
    pub http: u16,
    /// For tls-alpn-01.
    pub tls: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { http: 80, tls: 443 }
    }
}

impl Ports {
    /// The port that an authority connects to; none when it asks the DNS.
    pub fn of(self, challenge: ChallengeType) -> Option<u16> {
        match challenge {
            ChallengeType::Http01 => Some(self.http),
            ChallengeType::TlsAlpn01 => Some(self.tls),
            ChallengeType::Dns01 | ChallengeType::DnsPersist01 => None,
        }
    }
}

/// What was seen of one name.
#[derive(Debug, Clone)]
pub struct NameFacts {
    /// The name in the certificate.
    pub name: HostPattern,
    /// How it is going to be proven.
    pub challenge: ChallengeType,
    /// The A records.
    pub v4: Lookup,
    /// The AAAA records.
    pub v6: Lookup,
    /// Where the name's aliases lead, in order.
    pub aliases: Vec<String>,
    /// The CAA records that apply.
    pub caa: CaaFacts,
    /// What answered at each address.
    pub loopback: Vec<Loopback>,
    /// For dns-01 the solver's name or why there is none; for dns-persist-01 the record or what is wrong with
    /// it. None when the challenge needs no DNS record.
    pub dns_record: Option<Result<String, DnsRecordProblem>>,
}

/// Why a TXT record cannot serve.
#[derive(Debug, Clone)]
pub struct DnsRecordProblem {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub fix: String,
    /// False when it could only not be seen.
    pub certain: bool,
}

/// How a look-up of addresses ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// There are some.
    Found(Vec<IpAddr>),
    /// The name exists without such records.
    Empty,
    /// The name does not exist (NXDOMAIN).
    NoName,
    /// The aliases lead in a circle.
    Circular,
    /// The server failed: SERVFAIL, REFUSED ….
    Failed(String),
    /// No answer, or none that could be read.
    NoAnswer(String),
    /// Not looked up: an IP address or a wildcard.
    NotAsked,
}

impl Lookup {
    /// The addresses found.
    pub fn addresses(&self) -> &[IpAddr] {
        match self {
            Self::Found(addresses) => addresses,
            _ => &[],
        }
    }
}

/// What answered a challenge of our own at one address of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loopback {
    /// Where.
    pub address: IpAddr,
    /// What.
    pub answer: LoopbackAnswer,
}

/// What answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoopbackAnswer {
    /// This edge: it knew the answer that only it knows.
    Ours,
    /// Something else; how it answered.
    Stranger(String),
    /// Nobody listens.
    Refused,
    /// No answer: filtered, or no way there.
    Silent(String),
}

/// Addresses by which this edge is known.
#[derive(Debug, Clone, Default)]
pub struct OwnAddresses {
    /// Of this machine's interfaces.
    pub interfaces: Vec<IpAddr>,
    /// Told by the settings: behind address translation nothing here can find them out, and nobody
    /// outside is asked.
    pub configured: Vec<IpAddr>,
}

/// What is known of the authority and the account.
#[derive(Debug, Clone, Default)]
pub struct Authority {
    /// Its name for people.
    pub name: String,
    /// Whether it checks from the public Internet.
    pub public: bool,
    /// Why the directory could not be fetched.
    pub unreachable: Option<String>,
    /// `meta.caaIdentities`.
    pub caa_identities: Vec<String>,
    /// `meta.termsOfService`.
    pub terms_of_service: Option<String>,
    /// Whether the settings agree to the terms.
    pub terms_agreed: bool,
    /// `meta.externalAccountRequired`.
    pub external_account_required: bool,
    /// Whether the settings have an external account, or the account exists already.
    pub external_account_given: bool,
    /// `meta.profiles`.
    pub profiles: Vec<String>,
    /// The profile asked for.
    pub profile: Option<String>,
    /// Its clock, from the `Date` header.
    pub date: Option<SystemTime>,
    /// URL of our account, when there is one.
    pub account_uri: Option<String>,
}
