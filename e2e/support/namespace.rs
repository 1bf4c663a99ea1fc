//! A namespace for one test.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};

use super::kubectl::Kubectl;
use super::{block_on, eventually};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace that goes with the test.
pub(crate) struct Namespace {
    name: String,
    kubectl: Kubectl,
}

impl Namespace {
    #[track_caller]
    pub(crate) fn create(kubectl: &Kubectl, client: &Client) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // The process id too: on a cluster of others, what an earlier run left may still be ending.
        let name = format!("e2e-{}-{number}", std::process::id());
        kubectl.run(&["create", "namespace", &name]);
        let namespace = Self {
            name,
            kubectl: kubectl.clone(),
        };
        // Until its controller has made this, pods are refused.
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace.name);
        eventually(
            "the default service account",
            Duration::from_mins(1),
            || block_on(accounts.get("default")).map_err(|error| error.to_string()),
        );
        namespace
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
