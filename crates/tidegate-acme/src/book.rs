//! The ledger of one account, kept in the store: written before each order, read before each decision.

use std::time::SystemTime;

use tidegate_model::HostPattern;
use tokio::sync::Mutex;

use crate::account;
use crate::error::OrderError;
use crate::plan::ledger::Limits;
use crate::plan::ledger::{Ledger, OrderKind, Verdict};
use crate::preflight::facts::Budget;
use crate::store::{Key, Kind, Store, StoreError, load, save};

/// What the limits leave for an order, as the pre-flight tells it.
pub fn budget(
    ledger: &Ledger,
    limits: &Limits,
    names: &[HostPattern],
    kind: OrderKind,
    now: SystemTime,
) -> Budget {
    Budget {
        refused: match ledger.may_order(limits, names, kind, now) {
            Verdict::Allowed => None,
            Verdict::NotBefore(refusal) => Some(refusal.sentence),
        },
        left: ledger.remaining(limits, names, kind, now),
    }
}

/// Orders and failures of one account.
#[derive(Debug)]
pub struct Book {
    key: Key,
    limits: Limits,
    /// None until it was read.
    ledger: Mutex<Option<Ledger>>,
}

impl Book {
    /// The ledger of this issuer's account at this directory.
    pub fn of(issuer: &str, directory: &str) -> Self {
        let account = account::key_of(issuer, directory);
        Self {
            key: Key::new(Kind::Ledger, account.name),
            limits: Limits::for_directory(directory),
            ledger: Mutex::new(None),
        }
    }

    /// What the authority allows.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether an order may be placed now.
    pub async fn may_order(
        &self,
        store: &dyn Store,
        names: &[HostPattern],
        kind: OrderKind,
        now: SystemTime,
    ) -> Result<(), OrderError> {
        let mut ledger = self.ledger.lock().await;
        match self
            .read(store, &mut ledger)
            .await?
            .may_order(&self.limits, names, kind, now)
        {
            Verdict::Allowed => Ok(()),
            Verdict::NotBefore(refusal) => Err(OrderError::Budget { refusal }),
        }
    }

    /// What the limits leave for such an order.
    pub async fn budget(
        &self,
        store: &dyn Store,
        names: &[HostPattern],
        kind: OrderKind,
        now: SystemTime,
    ) -> Result<Budget, StoreError> {
        let mut ledger = self.ledger.lock().await;
        let ledger = self.read(store, &mut ledger).await?;
        Ok(budget(ledger, &self.limits, names, kind, now))
    }

    /// Takes an order down, before it is placed.
    pub async fn order(
        &self,
        store: &dyn Store,
        names: &[HostPattern],
        kind: OrderKind,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        let mut ledger = self.ledger.lock().await;
        let ledger = self.read(store, &mut ledger).await?;
        let mut next = ledger.clone();
        next.record_order(&self.limits, names, kind, now);
        // One that could not be taken down is not placed, and does not count.
        save(store, &self.key, &next).await?;
        *ledger = next;
        Ok(())
    }

    /// Takes down what became of an order.
    pub async fn outcome(
        &self,
        store: &dyn Store,
        names: &[HostPattern],
        kind: OrderKind,
        outcome: Result<(), &OrderError>,
        retry_after: Option<SystemTime>,
        now: SystemTime,
    ) -> Result<Option<SystemTime>, StoreError> {
        let mut until = None;
        self.change(store, |ledger| match outcome {
            Ok(()) => ledger.record_success(names, now),
            Err(error) if error.reason() == "RateLimited" => {
                let detail = error.to_string();
                until = Some(ledger.rate_limited(names, kind, retry_after, &detail, now));
            }
            Err(OrderError::Challenge { name, .. }) => {
                let failed: Vec<HostPattern> = HostPattern::parse(name).into_iter().collect();
                ledger.record_failure(&self.limits, names, kind, &failed, now);
            }
            Err(error) if !error.keeps_order() => {
                ledger.record_failure(&self.limits, names, kind, &[], now);
            }
            Err(_) => {}
        })
        .await?;
        Ok(until)
    }

    async fn change(
        &self,
        store: &dyn Store,
        change: impl FnOnce(&mut Ledger) + Send,
    ) -> Result<(), StoreError> {
        let mut ledger = self.ledger.lock().await;
        let ledger = self.read(store, &mut ledger).await?;
        change(ledger);
        save(store, &self.key, ledger).await
    }

    async fn read<'a>(
        &self,
        store: &dyn Store,
        ledger: &'a mut Option<Ledger>,
    ) -> Result<&'a mut Ledger, StoreError> {
        if ledger.is_none() {
            *ledger = match load(store, &self.key).await {
                Ok(stored) => stored,
                Err(error @ StoreError::Corrupt { .. }) => {
                    tracing::error!(error = %tidegate_telemetry::chain(&error), "orders are counted anew");
                    None
                }
                Err(error) => return Err(error),
            };
        }
        Ok(ledger.get_or_insert_default())
    }
}
