//! A UDP tracker as a pod, its Service made by the program with the chart's permissions, and peers with their own
//! addresses: announced from outside of the node, read from the tracker's API.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Once;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::acme::authority::tool;
use crate::support::chart::{Permissions, helm};
use crate::support::program::{self, Program, missing};
use crate::support::{Kubectl, Node, eventually, ports};

const PATIENCE: Duration = Duration::from_mins(2);
pub(super) const IMAGE: &str = "tidegate.test/torrust-tracker:1";
const INFO_HASH: [u8; 20] = [0xab; 20];

const TRACKER: &str = r#"
[metadata]
app = "torrust-tracker"
purpose = "configuration"
schema_version = "2.0.0"
[logging]
threshold = "info"
[core]
listed = false
private = false
[core.net]
on_reverse_proxy = false
[core.database]
driver = "sqlite3"
path = "/data/tracker.db"
[[udp_trackers]]
bind_address = "0.0.0.0:PORT"
[http_api]
bind_address = "0.0.0.0:1212"
[http_api.access_tokens]
admin = "token"
[health_check_api]
bind_address = "127.0.0.1:1313"
"#;

/// Once, because several stories of the shared node need it.
pub(super) fn import_tracker(node: &Node) {
    static IMPORTED: Once = Once::new();
    IMPORTED.call_once(|| node.import_program(IMAGE, &tool("torrust-tracker")));
}

/// The tracker at a UDP port of its pod, and a Service of a user's own that leads to it.
pub(super) fn tracker(port: u16) -> String {
    let labels = json!({"app": "tracker"});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tracker"},
            "data": {"tracker.toml": TRACKER.replace("PORT", &port.to_string())},
        },
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "tracker"},
            "spec": {"selector": labels, "ports": [
                {"name": "udp", "port": port, "protocol": "UDP"},
                {"name": "api", "port": 1212},
            ]},
        },
        {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tracker", "labels": labels},
            "spec": {
                // It does not end when it is asked to.
                "terminationGracePeriodSeconds": 1,
                "securityContext": {"fsGroup": 65532},
                "containers": [{
                    "name": "tracker", "image": IMAGE, "imagePullPolicy": "Never",
                    "workingDir": "/data",
                    "env": [{"name": "TORRUST_TRACKER_CONFIG_TOML_PATH", "value": "/etc/torrust/tracker.toml"}],
                    "readinessProbe": {"httpGet": {"path": "/api/health_check", "port": 1212}, "periodSeconds": 1},
                    "volumeMounts": [
                        {"name": "config", "mountPath": "/etc/torrust"},
                        {"name": "data", "mountPath": "/data"},
                    ],
                }],
                "volumes": [
                    {"name": "config", "configMap": {"name": "tracker"}},
                    {"name": "data", "emptyDir": {}},
                ],
            },
        },
    ]})
    .to_string()
}

fn route(class: &str, rules: &[&str]) -> String {
    let rules: Vec<Value> = rules
        .iter()
        .map(|name| {
            json!({
                "name": name, "tracker": {"type": "UDP"},
                "backends": [{"service": {"name": "tracker", "port": 6969}}],
            })
        })
        .collect();
    json!({
        "apiVersion": "edge.tidegate.dev/v1alpha1", "kind": "TlsRoute", "metadata": {"name": "torrust"},
        "spec": {"className": class, "hostnames": ["udp.example.com"], "rules": rules},
    })
    .to_string()
}

/// Announces by UDP (BEP 15) from an address of this machine, 0.0.0.0 for any, and returns the tracker's answer to it.
pub(super) fn announce(from: IpAddr, tracker: SocketAddr) -> Result<Vec<u8>, String> {
    let said = |error: std::io::Error| error.to_string();
    let socket = UdpSocket::bind((from, 0)).map_err(said)?;
    let limit = Some(Duration::from_secs(1));
    socket.set_read_timeout(limit).map_err(said)?;
    socket.connect(tracker).map_err(said)?;
    let ask = |question: &[u8]| -> Result<Vec<u8>, String> {
        socket.send(question).map_err(said)?;
        let mut answer = [0; 2048];
        let length = socket.recv(&mut answer).map_err(said)?;
        Ok(answer[..length].to_vec())
    };
    let connect = [&0x0417_2710_1980_u64.to_be_bytes()[..], &[0; 4], b"tide"].concat();
    let answer = ask(&connect)?;
    let id = answer.get(8..16).ok_or("a short answer to connect")?;
    let mut question = [
        id,
        &1_u32.to_be_bytes(),
        b"gate",
        &INFO_HASH,
        // Trackers know peers by this.
        format!("-TG0000-{:0>12}", from.to_string().replace('.', "")).as_bytes(),
    ]
    .concat();
    // Downloaded, left, uploaded, event, address, key, number wanted, port.
    question.extend([0; 24]);
    question.extend([0; 12]);
    question.extend((-1_i32).to_be_bytes());
    question.extend(51_413_u16.to_be_bytes());
    let answer = ask(&question)?;
    match answer.get(..4) {
        Some([0, 0, 0, 1]) => Ok(answer),
        _ => Err(format!("{:?}", String::from_utf8_lossy(&answer))),
    }
}

