//! Which addresses connections that objects ask for may lead to.
//!
//! Where whoever writes an object does not own the machine, a backend must not be a way to the machine itself,
//! to the metadata service of its provider or to the API server. Asked once for each address that is written
//! or that a name turned out to have, never for each request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Where connections may lead. The default is everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach(Option<Limits>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Limits {
    allowed: Vec<IpNet>,
    refused: Vec<IpNet>,
    api_server: Vec<SocketAddr>,
}

/// What is special about an address, as the rest of "it is …".
pub type Special = &'static str;

const V4: &[(Ipv4Net, Special)] = &[
    (v4(0, 0, 0, 0, 8), "an unspecified address"),
    (v4(127, 0, 0, 0, 8), "a loopback address"),
    (v4(169, 254, 0, 0, 16), "a link-local address"),
    (v4(224, 0, 0, 0, 4), "a multicast address"),
    (v4(255, 255, 255, 255, 32), "the broadcast address"),
    // Alibaba, Oracle, Azure.
    (v4(100, 100, 100, 200, 32), "a metadata service's address"),
    (v4(192, 0, 0, 192, 32), "a metadata service's address"),
    (v4(168, 63, 129, 16, 32), "a metadata service's address"),
];

const V6: &[(Ipv6Net, Special)] = &[
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "an unspecified address"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "a loopback address"),
    (
        v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
        "a link-local address",
    ),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "a multicast address"),
    // Amazon.
    (
        v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128),
        "a metadata service's address",
    ),
];

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6(s: [u16; 8], length: u8) -> Ipv6Net {
    let address = Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]);
    Ipv6Net::new_assert(address, length)
}

impl Reach {
    /// Neither to addresses that are special by their nature, nor to `refused` networks or the API server; but
    /// to all that is in `allowed` networks.
    pub fn limited(allowed: Vec<IpNet>, refused: Vec<IpNet>) -> Self {
        Self(Some(Limits {
            allowed,
            refused,
            api_server: Vec::new(),
        }))
    }

    /// The same with these as the addresses of the API server.
    #[must_use]
    pub fn with_api_server(&self, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let mut limits = self.0.clone();
        if let Some(limits) = &mut limits {
            limits.api_server = addresses.into_iter().map(plain_socket).collect();
            limits.api_server.sort_unstable();
            limits.api_server.dedup();
        }
        Self(limits)
    }

    /// The same for endpoints of Services, which are where pods are: networks that are refused do not count,
    /// because those of pods and Services are refused so that they are reached as Services only.
    #[must_use]
    pub fn of_services(&self) -> Self {
        let mut limits = self.0.clone();
        if let Some(limits) = &mut limits {
            limits.refused.clear();
        }
        Self(limits)
    }

    /// Whether there is anything where connections may not lead. Names are then looked up as they are written,
    /// without the search domains of the machine.
    pub fn is_limited(&self) -> bool {
        self.0.is_some()
    }

    /// Why connections may not lead there, if so.
    pub fn refuses(&self, address: SocketAddr) -> Option<Special> {
        let limits = self.0.as_ref()?;
        let address = plain_socket(address);
        let ip = address.ip();
        if limits.allowed.iter().any(|network| network.contains(&ip)) {
            return None;
        }
        if limits.api_server.contains(&address) {
            return Some("the API server's address");
        }
        if limits.refused.iter().any(|network| network.contains(&ip)) {
            return Some("in a network that whoever runs this edge refuses");
        }
        special(ip)
    }

    /// What is left of the addresses, and why the others are not.
    pub fn sort_out(&self, mut addresses: Vec<SocketAddr>) -> (Vec<SocketAddr>, Option<String>) {
        let mut refused = None;
        addresses.retain(|address| match self.refuses(*address) {
            None => true,
            Some(special) => {
                refused = Some(format!("{} is {special}", address.ip()));
                false
            }
        });
        (addresses, refused)
    }
}

fn special(ip: IpAddr) -> Option<Special> {
    match ip {
        IpAddr::V4(ip) => V4.iter().find(|(net, _)| net.contains(&ip)).map(|it| it.1),
        IpAddr::V6(ip) => V6.iter().find(|(net, _)| net.contains(&ip)).map(|it| it.1),
    }
}

