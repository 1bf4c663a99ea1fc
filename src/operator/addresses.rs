//! Addresses of endpoints by port name.

use std::net::{IpAddr, SocketAddr};

use super::services::SliceShape;

/// Every endpoint of the slices with the port of that name, ready or not.
pub(super) fn of_port(slices: &[&SliceShape], port: &str) -> Vec<(IpAddr, SocketAddr)> {
    let mut all: Vec<_> = slices
        .iter()
        .filter_map(|slice| Some((slice, *slice.ports.get(port)?)))
        .flat_map(|(slice, number)| {
            let addresses = slice.all.iter();
            addresses.map(move |ip| (*ip, SocketAddr::new(*ip, number)))
        })
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}
