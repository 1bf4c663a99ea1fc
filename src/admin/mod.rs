//! The admin listener: health, metrics and the read-only state of this edge, as JSON.
//!
//! Bound to loopback unless told otherwise, and never by the data plane. Shows no credential: its views have
//! types of their own that cannot hold one. Requests whose Host is a public name are refused, because a page
//! in somebody's browser can make such a name mean 127.0.0.1 (DNS rebinding).

mod acme_metrics;
mod connections;
mod host_guard;
mod metrics;
mod readiness;
mod udp_metrics;
mod views;

use std::future::Future;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use tidegate_acme::engine::Engine;
use tidegate_model::{Observed, SnapshotStore};
use tidegate_proxy::RunningEdge;
use tidegate_tracker::udp::UdpRelays;
use tokio::sync::watch;

pub use connections::{Listener, Peer};
pub use host_guard::HostGuard;
pub use readiness::Readiness;
pub use views::{
    AgentView, BackendView, BoundView, CertificateView, ConditionView, ControlView, EndpointView,
    FindingView, LinkView, ListenerView, ObjectCount, ProblemView, RouteView, SessionView,
    SeverityView, StatusView, rfc3339,
};

/// Everything that the admin listener shows.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Whether traffic should be sent here.
    pub readiness: Readiness,
    /// What the control side last said.
    pub control: watch::Receiver<Arc<ControlView>>,
    /// The data plane, once it serves.
    pub edge: Arc<OnceLock<RunningEdge>>,
    /// What orders certificates, if this edge does; another one after an upgrade that failed.
    pub engine: watch::Receiver<Option<Engine>>,
    /// The published configuration.
    pub store: Arc<SnapshotStore>,
    /// The relays of UDP trackers.
    pub udp: UdpRelays,
    /// Which Host headers are answered.
    pub hosts: HostGuard,
    /// Who may see the views, and what is served beside them; everybody and nothing if None.
    pub gate: Option<Arc<dyn Gate>>,
}

/// Stands in front of the views.
pub trait Gate: std::fmt::Debug + Send + Sync {
    /// The views behind it, and whatever it serves itself.
    fn behind(&self, views: Router) -> Router;
}

/// Serves until `stop` completes; requests under way may end.
pub async fn serve<L, F>(listener: L, admin: Admin, stop: F)
where
    L: Listener,
    F: Future<Output = ()> + Send,
{
    connections::serve(listener, router(admin), stop).await;
}

fn router(admin: Admin) -> Router {
    let guard = admin.hosts.clone();
    let gate = admin.gate.clone();
    let admin = Arc::new(admin);
    let open = Router::new()
        .route("/", get(index))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_text))
        .layer(middleware::from_fn(connections::refuse_bodies))
        .with_state(Arc::clone(&admin));
    let views = Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/listeners", get(listeners))
        .route("/api/v1/routes", get(routes))
        .route("/api/v1/certificates", get(certificates))
        .route("/api/v1/backends", get(backends))
        .route("/api/v1/links", get(links))
        .layer(middleware::from_fn(connections::refuse_bodies))
        .with_state(admin);
    let views = match gate {
        Some(gate) => gate.behind(views),
        None => views,
    };
    open.merge(views)
        .fallback(async || {
            (
                StatusCode::NOT_FOUND,
                "there is nothing here; GET / lists what there is\n",
            )
        })
        .layer(middleware::from_fn(move |request, next| {
            host_guard::check(guard.clone(), request, next)
        }))
}

type Shared = State<Arc<Admin>>;

impl Admin {
    /// What is really so; nothing before the edge serves.
    fn observe(&self) -> Observed {
        self.edge
            .get()
            .map(RunningEdge::observe)
            .unwrap_or_default()
    }
}

async fn index() -> &'static str {
    "/healthz\n/readyz\n/metrics\n/api/v1/status\n/api/v1/listeners\n/api/v1/routes\n/api/v1/certificates\n/api/v1/backends\n/api/v1/links\n"
}

async fn ready(State(admin): Shared) -> Response {
    match admin.readiness.why_not() {
        None => (StatusCode::OK, "ready\n").into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn metrics_text(State(admin): Shared) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    (
        [(header::CONTENT_TYPE, content_type)],
        metrics::render(&admin),
    )
        .into_response()
}

async fn status(State(admin): Shared) -> Json<StatusView> {
    let observed = admin.observe();
    let control = admin.control.borrow().clone();
    Json(StatusView {
        ready: admin.readiness.why_not().is_none(),
        not_ready_reason: admin.readiness.why_not().map(str::to_owned),
        connections: observed.connections,
        requests: observed.requests,
        control: (*control).clone(),
    })
}

async fn links(State(admin): Shared) -> Json<Vec<LinkView>> {
    let agents = admin.observe().agents;
    Json(agents.iter().flat_map(views::links).collect())
}

async fn listeners(State(admin): Shared) -> Json<Vec<ListenerView>> {
    Json(
        admin
            .observe()
            .listeners
            .iter()
            .map(ListenerView::from)
            .collect(),
    )
}

async fn routes(State(admin): Shared) -> Json<Vec<RouteView>> {
    Json(admin.control.borrow().routes.clone())
}

async fn certificates(State(admin): Shared) -> Json<Vec<CertificateView>> {
    Json(views::certificates(&admin.store.load_full().snapshot))
}

async fn backends(State(admin): Shared) -> Json<Vec<BackendView>> {
    Json(
        admin
            .observe()
            .clusters
            .iter()
            .map(BackendView::from)
            .collect(),
    )
}
