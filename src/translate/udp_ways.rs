//! What is said of the ways to a UDP tracker that is relayed to, by what the relay has found.
//!
//! Every trouble names what mends it, as commands between backticks where there are any: tests run those.

use std::net::SocketAddr;

use tidegate_model::{UdpRelayMode, UdpUnlisted, UdpWay, UdpWayState};

use super::Inputs;
use crate::api::conditions::Reason;

/// The routing table that the commands of a recipe use.
const TABLE: u32 = 6969;

/// Why a way is not open, and what mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) reason: Reason,
    pub(super) message: String,
    pub(super) hint: String,
}

/// Of several replicas only one writes statuses, and it knows what it has tried itself.
pub(super) fn whose(inputs: &Inputs) -> String {
    match &inputs.environment.replica {
        Some(replica) => {
            format!(" (at replica {replica}; every replica relays, and tries, for itself)")
        }
        None => String::new(),
    }
}

/// What is wrong with a way; None when datagrams are passed on, or it is not known yet.
pub(super) fn trouble(way: &UdpWay, mode: UdpRelayMode, shared: bool) -> Option<Trouble> {
    let backend = way.backend;
    let (reason, message, hint) = match way.state {
        UdpWayState::Trying | UdpWayState::Preserved | UdpWayState::Unlisted(_) => return None,
        UdpWayState::Silent | UdpWayState::NoAnswer => (
            Reason::TrackerSilent,
            format!("the tracker {backend} answers no connect request"),
            "start it, and let it listen at this address on UDP".to_owned(),
        ),
        UdpWayState::NotPermitted => (
            Reason::RelayNotPermitted,
            "this process may not send from the addresses of clients, so nothing is relayed"
                .to_owned(),
            permission(shared).to_owned(),
        ),
        UdpWayState::NoWayBack => (
            Reason::RelayNoWayBack,
            format!(
                "answers of {backend} to clients do not come back through here, so nothing is relayed"
            ),
            way_back(backend, shared),
        ),
        UdpWayState::HeaderNotRead => (
            Reason::ProxyHeaderNotRead,
            format!(
                "{backend} answers, but not when a PROXY protocol header comes first, so nothing is relayed"
            ),
            "no tracker that is known reads one; use mode Transparent, Direct or Service".to_owned(),
        ),
        UdpWayState::Replaced { announced, seen } => (
            Reason::RelayAddressReplaced,
            format!(
                "the tracker {backend} lists {seen} where {announced} has announced, so nothing is relayed"
            ),
            match mode {
                UdpRelayMode::Transparent => not_masqueraded(backend, shared),
                UdpRelayMode::ProxyProtocol => {
                    "it has to take the address of the PROXY protocol header; else use mode Transparent, Direct or Service"
                        .to_owned()
                }
            },
        ),
    };
    Some(Trouble {
        reason,
        message,
        hint,
    })
}

/// What was found of ways that are all open.
pub(super) fn found(ways: &[UdpWay], mode: UdpRelayMode) -> (Reason, String) {
    let (reason, proven, tried) = match mode {
        UdpRelayMode::Transparent => (
            Reason::TransparentRelay,
            "lists peers at their own addresses, as a trial has shown",
            "answers clients through here",
        ),
        UdpRelayMode::ProxyProtocol => (
            Reason::ProxyProtocol,
            "lists peers at the addresses of the PROXY protocol header, as a trial has shown",
            "answers what has a PROXY protocol header",
        ),
    };
    let words = |state: UdpWayState| match state {
        UdpWayState::Unlisted(why) => {
            let why = match why {
                UdpUnlisted::Refused => "refuses announces of a made-up torrent",
                UdpUnlisted::Unanswered => "does not answer announces of a made-up torrent",
                UdpUnlisted::NoPeers => "does not tell one made-up peer of another",
            };
            format!(
                "{tried}; whether it sees their own addresses was not shown, because it {why}: compare its list of peers"
            )
        }
        _ => proven.to_owned(),
    };
    let mut parts: Vec<(String, Vec<String>)> = Vec::new();
    for way in ways {
        let (words, backend) = (words(way.state), way.backend.to_string());
        match parts.iter_mut().find(|(known, _)| *known == words) {
            Some((_, backends)) => backends.push(backend),
            None => parts.push((words, vec![backend])),
        }
    }
    let parts: Vec<String> = parts
        .into_iter()
        .map(|(words, backends)| format!("the tracker ({}) {words}", backends.join(", ")))
        .collect();
    (reason, parts.join("; "))
}

fn permission(shared: bool) -> &'static str {
    if shared {
        "give the edge's pod hostNetwork: true and the capability NET_ADMIN, and run it on the node of the tracker's pod; else use mode Service"
    } else {
        "give it CAP_NET_ADMIN: `AmbientCapabilities=CAP_NET_ADMIN CAP_NET_BIND_SERVICE` in the unit of systemd, `--cap-add NET_ADMIN --network host` in a container; else use mode Direct"
    }
}

