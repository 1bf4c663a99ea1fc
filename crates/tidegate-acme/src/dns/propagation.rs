//! Waiting until every name server of the zone answers with the value.
//!
//! An authority asks one server of its choosing, from several places: one that lags spoils the order. So each
//! address of each server is asked, without recursion and past every cache, until all have it or time is up;
//! then it is said who lacked it and what that one answered. With split DNS, or where outgoing DNS is closed,
//! own servers are given and asked instead. Addresses that this machine has no route to are left out.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Name;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{DnsClient, SolverError, TxtRecord, query, zone};

/// How long and where.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Ask these instead of the zone's servers.
    pub servers: Vec<SocketAddr>,
    /// Time for everything.
    pub timeout: Duration,
    /// Pause between rounds.
    pub interval: Duration,
    /// Time for one question.
    pub query_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            timeout: Duration::from_mins(2),
            interval: Duration::from_secs(2),
            query_timeout: Duration::from_secs(3),
        }
    }
}

/// How the waiting ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Propagation {
    /// All have it.
    Everywhere {
        /// How many servers.
        servers: usize,
    },
    /// Time is up.
    Incomplete {
        /// Who has it.
        seen: usize,
        /// Who has not.
        lacking: Vec<Lacking>,
    },
    /// The zone has no servers that can be asked.
    NoServers,
}

/// A server without the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacking {
    /// Its name, or address.
    pub server: String,
    /// Where it was asked.
    pub address: SocketAddr,
    /// What it said last.
    pub said: String,
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.server, self.address, self.said)
    }
}

/// Waits until the record is seen at all servers; an error only when they cannot be found.
pub async fn wait(
    resolver: &DnsClient,
    record: &TxtRecord,
    settings: &Settings,
) -> Result<Propagation, SolverError> {
    let deadline = Instant::now() + settings.timeout;
    let name = record.name()?;
    let find = servers(resolver, record, settings);
    let mut pending: Vec<(String, SocketAddr)> = match tokio::time::timeout_at(deadline, find).await
    {
        Ok(found) => found?,
        Err(_) => Vec::new(),
    };
    if pending.is_empty() {
        return Ok(Propagation::NoServers);
    }
    let total = pending.len();
    loop {
        let lacking = round(&name, &record.value, pending, settings.query_timeout).await;
        if lacking.is_empty() {
            return Ok(Propagation::Everywhere { servers: total });
        }
        if Instant::now() + settings.interval >= deadline {
            return Ok(Propagation::Incomplete {
                seen: total - lacking.len(),
                lacking,
            });
        }
        tracing::debug!(fqdn = %record.fqdn, lacking = lacking.len(), "record not yet everywhere");
        tokio::time::sleep(settings.interval).await;
        pending = lacking
            .into_iter()
            .map(|server| (server.server, server.address))
            .collect();
    }
}

async fn servers(
    resolver: &DnsClient,
    record: &TxtRecord,
    settings: &Settings,
) -> Result<Vec<(String, SocketAddr)>, SolverError> {
    if settings.servers.is_empty() {
        let zone = zone::find_zone(resolver, &record.fqdn).await?;
        let mut reachable = Vec::new();
        for server in zone::servers_of(resolver, &zone).await? {
            if query::has_route(server.1).await {
                reachable.push(server);
            } else {
                tracing::debug!(server = %server.0, address = %server.1, "no route to name server");
            }
        }
        Ok(reachable)
    } else {
        let given = settings.servers.iter();
        Ok(given.map(|s| (s.ip().to_string(), *s)).collect())
    }
}

/// Asks each once, all at the same time; returns those without the value, in the order given.
async fn round(
    name: &Name,
    value: &str,
    servers: Vec<(String, SocketAddr)>,
    timeout: Duration,
) -> Vec<Lacking> {
    let mut tasks = JoinSet::new();
    for (position, (server, address)) in servers.into_iter().enumerate() {
        let (name, value) = (name.clone(), value.to_owned());
        tasks.spawn(async move {
            let client = DnsClient::authoritative(vec![address], timeout);
            let said = lacks(&client, &name, &value).await?;
            Some((
                position,
                Lacking {
                    server,
                    address,
                    said,
                },
            ))
        });
    }
    let mut lacking: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    lacking.sort_by_key(|(position, _)| *position);
    lacking.into_iter().map(|(_, lacking)| lacking).collect()
}

async fn lacks(client: &DnsClient, name: &Name, value: &str) -> Option<String> {
    match client.walk(name, hickory_proto::rr::RecordType::TXT).await {
        Err(error) => Some(error.to_string()),
        Ok(walk) => {
            let texts = query::texts_in(&walk.records);
            if texts.iter().any(|text| text == value) {
                return None;
            }
            Some(match (walk.code, texts.as_slice()) {
                (ResponseCode::NoError, []) => "no TXT record".to_owned(),
                (ResponseCode::NoError, [one]) => format!("another value: {one:?}"),
                (ResponseCode::NoError, many) => format!("{} other values", many.len()),
                (ResponseCode::NXDomain, _) => "no such name (NXDOMAIN)".to_owned(),
                (code, _) => code.to_string(),
            })
        }
    }
}
