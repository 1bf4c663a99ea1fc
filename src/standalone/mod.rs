//! The standalone source: objects from a folder, certificates from an internal CA, memory in a state folder.
//!
//! ```text
//! folder ─► watch ─► loader (folder, document, schema, kinds) ─┐
//!                                                              ├─► source ─► translate ─► Refreshed
//! state folder ◄─► internal CA ────────────────────────────────┘
//! ```
//!
//! The same YAML as on Kubernetes. Performs no network I/O and knows no data plane: `app` joins the two.

mod acme_store;
pub mod ca;
mod document;
mod folder;
mod issuance;
mod kinds;
mod loader;
mod schema;
mod source;
pub mod state;
mod watch;

pub use acme_store::AcmeStore;
pub use issuance::Issuance;
pub use kinds::{Identity, ObjectKind};
pub use loader::{FileProblem, Loaded, Loader};
pub use source::{Finding, Refreshed, Source, certificates};
pub use watch::FolderWatch;
