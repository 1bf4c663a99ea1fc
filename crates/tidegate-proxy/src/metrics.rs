//! What the data plane counts, in OpenMetrics terms. Handles per route are resolved once per
//! connection and host, so a request costs two atomic increments and one histogram update.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tidegate_model::RouteId;
use tidegate_tunnel::hub::Hub;

use crate::agents::AgentMetrics;
use crate::body::Body;
use crate::ports::{OfPorts, Ports};
use crate::replicas::ReplicaMetrics;
use crate::tracker::{TrackerFamilies, TrackerMetrics};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteClassLabels {
    route: String,
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabels {
    listener: &'static str,
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Seconds. Small requests take milliseconds, uploads minutes.
const BUCKETS: [f64; 10] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0];

/// Handles for one route.
#[derive(Debug)]
pub(crate) struct RouteMetrics {
    classes: [Counter; 5],
    duration: Histogram,
}

impl RouteMetrics {
    pub(crate) fn record(&self, status: http::StatusCode, seconds: f64) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.classes[class].inc();
        self.duration.observe(seconds);
    }
}

/// All metrics of the data plane.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RouteClassLabels, Counter>,
    durations: Family<RouteLabels, Histogram, fn() -> Histogram>,
    routes: RwLock<HashMap<RouteId, Arc<RouteMetrics>>>,
    /// Handshakes and ends of agents.
    pub(crate) agents: AgentMetrics,
    /// Channels to other replicas and what goes over them.
    pub(crate) replicas: ReplicaMetrics,
    trackers: TrackerFamilies,
    tracker_rules: RwLock<HashMap<RouteId, HashMap<String, Arc<TrackerMetrics>>>>,
    accepted: Family<ListenerLabels, Counter>,
    refused: Family<ReasonLabels, Counter>,
    tls_failures: Family<ReasonLabels, Counter>,
    upstream_failures: Family<ReasonLabels, Counter>,
    refusals: Family<ReasonLabels, Counter>,
    /// Requests sent again after a reused connection died or an address refused.
    pub(crate) retries: Counter,
    /// Handshakes completed.
    pub(crate) handshakes: Counter,
    /// Open client connections.
    pub(crate) connections: Gauge,
    /// Requests in flight.
    pub(crate) in_flight: Gauge,
    /// Open upgraded connections.
    pub(crate) upgraded: Gauge,
    /// Passed-through TLS connections that are open.
    pub(crate) passthrough: Gauge,
    /// Response body bytes sent to clients.
    pub(crate) sent_bytes: Counter<u64, AtomicU64>,
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Metrics {
    pub(crate) fn new(hub: &Hub<Body>, ports: &Arc<Ports>) -> Self {
        let mut registry = Registry::with_prefix("tidegate");
        let this = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(histogram),
            routes: RwLock::default(),
            agents: AgentMetrics::default(),
            replicas: ReplicaMetrics::default(),
            trackers: TrackerFamilies::default(),
            tracker_rules: RwLock::default(),
            accepted: Family::default(),
            refused: Family::default(),
            tls_failures: Family::default(),
            upstream_failures: Family::default(),
            refusals: Family::default(),
            retries: Counter::default(),
            handshakes: Counter::default(),
            connections: Gauge::default(),
            in_flight: Gauge::default(),
            upgraded: Gauge::default(),
            passthrough: Gauge::default(),
            sent_bytes: Counter::default(),
            registry: Registry::default(),
        };
        let r = &mut registry;
        r.register(
            "http_requests",
            "Requests answered, by route and status class",
            this.requests.clone(),
        );
        r.register(
            "http_request_duration_seconds",
            "Time from head to the end of the response",
            this.durations.clone(),
        );
        r.register(
            "connections_accepted",
            "Client connections accepted",
            this.accepted.clone(),
        );
        r.register(
            "connections_refused",
            "Client connections closed at once",
            this.refused.clone(),
        );
        r.register(
            "tls_handshakes",
            "TLS handshakes completed",
            this.handshakes.clone(),
        );
        r.register(
            "tls_failures",
            "TLS connections that failed",
            this.tls_failures.clone(),
        );
        r.register(
            "upstream_failures",
            "Requests that a backend did not answer",
            this.upstream_failures.clone(),
        );
        r.register(
            "http_refusals",
            "Requests refused by the edge itself",
            this.refusals.clone(),
        );
        r.register(
            "upstream_retries",
            "Requests sent again",
            this.retries.clone(),
        );
        r.register(
            "connections_open",
            "Open client connections",
            this.connections.clone(),
        );
        r.register(
            "http_requests_in_flight",
            "Requests in flight",
            this.in_flight.clone(),
        );
        r.register(
            "upgraded_connections_open",
            "Open upgraded connections",
            this.upgraded.clone(),
        );
        r.register(
            "passthrough_connections_open",
            "Open passed-through connections",
            this.passthrough.clone(),
        );
        r.register(
            "http_response_body_bytes",
            "Response body bytes sent to clients",
            this.sent_bytes.clone(),
        );
        this.trackers.register(r);
        this.agents.register(r, hub);
        this.replicas.register(r, hub);
        r.register_collector(Box::new(OfPorts(Arc::clone(ports))));
        Self { registry, ..this }
    }

    /// Handles for a route, made on first use.
    pub(crate) fn route(&self, route: &RouteId) -> Arc<RouteMetrics> {
        if let Some(handles) = self
            .routes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(route)
        {
            return Arc::clone(handles);
        }
        let name = route.to_string();
        let handles = Arc::new(RouteMetrics {
            classes: CLASSES.map(|class| {
                let labels = RouteClassLabels {
                    route: name.clone(),
                    class,
                };
                self.requests.get_or_create_owned(&labels)
            }),
            duration: self.durations.get_or_create_owned(&RouteLabels {
                route: name.clone(),
            }),
        });
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(routes.entry(route.clone()).or_insert(handles))
    }

    /// Handles for a rule that leads to a tracker, made on first use.
    pub(crate) fn tracker(&self, route: &RouteId, rule: &str) -> Arc<TrackerMetrics> {
        if let Some(handles) = self
            .tracker_rules
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(route)
            .and_then(|rules| rules.get(rule))
        {
            return Arc::clone(handles);
        }
        let handles = Arc::new(self.trackers.of(route, rule));
        let mut routes = self
            .tracker_rules
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let rules = routes.entry(route.clone()).or_default();
        Arc::clone(rules.entry(rule.to_owned()).or_insert(handles))
    }

    pub(crate) fn accepted(&self, listener: &'static str) {
        self.accepted
            .get_or_create(&ListenerLabels { listener })
            .inc();
    }

    pub(crate) fn connection_refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub(crate) fn tls_failed(&self, reason: &'static str) {
        self.tls_failures
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    pub(crate) fn upstream_failed(&self, reason: &'static str) {
        self.upstream_failures
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    pub(crate) fn request_refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// OpenMetrics text without its `# EOF`.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode_registry(&mut text, &self.registry);
        text
    }
}
