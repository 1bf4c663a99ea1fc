//! Agents, and what they did.

#![allow(unused_qualifications, reason = "utoipa's macros write whole paths")]

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidegate_model::ObjectName;
use utoipa::{IntoParams, ToSchema};

use super::Rest;
use super::accounts::Scope;
use super::desk::{AgentRecord, Connection};
use super::guard::Caller;
use super::problem::Problem;

/// Most entries of a log in one answer.
const MOST: usize = 1000;

/// An agent.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct AgentView {
    /// Namespace.
    namespace: String,
    /// Name.
    name: String,
    /// The object's `spec`. Names the Secret of the credential; holds none.
    #[schema(value_type = Object)]
    spec: Value,
    /// The object's `status`: conditions, sessions with their links.
    #[schema(value_type = Object)]
    status: Value,
    /// The file that it stands in.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// Why it cannot be changed here.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_only: Option<String>,
}

/// How many links were told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Reconnected {
    /// Links that end as soon as others stand in for them.
    links: usize,
}

/// Which entries of a log are shown.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Entries {
    /// How many of the newest; at most 1000. Default: 100.
    limit: Option<usize>,
    /// Only those whose `host` is this.
    host: Option<String>,
}

/// Which entries of the log of connections are shown.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Links {
    /// How many of the newest; at most 1000. Default: 100.
    limit: Option<usize>,
    /// Only those of agents of this name.
    agent: Option<String>,
}

fn bounded(limit: Option<usize>) -> usize {
    limit.unwrap_or(100).min(MOST)
}

/// List agents
#[utoipa::path(
    get, path = "/agents", tag = "agents",
    responses((status = 200, body = Vec<AgentView>), (status = 401, body = Problem))
)]
pub(super) async fn list(
    State(rest): State<Arc<Rest>>,
    caller: Caller,
) -> Result<Json<Vec<AgentView>>, Problem> {
    caller.needs(Scope::Read)?;
    let agents = rest.desk.agents().await?;
    Ok(Json(agents.into_iter().map(view).collect()))
}

/// Get an agent
#[utoipa::path(
    get, path = "/agents/{namespace}/{name}", tag = "agents",
    params(("namespace" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = AgentView), (status = 404, body = Problem))
)]
pub(super) async fn get(
    State(rest): State<Arc<Rest>>,
    caller: Caller,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<AgentView>, Problem> {
    caller.needs(Scope::Read)?;
    let wanted = ObjectName::new(namespace, name);
    let mut agents = rest.desk.agents().await?.into_iter();
    let found = agents.find(|agent| agent.name == wanted);
    found
        .map(|agent| Json(view(agent)))
        .ok_or_else(|| Problem::not_found("such agent"))
}

/// Make an agent connect anew
///
/// Each link is replaced before it ends: requests are not lost.
#[utoipa::path(
    post, path = "/agents/{namespace}/{name}/reconnect", tag = "agents",
    params(("namespace" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = Reconnected), (status = 404, body = Problem))
)]
pub(super) async fn reconnect(
    State(rest): State<Arc<Rest>>,
    caller: Caller,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Reconnected>, Problem> {
    caller.needs(Scope::AgentsWrite)?;
    let agent = ObjectName::new(namespace, name);
    let links = rest.edge.reconnect(&agent)?;
    tracing::info!(user = caller.name, %agent, links, "agent told to connect anew");
    Ok(Json(Reconnected { links }))
}

/// The log of connections
///
/// Links of agents that came and went, the newest last.
#[utoipa::path(
    get, path = "/connections", tag = "agents", params(Links),
    responses((status = 200, body = Vec<Connection>), (status = 403, body = Problem))
)]
pub(super) async fn connections(
    State(rest): State<Arc<Rest>>,
    caller: Caller,
    Query(links): Query<Links>,
) -> Result<Json<Vec<Connection>>, Problem> {
    caller.needs(Scope::LogsRead)?;
    let mut all = rest.edge.connections();
    if let Some(agent) = &links.agent {
        all.retain(|entry| entry.agent == *agent);
    }
    all.drain(..all.len().saturating_sub(bounded(links.limit)));
    Ok(Json(all))
}

/// The log of requests
///
/// The newest requests of this edge, as its access log has them, the newest last. Kept in memory only.
#[utoipa::path(
    get, path = "/requests", tag = "logs", params(Entries),
    responses((status = 200, body = Vec<Object>), (status = 403, body = Problem), (status = 404, description = "`NotKept`", body = Problem))
)]
pub(super) async fn requests(
    State(rest): State<Arc<Rest>>,
    caller: Caller,
    Query(entries): Query<Entries>,
) -> Result<Json<Vec<Value>>, Problem> {
    caller.needs(Scope::LogsRead)?;
    let not_kept = || {
        let detail = "no log of requests is kept: the access log is off";
        Problem::new(StatusCode::NOT_FOUND, "NotKept", detail)
    };
    let mut all = rest.edge.requests().ok_or_else(not_kept)?;
    if let Some(host) = &entries.host {
        all.retain(|entry| entry["host"] == **host);
    }
    all.drain(..all.len().saturating_sub(bounded(entries.limit)));
    Ok(Json(all))
}

fn view(agent: AgentRecord) -> AgentView {
    AgentView {
        namespace: agent.name.namespace.to_string(),
        name: agent.name.name.to_string(),
        spec: agent.spec,
        status: agent.status,
        file: agent.file,
        read_only: agent.read_only,
    }
}
