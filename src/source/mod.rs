//! What every source of objects shares, be it a folder or the API server of a cluster.
//!
//! ```text
//! objects ─► Inputs ─► translate ─► wanted certificates ─┬─► internal CA ─┐
//!              ▲                                         └─► ACME engine ─┤
//!              └──────────────── issued certificates ◄────────────────────┘
//! ```
//!
//! Certificates as inputs of a translation, the state folder that remembers them, and the words in which the
//! result of a refresh is told. Publishes nothing and performs no network I/O.

mod acme_store;
pub mod ca;
mod internal;
mod issuance;
mod parsed;
mod place;
mod refreshed;
pub mod state;
pub mod tickets;
pub mod wishes;
pub(crate) mod yaml;

pub use acme_store::AcmeStore;
pub use internal::InternalIssuer;
pub use issuance::{Issuance, wanted};
pub use parsed::Parsed;
pub use place::Place;
pub use refreshed::{Finding, Refreshed, next_moment};
