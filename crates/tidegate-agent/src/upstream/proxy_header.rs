//! The PROXY protocol towards targets that expect it: who the visitor is, in front of everything else.

use std::net::{IpAddr, SocketAddr};

use tidegate_model::ProxyProtocolVersion;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The visitor, and the address of the edge that it came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Visitor {
    pub(crate) client: SocketAddr,
    pub(crate) local: SocketAddr,
}

/// What is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carried {
    Stream,
    Datagrams,
}

/// The header; without a visitor it says that the agent speaks for itself.
pub(crate) fn encode(
    version: ProxyProtocolVersion,
    carried: Carried,
    visitor: Option<Visitor>,
) -> Vec<u8> {
    let visitor = visitor.map(one_family);
    match (version, visitor) {
        (ProxyProtocolVersion::V1, None) => b"PROXY UNKNOWN\r\n".to_vec(),
        (ProxyProtocolVersion::V1, Some(Visitor { client, local })) => {
            let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (client.ip(), local.ip());
            format!(
                "PROXY {family} {from} {to} {} {}\r\n",
                client.port(),
                local.port()
            )
            .into_bytes()
        }
        (ProxyProtocolVersion::V2, None) => [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat(),
        (ProxyProtocolVersion::V2, Some(Visitor { client, local })) => {
            let kind = match carried {
                Carried::Stream => 1,
                Carried::Datagrams => 2,
            };
            let (family, length) = if client.is_ipv4() {
                (0x10, 12)
            } else {
                (0x20, 36)
            };
            let mut header = SIGNATURE.to_vec();
            header.extend_from_slice(&[0x21, family | kind, 0, length]);
            for address in [client, local] {
                match address.ip() {
                    IpAddr::V4(ip) => header.extend_from_slice(&ip.octets()),
                    IpAddr::V6(ip) => header.extend_from_slice(&ip.octets()),
                }
            }
            header.extend_from_slice(&client.port().to_be_bytes());
            header.extend_from_slice(&local.port().to_be_bytes());
            header
        }
    }
}

/// A header has one kind of address: IPv4 if both are, else IPv6.
fn one_family(Visitor { client, local }: Visitor) -> Visitor {
    let canonical = |it: SocketAddr| SocketAddr::new(it.ip().to_canonical(), it.port());
    let (client, local) = (canonical(client), canonical(local));
    if client.is_ipv4() == local.is_ipv4() {
        return Visitor { client, local };
    }
    let mapped = |it: SocketAddr| match it.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), it.port()),
        IpAddr::V6(_) => it,
    };
    Visitor {
        client: mapped(client),
        local: mapped(local),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ProxyProtocolVersion::{V1, V2};

    #[test]
    fn headers_are_those_of_the_specification() {
        let visitor = |client: &str, local: &str| {
            Some(Visitor {
                client: client.parse().unwrap(),
                local: local.parse().unwrap(),
            })
        };
        let four = visitor("203.0.113.7:56324", "[::ffff:10.0.0.1]:443");
        let text = |visitor| String::from_utf8(encode(V1, Carried::Stream, visitor)).unwrap();
        assert_eq!(text(four), "PROXY TCP4 203.0.113.7 10.0.0.1 56324 443\r\n");
        let mixed = visitor("203.0.113.7:1", "[2001:db8::1]:2");
        assert_eq!(
            text(mixed),
            "PROXY TCP6 ::ffff:203.0.113.7 2001:db8::1 1 2\r\n"
        );
        assert_eq!(text(None), "PROXY UNKNOWN\r\n");
        let bytes = encode(V2, Carried::Stream, four);
        assert_eq!(bytes[12..16], [0x21, 0x11, 0, 12]);
        assert_eq!(bytes[16..], [203, 0, 113, 7, 10, 0, 0, 1, 220, 4, 1, 187]);
        assert_eq!(encode(V2, Carried::Datagrams, four)[13], 0x12);
        let bytes = encode(V2, Carried::Datagrams, mixed);
        assert_eq!((bytes[13], bytes.len()), (0x22, 52));
        assert_eq!(encode(V2, Carried::Stream, None)[12..], [0x20, 0, 0, 0]);
    }
}
