//! Queries with bytes that a URI may not hold: `"`, `<`, `>`, and `#`, which begins a fragment (RFC 3986 §3.4).
//!
//! BitTorrent clients write raw hashes into the query, and trackers and other proxies take these bytes. The
//! codec of HTTP/1 requests refuses the first three and cuts at the fourth, so they are replaced before it sees
//! them, each by one other byte: the length of nothing changes, so where messages end is the codec's word alone.
//! What stood there goes beside the request ([`RawQuery`]) to the one rule that may want it. From then on the
//! request has the query with these bytes escaped, which reads the same.
//!
//! Looked at is only the first line after the connection was idle; in a request that is sent before the answer
//! to the one before, the codec has the last word (ADR 0038).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::Uri;
use http::uri::PathAndQuery;
use memchr::{memchr, memchr2, memchr3};

use crate::normalize::Refusal;

/// Any byte that a query may hold, which what came instead is told by.
const STAND_IN: u8 = b'!';

/// Queries are not kept beyond this; the codec refuses such targets.
const MAX_QUERY: usize = 1 << 16;

const INVALID: Refusal = Refusal::bad_request(
    "InvalidTarget",
    "the query has a character that must be percent-encoded",
);

const fn is_odd(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'#')
}

/// A query as the client wrote it, with odd bytes in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawQuery(String);

impl RawQuery {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the codec's query is this one with the odd bytes replaced.
    fn was(&self, query: &str) -> bool {
        self.0.len() == query.len()
            && self
                .0
                .bytes()
                .zip(query.bytes())
                .all(|(raw, seen)| raw == seen || (is_odd(raw) && seen == STAND_IN))
    }

    /// The query with the odd bytes escaped.
    pub(crate) fn escaped(&self) -> String {
        let mut escaped = String::with_capacity(self.0.len() + 16);
        for c in self.0.chars() {
            match c {
                '"' => escaped.push_str("%22"),
                '<' => escaped.push_str("%3C"),
                '>' => escaped.push_str("%3E"),
                '#' => escaped.push_str("%23"),
                other => escaped.push(other),
            }
        }
        escaped
    }

    /// The query for whom these bytes mean what RFC 3986 says: without the fragment, and refused if the rest
    /// is not allowed.
    pub(crate) fn strict(&self) -> Result<&str, Refusal> {
        let query = self.0.split('#').next().unwrap_or_default();
        if query.bytes().any(is_odd) {
            Err(INVALID)
        } else {
            Ok(query)
        }
    }
}

/// The same target with another query.
pub(crate) fn with_query(uri: &Uri, query: &str) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    let target = format!("{}?{query}", uri.path());
    parts.path_and_query = Some(PathAndQuery::from_maybe_shared(Bytes::from(target)).ok()?);
    Uri::from_parts(parts).ok()
}

/// What was replaced in the head that is being read, on its way from the bytes to the request.
#[derive(Debug, Default)]
pub(crate) struct OddQueries {
    any: AtomicBool,
    query: Mutex<Option<RawQuery>>,
}

impl OddQueries {
    fn set(&self, query: Option<RawQuery>) {
        self.any.store(query.is_some(), Ordering::Relaxed);
        *self.query.lock().unwrap_or_else(PoisonError::into_inner) = query;
    }

    /// The query of the request with this target, if something in it was replaced.
    pub(crate) fn take(&self, uri: &Uri) -> Option<RawQuery> {
        if !self.any.swap(false, Ordering::Relaxed) {
            return None;
        }
        let query = self
            .query
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        query.filter(|raw| uri.query().is_some_and(|query| raw.was(query)))
    }
}

/// Where in a request line the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Begin,
    Method,
    Path,
    Query,
    /// Behind the target.
    Done,
}

/// Replaces odd bytes in the queries of request lines as they are read.
#[derive(Debug)]
pub(crate) struct RequestLines {
    place: Place,
    /// What came of a query that is not whole yet, or has odd bytes.
    query: Vec<u8>,
    odd: bool,
    found: Arc<OddQueries>,
}

impl RequestLines {
    pub(crate) fn new(found: Arc<OddQueries>) -> Self {
        Self {
            place: Place::Begin,
            query: Vec::new(),
            odd: false,
            found,
        }
    }

    /// What is read next is the begin of a head.
    pub(crate) fn begin(&mut self) {
        self.place = Place::Begin;
        self.query = Vec::new();
        if self.odd {
            self.odd = false;
            self.found.set(None);
        }
    }

    /// Bytes were read. Changes some of them, but never how many they are.
    pub(crate) fn read(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        if self.place == Place::Begin {
            let is_line_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
            let Some(start) = bytes.iter().position(|byte| !is_line_end(byte)) else {
                return;
            };
            at = start;
            self.place = Place::Method;
        }
        if self.place == Place::Method {
            let Some(end) = memchr2(b' ', b'\n', &bytes[at..]) else {
                return;
            };
            at += end;
            self.place = if bytes[at] == b' ' {
                Place::Path
            } else {
                Place::Done
            };
            at += 1;
        }
        if self.place == Place::Path {
            // A fragment behind the path is the codec's.
            let Some(end) = bytes[at..]
                .iter()
                .position(|byte| matches!(byte, b'?' | b' ' | b'\n' | b'#'))
            else {
                return;
            };
            at += end;
            self.place = if bytes[at] == b'?' {
                Place::Query
            } else {
                Place::Done
            };
            at += 1;
        }
        if self.place == Place::Query {
            let end = memchr2(b' ', b'\n', &bytes[at..]);
            let piece = at..end.map_or(bytes.len(), |end| at + end);
            self.piece(&mut bytes[piece], end.is_some());
        }
    }

