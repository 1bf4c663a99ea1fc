//! The agent on each node of a cluster that nobody reaches, as examples/agent has it, and an edge elsewhere.
//!
//! ```text
//! visitor ─► edge on this machine ═══ agent in a pod of the node ─► a Service of the cluster ─► a pod
//! ```

use serde_json::Value;

use crate::support::edge::{PATIENCE, route};
use crate::support::program;
use crate::support::{Edge, Node, POD_IMAGE, eventually, secret};

const EXAMPLE: &str = include_str!("../examples/agent/daemonset.yaml");
const SPACE: &str = "tidegate-agent";
const IMAGE: &str = "tidegate.test/tidegate-agent:test";
const APP: &str = "app.home.example.com";

/// The example, with what people write into it.
fn filled_in(edge: &str, namespace: &str) -> String {
    let mut text = EXAMPLE.to_owned();
    for (theirs, ours) in [
        (
            "edge: https://edge.example.com\n",
            // The edge has no public certificate.
            format!("edge: https://{edge}\n    caFile: /token/edge.pem\n"),
        ),
        ("home-assistant", namespace.to_owned()),
        (
            "image: ghcr.io/tidegate/tidegate-agent:0.0.0\n",
            format!("image: {IMAGE}\n"),
        ),
    ] {
        assert!(text.contains(theirs), "no {theirs:?} in the example");
        text = text.replace(theirs, &ours);
    }
    text
}

