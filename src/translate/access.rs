//! Filters that decide who may come and how often.

use std::time::Duration;

use ipnet::IpNet;
use tidegate_model::{ForwardAuth, IpAccess, RateLimit, RateLimitKey};

use super::backends::plain_cluster;
use super::balancing::{count_or, keyed_header};
use super::durations::positive_duration_or;
use super::references::{Found, References};
use super::report::{Field, Report};
use super::words::{editable_header, header_name, one_of};
use crate::api::{ForwardAuthFilter, IpAccessFilter, RateLimitFilter};

/// Reads a rate limit; `bucket` keeps its counters apart from all others.
pub(super) fn rate_limit(
    report: &mut Report,
    field: &Field<'_>,
    wire: &RateLimitFilter,
    bucket: &str,
) -> Option<RateLimit> {
    #[derive(Clone, Copy, PartialEq)]
    enum Key {
        ClientIp,
        Header,
        Route,
    }
    let (requests, period) = match (wire.requests_per_second, wire.requests, &wire.period) {
        (Some(rate), None, None) => {
            let at = field.at("requestsPerSecond");
            (
                count_or(report, &at, Some(rate), 1, 1),
                Some(Duration::from_secs(1)),
            )
        }
        (None, Some(requests), Some(period)) => (
            count_or(report, &field.at("requests"), Some(requests), 1, 1),
            positive_duration_or(report, &field.at("period"), Some(period), Duration::ZERO),
        ),
        _ => {
            report.invalid(
                field,
                "the rate is not given in one of the two ways",
                "set requestsPerSecond, or requests together with period",
            );
            (None, None)
        }
    };
    let key = one_of(
        report,
        &field.at("key"),
        wire.key.as_deref(),
        Key::ClientIp,
        &[
            ("ClientIP", Key::ClientIp),
            ("Header", Key::Header),
            ("Route", Key::Route),
        ],
    )?;
    let key = match key {
        Key::Header => RateLimitKey::Header(keyed_header(report, field, wire.header.as_deref())?),
        _ if wire.header.is_some() => {
            report.invalid(
                field.at("header"),
                "it does not belong to this key",
                "set key: Header, or leave header out",
            );
            return None;
        }
        Key::ClientIp => RateLimitKey::ClientIp,
        Key::Route => RateLimitKey::Route,
    };
    let burst = count_or(
        report,
        &field.at("burst"),
        wire.burst,
        requests.unwrap_or(1),
        1,
    );
    Some(RateLimit {
        id: bucket.into(),
        requests: requests?,
        period: period?,
        burst: burst?,
        key,
    })
}

/// Reads lists of networks.
pub(super) fn ip_access(
    report: &mut Report,
    field: &Field<'_>,
    wire: &IpAccessFilter,
) -> Option<IpAccess> {
    let mut good = true;
    let mut nets = |member: &str, list: &[String]| {
        let at = field.at(member);
        let mut nets = Vec::new();
        for (index, text) in list.iter().enumerate() {
            if let Some(net) = network(text) {
                nets.push(net);
            } else {
                report.invalid(
                    at.index(index),
                    format!("{text:?} is not an address or network"),
                    "write one such as 10.0.0.0/8, 203.0.113.7 or 2001:db8::/32",
                );
                good = false;
            }
        }
        nets
    };
    let access = IpAccess {
        allow: nets("allow", &wire.allow),
        deny: nets("deny", &wire.deny),
    };
    if wire.allow.is_empty() && wire.deny.is_empty() {
        report.invalid(field, "it lists no addresses", "set allow, deny or both");
        return None;
    }
    good.then_some(access)
}

fn network(text: &str) -> Option<IpNet> {
    match text.parse::<IpNet>() {
        Ok(net) => Some(net.trunc()),
        Err(_) => text
            .parse::<std::net::IpAddr>()
            .ok()
            .map(|ip| IpNet::from(ip.to_canonical())),
    }
}

/// Missing is what a CA of the service may be.
pub(super) fn forward_auth(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &ForwardAuthFilter,
) -> Option<Found<ForwardAuth>> {
    let timeout = positive_duration_or(
        report,
        &field.at("timeout"),
        wire.timeout.as_deref(),
        Duration::from_secs(5),
    );
    let backend = field.at("backend");
    let cluster = plain_cluster(report, references, &backend, &wire.backend, timeout);
    let path = wire.path.as_deref().unwrap_or("/");
    let good_path = path.starts_with('/') && path.parse::<http::uri::PathAndQuery>().is_ok();
    if !good_path {
        report.invalid(
            field.at("path"),
            format!("{path:?} is not a path"),
            "write one such as /oauth2/auth",
        );
    }
    let mut good = good_path;
    let mut names = |member: &str, list: &[String], editable: bool| {
        let at = field.at(member);
        let mut names = Vec::new();
        for (index, word) in list.iter().enumerate() {
            let name = if editable {
                editable_header(report, &at.index(index), word)
            } else {
                header_name(report, &at.index(index), word)
            };
            match name {
                Some(name) => names.push(name),
                None => good = false,
            }
        }
        names
    };
    let request_headers = names("requestHeaders", &wire.request_headers, false);
    let response_headers = names("responseHeaders", &wire.response_headers, true);
    let (cluster, timeout) = (cluster?, timeout?);
    if !good {
        return None;
    }
    Some(match cluster {
        Found::Missing => Found::Missing,
        Found::Here(cluster) => Found::Here(ForwardAuth {
            cluster,
            path: path.to_owned(),
            request_headers,
            response_headers,
            timeout,
        }),
    })
}
