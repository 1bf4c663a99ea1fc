//! TCP to the first of a name's addresses that answers (RFC 8305, without its DNS part).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// The next address is tried beside an address that has not answered for so long.
const STAGGER: Duration = Duration::from_millis(250);
/// More addresses of a name are passed over.
const MOST: usize = 8;

/// Connects to one of the addresses of a name or literal that `allowed` lets through. Has no clock of its own.
pub(crate) async fn connect(
    host: &str,
    port: u16,
    allowed: impl Fn(IpAddr) -> bool,
) -> Result<TcpStream, TcpError> {
    let found = tokio::net::lookup_host((host, port)).await;
    let found: Vec<SocketAddr> = found.map_err(TcpError::Resolve)?.collect();
    if found.is_empty() {
        let nothing = io::Error::new(io::ErrorKind::NotFound, "it has no address");
        return Err(TcpError::Resolve(nothing));
    }
    let mut addresses = in_turns(&found);
    addresses.retain(|address| allowed(address.ip()));
    addresses.truncate(MOST);
    if addresses.is_empty() {
        return Err(TcpError::NotAllowed);
    }
    race(&addresses).await
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TcpError {
    /// The name has no address, or nobody could be asked.
    #[error("resolve the name")]
    Resolve(#[source] io::Error),
    /// `allowTargets` names none of the addresses.
    #[error("none of its addresses is among allowTargets")]
    NotAllowed,
    /// No address answers; the error is that of the first one.
    #[error("connect to {0}")]
    Connect(SocketAddr, #[source] io::Error),
}

/// IPv6 and IPv4 in turns, in the resolver's order, beginning with the kind of the first.
fn in_turns(found: &[SocketAddr]) -> Vec<SocketAddr> {
    let v6_first = found.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<SocketAddr>, Vec<SocketAddr>) = found
        .iter()
        .copied()
        .partition(|address| address.is_ipv6() == v6_first);
    let mut turns = Vec::with_capacity(found.len());
    for place in 0..first.len().max(second.len()) {
        turns.extend(first.get(place).copied());
        turns.extend(second.get(place).copied());
    }
    turns
}

async fn race(addresses: &[SocketAddr]) -> Result<TcpStream, TcpError> {
    let mut running = FuturesUnordered::new();
    let mut rest = addresses.iter().copied();
    let start = |address: SocketAddr| async move { (address, TcpStream::connect(address).await) };
    let mut failed: Option<(SocketAddr, io::Error)> = None;
    loop {
        if running.is_empty() {
            match rest.next() {
                Some(address) => running.push(start(address)),
                None => break,
            }
        }
        tokio::select! {
            Some((address, result)) = running.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    failed.get_or_insert((address, error));
                    running.extend(rest.next().map(start));
                }
            },
            () = sleep(STAGGER), if rest.len() > 0 => running.extend(rest.next().map(start)),
        }
    }
    let (address, error) = failed.unwrap_or_else(|| {
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        (unspecified, io::ErrorKind::AddrNotAvailable.into())
    });
    Err(TcpError::Connect(address, error))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn kinds_of_addresses_take_turns() {
        let found = ["[::1]:1", "[::2]:1", "1.1.1.1:1", "[::3]:1", "2.2.2.2:1"];
        let parsed = found.map(|address| address.parse().unwrap());
        let turns: Vec<String> = in_turns(&parsed).iter().map(ToString::to_string).collect();
        assert_eq!(
            turns,
            ["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]
        );
    }

    #[tokio::test]
    async fn a_dead_address_does_not_hide_a_live_one() {
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead_address = dead.local_addr().unwrap();
        drop(dead);
        let live = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live_address = live.local_addr().unwrap();
        let stream = race(&[dead_address, live_address]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live_address);
        let error = race(&[dead_address]).await.unwrap_err();
        assert!(matches!(error, TcpError::Connect(address, _) if address == dead_address));
        let refused = connect("127.0.0.1", live_address.port(), |_| false).await;
        assert!(matches!(refused, Err(TcpError::NotAllowed)));
    }
}
