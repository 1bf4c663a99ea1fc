//! Who the client is, and how the backend is told.
//!
//! Backends disagree on which entry of X-Forwarded-For counts (Torrust the rightmost, `PeerTube` the
//! leftmost), so each gets exactly one field with exactly one bare address. Addresses are canonical: an
//! IPv4 client of a dual-stack listener is never `::ffff:a.b.c.d`. What untrusted peers say about
//! themselves is dropped. Runs after the normaliser, so `Connection` cannot take these fields away again.

use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::normalize::Authority;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Fields by which CDNs and proxies name the client; no stranger may set them.
const CLIENT_CLAIMS: &[&str] = &[
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "client-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded-for",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-forwarded",
    "x-original-forwarded-for",
    "x-original-host",
    "x-original-url",
    "x-real-ip",
    "x-rewrite-url",
];

/// A client's address with the text that headers get. Made once per connection where that can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientAddress {
    ip: IpAddr,
    value: HeaderValue,
}

impl ClientAddress {
    /// Takes the canonical form of the address.
    pub(crate) fn new(ip: IpAddr) -> Self {
        let ip = ip.to_canonical();
        // Digits, dots, colons and hex letters: the conversion cannot fail.
        let value = HeaderValue::try_from(ip.to_string())
            .unwrap_or_else(|_| HeaderValue::from_static("0.0.0.0"));
        Self { ip, value }
    }

    /// The canonical address.
    pub(crate) const fn ip(&self) -> IpAddr {
        self.ip
    }
}

/// Whether the peer's word counts.
pub(crate) fn is_trusted(peer: IpAddr, trusted: &[IpNet]) -> bool {
    let peer = peer.to_canonical();
    trusted.iter().any(|net| net.contains(&peer))
}

/// The client behind the peer: the peer itself unless it is trusted, else the first address from the right
/// of X-Forwarded-For that is not trusted. An entry that is no address ends the search at the last good one.
pub(crate) fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.to_canonical();
    if !is_trusted(client, trusted) {
        return client;
    }
    let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
    for entry in lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')) {
        let Some(ip) = parse_entry(entry) else { break };
        client = ip;
        if !is_trusted(client, trusted) {
            break;
        }
    }
    client
}

/// An address; some load balancers add a port, which is cut.
fn parse_entry(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry.trim_ascii()).ok()?;
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    bare.unwrap_or(text)
        .parse::<IpAddr>()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()))
        .map(|ip| ip.to_canonical())
}

/// What the backend is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ForwardedFacts<'a> {
    /// The client.
    pub client: &'a ClientAddress,
    /// Whether the peer may speak for protocol, host and port.
    pub peer_trusted: bool,
    /// `http` or `https`, as the client connected.
    pub proto: &'static str,
    /// Authority as the client wrote it.
    pub host: &'a HeaderValue,
    /// Port that the client connected to.
    pub port: u16,
    /// Whether `Forwarded` (RFC 7239) is sent too.
    pub forwarded_header: bool,
}

/// Whether it says that the client came by HTTPS. Only a trusted peer may be asked.
pub(crate) fn says_https(headers: &HeaderMap) -> bool {
    Said::by_peer(headers)
        .proto
        .is_some_and(|proto| proto == "https")
}

/// Replaces everything the message says about its origin by what the edge knows.
pub(crate) fn apply(headers: &mut HeaderMap, facts: &ForwardedFacts<'_>) {
    let said = if facts.peer_trusted {
        Said::by_peer(headers)
    } else {
        drop_claims(headers);
        Said::default()
    };
    headers.remove(header::FORWARDED);
    // These and Host: growing once is cheaper than twice.
    headers.reserve(8);
    let proto = said
        .proto
        .unwrap_or_else(|| HeaderValue::from_static(facts.proto));
    let host = said.host.unwrap_or_else(|| facts.host.clone());
    let port = said.port.unwrap_or_else(|| port_value(facts.port));
    if facts.forwarded_header
        && let Some(value) = forwarded(facts.client, &proto, &host)
    {
        headers.insert(header::FORWARDED, value);
    }
    headers.insert(X_FORWARDED_FOR, facts.client.value.clone());
    headers.insert(X_REAL_IP, facts.client.value.clone());
    headers.insert(X_FORWARDED_PROTO, proto);
    headers.insert(X_FORWARDED_HOST, host);
    headers.insert(X_FORWARDED_PORT, port);
}

