//! Why a request could not be served, and what that means for the client, the log and a retry.

use std::time::Duration;

use http::StatusCode;
use tidegate_http1::Http1Error;

/// Failure of a request after it was routed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    #[error("find an address of {cluster}: {detail}")]
    Resolve { cluster: String, detail: String },
    #[error("{cluster} already has its {limit} requests in flight")]
    CircuitOpen { cluster: String, limit: u32 },
    #[error("connect to {endpoint}")]
    Connect {
        endpoint: String,
        #[source]
        source: std::io::Error,
    },
    #[error("connect to {endpoint} within {limit:?}")]
    ConnectTimeout { endpoint: String, limit: Duration },
    #[error("agree on HTTP with {endpoint}")]
    Handshake {
        endpoint: String,
        #[source]
        source: hyper::Error,
    },
    #[error("exchange a request with {endpoint}")]
    Exchange {
        endpoint: String,
        #[source]
        source: ExchangeError,
    },
    #[error("get a response head from {endpoint} within {limit:?}")]
    FirstByteTimeout { endpoint: String, limit: Duration },
    #[error("finish the request within {limit:?}")]
    RequestTimeout { limit: Duration },
    #[error("use the response of {endpoint}: {detail}")]
    BadResponse {
        endpoint: String,
        detail: &'static str,
    },
    #[error("read the request body: it is longer than {limit} bytes")]
    BodyTooLarge { limit: u64 },
    #[error("read the request body: nothing came for {limit:?}")]
    BodyTimeout { limit: Duration },
    #[error("read the request body: the client broke off")]
    BodyAborted,
    #[error("find a link to agent {agent}: it is not connected")]
    AgentNotConnected {
        agent: String,
        retry_after: Duration,
    },
    #[error("use the link {endpoint}: too many of its visitors do not read")]
    LinkBusy { endpoint: String },
    #[error("use the link {endpoint}: {detail}")]
    LinkLost { endpoint: String, detail: String },
    #[error("exchange a request over the link {endpoint}: {detail}")]
    LinkBroke { endpoint: String, detail: String },
    #[error("get an answer from the agent at {endpoint}: {detail}")]
    Agent {
        endpoint: String,
        failure: AgentFailure,
        detail: String,
    },
    #[error("set up TLS to {endpoint}")]
    UpstreamTls {
        endpoint: String,
        #[source]
        source: rustls::Error,
    },
}

/// What an agent failed of, as it says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AgentFailure {
    /// The agent has, or takes, no such mapping.
    UnknownMapping,
    ConnectFailed,
    ConnectTimeout,
    TlsFailed,
    BadResponse,
    /// Something that later agents say, with their status.
    Other(StatusCode),
}

impl AgentFailure {
    pub(crate) fn parse(word: &[u8], status: StatusCode) -> Self {
        match word {
            b"UnknownMapping" => Self::UnknownMapping,
            b"ConnectFailed" => Self::ConnectFailed,
            b"ConnectTimeout" => Self::ConnectTimeout,
            b"TlsFailed" => Self::TlsFailed,
            b"BadResponse" => Self::BadResponse,
            _ => Self::Other(status),
        }
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::UnknownMapping => "AgentUnknownMapping",
            Self::ConnectFailed => "AgentConnectFailed",
            Self::ConnectTimeout => "AgentConnectTimeout",
            Self::TlsFailed => "AgentTlsFailed",
            Self::BadResponse => "AgentBadResponse",
            Self::Other(_) => "AgentFailed",
        }
    }

    const fn status(self) -> StatusCode {
        match self {
            Self::UnknownMapping | Self::Other(StatusCode::SERVICE_UNAVAILABLE) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::ConnectTimeout | Self::Other(StatusCode::GATEWAY_TIMEOUT) => {
                StatusCode::GATEWAY_TIMEOUT
            }
            _ => StatusCode::BAD_GATEWAY,
        }
    }

    /// Whether the service did not come so far as to read a request.
    const fn nothing_sent(self) -> bool {
        matches!(
            self,
            Self::UnknownMapping | Self::ConnectFailed | Self::ConnectTimeout | Self::TlsFailed
        )
    }

    /// Whether another instance of the agent may do better.
    pub(crate) const fn blames_target(self) -> bool {
        matches!(
            self,
            Self::ConnectFailed | Self::ConnectTimeout | Self::TlsFailed
        )
    }
}

