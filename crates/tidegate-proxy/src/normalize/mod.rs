//! The one normaliser in front of routing: what a message head may say, and what of it is passed on.
//!
//! Refuses rather than repairs. Runs after hyper's codec and before anything decides on the request, so
//! that router, filters and backend read the same message. Must not look at routes and must not touch the
//! request target: path and query go through byte for byte.
//!
//! What hyper 1.12 and h2 0.4.20 have done before (each was read in their source, and the edge's wire
//! tests hold them to it): header names are tokens, values have no CR, LF, NUL, DEL; no obs-fold, no space
//! before the colon; `Transfer-Encoding` in HTTP/1.0 and one that does not end in `chunked` are refused;
//! of `Content-Length` beside `Transfer-Encoding` the length is dropped, the body is read as chunked and
//! the connection closes after it; equal `Content-Length` fields are merged, differing ones refused; a
//! fragment (`#…`) is cut from the target (but see `odd_query`); HTTP/2 requests with connection-specific
//! fields are reset.

mod authority;
mod hop_by_hop;
mod response;

pub(crate) use authority::{Authority, authority};
pub(crate) use hop_by_hop::{remove_tunnel, trailers};
pub(crate) use response::{Reuse, response, strip_connection_fields};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use tidegate_http1::parse_length;

/// Why a message is not served. An HTTP/1 connection is closed after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Status of the answer.
    pub status: StatusCode,
    /// For log and metrics, in `PascalCase`.
    pub reason: &'static str,
    /// For the client: what was wrong with the message.
    pub message: &'static str,
}

impl Refusal {
    pub(crate) const fn bad_request(reason: &'static str, message: &'static str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            reason,
            message,
        }
    }
}

/// What was taken out of a request's header and matters to the connection alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Normalized {
    /// The one protocol asked for by `Upgrade` (with `Connection: upgrade`) or by extended CONNECT.
    pub upgrade: Option<HeaderValue>,
    /// `TE: trailers`: the client takes trailers. gRPC backends insist on seeing it.
    pub trailers: bool,
    /// `Expect: 100-continue`. hyper answers it when the body is first asked for.
    pub expect_continue: bool,
    /// The body came chunked (HTTP/1.1). hyper's client sends the body of a GET or HEAD without a length
    /// only if the header says `Transfer-Encoding: chunked`, so the forwarder must set that again.
    pub chunked: bool,
}

/// Whether a name contains `_`, which CGI-like backends cannot tell from `-`.
fn has_underscore(name: &HeaderName) -> bool {
    name.as_str().as_bytes().contains(&b'_')
}

/// Checks a request's head and removes what must not be passed on: rules 3 to 6.
///
/// `limits` are header bytes, header fields and bytes of the request target.
pub(crate) fn request(
    parts: &mut http::request::Parts,
    limits: (usize, usize, usize),
) -> Result<Normalized, Refusal> {
    let (header_bytes, header_count, uri_bytes) = limits;
    target(&parts.uri, &parts.method, uri_bytes)?;
    let seen = Seen::scan(&parts.headers);
    if seen.underscore {
        return Err(Refusal::bad_request(
            "UnderscoreInHeader",
            "a header name contains an underscore, which some servers read as a hyphen",
        ));
    }
    if parts.headers.len() > header_count || seen.bytes > header_bytes {
        return Err(Refusal {
            status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            reason: "HeaderTooLarge",
            message: "the request header has too many fields or is too long",
        });
    }
    let headers = &mut parts.headers;
    let mut normalized = Normalized::default();
    if parts.method == Method::CONNECT {
        normalized.upgrade = Some(extended_connect(parts.version, &parts.extensions)?);
    }
    if seen.content_length {
        content_length(headers)?;
    }
    if seen.transfer_encoding {
        chunked(headers, parts.version)?;
        normalized.chunked = true;
    }
    if seen.expect {
        normalized.expect_continue = expect(headers)? && parts.version >= Version::HTTP_11;
    }
    if seen.te {
        normalized.trailers = names(headers, &header::TE, "trailers");
    }
    if seen.upgrade
        && parts.version == Version::HTTP_11
        && names(headers, &header::CONNECTION, "upgrade")
    {
        normalized.upgrade = upgrade(headers);
    }
    if seen.tunnel {
        remove_tunnel(headers);
    }
    if seen.cookies > 1 {
        join_cookies(headers);
    }
    if seen.hop_by_hop() {
        hop_by_hop::remove(headers, hop_by_hop::Message::Request)?;
    }
    Ok(normalized)
}

/// One pass over the names, so that the usual request pays for nothing else.
#[derive(Default)]
struct Seen {
    bytes: usize,
    cookies: usize,
    underscore: bool,
    tunnel: bool,
    connection: bool,
    content_length: bool,
    transfer_encoding: bool,
    te: bool,
    upgrade: bool,
    expect: bool,
    other_hop_by_hop: bool,
}

impl Seen {
    fn scan(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            seen.bytes += name.as_str().len() + value.len() + ": \r\n".len();
            match *name {
                header::COOKIE => seen.cookies += 1,
                header::CONNECTION => seen.connection = true,
                header::CONTENT_LENGTH => seen.content_length = true,
                header::TRANSFER_ENCODING => seen.transfer_encoding = true,
                header::TE => seen.te = true,
                header::UPGRADE => seen.upgrade = true,
                header::EXPECT => seen.expect = true,
                _ if hop_by_hop::is_connection_specific(name) => seen.other_hop_by_hop = true,
                _ => {
                    seen.underscore |= has_underscore(name);
                    seen.tunnel |= hop_by_hop::is_tunnel(name);
                }
            }
        }
        seen
    }

    fn hop_by_hop(&self) -> bool {
        self.connection
            || self.transfer_encoding
            || self.te
            || self.upgrade
            || self.expect
            || self.other_hop_by_hop
    }
}

