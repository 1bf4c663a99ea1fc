//! The ledger of one account: what was ordered and what failed, so that the authority's limits are met
//! before the authority says so.
//!
//! Kept as the authority keeps it: one number per bucket (when it would be full again), so that the
//! ledger is small whatever happened. A loop, a restore or a mistake in the edge cannot use up a week:
//! every order is taken down before it is placed, and given back only when the authority did not issue.
//!
//! Must not know why an order is wanted ([`super::policy`]) nor when a failure is repeated
//! ([`super::retry`]). Other users of the same domain or address are unknown here: the authority may say
//! no earlier, and then [`Ledger::rate_limited`] remembers until when.

mod detail;
mod limits;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tidegate_model::HostPattern;

pub use detail::{RateLimitDetail, parse_rate_limit_detail};
pub use limits::{LETS_ENCRYPT, LETS_ENCRYPT_STAGING, LimitName, Limits, Rate};

use super::moment::{self, DAY, HOUR, after, between, span, stamp};

/// The form of the stored document.
const VERSION: u32 = 1;

/// More buckets than this are not kept; the emptiest go first.
const BUCKETS_KEPT: usize = 20_000;

/// Refusals of the authority that are kept.
const BLOCKS_KEPT: usize = 1000;

/// Orders that are kept for people to look at.
const ORDERS_KEPT: usize = 200;

/// A wait that the authority asks for counts up to here.
const LONGEST_BLOCK: Duration = Duration::from_secs(7 * 86_400);

/// How an order counts at the authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OrderKind {
    /// A set of names that was not issued before.
    New,
    /// The same set of names again, without `replaces`: free of the limits per account and domain.
    Renewal,
    /// With `replaces` that the authority accepts (RFC 9773 §5): free of all limits.
    AriRenewal,
}

/// One order, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderEntry {
    /// When it was placed.
    #[serde(with = "moment::rfc3339")]
    pub at: SystemTime,
    /// Its names: the first few and how many more.
    pub names: String,
    /// How it counts.
    pub kind: OrderKind,
    /// What became of it.
    pub result: OrderResult,
}

/// What became of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OrderResult {
    /// Not known yet.
    Pending,
    /// A certificate.
    Issued,
    /// None.
    Failed,
}

/// A refusal of the authority that holds until a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// Which limit it named.
    pub limit: LimitName,
    /// The bucket it is about; none for the whole account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// How the refused order counted: one that counts for less is not refused by this.
    pub kind: OrderKind,
    /// Until when.
    #[serde(with = "moment::rfc3339")]
    pub until: SystemTime,
    /// The authority's words, at most 512 bytes.
    pub detail: String,
}

/// What one account has used up. Persisted, one per account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ledger {
    /// Form of the document.
    pub version: u32,
    /// When each bucket would be full again, by limit and scope.
    #[serde(default)]
    buckets: BTreeMap<LimitName, BTreeMap<String, Bucket>>,
    /// Refusals of the authority.
    #[serde(default)]
    blocks: Vec<Block>,
    /// The last orders, oldest first.
    #[serde(default)]
    orders: Vec<OrderEntry>,
}

/// A token bucket as one time (the "theoretical arrival time" of GCRA).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bucket {
    #[serde(with = "moment::rfc3339")]
    full_at: SystemTime,
    /// Milliseconds beyond the whole second of `full_at`, or many small refills would be lost.
    #[serde(default, skip_serializing_if = "is_zero")]
    millis: u16,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_zero(number: &u16) -> bool {
    *number == 0
}

impl Bucket {
    fn at(time: SystemTime) -> Self {
        let full_at = moment::truncated(time);
        let millis = u16::try_from(between(full_at, time).as_millis()).unwrap_or(0);
        Self { full_at, millis }
    }

    fn time(self) -> SystemTime {
        after(self.full_at, Duration::from_millis(u64::from(self.millis)))
    }
}

/// Whether an order may be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allowed,
    /// Not yet.
    NotBefore(Refusal),
}

