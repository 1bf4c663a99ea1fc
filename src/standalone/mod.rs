//! The standalone source: objects from a folder.
//!
//! ```text
//! folder ─► watch ─► loader (folder, document, schema, kinds) ─┐
//!                                                              ├─► source ─► translate ─► Refreshed
//! internal CA, ACME engine (crate::source) ─────────────────────┘
//! ```
//!
//! The same YAML as on Kubernetes. Performs no network I/O and knows no data plane: `app` joins the two.

mod document;
mod folder;
mod kinds;
mod loader;
mod schema;
mod source;
mod watch;

pub use kinds::{Identity, ObjectKind};
pub use loader::{FileProblem, Loaded, Loader};
pub use source::Source;
pub use watch::FolderWatch;
