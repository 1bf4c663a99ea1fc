//! The API server and etcd go away for a minute and come back; objects of a future version turn up. Serving
//! goes on, also at a replica that is started meanwhile, and also of what is behind an agent of another replica.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::edge::PATIENCE;
use crate::support::operator::{agent_token, anywhere, route_to, service, tunnel_agent};
use crate::support::{Client, Cluster, Deployment, Origin, Part, Replica, breathe, eventually};

/// A replica that could not renew for ten seconds does not lead any more; this is well beyond it.
const GIVEN_UP: Duration = Duration::from_secs(14);
/// How long the API server is away.
const AWAY: Duration = Duration::from_mins(1);

/// Requests on new connections, one after the other, until it is told to stop.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    sent: AtomicUsize,
    failed: std::sync::Mutex<Vec<String>>,
}

impl Load {
    fn run(&self, client: &Client, host: &str) {
        while !self.stop.load(Ordering::SeqCst) {
            match client.try_get(host, "/") {
                Ok(reply) if reply.status == 200 && reply.text() == "blue" => {}
                other => self.failed.lock().unwrap().push(format!("{other:?}")),
            }
            self.sent.fetch_add(1, Ordering::SeqCst);
            breathe();
        }
    }

    /// Waits until this many more were sent, so that there is no doubt that time was covered.
    #[track_caller]
    fn more(&self, count: usize) {
        let goal = self.sent.load(Ordering::SeqCst) + count;
        eventually("more requests", PATIENCE, || {
            let sent = self.sent.load(Ordering::SeqCst);
            (sent >= goal)
                .then_some(())
                .ok_or_else(|| format!("{sent}"))
        });
    }
}

/// Stops the load also when the story fails.
struct Stop<'a>(&'a Load);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

#[test]
fn serving_goes_on_while_the_api_server_is_away() {
    let Some(cluster) = Cluster::own() else {
        return;
    };
    let namespace = cluster.namespace();
    let space = namespace.name();
    let edge = Deployment::new(&cluster, space).everywhere();
    let edge = edge.forwarding("replicas");
    let mut one = edge.replica("one").start();
    edge.wait_for_leader("one", PATIENCE);
    let mut two = edge.replica("two").start();
    edge.replicas_service("replicas", &[&one, &two]);
    let (blue, green) = (
        Origin::text_at(anywhere(), "blue"),
        Origin::text_at(anywhere(), "green"),
    );
    cluster
        .kubectl()
        .apply(space, &service("blue", &[blue.address()]));
    cluster
        .kubectl()
        .apply(space, &service("green", &[green.address()]));
    let host = "steady.example.com";
    cluster
        .kubectl()
        .apply(space, &route_to("steady", host, "blue"));
    edge.wait_for("steady", "Ready", "True", "Ready");
    let client = one.client();
    let pid = one.pid();
    // One link, to the replica that stays.
    let home = "app.home.example.com";
    let dial = route_to("dial", "localhost", "blue");
    cluster.kubectl().apply(space, &dial);
    let agent = tunnel_agent("homelab", home, blue.address());
    cluster.kubectl().apply(space, &agent);
    let token = agent_token(cluster.kubectl(), space, "homelab");
    let _agent = one.agent(&format!("{space}/homelab"), &token);
    one.wait_for_text(&client, home, "blue");
    two.wait_for_text(&two.client(), home, "blue");
    eventually("what was told, on disk", PATIENCE, || {
        let kept = two.kept("cluster.json").unwrap_or_default();
        let all = [host, home, "\"replica-ca\"", "homelab-agent"];
        all.iter()
            .all(|it| kept.contains(it))
            .then_some(())
            .ok_or_else(|| kept.len().to_string())
    });

    let (load, passed_on) = (Load::default(), Load::default());
    std::thread::scope(|scope| {
        let stop = [Stop(&load), Stop(&passed_on)];
        scope.spawn(|| load.run(&client, host));
        load.more(20);
        // First silent, then refused; together longer than a Lease lasts.
        cluster.pause(Part::ApiServer);
        let since = Instant::now();
        wait_for_log(&one, "not leading any more", 1);
        assert!(since.elapsed() < GIVEN_UP, "a holder gives up in time");
        // Who is started now serves what it was told last.
        two.start_again();
        assert!(two.log().contains("serving what it told last"));
        assert_eq!(two.client().try_get(host, "/").unwrap().text(), "blue");
        // It knows from before who the others are, and they it.
        two.wait_for_text(&two.client(), home, "blue");
        let here = two.client();
        let passing = &passed_on;
        scope.spawn(move || passing.run(&here, home));
        cluster.kill(Part::ApiServer);
        cluster.kill(Part::Etcd);
        eventually("time", AWAY * 2, || {
            let away = since.elapsed();
            (away > AWAY)
                .then_some(())
                .ok_or_else(|| format!("{away:?}"))
        });
        assert_eq!(two.client().try_get(host, "/").unwrap().text(), "blue");
        load.more(20);
        passed_on.more(20);
        cluster.start(Part::Etcd);
        cluster.start(Part::ApiServer);
        cluster.wait_until_ready();
        // What changes now arrives without a restart.
        let new = "new.example.com";
        cluster
            .kubectl()
            .apply(space, &route_to("new", new, "green"));
        one.wait_for_text(&client, new, "green");
        two.wait_for_text(&two.client(), new, "green");
        eventually("a leader", PATIENCE, || {
            let logs = one.log() + &two.log();
            // The first was before.
            (logs.matches("leading: this replica").count() >= 2)
                .then_some(())
                .ok_or(logs)
        });
        edge.wait_for("new", "Ready", "True", "Ready");

        // etcd alone: the API server answers, and with errors.
        cluster.kill(Part::Etcd);
        eventually(
            "an API server that misses etcd",
            PATIENCE,
            || match cluster.ready() {
                Ok(()) => Err("ready".to_owned()),
                Err(_) => Ok(()),
            },
        );
        load.more(20);
        cluster.start(Part::Etcd);
        cluster.wait_until_ready();
        cluster
            .kubectl()
            .apply(space, &route_to("new", new, "blue"));
        one.wait_for_text(&client, new, "blue");
        drop(stop);
    });
    for (load, what) in [
        (&load, "requests"),
        (&passed_on, "requests to the other replica's agent"),
    ] {
        let failed = load.failed.lock().unwrap();
        let sent = load.sent.load(Ordering::SeqCst);
        eprintln!(
            "{sent} {what} while the control plane was away and came back, {} failed",
            failed.len()
        );
        assert!(failed.is_empty(), "{failed:?}");
    }
    assert!(one.program().ended().is_none() && one.pid() == pid);
}

