//! What to write into the DNS for a route: lines of a zone file, for people to paste.
//!
//! Addresses of every hostname, and for trackers what BEP 34 lets their clients know: `"BITTORRENT UDP:6969
//! TCP:443"`, whose words are the ports in order of preference. A record that begins with `BITTORRENT` and names no
//! port would deny every tracker, so none is ever written without one. What cannot be said as a record stands there as a
//! comment, which is pasted without harm. Asks nobody: what the DNS says now is the pre-flight's affair.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tidegate_model::HostPattern;

use super::Inputs;
use crate::api::{RouteRule, TlsRouteSpec};

/// Lines of one route. The schema of the status has the same bound.
const MOST_LINES: usize = 256;
/// A character string of a TXT record (RFC 1035 §3.3).
const LONGEST_TEXT: usize = 255;
/// Names that a note lists.
const SHOWN: usize = 4;

/// Where clients reach something from outside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct PublicPlace {
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Its name, where a load balancer tells no addresses.
    pub names: BTreeSet<String>,
}

impl PublicPlace {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.names.is_empty()
    }

    /// Addresses first, IPv4 before IPv6; without any, the names.
    pub(super) fn list(&self) -> Vec<String> {
        if self.addresses.is_empty() {
            return self.names.iter().cloned().collect();
        }
        self.addresses.iter().map(IpAddr::to_string).collect()
    }
}

/// By what names a route is reached, and where.
#[derive(Debug, Default)]
pub(super) struct Reached {
    pub(super) hostnames: Vec<String>,
    pub(super) addresses: Vec<String>,
    pub(super) dns_records: Vec<String>,
}

impl Reached {
    /// How a route is reached that is served.
    pub(super) fn of(inputs: &Inputs, spec: &TlsRouteSpec, hostnames: Vec<String>) -> Self {
        Self {
            hostnames,
            addresses: inputs.place.list(),
            dns_records: records(inputs, spec),
        }
    }
}

/// What a hostname needs.
#[derive(Debug, Default)]
struct Host {
    /// Where this edge answers for it.
    edge: bool,
    /// Where UDP trackers of that name answer, other than at the edge.
    udp_places: BTreeSet<PublicPlace>,
    /// Ports by UDP at the edge's addresses, and at `udp_places`.
    udp: Vec<u16>,
    /// Ports by TCP.
    tcp: Vec<u16>,
    /// Whether a tracker of that name is reached without the edge, nobody here knows where.
    elsewhere: bool,
}

/// How clients reach what a rule leads to.
#[derive(Clone, Copy)]
enum Way {
    /// By the edge; trackers at this port.
    Edge(Option<u16>),
    /// By TCP without the edge, at this port, at an address that is the edge's or that nobody here knows.
    Direct { port: Option<u16>, here: bool },
}

/// The records of a route.
fn records(inputs: &Inputs, spec: &TlsRouteSpec) -> Vec<String> {
    let hosts = hosts(inputs, spec);
    let mut lines = Vec::new();
    for (name, host) in &hosts {
        host.lines(name, &inputs.place, &mut lines);
    }
    lines.extend(shared(&hosts, &inputs.place));
    if lines.len() > MOST_LINES {
        let more = lines.len() - (MOST_LINES - 1);
        lines.truncate(MOST_LINES - 1);
        lines.push(format!("; and {more} more lines"));
    }
    lines
}

fn hosts(inputs: &Inputs, spec: &TlsRouteSpec) -> BTreeMap<String, Host> {
    let mut hosts: BTreeMap<String, Host> = BTreeMap::new();
    for rule in &spec.rules {
        let names = if rule.hostnames.is_empty() {
            &spec.hostnames
        } else {
            &rule.hostnames
        };
        for name in names {
            let Ok(name) = HostPattern::parse(name) else {
                continue;
            };
            // An address needs no name.
            if matches!(&name, HostPattern::Exact(name) if name.ip().is_some()) {
                continue;
            }
            let host = hosts.entry(name.to_string()).or_default();
            host.add(way(inputs, rule));
        }
    }
    hosts
}

