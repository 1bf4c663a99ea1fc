//! What is counted of ports. Asked of the ports when somebody reads the metrics, so that those that are gone leave
//! nothing behind.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Counted, Ports, Tenure};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PortLabels {
    mapping: String,
    protocol: &'static str,
    port: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    mapping: String,
    protocol: &'static str,
    port: u64,
    reason: &'static str,
}

/// Tells of all ports.
#[derive(Debug)]
pub(crate) struct OfPorts(pub(crate) Arc<Ports>);

/// A family of counters.
type Count = (&'static str, &'static str, fn(&Counted) -> u64);

impl Collector for OfPorts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let tenures = self.0.tenures().clone();
        let mut family = encoder.encode_descriptor(
            "port_listening",
            "Whether a port of an agent is open at every address",
            None,
            MetricType::Gauge,
        )?;
        for state in self.0.states.borrow().iter() {
            if let Some(tenure) = tenures.get(&state.id) {
                let open = state.listeners.iter().all(|it| it.error.is_none());
                let gauge = ConstGauge::new(i64::from(open));
                gauge.encode(family.encode_family(&labels(tenure))?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "port_sessions_open",
            "Connections to a port of an agent that are open; with UDP clients",
            None,
            MetricType::Gauge,
        )?;
        for tenure in tenures.values() {
            let open = tenure.counted.open.load(Ordering::Relaxed);
            let gauge = ConstGauge::new(i64::try_from(open).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&labels(tenure))?)?;
        }
        let counters: [Count; 3] = [
            (
                "port_sessions",
                "Connections to a port of an agent so far; with UDP clients",
                |it| it.sessions.load(Ordering::Relaxed),
            ),
            (
                "port_received_bytes",
                "Bytes from clients of a port of an agent",
                |it| it.received.load(Ordering::Relaxed),
            ),
            (
                "port_sent_bytes",
                "Bytes to clients of a port of an agent",
                |it| it.sent.load(Ordering::Relaxed),
            ),
        ];
        for (name, help, of) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for tenure in tenures.values() {
                let count = ConstCounter::new(of(&tenure.counted));
                count.encode(family.encode_family(&labels(tenure))?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "port_refused",
            "Connections to a port of an agent that were not served, and with UDP datagrams, by reason",
            None,
            MetricType::Counter,
        )?;
        for tenure in tenures.values() {
            let refused = &tenure.counted.refused;
            let refused = refused.lock().unwrap_or_else(PoisonError::into_inner);
            for (reason, number) in refused.iter() {
                let PortLabels {
                    mapping,
                    protocol,
                    port,
                } = labels(tenure);
                let labels = RefusedLabels {
                    mapping,
                    protocol,
                    port,
                    reason,
                };
                let count = ConstCounter::new(*number);
                count.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn labels(tenure: &Tenure) -> PortLabels {
    PortLabels {
        mapping: tenure.route.to_string(),
        protocol: tenure.id.transport.name(),
        port: u64::from(tenure.id.number),
    }
}
