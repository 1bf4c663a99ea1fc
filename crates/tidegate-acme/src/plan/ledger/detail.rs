//! What the text of a `rateLimited` problem says: which limit, about what, until when.
//!
//! Let's Encrypt puts all three into the detail, in words that have changed over the years
//! (`… retry after 2025-01-02 03:04:05 UTC: see …`, `… Retry after 2024-04-01T19:00:00Z: …`). Read
//! leniently; what is not understood is a limit of the whole account until the time of the header.

use std::time::SystemTime;

use time::PrimitiveDateTime;
use time::macros::format_description;

use super::LimitName;

/// What was understood of a detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitDetail {
    /// Which limit it is about.
    pub limit: LimitName,
    /// The name or domain it is about.
    pub subject: Option<String>,
    /// When the authority will allow it again.
    pub until: Option<SystemTime>,
    /// Whether only a person can lift it, on the authority's web page.
    pub paused: bool,
}

/// Reads the detail of a `rateLimited` problem.
pub fn parse_rate_limit_detail(detail: &str) -> RateLimitDetail {
    let lower = detail.to_ascii_lowercase();
    let has = |words: &str| lower.contains(words);
    let until = retry_after(&lower);
    let paused = has("temporarily prevented from requesting certificates")
        // The hourly limit's text always has a time; without one it is the pause.
        || (has("too many failed authorizations") && until.is_none());
    let limit = if paused {
        LimitName::ConsecutiveFailuresPerName
    } else if has("failed authorizations") {
        LimitName::FailuresPerName
    } else if has("exact set of") {
        LimitName::CertificatesPerSet
    } else if has("certificates") && has("already issued for") {
        LimitName::CertificatesPerDomain
    } else if has("new orders") {
        LimitName::OrdersPerAccount
    } else if has("new registrations") || has("too many registrations") {
        LimitName::AccountsPerAddress
    } else {
        LimitName::Other
    };
    RateLimitDetail {
        limit,
        subject: subject(&lower),
        until,
        paused,
    }
}

/// The time after `retry after `.
fn retry_after(lower: &str) -> Option<SystemTime> {
    const LENGTH: usize = "2025-01-02 03:04:05".len();
    lower.match_indices("retry after ").find_map(|(at, words)| {
        let text = lower.get(at + words.len()..)?.get(..LENGTH)?;
        let text = text.replacen('t', " ", 1);
        let form = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
        let time = PrimitiveDateTime::parse(&text, form).ok()?;
        Some(SystemTime::from(time.assume_utc()))
    })
}

/// The first quoted word, or the first of the names of a pause.
fn subject(lower: &str) -> Option<String> {
    let quoted = lower.split('"').nth(1);
    let paused = || {
        let (_, names) = lower.split_once("prevented from requesting certificates for ")?;
        names.split([',', ' ']).next()
    };
    quoted
        .or_else(paused)
        .filter(|name| !name.is_empty() && name.len() <= 253)
        .map(str::to_owned)
}