/// The address that is really meant: IPv4 also hides in IPv6, mapped (RFC 4291 §2.5.5.2), behind a NAT64
/// (RFC 6052 §2.1) or 6to4 (RFC 3056 §2).
fn plain(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip.to_canonical() else {
        return ip.to_canonical();
    };
    let hidden = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => hidden(high, low),
        _ => IpAddr::V6(v6),
    }
}

fn plain_socket(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(plain(address.ip()), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited() -> Reach {
        Reach::limited(Vec::new(), vec!["10.42.0.0/16".parse().unwrap()])
            .with_api_server(["10.43.0.1:443", "[2001:db8::1]:6443"].map(|it| it.parse().unwrap()))
    }

    #[test]
    fn special_addresses_are_refused_in_whatever_clothes() {
        let reach = limited();
        for (address, why) in [
            ("127.0.0.1:80", "a loopback address"),
            ("127.9.9.9:80", "a loopback address"),
            ("[::1]:80", "a loopback address"),
            ("[::ffff:127.0.0.1]:80", "a loopback address"),
            ("[64:ff9b::7f00:1]:80", "a loopback address"),
            ("[2002:a9fe:a9fe::1]:80", "a link-local address"),
            ("169.254.169.254:80", "a link-local address"),
            ("[fe80::1]:80", "a link-local address"),
            ("[febf::1]:80", "a link-local address"),
            ("[fd00:ec2::254]:80", "a metadata service's address"),
            ("100.100.100.200:80", "a metadata service's address"),
            ("0.0.0.0:80", "an unspecified address"),
            ("0.1.2.3:80", "an unspecified address"),
            ("[::]:80", "an unspecified address"),
            ("224.0.0.1:80", "a multicast address"),
            ("[ff02::1]:80", "a multicast address"),
            ("255.255.255.255:80", "the broadcast address"),
            ("10.43.0.1:443", "the API server's address"),
            ("[::ffff:10.43.0.1]:443", "the API server's address"),
            ("[2001:db8::1]:6443", "the API server's address"),
            (
                "10.42.7.7:80",
                "in a network that whoever runs this edge refuses",
            ),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(reach.refuses(address), Some(why), "{address}");
            assert_eq!(Reach::default().refuses(address), None, "{address}");
        }
    }

    #[test]
    fn ordinary_addresses_are_not_refused() {
        for address in [
            "192.168.1.20:8123",
            "10.43.0.1:80",
            "10.43.0.2:443",
            "[2001:db8::1]:443",
            "[fd00::1]:80",
            "203.0.113.7:80",
        ] {
            assert_eq!(limited().refuses(address.parse().unwrap()), None);
        }
    }

    #[test]
    fn services_lead_to_pods_but_neither_to_the_machine_nor_to_the_api_server() {
        let reach = limited().of_services();
        for (address, passes) in [
            ("10.42.7.7:80", true),
            ("127.0.0.1:80", false),
            ("169.254.169.254:80", false),
            ("10.43.0.1:443", false),
        ] {
            let refused = reach.refuses(address.parse().unwrap());
            assert_eq!(refused.is_none(), passes, "{address}");
        }
    }

    #[test]
    fn what_is_allowed_lifts_every_refusal() {
        let allowed = ["127.0.0.0/8", "10.42.7.0/24", "10.43.0.1/32"];
        let allowed = allowed.map(|net| net.parse().unwrap()).to_vec();
        let refused = vec!["10.42.0.0/16".parse().unwrap()];
        let reach =
            Reach::limited(allowed, refused).with_api_server(["10.43.0.1:443".parse().unwrap()]);
        for (address, passes) in [
            ("127.0.0.1:80", true),
            ("[::ffff:127.0.0.1]:80", true),
            ("10.42.7.7:80", true),
            ("10.42.8.8:80", false),
            ("10.43.0.1:443", true),
            ("[::1]:80", false),
        ] {
            let refused = reach.refuses(address.parse().unwrap());
            assert_eq!(refused.is_none(), passes, "{address}");
        }
        let addresses = vec![
            "127.0.0.1:1".parse().unwrap(),
            "169.254.169.254:1".parse().unwrap(),
        ];
        let (left, refused) = reach.sort_out(addresses);
        assert_eq!(left, ["127.0.0.1:1".parse().unwrap()]);
        let said = "169.254.169.254 is a link-local address";
        assert_eq!(refused.as_deref(), Some(said));
    }
}
