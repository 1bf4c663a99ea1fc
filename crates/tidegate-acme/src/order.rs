//! One order, from key to certificate, resumable after every step.
//!
//! ```text
//! key stored ─► order placed ─► URL stored ─► names proven ─► finalized ─► certificate stored
//! ```
//!
//! Each arrow may be the last before a crash. What was stored decides where the next attempt begins; the
//! authority remembers the rest. Decides nothing about whether or when to order: that is `plan`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeStatus, ChallengeType,
    Identifier, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, RsaKeySize};
use tidegate_model::{HostPattern, Secret};
use tidegate_telemetry::chain;

use crate::account;
use crate::answers::{Answers, Presented, StoredAnswer};
use crate::book::Book;
use crate::client::{AcmeClient, ClientError};
use crate::dns::propagation::{self, Propagation};
use crate::dns::{SolverError, TxtRecord, zone};
use crate::error::{OrderError, kind, words};
use crate::issued;
use crate::lost;
use crate::plan::challenge;
use crate::plan::ledger::OrderKind;
use crate::record::{AccountRecord, CertificateRecord, Issued, Pending};
use crate::settings::{DnsMethod, Issuer, KeyType, Method, Solver};
use crate::store::{Key, Kind, Store, save};

/// How long an authority may take to look at answers, or to sign, before the order is left for later.
const PATIENCE: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.5)
    .timeout(Duration::from_secs(90));

/// Where an attempt is; shown to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The account is being opened.
    Account,
    /// The order is being placed.
    Ordering,
    /// A name is being proven.
    Proving {
        /// The name.
        name: String,
        /// Type of the challenge.
        challenge: &'static str,
    },
    /// The authority looks at the answers.
    Validating,
    /// The authority signs.
    Finalizing,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Account => f.write_str("opening the account"),
            Self::Ordering => f.write_str("placing the order"),
            Self::Proving { name, challenge } => {
                write!(f, "proving control of {name} by {challenge}")
            }
            Self::Validating => f.write_str("waiting for the authority to look"),
            Self::Finalizing => f.write_str("waiting for the authority to sign"),
        }
    }
}

/// Everything an attempt needs.
pub struct Attempt<'a> {
    /// Where each step is kept.
    pub store: &'a dyn Store,
    /// The issuer's client.
    pub client: &'a AcmeClient,
    /// Where answers are presented.
    pub answers: &'a Answers,
    /// Who is asked.
    pub issuer: &'a Issuer,
    /// Where: the issuer's directory, or its staging directory in a trial.
    pub directory: &'a str,
    /// Whether the certificate is thrown away.
    pub trial: bool,
    /// What it must cover.
    pub names: &'a [HostPattern],
    /// The certificate that it replaces, if the authority offers renewal information.
    pub replaces: Option<&'a str>,
    /// Told at each step.
    pub progress: &'a (dyn Fn(Step) + Send + Sync),
    /// Where orders are taken down before they are placed, because the authority counts them.
    pub book: &'a Book,
    /// As what the authority counts it.
    pub kind: OrderKind,
    /// What failed before, by name.
    pub failed: &'a BTreeMap<String, Vec<challenge::ChallengeType>>,
}

