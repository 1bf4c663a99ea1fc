//! The way of a new user on a real node: install, a route of eight lines, a request, an update, uninstall.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Once;
use std::time::Duration;

use serde_json::Value;

use super::updates::{self, Installed};
use crate::support::chart::{self, folder, helm};
use crate::support::program;
use crate::support::{Node, POD_IMAGE, eventually};

const PATIENCE: Duration = Duration::from_mins(2);
const IMAGE: &str = "tidegate.test/tidegate:test";

/// An archive that `cargo xtask image --tag tidegate.test/tidegate:test` wrote, to try the released image.
const ARCHIVE: &str = "TIDEGATE_E2E_IMAGE";

/// This build with its shared libraries and nothing else: what the released image is, but for the static linking.
/// Once, because every story of the shared node needs it.
pub(super) fn import_image(node: &Node) {
    static IMPORTED: Once = Once::new();
    IMPORTED.call_once(|| match std::env::var_os(ARCHIVE) {
        Some(archive) => node.import_archive(Path::new(&archive)),
        None => node.import_program(IMAGE, Path::new(env!("CARGO_BIN_EXE_tidegate"))),
    });
}

fn backend() -> String {
    format!(
        "\
apiVersion: v1
kind: Pod
metadata: {{name: blog, labels: {{app: blog}}}}
spec:
  securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
  - name: blog
    image: {POD_IMAGE}
    imagePullPolicy: Never
    command: [/pod]
    args: [echo]
    securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
    readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: blog}}
spec:
  selector: {{app: blog}}
  ports: [{{port: 80, targetPort: 8080}}]
"
    )
}

/// The route of eight lines.
pub(super) const ROUTE: &str = "\
apiVersion: edge.tidegate.dev/v1alpha1
kind: TlsRoute
metadata:
  name: blog
spec:
  hostnames: [blog.example.com]
  rules:
  - backends: [{service: {name: blog, port: 80}}]
";

#[test]
fn install_route_request_update_uninstall() {
    let (Some(node), Some(helm)) = (Node::shared(), helm()) else {
        return;
    };
    import_image(node);
    let kubectl = node.cluster().kubectl();
    let (home, blog) = (node.cluster().namespace(), node.cluster().namespace());
    // Where people put it: nothing that is not restricted would start.
    for namespace in [&home, &blog] {
        let enforce = "pod-security.kubernetes.io/enforce=restricted";
        kubectl.run(&["label", "namespace", namespace.name(), enforce]);
    }
    let run = |args: &[&str]| chart::run(&helm, node.cluster(), home.name(), args);
    let chart = folder();
    let chart = chart.to_str().unwrap();
    let values = [
        "--set=image.repository=tidegate.test/tidegate,image.tag=test,image.pullPolicy=Never",
        "--set=service.type=NodePort,preStopSeconds=3,drainSeconds=5",
    ];
    let watched = format!("--set=watchNamespaces={{{}}}", blog.name());
    // The definitions are there already, from `kubectl apply`.
    let mut install = vec![
        "upgrade",
        "--install",
        "edge",
        chart,
        "--take-ownership",
        "--force-conflicts",
    ];
    install.extend(values);
    install.extend([&*watched, "--wait", "--timeout=180s"]);
    let said = run(&install);
    assert!(
        said.contains("kubectl wait --for=condition=Ready tlsr/blog"),
        "{said}"
    );

    kubectl.apply(blog.name(), &backend());
    kubectl.apply(blog.name(), ROUTE);
    kubectl.run(&[
        "wait",
        "--for=condition=Ready",
        "tlsr/blog",
        "-n",
        blog.name(),
        "--timeout=120s",
    ]);

    let path = r#"jsonpath={.spec.ports[?(@.name=="https")].nodePort}"#;
    let port = kubectl.run(&[
        "get",
        "service/edge-tidegate",
        "-n",
        home.name(),
        "-o",
        path,
    ]);
    let url = format!("https://blog.example.com:{port}/a?b=c");
    let resolve = format!("blog.example.com:{port}:{}", node.address());
    let ask = || {
        let mut curl = Command::new("curl");
        // Of an internal CA here; how authorities are asked is told by other stories.
        curl.args([
            "--insecure",
            "-sSf",
            "--max-time",
            "5",
            "--resolve",
            &resolve,
            &url,
        ]);
        program::run(&mut curl)
    };
    // kube-proxy needs a moment.
    let said = eventually("an answer of the blog", PATIENCE, || match ask() {
        (true, said) => Ok(said),
        (false, said) => Err(said),
    });
    let answer: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(answer["path"], "/a?b=c", "{said}");
    let client = node.host_address().to_string();
    assert!(
        said.contains(&client),
        "the client's address is not in {said}"
    );

    let edge = Installed {
        node,
        home: home.name(),
        routes: blog.name(),
        upgrade: &|set| {
            let mut update = install.clone();
            update.extend(set);
            run(&update);
        },
    };
    let service = SocketAddr::new(node.address(), port.parse().unwrap());
    updates::nobody_notices(&edge, service);

    run(&["uninstall", "edge", "--wait", "--timeout=120s"]);
    let left =
        "deployments,daemonsets,services,poddisruptionbudgets,roles,rolebindings,serviceaccounts";
    let label = "-lapp.kubernetes.io/instance=edge";
    let said = kubectl.run(&["get", left, "-n", home.name(), label, "-o", "name"]);
    assert!(!said.contains('/'), "left: {said}");
    // What people made and what cost an order stays.
    kubectl.run(&["get", "tlsr/blog", "-n", blog.name()]);
    let documents = [
        "get",
        "secrets",
        "-n",
        home.name(),
        "-ledge.tidegate.dev/document",
        "-o",
        "name",
    ];
    assert!(kubectl.run(&documents).contains("secret/"));
    // No finalizer holds anything up.
    kubectl.run(&["delete", "tlsr/blog", "-n", blog.name(), "--timeout=20s"]);
}
