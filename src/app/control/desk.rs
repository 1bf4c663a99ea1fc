//! A question of a command and its answer, apart from how they travel.

use async_trait::async_trait;
use http::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::messages::Refusal;

/// Who answers commands.
#[async_trait]
pub(in super::super) trait Desk: Send + Sync {
    /// Answers; a refusal is an answer too.
    async fn answer(&self, question: Question) -> Reply;
}

/// What a command asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Question {
    pub(in super::super) method: Method,
    pub(in super::super) path: String,
    /// JSON; empty if there is nothing to say.
    pub(in super::super) body: Vec<u8>,
}

impl Question {
    /// The body as what it must be.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Reply> {
        serde_json::from_slice(&self.body).map_err(|error| {
            refuse(
                StatusCode::BAD_REQUEST,
                "BadRequest",
                format!("the body cannot be understood: {error}"),
            )
        })
    }
}

/// What it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Reply {
    pub(in super::super) status: StatusCode,
    /// JSON.
    pub(in super::super) body: Vec<u8>,
}

/// Done, or refused.
pub(in super::super) type Answer = Result<Reply, Reply>;

/// Something was refused.
pub(in super::super) fn refuse(
    status: StatusCode,
    reason: &str,
    message: impl Into<String>,
) -> Reply {
    let refusal = Refusal {
        id: None,
        reason: reason.to_owned(),
        message: message.into(),
    };
    json(status, &refusal)
}

/// It was done, with this outcome.
pub(in super::super) fn answered<T: Serialize>(value: &T) -> Reply {
    json(StatusCode::OK, value)
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Reply {
    match serde_json::to_vec(value) {
        Ok(body) => Reply { status, body },
        Err(_) => Reply {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            body: b"{}".to_vec(),
        },
    }
}