/// Why an order must wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// When it may be placed.
    pub at: SystemTime,
    /// The limit that would be broken.
    pub limit: LimitName,
    /// What, how often and since when, in a sentence.
    pub sentence: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// What is left of one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Which limit.
    pub limit: LimitName,
    /// Of what: a domain, a name, the account.
    pub scope: String,
    /// How many are left.
    pub left: u32,
    /// Of how many.
    pub of: u32,
    /// When one more comes back; none when nothing is used.
    pub next_at: Option<SystemTime>,
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} {}", self.left, self.of, self.limit)?;
        if is_of_many(self.limit) {
            write!(f, " for {}", self.scope)?;
        }
        Ok(())
    }
}

/// Whether an account has several buckets of this limit, so that it must be said which is meant.
fn is_of_many(limit: LimitName) -> bool {
    !matches!(
        limit,
        LimitName::OrdersPerAccount | LimitName::AccountsPerAddress | LimitName::CertificatesPerSet
    )
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            version: VERSION,
            buckets: BTreeMap::new(),
            blocks: Vec::new(),
            orders: Vec::new(),
        }
    }
}

const ACCOUNT: &str = "account";

impl Ledger {
    /// Whether an order for these names may be placed now.
    pub fn may_order(
        &self,
        limits: &Limits,
        names: &[HostPattern],
        kind: OrderKind,
        now: SystemTime,
    ) -> Verdict {
        let buckets = scopes(names, kind)
            .into_iter()
            .filter_map(|(limit, scope)| self.refusal(limits.rate(limit)?, limit, &scope, now));
        let all: BTreeSet<(LimitName, String)> =
            scopes(names, OrderKind::New).into_iter().collect();
        let blocks = self
            .blocks
            .iter()
            .filter(|block| block.until > now && block.kind >= kind)
            .filter(|block| match &block.scope {
                None => true,
                Some(scope) => all.contains(&(block.limit, scope.clone())),
            })
            .map(|block| Refusal {
                at: block.until,
                limit: block.limit,
                sentence: format!(
                    "the authority refuses until {}: {}",
                    stamp(block.until),
                    block.detail
                ),
            });
        buckets
            .chain(blocks)
            .max_by_key(|refusal| refusal.at)
            .map_or(Verdict::Allowed, Verdict::NotBefore)
    }

    /// Whether another account may be made from this address.
    pub fn may_register(&self, limits: &Limits, now: SystemTime) -> Verdict {
        limits
            .accounts_per_address
            .and_then(|rate| self.refusal(rate, LimitName::AccountsPerAddress, ACCOUNT, now))
            .map_or(Verdict::Allowed, Verdict::NotBefore)
    }

    /// What is left of every limit that an order for these names would use, the scarcest first.
    pub fn remaining(
        &self,
        limits: &Limits,
        names: &[HostPattern],
        kind: OrderKind,
        now: SystemTime,
    ) -> Vec<Budget> {
        let mut budgets: Vec<Budget> = scopes(names, kind)
            .into_iter()
            .filter_map(|(limit, scope)| {
                let rate = limits.rate(limit)?;
                let debt = self.debt(limit, &scope, now);
                Some(Budget {
                    limit,
                    left: rate.burst.saturating_sub(used(debt, rate)),
                    of: rate.burst,
                    next_at: (!debt.is_zero()).then(|| {
                        let into = debt.as_millis() % rate.refill().as_millis();
                        let wait = u64::try_from(into).unwrap_or(0);
                        let wait = Duration::from_millis(wait);
                        after(now, if wait.is_zero() { rate.refill() } else { wait })
                    }),
                    scope: match limit {
                        LimitName::CertificatesPerSet => said(names),
                        _ => scope,
                    },
                })
            })
            .collect();
        budgets.sort_by(|a, b| {
            (u64::from(a.left) * u64::from(b.of)).cmp(&(u64::from(b.left) * u64::from(a.of)))
        });
        budgets
    }

