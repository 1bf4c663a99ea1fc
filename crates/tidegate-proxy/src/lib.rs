//! The data plane: accepts connections, terminates TLS, routes and forwards requests.
//!
//! The life of a request, one file per phase:
//!
//! ```text
//! accept → PROXY protocol → ClientHello → certificate or passthrough → codec → snapshot → normalise → route
//! listener   proxy_protocol   tls           tls          passthrough     http    http       normalize   router
//!   → filters → choose upstream → connect → forward or upgrade → respond → access log
//!     filters/   balance           upstream/  upstream/  upgrade   respond    access_log
//! ```
//!
//! Knows neither Kubernetes nor ACME: everything it serves is a value in the
//! [`Snapshot`](tidegate_model::Snapshot).

mod access_log;
mod agents;
mod balance;
mod body;
mod challenge;
mod connection;
mod edge;
mod error;
mod exchange;
mod filters;
mod forward;
mod forwarded;
mod http;
mod http2;
mod io;
mod listener;
mod metrics;
mod normalize;
mod odd_query;
mod passthrough;
mod path;
mod peers;
mod ports;
mod proxy_protocol;
mod redirect;
mod replicas;
mod respond;
mod rewrite;
mod router;
mod settings;
mod static_files;
mod stop;
mod tickets;
mod tls;
mod tracker;
mod upgrade;
mod upstream;
mod worker;

#[cfg(test)]
mod tests;

pub use edge::{Edge, RunningEdge, StartError};
pub use replicas::{Peer, PeerIdentity, PeerIdentityError, PeeringSettings};
pub use router::{ExplainRequest, ExplainedEntry, Verdict, explain};
pub use settings::{AccessLogSettings, EdgeLimits, EdgeTimeouts, ProxyProtocolMode, Settings};
pub use tidegate_tunnel::hub::{ChannelView, LinkChange};
pub use upstream::once::{AskError, ask_once};
