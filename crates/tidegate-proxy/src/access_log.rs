//! One line per request, without what must not be in a log.
//!
//! Tokens travel in query strings (tracker API, Grafana Live, WebSocket logins) and, at private trackers, in
//! the path. Their values are replaced before anything is written; everything else stays byte for byte, so
//! that a line can be compared with what the client sent.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Uri, Version};
use percent_encoding::percent_decode_str;
use tidegate_model::{PortId, RouteId};
use tidegate_tracker::announce;

use crate::AccessLogSettings;

/// What stands in place of a secret.
pub(crate) const REDACTED: &str = "[redacted]";

/// What is known about a request when it has ended.
pub(crate) struct Line<'a> {
    /// The same 32 hex digits as in error pages.
    pub(crate) request_id: u128,
    /// The client, after trusted proxies.
    pub(crate) client: IpAddr,
    pub(crate) method: &'a Method,
    pub(crate) host: Option<&'a str>,
    /// Target as the client sent it.
    pub(crate) target: &'a Uri,
    /// Its query where that is not quite what the client sent.
    pub(crate) raw_query: Option<&'a str>,
    pub(crate) version: Version,
    pub(crate) status: StatusCode,
    /// Body bytes to the client.
    pub(crate) sent: u64,
    /// From the request's head to the end of the response.
    pub(crate) duration: Duration,
    pub(crate) route: Option<&'a RouteId>,
    pub(crate) rule: Option<&'a str>,
    /// The backend that answered.
    pub(crate) upstream: Option<SocketAddr>,
    pub(crate) retries: usize,
    /// Why the edge answered itself.
    pub(crate) reason: Option<&'static str>,
    pub(crate) error: Option<&'a str>,
    /// The response did not get to its end.
    pub(crate) aborted: bool,
    pub(crate) user_agent: Option<&'a HeaderValue>,
    pub(crate) referer: Option<&'a HeaderValue>,
    /// What may be a key in the path.
    pub(crate) keys: Keys,
    /// The tracker's `failure reason`, without keys.
    pub(crate) tracker_failure: Option<&'a str>,
    /// Its `warning message`, without keys.
    pub(crate) tracker_warning: Option<&'a str>,
}

/// Which path segments are keys of a private tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    /// None: the rule leads to something else.
    None,
    /// Long ones, and those beside `announce` and `scrape`.
    Tracker,
    /// No rule was found, as for an announce that is redirected to HTTPS: as with a tracker, if the path is that
    /// of an announce or a scrape.
    Unknown,
}

/// Writes the line. Costs two comparisons if nobody listens.
pub(crate) fn emit(settings: &AccessLogSettings, line: &Line<'_>) {
    if !settings.enabled || !tracing::enabled!(target: "access", tracing::Level::INFO) {
        return;
    }
    let client = if settings.mask_client {
        mask(line.client)
    } else {
        line.client.to_canonical()
    };
    let target = line
        .target
        .path_and_query()
        .map_or("", PathAndQuery::as_str);
    let raw = line.raw_query.map(|query| {
        let path = line.target.path();
        format!("{path}?{query}")
    });
    let target = raw.as_deref().unwrap_or(target);
    let target = redact(target, &settings.redacted_query, line.keys);
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (&*target, None),
    };
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let user_agent = line.user_agent.map(text);
    let referer = line.referer.map(text);
    let referer = referer
        .as_deref()
        .map(|referer| redact(referer, &settings.redacted_query, line.keys));
    tracing::info!(
        target: "access",
        request_id = format_args!("{:032x}", line.request_id),
        client = %client,
        method = line.method.as_str(),
        host = line.host,
        path,
        query,
        protocol = protocol(line.version),
        status = line.status.as_u16(),
        sent_bytes = line.sent,
        duration_ms = milliseconds(line.duration),
        route = line.route.map(tracing::field::display),
        rule = line.rule,
        upstream = line.upstream.map(tracing::field::display),
        retries = (line.retries > 0).then_some(line.retries),
        reason = line.reason,
        error = line.error,
        aborted = line.aborted.then_some(true),
        tracker_failure = line.tracker_failure,
        tracker_warning = line.tracker_warning,
        user_agent = user_agent.as_deref(),
        referer = referer.as_deref(),
    );
}

