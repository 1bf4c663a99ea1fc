//! The test bed's node: pods run, Services reach them, and what clients look like from inside.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::kubectl::everything;
use crate::support::program::{self, Program, missing, not_root};
use crate::support::{Node, POD_IMAGE, eventually};

const PATIENCE: Duration = Duration::from_mins(2);

/// Two pods that answer with what they see, and a Service before them.
fn echo() -> String {
    format!(
        "\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: echo}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: echo}}}}
  template:
    metadata: {{labels: {{app: echo}}}}
    spec:
      containers:
      - name: echo
        image: {POD_IMAGE}
        imagePullPolicy: Never
        args: [echo]
        command: [/pod]
        ports: [{{containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: echo}}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {{app: echo}}
  ports: [{{port: 80, targetPort: 8080}}]
"
    )
}

#[test]
fn two_pods_answer_behind_a_service() {
    let Some(node) = Node::shared() else {
        return;
    };
    let kubectl = node.cluster().kubectl();
    let namespace = node.cluster().namespace();
    kubectl.apply(namespace.name(), &echo());
    let in_namespace = ["-n", namespace.name(), "--timeout=120s"];
    let mut rollout = vec!["rollout", "status", "deployment/echo"];
    rollout.extend(in_namespace);
    kubectl.run(&rollout);
    let field = |path: &str| {
        let path = format!("jsonpath={path}");
        kubectl.run(&["get", "service/echo", "-n", namespace.name(), "-o", &path])
    };

    // From inside, by the Service's address: each pod has its turn.
    let url = format!("http://{}/a?b=c", field("{.spec.clusterIP}"));
    let mut hostnames = BTreeSet::new();
    eventually("answers of both pods", PATIENCE, || {
        let mut curl = node.command("curl");
        let (ok, said) = program::run(curl.args(["-sS", "--max-time", "2", &url]));
        let answer: Value = match serde_json::from_str(&said) {
            Ok(answer) if ok => answer,
            _ => return Err(said),
        };
        assert_eq!(answer["path"], "/a?b=c");
        hostnames.insert(answer["hostname"].as_str().unwrap().to_owned());
        match hostnames.len() {
            2 => Ok(()),
            _ => Err(format!("only {hostnames:?}")),
        }
    });

    // From a pod, by the same address, which may lead back to the pod itself; and to the API server.
    for _ in 0..4 {
        let args = ["exec", "deployment/echo", "-n", namespace.name(), "--"];
        let (ok, said) = kubectl.attempt(&[&args[..], &["/pod", "fetch", &url]].concat());
        assert!(ok && said.contains("/a?b=c"), "{said}");
    }
    let args = ["exec", "deployment/echo", "-n", namespace.name(), "--"];
    let version = ["/pod", "fetch", "https://10.96.0.1/version"];
    let said = kubectl.run(&[&args[..], &version].concat());
    assert!(said.contains("gitVersion"), "{said}");

    // From this machine, by the node's address: pods see who asks.
    let port = field("{.spec.ports[0].nodePort}");
    let url = format!("http://{}:{port}/", node.address());
    let said = program::succeed(Command::new("curl").args(["-sS", "--max-time", "20", &url]));
    let answer: Value = serde_json::from_str(&said).unwrap();
    let peer: std::net::SocketAddr = answer["peer"].as_str().unwrap().parse().unwrap();
    assert_eq!(peer.ip(), node.host_address(), "{said}");
}

/// Whatever a node starts, however it hides from who started it.
#[test]
fn the_end_of_a_node_leaves_nothing_behind() {
    if not_root("a node of Kubernetes") || missing(&[everything()]) {
        return;
    }
    let node = Node::start_machine();
    let (name, folder) = (node.name().to_owned(), node.folder().to_owned());
    // One hierarchy, or one for each controller.
    let hierarchies = Path::new("/sys/fs/cgroup");
    let hierarchy = [hierarchies.join("pids"), hierarchies.to_owned()]
        .into_iter()
        .find(|it| it.join(&name).exists())
        .unwrap();
    let group = hierarchy.join(&name);
    // A process in a session of its own, in a group below the node's, as a container is.
    let script = format!(
        "mkdir -p {group}/pod && echo $$ > {group}/pod/cgroup.procs; touch {folder}/mark; exec sleep 1000",
        group = group.display(),
        folder = folder.display()
    );
    let mut command = node.command("setsid");
    let mut program = Program::start(command.args(["sh", "-c", &script]));
    eventually("a process inside", PATIENCE, || {
        let started = folder.join("mark").exists();
        started.then_some(()).ok_or_else(|| program.log())
    });
    let interface = Path::new("/sys/class/net").join(&name);
    assert!(interface.exists());
    drop(node);
    assert!(program.wait(PATIENCE).code() != Some(0));
    assert!(!folder.exists(), "{}", folder.display());
    assert!(!group.exists(), "{}", group.display());
    eventually("an end of the interface", PATIENCE, || {
        if interface.exists() {
            Err("still there".to_owned())
        } else {
            Ok(())
        }
    });
}
