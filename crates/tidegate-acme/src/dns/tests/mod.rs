//! The solvers against a real name server, real programs and a real web service.

pub(crate) mod bind;
mod exec;
mod provider;
mod update;
mod webhook;
