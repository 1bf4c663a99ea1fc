//! Header fields between edge and target: what belongs to the tunnel or to a connection stays here.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use tidegate_tunnel::handshake;

/// Fields of one connection (RFC 9110 §7.6.1), beside those that `Connection` names.
const OF_CONNECTION: [HeaderName; 5] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Removes everything that begins with `tidegate-tunnel-`.
pub(crate) fn strip_tunnel(headers: &mut HeaderMap) {
    let ours: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with(handshake::FIELD_PREFIX))
        .cloned()
        .collect();
    for name in ours {
        headers.remove(name);
    }
}

/// Removes the fields of the connection.
pub(crate) fn strip_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&OF_CONNECTION) {
        headers.remove(name);
    }
}

/// HTTP/2 may send cookies in pieces, HTTP/1 may not (RFC 9113 §8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let pieces: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    // Pieces that were field values are one together.
    if let Ok(cookie) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
        headers.insert(header::COOKIE, cookie);
    }
}

/// What the fields take in HTTP/2 (RFC 9113 §10.5.1).
pub(crate) fn size(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 32)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn fields_of_tunnel_and_connection_stay_here() {
        let mut headers = map(&[
            ("tidegate-tunnel-mapping", "1"),
            ("tidegate-tunnel-invented", "1"),
            ("x-forwarded-for", "192.0.2.1"),
            ("connection", "x-hop, keep-alive"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-connection", "close"),
        ]);
        strip_tunnel(&mut headers);
        strip_connection(&mut headers);
        assert_eq!(headers, map(&[("x-forwarded-for", "192.0.2.1")]));
    }

    #[test]
    fn cookies_become_one() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2"), ("accept", "x")]);
        join_cookies(&mut headers);
        assert_eq!(headers, map(&[("cookie", "a=1; b=2"), ("accept", "x")]));
        assert_eq!(size(&map(&[("ab", "c")])), 35);
    }
}