/// What is known of a connection to a port, or of a client there, when it has ended.
pub(crate) struct StreamLine<'a> {
    pub(crate) client: IpAddr,
    pub(crate) port: PortId,
    pub(crate) route: &'a RouteId,
    /// Bytes from the client.
    pub(crate) received: u64,
    /// Bytes to the client.
    pub(crate) sent: u64,
    pub(crate) duration: Duration,
    /// Why it ended, unless one of its ends wanted that.
    pub(crate) reason: Option<&'static str>,
    pub(crate) error: Option<&'a str>,
}

/// Writes the line of something that was no request.
pub(crate) fn emit_stream(settings: &AccessLogSettings, line: &StreamLine<'_>) {
    if !settings.enabled {
        return;
    }
    let client = if settings.mask_client {
        mask(line.client)
    } else {
        line.client.to_canonical()
    };
    tracing::info!(
        target: "access",
        client = %client,
        protocol = line.port.transport.name(),
        port = line.port.number,
        sent_bytes = line.sent,
        received_bytes = line.received,
        duration_ms = milliseconds(line.duration),
        route = %line.route,
        reason = line.reason,
        error = line.error,
    );
}

/// With microseconds, as a number that sums up.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

const fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "unknown",
    }
}

/// The network of the address: its last octet or its last 80 bits are zero.
pub(crate) fn mask(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & !0xff).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 80 << 80).into(),
    }
}

/// Replaces the values of the named query parameters, and of a tracker's keys in the path. Borrows what has
/// nothing to hide.
pub(crate) fn redact<'a>(target: &'a str, names: &[String], keys: Keys) -> Cow<'a, str> {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let hides_keys = match keys {
        Keys::None => false,
        Keys::Tracker => true,
        Keys::Unknown => announce::classify(path).is_some(),
    };
    let shown_path = if hides_keys {
        announce::hide_keys(path, REDACTED)
    } else {
        Cow::Borrowed(path)
    };
    let hides_value = query.is_some_and(|query| query.split('&').any(|pair| hides(pair, names)));
    if matches!(shown_path, Cow::Borrowed(_)) && !hides_value {
        return Cow::Borrowed(target);
    }
    let mut shown = String::with_capacity(target.len());
    shown.push_str(&shown_path);
    for (i, pair) in query.into_iter().flat_map(|q| q.split('&')).enumerate() {
        shown.push(if i == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            Some((name, _)) if hides(pair, names) => {
                shown.push_str(name);
                shown.push('=');
                shown.push_str(REDACTED);
            }
            _ => shown.push_str(pair),
        }
    }
    Cow::Owned(shown)
}

