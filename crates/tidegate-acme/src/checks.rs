//! The pre-flight of one certificate: what is known is gathered, our own challenge is put up, names are
//! looked at, and `preflight` judges.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tidegate_model::{HostName, HostPattern};

use crate::account;
use crate::answers::{Answer, Answers};
use crate::book;
use crate::client::{AcmeClient, ClientError, Directory};
use crate::dns::DnsClient;
use crate::dns::persist::PersistRecord;
use crate::error::OrderError;
use crate::order::choose;
use crate::plan::challenge::ChallengeType;
use crate::plan::ledger::{Ledger, Limits, OrderKind};
use crate::plan::retry;
use crate::preflight::facts::{Authority, Budget, Lookup, NameFacts, OwnAddresses, Ports};
use crate::preflight::loopback::OwnChallenge;
use crate::preflight::own;
use crate::preflight::probe::{Probe, Wanted as Look};
use crate::preflight::{Facts, Finding, judge};
use crate::record::{AccountRecord, CertificateRecord};
use crate::settings::{Issuer, Method};
use crate::store::{Key, Kind, Store, peek};

/// Time for one question to a name server.
const QUERY: Duration = Duration::from_secs(3);
/// Time for one address of a name.
const ADDRESS: Duration = Duration::from_secs(3);
/// Time for all names.
const DEADLINE: Duration = Duration::from_secs(20);
/// Names looked at at the same time.
const PARALLEL: usize = 8;

/// How this edge looks at the world, and how the world sees it.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Name servers to ask; this machine's if empty.
    pub name_servers: Vec<SocketAddr>,
    /// Addresses at which the edge is reached, beyond those of its interfaces.
    pub addresses: Vec<IpAddr>,
    /// The same, as far as they are learned while the edge runs.
    pub learned: LearnedAddresses,
    /// Port at which authorities look for http-01: 80, but for private ones.
    pub http_port: u16,
    /// Port at which authorities look for tls-alpn-01: 443, but for private ones.
    pub tls_port: u16,
    /// How often the authorities' lists of revoked certificates are read; None: never.
    pub revocation_interval: Option<Duration>,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self {
            name_servers: Vec::new(),
            addresses: Vec::new(),
            learned: LearnedAddresses::default(),
            http_port: 80,
            tls_port: 443,
            revocation_interval: Some(Duration::from_secs(6 * 3600)),
        }
    }
}

/// Addresses that somebody finds out while the edge runs, such as those of its load balancer. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct LearnedAddresses(Arc<Mutex<Vec<IpAddr>>>);