    /// Takes an order down; called and stored before it is placed.
    pub fn record_order(
        &mut self,
        limits: &Limits,
        names: &[HostPattern],
        kind: OrderKind,
        now: SystemTime,
    ) {
        for (limit, scope) in scopes(names, kind) {
            if !per_failure(limit) {
                self.spend(limits, limit, scope, now);
            }
        }
        self.orders.push(OrderEntry {
            at: now,
            names: moment::bounded(&said(names), 256),
            kind,
            result: OrderResult::Pending,
        });
        let excess = self.orders.len().saturating_sub(ORDERS_KEPT);
        self.orders.drain(..excess);
        self.prune(now);
    }

    /// The order became a certificate: failures in a row end here.
    pub fn record_success(&mut self, names: &[HostPattern], now: SystemTime) {
        if let Some(buckets) = self.buckets.get_mut(&LimitName::ConsecutiveFailuresPerName) {
            for name in names {
                buckets.remove(&identifier(name));
            }
        }
        let all: BTreeSet<(LimitName, String)> =
            scopes(names, OrderKind::New).into_iter().collect();
        self.blocks.retain(|block| {
            block.limit != LimitName::ConsecutiveFailuresPerName
                || block
                    .scope
                    .as_ref()
                    .is_none_or(|scope| !all.contains(&(block.limit, scope.clone())))
        });
        self.settle(names, OrderResult::Issued);
        self.prune(now);
    }

    /// The order became nothing. `failed` are the names whose authorization failed at the authority;
    /// empty when it ended for another reason.
    ///
    /// The certificate is given back, the order is not: authorities count orders when they are placed.
    pub fn record_failure(
        &mut self,
        limits: &Limits,
        names: &[HostPattern],
        kind: OrderKind,
        failed: &[HostPattern],
        now: SystemTime,
    ) {
        for (limit, scope) in scopes(names, kind) {
            if matches!(
                limit,
                LimitName::CertificatesPerDomain | LimitName::CertificatesPerSet
            ) {
                self.give_back(limits, limit, &scope, now);
            }
        }
        let failed: BTreeSet<String> = failed.iter().map(identifier).collect();
        for name in failed {
            for limit in [
                LimitName::FailuresPerName,
                LimitName::ConsecutiveFailuresPerName,
            ] {
                self.spend(limits, limit, name.clone(), now);
            }
        }
        self.settle(names, OrderResult::Failed);
        self.prune(now);
    }

    /// Takes down that an account was made: in a ledger of the directory's, as the account has none yet.
    pub fn record_account(&mut self, limits: &Limits, now: SystemTime) {
        self.spend(
            limits,
            LimitName::AccountsPerAddress,
            ACCOUNT.to_owned(),
            now,
        );
    }

