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
    /// In the order of the request, none empty, none overlapping; at least one.
    Parts(Vec<Part>),
    Unsatisfiable,
    NotModified,
    PreconditionFailed,
}

/// First and last byte of a range, both inside the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// Most ranges of a request that are served as such. Readers of PDF and archives ask for a dozen.
const MOST_RANGES: usize = 32;

// === impl Part ===

impl Part {
    pub(super) const fn length(self) -> u64 {
        self.end - self.start + 1
    }
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
    let mut ranges = headers.get_all(header::RANGE).iter();
    match (ranges.next(), ranges.next()) {
        (Some(range), None) if method == Method::GET && validators.allows_range(headers) => {
            parse_ranges(range, length)
        }
        _ => Outcome::Whole,
    }
}

/// Other units and what is malformed are ignored, and so are more ranges than anybody needs and ranges that
/// overlap, as RFC 9110 §14.2 allows: together they never ask for more than the file.
fn parse_ranges(value: &HeaderValue, length: u64) -> Outcome {
    let Some(set) = value
        .to_str()
        .ok()
        .and_then(|text| text.strip_prefix("bytes="))
    else {
        return Outcome::Whole;
    };
    let mut parts: Vec<Part> = Vec::new();
    let mut seen = 0;
    for spec in set.split(',').map(|spec| spec.trim_matches([' ', '\t'])) {
        // RFC 9110 §5.6.1.2: empty elements count for nothing.
        if spec.is_empty() {
            continue;
        }
        seen += 1;
        match parse_range(spec, length) {
            _ if seen > MOST_RANGES => return Outcome::Whole,
            None => return Outcome::Whole,
            Some(None) => {}
            Some(Some(part)) => {
                let overlaps = |other: &Part| part.start <= other.end && other.start <= part.end;
                if parts.iter().any(overlaps) {
                    return Outcome::Whole;
                }
                parts.push(part);
            }
        }
    }
    match (seen, parts.is_empty()) {
        (0, _) => Outcome::Whole,
        (_, true) => Outcome::Unsatisfiable,
        (_, false) => Outcome::Parts(parts),
    }
}

/// One range cut to the file: None when it is malformed, Some(None) when it lies outside.
#[expect(clippy::option_option, reason = "malformed and unsatisfiable differ")]
fn parse_range(spec: &str, length: u64) -> Option<Option<Part>> {
    let (first, last) = spec.split_once('-')?;
    let number = |text: &str| -> Option<u64> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let (start, end) = match (number(first), number(last)) {
        (Some(start), Some(end)) if start <= end => (start, end),
        (Some(start), None) if last.is_empty() => (start, u64::MAX),
        (None, Some(0)) if first.is_empty() => return Some(None),
        (None, Some(suffix)) if first.is_empty() => (length.saturating_sub(suffix), u64::MAX),
        _ => return None,
    };
    Some((start < length).then(|| Part {
        start,
        end: end.min(length - 1),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_file() {
        let parts = |ends: &[(u64, u64)]| {
            Outcome::Parts(
                ends.iter()
                    .map(|&(start, end)| Part { start, end })
                    .collect(),
            )
        };
        let part = |start, end| parts(&[(start, end)]);
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
            ("bytes=0-1,3-4", 10, parts(&[(0, 1), (3, 4)])),
            ("bytes=-1 ,\t0-1", 10, parts(&[(9, 9), (0, 1)])),
            ("bytes=0-4,5-9", 10, parts(&[(0, 4), (5, 9)])),
            ("bytes=,3-4,,", 10, part(3, 4)),
            ("bytes=3-4,20-", 10, part(3, 4)),
            ("bytes=20-,-0", 10, Outcome::Unsatisfiable),
            ("bytes=0-4,4-9", 10, Outcome::Whole),
            ("bytes=0-,0-,0-", 10, Outcome::Whole),
            ("bytes=5-6,0-9", 10, Outcome::Whole),
            ("bytes=0-1,a-b", 10, Outcome::Whole),
            ("bytes=20-,5-3", 10, Outcome::Whole),
            ("bytes=,", 10, Outcome::Whole),
            ("bytes=", 10, Outcome::Whole),
            ("bytes=a-b", 10, Outcome::Whole),
            ("bytes=+1-2", 10, Outcome::Whole),
            ("bytes=-", 10, Outcome::Whole),
            ("lines=0-1", 10, Outcome::Whole),
        ] {
            let value = HeaderValue::from_static(range);
            assert_eq!(
                parse_ranges(&value, length),
                expected,
                "{range} of {length}"
            );
        }
    }

    #[test]
    fn more_ranges_than_anybody_needs_are_the_whole_file() {
        let ask = |count: usize| {
            let ranges: Vec<String> = (0..count).map(|n| format!("{0}-{0}", n * 2)).collect();
            let value = HeaderValue::try_from(format!("bytes={}", ranges.join(","))).unwrap();
            parse_ranges(&value, 1000)
        };
        assert!(matches!(ask(MOST_RANGES), Outcome::Parts(parts) if parts.len() == MOST_RANGES));
        assert_eq!(ask(MOST_RANGES + 1), Outcome::Whole);
    }
}
