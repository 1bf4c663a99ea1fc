//! Stories on a real Kubernetes: etcd, API server, controllers; for releases a whole node with pods.
//!
//! `support/` starts clusters; every other module is a subject. With `TIDEGATE_E2E_KUBECONFIG` the same
//! stories run on the cluster of that file. Nothing here talks beyond this machine otherwise.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and talks to whoever runs it"
)]

mod chart;
mod control_plane;
mod daemonset;
mod definitions;
mod operator;
mod pods;
mod rules;
mod support;
mod validation;
