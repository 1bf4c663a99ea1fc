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
    /// `status`, `mapping`, `agent` or `request`.
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
    /// A link of an agent came or went: an entry of the log of connections. Needs the scope `logs:read`.
    Agent,
    /// A request was answered: an entry of the log of requests. Needs the scope `logs:read`.
    Request,
}

impl EventKind {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Mapping => "mapping",
            Self::Agent => "agent",
            Self::Request => "request",
        }
    }
}

/// A link of an agent that came or went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// RFC 3339.
    pub time: String,
    /// Namespace of the agent.
    pub namespace: String,
    /// Name of the agent.
    pub agent: String,
    /// `connected` or `disconnected`.
    pub event: String,
    /// Identity of the session.
    pub session: String,
    /// Identity of the agent's process.
    pub instance: String,
    /// `Direct` or `WebSocket`.
    pub carrier: String,
    /// Where it comes from.
    pub address: String,
    /// Version of the agent's program.
    pub version: String,
    /// Which of the process' links.
    pub link: u8,
    /// Why it ended, for one that went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Requests that it carried, for one that went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Seconds that it lived, for one that went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<u64>,
}

/// Where objects stand and are changed.
#[async_trait]
pub trait Desk: fmt::Debug + Send + Sync + 'static {
    /// Every agent.
    async fn agents(&self) -> Result<Vec<AgentRecord>, Problem>;

    /// Changes a mapping of an agent where it stands.
    async fn change(&self, agent: &ObjectName, change: &Change) -> Result<(), Problem>;
}

/// What happens at the edge, wherever its objects stand.
pub trait Edge: fmt::Debug + Send + Sync + 'static {
    /// Makes an agent connect anew; how many links were told.
    fn reconnect(&self, agent: &ObjectName) -> Result<usize, Problem>;

    /// The log of connections, the newest last.
    fn connections(&self) -> Vec<Connection>;

    /// The log of requests, the newest last; None where none is kept.
    fn requests(&self) -> Option<Vec<Json>>;

    /// What happens from now on.
    fn subscribe(&self) -> broadcast::Receiver<Event>;

    /// Tells whoever listens.
    fn tell(&self, event: Event);
}
