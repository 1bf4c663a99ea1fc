//! HAProxy's PROXY protocol, versions 1 and 2: how a load balancer says who the client is.
//!
//! Parses from whatever has arrived so far, so that the caller can read on; never reads more than a header.
//! Only called for peers that are trusted to say this. A header that is not exactly as specified is an
//! error: guessing would let a client choose its address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tidegate_model::ProxyProtocolVersion;

/// Every version 2 header begins so, and no other protocol does.
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;
/// With all TLVs; real headers are below 1 KiB (a client certificate's name, a VPC endpoint).
const V2_LONGEST: usize = 4096;
const V1_PREFIX: &[u8; 6] = b"PROXY ";
/// Including CR LF, specification §2.1.
const V1_LONGEST: usize = 107;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// They could become a header; more is needed.
    Incomplete,
    /// A client behind a proxy. Addresses are canonical.
    Header {
        /// The client.
        source: SocketAddr,
        /// Where it connected to.
        destination: SocketAddr,
        /// Bytes of the header.
        len: usize,
    },
    /// The proxy speaks for itself (health checks) or cannot say who the client is.
    Local {
        /// Bytes of the header.
        len: usize,
    },
    /// Something else.
    NotProxy,
}

/// Why a header is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProxyHeaderError {
    /// Longer than any honest one.
    #[error("the PROXY header is too long")]
    TooLong,
    /// Not the text that version 1 prescribes.
    #[error("the PROXY header of version 1 is malformed")]
    Text,
    /// Version, command or protocol that version 2 does not define or TCP cannot have.
    #[error(
        "the PROXY header has the version and command {command:#04x} with protocol {protocol:#04x}, which is not supported"
    )]
    Unsupported {
        /// 13th byte.
        command: u8,
        /// 14th byte.
        protocol: u8,
    },
    /// Addresses or TLVs do not fit into the length.
    #[error("the PROXY header of version 2 is shorter than what it announces")]
    Truncated,
}

/// Whether a connection that begins so begins with a PROXY header.
pub(crate) fn begins(bytes: &[u8]) -> bool {
    bytes.starts_with(V2_SIGNATURE) || bytes.starts_with(V1_PREFIX)
}

/// Looks at the first bytes of a connection.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, ProxyHeaderError> {
    if bytes.starts_with(V2_SIGNATURE) {
        return parse_v2(bytes);
    }
    if bytes.starts_with(V1_PREFIX) {
        return parse_v1(bytes);
    }
    if V2_SIGNATURE.starts_with(bytes) || V1_PREFIX.starts_with(bytes) {
        return Ok(Parsed::Incomplete);
    }
    Ok(Parsed::NotProxy)
}

fn parse_v1(bytes: &[u8]) -> Result<Parsed, ProxyHeaderError> {
    let window = &bytes[..bytes.len().min(V1_LONGEST)];
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        return if window.len() == V1_LONGEST {
            Err(ProxyHeaderError::TooLong)
        } else {
            Ok(Parsed::Incomplete)
        };
    };
    let len = end + 1;
    let line = std::str::from_utf8(&window[V1_PREFIX.len()..end])
        .ok()
        .and_then(|line| line.strip_suffix('\r'))
        .ok_or(ProxyHeaderError::Text)?;
    let mut words = line.split(' ');
    let family = words.next();
    if family == Some("UNKNOWN") {
        return Ok(Parsed::Local { len });
    }
    let mut address = || {
        let ip: IpAddr = words.next()?.parse().ok()?;
        let wanted = if ip.is_ipv4() { "TCP4" } else { "TCP6" };
        (family == Some(wanted)).then_some(ip)
    };
    let ips = address().zip(address());
    let mut port = || {
        let digits = words.next()?;
        let fine = digits.bytes().all(|byte| byte.is_ascii_digit());
        fine.then(|| digits.parse().ok()).flatten()
    };
    let ports: Option<(u16, u16)> = port().zip(port());
    match (ips, ports, words.next()) {
        (Some((source, destination)), Some((source_port, destination_port)), None) => {
            Ok(Parsed::Header {
                source: canonical(source, source_port),
                destination: canonical(destination, destination_port),
                len,
            })
        }
        _ => Err(ProxyHeaderError::Text),
    }
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, ProxyHeaderError> {
    let Some(fixed) = bytes.first_chunk::<V2_FIXED>() else {
        return Ok(Parsed::Incomplete);
    };
    let [.., command, protocol, high, low] = *fixed;
    let unsupported = ProxyHeaderError::Unsupported { command, protocol };
    if !matches!(command, 0x20 | 0x21) {
        return Err(unsupported);
    }
    let len = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    if len > V2_LONGEST {
        return Err(ProxyHeaderError::TooLong);
    }
    let Some(payload) = bytes.get(V2_FIXED..len) else {
        return Ok(Parsed::Incomplete);
    };
    if command == 0x20 {
        return Ok(Parsed::Local { len });
    }
    let (source, destination, tlvs) = match protocol {
        // Unspecified, and Unix sockets of either kind.
        0x00 | 0x31 | 0x32 => return Ok(Parsed::Local { len }),
        0x11 => addresses::<4>(payload).ok_or(ProxyHeaderError::Truncated)?,
        0x21 => addresses::<16>(payload).ok_or(ProxyHeaderError::Truncated)?,
        _ => return Err(unsupported),
    };
    check_tlvs(tlvs)?;
    Ok(Parsed::Header {
        source,
        destination,
        len,
    })
}

