//! A whole Kubernetes with one node on which pods run: containerd, kubelet, kube-proxy, in namespaces of
//! their own for network, processes and mounts.
//!
//! ```text
//! this machine  198.18.x.1 ─── 198.18.x.2  the node: API server, node ports, host network of pods
//!                                  └──────  pods 10.244.0.0/24, services 10.96.0.0/16: inside only
//! ```
//!
//! Nothing leaves the machine, several nodes run side by side, and the kernel ends everything with the
//! machine's first process (`e2e/cluster/machine.go`). Pods ask a name server at the node's address, which knows
//! Services and the hostnames that their annotations publish ([`PUBLISHED`]; `e2e/cluster/names.go`).

use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::json;

use super::cluster::new_folder;
use super::control_plane::{Part, Site};
use super::image::{self, Image};
use super::kubectl::everything;
use super::program::{self, Program, missing, not_root};
use super::{Cluster, eventually};

/// How long a step may take on a busy machine; alone, all together take half a minute.
const START: Duration = Duration::from_mins(2);

/// The image of pause and echo.
pub(crate) const POD_IMAGE: &str = "tidegate.test/pod:1";

/// Annotation of a Service with hostnames, `*.` too, that lead to it wherever pods ask.
pub(crate) const PUBLISHED: &str = "external-dns.alpha.kubernetes.io/hostname";

/// A running node with its cluster.
pub(crate) struct Node {
    machine: Program,
    pid: String,
    name: String,
    address: IpAddr,
    host_address: IpAddr,
    folder: PathBuf,
    /// Taken by `drop`, before what it stands on.
    parts: Option<Parts>,
}

struct Parts {
    cluster: Cluster,
    _servers: Vec<Program>,
}

impl Node {
    /// Where its pods get their addresses from.
    pub(crate) const PODS: &str = "10.244.0.0/24";

