//! One question to a backend outside of any client's request, as the edge would ask it: over the backend's own
//! protocol, on a connection of its own, within a time and up to a size.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use tidegate_model::{Cluster, Reach, Target};

use super::connect;
use crate::body::Body;

/// Why a backend did not answer a question.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It has no address that may be asked.
    #[error("find an address of {name:?}: {why}")]
    NoAddress {
        /// The backend.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// It could not be connected to, or the exchange broke off.
    #[error("ask {name:?}: {why}")]
    Failed {
        /// The backend.
        name: String,
        /// The whole chain of errors.
        why: String,
    },
    /// It took too long.
    #[error("ask {name:?}: no answer within {limit:?}")]
    Timeout {
        /// The backend.
        name: String,
        /// The time that it had.
        limit: Duration,
    },
}

/// Asks one address of the cluster, without a body. At most `most` bytes of the answer are read; the rest is an
/// error. The request has a target in origin form and a Host.
pub async fn ask_once(
    cluster: &Cluster,
    reach: &Reach,
    request: Request<()>,
    limit: Duration,
    most: usize,
) -> Result<(StatusCode, Bytes), AskError> {
    let name = || cluster.name.clone();
    let asking = async {
        let address = address(cluster, reach).await?;
        let failed = |why: String| AskError::Failed { name: name(), why };
        let stream = connect::transport(cluster, address, None, false)
            .await
            .map_err(|error| failed(tidegate_telemetry::chain(&error).to_string()))?;
        let request = request.map(|()| Body::Empty);
        let answer = connect::exchange_once(cluster, stream, request)
            .await
            .map_err(|error| failed(tidegate_telemetry::chain(&error).to_string()))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, most)
            .collect()
            .await
            .map_err(|error| failed(error.to_string()))?;
        Ok((head.status, body.to_bytes()))
    };
    tokio::time::timeout(limit, asking)
        .await
        .unwrap_or_else(|_| {
            Err(AskError::Timeout {
                name: name(),
                limit,
            })
        })
}

/// The first address that connections may lead to.
async fn address(cluster: &Cluster, reach: &Reach) -> Result<SocketAddr, AskError> {
    let none = |why: String| AskError::NoAddress {
        name: cluster.name.clone(),
        why,
    };
    let found = match &cluster.target {
        Target::Addresses(addresses) => addresses.clone(),
        Target::Agent { agent, .. } => {
            return Err(none(format!("it is behind agent {agent}")));
        }
        Target::Host { host, port } => {
            if let Ok(ip) = host.parse::<IpAddr>() {
                vec![SocketAddr::new(ip, *port)]
            } else {
                let asked = super::watch::asked_for(host, reach);
                let found = tokio::net::lookup_host((&*asked, *port)).await;
                found.map_err(|error| none(error.to_string()))?.collect()
            }
        }
    };
    let (good, refused) = match &cluster.target {
        // Looked at when they were translated.
        Target::Addresses(_) | Target::Agent { .. } => (found, None),
        Target::Host { .. } => reach.sort_out(found),
    };
    good.first().copied().ok_or_else(|| {
        none(match refused {
            Some(refused) => format!("it leads where backends may not: {refused}"),
            None => "there is none".to_owned(),
        })
    })
}
