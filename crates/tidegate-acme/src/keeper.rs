//! The life of one certificate: decide, sleep or order, remember, again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_telemetry::chain;
use tokio::sync::{mpsc, watch};

use crate::account;
use crate::checks::{self, Subject};
use crate::client::{AcmeClient, ClientError, Directory};
use crate::crl;
use crate::decision::{self, KnownKey, Plan, plan};
use crate::engine::{CertificateState, Command, Report, Shared};
use crate::error::OrderError;
use crate::import;
use crate::order::{Attempt, Step, choose};
use crate::plan::challenge::ChallengeType;
use crate::plan::ledger::{Limits, OrderKind, Refusal};
use crate::plan::moment;
use crate::plan::renewal::{AriFailure, AriState, RenewReason, lifetime_renewal};
use crate::plan::retry::{self, Failure, RetryBounds};
use crate::preflight::facts::Budget;
use crate::preflight::{self, Check, Finding, State};
use crate::record::{AccountRecord, CertificateRecord, Issued};
use crate::revocation::RevocationReason;
use crate::rollback::{RollbackError, roll_back};
use crate::settings::{Issuer, Wanted};
use crate::store::{Key, Kind, StoreError, load, save, tested};

/// A clock that was set, or a machine that slept, is noticed within this time.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// How often names are looked at while an attempt is being waited for.
const DNS_PAUSE: Duration = Duration::from_secs(15);
/// How often a store that could not be written is tried again.
const STORE_LOOK: Duration = Duration::from_secs(5);
/// How soon a store that cannot be read is read again.
const STORE_PAUSE: Duration = Duration::from_secs(30);

/// One certificate and all that is known of it.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    key: Key,
    record: CertificateRecord,
    /// Whether the record is yet to be read.
    unread: bool,
    wanted: watch::Receiver<Wanted>,
    commands: mpsc::Receiver<Command>,
    /// Since when this process can act.
    awake_since: SystemTime,
    /// When this process got the certificate that is served.
    issued_at: Option<SystemTime>,
    /// Until when the authority asked to wait, as far as it did.
    told_until: Option<SystemTime>,
    /// Digest of what the DNS said before the last attempt.
    dns: String,
    /// When what is served should be renewed, as last planned, and the end of its validity.
    planned: Option<(SystemTime, SystemTime)>,
    /// Directory of the last attempt.
    tried_at: String,
    /// Of what is served.
    known_key: KnownKey,
    /// Fingerprint of what was wanted when it was last looked at.
    known: Option<String>,
    /// Whether an attempt was made early because the store could be written again.
    hurried: bool,
}

impl Keeper {
    pub(crate) fn new(
        shared: Arc<Shared>,
        id: &str,
        record: Option<CertificateRecord>,
        wanted: watch::Receiver<Wanted>,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        Self {
            shared,
            key: Key::new(Kind::Certificate, id),
            unread: record.is_none(),
            record: record.unwrap_or_else(|| CertificateRecord::new(id)),
            wanted,
            commands,
            awake_since: SystemTime::now(),
            issued_at: None,
            told_until: None,
            dns: String::new(),
            planned: None,
            tried_at: String::new(),
            known_key: KnownKey::default(),
            known: None,
            hurried: false,
        }
    }