/// What an exchange failed of, by protocol.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error(transparent)]
    Http1(#[from] Http1Error),
    #[error(transparent)]
    Http2(#[from] hyper::Error),
}

impl ExchangeError {
    /// Whether the client's body failed, and not the backend. hyper does not tell.
    pub(crate) const fn is_of_request_body(&self) -> bool {
        matches!(self, Self::Http1(Http1Error::RequestBody(_)))
    }
}

impl ProxyError {
    /// Metric label and reason in the log.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "BackendUnresolved",
            Self::CircuitOpen { .. } => "CircuitOpen",
            Self::Connect { .. } => "ConnectFailed",
            Self::ConnectTimeout { .. } => "ConnectTimeout",
            Self::Handshake { .. } => "UpstreamHandshakeFailed",
            Self::Exchange { .. } => "UpstreamClosed",
            Self::FirstByteTimeout { .. } => "FirstByteTimeout",
            Self::RequestTimeout { .. } => "RequestTimeout",
            Self::BadResponse { .. } => "BadUpstreamResponse",
            Self::BodyTooLarge { .. } => "BodyTooLarge",
            Self::BodyTimeout { .. } => "BodyTimeout",
            Self::BodyAborted => "BodyAborted",
            Self::UpstreamTls { .. } => "UpstreamTls",
            Self::AgentNotConnected { .. } => "AgentNotConnected",
            Self::LinkBusy { .. } => "AgentLinkBusy",
            Self::LinkLost { .. } | Self::LinkBroke { .. } => "AgentLinkLost",
            Self::Agent { failure, .. } => failure.reason(),
        }
    }

    /// What the client is told.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Resolve { .. }
            | Self::CircuitOpen { .. }
            | Self::AgentNotConnected { .. }
            | Self::LinkBusy { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Agent { failure, .. } => failure.status(),
            Self::Connect { .. }
            | Self::Handshake { .. }
            | Self::Exchange { .. }
            | Self::BadResponse { .. }
            | Self::LinkLost { .. }
            | Self::LinkBroke { .. }
            | Self::UpstreamTls { .. } => StatusCode::BAD_GATEWAY,
            Self::ConnectTimeout { .. }
            | Self::FirstByteTimeout { .. }
            | Self::RequestTimeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::BodyAborted => StatusCode::BAD_REQUEST,
        }
    }

    /// Whether the client may still be sending, so that an HTTP/1 connection cannot be used again.
    pub(crate) fn leaves_body_unread(&self) -> bool {
        matches!(
            self,
            Self::BodyTooLarge { .. } | Self::BodyTimeout { .. } | Self::BodyAborted
        )
    }

    /// When it may be better, where that can be said.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::AgentNotConnected { retry_after, .. } => Some(*retry_after),
            Self::LinkBusy { .. } => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// Whether nothing of the request can have reached a backend.
    pub(crate) fn nothing_sent(&self) -> bool {
        matches!(
            self,
            Self::Resolve { .. }
                | Self::Connect { .. }
                | Self::ConnectTimeout { .. }
                | Self::Handshake { .. }
                | Self::AgentNotConnected { .. }
                | Self::LinkBusy { .. }
                | Self::LinkLost { .. }
        ) || matches!(self, Self::Agent { failure, .. } if failure.nothing_sent())
    }

    /// Whether the failure speaks against the endpoint (and not against the client).
    pub(crate) fn blames_endpoint(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. }
                | Self::ConnectTimeout { .. }
                | Self::Handshake { .. }
                | Self::Exchange { .. }
                | Self::FirstByteTimeout { .. }
        )
    }
}
