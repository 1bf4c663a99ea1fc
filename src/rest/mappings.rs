//! Mappings: hostnames of agents and where these send them.

#![allow(unused_qualifications, reason = "utoipa's macros write whole paths")]

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tidegate_model::ObjectName;
use utoipa::{IntoParams, ToSchema};

use super::accounts::Scope;
use super::change::{self, Change, What};
use super::desk::{AgentRecord, Event, EventKind};
use super::guard::Caller;
use super::problem::Problem;
use super::{Given, Rest};

/// A mapping with its place.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct MappingView {
    /// Namespace of the agent.
    namespace: String,
    /// Name of the agent.
    agent: String,
    /// Changes with every change; also the `ETag`, to be sent in `If-Match`.
    revision: String,
    /// Whether it is served, as far as its own switch goes.
    enabled: bool,
    /// Whether the agent is connected; absent while that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    connected: Option<bool>,
    /// The file that it stands in.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// Why it cannot be changed here.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_only: Option<String>,
    /// Its entry in the object: `name`, `hostname` or `port`, `target` and so on.
    #[serde(flatten)]
    #[schema(value_type = MappingEntry)]
    entry: Map<String, Value>,
}

/// The entry of a mapping; its schema is that of the TunnelAgent.
#[derive(ToSchema)]
#[allow(
    dead_code,
    reason = "stands for the schema of the object in the description"
)]
pub(super) struct MappingEntry {}

/// Whether a mapping is served.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Enabled {
    enabled: bool,
}

/// Which mappings are listed.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Only those of agents in this namespace.
    namespace: Option<String>,
    /// Only those of agents of this name.
    agent: Option<String>,
    /// Only those of this hostname.
    hostname: Option<String>,
    /// Only those of this port.
    port: Option<u16>,
}

type Place = Path<(String, String, String)>;

/// List mappings
#[utoipa::path(
    get, path = "/mappings", tag = "mappings", params(Filter),
    responses((status = 200, body = Vec<MappingView>), (status = 401, body = Problem))
)]
pub(super) async fn list(
    State(rest): State<Arc<Rest>>,
    caller: Caller,
    Query(filter): Query<Filter>,
) -> Result<Json<Vec<MappingView>>, Problem> {
    caller.needs(Scope::Read)?;
    let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|it| it == found);
    let agents = rest.desk.agents().await?;
    let mut views: Vec<_> = agents.iter().flat_map(views).collect();
    views.retain(|view| {
        let hostname = view.entry.get("hostname").and_then(Value::as_str);
        is(&filter.namespace, &view.namespace)
            && is(&filter.agent, &view.agent)
            && is(&filter.hostname, hostname.unwrap_or_default())
            && (filter.port).is_none_or(|port| view.entry.get("port") == Some(&json!(port)))
    });
    Ok(Json(views))
}

/// Create a mapping
///
/// The body is an entry of the agent's `spec.mappings`, and `namespace` and `agent` besides.
#[utoipa::path(
    post, path = "/mappings", tag = "mappings",
    request_body(content = MappingEntry, example = json!({"namespace": "default", "agent": "homelab", "name": "nas", "hostname": "nas.home.example.com", "target": "http://192.168.1.10:5000"})),
    responses(
        (status = 201, body = MappingView),
        (status = 404, description = "there is no such agent", body = Problem),
        (status = 409, description = "`AlreadyExists`, `ReadOnly`, `OwnedByOther`", body = Problem),
        (status = 422, description = "`InvalidValue`, field by field", body = Problem),
    )
)]
pub(super) async fn create(
    State(rest): State<Arc<Rest>>,
    caller: Caller,
    Given(mut body): Given<Map<String, Value>>,
) -> Result<Response, Problem> {
    caller.needs(Scope::MappingsWrite)?;
    let namespace = text(&mut body, "namespace")?.unwrap_or_else(|| "default".to_owned());
    let agent = text(&mut body, "agent")?.ok_or_else(|| missing("agent"))?;
    let name = text(&mut body, "name")?.ok_or_else(|| missing("name"))?;
    let place = Path((namespace, agent, name));
    let view = changed(&rest, &caller, &place, What::Create(body), None).await?;
    let location = view.as_ref().map(|view| {
        format!(
            "/api/v1/mappings/{}/{}/{}",
            view.namespace, view.agent, place.2
        )
    });
    let headers = [(header::LOCATION, location.unwrap_or_default())];
    Ok((
        StatusCode::CREATED,
        headers,
        etag(view.as_ref()),
        Json(view),
    )
        .into_response())
}

/// Get a mapping
#[utoipa::path(
    get, path = "/mappings/{namespace}/{agent}/{name}", tag = "mappings",
    params(("namespace" = String, Path), ("agent" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = MappingView), (status = 404, body = Problem))
)]
pub(super) async fn get(
    State(rest): State<Arc<Rest>>,
    caller: Caller,
    place: Place,
) -> Result<Response, Problem> {
    caller.needs(Scope::Read)?;
    let view = find(&rest, &place).await?;
    let view = view.ok_or_else(|| Problem::not_found("such mapping"))?;
    Ok((etag(Some(&view)), Json(view)).into_response())
}

