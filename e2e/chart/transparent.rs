//! The relay of a UDP tracker in the node's network, installed as the guide says: the edge by its chart, the tracker as
//! a pod, peers outside of the node. Nothing is prepared on the node but what the status tells to do.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::release::import_image;
use super::udp_trackers::{announce, import_tracker, lists, tracker};
use crate::support::acme::authority::tool;
use crate::support::chart::{self, folder, helm};
use crate::support::program::{self, missing};
use crate::support::{Kubectl, Node, eventually};

const PATIENCE: Duration = Duration::from_mins(2);
/// Not those of the other stories of this node, whose answers must go where they went before.
const TRACKER_PORT: u16 = 6979;
const PORT: u16 = 16_979;
/// In the node's network.
const ADMIN: u16 = 9181;
/// Of a client that is not the node's neighbour (RFC 5737).
const FAR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 77));

fn route() -> String {
    json!({
        "apiVersion": "edge.tidegate.dev/v1alpha1", "kind": "TlsRoute", "metadata": {"name": "torrust"},
        "spec": {"hostnames": ["udp.example.com"], "rules": [{
            "name": "udp1",
            "tracker": {"type": "UDP", "udp": {"mode": "Transparent", "port": PORT}},
            "backends": [{"service": {"name": "tracker", "port": TRACKER_PORT}}],
        }]},
    })
    .to_string()
}

struct Story<'a> {
    node: &'a Node,
    kubectl: &'a Kubectl,
    namespace: &'a str,
    home: &'a str,
}

impl Story<'_> {
    fn on_node(&self, command: &str) {
        program::succeed(self.node.command("sh").args(["-c", command]));
    }

    /// Waits for a reason of `ClientAddressPreserved`; returns what is said.
    #[track_caller]
    fn preserved(&self, status: &str, reason: &str) -> String {
        let wanted = format!("{status} {reason} ");
        eventually(&wanted, PATIENCE, || {
            let of = "{range .status.conditions[?(@.type=='ClientAddressPreserved')]}";
            let path = format!("jsonpath={of}{{.status}} {{.reason}} {{.message}}{{end}}");
            let route = ["get", "tlsr/torrust", "-n", self.namespace, "-o", &path];
            let found = self.kubectl.run(&route);
            let said = found.strip_prefix(&wanted).map(str::to_owned);
            said.ok_or_else(|| format!("{found}\n{}", self.log()))
        })
    }

    fn log(&self) -> String {
        let args = [
            "logs",
            "-n",
            self.home,
            "daemonset/edge-tidegate",
            "--tail=40",
        ];
        let (_, said) = self.kubectl.attempt(&args);
        said
    }

    fn address_of_tracker(&self) -> String {
        let path = "jsonpath={.status.podIP}";
        let pod = ["get", "pod/tracker", "-n", self.namespace, "-o", path];
        self.kubectl.run(&pod)
    }

    /// Announces from both addresses; the tracker lists them and nobody else.
    #[track_caller]
    fn announce(&self) {
        let near = self.node.host_address();
        for from in [near, FAR] {
            let to = SocketAddr::new(self.node.address(), PORT);
            eventually("an answer of the tracker", PATIENCE, || {
                announce(from, to).map_err(|said| format!("{from}: {said}\n{}", self.log()))
            });
        }
        let mut expected = [near, FAR].map(|ip| format!("{ip}:51413"));
        expected.sort();
        lists(self.node, self.namespace, &expected);
    }
}

