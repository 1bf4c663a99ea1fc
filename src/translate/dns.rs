//! What to write into the DNS for a route: lines of a zone file, for people to paste.
//!
//! Addresses of every hostname, and for trackers what BEP 34 lets their clients know: `"BITTORRENT UDP:6969
//! TCP:443"`, whose words are the ports in order of preference. A record that begins with `BITTORRENT` and names no
//! port would deny every tracker, so none is ever written without one. What cannot be said as a record stands there as a
//! comment, which is pasted without harm. Asks nobody: what the DNS says now is the pre-flight's affair.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tidegate_model::HostPattern;

use super::routes::CompiledRoute;
use super::udp::CompiledUdp;
use super::{Inputs, UdpMode, UdpTracker, udp_services};
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
    pub(super) fn of(inputs: &Inputs, spec: &TlsRouteSpec, compiled: &CompiledRoute) -> Self {
        Self {
            hostnames: names(compiled),
            addresses: inputs.place.list(),
            dns_records: records(inputs, spec, &compiled.udp),
        }
    }
}

/// The hostnames that a route claims.
pub(super) fn names(route: &CompiledRoute) -> Vec<String> {
    route.hosts.keys().map(ToString::to_string).collect()
}

/// What a hostname needs.
#[derive(Debug, Default)]
struct Host {
    /// Where this edge answers for it.
    edge: bool,
    /// Where UDP trackers of that name answer, and at which port.
    udp: Vec<(UdpPlace, u16)>,
    /// Ports by TCP.
    tcp: Vec<u16>,
    /// Whether a tracker of that name is reached without the edge, nobody here knows where.
    elsewhere: bool,
}

/// How clients reach what a rule leads to.
enum Way {
    /// By the edge; trackers at this port.
    Edge(Option<u16>),
    /// By TCP without the edge, at this port, at an address that is the edge's or that nobody here knows.
    Direct { port: Option<u16>, here: bool },
    /// By UDP at this port: at the edge's addresses, at others, or nobody here knows where.
    Udp { port: u16, place: UdpPlace },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum UdpPlace {
    Edge,
    At(PublicPlace),
    Elsewhere,
}

/// The records of a route.
fn records(inputs: &Inputs, spec: &TlsRouteSpec, udp: &[CompiledUdp]) -> Vec<String> {
    let hosts = hosts(inputs, spec, udp);
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

fn hosts(inputs: &Inputs, spec: &TlsRouteSpec, udp: &[CompiledUdp]) -> BTreeMap<String, Host> {
    let mut hosts: BTreeMap<String, Host> = BTreeMap::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        let udp = udp.iter().find(|it| it.rule == index);
        let way = match udp {
            Some(udp) => udp_way(inputs, &udp.tracker),
            None => way(inputs, rule),
        };
        for name in spec.hostnames_of(rule) {
            let Ok(name) = HostPattern::parse(name) else {
                continue;
            };
            // An address needs no name.
            if matches!(&name, HostPattern::Exact(name) if name.ip().is_some()) {
                continue;
            }
            let host = hosts.entry(name.to_string()).or_default();
            host.add(&way);
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
        Some("HTTP") => {
            let written = tracker.port.and_then(|port| u16::try_from(port).ok());
            Way::Edge(Some(written.unwrap_or(80)))
        }
        _ => Way::Edge(Some(inputs.https_port.unwrap_or(443))),
    }
}

fn udp_way(inputs: &Inputs, tracker: &UdpTracker) -> Way {
    let place = match tracker.mode {
        UdpMode::Service => UdpPlace::At(udp_services::place(inputs, tracker)),
        _ if !tracker.addresses.is_empty() => UdpPlace::At(PublicPlace {
            addresses: tracker.addresses.iter().copied().collect(),
            names: BTreeSet::new(),
        }),
        UdpMode::Direct if inputs.environment.is_shared() => UdpPlace::Elsewhere,
        UdpMode::Direct | UdpMode::Relayed(_) => UdpPlace::Edge,
    };
    Way::Udp {
        port: tracker.port,
        place,
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
    fn add(&mut self, way: &Way) {
        match way {
            Way::Edge(port) => {
                self.edge = true;
                self.tcp(*port);
            }
            Way::Udp { port, place } => {
                self.edge |= *place == UdpPlace::Edge;
                self.elsewhere |= *place == UdpPlace::Elsewhere;
                let new = (place.clone(), *port);
                if !self.udp.contains(&new) {
                    self.udp.push(new);
                }
            }
            Way::Direct { port, here } => {
                self.tcp(*port);
                if *here {
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
        self.udp_places().next()
    }

    fn udp_places(&self) -> impl Iterator<Item = &PublicPlace> {
        self.udp.iter().filter_map(|(place, _)| match place {
            UdpPlace::At(place) => Some(place),
            UdpPlace::Edge | UdpPlace::Elsewhere => None,
        })
    }

    fn lines(&self, name: &str, edge: &PublicPlace, lines: &mut Vec<String>) {
        let text = self.text(edge);
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
        let here = self.place(edge);
        let elsewhere = self.udp_places().find(|place| Some(*place) != here);
        if (self.elsewhere && here.is_some()) || elsewhere.is_some() {
            let place = elsewhere.map(PublicPlace::list).unwrap_or_default();
            let place = if place.is_empty() {
                "elsewhere".to_owned()
            } else {
                format!("at {}", place.join(", "))
            };
            lines.push(format!(
                "; {name} leads to two places: one of its trackers answers {place}, which needs a hostname of its own"
            ));
        }
        lines.extend(text.map(|text| format!("{name}. IN TXT \"{text}\"")));
    }

    /// The text of BEP 34. A UDP announce costs everybody least, so those ports are preferred.
    fn text(&self, edge: &PublicPlace) -> Option<String> {
        let mut text = "BITTORRENT".to_owned();
        let mut any = false;
        for word in self.words(edge) {
            if text.len() + 1 + word.len() <= LONGEST_TEXT {
                text.push(' ');
                text.push_str(&word);
                any = true;
            }
        }
        any.then_some(text)
    }

    /// Ports where the name leads.
    fn words<'a>(&'a self, edge: &'a PublicPlace) -> impl Iterator<Item = String> + 'a {
        let here = self.place(edge);
        let udp = self.udp.iter().filter(move |(place, _)| match place {
            UdpPlace::Edge => true,
            UdpPlace::At(place) => Some(place) == here,
            UdpPlace::Elsewhere => here.is_none(),
        });
        let udp = udp.map(|(_, port)| format!("UDP:{port}"));
        let tcp = self.tcp.iter().map(|port| format!("TCP:{port}"));
        udp.chain(tcp)
    }
}

/// A note where several trackers answer at one address: public lists take one of an address.
fn shared(hosts: &BTreeMap<String, Host>, edge: &PublicPlace) -> Option<String> {
    let mut by_address: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    for (name, host) in hosts {
        let words: Vec<_> = host.words(edge).collect();
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
