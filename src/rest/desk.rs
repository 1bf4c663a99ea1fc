//! What the API asks of the edge it is served by. `app` answers, differently for a folder and for a cluster.

use std::fmt;

use async_trait::async_trait;
use serde::Serialize;
use serde_json::Value as Json;
use tidegate_model::ObjectName;
use tokio::sync::broadcast;
use utoipa::ToSchema;

use super::change::Change;
use super::problem::Problem;

/// A TunnelAgent as it stands where it comes from.
#[derive(Debug, Clone)]
pub struct AgentRecord {
    /// Namespace and name.
    pub name: ObjectName,
    /// What its `spec` says, defaults not filled in.
    pub spec: Json,
    /// What its `status` says; null before there is one.
    pub status: Json,
    /// Where it stands: a file of the folder.
    pub file: Option<String>,
    /// Why it cannot be changed here.
    pub read_only: Option<String>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// `status`, `mapping` or `request`.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// What, depending on the type.
    #[schema(value_type = Object)]
    pub data: Json,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum EventKind {
    /// The edge published another configuration, or its findings changed: `{revision}`.
    Status,
    /// A mapping was created, changed or deleted by the API: `{namespace, agent, name, change, by}`.
    Mapping,
    /// A request was answered: an entry of the log of requests. Needs the scope `logs:read`.
    Request,
}

impl EventKind {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Mapping => "mapping",
            Self::Request => "request",
        }
    }
}

/// The edge.
#[async_trait]
pub trait Desk: fmt::Debug + Send + Sync + 'static {
    /// Every agent.
    async fn agents(&self) -> Result<Vec<AgentRecord>, Problem>;

    /// Changes a mapping of an agent where it stands.
    async fn change(&self, agent: &ObjectName, change: &Change) -> Result<(), Problem>;

    /// The log of requests, the newest last; None where none is kept.
    fn requests(&self) -> Option<Vec<Json>>;

    /// What happens from now on.
    fn subscribe(&self) -> broadcast::Receiver<Event>;

    /// Tells whoever listens.
    fn tell(&self, event: Event);
}
