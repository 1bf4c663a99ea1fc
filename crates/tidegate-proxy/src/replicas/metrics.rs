//! What is counted of other replicas.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use tidegate_tunnel::hub::Hub;

use crate::body::Body;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// Requests sent to other replicas.
#[derive(Debug, Clone, Default)]
pub(crate) struct ForwardedMetric(Family<OutcomeLabels, Counter>);

impl ForwardedMetric {
    /// `Answered`, or how the other replica failed.
    pub(crate) fn count(&self, outcome: &'static str) {
        self.0.get_or_create(&OutcomeLabels { outcome }).inc();
    }
}

/// Counters of events.
#[derive(Debug, Default)]
pub(crate) struct ReplicaMetrics {
    /// Other replicas that there should be.
    known: Gauge,
    pub(crate) forwarded: ForwardedMetric,
    failures: Family<ReasonLabels, Counter>,
}

impl ReplicaMetrics {
    pub(crate) fn register(&self, registry: &mut Registry, hub: &Hub<Body>) {
        registry.register(
            "replica_peers",
            "Other replicas that this one knows of",
            self.known.clone(),
        );
        registry.register(
            "replica_forwarded_requests",
            "Requests and tunnels sent to another replica, by what became of them there",
            self.forwarded.0.clone(),
        );
        registry.register(
            "replica_channel_failures",
            "Channels between replicas that did not come up, were refused or ended, by reason",
            self.failures.clone(),
        );
        registry.register_collector(Box::new(OfHub(hub.clone())));
    }

    pub(crate) fn known(&self, others: u32) {
        self.known.set(i64::from(others));
    }

    pub(super) fn failed(&self, reason: &'static str) {
        self.failures.get_or_create(&ReasonLabels { reason }).inc();
    }
}

#[derive(Debug)]
struct OfHub(Hub<Body>);

impl Collector for OfHub {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let joined = self.0.joined();
        let up = ConstGauge::new(i64::try_from(joined.len()).unwrap_or(i64::MAX));
        let encoder_of_channels = encoder.encode_descriptor(
            "replica_channels",
            "Channels to other replicas that stand",
            None,
            MetricType::Gauge,
        )?;
        up.encode(encoder_of_channels)?;
        let agents: u32 = joined.iter().map(|it| it.agents).sum();
        let encoder_of_agents = encoder.encode_descriptor(
            "replica_agents",
            "Processes of agents that other replicas say they have links to",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(i64::from(agents)).encode(encoder_of_agents)
    }
}
