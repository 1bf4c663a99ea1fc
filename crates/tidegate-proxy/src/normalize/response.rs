//! Rule 7: backends are not believed either. Their framing is checked with the same grammar, and a
//! connection whose message could be read in two ways is not used again.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode, Version};
use tidegate_http1::parse_length;

use super::{Refusal, hop_by_hop};

/// Whether the backend's connection may carry another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// The message has one reading.
    Allowed,
    /// The connection must be closed after this response.
    Forbidden,
}

/// Checks a response's head and removes what belongs to the backend's connection.
///
/// The codec reads the body by the same rules: `Transfer-Encoding` wins over `Content-Length`; equal lengths
/// are one length. A 101 keeps its `Upgrade` field.
pub(crate) fn response(
    parts: &mut http::response::Parts,
    request_method: &Method,
) -> Result<Reuse, Refusal> {
    let headers = &mut parts.headers;
    let mut reuse = Reuse::Allowed;
    if headers.contains_key(header::TRANSFER_ENCODING) {
        chunked(headers, parts.version)?;
        if headers.remove(header::CONTENT_LENGTH).is_some() {
            reuse = Reuse::Forbidden;
        }
    }
    if headers.contains_key(header::CONTENT_LENGTH) {
        reuse = reuse.and(content_length(headers)?);
    }
    // RFC 9110 §8.6: these have no length. HEAD and 304 may state the length of what they stand for.
    if parts.status.is_informational()
        || parts.status == StatusCode::NO_CONTENT
        || (request_method == Method::CONNECT && parts.status.is_success())
    {
        headers.remove(header::CONTENT_LENGTH);
    }
    if headers.keys().any(hop_by_hop::is_connection_specific) {
        let switching = parts.status == StatusCode::SWITCHING_PROTOCOLS;
        hop_by_hop::remove(headers, hop_by_hop::Message::Response { switching })
            .map_err(|_| bad_gateway("the backend's Connection field names too many fields"))?;
    }
    Ok(reuse)
}

/// Removes what HTTP/2 has no place for (RFC 9113 §8.2.2), which a rule's filter may have set.
pub(crate) fn strip_connection_fields(headers: &mut HeaderMap) {
    if headers.keys().any(hop_by_hop::is_connection_specific) {
        let message = hop_by_hop::Message::Response { switching: false };
        // Fails before it has removed anything; the codec then refuses the response.
        let _ = hop_by_hop::remove(headers, message);
    }
}

impl Reuse {
    fn and(self, other: Self) -> Self {
        if self == Self::Forbidden { self } else { other }
    }
}

const fn bad_gateway(message: &'static str) -> Refusal {
    Refusal {
        status: StatusCode::BAD_GATEWAY,
        reason: "BackendFraming",
        message,
    }
}

fn chunked(headers: &HeaderMap, version: Version) -> Result<(), Refusal> {
    let mut fields = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (fields.next(), fields.next()) {
        (Some(only), None)
            if version == Version::HTTP_11 && only.as_bytes().eq_ignore_ascii_case(b"chunked") =>
        {
            Ok(())
        }
        _ => Err(bad_gateway(
            "the backend's Transfer-Encoding is not exactly chunked",
        )),
    }
}

/// One number; several equal ones become one and cost the connection.
fn content_length(headers: &mut HeaderMap) -> Result<Reuse, Refusal> {
    const INVALID: Refusal = bad_gateway("the backend's Content-Length is not one decimal number");
    let mut lengths = headers
        .get_all(header::CONTENT_LENGTH)
        .iter()
        .flat_map(|field| field.as_bytes().split(|byte| *byte == b','));
    let first = lengths
        .next()
        .and_then(|digits| parse_length(digits.trim_ascii()))
        .ok_or(INVALID)?;
    let mut several = false;
    for digits in lengths {
        several = true;
        if parse_length(digits.trim_ascii()) != Some(first) {
            return Err(INVALID);
        }
    }
    if !several {
        return Ok(Reuse::Allowed);
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(first));
    Ok(Reuse::Forbidden)
}
