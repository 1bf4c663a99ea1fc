//! Updates of a release under load on a real node: nobody notices, whichever way traffic gets in.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::support::load::Report;
use crate::support::{Kubectl, Load, Node, eventually};

const PATIENCE: Duration = Duration::from_mins(2);
const HOST: &str = "blog.example.com";
const ROUTE: &str = "tlsr/blog";

/// A release named `edge` with a route to a backend.
pub(super) struct Installed<'a> {
    pub(super) node: &'a Node,
    /// The namespace of the release.
    pub(super) home: &'a str,
    /// The namespace of the route.
    pub(super) routes: &'a str,
    /// `helm upgrade --wait` with the values of the installation and these options.
    pub(super) upgrade: &'a dyn Fn(&[&'static str]),
}

/// One story at a time replaces pods under load: with two, names and pods of each wait for the other's, and what fails
/// is the machine.
pub(super) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two pods and then one behind the Service, and one in the node's own network. `service` is the Service's port of the
/// node.
pub(super) fn nobody_notices(edge: &Installed<'_>, service: SocketAddr) {
    let _alone = alone();
    let root = edge.root();
    // Another pod template: every pod is replaced.
    let report = under_load(service, &root, || {
        edge.upgrade_to(&["--set=podAnnotations.again=once"], 2);
    });
    report.assert_well("two pods behind the Service");
    // Both pods that the clients knew are gone.
    assert!(report.told > 0, "{report:?}");
    assert!(report.went_away > 0, "{report:?}");

    // The Service hides the clients from the one new pod, which therefore has not seen any.
    let report = under_load(service, &root, || {
        let one = "--set=replicas=1,podAnnotations.again=twice";
        edge.upgrade_to(&[one, "--set=service.externalTrafficPolicy=Cluster"], 1);
        edge.addresses_are("False", "SourceAddressReplaced", |message| {
            let mend = format!(
                "set externalTrafficPolicy: Local in Service {}/edge-tidegate",
                edge.home
            );
            message.ends_with(&mend)
        });
        // What the message says.
        let local = r#"{"spec": {"externalTrafficPolicy": "Local"}}"#;
        let service = ["patch", "service/edge-tidegate", "-n", edge.home];
        edge.kubectl().run(&[&service[..], &["-p", local]].concat());
        edge.addresses_are("True", "ForwardedHeaders", |_| true);
    });
    report.assert_well("one pod behind the Service, which hides clients and then does not");

    // Ports below 1024 of the node itself; 80 and 443 are those of another story's load balancer.
    let privileged = "pod-security.kubernetes.io/enforce=privileged";
    let namespace = ["label", "--overwrite", "namespace", edge.home, privileged];
    edge.kubectl().run(&namespace);
    let host = [
        "--set=replicas=1,hostNetwork.enabled=true,hostPorts.http=81,hostPorts.https=444",
        "--set=service.enabled=false",
    ];
    edge.upgrade_to(&host, 1);
    let node = SocketAddr::new(edge.node.address(), 444);
    let report = under_load(node, &root, || {
        let again = [host[0], host[1], "--set=podAnnotations.again=thrice"];
        edge.upgrade_to(&again, 1);
    });
    report.assert_well("one pod in the node's network");
    assert!(report.told > 0, "{report:?}");
    let pod = ["logs", "-n", edge.home, "deployment/edge-tidegate"];
    let log = edge.kubectl().run(&pod);
    assert!(log.contains("took over from the edge"), "{log}");
}

fn under_load(address: SocketAddr, root: &str, work: impl FnOnce()) -> Report {
    let load = Load::start(address, HOST, root);
    work();
    load.stop()
}

impl Installed<'_> {
    fn kubectl(&self) -> &Kubectl {
        self.node.cluster().kubectl()
    }

    /// The root of the internal CA, which outlives every pod.
    pub(super) fn root(&self) -> String {
        let pod = "deployment/edge-tidegate";
        let ca = ["/tidegate", "ca", "--state-dir=/var/lib/tidegate/state"];
        let exec = ["exec", "-n", self.home, pod, "--"];
        self.kubectl().run(&[&exec[..], &ca].concat())
    }

    /// Upgrades and waits until nothing but this many pods is left: at the end of the old ones is the danger.
    fn upgrade_to(&self, set: &[&'static str], pods: usize) {
        (self.upgrade)(set);
        let list = ["get", "pods", "-n", self.home, "-o", "name"];
        let label = "-lapp.kubernetes.io/instance=edge";
        eventually("the end of the old pods", PATIENCE, || {
            let said = self.kubectl().run(&[&list[..], &[label]].concat());
            match said.lines().count() {
                found if found == pods => Ok(()),
                _ => Err(said),
            }
        });
    }

    /// Waits for the condition; a change of the route has the edge look.
    fn addresses_are(&self, status: &str, reason: &str, says: impl Fn(&str) -> bool) {
        let mut looks = 0_u32;
        eventually("ClientAddressPreserved", PATIENCE, || {
            looks += 1;
            let look = format!("look={looks}");
            let route = [ROUTE, "-n", self.routes];
            let annotate = ["annotate", "--overwrite"];
            (self.kubectl()).run(&[&annotate[..], &route, &[&look]].concat());
            let path = r#"jsonpath={.status.conditions[?(@.type=="ClientAddressPreserved")]}"#;
            let get = ["get", ROUTE, "-n", self.routes, "-o", path];
            let said = self.kubectl().run(&get);
            let found: Value = serde_json::from_str(&said).unwrap_or_default();
            let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
            if text("status") == status && text("reason") == reason && says(&text("message")) {
                Ok(())
            } else {
                Err(said)
            }
        });
    }
}
