//! UDP trackers behind the relay: real trackers, clients on machines of their own, and what the tracker has seen.
//!
//! Nothing is prepared but what the edge's own status tells to do: the tests run the commands of its message.

pub(crate) mod client;
mod masqueraded;
mod refused;

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use self::client::{Answer, Client};
use crate::support::edge::PATIENCE;
use crate::support::netns::{Machine, Network};
use crate::support::program::succeed;
use crate::support::trackers::{Opentracker, Settings, Torrust};
use crate::support::{Edge, eventually};

const TORRENT: &str = "86737a4c940e74d53b44f2c3ee5f1eb0a5ac1d11";
const PORT: u16 = 6969;

/// A rule of a UDP tracker with these members of `tracker.udp`.
fn rule(name: &str, backend: &str, udp: &str) -> String {
    format!(
        "  - name: {name}\n    tracker: {{type: UDP, udp: {{{udp}}}}}\n    backends: [{{address: \"{backend}\"}}]\n"
    )
}

fn route_of(rules: &[String]) -> String {
    format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TlsRoute\nmetadata: {{name: torrust}}\nspec:\n  hostnames: [udp.example.com]\n  rules:\n{}",
        rules.concat()
    )
}

/// Status, reason and message of a condition of the route.
fn condition(edge: &Edge, type_: &str) -> Option<(String, String, String)> {
    let reply = edge.admin("/api/v1/routes").unwrap();
    let (_, body) = reply.split_once("\r\n\r\n").unwrap();
    let routes: Value = serde_json::from_str(body).unwrap();
    let conditions = routes[0]["conditions"].as_array()?.clone();
    let found = conditions.iter().find(|it| it["type"] == type_)?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

/// Waits for a reason of `ClientAddressPreserved`; returns the message.
#[track_caller]
fn wait_for(edge: &Edge, reason: &str) -> String {
    eventually(reason, PATIENCE, || {
        match condition(edge, "ClientAddressPreserved") {
            Some((status, found, message)) if found == reason => {
                let good = matches!(reason, "TransparentRelay" | "ProxyProtocol");
                assert_eq!(status == "True", good, "{message}");
                Ok(message)
            }
            other => Err(format!("{other:?}; log:\n{}", edge.log())),
        }
    })
}

/// Runs the commands that a message has between backticks.
#[track_caller]
fn obey(message: &str) {
    let commands: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    assert!(!commands.is_empty(), "no command in {message}");
    for command in commands {
        succeed(Command::new("sh").args(["-c", command]));
    }
}

/// The sum of a metric's samples whose labels hold this text.
fn metric(edge: &Edge, name: &str, labels: &str) -> u64 {
    let text = edge.admin("/metrics").unwrap();
    text.lines()
        .filter(|line| line.starts_with(name) && line.contains(labels))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

fn announced(answer: &Answer) -> &[SocketAddr] {
    match answer {
        Answer::Announced(_, _, peers) => peers,
        other => panic!("{other:?}"),
    }
}

/// Connects and announces on a machine; the client, its id and the answer.
#[track_caller]
fn join(machine: &Machine, tracker: SocketAddr, left: u64) -> (Client, u64, Answer) {
    machine.inside(|| {
        let mut client = Client::of(tracker);
        let id = client.connect();
        let answer = client.announce(id, TORRENT, left);
        (client, id, answer)
    })
}

/// Gives a machine a network that clients are not on, so that answers to them pass through the hub: as a container has
/// it. It has the address 10.88.0.2, the hub 10.88.0.1.
fn container(pod: &Machine) {
    let ip = |line: &str| succeed(Command::new("ip").args(line.split(' ')));
    pod.ip(&["link", "set", "eth0", "down"]);
    pod.ip(&[
        "link", "add", "pod0", "type", "veth", "peer", "name", "host0",
    ]);
    pod.ip(&[
        "link",
        "set",
        "host0",
        "netns",
        // This thread's network, which has no name that the test knows.
        &format!(
            "/proc/{}/task/{}/ns/net",
            std::process::id(),
            rustix::thread::gettid().as_raw_nonzero()
        ),
    ]);
    ip("address add 10.88.0.1/24 dev host0");
    ip("link set host0 up");
    pod.ip(&["address", "add", "10.88.0.2/24", "dev", "pod0"]);
    pod.ip(&["link", "set", "pod0", "up"]);
    pod.ip(&["route", "add", "default", "via", "10.88.0.1"]);
}

/// Torrust binds a connection id to address and port of the client: whatever a relay changes breaks it.
#[test]
fn the_tracker_sees_who_asks_and_answers_come_from_whom_was_asked() {
    Network::run(|network| {
        let settings = || Settings {
            udp: vec![
                "127.0.0.1:16969".parse().unwrap(),
                "[::1]:16969".parse().unwrap(),
            ],
            ..Settings::default()
        };
        let Some(tracker) = Torrust::start(settings()) else {
            return;
        };
        let (alice, bob) = (network.machine("alice"), network.machine("bob"));
        let (second_v4, second_v6): (IpAddr, IpAddr) =
            ("10.77.0.2".parse().unwrap(), "fd77::2".parse().unwrap());
        network.address(second_v4);
        network.address(second_v6);
        let edge = Edge::start(&[route_of(&[rule(
            "udp1",
            "localhost:16969",
            "port: 6969, mode: Transparent",
        )])]);

        // Without a way back nothing is relayed, and the message has what mends it.
        let message = wait_for(&edge, "RelayNoWayBack");
        let (v4, v6) = (
            SocketAddr::from((Network::V4, PORT)),
            SocketAddr::from((Network::V6, PORT)),
        );
        let refused = |to| alice.inside(|| Client::of(to).is_answered(Duration::from_secs(1)));
        assert!(!refused(v4) && !refused(v6));
        assert_eq!(tracker.counter("udp4_announces_handled"), 0);
        assert!(metric(&edge, "tidegate_udp_dropped_total", "no_way") >= 2);
        obey(&message);
        let message = wait_for(&edge, "TransparentRelay");
        assert!(
            message.contains("(127.0.0.1:16969, [::1]:16969) lists peers at their own addresses"),
            "{message}"
        );

        // Two of one address, one of another, in both families; some at the second addresses.
        let (mut a1, a1_id, _) = join(&alice, v4, 0);
        let (mut a2, a2_id, answer) = join(&alice, SocketAddr::new(second_v4, PORT), 5);
        assert_eq!(announced(&answer).len(), 1, "{answer:?}");
        let (b1, _, answer) = join(&bob, v4, 7);
        assert_eq!(announced(&answer).len(), 2, "{answer:?}");
        let (a6, _, _) = join(&alice, SocketAddr::new(second_v6, PORT), 3);
        let (mut b6, b6_id, answer) = join(&bob, v6, 0);
        let mut expected = vec![
            SocketAddr::new(alice.v4.into(), a1.address().port()),
            SocketAddr::new(alice.v4.into(), a2.address().port()),
            SocketAddr::new(bob.v4.into(), b1.address().port()),
            SocketAddr::new(alice.v6.into(), a6.address().port()),
            SocketAddr::new(bob.v6.into(), b6.address().port()),
        ];
        expected.sort();
        let found: Vec<SocketAddr> = tracker.peers(TORRENT).iter().map(|it| it.address).collect();
        assert_eq!(found, expected);
        println!("peers of the tracker: {found:?}");
        // What the clients get is of their own family.
        assert!(announced(&answer).iter().all(SocketAddr::is_ipv6));
        let Answer::Scraped(..) = b6.scrape(b6_id, TORRENT) else {
            panic!("no scrape");
        };

        // An id that was given to another port is the tracker's to refuse, in its words.
        let Answer::Error(said) = a2.announce(a1_id, TORRENT, 5) else {
            panic!("another's id was accepted");
        };
        println!("another port with the id of the first: {said}");
        assert!(matches!(
            a2.announce(a2_id, TORRENT, 5),
            Answer::Announced(..)
        ));

        // A tracker that is started again does not know the ids of before, which it says at once.
        tracker.interrupt();
        assert!(!a1.is_answered(Duration::from_millis(300)));
        let tracker = Torrust::start(settings()).unwrap();
        assert!(matches!(a1.announce(a1_id, TORRENT, 0), Answer::Error(_)));
        let id = a1.connect();
        assert!(matches!(a1.announce(id, TORRENT, 0), Answer::Announced(..)));
        let found: Vec<SocketAddr> = tracker.peers(TORRENT).iter().map(|it| it.address).collect();
        assert_eq!(
            found,
            [SocketAddr::new(alice.v4.into(), a1.address().port())]
        );

        // Each kind was counted, and nobody is named.
        for (name, labels, least) in [
            ("tidegate_udp_requests_total", "connect", 6),
            ("tidegate_udp_requests_total", "announce", 9),
            ("tidegate_udp_requests_total", "scrape", 1),
            ("tidegate_udp_responses_total", "announce", 7),
            ("tidegate_udp_responses_total", "error", 2),
        ] {
            let found = metric(&edge, name, labels);
            assert!(found >= least, "{name} {labels}: {found}");
        }
        let text = edge.admin("/metrics").unwrap();
        assert!(!text.contains("10.77.") && !text.contains("fd77:"));

        // Another rule changes nothing for those who are there.
        edge.write(
            "object-1.yaml",
            &route_of(&[rule(
                "udp2",
                "127.0.0.1:16969",
                "port: 7070, mode: Transparent",
            )])
            .replace("name: torrust", "name: second"),
        );
        let other = SocketAddr::from((Network::V4, 7070));
        let (mut c, _, _) = join(&bob, other, 1);
        assert!(matches!(a1.announce(id, TORRENT, 0), Answer::Announced(..)));
        edge.remove("object-1.yaml");
        eventually("the end of the second relay", PATIENCE, || {
            if c.is_answered(Duration::from_millis(200)) {
                Err("still there".to_owned())
            } else {
                Ok(())
            }
        });
        assert!(matches!(a1.announce(id, TORRENT, 0), Answer::Announced(..)));
    });
}

/// A tracker in a namespace of its own, as a container or pod of the machine is.
#[test]
fn a_tracker_in_a_container_of_the_machine_sees_who_asks() {
    Network::run(|network| {
        let (alice, pod) = (network.machine("alice"), network.machine("pod"));
        container(&pod);
        let backend: SocketAddr = "10.88.0.2:6969".parse().unwrap();
        let Some(tracker) = pod.inside(|| {
            Opentracker::start_at(
                &[TORRENT.to_owned()],
                backend,
                &format!("listen.udp {backend}\n"),
            )
        }) else {
            return;
        };
        let edge = Edge::start(&[route_of(&[rule(
            "udp1",
            "10.88.0.2:6969",
            "addresses: [10.77.0.1], mode: Transparent, maxSessions: 50, connectsPerSecond: 100000",
        )])]);
        obey(&wait_for(&edge, "RelayNoWayBack"));
        // It serves no torrent but those it was told of, so the trial cannot know whom it sees, and does not say so.
        let message = wait_for(&edge, "TransparentRelay");
        println!("of opentracker: {message}");
        assert!(
            message.contains("was not shown, because it refuses announces"),
            "{message}"
        );
        let to = SocketAddr::from((Network::V4, PORT));
        let (mut seeder, id, _) = join(&alice, to, 0);
        let (leecher, _, answer) = join(&alice, to, 9);
        println!("opentracker's answer: {answer:?}; {}", tracker.log());
        let peers = announced(&answer);
        let seed = SocketAddr::new(alice.v4.into(), seeder.address().port());
        assert!(peers.contains(&seed), "{peers:?}");
        assert!(peers.iter().all(|peer| peer.ip() == IpAddr::from(alice.v4)));
        // Its refusals reach clients too.
        let refused = seeder.announce(id, &TORRENT.replace('8', "9"), 0);
        assert_eq!(refused, Answer::Error(String::new()));

        // A flood of new ports: the table stays as it is bounded, and whoever announced is still there.
        alice.inside(|| {
            let mut sockets: Vec<Client> = (0..500).map(|_| Client::of(to)).collect();
            for socket in &mut sockets {
                let request = socket.connect_request();
                socket.send(&request);
            }
        });
        eventually("evictions", PATIENCE, || {
            match metric(&edge, "tidegate_udp_sessions_evicted_total", "udp1") {
                0..400 => Err("too few".to_owned()),
                _ => Ok(()),
            }
        });
        // The gauges are set a few times in a second.
        eventually("two established clients", PATIENCE, || {
            let found = (
                metric(&edge, "tidegate_udp_sessions{", "udp1"),
                metric(&edge, "tidegate_udp_sessions_established{", "udp1"),
            );
            match found {
                (2..=50, 2) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        assert!(matches!(
            seeder.announce(id, TORRENT, 0),
            Answer::Announced(..)
        ));
        drop(leecher);
    });
}
