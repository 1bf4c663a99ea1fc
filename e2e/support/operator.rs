//! `tidegate operator` as a user's cluster runs it: replicas with a service account, ports and state.
//!
//! ```text
//! let edge = Deployment::new(cluster, namespace.name());
//! let one = edge.replica("one").start();          // ready, and leading soon
//! cluster.kubectl().apply(namespace.name(), &service("blog", &[origin.address()]));
//! one.client().get("blog.example.com", "/");
//! ```
//!
//! The processes run on this machine, outside of the cluster's network; so do the backends, at an address
//! that is not loopback because an `EndpointSlice` must not hold one that is.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use tempfile::TempDir;
use tidegate::api::TlsRoute;

use super::chart::{self, Permissions};
use super::edge::PATIENCE;
use super::program::{self, Program};
use super::{Client, Cluster, Edge, Kubectl, block_on, eventually, ports};

/// Names a build of `tidegate` that the replicas run instead of the one that was built with the tests, such as an
/// optimized one for figures.
const PROGRAM: &str = "TIDEGATE_E2E_PROGRAM";

/// An address of this machine that is not loopback.
pub(crate) fn machine() -> IpAddr {
    static ADDRESS: LazyLock<IpAddr> = LazyLock::new(|| {
        if let Some(address) = routed() {
            return address;
        }
        // A machine without a network, such as a sandbox: root can give it an address.
        let own = "198.51.100.1";
        let _ = Command::new("ip")
            .args(["address", "add", &format!("{own}/32"), "dev", "lo"])
            .status();
        let address = own.parse().unwrap();
        assert!(
            UdpSocket::bind((address, 0)).is_ok(),
            "EndpointSlices need an address that is not loopback: give this machine a network, or run as root"
        );
        address
    });
    *ADDRESS
}

/// The address from which others would be spoken to. Nothing is sent.
fn routed() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("203.0.113.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// Where an origin is to listen so that an `EndpointSlice` can name it.
pub(crate) fn anywhere() -> SocketAddr {
    SocketAddr::new(machine(), 0)
}

/// A Service with port 80, and slices that a controller would have made of its pods.
pub(crate) fn service(name: &str, endpoints: &[SocketAddr]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n"
    );
    text.push_str(&slices(name, endpoints));
    text
}

/// The slices alone.
pub(crate) fn slices(name: &str, endpoints: &[SocketAddr]) -> String {
    let mut text = String::new();
    for (index, endpoint) in endpoints.iter().enumerate() {
        let ports = format!("{{port: {}}}", endpoint.port());
        text.push_str(&slice(name, index, endpoint.ip(), &ports));
    }
    text
}

fn slice(service: &str, index: usize, address: IpAddr, ports: &str) -> String {
    slice_of(service, index, address, ports, "")
}

