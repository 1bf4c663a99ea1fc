//! Where a challenge record belongs: the alias of `_acme-challenge.NAME` followed, and the zone around it.
//!
//! People delegate the challenge by a CNAME to a zone that machines may write (acme-dns and its kind); the
//! certification authority follows it, so do we. A zone is found by its SOA (RFC 2181 §6), not by a list of
//! public suffixes: what counts is who serves it.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::query::address;
use super::{DnsClient, QueryError, SolverError, parse_name};

/// Most name servers of a zone that are asked; the root has 13.
const MAX_SERVERS: usize = 13;

/// The label under which the authority looks for dns-01 (RFC 8555 §8.4).
pub const CHALLENGE_LABEL: &str = "_acme-challenge";

/// The absolute name to write the challenge of `domain` under, its aliases followed.
///
/// `domain` is without the `*.` of a wildcard. A name that does not exist yet is its own answer.
pub async fn challenge_fqdn(client: &DnsClient, domain: &str) -> Result<String, SolverError> {
    let start = parse_name(&format!("{CHALLENGE_LABEL}.{domain}."))?;
    let walk = client
        .walk(&start, RecordType::TXT)
        .await
        .map_err(|source| query_error(&start, source))?;
    if walk.circular {
        return Err(SolverError::AliasLoop {
            fqdn: start.to_string(),
            chain: shown(&walk.aliases),
        });
    }
    if !walk.answered() {
        // Writing beside the alias that we cannot see would spoil the order.
        let failed = QueryError::Failed {
            name: start.to_string(),
            code: walk.code,
        };
        return Err(query_error(&start, failed));
    }
    Ok(walk.end(&start).to_ascii().to_lowercase())
}

/// The zone that holds a name, absolute: the nearest ancestor with an SOA.
pub async fn find_zone(client: &DnsClient, fqdn: &str) -> Result<String, SolverError> {
    let name = parse_name(fqdn)?;
    let zone = zone_of(client, &name)
        .await
        .map_err(|source| query_error(&name, source))?;
    zone.map(|zone| zone.to_ascii().to_lowercase())
        .ok_or_else(|| SolverError::NoZone {
            fqdn: name.to_string(),
        })
}

pub(super) async fn zone_of(client: &DnsClient, name: &Name) -> Result<Option<Name>, QueryError> {
    let mut here = name.clone();
    while !here.is_root() {
        let answer = client.ask(&here, RecordType::SOA).await?;
        if matches!(answer.code, ResponseCode::NoError | ResponseCode::NXDomain) {
            // The SOA is the answer at the cut itself, and in the authority section below it.
            let found = answer
                .answers
                .iter()
                .chain(&answer.authorities)
                .filter(|record| matches!(record.data, RData::SOA(_)))
                .map(|record| &record.name)
                .find(|zone| zone.zone_of(&here) && !zone.is_root());
            if let Some(zone) = found {
                return Ok(Some(zone.clone()));
            }
        }
        here = here.base_name();
    }
    Ok(None)
}

/// Addresses of all servers that hold a zone, on port 53, with the name of each.
pub async fn servers_of(
    client: &DnsClient,
    zone: &str,
) -> Result<Vec<(String, SocketAddr)>, SolverError> {
    let zone = parse_name(zone)?;
    let wrap = |source| query_error(&zone, source);
    let answer = client.ask(&zone, RecordType::NS).await.map_err(wrap)?;
    let mut servers = Vec::new();
    let names = answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::NS(server) => Some(&server.0),
            _ => None,
        });
    for name in names.take(MAX_SERVERS) {
        let mut addresses: Vec<IpAddr> = glue(&answer.additionals, name).collect();
        if addresses.is_empty() {
            addresses = client.addresses(name).await.map_err(wrap)?;
        }
        let host = name.to_ascii();
        let host = host.trim_end_matches('.');
        servers.extend(
            addresses
                .into_iter()
                .map(|ip| (host.to_owned(), SocketAddr::new(ip, 53))),
        );
    }
    Ok(servers)
}

fn glue<'a>(additionals: &'a [Record], name: &'a Name) -> impl Iterator<Item = IpAddr> + 'a {
    additionals
        .iter()
        .filter(move |record| record.name == *name)
        .filter_map(address)
}

fn query_error(name: &Name, source: QueryError) -> SolverError {
    SolverError::Query {
        fqdn: name.to_string(),
        source,
    }
}

fn shown(names: &[Name]) -> String {
    let names: Vec<String> = names.iter().map(Name::to_string).collect();
    names.join(" → ")
}
