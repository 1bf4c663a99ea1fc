//! `tidegate run`, `check`, `explain`, `status`, `ca` and the commands around certificates as a person meets
//! them: folders, mistakes, restarts.

mod addresses;
mod api;
mod certificates;
mod check;
mod lifecycle;
mod metrics;
mod operations;
mod serving;
