//! What a rule does to a request before, and to a response after, its action. One file per filter, in the
//! order in which they run; each is a plain function or a small shared state that the worker hands in.

pub(crate) mod accept_encoding;
pub(crate) mod basic_auth;
pub(crate) mod compression;
pub(crate) mod concurrency;
pub(crate) mod cors;
pub(crate) mod forward_auth;
pub(crate) mod headers;
pub(crate) mod ip_access;
pub(crate) mod mirror;
pub(crate) mod rate_limit;
