//! Which content coding a client takes (RFC 9110 §12.5.3). Used by compression and by static files.

use http::HeaderMap;
use http::header;

use crate::respond::weighted;

/// The coding with the highest weight among the offers, which come in the server's order of preference.
/// None if the client takes none of them or prefers the plain representation.
pub(crate) fn choose<T: Copy>(headers: &HeaderMap, offers: &[(&str, T)]) -> Option<T> {
    let mut best: Option<(u16, T)> = None;
    let identity = weight_of(headers, "identity").unwrap_or(0);
    for (name, offer) in offers {
        let weight = weight_of(headers, name)
            .or_else(|| weight_of(headers, "*"))
            .unwrap_or(0);
        if weight > 0 && weight >= identity && best.is_none_or(|(found, _)| weight > found) {
            best = Some((weight, *offer));
        }
    }
    best.map(|(_, offer)| offer)
}

/// The weight that the client gives to a coding, if it names it.
fn weight_of(headers: &HeaderMap, coding: &str) -> Option<u16> {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(weighted)
        .find_map(|(name, weight)| {
            // RFC 9110 §8.4.1.3: x-gzip is gzip.
            let name = name.strip_prefix("x-").unwrap_or(name);
            name.eq_ignore_ascii_case(coding).then_some(weight)
        })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_highest_weight_wins_then_the_servers_order() {
        for (accept, expected) in [
            (None, None),
            (Some(""), None),
            (Some("gzip, deflate, br, zstd"), Some("zstd")),
            (Some("gzip"), Some("gzip")),
            (Some("x-gzip"), Some("gzip")),
            (Some("GZIP"), Some("gzip")),
            (Some("gzip;q=1.0, br;q=0.5"), Some("gzip")),
            (Some("gzip;q=0, br;q=0"), None),
            (Some("*"), Some("zstd")),
            (Some("*;q=0.5, gzip;q=0.6"), Some("gzip")),
            (Some("zstd;q=0, *"), Some("br")),
            (Some("identity, gzip;q=0.5"), None),
            (Some("deflate"), None),
            (Some("gzip;q=nonsense"), None),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(accept.map(|text| {
                (
                    header::ACCEPT_ENCODING,
                    HeaderValue::from_str(text).unwrap(),
                )
            }));
            let offers = [("zstd", "zstd"), ("br", "br"), ("gzip", "gzip")];
            assert_eq!(choose(&headers, &offers), expected, "{accept:?}");
        }
    }
}
