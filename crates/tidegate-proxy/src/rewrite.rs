//! The path as the backend sees it, when a rule rewrites it.
//!
//! The query goes through byte for byte, and so does what of the path is not replaced: `info_hash` and
//! signed paths do not survive a round trip through a URL library. Prefixes are cut by counting segments,
//! because the rule matched the canonical spelling and the raw one may be longer.

use http::Uri;
use http::uri::PathAndQuery;
use tidegate_model::{PathRewrite, RedirectPath};
use tidegate_tracker::announce;

/// The target of a request; `/` where its URI has none, as in authority form.
pub(crate) fn target(uri: &Uri) -> PathAndQuery {
    uri.path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"))
}

/// The rewritten path with the query as it was. None if the result is no path, which is the rule's fault.
pub(crate) fn path(original: &PathAndQuery, rewrite: &PathRewrite) -> Option<PathAndQuery> {
    let path = match rewrite {
        PathRewrite::Replace(by) => replace(original.path(), by),
        PathRewrite::Regex {
            pattern,
            substitution,
        } => pattern
            .replace_all(original.path(), substitution.as_str())
            .into_owned(),
    };
    if !path.starts_with('/') {
        return None;
    }
    let full = with_query(path, original.query());
    PathAndQuery::from_maybe_shared(bytes::Bytes::from(full)).ok()
}

/// An announce without the addresses that its client claims; None if it claims none.
pub(crate) fn without_addresses(original: &PathAndQuery) -> Option<PathAndQuery> {
    let mut stripped = announce::strip_addresses(original.as_str())?;
    if !stripped.starts_with('/') {
        // An absolute-form target need not have a path.
        stripped.insert(0, '/');
    }
    PathAndQuery::from_maybe_shared(bytes::Bytes::from(stripped)).ok()
}

/// A target with a raw query under the rewritten path; None if the rule brings a query of its own.
pub(crate) fn raw(raw: &str, before: &PathAndQuery, after: &PathAndQuery) -> Option<String> {
    let (_, query) = raw.split_once('?')?;
    (before.query() == after.query()).then(|| format!("{}?{query}", after.path()))
}

/// Appends the query unless the new path brings its own.
pub(crate) fn with_query(mut path: String, query: Option<&str>) -> String {
    if let Some(query) = query
        && !path.contains('?')
    {
        path.push('?');
        path.push_str(query);
    }
    path
}

/// The whole path or its matched prefix replaced.
pub(crate) fn replace(path: &str, by: &RedirectPath) -> String {
    match by {
        RedirectPath::Full(full) => full.clone(),
        RedirectPath::Prefix {
            matched,
            replacement,
        } => {
            let rest = skip_segments(path, segments(matched));
            let replacement = replacement.strip_suffix('/').unwrap_or(replacement);
            match (replacement.is_empty(), rest.is_empty()) {
                (true, true) => "/".to_owned(),
                _ => format!("{replacement}{rest}"),
            }
        }
    }
}

fn segments(prefix: &str) -> usize {
    prefix
        .split('/')
        .filter(|segment| !segment.is_empty())
        .count()
}

/// What follows the first segments: empty, or text that begins with a slash.
fn skip_segments(path: &str, count: usize) -> &str {
    let mut rest = path;
    for _ in 0..count {
        let Some(segment) = rest.strip_prefix('/') else {
            return "";
        };
        rest = segment.find('/').map_or("", |end| &segment[end..]);
    }
    rest
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    #[track_caller]
    fn check(original: &str, rewrite: &PathRewrite, expected: Option<&str>) {
        let original: PathAndQuery = original.parse().unwrap();
        let found = path(&original, rewrite);
        assert_eq!(found.as_ref().map(PathAndQuery::as_str), expected);
    }

    fn prefix(matched: &str, replacement: &str) -> PathRewrite {
        PathRewrite::Replace(RedirectPath::Prefix {
            matched: matched.to_owned(),
            replacement: replacement.to_owned(),
        })
    }

    #[test]
    fn a_prefix_is_replaced_by_segments() {
        for (original, matched, replacement, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo/bar", "/foo", "/", "/bar"),
            ("/bar", "/", "/app", "/app/bar"),
            ("/", "/", "/app", "/app/"),
            ("/a/b/c", "/a/b", "/x/y", "/x/y/c"),
            ("/%66oo/b%2Fr", "/foo", "/x", "/x/b%2Fr"),
            ("/foo//bar", "/foo", "/x", "/x//bar"),
        ] {
            check(original, &prefix(matched, replacement), Some(expected));
        }
    }

    #[test]
    fn the_query_is_untouched() {
        let query = "info_hash=%86zsL%0et%D5'(~!|{&&a=1&a=+";
        check(
            &format!("/t/announce?{query}"),
            &prefix("/t", "/"),
            Some(&format!("/announce?{query}")),
        );
        check("/t?", &prefix("/t", "/x"), Some("/x?"));
        let full = PathRewrite::Replace(RedirectPath::Full("/new".to_owned()));
        check("/old?a=1", &full, Some("/new?a=1"));
    }

    #[test]
    fn a_regex_replaces_every_match() {
        let regex = |pattern: &str, substitution: &str| PathRewrite::Regex {
            pattern: Regex::new(pattern).unwrap(),
            substitution: substitution.to_owned(),
        };
        check(
            "/v1/users/7?x=1",
            &regex("^/v1/(.*)$", "/v2/$1"),
            Some("/v2/users/7?x=1"),
        );
        check("/a/a/a", &regex("a", "b"), Some("/b/b/b"));
        check("/abc", &regex("^/", ""), None);
        check("/abc", &regex("abc", "a b"), None);
    }
}
