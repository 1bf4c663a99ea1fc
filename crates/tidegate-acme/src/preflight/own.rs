//! Which addresses are this machine's, and which the world can reach.
//!
//! Interfaces are read from Linux's `/proc/net`; elsewhere the list is empty and the settings must tell.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::facts::OwnAddresses;

/// Addresses of this machine's interfaces, loopback included.
pub fn interfaces() -> Vec<IpAddr> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let mut found = fib_trie(&read("/proc/net/fib_trie"));
    found.extend(if_inet6(&read("/proc/net/if_inet6")));
    found
}

/// `|-- ADDRESS` followed by `/32 host LOCAL`.
fn fib_trie(text: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    let mut last = None;
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = last
            && !found.contains(&IpAddr::V4(address))
        {
            found.push(IpAddr::V4(address));
        }
    }
    found
}

/// 32 hex digits at the beginning of each line.
fn if_inet6(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| u128::from_str_radix(line.split_whitespace().next()?, 16).ok())
        .map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
        .collect()
}

/// Whether the Internet routes to it (the special-purpose registries of RFC 6890 taken out).
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_multicast()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && (18..20).contains(&b)))
        }
        IpAddr::V6(v6) => v6.segments()[0] & 0xe000 == 0x2000,
    }
}

impl OwnAddresses {
    /// Whether the address leads to this edge as far as we were told.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.all().any(|own| own == address)
    }

    /// Whether it is on one of this machine's interfaces, so that a probe from here really comes in there.
    pub fn is_interface(&self, address: IpAddr) -> bool {
        self.interfaces.contains(&address)
    }

    /// Addresses of that family that the Internet may know us by.
    pub fn public(&self, v6: bool) -> Vec<IpAddr> {
        let mut found: Vec<IpAddr> = Vec::new();
        let told = self.configured.iter().copied();
        let seen = self.interfaces.iter().copied().filter(|ip| is_public(*ip));
        for address in told.chain(seen) {
            if address.is_ipv6() == v6 && !found.contains(&address) {
                found.push(address);
            }
        }
        found
    }

    fn all(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.interfaces.iter().chain(&self.configured).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_tables_are_read() {
        let trie = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n\
                    \x20    +-- 127.0.0.0/8 2 0 2\n        |-- 127.0.0.1\n           /32 host LOCAL\n\
                    \x20       |-- 192.0.2.7\n           /32 host LOCAL\n        |-- 192.0.2.255\n\
                    \x20          /32 link BROADCAST\n        |-- 192.0.2.7\n           /32 host LOCAL\n";
        let v4: Vec<String> = fib_trie(trie).iter().map(ToString::to_string).collect();
        assert_eq!(v4, ["127.0.0.1", "192.0.2.7"]);
        let inet6 = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     20010db8000000000000000000000001 02 40 00 80     eth0\n";
        let v6: Vec<String> = if_inet6(inet6).iter().map(ToString::to_string).collect();
        assert_eq!(v6, ["::1", "2001:db8::1"]);
        assert!(interfaces().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }

    #[test]
    fn private_is_told_from_public() {
        for text in [
            "10.1.2.3",
            "100.64.0.1",
            "192.168.1.1",
            "172.31.0.1",
            "169.254.0.1",
            "127.0.0.1",
            "::1",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "0.1.2.3",
            "198.19.0.1",
            "255.255.255.255",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "8.8.8.8",
            "100.128.0.1",
            "172.32.0.1",
            "203.0.113.9",
            "2001:db8::1",
            "2a01::1",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }
}
