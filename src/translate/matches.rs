//! Conditions on requests, and the order in which they are tried.

use std::cmp::{Ordering, Reverse};
use std::fmt::Write as _;

use regex::{Regex, RegexBuilder};
use tidegate_model::{HeaderMatch, PathMatch, QueryMatch, RequestMatch, RouteEntry, ValueMatch};

use super::report::{Field, Report};
use super::words::{header_name, method, one_of};
use crate::api::{Match, PathCondition};

/// Compiled expressions of one object may take this much memory each; RE2 syntax cannot blow up in time.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

#[derive(Clone, Copy)]
enum PathKind {
    Exact,
    Prefix,
    Regex,
}

#[derive(Clone, Copy)]
enum ValueKind {
    Exact,
    Regex,
}

const VALUE_KINDS: [(&str, ValueKind); 2] = [
    ("Exact", ValueKind::Exact),
    ("RegularExpression", ValueKind::Regex),
];

/// Reads one match; None when something in it is wrong.
pub(super) fn request_match(
    report: &mut Report,
    field: &Field<'_>,
    wire: &Match,
) -> Option<RequestMatch> {
    let mut good = true;
    let mut result = RequestMatch::default();
    if let (Some(_), Some(_)) = (&wire.path, &wire.path_prefix) {
        report.invalid(
            field,
            "path and pathPrefix are both set",
            "leave out one of them",
        );
        good = false;
    }
    if let Some(prefix) = &wire.path_prefix {
        let prefix = path_prefix(report, &field.at("pathPrefix"), prefix);
        good &= prefix.is_some();
        result.path = prefix.map(PathMatch::Prefix);
    } else if let Some(path) = &wire.path {
        let path = path_match(report, &field.at("path"), path);
        good &= path.is_some();
        result.path = path;
    }
    if let Some(word) = &wire.method {
        result.method = method(report, &field.at("method"), word);
        good &= result.method.is_some();
    }
    let headers = field.at("headers");
    for (index, wire) in wire.headers.iter().enumerate() {
        let at = headers.index(index);
        let name = header_name(report, &at.at("name"), &wire.name);
        let value = value_match(report, &at, wire.type_.as_deref(), &wire.value);
        match (name, value) {
            (Some(name), Some(value)) => result.headers.push(HeaderMatch { name, value }),
            _ => good = false,
        }
    }
    let params = field.at("queryParams");
    for (index, wire) in wire.query_params.iter().enumerate() {
        let at = params.index(index);
        if wire.name.is_empty() {
            report.invalid(at.at("name"), "the name is empty", "name the parameter");
            good = false;
        }
        match value_match(report, &at, wire.type_.as_deref(), &wire.value) {
            Some(value) => result.query.push(QueryMatch {
                name: wire.name.clone(),
                value,
            }),
            None => good = false,
        }
    }
    good.then_some(result)
}

fn path_match(report: &mut Report, field: &Field<'_>, wire: &PathCondition) -> Option<PathMatch> {
    let kind = one_of(
        report,
        &field.at("type"),
        wire.type_.as_deref(),
        PathKind::Prefix,
        &[
            ("Exact", PathKind::Exact),
            ("PathPrefix", PathKind::Prefix),
            ("RegularExpression", PathKind::Regex),
        ],
    )?;
    let value = field.at("value");
    match kind {
        PathKind::Exact => canonical_path(report, &value, &wire.value).map(PathMatch::Exact),
        PathKind::Prefix => path_prefix(report, &value, &wire.value).map(PathMatch::Prefix),
        PathKind::Regex => whole_regex(report, &value, &wire.value).map(PathMatch::Regex),
    }
}

/// A prefix in the form that the model wants: no trailing slash but for `/`.
fn path_prefix(report: &mut Report, field: &Field<'_>, prefix: &str) -> Option<String> {
    let path = canonical_path(report, field, prefix)?;
    Some(match path.strip_suffix('/') {
        None => path,
        Some("") => "/".to_owned(),
        Some(bare) => bare.to_owned(),
    })
}

