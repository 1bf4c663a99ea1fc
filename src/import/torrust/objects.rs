//! Writes the objects as people would: short, each line with the reason that it is there.
//!
//! Everything that goes in is a parsed hostname, address, port, plain name or checked e-mail address, so that
//! nothing in the environment file can break out of its line.

use std::fmt::Write as _;

use super::Home;
use super::environment::Service;
use super::plan::{Decisions, Exposure, Issuer, PlainKind, PlannedFile, Tracker, local};

/// The class label of the edge's pods, as its chart sets it.
const EDGE_NAMESPACE: &str = "tidegate-system";

/// Every file, without empty ones.
pub(super) fn files(decisions: &Decisions<'_>) -> Vec<PlannedFile> {
    let name = &decisions.options.name;
    [
        ("issuer.yaml".to_owned(), issuer(decisions)),
        (format!("{name}-trackers.yaml"), trackers(decisions)),
        (format!("{name}-services.yaml"), services(decisions)),
        (
            format!("{name}-network-policy.yaml"),
            network_policy(decisions),
        ),
    ]
    .into_iter()
    .filter_map(|(name, text)| Some(PlannedFile { name, text: text? }))
    .collect()
}

/// The name of the AcmeIssuer.
pub(super) fn issuer_name(staging: bool) -> &'static str {
    if staging {
        "letsencrypt-staging"
    } else {
        "letsencrypt"
    }
}

fn issuer(decisions: &Decisions<'_>) -> Option<String> {
    let Issuer::Acme { staging } = decisions.issuer else {
        return None;
    };
    let email = &decisions.environment.https.as_ref()?.admin_email;
    let name = issuer_name(staging);
    let directories = if staging {
        "  # https.use_staging: true. Browsers and BitTorrent clients do not trust these certificates.
  directory: https://acme-staging-v02.api.letsencrypt.org/directory\n"
    } else {
        "  directory: https://acme-v02.api.letsencrypt.org/directory
  # New sets of names are tried there first, where mistakes cost nothing.
  stagingDirectory: https://acme-staging-v02.api.letsencrypt.org/directory\n"
    };
    Some(format!(
        "# Certificates for every route that names no other issuer, as Caddy got them.
apiVersion: edge.tidegate.dev/v1alpha1
kind: AcmeIssuer
metadata:
  name: {name}
spec:
  default: true
{directories}  contact: [\"mailto:{email}\"]   # https.admin_email
  termsOfServiceAgreed: true   # https://letsencrypt.org/repository/, as with Caddy
"
    ))
}

/// `metadata` of an object.
fn metadata(decisions: &Decisions<'_>, name: &str) -> String {
    match decisions.options.home {
        Home::Folder => format!("metadata:\n  name: {name}\n"),
        Home::Kubernetes => format!(
            "metadata:\n  name: {name}\n  namespace: {}\n",
            decisions.options.namespace
        ),
    }
}

fn route(decisions: &Decisions<'_>, name: &str) -> String {
    format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TlsRoute\n{}spec:\n",
        metadata(decisions, name)
    )
}

fn backends(decisions: &Decisions<'_>, service: &Service, of_grafana: bool) -> String {
    let port = service.bind.port();
    match decisions.options.home {
        Home::Folder => format!("[{{address: \"{}\"}}]", local(service.bind)),
        Home::Kubernetes => {
            let name = if of_grafana {
                &decisions.options.grafana_service
            } else {
                &decisions.options.tracker_service
            };
            format!("[{{service: {{name: {name}, port: {port}}}}}]")
        }
    }
}

/// A list in brackets; IPv6 addresses need quotes.
fn hostnames(names: &[String]) -> String {
    let quoted: Vec<String> = names
        .iter()
        .map(|name| {
            if name.contains(':') {
                format!("{name:?}")
            } else {
                name.clone()
            }
        })
        .collect();
    format!("[{}]", quoted.join(", "))
}

fn trackers(decisions: &Decisions<'_>) -> Option<String> {
    let name = &decisions.options.name;
    let listed = |trackers: &'_ [Tracker<'_>]| trackers.iter().any(|one| !one.hostnames.is_empty());
    let (http, udp) = (listed(&decisions.http), listed(&decisions.udp));
    if !http && !udp {
        return None;
    }
    let mut text = String::new();
    if http {
        text.push_str(match decisions.on_reverse_proxy() {
            Some(true) => {
                "# The HTTP trackers of one torrust-tracker. It has one switch for all of them, and here it has to say
#   [core.net]
#   on_reverse_proxy = true
# so that it takes each peer's address from the one X-Forwarded-For that this edge writes. That is why all of
# them go through the edge, and why they are in one object: a mixed set is refused when it is written.\n"
            }
            _ => {
                "# The HTTP trackers of one torrust-tracker, which peers reach without this edge. Nothing is served by these
# rules: they keep anybody from putting one of the trackers behind the edge without the others. The tracker has
#   [core.net]
#   on_reverse_proxy = false\n"
            }
        });
    }
    if udp {
        text.push_str(match decisions.options.home {
            Home::Folder => {
                "# UDP trackers are reached without this edge, so that peers keep their addresses; the status lists the DNS
# records of all trackers.\n"
            }
            Home::Kubernetes => {
                "# For UDP trackers the operator makes a Service of type LoadBalancer that keeps the addresses of peers; the
# status lists the DNS records of all trackers.\n"
            }
        });
    }
    text.push_str(&route(decisions, &format!("{name}-trackers")));
    if http {
        let _ = write!(
            text,
            "  # Routes of other objects that lead to the same process say so with the same word.
  trackerGroup: {name}\n"
        );
    }
    text.push_str("  rules:\n");
    for tracker in &decisions.http {
        if !tracker.hostnames.is_empty() {
            text.push_str(&http_rule(decisions, tracker));
        }
    }
    for tracker in &decisions.udp {
        if !tracker.hostnames.is_empty() {
            text.push_str(&udp_rule(decisions, tracker));
        }
    }
    Some(text)
}

