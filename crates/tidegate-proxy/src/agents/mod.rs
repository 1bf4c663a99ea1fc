//! Agents on the listeners: which requests are their handshakes, who is let in, and the link that then begins.
//!
//! Two carriers, one request: TLS with an ALPN protocol of its own, on which nothing else is served, and WebSocket on
//! any connection for HTTP/1.1. Over plain HTTP only trusted proxies may bring agents: what they say is then theirs to
//! protect. Whatever is no handshake of an agent is an ordinary request and none of this file's business.

mod metrics;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Request, Response, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tidegate_http1::ReadAhead;
use tidegate_model::{Carrier, HostName};
use tidegate_tunnel::admission::{Admitted, Attempt, Denial, Refused};
use tidegate_tunnel::credential::{Claims, Proof};
use tidegate_tunnel::handshake::{self, Authorization, Upgrade};
use tidegate_tunnel::hub::Arrival;
use tidegate_tunnel::settings;
use tidegate_tunnel::websocket::{Role, WebSocketStream};

use crate::body::{Body, ClientBody};
use crate::connection::Connection;
use crate::exchange::{RequestGuard, ResponseBody};
use crate::io::ClientStream;
use crate::stop::close_after;
use crate::worker::Shared;
pub(crate) use metrics::AgentMetrics;

/// What a proof on a direct connection is bound to: the TLS session itself (RFC 9266).
pub(crate) type Binding = [u8; handshake::EXPORTER_LENGTH];

/// From the 101 until the connection is a link's.
const UPGRADE_WITHIN: Duration = Duration::from_secs(5);

/// Tells agents from visitors once a TLS session stands.
pub(crate) fn binding(session: &rustls::ServerConnection) -> Option<Box<Binding>> {
    if session.alpn_protocol() != Some(handshake::ALPN) {
        return None;
    }
    let exported = session.export_keying_material(
        [0; handshake::EXPORTER_LENGTH],
        handshake::EXPORTER_LABEL,
        Some(&[]),
    );
    // RFC 9266 §4: with older versions two sessions may have the same. Nobody can know what is drawn instead.
    let fits = session.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
    let mut unknown = [0; handshake::EXPORTER_LENGTH];
    fastrand::fill(&mut unknown);
    Some(Box::new(exported.ok().filter(|_| fits).unwrap_or(unknown)))
}

/// Follows the agents of the snapshots.
pub(crate) async fn follow(shared: &Shared) {
    let mut revisions = shared.store.subscribe();
    loop {
        revisions.mark_unchanged();
        let published = shared.store.load_full();
        shared
            .hub
            .apply(published.revision, &published.snapshot.agents);
        drop(published);
        if revisions.changed().await.is_err() {
            // The store lives in `shared`, so this is never reached; the watch must not end for it.
            std::future::pending::<()>().await;
        }
    }
}

/// Whether a request is none of a visitor's. `upgrades` is whether it asks for an upgrade at all.
pub(crate) fn is_for_agents<B>(
    connection: &Connection,
    request: &Request<B>,
    upgrades: bool,
) -> bool {
    connection.facts.binding.is_some() || (upgrades && is_handshake(connection, request))
}

fn is_handshake<B>(connection: &Connection, request: &Request<B>) -> bool {
    request.uri().path() == handshake::PATH
        && (connection.facts.tls.is_some() || connection.client_trusted)
        && matches!(Upgrade::of(request), Some(Upgrade::WebSocket { .. }))
        && request
            .headers()
            .get(header::AUTHORIZATION)
            .is_some_and(|value| Authorization::parse(value).is_some())
        && {
            let published = connection.worker.shared.store.load();
            !published.snapshot.agents.is_empty()
        }
}

/// Answers a handshake; if it is a good one, the link goes on by itself.
pub(crate) fn answer(
    connection: &Arc<Connection>,
    request: &Request<ClientBody>,
    upgrade: Option<OnUpgrade>,
) -> Response<ResponseBody> {
    let mut guard = RequestGuard::begin(connection, request, None);
    let shared = &connection.worker.shared;
    let response = match judge(connection, request, upgrade.is_some()) {
        Ok(accepted) => {
            shared.metrics.agents.handshake("Accepted");
            let response = handshake::accepted(&accepted.upgrade, accepted.version);
            if let Some(upgrade) = upgrade {
                start(connection, &guard, accepted, upgrade);
            }
            response.map(|()| Body::Empty)
        }
        Err(Refused { denial, why }) => {
            shared.metrics.agents.handshake(why);
            guard.refused(denial.reason());
            let address = address_of(connection, request).ip();
            tracing::info!(%address, why, "an agent's handshake is refused");
            let mut response = denial.response().map(Body::full);
            close_after(&mut response, request.version());
            response
        }
    };
    guard.answered(response.status());
    response.map(|body| ResponseBody::new(body, guard))
}

/// A handshake that may become a link.
struct Accepted {
    admitted: Admitted,
    authorization: Authorization,
    upgrade: Upgrade,
    version: u16,
    address: SocketAddr,
}

