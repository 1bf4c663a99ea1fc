//! The command's side of the control socket.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::doctor::Examined;
use super::messages::{
    Certificate, Done, Preflight, Refusal, Renew, Revoke, Rollback, TestNotice, TestedNotice,
};
use super::orders::BUSY;
use crate::source::state::StateFolder;

/// Longer than an edge lets a command wait.
const PATIENCE: Duration = BUSY.saturating_add(Duration::from_secs(10));
/// More than any answer has.
const LONGEST_ANSWER: u64 = 64 * 1024 * 1024;

/// A running edge.
#[derive(Debug)]
pub struct Control {
    state: PathBuf,
}

/// Why an edge could not be asked, or what it refused.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody holds the state folder.
    #[error(
        "ask the edge: none runs on the state folder {0:?}; start it with `tidegate run`, or say where its state is with --state-dir"
    )]
    NotRunning(PathBuf),
    /// An edge runs and cannot be reached.
    #[error(
        "ask the edge of the state folder {path:?}: {source}; it may be starting or ending, or be of an older release"
    )]
    Unreachable {
        /// The state folder.
        path: PathBuf,
        /// What the system said; part of the text.
        source: io::Error,
    },
    /// The caller may not.
    #[error(
        "open the state folder {0:?}: this user may not; use the user that the edge runs as, or sudo"
    )]
    Forbidden(PathBuf),
    /// The edge refused.
    #[error("{action}: {}", refusal.message)]
    Refused {
        /// What was asked.
        action: &'static str,
        /// Its answer.
        refusal: Refusal,
    },
    /// The edge answered something else.
    #[error("understand the edge's answer")]
    Answer(#[source] serde_json::Error),
}

impl Control {
    /// The edge of a state folder; nothing is asked yet.
    pub fn of(state: &Path) -> Self {
        Self {
            state: state.to_owned(),
        }
    }

    /// Renews one certificate or all.
    pub fn renew(&self, asked: &Renew) -> Result<Done, ControlError> {
        self.ask("renew", "POST", "/v1/renew", Some(asked))
    }

    /// Serves the certificate of before again.
    pub fn roll_back(&self, asked: &Rollback) -> Result<Done, ControlError> {
        self.ask("roll back", "POST", "/v1/rollback", Some(asked))
    }

    /// Revokes a certificate.
    pub fn revoke(&self, asked: &Revoke) -> Result<Done, ControlError> {
        self.ask("revoke", "POST", "/v1/revoke", Some(asked))
    }

    /// Looks at everything that an order of a certificate depends on.
    pub fn preflight(&self, asked: &Preflight) -> Result<Examined, ControlError> {
        self.ask("look", "POST", "/v1/preflight", Some(asked))
    }

    /// Sends a test notice.
    pub fn test_notice(&self, asked: &TestNotice) -> Result<TestedNotice, ControlError> {
        let action = "send a test notice";
        self.ask(action, "POST", "/v1/notices/test", Some(asked))
    }

    /// What goes on with each certificate.
    pub fn certificates(&self) -> Result<Vec<Certificate>, ControlError> {
        self.ask::<(), _>("list the certificates", "GET", "/v1/certificates", None)
    }

    fn ask<B: Serialize, T: DeserializeOwned>(
        &self,
        action: &'static str,
        method: &str,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ControlError> {
        let body = body
            .map(serde_json::to_string)
            .transpose()
            .map_err(ControlError::Answer)?
            .unwrap_or_default();
        let (status, text) = self
            .exchange(method, path, &body)
            .map_err(|error| self.unreachable(error))?;
        if status == 200 {
            return serde_json::from_str(&text).map_err(ControlError::Answer);
        }
        let refusal = serde_json::from_str(&text).map_err(ControlError::Answer)?;
        Err(ControlError::Refused { action, refusal })
    }

    fn exchange(&self, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
        let (reachable, _folder) = super::reachable(&self.state, super::SOCKET)?;
        let mut stream = UnixStream::connect(reachable)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: tidegate\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.take(LONGEST_ANSWER).read_to_string(&mut answer)?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        Ok((status, body.to_owned()))
    }

    fn unreachable(&self, error: io::Error) -> ControlError {
        let path = self.state.clone();
        if error.kind() == io::ErrorKind::PermissionDenied {
            ControlError::Forbidden(path)
        } else if StateFolder::peek(&self.state).is_held() {
            ControlError::Unreachable {
                path,
                source: error,
            }
        } else {
            ControlError::NotRunning(path)
        }
    }
}
