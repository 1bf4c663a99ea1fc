//! Where what was found belongs: a certificate to the route whose names it covers, an account to the
//! issuer with its directory.
//!
//! A certificate without a route is kept under [`WAITING`] and its name: a route that needs one takes a
//! copy of it before it orders ([`waiting`]), so that routes can be written after the import. It is gone once
//! each of its names was taken, or it has expired.

use std::collections::BTreeSet;
use std::time::SystemTime;

use tidegate_model::HostPattern;

use super::{Found, FoundAccount, FoundCertificate, Skipped};
use crate::account::key_of;
use crate::bundle::merge::Merge;
use crate::bundle::{Mode, Outcome};
use crate::record::{AccountRecord, CertificateRecord, Issued};
use crate::store::{Key, Kind, Store, StoreError, load, save};

/// Begins the ids of certificates without a route. No route's id has a colon.
const WAITING: &str = "imported:";

/// What the objects say.
#[derive(Debug, Default)]
pub struct Target {
    /// Routes whose certificates are ordered.
    pub routes: Vec<TargetRoute>,
    /// Names and directories of the issuers.
    pub issuers: Vec<(String, String)>,
}

/// A route that wants a certificate.
#[derive(Debug)]
pub struct TargetRoute {
    /// Its id in the store.
    pub id: String,
    /// Its names.
    pub names: Vec<HostPattern>,
}

/// Puts what was found into a store, which nobody else may use meanwhile. What was done with each document;
/// what finds no place is added to what was skipped.
pub async fn place(
    store: &dyn Store,
    found: &mut Found,
    target: &Target,
    mode: Mode,
    now: SystemTime,
) -> Result<Vec<Outcome>, StoreError> {
    let mut merge = Merge::new(store, mode, now);
    let mut owned = BTreeSet::new();
    for account in std::mem::take(&mut found.accounts) {
        let mut placed = false;
        for (issuer, directory) in &target.issuers {
            if same(directory, &account.directory) {
                placed = true;
                let key = key_of(issuer, directory);
                if merge.account(key.name, record_of(&account, now)).await? {
                    owned.insert(account.directory.clone());
                }
            }
        }
        if !placed {
            found.skipped.push(Skipped {
                what: format!("account at {}", account.directory),
                source: account.source,
                why: "no AcmeIssuer has this directory; write one and import again, or let a new account be registered".to_owned(),
            });
        }
    }
    let mut placed = vec![false; found.certificates.len()];
    for route in &target.routes {
        let best = found
            .certificates
            .iter()
            .enumerate()
            .filter(|(_, certificate)| certificate.issued.covers(&route.names))
            .max_by_key(|(_, certificate)| {
                let closeness = std::cmp::Reverse(certificate.issued.names.len());
                (certificate.issued.not_after, closeness)
            });
        if let Some((index, certificate)) = best {
            placed[index] = true;
            let record = certificate_record(&route.id, certificate, &owned);
            merge.certificate(route.id.clone(), record).await?;
        }
    }
    for (certificate, placed) in found.certificates.iter().zip(placed) {
        if !placed {
            let id = format!("{WAITING}{}", certificate.name);
            let record = certificate_record(&id, certificate, &owned);
            merge.certificate(id, record).await?;
        }
    }
    Ok(merge.outcomes)
}

/// Whether this is the id of a certificate that waits for a route.
pub(crate) fn is_waiting(id: &str) -> bool {
    id.starts_with(WAITING)
}

/// A certificate that was imported before there was a route for these names, with its place in the store.
pub(crate) async fn waiting(
    store: &dyn Store,
    names: &[HostPattern],
    now: SystemTime,
) -> Result<Option<(Key, Issued)>, StoreError> {
    let mut best: Option<(Key, Issued)> = None;
    for key in store.list(Kind::Certificate).await? {
        if !is_waiting(&key.name) {
            continue;
        }
        let record: Option<CertificateRecord> = load(store, &key).await?;
        let found = record.and_then(|record| record.current);
        best = best
            .into_iter()
            .chain(found.map(|issued| (key, issued)))
            .filter(|(_, issued)| issued.not_after > now && issued.covers(names))
            .max_by_key(|(_, issued)| issued.not_after);
    }
    Ok(best)
}

/// Notes that a route with these names has taken it. Others may still want the rest of its names.
pub(crate) async fn taken(
    store: &dyn Store,
    key: &Key,
    names: &[HostPattern],
) -> Result<(), StoreError> {
    let record: Option<CertificateRecord> = load(store, key).await?;
    let Some(mut record) = record else {
        return Ok(());
    };
    let taken: BTreeSet<String> = std::mem::take(&mut record.taken)
        .into_iter()
        .chain(names.iter().map(ToString::to_string))
        .collect();
    let issued = record.current.as_ref();
    if issued.is_none_or(|issued| issued.names.iter().all(|name| taken.contains(name))) {
        return store.remove(key).await;
    }
    record.taken = taken.into_iter().collect();
    save(store, key, &record).await
}

fn same(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

fn record_of(account: &FoundAccount, now: SystemTime) -> AccountRecord {
    AccountRecord {
        version: 1,
        directory: account.directory.clone(),
        key_pem: account.key_pem.clone(),
        url: account.url.clone(),
        contact: account.contact.clone(),
        external_key_id: None,
        created_at: account.created_at.unwrap_or(now),
    }
}

/// The directory is kept only where its account is ours too: an authority lets no other account say that an
/// order replaces this certificate (RFC 9773 §5).
fn certificate_record(
    id: &str,
    certificate: &FoundCertificate,
    owned: &BTreeSet<String>,
) -> CertificateRecord {
    let mut issued = certificate.issued.clone();
    issued.directory = certificate
        .directory
        .clone()
        .filter(|directory| owned.iter().any(|own| same(own, directory)));
    CertificateRecord {
        current: Some(issued),
        ..CertificateRecord::new(id)
    }
}