/// A path in the form that requests are compared in: unreserved characters plain, other escapes in upper
/// case. What two readers could read differently is refused, because it would guard nothing.
pub(super) fn canonical_path(report: &mut Report, field: &Field<'_>, path: &str) -> Option<String> {
    let found = format!("{path:?} is not a path");
    if !path.starts_with('/') {
        report.invalid(field, found, format!("begin with a slash: /{path}"));
        return None;
    }
    if path.contains(['?', '#']) {
        report.invalid(
            field,
            found,
            "leave out query and fragment; use queryParams for conditions on the query",
        );
        return None;
    }
    let mut canonical = String::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        let (byte, escaped) = if *byte == b'%' {
            let digits = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
            let Some(value) = digits.and_then(|two| u8::from_str_radix(two, 16).ok()) else {
                report.invalid(field, found, "write a percent sign as %25");
                return None;
            };
            rest = &tail[2..];
            (value, true)
        } else {
            (*byte, false)
        };
        let plain = byte.is_ascii_alphanumeric()
            || b"-._~".contains(&byte)
            || (!escaped && b"/!$&'()*+,;=:@".contains(&byte));
        if matches!(byte, 0 | b'\\') || (escaped && byte == b'/') {
            report.invalid(
                field,
                format!("{path:?} can be read in more than one way"),
                "leave out NUL, backslash and escaped slashes",
            );
            return None;
        }
        if plain {
            canonical.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(canonical, "%{byte:02X}");
        }
    }
    let segments = canonical.split('/').skip(1);
    let count = segments.clone().count();
    for (index, segment) in segments.enumerate() {
        let last = index + 1 == count;
        if matches!(segment, "." | "..") || (segment.is_empty() && !last) {
            report.invalid(
                field,
                format!("{path:?} can be read in more than one way"),
                "leave out empty, . and .. segments",
            );
            return None;
        }
    }
    Some(canonical)
}

fn value_match(
    report: &mut Report,
    field: &Field<'_>,
    kind: Option<&str>,
    value: &str,
) -> Option<ValueMatch> {
    match one_of(
        report,
        &field.at("type"),
        kind,
        ValueKind::Exact,
        &VALUE_KINDS,
    )? {
        ValueKind::Exact => Some(ValueMatch::Exact(value.to_owned())),
        ValueKind::Regex => whole_regex(report, &field.at("value"), value).map(ValueMatch::Regex),
    }
}

/// An expression that must match the whole text.
fn whole_regex(report: &mut Report, field: &Field<'_>, pattern: &str) -> Option<Regex> {
    // The pattern is looked at alone first: `)(` would be valid within the anchors.
    regex(report, field, pattern)?;
    regex(report, field, &format!("^(?:{pattern})$"))
}

/// An expression as written.
pub(super) fn regex(report: &mut Report, field: &Field<'_>, pattern: &str) -> Option<Regex> {
    match RegexBuilder::new(pattern)
        .size_limit(REGEX_SIZE_LIMIT)
        .build()
    {
        Ok(regex) => Some(regex),
        Err(regex::Error::CompiledTooBig(_)) => {
            report.invalid(
                field,
                format!("{pattern:?} needs too much memory"),
                "use fewer or smaller repetitions",
            );
            None
        }
        Err(error) => {
            let text = error.to_string();
            // The last line says what is wrong; those before draw an arrow.
            let cause = text.lines().last().unwrap_or_default();
            let cause = cause.strip_prefix("error: ").unwrap_or(cause);
            report.invalid(
                field,
                format!("{pattern:?} is not a regular expression: {cause}"),
                "RE2 syntax has no look-around and no back-references",
            );
            None
        }
    }
}

/// Which of two entries is tried first: the more specific one. Equal ones keep the order of the object.
pub(super) fn precedence(a: &RouteEntry, b: &RouteEntry) -> Ordering {
    fn key(
        request: &RequestMatch,
    ) -> (
        Reverse<u8>,
        Reverse<usize>,
        bool,
        Reverse<usize>,
        Reverse<usize>,
    ) {
        let (rank, length) = match &request.path {
            Some(PathMatch::Exact(path)) => (3, path.len()),
            Some(PathMatch::Regex(regex)) => (2, regex.as_str().len()),
            // `/` and no condition are the same.
            Some(PathMatch::Prefix(prefix)) => (1, prefix.trim_end_matches('/').len()),
            None => (1, 0),
        };
        (
            Reverse(rank),
            Reverse(length),
            request.method.is_none(),
            Reverse(request.headers.len()),
            Reverse(request.query.len()),
        )
    }
    key(&a.request).cmp(&key(&b.request))
}

/// Whether the entry is chosen by path.
pub(super) fn decides_by_path(request: &RequestMatch) -> bool {
    !matches!(&request.path, None | Some(PathMatch::Prefix(_)))
        || matches!(&request.path, Some(PathMatch::Prefix(prefix)) if prefix != "/")
}
