//! Our kinds as people meet them through kubectl: accepted, explained, listed, waited for.

use std::path::Path;

use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, CustomResourceExt as _};
use serde_json::json;

use tidegate::api::{AcmeIssuer, TlsRoute, TunnelAgent};

use crate::support::{Cluster, block_on};

const ROUTE: &str = "\
apiVersion: edge.tidegate.dev/v1alpha1
kind: TlsRoute
metadata: {name: blog}
spec:
  hostnames: [blog.example.com]
  rules:
  - backends: [{service: {name: blog, port: 80}}]
";

/// The text of a sample, with every object in this namespace.
fn sample(path: &Path, namespace: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let place = |document: &str| {
        let mut object: serde_json::Value = serde_saphyr::from_str(document).unwrap();
        // The namespace is the test's.
        if object["kind"] == "Namespace" {
            return String::new();
        }
        object["metadata"]["namespace"] = namespace.into();
        format!("---\n{object}\n")
    };
    text.split("\n---\n").map(place).collect()
}

#[test]
fn the_api_server_takes_the_definitions_without_a_complaint() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    for definition in [TlsRoute::crd(), TunnelAgent::crd(), AcmeIssuer::crd()] {
        let name = definition.metadata.name.unwrap();
        let asked = [
            "get",
            "customresourcedefinition",
            &name,
            "-o",
            "jsonpath={.status.conditions}",
        ];
        let conditions: serde_json::Value =
            serde_json::from_str(&cluster.kubectl().run(&asked)).unwrap();
        for condition in conditions.as_array().unwrap() {
            // NonStructuralSchema, KubernetesAPIApprovalPolicyConformant and the like are complaints.
            let wanted = match condition["type"].as_str().unwrap() {
                "NamesAccepted" | "Established" => "True",
                _ => "False",
            };
            assert_eq!(condition["status"], wanted, "{name}: {condition}");
        }
        // Nothing that we wrote was dropped or rewritten.
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
        let file = folder.join(format!("{}.yaml", name.split('.').next().unwrap()));
        let (same, diff) = cluster.kubectl().attempt(&[
            "diff",
            "--server-side",
            "--force-conflicts",
            "-f",
            file.to_str().unwrap(),
        ]);
        assert!(same, "{diff}");
    }
}

#[test]
fn every_sample_and_a_whole_stack_are_accepted_by_the_api_server() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let namespace = cluster.namespace();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for entry in ["manifests/samples", "examples/torrust-kubernetes"]
        .into_iter()
        .flat_map(|folder| std::fs::read_dir(root.join(folder)).unwrap())
    {
        let path = entry.unwrap().path();
        let args = [
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "-f",
            "-",
        ];
        let text = sample(&path, namespace.name());
        let (ok, said) = cluster.kubectl().attempt_with(&args, &text);
        assert!(
            ok && !said.contains("Warning"),
            "{}: {said}",
            path.display()
        );
        count += 1;
    }
    assert!(count >= 15, "only {count} files");
}

#[test]
fn kubectl_explains_every_field() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let all = cluster
        .kubectl()
        .run(&["explain", "tlsroutes.edge.tidegate.dev", "--recursive"]);
    for field in ["hostnames", "backends", "pathPrefix", "notAfter"] {
        assert!(all.contains(field), "{field}: {all}");
    }
    let one = cluster
        .kubectl()
        .run(&["explain", "tlsroutes.edge.tidegate.dev.spec.hostnames"]);
    assert!(one.contains("blog.example.com"), "{one}");
}

#[test]
fn kubectl_lists_the_category_with_what_people_ask_first() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let namespace = cluster.namespace();
    let agent = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/samples/tunnel.yaml");
    let agent = sample(&agent, namespace.name());
    cluster.kubectl().apply(namespace.name(), &agent);
    cluster.kubectl().apply(namespace.name(), ROUTE);
    // An issuer is in no namespace: it needs a name of its own, and somebody who deletes it.
    let issuer = namespace.name();
    let text = format!(
        "{{apiVersion: edge.tidegate.dev/v1alpha1, kind: AcmeIssuer, metadata: {{name: {issuer}}}, \
         spec: {{directory: 'https://ca.test/directory', termsOfServiceAgreed: true}}}}"
    );
    cluster.kubectl().apply(namespace.name(), &text);
    let listed = cluster
        .kubectl()
        .run(&["get", "edge", "-n", namespace.name()]);
    for row in [
        "tlsroute.edge.tidegate.dev/blog",
        "tunnelagent.edge.tidegate.dev/homelab",
        &format!("acmeissuer.edge.tidegate.dev/{issuer}"),
    ] {
        assert!(listed.contains(row), "{listed}");
    }
    let header = listed.lines().find(|line| line.contains("HOSTS")).unwrap();
    let columns: Vec<&str> = header.split_whitespace().collect();
    assert_eq!(
        columns,
        ["NAME", "HOSTS", "READY", "REASON", "EXPIRES", "AGE"]
    );
    for (kind, expected) in [
        ("tlsr", "NAME HOSTS READY REASON EXPIRES AGE CLASS"),
        ("tagent", "NAME CONNECTED READY REASON VERSION AGE CLASS"),
        ("acmei", "NAME DEFAULT READY REASON DIRECTORY AGE CLASS"),
    ] {
        let args = ["get", kind, "-n", namespace.name(), "-o", "wide"];
        let table = cluster.kubectl().run(&args);
        let header: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(header.join(" "), expected, "{table}");
    }
    cluster.kubectl().run(&["delete", "acmeissuer", issuer]);
    let short = cluster
        .kubectl()
        .run(&["get", "tlsr", "-n", namespace.name(), "-o", "name"]);
    assert!(short.contains("tlsroute.edge.tidegate.dev/blog"), "{short}");
}

/// A fresh object is told from one that was looked at, and `kubectl wait` sees the difference.
#[test]
fn kubectl_waits_for_a_condition() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let namespace = cluster.namespace();
    cluster.kubectl().apply(namespace.name(), ROUTE);
    let routes: Api<DynamicObject> = Api::namespaced_with(
        cluster.client(),
        namespace.name(),
        &ApiResource::erase::<TlsRoute>(&()),
    );
    let fresh = block_on(routes.get("blog")).unwrap();
    assert_eq!(fresh.data["status"], json!({"observedGeneration": -1}));
    let wait = |timeout: &str| {
        cluster.kubectl().attempt(&[
            "wait",
            "--for=condition=Ready",
            timeout,
            "-n",
            namespace.name(),
            "tlsroute/blog",
        ])
    };
    let (met, said) = wait("--timeout=1s");
    assert!(!met, "{said}");
    let status = json!({
        "apiVersion": "edge.tidegate.dev/v1alpha1",
        "kind": "TlsRoute",
        "status": {
            "observedGeneration": fresh.metadata.generation,
            "conditions": [{
                "type": "Ready",
                "status": "True",
                "reason": "Serving",
                "message": "",
                "observedGeneration": fresh.metadata.generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        },
    });
    let params = PatchParams::apply("e2e").force();
    block_on(routes.patch_status("blog", &params, &Patch::Apply(&status))).unwrap();
    let (met, said) = wait("--timeout=60s");
    assert!(met, "{said}");
}
