//! Keeps the relays to what is published: resolves names of trackers, again while they are in use.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tidegate_model::{Reach, SnapshotStore, Target, UdpRelay};
use tidegate_telemetry::chain;

use super::{UdpRelays, Wanted};

/// How often names are looked up again.
const LOOK_UP: Duration = Duration::from_secs(30);
/// How long one look-up may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Applies what is published until the store is gone. A name that cannot be resolved keeps the addresses it had.
pub async fn follow(relays: UdpRelays, store: Arc<SnapshotStore>) {
    let mut revisions = store.subscribe();
    let mut known: Vec<Wanted> = Vec::new();
    loop {
        revisions.borrow_and_update();
        let published = store.load_full();
        let reach = &published.snapshot.reach;
        let mut wanted = Vec::with_capacity(published.snapshot.udp_relays.len());
        for relay in &published.snapshot.udp_relays {
            let before = known.iter().find(|known| known.relay.id == relay.id);
            wanted.push(resolved(relay, reach, before).await);
        }
        drop(published);
        if wanted != known {
            if let Err(error) = relays.apply(wanted.clone()) {
                tracing::error!(error = %chain(&error), "cannot start the relay of datagrams; it is tried again");
            } else {
                known = wanted;
            }
        }
        tokio::select! {
            changed = revisions.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(LOOK_UP), if !known.is_empty() => {}
        }
    }
}

async fn resolved(relay: &Arc<UdpRelay>, reach: &Reach, before: Option<&Wanted>) -> Wanted {
    let found = match &relay.backend {
        Target::Addresses(addresses) => Ok(addresses.clone()),
        Target::Agent { agent, .. } => Err(format!("it is behind agent {agent}")),
        Target::Host { host, port } => match host.parse::<IpAddr>() {
            Ok(ip) => Ok(vec![SocketAddr::new(ip, *port)]),
            Err(_) => look_up(host, *port, reach).await,
        },
    };
    let (mut backends, error) = match found {
        Ok(found) if found.is_empty() => (Vec::new(), Some("it has no address".to_owned())),
        Ok(found) => (found, None),
        Err(error) => {
            let same = before.filter(|before| before.relay.backend == relay.backend);
            let kept = same.map(|before| before.backends.clone());
            (kept.unwrap_or_default(), Some(error))
        }
    };
    // In one order, so that an answer of the name server in another changes nothing.
    backends.sort_unstable();
    backends.dedup();
    Wanted {
        relay: Arc::clone(relay),
        backends,
        error,
    }
}

async fn look_up(host: &str, port: u16, reach: &Reach) -> Result<Vec<SocketAddr>, String> {
    let found = if host == "localhost" {
        // Whatever the machine's hosts file has, this is what it means (RFC 6761 §6.3).
        let both: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        both.map(|ip| SocketAddr::new(ip, port)).to_vec()
    } else {
        let asked = tokio::net::lookup_host((host, port));
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(found)) => found.collect(),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("no answer within {} s", PATIENCE.as_secs())),
        }
    };
    let (left, refused) = reach.sort_out(found);
    match refused {
        Some(why) if left.is_empty() => Err(why),
        _ => Ok(left),
    }
}