    pub(crate) async fn run(mut self) {
        if self.unread {
            self.load().await;
        }
        let wanted = self.wanted.borrow().clone();
        self.adopt(&wanted).await;
        self.publish(self.report());
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let now = SystemTime::now();
            self.notice_change(&wanted, now);
            match plan(
                &self.record,
                &wanted,
                &mut self.known_key,
                self.awake_since,
                now,
            ) {
                Plan::Keep { renew_at, ask_at } => {
                    let current = self.record.current.as_ref();
                    self.planned = current.map(|current| (renew_at, current.not_after));
                    self.publish(self.report());
                    if ask_at.is_some_and(|at| at <= now) {
                        self.ask(&wanted).await;
                    } else if self.failed_at_store() {
                        self.rest(renew_at.min(now + STORE_LOOK)).await;
                        self.keep_at_last(&wanted).await;
                    } else {
                        self.rest(ask_at.unwrap_or(renew_at).min(renew_at)).await;
                    }
                }
                Plan::Wait { until } => {
                    self.publish(Report {
                        next_attempt: Some(until),
                        ..self.report()
                    });
                    if self.failed_at_store() {
                        self.rest(until.min(now + STORE_LOOK)).await;
                        self.look_at_store(&wanted).await;
                    } else {
                        self.rest(until.min(now + DNS_PAUSE)).await;
                        self.look_at_dns(&wanted).await;
                    }
                }
                Plan::Order(need) => {
                    if !self.adopt(&wanted).await {
                        self.order(&wanted, need).await;
                    }
                }
            }
        }
    }

    /// What failed may go well now that an object or a credential was changed: no attempt waits for that.
    fn notice_change(&mut self, wanted: &Wanted, now: SystemTime) {
        let new = wanted.fingerprint();
        let known = self.known.replace(new.clone());
        if known.is_some_and(|known| known != new) {
            let bounds = self.bounds(wanted);
            let fingerprint = self.fingerprint(wanted);
            self.record.attempts.begin(&fingerprint, &bounds, now);
        }
    }

    /// The record as the store has it.
    async fn load(&mut self) {
        loop {
            match load(self.shared.store.as_ref(), &self.key).await {
                Ok(Some(record)) => {
                    self.record = record;
                    return;
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(certificate = %self.key.name, error = %chain(&error), "the record cannot be read");
                    self.publish(Report {
                        reason: error.reason().to_owned(),
                        message: chain(&error).to_string(),
                        failed: true,
                        ..Report::default()
                    });
                    tokio::time::sleep(STORE_PAUSE).await;
                }
            }
        }
    }

    /// Takes a certificate that was imported and that no route wanted then, instead of ordering one; whether
    /// there was one.
    async fn adopt(&mut self, wanted: &Wanted) -> bool {
        let now = SystemTime::now();
        let names = &wanted.names;
        let current = self.record.current.as_ref();
        if current.is_some_and(|current| current.not_after > now && current.covers(names)) {
            return false;
        }
        let shared = Arc::clone(&self.shared);
        let _one_at_a_time = shared.imports.lock().await;
        let store = shared.store.as_ref();
        let (key, issued) = match import::waiting(store, names, now).await {
            Ok(Some(found)) => found,
            Ok(None) => return false,
            Err(error) => {
                tracing::warn!(certificate = %self.record.id, error = %chain(&error), "imported certificates cannot be read");
                return false;
            }
        };
        let before = self.record.clone();
        self.replace(issued);
        if !self.save().await {
            self.record = before;
            return false;
        }
        tracing::info!(certificate = %self.record.id, import = %key.name, "an imported certificate is used");
        if let Err(error) = import::taken(store, &key, names).await {
            tracing::warn!(import = %key.name, error = %chain(&error), "an imported certificate that is used stays");
        }
        true
    }

    /// A new certificate takes the place of the one that is served.
    fn replace(&mut self, issued: Issued) {
        self.record.previous = self.record.current.take();
        self.record.current = Some(issued);
        self.record.rolled_back = None;
        self.record.forced = None;
        self.record.ari = None;
        self.record.failed_challenges.clear();
        self.record.attempts.succeeded();
    }

    /// Sleeps until that time, or until something is asked or changed.
    async fn rest(&mut self, until: SystemTime) {
        let pause = until
            .duration_since(SystemTime::now())
            .unwrap_or_default()
            .min(LONGEST_SLEEP);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = self.wanted.changed() => {
                if changed.is_err() {
                    // Ended by the supervisor in a moment.
                    std::future::pending::<()>().await;
                }
            }
            Some(command) = self.commands.recv() => self.obey(command).await,
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Renew {
                asked_at, answer, ..
            } => {
                // Asked during an order, which has ended since: one new certificate is enough.
                let issued_since = self.issued_at.is_some_and(|at| at > asked_at);
                if !issued_since {
                    self.record.forced = Some(SystemTime::now());
                }
                let saved = issued_since || self.save().await;
                // Whoever asked may have gone.
                let _ = answer.send(saved);
            }
            Command::Rollback { answer, .. } => {
                let _ = answer.send(self.roll_back().await);
            }
            Command::Revoke { reason, answer, .. } => {
                let _ = answer.send(self.revoke(reason).await);
            }
            Command::FoundRevoked { issued, reason, .. } => {
                let wanted = self.wanted.borrow().clone();
                if let Some(notice) = crl::take_down(&mut self.record, &wanted, &issued, reason) {
                    self.save().await;
                    self.shared.lanes.report(&wanted.issuer.name, notice);
                }
            }
        }
    }

    /// Serves the certificate of before, unless that cannot be remembered.
    async fn roll_back(&mut self) -> Result<(), RollbackError> {
        let before = self.record.clone();
        let now = SystemTime::now();
        roll_back(&mut self.record, &self.wanted.borrow(), now)?;
        if !self.save().await {
            self.record = before;
            return Err(RollbackError::NotStored);
        }
        self.told_until = None;
        tracing::warn!(certificate = %self.record.id, "a person went back to the certificate of before");
        Ok(())
    }

    async fn save(&self) -> bool {
        match save(self.shared.store.as_ref(), &self.key, &self.record).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(certificate = %self.record.id, error = %chain(&error), "the record cannot be kept");
                false
            }
        }
    }

    async fn order(&mut self, wanted: &Wanted, why: RenewReason) {
        let shared = Arc::clone(&self.shared);
        let Ok(_permit) = shared.orders.acquire().await else {
            return;
        };
        if !self.stands_in(wanted) {
            let issuer = Arc::clone(&wanted.issuer);
            let Err(error) = self.attempt(wanted, &issuer, &why).await else {
                return;
            };
            self.failed(wanted, &issuer, &error).await;
            if !self.stands_in(wanted) {
                return;
            }
        }
        if let Some(issuer) = wanted.fallback.clone()
            && let Err(error) = self.attempt(wanted, &issuer, &why).await
        {
            self.failed(wanted, &issuer, &error).await;
        }
    }

    /// Whether the fallback is to be asked, which is said.
    fn stands_in(&self, wanted: &Wanted) -> bool {
        let why = decision::fallback(&self.record, wanted, SystemTime::now());
        if let (Some(why), Some(issuer)) = (&why, &wanted.fallback) {
            tracing::warn!(certificate = %self.record.id, issuer = %issuer.name, why, "the fallback issuer is asked");
        }
        why.is_some()
    }

    /// One attempt, or the trial before it.
    async fn attempt(
        &mut self,
        wanted: &Wanted,
        issuer: &Issuer,
        why: &RenewReason,
    ) -> Result<(), OrderError> {
        let authority = self.shared.authority(issuer)?;
        let client = authority.client.for_one_attempt();
        let outcome = self.ask_for_one(wanted, issuer, why, &client).await;
        if outcome.is_err() {
            self.told_until = self.told_until.max(client.told_to_wait());
        }
        outcome
    }

    async fn ask_for_one(
        &mut self,
        wanted: &Wanted,
        issuer: &Issuer,
        why: &RenewReason,
        client: &AcmeClient,
    ) -> Result<(), OrderError> {
        let shared = Arc::clone(&self.shared);
        let store = shared.store.as_ref();
        let authority = shared.authority(issuer)?;
        let fingerprint = wanted.fingerprint();
        let trial = issuer.staging_directory.as_deref().filter(|_| {
            !why.is_renewal() && self.record.trial_passed.as_ref() != Some(&fingerprint)
        });
        let directory = trial.unwrap_or(&issuer.directory);
        let facts = authority.directory(directory).await?;
        let replaces = self
            .record
            .current
            .as_ref()
            .filter(|_| trial.is_none() && facts.renewal_info.is_some())
            .filter(|current| current.directory.as_deref() == Some(directory))
            .and_then(|current| current.ari_id.clone());
        let kind = match (&replaces, !why.is_renewal()) {
            (Some(_), _) => OrderKind::AriRenewal,
            (None, true) => OrderKind::New,
            (None, false) => OrderKind::Renewal,
        };
        let book = shared.book(&issuer.name, directory);
        let resumed =
            self.record.pending.as_ref().is_some_and(|pending| {
                pending.order_url.is_some() && pending.directory == directory
            });
        if !resumed {
            let now = SystemTime::now();
            let refused = match book.may_order(store, &wanted.names, kind, now).await {
                Ok(()) => None,
                Err(OrderError::Budget { refusal }) => Some(refusal),
                Err(error) => return Err(error),
            };
            let budget = book.budget(store, &wanted.names, kind, now).await?;
            self.preflight(wanted, issuer, directory, &facts, client, (budget, refused))
                .await?;
            tracing::info!(certificate = %self.record.id, issuer = %issuer.name, why = %why, trial = trial.is_some(), "ordering a certificate");
        }
        let served = self.record.current.clone().map(Arc::new);
        let id = self.record.id.clone();
        let attempts = self.record.attempts.clone();
        let begun = Report {
            reason: why.reason().to_owned(),
            failed: false,
            started_at: Some(SystemTime::now()),
            ..self.report()
        };
        let progress = |step: Step| {
            let message = match trial {
                Some(_) => format!("{why}; trial at the staging directory: {step}"),
                None => format!("{why}; {step}"),
            };
            let report = Report {
                message,
                ..begun.clone()
            };
            let state = CertificateState {
                issued: served.clone(),
                report,
                attempts: attempts.clone(),
            };
            shared.publish(&id, state);
        };
        let failed = self.record.failed_challenges.clone();
        let attempt = Attempt {
            store,
            client,
            answers: &shared.answers,
            issuer,
            directory,
            trial: trial.is_some(),
            names: &wanted.names,
            replaces: replaces.as_deref(),
            progress: &progress,
            book: &book,
            kind,
            failed: &failed,
        };
        let outcome = attempt.run(&mut self.record).await;
        if outcome.is_ok() || self.record.pending.is_none() {
            shared.answers.keep_restored(|other| other != id);
        }
        let told = client.told_to_wait();
        let now = SystemTime::now();
        let outcome_of = outcome.as_ref().map(drop);
        let counted = match (&outcome, trial) {
            (Err(_), _) => "failed",
            (Ok(_), Some(_)) => "trialPassed",
            (Ok(_), None) => "issued",
        };
        shared.tally.order(&issuer.name, counted);
        let until = book.outcome(store, &wanted.names, kind, outcome_of, told, now);
        self.told_until = until.await.unwrap_or_else(|error| {
            // What came of it is worth more than the note of it.
            tracing::error!(issuer = %issuer.name, error = %chain(&error), "the ledger cannot be kept");
            None
        });
        let certificate = outcome?;
        self.record.pending = None;
        if trial.is_some() {
            tracing::info!(certificate = %self.record.id, "the trial at the staging directory went well");
            self.record.trial_passed = Some(fingerprint);
        } else {
            tracing::info!(
                certificate = %self.record.id,
                issuer = %issuer.name,
                not_after = %moment::rfc3339_text(certificate.not_after),
                "certificate issued"
            );
            self.issued_at = Some(now);
            self.replace(certificate);
        }
        save(store, &self.key, &self.record).await?;
        let account_url = self.account_url(issuer, &issuer.directory).await;
        shared.publish_issuer(&issuer.name, |state| {
            state.account_url = account_url;
            state.problem = None;
        });
        Ok(())
    }

    async fn account_url(&self, issuer: &Issuer, directory: &str) -> Option<String> {
        let key = account::key_of(&issuer.name, directory);
        let account: Option<AccountRecord> = load(self.shared.store.as_ref(), &key).await.ok()?;
        account?.url
    }

    /// Everything that would make the order fail is found before it is placed.
    async fn preflight(
        &mut self,
        wanted: &Wanted,
        issuer: &Issuer,
        url: &str,
        directory: &Directory,
        client: &AcmeClient,
        (budget, refused): (Budget, Option<Refusal>),
    ) -> Result<(), OrderError> {
        let tested = tested(self.shared.store.as_ref()).await;
        url.clone_into(&mut self.tried_at);
        // What was noted may be an hour old, and the clock set since.
        if preflight::is_skewed(client.hints().clock_ahead) {
            client.directory(url).await?;
        }
        let mut account_url = self.account_url(issuer, url).await;
        if account_url.is_none() && issuer.has_lasting_record() {
            // The record names the account, so that there must be one before anybody can publish it.
            let store = self.shared.store.as_ref();
            let now = SystemTime::now();
            let (_, account) = account::open(store, client, issuer, url, now).await?;
            account_url = account.url;
        }
        loop {
            let subject = Subject {
                issuer,
                names: &wanted.names,
                failed: &self.record.failed_challenges,
                directory: Ok(directory),
                account_url: account_url.as_deref(),
                clock_ahead: client.hints().clock_ahead,
                budget: Some(budget.clone()),
                store: Some(tested.clone()),
            };
            let answers = Some(&self.shared.answers);
            let now = SystemTime::now();
            let checked = checks::check(&self.shared.surroundings, answers, &subject, now).await;
            self.dns = checked.dns;
            self.record.preflight.clone_from(&checked.findings);
            if let Some(refusal) = refused {
                return Err(OrderError::Budget { refusal });
            }
            if !preflight::blocks(&checked.findings) {
                return Ok(());
            }
            // Each round leaves out one more way, so that it ends.
            if !self.take_another_way(issuer, &checked.findings) {
                return Err(OrderError::Preflight {
                    findings: checked.findings,
                });
            }
        }
    }

    /// Leaves out challenges whose port does not lead here; whether another that was not tried is left for
    /// one of the names.
    fn take_another_way(&mut self, issuer: &Issuer, findings: &[Finding]) -> bool {
        let mut another = false;
        for finding in findings {
            let (Check::Reachability, State::Blocking, Some(name)) =
                (finding.check, finding.state, &finding.name)
            else {
                continue;
            };
            let failed = self.record.failed_challenges.entry(name.clone());
            let failed = failed.or_default();
            let Ok(method) = choose(issuer, name, None, failed) else {
                continue;
            };
            let kind = method.kind();
            if !failed.contains(&kind) {
                failed.push(kind);
                let next = choose(issuer, name, None, failed);
                another |= next.is_ok_and(|next| !failed.contains(&next.kind()));
            }
        }
        another
    }

    /// While an attempt is being waited for: a name whose records have changed need not wait.
    async fn look_at_dns(&mut self, wanted: &Wanted) {
        if self.dns.is_empty() || self.wanted.has_changed().unwrap_or(false) {
            return;
        }
        let issuer = &wanted.issuer;
        let mut directory = Err(ClientError::NotAsked);
        let mut account_url = None;
        if issuer.has_lasting_record() {
            // Which record is looked for depends on both.
            account_url = self.account_url(issuer, &self.tried_at).await;
            if let Ok(authority) = self.shared.authority(issuer) {
                directory = authority.directory(&self.tried_at).await;
            }
        }
        let subject = Subject {
            issuer,
            names: &wanted.names,
            failed: &self.record.failed_challenges,
            directory: directory.as_ref(),
            account_url: account_url.as_deref(),
            clock_ahead: None,
            budget: None,
            store: None,
        };
        let now = SystemTime::now();
        let checked = checks::check(&self.shared.surroundings, None, &subject, now).await;
        if !checked.dns.is_empty() && checked.dns != self.dns {
            tracing::info!(certificate = %self.record.id, "the DNS records of a name have changed");
            self.dns = checked.dns;
            let bounds = self.bounds(wanted);
            let fingerprint = self.fingerprint(wanted);
            self.record.attempts.begin(&fingerprint, &bounds, now);
        }
    }

    fn failed_at_store(&self) -> bool {
        let last = self.record.attempts.last_error.as_ref();
        last.is_some_and(|last| last.reason == StoreError::UNWRITABLE)
    }

    /// While an attempt is being waited for that failed at the store: once that can be written again, it
    /// need not wait. One that fails all the same, for want of a little more room, waits as others do.
    async fn look_at_store(&mut self, wanted: &Wanted) {
        let store = self.shared.store.as_ref();
        let writable = save(store, &self.key, &self.record).await.is_ok();
        if writable && !self.hurried {
            tracing::info!(certificate = %self.record.id, "the store can be written again");
            let bounds = self.bounds(wanted);
            self.record.attempts.start_over(&bounds, SystemTime::now());
        }
        self.hurried = writable;
    }

    /// What is served could not be kept when it was issued: it is as soon as that is possible.
    async fn keep_at_last(&mut self, wanted: &Wanted) {
        let before = self.record.attempts.clone();
        let bounds = self.bounds(wanted);
        self.record.attempts.start_over(&bounds, SystemTime::now());
        let store = self.shared.store.as_ref();
        if save(store, &self.key, &self.record).await.is_ok() {
            tracing::info!(certificate = %self.record.id, "the certificate is kept now");
        } else {
            self.record.attempts = before;
        }
    }

    /// What the outcome of attempts depends on.
    fn fingerprint(&self, wanted: &Wanted) -> String {
        retry::fingerprint([wanted.fingerprint().as_str(), self.dns.as_str()])
    }

    fn bounds(&self, wanted: &Wanted) -> RetryBounds {
        RetryBounds {
            failures_per_hour: Limits::for_directory(&wanted.issuer.directory).failures_per_hour(),
            told_until: self.told_until,
            not_after: self
                .record
                .current
                .as_ref()
                .map(|current| current.not_after),
            jitter: fastrand::f64(),
        }
    }

    async fn failed(&mut self, wanted: &Wanted, issuer: &Issuer, error: &OrderError) {
        let now = SystemTime::now();
        if let OrderError::Challenge {
            name, challenge, ..
        } = error
            && let Some(kind) = ChallengeType::parse(challenge)
        {
            let failed = self.record.failed_challenges.entry(name.clone());
            let failed = failed.or_default();
            failed.retain(|known| *known != kind);
            failed.push(kind);
        }
        self.told_until = self.told_until.max(error.told_until());
        let bounds = self.bounds(wanted);
        let fingerprint = self.fingerprint(wanted);
        let attempts = &mut self.record.attempts;
        attempts.begin(&fingerprint, &bounds, now);
        let failure = Failure {
            kind: error.failure_kind(),
            reason: error.reason().to_owned(),
            message: error.text(),
        };
        let retry = attempts.failed(failure, &bounds, now);
        self.shared.tally.failure(&issuer.name, error.reason());
        tracing::warn!(
            certificate = %self.record.id,
            issuer = %issuer.name,
            attempts = attempts.count,
            next = %moment::rfc3339_text(retry.at),
            reason = error.reason(),
            error = %error.text(),
            "no certificate"
        );
        if error.is_outage() {
            let problem = (error.reason().to_owned(), error.text());
            self.shared
                .publish_issuer(&issuer.name, |state| state.problem = Some(problem));
        }
        self.save().await;
    }

    /// Asks the authority when to renew (RFC 9773).
    async fn ask(&mut self, wanted: &Wanted) {
        let now = SystemTime::now();
        let before = self.record.ari.clone();
        self.record.ari = Some(match self.renewal_window(wanted).await {
            Ok(answered) => answered,
            Err((failure, retry_after)) => {
                tracing::debug!(certificate = %self.record.id, failure = ?failure, "no renewal information");
                AriState::failed(before.as_ref(), failure, retry_after, now)
            }
        });
        self.save().await;
    }

    async fn renewal_window(
        &self,
        wanted: &Wanted,
    ) -> Result<AriState, (AriFailure, Option<Duration>)> {
        let unavailable = (AriFailure::Unavailable, None);
        let unsupported = (AriFailure::Unsupported, None);
        let current = self.record.current.as_ref().ok_or(unsupported)?;
        let issuer = wanted.issuer_of(current).ok_or(unsupported)?;
        let authority = self.shared.authority(issuer).map_err(|_| unavailable)?;
        let directory = authority.directory(&issuer.directory).await;
        let directory = directory.map_err(|_| unavailable)?;
        let (Some(url), Some(id)) = (&directory.renewal_info, &current.ari_id) else {
            return Err(unsupported);
        };
        authority.client.renewal_info(url, id).await
    }

    async fn revoke(&mut self, reason: RevocationReason) -> Result<(), String> {
        let wanted = self.wanted.borrow().clone();
        let current = self
            .record
            .current
            .clone()
            .ok_or("there is no certificate")?;
        let leaf = current.leaf().ok_or("the certificate cannot be read")?;
        let issuer = wanted
            .issuer_of(&current)
            .ok_or("its issuer is not known any more")?;
        let now = SystemTime::now();
        let result: Result<(), OrderError> = async {
            let authority = self.shared.authority(issuer)?;
            let store = self.shared.store.as_ref();
            let (account, _) =
                account::open(store, &authority.client, issuer, &issuer.directory, now).await?;
            let request = instant_acme::RevocationRequest {
                certificate: &leaf,
                reason: reason.wire(),
            };
            account
                .revoke(&request)
                .await
                .map_err(|error| OrderError::of("revoke the certificate", error))
        }
        .await;
        result.map_err(|error| error.text())?;
        if let Some(current) = &mut self.record.current {
            current.revoked = Some(now);
            current.revoked_because = reason.wire().map(|_| reason.as_str().to_owned());
        }
        if self.save().await {
            Ok(())
        } else {
            Err("it is revoked, but that could not be kept".to_owned())
        }
    }

    /// What is always said.
    fn report(&self) -> Report {
        let last = self.record.attempts.last_error.as_ref();
        let current = self.record.current.as_ref();
        Report {
            reason: last.map_or_else(String::new, |last| last.reason.clone()),
            message: last.map_or_else(String::new, |last| last.message.clone()),
            failed: last.is_some(),
            order_url: self
                .record
                .pending
                .as_ref()
                .and_then(|pending| pending.order_url.clone()),
            attempts: self.record.attempts.count,
            renew_at: self.renew_at(),
            issued_by: current.and_then(|current| current.issuer.clone()),
            preflight: self.record.preflight.clone(),
            ..Report::default()
        }
    }

    /// When what is served should be renewed: as planned, also once that has passed; by its lifetime where
    /// nothing was planned since the start.
    fn renew_at(&self) -> Option<SystemTime> {
        let current = self.record.current.as_ref()?;
        let planned = self.planned.filter(|(_, end)| *end == current.not_after);
        Some(match planned {
            Some((at, _)) => at,
            None => lifetime_renewal(current.not_before, current.not_after),
        })
    }

    fn publish(&self, report: Report) {
        let state = CertificateState {
            issued: self.record.current.clone().map(Arc::new),
            report,
            attempts: self.record.attempts.clone(),
        };
        self.shared.publish(&self.record.id, state);
    }
}
