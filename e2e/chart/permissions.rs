//! What the chart's roles allow: what the program does, and no more.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;

use crate::support::chart::{Permissions, helm};
use crate::support::operator::{service, slices};
use crate::support::program::{self, Program};
use crate::support::{Cluster, block_on, eventually, ports};

const PATIENCE: Duration = Duration::from_mins(1);

/// Whether the account may; `resource` is written as `name.group/subresource:object`, and `namespace` is empty
/// for what belongs to none.
fn may(cluster: &Cluster, home: &str, verb: &str, resource: &str, namespace: &str) -> bool {
    let (resource, object) = resource.split_once(':').unwrap_or((resource, ""));
    let (resource, part) = resource.split_once('/').unwrap_or((resource, ""));
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    let given = |text: &str| Some(text.to_owned()).filter(|it| !it.is_empty());
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(account(home)),
            resource_attributes: Some(ResourceAttributes {
                verb: given(verb),
                group: given(group),
                resource: given(resource),
                subresource: given(part),
                name: given(object),
                namespace: given(namespace),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api: Api<SubjectAccessReview> = Api::all(cluster.client());
    let answer = block_on(api.create(&PostParams::default(), &review)).unwrap();
    answer.status.unwrap().allowed
}

fn account(home: &str) -> String {
    format!("system:serviceaccount:{home}:{}", Permissions::account())
}

/// A role is in force a moment after it was made.
#[track_caller]
fn wait_for_roles(cluster: &Cluster, home: &str, served: &str) {
    eventually("the roles", PATIENCE, || {
        let all = may(cluster, home, "list", "secrets", served)
            && may(cluster, home, "get", "secrets", home)
            && may(cluster, home, "list", "acmeissuers.edge.tidegate.dev", "");
        all.then_some(()).ok_or_else(|| "not yet".to_owned())
    });
}

/// In a namespace that is served.
const SERVED: &[(&str, &[&str])] = &[
    ("tlsroutes.edge.tidegate.dev", &["get", "list", "watch"]),
    ("tlsroutes.edge.tidegate.dev/status", &["patch"]),
    ("tunnelagents.edge.tidegate.dev", &["get", "list", "watch"]),
    ("tunnelagents.edge.tidegate.dev/status", &["patch"]),
    ("services", &["list", "watch", "create", "patch", "delete"]),
    ("endpointslices.discovery.k8s.io", &["list", "watch"]),
    ("configmaps", &["get", "list", "watch"]),
    ("secrets", &["get", "list", "watch", "create", "patch"]),
    ("events.events.k8s.io", &["create", "patch"]),
    ("pods", &[]),
    ("pods/exec", &[]),
    ("deployments.apps", &[]),
    ("serviceaccounts", &[]),
    ("serviceaccounts/token", &[]),
    ("roles.rbac.authorization.k8s.io", &[]),
    ("rolebindings.rbac.authorization.k8s.io", &[]),
    ("leases.coordination.k8s.io", &[]),
    ("ingresses.networking.k8s.io", &[]),
];

/// In the program's own, when that is not served.
const HOME: &[(&str, &[&str])] = &[
    ("tlsroutes.edge.tidegate.dev", &[]),
    (
        "secrets",
        &["get", "list", "watch", "create", "patch", "delete"],
    ),
    ("endpointslices.discovery.k8s.io", &["list", "watch"]),
    (
        "leases.coordination.k8s.io:tidegate",
        &["get", "update", "create"],
    ),
    ("leases.coordination.k8s.io:other", &["create"]),
    ("configmaps", &[]),
    ("services:tidegate", &["list", "watch"]),
    ("services:other", &[]),
    ("services", &[]),
    ("pods", &[]),
];

/// In any other.
const ELSEWHERE: &[(&str, &[&str])] = &[
    ("tlsroutes.edge.tidegate.dev", &[]),
    ("secrets", &[]),
    ("configmaps", &[]),
    ("services", &[]),
    ("endpointslices.discovery.k8s.io", &[]),
    ("leases.coordination.k8s.io", &[]),
    ("events.events.k8s.io", &[]),
];

/// Wherever it runs.
const CLUSTER: &[(&str, &[&str])] = &[
    ("acmeissuers.edge.tidegate.dev", &["get", "list", "watch"]),
    ("acmeissuers.edge.tidegate.dev/status", &["patch"]),
    ("namespaces", &[]),
    ("nodes", &[]),
    ("customresourcedefinitions.apiextensions.k8s.io", &[]),
    ("clusterroles.rbac.authorization.k8s.io", &[]),
    (
        "validatingadmissionpolicies.admissionregistration.k8s.io",
        &[],
    ),
];

const VERBS: &[&str] = &[
    "get", "list", "watch", "create", "update", "patch", "delete",
];

#[track_caller]
fn exactly(cluster: &Cluster, home: &str, namespace: &str, table: &[(&str, &[&str])]) {
    for (resource, allowed) in table {
        for verb in VERBS {
            let may = may(cluster, home, verb, resource, namespace);
            assert_eq!(
                may,
                allowed.contains(verb),
                "{verb} {resource} in {namespace:?}"
            );
        }
    }
}

#[test]
fn with_namespaces_the_roles_end_at_these() {
    let (Some(cluster), Some(helm)) = (Cluster::shared(), helm()) else {
        return;
    };
    let (home, served, other) = (
        cluster.namespace(),
        cluster.namespace(),
        cluster.namespace(),
    );
    let kubectl = cluster.kubectl();
    let _permissions = Permissions::install(&helm, kubectl, home.name(), &[served.name()]);
    wait_for_roles(cluster, home.name(), served.name());
    exactly(cluster, home.name(), served.name(), SERVED);
    exactly(cluster, home.name(), home.name(), HOME);
    exactly(cluster, home.name(), other.name(), ELSEWHERE);
    exactly(cluster, home.name(), "", CLUSTER);
    // Where Events of what belongs to no namespace are written.
    let home = home.name();
    assert!(may(
        cluster,
        home,
        "create",
        "events.events.k8s.io",
        "default"
    ));
    assert!(!may(cluster, home, "get", "secrets", "default"));
    // And where the API server's own endpoints are.
    for (slice, allowed) in [(":kubernetes", true), (":other", false), ("", false)] {
        let slice = format!("endpointslices.discovery.k8s.io{slice}");
        for verb in ["list", "watch"] {
            let may = may(cluster, home, verb, &slice, "default");
            assert_eq!(may, allowed, "{verb} {slice}");
        }
        assert!(!may(cluster, home, "get", &slice, "default"));
    }
    // As a person asks.
    for (verb, resource, namespace, answer) in [
        ("patch", "secrets", served.name(), "yes"),
        ("delete", "secrets", served.name(), "no"),
        ("get", "secrets", "kube-system", "no"),
        ("*", "*", home, "no"),
    ] {
        let account = account(home);
        let args = [
            "auth", "can-i", verb, resource, "-n", namespace, "--as", &account,
        ];
        let (_, said) = kubectl.attempt(&args);
        assert_eq!(said.lines().next(), Some(answer), "{args:?}: {said}");
    }
}

#[test]
fn without_namespaces_the_role_is_the_same_everywhere() {
    let (Some(cluster), Some(helm)) = (Cluster::shared(), helm()) else {
        return;
    };
    let (home, other) = (cluster.namespace(), cluster.namespace());
    let kubectl = cluster.kubectl();
    let _permissions = Permissions::install(&helm, kubectl, home.name(), &[]);
    wait_for_roles(cluster, home.name(), other.name());
    exactly(cluster, home.name(), other.name(), SERVED);
    exactly(cluster, home.name(), "", CLUSTER);
}

/// Whoever had the program's token could otherwise make tokens of any account, and overwrite any Secret.
#[test]
fn secrets_that_are_none_of_its_business_are_refused() {
    let (Some(cluster), Some(helm)) = (Cluster::shared(), helm()) else {
        return;
    };
    let (home, other) = (cluster.namespace(), cluster.namespace());
    let kubectl = cluster.kubectl();
    let _permissions = Permissions::install(&helm, kubectl, home.name(), &[]);
    wait_for_roles(cluster, home.name(), other.name());
    let program = cluster.kubectl_as(home.name(), Permissions::account());
    let secret = |kind: &str, label: &str, data: &str| {
        let annotation = "kubernetes.io/service-account.name: default";
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata:\n  name: a-{}-tls\n  annotations: {{{annotation}}}\n  \
             labels: {{{label}}}\ntype: {kind}\nstringData: {{{data}}}\n",
            kind.rsplit('/').next().unwrap().to_lowercase(),
        )
    };
    let (document, certificate) = ("edge.tidegate.dev/document", "kubernetes.io/tls");
    let credential = "edge.tidegate.dev/agent-credential";
    let tls = "tls.crt: a, tls.key: b";
    let ours = "edge.tidegate.dev/managed: \"true\", edge.tidegate.dev/document: a";
    let create = |namespace: &str, text: &str| {
        program.attempt_with(&["create", "-n", namespace, "-f", "-"], text)
    };
    let refusal =
        "tidegate writes its own documents, the certificates of routes and credentials of agents";
    eventually("the policy", PATIENCE, || {
        let (made, said) = create(other.name(), &secret("Opaque", ours, ""));
        // Not by a role that has not arrived yet.
        let by_the_policy = !made && said.contains(refusal);
        by_the_policy.then_some(()).ok_or(said)
    });
    let token = "kubernetes.io/service-account-token";
    for (namespace, kind, label, data, allowed) in [
        (home.name(), document, "", "content: a", false),
        (home.name(), document, ours, "content: a", true),
        (other.name(), document, ours, "content: a", false),
        (other.name(), certificate, "", tls, false),
        (other.name(), certificate, ours, tls, true),
        (other.name(), credential, "", "token: a", false),
        (other.name(), credential, ours, "token: a", true),
        (home.name(), "Opaque", ours, "", false),
        (home.name(), token, ours, "", false),
        (other.name(), token, ours, "", false),
    ] {
        let (made, said) = create(namespace, &secret(kind, label, data));
        assert_eq!(made, allowed, "{kind} {label:?} in {namespace}: {said}");
        assert!(made || said.contains(refusal), "{said}");
    }
    // Its own it may change; those of others, once it could have the label on them, are still theirs.
    let theirs = secret(certificate, "", tls).replace("a-tls-tls", "theirs-tls");
    kubectl.apply(other.name(), &theirs);
    let label = r#"{"metadata":{"labels":{"edge.tidegate.dev/managed":"true"}}}"#;
    for (name, allowed) in [("a-tls-tls", true), ("theirs-tls", false)] {
        let name = format!("secret/{name}");
        let patch = [
            "-n",
            other.name(),
            "patch",
            &name,
            "--type=merge",
            "-p",
            label,
        ];
        let change = [
            "-n",
            other.name(),
            "patch",
            &name,
            "--type=merge",
            "-p",
            r#"{"stringData":{"tls.key":"c"}}"#,
        ];
        for args in [&patch[..], &change] {
            let (done, said) = program.attempt(args);
            assert_eq!(done, allowed, "{args:?}: {said}");
        }
    }
    // Of others: neither changed nor deleted.
    let other_s = "apiVersion: v1\nkind: Secret\nmetadata: {name: token}\nstringData: {a: b}\n";
    kubectl.apply(home.name(), other_s);
    for args in [
        &[
            "patch",
            "secret/token",
            "--type=merge",
            "-p",
            r#"{"stringData":{"a":"c"}}"#,
        ][..],
        &["delete", "secret/token"],
    ] {
        let (done, said) = program.attempt(&[&["-n", home.name()], args].concat());
        assert!(!done, "{args:?}: {said}");
    }
    // And nobody else is kept from anything.
    kubectl.run(&["delete", "-n", home.name(), "secret/token"]);
}

/// Whoever had the program's token could otherwise lead the traffic of any Service elsewhere.
#[test]
fn services_that_are_none_of_its_business_are_refused() {
    let (Some(cluster), Some(helm)) = (Cluster::shared(), helm()) else {
        return;
    };
    let (home, other) = (cluster.namespace(), cluster.namespace());
    let kubectl = cluster.kubectl();
    let _permissions = Permissions::install(&helm, kubectl, home.name(), &[]);
    wait_for_roles(cluster, home.name(), other.name());
    let program = cluster.kubectl_as(home.name(), Permissions::account());
    let service = |name: &str, ours: bool, owned: bool, spec: &str| {
        let ours = if ours {
            "edge.tidegate.dev/managed: \"true\""
        } else {
            ""
        };
        let rule = "edge.tidegate.dev/rule: udp1";
        let route = "{apiVersion: edge.tidegate.dev/v1alpha1, kind: TlsRoute, name: a, uid: b}";
        let owner = if owned { route } else { "" };
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, labels: {{{ours}}}, annotations: {{{rule}}}, \
             ownerReferences: [{owner}]}}\nspec: {{selector: {{app: a}}, {spec}}}\n"
        )
    };
    let udp = "ports: [{port: 6969, protocol: UDP}]";
    let local = format!("type: LoadBalancer, externalTrafficPolicy: Local, {udp}");
    let spread = local.replace("Local", "Cluster");
    let stolen = format!("{local}, externalIPs: [192.0.2.1]");
    let tcp = local.replace("UDP", "TCP");
    let create = |text: &str| {
        program.attempt_with(
            &["create", "--dry-run=server", "-n", other.name(), "-f", "-"],
            text,
        )
    };
    let refusal = "tidegate writes the Services that it made for UDP trackers";
    eventually("the policy", PATIENCE, || {
        let (made, said) = create(&service("a", false, true, &local));
        let by_the_policy = !made && said.contains(refusal);
        by_the_policy.then_some(()).ok_or(said)
    });
    for (ours, owned, spec, allowed) in [
        (true, true, &*local, true),
        (true, false, &local, false),
        (true, true, &spread, false),
        (true, true, &stolen, false),
        (true, true, &tcp, false),
        (true, true, udp, false),
    ] {
        let (made, said) = create(&service("a", ours, owned, spec));
        assert_eq!(made, allowed, "{ours} {owned} {spec}: {said}");
        assert!(made || said.contains(refusal), "{said}");
    }
    // Those of others, even such as it could have made. It never asks for one before it writes.
    kubectl.apply(other.name(), &service("theirs", false, false, &local));
    let path = format!("/api/v1/namespaces/{}/services/theirs", other.name());
    let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    let apply = [&["-n", other.name()], &apply[..]].concat();
    let ours = service("theirs", true, true, &local);
    let attempts = [
        program.attempt_with(&apply, &ours),
        program.attempt(&["delete", "--raw", &path]),
    ];
    for (done, said) in attempts {
        assert!(!done && said.contains(refusal), "{said}");
    }
}

