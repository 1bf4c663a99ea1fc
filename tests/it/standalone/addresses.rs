//! A machine with several public addresses: the edge listens at chosen ones, in both families apart.

use std::net::IpAddr;
use std::process::Command;

use crate::support::edge::PATIENCE;
use crate::support::netns::Network;
use crate::support::program::run;
use crate::support::{Edge, eventually, missing};

const ROUTE: &str = "\
apiVersion: edge.tidegate.dev/v1alpha1
kind: TlsRoute
metadata: {name: tracker}
spec:
  hostnames: [tracker.example.com]
  http: {plain: Serve}
  rules:
  - filters: [{type: FixedResponse, fixedResponse: {status: 200, body: here}}]
";

#[test]
fn the_edge_is_at_the_chosen_addresses_and_at_no_others() {
    if missing(&["curl"]) {
        return;
    }
    Network::run(|network| {
        let floating: [IpAddr; 2] = ["203.0.113.7", "2001:db8::7"].map(|it| it.parse().unwrap());
        let others: [IpAddr; 2] = ["203.0.113.8", "2001:db8::8"].map(|it| it.parse().unwrap());
        for address in floating.iter().chain(&others) {
            network.address(*address);
        }
        let peer = network.machine("peer");
        let edge = Edge::builder()
            .object(ROUTE)
            .arg("--http=203.0.113.7:80,[2001:db8::7]:80,203.0.113.7:7070")
            .arg("--https=203.0.113.7:443,[2001:db8::7]:443")
            .start();
        let ask = |scheme: &str, port: u16, address: IpAddr| {
            let to = match address {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            };
            let mut curl = peer.command("curl");
            curl.args(["-sk", "--max-time", "10", "-w", " from %{remote_ip}"])
                .args(["--resolve", &format!("tracker.example.com:{port}:{to}")])
                .arg(format!("{scheme}://tracker.example.com:{port}/"));
            run(&mut curl)
        };
        for address in floating {
            for (scheme, port) in [("http", 80), ("https", 443)] {
                let (done, said) = ask(scheme, port, address);
                assert!(done && said == format!("here from {address}"), "{said}");
            }
        }
        let (done, said) = ask("http", 7070, floating[0]);
        assert!(done && said.starts_with("here"), "{said}");
        for (scheme, port, address) in [
            ("http", 80, others[0]),
            ("https", 443, others[0]),
            ("https", 443, others[1]),
            ("https", 443, IpAddr::V4(Network::V4)),
            ("https", 443, IpAddr::V6(Network::V6)),
            ("http", 7070, floating[1]),
        ] {
            let (done, said) = ask(scheme, port, address);
            assert!(!done, "{scheme} {port} at {address}: {said}");
        }
        // Each client in its own family.
        eventually("the requests in the log", PATIENCE, || {
            let log = edge.log();
            let v6 = log.contains(&peer.v6.to_string());
            let known = v6 && log.contains(&peer.v4.to_string());
            known.then_some(()).ok_or(log)
        });
        assert!(!edge.log().contains("::ffff:"), "{}", edge.log());

        let mut status = Edge::command();
        status.args(["status", "--dns", "--state-dir"]);
        let (_, said) = run(status.arg(edge.folder().join("state")));
        for record in ["A 203.0.113.7", "AAAA 2001:db8::7"] {
            let record = format!("tracker.example.com. IN {record}");
            assert!(said.lines().any(|line| line == record), "{said}");
        }

        // One that the machine does not have is told, and nothing is served instead.
        let folder = tempfile::tempdir().unwrap();
        let mut wrong: Command = Edge::command();
        wrong
            .args([
                "run",
                "--http=off",
                "--https=203.0.113.9:443",
                "--admin=off",
            ])
            .arg(folder.path());
        let (started, said) = run(&mut wrong);
        assert!(!started && said.contains("203.0.113.9:443"), "{said}");
    });
}