/// A Service of a pod that tells what it was asked, and a name for the edge's address.
fn cluster_objects(edge: std::net::SocketAddr) -> String {
    format!(
        "\
apiVersion: v1
kind: Pod
metadata: {{name: app, labels: {{app: app}}}}
spec:
  containers:
  - {{name: app, image: {POD_IMAGE}, imagePullPolicy: Never, command: [/pod], args: [echo]}}
---
apiVersion: v1
kind: Service
metadata: {{name: app}}
spec:
  selector: {{app: app}}
  ports: [{{port: 80, targetPort: 8080}}]
---
apiVersion: v1
kind: Service
metadata: {{name: edge}}
spec: {{ports: [{{port: {port}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: edge, labels: {{kubernetes.io/service-name: edge}}}}
addressType: IPv4
ports: [{{port: {port}}}]
endpoints: [{{addresses: [\"{ip}\"], conditions: {{ready: true}}}}]
",
        port = edge.port(),
        ip = edge.ip(),
    )
}

/// What `/proc` of the node has of the one agent: its status and its mounts.
fn agent_process(node: &Node) -> String {
    // The kernel's name of the program, which no shell that looks for it has.
    let script = "for it in /proc/[0-9]*; do if grep -qsx tidegate-agent $it/comm; \
                  then cat $it/status $it/mountinfo; fi; done";
    program::succeed(node.command("sh").args(["-c", script]))
}

#[test]
fn the_example_of_an_agent_on_each_node_serves_a_service_of_its_cluster() {
    let Some(node) = Node::shared() else {
        return;
    };
    // The small program is the same library, and tests of this package have no build of it.
    let built = std::path::Path::new(Edge::binary());
    node.import_as(IMAGE, built, &["/tidegate-agent", "agent"]);
    let cluster = node.cluster();
    let (kubectl, space) = (cluster.kubectl(), cluster.namespace());

    let (token, hash) = Edge::agent_token();
    let homelab = format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TunnelAgent\nmetadata: {{name: homelab}}\nspec:\n  \
         credential: {{secretName: homelab-agent}}\n  allowedHostnames: ['*.home.example.com']\n  mappings:\n  \
         - {{name: app, hostname: {APP}, target: 'http://app.{}.svc.cluster.local'}}\n  \
         - {{name: api, hostname: api.home.example.com, target: 'https://10.96.0.1'}}\n",
        space.name()
    );
    // A name of their cluster for an address outside, which is where the pods find the edge.
    let dial = format!("edge.{}.svc.cluster.local", space.name());
    let port = crate::support::ports::free();
    let outside = std::net::SocketAddr::new(node.host_address(), port);
    let edge = Edge::builder()
        .arg("--https")
        .arg(&outside.to_string())
        .object(homelab)
        .object(secret("homelab-agent", "Opaque", &[("tokenHash", &hash)]))
        .object(route("dial", &dial, "127.0.0.1:9"))
        .start();

    kubectl.apply(space.name(), &cluster_objects(outside));
    // The namespace first, and the Secret as the example says.
    let text = filled_in(&format!("{dial}:{port}"), space.name());
    let (namespace, _) = text.split_once("\n---\n").unwrap();
    kubectl.apply(SPACE, namespace);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, &token).unwrap();
    kubectl.run(&[
        "-n",
        SPACE,
        "create",
        "secret",
        "generic",
        SPACE,
        &format!("--from-file={}", file.display()),
        &format!("--from-file=edge.pem={}", edge.ca_file().display()),
    ]);
    kubectl.apply(SPACE, &text);
    let logs = || {
        let all = ["-n", SPACE, "logs", "daemonset/tidegate-agent"];
        let events = ["-n", SPACE, "get", "events,pods"];
        let (log, events) = (kubectl.attempt(&all).1, kubectl.attempt(&events).1);
        format!("{log}\n{events}\nedge:\n{}", edge.log())
    };
    // Ready is a link that is up.
    let rollout = ["rollout", "status", "daemonset/tidegate-agent", "-n", SPACE];
    let (ok, said) = kubectl.attempt(&[&rollout[..], &["--timeout=120s"]].concat());
    assert!(ok, "{said}\n{}", logs());
    eprintln!("{said}");
    let client = edge.client();
    let page: Value = eventually("the page", PATIENCE, || {
        let reply = client.try_get(APP, "/a?b=c")?;
        match reply.status {
            200 => Ok(reply.json()),
            status => Err(format!("{status} {}\n{}", reply.text(), logs())),
        }
    });
    eprintln!("{page:#}");
    assert_eq!(page["path"], "/a?b=c", "{page}");
    assert_eq!(page["host"], format!("{APP}:{}", edge.https), "{page}");
    assert_eq!(page["headers"]["X-Forwarded-For"][0], "127.0.0.1", "{page}");
    // An address of the cluster is none of those that the example allows, and the agent says so.
    let log = edge.log();
    let refused = "https://10.96.0.1:443 is not among the agent's allowTargets";
    assert!(log.contains(refused), "{log}");

    let process = agent_process(node);
    let field = |name: &str| -> Vec<&str> {
        let lines = process.lines();
        let values = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        values.collect()
    };
    for (name, expected) in [
        ("Uid", "65532\t65532\t65532\t65532"),
        ("Gid", "65532\t65532\t65532\t65532"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(field(name), [expected], "{name}: {process}");
    }
    let root = process.lines().find(|line| line.contains(" / / "));
    let options = root.and_then(|line| line.split(' ').nth(5));
    assert!(
        options.is_some_and(|it| it.split(',').any(|it| it == "ro")),
        "{process}"
    );
    let mounted = ["/var/run/secrets/kubernetes.io"];
    assert!(!mounted.iter().any(|it| process.contains(it)), "{process}");
    let links = eventually("two links", PATIENCE, || {
        let links = edge.api("/api/v1/links")?;
        match links.as_array().map(Vec::len) {
            Some(2) => Ok(links),
            _ => Err(links.to_string()),
        }
    });
    eprintln!("{links:#}");
    assert!(!logs().contains(&token), "the token is in a log");

    // Another configuration: the pod is replaced, and the page is there again.
    let old = kubectl.run(&["get", "pods", "-n", SPACE, "-o", "name"]);
    kubectl.run(&[
        "rollout",
        "restart",
        "daemonset/tidegate-agent",
        "-n",
        SPACE,
    ]);
    kubectl.run(&[&rollout[..], &["--timeout=120s"]].concat());
    let new = kubectl.run(&["get", "pods", "-n", SPACE, "-o", "name"]);
    assert_ne!(old, new);
    eventually("the page again", PATIENCE, || {
        match client.try_get(APP, "/")?.status {
            200 => Ok(()),
            status => Err(format!("{status} {}", logs())),
        }
    });
    kubectl.run(&["delete", "namespace", SPACE, "--wait=false"]);
}