struct Story<'a> {
    node: &'a Node,
    kubectl: &'a Kubectl,
    namespace: String,
    edge: Program,
}

impl Story<'_> {
    fn get(&self, object: &str, path: &str) -> String {
        let path = format!("jsonpath={path}");
        let args = [
            "get",
            object,
            "-n",
            &self.namespace,
            "--ignore-not-found",
            "-o",
            &path,
        ];
        self.kubectl.run(&args)
    }

    #[track_caller]
    fn patch(&self, object: &str, more: &[&str], patch: &Value) {
        let patch = patch.to_string();
        let args = [
            "patch",
            object,
            "-n",
            &self.namespace,
            "--type=merge",
            "-p",
            &patch,
        ];
        self.kubectl.run(&[&args[..], more].concat());
    }

    #[track_caller]
    fn preserved(&self, status: &str, reason: &str) -> String {
        let wanted = format!("{status} {reason} ");
        eventually(&wanted, PATIENCE, || {
            let of = "{range .status.conditions[?(@.type=='ClientAddressPreserved')]}";
            let path = format!("{of}{{.status}} {{.reason}} {{.message}}{{end}}");
            let found = self.get("tlsr/torrust", &path);
            let said = found.strip_prefix(&wanted).map(str::to_owned);
            said.ok_or_else(|| format!("{found}\n{}", self.edge.log()))
        })
    }

    /// What a controller of load balancers does.
    fn balance(&self, service: &str) {
        let address = self.node.address().to_string();
        let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}});
        self.patch(service, &["--subresource=status"], &ingress);
    }

    #[track_caller]
    fn gone(&self, service: &str) {
        eventually(&format!("the end of {service}"), PATIENCE, || {
            let found = self.get(service, "{.metadata.name}");
            found.is_empty().then_some(()).ok_or(self.edge.log())
        });
    }
}

