//! Hands listening sockets from one pod to the next on the same node, in the network that both share with it.
//!
//! ```text
//! new pod: reads every list ─► is ready to serve ─► asks ─► accepts from the same sockets ─► offers them
//! old pod: offers ............................... gives ─► accepts too ... SIGTERM ─► offers no more, drains
//! ```
//!
//! A connection that the kernel has queued, or whose handshake is under way, belongs to the socket and not to a
//! process: none is reset when the old pod ends. The meeting point is an abstract UNIX socket, whose names are those of
//! the network namespace and which the kernel forgets with its process. Both sides accept only their own user,
//! who may bind the same ports with `SO_REUSEPORT` anyway; no key passes. ADR 0036 tells why.

use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net as unix;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tidegate_model::SnapshotStore;
use tidegate_proxy::{Edge, RunningEdge, Settings};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::process::{self, RunError};
use super::upgrade;

/// Name of the admin listener among what is given.
const ADMIN: &str = "admin";
/// How long the other side may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause before the next attempt to get the ports, or to be the one who offers them.
const AGAIN: Duration = Duration::from_millis(500);

/// Where the replicas of one edge on one machine meet.
#[derive(Debug, Clone)]
pub(super) struct Handover {
    name: String,
}

/// What an edge listens with. Nothing is served yet.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) edge: Edge,
    pub(super) admin: Option<TcpListener>,
}

/// How asking went.
#[derive(Debug)]
enum Given {
    /// What the other one listens with, by listener name.
    Sockets(Vec<(String, TcpListener)>),
    /// Nobody offers any.
    Nothing,
    /// The system forbids to ask, such as some security modules between containers.
    Forbidden(io::Error),
}

