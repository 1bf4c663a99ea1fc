//! The first page of a new user: the chart with an authority in its values, a route of eight lines, a page whose
//! certificate is that authority's. Everything is a pod: the edge, the authority (Pebble), the application.
//!
//! With `--nocapture` it prints the commands as a user types them, and what they say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::release::{ROUTE, import_image};
use crate::support::acme::authority::tool;
use crate::support::authority::Authority;
use crate::support::chart::{folder, helm};
use crate::support::kubectl::everything;
use crate::support::program::{self, missing};
use crate::support::{Node, POD_IMAGE, PUBLISHED, eventually};

const PATIENCE: Duration = Duration::from_mins(2);
const PEBBLE_IMAGE: &str = "tidegate.test/pebble:1";
const PEBBLE: &str = "pebble.pebble.svc.cluster.local";

/// A terminal of somebody who has kubectl and helm and knows one cluster.
struct Terminal {
    folder: PathBuf,
    helm: PathBuf,
}

impl Terminal {
    fn open(node: &Node, helm: PathBuf) -> Self {
        let folder = node.folder().join("terminal");
        fs::create_dir_all(&folder).unwrap();
        let config = fs::read_to_string(node.cluster().kubeconfig()).unwrap();
        let mut config: Value = serde_json::from_str(&config).unwrap();
        config["contexts"][0]["context"]["namespace"] = json!("web");
        fs::write(folder.join("kubeconfig"), config.to_string()).unwrap();
        Self { folder, helm }
    }

    /// A file in the folder that commands run in.
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// The same, shown.
    fn edit(&self, name: &str, text: &str) {
        self.file(name, text);
        self.types(&format!("cat {name}"));
    }

    fn say(line: &str) {
        eprintln!("# {line}");
    }

    /// Types a line and shows what it says: whether it succeeds, and that.
    fn tries(&self, line: &str) -> (bool, String) {
        eprintln!("$ {line}");
        let kubectl = format!("{} kubectl \"$@\"", everything().display());
        let helm = format!("{} \"$@\"", self.helm.display());
        let script = format!("kubectl() {{ {kubectl}; }}; helm() {{ {helm}; }}; {line}");
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &script])
            .current_dir(&self.folder)
            .env("KUBECONFIG", self.folder.join("kubeconfig"))
            .env("KUBECACHEDIR", self.folder.join("cache"))
            .env("HOME", &self.folder)
            .stdin(Stdio::null());
        let (ok, said) = program::run(&mut shell);
        eprintln!("{}\n", said.trim_end());
        (ok, said)
    }

    /// The same for what has to succeed.
    #[track_caller]
    fn types(&self, line: &str) -> String {
        let (ok, said) = self.tries(line);
        assert!(ok, "{line}: {said}");
        said
    }
}

