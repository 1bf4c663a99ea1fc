//! The HTTP API that people and programs look after the edge by: `/api/v1` of the admin listener.
//!
//! ```text
//! admin listener ─► guard (token, or session and CSRF token) ─► handlers ─► Desk ─► files of the folder, or API server
//! ```
//!
//! Only there where accounts are given; without them the views of the admin listener are what they always were, and
//! nothing can be changed. What is refused is told by [`problem::Problem`]. `GET /api/v1/openapi.json` describes it.

pub mod accounts;
mod agents;
pub mod change;
pub mod desk;
mod events;
mod guard;
mod login;
mod mappings;
pub mod problem;
mod sessions;
mod throttle;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use http_body_util::{BodyExt as _, Limited};
use kube::CustomResourceExt as _;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::accounts::Accounts;
use self::desk::{Desk, Edge};
use self::problem::Problem;
use self::sessions::Sessions;
use self::throttle::Throttle;
use crate::admin::Gate;
use crate::api::TunnelAgent;

/// Bytes of a request's body.
const LARGEST_BODY: usize = 64 * 1024;
/// Time for a request's body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The API.
#[derive(Debug)]
pub struct Rest {
    accounts: Accounts,
    sessions: Sessions,
    throttle: Mutex<Throttle>,
    hashing: Arc<Semaphore>,
    desk: Arc<dyn Desk>,
    edge: Arc<dyn Edge>,
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Tidegate",
    description = "Looks after an edge: its mappings, its agents, what they do.",
    license(name = "Apache-2.0", identifier = "Apache-2.0")
))]
struct Description;

impl Rest {
    /// For these accounts, on this edge.
    pub fn new(accounts: Accounts, desk: Arc<dyn Desk>, edge: Arc<dyn Edge>) -> Arc<Self> {
        Arc::new(Self {
            accounts,
            sessions: Sessions::default(),
            throttle: Mutex::default(),
            hashing: Arc::new(Semaphore::new(login::AT_ONCE)),
            desk,
            edge,
        })
    }
}

fn open() -> OpenApiRouter<Arc<Rest>> {
    OpenApiRouter::new().routes(routes!(login::log_in))
}

fn guarded() -> OpenApiRouter<Arc<Rest>> {
    OpenApiRouter::new()
        .routes(routes!(login::who, login::log_out))
        .routes(routes!(mappings::list, mappings::create))
        .routes(routes!(mappings::get, mappings::replace, mappings::delete))
        .routes(routes!(mappings::enable))
        .routes(routes!(agents::list))
        .routes(routes!(agents::get))
        .routes(routes!(agents::reconnect))
        .routes(routes!(agents::connections))
        .routes(routes!(agents::requests))
        .routes(routes!(events::events))
}

/// The description of the API in `OpenAPI` 3.1. The schema of a mapping is that of the `TunnelAgent`'s.
pub fn description() -> Value {
    let api = OpenApiRouter::with_openapi(Description::openapi());
    let (_, api) = api
        .nest("/api/v1", open().merge(guarded()))
        .split_for_parts();
    let mut api = serde_json::to_value(api).unwrap_or_default();
    api["info"]["version"] = "v1".into();
    api["components"]["schemas"]["MappingEntry"] = mapping_schema();
    api["components"]["securitySchemes"] = json!({
        "token": {"type": "http", "scheme": "bearer"},
        "session": {"type": "apiKey", "in": "cookie", "name": "tidegate-session"},
    });
    api["security"] = json!([{"token": []}, {"session": []}]);
    api
}

fn mapping_schema() -> Value {
    let definition = serde_json::to_value(TunnelAgent::crd()).unwrap_or_default();
    let schema =
        "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/mappings/items";
    definition.pointer(schema).cloned().unwrap_or_default()
}

/// Accounts guard the views, and the API is served beside them.
#[derive(Debug)]
pub struct ApiGate(pub Arc<Rest>);

impl Gate for ApiGate {
    fn behind(&self, views: Router) -> Router {
        let rest = &self.0;
        let (open, _) = open().split_for_parts();
        let (guarded, _) = guarded().split_for_parts();
        let check = from_fn_with_state(Arc::clone(rest), guard::check);
        let check_reader = from_fn_with_state(Arc::clone(rest), guard::check_reader);
        let description = Arc::new(description());
        let api = open
            .merge(guarded.route_layer(check))
            .with_state(Arc::clone(rest))
            .route(
                "/openapi.json",
                get(async move || Json((*description).clone())),
            );
        Router::new()
            .nest("/api/v1", api)
            .merge(views.route_layer(check_reader))
            .layer(map_response(private))
    }
}

/// Nothing here is for caches, frames or sniffers.
async fn private(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'",
        ),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    response
}

/// The body of a request: JSON, not too long, in time.
struct Given<T>(T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Given<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        // Also what keeps forms of other sites out.
        if !kind.eq_ignore_ascii_case("application/json") {
            let detail = format!("the body is {kind:?}; send application/json");
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "NotJson",
                detail,
            ));
        }
        let body = Limited::new(request.into_body(), LARGEST_BODY).collect();
        let timeout = |_| {
            Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "BodyTimeout",
                "the body did not come in time",
            )
        };
        let body = tokio::time::timeout(BODY_TIMEOUT, body)
            .await
            .map_err(timeout)?;
        let body = body.map_err(|_| {
            let detail = format!("the body is longer than {LARGEST_BODY} bytes, or was cut off");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "BodyTooLarge", detail)
        })?;
        serde_json::from_slice(&body.to_bytes())
            .map(Self)
            .map_err(|error| {
                // Where and what, but nothing of the text: it may be a password.
                let what = match error.classify() {
                    serde_json::error::Category::Data => "is not what is expected there",
                    _ => "is no JSON",
                };
                let message = format!("line {}, column {}: {what}", error.line(), error.column());
                Problem::invalid(vec![change::field_error(
                    None,
                    "",
                    "NotReadable",
                    &message,
                    None,
                )])
            })
    }
}

/// Random bytes from the system.
fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests;
