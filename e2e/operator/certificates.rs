//! Certificates by ACME with two replicas: answered by both, kept through restarts and losses.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;

use crate::support::acme::{Authority, Behaviour, Front, Tap, When};
use crate::support::operator::{anywhere, route_with, service};
use crate::support::program;
use crate::support::{Cluster, Deployment, Origin, Replica, block_on, breathe, eventually};

/// How long an order may take on a busy machine.
pub(super) const ORDER: Duration = Duration::from_mins(2);

/// An authority, the way to it and from it, and an edge of two replicas in a cluster of their own:
/// `AcmeIssuer` belongs to no namespace.
pub(super) struct Site<'a> {
    pub(super) edge: Deployment<'a>,
    pub(super) authority: Authority,
    pub(super) tap: Tap,
    pub(super) front: Front,
    _origin: Origin,
}

impl<'a> Site<'a> {
    pub(super) fn new(cluster: &'a Cluster, space: &str, behaviour: &Behaviour) -> Option<Self> {
        let authority = Authority::start(behaviour)?;
        let (tap, front) = (Tap::start(&authority), Front::start(&authority));
        let edge = Deployment::new(cluster, space).everywhere().args(&[
            "--replicas-service",
            "replicas",
            "--name-server",
            &format!("127.0.0.1:{}", authority.dns),
            "--acme-http-port",
            &authority.http.to_string(),
            "--acme-tls-port",
            &authority.https.to_string(),
        ]);
        let origin = Origin::text_at(anywhere(), "here");
        let kubectl = cluster.kubectl();
        kubectl.apply(space, &service("web", &[origin.address()]));
        kubectl.apply(space, &authority.trust());
        for (name, solver) in [("by-http", "http01"), ("by-tls", "tlsAlpn01")] {
            let solvers = format!("  solvers: [{{name: {name}, {solver}: {{}}}}]\n");
            let issuer = Authority::issuer_at(name, tap.port, &solvers);
            kubectl.apply(space, &issuer);
        }
        Some(Self {
            edge,
            authority,
            tap,
            front,
            _origin: origin,
        })
    }

    /// Applies a route whose certificate comes from this issuer.
    pub(super) fn route(&self, name: &str, issuer: &str) -> String {
        let host = format!("{name}.example.com");
        let tls = format!("issuerRef: {{name: {issuer}}}");
        let text = route_with(name, &host, "web", &tls);
        self.edge
            .cluster
            .kubectl()
            .apply(self.edge.namespace(), &text);
        host
    }

    /// Waits until the replica serves the host with a certificate of the authority.
    #[track_caller]
    pub(super) fn wait_for_trust(&self, replica: &Replica, host: &str) {
        let client = replica.client_with(&self.authority.root());
        eventually(
            &format!("{host} by {}", replica.name),
            ORDER,
            || match client.try_get(host, "/") {
                Ok(reply) if reply.text() == "here" => Ok(()),
                Ok(reply) => Err(format!("{} {}", reply.status, reply.text())),
                Err(error) => Err(format!("{error}; log:\n{}", replica.log())),
            },
        );
    }

    /// The Secrets in which the edge keeps what it must remember, with their kinds.
    pub(super) fn documents(&self) -> BTreeMap<String, String> {
        let label = "edge.tidegate.dev/document";
        let secrets: Api<Secret> =
            Api::namespaced(self.edge.cluster.client(), self.edge.namespace());
        let all = block_on(secrets.list(&ListParams::default().labels(label))).unwrap();
        let kind = |secret: Secret| {
            let labels = secret.metadata.labels.unwrap_or_default();
            (secret.metadata.name.unwrap(), labels[label].clone())
        };
        all.items.into_iter().map(kind).collect()
    }
}

/// Sends a signal to a process that may be another thread's to watch.
pub(super) fn signal(pid: u32, name: &str) {
    let mut kill = std::process::Command::new("kill");
    program::succeed(kill.args([&format!("-{name}"), &pid.to_string()]));
}

/// Checks this again and again for the time.
#[track_caller]
pub(super) fn holds_for(time: Duration, mut check: impl FnMut()) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        check();
        breathe();
    }
}

