//! The metrics of certificates and of the ACME engine, as OpenMetrics text.
//!
//! Everything is read when it is asked for, so that what is gone is gone from the page too; counters are
//! those of the engine. Names are documented in `docs/reference/metrics.md`.

use std::time::SystemTime;

use tidegate_acme::observed::Observed;
use tidegate_model::Snapshot;

use super::metrics::{Exposition, count};
use super::views::{self, RouteView};

/// Adds everything about certificates.
pub(super) fn certificates(
    out: &mut Exposition,
    snapshot: &Snapshot,
    routes: &[RouteView],
    observed: &Observed,
) {
    let served = views::certificates(snapshot);
    for (family, help, value) in [
        (
            "tidegate_certificate_not_before_timestamp_seconds",
            "Start of a served certificate's validity.",
            (|view| &view.not_before) as fn(&views::CertificateView) -> &String,
        ),
        (
            "tidegate_certificate_not_after_timestamp_seconds",
            "End of a served certificate's validity.",
            |view| &view.not_after,
        ),
    ] {
        out.family(family, "gauge", help);
        for certificate in &served {
            let name = certificate.names.first().map_or("", String::as_str);
            let labels = [
                ("name", name),
                ("origin", certificate.origin.as_str()),
                ("serial", certificate.serial.as_str()),
            ];
            out.sample(family, &labels, seconds(value(certificate)));
        }
    }
    let family = "tidegate_certificate_ready_status";
    out.family(
        family,
        "gauge",
        "1 for the status of the route's condition CertificateReady, 0 for the others.",
    );
    for route in routes {
        let ready = route
            .conditions
            .iter()
            .find(|condition| condition.type_ == "CertificateReady");
        let Some(ready) = ready else { continue };
        let id = format!("{}/{}", route.namespace, route.name);
        for status in ["True", "False", "Unknown"] {
            let labels = [("route", id.as_str()), ("condition", status)];
            let value = f64::from(u8::from(ready.status == status));
            out.sample(family, &labels, value);
        }
    }
    for (family, help, value) in [
        (
            "tidegate_certificate_renewal_timestamp_seconds",
            "When the route's certificate will be, or should have been, renewed.",
            (|one| one.renew_at)
                as fn(&tidegate_acme::observed::ObservedCertificate) -> Option<SystemTime>,
        ),
        (
            "tidegate_acme_next_attempt_timestamp_seconds",
            "When the next attempt to get the route's certificate is made; only after a failure.",
            |one| one.next_attempt,
        ),
    ] {
        out.family(family, "gauge", help);
        for certificate in &observed.certificates {
            if let Some(at) = value(certificate) {
                let labels = [
                    ("route", certificate.id.as_str()),
                    ("issuer", certificate.issuer.as_str()),
                ];
                out.sample(family, &labels, unix(at));
            }
        }
    }
    let family = "tidegate_acme_failed_attempts";
    out.family(
        family,
        "gauge",
        "Failed attempts to get the route's certificate since the last success.",
    );
    for certificate in &observed.certificates {
        let labels = [
            ("route", certificate.id.as_str()),
            ("issuer", certificate.issuer.as_str()),
        ];
        out.sample(family, &labels, f64::from(certificate.attempts));
    }
}