impl Attempt<'_> {
    /// Runs until there is a certificate. The record holds every step; the result is not yet in it.
    pub async fn run(&self, record: &mut CertificateRecord) -> Result<Issued, OrderError> {
        let key = Key::new(Kind::Certificate, record.id.clone());
        let begun_before = self.prepare(&key, record).await?;
        (self.progress)(Step::Account);
        let mut order = match self.open_order(&key, record, begun_before).await {
            // The authority has forgotten the account, which test authorities do at every start.
            Err(OrderError::Refused { problem, .. }) if kind(&problem) == "accountDoesNotExist" => {
                account::forget(self.store, self.issuer, self.directory).await?;
                if let Some(pending) = &mut record.pending {
                    pending.order_url = None;
                }
                self.open_order(&key, record, false).await?
            }
            opened => opened?,
        };
        let outcome = self.complete(&mut order, &key, record).await;
        if let Err(error) = &outcome
            && !error.keeps_order()
        {
            // It can come to nothing any more; the next attempt places another.
            record.pending = None;
            save(self.store, &key, record).await?;
        }
        outcome
    }

    async fn open_order(
        &self,
        key: &Key,
        record: &mut CertificateRecord,
        begun_before: bool,
    ) -> Result<Order, OrderError> {
        let now = SystemTime::now();
        let (account, known) =
            account::open(self.store, self.client, self.issuer, self.directory, now).await?;
        if begun_before {
            self.find_lost(&known, key, record).await?;
        }
        self.order(&account, key, record).await
    }

    /// The key is there but no order: it may have been placed, and its URL not have arrived.
    async fn find_lost(
        &self,
        account: &AccountRecord,
        key: &Key,
        record: &mut CertificateRecord,
    ) -> Result<(), OrderError> {
        let Some(pending) = &mut record.pending else {
            return Ok(());
        };
        if pending.order_url.is_some() {
            return Ok(());
        }
        let identifiers: Vec<Identifier> = self.names.iter().map(identifier).collect();
        if let Some(url) = lost::find(self.client, account, &identifiers, pending).await {
            tracing::info!(certificate = %record.id, order = %url, "an order was placed before and is found again");
            pending.order_url = Some(url);
            save(self.store, key, record).await?;
        }
        Ok(())
    }

    /// The key is stored first: a certificate whose key is lost is an order wasted, and a store that
    /// cannot be written must be found out before the authority is asked. Whether it was there already.
    async fn prepare(&self, key: &Key, record: &mut CertificateRecord) -> Result<bool, OrderError> {
        let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        let fits = record.pending.as_ref().is_some_and(|pending| {
            pending.names == names
                && pending.directory == self.directory
                && pending.issuer == self.issuer.name
                && pending.trial == self.trial
                && pending.profile == self.issuer.profile
                && issued::key_type_of(pending.key_pem.expose()) == Some(self.issuer.key_type)
        });
        if fits {
            return Ok(true);
        }
        let key_type = self.issuer.key_type;
        // Keys of RSA take seconds to make.
        let made = tokio::task::spawn_blocking(move || generate(key_type)).await;
        let pair = match made {
            Ok(made) => made.map_err(|error| OrderError::Key("certificate's key", error))?,
            Err(_) => return Err(OrderError::Invalid("the key could not be made".to_owned())),
        };
        record.pending = Some(Pending {
            issuer: self.issuer.name.clone(),
            directory: self.directory.to_owned(),
            trial: self.trial,
            names,
            key_pem: Secret::new(pair.serialize_pem()),
            profile: self.issuer.profile.clone(),
            order_url: None,
            answers: Vec::new(),
            started_at: SystemTime::now(),
        });
        save(self.store, key, record).await?;
        Ok(false)
    }

    /// The order of before, if the authority still has it; else a new one.
    async fn order(
        &self,
        account: &Account,
        key: &Key,
        record: &mut CertificateRecord,
    ) -> Result<Order, OrderError> {
        let known = record
            .pending
            .as_ref()
            .and_then(|pending| pending.order_url.clone());
        if let Some(url) = known {
            match account.order(url.clone()).await {
                Ok(mut order) => {
                    // It is invalid if the authority looked while nobody was there to answer.
                    let invalid = order.state().status == OrderStatus::Invalid;
                    tracing::info!(certificate = %record.id, order = %url, invalid, "the order of before");
                    if !invalid {
                        return Ok(order);
                    }
                }
                Err(instant_acme::Error::Api(problem))
                    if matches!(kind(&problem), "malformed" | "unauthorized")
                        || problem.status == Some(404) =>
                {
                    tracing::info!(certificate = %record.id, order = %url, "the authority does not have the order any more");
                }
                Err(error) => return Err(OrderError::of("look at the order", error)),
            }
        }
        (self.progress)(Step::Ordering);
        // Answers of an order that came to nothing must not stand in the way of those of the next.
        self.answers.keep_restored(|other| other != record.id);
        self.book
            .order(self.store, self.names, self.kind, SystemTime::now())
            .await?;
        let identifiers: Vec<Identifier> = self.names.iter().map(identifier).collect();
        let request = || {
            let request = NewOrder::new(&identifiers);
            match &self.issuer.profile {
                Some(profile) => request.profile(profile),
                None => request,
            }
        };
        let order = match self.replaces.and_then(|id| id.split_once('.')) {
            None => account.new_order(&request()).await,
            Some((authority, serial)) => {
                let old = CertificateIdentifier {
                    authority_key_identifier: authority.into(),
                    serial: serial.into(),
                };
                match account.new_order(&request().replaces(old)).await {
                    // Replaced already, or not known to this authority: an order like any other.
                    Err(instant_acme::Error::Unsupported(_)) => account.new_order(&request()).await,
                    // An authority that hands out the pending order of before does not say of that one
                    // what it replaces, which instant-acme takes for a mistake; without, it is the answer.
                    Err(instant_acme::Error::Other(other)) if !other.is::<ClientError>() => {
                        account.new_order(&request()).await
                    }
                    Err(instant_acme::Error::Api(problem))
                        if matches!(
                            kind(&problem),
                            "alreadyReplaced" | "malformed" | "unauthorized"
                        ) || problem.status == Some(404) =>
                    {
                        account.new_order(&request()).await
                    }
                    other => other,
                }
            }
        };
        let order = order.map_err(|error| OrderError::of("place the order", error))?;
        if let Some(pending) = &mut record.pending {
            pending.order_url = Some(order.url().to_owned());
            pending.answers.clear();
        }
        save(self.store, key, record).await?;
        Ok(order)
    }

    async fn complete(
        &self,
        order: &mut Order,
        key: &Key,
        record: &mut CertificateRecord,
    ) -> Result<Issued, OrderError> {
        let Some(pending) = &record.pending else {
            return Err(OrderError::Invalid("its key is missing".to_owned()));
        };
        let (key_pem, profile) = (pending.key_pem.clone(), pending.profile.clone());
        // Kept until the authority has looked.
        let mut presented = Vec::new();
        let mut dns = DnsRecords::default();
        let proven = match order.state().status {
            OrderStatus::Pending => {
                let proven = self
                    .prove(order, key, record, &mut presented, &mut dns)
                    .await;
                dns.remove().await;
                proven
            }
            _ => Ok(()),
        };
        drop(presented);
        proven?;
        if order.state().status == OrderStatus::Ready {
            (self.progress)(Step::Finalizing);
            let csr = signing_request(self.names, &key_pem)?;
            order
                .finalize_csr(&csr)
                .await
                .map_err(|error| OrderError::of("finalize the order", error))?;
        }
        if order.state().status == OrderStatus::Invalid {
            let why = order.state().error.as_ref().map(words).unwrap_or_default();
            return Err(OrderError::Invalid(why));
        }
        let chain = order
            .poll_certificate(&PATIENCE)
            .await
            .map_err(|error| OrderError::of("signing the certificate", error))?;
        let mut issued = issued::inspect(&chain, &key_pem).map_err(OrderError::Certificate)?;
        if !issued.covers(self.names) {
            return Err(OrderError::Certificate(format!(
                "it is for {}",
                issued.names.join(", ")
            )));
        }
        issued.issuer = Some(self.issuer.name.clone());
        issued.directory = Some(self.directory.to_owned());
        issued.profile = profile;
        Ok(issued)
    }

    /// Presents an answer for each name that is not proven yet, tells the authority, waits for it.
    async fn prove<'a>(
        &'a self,
        order: &mut Order,
        key: &Key,
        record: &mut CertificateRecord,
        presented: &mut Vec<Presented>,
        dns: &mut DnsRecords<'a>,
    ) -> Result<(), OrderError> {
        let mut chosen = Vec::new();
        let mut answers = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization =
                authorization.map_err(|error| OrderError::of("look at an authorization", error))?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let name = authorization.identifier().to_string();
            let offered: Vec<ChallengeType> = authorization
                .challenges
                .iter()
                .map(|challenge| challenge.r#type.clone())
                .collect();
            let failed = self.failed.get(&name).map_or(&[][..], Vec::as_slice);
            let method = choose(self.issuer, &name, Some(&offered), failed)?;
            let challenge_type = challenge_type(method);
            let url = authorization.url().to_owned();
            let Some(challenge) = authorization.challenge(challenge_type) else {
                continue;
            };
            (self.progress)(Step::Proving {
                name: name.clone(),
                challenge: method.challenge(),
            });
            let present = |detail: String| OrderError::Present {
                name: name.clone(),
                challenge: method.challenge(),
                detail,
            };
            let key_authorization = challenge.key_authorization();
            let stored = StoredAnswer {
                challenge: method.challenge().to_owned(),
                host: name.clone(),
                key_authorization: key_authorization.as_str().to_owned(),
            };
            match (method, stored.answer()) {
                (Method::Dns01(with), _) => {
                    let bare = name.strip_prefix("*.").unwrap_or(&name);
                    let value = key_authorization.dns_value();
                    dns.present(with, bare, value).await.map_err(present)?;
                }
                (_, Some(answer)) => {
                    let answer = self.answers.present(vec![answer]).await;
                    let answer = answer.map_err(|error| present(error.to_string()))?;
                    presented.push(answer);
                    answers.push(stored);
                }
                // A persistent record is there already.
                (_, None) => {}
            }
            chosen.push((url, method));
        }
        dns.wait()
            .await
            .map_err(|(name, detail)| OrderError::Present {
                name,
                challenge: "dns-01",
                detail,
            })?;
        if let Some(pending) = &mut record.pending
            && pending.answers != answers
        {
            pending.answers = answers;
            save(self.store, key, record).await?;
        }
        // The authority looks as soon as it is told: only when all answers are there.
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization =
                authorization.map_err(|error| OrderError::of("look at an authorization", error))?;
            let Some((_, method)) = chosen.iter().find(|(url, _)| url == authorization.url())
            else {
                continue;
            };
            // Told before a crash, it may be about to look, and must not be told twice.
            if let Some(mut challenge) = authorization.challenge(challenge_type(method))
                && challenge.status == ChallengeStatus::Pending
            {
                challenge
                    .set_ready()
                    .await
                    .map_err(|error| OrderError::of("ask the authority to look", error))?;
            }
        }
        (self.progress)(Step::Validating);
        match order.poll_ready(&PATIENCE).await {
            Ok(OrderStatus::Invalid) => Err(self.why_invalid(order, None).await),
            Ok(_) => Ok(()),
            // The order's own problem; those of its names say more.
            Err(instant_acme::Error::Api(problem)) => {
                Err(self.why_invalid(order, Some(problem)).await)
            }
            Err(instant_acme::Error::Timeout(_)) => Err(OrderError::Unfinished(
                "looking at the answers to its challenges",
            )),
            Err(error) => Err(OrderError::of("wait for the authority to look", error)),
        }
    }

    /// The authority's own words about the name that failed.
    async fn why_invalid(&self, order: &mut Order, problem: Option<Problem>) -> OrderError {
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            if authorization.refresh().await.is_err() {
                continue;
            }
            let name = authorization.identifier().to_string();
            for challenge in &authorization.challenges {
                if let Some(problem) = &challenge.error {
                    return OrderError::Challenge {
                        name,
                        challenge: type_name(&challenge.r#type),
                        kind: kind(problem).to_owned(),
                        detail: words(problem),
                    };
                }
            }
        }
        match problem.or_else(|| order.state().error.clone()) {
            Some(problem) => OrderError::Refused {
                action: "prove control of the names",
                problem,
            },
            None => OrderError::Invalid("it gave no reason".to_owned()),
        }
    }
}

