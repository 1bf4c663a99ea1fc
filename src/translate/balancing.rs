//! How the addresses of a backend are chosen, probed and bounded.

use std::time::Duration;

use tidegate_model::{
    ActiveHealthCheck, CircuitLimits, HashKey, LoadBalancing, PassiveHealthCheck,
};

use super::durations::positive_duration_or;
use super::report::{Field, Report};
use super::words::{header_field, header_name, is_authority, one_of};
use crate::api::{ActiveHealth, LoadBalancer, RouteRule};

/// How a rule talks to all of its backends.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    pub(super) load_balancing: LoadBalancing,
    pub(super) active_health: Option<ActiveHealthCheck>,
    pub(super) passive_health: PassiveHealthCheck,
    pub(super) circuit: CircuitLimits,
    pub(super) connect_timeout: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            load_balancing: LoadBalancing::LeastRequest,
            active_health: None,
            passive_health: PassiveHealthCheck {
                consecutive_failures: 5,
                ejection_time: Duration::from_secs(30),
            },
            circuit: CircuitLimits { max_requests: None },
            connect_timeout: Duration::from_secs(5),
        }
    }
}

// === impl Policy ===

impl Policy {
    /// Reads what a rule says about all of its backends.
    pub(super) fn of(report: &mut Report, field: &Field<'_>, rule: &RouteRule) -> Option<Self> {
        let default = Self::default();
        let load_balancing = match &rule.load_balancing {
            None => Some(default.load_balancing),
            Some(wire) => load_balancing(report, &field.at("loadBalancing"), wire),
        };
        let health = field.at("healthCheck");
        let wire = rule.health_check.as_ref();
        let active_health = match wire.and_then(|check| check.active.as_ref()) {
            None => Some(None),
            Some(wire) => active_health(report, &health.at("active"), wire).map(Some),
        };
        let passive_health = match wire.and_then(|check| check.passive.as_ref()) {
            None => Some(default.passive_health),
            Some(wire) => {
                let at = health.at("passive");
                let failures = count_or(
                    report,
                    &at.at("consecutiveFailures"),
                    wire.consecutive_failures,
                    default.passive_health.consecutive_failures,
                    0,
                );
                let time = positive_duration_or(
                    report,
                    &at.at("ejectionTime"),
                    wire.ejection_time.as_deref(),
                    default.passive_health.ejection_time,
                );
                failures
                    .zip(time)
                    .map(|(consecutive_failures, ejection_time)| PassiveHealthCheck {
                        consecutive_failures,
                        ejection_time,
                    })
            }
        };
        let max_requests = match rule.circuit.as_ref().and_then(|wire| wire.max_requests) {
            None => Some(None),
            Some(max) => count_or(
                report,
                &field.at("circuit").at("maxRequests"),
                Some(max),
                1,
                1,
            )
            .map(Some),
        };
        let connect_timeout = positive_duration_or(
            report,
            &field.at("timeouts").at("connect"),
            rule.timeouts
                .as_ref()
                .and_then(|timeouts| timeouts.connect.as_deref()),
            default.connect_timeout,
        );
        Some(Self {
            load_balancing: load_balancing?,
            active_health: active_health?,
            passive_health: passive_health?,
            circuit: CircuitLimits {
                max_requests: max_requests?,
            },
            connect_timeout: connect_timeout?,
        })
    }
}

/// A count of at least `least`.
pub(super) fn count_or(
    report: &mut Report,
    field: &Field<'_>,
    written: Option<i32>,
    default: u32,
    least: u32,
) -> Option<u32> {
    let Some(written) = written else {
        return Some(default);
    };
    match u32::try_from(written) {
        Ok(count) if count >= least => Some(count),
        _ => {
            report.invalid(
                field,
                format!("{written} is too small"),
                format!("write {least} or more"),
            );
            None
        }
    }
}

