//! What BitTorrent trackers speak: announces and their answers over HTTP (BEP 3, BEP 23, BEP 48) and over UDP
//! (BEP 15).
//!
//! Everything here is decided without I/O but the relay of datagrams. It knows neither HTTP connections, which
//! are the proxy's, nor objects.

pub mod announce;
pub mod bencode;
mod failure;
pub mod probe;

pub use failure::FailureClass;
pub mod udp;