fn port_value(port: u16) -> HeaderValue {
    match port {
        443 => HeaderValue::from_static("443"),
        80 => HeaderValue::from_static("80"),
        other => HeaderValue::from(other),
    }
}

/// What a trusted peer said and what could be understood.
#[derive(Default)]
struct Said {
    proto: Option<HeaderValue>,
    host: Option<HeaderValue>,
    port: Option<HeaderValue>,
}

impl Said {
    fn by_peer(headers: &HeaderMap) -> Self {
        let proto = only(headers, &X_FORWARDED_PROTO).and_then(|text| {
            let known = ["https", "http"];
            let found = known.iter().find(|name| name.eq_ignore_ascii_case(text))?;
            Some(HeaderValue::from_static(found))
        });
        let host = only(headers, &X_FORWARDED_HOST)
            .filter(|text| Authority::parse(text).is_ok())
            .and_then(|text| HeaderValue::from_str(text).ok());
        let port = only(headers, &X_FORWARDED_PORT)
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse::<u16>().ok())
            .filter(|port| *port != 0)
            .map(port_value);
        Self { proto, host, port }
    }
}

/// The value of a field that stands there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut fields = headers.get_all(name).iter();
    let value = fields.next()?;
    if fields.next().is_some() {
        return None;
    }
    value.to_str().ok().map(str::trim)
}

fn drop_claims(headers: &mut HeaderMap) {
    // An empty Vec does not allocate, and honest clients send none of these.
    let claims: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_claim(name.as_str()))
        .cloned()
        .collect();
    for name in claims {
        headers.remove(&name);
    }
}

fn is_claim(name: &str) -> bool {
    // The first letter settles it for nearly every field of nearly every request.
    name.starts_with(['x', 'f', 'c', 't'])
        && (name.starts_with("x-forwarded-") || CLIENT_CLAIMS.contains(&name))
}