impl Handover {
    /// The meeting point of those who share a Lease.
    pub(super) fn of(namespace: &str, lease: &str) -> Self {
        let mut name = "tidegate/".to_owned();
        // A name has room for 107 bytes, which both together may exceed.
        for byte in Sha256::digest(format!("{namespace}/{lease}")) {
            // Writing to a String cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        Self { name }
    }

    fn address(&self) -> io::Result<unix::SocketAddr> {
        unix::SocketAddr::from_abstract_name(&self.name)
    }

    /// The sockets of whoever serves on this machine, or new ones where nobody does. Ports that somebody else has
    /// are waited for: whoever has them may be about to end.
    pub(super) async fn take(
        &self,
        settings: &Settings,
        admin: Option<SocketAddr>,
        store: &Arc<SnapshotStore>,
    ) -> Result<Sockets, RunError> {
        let mut told = false;
        loop {
            let attempt = match self.ask().await {
                Ok(Given::Sockets(given)) => inherit(given, settings, admin, store),
                Ok(Given::Nothing) => bind(settings, admin, store, None),
                Ok(Given::Forbidden(error)) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "cannot ask for the sockets of an edge on this machine; listening beside it, if there is one: connections that begin in the moment in which it ends may fail");
                    }
                    bind(settings, admin, store, Some(Vec::new()))
                }
                Err(error) => {
                    tracing::warn!(%error, "the edge that runs on this machine does not give its sockets; asking again");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            match attempt {
                Err(RunError::Bind {
                    source,
                    flag,
                    address,
                    advice,
                }) if source.kind() == io::ErrorKind::AddrInUse => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(flag, %address, advice, "waiting for a port that is in use");
                    }
                    tokio::time::sleep(AGAIN).await;
                }
                attempt => return attempt,
            }
        }
    }

    async fn ask(&self) -> io::Result<Given> {
        let stream = match unix::UnixStream::connect_addr(&self.address()?) {
            Ok(stream) => stream,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::ConnectionRefused => Ok(Given::Nothing),
                    io::ErrorKind::PermissionDenied => Ok(Given::Forbidden(error)),
                    _ => Err(error),
                };
            }
        };
        stream.set_nonblocking(true)?;
        let stream = of_same_user(UnixStream::from_std(stream)?)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let asked = tokio::task::spawn_blocking(move || upgrade::receive(&stream));
        let given = asked.await.map_err(io::Error::other)??;
        if given.is_empty() {
            return Ok(Given::Nothing);
        }
        let sockets = given.into_iter();
        Ok(Given::Sockets(
            sockets.map(|(name, file)| (name, file.into())).collect(),
        ))
    }

    /// Gives the edge's sockets to whoever asks, until the token is cancelled. Waits where another one does so.
    pub(super) async fn offer(
        self,
        edge: RunningEdge,
        admin: Option<TcpListener>,
        stop: CancellationToken,
    ) {
        let offering = async {
            let listener = self.listen().await;
            let admin = admin.map(Arc::new);
            loop {
                let stream = match listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept who asks for the sockets");
                        tokio::time::sleep(AGAIN).await;
                        continue;
                    }
                };
                let (edge, admin) = (edge.clone(), admin.clone());
                let give =
                    tokio::task::spawn_blocking(move || give(stream, &edge, admin.as_deref()));
                match give
                    .await
                    .unwrap_or_else(|error| Err(io::Error::other(error)))
                {
                    Ok(0) => {}
                    Ok(sockets) => tracing::info!(
                        sockets,
                        "another process of this edge accepts connections too from now on"
                    ),
                    Err(error) => tracing::warn!(%error, "cannot give the sockets to who asked"),
                }
            }
        };
        stop.run_until_cancelled(offering).await;
    }

    /// The name is free once the one who has it drains.
    async fn listen(&self) -> UnixListener {
        let mut told = false;
        loop {
            let bound = self.address().and_then(|address| {
                let listener = unix::UnixListener::bind_addr(&address)?;
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener)
            });
            match bound {
                Ok(listener) => return listener,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "cannot offer the sockets to another process of this edge");
                    }
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Returns the number of sockets that went.
fn give(stream: UnixStream, edge: &RunningEdge, admin: Option<&TcpListener>) -> io::Result<usize> {
    let stream = of_same_user(stream)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let sockets = edge.sockets()?;
    if sockets.is_empty() {
        return Ok(0);
    }
    let admin = admin.map(|listener| (ADMIN, listener.as_fd()));
    let mut files: Vec<(&str, BorrowedFd<'_>)> = admin.into_iter().collect();
    files.extend(sockets.iter().map(|(name, socket)| (*name, socket.as_fd())));
    upgrade::send(&stream, &files)
}

/// The stream for blocking use, if the other side runs as our user.
fn of_same_user(stream: UnixStream) -> io::Result<unix::UnixStream> {
    let user = stream.peer_cred()?.uid();
    if user != rustix::process::geteuid().as_raw() {
        let who = format!("the other process runs as another user ({user})");
        return Err(io::Error::other(who));
    }
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn inherit(
    mut given: Vec<(String, TcpListener)>,
    settings: &Settings,
    admin: Option<SocketAddr>,
    store: &Arc<SnapshotStore>,
) -> Result<Sockets, RunError> {
    let number = given.len();
    let its = given.iter().position(|(name, _)| name == ADMIN);
    let its = its.map(|index| given.swap_remove(index).1);
    let its = its.filter(|listener| listener.local_addr().ok() == admin);
    let sockets = Sockets {
        edge: process::bind_edge(settings, store, Some(given))?,
        admin: match its {
            Some(listener) => Some(listener),
            None => process::bind_admin(admin, false)?,
        },
    };
    tracing::info!(
        sockets = number,
        "took over from the edge that runs on this machine"
    );
    Ok(sockets)
}

/// New sockets; `beside` those that another process may have.
fn bind(
    settings: &Settings,
    admin: Option<SocketAddr>,
    store: &Arc<SnapshotStore>,
    beside: Option<Vec<(String, TcpListener)>>,
) -> Result<Sockets, RunError> {
    let shared = beside.is_some();
    Ok(Sockets {
        edge: process::bind_edge(settings, store, beside)?,
        admin: process::bind_admin(admin, shared)?,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::num::NonZeroUsize;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const LOCAL: &str = "127.0.0.1:0";

    fn settings(http: SocketAddr) -> Settings {
        Settings {
            http: vec![http],
            https: Vec::new(),
            workers: NonZeroUsize::new(2).unwrap(),
            ..Settings::default()
        }
    }

    /// The kernel makes another name for each test: it is that of a port that the test has.
    fn meeting(port: u16) -> Handover {
        Handover::of("test", &port.to_string())
    }

    /// An answer of whoever listens, on a connection of its own.
    fn ask(address: SocketAddr) -> io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn the_next_one_accepts_from_the_same_sockets_and_loses_nobody() {
        let store = Arc::new(SnapshotStore::new());
        let bound = process::bind_edge(&settings(LOCAL.parse().unwrap()), &store, None).unwrap();
        let address = bound.addresses()[0].1;
        let admin = process::bind_admin(Some(LOCAL.parse().unwrap()), false).unwrap();
        let admin_address = admin.as_ref().unwrap().local_addr().unwrap();
        let meeting = meeting(address.port());
        let mut serving = bound.start().unwrap();
        let mut stop = CancellationToken::new();
        let mut offer = tokio::spawn(meeting.clone().offer(serving.clone(), admin, stop.clone()));

        let enough = Arc::new(AtomicBool::new(false));
        let askers: Vec<_> = (0..4)
            .map(|_| {
                let enough = Arc::clone(&enough);
                std::thread::spawn(move || {
                    let mut asked = 0_u32;
                    while !enough.load(Ordering::Relaxed) {
                        let answer = ask(address).unwrap();
                        assert!(answer.starts_with("HTTP/1.1 "), "{answer:?}");
                        asked += 1;
                    }
                    asked
                })
            })
            .collect();
        // Each generation takes over from the one before, which then ends.
        for _ in 0..5 {
            let mut wanted = settings(address);
            wanted.timeouts.request_grace = Duration::from_millis(50);
            // The name belongs to the one before only once it has got it.
            let taken = tokio::time::timeout(
                Duration::from_secs(30),
                meeting.take(&wanted, Some(admin_address), &store),
            );
            let taken = taken.await.unwrap().unwrap();
            assert_eq!(taken.edge.addresses(), [("http", address)]);
            let admin = taken.admin.unwrap();
            assert_eq!(admin.local_addr().unwrap(), admin_address);
            let next = taken.edge.start().unwrap();
            stop.cancel();
            offer.await.unwrap();
            stop = CancellationToken::new();
            offer = tokio::spawn(
                meeting
                    .clone()
                    .offer(next.clone(), Some(admin), stop.clone()),
            );
            serving.drain(Duration::from_secs(30)).await;
            serving = next;
        }
        enough.store(true, Ordering::Relaxed);
        let asked: u32 = askers.into_iter().map(|it| it.join().unwrap()).sum();
        assert!(asked > 20, "{asked}");
        stop.cancel();
        serving.drain(Duration::from_secs(30)).await;
        assert!(ask(address).is_err(), "nobody has the port any more");
    }

    #[tokio::test]
    async fn a_port_that_a_stranger_has_is_waited_for() {
        let stranger = TcpListener::bind(LOCAL).unwrap();
        let address = stranger.local_addr().unwrap();
        let store = Arc::new(SnapshotStore::new());
        let wanted = settings(address);
        let meeting = meeting(address.port());
        let mut taking = std::pin::pin!(meeting.take(&wanted, None, &store));
        let early = tokio::time::timeout(Duration::from_millis(50), taking.as_mut()).await;
        assert!(early.is_err(), "{early:?}");
        drop(stranger);
        let taken = tokio::time::timeout(Duration::from_secs(30), taking);
        let taken = taken.await.unwrap().unwrap();
        assert_eq!(taken.edge.addresses(), [("http", address)]);
    }

    #[test]
    fn long_names_fit_and_differ() {
        let long = "n".repeat(63);
        let (one, other) = (
            Handover::of(&long, &"l".repeat(253)),
            Handover::of(&long, &"l".repeat(252)),
        );
        assert!(one.address().is_ok());
        assert_ne!(one.name, other.name);
    }
}
