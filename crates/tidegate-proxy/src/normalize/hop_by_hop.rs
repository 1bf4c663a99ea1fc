//! Fields that belong to one connection and never go further: rules 5 and 9.
//!
//! `Connection` may name further ones, but never those that others rely on for framing, identity or
//! authorization; a client could otherwise strip what a trusted proxy in front of the edge has set.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use tidegate_tunnel::handshake::FIELD_PREFIX;

use super::{Refusal, has_underscore};

/// Tokens that `Connection` may list; honest peers send one to three.
const MAX_CONNECTION_TOKENS: usize = 64;

/// Which kind of message is cleaned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    Request,
    /// The answer 101 keeps `Upgrade`, which is its meaning.
    Response {
        switching: bool,
    },
}

/// Comma-separated tokens without the white space around them; empty ones are skipped.
pub(super) fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value
        .as_bytes()
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

/// Whether a field belongs to the connection by its own name.
pub(super) fn is_connection_specific(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONNECTION
            | header::TE
            | header::TRAILER
            | header::TRANSFER_ENCODING
            | header::UPGRADE
    ) || matches!(name.as_str(), "keep-alive" | "http2-settings")
        || name.as_str().starts_with("proxy-")
}

/// Whether only the edge may say this, to an agent, or an agent to the edge.
pub(super) fn is_tunnel(name: &HeaderName) -> bool {
    name.as_str().starts_with(FIELD_PREFIX)
}

/// Removes what visitors cannot say. An agent would take it for the edge's word.
pub(crate) fn remove_tunnel(headers: &mut HeaderMap) {
    while let Some(name) = headers.keys().find(|name| is_tunnel(name)).cloned() {
        headers.remove(name);
    }
}

/// Names that `Connection` cannot take away.
fn is_protected(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "authorization",
        "cookie",
        "forwarded",
        "host",
        "location",
        "origin",
        "set-cookie",
        "strict-transport-security",
        "www-authenticate",
        "x-real-ip",
        "x-request-id",
    ];
    const PREFIXES: &[&str] = &["content-", "x-forwarded-", "sec-", "access-control-"];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Removes connection-specific fields, those that `Connection` names, and `Expect`.
pub(super) fn remove(headers: &mut HeaderMap, message: Message) -> Result<(), Refusal> {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(tokens)
        .take(MAX_CONNECTION_TOKENS + 1)
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .collect();
    if named.len() > MAX_CONNECTION_TOKENS {
        return Err(Refusal::bad_request(
            "Connection",
            "Connection names too many fields",
        ));
    }
    let switching = message == Message::Response { switching: true };
    for name in named {
        let kept = is_protected(name.as_str()) || (switching && name == header::UPGRADE);
        if !kept {
            headers.remove(&name);
        }
    }
    headers.remove(header::CONNECTION);
    headers.remove(header::TE);
    headers.remove(header::TRAILER);
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::EXPECT);
    headers.remove("keep-alive");
    headers.remove("http2-settings");
    if !switching {
        headers.remove(header::UPGRADE);
    }
    let proxy: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("proxy-"))
        .cloned()
        .collect();
    for name in proxy {
        headers.remove(&name);
    }
    Ok(())
}

/// Removes from trailers what may not stand there (RFC 9110 §6.5.1): framing, routing, authentication,
/// request modifiers, response control and anything that says who the client is.
pub(crate) fn trailers(trailers: &mut HeaderMap) {
    if trailers.keys().all(is_allowed_trailer) {
        return;
    }
    let refused: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| !is_allowed_trailer(name))
        .cloned()
        .collect();
    for name in refused {
        trailers.remove(&name);
    }
}

fn is_allowed_trailer(name: &HeaderName) -> bool {
    const NAMES: &[&str] = &[
        "age",
        "allow",
        "cache-control",
        "date",
        "expect",
        "expires",
        "max-forwards",
        "pragma",
        "range",
        "retry-after",
        "vary",
        "warning",
    ];
    let text = name.as_str();
    !(is_connection_specific(name)
        || is_protected(text)
        || has_underscore(name)
        || is_tunnel(name)
        || text.starts_with("if-")
        || NAMES.contains(&text))
}