fn way(inputs: &Inputs, rule: &RouteRule) -> Way {
    let Some(tracker) = &rule.tracker else {
        return Way::Edge(None);
    };
    match tracker.exposure.as_deref() {
        Some("Direct") => Way::Direct {
            port: backend_port(rule),
            here: !inputs.environment.is_shared(),
        },
        Some("HTTP") => Way::Edge(Some(80)),
        _ => Way::Edge(Some(inputs.https_port.unwrap_or(443))),
    }
}

/// The port that a backend is written with.
fn backend_port(rule: &RouteRule) -> Option<u16> {
    let backend = rule.backends.first()?;
    match (&backend.service, &backend.address) {
        (Some(service), _) => u16::try_from(service.port).ok(),
        (None, Some(address)) => address.rsplit_once(':')?.1.parse().ok(),
        (None, None) => None,
    }
}

impl Host {
    fn add(&mut self, way: Way) {
        match way {
            Way::Edge(port) => {
                self.edge = true;
                self.tcp(port);
            }
            Way::Direct { port, here } => {
                self.tcp(port);
                if here {
                    self.edge = true;
                } else {
                    self.elsewhere = true;
                }
            }
        }
    }

    fn tcp(&mut self, port: Option<u16>) {
        let new = port.filter(|port| !self.tcp.contains(port));
        self.tcp.extend(new);
    }

    /// Where the name should lead.
    fn place<'a>(&'a self, edge: &'a PublicPlace) -> Option<&'a PublicPlace> {
        if self.edge {
            return Some(edge);
        }
        self.udp_places.first()
    }

    fn lines(&self, name: &str, edge: &PublicPlace, lines: &mut Vec<String>) {
        let text = self.text();
        match self.place(edge) {
            Some(place) if !place.addresses.is_empty() => {
                lines.extend(place.addresses.iter().map(|address| match address {
                    IpAddr::V4(address) => format!("{name}. IN A {address}"),
                    IpAddr::V6(address) => format!("{name}. IN AAAA {address}"),
                }));
            }
            Some(place) => match (place.names.first(), &text) {
                (None, _) => {}
                (Some(target), None) => lines.push(format!("{name}. IN CNAME {target}.")),
                // RFC 1034 §3.6.2.
                (Some(target), Some(_)) => lines.push(format!(
                    "; {name}: no TXT record may stand beside a CNAME: give it the addresses of {target} (ALIAS, where the provider has that)"
                )),
            },
            None => lines.push(format!(
                "; {name} is reached without this edge: give it the address of the tracker itself"
            )),
        }
        if self.elsewhere && self.edge {
            lines.push(format!(
                "; {name} leads here, and to a tracker that is reached without this edge: give that one a hostname of its own"
            ));
        }
        lines.extend(text.map(|text| format!("{name}. IN TXT \"{text}\"")));
    }

    /// The text of BEP 34. A UDP announce costs everybody least, so those ports are preferred.
    fn text(&self) -> Option<String> {
        let mut text = "BITTORRENT".to_owned();
        let mut any = false;
        for word in self.words() {
            if text.len() + 1 + word.len() <= LONGEST_TEXT {
                text.push(' ');
                text.push_str(&word);
                any = true;
            }
        }
        any.then_some(text)
    }

    fn words(&self) -> impl Iterator<Item = String> + '_ {
        let udp = self.udp.iter().map(|port| format!("UDP:{port}"));
        let tcp = self.tcp.iter().map(|port| format!("TCP:{port}"));
        udp.chain(tcp)
    }
}

/// A note where several trackers answer at one address: public lists take one of an address.
fn shared(hosts: &BTreeMap<String, Host>, edge: &PublicPlace) -> Option<String> {
    let mut by_address: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    for (name, host) in hosts {
        let words: Vec<_> = host.words().collect();
        for address in host.place(edge).into_iter().flat_map(|it| &it.addresses) {
            let trackers = words.iter().map(|word| format!("{name} {word}"));
            by_address.entry(*address).or_default().extend(trackers);
        }
    }
    let (address, mut trackers) = by_address.into_iter().find(|(_, all)| all.len() > 1)?;
    if trackers.len() > SHOWN {
        trackers.truncate(SHOWN);
        trackers.push("…".to_owned());
    }
    Some(format!(
        "; {} share {address}: newTrackon and others list one tracker of an address; one of its own for each (a floating address) has them all listed",
        trackers.join(", ")
    ))
}