/// Adds what the engine counted.
pub(super) fn engine(out: &mut Exposition, observed: &Observed) {
    out.family(
        "tidegate_acme_orders",
        "counter",
        "Orders that came to an end, by issuer and result.",
    );
    for ((issuer, result), number) in &observed.orders {
        let labels = [("issuer", issuer.as_str()), ("result", *result)];
        out.sample("tidegate_acme_orders_total", &labels, count(*number));
    }
    out.family(
        "tidegate_acme_order_failures",
        "counter",
        "Attempts that failed, before or after an order was placed, by issuer and reason.",
    );
    for ((issuer, reason), number) in &observed.failures {
        let labels = [("issuer", issuer.as_str()), ("reason", *reason)];
        out.sample(
            "tidegate_acme_order_failures_total",
            &labels,
            count(*number),
        );
    }
    out.family(
        "tidegate_acme_client_requests",
        "counter",
        "Requests to authorities, by issuer and status of the answer.",
    );
    for (issuer, by_status) in &observed.requests {
        for (status, number) in by_status {
            let status = status.to_string();
            let labels = [("issuer", issuer.as_str()), ("status", status.as_str())];
            out.sample(
                "tidegate_acme_client_requests_total",
                &labels,
                count(*number),
            );
        }
    }
    out.family(
        "tidegate_notices",
        "counter",
        "Notices to people, by receiver and result.",
    );
    for (issuer, state) in &observed.notices {
        for (result, number) in [
            ("delivered", state.delivered),
            ("failed", state.failed),
            ("dropped", state.dropped),
        ] {
            let labels = [
                ("issuer", issuer.as_str()),
                ("target", state.target.as_str()),
                ("result", result),
            ];
            out.sample("tidegate_notices_total", &labels, count(number));
        }
    }
    let family = "tidegate_notices_failing";
    out.family(
        family,
        "gauge",
        "1 while the last attempt to tell the receiver failed.",
    );
    for (issuer, state) in &observed.notices {
        let labels = [
            ("issuer", issuer.as_str()),
            ("target", state.target.as_str()),
        ];
        let failing = f64::from(u8::from(state.last_error.is_some()));
        out.sample(family, &labels, failing);
    }
}

fn seconds(rfc3339: &str) -> f64 {
    tidegate_acme::plan::moment::parse_rfc3339(rfc3339).map_or(0.0, unix)
}

fn unix(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64().trunc())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_acme::notices::DeliveryState;
    use tidegate_acme::observed::ObservedCertificate;

    use super::*;
    use crate::admin::ConditionView;

    #[test]
    fn what_the_engine_observed_is_told_with_bounded_labels() {
        let at =
            |seconds: u64| Some(SystemTime::UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 7));
        let observed = Observed {
            requests: [("le".to_owned(), [(200, 7), (429, 1)].into())].into(),
            orders: [(("le".to_owned(), "issued"), 2)].into(),
            failures: [(("le".to_owned(), "CaUnreachable"), 3)].into(),
            notices: vec![(
                "le".to_owned(),
                DeliveryState {
                    target: "phone".to_owned(),
                    delivered: 4,
                    ..DeliveryState::default()
                },
            )],
            certificates: vec![ObservedCertificate {
                id: "default/a".to_owned(),
                issuer: "le".to_owned(),
                renew_at: at(1_700_000_000),
                next_attempt: None,
                attempts: 0,
            }],
        };
        let routes = [RouteView {
            namespace: "default".to_owned(),
            name: "a".to_owned(),
            hostnames: Vec::new(),
            preflight: Vec::new(),
            dns_records: Vec::new(),
            conditions: vec![ConditionView {
                type_: "CertificateReady".to_owned(),
                status: "False".to_owned(),
                reason: "Issuing".to_owned(),
                message: String::new(),
            }],
        }];
        let mut out = Exposition::default();
        certificates(&mut out, &Snapshot::default(), &routes, &observed);
        engine(&mut out, &observed);
        let text = out.into_text();
        for line in [
            "tidegate_certificate_ready_status{route=\"default/a\",condition=\"True\"} 0",
            "tidegate_certificate_ready_status{route=\"default/a\",condition=\"False\"} 1",
            "tidegate_certificate_renewal_timestamp_seconds{route=\"default/a\",issuer=\"le\"} 1700000000",
            "# TYPE tidegate_acme_orders counter",
            "tidegate_acme_orders_total{issuer=\"le\",result=\"issued\"} 2",
            "tidegate_acme_order_failures_total{issuer=\"le\",reason=\"CaUnreachable\"} 3",
            "tidegate_acme_client_requests_total{issuer=\"le\",status=\"429\"} 1",
            "tidegate_notices_total{issuer=\"le\",target=\"phone\",result=\"delivered\"} 4",
            "tidegate_notices_failing{issuer=\"le\",target=\"phone\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("next_attempt_timestamp_seconds{"), "{text}");
    }
}