fn judge<B>(
    connection: &Connection,
    request: &Request<B>,
    upgrades: bool,
) -> Result<Accepted, Refused> {
    let refused = |denial, why| Refused { denial, why };
    let malformed = |why| refused(Denial::Credential, why);
    let upgrade = Upgrade::of(request).filter(|_| upgrades);
    let upgrade = upgrade.ok_or_else(|| malformed("NoHandshake"))?;
    let binding = match (&upgrade, &connection.facts.binding) {
        (Upgrade::Direct, Some(binding)) => &binding[..],
        (Upgrade::WebSocket { .. }, None) => &[],
        _ => return Err(malformed("WrongCarrier")),
    };
    let value = request.headers().get(header::AUTHORIZATION);
    let authorization = value
        .and_then(Authorization::parse)
        .and_then(Result::ok)
        .ok_or_else(|| malformed("BadAuthorization"))?;
    let version = handshake::choose_version(request.headers())
        .ok_or_else(|| refused(Denial::Version, "Version"))?;
    let published = connection.worker.shared.store.load_full();
    let snapshot = &published.snapshot;
    // A proof that some other server got is good for nothing here: it names that server.
    let edge = HostName::parse(host_of(&authorization.edge)).ok();
    let ours = |name: &HostName| name.ip().is_some() || snapshot.hosts.lookup(name).is_some();
    if !edge.is_some_and(|name| !binding.is_empty() || ours(&name)) {
        return Err(malformed("OtherEdge"));
    }
    let proof = Proof::parse(authorization.proof.expose());
    let proof = proof.ok_or_else(|| malformed("BadAuthorization"))?;
    let address = address_of(connection, request);
    let attempt = Attempt {
        address: address.ip(),
        claims: Claims {
            version,
            edge: &authorization.edge,
            agent: &authorization.agent,
            instance: &authorization.instance,
            link: authorization.link,
            time: authorization.time,
            nonce: &authorization.nonce,
            binding,
        },
        proof: &proof,
    };
    let hub = &connection.worker.shared.hub;
    let now = SystemTime::now();
    let admitted = hub.admit(published.revision, &snapshot.agents, &attempt, now)?;
    Ok(Accepted {
        admitted,
        authorization,
        upgrade,
        version,
        address,
    })
}

/// The host of `host[:port]`.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|c| c.is_ascii_digit()) && !host.is_empty() => host,
        _ => authority,
    }
}

/// The agent as far as it can be seen; port 0 where a proxy names it.
fn address_of<B>(connection: &Connection, request: &Request<B>) -> SocketAddr {
    let peer = connection.facts.client;
    let client: IpAddr = connection.client_of(request.headers()).ip();
    if client == peer.ip().to_canonical() {
        SocketAddr::new(client, peer.port())
    } else {
        SocketAddr::new(client, 0)
    }
}

/// Runs the link in a task of its own, which keeps the connection busy until its end.
fn start(
    connection: &Arc<Connection>,
    guard: &RequestGuard,
    accepted: Accepted,
    upgrade: OnUpgrade,
) {
    let shared = Arc::clone(&connection.worker.shared);
    let busy = guard.stay_busy();
    let endpoint = connection.facts.client;
    let cut = shared.cut.clone();
    let links = shared.links.clone();
    links.spawn(async move {
        let serving = Box::pin(serve(&shared, accepted, endpoint, upgrade));
        if cut.run_until_cancelled(serving).await.is_none() {
            shared.metrics.agents.ended("Cut");
        }
        drop(busy);
    });
}

async fn serve(shared: &Shared, accepted: Accepted, endpoint: SocketAddr, upgrade: OnUpgrade) {
    let Accepted {
        admitted,
        authorization,
        upgrade: way,
        version,
        address,
    } = accepted;
    let agent = admitted.agent.id.clone();
    let upgraded = match tokio::time::timeout(UPGRADE_WITHIN, upgrade).await {
        Ok(Ok(upgraded)) => upgraded,
        Ok(Err(error)) => {
            tracing::info!(%agent, %address, %error, "an agent was gone before its link began");
            return;
        }
        Err(_) => {
            tracing::info!(%agent, %address, "an agent did not take the answer to its handshake");
            return;
        }
    };
    let Ok(parts) = upgraded.downcast::<TokioIo<ClientStream>>() else {
        // Every connection is made of this.
        tracing::error!(%agent, "the connection of an agent is of another kind than expected");
        return;
    };
    let mut io = parts.io.into_inner();
    io.end_http();
    if let Err(error) = settings::tune(io.tcp()) {
        tracing::debug!(%error, "the socket of a link could not be set up");
    }
    let io = ReadAhead::new(io, parts.read_buf);
    let arrival = |carrier| Arrival {
        instance: authorization.instance,
        link: authorization.link,
        carrier,
        address,
        protocol: version,
    };
    let ended = match way {
        Upgrade::Direct => {
            let arrival = arrival(Carrier::Direct);
            shared.hub.serve(admitted, arrival, endpoint, io).await
        }
        Upgrade::WebSocket { .. } => {
            let io = WebSocketStream::new(io, Role::Server);
            let arrival = arrival(Carrier::WebSocket);
            shared.hub.serve(admitted, arrival, endpoint, io).await
        }
    };
    shared.metrics.agents.ended(ended.reason);
}
