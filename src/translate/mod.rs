//! Objects in, snapshot and statuses out. Pure: no clock, no files, no network.
//!
//! ```text
//! TlsRoute, TunnelAgent, AcmeIssuer ─┐
//! Secret, ConfigMap                  ├─► translate() ─┬─► Snapshot              (data plane)
//! certificates already issued        │                ├─► statuses, problems    (people)
//! the last good version of each ─────┘                ├─► wanted certificates   (CA, ACME)
//!                                                     └─► LastGood              (next translation)
//! ```
//!
//! A bad object harms only itself: it keeps its last good version if it had one, and its status says so
//! together with everything that is wrong with it. `check`, `explain`, the standalone loader and the
//! operator call the same function.

mod inputs;
mod outputs;

pub use inputs::{
    ConfigMapData, Environment, Inputs, SecretData, ServiceResolution, StaticFilesPolicy,
};
pub use outputs::{
    GoodRoute, IssuerChoice, Kind, LastGood, ObjectRef, Problem, Statuses, Translation,
    WantedCertificate,
};

use std::time::SystemTime;

/// Translates everything. The same inputs at the same moment give the same result.
pub fn translate(_inputs: &Inputs, _now: SystemTime) -> Translation {
    Translation::default()
}
