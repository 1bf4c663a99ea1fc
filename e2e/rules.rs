//! Rules across objects: refused by the API server when they are written, told by a condition when they slip
//! through, and said by `tidegate check` in the same words.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::kubectl::Kubectl;
use crate::support::program::{self, Program};
use crate::support::{Cluster, eventually, ports};

const PATIENCE: Duration = Duration::from_mins(1);

/// The generated policies for one namespace only; gone with the value.
struct Policies<'a> {
    kubectl: &'a Kubectl,
    text: String,
}

impl<'a> Policies<'a> {
    fn install(kubectl: &'a Kubectl, namespace: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let printed = program::succeed(command.args(["crds", "--policies"]));
        let all = serde_saphyr::from_multiple::<Value>(&printed).unwrap();
        let mut text = String::new();
        let mut count = 0;
        for mut document in all {
            let kind = document["kind"].as_str().unwrap().to_owned();
            if !kind.starts_with("ValidatingAdmissionPolicy") {
                continue;
            }
            let name = format!(
                "{}.{namespace}",
                document["metadata"]["name"].as_str().unwrap()
            );
            document["metadata"]["name"] = name.clone().into();
            if kind.ends_with("Binding") {
                document["spec"]["policyName"] = name.into();
                document["spec"]["matchResources"] = serde_json::json!({"namespaceSelector": {
                    "matchLabels": {"kubernetes.io/metadata.name": namespace},
                }});
            }
            writeln!(text, "---\n{document}").unwrap();
            count += 1;
        }
        assert_eq!(count, 4);
        let args = ["apply", "--server-side", "-f", "-"];
        let (ok, said) = kubectl.attempt_with(&args, &text);
        assert!(ok, "{said}");
        Self { kubectl, text }
    }
}

impl Drop for Policies<'_> {
    fn drop(&mut self) {
        let args = ["delete", "--wait=false", "--ignore-not-found", "-f", "-"];
        let _ = self.kubectl.attempt_with(&args, &self.text);
    }
}

/// A route of that age, in files; the API server knows its own time.
fn route(namespace: &str, name: &str, spec: &str, day: usize) -> String {
    format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TlsRoute\nmetadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '2025-01-0{day}T00:00:00Z'}}\nspec: {{className: rules, {spec}}}\n"
    )
}

fn applied(kubectl: &Kubectl, text: &str) -> (bool, String) {
    kubectl.attempt_with(&["apply", "-f", "-"], text)
}

