//! The PROXY protocol header, version 2, of a datagram: `LOCAL` is never sent, the transport is always DGRAM.

use std::net::{IpAddr, SocketAddr};

/// Longest header: that of IPv6.
pub(super) const LONGEST: usize = 16 + 36;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_PROXY: u8 = 0x21;
const UDP_OVER_IPV4: u8 = 0x12;
const UDP_OVER_IPV6: u8 = 0x22;

/// Writes the header to the start of the buffer; returns its length, 0 if the families differ.
pub(super) fn write(
    buffer: &mut [u8; LONGEST],
    client: SocketAddr,
    asked: IpAddr,
    port: u16,
) -> usize {
    buffer[..12].copy_from_slice(&SIGNATURE);
    buffer[12] = VERSION_2_PROXY;
    let ports = [client.port().to_be_bytes(), port.to_be_bytes()].concat();
    match (client.ip(), asked) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            buffer[13] = UDP_OVER_IPV4;
            buffer[14..16].copy_from_slice(&12_u16.to_be_bytes());
            buffer[16..20].copy_from_slice(&source.octets());
            buffer[20..24].copy_from_slice(&destination.octets());
            buffer[24..28].copy_from_slice(&ports);
            28
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            buffer[13] = UDP_OVER_IPV6;
            buffer[14..16].copy_from_slice(&36_u16.to_be_bytes());
            buffer[16..32].copy_from_slice(&source.octets());
            buffer[32..48].copy_from_slice(&destination.octets());
            buffer[48..52].copy_from_slice(&ports);
            52
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_that_of_the_specification() {
        let mut buffer = [0; LONGEST];
        let client = "203.0.113.7:51413".parse().unwrap();
        let length = write(&mut buffer, client, "192.0.2.1".parse().unwrap(), 6969);
        assert_eq!(
            buffer[..length],
            [
                0x0d, 0x0a, 0x0d, 0x0a, 0, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21, 0x12, 0,
                12, 203, 0, 113, 7, 192, 0, 2, 1, 0xc8, 0xd5, 0x1b, 0x39
            ]
        );
        let client = "[2001:db8::7]:51413".parse().unwrap();
        let length = write(&mut buffer, client, "2001:db8::1".parse().unwrap(), 6969);
        assert_eq!((length, buffer[13], buffer[15]), (52, 0x22, 36));
        assert_eq!(buffer[48..52], [0xc8, 0xd5, 0x1b, 0x39]);
        assert_eq!(
            write(&mut buffer, client, "192.0.2.1".parse().unwrap(), 1),
            0
        );
    }
}
