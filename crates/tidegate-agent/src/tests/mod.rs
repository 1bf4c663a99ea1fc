//! The agent against an edge's end of `tidegate-tunnel`, both real, on loopback.
//!
//! `edge` is the edge: TLS, the handshake, the link. Each test says what the edge does and what the agent must.

mod dial;
mod edge;
mod http1;
mod links;
mod streams;
mod targets;

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::config::Given;
use crate::system::{Asked, Signals};
use edge::Edge;

/// No test takes so long unless it fails.
const LONG: Duration = Duration::from_secs(20);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = timeout(LONG, future).await;
    done.unwrap_or_else(|_| panic!("{what} took too long"))
}

/// A running agent.
struct Agent {
    asks: mpsc::Sender<Asked>,
    running: tokio::task::JoinHandle<()>,
}

impl Agent {
    fn start(given: Given) -> Self {
        let (asks, asked) = mpsc::channel(4);
        let running = tokio::spawn(async move {
            let ended = crate::run::follow(given, Signals::Given(asked)).await;
            ended.unwrap_or_else(|error| panic!("{error}"));
        });
        Self { asks, running }
    }

    /// One link to the edge.
    fn of(edge: &Edge) -> Self {
        Self::start(given(edge))
    }

    async fn stop(self) {
        self.asks.send(Asked::Stop).await.unwrap();
        within("the agent's end", self.running).await.unwrap();
    }
}

fn given(edge: &Edge) -> Given {
    Given {
        edge: vec![edge.url()],
        agent: Some("default/homelab".to_owned()),
        token: Some(edge.token()),
        ca_file: Some(edge.ca_file()),
        proxy: Some("none".to_owned()),
        links: Some(1),
        status: Some("off".to_owned()),
        ..Given::default()
    }
}
