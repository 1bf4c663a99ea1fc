//! The form of a path that rules are compared with.
//!
//! Rules match this form; the backend gets the path as it came. Where both could be read differently the
//! form is marked, and the router refuses the request if a rule decides by path. Unreserved characters are
//! decoded, other escapes get upper-case digits, characters that no URI may hold are escaped, dot segments
//! are resolved. Must never be forwarded.

use std::borrow::Cow;

/// A path as rules see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Canonical<'a> {
    /// The canonical path; applying [`canonical`] again changes nothing.
    pub path: Cow<'a, str>,
    /// Two servers could find different resources here: dot segments, an escaped or plain backslash, an
    /// escaped slash, `%00`, a bad escape, overlong UTF-8.
    pub ambiguous: bool,
    /// What servers see that merge slashes and cut path parameters (`;…`), when it differs. Such paths are
    /// common and mostly meant, so they are refused only if both readings lead to different rules.
    pub merged: Option<String>,
}

/// Bytes that stand for themselves in every reading; `.`, `/`, `;` and `%` need a look around.
const PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~!$&'()*+,=:@";
    let mut i = 0;
    while i < plain.len() {
        table[plain[i] as usize] = true;
        i += 1;
    }
    table
};

/// Brings a path into canonical form. Allocates only if something in it is not plain.
pub(crate) fn canonical(path: &str) -> Canonical<'_> {
    if is_plain(path.as_bytes()) {
        return Canonical {
            path: Cow::Borrowed(path),
            ambiguous: false,
            merged: None,
        };
    }
    let (decoded, mut ambiguous) = decode(path.as_bytes());
    let path = if has_dot_segment(&decoded) {
        ambiguous = true;
        resolve_dots(&decoded)
    } else {
        decoded
    };
    let merged = merge(&path);
    Canonical {
        merged: (merged != path).then_some(merged),
        path: Cow::Owned(path),
        ambiguous,
    }
}

fn is_plain(path: &[u8]) -> bool {
    let mut before = 0;
    for &byte in path {
        let fine = PLAIN[usize::from(byte)] || (matches!(byte, b'/' | b'.') && before != b'/');
        if !fine {
            return false;
        }
        before = byte;
    }
    true
}

/// Decodes unreserved characters, escapes what is not allowed, and says whether something was ambiguous.
fn decode(path: &[u8]) -> (String, bool) {
    let mut decoded = String::with_capacity(path.len() + 16);
    let mut ambiguous = false;
    let mut rest = path;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        if *byte == b'%' {
            let escaped = match tail {
                [high, low, ..] => hex(*high).zip(hex(*low)),
                _ => None,
            };
            let Some((high, low)) = escaped else {
                ambiguous = true;
                decoded.push_str("%25");
                continue;
            };
            rest = &tail[2..];
            let value = high << 4 | low;
            // 0xC0 and 0xC1 begin overlong forms, which lax decoders read as `.` or `/`.
            ambiguous |= matches!(value, 0 | b'/' | b'\\' | 0xC0 | 0xC1);
            if value.is_ascii_alphanumeric() || matches!(value, b'-' | b'.' | b'_' | b'~') {
                decoded.push(char::from(value));
            } else {
                escape(&mut decoded, value);
            }
        } else if PLAIN[usize::from(*byte)] || matches!(byte, b'/' | b'.' | b';') {
            decoded.push(char::from(*byte));
        } else {
            ambiguous |= *byte == b'\\';
            escape(&mut decoded, *byte);
        }
    }
    (decoded, ambiguous)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

fn escape(into: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    into.push('%');
    into.push(char::from(DIGITS[usize::from(byte >> 4)]));
    into.push(char::from(DIGITS[usize::from(byte & 15)]));
}

/// Whether a segment is `.` or `..`, also with parameters: `..;x` is `..` to some servers.
fn has_dot_segment(path: &str) -> bool {
    path.split('/').any(|segment| is_dots(name_of(segment)))
}

fn is_dots(name: &str) -> bool {
    name == "." || name == ".."
}

fn name_of(segment: &str) -> &str {
    segment.split_once(';').map_or(segment, |(name, _)| name)
}

