//! What happens, as it happens: server-sent events.

#![allow(unused_qualifications, reason = "utoipa's macros write whole paths")]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::{Stream, StreamExt as _, stream};
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use utoipa::IntoParams;

use super::Rest;
use super::accounts::Scope;
use super::desk::{Event, EventKind};
use super::guard::Caller;
use super::problem::Problem;

/// Comments that keep proxies from closing a silent stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Which events are wanted.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Types, separated by commas. `status`, `mapping`, `agent` and `request`. Default: `status,mapping`.
    types: Option<String>,
}

/// Live events
///
/// `text/event-stream`. A browser that reads too slowly gets the event `lagged` with the number of those it missed,
/// and should read everything again. Streams end after five minutes; browsers come back by themselves.
#[utoipa::path(
    get, path = "/events", tag = "events", params(Wanted),
    responses((status = 200, content_type = "text/event-stream", body = Event), (status = 403, body = Problem))
)]
pub(super) async fn events(
    State(rest): State<Arc<Rest>>,
    caller: Caller,
    Query(wanted): Query<Wanted>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, Problem> {
    caller.needs(Scope::Read)?;
    let kinds = match &wanted.types {
        Some(types) => kinds(types)?,
        None => vec![EventKind::Status, EventKind::Mapping],
    };
    if kinds.contains(&EventKind::Request) || kinds.contains(&EventKind::Agent) {
        caller.needs(Scope::LogsRead)?;
    }
    let stream = told(rest.edge.subscribe(), kinds);
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn kinds(types: &str) -> Result<Vec<EventKind>, Problem> {
    let all = [
        EventKind::Status,
        EventKind::Mapping,
        EventKind::Agent,
        EventKind::Request,
    ];
    let mut kinds = Vec::new();
    for word in types.split(',').map(str::trim) {
        let kind = all.into_iter().find(|kind| kind.as_str() == word);
        kinds.push(kind.ok_or_else(|| {
            let message =
                format!("{word:?} is no type; there are status, mapping, agent and request");
            Problem::invalid(vec![super::change::field_error(
                None,
                "types",
                "InvalidValue",
                &message,
                None,
            )])
        })?);
    }
    Ok(kinds)
}

fn told(
    receiver: Receiver<Event>,
    kinds: Vec<EventKind>,
) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    // A first event says that the stream stands: whoever reads everything then misses nothing.
    let first = stream::once(async { Ok(sse::Event::default().event("open").data("{}")) });
    first.chain(stream::unfold(
        (receiver, kinds),
        |(mut receiver, kinds)| async move {
            loop {
                let event = match receiver.recv().await {
                    Ok(event) if kinds.contains(&event.kind) => sse::Event::default()
                        .event(event.kind.as_str())
                        .data(event.data.to_string()),
                    Ok(_) => continue,
                    Err(RecvError::Lagged(missed)) => sse::Event::default()
                        .event("lagged")
                        .data(format!("{{\"missed\":{missed}}}")),
                    Err(RecvError::Closed) => return None,
                };
                return Some((Ok(event), (receiver, kinds)));
            }
        },
    ))
}
