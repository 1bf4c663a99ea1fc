//! The example of the Torrust stack for Kubernetes, as it is written, but for the image and the disk: the edge by its
//! chart, the tracker as a pod, peers that announce from outside of the node and keep their addresses.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::release::import_image;
use super::udp_trackers::{IMAGE, import_tracker};
use crate::support::acme::authority::tool;
use crate::support::chart::{self, folder, helm, list, objects};
use crate::support::program::{self, missing};
use crate::support::{Kubectl, Node, eventually};

const PATIENCE: Duration = Duration::from_mins(2);
const NAMESPACE: &str = "torrust";
const INFO_HASH: &str = "%86szL%94%0et%d5;D%f2%c3%ee_%1e%b0%a5%ac%1d%11";
const INFO_HASH_HEX: &str = "86737a4c940e74d53b44f2c3ee5f1eb0a5ac1d11";

fn example(file: &str) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/torrust-kubernetes");
    objects(&fs::read_to_string(folder.join(file)).unwrap())
}

/// The example's tracker with the image that is there, and without a disk, which the node cannot give.
fn tracker() -> Vec<Value> {
    let mut all = example("tracker.yaml");
    let set = all.iter_mut().find(|it| it["kind"] == "StatefulSet");
    let spec = &mut set.unwrap()["spec"];
    spec.as_object_mut().unwrap().remove("volumeClaimTemplates");
    let pod = &mut spec["template"]["spec"];
    pod["terminationGracePeriodSeconds"] = json!(1);
    let volumes = pod["volumes"].as_array_mut().unwrap();
    volumes.push(json!({"name": "data", "emptyDir": {}}));
    let container = &mut pod["containers"][0];
    container["image"] = json!(IMAGE);
    container["imagePullPolicy"] = json!("Never");
    container["readinessProbe"]["periodSeconds"] = json!(1);
    // There is no shell in the image, and the program has another place.
    let container = container.as_object_mut().unwrap();
    container.remove("command");
    container.remove("lifecycle");
    all
}

/// The routes to the tracker. The other ones lead to programs that are not here.
fn routes() -> Vec<Value> {
    let all = example("routes.yaml").into_iter();
    all.filter(|it| {
        it["metadata"]["name"]
            .as_str()
            .unwrap()
            .starts_with("tracker")
    })
    .collect()
}

struct Story<'a> {
    node: &'a Node,
    kubectl: &'a Kubectl,
    port: String,
}

impl Story<'_> {
    /// What curl says of the path at the host of the example.
    fn ask(&self, host: &str, path: &str, more: &[&str]) -> (bool, String) {
        let host = format!("{host}.torrust.example.com");
        let mut curl = Command::new("curl");
        // Of an internal CA here; how authorities are asked is told by other stories.
        curl.args(["--insecure", "-sSf", "--max-time", "5", "--output", "-"])
            .args(more)
            .args([
                "--resolve",
                &format!("{host}:{}:{}", self.port, self.node.address()),
            ])
            .arg(format!("https://{host}:{}{path}", self.port));
        program::run(&mut curl)
    }

    /// What the route says of clients' addresses.
    fn said(&self, route: &str) -> String {
        let of = "{range .status.conditions[?(@.type=='ClientAddressPreserved')]}";
        let path = format!("jsonpath={of}{{.status}} {{.reason}} {{.message}}{{end}}");
        let route = format!("tlsr/{route}");
        self.kubectl
            .run(&["get", &route, "-n", NAMESPACE, "-o", &path])
    }
}