#[test]
fn answers_reach_every_replica_and_certificates_outlive_replicas_and_losses() {
    let Some(cluster) = Cluster::own() else {
        return;
    };
    let behaviour = Behaviour {
        reused_authorizations: 0,
        ..Behaviour::default()
    };
    let namespace = cluster.namespace();
    let Some(site) = Site::new(&cluster, namespace.name(), &behaviour) else {
        return;
    };
    let edge = &site.edge;
    let mut one = edge.replica("one").start();
    edge.wait_for_leader("one", ORDER);
    let mut two = edge.replica("two").start();
    edge.replicas_service("replicas", &[&one, &two]);
    // The authority only ever meets the replica that does not order.
    site.front.lead_to(&[&two]);

    // One that is stuck is waited for: the authority is not told to look.
    let pid = two.pid();
    site.tap
        .act_on("authZ", When::After, move || signal(pid, "STOP"));
    let first = site.route("first", "by-http");
    eventually("an authorization", ORDER, || {
        (site.tap.count("authZ", 200) > 0)
            .then_some(())
            .ok_or_else(|| format!("{:?}; log:\n{}", site.tap.exchanges(), one.log()))
    });
    holds_for(Duration::from_secs(3), || {
        assert_eq!(site.tap.count("chalZ", 200), 0, "log:\n{}", one.log());
    });
    signal(pid, "CONT");
    let second = site.route("second", "by-tls");
    for host in [&first, &second] {
        site.wait_for_trust(&one, host);
        site.wait_for_trust(&two, host);
    }
    assert!(site.front.carried() >= 2);
    assert_eq!(site.authority.orders(), 2);
    for route in ["first", "second"] {
        edge.wait_for(route, "Ready", "True", "Ready");
    }

    published(&site, &first);

    // From what the Secrets hold, at the first request after ready.
    one.start_anew();
    two.start_again();
    for replica in [&one, &two] {
        let client = replica.client_with(&site.authority.root());
        for host in [&first, &second] {
            assert_eq!(client.get(host, "/").text(), "here");
        }
    }
    lose_documents(&site, &one, &two, &[&first, &second]);
    ask_a_follower(&site, &one, &two);
    die_unnoticed(&site, &one, &mut two);
    leave_and_come_back(&site, &one, "alone");
}

/// What is kept for a route that is deleted is marked, and serves it again without an order.
fn leave_and_come_back(site: &Site<'_>, one: &Replica, route: &str) {
    let (kubectl, space) = (site.edge.cluster.kubectl(), site.edge.namespace());
    let unused = || {
        let label = "edge.tidegate.dev/unused";
        let said = kubectl.run(&["get", "secrets", "-n", space, "-l", label, "-o", "name"]);
        let mut names: Vec<String> = said.lines().map(str::to_owned).collect();
        names.sort();
        names
    };
    let copy = format!("secret/{route}-tls");
    let is_document = |name: &String| name.starts_with("secret/tidegate-certificate-");
    eventually("the copy", ORDER, || {
        let (there, said) = kubectl.attempt(&["get", &copy, "-n", space]);
        if there { Ok(()) } else { Err(said) }
    });
    let (orders, before) = (site.authority.orders(), unused());
    assert!(before.is_empty(), "{before:?}");
    kubectl.run(&["delete", "tlsr", route, "-n", space]);
    eventually("marks", ORDER, || match unused().as_slice() {
        [first, second] if *first == copy && is_document(second) => Ok(()),
        other => Err(format!("{other:?}; log:\n{}", one.log())),
    });
    let host = site.route(route, "by-http");
    site.wait_for_trust(one, &host);
    eventually("no marks", ORDER, || match unused().as_slice() {
        [] => Ok(()),
        other => Err(format!("{other:?}; log:\n{}", one.log())),
    });
    assert_eq!(site.authority.orders(), orders);
}

/// Commands are answered by every replica: what is known by itself, orders by the one that leads.
fn ask_a_follower(site: &Site<'_>, one: &Replica, two: &Replica) {
    let leading = site.edge.leader();
    let (leader, follower) = match leading.as_deref() {
        Some("one") => (one, two),
        Some("two") => (two, one),
        other => panic!("{other:?} leads"),
    };
    let certificate = |replica: &Replica| -> Value {
        let (_, said) = replica.ask(&["certs", "--output", "json"]);
        let all: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"));
        let all = all["certificates"].as_array().unwrap().iter();
        let mut ours = all.filter(|it| it["names"][0] == "theirs.example.com");
        ours.next().unwrap_or_else(|| panic!("{said}")).clone()
    };
    for replica in [leader, follower] {
        let found = certificate(replica);
        assert_eq!(found["state"], "ok", "{found}");
        assert_eq!(found["issuer"], "by-http", "{found}");
        assert!(found["notAfter"].is_string(), "{found}");
    }
    let before = certificate(follower)["notBefore"].clone();
    let orders = site.authority.orders();
    let (done, said) = follower.ask(&["renew", "theirs.example.com"]);
    assert!(done && said.contains("will be renewed now"), "{said}");
    let previous = || {
        let renewed = certificate(follower)["previousNotAfter"].is_string();
        renewed.then_some(()).ok_or_else(|| leader.log())
    };
    eventually("another certificate", ORDER, previous);
    assert_eq!(site.authority.orders(), orders + 1, "asked once, done once");
    let (done, said) = follower.ask(&["rollback", "theirs.example.com"]);
    assert!(done && said.contains("is served again"), "{said}");
    eventually("the certificate of before", ORDER, || {
        let found = certificate(follower);
        let back = found["rolledBackAt"].is_string() && found["notBefore"] == before;
        back.then_some(()).ok_or_else(|| found.to_string())
    });
    let (_, said) = follower.ask(&["doctor", "theirs.example.com", "--output", "json"]);
    let found: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"));
    assert_eq!(found["running"], true, "{found}");
    let (done, said) = follower.ask(&["renew", "nothing"]);
    assert!(!done && said.contains("there is no certificate"), "{said}");
    // Nothing is left of it.
    eventually("no questions", ORDER, || {
        let documents = site.documents();
        let left = documents.values().any(|kind| kind == "question");
        if left {
            Err(format!("{documents:?}"))
        } else {
            Ok(())
        }
    });
}

