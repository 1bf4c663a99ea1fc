//! The life of one certificate: decide, sleep or order, remember, again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_telemetry::chain;
use tokio::sync::{mpsc, watch};

use crate::account;
use crate::engine::{CertificateState, Command, Report, Shared};
use crate::error::OrderError;
use crate::order::{Attempt, Step};
use crate::plan::moment;
use crate::plan::need::{Need, Plan, plan};
use crate::record::{CertificateRecord, Issued};
use crate::settings::{Issuer, Wanted};
use crate::store::{Key, Kind, load, save};

/// A clock that was set, or a machine that slept, is noticed within this time.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// How soon a store that cannot be read is read again.
const STORE_PAUSE: Duration = Duration::from_secs(30);

/// One certificate and all that is known of it.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    key: Key,
    record: CertificateRecord,
    wanted: watch::Receiver<Wanted>,
    commands: mpsc::Receiver<Command>,
}

impl Keeper {
    pub(crate) fn new(
        shared: Arc<Shared>,
        id: &str,
        wanted: watch::Receiver<Wanted>,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        Self {
            shared,
            key: Key::new(Kind::Certificate, id),
            record: CertificateRecord::new(id),
            wanted,
            commands,
        }
    }

    pub(crate) async fn run(mut self) {
        self.load().await;
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let now = SystemTime::now();
            match plan(&self.record, &wanted, now) {
                Plan::Keep { renew_at } => {
                    self.publish(Report {
                        renew_at: Some(renew_at),
                        ..self.report()
                    });
                    self.rest(renew_at).await;
                }
                Plan::Wait { until, need } => {
                    self.publish(Report {
                        reason: self.record.failures.reason.clone(),
                        message: self.record.failures.message.clone(),
                        failed: true,
                        next_attempt: Some(until),
                        ..self.report()
                    });
                    tracing::debug!(certificate = %self.record.id, need = %need, "waiting for the next attempt");
                    self.rest(until).await;
                }
                Plan::Order(need) => self.order(&wanted, need).await,
            }
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
            Command::Renew { answer, .. } => {
                self.record.forced = Some(SystemTime::now());
                let saved = self.save().await;
                // Whoever asked may have gone.
                let _ = answer.send(saved);
            }
            Command::Revoke { answer, .. } => {
                let _ = answer.send(self.revoke().await);
            }
        }
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

    async fn order(&mut self, wanted: &Wanted, need: Need) {
        let shared = Arc::clone(&self.shared);
        let Ok(_permit) = shared.orders.acquire().await else {
            return;
        };
        tracing::info!(certificate = %self.record.id, issuer = %wanted.issuer.name, need = %need, "ordering a certificate");
        let issuer = Arc::clone(&wanted.issuer);
        let outcome = self.attempt(wanted, &issuer, need).await;
        let Err(error) = outcome else { return };
        self.failed(wanted, &error);
        self.save().await;
    }

