//! What a client sees of the routes: matching, filters, folders, limits, backends, errors.
//!
//! One edge per test, objects as a user writes them, answers over a real connection.

mod backends;
mod errors;
mod filters;
mod folder;
mod matching;
mod redirects;
