//! What happens to a request that matched.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use regex::Regex;

use crate::{BackendGroup, Cluster, Filters, RouteId};

/// One match of one rule; a host's entries are sorted by precedence.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteEntry {
    /// The conditions, all of which must hold.
    pub request: RequestMatch,
    /// What then happens.
    pub rule: Arc<Rule>,
}

/// Conditions on a request, joined by AND. Empty matches everything.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RequestMatch {
    /// On the path in canonical form.
    pub path: Option<PathMatch>,
    /// On the method.
    pub method: Option<Method>,
    /// On header fields.
    pub headers: Vec<HeaderMatch>,
    /// On query parameters.
    pub query: Vec<QueryMatch>,
}

/// Condition on the path.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Whole leading segments: `/foo` matches `/foo` and `/foo/bar`, not `/foobar`. No trailing slash but for `/`.
    Prefix(String),
    /// RE2-style expression that must match the whole path.
    Regex(Regex),
}

impl PartialEq for PathMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) | (Self::Prefix(a), Self::Prefix(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

/// Condition on a value.
#[derive(Debug, Clone)]
pub enum ValueMatch {
    /// The whole value.
    Exact(String),
    /// Expression that must match the whole value.
    Regex(Regex),
}

impl ValueMatch {
    /// Whether the value satisfies the condition.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(expected) => expected == value,
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

impl PartialEq for ValueMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

/// Condition on a header field. Several fields of one name are joined by `,` first.
#[derive(Debug, Clone, PartialEq)]
pub struct HeaderMatch {
    /// Field name.
    pub name: HeaderName,
    /// Condition on its value.
    pub value: ValueMatch,
}

/// Condition on the first query parameter of that name, compared after percent-decoding.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryMatch {
    /// Parameter name.
    pub name: String,
    /// Condition on its value.
    pub value: ValueMatch,
}

/// A rule of a route.
#[derive(Debug, PartialEq)]
pub struct Rule {
    /// The route it belongs to.
    pub route: RouteId,
    /// Its name, or `rules[2]` when it has none.
    pub name: String,
    /// What is done before and after the action.
    pub filters: Filters,
    /// What answers.
    pub action: Action,
    /// Clocks.
    pub timeouts: Timeouts,
    /// Bounds.
    pub limits: Limits,
    /// Leads to an HTTP tracker: targets go through byte for byte, answers are looked at, nothing is compressed.
    pub tracker: Option<HttpTracker>,
    /// Answers over plain HTTP, whatever the host says of that, and not over TLS.
    pub plain: bool,
}

impl Rule {
    /// Every cluster the rule may send to.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        let group = match &self.action {
            Action::Forward(group) => Some(group),
            _ => None,
        };
        group
            .into_iter()
            .flat_map(|group| group.backends.iter().map(|backend| &backend.cluster))
            .chain(self.filters.mirrors.iter().map(|mirror| &mirror.cluster))
            .chain(self.filters.forward_auth.iter().map(|auth| &auth.cluster))
    }
}

/// What is particular about requests to an HTTP tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HttpTracker {
    /// What becomes of addresses that clients claim in announces.
    pub address_parameters: AddressParameters,
}

/// What becomes of `ip`, `ipv4` and `ipv6` in the query of an announce. Some trackers believe them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AddressParameters {
    /// They go on as they are.
    #[default]
    Pass,
    /// They are taken out.
    Strip,
}

/// What answers a request.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// A backend.
    Forward(BackendGroup),
    /// A redirect.
    Redirect(Redirect),
    /// A body from the object itself.
    Respond(FixedResponse),
    /// Files.
    Static(StaticFolder),
    /// 503: the object names something that does not exist; the text says what.
    Unavailable(String),
}

/// A redirect, RFC 9110 §15.4. Parts that are None keep the request's.
#[derive(Debug, Clone, PartialEq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Hostname without port.
    pub hostname: Option<String>,
    /// Port; the scheme's well-known one is left out of the Location.
    pub port: Option<u16>,
    /// Path.
    pub path: Option<RedirectPath>,
}

/// How a path is replaced in a redirect or rewrite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectPath {
    /// By this path.
    Full(String),
    /// The matched prefix (held here, with the replacement) by another.
    Prefix {
        /// The prefix that the rule's match names.
        matched: String,
        /// What stands there instead.
        replacement: String,
    },
}

/// A response from the object itself.
#[derive(Debug, Clone, PartialEq)]
pub struct FixedResponse {
    /// Status.
    pub status: StatusCode,
    /// Content-Type, if a body is there.
    pub content_type: Option<HeaderValue>,
    /// Body.
    pub body: Bytes,
}

/// Files of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticFolder {
    /// The folder; symbolic links that lead out of it are not followed.
    pub root: PathBuf,
    /// The prefix of the request path that stands for the folder, without trailing slash; empty for all.
    pub strip_prefix: String,
    /// Names tried for a folder, such as `index.html`.
    pub index: Vec<String>,
    /// Whether a folder without index is listed.
    pub listing: bool,
    /// Served for what does not exist, for single-page applications; relative to `root`.
    pub fallback: Option<String>,
}

/// Clocks of a rule. None means no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// From the end of the request to the response's head, and while a backend reads nothing of it; 504.
    pub first_byte: Option<Duration>,
    /// Between two frames of a body in either direction; 408 or an aborted response.
    pub idle: Option<Duration>,
    /// For everything; 504 while nothing was sent, else an aborted response.
    pub request: Option<Duration>,
    /// Between two bytes of an upgraded connection in either direction.
    pub upgraded_idle: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            first_byte: Some(Duration::from_secs(60)),
            idle: Some(Duration::from_secs(60)),
            request: None,
            upgraded_idle: Some(Duration::from_secs(3600)),
        }
    }
}

/// Bounds of a rule. None means no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes of a request body; 413.
    pub request_body: Option<u64>,
    /// Requests in flight per client address; 429.
    pub requests_per_client: Option<u32>,
}
