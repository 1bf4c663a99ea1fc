//! An agent at a cluster: its Secret is made, it connects, its page is served, and the status tells of it.

use serde_json::Value;

use crate::support::edge::PATIENCE;
use crate::support::operator::{Replica, anywhere, route_to, service};
use crate::support::{Cluster, Deployment, Edge, Origin, Program, eventually};

const APP: &str = "app.home.example.com";

fn agent(replica: &Replica, space: &str, token: &str) -> Program {
    let mut command = Edge::command();
    command
        .args([
            "agent",
            "--edge",
            &format!("https://localhost:{}", replica.https),
        ])
        .args([
            "--agent",
            &format!("{space}/homelab"),
            "--proxy",
            "none",
            "--status",
            "off",
        ])
        .arg("--ca-file")
        .arg(replica.root_file())
        .env("TIDEGATE_AGENT_TOKEN", token);
    Program::start(&mut command)
}

#[test]
fn an_agent_gets_its_secret_connects_and_is_told_of() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let namespace = cluster.namespace();
    let (space, kubectl) = (namespace.name(), cluster.kubectl());
    let edge = Deployment::new(cluster, space);
    let one = edge.replica("one").start();
    let two = edge.replica("two").start();
    let behind = Origin::text("behind the agent");
    // Any hostname of the edge will do to dial.
    let there = Origin::text_at(anywhere(), "there");
    kubectl.apply(space, &service("there", &[there.address()]));
    kubectl.apply(space, &route_to("dial", "localhost", "there"));
    let target = behind.address();
    kubectl.apply(
        space,
        &format!(
            "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TunnelAgent\nmetadata: {{name: homelab}}\nspec:\n  \
             credential: {{secretName: homelab-agent}}\n  allowedHostnames: [\"*.home.example.com\"]\n  \
             mappings: [{{name: app, hostname: {APP}, target: \"http://{target}\"}}]\n"
        ),
    );
    // The leader makes the credential; the agent's owner reads it.
    let token = eventually("the Secret", PATIENCE, || {
        let path = "-o=go-template={{.data.token | base64decode}}";
        let (ok, said) = kubectl.attempt(&["get", "-n", space, "secret/homelab-agent", path]);
        if ok && said.starts_with("tga_") {
            Ok(said.trim().to_owned())
        } else {
            Err(said)
        }
    });
    let object = || -> Value {
        let read = ["get", "-n", space, "tagent/homelab", "-o", "json"];
        serde_json::from_str(&kubectl.run(&read)).unwrap()
    };
    let condition = |kind: &str, wanted: &str| {
        eventually(&format!("{kind}={wanted}"), PATIENCE, || {
            let status = object()["status"].clone();
            let all = status["conditions"].as_array().cloned().unwrap_or_default();
            let found = all.iter().find(|it| it["type"] == kind);
            match found {
                Some(it) if it["status"] == wanted => Ok(it.clone()),
                _ => Err(format!("{status}; log:\n{}", one.log())),
            }
        })
    };
    condition("CredentialReady", "True");
    condition("Connected", "False");
    let program = agent(&one, space, &token);
    one.wait_for_text(&one.client(), APP, "behind the agent");
    condition("Connected", "True");
    condition("MappingsAccepted", "True");
    condition("Ready", "True");
    let status = object()["status"].clone();
    eprintln!("{status:#}");
    assert_eq!(status["sessions"][0]["replica"], "one", "{status}");
    let listed = kubectl.run(&["get", "tagent", "-n", space]);
    eprintln!("{listed}");
    // A second process of the same agent at the other replica: a pool, and both replicas have a way.
    let other = agent(&two, space, &token);
    two.wait_for_text(&two.client(), APP, "behind the agent");
    condition("Redundant", "True");
    // Another token is another agent's.
    let stranger = agent(
        &two,
        space,
        "tga_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    );
    eventually("the refusal", PATIENCE, || {
        let log = stranger.log();
        if log.contains("CredentialRefused") {
            Ok(())
        } else {
            Err(log)
        }
    });
    // Suspended, it is gone at both.
    let suspend = [
        "patch",
        "-n",
        space,
        "tagent/homelab",
        "--type=merge",
        "-p",
        "{\"spec\":{\"suspend\":true}}",
    ];
    kubectl.run(&suspend);
    condition("Connected", "False");
    for log in [one.log(), two.log(), program.log(), other.log()] {
        assert!(!log.contains(&token), "the token is in a log");
    }
}
