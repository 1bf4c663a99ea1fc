//! The environment file of the Torrust Tracker's deployer becomes objects.
//!
//! ```text
//! environment.json ─► Environment ─► Plan ─┬─► files of objects
//!                     (no secrets)         └─► what was done, what was not, what is next
//! ```
//!
//! Secrets of the file (tokens, passwords) are never read into anything, so that nothing can show them.

mod environment;
mod json;
mod objects;
mod plan;
mod said;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;

pub use environment::{Environment, parse};
pub use plan::{Mixed, Plan, PlannedFile, plan};

/// Where the objects are going to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// A folder on the tracker's machine; backends are ports of this machine.
    Folder,
    /// A namespace; backends are Services.
    Kubernetes,
}

/// What becomes of HTTP trackers of which only some use the TLS proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MixedAs {
    /// All come over TLS.
    Https,
    /// Those without TLS come over the edge's plain listener, which adds the header as well.
    Http,
    /// None comes through the edge.
    Direct,
}

/// What the file does not say.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the objects are going to be used.
    pub home: Home,
    /// Begins the names of objects and files; a DNS label.
    pub name: String,
    /// Namespace of the objects, in Kubernetes.
    pub namespace: String,
    /// Name of the tracker's Service, in Kubernetes.
    pub tracker_service: String,
    /// Name of Grafana's Service, in Kubernetes.
    pub grafana_service: String,
    /// Public addresses of the machine or cluster, for DNS records and for trackers without a domain.
    pub addresses: Vec<IpAddr>,
    /// The choice, where the file mixes.
    pub mixed_as: Option<MixedAs>,
}

/// One thing in the file that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where, such as `tracker.http_trackers[0].domain`; empty for the whole.
    pub path: String,
    /// What was found. Never a secret.
    pub found: String,
    /// How to mend it.
    pub fix: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => write!(f, "{}; {}", self.found, self.fix),
            path => write!(f, "{path}: {}; {}", self.found, self.fix),
        }
    }
}