    /// One attempt, or the trial before it.
    async fn attempt(
        &mut self,
        wanted: &Wanted,
        issuer: &Issuer,
        need: Need,
    ) -> Result<(), OrderError> {
        let authority = self.shared.authority(issuer)?;
        let fingerprint = wanted.fingerprint();
        let trial = issuer.staging_directory.as_deref().filter(|_| {
            need.is_new_names() && self.record.trial_passed.as_ref() != Some(&fingerprint)
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
        let shared = Arc::clone(&self.shared);
        let served = self.record.current.clone().map(Arc::new);
        let id = self.record.id.clone();
        let begun = Report {
            reason: need.reason().to_owned(),
            started_at: Some(SystemTime::now()),
            ..self.report()
        };
        let progress = |step: Step| {
            let message = match trial {
                Some(_) => format!("{need}; trial at the staging directory: {step}"),
                None => format!("{need}; {step}"),
            };
            let report = Report {
                message,
                ..begun.clone()
            };
            let state = CertificateState {
                issued: served.clone(),
                report,
            };
            shared.publish(&id, state);
        };
        let attempt = Attempt {
            store: shared.store.as_ref(),
            client: &authority.client,
            answers: &shared.answers,
            issuer,
            directory,
            trial: trial.is_some(),
            names: &wanted.names,
            replaces: replaces.as_deref(),
            progress: &progress,
            placed: &|| {},
        };
        let issued = attempt.run(&mut self.record).await?;
        self.record.pending = None;
        if trial.is_some() {
            tracing::info!(certificate = %self.record.id, "the trial at the staging directory went well");
            self.record.trial_passed = Some(fingerprint);
        } else {
            tracing::info!(
                certificate = %self.record.id,
                issuer = %issuer.name,
                not_after = %moment::rfc3339_text(issued.not_after),
                "certificate issued"
            );
            self.record.previous = self.record.current.take();
            self.record.current = Some(issued);
            self.record.forced = None;
            self.record.failures = Default::default();
        }
        save(self.shared.store.as_ref(), &self.key, &self.record).await?;
        let account = account::key_of(&issuer.name, &issuer.directory);
        let account: Option<crate::record::AccountRecord> =
            load(self.shared.store.as_ref(), &account).await?;
        self.shared.publish_issuer(&issuer.name, |state| {
            state.account_url = account.and_then(|account| account.url);
            state.problem = None;
        });
        Ok(())
    }

    fn failed(&mut self, wanted: &Wanted, error: &OrderError) {
        let now = SystemTime::now();
        let fingerprint = wanted.fingerprint();
        if self.record.failures.fingerprint != fingerprint {
            self.record.failures = Default::default();
            self.record.failures.fingerprint = fingerprint;
        }
        let failures = &mut self.record.failures;
        failures.count += 1;
        failures.reason = error.reason().to_owned();
        failures.message = error.text();
        failures.last = Some(now);
        let wait = Duration::from_secs(60 * u64::from(failures.count.min(30)));
        failures.not_before = Some(now + wait);
        tracing::warn!(
            certificate = %self.record.id,
            issuer = %wanted.issuer.name,
            attempts = failures.count,
            reason = error.reason(),
            error = %error.text(),
            "no certificate"
        );
        if error.is_outage() {
            let problem = (error.reason().to_owned(), error.text());
            self.shared
                .publish_issuer(&wanted.issuer.name, |state| state.problem = Some(problem));
        }
    }

    async fn revoke(&mut self) -> Result<(), String> {
        let wanted = self.wanted.borrow().clone();
        let current = self
            .record
            .current
            .clone()
            .ok_or("there is no certificate")?;
        let leaf = current.leaf().ok_or("the certificate cannot be read")?;
        let issuers = std::iter::once(&wanted.issuer).chain(&wanted.fallback);
        let issuer = issuers
            .into_iter()
            .find(|issuer| Some(&issuer.directory) == current.directory.as_ref())
            .ok_or("its issuer is not known any more")?;
        let now = SystemTime::now();
        let result: Result<(), OrderError> = async {
            let authority = self.shared.authority(issuer)?;
            let store = self.shared.store.as_ref();
            let (account, _) =
                account::open(store, &authority.client, issuer, &issuer.directory, now).await?;
            let request = instant_acme::RevocationRequest {
                certificate: &leaf,
                reason: None,
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
        }
        if self.save().await {
            Ok(())
        } else {
            Err("it is revoked, but that could not be kept".to_owned())
        }
    }

    /// What is always said.
    fn report(&self) -> Report {
        Report {
            order_url: self
                .record
                .pending
                .as_ref()
                .and_then(|pending| pending.order_url.clone()),
            attempts: self.record.failures.count,
            issued_by: self
                .record
                .current
                .as_ref()
                .and_then(|current: &Issued| current.issuer.clone()),
            ..Report::default()
        }
    }

    fn publish(&self, report: Report) {
        let state = CertificateState {
            issued: self.record.current.clone().map(Arc::new),
            report,
        };
        self.shared.publish(&self.record.id, state);
    }
}
