//! Which rule a request belongs to, and why the others lost.
//!
//! [`choose`] runs for each request; [`explain`] is its talkative twin for people. Both use the same
//! conditions in the same order. Entries come sorted by precedence, so the first that matches wins.
//! Must not sort, cache or know about backends.

use std::borrow::Cow;

use http::{HeaderMap, Method};
use percent_encoding::percent_decode_str;
use tidegate_model::{
    HeaderMatch, PathMatch, PlainRules, QueryMatch, RequestMatch, RouteEntry, VirtualHost,
};

use crate::normalize::Refusal;
use crate::path::{self, Canonical};

/// The entries that a request is held against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidates<'a> {
    entries: &'a [RouteEntry],
    guards_by_path: bool,
}

impl<'a> From<&'a VirtualHost> for Candidates<'a> {
    fn from(host: &'a VirtualHost) -> Self {
        Self {
            entries: &host.entries,
            guards_by_path: host.guards_by_path,
        }
    }
}

impl<'a> From<&'a PlainRules> for Candidates<'a> {
    fn from(rules: &'a PlainRules) -> Self {
        Self {
            entries: &rules.entries,
            guards_by_path: rules.guards_by_path,
        }
    }
}

/// The entry for a request, or None when none matches; refuses paths whose reading decides about the rule.
pub(crate) fn choose<'a>(
    among: impl Into<Candidates<'a>>,
    path: &Canonical<'_>,
    parts: &http::request::Parts,
) -> Result<Option<&'a RouteEntry>, Refusal> {
    let among = among.into();
    if path.ambiguous && among.guards_by_path {
        return Err(AMBIGUOUS);
    }
    let chosen = select(among, &path.path, parts);
    if let Some(merged) = &path.merged
        && among.guards_by_path
        && !same_rule(chosen, select(among, merged, parts))
    {
        return Err(AMBIGUOUS);
    }
    Ok(chosen)
}

const AMBIGUOUS: Refusal = Refusal::bad_request(
    "AmbiguousPath",
    "the path can be read in two ways and access depends on which",
);

fn same_rule(a: Option<&RouteEntry>, b: Option<&RouteEntry>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => std::sync::Arc::ptr_eq(&a.rule, &b.rule),
        (None, None) => true,
        _ => false,
    }
}

/// The first entry whose conditions all hold.
pub(crate) fn select<'a>(
    among: impl Into<Candidates<'a>>,
    canonical_path: &str,
    parts: &http::request::Parts,
) -> Option<&'a RouteEntry> {
    let view = View {
        method: &parts.method,
        path: canonical_path,
        query: parts.uri.query(),
        headers: &parts.headers,
    };
    let mut entries = among.into().entries.iter();
    entries.find(|entry| view.matches(&entry.request))
}

/// What conditions are evaluated on.
#[derive(Clone, Copy)]
struct View<'a> {
    method: &'a Method,
    path: &'a str,
    query: Option<&'a str>,
    headers: &'a HeaderMap,
}

// === impl View ===

impl View<'_> {
    fn matches(&self, conditions: &RequestMatch) -> bool {
        conditions.path.as_ref().is_none_or(|path| self.path(path))
            && conditions.method.as_ref().is_none_or(|m| m == self.method)
            && conditions.headers.iter().all(|header| self.header(header))
            && conditions.query.iter().all(|query| self.query(query))
    }

    fn path(&self, condition: &PathMatch) -> bool {
        match condition {
            PathMatch::Exact(exact) => exact == self.path,
            PathMatch::Prefix(prefix) => {
                let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
                self.path
                    .strip_prefix(prefix)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            PathMatch::Regex(regex) => regex.is_match(self.path),
        }
    }

    fn header(&self, condition: &HeaderMatch) -> bool {
        self.header_value(&condition.name)
            .is_some_and(|value| condition.value.matches(&value))
    }

    fn header_value(&self, name: &http::HeaderName) -> Option<Cow<'_, str>> {
        let mut fields = self.headers.get_all(name).iter();
        let first = std::str::from_utf8(fields.next()?.as_bytes()).ok()?;
        let mut joined = Cow::Borrowed(first);
        for field in fields {
            let joined = joined.to_mut();
            joined.push(',');
            joined.push_str(std::str::from_utf8(field.as_bytes()).ok()?);
        }
        Some(joined)
    }

    fn query(&self, condition: &QueryMatch) -> bool {
        self.query_value(&condition.name)
            .is_some_and(|value| condition.value.matches(&value))
    }

    /// The first parameter of that name. Both sides are percent-decoded, `+` stays a plus sign.
    fn query_value(&self, name: &str) -> Option<Cow<'_, str>> {
        self.query?.split('&').find_map(|pair| {
            let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
            let same = found == name
                || (found.contains('%') && percent_decode_str(found).eq(name.bytes()));
            same.then(|| percent_decode_str(value).decode_utf8_lossy())
        })
    }
}

