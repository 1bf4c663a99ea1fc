//! The servers of one cluster without nodes: etcd, API server, controller manager, scheduler.
//!
//! Each is a process of its own, so that a story can pause it, kill it and start it again. They share a
//! folder that holds their certificates, and etcd's data, which outlives a restart of etcd.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use rcgen::KeyPair;

use super::authority::{ADMINISTRATORS, Authority};
use super::kubectl::everything;
use super::ports;
use super::program::Program;

/// A server of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Etcd,
    ApiServer,
    ControllerManager,
    Scheduler,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
        }
    }
}

/// Where a control plane runs.
pub(crate) struct Site {
    /// What it is reached by.
    pub(crate) address: IpAddr,
    /// What every command is put behind, such as `nsenter` with its options; may be empty.
    pub(crate) prefix: Vec<OsString>,
}

/// The running servers.
pub(crate) struct ControlPlane {
    site: Site,
    folder: PathBuf,
    authority: Authority,
    api_port: u16,
    etcd_ports: [u16; 2],
    parts: Mutex<BTreeMap<Part, Program>>,
}

/// Where Services get their addresses from.
const SERVICES: &str = "10.96.0.0/16";

/// The first of [`SERVICES`], which is the API server's.
const API_SERVICE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1));

/// Every request of a service account leaves a line when it arrives.
const AUDIT: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [ResponseStarted, ResponseComplete, Panic]
rules:
- {level: Metadata, userGroups: [\"system:serviceaccounts\"]}
- {level: None}
";

impl ControlPlane {
    /// Starts etcd and the API server; does not wait for them.
    pub(crate) fn start(site: Site, folder: &Path) -> Self {
        let authority = Authority::new();
        let names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        let server = authority.server(&names, &[site.address, API_SERVICE]);
        let kubelet_client = authority.client("kube-apiserver", Some(ADMINISTRATORS));
        let accounts = KeyPair::generate().unwrap();
        let plane = Self {
            site,
            folder: folder.to_owned(),
            authority,
            api_port: ports::free(),
            etcd_ports: [ports::free(), ports::free()],
            parts: Mutex::default(),
        };
        for (name, text) in [
            ("ca.crt", plane.authority.certificate()),
            ("server.crt", &server.certificate),
            ("server.key", &server.key),
            ("kubelet-client.crt", &kubelet_client.certificate),
            ("kubelet-client.key", &kubelet_client.key),
            ("accounts.key", &accounts.serialize_pem()),
            ("accounts.pub", &accounts.public_key_pem()),
            ("audit.yaml", AUDIT),
            ("admin.kubeconfig", &plane.kubeconfig("admin")),
            ("controllers.kubeconfig", &plane.kubeconfig("controllers")),
        ] {
            fs::write(folder.join(name), text).unwrap();
        }
        plane.start_part(Part::Etcd);
        plane.start_part(Part::ApiServer);
        plane
    }

    /// A kubeconfig of an administrator, on disk.
    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.file("admin.kubeconfig")
    }

    /// What service accounts asked of the API server, a line of JSON for each request.
    pub(crate) fn audit(&self) -> PathBuf {
        self.file("audit.log")
    }

    /// The CA, for further parts such as a node.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// URL of the API server.
    pub(crate) fn url(&self) -> String {
        format!("https://{}:{}", self.site.address, self.api_port)
    }

    /// Starts it, again or for the first time. Does not wait until it is ready.
    #[track_caller]
    pub(crate) fn start_part(&self, part: Part) {
        let mut words = self.site.prefix.clone();
        words.push(everything().into());
        words.push(part.name().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(self.options(part));
        let program = Program::start_held(&mut command);
        let before = self.parts.lock().unwrap().insert(part, program);
        assert!(before.is_none(), "{part:?} runs already");
    }

    /// Kills it.
    #[track_caller]
    pub(crate) fn kill_part(&self, part: Part) {
        let program = self.parts.lock().unwrap().remove(&part);
        assert!(program.is_some(), "{part:?} does not run");
    }

    /// Stops it in the middle of whatever it does: its connections stay open and nothing answers.
    pub(crate) fn pause_part(&self, part: Part) {
        self.parts.lock().unwrap()[&part].signal("STOP");
    }

    /// Lets it go on.
    pub(crate) fn resume_part(&self, part: Part) {
        self.parts.lock().unwrap()[&part].signal("CONT");
    }

    /// CPU time that the part took so far.
    pub(crate) fn cpu_time(&self, part: Part) -> Duration {
        self.parts.lock().unwrap()[&part].cpu_time()
    }

    /// Panics with what it said if a part has ended by itself.
    #[track_caller]
    pub(crate) fn assert_runs(&self) {
        for (part, program) in &mut *self.parts.lock().unwrap() {
            if let Some(status) = program.ended() {
                panic!("{part:?} ended with {status}:\n{}", program.log());
            }
        }
    }

    /// The last lines of what every part said.
    pub(crate) fn logs(&self) -> String {
        let parts = self.parts.lock().unwrap();
        let last = |(part, program): (&Part, &Program)| {
            let log = program.log();
            let mut lines: Vec<&str> = log.lines().rev().take(20).collect();
            lines.reverse();
            format!("--- {part:?}\n{}\n", lines.join("\n"))
        };
        parts.iter().map(last).collect()
    }

    fn kubeconfig(&self, user: &str) -> String {
        self.authority
            .kubeconfig(&self.url(), user, Some(ADMINISTRATORS))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn options(&self, part: Part) -> Vec<OsString> {
        let [clients, peers] = self
            .etcd_ports
            .map(|port| format!("http://127.0.0.1:{port}"));
        let mut options = Options::default();
        match part {
            Part::Etcd => options
                .add("data-dir", self.file("etcd"))
                .add("listen-client-urls", &clients)
                .add("advertise-client-urls", &clients)
                .add("listen-peer-urls", &peers)
                .add("initial-advertise-peer-urls", &peers)
                .add("initial-cluster", format!("default={peers}"))
                // What survives is what reached the file before a kill, which is all these stories need.
                .add("unsafe-no-fsync", "true")
                .add("log-level", "warn"),
            Part::ApiServer => {
                options
                    .add("bind-address", self.site.address.to_string())
                    .add("secure-port", self.api_port.to_string())
                    .add("advertise-address", self.site.address.to_string())
                    .add("etcd-servers", &clients)
                    .add("audit-policy-file", self.file("audit.yaml"))
                    .add("audit-log-path", self.audit())
                    .add("authorization-mode", "Node,RBAC")
                    .add("client-ca-file", self.file("ca.crt"))
                    .add("tls-cert-file", self.file("server.crt"))
                    .add("tls-private-key-file", self.file("server.key"))
                    .add(
                        "kubelet-client-certificate",
                        self.file("kubelet-client.crt"),
                    )
                    .add("kubelet-client-key", self.file("kubelet-client.key"))
                    .add("kubelet-preferred-address-types", "InternalIP")
                    .add(
                        "service-account-issuer",
                        "https://kubernetes.default.svc.cluster.local",
                    )
                    .add("service-account-key-file", self.file("accounts.pub"))
                    .add(
                        "service-account-signing-key-file",
                        self.file("accounts.key"),
                    )
                    .add("service-cluster-ip-range", SERVICES)
                    .add("allow-privileged", "true")
                    // Stories end it; waiting for quiet first is for load balancers.
                    .add("shutdown-delay-duration", "0s");
                if self.site.address.is_loopback() {
                    // Endpoints must not be loopback, and there is nobody to use them.
                    options.add("endpoint-reconciler-type", "none");
                }
                &mut options
            }
            Part::ControllerManager => options
                .add("kubeconfig", self.file("controllers.kubeconfig"))
                .add("root-ca-file", self.file("ca.crt"))
                .add(
                    "service-account-private-key-file",
                    self.file("accounts.key"),
                )
                .add("leader-elect", "false")
                // No port: several clusters run side by side, and nobody asks.
                .add("secure-port", "0"),
            Part::Scheduler => options
                .add("kubeconfig", self.file("controllers.kubeconfig"))
                .add("leader-elect", "false")
                .add("secure-port", "0"),
        };
        options.0
    }
}

/// Options written as `--name=value`.
#[derive(Default)]
struct Options(Vec<OsString>);

impl Options {
    fn add(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        let mut option = OsString::from(format!("--{name}="));
        option.push(value.into());
        self.0.push(option);
        self
    }
}