#[test]
fn the_torrust_stack_of_the_example_lists_peers_with_their_own_addresses() {
    let (Some(node), Some(helm)) = (Node::shared(), helm()) else {
        return;
    };
    if missing(&[tool("torrust-tracker")]) {
        return;
    }
    import_image(node);
    import_tracker(node);
    let kubectl = node.cluster().kubectl();
    let home = node.cluster().namespace();
    kubectl.apply(NAMESPACE, &list(&tracker()));
    let run = |args: &[&str]| chart::run(&helm, node.cluster(), home.name(), args);
    let chart = folder();
    run(&[
        "install",
        "trackers",
        chart.to_str().unwrap(),
        "--set=image.repository=tidegate.test/tidegate,image.tag=test,image.pullPolicy=Never",
        "--set=crds.enabled=false,policy.crossObject=false",
        "--set=service.type=NodePort,replicas=1,preStopSeconds=1,drainSeconds=1",
        &format!("--set=watchNamespaces={{{NAMESPACE}}}"),
        "--wait",
        "--timeout=180s",
    ]);
    kubectl.apply(NAMESPACE, &list(&routes()));
    let ready = [
        "wait",
        "--for=condition=Ready",
        "pod/tracker-0",
        "-n",
        NAMESPACE,
    ];
    kubectl.run(&[&ready[..], &["--timeout=120s"]].concat());
    let path = r#"jsonpath={.spec.ports[?(@.name=="https")].nodePort}"#;
    let service = [
        "get",
        "service/trackers-tidegate",
        "-n",
        home.name(),
        "-o",
        path,
    ];
    let story = Story {
        node,
        kubectl,
        port: kubectl.run(&service),
    };

    // One peer for each tracker; the second claims to be somebody else.
    for (host, peer, claims) in [
        ("http1", "1", &[][..]),
        (
            "http2",
            "2",
            &[
                "-H",
                "X-Forwarded-For: 198.51.100.9",
                "-H",
                "X-Real-IP: 198.51.100.9",
            ],
        ),
    ] {
        let announce = format!(
            "/announce?info_hash={INFO_HASH}&peer_id=-XX0001-00000000000{peer}&port=688{peer}&uploaded=0&downloaded=0&left=0&compact=1"
        );
        eventually("an answer of the tracker", PATIENCE, || {
            let (ok, said) = story.ask(host, &announce, claims);
            (ok && said.starts_with("d8:complete"))
                .then_some(())
                .ok_or(said)
        });
    }
    // The example's token, which everybody is told to change.
    let question = format!("/api/v1/torrent/{INFO_HASH_HEX}?token=CHANGE-ME");
    let (ok, said) = story.ask("api", &question, &[]);
    assert!(ok, "{said}");
    let torrent: Value = serde_json::from_str(&said).unwrap();
    let mut peers: Vec<&str> = torrent["peers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|peer| peer["peer_addr"].as_str().unwrap())
        .collect();
    peers.sort_unstable();
    let client = node.host_address();
    assert_eq!(peers, [format!("{client}:6881"), format!("{client}:6882")]);
    eprintln!("announced over HTTPS through the chart's edge; the tracker lists {peers:?}");

    // What a controller of load balancers does, with an address of nobody.
    let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}});
    let balanced = ["patch", "service/trackers-udp1", "-n", NAMESPACE];
    let status = ["--subresource=status", "-p", &ingress.to_string()];
    kubectl.run(&[&balanced[..], &status].concat());
    // The tracker is asked whether its switch stands right.
    let mut route = routes().remove(0);
    route["spec"]["rules"][0]["tracker"]["probe"] = json!({"interval": "1m"});
    kubectl.apply(NAMESPACE, &route.to_string());
    let verdict = |expected: &str| {
        eventually(expected, PATIENCE, || {
            let said = story.said("trackers");
            said.contains(expected).then_some(()).ok_or(said)
        });
    };
    verdict("http1 (http1.torrust.example.com) reads it");

    // A mixed set is refused where it is written.
    route["spec"]["rules"][1]["tracker"]["exposure"] = json!("Direct");
    let (ok, said) =
        kubectl.attempt_with(&["apply", "-n", NAMESPACE, "-f", "-"], &route.to_string());
    assert!(
        !ok && said.contains("http1 (http1.torrust.example.com) through the edge, http2 (http2.torrust.example.com) directly"),
        "{said}"
    );

    run(&["uninstall", "trackers", "--wait", "--timeout=120s"]);
    kubectl.run(&["delete", "namespace", NAMESPACE, "--wait=false"]);
}
