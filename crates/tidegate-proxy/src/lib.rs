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

mod body;
mod edge;
#[allow(dead_code, reason = "wired by the http phase")]
mod forwarded;
#[allow(dead_code, unused_imports, reason = "wired by the http phase")]
mod normalize;
#[allow(dead_code, reason = "wired by the http phase")]
mod path;
#[allow(dead_code, reason = "wired by the http phase")]
mod redirect;
#[allow(dead_code, reason = "wired by the http phase")]
mod rewrite;
#[allow(dead_code, reason = "wired by the http phase")]
mod router;
mod settings;

pub use edge::{Edge, RunningEdge, StartError};
pub use router::{ExplainRequest, ExplainedEntry, Verdict, explain};
pub use settings::{AccessLogSettings, EdgeLimits, EdgeTimeouts, ProxyProtocolMode, Settings};
