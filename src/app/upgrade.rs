//! Hands the edge over to a new process of the same binary without refusing a connection.
//!
//! ```text
//! old: SIGUSR2 ─► spawn new (same arguments), stdin = socket ─► send lock and sockets ... wait ─► drain, end
//! new:            lock and sockets from stdin ─► accept from the same sockets ─► "ready"
//! ```
//!
//! The listening sockets themselves are passed: a connection that the kernel has queued, or whose handshake is
//! under way, is not reset when the old process closes its handle. The state folder's lock is passed too, so
//! that it is held without a gap and by nobody else. Until the new process says that it is ready the old one serves as before, and goes on if the new one fails.
//! ADR 0021 tells why.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Tells a new process that its standard input is the old one's socket.
const MARK: &str = "TIDEGATE_UPGRADE_FROM";
/// How long a new process may take to become ready.
const PATIENCE: Duration = Duration::from_secs(60);
const READY: &[u8] = b"ready\n";
/// Name of the state folder's lock among what is sent.
const LOCK: &str = "lock";
/// The kernel passes at most 253 file descriptors at once (`SCM_MAX_FD`).
const MOST_FILES: usize = 253;
/// Bytes of their names.
const MOST_NAME_BYTES: usize = 4096;

/// The old process, as the new one sees it.
#[derive(Debug)]
pub(super) struct Predecessor {
    socket: UnixStream,
    /// The state folder's lock.
    pub(super) lock: Option<File>,
    /// Listening sockets by listener name.
    pub(super) listeners: Vec<(String, TcpListener)>,
}

/// Why a handover failed. The old process goes on.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeError {
    #[error("start the new process")]
    Spawn(#[source] io::Error),
    #[error("talk to the other process")]
    Talk(#[source] io::Error),
    #[error("wait for the new process: it ended before it was ready; its log says why")]
    Ended,
    #[error("wait for the new process: it was not ready within {PATIENCE:?}")]
    Late,
}

impl Predecessor {
    /// The predecessor, if this process was started to take over.
    pub(super) fn of_this_process() -> Result<Option<Self>, UpgradeError> {
        if std::env::var_os(MARK).is_none() {
            return Ok(None);
        }
        let stdin = io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map_err(UpgradeError::Talk)?;
        let socket = UnixStream::from(stdin);
        socket
            .set_read_timeout(Some(PATIENCE))
            .map_err(UpgradeError::Talk)?;
        let mut predecessor = Self {
            socket,
            lock: None,
            listeners: Vec::new(),
        };
        for (name, file) in receive(&predecessor.socket).map_err(UpgradeError::Talk)? {
            if name == LOCK {
                predecessor.lock = Some(File::from(file));
            } else {
                predecessor.listeners.push((name, TcpListener::from(file)));
            }
        }
        Ok(Some(predecessor))
    }

    /// Tells the old process that it may go.
    pub(super) fn ready(mut self) -> Result<(), UpgradeError> {
        self.socket.write_all(READY).map_err(UpgradeError::Talk)
    }
}

/// Starts a new process, passes lock and sockets on and waits until it serves. Blocks.
pub(super) fn hand_over(
    lock: Option<&File>,
    listeners: &[(&'static str, TcpListener)],
) -> Result<Child, UpgradeError> {
    let mut files: Vec<(&str, BorrowedFd<'_>)> =
        lock.iter().map(|lock| (LOCK, lock.as_fd())).collect();
    files.extend(
        listeners
            .iter()
            .map(|(name, listener)| (*name, listener.as_fd())),
    );
    let (mut ours, theirs) = UnixStream::pair().map_err(UpgradeError::Talk)?;
    // The path, not the open file: an upgrade is a new file under the old name.
    let program = std::env::args_os()
        .next()
        .map_or_else(|| "tidegate".into(), std::path::PathBuf::from);
    let program = if program.components().count() > 1 {
        program
    } else {
        std::env::current_exe().map_err(UpgradeError::Spawn)?
    };
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(MARK, std::process::id().to_string())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .map_err(UpgradeError::Spawn)?;
    // What does not fit is bound anew beside the others.
    let outcome = send(&ours, &files)
        .map_err(UpgradeError::Talk)
        .and_then(|_| wait(&mut ours));
    match outcome {
        Ok(()) => Ok(child),
        Err(error) => {
            // Two edges with one state folder must not be.
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

fn wait(socket: &mut UnixStream) -> Result<(), UpgradeError> {
    socket
        .set_read_timeout(Some(PATIENCE))
        .map_err(UpgradeError::Talk)?;
    let mut said = [0; READY.len()];
    match socket.read_exact(&mut said) {
        Ok(()) if said == READY => Ok(()),
        Ok(()) => Err(UpgradeError::Ended),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => UpgradeError::Ended,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => UpgradeError::Late,
            _ => UpgradeError::Talk(error),
        }),
    }
}

/// Sends files with their names, one line each; of too many, the first. Returns how many.
pub(super) fn send(socket: &UnixStream, files: &[(&str, BorrowedFd<'_>)]) -> io::Result<usize> {
    let files = &files[..files.len().min(MOST_FILES)];
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    let names = names.join("\n");
    let files: Vec<BorrowedFd<'_>> = files.iter().map(|(_, file)| *file).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::Error::other("too many files"));
    }
    let sent = rustix::net::sendmsg(
        socket,
        &[IoSlice::new(names.as_bytes())],
        &mut control,
        SendFlags::empty(),
    )?;
    if sent == names.len() {
        Ok(files.len())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// What [`send`] sent.
pub(super) fn receive(socket: &UnixStream) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut names = [0; MOST_NAME_BYTES];
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut names)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            files.extend(received);
        }
    }
    let names = String::from_utf8_lossy(&names[..received.bytes]);
    Ok(names.lines().map(str::to_owned).zip(files).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_go_through_the_socket() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.try_lock().unwrap();
        (&file).write_all(b"hello").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        send(
            &ours,
            &[("lock", file.as_fd()), ("https", listener.as_fd())],
        )
        .unwrap();
        let mut all = receive(&theirs).unwrap();
        let (name, socket) = all.pop().unwrap();
        assert_eq!(name, "https");
        assert_eq!(
            TcpListener::from(socket).local_addr().unwrap(),
            listener.local_addr().unwrap()
        );
        let received = File::from(all.pop().unwrap().1);
        assert_eq!(received.metadata().unwrap().len(), 5);
        // The lock belongs to the open file, so the receiver holds it too.
        drop(file);
        assert!(received.try_lock().is_ok());
    }

    #[test]
    fn a_new_process_that_ends_early_is_told_from_a_late_one() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(matches!(wait(&mut ours), Err(UpgradeError::Ended)));
    }
}