#[test]
fn a_relay_in_the_nodes_network_shows_the_tracker_its_peers() {
    let (Some(node), Some(helm)) = (Node::shared(), helm()) else {
        return;
    };
    if missing(&[tool("torrust-tracker")]) {
        return;
    }
    import_image(node);
    import_tracker(node);
    let cluster = node.cluster();
    let kubectl = cluster.kubectl();
    let (home, served) = (cluster.namespace(), cluster.namespace());
    let (home, served) = (home.name(), served.name());
    let story = Story {
        node,
        kubectl,
        namespace: served,
        home,
    };
    kubectl.apply(served, &tracker(TRACKER_PORT));
    let run = |args: &[&str]| chart::run(&helm, cluster, home, args);
    let chart = folder();
    run(&[
        "install",
        "edge",
        chart.to_str().unwrap(),
        "--set=image.repository=tidegate.test/tidegate,image.tag=test,image.pullPolicy=Never",
        "--set=crds.enabled=false,policy.crossObject=false,preStopSeconds=1,drainSeconds=1",
        &format!("--set=watchNamespaces={{{served}}}"),
        // What the guide says.
        "--set=kind=DaemonSet,nodeSelector.kubernetes\\.io/hostname=node",
        "--set=hostNetwork.enabled=true,service.enabled=false,trackers.transparent=true",
        // Other stories have the usual ports of the node.
        "--set=hostPorts.http=82,hostPorts.https=445",
        &format!("--set=containerPorts.admin={ADMIN}"),
        "--wait",
        "--timeout=180s",
    ]);
    kubectl.apply(served, &route());
    // As network plugins do it for what enters pods from outside of them (flannel), but only for this tracker.
    let pods = Node::PODS;
    let masquerade = format!(
        "iptables -t nat -A POSTROUTING ! -s {pods} -d {pods} -p udp --dport {TRACKER_PORT} -j MASQUERADE"
    );
    story.on_node(&masquerade);

    // The message has the commands, and says who has found it.
    let said = story.preserved("False", "RelayNoWayBack");
    eprintln!("before: {said}");
    let pod = [
        "get",
        "pods",
        "-n",
        home,
        "-o",
        "jsonpath={.items[*].metadata.name}",
    ];
    let pod = kubectl.run(&pod);
    assert!(said.contains(&format!("at replica {pod}")), "{said}");
    let commands: Vec<&str> = said.split('`').skip(1).step_by(2).collect();
    assert_eq!(commands.len(), 2, "{said}");
    for command in &commands {
        story.on_node(command);
    }
    let address = story.address_of_tracker();

    // Nobody has told the edge of the masquerading.
    let said = story.preserved("False", "RelayAddressReplaced");
    eprintln!("masqueraded: {said}");
    let exempt = said.split('`').nth(1).unwrap();
    let exempt = exempt.replace(&address, pods);
    story.on_node(&exempt);
    let said = story.preserved("True", "TransparentRelay");
    eprintln!("after {commands:?} and {exempt}: {said}");
    let shown_at =
        |ip: &str| format!("the tracker ({ip}:{TRACKER_PORT}) lists peers at their own addresses");
    let shown = shown_at(&address);
    assert!(said.contains(&shown) && said.contains(&pod), "{said}");

    // A second address of this machine, which the node would answer to elsewhere.
    let far = format!("{FAR}/32");
    let add = ["address", "add", &far, "dev", node.name()];
    program::succeed(Command::new("ip").args(add));
    let near = node.host_address();
    story.on_node(&format!("ip route add {far} via {near}"));
    story.announce();

    // With the range of the node's pods, another pod of the tracker needs no other rule.
    let rule = commands[0].replace(&address, pods);
    assert_ne!(rule, commands[0]);
    story.on_node(&rule);
    story.on_node(&commands[0].replace(" add ", " delete "));
    kubectl.run(&["delete", "pod/tracker", "-n", served, "--timeout=60s"]);
    kubectl.apply(served, &tracker(TRACKER_PORT));
    let ready = ["wait", "--for=condition=Ready", "pod/tracker"];
    kubectl.run(&[&ready[..], &["-n", served, "--timeout=120s"]].concat());
    let other = story.address_of_tracker();
    assert_ne!(other, address);
    story.announce();
    let said = story.preserved("True", "TransparentRelay");
    assert!(said.contains(&other), "{said}");
    // What a replica says that does not write statuses.
    let mut curl = node.command("curl");
    let admin = format!("http://127.0.0.1:{ADMIN}");
    curl.args(["-sSf", "--max-time", "5"]);
    curl.args([format!("{admin}/api/v1/routes"), format!("{admin}/metrics")]);
    let view = program::succeed(&mut curl);
    let open = format!("route=\"{served}/torrust\",rule=\"udp1\",family=\"v4\"}} 1");
    assert!(
        view.contains(&shown_at(&other)) && view.contains(&open),
        "{view}"
    );

    kubectl.run(&["delete", "tlsr/torrust", "-n", served, "--timeout=20s"]);
    run(&["uninstall", "edge", "--wait", "--timeout=120s"]);
    story.on_node(&rule.replace(" add ", " delete "));
    story.on_node("ip route flush table 6969");
    for rule in [
        exempt.replace(" -I ", " -D "),
        masquerade.replace(" -A ", " -D "),
    ] {
        story.on_node(&rule);
    }
}
