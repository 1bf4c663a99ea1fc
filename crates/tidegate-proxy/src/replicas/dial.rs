//! Channels to the other replicas: one to each, dialled again and again for as long as there is such a replica.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tidegate_model::ObjectName;
use tidegate_tunnel::link::LinkError;
use tidegate_tunnel::link::edge::{self, EdgeControl, EdgeLink, LinkFacts};
use tidegate_tunnel::settings;
use tidegate_tunnel::wire::{Bye, FromAgent, Retry};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Peer;
use super::identity::{self, PeerIdentity};
use crate::body::Body;
use crate::worker::Shared;

/// For TCP, TLS and the other's Hello together.
const CONNECT: Duration = Duration::from_secs(5);
/// Pauses between tries grow from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(3));
/// A channel that stood so long was a good one: the next try comes soon.
const GOOD: Duration = Duration::from_secs(10);
/// What stays as it is is said again after this time.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// Requests on a channel to a replica that is one no more may take so long.
const LEAVE: Duration = Duration::from_secs(30);
/// Time for the other end to go when it is told to.
const FAREWELL: Duration = Duration::from_millis(250);

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("connect")]
    Connect(#[source] io::Error),
    #[error("connect within {CONNECT:?}")]
    Timeout,
    #[error("agree on TLS")]
    Tls(#[source] io::Error),
    #[error("the name of the replica is no DNS name")]
    Name,
    #[error("the other end speaks another protocol")]
    Protocol,
    #[error("begin a channel")]
    Link(#[source] LinkError),
}

impl DialError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Connect(_) => "ConnectFailed",
            Self::Timeout => "ConnectTimeout",
            Self::Tls(_) => "TlsFailed",
            Self::Name => "InvalidName",
            Self::Protocol => "WrongProtocol",
            Self::Link(error) => error.reason(),
        }
    }
}

/// Keeps a channel to each of the others, whoever they are.
pub(super) async fn follow(
    shared: &Arc<Shared>,
    identity: &watch::Receiver<Arc<PeerIdentity>>,
    mut peers: watch::Receiver<Vec<Peer>>,
) {
    let mut kept: HashMap<Peer, DropGuard> = HashMap::new();
    loop {
        let wanted = peers.borrow_and_update().clone();
        kept.retain(|peer, _| wanted.contains(peer));
        for peer in wanted {
            kept.entry(peer.clone()).or_insert_with(|| {
                let stop = CancellationToken::new();
                let keeping = keep(
                    Arc::clone(shared),
                    identity.clone(),
                    peer.clone(),
                    stop.clone(),
                );
                shared.links.spawn(keeping);
                stop.drop_guard()
            });
        }
        tokio::select! {
            changed = peers.changed() => if changed.is_err() {
                // The sender lives as long as the edge.
                std::future::pending::<()>().await;
            },
            // Each channel ends by itself.
            () = shared.hub.closed() => return std::future::pending().await,
        }
    }
}

async fn keep(
    shared: Arc<Shared>,
    identity: watch::Receiver<Arc<PeerIdentity>>,
    peer: Peer,
    stop: CancellationToken,
) {
    let mut pause = PAUSES.0;
    let mut said: Option<(&'static str, Instant)> = None;
    let (replica, address) = (&*peer.name, peer.address);
    loop {
        let now = identity.borrow().clone();
        let connecting = tokio::time::timeout(CONNECT, connect(&peer, &now));
        let connected = tokio::select! {
            connected = connecting => connected.unwrap_or(Err(DialError::Timeout)),
            () = stop.cancelled() => return,
            () = shared.hub.closed() => return,
        };
        drop(now);
        match connected {
            Ok((link, control, driver)) => {
                tracing::info!(replica, %address, "connected to another replica");
                let began = Instant::now();
                let ended = run(&shared, &peer, link, control, driver, &stop).await;
                let Some(ended) = ended else { return };
                shared.metrics.replicas.failed(ended.reason());
                let error = tidegate_telemetry::chain(&ended);
                tracing::warn!(replica, %address, reason = ended.reason(), %error, "the channel to another replica has ended");
                said = None;
                if began.elapsed() >= GOOD {
                    pause = PAUSES.0;
                }
            }
            Err(error) => {
                let reason = error.reason();
                shared.metrics.replicas.failed(reason);
                let known =
                    said.is_some_and(|(said, at)| said == reason && at.elapsed() < SAY_AGAIN);
                let error = tidegate_telemetry::chain(&error);
                if known {
                    tracing::debug!(replica, %address, reason, %error, "no channel to another replica");
                } else {
                    tracing::warn!(replica, %address, reason, %error, "no channel to another replica");
                    said = Some((reason, Instant::now()));
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())) => {}
            () = stop.cancelled() => return,
            () = shared.hub.closed() => return,
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

type Opened<D> = (EdgeLink<Body>, EdgeControl, D);

async fn connect(
    peer: &Peer,
    identity: &PeerIdentity,
) -> Result<Opened<impl Future<Output = LinkError> + Send + use<>>, DialError> {
    let name = identity::name_of(&peer.name).ok_or(DialError::Name)?;
    let tcp = TcpStream::connect(peer.address)
        .await
        .map_err(DialError::Connect)?;
    if let Err(error) = settings::tune(&tcp) {
        tracing::debug!(%error, "the socket of a channel could not be set up");
    }
    let connector = TlsConnector::from(Arc::clone(&identity.client));
    let stream = connector.connect(name, tcp).await.map_err(DialError::Tls)?;
    if stream.get_ref().1.alpn_protocol() != Some(tidegate_tunnel::handshake::ALPN_REPLICA) {
        return Err(DialError::Protocol);
    }
    let facts = LinkFacts {
        session: format!("replica {}", peer.name),
        agent: ObjectName::new("replicas", &*peer.name),
        instance: peer.name.clone(),
        link: 0,
    };
    edge::open(stream, facts).await.map_err(DialError::Link)
}

/// Uses a channel until it ends, and says why; None when it was ended here.
async fn run(
    shared: &Shared,
    peer: &Peer,
    link: EdgeLink<Body>,
    control: EdgeControl,
    driver: impl Future<Output = LinkError>,
    stop: &CancellationToken,
) -> Option<LinkError> {
    let EdgeControl {
        mut from_agent,
        to_agent: _to_agent,
        ..
    } = control;
    let mut channel = shared.hub.join(&peer.name, peer.address, link.clone());
    tokio::pin!(driver);
    let patience = loop {
        tokio::select! {
            biased;
            ended = &mut driver => return Some(ended),
            message = from_agent.recv() => match message {
                Some(FromAgent::Registrations(said)) => channel.heard(said),
                Some(_) => {}
                None => return Some(driver.await),
            },
            () = stop.cancelled() => break LEAVE,
            () = shared.hub.closed() => break FAREWELL,
        }
    };
    // Nothing new goes there; what does may end.
    drop(channel);
    let leaving = async {
        let _ = tokio::time::timeout(patience, link.idle()).await;
        let bye = Bye::new(
            Retry::Never,
            "EdgeStops",
            "this replica needs the channel no more",
        );
        link.end(bye, FAREWELL).await;
    };
    tokio::select! {
        _ = &mut driver => {}
        () = leaving => {}
    }
    None
}