/// Two addresses of N bytes, two ports, and what follows.
fn addresses<const N: usize>(payload: &[u8]) -> Option<(SocketAddr, SocketAddr, &[u8])>
where
    [u8; N]: IntoIp,
{
    let (source, rest) = payload.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let (destination_port, rest) = rest.split_first_chunk::<2>()?;
    Some((
        canonical(source.into_ip(), u16::from_be_bytes(*source_port)),
        canonical(destination.into_ip(), u16::from_be_bytes(*destination_port)),
        rest,
    ))
}

trait IntoIp {
    fn into_ip(self) -> IpAddr;
}

impl IntoIp for [u8; 4] {
    fn into_ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }
}

impl IntoIp for [u8; 16] {
    fn into_ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }
}

/// Type, length and value, one after the other, exactly to the end. Their content is of no use here.
fn check_tlvs(mut tlvs: &[u8]) -> Result<(), ProxyHeaderError> {
    while !tlvs.is_empty() {
        let Some(([_, high, low], rest)) = tlvs.split_first_chunk::<3>() else {
            return Err(ProxyHeaderError::Truncated);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        tlvs = rest.get(length..).ok_or(ProxyHeaderError::Truncated)?;
    }
    Ok(())
}

fn canonical(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip.to_canonical(), port)
}

/// A header for a backend: the client and the address it connected to, or none for the edge's own
/// connections (health checks).
pub(crate) fn encode(
    version: ProxyProtocolVersion,
    addresses: Option<(SocketAddr, SocketAddr)>,
) -> Vec<u8> {
    match (version, addresses.map(one_family)) {
        (ProxyProtocolVersion::V1, None) => b"PROXY UNKNOWN\r\n".to_vec(),
        (ProxyProtocolVersion::V1, Some((source, destination))) => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            format!(
                "PROXY {family} {} {} {} {}\r\n",
                source.ip(),
                destination.ip(),
                source.port(),
                destination.port()
            )
            .into_bytes()
        }
        (ProxyProtocolVersion::V2, addresses) => encode_v2(addresses),
    }
}

fn encode_v2(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let mut header = Vec::with_capacity(V2_FIXED + 36);
    header.extend_from_slice(V2_SIGNATURE);
    let Some((source, destination)) = addresses else {
        header.extend_from_slice(&[0x20, 0x00, 0, 0]);
        return header;
    };
    let (protocol, length) = if source.is_ipv4() {
        (0x11, 12)
    } else {
        (0x21, 36)
    };
    header.extend_from_slice(&[0x21, protocol, 0, length]);
    for address in [source, destination] {
        match address.ip() {
            IpAddr::V4(ip) => header.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => header.extend_from_slice(&ip.octets()),
        }
    }
    for address in [source, destination] {
        header.extend_from_slice(&address.port().to_be_bytes());
    }
    header
}

