//! TLS that is not opened here: the ClientHello named a host whose backend terminates TLS itself.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_model::Cluster;
use tokio::net::TcpStream;

use crate::io::Socket;
use crate::upgrade;
use crate::upstream::connect::ProxiedAddresses;
use crate::upstream::{self, Opened, SendOptions};
use crate::worker::Worker;

/// No byte for this long ends a passed-through connection; the edge cannot see what it carries.
const IDLE: std::time::Duration = std::time::Duration::from_secs(3600);

/// Connects to the cluster, sends what was read of the client, copies both ways.
pub(crate) async fn run(
    worker: &Arc<Worker>,
    tcp: TcpStream,
    hello: Bytes,
    cluster: &Arc<Cluster>,
    proxied: ProxiedAddresses,
) {
    let metrics = &worker.shared.metrics;
    let options = SendOptions {
        proxied: Some(proxied),
        ..SendOptions::default()
    };
    let backend = match upstream::open(&worker.upstreams, cluster, &options).await {
        Ok(opened) => opened,
        Err(error) => {
            metrics.upstream_failed(error.reason());
            let cluster = &cluster.name;
            let error = tidegate_telemetry::chain(&error);
            tracing::warn!(cluster, %error, "passthrough failed");
            return;
        }
    };
    metrics.passthrough.inc();
    let client = Socket::new(tcp, hello, worker.shared.settings.timeouts.write_stall);
    let (stream, _active) = backend;
    let cut = worker.shared.cut.clone();
    let ended = match stream {
        Opened::Socket(stream) => upgrade::copy(client, stream, Some(IDLE), cut).await,
        Opened::Link(stream) => upgrade::copy(client, stream, Some(IDLE), cut).await,
    };
    metrics.passthrough.dec();
    tracing::debug!(client = %proxied.client, ?ended, "passthrough ended");
}
