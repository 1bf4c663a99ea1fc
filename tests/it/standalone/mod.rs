//! `tidegate run`, `check`, `explain`, `status` and `ca` as a person meets them: folders, mistakes, restarts.

mod check;
mod lifecycle;
mod operations;
mod serving;
