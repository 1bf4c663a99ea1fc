//! Certificates by ACME (RFC 8555): planned, ordered, renewed, kept.
//!
//! ```text
//! wanted certificates ─► engine ─► plan (pure: what to do now, and why not) ─► order (I/O, one step at a time)
//!                           ▲                                                     │
//!                           └────────── store (what a crash must not lose) ◄──────┘
//!                           └─► challenge answers, certificates, reports for statuses
//! ```
//!
//! Knows neither Kubernetes nor the data plane: what it stores goes through [`store`], what it answers to
//! a certification authority leaves as values, and time and randomness are passed in.

pub mod account;
pub mod answers;
pub mod book;
pub mod bundle;
mod checks;
pub mod client;
mod crl;
mod decision;
pub mod dns;
pub mod engine;
mod error;
pub mod import;
pub mod issued;
mod keeper;
mod lost;
pub mod notices;
pub mod observed;
mod oneshot;
pub mod order;
pub mod plan;
pub mod preflight;
pub mod record;
pub mod revocation;
pub mod rollback;
pub mod settings;
pub mod store;
mod trust;
pub mod watchman;

pub use error::OrderError;
