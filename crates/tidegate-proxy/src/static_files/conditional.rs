//! Preconditions and ranges (RFC 9110 §13 and §14): which part of a file is the answer, if any.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::resolve::FoundFile;

/// What identifies the state of a file.
#[derive(Debug)]
pub(super) struct Validators {
    /// Strong: modification time in nanoseconds, length and coding.
    pub(super) etag: HeaderValue,
    pub(super) last_modified: Option<HeaderValue>,
    modified: Option<SystemTime>,
}

/// What the answer is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Whole,
    /// First and last byte, inclusive.
    Part {
        start: u64,
        end: u64,
    },
    Unsatisfiable,
    NotModified,
    PreconditionFailed,
}

// === impl Validators ===

impl Validators {
    pub(super) fn of(file: &FoundFile) -> Self {
        let since_epoch = file
            .modified
            .and_then(|modified| modified.duration_since(UNIX_EPOCH).ok());
        let stamp = since_epoch.map_or(0, |since| since.as_nanos());
        let coding = file.coding.map_or("", |coding| coding.token());
        let etag = format!("\"{stamp:x}-{:x}{coding}\"", file.length);
        // HTTP dates have whole seconds.
        let modified = since_epoch.map(|since| UNIX_EPOCH + Duration::from_secs(since.as_secs()));
        Self {
            etag: HeaderValue::try_from(etag).unwrap_or_else(|_| HeaderValue::from_static("\"0\"")),
            last_modified: modified
                .and_then(|time| HeaderValue::try_from(httpdate::fmt_http_date(time)).ok()),
            modified,
        }
    }

    /// Whether a list of tags names this state; `*` names any.
    fn is_named(&self, headers: &HeaderMap, name: &HeaderName, weak: bool) -> bool {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .any(|tag| {
                let strong = tag.strip_prefix("W/");
                tag == "*"
                    || match strong {
                        Some(tag) => weak && self.etag == tag,
                        None => self.etag == tag,
                    }
            })
    }

    fn is_changed_since(&self, headers: &HeaderMap, name: &HeaderName) -> Option<bool> {
        let since = date(headers.get(name)?)?;
        Some(self.modified? > since)
    }

    /// If-Range holds for exactly this state, or the range must be ignored.
    fn allows_range(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(header::IF_RANGE) else {
            return true;
        };
        *value == self.etag || self.last_modified.as_ref() == Some(value)
    }
}

fn date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

/// RFC 9110 §13.2.2, in its order.
pub(super) fn evaluate(
    validators: &Validators,
    method: &Method,
    headers: &HeaderMap,
    length: u64,
) -> Outcome {
    if headers.contains_key(header::IF_MATCH) {
        if !validators.is_named(headers, &header::IF_MATCH, false) {
            return Outcome::PreconditionFailed;
        }
    } else if validators.is_changed_since(headers, &header::IF_UNMODIFIED_SINCE) == Some(true) {
        return Outcome::PreconditionFailed;
    }
    if headers.contains_key(header::IF_NONE_MATCH) {
        if validators.is_named(headers, &header::IF_NONE_MATCH, true) {
            return Outcome::NotModified;
        }
    } else if validators.is_changed_since(headers, &header::IF_MODIFIED_SINCE) == Some(false) {
        return Outcome::NotModified;
    }
    match headers.get(header::RANGE) {
        Some(range) if method == Method::GET && validators.allows_range(headers) => {
            parse_range(range, length)
        }
        _ => Outcome::Whole,
    }
}

/// One range. Several, other units and what is malformed are ignored, as RFC 9110 §14.2 allows.
fn parse_range(value: &HeaderValue, length: u64) -> Outcome {
    let range = value
        .to_str()
        .ok()
        .and_then(|text| text.strip_prefix("bytes="))
        .and_then(|spec| spec.trim().split_once('-'));
    let Some((first, last)) = range else {
        return Outcome::Whole;
    };
    let number = |text: &str| -> Option<u64> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let (start, end) = match (number(first), number(last)) {
        (Some(start), Some(end)) if start <= end => (start, end),
        (Some(start), None) if last.is_empty() => (start, u64::MAX),
        (None, Some(0)) if first.is_empty() => return Outcome::Unsatisfiable,
        (None, Some(suffix)) if first.is_empty() => (length.saturating_sub(suffix), u64::MAX),
        _ => return Outcome::Whole,
    };
    if start >= length {
        return Outcome::Unsatisfiable;
    }
    Outcome::Part {
        start,
        end: end.min(length - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_file() {
        let part = |start, end| Outcome::Part { start, end };
        for (range, length, expected) in [
            ("bytes=0-0", 10, part(0, 0)),
            ("bytes=0-", 10, part(0, 9)),
            ("bytes=3-5", 10, part(3, 5)),
            ("bytes=3-99", 10, part(3, 9)),
            ("bytes=3-99999999999999999999999", 10, part(3, 9)),
            ("bytes=-4", 10, part(6, 9)),
            ("bytes=-40", 10, part(0, 9)),
            ("bytes=9-", 10, part(9, 9)),
            ("bytes=10-", 10, Outcome::Unsatisfiable),
            ("bytes=-0", 10, Outcome::Unsatisfiable),
            ("bytes=0-", 0, Outcome::Unsatisfiable),
            ("bytes=-1", 0, Outcome::Unsatisfiable),
            ("bytes=5-3", 10, Outcome::Whole),
            ("bytes=0-1,3-4", 10, Outcome::Whole),
            ("bytes=a-b", 10, Outcome::Whole),
            ("bytes=+1-2", 10, Outcome::Whole),
            ("bytes=-", 10, Outcome::Whole),
            ("lines=0-1", 10, Outcome::Whole),
        ] {
            let value = HeaderValue::from_static(range);
            assert_eq!(parse_range(&value, length), expected, "{range} of {length}");
        }
    }
}