/// Pebble as a pod: its directory and its management behind a Service. Returns the CA of these.
fn start_pebble(node: &Node) -> String {
    node.import_program(PEBBLE_IMAGE, &tool("pebble"));
    let authority = Authority::new();
    let pair = authority.server(&[PEBBLE], &[]);
    let config = json!({"pebble": {
        "listenAddress": "0.0.0.0:14000",
        "managementListenAddress": "0.0.0.0:15000",
        "certificate": "/etc/pebble-tls/tls.crt",
        "privateKey": "/etc/pebble-tls/tls.key",
        // Where the world reaches the edge.
        "httpPort": 80,
        "tlsPort": 443,
        "retryAfter": {"authz": 1, "order": 1},
        "keyAlgorithm": "ecdsa",
        "profiles": {"default": {"description": "the usual", "validityPeriod": 7_776_000}},
    }});
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "pebble"},
            "data": {"pebble.json": config.to_string()},
        },
        {
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": "pebble-tls"},
            "data": {
                "tls.crt": STANDARD.encode(&pair.certificate),
                "tls.key": STANDARD.encode(&pair.key),
            },
        },
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "pebble"},
            "spec": {"selector": {"app": "pebble"}, "ports": [
                {"name": "directory", "port": 14000},
                {"name": "management", "port": 15000},
            ]},
        },
        {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "pebble", "labels": {"app": "pebble"}},
            "spec": {
                "containers": [{
                    "name": "pebble", "image": PEBBLE_IMAGE, "imagePullPolicy": "Never",
                    "args": ["-strict", "-config", "/etc/pebble/pebble.json"],
                    "env": [{"name": "PEBBLE_VA_NOSLEEP", "value": "1"}],
                    "readinessProbe": {"tcpSocket": {"port": 14000}, "periodSeconds": 1},
                    "volumeMounts": [
                        {"name": "config", "mountPath": "/etc/pebble"},
                        {"name": "tls", "mountPath": "/etc/pebble-tls"},
                    ],
                }],
                "volumes": [
                    {"name": "config", "configMap": {"name": "pebble"}},
                    {"name": "tls", "secret": {"secretName": "pebble-tls"}},
                ],
            },
        },
    ]});
    let kubectl = node.cluster().kubectl();
    kubectl.run(&["create", "namespace", "pebble"]);
    kubectl.apply("pebble", &objects.to_string());
    let ready = [
        "wait",
        "--for=condition=Ready",
        "pod/pebble",
        "-n",
        "pebble",
    ];
    let (ok, said) = kubectl.attempt(&[&ready[..], &["--timeout=60s"]].concat());
    let (_, log) = kubectl.attempt(&["logs", "pod/pebble", "-n", "pebble"]);
    let (_, pod) = kubectl.attempt(&["describe", "pod/pebble", "-n", "pebble"]);
    assert!(ok, "{said}\n{log}\n{pod}");
    authority.certificate().to_owned()
}

/// The root of what Pebble issues, which it makes anew at each start.
fn issued_root(node: &Node, ca: &Path) -> String {
    let kubectl = node.cluster().kubectl();
    let args = ["get", "service/pebble", "-n", "pebble"];
    let address = kubectl.run(&[&args[..], &["-o", "jsonpath={.spec.clusterIP}"]].concat());
    eventually("the root of what Pebble issues", PATIENCE, || {
        let mut curl = node.command("curl");
        curl.args(["-sSf", "--max-time", "5", "--cacert"])
            .arg(ca)
            .args(["--resolve", &format!("{PEBBLE}:15000:{address}")])
            .arg(format!("https://{PEBBLE}:15000/roots/0"));
        match program::run(&mut curl) {
            (true, root) => Ok(root),
            (false, said) => Err(said),
        }
    })
}