/// RFC 7239 §4; addresses with colons and hosts with ports need quotes.
fn forwarded(
    client: &ClientAddress,
    proto: &HeaderValue,
    host: &HeaderValue,
) -> Option<HeaderValue> {
    let node = match client.ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("\"[{ip}]\""),
    };
    let proto = proto.to_str().ok()?;
    let host = host.to_str().ok()?;
    let quote = if host.contains([':', '[']) { "\"" } else { "" };
    HeaderValue::try_from(format!(
        "for={node};host={quote}{host}{quote};proto={proto}"
    ))
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .fold(HeaderMap::new(), |mut map, (name, value)| {
                map.append(name, value);
                map
            })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn trusted() -> Vec<IpNet> {
        vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]
    }

    #[test]
    fn the_client_is_the_first_untrusted_address_from_the_right() {
        for (peer, lines, expected) in [
            ("203.0.113.7", &["1.1.1.1"] as &[&str], "203.0.113.7"),
            ("::ffff:203.0.113.7", &[], "203.0.113.7"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.7"], "203.0.113.7"),
            ("::ffff:10.0.0.1", &["203.0.113.7"], "203.0.113.7"),
            (
                "10.0.0.1",
                &["1.1.1.1, 203.0.113.7, 10.0.0.9"],
                "203.0.113.7",
            ),
            ("10.0.0.1", &["1.1.1.1", "203.0.113.7"], "203.0.113.7"),
            ("10.0.0.1", &["203.0.113.7", "fd00::1"], "203.0.113.7"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["1.1.1.1, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["1.1.1.1, "], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.7:4711"], "203.0.113.7"),
            ("10.0.0.1", &["[2001:db8::7]:4711"], "2001:db8::7"),
            ("10.0.0.1", &["[2001:db8::7]"], "2001:db8::7"),
            ("10.0.0.1", &["::ffff:203.0.113.7"], "203.0.113.7"),
            ("10.0.0.1", &["fe80::1%eth0"], "10.0.0.1"),
        ] {
            let fields: Vec<_> = lines
                .iter()
                .map(|line| ("x-forwarded-for", *line))
                .collect();
            let found = client_ip(ip(peer), &headers(&fields), &trusted());
            assert_eq!(found, ip(expected), "{peer} {lines:?}");
        }
    }

    fn facts<'a>(client: &'a ClientAddress, host: &'a HeaderValue) -> ForwardedFacts<'a> {
        ForwardedFacts {
            client,
            peer_trusted: false,
            proto: "https",
            host,
            port: 443,
            forwarded_header: false,
        }
    }

    const SPOOFED: &[(&str, &str)] = &[
        ("x-forwarded-for", "9.9.9.9"),
        ("x-forwarded-for", "8.8.8.8, 7.7.7.7"),
        ("x-real-ip", "9.9.9.9"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-port", "81"),
        ("x-forwarded-prefix", "/evil"),
        ("x-forwarded-user", "admin"),
        ("forwarded", "for=9.9.9.9"),
        ("true-client-ip", "9.9.9.9"),
        ("cf-connecting-ip", "9.9.9.9"),
        ("accept", "*/*"),
    ];

    #[test]
    fn a_stranger_cannot_say_who_he_is() {
        let client = ClientAddress::new(ip("::ffff:203.0.113.7"));
        let host = HeaderValue::from_static("app.example");
        let mut found = headers(SPOOFED);
        apply(&mut found, &facts(&client, &host));
        let expected = headers(&[
            ("accept", "*/*"),
            ("x-forwarded-for", "203.0.113.7"),
            ("x-real-ip", "203.0.113.7"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "app.example"),
            ("x-forwarded-port", "443"),
        ]);
        assert_eq!(found, expected);
    }

    #[test]
    fn a_trusted_peer_speaks_for_protocol_host_and_port() {
        let client = ClientAddress::new(ip("203.0.113.7"));
        let host = HeaderValue::from_static("inner.example");
        let trusted = ForwardedFacts {
            peer_trusted: true,
            ..facts(&client, &host)
        };
        let mut found = headers(&[
            ("x-forwarded-for", "203.0.113.7, 10.0.0.2"),
            ("x-forwarded-proto", "HTTP"),
            ("x-forwarded-host", "app.example:8443"),
            ("x-forwarded-port", "8443"),
            ("forwarded", "for=9.9.9.9"),
        ]);
        apply(&mut found, &trusted);
        let expected = headers(&[
            ("x-forwarded-for", "203.0.113.7"),
            ("x-real-ip", "203.0.113.7"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "app.example:8443"),
            ("x-forwarded-port", "8443"),
        ]);
        assert_eq!(found, expected);

        let mut found = headers(&[
            ("x-forwarded-proto", "https,http"),
            ("x-forwarded-host", "a@b"),
            ("x-forwarded-port", "0"),
        ]);
        apply(&mut found, &trusted);
        assert_eq!(found["x-forwarded-proto"], "https");
        assert_eq!(found["x-forwarded-host"], "inner.example");
        assert_eq!(found["x-forwarded-port"], "443");
    }

    #[test]
    fn forwarded_quotes_what_needs_quotes() {
        let client = ClientAddress::new(ip("2001:db8::7"));
        let host = HeaderValue::from_static("app.example:8443");
        let mut found = headers(SPOOFED);
        let facts = ForwardedFacts {
            forwarded_header: true,
            ..facts(&client, &host)
        };
        apply(&mut found, &facts);
        assert_eq!(
            found["forwarded"],
            "for=\"[2001:db8::7]\";host=\"app.example:8443\";proto=https"
        );
        assert_eq!(client.ip(), ip("2001:db8::7"));
    }
}