/// RFC 3986 §5.2.4, without ever leaving the root.
fn resolve_dots(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut open = false;
    for segment in path.strip_prefix('/').unwrap_or(path).split('/') {
        open = true;
        match name_of(segment) {
            "." => {}
            ".." => {
                segments.pop();
            }
            _ => {
                segments.push(segment);
                open = false;
            }
        }
    }
    let mut resolved = String::with_capacity(path.len());
    for segment in &segments {
        resolved.push('/');
        resolved.push_str(segment);
    }
    if open || segments.is_empty() {
        resolved.push('/');
    }
    resolved
}

/// Drops path parameters and empty segments.
fn merge(path: &str) -> String {
    let mut merged = String::with_capacity(path.len());
    let mut segments = path.split('/').map(name_of).peekable();
    if path.starts_with('/') {
        segments.next();
    }
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        if last || !segment.is_empty() {
            if path.starts_with('/') || !merged.is_empty() {
                merged.push('/');
            }
            merged.push_str(segment);
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(input: &str, path: &str, ambiguous: bool) {
        let found = canonical(input);
        assert_eq!(
            (&*found.path, found.ambiguous),
            (path, ambiguous),
            "{input}"
        );
    }

    #[test]
    fn plain_paths_are_borrowed() {
        for path in [
            "/",
            "/a",
            "/a/b.html",
            "/a/",
            "*",
            "/a..b/c.",
            "/v2/x:y/@z",
            "/.a/x",
        ] {
            let found = canonical(path);
            assert_eq!(found.path, path);
            assert!(!found.ambiguous && found.merged.is_none(), "{path}");
        }
        assert!(matches!(canonical("/a/b.html").path, Cow::Borrowed(_)));
    }

    #[test]
    fn spellings_of_one_path_are_one() {
        check("/%61dmin", "/admin", false);
        check("/a%2db%2Ec%5f%7E", "/a-b.c_~", false);
        check("/caf%c3%a9", "/caf%C3%A9", false);
        check("/café", "/caf%C3%A9", false);
        check("/a|b{c}", "/a%7Cb%7Bc%7D", false);
        check("/a%7cb", "/a%7Cb", false);
        check("/a%20b", "/a%20b", false);
        check("/a;v=1/b", "/a;v=1/b", false);
        check("/.well-known/x", "/.well-known/x", false);
    }

    #[test]
    fn what_two_readers_could_read_differently_is_marked() {
        check("/a/../admin", "/admin", true);
        check("/a/%2e%2E/admin", "/admin", true);
        check("/./admin", "/admin", true);
        check("/a/..;x=1/admin", "/admin", true);
        check("/../../admin", "/admin", true);
        check("/a/b/..", "/a/", true);
        check("/a/.", "/a/", true);
        check("/a%2fb", "/a%2Fb", true);
        check("/a%5Cb", "/a%5Cb", true);
        check("/a\\b", "/a%5Cb", true);
        check("/a%00", "/a%00", true);
        check("/a%zz", "/a%25zz", true);
        check("/a%", "/a%25", true);
        check("/a%2", "/a%252", true);
        check("/a%c0%afb", "/a%C0%AFb", true);
    }

    #[test]
    fn merged_slashes_and_parameters_are_a_second_reading() {
        for (input, merged) in [
            ("//admin", "/admin"),
            ("/a//b///", "/a/b/"),
            ("/;x/admin", "/admin"),
            ("/admin;x=1", "/admin"),
            ("/a;x/b;y", "/a/b"),
        ] {
            let found = canonical(input);
            assert_eq!(found.merged.as_deref(), Some(merged), "{input}");
            assert_eq!(found.path, input);
            assert!(!found.ambiguous, "{input}");
        }
    }

    proptest! {
        #[test]
        fn canonical_is_idempotent(path in "/([a-zA-Z0-9/.%;\\\\~ -]|%2[eEfF5]|%5[cC]|é|%[0-9a-fA-F]{2}){0,24}") {
            let once = canonical(&path);
            let twice = canonical(&once.path);
            prop_assert_eq!(&twice.path, &once.path);
            prop_assert!(once.path.starts_with('/'));
            prop_assert!(!has_dot_segment(&once.path));
        }

        #[test]
        fn encoding_an_unreserved_byte_changes_nothing(path in "/[a-z/]{0,12}", letter in "[a-zA-Z0-9~_-]") {
            let escaped = format!("{path}%{:02x}", letter.as_bytes()[0]);
            let plain = format!("{path}{letter}");
            prop_assert_eq!(canonical(&escaped).path, canonical(&plain).path);
        }
    }
}
