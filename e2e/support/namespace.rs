//! A namespace for one test.

use std::sync::atomic::{AtomicU32, Ordering};

use super::kubectl::Kubectl;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace that goes with the test.
pub(crate) struct Namespace {
    name: String,
    kubectl: Kubectl,
}

impl Namespace {
    pub(crate) fn create(kubectl: &Kubectl) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // The process id too: on a cluster of others, what an earlier run left may still be ending.
        let name = format!("e2e-{}-{number}", std::process::id());
        kubectl.run(&["create", "namespace", &name]);
        Self {
            name,
            kubectl: kubectl.clone(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let args = [
            "delete",
            "namespace",
            &self.name,
            "--wait=false",
            "--request-timeout=5s",
        ];
        // A story may have stopped the API server.
        let _ = self.kubectl.command(&args).output();
    }
}