    /// Remembers that the authority refused an order, and until when; returns that time.
    ///
    /// `retry_after` is the header's time. Without it the detail's text decides, then an hour (a day for
    /// a pause, which only a person can lift).
    pub fn rate_limited(
        &mut self,
        names: &[HostPattern],
        kind: OrderKind,
        retry_after: Option<SystemTime>,
        detail: &str,
        now: SystemTime,
    ) -> SystemTime {
        let read = parse_rate_limit_detail(detail);
        let until = match (retry_after, read.until) {
            (Some(header), Some(text)) => header.max(text),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) if read.paused => after(now, DAY),
            (None, None) => after(now, HOUR),
        };
        let until = until.clamp(now, after(now, LONGEST_BLOCK));
        let scope = match read.limit {
            LimitName::CertificatesPerSet => Some(set_key(names)),
            LimitName::CertificatesPerDomain
            | LimitName::FailuresPerName
            | LimitName::ConsecutiveFailuresPerName => read.subject.or_else(|| {
                // The authority did not name it: certain is only that this order was refused.
                names.first().map(|name| match read.limit {
                    LimitName::CertificatesPerDomain => registered_domain(name),
                    _ => identifier(name),
                })
            }),
            _ => None,
        };
        // A pause and a limit that is not understood hold for every kind of order.
        let kind = match read.limit {
            LimitName::ConsecutiveFailuresPerName | LimitName::Other => OrderKind::AriRenewal,
            _ => kind,
        };
        self.blocks.retain(|old| {
            old.until > now && (old.limit, &old.scope, old.kind) != (read.limit, &scope, kind)
        });
        self.blocks.push(Block {
            limit: read.limit,
            scope,
            kind,
            until,
            detail: moment::bounded(detail, 512),
        });
        let excess = self.blocks.len().saturating_sub(BLOCKS_KEPT);
        self.blocks.drain(..excess);
        until
    }

    /// Refusals of the authority that still hold.
    pub fn blocks(&self, now: SystemTime) -> impl Iterator<Item = &Block> {
        self.blocks.iter().filter(move |block| block.until > now)
    }

    /// The last orders, oldest first.
    pub fn orders(&self) -> &[OrderEntry] {
        &self.orders
    }

    /// Takes over what another ledger of the same account knows, when state is imported: the fuller
    /// bucket and the later refusal count.
    pub fn merge(&mut self, other: &Self, now: SystemTime) {
        for (limit, buckets) in &other.buckets {
            for (scope, bucket) in buckets {
                let mine = self.buckets.entry(*limit).or_default();
                let mine = mine.entry(scope.clone()).or_insert(*bucket);
                if bucket.time() > mine.time() {
                    *mine = *bucket;
                }
            }
        }
        for block in &other.blocks {
            if !self.blocks.contains(block) {
                self.blocks.push(block.clone());
            }
        }
        for order in &other.orders {
            if !self.orders.contains(order) {
                self.orders.push(order.clone());
            }
        }
        self.orders.sort_by_key(|order| order.at);
        let excess = self.orders.len().saturating_sub(ORDERS_KEPT);
        self.orders.drain(..excess);
        self.prune(now);
    }

    /// Forgets what no longer counts and what is too much.
    pub fn prune(&mut self, now: SystemTime) {
        self.blocks.retain(|block| block.until > now);
        let excess = self.blocks.len().saturating_sub(BLOCKS_KEPT);
        self.blocks.drain(..excess);
        for buckets in self.buckets.values_mut() {
            buckets.retain(|_, bucket| bucket.time() > now);
            if buckets.len() > BUCKETS_KEPT {
                let mut ends: Vec<SystemTime> = buckets.values().map(|b| b.time()).collect();
                ends.sort_unstable();
                let least = ends[ends.len() - BUCKETS_KEPT];
                buckets.retain(|_, bucket| bucket.time() >= least);
            }
        }
        self.buckets.retain(|_, buckets| !buckets.is_empty());
    }

    fn debt(&self, limit: LimitName, scope: &str, now: SystemTime) -> Duration {
        self.buckets
            .get(&limit)
            .and_then(|buckets| buckets.get(scope))
            .map_or(Duration::ZERO, |bucket| between(now, bucket.time()))
    }

    fn refusal(
        &self,
        rate: Rate,
        limit: LimitName,
        scope: &str,
        now: SystemTime,
    ) -> Option<Refusal> {
        let debt = self.debt(limit, scope, now);
        let used = used(debt, rate);
        if used < rate.burst {
            return None;
        }
        let wait = debt.saturating_sub(rate.refill().saturating_mul(rate.burst.saturating_sub(1)));
        let at = after(now, wait);
        let (what, period) = (limit.to_string(), span(rate.period()));
        let of = if is_of_many(limit) {
            format!(" for {scope}")
        } else {
            String::new()
        };
        let sentence = format!(
            "{used} of {} {what} in {period} are used{of}; the next is allowed at {}, in {}",
            rate.burst,
            stamp(at),
            span(wait)
        );
        Some(Refusal {
            at,
            limit,
            sentence,
        })
    }

    fn spend(&mut self, limits: &Limits, limit: LimitName, scope: String, now: SystemTime) {
        let Some(rate) = limits.rate(limit) else {
            return;
        };
        // A bucket that is overdrawn is kept at one period: the authority does not count refused orders.
        let full_at = after(now, self.debt(limit, &scope, now) + rate.refill())
            .min(after(now, rate.period()));
        self.buckets
            .entry(limit)
            .or_default()
            .insert(scope, Bucket::at(full_at));
    }

    fn give_back(&mut self, limits: &Limits, limit: LimitName, scope: &str, now: SystemTime) {
        let Some(rate) = limits.rate(limit) else {
            return;
        };
        let left = self.debt(limit, scope, now).saturating_sub(rate.refill());
        if let Some(buckets) = self.buckets.get_mut(&limit) {
            if left.is_zero() {
                buckets.remove(scope);
            } else {
                buckets.insert(scope.to_owned(), Bucket::at(after(now, left)));
            }
        }
    }

    /// Notes what became of the last pending order for these names.
    fn settle(&mut self, names: &[HostPattern], result: OrderResult) {
        let names = moment::bounded(&said(names), 256);
        if let Some(order) = self
            .orders
            .iter_mut()
            .rev()
            .find(|order| order.result == OrderResult::Pending && order.names == names)
        {
            order.result = result;
        }
    }
}