/// Replace a mapping
///
/// With If-Match it is replaced only if it still is what was read.
#[utoipa::path(
    put, path = "/mappings/{namespace}/{agent}/{name}", tag = "mappings", request_body(content = MappingEntry),
    params(("namespace" = String, Path), ("agent" = String, Path), ("name" = String, Path)),
    responses(
        (status = 200, body = MappingView), (status = 404, body = Problem),
        (status = 409, description = "`ReadOnly`, `OwnedByOther`", body = Problem),
        (status = 412, description = "`Changed`", body = Problem),
        (status = 422, description = "`InvalidValue`, field by field", body = Problem),
    )
)]
pub(super) async fn replace(
    State(rest): State<Arc<Rest>>,
    caller: Caller,
    place: Place,
    headers: HeaderMap,
    Given(mut body): Given<Map<String, Value>>,
) -> Result<Response, Problem> {
    caller.needs(Scope::MappingsWrite)?;
    // What GET shows may be sent back as it is.
    for shown in [
        "namespace",
        "agent",
        "revision",
        "connected",
        "file",
        "readOnly",
    ] {
        body.remove(shown);
    }
    if text(&mut body, "name")?.is_some_and(|name| name != place.2) {
        let message = "a mapping keeps its name; delete it and create another one";
        let error = change::field_error(None, "name", "InvalidValue", message, None);
        return Err(Problem::invalid(vec![error]));
    }
    let view = changed(
        &rest,
        &caller,
        &place,
        What::Replace(body),
        if_match(&headers),
    )
    .await?;
    Ok((etag(view.as_ref()), Json(view)).into_response())
}

/// Switch a mapping on or off
#[utoipa::path(
    put, path = "/mappings/{namespace}/{agent}/{name}/enabled", tag = "mappings", request_body = Enabled,
    params(("namespace" = String, Path), ("agent" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = MappingView), (status = 404, body = Problem), (status = 409, body = Problem))
)]
pub(super) async fn enable(
    State(rest): State<Arc<Rest>>,
    caller: Caller,
    place: Place,
    headers: HeaderMap,
    Given(body): Given<Enabled>,
) -> Result<Response, Problem> {
    caller.needs(Scope::MappingsWrite)?;
    let what = What::Enable(body.enabled);
    let view = changed(&rest, &caller, &place, what, if_match(&headers)).await?;
    Ok((etag(view.as_ref()), Json(view)).into_response())
}

/// Delete a mapping
#[utoipa::path(
    delete, path = "/mappings/{namespace}/{agent}/{name}", tag = "mappings",
    params(("namespace" = String, Path), ("agent" = String, Path), ("name" = String, Path)),
    responses((status = 204, description = "deleted"), (status = 404, body = Problem), (status = 409, body = Problem))
)]
pub(super) async fn delete(
    State(rest): State<Arc<Rest>>,
    caller: Caller,
    place: Place,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    caller.needs(Scope::MappingsWrite)?;
    changed(&rest, &caller, &place, What::Delete, if_match(&headers)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn changed(
    rest: &Rest,
    caller: &Caller,
    place: &Place,
    what: What,
    expected: Option<String>,
) -> Result<Option<MappingView>, Problem> {
    let Path((namespace, agent, name)) = place;
    let object = ObjectName::new(namespace.as_str(), agent.as_str());
    let change = Change {
        name: name.clone(),
        what,
        expected,
    };
    rest.desk.change(&object, &change).await?;
    let word = change.what.as_str();
    tracing::info!(user = caller.name, agent = %object, mapping = name, change = word, "mapping changed");
    rest.edge.tell(Event {
        kind: EventKind::Mapping,
        data: json!({"namespace": namespace, "agent": agent, "name": name, "change": word, "by": caller.name}),
    });
    find(rest, place).await
}

async fn find(
    rest: &Rest,
    Path((namespace, agent, name)): &Place,
) -> Result<Option<MappingView>, Problem> {
    let agents = rest.desk.agents().await?;
    let mut of = agents
        .iter()
        .filter(|it| *it.name.namespace == **namespace && *it.name.name == **agent)
        .flat_map(views);
    Ok(of.find(|view| view.entry.get("name").is_some_and(|it| it == name)))
}

fn views(agent: &AgentRecord) -> Vec<MappingView> {
    let entries = agent.spec["mappings"].as_array();
    let entries = entries.into_iter().flatten();
    let connected = agent.status["conditions"]
        .as_array()
        .and_then(|conditions| {
            let connected = conditions.iter().find(|it| it["type"] == "Connected")?;
            Some(connected["status"] == "True")
        });
    entries
        .filter_map(|entry| {
            Some(MappingView {
                namespace: agent.name.namespace.to_string(),
                agent: agent.name.name.to_string(),
                revision: change::revision(entry),
                enabled: entry["enabled"].as_bool().unwrap_or(true),
                connected,
                file: agent.file.clone(),
                read_only: agent.read_only.clone(),
                entry: {
                    let mut entry = entry.as_object()?.clone();
                    entry.remove("enabled");
                    entry
                },
            })
        })
        .collect()
}

fn missing(field: &str) -> Problem {
    let error = change::field_error(None, field, "MissingField", "is missing", None);
    Problem::invalid(vec![error])
}

fn text(body: &mut Map<String, Value>, field: &str) -> Result<Option<String>, Problem> {
    match body.remove(field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => {
            let error = change::field_error(None, field, "WrongType", "is no string", None);
            Err(Problem::invalid(vec![error]))
        }
    }
}

fn if_match(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::IF_MATCH)?.to_str().ok()?;
    (value != "*").then(|| value.trim_start_matches("W/").trim_matches('"').to_owned())
}

fn etag(view: Option<&MappingView>) -> [(header::HeaderName, String); 2] {
    let tag = view.map(|view| format!("\"{}\"", view.revision));
    [
        (header::ETAG, tag.unwrap_or_default()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ]
}
