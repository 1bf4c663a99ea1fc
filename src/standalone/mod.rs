//! The standalone source: objects from a folder.
//!
//! ```text
//! folder ─► watch ─► loader (folder, crate::source::yaml) ─┐
//!                                                          ├─► source ─► translate ─► Refreshed
//! internal CA, ACME engine (crate::source) ─────────────────┘
//! ```
//!
//! The same YAML as on Kubernetes. Performs no network I/O and knows no data plane: `app` joins the two.

pub(crate) mod edit;
mod folder;
mod loader;
mod source;
mod watch;

pub use loader::{FileProblem, Loaded, Loader};
pub use source::Source;
pub use watch::FolderWatch;

pub use crate::source::yaml::kinds::{Identity, ObjectKind};
