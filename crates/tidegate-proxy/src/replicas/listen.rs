//! The private listener: takes channels of other replicas in, and tells them which agents are here.
//!
//! Who has no certificate of a replica is gone before a byte of HTTP.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidegate_tunnel::link::agent::{self, AgentControl};
use tidegate_tunnel::settings;
use tidegate_tunnel::wire::{FromAgent, FromEdge, Hello};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::identity::{self, PeerIdentity};
use super::serve;
use crate::worker::Shared;

/// Connections whose handshake is not over.
const HANDSHAKES: usize = 64;
/// For a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// After an error that the next accept would meet again.
const PAUSE: Duration = Duration::from_millis(50);
/// Changes within this time are told together.
const GATHER: Duration = Duration::from_millis(20);
/// What is refused for the same reason is said again after this time.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// Time for the streams of a channel whose other end has gone, or that ends with the edge.
const FAREWELL: Duration = Duration::from_millis(500);

pub(super) async fn accept(
    shared: Arc<Shared>,
    identity: watch::Receiver<Arc<PeerIdentity>>,
    socket: StdListener,
) {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the listener for other replicas is lost");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    let said = Arc::new(Said::default());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.hub.closed() => return,
        };
        match accepted {
            Ok((tcp, address)) => {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                    shared.metrics.replicas.failed("TooManyHandshakes");
                    continue;
                };
                let identity = identity.borrow().clone();
                let (serving, said) = (Arc::clone(&shared), Arc::clone(&said));
                shared.links.spawn(async move {
                    let shaking = shake(&serving, &identity, tcp);
                    let shaken = tokio::time::timeout(HANDSHAKE, shaking).await;
                    drop((place, identity));
                    match shaken {
                        Ok(Ok((io, replica))) => channel(&serving, io, replica, address).await,
                        Ok(Err(refused)) => refuse(&serving, &said, address, refused),
                        Err(_) => {
                            let refused = Refused("HandshakeTimeout", None);
                            refuse(&serving, &said, address, refused);
                        }
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting another replica failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Why somebody is no replica, in one word and in more.
struct Refused(&'static str, Option<std::io::Error>);

/// When which refusal was said last: whoever looks whether the port is open is no news each time.
#[derive(Default)]
struct Said(Mutex<BTreeMap<&'static str, Instant>>);

impl Said {
    fn is_due(&self, reason: &'static str) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let last = all.get(reason);
        let due = last.is_none_or(|at| now.saturating_duration_since(*at) >= SAY_AGAIN);
        if due {
            all.insert(reason, now);
        }
        due
    }
}

fn refuse(shared: &Shared, said: &Said, address: SocketAddr, Refused(reason, error): Refused) {
    shared.metrics.replicas.failed(reason);
    let error = error.map(|error| error.to_string());
    if said.is_due(reason) {
        tracing::warn!(%address, reason, error, "a connection for replicas is refused");
    } else {
        tracing::debug!(%address, reason, error, "a connection for replicas is refused");
    }
}

type Stream = tokio_rustls::server::TlsStream<TcpStream>;

async fn shake(
    shared: &Shared,
    identity: &PeerIdentity,
    tcp: TcpStream,
) -> Result<(Stream, String), Refused> {
    if let Err(error) = settings::tune(&tcp) {
        tracing::debug!(%error, "the socket of a channel could not be set up");
    }
    let acceptor = TlsAcceptor::from(Arc::clone(&identity.server));
    let accepted = acceptor.accept(tcp).await;
    let stream = accepted.map_err(|error| Refused("HandshakeFailed", Some(error)))?;
    let session = stream.get_ref().1;
    if session.alpn_protocol() != Some(tidegate_tunnel::handshake::ALPN_REPLICA) {
        return Err(Refused("WrongProtocol", None));
    }
    let certificates = session.peer_certificates().unwrap_or_default();
    let replica = certificates.first().and_then(identity::replica_of);
    let replica = replica.ok_or(Refused("WrongName", None))?;
    if replica == shared.settings.replica {
        return Err(Refused("OwnName", None));
    }
    Ok((stream, replica))
}

/// Serves a channel from the end of its handshake to its own.
async fn channel(shared: &Arc<Shared>, io: Stream, replica: String, address: SocketAddr) {
    let hello = Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: shared.settings.replica.clone(),
        ..Hello::default()
    };
    let serving = Arc::clone(shared);
    let service = move |request| {
        let serving = Arc::clone(&serving);
        async move { serve::answer(&serving, request).await }
    };
    let (control, driver) = agent::serve(io, hello, service);
    let AgentControl {
        mut from_edge,
        to_edge,
        link,
    } = control;
    tracing::info!(replica, %address, "another replica is connected");
    tokio::pin!(driver);
    let ended = tokio::select! {
        ended = &mut driver => ended,
        never = tell(shared, &to_edge) => match never {},
        never = pass_over(&mut from_edge) => match never {},
        () = shared.hub.closed() => {
            link.finish();
            tokio::select! {
                ended = &mut driver => ended,
                () = tokio::time::sleep(FAREWELL) => {
                    link.cut();
                    driver.await
                }
            }
        }
    };
    let error = tidegate_telemetry::chain(&ended);
    tracing::info!(replica, %address, reason = ended.reason(), %error, "another replica is gone");
}

/// What the dialling end says is of no use here, but must not stop it.
async fn pass_over(from_edge: &mut mpsc::Receiver<FromEdge>) -> Infallible {
    while let Some(message) = from_edge.recv().await {
        if let FromEdge::Bye(bye) = message {
            tracing::debug!(reason = bye.reason, "another replica says goodbye");
        }
    }
    std::future::pending().await
}

/// Tells which agents are here whenever that changes.
async fn tell(shared: &Shared, to_edge: &mpsc::Sender<FromAgent>) -> Infallible {
    let mut here = shared.hub.here();
    loop {
        here.mark_unchanged();
        for message in shared.hub.registrations() {
            if to_edge.send(message.into()).await.is_err() {
                return std::future::pending().await;
            }
        }
        // The hub lives in `shared`.
        let _ = here.changed().await;
        tokio::time::sleep(GATHER).await;
    }
}