/// The commands that make a machine hand the answers of a tracker to the sockets of the relay. The rule names
/// address and port of the tracker, so that nothing else on the machine is touched.
fn way_back(backend: SocketAddr, shared: bool) -> String {
    let (ip, port) = (backend.ip(), backend.port());
    let family = if backend.is_ipv6() { "-6 " } else { "" };
    let commands = format!(
        "`ip {family}rule add from {ip} ipproto udp sport {port} lookup {TABLE}` and `ip {family}route replace local default dev lo table {TABLE}`"
    );
    if shared {
        // A pod with a network of its own may listen at every address: its answers have left it when rules are asked.
        format!(
            "if the tracker's pod is on this node and the edge has hostNetwork, run on the node {commands}; with the range of the node's pods instead of {ip} the rule outlives the pod, and a tracker in the node's own network has to listen at exactly {ip}; on another node it cannot work: use mode Service"
        )
    } else {
        format!(
            "if the tracker runs on this machine, or in a container or network namespace of it, run {commands}, and let the tracker listen at exactly {ip}, not at every address; on another machine it cannot work: use mode Direct"
        )
    }
}

/// How to keep the source of datagrams to a tracker from being replaced on their way.
fn not_masqueraded(backend: SocketAddr, shared: bool) -> String {
    let (ip, port) = (backend.ip(), backend.port());
    let program = if backend.is_ipv6() {
        "ip6tables"
    } else {
        "iptables"
    };
    let command =
        format!("`{program} -t nat -I POSTROUTING -p udp -d {ip} --dport {port} -j RETURN`");
    let (place, otherwise) = if shared {
        (
            "the node",
            format!(
                "; with the range of the node's pods instead of {ip} it outlives the pod. Else use mode Service"
            ),
        )
    } else {
        ("this machine", ", or use mode Direct".to_owned())
    };
    format!(
        "something on the way to the tracker replaces the source of datagrams (SNAT, masquerading); exclude them, on {place} by {command}{otherwise}"
    )
}

#[cfg(test)]
mod tests {
    use UdpRelayMode::{ProxyProtocol, Transparent};
    use UdpUnlisted::{NoPeers, Refused};

    use super::*;

    fn way(backend: &str, state: UdpWayState) -> UdpWay {
        UdpWay {
            backend: backend.parse().unwrap(),
            state,
        }
    }

    #[test]
    fn a_replaced_address_is_told_with_the_command_that_mends_it() {
        let replaced = |announced: &str, seen: &str| UdpWayState::Replaced {
            announced: announced.parse().unwrap(),
            seen: seen.parse().unwrap(),
        };
        let four = way("172.18.0.9:6969", replaced("192.0.2.1", "172.18.0.1"));
        let said = trouble(&four, Transparent, false).unwrap();
        assert_eq!(said.reason, Reason::RelayAddressReplaced);
        assert_eq!(
            said.message,
            "the tracker 172.18.0.9:6969 lists 172.18.0.1 where 192.0.2.1 has announced, so nothing is relayed"
        );
        assert_eq!(
            said.hint,
            "something on the way to the tracker replaces the source of datagrams (SNAT, masquerading); exclude them, on this machine by `iptables -t nat -I POSTROUTING -p udp -d 172.18.0.9 --dport 6969 -j RETURN`, or use mode Direct"
        );
        let six = way("[fd00::9]:6969", replaced("2001:db8::1", "fd00::1"));
        let said = trouble(&six, Transparent, true).unwrap().hint;
        assert!(
            said.contains("on the node by `ip6tables -t nat -I POSTROUTING -p udp -d fd00::9 --dport 6969 -j RETURN`; with the range"),
            "{said}"
        );
        let said = trouble(&six, ProxyProtocol, false).unwrap().hint;
        assert!(!said.contains('`'), "{said}");
    }

    #[test]
    fn what_was_not_shown_is_not_claimed() {
        let (four, six) = ("127.0.0.1:6969", "[::1]:6969");
        let same = [
            way(four, UdpWayState::Preserved),
            way(six, UdpWayState::Preserved),
        ];
        assert_eq!(
            found(&same, Transparent),
            (
                Reason::TransparentRelay,
                "the tracker (127.0.0.1:6969, [::1]:6969) lists peers at their own addresses, as a trial has shown"
                    .to_owned()
            )
        );
        let mixed = [
            way(four, UdpWayState::Unlisted(Refused)),
            way(six, UdpWayState::Preserved),
        ];
        assert_eq!(
            found(&mixed, Transparent),
            (
                Reason::TransparentRelay,
                "the tracker (127.0.0.1:6969) answers clients through here; whether it sees their own addresses was not shown, because it refuses announces of a made-up torrent: compare its list of peers; the tracker ([::1]:6969) lists peers at their own addresses, as a trial has shown"
                    .to_owned()
            )
        );
        for mode in [Transparent, ProxyProtocol] {
            let (_, said) = found(&[way(four, UdpWayState::Unlisted(NoPeers))], mode);
            assert!(
                said.contains("was not shown") && !said.contains("lists peers"),
                "{said}"
            );
        }
        let open = [UdpWayState::Preserved, UdpWayState::Unlisted(Refused)];
        for state in open {
            assert_eq!(trouble(&way(four, state), Transparent, false), None);
        }
    }
}
