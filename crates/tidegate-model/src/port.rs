//! Ports of the edge that lead to services behind agents: TCP that nobody opens, and UDP.
//!
//! Which ports may be opened at all is decided by whoever starts the edge ([`PortSet`]); which are, by the snapshot.
//! A number stands for two ports, one of each [`Transport`].

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::{Cluster, IpAccess, RouteId};

/// What is carried over a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Transport {
    /// As it stands in statuses and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId {
    /// Its number, from 1.
    pub number: u16,
    /// TCP or UDP.
    pub transport: Transport,
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", self.transport, self.number)
    }
}

/// A port that leads to an agent.
#[derive(Debug, Clone, PartialEq)]
pub struct MappedPort {
    /// The port.
    pub id: PortId,
    /// The mapping, as `AGENT:MAPPING`.
    pub route: RouteId,
    /// Where it leads.
    pub cluster: Arc<Cluster>,
    /// Who may come; everybody if None.
    pub access: Option<IpAccess>,
}

/// What became of a port. Holds nothing that changes with traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortState {
    /// Which one.
    pub id: PortId,
    /// Where it listens or should.
    pub listeners: Vec<PortListener>,
}

/// An address of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortListener {
    /// The address.
    pub address: SocketAddr,
    /// What keeps it from listening. It is tried again every few seconds.
    pub error: Option<ListenError>,
}

/// Why nobody can listen at an address, whatever the transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenError {
    /// Somebody else has the port.
    InUse,
    /// This machine does not have the address.
    NotLocal,
    /// Ports below 1024 need a permission.
    NotPermitted,
    /// What else the system said.
    Other(String),
}

impl From<&io::Error> for ListenError {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::InUse,
            io::ErrorKind::AddrNotAvailable => Self::NotLocal,
            io::ErrorKind::PermissionDenied => Self::NotPermitted,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// A set of ports, written as numbers and ranges: `25565`, `51820/udp`, `20000-20100`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortSet(Vec<Range>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    /// Both if None.
    transport: Option<Transport>,
}

/// Why a text is no set of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortSetError {
    /// It is no number, range or number with `/tcp` or `/udp`.
    #[error("{0:?} is no port from 1 to 65535 and no range of them")]
    Form(String),
    /// The last port comes before the first.
    #[error("{0:?} ends before it begins")]
    Order(String),
}

// === impl PortSet ===

impl PortSet {
    /// Reads a list.
    ///
    /// # Errors
    /// [`PortSetError`], of the first that is wrong.
    pub fn parse<T: AsRef<str>>(items: &[T]) -> Result<Self, PortSetError> {
        items
            .iter()
            .map(|item| Range::parse(item.as_ref()))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether the port is among them.
    pub fn contains(&self, port: PortId) -> bool {
        self.0.iter().any(|range| {
            (range.first..=range.last).contains(&port.number)
                && range.transport.is_none_or(|it| it == port.transport)
        })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers it has; those that stand in it twice count twice.
    pub fn count(&self) -> usize {
        let sizes = self.0.iter().map(|it| usize::from(it.last - it.first) + 1);
        sizes.sum()
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{}", range.first)?;
            if range.last > range.first {
                write!(f, "-{}", range.last)?;
            }
            match range.transport {
                None => {}
                Some(Transport::Tcp) => f.write_str("/tcp")?,
                Some(Transport::Udp) => f.write_str("/udp")?,
            }
        }
        Ok(())
    }
}

impl Range {
    fn parse(text: &str) -> Result<Self, PortSetError> {
        let form = || PortSetError::Form(text.to_owned());
        let (numbers, transport) = match text.split_once('/') {
            None => (text, None),
            Some((numbers, "tcp")) => (numbers, Some(Transport::Tcp)),
            Some((numbers, "udp")) => (numbers, Some(Transport::Udp)),
            Some(_) => return Err(form()),
        };
        let number = |digits: &str| -> Option<u16> {
            let good = !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit());
            digits.parse().ok().filter(|port| good && *port > 0)
        };
        let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(form());
        };
        if last < first {
            return Err(PortSetError::Order(text.to_owned()));
        }
        Ok(Self {
            first,
            last,
            transport,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(transport: Transport, number: u16) -> PortId {
        PortId { number, transport }
    }

    #[test]
    fn a_set_has_what_stands_in_it() {
        use Transport::{Tcp, Udp};
        let set = PortSet::parse(&["25565", "51820/udp", "20000-20002/tcp"]).unwrap();
        for (transport, number, there) in [
            (Tcp, 25565, true),
            (Udp, 25565, true),
            (Udp, 51820, true),
            (Tcp, 51820, false),
            (Tcp, 19999, false),
            (Tcp, 20000, true),
            (Tcp, 20002, true),
            (Udp, 20001, false),
            (Tcp, 20003, false),
        ] {
            assert_eq!(set.contains(port(transport, number)), there, "{number}");
        }
        assert_eq!(set.count(), 5);
        assert_eq!(set.to_string(), "25565,51820/udp,20000-20002/tcp");
        assert!(!PortSet::default().contains(port(Tcp, 80)));
        assert_eq!(PortSet::parse(&["1-65535"]).unwrap().count(), 65_535);
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for bad in [
            "", "0", "65536", "x", "+1", "1-", "-1", "1-2-3", "0-5", "80/sctp", "80/TCP", "80/",
            " 80",
        ] {
            let error = PortSet::parse(&[bad]).unwrap_err();
            assert_eq!(error, PortSetError::Form(bad.to_owned()));
        }
        let error = PortSet::parse(&["1", "9-8"]).unwrap_err();
        assert_eq!(error, PortSetError::Order("9-8".to_owned()));
    }
}