impl LearnedAddresses {
    /// Replaces what was known.
    pub fn set(&self, addresses: Vec<IpAddr>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    fn get(&self) -> Vec<IpAddr> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Surroundings {
    fn all_addresses(&self) -> Vec<IpAddr> {
        let mut all = self.addresses.clone();
        all.extend(self.learned.get());
        all
    }

    /// Who is asked about names.
    pub fn resolver(&self) -> Option<DnsClient> {
        if self.name_servers.is_empty() {
            DnsClient::system(QUERY).ok()
        } else {
            Some(DnsClient::new(self.name_servers.clone(), QUERY))
        }
    }
}

/// What was found, for the keeper.
#[derive(Debug, Clone, Default)]
pub(crate) struct Checked {
    /// All findings.
    pub(crate) findings: Vec<Finding>,
    /// Digest of what the DNS said, to notice when it changes.
    pub(crate) dns: String,
}

/// Everything that is looked at.
pub(crate) struct Subject<'a> {
    pub(crate) issuer: &'a Issuer,
    pub(crate) names: &'a [HostPattern],
    /// Challenge types that failed before, by name.
    pub(crate) failed: &'a BTreeMap<String, Vec<ChallengeType>>,
    /// The directory, or why it cannot be read.
    pub(crate) directory: Result<&'a Directory, &'a ClientError>,
    pub(crate) account_url: Option<&'a str>,
    /// The authority's clock minus ours.
    pub(crate) clock_ahead: Option<i64>,
    pub(crate) budget: Option<Budget>,
    pub(crate) store: Option<Result<(), String>>,
}

/// The pre-flight of one certificate at this moment, for whoever asks: everything is looked at, nothing is
/// ordered or registered. Without `answers`, which only a running engine has, ports are not tried. `tested` is
/// what came of a write test of the store, if whoever asks could make one.
pub async fn preflight(
    surroundings: &Surroundings,
    store: &dyn Store,
    answers: Option<&Answers>,
    tested: Option<Result<(), String>>,
    wanted: &crate::settings::Wanted,
) -> Vec<Finding> {
    let issuer = wanted.issuer.as_ref();
    let now = SystemTime::now();
    let client = AcmeClient::new(issuer.roots.as_ref());
    let (directory, clock_ahead) = match client {
        Ok(client) => {
            let read = client.directory(&issuer.directory).await;
            (read, client.hints().clock_ahead)
        }
        Err(error) => (Err(error), None),
    };
    let account = account::key_of(&issuer.name, &issuer.directory);
    let account: Option<Result<AccountRecord, String>> = peek(store, &account).await.ok().flatten();
    let account_url = account.and_then(Result::ok).and_then(|account| account.url);
    let record = record(store, wanted).await;
    let kind = kind_of(record.as_ref(), wanted, directory.as_ref().ok());
    let budget = Some(allowance(store, wanted, kind, now).await);
    let failed = record.map(|record| record.failed_challenges);
    let subject = Subject {
        issuer,
        names: &wanted.names,
        failed: &failed.unwrap_or_default(),
        directory: directory.as_ref(),
        account_url: account_url.as_deref(),
        clock_ahead,
        budget,
        store: tested,
    };
    check(surroundings, answers, &subject, now).await.findings
}

/// What is remembered of the certificate.
async fn record(store: &dyn Store, wanted: &crate::settings::Wanted) -> Option<CertificateRecord> {
    let key = Key::new(Kind::Certificate, wanted.id.clone());
    let record: Option<Result<CertificateRecord, String>> = peek(store, &key).await.ok()?;
    record?.ok()
}

/// What the limits leave for the next order, by the ledger as it is stored.
async fn allowance(
    store: &dyn Store,
    wanted: &crate::settings::Wanted,
    kind: OrderKind,
    now: SystemTime,
) -> Budget {
    let issuer = wanted.issuer.as_ref();
    let key = account::key_of(&issuer.name, &issuer.directory);
    let key = Key::new(Kind::Ledger, key.name);
    let ledger: Option<Result<Ledger, String>> = peek(store, &key).await.ok().flatten();
    let ledger = ledger.and_then(Result::ok).unwrap_or_default();
    let limits = Limits::for_directory(&issuer.directory);
    book::budget(&ledger, &limits, &wanted.names, kind, now)
}

/// How the next order for this certificate would count.
fn kind_of(
    record: Option<&CertificateRecord>,
    wanted: &crate::settings::Wanted,
    directory: Option<&Directory>,
) -> OrderKind {
    let current = record.and_then(|record| record.current.as_ref());
    let Some(current) = current.filter(|current| current.covers(&wanted.names)) else {
        return OrderKind::New;
    };
    let replaced = current.directory.as_ref() == Some(&wanted.issuer.directory)
        && current.ari_id.is_some()
        && directory.is_some_and(|directory| directory.renewal_info.is_some());
    if replaced {
        OrderKind::AriRenewal
    } else {
        OrderKind::Renewal
    }
}

/// Looks at everything. Without `answers` nobody serves our own challenge, and ports are not tried.
pub(crate) async fn check(
    surroundings: &Surroundings,
    answers: Option<&Answers>,
    subject: &Subject<'_>,
    now: SystemTime,
) -> Checked {
    let meta = subject.directory.map(|directory| &directory.meta).ok();
    let mut looks = Vec::new();
    let mut unprovable = Vec::new();
    for name in subject.names {
        let failed = subject.failed.get(&name.to_string());
        let failed = failed.map_or(&[][..], Vec::as_slice);
        match choose(subject.issuer, &name.to_string(), None, failed) {
            Ok(method) => looks.push(look(name, method, subject, meta)),
            Err(error) => unprovable.push(cannot_prove(name, error)),
        }
    }
    let own = OwnChallenge {
        token: random_text(),
        key_authorization: random_text(),
        http_port: surroundings.http_port,
        tls_port: surroundings.tls_port,
        timeout: ADDRESS,
    };
    let put_up: Vec<Answer> = looks.iter().filter_map(|look| answer(look, &own)).collect();
    let presented = match answers {
        Some(answers) if !put_up.is_empty() => answers.present(put_up).await.ok(),
        _ => None,
    };
    let Some(dns) = surroundings.resolver() else {
        // Without a name server nothing can be said about names, which holds no order back.
        return Checked {
            findings: unprovable,
            dns: String::new(),
        };
    };
    let probe = Probe {
        dns,
        challenge: presented.is_some().then_some(own),
        deadline: DEADLINE,
        parallel: PARALLEL,
    };
    let names = probe.names(&looks, now).await;
    drop(presented);
    let digest = digest(&names);
    let facts = Facts {
        now,
        names,
        own: OwnAddresses {
            interfaces: own::interfaces(),
            configured: surroundings.all_addresses(),
        },
        authority: Authority {
            name: subject.issuer.name.clone(),
            public: is_public(&subject.issuer.directory),
            unreachable: subject
                .directory
                .err()
                .map(|error| tidegate_telemetry::chain(error).to_string()),
            caa_identities: meta.map_or_else(Vec::new, |meta| meta.caa_identities.clone()),
            terms_of_service: meta.and_then(|meta| meta.terms_of_service.clone()),
            // Issuers that do not agree are not translated.
            terms_agreed: true,
            external_account_required: meta.is_some_and(|meta| meta.external_account_required),
            external_account_given: subject.issuer.external_account.is_some()
                || subject.account_url.is_some(),
            profiles: meta.map_or_else(Vec::new, |meta| meta.profiles.keys().cloned().collect()),
            profile: subject.issuer.profile.clone(),
            date: subject.clock_ahead.and_then(|ahead| shifted(now, ahead)),
            account_uri: subject.account_url.map(str::to_owned),
        },
        store: subject.store.clone(),
        budget: subject.budget.clone(),
        ports: Ports {
            http: surroundings.http_port,
            tls: surroundings.tls_port,
        },
    };
    let mut findings = unprovable;
    findings.extend(judge(&facts));
    Checked {
        findings,
        dns: digest,
    }
}

/// That no solver of the issuer will do for a name.
fn cannot_prove(name: &HostPattern, error: OrderError) -> Finding {
    let (message, fix) = match error {
        OrderError::NoSolver { name, why, fix } => {
            (format!("no way to prove control of {name}: {why}"), fix)
        }
        other => (
            other.to_string(),
            "give the issuer a solver that can prove this name".to_owned(),
        ),
    };
    Finding {
        check: crate::preflight::Check::Challenge,
        name: Some(name.to_string()),
        state: crate::preflight::State::Blocking,
        message,
        fix: Some(fix),
    }
}

fn look(
    name: &HostPattern,
    method: &Method,
    subject: &Subject<'_>,
    meta: Option<&crate::client::DirectoryMeta>,
) -> Look {
    let bare = match name {
        HostPattern::Exact(host) | HostPattern::Wildcard(host) => host,
    };
    let (solver, persist) = match method {
        // What is broken is never chosen.
        Method::Http01 | Method::TlsAlpn01 | Method::Broken(..) => (None, None),
        Method::Dns01(with) => (Some(Arc::clone(&with.solver)), None),
        Method::DnsPersist01 => {
            let identity = meta.and_then(|meta| meta.caa_identities.first());
            let record = identity
                .zip(subject.account_url)
                .map(|(identity, account)| PersistRecord {
                    domain: bare.to_string(),
                    issuer_domain: identity.clone(),
                    account_uri: account.to_owned(),
                    wildcard: matches!(name, HostPattern::Wildcard(_)),
                    persist_until: None,
                });
            (None, record)
        }
    };
    Look {
        name: name.clone(),
        challenge: method.kind(),
        solver,
        persist,
    }
}

fn answer(look: &Look, own: &OwnChallenge) -> Option<Answer> {
    use sha2::Digest as _;
    let HostPattern::Exact(host) = &look.name else {
        return None;
    };
    match look.challenge {
        ChallengeType::Http01 => Some(Answer::Http01 {
            host: host.clone(),
            token: own.token.clone(),
            key_authorization: own.key_authorization.clone(),
        }),
        ChallengeType::TlsAlpn01 => Some(Answer::TlsAlpn01 {
            host: host.clone(),
            digest: sha2::Sha256::digest(own.key_authorization.as_bytes()).into(),
        }),
        ChallengeType::Dns01 | ChallengeType::DnsPersist01 => None,
    }
}

/// Whether an authority looks from the public Internet: its own name is a public one.
fn is_public(directory: &str) -> bool {
    let host = directory
        .parse::<http::Uri>()
        .ok()
        .and_then(|uri| uri.host().map(str::to_owned));
    let Some(host) = host.and_then(|host| HostName::parse(&host).ok()) else {
        return false;
    };
    if let Some(address) = host.ip() {
        return own::is_public(address);
    }
    let private = ["localhost", "local", "internal", "lan", "home.arpa", "test"];
    host.as_str().contains('.')
        && !private.iter().any(|zone| {
            host.as_str()
                .strip_suffix(zone)
                .is_some_and(|left| left.is_empty() || left.ends_with('.'))
        })
}

fn digest(names: &[NameFacts]) -> String {
    let text = |lookup: &Lookup| match lookup {
        Lookup::Found(addresses) => {
            let mut addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            addresses.sort();
            addresses.join(",")
        }
        other => format!("{other:?}"),
    };
    let parts: Vec<String> = names
        .iter()
        .map(|facts| {
            let lasting = match (&facts.challenge, &facts.dns_record) {
                (ChallengeType::DnsPersist01, Some(found)) => {
                    found.as_ref().map_err(|problem| &problem.message).err()
                }
                _ => None,
            };
            format!(
                "{} {} {} {:?} {lasting:?}",
                facts.name,
                text(&facts.v4),
                text(&facts.v6),
                facts.caa
            )
        })
        .collect();
    retry::fingerprint(parts.iter().map(String::as_str))
}

fn shifted(now: SystemTime, seconds: i64) -> Option<SystemTime> {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        now.checked_sub(by)
    } else {
        now.checked_add(by)
    }
}

