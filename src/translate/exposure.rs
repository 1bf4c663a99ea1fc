//! Whether the addresses of clients arrive at this edge at all, judged by what its listeners see and what the
//! objects of the cluster say. Whether backends are told of them is a route's own affair.
//!
//! A pure decision. Few connections prove nothing, and nobody on the internet can turn it by connecting oddly a few
//! times: what is told is always what most connections do.

use std::net::IpAddr;

use tidegate_model::ObservedPeers;

use crate::api::conditions::Reason;

/// How many connections prove something.
const ENOUGH: u64 = 20;
/// More distinct private addresses than this are the clients of a private network.
const FEW: usize = 8;

/// How the edge is reached from outside of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exposure {
    /// What the listeners have seen lately.
    pub peers: ObservedPeers,
    /// Whether PROXY headers are read.
    pub proxy_protocol: bool,
    /// The edge's own Service, if it was named and found.
    pub service: Option<ExposedService>,
    /// Addresses of this replica.
    pub own_addresses: Vec<IpAddr>,
}

/// The Service of the edge.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExposedService {
    /// Namespace and name.
    pub name: String,
    /// Its `spec.type`.
    pub type_: String,
    /// Whether `spec.externalTrafficPolicy` is `Local`.
    pub local: bool,
    /// Addresses at which the world reaches it.
    pub addresses: Vec<IpAddr>,
    /// Names of its load balancer.
    pub names: Vec<String>,
}

/// What is wrong, and the switch that mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// For the condition.
    pub reason: Reason,
    /// What was found.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl Lost {
    /// Both in one line, as conditions show it.
    pub fn summary(&self) -> String {
        format!("{}; {}", self.message, self.hint)
    }
}

/// Why backends see other addresses than those of the clients, if so.
pub fn judge(exposure: &Exposure) -> Option<Lost> {
    let peers = &exposure.peers;
    let direct = peers.public + peers.private;
    let all = direct + peers.proxied + peers.unproxied + peers.unexpected;
    let most = |count: u64| count >= 3 && count * 2 > all;
    if most(peers.unexpected) {
        let message = "most connections begin with a PROXY protocol header that is not read";
        let hint = if exposure.proxy_protocol {
            "name the load balancer's network with --trusted-proxies"
        } else {
            "start the edge with --proxy-protocol required and --trusted-proxies for the load balancer's network, or turn the PROXY protocol off at the load balancer"
        };
        return Some(lost(Reason::ProxyHeaderUnexpected, message, hint));
    }
    if exposure.proxy_protocol && most(peers.unproxied) {
        return Some(lost(
            Reason::ProxyHeaderMissing,
            "most connections of trusted proxies come without the PROXY protocol header that is expected of them",
            "turn the PROXY protocol on at the load balancer, or start the edge with --proxy-protocol off",
        ));
    }
    replaced(exposure)
}

/// Addresses of the cluster in place of the clients': by kube-proxy or a load balancer that translates them.
fn replaced(exposure: &Exposure) -> Option<Lost> {
    let peers = &exposure.peers;
    let addresses = &peers.private_addresses;
    if peers.public > 0 || peers.proxied > 0 || peers.private < ENOUGH || addresses.len() > FEW {
        return None;
    }
    let of_the_cluster = addresses.iter().all(|address| {
        exposure
            .own_addresses
            .iter()
            .any(|own| near(*own, *address))
    });
    let spread = exposure.service.as_ref().filter(|service| {
        !service.local && matches!(service.type_.as_str(), "LoadBalancer" | "NodePort")
    });
    if !of_the_cluster && spread.is_none() {
        return None;
    }
    let mut shown: Vec<String> = addresses.iter().take(3).map(IpAddr::to_string).collect();
    if addresses.len() > shown.len() {
        shown.push("…".to_owned());
    }
    let message = format!(
        "every connection comes from a few addresses of the cluster itself ({}): those of the clients were replaced on the way",
        shown.join(", ")
    );
    let hint = match (&exposure.service, spread) {
        (_, Some(service)) => {
            format!("set externalTrafficPolicy: Local in Service {}", service.name)
        }
        (Some(_), None) => "the load balancer itself replaces them: let it send the PROXY protocol and start the edge with --proxy-protocol required, or run the edge with hostNetwork".to_owned(),
        (None, None) => "set externalTrafficPolicy: Local in the edge's Service (and name it with --service), let the load balancer send the PROXY protocol, or run the edge with hostNetwork".to_owned(),
    };
    Some(lost(Reason::SourceAddressReplaced, &message, &hint))
}

fn lost(reason: Reason, message: &str, hint: &str) -> Lost {
    Lost {
        reason,
        message: message.to_owned(),
        hint: hint.to_owned(),
    }
}

