//! Hands the edge over to a new process of the same binary without refusing a connection.
//!
//! ```text
//! old: SIGUSR2 ─► spawn first (same arguments), stdin = socket ─► send lock and sockets ... wait ─► drain, end
//! first:          spawn new, tell its process id, end
//! new:            lock and sockets from stdin ─► accept from the same sockets ─► "ready"
//! ```
//!
//! The one in between makes the new process a child of the service manager at once. systemd looks once at whose
//! child a new main process is, and one that is not its own it kills at a stop instead of waiting for it.
//!
//! The listening sockets themselves are passed: a connection that the kernel has queued, or whose handshake is
//! under way, is not reset when the old process closes its handle. The state folder's lock is passed too, so
//! that it is held without a gap and by nobody else. Until the new process says that it is ready the old one serves as before, and goes on if the new one fails.
//! ADR 0021 tells why.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use rustix::process::{Pid, Signal, kill_process};

/// Tells a new process that its standard input is the old one's socket.
const MARK: &str = "TIDEGATE_UPGRADE_FROM";
/// Tells a new process that nobody stands between it and the service manager any more.
const ADOPTED: &str = "TIDEGATE_UPGRADE_ADOPTED";
/// systemd's name for the process that is to give signs of life. The new one is another.
const WATCHDOG_PID: &str = "WATCHDOG_PID";
/// How long a new process may take to become ready.
const PATIENCE: Duration = Duration::from_secs(60);
const READY: &str = "ready";
/// Bytes of a line of a new process.
const LONGEST_LINE: u64 = 64;
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
        let socket = standard_input().map_err(UpgradeError::Talk)?;
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
        writeln!(self.socket, "{READY}").map_err(UpgradeError::Talk)
    }
}

/// Starts the process that is to take over, if this one was started by the old process itself. Returns whether that
/// was so; this process then has nothing more to do.
pub(super) fn step_aside() -> Result<bool, UpgradeError> {
    if std::env::var_os(MARK).is_none() || std::env::var_os(ADOPTED).is_some() {
        return Ok(false);
    }
    let mut socket = standard_input().map_err(UpgradeError::Talk)?;
    // Not waited for: this process ends before it.
    let new = Command::new(program().map_err(UpgradeError::Spawn)?)
        .args(std::env::args_os().skip(1))
        .env(ADOPTED, "1")
        .spawn()
        .map_err(UpgradeError::Spawn)?;
    writeln!(socket, "{}", new.id()).map_err(UpgradeError::Talk)?;
    Ok(true)
}

/// Starts a new process, passes lock and sockets on and waits until it serves. Returns its process id. Blocks.
pub(super) fn hand_over(
    lock: Option<&File>,
    listeners: &[(&'static str, TcpListener)],
) -> Result<u32, UpgradeError> {
    let mut files: Vec<(&str, BorrowedFd<'_>)> =
        lock.iter().map(|lock| (LOCK, lock.as_fd())).collect();
    files.extend(
        listeners
            .iter()
            .map(|(name, listener)| (*name, listener.as_fd())),
    );
    let (ours, theirs) = UnixStream::pair().map_err(UpgradeError::Talk)?;
    let mut first = Command::new(program().map_err(UpgradeError::Spawn)?)
        .args(std::env::args_os().skip(1))
        .env(MARK, std::process::id().to_string())
        .env_remove(ADOPTED)
        .env_remove(WATCHDOG_PID)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .map_err(UpgradeError::Spawn)?;
    let mut new = None;
    // What does not fit is bound anew beside the others.
    let outcome = send(&ours, &files)
        .map_err(UpgradeError::Talk)
        .and_then(|_| wait(&ours, &mut new));
    if outcome.is_err() {
        // Two edges with one state folder must not be.
        let _ = first.kill();
        if let Some(new) = new {
            let _ = kill_process(new, Signal::KILL);
        }
        // Its end of the socket lives as long as it does.
        let _ = io::copy(&mut &ours, &mut io::sink());
    }
    let _ = first.wait();
    outcome
}

/// The path, not the open file: an upgrade is a new file under the old name.
fn program() -> io::Result<PathBuf> {
    let named = std::env::args_os().next().map(PathBuf::from);
    match named.filter(|path| path.components().count() > 1) {
        Some(path) => Ok(path),
        None => std::env::current_exe(),
    }
}

fn standard_input() -> io::Result<UnixStream> {
    Ok(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?))
}

/// Waits until the new process serves; `new` is which it is, as soon as that is known.
fn wait(socket: &UnixStream, new: &mut Option<Pid>) -> Result<u32, UpgradeError> {
    socket
        .set_read_timeout(Some(PATIENCE))
        .map_err(UpgradeError::Talk)?;
    let mut lines = BufReader::new(socket);
    let pid: i32 = line(&mut lines)?.parse().map_err(|_| UpgradeError::Ended)?;
    *new = Pid::from_raw(pid);
    match (&*line(&mut lines)?, u32::try_from(pid)) {
        (READY, Ok(pid)) => Ok(pid),
        _ => Err(UpgradeError::Ended),
    }
}

fn line(lines: &mut impl BufRead) -> Result<String, UpgradeError> {
    let mut line = String::new();
    let read = lines.take(LONGEST_LINE).read_line(&mut line);
    read.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionReset => UpgradeError::Ended,
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => UpgradeError::Late,
        _ => UpgradeError::Talk(error),
    })?;
    line.strip_suffix('\n')
        .map(str::to_owned)
        .ok_or(UpgradeError::Ended)
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
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut new = None;
        theirs.write_all(b"4711\n").unwrap();
        drop(theirs);
        assert!(matches!(wait(&ours, &mut new), Err(UpgradeError::Ended)));
        // Known, so that it can be ended.
        assert_eq!(new, Pid::from_raw(4711));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"4711\nready\n").unwrap();
        assert_eq!(wait(&ours, &mut new).unwrap(), 4711);
    }
}
