//! Addresses of endpoints by port name.

use std::net::{IpAddr, SocketAddr};

use super::services::SliceShape;

/// An endpoint that is not about to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Endpoint {
    pub(super) ip: IpAddr,
    /// Where the named port is.
    pub(super) address: SocketAddr,
    /// Whether its probes say that it works. A Service may lead to it all the same.
    pub(super) serving: bool,
}

/// The endpoints of the slices with the port of that name, but those that are ending: these get no new
/// connections, and learn nothing new.
pub(super) fn of_port(slices: &[&SliceShape], port: &str) -> Vec<Endpoint> {
    let mut all: Vec<_> = slices
        .iter()
        .filter_map(|slice| Some((slice, *slice.ports.get(port)?)))
        .flat_map(|(slice, number)| {
            let staying = slice.all.iter().filter(|ip| !slice.leaving.contains(ip));
            staying.map(move |ip| Endpoint {
                ip: *ip,
                address: SocketAddr::new(*ip, number),
                serving: !slice.failing.contains(ip),
            })
        })
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}
