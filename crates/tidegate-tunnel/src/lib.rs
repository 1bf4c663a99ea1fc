//! Both ends of a link between the edge and an agent that dialled it.
//!
//! ```text
//! visitor ─► edge: link::edge (HTTP/2 client) ══ TLS, or WebSocket in TLS ══ link::agent (HTTP/2 server) ─► target
//! ```
//!
//! After the handshake the roles turn round: the agent, which dialled, serves; the edge, which accepted, asks.
//! `docs/tunnel-protocol.md` is the protocol; ADR 0045 tells why. This crate knows no targets, no routes and no
//! Kubernetes; it neither dials nor listens.

pub mod admission;
pub mod credential;
pub mod datagram;
pub mod handshake;
pub mod hub;
pub mod link;
pub mod settings;
pub mod websocket;
pub mod wire;
