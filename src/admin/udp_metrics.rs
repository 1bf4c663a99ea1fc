//! What the relays of UDP trackers have counted. No client is named.

use tidegate_model::{RuleId, UdpRelayState};
use tidegate_tracker::udp::Counted;

use super::metrics::{Exposition, count};

/// Writes every family, if anything is relayed.
pub(super) fn relays(out: &mut Exposition, counted: &[(RuleId, Counted)]) {
    if counted.is_empty() {
        return;
    }
    by(
        out,
        counted,
        "tidegate_udp_requests",
        "action",
        "Requests of clients passed on to UDP trackers.",
        |counted| &counted.requests,
    );
    by(
        out,
        counted,
        "tidegate_udp_responses",
        "action",
        "Answers of UDP trackers passed on to clients, by what they answer.",
        |counted| &counted.answers,
    );
    by(
        out,
        counted,
        "tidegate_udp_dropped",
        "reason",
        "Datagrams that were not passed on.",
        |counted| &counted.dropped,
    );
    for (name, kind, help, value) in [
        (
            "tidegate_udp_received_bytes",
            "counter",
            "Bytes of requests passed on.",
            (|counted| counted.received_bytes) as fn(&Counted) -> u64,
        ),
        (
            "tidegate_udp_sent_bytes",
            "counter",
            "Bytes of answers passed on.",
            |counted| counted.sent_bytes,
        ),
        (
            "tidegate_udp_refused",
            "counter",
            "Times that a tracker's machine said that nobody listens there.",
            |counted| counted.refused,
        ),
        (
            "tidegate_udp_sessions_evicted",
            "counter",
            "Clients that made room for others.",
            |counted| counted.evicted,
        ),
        (
            "tidegate_udp_sessions_expired",
            "counter",
            "Clients that were quiet for three minutes.",
            |counted| counted.expired,
        ),
        (
            "tidegate_udp_sessions",
            "gauge",
            "Clients that are relayed.",
            |counted| counted.sessions,
        ),
        (
            "tidegate_udp_sessions_established",
            "gauge",
            "Of these, those whose connection id the tracker has accepted.",
            |counted| counted.established,
        ),
    ] {
        out.family(name, kind, help);
        let sample = if kind == "counter" {
            format!("{name}_total")
        } else {
            name.to_owned()
        };
        for (id, counted) in counted {
            let route = id.route.to_string();
            let labels = [("route", route.as_str()), ("rule", id.rule.as_str())];
            out.sample(&sample, &labels, count(value(counted)));
        }
    }
}

/// Whether each way to a tracker is open, if anything is relayed.
pub(super) fn ways(out: &mut Exposition, states: &[UdpRelayState]) {
    if states.is_empty() {
        return;
    }
    let name = "tidegate_udp_way_open";
    let help =
        "Whether datagrams are passed on to a tracker: 1 after a trial that found no address lost.";
    out.family(name, "gauge", help);
    for state in states {
        let route = state.id.route.to_string();
        for way in &state.ways {
            let family = if way.backend.is_ipv6() { "v6" } else { "v4" };
            let labels = [
                ("route", route.as_str()),
                ("rule", state.id.rule.as_str()),
                ("family", family),
            ];
            out.sample(name, &labels, count(u64::from(way.state.is_open())));
        }
    }
}

fn by<const N: usize>(
    out: &mut Exposition,
    counted: &[(RuleId, Counted)],
    name: &str,
    label: &str,
    help: &str,
    values: fn(&Counted) -> &[(&'static str, u64); N],
) {
    out.family(name, "counter", help);
    let sample = format!("{name}_total");
    for (id, counted) in counted {
        let route = id.route.to_string();
        for (value, number) in values(counted) {
            let labels = [
                ("route", route.as_str()),
                ("rule", id.rule.as_str()),
                (label, value),
            ];
            out.sample(&sample, &labels, count(*number));
        }
    }
}
