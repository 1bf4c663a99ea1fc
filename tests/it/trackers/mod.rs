//! BitTorrent trackers behind the edge as their users run them, with real clients in front.
//!
//! The Torrust Tracker, `PeerTube`'s and opentracker answer; each test has a network of its own, so that
//! clients have addresses that can be told apart. `cargo xtask tools` installs what is used.

mod answers;
mod headers;
mod import;
mod live;
mod probe;
mod requests;
mod stack;
mod swarm;
pub(crate) mod udp;
mod uniform;