/// Origin-form or absolute-form, `*` for OPTIONS, nothing else (RFC 9112 §3.2).
fn target(uri: &http::Uri, method: &Method, uri_bytes: usize) -> Result<(), Refusal> {
    let Some(path_and_query) = uri.path_and_query() else {
        // Authority-form is for CONNECT, which is refused with its own status below.
        return if method == Method::CONNECT {
            Ok(())
        } else {
            Err(Refusal::bad_request(
                "TargetForm",
                "the request target has no path",
            ))
        };
    };
    if path_and_query.as_str().len() > uri_bytes {
        return Err(Refusal {
            status: StatusCode::URI_TOO_LONG,
            reason: "TargetTooLong",
            message: "the request target is too long",
        });
    }
    let path = path_and_query.path();
    let fine = path.starts_with('/')
        || (path == "*" && method == Method::OPTIONS)
        || (method == Method::CONNECT && uri.scheme().is_none());
    if fine {
        Ok(())
    } else {
        Err(Refusal::bad_request(
            "TargetForm",
            "the path of the request target does not begin with a slash",
        ))
    }
}

/// CONNECT would make the edge a forward proxy. Extended CONNECT (RFC 8441) opens a WebSocket here.
fn extended_connect(
    version: Version,
    extensions: &http::Extensions,
) -> Result<HeaderValue, Refusal> {
    match extensions.get::<h2::ext::Protocol>() {
        Some(protocol) if version == Version::HTTP_2 => {
            if protocol.as_str().eq_ignore_ascii_case("websocket") {
                Ok(HeaderValue::from_static("websocket"))
            } else {
                Err(Refusal {
                    status: StatusCode::NOT_IMPLEMENTED,
                    reason: "ConnectProtocol",
                    message: "extended CONNECT is served for websocket only",
                })
            }
        }
        _ => Err(Refusal {
            status: StatusCode::METHOD_NOT_ALLOWED,
            reason: "Connect",
            message: "CONNECT is not served here",
        }),
    }
}

/// Rule 4: one field, `1*DIGIT`, at most 2^63-1. HTTP/1 fields were merged by hyper; HTTP/2 ones were not.
fn content_length(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut fields = headers.get_all(header::CONTENT_LENGTH).iter();
    match (fields.next(), fields.next()) {
        (Some(only), None) if parse_length(only.as_bytes()).is_some() => Ok(()),
        _ => Err(Refusal::bad_request(
            "ContentLength",
            "Content-Length is not one decimal number",
        )),
    }
}

/// Rule 3: exactly one field with exactly `chunked`, in HTTP/1.1, without a length beside it.
fn chunked(headers: &HeaderMap, version: Version) -> Result<(), Refusal> {
    let mut fields = headers.get_all(header::TRANSFER_ENCODING).iter();
    let (Some(first), None) = (fields.next(), fields.next()) else {
        return Err(Refusal::bad_request(
            "TransferEncoding",
            "Transfer-Encoding stands there more than once",
        ));
    };
    if version != Version::HTTP_11 || headers.contains_key(header::CONTENT_LENGTH) {
        return Err(Refusal::bad_request(
            "TransferEncoding",
            "Transfer-Encoding is not allowed in this request",
        ));
    }
    if first.as_bytes().eq_ignore_ascii_case(b"chunked") {
        Ok(())
    } else {
        Err(Refusal {
            status: StatusCode::NOT_IMPLEMENTED,
            reason: "TransferEncoding",
            message: "no transfer coding other than chunked is served",
        })
    }
}

/// RFC 9110 §10.1.1: the only expectation there is, or 417.
fn expect(headers: &HeaderMap) -> Result<bool, Refusal> {
    let all_known = headers
        .get_all(header::EXPECT)
        .iter()
        .all(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if all_known {
        Ok(true)
    } else {
        Err(Refusal {
            status: StatusCode::EXPECTATION_FAILED,
            reason: "Expectation",
            message: "Expect asks for something other than 100-continue",
        })
    }
}

/// Whether a list header contains the token.
fn names(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .flat_map(hop_by_hop::tokens)
        .any(|found| found.eq_ignore_ascii_case(token.as_bytes()))
}

/// The one protocol to change to: WebSocket if offered, else the first. h2c is never taken, because its
/// client goes on in HTTP/1.1 when the offer is ignored (RFC 9113 §3.1).
fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let offers = || {
        headers
            .get_all(header::UPGRADE)
            .iter()
            .flat_map(hop_by_hop::tokens)
            .filter(|token| !token.eq_ignore_ascii_case(b"h2c"))
    };
    if offers().any(|token| token.eq_ignore_ascii_case(b"websocket")) {
        return Some(HeaderValue::from_static("websocket"));
    }
    offers()
        .next()
        .and_then(|token| HeaderValue::from_bytes(token).ok())
}

/// HTTP/2 clients send cookies in crumbs; HTTP/1 backends must see one field (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut joined = Vec::new();
    for crumb in headers.get_all(header::COOKIE) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(mut value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        value.set_sensitive(true);
        headers.insert(header::COOKIE, value);
    }
}

#[cfg(test)]
mod tests;