/// 128 random bits.
fn random_text() -> String {
    let mut bytes = [0_u8; 16];
    // Without randomness TLS could not work either; a guessable token only weakens a check of ourselves.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    crate::settings::hex(&bytes)
}

#[cfg(test)]
mod tests {
    use tidegate_model::Secret;

    use super::*;
    use crate::record::Issued;
    use crate::settings::{KeyType, RenewalSource, Wanted};

    #[test]
    fn an_order_counts_as_what_the_authority_will_take_it_for() {
        let name = |text| HostPattern::parse(text).unwrap();
        let mut wanted = Wanted {
            id: "default/blog".to_owned(),
            names: vec![name("blog.example.com")],
            issuer: Arc::new(Issuer {
                name: "le".to_owned(),
                directory: "https://ca.example/dir".to_owned(),
                staging_directory: None,
                contact: Vec::new(),
                profile: None,
                key_type: KeyType::P256,
                external_account: None,
                roots: None,
                renewal: RenewalSource::Ari,
                fallback: None,
                notifications: Vec::new(),
                solvers: Vec::new(),
            }),
            fallback: None,
        };
        let mut record = CertificateRecord::new("default/blog");
        let mut directory = Directory {
            new_order: "https://ca.example/order".to_owned(),
            renewal_info: Some("https://ca.example/ari".to_owned()),
            meta: crate::client::DirectoryMeta::default(),
        };
        let kind = |record: &CertificateRecord, wanted: &Wanted, directory: &Directory| {
            kind_of(Some(record), wanted, Some(directory))
        };
        assert_eq!(kind(&record, &wanted, &directory), OrderKind::New);
        record.current = Some(Issued {
            chain_pem: String::new(),
            key_pem: Secret::new(String::new()),
            names: vec!["blog.example.com".to_owned()],
            issuer: Some("le".to_owned()),
            directory: Some("https://ca.example/dir".to_owned()),
            profile: None,
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH,
            ari_id: Some("a.b".to_owned()),
            revoked: None,
            revoked_because: None,
        });
        assert_eq!(kind(&record, &wanted, &directory), OrderKind::AriRenewal);
        directory.renewal_info = None;
        assert_eq!(kind(&record, &wanted, &directory), OrderKind::Renewal);
        assert_eq!(kind_of(Some(&record), &wanted, None), OrderKind::Renewal);
        wanted.names.push(name("www.example.com"));
        assert_eq!(kind(&record, &wanted, &directory), OrderKind::New);
    }

    #[test]
    fn authorities_with_public_names_look_from_outside() {
        for (directory, expected) in [
            ("https://acme-v02.api.letsencrypt.org/directory", true),
            ("https://localhost:14000/dir", false),
            ("https://ca.internal/acme/acme/directory", false),
            ("https://step-ca:9000/acme", false),
            ("https://10.0.0.1/dir", false),
            ("https://[::1]:14000/dir", false),
        ] {
            assert_eq!(is_public(directory), expected, "{directory}");
        }
    }
}
