//! Where the relay cannot keep addresses it relays nothing, and says why.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use super::{PORT, TORRENT, client::Client, condition, metric, route_of, rule, wait_for};
use crate::support::edge::PATIENCE;
use crate::support::netns::Network;
use crate::support::trackers::Opentracker;
use crate::support::{Edge, eventually, missing};

/// Longer than an answer takes, short enough for a test.
const WHILE: Duration = Duration::from_millis(500);

#[test]
fn without_the_capability_nothing_is_relayed_under_another_address() {
    if missing(&["setpriv"]) {
        return;
    }
    Network::run(|network| {
        let alice = network.machine("alice");
        let backend: SocketAddr = "127.0.0.1:16969".parse().unwrap();
        let listen = format!("listen.udp {backend}\n");
        let Some(_tracker) = Opentracker::start_at(&[TORRENT.to_owned()], backend, &listen) else {
            return;
        };
        let transparent = rule("udp1", "127.0.0.1:16969", "port: 6969, mode: Transparent");
        let edge = Edge::builder()
            .under(&["setpriv", "--bounding-set", "-net_admin,-net_raw"])
            .object(route_of(&[transparent]))
            .start();
        let message = wait_for(&edge, "RelayNotPermitted");
        assert!(message.contains("CAP_NET_ADMIN"), "{message}");
        let to = SocketAddr::from((Network::V4, PORT));
        assert!(!alice.inside(|| Client::of(to).is_answered(WHILE)));
        assert!(metric(&edge, "tidegate_udp_dropped_total", "no_way") >= 1);

        // The experiment needs no capability, but a tracker that reads the header; opentracker does not.
        let other = rule("udp1", "127.0.0.1:16969", "port: 6969, mode: ProxyProtocol");
        edge.write("object-0.yaml", &route_of(&[other]));
        let message = wait_for(&edge, "ProxyHeaderNotRead");
        assert!(message.contains("PROXY"), "{message}");
        assert!(!alice.inside(|| Client::of(to).is_answered(WHILE)));

        // A tracker that does not run is told from both.
        let silent = rule("udp1", "127.0.0.1:16968", "port: 6969, mode: ProxyProtocol");
        edge.write("object-0.yaml", &route_of(&[silent]));
        wait_for(&edge, "TrackerSilent");

        // And so is a port that the tracker itself has, and an address that the machine does not.
        let _holder = UdpSocket::bind("0.0.0.0:6968").unwrap();
        let taken = [
            rule("udp1", "127.0.0.1:16969", "port: 6968, mode: Transparent"),
            rule(
                "udp2",
                "127.0.0.1:16969",
                "addresses: [10.77.0.9], port: 6967, mode: Transparent",
            ),
        ];
        edge.write("object-0.yaml", &route_of(&taken));
        let message = eventually("UdpPortUnavailable", PATIENCE, || {
            match condition(&edge, "Programmed") {
                Some((_, reason, message))
                    if reason == "UdpPortUnavailable" && message.contains("10.77.0.9") =>
                {
                    Ok(message)
                }
                other => Err(format!("{other:?}")),
            }
        });
        assert!(
            message.contains("another program has UDP port 6968"),
            "{message}"
        );
        // As soon as the address is there it is listened on.
        network.address("10.77.0.9".parse().unwrap());
        eventually("the floating address", PATIENCE, || {
            match condition(&edge, "Programmed") {
                Some((_, _, message)) if !message.contains("10.77.0.9") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    });
}

/// What a tracker gets that reads PROXY headers: none that is known does, so the test reads them itself.
#[test]
fn each_datagram_tells_a_tracker_that_reads_the_header_who_asks() {
    Network::run(|network| {
        let alice = network.machine("alice");
        let tracker = UdpSocket::bind("127.0.0.1:16969").unwrap();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            loop {
                let (length, from) = tracker.recv_from(&mut buffer).unwrap();
                let datagram = &buffer[..length];
                // IPv4 over UDP, 12 bytes of addresses.
                if !datagram.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c") || length != 44 {
                    continue;
                }
                let mut answer = [0; 16];
                answer[4..8].copy_from_slice(&datagram[40..44]);
                // The client's address and port stand for a connection id.
                answer[8..12].copy_from_slice(&datagram[16..20]);
                answer[12..14].copy_from_slice(&datagram[24..26]);
                tracker.send_to(&answer, from).unwrap();
                if datagram[16] == 10 {
                    return;
                }
            }
        });
        let udp = "port: 6969, addresses: [10.77.0.1], mode: ProxyProtocol";
        let edge = Edge::start(&[route_of(&[rule("udp1", "127.0.0.1:16969", udp)])]);
        wait_for(&edge, "ProxyProtocol");
        let to = SocketAddr::from((Network::V4, PORT));
        let (id, port) = alice.inside(|| {
            let mut client = Client::of(to);
            (client.connect(), client.address().port())
        });
        let told = [&alice.v4.octets()[..], &port.to_be_bytes(), &[0, 0]].concat();
        assert_eq!(id.to_be_bytes(), *told);
        reader.join().unwrap();
    });
}
