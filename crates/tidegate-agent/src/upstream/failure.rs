//! What fails at the agent, and the answer that tells the edge so. The edge makes a page of its own of it.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use tidegate_telemetry::chain;
use tidegate_tunnel::handshake;

use super::body::AnswerBody;
use crate::dial::tcp::TcpError;

/// Longest text of an answer, in bytes.
const LONGEST: usize = 1024;

/// Why a target did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The edge asks for a mapping that it has not told of.
    UnknownMapping,
    /// The request does not fit the mapping.
    BadRequest,
    /// `allowTargets` does not name where the target is.
    TargetNotAllowed,
    /// The target's name has no address.
    NameNotResolved,
    /// The target refuses connections.
    ConnectFailed,
    /// The target does not answer.
    ConnectTimeout,
    /// The target's certificate is not right, or it speaks no TLS.
    TlsFailed,
    /// The target's answer is none.
    BadResponse,
    /// The target should have switched protocols and did not.
    UpgradeRefused,
    /// The target takes too long.
    ResponseTimeout,
}

impl Reason {
    /// As it stands in the answer.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::UnknownMapping => "UnknownMapping",
            Self::BadRequest => "BadRequest",
            Self::TargetNotAllowed => "TargetNotAllowed",
            Self::NameNotResolved => "NameNotResolved",
            Self::ConnectFailed => "ConnectFailed",
            Self::ConnectTimeout => "ConnectTimeout",
            Self::TlsFailed => "TlsFailed",
            Self::BadResponse => "BadResponse",
            Self::UpgradeRefused => "UpgradeRefused",
            Self::ResponseTimeout => "ResponseTimeout",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::UnknownMapping => StatusCode::SERVICE_UNAVAILABLE,
            Self::ConnectTimeout | Self::ResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        }
    }
}

/// A reason and what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { reason, message }
    }

    /// With everything that caused it.
    pub(crate) fn of(reason: Reason, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(reason, chain(error).to_string())
    }

    /// What the edge gets.
    pub(crate) fn response(&self) -> Response<AnswerBody> {
        let mut text = self.message.clone();
        text.truncate(text.floor_char_boundary(LONGEST));
        let mut response = Response::new(AnswerBody::text(Bytes::from(text)));
        *response.status_mut() = self.reason.status();
        let headers = response.headers_mut();
        headers.insert(
            handshake::ERROR,
            HeaderValue::from_static(self.reason.name()),
        );
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, plain);
        response
    }
}

impl From<TcpError> for Failure {
    fn from(error: TcpError) -> Self {
        let reason = match &error {
            TcpError::Resolve(_) => Reason::NameNotResolved,
            TcpError::NotAllowed => Reason::TargetNotAllowed,
            TcpError::Connect(..) => Reason::ConnectFailed,
        };
        Self::of(reason, &error)
    }
}
