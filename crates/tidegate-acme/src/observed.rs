//! What the engine counts, for metrics. Labels are bounded: names of issuers and routes that exist, and
//! reasons from the code.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::notices::DeliveryState;

/// What was counted since the start, and the times of what is wanted now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Requests to authorities by issuer and status; 0 where no answer came.
    pub requests: BTreeMap<String, BTreeMap<u16, u64>>,
    /// Orders by issuer and what came of them: `issued`, `trialPassed` or `failed`.
    pub orders: BTreeMap<(String, &'static str), u64>,
    /// Failed attempts by issuer and reason, those that ended before an order was placed included.
    pub failures: BTreeMap<(String, &'static str), u64>,
    /// What became of notices, by issuer.
    pub notices: Vec<(String, DeliveryState)>,
    /// The certificates that are wanted.
    pub certificates: Vec<ObservedCertificate>,
}

/// The times of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedCertificate {
    /// Its id, such as `default/blog`.
    pub id: String,
    /// The issuer that is asked.
    pub issuer: String,
    /// When it will be, or should have been, renewed.
    pub renew_at: Option<SystemTime>,
    /// When the next attempt is made after a failure.
    pub next_attempt: Option<SystemTime>,
    /// Failed attempts since the last success.
    pub attempts: u32,
}

/// The counters.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    orders: BTreeMap<(String, &'static str), u64>,
    failures: BTreeMap<(String, &'static str), u64>,
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An order was placed and came to an end.
    pub(crate) fn order(&self, issuer: &str, result: &'static str) {
        let key = (issuer.to_owned(), result);
        *self.lock().orders.entry(key).or_default() += 1;
    }

    /// An attempt failed.
    pub(crate) fn failure(&self, issuer: &str, reason: &'static str) {
        let key = (issuer.to_owned(), reason);
        *self.lock().failures.entry(key).or_default() += 1;
    }

    /// Fills in the counts of the issuers that exist.
    pub(crate) fn fill(&self, observed: &mut Observed, exists: impl Fn(&str) -> bool) {
        let counts = self.lock();
        let of_existing = |counts: &BTreeMap<(String, &'static str), u64>| {
            counts
                .iter()
                .filter(|((issuer, _), _)| exists(issuer))
                .map(|(key, count)| (key.clone(), *count))
                .collect()
        };
        observed.orders = of_existing(&counts.orders);
        observed.failures = of_existing(&counts.failures);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_not_told() {
        let tally = Tally::default();
        tally.order("a", "issued");
        tally.order("a", "issued");
        tally.order("gone", "failed");
        tally.failure("gone", "CaUnreachable");
        let mut observed = Observed::default();
        tally.fill(&mut observed, |issuer| issuer == "a");
        assert_eq!(observed.orders, [(("a".to_owned(), "issued"), 2)].into());
        assert!(observed.failures.is_empty());
    }
}