/// Whether the two are likely of one network of pods: gateways of nodes and pods of load balancers are, whatever
/// node they are on.
fn near(own: IpAddr, other: IpAddr) -> bool {
    match (own, other) {
        (IpAddr::V4(own), IpAddr::V4(other)) => own.octets()[..2] == other.octets()[..2],
        (IpAddr::V6(own), IpAddr::V6(other)) => own.octets()[..7] == other.octets()[..7],
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use Reason::{ProxyHeaderMissing, ProxyHeaderUnexpected, SourceAddressReplaced};

    use super::*;

    #[expect(
        clippy::unnecessary_wraps,
        reason = "rows without a Service have None there"
    )]
    fn service(type_: &str, local: bool) -> Option<ExposedService> {
        Some(ExposedService {
            name: "edge/tidegate".to_owned(),
            type_: type_.to_owned(),
            local,
            addresses: Vec::new(),
            names: Vec::new(),
        })
    }

    fn private(count: u64, addresses: &[&str]) -> ObservedPeers {
        ObservedPeers {
            private: count,
            private_addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
            ..ObservedPeers::default()
        }
    }

    fn exposure(peers: ObservedPeers, service: Option<ExposedService>) -> Exposure {
        Exposure {
            peers,
            service,
            proxy_protocol: false,
            own_addresses: vec!["10.42.0.9".parse().unwrap()],
        }
    }

    #[test]
    fn each_way_to_lose_an_address_names_the_switch_that_mends_it() {
        let gateway = || private(100, &["10.42.0.1", "10.42.1.0"]);
        let node = || private(100, &["192.168.1.10"]);
        let unexpected = |count, public| ObservedPeers {
            unexpected: count,
            public,
            ..ObservedPeers::default()
        };
        let unproxied = |count, proxied| ObservedPeers {
            unproxied: count,
            proxied,
            ..ObservedPeers::default()
        };
        let reading = |peers| Exposure {
            proxy_protocol: true,
            ..exposure(peers, None)
        };
        let replaced = |hint| Some((SourceAddressReplaced, hint));
        let spread = "externalTrafficPolicy: Local in Service edge/tidegate";
        for (name, exposure, expected) in [
            (
                "klipper",
                exposure(gateway(), service("LoadBalancer", true)),
                replaced("hostNetwork"),
            ),
            (
                "kube-proxy",
                exposure(node(), service("LoadBalancer", false)),
                replaced(spread),
            ),
            (
                "node port",
                exposure(node(), service("NodePort", false)),
                replaced(spread),
            ),
            ("unknown", exposure(gateway(), None), replaced("--service")),
            ("a few", exposure(private(19, &["10.42.0.1"]), None), None),
            (
                "home",
                exposure(node(), service("LoadBalancer", true)),
                None,
            ),
            ("host network", exposure(node(), None), None),
            (
                "inside",
                exposure(node(), service("ClusterIP", false)),
                None,
            ),
            (
                "an office",
                exposure(
                    private(
                        100,
                        &[
                            "10.42.0.1",
                            "10.42.0.2",
                            "10.42.0.3",
                            "10.42.0.4",
                            "10.42.0.5",
                            "10.42.0.6",
                            "10.42.0.7",
                            "10.42.0.8",
                            "10.42.0.10",
                        ],
                    ),
                    service("LoadBalancer", false),
                ),
                None,
            ),
            (
                "the internet too",
                exposure(
                    ObservedPeers {
                        public: 1,
                        ..gateway()
                    },
                    service("LoadBalancer", false),
                ),
                None,
            ),
            (
                "nothing yet",
                exposure(ObservedPeers::default(), None),
                None,
            ),
            (
                "off",
                exposure(unexpected(30, 0), None),
                Some((ProxyHeaderUnexpected, "--proxy-protocol required")),
            ),
            (
                "quiet",
                exposure(unexpected(3, 0), None),
                Some((ProxyHeaderUnexpected, "--proxy-protocol required")),
            ),
            ("a scanner", exposure(unexpected(2, 0), None), None),
            ("an attacker", exposure(unexpected(400, 400), None), None),
            (
                "not trusted",
                reading(unexpected(30, 1)),
                Some((ProxyHeaderUnexpected, "--trusted-proxies")),
            ),
            (
                "missing",
                reading(unproxied(30, 0)),
                Some((ProxyHeaderMissing, "at the load balancer")),
            ),
            ("health checks", reading(unproxied(30, 50)), None),
            ("not asked for", exposure(unproxied(30, 0), None), None),
        ] {
            let found = judge(&exposure);
            match expected {
                None => assert_eq!(found, None, "{name}"),
                Some((reason, hint)) => {
                    let found = found.unwrap_or_else(|| panic!("{name}: nothing was found"));
                    assert_eq!(found.reason, reason, "{name}");
                    assert!(found.hint.contains(hint), "{name}: {}", found.hint);
                }
            }
        }
    }
}
