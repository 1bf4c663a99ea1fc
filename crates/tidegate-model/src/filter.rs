//! What is done to a request before, and to a response after, the action. Phases run in the order of
//! the fields of [`Filters`], whatever their order in the object.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use ipnet::IpNet;
use regex::Regex;

use crate::{Cluster, RedirectPath, Secret};

/// The filters of a rule, compiled.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Filters {
    /// Who may come at all; 403.
    pub ip_access: Option<IpAccess>,
    /// How often; 429.
    pub rate_limits: Vec<RateLimit>,
    /// Cross-origin requests; answers preflights itself.
    pub cors: Option<Cors>,
    /// Name and password; 401.
    pub basic_auth: Option<Arc<BasicAuth>>,
    /// An external service decides.
    pub forward_auth: Option<Arc<ForwardAuth>>,
    /// Edits of the request's header, after the edge set its own.
    pub request_headers: HeaderEdits,
    /// Path and host as the backend sees them.
    pub rewrite: Option<Rewrite>,
    /// Copies of the request, whose answers are dropped.
    pub mirrors: Vec<Mirror>,
    /// Edits of the response's header.
    pub response_headers: HeaderEdits,
    /// Compression of responses.
    pub compression: Option<Compression>,
}

/// Addresses that may or may not come. Deny wins; a non-empty allow list refuses the rest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IpAccess {
    /// Allowed networks.
    pub allow: Vec<IpNet>,
    /// Refused networks.
    pub deny: Vec<IpNet>,
}

/// A token bucket per key. The identity (`id`) keeps its state across snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// Stable name of the bucket set: route, rule and position.
    pub id: Arc<str>,
    /// Requests per `period` in the long run; at least 1.
    pub requests: u32,
    /// The period.
    pub period: Duration,
    /// Requests that may come at once; at least 1.
    pub burst: u32,
    /// What is counted together.
    pub key: RateLimitKey,
}

/// What a rate limit counts together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RateLimitKey {
    /// One bucket per client address (IPv6 by /64).
    ClientIp,
    /// One bucket per value of a header; requests without it share one.
    Header(HeaderName),
    /// One bucket for all.
    Route,
}

/// Cross-origin resource sharing, <https://fetch.spec.whatwg.org/#http-cors-protocol>.
#[derive(Debug, Clone, PartialEq)]
pub struct Cors {
    /// Origins that may read.
    pub allow_origins: Vec<OriginPattern>,
    /// Methods of preflights; empty allows GET, HEAD and POST.
    pub allow_methods: Vec<Method>,
    /// `*` in the object's allowMethods: whatever is asked for.
    pub allow_any_method: bool,
    /// Request headers of preflights.
    pub allow_headers: Vec<HeaderName>,
    /// `*` in the object's allowHeaders: whatever is asked for.
    pub allow_any_header: bool,
    /// Response headers that scripts may read.
    pub expose_headers: Vec<HeaderName>,
    /// Whether cookies and authorization may be sent.
    pub allow_credentials: bool,
    /// How long a browser may keep a preflight.
    pub max_age: Duration,
}

/// Which origins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginPattern {
    /// `*`
    Any,
    /// `https://app.example.com`, lower case.
    Exact(String),
    /// `https://*.example.com`: what stands before and after the `*`.
    Wildcard {
        /// `https://`
        prefix: String,
        /// `.example.com`
        suffix: String,
    },
}

/// RFC 7617.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasicAuth {
    /// Shown by browsers.
    pub realm: String,
    /// User and hash (bcrypt `$2…` or argon2 `$argon2…`), as in an htpasswd file.
    pub users: Vec<(String, Secret<String>)>,
    /// Request header that tells the backend the user, if any.
    pub user_header: Option<HeaderName>,
}

/// Asks a service with a GET whether the request may pass: 2xx lets it pass, anything else is the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ForwardAuth {
    /// The service.
    pub cluster: Arc<Cluster>,
    /// Path and query of the question.
    pub path: String,
    /// Request headers it sees; all but the body's when empty.
    pub request_headers: Vec<HeaderName>,
    /// Headers of its answer that are set on the request; client-sent ones of these names are dropped.
    pub response_headers: Vec<HeaderName>,
    /// How long it may take; 504.
    pub timeout: Duration,
}

/// Edits of a header: remove, then set, then add.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderEdits {
    /// Fields that go.
    pub remove: Vec<HeaderName>,
    /// Fields that replace all of their name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields that come beside others of their name.
    pub add: Vec<(HeaderName, HeaderValue)>,
}

impl HeaderEdits {
    /// Whether nothing is edited.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

/// What the backend sees instead.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rewrite {
    /// Host.
    pub hostname: Option<HeaderValue>,
    /// Path.
    pub path: Option<PathRewrite>,
}

/// How the path is rewritten; the query is never touched.
#[derive(Debug, Clone)]
pub enum PathRewrite {
    /// Whole path or matched prefix.
    Replace(RedirectPath),
    /// Every match of the expression by the substitution (`$1`, `${name}`).
    Regex {
        /// Expression.
        pattern: Regex,
        /// Substitution.
        substitution: String,
    },
}

impl PartialEq for PathRewrite {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Replace(a), Self::Replace(b)) => a == b,
            (
                Self::Regex {
                    pattern: a,
                    substitution: sa,
                },
                Self::Regex {
                    pattern: b,
                    substitution: sb,
                },
            ) => a.as_str() == b.as_str() && sa == sb,
            _ => false,
        }
    }
}

/// A copy of each request, or of a share, without its body's backpressure.
#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    /// Where the copy goes.
    pub cluster: Arc<Cluster>,
    /// Share in percent, 1 to 100.
    pub percent: u8,
}

/// Opt-in compression of responses that are compressible and not yet encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compression {
    /// In order of preference.
    pub algorithms: Vec<CompressionAlgorithm>,
    /// Bodies known to be smaller are left alone.
    pub min_size: u64,
    /// Media types, such as `text/html` or `text/*`; a sensible list when empty.
    pub content_types: Vec<String>,
}

/// Content codings that can be produced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CompressionAlgorithm {
    /// RFC 8878.
    Zstd,
    /// RFC 7932.
    Brotli,
    /// RFC 1952.
    Gzip,
}
