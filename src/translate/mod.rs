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

mod access;
mod agents;
mod assembly;
mod backends;
mod balancing;
mod certificates;
mod conflicts;
mod credentials;
mod data_paths;
mod dns;
mod durations;
mod exposure;
mod filters;
mod inputs;
mod issuance;
mod issuers;
mod mappings;
mod matches;
mod notifications;
mod outputs;
mod ports;
mod probes;
mod quantities;
mod reach;
mod references;
mod report;
mod routes;
mod rules;
mod sessions;
mod solvers;
mod status;
mod trackers;
mod udp;
mod udp_services;
mod udp_ways;
mod verdicts;
mod words;

#[cfg(test)]
mod tests;

pub use agents::{in_words as mapping_in_words, mapping_routes};
pub use assembly::translate;
pub use certificates::{CertificateError, parse_certificate};
pub use dns::PublicPlace;
pub use durations::{DurationError, parse_duration};
pub use exposure::{ExposedService, Exposure, Lost, judge as judge_exposure};
pub use inputs::{
    ConfigMapData, Environment, Inputs, IssuerFile, IssuerReport, OrderReport, ProgramPolicy,
    PublishedSecret, SecretData, SeenAgents, ServiceData, ServicePortData, ServiceResolution,
    StaticFilesPolicy,
};
pub use outputs::{
    GoodRoute, IssuerChoice, Kind, LastGood, ObjectRef, Problem, Reference, ReferenceKind,
    Severity, Statuses, Translation, UdpMode, UdpTracker, WantedCertificate,
};
pub use ports::PortPolicy;
pub use probes::{ProbeReport, TrackerProbe};
pub use quantities::{QuantityError, parse_quantity};
pub use udp_services::{
    FoundService, Refusals, ServiceKeeper, ServiceSpec, UdpServicePort, UnwantedService,
    WantedService,
};
