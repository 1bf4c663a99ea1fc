//! The control socket: what commands ask of a running edge, over HTTP/1 on a socket in the state folder.
//!
//! ```text
//! tidegate renew | revoke | certs | doctor | notify-test ─► STATE/control.sock ─► the ACME engine, here or at the leader
//! ```
//!
//! Who may open the state folder (0700) may ask: it holds the private keys anyway. The socket (0600) is
//! bound anew when its file is removed or replaced. In an upgrade it goes away with the engine, so that the
//! new process has it as soon as the engine is its own. Bodies, connections and times are bounded.

mod client;
mod desk;
mod messages;
mod orders;
mod serve;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidegate_telemetry::spawn_named;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use client::{Control, ControlError};
pub(super) use desk::{Desk, Question, Reply, answered, refuse};
pub use messages::{
    Certificate, Done, Held, Kept, Preflight, Refusal, Renew, Revoke, Rollback, TestNotice,
    TestedNotice, TestedReceiver,
};

/// Name of the socket in the state folder.
const SOCKET: &str = "control.sock";
/// Connections that are served at one time.
const CONNECTIONS: usize = 16;
/// How often it is made sure that the socket is still there.
const LOOK: Duration = Duration::from_secs(5);
/// The kernel's limit of a socket's path is 108 bytes, the end included.
const LONGEST_PATH: usize = 107;

/// The path of a socket in the state folder to bind or to connect, and what keeps it valid: longer ones are reached through the folder's
/// descriptor.
pub(super) fn reachable(state: &Path, socket: &str) -> io::Result<(PathBuf, Option<File>)> {
    let path = state.join(socket);
    if path.as_os_str().len() <= LONGEST_PATH {
        return Ok((path, None));
    }
    let folder = File::open(state)?;
    let path = format!("/proc/self/fd/{}/{socket}", folder.as_raw_fd());
    Ok((path.into(), Some(folder)))
}

/// Serves until `stop`; then the socket is gone.
pub(super) fn serve(
    state: &Path,
    desk: Arc<dyn Desk>,
    stop: CancellationToken,
    tasks: &TaskTracker,
) {
    let server = Server {
        state: state.to_owned(),
        desk,
        places: Arc::new(Semaphore::new(CONNECTIONS)),
        stop,
        tasks: tasks.clone(),
        told: false,
    };
    spawn_named("control", tasks.track_future(server.run()));
}

struct Server {
    state: PathBuf,
    desk: Arc<dyn Desk>,
    places: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Whether it was said that the socket cannot be bound.
    told: bool,
}

/// A bound socket and which file it is.
struct Bound {
    listener: UnixListener,
    file: (u64, u64),
}

impl Server {
    async fn run(mut self) {
        let mut bound = self.bind();
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                stream = accept(bound.as_ref()) => {
                    // Beyond the limit a connection is closed at once.
                    if let (Ok(stream), Ok(place)) = (stream, Arc::clone(&self.places).try_acquire_owned()) {
                        let (desk, stop) = (Arc::clone(&self.desk), self.stop.clone());
                        spawn_named("control-connection", self.tasks.track_future(async move {
                            tokio::select! {
                                () = stop.cancelled() => {}
                                () = serve::connection(stream, desk) => {}
                            }
                            drop(place);
                        }));
                    }
                }
                _ = look.tick() => {
                    if bound.as_ref().is_none_or(|bound| self.file() != Some(bound.file)) {
                        bound = self.bind();
                    }
                }
            }
        }
        if let Some(bound) = bound
            && self.file() == Some(bound.file)
        {
            let _ = fs::remove_file(self.state.join(SOCKET));
        }
    }

    /// Binds in place of what an earlier process left. The lock of the state folder is ours, so no other one uses it.
    fn bind(&mut self) -> Option<Bound> {
        let bind = || {
            let path = self.state.join(SOCKET);
            match fs::symlink_metadata(&path) {
                Ok(found) if found.file_type().is_socket() => fs::remove_file(&path)?,
                Ok(_) => return Err(io::Error::other("a file that is no socket is in its place")),
                Err(_) => {}
            }
            let (reachable, _folder) = reachable(&self.state, SOCKET)?;
            let listener = UnixListener::bind(reachable)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            let found = fs::symlink_metadata(&path)?;
            Ok(Bound {
                listener,
                file: (found.dev(), found.ino()),
            })
        };
        match bind() {
            Ok(bound) => {
                self.told = false;
                Some(bound)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    let path = self.state.join(SOCKET);
                    tracing::warn!(path = %path.display(), error = %error, "cannot listen on the control socket; `tidegate renew` and `revoke` will not find this edge");
                }
                None
            }
        }
    }

    fn file(&self) -> Option<(u64, u64)> {
        let found = fs::symlink_metadata(self.state.join(SOCKET)).ok()?;
        Some((found.dev(), found.ino()))
    }
}

async fn accept(bound: Option<&Bound>) -> io::Result<tokio::net::UnixStream> {
    match bound {
        Some(bound) => match bound.listener.accept().await {
            Ok((stream, _)) => Ok(stream),
            Err(error) => {
                // Without a free descriptor it would fail again at once.
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err(error)
            }
        },
        None => std::future::pending().await,
    }
}