fn load_balancing(
    report: &mut Report,
    field: &Field<'_>,
    wire: &LoadBalancer,
) -> Option<LoadBalancing> {
    #[derive(Clone, Copy, PartialEq)]
    enum Word {
        LeastRequest,
        RoundRobin,
        Random,
        ConsistentHash,
        StickyCookie,
    }
    #[derive(Clone, Copy)]
    enum Key {
        ClientIp,
        Header,
        Path,
    }
    let word = one_of(
        report,
        &field.at("policy"),
        wire.policy.as_deref(),
        Word::LeastRequest,
        &[
            ("LeastRequest", Word::LeastRequest),
            ("RoundRobin", Word::RoundRobin),
            ("Random", Word::Random),
            ("ConsistentHash", Word::ConsistentHash),
            ("StickyCookie", Word::StickyCookie),
        ],
    )?;
    for (member, set, owner) in [
        ("hash", wire.hash.is_some(), Word::ConsistentHash),
        ("cookie", wire.cookie.is_some(), Word::StickyCookie),
    ] {
        if set && word != owner {
            report.invalid(
                field.at(member),
                format!("{member} belongs to another policy"),
                if owner == Word::ConsistentHash {
                    "set policy: ConsistentHash, or leave hash out"
                } else {
                    "set policy: StickyCookie, or leave cookie out"
                },
            );
            return None;
        }
    }
    Some(match word {
        Word::LeastRequest => LoadBalancing::LeastRequest,
        Word::RoundRobin => LoadBalancing::RoundRobin,
        Word::Random => LoadBalancing::Random,
        Word::ConsistentHash => {
            let hash = wire.hash.clone().unwrap_or_default();
            let at = field.at("hash");
            let key = one_of(
                report,
                &at.at("key"),
                hash.key.as_deref(),
                Key::ClientIp,
                &[
                    ("ClientIP", Key::ClientIp),
                    ("Header", Key::Header),
                    ("Path", Key::Path),
                ],
            )?;
            LoadBalancing::ConsistentHash(match key {
                Key::ClientIp => HashKey::ClientIp,
                Key::Path => HashKey::Path,
                Key::Header => HashKey::Header(keyed_header(report, &at, hash.header.as_deref())?),
            })
        }
        Word::StickyCookie => {
            let at = field.at("cookie");
            let cookie = wire.cookie.clone().unwrap_or_default();
            let name = cookie.name.unwrap_or_else(|| "tidegate-sticky".to_owned());
            let token = !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
            if !token {
                report.invalid(
                    at.at("name"),
                    format!("{name:?} is not a cookie name"),
                    "use letters, digits and hyphens",
                );
                return None;
            }
            let max_age = match cookie.max_age {
                None => None,
                Some(text) => Some(positive_duration_or(
                    report,
                    &at.at("maxAge"),
                    Some(&text),
                    Duration::ZERO,
                )?),
            };
            LoadBalancing::StickyCookie { name, max_age }
        }
    })
}

/// The header of a `key: Header`, which must be there.
pub(super) fn keyed_header(
    report: &mut Report,
    field: &Field<'_>,
    header: Option<&str>,
) -> Option<http::HeaderName> {
    if let Some(name) = header {
        header_name(report, &field.at("header"), name)
    } else {
        report.invalid(
            field.at("header"),
            "it is missing",
            "key Header needs the name of a header, such as header: X-API-Key",
        );
        None
    }
}

fn active_health(
    report: &mut Report,
    field: &Field<'_>,
    wire: &ActiveHealth,
) -> Option<ActiveHealthCheck> {
    let mut good = true;
    if let Some(path) = &wire.path
        && (!path.starts_with('/') || path.parse::<http::uri::PathAndQuery>().is_err())
    {
        report.invalid(
            field.at("path"),
            format!("{path:?} is not a path"),
            "write one such as /healthz",
        );
        good = false;
    }
    if let Some(host) = &wire.host
        && !is_authority(host)
    {
        report.invalid(
            field.at("host"),
            format!("{host:?} is not a host"),
            "write one such as app.example.com",
        );
        good = false;
    }
    let mut headers = Vec::new();
    let at = field.at("headers");
    for (index, wire) in wire.headers.iter().enumerate() {
        match header_field(report, &at.index(index), wire, header_name) {
            Some(header) => headers.push(header),
            None => good = false,
        }
    }
    let expected_status = status_range(
        report,
        &field.at("expectedStatus"),
        wire.expected_status.as_deref().unwrap_or("200-399"),
    );
    let interval = positive_duration_or(
        report,
        &field.at("interval"),
        wire.interval.as_deref(),
        Duration::from_secs(10),
    );
    let timeout = positive_duration_or(
        report,
        &field.at("timeout"),
        wire.timeout.as_deref(),
        Duration::from_secs(5),
    );
    let healthy = count_or(
        report,
        &field.at("healthyThreshold"),
        wire.healthy_threshold,
        2,
        1,
    );
    let unhealthy = count_or(
        report,
        &field.at("unhealthyThreshold"),
        wire.unhealthy_threshold,
        3,
        1,
    );
    let check = ActiveHealthCheck {
        path: wire.path.clone(),
        host: wire.host.clone(),
        headers,
        expected_status: expected_status?,
        interval: interval?,
        timeout: timeout?,
        healthy_threshold: healthy?,
        unhealthy_threshold: unhealthy?,
    };
    good.then_some(check)
}

fn status_range(report: &mut Report, field: &Field<'_>, written: &str) -> Option<(u16, u16)> {
    let (low, high) = written.split_once('-').unwrap_or((written, written));
    let range = low.trim().parse().ok().zip(high.trim().parse().ok());
    match range {
        Some((low, high)) if (100..=599).contains(&low) && (low..=599).contains(&high) => {
            Some((low, high))
        }
        _ => {
            report.invalid(
                field,
                format!("{written:?} is not a status or a range of statuses"),
                "write 204 or 200-399",
            );
            None
        }
    }
}
