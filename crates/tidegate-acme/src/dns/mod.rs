//! Publishing TXT records for dns-01: who writes the record, under which name, and when it is seen.
//!
//! ```text
//! _acme-challenge.NAME ─► zone::challenge_fqdn (CNAME followed) ─► DnsSolver::present ─► propagation::wait
//! ```
//!
//! A [`DnsSolver`] writes one value and takes one value away; several values live under one name at a time
//! (`example.com` and `*.example.com` in one order). Nothing here knows ACME: a record is a name and a text.
//! Keys, tokens and passwords never reach a log, an error text or a command line.

pub mod exec;
pub mod persist;
pub mod propagation;
pub mod providers;
pub mod query;
pub mod rfc2136;
pub mod webhook;
pub mod zone;

#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use hickory_proto::rr::Name;
use thiserror::Error;

pub use query::{DnsClient, QueryError};

/// Lifetime of a challenge record when nothing else is asked for.
pub const DEFAULT_TTL: Duration = Duration::from_mins(1);

/// One TXT value to publish or to take away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxtRecord {
    /// Absolute name with its final dot, after following aliases: `_acme-challenge.example.com.`.
    pub fqdn: String,
    /// The text, as one string of at most 255 bytes; not a secret.
    pub value: String,
    /// How long resolvers may keep it; whole seconds.
    pub ttl: Duration,
}

impl TxtRecord {
    /// A record with [`DEFAULT_TTL`]; the final dot is added when missing.
    pub fn new(fqdn: &str, value: impl Into<String>) -> Self {
        Self {
            fqdn: format!("{}.", fqdn.trim_end_matches('.')),
            value: value.into(),
            ttl: DEFAULT_TTL,
        }
    }

    fn ttl_seconds(&self) -> u32 {
        u32::try_from(self.ttl.as_secs()).unwrap_or(u32::MAX)
    }

    fn name(&self) -> Result<Name, SolverError> {
        parse_name(&self.fqdn)
    }
}

/// Writes TXT records somewhere the world's resolvers will find them.
///
/// Both calls are idempotent: presenting a value that is there and removing one that is not are successes.
#[async_trait]
pub trait DnsSolver: fmt::Debug + Send + Sync {
    /// How it is named to people: `RFC 2136 update at 192.0.2.1:53`. Without credentials.
    fn name(&self) -> String;

    /// Adds the value to those under the name.
    async fn present(&self, record: &TxtRecord, now: SystemTime) -> Result<(), SolverError>;

    /// Takes this value away and leaves others under the name alone.
    async fn remove(&self, record: &TxtRecord, now: SystemTime) -> Result<(), SolverError>;
}

/// Why a record could not be written.
#[derive(Debug, Error)]
pub enum SolverError {
    /// Settings that can never work.
    #[error("{what}")]
    Settings {
        /// What is wrong.
        what: String,
        /// How it is mended.
        fix: String,
    },
    /// A name server could not be asked.
    #[error("look up {fqdn}")]
    Query {
        /// The record's name.
        fqdn: String,
        /// What happened.
        #[source]
        source: QueryError,
    },
    /// No zone was found above the name.
    #[error("no zone found that holds {fqdn}")]
    NoZone {
        /// The record's name.
        fqdn: String,
    },
    /// The challenge name is an alias of an alias of an alias …
    #[error("{fqdn} is an alias that leads nowhere: {chain}")]
    AliasLoop {
        /// The name first asked for.
        fqdn: String,
        /// Names met on the way.
        chain: String,
    },
    /// The server answered the update with an error.
    #[error("update of zone {zone} at {server}: {rejection}")]
    Rejected {
        /// Who answered.
        server: String,
        /// The zone that was to change.
        zone: String,
        /// Its answer.
        rejection: rfc2136::Rejection,
    },
    /// The program failed.
    #[error("run {program} {action}: {problem}")]
    Program {
        /// Its path.
        program: String,
        /// `present` or `cleanup`.
        action: &'static str,
        /// Exit code and last words, or what prevented it.
        problem: String,
    },
    /// The web service failed.
    #[error("call {url}: {problem}")]
    Webhook {
        /// Without user information and query.
        url: String,
        /// Status and beginning of the answer, or what prevented it.
        problem: String,
    },
    /// The provider's API refused.
    #[error("{provider}: {problem}")]
    Provider {
        /// Provider's name in the settings.
        provider: String,
        /// Its answer.
        problem: String,
        /// How it is mended.
        fix: String,
    },
}

impl SolverError {
    /// Machine-readable kind for statuses.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Settings { .. } => "DnsSolverInvalid",
            Self::Query { .. } => "DnsLookupFailed",
            Self::NoZone { .. } => "DnsZoneNotFound",
            Self::AliasLoop { .. } => "DnsAliasBroken",
            Self::Rejected { rejection, .. } => rejection.reason(),
            Self::Program { .. } => "DnsProgramFailed",
            Self::Webhook { .. } => "DnsWebhookFailed",
            Self::Provider { .. } => "DnsProviderFailed",
        }
    }

    /// One sentence that says what to do.
    pub fn fix(&self) -> String {
        match self {
            Self::Settings { fix, .. } | Self::Provider { fix, .. } => fix.clone(),
            Self::Query { source, .. } => source.fix(),
            Self::NoZone { fqdn } => format!(
                "give the zone of {fqdn} in the solver's settings, or name servers that know it"
            ),
            Self::AliasLoop { fqdn, .. } => {
                format!("correct the CNAME at {fqdn} so that it ends at a name that can hold a TXT")
            }
            Self::Rejected {
                rejection,
                server,
                zone,
            } => rejection.fix(server, zone),
            Self::Program { program, .. } => format!(
                "run {program} by hand with `present FQDN VALUE` as the user of the edge and see what it says"
            ),
            Self::Webhook { url, .. } => {
                format!(
                    "check that the service at {url} is up, trusted and accepts the credentials"
                )
            }
        }
    }
}

fn parse_name(text: &str) -> Result<Name, SolverError> {
    let mut name = Name::from_ascii(text).map_err(|error| SolverError::Settings {
        what: format!("{text:?} is not a DNS name: {error}"),
        fix: "give a name made of labels of at most 63 characters".to_owned(),
    })?;
    name.set_fqdn(true);
    Ok(name)
}
