//! The Kubernetes source: objects from an API server, certificates in Secrets, statuses back into the objects.
//!
//! ```text
//! watches ─► caches ─► Source::refresh ─► translate ─┬─► Snapshot (every replica)
//!    ▲                                               └─► statuses, Events, Secrets (whoever holds the Lease)
//!    └──────────────── API server ◄──────────────────────────────┘
//! ```
//!
//! Every replica watches and serves; only the holder of the [`lease`] orders certificates and writes. A lost
//! API server changes nothing of what is served. Knows no data plane: `app` joins the two.

mod addresses;
mod cache;
pub mod cluster;
pub mod credentials;
pub mod default_issuer;
pub mod documents;
pub(crate) mod edit;
mod events;
pub mod inquiry;
pub mod internal_ca;
pub mod lease;
pub mod memory;
mod named;
mod objects;
mod pauses;
pub mod published;
pub mod relay;
pub mod replica_ca;
pub mod replicas;
mod services;
pub mod sessions;
mod source;
pub mod status;
pub mod tickets;
pub mod trackers;
pub mod unused;
mod watch;

pub use cluster::{Cluster, ClusterError, ClusterOptions};
pub use services::FoundReplica;
pub use source::Source;
pub use watch::World;
