//! `tidegate status`: what the running edge says, or what the last one wrote down.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::publish::STATUS_FILE;
use crate::admin::{ControlView, StatusView};
use crate::source::state::{StateError, StateFolder};

const PATIENCE: Duration = Duration::from_secs(5);

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
    if let Some(view) = last.admin.as_ref().and_then(|admin| ask(admin).ok())
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

fn ask(admin: &str) -> io::Result<StatusView> {
    let mut address: SocketAddr = admin.parse().map_err(io::Error::other)?;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // HTTP/1.0 ends the body by closing: nothing to parse but the head.
    write!(
        stream,
        "GET /api/v1/status HTTP/1.0\r\nHost: {address}\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(io::ErrorKind::InvalidData)?;
    if !head.contains(" 200 ") {
        return Err(io::ErrorKind::InvalidData.into());
    }
    serde_json::from_str(body).map_err(io::Error::other)
}
