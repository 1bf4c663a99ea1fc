//! The one integration binary: real sockets on loopback, the real `tidegate` binary, real programs.
//!
//! `support/` starts things; every other module is a subject. Nothing here talks beyond this machine.

mod tidy;
