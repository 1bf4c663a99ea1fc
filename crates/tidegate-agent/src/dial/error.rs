//! Why an edge was not reached, in words that say what to do.

use std::io;
use std::time::Duration;

use http::StatusCode;
use tidegate_tunnel::handshake::AnswerError;
use tidegate_tunnel::link::LinkError;

use super::proxy::ProxyError;
use super::tcp::TcpError;
use crate::reconnect::Ending;

/// Why a dial did not become a link.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The token cannot be read; the text says where it should be.
    #[error("{0}")]
    Token(String),
    /// The edge's name has no address.
    #[error("resolve {0}")]
    Resolve(String, #[source] io::Error),
    /// The edge does not answer.
    #[error("reach the edge")]
    Connect(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The proxy does not lead to the edge.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// TLS with the edge, or with whoever pretends to be the edge.
    #[error("do TLS with the edge")]
    Tls(#[source] io::Error),
    /// TLS is there, and the other end does not know links.
    #[error(
        "the other end does not know the protocol {}: something in between opens TLS, or an edge that knows no agents",
        String::from_utf8_lossy(tidegate_tunnel::handshake::ALPN)
    )]
    NotDirect,
    /// HTTP broke during the handshake.
    #[error("speak HTTP with the edge")]
    Http(#[source] hyper::Error),
    /// The request cannot be written; the configuration should have seen to that.
    #[error("write the handshake")]
    Request(#[source] http::Error),
    /// The edge answers and refuses.
    #[error("the edge refuses with {} {reason}{}", status.as_u16(), said(message))]
    Refused {
        /// Status of the answer.
        status: StatusCode,
        /// One word.
        reason: String,
        /// For people.
        message: String,
        /// When to come again.
        retry_after: Option<Duration>,
    },
    /// Somebody else than an edge answers.
    #[error("no edge of agents answers there")]
    Answer(#[source] AnswerError),
    /// The link ended before the edge's Welcome.
    #[error("start the link")]
    Link(#[source] LinkError),
    /// The link ended before the edge's Welcome, with a goodbye.
    #[error("the edge says {0}")]
    Bye(String, Ending),
    /// Time is over; what was being done.
    #[error("{what} takes longer than {seconds} s", what = .0, seconds = .1.as_secs())]
    Timeout(&'static str, Duration),
    /// Another carrier was faster.
    #[error("the other carrier was faster")]
    Late,
}

fn said(message: &str) -> String {
    match message {
        "" => String::new(),
        words => format!(": {words}"),
    }
}

impl From<TcpError> for DialError {
    fn from(error: TcpError) -> Self {
        match error {
            TcpError::Resolve(source) => Self::Resolve("the edge's name".to_owned(), source),
            other => Self::Connect(other.into()),
        }
    }
}

impl DialError {
    /// One word for logs and statuses.
    pub fn reason(&self) -> &str {
        match self {
            Self::Token(_) => "TokenUnreadable",
            Self::Resolve(..) => "NameNotResolved",
            Self::Connect(_) => "EdgeUnreachable",
            Self::Proxy(_) => "ProxyFailed",
            Self::Tls(_) => "TlsFailed",
            Self::NotDirect => "NotDirect",
            Self::Http(_) | Self::Request(_) => "HandshakeFailed",
            Self::Refused { reason, .. } | Self::Bye(reason, _) => reason,
            Self::Answer(_) => "NotAnEdge",
            Self::Link(error) => error.reason(),
            Self::Timeout(..) => "Timeout",
            Self::Late => "Late",
        }
    }

    /// What it means for the next try.
    pub fn ending(&self) -> Ending {
        match self {
            Self::Refused {
                status,
                retry_after,
                ..
            } => match *status {
                StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::UPGRADE_REQUIRED
                | StatusCode::NOT_FOUND => Ending::Refused,
                _ => Ending::Busy(*retry_after),
            },
            Self::Bye(_, ending) => *ending,
            _ => Ending::Network,
        }
    }

    /// Whether the edge itself has decided, so that another carrier would get the same answer.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Token(_) | Self::Bye(..))
    }
}
