//! What is counted of agents. Only handshakes and ends of sessions are counted here; the rest is asked of the hub when
//! somebody reads the metrics, so that agents and mappings that are gone leave nothing behind.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tidegate_tunnel::hub::{Hub, MappingTraffic, Traffic};

use crate::body::Body;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AgentLabels {
    agent: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CarrierLabels {
    agent: String,
    carrier: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabels {
    agent: String,
    mapping: String,
    target: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MappingLabels {
    agent: String,
    mapping: String,
    id: String,
}

/// Counters of events.
#[derive(Debug, Default)]
pub(crate) struct AgentMetrics {
    handshakes: Family<ResultLabels, Counter>,
    ends: Family<ReasonLabels, Counter>,
}

impl AgentMetrics {
    pub(crate) fn register(&self, registry: &mut Registry, hub: &Hub<Body>) {
        registry.register(
            "agent_handshakes",
            "Handshakes of agents, by what became of them",
            self.handshakes.clone(),
        );
        registry.register(
            "agent_sessions_ended",
            "Links of agents that ended, by reason",
            self.ends.clone(),
        );
        registry.register_collector(Box::new(OfHub(hub.clone())));
    }

    /// `Accepted`, or why not.
    pub(super) fn handshake(&self, result: &'static str) {
        self.handshakes
            .get_or_create(&ResultLabels { result })
            .inc();
    }

    pub(super) fn ended(&self, reason: &'static str) {
        self.ends.get_or_create(&ReasonLabels { reason }).inc();
    }
}

/// One of the counts.
type Count = fn(&Traffic) -> &AtomicU64;

#[derive(Debug)]
struct OfHub(Hub<Body>);

impl Collector for OfHub {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let agents = self.0.observe();
        let mut sessions = encoder.encode_descriptor(
            "agent_sessions",
            "Links of agents that are up",
            None,
            MetricType::Gauge,
        )?;
        for agent in &agents {
            for carrier in [
                tidegate_model::Carrier::Direct,
                tidegate_model::Carrier::WebSocket,
            ] {
                let of = agent.sessions.iter().filter(|it| it.carrier == carrier);
                let labels = CarrierLabels {
                    agent: agent.id.to_string(),
                    carrier: carrier.name(),
                };
                let count = ConstGauge::new(i64::try_from(of.count()).unwrap_or(i64::MAX));
                count.encode(sessions.encode_family(&labels)?)?;
            }
        }
        let mut streams = encoder.encode_descriptor(
            "agent_requests_in_flight",
            "Requests and tunnels in flight over an agent's links",
            None,
            MetricType::Gauge,
        )?;
        for agent in &agents {
            let all: u64 = agent.sessions.iter().map(|it| it.in_flight).sum();
            let count = ConstGauge::new(i64::try_from(all).unwrap_or(i64::MAX));
            count.encode(streams.encode_family(&labels(agent))?)?;
        }
        let mut rtt = encoder.encode_descriptor(
            "agent_rtt_seconds",
            "Round trip of the slowest of an agent's links",
            None,
            MetricType::Gauge,
        )?;
        for agent in &agents {
            if let Some(slowest) = agent.sessions.iter().filter_map(|it| it.rtt).max() {
                let gauge = ConstGauge::new(slowest.as_secs_f64());
                gauge.encode(rtt.encode_family(&labels(agent))?)?;
            }
        }
        let mut stalled = encoder.encode_descriptor(
            "agent_links_full",
            "Links of an agent that take no requests because too many visitors do not read",
            None,
            MetricType::Gauge,
        )?;
        for (id, full) in self.0.full() {
            let labels = AgentLabels {
                agent: id.to_string(),
            };
            let count = ConstGauge::new(i64::try_from(full).unwrap_or(i64::MAX));
            count.encode(stalled.encode_family(&labels)?)?;
        }
        let mut up = encoder.encode_descriptor(
            "agent_service_up",
            "Whether a service behind an agent answered it when it was tried last, for all of its processes",
            None,
            MetricType::Gauge,
        )?;
        for agent in &agents {
            let mut services: BTreeMap<(&str, &str), bool> = BTreeMap::new();
            for probe in &agent.probes {
                let name = probe.names.first().map_or("", |name| name);
                let up = services.entry((name, &probe.target)).or_insert(true);
                *up &= probe.failure.is_none();
            }
            for ((mapping, target), up_now) in services {
                let labels = ServiceLabels {
                    agent: agent.id.to_string(),
                    mapping: mapping.to_owned(),
                    target: target.to_owned(),
                };
                ConstGauge::new(i64::from(up_now)).encode(up.encode_family(&labels)?)?;
            }
        }
        let traffic = self.0.traffic();
        let counters: [(&str, &str, Count); 3] = [
            (
                "agent_requests",
                "Requests and tunnels sent over links, by mapping",
                |it| &it.requests,
            ),
            (
                "agent_sent_bytes",
                "Bytes of bodies and tunnels sent to agents, by mapping",
                |it| &it.sent,
            ),
            (
                "agent_received_bytes",
                "Bytes of bodies and tunnels received from agents, by mapping",
                |it| &it.received,
            ),
        ];
        for (name, help, of) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for it in &traffic {
                let MappingTraffic {
                    agent,
                    mapping,
                    traffic,
                } = it;
                let id = mapping.id.to_string();
                let labels = MappingLabels {
                    agent: agent.to_string(),
                    mapping: mapping.names.first().unwrap_or(&id).clone(),
                    id,
                };
                let count = ConstCounter::new(of(traffic).load(Ordering::Relaxed));
                count.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn labels(agent: &tidegate_model::ObservedAgent) -> AgentLabels {
    AgentLabels {
        agent: agent.id.to_string(),
    }
}
