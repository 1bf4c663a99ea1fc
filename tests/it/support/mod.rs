//! What the integration tests are written with: an edge, origins, clients, patience.
//!
//! ```text
//! Origin::echo() ─► Edge::start(&[route]) ─► edge.get("app.test", "/") / edge.curl(..) ─► assert
//! ```
//!
//! Everything binds loopback, certificates come from the edge's own CA, and `Drop` ends by pid what
//! was started.
#![allow(
    dead_code,
    reason = "a vocabulary for all subjects, not only for those of today"
)]

pub(crate) mod client;
pub(crate) mod edge;
pub(crate) mod eventually;
pub(crate) mod netns;
pub(crate) mod origin;
pub(crate) mod ports;
pub(crate) mod program;
pub(crate) mod raw;
pub(crate) mod systemd;
pub(crate) mod trackers;

pub(crate) use client::{Client, Reply};
pub(crate) use edge::{Edge, route, route_of, secret};
pub(crate) use eventually::{breathe, eventually};
pub(crate) use origin::Origin;
pub(crate) use program::{Program, missing};