    /// The node that stories share which leave it as it was. `None` where none can be had.
    pub(crate) fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Node>> = OnceLock::new();
        static TRIED: AtomicBool = AtomicBool::new(false);
        let start = || {
            let tried = TRIED.swap(true, Ordering::Relaxed);
            assert!(
                !tried,
                "no node: the first test that asked for it tells why"
            );
            Self::start()
        };
        SHARED.get_or_init(start).as_ref()
    }

    /// A node of one's own, Ready and with [`POD_IMAGE`]. `None` where none can be had.
    pub(crate) fn start() -> Option<Self> {
        if Cluster::is_given() {
            eprintln!("SKIPPED: a story that needs a node of its own, and a cluster was given");
            return None;
        }
        let programs = [
            everything(),
            pod_program(),
            "containerd".into(),
            "runc".into(),
            "conntrack".into(),
            "iptables".into(),
            "ip".into(),
            "nsenter".into(),
            "/usr/lib/cni/ptp".into(),
        ];
        if not_root("a node of Kubernetes") || missing(&programs) {
            return None;
        }
        let mut node = Self::start_machine();
        let cluster = Cluster::at(Site {
            address: node.address,
            prefix: node.enter(&["--net"]),
        });
        cluster.plane().start_part(Part::Scheduler);
        let servers = vec![
            node.start_names(&cluster),
            node.start_containerd(),
            node.start_kubelet(&cluster),
            node.start_kube_proxy(&cluster),
        ];
        node.parts = Some(Parts {
            cluster,
            _servers: servers,
        });
        node.wait_until_ready();
        Some(node)
    }

    /// Its cluster.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.parts.as_ref().unwrap().cluster
    }

    /// Its address, from inside and from this machine: node ports and host ports are here.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// What it sees as the address of clients on this machine.
    pub(crate) fn host_address(&self) -> IpAddr {
        self.host_address
    }

    /// A command inside, where Services and pods have addresses.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut words = self.enter(&["--net", "--mount", "--pid"]);
        words.push(program.into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }

    /// Its interface on this machine, and its root in the hierarchies of control groups.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where everything it writes is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes an image known to it; pods use it with `imagePullPolicy: Never`.
    #[track_caller]
    pub(crate) fn import(&self, image: &Image<'_>) {
        let archive = self.folder.join("image.tar");
        image.write(&archive);
        self.import_archive(&archive);
        fs::remove_file(archive).unwrap();
    }

    /// The same for an image of one program.
    #[track_caller]
    pub(crate) fn import_program(&self, image: &str, program: &Path) {
        let name = program.file_name().unwrap().to_string_lossy();
        self.import_as(image, program, &[&format!("/{name}")]);
    }

    /// The same with an entry point of its own, the first word of which is where the program is.
    #[track_caller]
    pub(crate) fn import_as(&self, image: &str, program: &Path, entrypoint: &[&str]) {
        let file = entrypoint[0].trim_start_matches('/');
        let archive = self.folder.join(format!("{file}.tar"));
        image::of_program(image, program, entrypoint, &archive);
        self.import_archive(&archive);
        fs::remove_file(archive).unwrap();
    }

    /// The same for an archive that a builder wrote, in the form of Docker or OCI.
    #[track_caller]
    pub(crate) fn import_archive(&self, archive: &Path) {
        let mut command = self.command("ctr");
        command.args(["--namespace", "k8s.io", "images", "import"]);
        program::succeed(command.arg(archive));
    }

    /// The namespaces with nothing in them: for a story about them.
    pub(crate) fn start_machine() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = new_folder();
        let name = format!("tg{}-{number}", std::process::id());
        // 198.18.0.0/15 belongs to measurements between neighbours (RFC 2544): four addresses for each.
        let block = (std::process::id() * 8 + number) % (1 << 15);
        let first = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + 4 * block;
        let [host_address, address] = [1, 2].map(|it| IpAddr::from(Ipv4Addr::from(first + it)));
        let mut command = Command::new(everything());
        command.arg("machine").arg(&folder).arg(&name);
        command.args([format!("{host_address}/30"), format!("{address}/30")]);
        let mut machine = Program::start_held(&mut command);
        let pid = eventually("the machine of the node", START, || {
            let log = machine.log();
            if let Some(status) = machine.ended() {
                panic!("the machine ended with {status}: {log}");
            }
            let line = log.lines().find_map(|line| line.strip_prefix("machine "));
            line.map(str::to_owned).ok_or(log)
        });
        Self {
            machine,
            pid,
            name,
            address,
            host_address,
            folder,
            parts: None,
        }
    }

    /// What a command is put behind to run in these namespaces.
    fn enter(&self, namespaces: &[&str]) -> Vec<OsString> {
        let target = ["nsenter", "--target", &self.pid];
        let words = target.iter().chain(namespaces);
        words.map(OsString::from).collect()
    }

    fn start_names(&self, cluster: &Cluster) -> Program {
        let mut command = self.command(everything().to_str().unwrap());
        command.arg("names").arg(cluster.kubeconfig());
        let mut names = Program::start_held(command.arg(format!("{}:53", self.address)));
        eventually("the name server of the node", START, || {
            let log = names.log();
            if let Some(status) = names.ended() {
                panic!(
                    "the name server ended with {status} (`cargo xtask tools` builds it): {log}"
                );
            }
            let answers = log.lines().any(|line| line == "names");
            answers.then_some(()).ok_or(log)
        });
        names
    }

    fn start_containerd(&self) -> Program {
        let root = self.folder.join("containerd");
        let networks = self.folder.join("networks");
        fs::create_dir_all(&networks).unwrap();
        let network = json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                // Routed, not bridged: bridged, an answer within the node goes past the firewall rules
                // that Services are, unless the kernel was told to look at bridges too.
                {
                    "type": "ptp",
                    "ipMasq": true,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": Self::PODS}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                        "dataDir": self.folder.join("addresses"),
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        fs::write(networks.join("pods.conflist"), network.to_string()).unwrap();
        let config = self.folder.join("containerd.toml");
        // Without the right to lower it (CAP_SYS_RESOURCE), setting a process's score ends every container.
        let text = format!(
            r#"
version = 2
root = "{root}"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[plugins."io.containerd.internal.v1.opt"]
path = "{root}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{POD_IMAGE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{networks}"
"#,
            root = root.display(),
            networks = networks.display()
        );
        fs::write(&config, text).unwrap();
        let containerd =
            Program::start_held(self.command("containerd").arg("--config").arg(&config));
        eventually("an answer of containerd", START, || {
            let (ok, said) = program::run(self.command("ctr").arg("version"));
            if ok { Ok(()) } else { Err(said) }
        });
        self.import(&Image {
            name: POD_IMAGE,
            files: &[("pod", &pod_program())],
            entrypoint: &["/pod", "pause"],
            user: "65532:65532",
        });
        containerd
    }

    fn start_kubelet(&self, cluster: &Cluster) -> Program {
        let plane = cluster.plane();
        let kubeconfig =
            plane
                .authority()
                .kubeconfig(&plane.url(), "system:node:node", Some("system:nodes"));
        let authority = self.write("ca.crt", plane.authority().certificate());
        let resolver = self.write("resolv.conf", "# the node itself asks nobody\n");
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": authority},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.name),
            "failCgroupV1": false,
            "failSwapOn": false,
            "resolvConf": resolver,
            "clusterDNS": [self.address],
            "clusterDomain": "cluster.local",
            "volumePluginDir": self.folder.join("volume-plugins"),
            // A full disk is this machine's affair, not the stories'.
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
        });
        let config = self.write("kubelet.json", &config.to_string());
        let kubeconfig = self.write("kubelet.kubeconfig", &kubeconfig);
        let mut command = self.command(everything().to_str().unwrap());
        command
            .arg("kubelet")
            .arg("--config")
            .arg(config)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--hostname-override", "node", "--node-ip"])
            .arg(self.address.to_string());
        Program::start_held(&mut command)
    }

    fn start_kube_proxy(&self, cluster: &Cluster) -> Program {
        let plane = cluster.plane();
        let kubeconfig = plane
            .authority()
            .kubeconfig(&plane.url(), "system:kube-proxy", None);
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": self.write("kube-proxy.kubeconfig", &kubeconfig)},
            "mode": "iptables",
            "clusterCIDR": Self::PODS,
            "hostnameOverride": "node",
            // The sizes of the connection table are not the namespace's to set.
            "conntrack": {"maxPerCore": 0, "min": 0},
        });
        let config = self.write("kube-proxy.json", &config.to_string());
        let mut command = self.command(everything().to_str().unwrap());
        command.arg("kube-proxy").arg("--config").arg(config);
        Program::start_held(&mut command)
    }

    #[track_caller]
    fn wait_until_ready(&self) {
        let kubectl = self.cluster().kubectl();
        kubectl.run(&["wait", "--for=create", "node/node", "--timeout=120s"]);
        kubectl.run(&[
            "wait",
            "--for=condition=Ready",
            "node/node",
            "--timeout=120s",
        ]);
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.parts.take());
        self.machine.release(START);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn pod_program() -> PathBuf {
    program::tools().join("bin/tidegate-test-pod")
}