/// The same of a pod, as `, targetRef: {…}`.
fn slice_of(service: &str, index: usize, address: IpAddr, ports: &str, pod: &str) -> String {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {service}-{index}, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         addressType: {family}\nports: [{ports}]\n\
         endpoints: [{{addresses: [\"{address}\"], conditions: {{ready: true}}{pod}}}]\n"
    )
}

/// A route of eight lines to port 80 of a Service.
pub(crate) fn route_to(name: &str, host: &str, service: &str) -> String {
    format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TlsRoute\nmetadata:\n  name: {name}\nspec:\n  \
         hostnames: [{host}]\n  rules:\n  - backends: [{{service: {{name: {service}, port: 80}}}}]\n"
    )
}

/// The same with a line about its certificate, such as `secretName: blog-tls`.
pub(crate) fn route_with(name: &str, host: &str, service: &str, tls: &str) -> String {
    format!("{}  tls: {{{tls}}}\n", route_to(name, host, service))
}

/// An agent of this TunnelAgent, `NAMESPACE/NAME`, that dials that edge.
pub(crate) fn agent(edge: &str, name: &str, token: &str, root: &Path) -> Command {
    let mut command = Edge::command();
    command
        .args(["agent", "--edge", edge, "--agent", name])
        .args(["--proxy", "none", "--status", "off", "--ca-file"])
        .arg(root)
        .env("TIDEGATE_AGENT_TOKEN", token);
    command
}

/// A TunnelAgent whose one mapping `app` leads that hostname to the target.
pub(crate) fn tunnel_agent(name: &str, host: &str, target: SocketAddr) -> String {
    format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TunnelAgent\nmetadata: {{name: {name}}}\nspec:\n  \
         credential: {{secretName: {name}-agent}}\n  allowedHostnames: [{host}]\n  \
         mappings: [{{name: app, hostname: {host}, target: \"http://{target}\"}}]\n"
    )
}

/// The token that whoever leads has made for it.
#[track_caller]
pub(crate) fn agent_token(kubectl: &Kubectl, namespace: &str, name: &str) -> String {
    let secret = format!("secret/{name}-agent");
    eventually(&format!("{secret} in {namespace}"), PATIENCE, || {
        let path = "-o=go-template={{.data.token | base64decode}}";
        let (ok, said) = kubectl.attempt(&["get", "-n", namespace, &secret, path]);
        if ok && said.starts_with("tga_") {
            Ok(said.trim().to_owned())
        } else {
            Err(said)
        }
    })
}

/// What one edge's replicas have in common.
pub(crate) struct Deployment<'a> {
    pub(crate) cluster: &'a Cluster,
    namespace: String,
    kubeconfig: PathBuf,
    permissions: Permissions,
    args: Vec<String>,
    /// Whether replicas pass on what is for agents.
    forwards: bool,
}

impl<'a> Deployment<'a> {
    /// An edge with the permissions of the chart's roles that runs in this namespace and serves only its objects.
    #[track_caller]
    pub(crate) fn new(cluster: &'a Cluster, namespace: &str) -> Self {
        let helm = chart::helm().expect("helm, for the chart's roles: cargo xtask tools");
        let permissions = Permissions::install(&helm, cluster.kubectl(), namespace, &[namespace]);
        Self {
            cluster,
            namespace: namespace.to_owned(),
            kubeconfig: cluster.kubeconfig_for(namespace, Permissions::account()),
            permissions,
            args: vec!["--watch-namespace".to_owned(), namespace.to_owned()],
            forwards: false,
        }
    }

    /// The same for the objects of every namespace.
    pub(crate) fn everywhere(mut self) -> Self {
        self.args.clear();
        self.permissions.widen();
        self
    }

    /// Who may use the API, by this file; and what it needs may be done.
    #[track_caller]
    pub(crate) fn accounts(mut self, file: &Path) -> Self {
        let namespace = self.namespace.clone();
        self.permissions
            .add("api.accountsSecret=accounts", &[&namespace]);
        let file = file.display().to_string();
        self.args(&["--accounts", &file])
    }

    /// Adds arguments for every replica.
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    /// Has replicas pass on to each other what is for agents, as far as [`Self::replicas_service`] of that name tells of
    /// them.
    pub(crate) fn forwarding(mut self, service: &str) -> Self {
        self.forwards = true;
        self.args(&["--replicas-service", service])
    }

    /// Where it runs.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A replica that has not been started.
    pub(crate) fn replica(&self, name: &str) -> Replica {
        let (http, https, admin) = (ports::free(), ports::free(), ports::free());
        let replicas = ports::free();
        let state = tempfile::Builder::new()
            .prefix("tidegate-operator-")
            .tempdir()
            .unwrap();
        let everywhere =
            |port: u16| format!("127.0.0.1:{port},{}", SocketAddr::new(machine(), port));
        let mut command = match std::env::var_os(PROGRAM) {
            Some(program) => Edge::command_of(program),
            None => Edge::command(),
        };
        command
            .arg("operator")
            .args(["--namespace", &self.namespace, "--identity", name])
            .args(["--http", &everywhere(http)])
            .args(["--https", &everywhere(https)])
            .args(["--admin", &format!("127.0.0.1:{admin}")])
            .arg("--state-dir")
            .arg(state.path().join("state"))
            .args(["--workers", "1"])
            .args(&self.args)
            .env("KUBECONFIG", &self.kubeconfig);
        if self.forwards {
            let listen = SocketAddr::new(machine(), replicas).to_string();
            command.args(["--replicas-listen", &listen]);
        }
        Replica {
            name: name.to_owned(),
            program: None,
            command,
            state,
            http,
            https,
            admin,
            replicas,
        }
    }

    /// The Service whose endpoints are these replicas, at most two. They share an address, which in a cluster they never
    /// do, so each is told another as its own and asks all of them.
    pub(crate) fn replicas_service(&self, name: &str, replicas: &[&Replica]) {
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: None\n  ports: [{{name: http, port: 80}}, {{name: https, port: 443}}, {{name: replicas, port: 8444}}]\n"
        );
        // A slice that another call wrote must not stay behind.
        for (index, replica) in replicas.iter().cycle().take(2).enumerate() {
            let ports = format!(
                "{{name: http, port: {}}}, {{name: https, port: {}}}, {{name: replicas, port: {}}}",
                replica.http, replica.https, replica.replicas
            );
            let pod = format!(", targetRef: {{kind: Pod, name: {}}}", replica.name);
            text.push_str(&slice_of(name, index, machine(), &ports, &pod));
        }
        self.cluster.kubectl().apply(&self.namespace, &text);
    }

    /// Who holds the Lease.
    pub(crate) fn leader(&self) -> Option<String> {
        let leases: Api<Lease> = Api::namespaced(self.cluster.client(), &self.namespace);
        let lease = block_on(leases.get_opt("tidegate")).ok()??;
        lease.spec?.holder_identity
    }

    /// Waits until that replica leads.
    #[track_caller]
    pub(crate) fn wait_for_leader(&self, name: &str, patience: Duration) {
        let what = format!("{name} holding the Lease");
        eventually(&what, patience, || match self.leader() {
            Some(leader) if leader == name => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    /// The route as the API server has it.
    pub(crate) fn route(&self, name: &str) -> Option<TlsRoute> {
        let routes: Api<TlsRoute> = Api::namespaced(self.cluster.client(), &self.namespace);
        block_on(routes.get_opt(name)).ok()?
    }

    /// Status, reason and message of a condition.
    pub(crate) fn condition(&self, route: &str, kind: &str) -> Option<(String, String, String)> {
        let status = self.route(route)?.status?;
        let condition = status.conditions.into_iter().find(|it| it.type_ == kind)?;
        Some((condition.status, condition.reason, condition.message))
    }

    /// Waits until the condition of the route has this status and reason; returns its message.
    #[track_caller]
    pub(crate) fn wait_for(&self, route: &str, kind: &str, status: &str, reason: &str) -> String {
        let what = format!("{kind}={status} {reason} of {route}");
        eventually(&what, PATIENCE, || match self.condition(route, kind) {
            Some((found, why, message)) if found == status && why == reason => Ok(message),
            other => Err(format!("{other:?}")),
        })
    }
}

/// One replica, running or not. Dropping ends it.
pub(crate) struct Replica {
    pub(crate) name: String,
    program: Option<Program>,
    command: Command,
    state: TempDir,
    /// Port of plain HTTP.
    pub(crate) http: u16,
    /// Port of HTTPS.
    pub(crate) https: u16,
    /// Port of the admin listener.
    pub(crate) admin: u16,
    /// Port for other replicas.
    replicas: u16,
}

impl Replica {
    /// Starts it and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(mut self) -> Self {
        self.launch();
        self
    }

    /// Starts it and does not wait until it is ready.
    #[track_caller]
    pub(crate) fn start_unready(mut self) -> Self {
        self.begin();
        self
    }

    /// Adds arguments.
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    /// Kills the process, if it still runs, and starts another in its place.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        self.kill();
        self.launch();
    }

    /// The same on another machine: nothing is left of its state folder.
    #[track_caller]
    pub(crate) fn start_anew(&mut self) {
        self.kill();
        fs::remove_dir_all(self.state.path().join("state")).unwrap();
        self.launch();
    }

    /// Whether a command that is asked of this replica went well, and what it said.
    pub(crate) fn ask(&self, args: &[&str]) -> (bool, String) {
        let mut command = Edge::command();
        command.args(args).arg("--state-dir");
        program::run(command.arg(self.state.path().join("state")))
    }

    /// A file of its state folder, if it is there.
    pub(crate) fn kept(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.state.path().join("state").join(file)).ok()
    }

    #[track_caller]
    fn begin(&mut self) {
        self.program = Some(Program::start(&mut self.command).wait_for_port(self.admin));
    }

    #[track_caller]
    fn launch(&mut self) {
        self.begin();
        self.wait_until_ready();
    }

    /// Waits until it says that it is ready.
    #[track_caller]
    pub(crate) fn wait_until_ready(&self) {
        eventually("readiness", PATIENCE, || match self.ask_admin("/readyz") {
            Ok(reply) if reply.starts_with("200") => Ok(()),
            other => Err(format!("{other:?}; log:\n{}", self.log())),
        });
    }

    /// `kill -9`, if it runs.
    pub(crate) fn kill(&mut self) {
        if let Some(program) = &mut self.program
            && program.ended().is_none()
        {
            program.signal("KILL");
            program.wait(PATIENCE);
        }
    }

    /// Status code and body of a GET on the admin listener.
    pub(crate) fn ask_admin(&self, path: &str) -> Result<String, String> {
        let url = format!("http://127.0.0.1:{}{path}", self.admin);
        let mut curl = Command::new("curl");
        curl.args(["-s", "--max-time", "5", "-w", "%{http_code}", "-o", "-"])
            .arg(url);
        let (ok, text) = program::run(&mut curl);
        let split = text
            .len()
            .checked_sub(3)
            .filter(|_| ok)
            .ok_or(text.clone())?;
        Ok(format!("{} {}", &text[split..], &text[..split]))
    }

    /// The process.
    #[track_caller]
    pub(crate) fn program(&mut self) -> &mut Program {
        self.program.as_mut().unwrap()
    }

    /// Its process id.
    #[track_caller]
    pub(crate) fn pid(&self) -> u32 {
        self.program.as_ref().unwrap().pid()
    }

    /// Everything that this process has logged.
    pub(crate) fn log(&self) -> String {
        self.program.as_ref().map(Program::log).unwrap_or_default()
    }

    /// The file of the internal CA's root.
    pub(crate) fn root_file(&self) -> PathBuf {
        self.state.path().join("state/ca/ca.crt")
    }

    /// The root of its own CA.
    #[track_caller]
    pub(crate) fn root(&self) -> Vec<u8> {
        fs::read(self.root_file()).unwrap()
    }

    /// A client that trusts its own CA.
    #[track_caller]
    pub(crate) fn client(&self) -> Client {
        Client::new(self.https, &self.root())
    }

    /// A client that trusts this root.
    pub(crate) fn client_with(&self, root: &str) -> Client {
        Client::new(self.https, root.as_bytes())
    }

    /// An agent of this TunnelAgent, `NAMESPACE/NAME`, that dials this replica and keeps one link.
    #[track_caller]
    pub(crate) fn agent(&self, name: &str, token: &str) -> Program {
        // Any hostname of the edge will do to dial.
        let edge = format!("https://localhost:{}", self.https);
        let mut command = agent(&edge, name, token, &self.root_file());
        Program::start(command.args(["--links", "1"]))
    }

    /// Waits until the host answers with this text.
    #[track_caller]
    pub(crate) fn wait_for_text(&self, client: &Client, host: &str, text: &str) {
        let mut what = String::new();
        let _ = write!(what, "{text:?} from https://{host} by {}", self.name);
        eventually(&what, PATIENCE, || match client.try_get(host, "/") {
            Ok(reply) if reply.status == 200 && reply.text() == text => Ok(()),
            Ok(reply) => Err(format!("{} {}", reply.status, reply.text())),
            Err(error) => Err(format!("{error}; log:\n{}", self.log())),
        });
    }

    /// Bytes of memory that it holds now.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let text = line.unwrap().trim().trim_end_matches(" kB");
        text.parse::<u64>().unwrap() * 1024
    }
}