/// A replica that is gone and still among the endpoints is not waited for.
fn die_unnoticed(site: &Site<'_>, one: &Replica, two: &mut Replica) {
    let waited = || one.log().matches("does not serve the answer").count();
    let before = waited();
    two.kill();
    site.front.lead_to(&[one]);
    for (name, issuer) in [("alone", "by-http"), ("alone-tls", "by-tls")] {
        let host = site.route(name, issuer);
        site.wait_for_trust(one, &host);
    }
    let log = one.log();
    assert!(log.contains("is taken for dead"), "{log}");
    assert_eq!(waited(), before, "{log}");
}

/// The Secret that a certificate is published in is a copy: whatever happens to it, the host is served.
fn published(site: &Site<'_>, host: &str) {
    let (edge, kubectl) = (&site.edge, site.edge.cluster.kubectl());
    let space = edge.namespace();
    let secrets: Api<Secret> = Api::namespaced(edge.cluster.client(), space);
    let chain = || {
        let secret = block_on(secrets.get_opt("first-tls")).map_err(|it| it.to_string())?;
        let data = secret.ok_or("no Secret")?.data.unwrap_or_default();
        Ok::<_, String>(data["tls.crt"].0.clone())
    };
    let good = eventually("a published certificate", ORDER, chain);
    assert!(good.starts_with(b"-----BEGIN CERTIFICATE"));
    let garbage = r#"{"data": {"tls.crt": "Z2FyYmFnZQ=="}}"#;
    kubectl.run(&["patch", "secret", "first-tls", "-n", space, "-p", garbage]);
    let again = || match chain()? {
        found if found == good => Ok(()),
        found => Err(String::from_utf8_lossy(&found).into_owned()),
    };
    eventually("a mended Secret", ORDER, again);
    kubectl.run(&["delete", "secret", "first-tls", "-n", space]);
    eventually("a Secret made again", ORDER, again);
    // What somebody else made under that name stays theirs.
    let args = [
        "create",
        "secret",
        "generic",
        "theirs-tls",
        "-n",
        space,
        "--from-literal=a=b",
    ];
    kubectl.run(&args);
    assert_eq!(site.authority.orders(), 2, "for {host}");
}

/// What the edge keeps in Secrets is deleted and damaged while it runs.
fn lose_documents(site: &Site<'_>, one: &Replica, two: &Replica, hosts: &[&str]) {
    let (edge, kubectl) = (&site.edge, site.edge.cluster.kubectl());
    let documents = site.documents();
    let count = |kind: &str| documents.values().filter(|it| *it == kind).count();
    assert_eq!(count("certificate"), 2, "{documents:?}");
    assert!(documents.len() >= 5, "{documents:?}");
    let serve = |when: &str| {
        for replica in [one, two] {
            let client = replica.client_with(&site.authority.root());
            for host in hosts {
                let reply = client.try_get(host, "/");
                assert!(
                    reply.as_ref().is_ok_and(|reply| reply.text() == "here"),
                    "{when}: {reply:?}; log:\n{}",
                    replica.log()
                );
            }
        }
        assert_eq!(site.authority.orders(), 2, "{when}");
    };
    let garbage = r#"{"data": {"document.json": "Z2FyYmFnZQ=="}}"#;
    for (name, kind) in &documents {
        kubectl.run(&[
            "patch",
            "secret",
            name,
            "-n",
            edge.namespace(),
            "-p",
            garbage,
        ]);
        serve(&format!("damaged {kind}"));
    }
    holds_for(Duration::from_secs(2), || serve("all damaged"));
    for (name, kind) in &documents {
        kubectl.run(&["delete", "secret", name, "-n", edge.namespace()]);
        serve(&format!("deleted {kind}"));
    }
    holds_for(Duration::from_secs(2), || serve("all deleted"));
    // And another order goes through as if nothing had been.
    let third = site.route("theirs", "by-http");
    site.wait_for_trust(two, &third);
    edge.wait_for("theirs", "Ready", "True", "Ready");
    let secrets: Api<Secret> = Api::namespaced(edge.cluster.client(), edge.namespace());
    let foreign = block_on(secrets.get("theirs-tls")).unwrap().data.unwrap();
    assert_eq!(foreign.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(site.authority.orders(), 3, "log:\n{}", one.log());
}
