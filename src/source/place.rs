//! Where clients reach an edge of this machine from outside, as far as the machine itself can tell.
//!
//! What a person says counts alone. Without that, an edge that listens at chosen addresses is reached at these,
//! and one that listens at all of them at those of the interfaces that the Internet routes to. A machine behind
//! a router has none: nothing is guessed.

use std::net::{IpAddr, SocketAddr};

use tidegate_acme::preflight::own::{interfaces, is_public};

use crate::translate::PublicPlace;

/// What decides.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// What a person says.
    pub told: Vec<IpAddr>,
    /// Where it listens for HTTPS.
    pub listening: Vec<SocketAddr>,
    /// Port of HTTPS as clients see it, if a person says so.
    pub https_port: Option<u16>,
}

impl Place {
    /// Where clients reach it now.
    pub fn now(&self) -> PublicPlace {
        self.among(interfaces)
    }

    /// Port of HTTPS as clients see it.
    pub fn https_port(&self) -> Option<u16> {
        let listening = self.listening.first().map(SocketAddr::port);
        self.https_port.or(listening)
    }

    fn among(&self, interfaces: impl FnOnce() -> Vec<IpAddr>) -> PublicPlace {
        let any = self.listening.iter().any(|it| it.ip().is_unspecified());
        let seen = match (self.told.is_empty(), any) {
            (false, _) => self.told.clone(),
            (true, true) => interfaces(),
            (true, false) => self.listening.iter().map(SocketAddr::ip).collect(),
        };
        let addresses = seen.into_iter().map(|it| it.to_canonical());
        PublicPlace {
            addresses: if self.told.is_empty() {
                addresses.filter(|it| is_public(*it)).collect()
            } else {
                addresses.collect()
            },
            ..PublicPlace::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_believed_then_listeners_then_interfaces() {
        let interfaces = || {
            [
                "127.0.0.1",
                "10.0.0.5",
                "203.0.113.7",
                "2001:db8::7",
                "fe80::1",
            ]
            .map(|it| it.parse().unwrap())
            .to_vec()
        };
        for (told, listening, expected) in [
            (&[][..], &["[::]:443"][..], "203.0.113.7 2001:db8::7"),
            (&["10.0.0.1"], &["[::]:443"], "10.0.0.1"),
            (&[], &["203.0.113.9:443", "127.0.0.1:443"], "203.0.113.9"),
            (&[], &["192.168.1.2:443"], ""),
            (&[], &[], ""),
        ] {
            let place = Place {
                told: told.iter().map(|it| it.parse().unwrap()).collect(),
                listening: listening.iter().map(|it| it.parse().unwrap()).collect(),
                https_port: None,
            };
            let found = place.among(interfaces).addresses;
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found.join(" "), expected, "{place:?}");
        }
    }
}