/// Whether the pair's value is to be hidden. The name may be percent-encoded by somebody who hopes to get
/// past this.
fn hides(pair: &str, names: &[String]) -> bool {
    let Some((name, value)) = pair.split_once('=') else {
        return false;
    };
    !value.is_empty()
        && names.iter().any(|hidden| {
            name.eq_ignore_ascii_case(hidden)
                || (name.contains('%')
                    && percent_decode_str(name)
                        .map(|byte| byte.to_ascii_lowercase())
                        .eq(hidden.bytes().map(|byte| byte.to_ascii_lowercase())))
        })
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};

    use super::*;

    #[track_caller]
    fn check(target: &str, keys: Keys, expected: &str) {
        let names = AccessLogSettings::default().redacted_query;
        let found = redact(target, &names, keys);
        assert_eq!(found, expected);
        assert_eq!(
            matches!(found, Cow::Borrowed(_)),
            target == expected,
            "{target}"
        );
    }

    #[test]
    fn values_of_named_parameters_are_hidden() {
        check("/", Keys::None, "/");
        check("/a?b=c", Keys::None, "/a?b=c");
        check("/a?token=S", Keys::None, "/a?token=[redacted]");
        check(
            "/a?x=%0et&Token=S&y",
            Keys::None,
            "/a?x=%0et&Token=[redacted]&y",
        );
        check(
            "/a?t%6Fken=S&PASSKEY=",
            Keys::None,
            "/a?t%6Fken=[redacted]&PASSKEY=",
        );
        check(
            "/a?api_key=a=b&&key=c",
            Keys::None,
            "/a?api_key=[redacted]&&key=[redacted]",
        );
        check("/a?tokens=S&xkey=S", Keys::None, "/a?tokens=S&xkey=S");
        check("/a?token", Keys::None, "/a?token");
        check(
            "https://x.example/a?b=1&token=S",
            Keys::None,
            "https://x.example/a?b=1&token=[redacted]",
        );
        check("/a?token=S?token=T", Keys::None, "/a?token=[redacted]");
    }

    #[test]
    fn keys_in_the_path_of_a_tracker_are_hidden() {
        let key = "YZSl4lMZupRuOpSRC3krIKR5BPB14nrJ";
        check(
            &format!("/announce/{key}?info_hash=%86z"),
            Keys::Tracker,
            "/announce/[redacted]?info_hash=%86z",
        );
        check(
            &format!("/{key}/announce"),
            Keys::Tracker,
            "/[redacted]/announce",
        );
        check(
            &format!("/announce/{key}"),
            Keys::None,
            &format!("/announce/{key}"),
        );
        check("/announce?key=1", Keys::Tracker, "/announce?key=[redacted]");
    }

    #[test]
    fn masked_addresses_are_networks() {
        for (client, expected) in [
            ("203.0.113.77", "203.0.113.0"),
            ("::ffff:203.0.113.77", "203.0.113.0"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ] {
            assert_eq!(mask(client.parse().unwrap()).to_string(), expected);
        }
    }

    /// Writes the fields of each event into one string.
    struct Recorder(Arc<Mutex<String>>);

    impl tracing::Subscriber for Recorder {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            metadata.target() == "access"
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            event.record(&mut Fields(&mut self.0.lock().unwrap()));
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    struct Fields<'a>(&'a mut String);

    impl Visit for Fields<'_> {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            let _ = write!(self.0, "{}={value:?} ", field.name());
        }
    }

    #[test]
    fn a_line_has_what_is_needed_and_no_secret() {
        let target: Uri = "https://a.example/x?token=SECRET&a=%0e".parse().unwrap();
        let referer = HeaderValue::from_static("https://a.example/?key=SECRET");
        let line = Line {
            request_id: 0xab,
            client: "::ffff:203.0.113.77".parse().unwrap(),
            method: &Method::GET,
            host: Some("a.example"),
            target: &target,
            raw_query: None,
            version: Version::HTTP_2,
            status: StatusCode::OK,
            sent: 2,
            duration: Duration::from_micros(1500),
            route: Some(&RouteId::new("default", "app")),
            rule: Some("rules[0]"),
            upstream: Some("127.0.0.1:3000".parse().unwrap()),
            retries: 0,
            reason: None,
            error: None,
            aborted: false,
            user_agent: None,
            referer: Some(&referer),
            keys: Keys::None,
            tracker_failure: None,
            tracker_warning: None,
        };
        let written = Arc::new(Mutex::new(String::new()));
        tracing::subscriber::with_default(Recorder(Arc::clone(&written)), || {
            emit(&AccessLogSettings::default(), &line);
            let off = AccessLogSettings {
                enabled: false,
                ..AccessLogSettings::default()
            };
            emit(&off, &line);
        });
        assert_eq!(
            *written.lock().unwrap(),
            "request_id=000000000000000000000000000000ab client=203.0.113.77 method=\"GET\" \
             host=\"a.example\" path=\"/x\" query=\"token=[redacted]&a=%0e\" protocol=\"HTTP/2\" \
             status=200 sent_bytes=2 duration_ms=1.5 route=default/app rule=\"rules[0]\" \
             upstream=127.0.0.1:3000 referer=\"https://a.example/?key=[redacted]\" "
        );
    }
}