    fn piece(&mut self, piece: &mut [u8], last: bool) {
        let odd = memchr3(b'"', b'<', b'>', piece).is_some() || memchr(b'#', piece).is_some();
        if last {
            self.place = Place::Done;
        }
        if !odd && !self.odd && last {
            // The usual one: nothing was kept, or what was kept is of no use.
            self.query = Vec::new();
            return;
        }
        if self.query.len() + piece.len() > MAX_QUERY {
            self.place = Place::Done;
            return;
        }
        self.query.extend_from_slice(piece);
        if odd {
            self.odd = true;
            for byte in piece {
                if is_odd(*byte) {
                    *byte = STAND_IN;
                }
            }
        }
        if last {
            // What is no UTF-8 the codec refuses.
            let query = String::from_utf8(std::mem::take(&mut self.query)).ok();
            self.found.set(query.map(RawQuery));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the head in pieces; what the codec sees, and what was kept.
    fn read(head: &str, size: usize) -> (String, Option<RawQuery>) {
        let found = Arc::new(OddQueries::default());
        let mut lines = RequestLines::new(Arc::clone(&found));
        // A request before it, so that nothing is left of that one.
        let mut before = b"GET /?\"# HTTP/1.1\r\n\r\n".to_vec();
        lines.read(&mut before);
        lines.begin();
        let mut seen = head.as_bytes().to_vec();
        for piece in seen.chunks_mut(size) {
            lines.read(piece);
        }
        let seen = String::from_utf8(seen).unwrap();
        let uri = seen
            .trim_start()
            .split(' ')
            .nth(1)
            .and_then(|target| target.parse().ok());
        let raw = uri.and_then(|uri| found.take(&uri));
        (seen, raw)
    }

    #[test]
    fn only_queries_of_request_lines_change_however_they_are_cut() {
        for (head, seen, raw) in [
            (
                "GET /a?x=\"<1>#&y HTTP/1.1\r\nA: \"<>#\r\n\r\n",
                "GET /a?x=!!1!!&y HTTP/1.1\r\nA: \"<>#\r\n\r\n",
                Some("x=\"<1>#&y"),
            ),
            (
                "\r\n\r\nGET /?\" HTTP/1.1\r\n",
                "\r\n\r\nGET /?! HTTP/1.1\r\n",
                Some("\""),
            ),
            (
                "GET http://h/a?!\"!? HTTP/1.0\r\n",
                "GET http://h/a?!!!? HTTP/1.0\r\n",
                Some("!\"!?"),
            ),
            (
                "GET /a#\"?\"<x> HTTP/1.1\r\n",
                "GET /a#\"?\"<x> HTTP/1.1\r\n",
                None,
            ),
            (
                "GET /<a>\"?x HTTP/1.1\r\n",
                "GET /<a>\"?x HTTP/1.1\r\n",
                None,
            ),
            (
                "GET /a?plain=%22 HTTP/1.1\r\nReferer: /?\"\r\n\r\n\"<",
                "GET /a?plain=%22 HTTP/1.1\r\nReferer: /?\"\r\n\r\n\"<",
                None,
            ),
            ("GET\r\n/?\" x\r\n", "GET\r\n/?\" x\r\n", None),
            ("\"?\"", "\"?\"", None),
            ("", "", None),
        ] {
            for size in [1, 2, 5, 1000] {
                let (found, kept) = read(head, size);
                assert_eq!(found, seen, "pieces of {size}");
                assert_eq!(
                    kept.as_ref().map(RawQuery::as_str),
                    raw,
                    "{head} in pieces of {size}"
                );
            }
        }
    }

    #[test]
    fn another_request_does_not_get_the_query() {
        let found = OddQueries::default();
        for (uri, gets) in [
            ("/?a!b", true),
            ("/?a!c", false),
            ("/?a\u{e4}b", false),
            ("/?a", false),
            ("/", false),
            ("/?axb", false),
        ] {
            found.set(Some(RawQuery("a\"b".to_owned())));
            let uri: Uri = uri.parse().unwrap();
            assert_eq!(found.take(&uri).is_some(), gets, "{uri}");
            assert_eq!(found.take(&uri), None, "taken once");
        }
    }

    #[test]
    fn a_raw_query_is_escaped_or_cut_or_refused() {
        let raw = |text: &str| RawQuery(text.to_owned());
        assert_eq!(raw("a=\"<>#%0e\u{e4}").escaped(), "a=%22%3C%3E%23%0e\u{e4}");
        assert_eq!(raw("a=1#\"").strict(), Ok("a=1"));
        assert_eq!(raw("a=\"#").strict(), Err(INVALID));
        let uri: Uri = "http://h:1/a?b!c".parse().unwrap();
        assert_eq!(with_query(&uri, "b%22c").unwrap(), "http://h:1/a?b%22c");
    }

    /// Random bytes in random pieces, with heads in between: the length stays, and so does everything that is
    /// not replaced.
    #[test]
    fn no_bytes_change_but_odd_ones() {
        let mut rng = fastrand::Rng::with_seed(38);
        let alphabet = b"GET /?a=&\"<># \r\nHTTP/1.1\xFF\xC3\xA4";
        for _ in 0..20_000 {
            let found = Arc::new(OddQueries::default());
            let mut lines = RequestLines::new(Arc::clone(&found));
            let before: Vec<u8> = (0..rng.usize(0..60))
                .map(|_| alphabet[rng.usize(..alphabet.len())])
                .collect();
            let mut after = before.clone();
            for piece in after.chunks_mut(rng.usize(1..20)) {
                if rng.u8(..10) == 0 {
                    lines.begin();
                }
                lines.read(piece);
            }
            for (before, after) in before.iter().zip(&after) {
                assert!(before == after || (is_odd(*before) && *after == STAND_IN));
            }
        }
    }
}