/// A request to be explained; need not have happened.
#[derive(Debug, Clone)]
pub struct ExplainRequest {
    /// Method.
    pub method: Method,
    /// Path as a client would send it, percent-encoded.
    pub path: String,
    /// Query without the question mark.
    pub query: Option<String>,
    /// Header fields.
    pub headers: HeaderMap,
}

/// One entry of a host, in order of precedence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainedEntry {
    /// The rule, as `namespace/name rules[0]` or with its own name.
    pub rule: String,
    /// Its conditions, such as `path prefix /api, method GET`.
    pub conditions: String,
    /// What became of it.
    pub verdict: Verdict,
}

/// Why an entry serves a request or does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It answers.
    Matched,
    /// It would match, but another comes first.
    Shadowed {
        /// The rule that comes first.
        by: String,
    },
    /// A condition does not hold.
    Failed {
        /// The first such condition.
        condition: String,
        /// What the request has instead.
        found: String,
    },
    /// It would answer, but the path can be read in two ways and is refused with 400.
    Refused {
        /// The path as the edge reads it.
        path: String,
    },
}

/// Tells for each entry of the host what the request would meet: over plain HTTP on the listener with that port, or
/// else over TLS.
pub fn explain(
    host: &VirtualHost,
    plain: Option<u16>,
    request: &ExplainRequest,
) -> Vec<ExplainedEntry> {
    let plain = plain.and_then(|port| host.plain_rules(port));
    let among = plain.map_or_else(|| Candidates::from(host), Candidates::from);
    let canonical = path::canonical(&request.path);
    let view = View {
        method: &request.method,
        path: &canonical.path,
        query: request.query.as_deref(),
        headers: &request.headers,
    };
    let find = |view: View<'_>| {
        let mut entries = among.entries.iter();
        entries.find(|entry| view.matches(&entry.request))
    };
    let other = canonical
        .merged
        .as_deref()
        .map(|path| View { path, ..view });
    let refused = among.guards_by_path
        && (canonical.ambiguous || other.is_some_and(|other| !same_rule(find(view), find(other))));
    let mut winner = None;
    among
        .entries
        .iter()
        .map(|entry| {
            let rule = format!("{} {}", entry.rule.route, entry.rule.name);
            let verdict = match (view.failure(&entry.request), &winner) {
                (Some((condition, found)), _) => Verdict::Failed { condition, found },
                (None, Some(by)) => Verdict::Shadowed {
                    by: String::clone(by),
                },
                (None, None) => {
                    winner = Some(rule.clone());
                    if refused {
                        Verdict::Refused {
                            path: canonical.path.clone().into_owned(),
                        }
                    } else {
                        Verdict::Matched
                    }
                }
            };
            ExplainedEntry {
                rule,
                conditions: describe(&entry.request),
                verdict,
            }
        })
        .collect()
}

impl View<'_> {
    /// The first condition that does not hold, in the order of [`View::matches`], and what was found.
    fn failure(&self, conditions: &RequestMatch) -> Option<(String, String)> {
        let missing = || "nothing".to_owned();
        if let Some(path) = conditions.path.as_ref().filter(|path| !self.path(path)) {
            return Some((describe_path(path), self.path.to_owned()));
        }
        if let Some(method) = conditions.method.as_ref().filter(|m| *m != self.method) {
            return Some((format!("method {method}"), self.method.to_string()));
        }
        if let Some(header) = conditions
            .headers
            .iter()
            .find(|header| !self.header(header))
        {
            let found = self.header_value(&header.name);
            let found = found.map_or_else(missing, |value| format!("{value:?}"));
            return Some((describe_header(header), found));
        }
        let query = conditions.query.iter().find(|query| !self.query(query))?;
        let found = self.query_value(&query.name);
        let found = found.map_or_else(missing, |value| format!("{value:?}"));
        Some((describe_query(query), found))
    }
}

fn describe(conditions: &RequestMatch) -> String {
    let mut parts: Vec<String> = Vec::new();
    parts.extend(conditions.path.as_ref().map(describe_path));
    parts.extend(conditions.method.as_ref().map(|m| format!("method {m}")));
    parts.extend(conditions.headers.iter().map(describe_header));
    parts.extend(conditions.query.iter().map(describe_query));
    if parts.is_empty() {
        "everything".to_owned()
    } else {
        parts.join(", ")
    }
}

fn describe_path(condition: &PathMatch) -> String {
    match condition {
        PathMatch::Exact(path) => format!("path {path}"),
        PathMatch::Prefix(path) => format!("path prefix {path}"),
        PathMatch::Regex(regex) => format!("path regex {regex}"),
    }
}

fn describe_header(condition: &HeaderMatch) -> String {
    format!(
        "header {}{}",
        condition.name,
        describe_value(&condition.value)
    )
}

fn describe_query(condition: &QueryMatch) -> String {
    format!(
        "query {}{}",
        condition.name,
        describe_value(&condition.value)
    )
}

fn describe_value(value: &tidegate_model::ValueMatch) -> String {
    match value {
        tidegate_model::ValueMatch::Exact(exact) => format!("={exact}"),
        tidegate_model::ValueMatch::Regex(regex) => format!("~{regex}"),
    }
}

#[cfg(test)]
mod tests;