fn udp_rule(decisions: &Decisions<'_>, tracker: &Tracker<'_>) -> String {
    let bind = tracker.service.bind;
    // Bound to an address of its own, such as a floating one. A cluster has others than the machine had.
    let own = decisions.options.home == Home::Folder
        && !bind.ip().is_unspecified()
        && !bind.ip().is_loopback();
    let preset = if own {
        format!("{{type: UDP, udp: {{addresses: [\"{}\"]}}}}", bind.ip())
    } else {
        "{type: UDP}".to_owned()
    };
    format!(
        "  - name: {rule}   # {path}
    hostnames: {names}
    tracker: {preset}
    backends: {backends}\n",
        rule = tracker.rule,
        path = tracker.service.path,
        names = hostnames(&tracker.hostnames),
        backends = backends(decisions, tracker.service, false),
    )
}

fn http_rule(decisions: &Decisions<'_>, tracker: &Tracker<'_>) -> String {
    let Tracker {
        rule,
        service,
        exposure,
        hostnames: names,
    } = tracker;
    let port = service.bind.port();
    let preset = match exposure {
        Exposure::Https => "{type: HTTP, exposure: HTTPS}".to_owned(),
        Exposure::Http => format!("{{type: HTTP, exposure: HTTP, port: {port}}}"),
        Exposure::Direct => "{type: HTTP, exposure: Direct}".to_owned(),
    };
    format!(
        "  - name: {rule}   # {path}
    hostnames: {names}
    tracker: {preset}
    backends: {backends}\n",
        path = service.path,
        names = hostnames(names),
        backends = backends(decisions, service, false),
    )
}

fn services(decisions: &Decisions<'_>) -> Option<String> {
    let mut documents = Vec::new();
    for plain in decisions
        .plain
        .iter()
        .filter(|one| one.service.use_tls_proxy)
    {
        let Some(domain) = &plain.service.domain else {
            continue;
        };
        let (end, why, extra) = match plain.kind {
            PlainKind::Api => (
                "api",
                "# The tracker's API. Its admin token travels in the query, which the edge's log leaves out.\n",
                "",
            ),
            PlainKind::Health => ("health", "# The tracker's health check.\n", ""),
            PlainKind::Grafana => (
                "grafana",
                "# Grafana. It is told the name that browsers used, which its live WebSocket insists on.\n",
                "    timeouts: {upgradedIdle: 24h}   # Grafana Live: one quiet WebSocket for each open tab\n",
            ),
        };
        let head = route(decisions, &format!("{}-{end}", decisions.options.name));
        documents.push(format!(
            "{why}{head}  hostnames: [{domain}]   # {path}.domain
  rules:
  - name: {end}
{extra}    backends: {backends}\n",
            domain = domain.as_str(),
            path = plain.service.path,
            backends = backends(decisions, plain.service, plain.kind == PlainKind::Grafana),
        ));
    }
    (!documents.is_empty()).then(|| documents.join("---\n"))
}

/// Closes what only the edge may reach: whoever speaks to an HTTP tracker without it says who it is itself.
fn network_policy(decisions: &Decisions<'_>) -> Option<String> {
    if decisions.options.home != Home::Kubernetes {
        return None;
    }
    let edge = |ports: &[u16]| -> String {
        let mut lines = String::new();
        for port in ports {
            let _ = writeln!(lines, "    - port: {port}");
        }
        lines
    };
    let through: Vec<u16> = decisions
        .http
        .iter()
        .filter(|one| one.exposure != Exposure::Direct)
        .map(|one| one.service.bind.port())
        .chain(
            decisions
                .plain
                .iter()
                .filter(|one| one.kind != PlainKind::Grafana && one.service.use_tls_proxy)
                .map(|one| one.service.bind.port()),
        )
        .collect();
    if through.is_empty() {
        return None;
    }
    let name = &decisions.options.tracker_service;
    let mut text = format!(
        "# With on_reverse_proxy = true the tracker believes whoever reaches its HTTP ports, whatever address they
# claim. So nobody reaches them but the edge.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
{metadata}spec:
  podSelector:
    matchLabels: {{app.kubernetes.io/name: {name}}}   # the labels of your tracker's pods
  policyTypes: [Ingress]
  ingress:
  - from:
    - namespaceSelector:
        matchLabels: {{kubernetes.io/metadata.name: {EDGE_NAMESPACE}}}
      podSelector:
        matchLabels: {{app.kubernetes.io/name: tidegate}}
    ports:
{ports}",
        metadata = metadata(decisions, &format!("{}-tracker", decisions.options.name)),
        ports = edge(&through),
    );
    if decisions.environment.prometheus
        && let Some(api) = &decisions.environment.api
    {
        let _ = write!(
            text,
            "  - from:
    - podSelector:
        matchLabels: {{app.kubernetes.io/name: prometheus}}   # it reads /api/v1/stats
    ports:
{}",
            edge(&[api.bind.port()])
        );
    }
    let direct: Vec<u16> = decisions
        .http
        .iter()
        .filter(|one| one.exposure == Exposure::Direct)
        .map(|one| one.service.bind.port())
        .collect();
    if !direct.is_empty() || !decisions.udp.is_empty() {
        text.push_str("  - ports:   # peers, from everywhere\n");
        text.push_str(&edge(&direct));
        for tracker in &decisions.udp {
            let _ = writeln!(
                text,
                "    - {{port: {}, protocol: UDP}}",
                tracker.service.bind.port()
            );
        }
    }
    Some(text)
}