/// TXT records that were written, to be removed however it ends.
#[derive(Default)]
struct DnsRecords<'a> {
    written: Vec<(&'a DnsMethod, TxtRecord)>,
}

impl<'a> DnsRecords<'a> {
    async fn present(
        &mut self,
        with: &'a DnsMethod,
        name: &str,
        value: String,
    ) -> Result<(), String> {
        let resolver = with.resolver().map_err(|error| in_words(&error))?;
        let fqdn = zone::challenge_fqdn(&resolver, name)
            .await
            .map_err(|error| in_words(&error))?;
        let record = TxtRecord::new(&fqdn, value);
        // Noted first: half a success must be removed as well.
        self.written.push((with, record.clone()));
        with.solver
            .present(&record, SystemTime::now())
            .await
            .map_err(|error| in_words(&error))
    }

    /// Until every server of each zone shows the record; the name that lacks and what is wrong.
    async fn wait(&self) -> Result<(), (String, String)> {
        for (with, record) in &self.written {
            let waited = match with.resolver() {
                Ok(resolver) => propagation::wait(&resolver, record, &with.propagation).await,
                Err(error) => Err(error),
            };
            let problem = match waited {
                Ok(Propagation::Everywhere { .. }) => continue,
                Ok(Propagation::NoServers) => "its zone has no name server that answers".to_owned(),
                Ok(Propagation::Incomplete { lacking, .. }) => {
                    let lacking: Vec<String> = lacking.iter().map(ToString::to_string).collect();
                    format!("the TXT record is not seen at {}", lacking.join(", "))
                }
                Err(error) => in_words(&error),
            };
            return Err((record.fqdn.clone(), problem));
        }
        Ok(())
    }

