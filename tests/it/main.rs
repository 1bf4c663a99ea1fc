//! The one integration binary: real sockets on loopback, the real `tidegate` binary, real programs.
//!
//! `support/` starts things; every other module is a subject. Nothing here talks beyond this machine.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and talks to whoever runs it"
)]

mod abuse;
mod acme;
mod agent;
mod alerts;
mod chart;
mod desync;
mod downgrade;
mod examples;
mod generated;
mod h2spec;
mod http;
mod names;
mod ports;
mod real;
mod reload;
mod standalone;
mod support;
mod tidy;
mod tls;
mod trackers;
mod tunnel;