/// Both addresses in one family, since a header has only one: IPv4 if both are, else IPv6.
fn one_family((source, destination): (SocketAddr, SocketAddr)) -> (SocketAddr, SocketAddr) {
    let source = canonical(source.ip(), source.port());
    let destination = canonical(destination.ip(), destination.port());
    if source.is_ipv4() == destination.is_ipv4() {
        return (source, destination);
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    (mapped(source), mapped(destination))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[allow(
        clippy::unnecessary_wraps,
        reason = "stands beside errors in the tables"
    )]
    fn header(source: &str, destination: &str, len: usize) -> Result<Parsed, ProxyHeaderError> {
        Ok(Parsed::Header {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            len,
        })
    }

    #[track_caller]
    fn check_v1(text: &str, expected: Result<Parsed, ProxyHeaderError>) {
        assert_eq!(parse(text.as_bytes()), expected, "{text:?}");
        let with_data = format!("{text}GET / HTTP/1.1\r\n");
        assert_eq!(parse(with_data.as_bytes()), expected, "{text:?} with data");
    }

    #[test]
    fn version_1_is_text() {
        check_v1(
            "PROXY TCP4 203.0.113.7 10.0.0.1 56324 443\r\n",
            header("203.0.113.7:56324", "10.0.0.1:443", 43),
        );
        check_v1(
            "PROXY TCP6 2001:db8::7 ::1 56324 443\r\n",
            header("[2001:db8::7]:56324", "[::1]:443", 38),
        );
        check_v1(
            "PROXY TCP6 ::ffff:203.0.113.7 ::ffff:10.0.0.1 1 2\r\n",
            header("203.0.113.7:1", "10.0.0.1:2", 51),
        );
        check_v1("PROXY UNKNOWN\r\n", Ok(Parsed::Local { len: 15 }));
        check_v1(
            "PROXY UNKNOWN ffff:: ffff:: 1 2\r\n",
            Ok(Parsed::Local { len: 33 }),
        );
        for bad in [
            "PROXY \r\n",
            "PROXY TCP4\r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 56324\r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 56324 443 1\r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 56324 443 \r\n",
            "PROXY TCP4  203.0.113.7 10.0.0.1 56324 443\r\n",
            "PROXY TCP4 2001:db8::7 ::1 56324 443\r\n",
            "PROXY TCP6 203.0.113.7 10.0.0.1 56324 443\r\n",
            "PROXY TCP4 203.0.113.7 ::1 56324 443\r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 +5 443\r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 65536 443\r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 1 443\n",
            "PROXY UDP4 203.0.113.7 10.0.0.1 1 443\r\n",
            "PROXY tcp4 203.0.113.7 10.0.0.1 1 443\r\n",
            "PROXY TCP4 203.0.113.7\t10.0.0.1 1 443\r\n",
        ] {
            check_v1(bad, Err(ProxyHeaderError::Text));
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(200));
        check_v1(&endless, Err(ProxyHeaderError::TooLong));
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(91));
        check_v1(&longest, Ok(Parsed::Local { len: 107 }));
    }

    fn v2(command: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [
            V2_SIGNATURE.as_slice(),
            &[command, protocol],
            &length,
            payload,
        ]
        .concat()
    }

    const V4: [u8; 12] = [203, 0, 113, 7, 10, 0, 0, 1, 0xdc, 0x04, 0x01, 0xbb];

    #[test]
    fn version_2_is_binary() {
        let with = |tlvs: &[u8]| parse(&v2(0x21, 0x11, &[&V4, tlvs].concat()));
        assert_eq!(with(&[]), header("203.0.113.7:56324", "10.0.0.1:443", 28));
        assert_eq!(
            with(&[4, 0, 2, 9, 9]),
            header("203.0.113.7:56324", "10.0.0.1:443", 33)
        );
        assert_eq!(
            with(&[4, 0, 0, 5, 0, 0]),
            header("203.0.113.7:56324", "10.0.0.1:443", 34)
        );
        for overrun in [
            &[4_u8] as &[u8],
            &[4, 0],
            &[4, 0, 1],
            &[4, 0xff, 0xff, 1],
            &[4, 0, 0, 1],
        ] {
            assert_eq!(
                with(overrun),
                Err(ProxyHeaderError::Truncated),
                "{overrun:?}"
            );
        }
        let largest = [&[4, 0x0f, 0xe1][..], &vec![0; 0x0fe1]].concat();
        assert_eq!(
            with(&largest),
            header("203.0.113.7:56324", "10.0.0.1:443", 4096)
        );
        assert_eq!(with(&vec![0; 4069]), Err(ProxyHeaderError::TooLong));
        // The length alone is enough to refuse: 65 KB are never waited for.
        let announced = [V2_SIGNATURE.as_slice(), &[0x21, 0x11, 0xff, 0xff]].concat();
        assert_eq!(parse(&announced), Err(ProxyHeaderError::TooLong));

        let mut v6 = [0; 36];
        v6[..16].copy_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
        v6[31] = 1;
        v6[35] = 80;
        assert_eq!(
            parse(&v2(0x21, 0x21, &v6)),
            header("[2001:db8::7]:0", "[::1]:80", 52)
        );

        let local = Ok(Parsed::Local { len: 16 });
        assert_eq!(parse(&v2(0x20, 0x00, &[])), local);
        assert_eq!(parse(&v2(0x21, 0x00, &[])), local);
        assert_eq!(
            parse(&v2(0x21, 0x31, &[0; 216])),
            Ok(Parsed::Local { len: 232 })
        );
        assert_eq!(
            parse(&v2(0x21, 0x11, &V4[..11])),
            Err(ProxyHeaderError::Truncated)
        );
        assert_eq!(
            parse(&v2(0x21, 0x21, &V4)),
            Err(ProxyHeaderError::Truncated)
        );
        for (command, protocol) in [
            (0x11, 0x11),
            (0x22, 0x11),
            (0x31, 0x11),
            (0x21, 0x12),
            (0x21, 0x41),
        ] {
            let found = parse(&v2(command, protocol, &V4));
            assert_eq!(
                found,
                Err(ProxyHeaderError::Unsupported { command, protocol })
            );
        }
    }

    #[test]
    fn other_protocols_are_told_apart_early() {
        for (bytes, expected) in [
            (&b""[..], Parsed::Incomplete),
            (b"PRO", Parsed::Incomplete),
            (b"PROP", Parsed::NotProxy),
            (b"GET / HTTP/1.1", Parsed::NotProxy),
            (b"PRI * HTTP/2.0", Parsed::NotProxy),
            (b"\x16\x03\x01", Parsed::NotProxy),
            (b"\r\n\r\n", Parsed::Incomplete),
            (b"\r\n\r\nGET", Parsed::NotProxy),
        ] {
            assert_eq!(parse(bytes), Ok(expected), "{bytes:?}");
        }
    }

    #[test]
    fn mixed_families_are_sent_as_ipv6() {
        let addresses = ("203.0.113.7:1".parse().unwrap(), "[::1]:2".parse().unwrap());
        let text = encode(ProxyProtocolVersion::V1, Some(addresses));
        assert_eq!(text, b"PROXY TCP6 ::ffff:203.0.113.7 ::1 1 2\r\n");
    }

    const VERSIONS: [ProxyProtocolVersion; 2] =
        [ProxyProtocolVersion::V1, ProxyProtocolVersion::V2];

    proptest! {
        #[test]
        fn what_is_encoded_is_parsed_at_every_cut(
            source in any::<SocketAddr>(), destination in any::<SocketAddr>(), local in any::<bool>(),
        ) {
            for version in VERSIONS {
                let addresses = (!local).then_some((source, destination));
                let bytes = encode(version, addresses);
                for cut in 0..bytes.len() {
                    prop_assert_eq!(parse(&bytes[..cut]), Ok(Parsed::Incomplete));
                }
                let expected = if local {
                    Parsed::Local { len: bytes.len() }
                } else {
                    Parsed::Header {
                        source: canonical(source.ip(), source.port()),
                        destination: canonical(destination.ip(), destination.port()),
                        len: bytes.len(),
                    }
                };
                prop_assert_eq!(parse(&bytes), Ok(expected));
            }
        }

        #[test]
        fn nothing_makes_it_panic(tail in proptest::collection::vec(any::<u8>(), 0..300), v2 in any::<bool>()) {
            let start: &[u8] = if v2 { V2_SIGNATURE } else { V1_PREFIX };
            let bytes = [start, &tail].concat();
            if let Ok(Parsed::Header { len, .. } | Parsed::Local { len }) = parse(&bytes) {
                prop_assert!(len <= bytes.len());
            }
            let _ = parse(&tail);
        }
    }
}
