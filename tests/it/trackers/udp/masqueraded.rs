//! A source NAT between the relay and the tracker: answers come back as if nothing were wrong, and every client would
//! be the machine itself.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use super::client::Client;
use super::{PORT, TORRENT, announced, container, join, metric, obey, route_of, rule, wait_for};
use crate::support::edge::PATIENCE;
use crate::support::netns::Network;
use crate::support::program::succeed;
use crate::support::trackers::{Settings, Torrust};
use crate::support::{Edge, eventually, missing};

#[test]
fn a_source_nat_before_the_tracker_is_found_by_what_the_tracker_lists() {
    if missing(&["iptables"]) {
        return;
    }
    Network::run(|network| {
        let (alice, bob) = (network.machine("alice"), network.machine("bob"));
        let pod = network.machine("pod");
        container(&pod);
        let settings = Settings {
            udp: vec!["10.88.0.2:6969".parse().unwrap()],
            api: Some("10.88.0.2:1212".parse().unwrap()),
            ..Settings::default()
        };
        let Some(tracker) = pod.inside(|| Torrust::start(settings)) else {
            return;
        };
        // As machines do it for the containers that they have.
        let masquerade = "-t nat -A POSTROUTING -o host0 -j MASQUERADE";
        succeed(Command::new("iptables").args(masquerade.split(' ')));
        let udp = "port: 6969, mode: Transparent";
        let edge = Edge::start(&[route_of(&[rule("udp1", "10.88.0.2:6969", udp)])]);
        obey(&wait_for(&edge, "RelayNoWayBack"));

        // The way back is there, and still nobody is relayed.
        let message = wait_for(&edge, "RelayAddressReplaced");
        println!("refused: {message}");
        assert!(
            message.contains("10.88.0.2:6969 lists 10.88.0.1 where 192.0.2.1 has announced"),
            "{message}"
        );
        let to = SocketAddr::from((Network::V4, PORT));
        let refused = || alice.inside(|| Client::of(to).is_answered(Duration::from_secs(1)));
        assert!(!refused());
        assert!(metric(&edge, "tidegate_udp_dropped_total", "no_way") >= 1);
        assert_eq!(tracker.peers(TORRENT), []);

        // The message has what mends it.
        obey(&message);
        let message = wait_for(&edge, "TransparentRelay");
        println!("mended: {message}");
        assert!(
            message.contains("(10.88.0.2:6969) lists peers at their own addresses"),
            "{message}"
        );
        let (a, _, _) = join(&alice, to, 0);
        let (b, _, answer) = join(&bob, to, 7);
        let mut expected = [
            SocketAddr::new(alice.v4.into(), a.address().port()),
            SocketAddr::new(bob.v4.into(), b.address().port()),
        ];
        assert_eq!(announced(&answer), &expected[..1]);
        expected.sort();
        let found: Vec<SocketAddr> = tracker.peers(TORRENT).iter().map(|it| it.address).collect();
        assert_eq!(found, expected);
        println!("peers of the tracker: {found:?}");

        // Of the made-up torrent nobody is left.
        eventually("the end of the trial's peers", PATIENCE, || {
            let torrents = tracker.ask("/api/v1/torrents");
            let others = torrents.as_array().unwrap().iter();
            let mut left = others.filter(|it| {
                it["info_hash"] != TORRENT && (it["seeders"] != 0 || it["leechers"] != 0)
            });
            left.next().map_or(Ok(()), |_| Err(torrents.to_string()))
        });
    });
}