/// How many tokens a debt is, a begun one whole.
fn used(debt: Duration, rate: Rate) -> u32 {
    let tokens = debt.as_millis().div_ceil(rate.refill().as_millis());
    u32::try_from(tokens).unwrap_or(u32::MAX).min(rate.burst)
}

fn per_failure(limit: LimitName) -> bool {
    matches!(
        limit,
        LimitName::FailuresPerName | LimitName::ConsecutiveFailuresPerName
    )
}

/// Every bucket that an order has to do with.
fn scopes(names: &[HostPattern], kind: OrderKind) -> Vec<(LimitName, String)> {
    if kind == OrderKind::AriRenewal {
        return Vec::new();
    }
    let mut scopes = vec![(LimitName::CertificatesPerSet, set_key(names))];
    if kind == OrderKind::New {
        scopes.push((LimitName::OrdersPerAccount, ACCOUNT.to_owned()));
        let domains: BTreeSet<String> = names.iter().map(registered_domain).collect();
        scopes.extend(
            domains
                .into_iter()
                .map(|domain| (LimitName::CertificatesPerDomain, domain)),
        );
    }
    let identifiers: BTreeSet<String> = names.iter().map(identifier).collect();
    for name in identifiers {
        scopes.push((LimitName::FailuresPerName, name.clone()));
        scopes.push((LimitName::ConsecutiveFailuresPerName, name));
    }
    scopes
}

/// What an authorization is about: a wildcard is authorized by its parent (RFC 8555 §7.1.4).
fn identifier(name: &HostPattern) -> String {
    match name {
        HostPattern::Exact(host) | HostPattern::Wildcard(host) => host.as_str().to_owned(),
    }
}

/// What certificates are counted by: the registered domain by the Public Suffix List; an IPv4 address, and
/// an IPv6 address's /64, are each a domain of their own.
pub fn registered_domain(name: &HostPattern) -> String {
    let (HostPattern::Exact(host) | HostPattern::Wildcard(host)) = name;
    match host.ip() {
        Some(IpAddr::V4(v4)) => v4.to_string(),
        Some(IpAddr::V6(v6)) => ipnet::Ipv6Net::new(v6, 64)
            .map_or_else(|_| v6.to_string(), |net| net.trunc().to_string()),
        None => psl::domain_str(host.as_str())
            .unwrap_or(host.as_str())
            .to_owned(),
    }
}

/// The set of names as one key: readable while short, a digest beyond.
fn set_key(names: &[HostPattern]) -> String {
    const READABLE: usize = 200;
    let sorted: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
    let joined = sorted.into_iter().collect::<Vec<_>>().join(",");
    if joined.len() <= READABLE {
        return joined;
    }
    Sha256::digest(joined.as_bytes())
        .iter()
        .fold("sha256:".to_owned(), |text, byte| {
            text + &format!("{byte:02x}")
        })
}

fn said(names: &[HostPattern]) -> String {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    super::renewal::listed(&names)
}

#[cfg(test)]
mod tests;
