//! What the stories are written with: clusters, namespaces, kubectl, patience.
//!
//! ```text
//! let Some(cluster) = Cluster::shared() else { return };      // said loudly when it cannot be had
//! let namespace = cluster.namespace();                        // gone at the end of the test
//! cluster.kubectl(&["apply", "-n", namespace.name(), "-f", path]);
//! block_on(Api::<TlsRoute>::namespaced(cluster.client(), namespace.name()).get("blog"))
//! ```
//!
//! Everything binds loopback or a network namespace of its own, with a CA made for the run; what was
//! started ends with the test binary, even when that is killed.
#![allow(
    dead_code,
    reason = "a vocabulary for all subjects, not only for those of today"
)]

pub(crate) mod acme;
pub(crate) mod authority;
pub(crate) mod chart;
#[path = "../../tests/it/support/client.rs"]
pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod control_plane;
#[path = "../../tests/it/support/edge.rs"]
pub(crate) mod edge;
#[path = "../../tests/it/support/eventually.rs"]
pub(crate) mod eventually;
pub(crate) mod image;
pub(crate) mod kubectl;
pub(crate) mod load;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod operator;
#[path = "../../tests/it/support/origin.rs"]
pub(crate) mod origin;
#[path = "../../tests/it/support/ports.rs"]
pub(crate) mod ports;
#[path = "../../tests/it/support/program.rs"]
pub(crate) mod program;
pub(crate) mod runtime;

pub(crate) use client::{Client, Reply};
pub(crate) use cluster::Cluster;
pub(crate) use control_plane::Part;
pub(crate) use edge::{Edge, secret};
pub(crate) use eventually::{breathe, eventually};
pub(crate) use kubectl::Kubectl;
pub(crate) use load::Load;
pub(crate) use node::{Node, POD_IMAGE, PUBLISHED};
pub(crate) use operator::{Deployment, Replica};
pub(crate) use origin::Origin;
pub(crate) use program::{Program, missing};
pub(crate) use runtime::block_on;
