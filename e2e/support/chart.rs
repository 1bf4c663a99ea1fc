//! The Helm chart: rendered by helm, its roles installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::Cluster;
use super::kubectl::Kubectl;
use super::program::{self, missing};

/// The chart's folder.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/tidegate")
}

/// Helm; `None` where it cannot be had.
pub(crate) fn helm() -> Option<PathBuf> {
    let helm = program::tools().join("bin/helm");
    (!missing(&[&helm])).then_some(helm)
}

/// Runs helm with these arguments on a cluster, in a namespace; what it says.
#[track_caller]
pub(crate) fn run(helm: &Path, cluster: &Cluster, namespace: &str, args: &[&str]) -> String {
    let mut command = Command::new(helm);
    command.arg("--kubeconfig").arg(cluster.kubeconfig());
    command.args(["--namespace", namespace]).args(args);
    program::succeed(&mut command)
}

/// What `helm template` makes of these values, or what it says.
pub(crate) fn try_render(
    helm: &Path,
    release: &str,
    namespace: &str,
    set: &[&str],
) -> Result<Vec<Value>, String> {
    let mut command = Command::new(helm);
    command.args(["template", release]).arg(folder());
    command.args(["--namespace", namespace]);
    for set in set {
        command.args(["--set", set]);
    }
    rendered(&mut command)
}

/// The objects that the command prints as YAML.
pub(crate) fn rendered(command: &mut Command) -> Result<Vec<Value>, String> {
    let output = command.output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    Ok(objects(&text))
}

/// The objects of a stream of YAML documents.
#[track_caller]
pub(crate) fn objects(text: &str) -> Vec<Value> {
    let documents = text
        .split("\n---\n")
        .map(|it| it.trim_start_matches("---\n"));
    documents
        .map(|document| -> Value {
            let empty = document
                .lines()
                .all(|line| line.is_empty() || line.starts_with('#'));
            if empty {
                return Value::Null;
            }
            serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{error}:\n{document}"))
        })
        .filter(|object| !object.is_null())
        .collect()
}

/// The same; panics with what helm says.
#[track_caller]
pub(crate) fn render(helm: &Path, release: &str, namespace: &str, set: &[&str]) -> Vec<Value> {
    try_render(helm, release, namespace, set).unwrap_or_else(|said| panic!("{set:?}: {said}"))
}

/// The one object of that kind; of several, the first.
#[track_caller]
pub(crate) fn one<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found = objects.iter().find(|object| object["kind"] == kind);
    found.unwrap_or_else(|| panic!("no {kind}"))
}

/// All of them as one object that kubectl takes.
pub(crate) fn list(objects: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

/// The chart's service account with all its permissions, in a cluster. Dropping takes them away again.
pub(crate) struct Permissions {
    helm: PathBuf,
    kubectl: Kubectl,
    release: String,
    extra: Vec<String>,
}

impl Permissions {
    /// Installs them for a program in that namespace; `watched` are the namespaces whose objects it serves,
    /// all if empty. The release has the name of the namespace, the account that of [`Self::account`].
    #[track_caller]
    pub(crate) fn install(
        helm: &Path,
        kubectl: &Kubectl,
        namespace: &str,
        watched: &[&str],
    ) -> Self {
        let permissions = Self {
            helm: helm.to_owned(),
            kubectl: kubectl.clone(),
            release: namespace.to_owned(),
            extra: Vec::new(),
        };
        permissions.apply(watched);
        permissions
    }

    /// Adds those for every namespace.
    #[track_caller]
    pub(crate) fn widen(&self) {
        self.apply(&[]);
    }

    /// Adds what this value of the chart brings, for these namespaces.
    #[track_caller]
    pub(crate) fn add(&mut self, value: &str, watched: &[&str]) {
        self.extra.push(value.to_owned());
        self.apply(watched);
    }

    #[track_caller]
    fn apply(&self, watched: &[&str]) {
        let name = format!("fullnameOverride={}", Self::account());
        let watched = format!("watchNamespaces={{{}}}", watched.join(","));
        // An empty list in braces would be a list of one empty name.
        let watched = Some(&*watched).filter(|it| !it.contains("{}"));
        let mut set: Vec<&str> = [Some(&*name), watched].into_iter().flatten().collect();
        set.extend(self.extra.iter().map(String::as_str));
        let objects = render(&self.helm, &self.release, &self.release, &set);
        let kinds = [
            "ServiceAccount",
            "Role",
            "RoleBinding",
            "ClusterRole",
            "ClusterRoleBinding",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
        ];
        // Not the policies about routes: they are the whole cluster's.
        let mine: Vec<Value> = objects
            .into_iter()
            .filter(|object| {
                object["metadata"]["labels"]["app.kubernetes.io/instance"] == *self.release
            })
            .filter(|object| kinds.iter().any(|kind| object["kind"] == *kind))
            .collect();
        let args = ["apply", "--server-side", "-f", "-"];
        let (ok, said) = self.kubectl.attempt_with(&args, &list(&mine));
        assert!(ok, "{said}");
    }

    /// Name of the service account, of the Lease and of all else.
    pub(crate) fn account() -> &'static str {
        "tidegate"
    }
}

impl Drop for Permissions {
    fn drop(&mut self) {
        let label = format!("app.kubernetes.io/instance={}", self.release);
        let cluster = "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings";
        let all = ["--all-namespaces", "--wait=false", "--request-timeout=5s"];
        for kinds in [cluster, "roles,rolebindings"] {
            let mut args = vec!["delete", kinds, "-l", &label];
            args.extend(all);
            // A story may have stopped the API server.
            let _ = self.kubectl.command(&args).output();
        }
    }
}