/// Waits until the API of the tracker in this namespace lists these peers and no others.
#[track_caller]
pub(super) fn lists(node: &Node, namespace: &str, expected: &[String]) {
    let path = "jsonpath={.spec.clusterIP}";
    let service = ["get", "service/tracker", "-n", namespace, "-o", path];
    let address = node.cluster().kubectl().run(&service);
    let hash = "ab".repeat(INFO_HASH.len());
    eventually("the peers of the tracker", PATIENCE, || {
        let mut curl = node.command("curl");
        curl.args(["-sSf", "--max-time", "5"]);
        curl.arg(format!(
            "http://{address}:1212/api/v1/torrent/{hash}?token=token"
        ));
        let (_, said) = program::run(&mut curl);
        let torrent: Value = serde_json::from_str(&said).unwrap_or_default();
        let peers = torrent["peers"].as_array().ok_or(said)?;
        let addresses = peers.iter().map(|it| it["peer_addr"].as_str().unwrap());
        let mut found: Vec<String> = addresses.map(str::to_owned).collect();
        found.sort();
        if found == expected {
            eprintln!("the tracker lists {found:?}");
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
}

#[test]
fn peers_keep_their_addresses_and_the_service_stays_as_it_was_made() {
    let (Some(node), Some(helm)) = (Node::shared(), helm()) else {
        return;
    };
    if missing(&[tool("torrust-tracker")]) {
        return;
    }
    import_tracker(node);
    let cluster = node.cluster();
    let kubectl = cluster.kubectl();
    let (home, served) = (cluster.namespace(), cluster.namespace());
    let (home, served) = (home.name(), served.name());
    let _permissions = Permissions::install(&helm, kubectl, home, &[served]);
    kubectl.apply(served, &tracker(6969));
    kubectl.apply(served, &route(home, &["udp1"]));
    let state = tempfile::tempdir().unwrap();
    let admin = ports::free();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command
        .args(["operator", "--namespace", home, "--identity", "one"])
        .args(["--class", home, "--lease", Permissions::account()])
        .args([
            "--watch-namespace",
            served,
            "--public-address",
            "203.0.113.7",
        ])
        .args(["--http", &format!("127.0.0.1:{}", ports::free())])
        .args(["--https", &format!("127.0.0.1:{}", ports::free())])
        .args(["--admin", &format!("127.0.0.1:{admin}")])
        .arg("--state-dir")
        .arg(state.path().join("state"))
        .env(
            "KUBECONFIG",
            cluster.kubeconfig_for(home, Permissions::account()),
        );
    let story = Story {
        node,
        kubectl,
        namespace: served.to_owned(),
        edge: Program::start(&mut command).wait_for_port(admin),
    };

    // Made beside the tracker's own, and waiting for a load balancer.
    let service = "service/torrust-udp1";
    let said = story.preserved("False", "LoadBalancerPending");
    let port = story.get(service, "{.spec.ports[0].nodePort}");
    assert!(
        said.contains(&format!("UDP port {port} of the nodes")),
        "{said}"
    );
    let path = "{.spec.type} {.spec.externalTrafficPolicy} {.spec.selector.app} {.metadata.ownerReferences[0].name}";
    assert_eq!(
        story.get(service, path),
        "LoadBalancer Local tracker torrust"
    );
    story.balance(service);
    story.preserved("True", "ServiceLocal");
    let records = story.get("tlsr/torrust", "{.status.dnsRecords[*]}");
    let address: IpAddr = node.address();
    let expected =
        format!("udp.example.com. IN A {address} udp.example.com. IN TXT \"BITTORRENT UDP:6969\"");
    assert_eq!(records, expected);

    // From outside, by the address of the load balancer and by the node's port.
    let client = node.host_address().to_string();
    for port in [6969, port.parse().unwrap()] {
        eventually("an answer of the tracker", PATIENCE, || {
            announce(node.host_address(), SocketAddr::new(address, port))
        });
        eprintln!("announced by UDP port {port}");
        lists(node, served, &[format!("{client}:51413")]);
    }

    // What somebody changes is changed back, and told.
    story.patch(
        service,
        &[],
        &json!({"spec": {"externalTrafficPolicy": "Cluster"}}),
    );
    eventually("the Event of it", PATIENCE, || {
        let reasons = story.get("events.events.k8s.io", "{.items[*].reason}");
        let told = reasons.contains("SourceAddressReplaced");
        told.then_some(())
            .ok_or_else(|| format!("{reasons}\n{}", story.edge.log()))
    });
    assert_eq!(story.get(service, "{.spec.externalTrafficPolicy}"), "Local");

    // One of somebody else is not touched, and the switch that mends it is named.
    let theirs = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "torrust-udp2"},
        "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Cluster", "selector": {"app": "tracker"},
            "ports": [{"port": 6969, "protocol": "UDP"}],
        },
    });
    kubectl.apply(served, &theirs.to_string());
    let theirs = "service/torrust-udp2";
    story.balance(theirs);
    kubectl.apply(served, &route(home, &["udp1", "udp2"]));
    let said = story.preserved("False", "SourceAddressReplaced");
    let switch = format!("set externalTrafficPolicy: Local in Service {served}/torrust-udp2");
    assert!(said.contains(&switch), "{said}");
    assert_eq!(
        story.get(theirs, "{.spec.externalTrafficPolicy}"),
        "Cluster"
    );
    story.patch(
        theirs,
        &[],
        &json!({"spec": {"externalTrafficPolicy": "Local"}}),
    );
    story.preserved("True", "ServiceLocal");

    // With the rule it goes, with the route too; that of somebody else stays.
    kubectl.apply(served, &route(home, &["udp2", "udp3"]));
    story.gone(service);
    eventually("the next", PATIENCE, || {
        let found = story.get("service/torrust-udp3", "{.metadata.name}");
        (!found.is_empty())
            .then_some(())
            .ok_or_else(|| story.edge.log())
    });
    kubectl.run(&["delete", "tlsr/torrust", "-n", served, "--timeout=20s"]);
    story.gone("service/torrust-udp3");
    assert_eq!(story.get(theirs, "{.metadata.name}"), "torrust-udp2");
    let log = story.edge.log();
    assert!(
        !log.to_lowercase().contains("forbidden"),
        "the role lacks something:\n{log}"
    );
}