fn application() -> String {
    format!(
        "\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: blog}}
spec:
  selector: {{matchLabels: {{app: blog}}}}
  template:
    metadata: {{labels: {{app: blog}}}}
    spec:
      containers:
      - name: blog
        image: {POD_IMAGE}
        imagePullPolicy: Never
        command: [/pod]
        args: [echo]
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

/// What belongs to the node and not to a user: the image, definitions that are there, other stories' namespaces,
/// and the name that the node's name server publishes.
fn bed() -> String {
    json!({
        "image": {"repository": "tidegate.test/tidegate", "tag": "test", "pullPolicy": "Never"},
        "crds": {"enabled": false},
        "policy": {"crossObject": false},
        "watchNamespaces": ["web"],
        "service": {"annotations": {PUBLISHED: "*.example.com"}},
    })
    .to_string()
}

fn values() -> String {
    format!(
        "\
defaultIssuer:
  enabled: true
  email: you@example.com
  termsOfServiceAgreed: true
  directory: https://{PEBBLE}:14000/dir
  spec:
    caSecretName: authority-ca
    profile: default
"
    )
}

#[test]
fn from_the_chart_to_a_page_with_a_certificate_of_an_authority() {
    let (Some(node), Some(helm)) = (Node::shared(), helm()) else {
        return;
    };
    if missing(&[tool("pebble")]) {
        return;
    }
    import_image(node);
    let kubectl = node.cluster().kubectl();
    let ca = start_pebble(node);
    let terminal = Terminal::open(node, helm);
    let ca = terminal.file("authority.crt", &ca);
    terminal.file("root.pem", &issued_root(node, &ca));
    terminal.file("test-bed.yaml", &bed());
    std::os::unix::fs::symlink(folder(), terminal.folder.join("tidegate")).unwrap();
    kubectl.run(&["create", "namespace", "web"]);
    kubectl.apply("web", &application());

    Terminal::say("The authority is a private one, a pod too: the edge is told whom to trust.");
    terminal.types("kubectl create namespace tidegate-system");
    terminal.types(
        "kubectl create secret generic authority-ca --from-file=ca.crt=authority.crt -n tidegate-system",
    );
    terminal.edit("values.yaml", &values());
    Terminal::say("test-bed.yaml: the image of this build, the namespace web, and the DNS name.");
    let said = terminal.types(
        "helm install tidegate ./tidegate --namespace tidegate-system -f values.yaml -f test-bed.yaml",
    );
    assert!(said.contains("kubectl wait --for=condition=Ready tlsr/blog"));
    // What the cluster's load balancer does.
    let address = node.address().to_string();
    let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}});
    let patch = ["patch", "service/tidegate", "-n", "tidegate-system"];
    let status = ["--subresource=status", "-p", &ingress.to_string()];
    kubectl.run(&[&patch[..], &status].concat());
    terminal.types("kubectl rollout status deployment/tidegate -n tidegate-system --timeout=2m");
    terminal.types("kubectl get service/tidegate -n tidegate-system");
    let said = terminal.types("helm test tidegate --namespace tidegate-system --logs");
    assert!(said.contains("Succeeded"), "{said}");

    terminal.edit("blog.yaml", ROUTE);
    terminal.types("kubectl apply -f blog.yaml");
    terminal.types("kubectl wait --for=condition=Ready tlsr/blog --timeout=2m");
    terminal.types("kubectl get tlsr");
    terminal.types("kubectl describe tlsr blog");
    terminal.types("kubectl get secret blog-tls");
    Terminal::say("root.pem: the root of that authority.");
    let ask = format!(
        "curl -sSf --cacert root.pem --resolve blog.example.com:443:{address} https://blog.example.com/"
    );
    // The other replica may hear of the certificate a moment later than the one that says so.
    let said = eventually("the page", PATIENCE, || match terminal.tries(&ask) {
        (true, said) => Ok(said),
        (false, said) => Err(said),
    });
    let answer: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(answer["host"], "blog.example.com", "{said}");
    let client = node.host_address().to_string();
    assert!(said.contains(&client), "the client's address: {said}");

    Terminal::say("What it looks like when the name is not in the DNS yet.");
    let shop = ROUTE
        .replace("blog", "shop")
        .replace("example.com", "example.org");
    terminal.edit("shop.yaml", &shop);
    terminal.types("kubectl apply -f shop.yaml");
    // A user sees it by `kubectl describe` alone; this is to see it whole.
    let reason = r#"{.status.conditions[?(@.type=="CertificateReady")].reason}"#;
    let until = format!("--for=jsonpath={reason}=OrderFailed");
    kubectl.run(&["wait", &until, "tlsr/shop", "-n", "web", "--timeout=120s"]);
    terminal.types("kubectl get tlsr");
    let said = terminal.types("kubectl describe tlsr shop");
    for expected in [
        // Both at once: what is wrong with the first does not hide the other.
        "Service web/shop does not exist",
        "also no certificate: see CertificateReady (OrderFailed)",
        "shop.example.org does not exist in DNS",
        // The address that the load balancer gave.
        &format!("publish `shop.example.org. IN A {address}`"),
    ] {
        assert!(said.contains(expected), "no {expected:?} in {said}");
    }

    Terminal::say("An edge without pods fails its test.");
    let selector = json!({"spec": {"selector": {"app": "nothing"}}}).to_string();
    let patch = [
        "patch",
        "service/tidegate-replicas",
        "-n",
        "tidegate-system",
    ];
    kubectl.run(&[&patch[..], &["-p", &selector]].concat());
    let probe = "kubectl exec deployment/tidegate -n tidegate-system -- \
         /tidegate probe --timeout=2s http://tidegate-replicas:9180/readyz";
    let (passed, said) = terminal.tries(probe);
    assert!(!passed && said.contains("failed"), "{said}");

    terminal.types("helm uninstall tidegate --namespace tidegate-system");
    terminal.types("kubectl get tlsr,secret");
}