#[track_caller]
fn wait_for_log(replica: &Replica, words: &str, times: usize) {
    eventually(words, PATIENCE, || {
        let log = replica.log();
        (log.matches(words).count() >= times)
            .then_some(())
            .ok_or(log)
    });
}

/// Our definition of `TlsRoute` as a later version may have it: with a wider type of one field.
fn definition_of_a_later_version() -> String {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/tlsroutes.yaml");
    let text = fs::read_to_string(file).unwrap();
    let mut definition: Value = serde_saphyr::from_str(&text).unwrap();
    let schema = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let spec = &mut schema["properties"]["spec"];
    assert!(spec["properties"]["suspend"].is_object());
    spec["properties"]["suspend"] =
        serde_json::json!({"x-kubernetes-preserve-unknown-fields": true});
    serde_json::to_string(&definition).unwrap()
}

#[test]
fn an_object_of_a_later_version_harms_only_itself() {
    let Some(cluster) = Cluster::own() else {
        return;
    };
    let namespace = cluster.namespace();
    let (space, kubectl) = (namespace.name(), cluster.kubectl());
    let edge = Deployment::new(&cluster, space).everywhere();
    let mut one = edge.replica("one").start();
    let (blue, green) = (
        Origin::text_at(anywhere(), "blue"),
        Origin::text_at(anywhere(), "green"),
    );
    kubectl.apply(space, &service("blue", &[blue.address()]));
    kubectl.apply(space, &service("green", &[green.address()]));
    let (old, other) = ("old.example.com", "other.example.com");
    kubectl.apply(space, &route_to("old", old, "blue"));
    kubectl.apply(space, &route_to("other", other, "blue"));
    edge.wait_for("old", "Ready", "True", "Ready");
    edge.wait_for("other", "Ready", "True", "Ready");
    let client = one.client();

    let args = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    let (ok, said) = kubectl.attempt_with(&args, &definition_of_a_later_version());
    assert!(ok, "{said}");
    let later = format!(
        "{}  suspend: {{until: tomorrow}}\n",
        route_to("old", old, "green")
    );
    eventually("the API server knows the definition", PATIENCE, || {
        let args = ["apply", "--server-side", "-n", space, "-f", "-"];
        let (ok, said) = kubectl.attempt_with(&args, &later);
        ok.then_some(()).ok_or(said)
    });
    // The last version that was understood is served, and the status says so; the watch goes on.
    let said = wait_until_invalid(cluster.kubectl(), space, "old");
    assert!(
        said.contains("does not understand") && said.contains("earlier version"),
        "{said}"
    );
    let field = "spec.suspend: should be true or false, found a mapping";
    assert!(said.contains(field), "{said}");
    kubectl.apply(space, &route_to("other", other, "green"));
    one.wait_for_text(&client, other, "green");
    one.wait_for_text(&client, old, "blue");
    // One that was never understood: nothing to serve, nothing disturbed; lists survive it as well.
    let never = format!(
        "{}  suspend: never\n",
        route_to("never", "never.example.com", "blue")
    );
    kubectl.apply(space, &never);
    wait_until_invalid(cluster.kubectl(), space, "never");
    one.start_again();
    one.wait_for_text(&client, other, "green");
    assert!(client.try_get("never.example.com", "/").is_err());
    // Understood again.
    let back = route_to("old", old, "green");
    let replace = ["replace", "-n", space, "-f", "-"];
    let (ok, said) = kubectl.attempt_with(&replace, &back);
    assert!(ok, "{said}");
    one.wait_for_text(&client, old, "green");
    edge.wait_for("old", "Ready", "True", "Ready");
}

/// The message of Ready, read by kubectl, because this version cannot read the object.
#[track_caller]
fn wait_until_invalid(
    kubectl: &crate::support::kubectl::Kubectl,
    space: &str,
    route: &str,
) -> String {
    let path = "jsonpath={.status.conditions[?(@.type=='Ready')]}";
    let what = format!("tlsroute/{route}");
    eventually("a status that says so", PATIENCE, || {
        let (_, text) = kubectl.attempt(&["get", "-n", space, &what, "-o", path]);
        let condition: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        (condition["status"] == "False" && condition["reason"] == "Invalid")
            .then(|| condition["message"].as_str().unwrap_or_default().to_owned())
            .ok_or(text)
    })
}
