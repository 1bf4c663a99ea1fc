//! kubectl as a user runs it, of the same version as the servers.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::program;

/// The program with every part of Kubernetes, see `e2e/cluster`.
pub(crate) fn everything() -> PathBuf {
    program::tools().join("bin/tidegate-test-cluster")
}

/// kubectl with a kubeconfig.
#[derive(Clone)]
pub(crate) struct Kubectl {
    kubeconfig: PathBuf,
    /// What it learned of the API; of its own, because a kept answer of another cluster would be believed.
    cache: PathBuf,
}

impl Kubectl {
    /// `folder` is where it may keep things.
    pub(crate) fn new(kubeconfig: &Path, folder: &Path) -> Self {
        Self {
            kubeconfig: kubeconfig.to_owned(),
            cache: folder.join("kubectl-cache"),
        }
    }

    /// What it would run, for those who want to add to it.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let everything = everything();
        let mut command = if everything.exists() {
            let mut command = Command::new(everything);
            command.arg("kubectl");
            command
        } else {
            Command::new("kubectl")
        };
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", &self.cache)
            .args(args);
        command
    }

    /// Runs it and returns what it printed; panics with that unless the status is 0.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> String {
        program::succeed(&mut self.command(args))
    }

    /// Runs it: whether the status was 0, and what it printed.
    #[track_caller]
    pub(crate) fn attempt(&self, args: &[&str]) -> (bool, String) {
        program::run(&mut self.command(args))
    }

    /// Runs it with the text as its standard input, such as for `apply -f -`.
    #[track_caller]
    pub(crate) fn attempt_with(&self, args: &[&str], input: &str) -> (bool, String) {
        use std::io::Write as _;
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Refusing its options, it may end without reading.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// `kubectl apply --server-side -f -` with the text; panics with what it says if it is refused.
    #[track_caller]
    pub(crate) fn apply(&self, namespace: &str, text: &str) -> String {
        let args = ["apply", "--server-side", "-n", namespace, "-f", "-"];
        let (ok, said) = self.attempt_with(&args, text);
        assert!(ok, "kubectl apply: {said}\n{text}");
        said
    }
}