    async fn remove(&self) {
        for (with, record) in &self.written {
            if let Err(error) = with.solver.remove(record, SystemTime::now()).await {
                tracing::warn!(record = %record.fqdn, error = %chain(&error), "the TXT record could not be removed");
            }
        }
    }
}

/// What went wrong and what to do about it.
fn in_words(error: &SolverError) -> String {
    format!("{}; {}", chain(error), error.fix())
}

fn identifier(name: &HostPattern) -> Identifier {
    match name {
        HostPattern::Exact(host) => match host.ip() {
            Some(address) => Identifier::Ip(address),
            None => Identifier::Dns(host.to_string()),
        },
        HostPattern::Wildcard(_) => Identifier::Dns(name.to_string()),
    }
}

/// The best way to prove a name, by what the authority offers if that is known and what failed before.
pub(crate) fn choose<'a>(
    issuer: &'a Issuer,
    name: &str,
    offered: Option<&[ChallengeType]>,
    failed: &[challenge::ChallengeType],
) -> Result<&'a Method, OrderError> {
    let refused = |why: String, fix: &str| OrderError::NoSolver {
        name: name.to_owned(),
        why,
        fix: fix.to_owned(),
    };
    let pattern = HostPattern::parse(name)
        .map_err(|error| refused(error.to_string(), "correct the hostname of the route"))?;
    let facts = challenge::Facts {
        offered: offered.map(|offered| {
            offered
                .iter()
                .filter_map(|offered| challenge::ChallengeType::parse(&type_name(offered)))
                .collect()
        }),
        failed: failed.to_vec(),
        ..challenge::Facts::default()
    };
    let solvers: Vec<challenge::Solver> = issuer.solvers.iter().map(Solver::plan).collect();
    let choice = challenge::choose(&pattern, &solvers, &facts)
        .map_err(|error| refused(error.why, &error.mend))?;
    let best = choice.candidates.first();
    let solver = best.and_then(|best| {
        let mut all = issuer.solvers.iter();
        all.find(|solver| solver.name == best.solver && solver.method.kind() == best.kind)
    });
    solver
        .map(|solver| &solver.method)
        .ok_or_else(|| refused("the issuer has no solver".to_owned(), "give it one"))
}