/// A Service with the endpoints of the API server's own. They have another address than the one that the program
/// is told, as in a cluster. False where they cannot be made up.
#[track_caller]
fn back_door(cluster: &Cluster, namespace: &str) -> bool {
    if Cluster::is_given() {
        return false;
    }
    // Of TEST-NET-3: nobody is there.
    let address = SocketAddr::from(([203, 0, 113, 6], 6443));
    cluster
        .kubectl()
        .apply("default", &slice_of_the_api_server(address));
    cluster
        .kubectl()
        .apply(namespace, &service("sneak", &[address]));
    true
}

fn slice_of_the_api_server(address: SocketAddr) -> String {
    slices("kubernetes", &[address]).replace("name: kubernetes-0", "name: kubernetes")
}

/// The same program as in a pod, with the account's token and nothing else.
#[track_caller]
fn runs_with(watched: bool) {
    let (Some(cluster), Some(helm)) = (Cluster::shared(), helm()) else {
        return;
    };
    let (home, served) = (cluster.namespace(), cluster.namespace());
    let kubectl = cluster.kubectl();
    let names = [served.name()];
    let watched: &[&str] = if watched { &names } else { &[] };
    let _permissions = Permissions::install(&helm, kubectl, home.name(), watched);
    wait_for_roles(cluster, home.name(), served.name());
    let route = "\
apiVersion: edge.tidegate.dev/v1alpha1
kind: TlsRoute
metadata: {name: blog}
spec:
  className: CLASS
  hostnames: [CLASS.example.com]
  rules:
  - backends: [{service: {name: blog, port: 80}}]
";
    let route = route.replace("CLASS", home.name());
    kubectl.apply(served.name(), &route);
    let sneaky = back_door(cluster, served.name());
    let sneak = route
        .replace("blog", "sneak")
        .replace(".example", "2.example");
    kubectl.apply(served.name(), &sneak);
    let state = tempfile::tempdir().unwrap();
    let admin = ports::free();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command
        .arg("operator")
        .args(["--namespace", home.name(), "--identity", "one"])
        .args(["--class", home.name(), "--lease", Permissions::account()])
        .args(["--http", &format!("127.0.0.1:{}", ports::free())])
        .args(["--https", &format!("127.0.0.1:{}", ports::free())])
        .args(["--admin", &format!("127.0.0.1:{admin}")])
        .arg("--state-dir")
        .arg(state.path().join("state"))
        .env(
            "KUBECONFIG",
            cluster.kubeconfig_for(home.name(), Permissions::account()),
        );
    if !watched.is_empty() {
        command.args(["--watch-namespace", served.name()]);
    }
    let edge = Program::start(&mut command).wait_for_port(admin);
    let route = format!("-n={}", served.name());
    eventually("a status that was written", PATIENCE, || {
        let path = "jsonpath={.status.conditions[?(@.type=='Ready')].reason}";
        let reason = kubectl.run(&["get", "tlsr/blog", &route, "-o", path]);
        let written = reason == "BackendNotFound";
        written
            .then_some(())
            .ok_or_else(|| format!("{reason}; log:\n{}", edge.log()))
    });
    eventually("an Event that was told", PATIENCE, || {
        let args = [
            "get",
            "events.events.k8s.io",
            &route,
            "-o",
            "jsonpath={.items[*].reason}",
        ];
        let reasons = kubectl.run(&args);
        let told = reasons.contains("BackendNotFound");
        told.then_some(())
            .ok_or_else(|| format!("{reasons}; log:\n{}", edge.log()))
    });
    if sneaky {
        eventually("the API server refused as a backend", PATIENCE, || {
            let path = "jsonpath={.status.conditions[?(@.type=='ResolvedRefs')].message}";
            let said = kubectl.run(&["get", "tlsr/sneak", &route, "-o", path]);
            let refused = said.contains("the API server's address");
            refused
                .then_some(())
                .ok_or_else(|| format!("{said}; log:\n{}", edge.log()))
        });
    }
    let documents = "secrets -l edge.tidegate.dev/document -o name";
    let documents: Vec<&str> = documents.split(' ').collect();
    let args = [&["get", "-n", home.name()], &documents[..]].concat();
    let said = kubectl.run(&args);
    assert!(said.contains("secret/"), "no documents: {said}");
    let ask = format!("http://127.0.0.1:{admin}/readyz");
    program::succeed(Command::new("curl").args(["-sSf", &ask]));
    let log = edge.log();
    let refused = log.to_lowercase().contains("forbidden");
    assert!(!refused, "the role lacks something:\n{log}");
}

#[test]
fn the_program_runs_with_these_roles_in_named_namespaces() {
    runs_with(true);
}

#[test]
fn the_program_runs_with_these_roles_in_every_namespace() {
    runs_with(false);
}
