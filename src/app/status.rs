//! `tidegate status` and `tidegate ready`: what the running edge says, or what the last one wrote down.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::control;
use super::publish::STATUS_FILE;
use crate::admin::{ControlView, StatusView};
use crate::source::state::{StateError, StateFolder};

/// Name of the socket in the state folder at which an operator answers as on its admin port.
pub(super) const ADMIN_SOCKET: &str = "admin.sock";
const PATIENCE: Duration = Duration::from_secs(5);
const STATUS: &str = "/api/v1/status";
const READINESS: &str = "/readyz";

/// What is known about the edge of a state folder.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// Whether a process holds the state folder.
    pub running: bool,
    /// What it says, or last wrote down.
    #[serde(flatten)]
    pub last: ControlView,
}

/// Why nothing is known.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The file cannot be read.
    #[error("read the status")]
    Read(#[from] StateError),
    /// No edge ever used the folder.
    #[error(
        "find an edge that uses the state folder {0}: start one with `tidegate run`, or say where its state is with --state-dir"
    )]
    None(String),
    /// The file is damaged.
    #[error(
        "read the status in {0}: the file is damaged; it is written again by the next `tidegate run`"
    )]
    Damaged(String),
}

/// Finds out.
pub fn status(state: &Path) -> Result<Found, StatusError> {
    let folder = StateFolder::peek(state);
    let text = folder
        .read(STATUS_FILE)?
        .ok_or_else(|| StatusError::None(state.display().to_string()))?;
    let last: ControlView = serde_json::from_str(&text)
        .map_err(|_| StatusError::Damaged(state.join(STATUS_FILE).display().to_string()))?;
    if let Ok(view) = asked(state, &last, STATUS).and_then(|(_, body)| {
        serde_json::from_str::<StatusView>(&body).map_err(io::Error::other)
    })
        // Another edge may have the port by now.
        && view.control.pid == last.pid
    {
        return Ok(Found {
            running: true,
            last: view.control,
        });
    }
    Ok(Found {
        running: folder.is_held(),
        last,
    })
}

/// Why the edge of a state folder is not to be sent traffic to; None when it is.
pub fn why_not_ready(state: &Path) -> Result<Option<String>, StatusError> {
    let last = StateFolder::peek(state)
        .read(STATUS_FILE)?
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    Ok(match asked(state, &last, READINESS) {
        Ok((true, _)) => None,
        Ok((false, reason)) => Some(reason.trim_end().to_owned()),
        Err(error) => Some(format!("no edge answers: {error}")),
    })
}

/// The answer of the process that holds the folder: whether it is 200, and its body. The admin port is the second
/// choice, because processes in other containers may have it too.
fn asked(state: &Path, last: &ControlView, path: &str) -> io::Result<(bool, String)> {
    let here = control::reachable(state, ADMIN_SOCKET)
        .and_then(|(path, _folder)| UnixStream::connect(path));
    if let Ok(stream) = here {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        return get(stream, "localhost", path);
    }
    let admin = last.admin.as_ref().ok_or(io::ErrorKind::NotFound)?;
    let mut address: SocketAddr = admin.parse().map_err(io::Error::other)?;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    get(stream, &address.to_string(), path)
}

fn get(mut stream: impl Read + Write, host: &str, path: &str) -> io::Result<(bool, String)> {
    // HTTP/1.0 ends the body by closing: nothing to parse but the head.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok((head.contains(" 200 "), body.to_owned()))
}
