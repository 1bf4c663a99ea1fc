//! An agent at a cluster: its Secret is made, it connects, its page is served by every replica, and the status tells of
//! it.

use serde_json::Value;

use crate::support::edge::PATIENCE;
use crate::support::operator::{agent_token, anywhere, route_to, service, tunnel_agent};
use crate::support::{Cluster, Deployment, Origin, eventually};

const APP: &str = "app.home.example.com";

#[test]
fn an_agent_gets_its_secret_connects_and_is_told_of() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let namespace = cluster.namespace();
    let (space, kubectl) = (namespace.name(), cluster.kubectl());
    let edge = Deployment::new(cluster, space).forwarding("replicas");
    let one = edge.replica("one").start();
    let two = edge.replica("two").start();
    edge.replicas_service("replicas", &[&one, &two]);
    let behind = Origin::text("behind the agent");
    // Any hostname of the edge will do to dial.
    let there = Origin::text_at(anywhere(), "there");
    kubectl.apply(space, &service("there", &[there.address()]));
    kubectl.apply(space, &route_to("dial", "localhost", "there"));
    kubectl.apply(space, &tunnel_agent("homelab", APP, behind.address()));
    // The leader makes the credential; the agent's owner reads it.
    let token = agent_token(kubectl, space, "homelab");
    let name = format!("{space}/homelab");
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
    let program = one.agent(&name, &token);
    one.wait_for_text(&one.client(), APP, "behind the agent");
    // Its one link ends at the other replica.
    two.wait_for_text(&two.client(), APP, "behind the agent");
    condition("Connected", "True");
    condition("MappingsAccepted", "True");
    condition("Ready", "True");
    assert_eq!(condition("Redundant", "False")["reason"], "SingleLink");
    let status = object()["status"].clone();
    eprintln!("{status:#}");
    assert_eq!(status["sessions"][0]["replica"], "one", "{status}");
    let listed = kubectl.run(&["get", "tagent", "-n", space]);
    eprintln!("{listed}");
    // A second process of the same agent at the other replica: a pool, and both replicas have a way.
    let other = two.agent(&name, &token);
    two.wait_for_text(&two.client(), APP, "behind the agent");
    let redundant = condition("Redundant", "True");
    assert_eq!(redundant["message"], "2 links to 2 replicas");
    // Another token is another agent's.
    let stranger = two.agent(&name, "tga_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
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