fn challenge_type(method: &Method) -> ChallengeType {
    match method.kind() {
        challenge::ChallengeType::Http01 => ChallengeType::Http01,
        challenge::ChallengeType::TlsAlpn01 => ChallengeType::TlsAlpn01,
        challenge::ChallengeType::Dns01 => ChallengeType::Dns01,
        kind @ challenge::ChallengeType::DnsPersist01 => {
            ChallengeType::Unknown(kind.as_str().to_owned())
        }
    }
}

fn type_name(challenge: &ChallengeType) -> String {
    match challenge {
        ChallengeType::Http01 => "http-01".to_owned(),
        ChallengeType::Dns01 => "dns-01".to_owned(),
        ChallengeType::TlsAlpn01 => "tls-alpn-01".to_owned(),
        ChallengeType::DeviceAttest01 => "device-attest-01".to_owned(),
        ChallengeType::Unknown(name) => name.clone(),
        _ => "another challenge".to_owned(),
    }
}

fn generate(key_type: KeyType) -> Result<KeyPair, rcgen::Error> {
    match key_type {
        KeyType::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        KeyType::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        KeyType::Rsa2048 => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048),
        KeyType::Rsa4096 => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_4096),
    }
}

fn signing_request(names: &[HostPattern], key_pem: &Secret<String>) -> Result<Vec<u8>, OrderError> {
    let make = || {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names)?;
        // Names belong into the extension; a common name is longer than allowed at 65 characters.
        params.distinguished_name = DistinguishedName::new();
        let key = KeyPair::from_pem(key_pem.expose())?;
        Ok(params.serialize_request(&key)?.der().to_vec())
    };
    make().map_err(|error| OrderError::Key("signing request", error))
}
