//! The limits that authorities publish, as data.
//!
//! Let's Encrypt counts with token buckets: a burst up to the limit, and one more each
//! `period / burst`. Numbers of its pages on rate limits and on the staging environment of 2026.
//! Whoever has other limits overrides them; other authorities publish none.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// So many per period, refilled evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rate {
    /// How many at once.
    pub burst: u32,
    /// Seconds in which as many come back.
    pub period_seconds: u64,
}

impl Rate {
    const fn new(burst: u32, period_seconds: u64) -> Self {
        Self {
            burst,
            period_seconds,
        }
    }

    /// Time after which one comes back.
    pub fn refill(&self) -> Duration {
        // Millisecond steps: 3 h / 1500 is no whole second.
        let burst = u64::from(self.burst.max(1));
        Duration::from_millis((self.period_seconds.saturating_mul(1000) / burst).max(1))
    }

    /// The period.
    pub fn period(&self) -> Duration {
        Duration::from_secs(self.period_seconds)
    }
}

/// What an authority allows; absent means unlimited as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// New orders per account.
    pub orders_per_account: Option<Rate>,
    /// New certificates per registered domain, IPv4 address or IPv6 /64; all accounts count, ours is known.
    pub certificates_per_domain: Option<Rate>,
    /// Certificates for the same set of names.
    pub certificates_per_set: Option<Rate>,
    /// Failed authorizations per name and account.
    pub failures_per_name: Option<Rate>,
    /// Failed authorizations in a row per name and account, after which the authority pauses the name
    /// until a person lifts that on its web page.
    pub consecutive_failures_per_name: Option<Rate>,
    /// New accounts per address.
    pub accounts_per_address: Option<Rate>,
}

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// Let's Encrypt, production.
pub const LETS_ENCRYPT: Limits = Limits {
    orders_per_account: Some(Rate::new(300, 3 * HOUR)),
    certificates_per_domain: Some(Rate::new(50, 7 * DAY)),
    certificates_per_set: Some(Rate::new(5, 7 * DAY)),
    failures_per_name: Some(Rate::new(5, HOUR)),
    consecutive_failures_per_name: Some(Rate::new(1152, 1152 * DAY)),
    accounts_per_address: Some(Rate::new(10, 3 * HOUR)),
};

/// Let's Encrypt, staging.
pub const LETS_ENCRYPT_STAGING: Limits = Limits {
    orders_per_account: Some(Rate::new(1500, 3 * HOUR)),
    // 30,000 per second: none that could be met.
    certificates_per_domain: None,
    certificates_per_set: Some(Rate::new(30_000, 7 * DAY)),
    failures_per_name: Some(Rate::new(200, HOUR)),
    consecutive_failures_per_name: Some(Rate::new(3600, 6 * HOUR)),
    accounts_per_address: Some(Rate::new(50, 3 * HOUR)),
};

impl Limits {
    /// What the authority behind a directory URL publishes.
    pub fn for_directory(directory: &str) -> Self {
        let host = directory
            .parse::<http::Uri>()
            .ok()
            .and_then(|uri| uri.host().map(str::to_ascii_lowercase));
        match host.as_deref() {
            Some("acme-v02.api.letsencrypt.org") => LETS_ENCRYPT,
            Some("acme-staging-v02.api.letsencrypt.org") => LETS_ENCRYPT_STAGING,
            _ => Self::default(),
        }
    }

    /// How many validations of one name may fail per hour, rounded down; for [`crate::plan::retry`].
    pub fn failures_per_hour(&self) -> Option<u32> {
        let rate = self.failures_per_name?;
        let per_hour = u64::from(rate.burst) * HOUR / rate.period_seconds.max(1);
        Some(
            u32::try_from(per_hour)
                .unwrap_or(u32::MAX)
                .clamp(1, rate.burst),
        )
    }

    pub(super) fn rate(&self, limit: LimitName) -> Option<Rate> {
        match limit {
            LimitName::OrdersPerAccount => self.orders_per_account,
            LimitName::CertificatesPerDomain => self.certificates_per_domain,
            LimitName::CertificatesPerSet => self.certificates_per_set,
            LimitName::FailuresPerName => self.failures_per_name,
            LimitName::ConsecutiveFailuresPerName => self.consecutive_failures_per_name,
            LimitName::AccountsPerAddress => self.accounts_per_address,
            LimitName::Other => None,
        }
    }
}

/// Which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LimitName {
    /// [`Limits::orders_per_account`].
    OrdersPerAccount,
    /// [`Limits::certificates_per_domain`].
    CertificatesPerDomain,
    /// [`Limits::certificates_per_set`].
    CertificatesPerSet,
    /// [`Limits::failures_per_name`].
    FailuresPerName,
    /// [`Limits::consecutive_failures_per_name`].
    ConsecutiveFailuresPerName,
    /// [`Limits::accounts_per_address`].
    AccountsPerAddress,
    /// One that the authority named in words that are not known here.
    #[serde(other)]
    Other,
}

impl LimitName {
    /// One `PascalCase` name for status, log and metric.
    pub fn reason(self) -> &'static str {
        match self {
            Self::OrdersPerAccount => "OrdersPerAccount",
            Self::CertificatesPerDomain => "CertificatesPerDomain",
            Self::CertificatesPerSet => "CertificatesPerSet",
            Self::FailuresPerName => "FailuresPerName",
            Self::ConsecutiveFailuresPerName => "ConsecutiveFailuresPerName",
            Self::AccountsPerAddress => "AccountsPerAddress",
            Self::Other => "RateLimited",
        }
    }
}

impl fmt::Display for LimitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OrdersPerAccount => "new orders per account",
            Self::CertificatesPerDomain => "new certificates per registered domain",
            Self::CertificatesPerSet => "certificates for the same set of names",
            Self::FailuresPerName => "failed authorizations per name",
            Self::ConsecutiveFailuresPerName => "failed authorizations in a row",
            Self::AccountsPerAddress => "new accounts per address",
            Self::Other => "a limit of the authority",
        })
    }
}