/// What `tidegate check` says of all of them together.
fn checked(texts: &[&str]) -> (bool, String) {
    let folder = TempDir::new().unwrap();
    for (index, text) in texts.iter().enumerate() {
        // `check` looks at the objects of no class.
        let text = text.replace("className: rules, ", "");
        std::fs::write(folder.path().join(format!("{index}.yaml")), text).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    program::run(command.arg("check").arg(folder.path()))
}

const PLAIN: &str = "rules: [{backends: [{address: '192.0.2.1:80'}]}]";

/// The older one, the newcomer, and what is said of that; `NS` is the namespace. Nothing is said of those without
/// a sentence.
fn pairs() -> Vec<(String, String, &'static str)> {
    let tracker = |host: &str, more: &str, service: &str, exposure: &str| {
        format!(
            "hostnames: [{host}], {more} rules: [{{tracker: {{exposure: {exposure}}}, backends: [{{service: {{name: {service}, port: 80}}}}]}}]"
        )
    };
    let in_order = "HTTP trackers of one process are mixed: a.example.com of NS/older through the edge, b.example.com of NS/newcomer directly; the process has one switch for all of them (on_reverse_proxy in a Torrust tracker.toml), so the peers of one side would get wrong addresses or none; take tracker.exposure: Direct out of b.example.com of NS/newcomer, or set it in a.example.com of NS/older as well, or lead b.example.com of NS/newcomer through the edge without TLS by tracker.exposure: HTTP; trackers of different processes belong in routes with different trackerGroup";
    let reversed = "HTTP trackers of one process are mixed: b.example.com of NS/newcomer through the edge, a.example.com of NS/older directly; the process has one switch for all of them (on_reverse_proxy in a Torrust tracker.toml), so the peers of one side would get wrong addresses or none; take tracker.exposure: Direct out of a.example.com of NS/older, or set it in b.example.com of NS/newcomer as well, or lead a.example.com of NS/older through the edge without TLS by tracker.exposure: HTTP; trackers of different processes belong in routes with different trackerGroup";
    let named = "HTTP trackers of one process are mixed: one (a.example.com, b.example.com) of NS/older, c.example.com of NS/older through the edge, two (d.example.com) of NS/newcomer directly";
    let at = |host: &str, exposure: &str, port: u16| {
        format!(
            "hostnames: [{host}], rules: [{{tracker: {{exposure: {exposure}}}, backends: [{{address: '192.0.2.1:{port}'}}]}}]"
        )
    };
    let taken = "a.example.com already belongs to TlsRoute NS/older, which is older; take the hostname out of one of the two, or put all rules into one route";
    vec![
        (
            format!("hostnames: [a.example.com], {PLAIN}"),
            format!("hostnames: [b.example.com, a.example.com], {PLAIN}"),
            taken,
        ),
        (
            format!("hostnames: [a.example.com], {PLAIN}"),
            format!("hostnames: [A.Example.COM], {PLAIN}"),
            taken,
        ),
        (
            format!("hostnames: [a.example.com], {PLAIN}"),
            "rules: [{hostnames: [b.example.com], backends: [{address: '192.0.2.1:80'}]}, {hostnames: [a.example.com], backends: [{address: '192.0.2.1:80'}]}]".to_owned(),
            taken,
        ),
        (
            format!("hostnames: ['*.example.com'], {PLAIN}"),
            format!("hostnames: [a.example.com], {PLAIN}"),
            "",
        ),
        (
            format!("hostnames: [a.example.com], suspend: true, {PLAIN}"),
            format!("hostnames: [a.example.com], {PLAIN}"),
            "",
        ),
        // Peers reach it without the edge, which therefore has no claim to the name.
        (
            tracker("a.example.com", "", "one", "Direct"),
            format!("hostnames: [a.example.com], {PLAIN}"),
            "",
        ),
        (
            tracker("a.example.com", "trackerGroup: g,", "one", "HTTPS"),
            tracker("b.example.com", "trackerGroup: g,", "two", "Direct"),
            in_order,
        ),
        (
            tracker("a.example.com", "trackerGroup: g,", "one", "Direct"),
            tracker("b.example.com", "trackerGroup: g,", "two", "HTTPS"),
            reversed,
        ),
        (
            tracker("a.example.com", "", "one", "HTTPS"),
            tracker("b.example.com", "", "one", "Direct"),
            in_order,
        ),
        (
            tracker("a.example.com", "", "one", "HTTPS"),
            tracker("b.example.com", "", "two", "Direct"),
            "",
        ),
        (
            tracker("a.example.com", "trackerGroup: g,", "one", "HTTPS"),
            tracker("b.example.com", "trackerGroup: h,", "two", "Direct"),
            "",
        ),
        // The same port is the same process, whatever the groups say.
        (
            tracker("a.example.com", "trackerGroup: g,", "one", "HTTP"),
            tracker("b.example.com", "trackerGroup: h,", "one", "Direct"),
            in_order,
        ),
        (
            tracker("a.example.com", "", "one", "HTTP"),
            tracker("b.example.com", "", "one", "HTTPS"),
            "",
        ),
        (
            at("a.example.com", "Direct", 7070),
            at("b.example.com", "HTTPS", 7070),
            reversed,
        ),
        (
            at("a.example.com", "HTTPS", 7070),
            at("b.example.com", "Direct", 6969),
            "",
        ),
        (
            "rules: [{name: one, hostnames: [a.example.com, b.example.com], tracker: {}, backends: [{service: {name: one, port: 7070}}]}, {hostnames: [c.example.com], tracker: {exposure: HTTP}, backends: [{service: {name: one, port: 7071}}]}]".to_owned(),
            "hostnames: [d.example.com], rules: [{name: two, tracker: {exposure: Direct}, backends: [{service: {name: one, port: 7072}}]}]".to_owned(),
            named,
        ),
        (
            tracker("a.example.com", "trackerGroup: g,", "one", "HTTPS"),
            tracker("b.example.com", "trackerGroup: g,", "one", "HTTPS"),
            "",
        ),
    ]
}

#[test]
fn clashes_within_a_namespace_are_refused_when_they_are_written() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let namespace = cluster.namespace();
    let (kubectl, name) = (cluster.kubectl(), namespace.name());
    let _policies = Policies::install(kubectl, name);
    let owner = route(
        name,
        "owner",
        &format!("hostnames: [own.example.com], {PLAIN}"),
        1,
    );
    let (ok, said) = applied(kubectl, &owner);
    assert!(ok, "{said}");
    // The API server takes up policies one after the other, and late.
    let thief = owner.replace("name: owner", "name: thief");
    let direct = |name: &str, exposure: &str| {
        owner.replace("name: owner", &format!("name: {name}")).replace(
            "own.example.com], rules: [{",
            &format!("{name}.example.com], trackerGroup: all, rules: [{{tracker: {{exposure: {exposure}}}, "),
        )
    };
    let (ok, said) = applied(kubectl, &direct("tracker", "HTTPS"));
    assert!(ok, "{said}");
    for refused in [thief, direct("mixed", "Direct")] {
        eventually("policies that hold", PATIENCE, || {
            let args = ["apply", "--dry-run=server", "-f", "-"];
            match kubectl.attempt_with(&args, &refused) {
                (false, said) if said.contains("denied request") => Ok(()),
                (_, said) => Err(said),
            }
        });
    }
    let mut wrong = String::new();
    for (older, newcomer, sentence) in pairs() {
        let sentence = sentence.replace("NS", name);
        let older = route(name, "older", &older, 1);
        let newcomer = route(name, "newcomer", &newcomer, 2);
        let (ok, said) = applied(kubectl, &older);
        assert!(ok, "{said}\n{older}");
        // Whoever refuses knows the older one by a watch of its own.
        let expected = sentence.is_empty();
        let mut last = String::new();
        let holds = (0..200).any(|_| {
            let args = ["apply", "--dry-run=server", "-f", "-"];
            let (ok, said) = kubectl.attempt_with(&args, &newcomer);
            last = said;
            ok == expected && last.contains(&sentence)
        });
        if !holds {
            writeln!(wrong, "API server, of {newcomer} beside {older}: {last}").unwrap();
        }
        let (ok, said) = checked(&[&older, &newcomer]);
        let told = said.contains("already belongs") || said.contains("are mixed");
        // The hint has a line of its own there.
        let same = !ok && told && sentence.split("; ").all(|part| said.contains(part));
        if (expected && told) || (!expected && !same) {
            writeln!(wrong, "check, of {newcomer} beside {older}: {said}").unwrap();
        }
        kubectl.run(&["delete", "tlsroute", "-n", name, "older", "--wait=true"]);
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// The operator of one class and these namespaces; ends with the value.
struct Operator {
    program: Program,
    _state: TempDir,
}

fn operator(cluster: &Cluster, class: &str, namespaces: &[&str]) -> Operator {
    let state = TempDir::new().unwrap();
    let listen = || format!("127.0.0.1:{}", ports::free());
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command
        .env("KUBECONFIG", cluster.kubeconfig())
        .args(["operator", "--class", class, "--lease", class])
        .args(["--namespace", namespaces[0], "--identity", "one"])
        .args(["--watch-namespace", &namespaces.join(",")])
        .args([
            "--http",
            &listen(),
            "--https",
            &listen(),
            "--admin",
            &listen(),
        ])
        .arg("--state-dir")
        .arg(state.path());
    Operator {
        program: Program::start(&mut command),
        _state: state,
    }
}

/// The condition's status, reason and message.
fn condition(kubectl: &Kubectl, kind: &str, namespace: &str, name: &str, type_: &str) -> String {
    let text = kubectl.run(&["get", kind, "-n", namespace, name, "-o", "json"]);
    let object: Value = serde_json::from_str(&text).unwrap();
    let conditions = object["status"]["conditions"].as_array().cloned();
    let all = conditions.unwrap_or_default();
    let found = all.iter().find(|it| it["type"] == type_);
    found.map_or_else(String::new, |it| {
        let part = |key: &str| it[key].as_str().unwrap_or_default().to_owned();
        format!("{} {} {}", part("status"), part("reason"), part("message"))
    })
}

#[test]
fn what_slips_through_gets_the_condition() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let (first, second) = (cluster.namespace(), cluster.namespace());
    let (one, two) = (first.name(), second.name());
    let kubectl = cluster.kubectl();
    let class = format!("rules-{one}");
    let route = |namespace: &str, name: &str, spec: &str| {
        let text = route(namespace, name, spec, 1)
            .replace("className: rules", &format!("className: {class}"));
        let (ok, said) = applied(kubectl, &text);
        assert!(ok, "{said}");
    };
    // No policy is bound to these namespaces, as if all of it had come at the same moment.
    route(
        one,
        "a-owner",
        &format!("hostnames: [a.example.com], {PLAIN}"),
    );
    route(
        one,
        "b-tracker",
        "hostnames: [t.example.com], trackerGroup: g, rules: [{tracker: {}, backends: [{address: '192.0.2.1:80'}]}]",
    );
    eventually("another second", PATIENCE, || {
        // Creation is known to the second.
        route(
            two,
            "z-clock",
            &format!("hostnames: [z.example.com], {PLAIN}"),
        );
        let created = |namespace: &str, name: &str| {
            let path = "jsonpath={.metadata.creationTimestamp}";
            kubectl.run(&["get", "tlsroute", "-n", namespace, name, "-o", path])
        };
        if created(two, "z-clock") > created(one, "b-tracker") {
            return Ok(());
        }
        kubectl.run(&["delete", "tlsroute", "-n", two, "z-clock"]);
        Err("the same second".to_owned())
    });
    route(
        one,
        "c-thief",
        &format!("hostnames: [a.example.com], {PLAIN}"),
    );
    route(
        one,
        "d-mixed",
        "hostnames: [u.example.com], trackerGroup: g, rules: [{tracker: {exposure: Direct}, backends: [{address: '192.0.2.1:80'}]}]",
    );
    route(
        two,
        "a-other",
        &format!("hostnames: [a.example.com], {PLAIN}"),
    );
    // The same process as that of the other namespace's tracker, by its address.
    route(
        two,
        "c-meets",
        "hostnames: [v.example.com], rules: [{tracker: {exposure: Direct}, backends: [{address: '192.0.2.1:80'}]}]",
    );
    route(
        two,
        "b-inside",
        "hostnames: [i.example.com], rules: [{match: {pathPrefix: /a}, backends: [{address: '127.0.0.1:80'}]}, {match: {pathPrefix: /b}, backends: [{address: '169.254.169.254:80'}]}, {backends: [{address: 'db.elsewhere.svc.cluster.local:80'}]}]",
    );
    let issuer = format!("rules-{one}");
    let text = format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: AcmeIssuer\nmetadata: {{name: {issuer}}}\nspec: {{className: {class}, directory: 'https://ca.invalid/dir', termsOfServiceAgreed: true, solvers: [{{name: a, dns01: {{exec: {{command: /bin/sh}}}}}}]}}\n"
    );
    let (ok, said) = applied(kubectl, &text);
    assert!(ok, "{said}");
    let operator = operator(cluster, &class, &[one, two]);
    let older = format!("a.example.com already belongs to TlsRoute {one}/a-owner, which is older");
    let mixed = format!(
        "HTTP trackers of one process are mixed: t.example.com of {one}/b-tracker through the edge, u.example.com of {one}/d-mixed directly; the process has one switch"
    );
    let meets = format!(
        "HTTP trackers of one process are mixed: a tracker of another namespace through the edge, v.example.com of {two}/c-meets directly; the process has one switch"
    );
    let elsewhere =
        "a.example.com already belongs to a TlsRoute of another namespace, which is older";
    for (kind, namespace, name, type_, said) in [
        ("tlsroute", one, "a-owner", "Accepted", "True Accepted"),
        (
            "tlsroute",
            one,
            "c-thief",
            "Accepted",
            "False HostnameConflict",
        ),
        ("tlsroute", one, "c-thief", "Accepted", &older),
        (
            "tlsroute",
            one,
            "d-mixed",
            "Accepted",
            "False MixedTrackerProxy",
        ),
        ("tlsroute", one, "d-mixed", "Accepted", &mixed),
        ("tlsroute", two, "c-meets", "Accepted", &meets),
        ("tlsroute", two, "a-other", "Accepted", elsewhere),
        (
            "tlsroute",
            two,
            "b-inside",
            "ResolvedRefs",
            "False BackendNotAllowed",
        ),
        (
            "tlsroute",
            two,
            "b-inside",
            "ResolvedRefs",
            "127.0.0.1 is a loopback address",
        ),
        (
            "tlsroute",
            two,
            "b-inside",
            "ResolvedRefs",
            "169.254.169.254 is a link-local address",
        ),
        (
            "tlsroute",
            two,
            "b-inside",
            "ResolvedRefs",
            "db.elsewhere.svc.cluster.local is a name of namespace elsewhere",
        ),
        (
            "acmeissuer",
            "",
            &issuer,
            "Accepted",
            "programs are not run here",
        ),
    ] {
        eventually(said, PATIENCE, || {
            let found = condition(kubectl, kind, namespace, name, type_);
            if found.contains(said) {
                return Ok(());
            }
            Err(format!("{found}\n{}", operator.program.log()))
        });
    }
    let told = condition(kubectl, "tlsroute", two, "a-other", "Accepted");
    assert!(!told.contains(one) && !told.contains("a-owner"), "{told}");
    kubectl.run(&["delete", "acmeissuer", &issuer]);
}
