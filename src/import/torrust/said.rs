//! What people are told of a plan: what was done, what was not and why, and what to do next.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use super::objects::{files, issuer_name};
use super::plan::{Decisions, Exposure, Issuer, PlainKind, Tracker, local};
use super::{Environment, Home};

/// A line of the table: what, how clients call it, where it listens, what was done.
type Row = [String; 4];

/// The whole explanation.
pub(super) fn explanation(decisions: &Decisions<'_>) -> String {
    let mut text = head(decisions);
    text.push_str(&table(&rows(decisions)));
    let written = written(decisions);
    if written.is_empty() {
        text.push_str("\nObjects\n  none: nothing of this goes through an edge\n");
    }
    list(&mut text, "Objects", &written);
    list(&mut text, "Not taken over", &left_out(decisions));
    list(&mut text, "Mind", &warnings(decisions));
    steps(&mut text, &next(decisions));
    text
}

fn head(decisions: &Decisions<'_>) -> String {
    let name = match &decisions.environment.name {
        Some(name) => format!("Environment {name}"),
        None => "An environment without a name".to_owned(),
    };
    let home = match decisions.options.home {
        Home::Folder => "a folder on the tracker's machine".to_owned(),
        Home::Kubernetes => format!("the namespace {} of a cluster", decisions.options.namespace),
    };
    format!("{name}, for {home}\n\n")
}

fn table(rows: &[Row]) -> String {
    let titles = ["service", "clients use", "listens at", "what was done"].map(str::to_owned);
    let all: Vec<&Row> = std::iter::once(&titles).chain(rows).collect();
    let mut widths = [0; 3];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row.iter()) {
            *width = cell.len().max(*width);
        }
    }
    let mut text = String::new();
    for [service, url, backend, done] in all {
        let _ = writeln!(
            text,
            "{service:<0$}  {url:<1$}  {backend:<2$}  {done}",
            widths[0], widths[1], widths[2]
        );
    }
    text
}

fn list(text: &mut String, title: &str, items: &[(String, String)]) {
    if items.is_empty() {
        return;
    }
    let width = items.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
    let _ = writeln!(text, "\n{title}");
    for (what, why) in items {
        let _ = writeln!(text, "  {what:<width$}  {why}");
    }
}

fn steps(text: &mut String, steps: &[Step]) {
    text.push_str("\nNext\n");
    for (index, step) in steps.iter().enumerate() {
        let _ = writeln!(text, "  {}. {}", index + 1, step.what);
        for line in &step.lines {
            let _ = writeln!(text, "       {line}");
        }
    }
}

fn authority(name: &str, port: u16) -> String {
    if name.contains(':') {
        format!("[{name}]:{port}")
    } else {
        format!("{name}:{port}")
    }
}

fn announce_urls(tracker: &Tracker<'_>, scheme: &str) -> String {
    let port = tracker.service.bind.port();
    let names = if tracker.hostnames.is_empty() {
        vec!["ADDRESS".to_owned()]
    } else {
        tracker.hostnames.clone()
    };
    let urls: Vec<String> = names
        .iter()
        .map(|name| match tracker.exposure {
            Exposure::Https => format!("https://{name}/announce"),
            _ => format!("{scheme}://{}/announce", authority(name, port)),
        })
        .collect();
    urls.join(" ")
}

fn rows(decisions: &Decisions<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (index, tracker) in decisions.http.iter().enumerate() {
        let done = match tracker.exposure {
            Exposure::Https => "through the edge over TLS",
            Exposure::Http => "through the edge's plain listener, which names the peer too",
            Exposure::Direct if tracker.hostnames.is_empty() => {
                "left alone: no use_tls_proxy, and no domain to list it by; give --public-address"
            }
            Exposure::Direct => "listed only: peers reach it without the edge",
        };
        rows.push([
            format!("HTTP tracker {}", index + 1),
            announce_urls(tracker, "http"),
            decisions.backend(tracker.service, false),
            done.to_owned(),
        ]);
    }
    for (index, tracker) in decisions.udp.iter().enumerate() {
        rows.push([
            format!("UDP tracker {}", index + 1),
            announce_urls(tracker, "udp"),
            decisions.backend(tracker.service, false),
            match decisions.options.home {
                _ if tracker.hostnames.is_empty() => {
                    "left alone: no domain to list it by; give --public-address"
                }
                Home::Folder => "listed only: peers reach it without the edge",
                Home::Kubernetes => {
                    "without the edge, by a Service that keeps the addresses of peers"
                }
            }
            .to_owned(),
        ]);
    }
    for plain in &decisions.plain {
        let of_grafana = plain.kind == PlainKind::Grafana;
        let name = match plain.kind {
            PlainKind::Api => "API",
            PlainKind::Health => "health check",
            PlainKind::Grafana => "Grafana",
        };
        let bind = plain.service.bind;
        let (url, done) = match &plain.service.domain {
            Some(domain) if plain.service.use_tls_proxy => (
                format!("https://{}", domain.as_str()),
                "through the edge over TLS",
            ),
            Some(domain) => (
                format!("http://{}", authority(domain.as_str(), bind.port())),
                "left alone: it has a domain, but no use_tls_proxy",
            ),
            None if bind.ip().is_loopback() => (
                "-".to_owned(),
                "left alone: only its own machine reaches it",
            ),
            None => (
                format!("http://ADDRESS:{}", bind.port()),
                "left alone: no use_tls_proxy",
            ),
        };
        rows.push([
            name.to_owned(),
            url,
            decisions.backend(plain.service, of_grafana),
            done.to_owned(),
        ]);
    }
    if decisions.environment.prometheus {
        rows.push([
            "Prometheus".to_owned(),
            "-".to_owned(),
            match decisions.options.home {
                Home::Folder => "127.0.0.1:9090",
                Home::Kubernetes => "prometheus:9090",
            }
            .to_owned(),
            "left alone: the deployer keeps it inside".to_owned(),
        ]);
    }
    rows
}

fn written(decisions: &Decisions<'_>) -> Vec<(String, String)> {
    files(decisions)
        .into_iter()
        .map(|file| {
            let what = if file.name == "issuer.yaml" {
                match decisions.issuer {
                    Issuer::Acme { staging } => {
                        format!(
                            "AcmeIssuer {}, the default of all routes",
                            issuer_name(staging)
                        )
                    }
                    _ => String::new(),
                }
            } else if file.name.ends_with("-trackers.yaml") {
                let name = &decisions.options.name;
                let why = if decisions.http.is_empty() {
                    "for DNS records and statuses"
                } else {
                    "one object, so that the HTTP trackers stay on one side"
                };
                format!("TlsRoute {name}-trackers: {why}")
            } else if file.name.ends_with("-services.yaml") {
                let names: Vec<String> = file
                    .text
                    .lines()
                    .filter_map(|line| line.strip_prefix("  name: "))
                    .map(ToOwned::to_owned)
                    .collect();
                format!("TlsRoute {}", names.join(", "))
            } else {
                "NetworkPolicy: only the edge reaches the tracker's HTTP ports".to_owned()
            };
            (file.name, what)
        })
        .collect()
}

fn left_out(decisions: &Decisions<'_>) -> Vec<(String, String)> {
    let Environment {
        others,
        unknown,
        https,
        ..
    } = decisions.environment;
    let mut out: Vec<(String, String)> = Vec::new();
    let mut add = |what: &str, why: &str| out.push((what.to_owned(), why.to_owned()));
    match decisions.issuer {
        Issuer::None if https.is_some() => add(
            "https",
            "nothing goes through TLS, so that no certificate is needed",
        ),
        Issuer::Internal => add(
            "https",
            "no public authority certifies these names: the edge's own CA does; `tidegate ca` tells how to trust it",
        ),
        _ => {}
    }
    if !others.is_empty() {
        add(&others.join(", "), "none of an edge's business");
    }
    add("tokens and passwords", "not read; they stay where they are");
    for field in unknown {
        add(field, "unknown here");
    }
    out
}

fn warnings(decisions: &Decisions<'_>) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::new();
    let environment = decisions.environment;
    for tracker in &decisions.udp {
        let ip = tracker.service.bind.ip();
        if ip.is_ipv6() && ip.is_unspecified() {
            out.push((
                tracker.service.path.clone(),
                "[::] takes IPv4 peers for IPv6 ones and answers them with addresses they cannot read; bind 0.0.0.0, and IPv6 at an address of its own".to_owned(),
            ));
        }
    }
    for tracker in &decisions.http {
        let ip = tracker.service.bind.ip();
        if tracker.exposure == Exposure::Direct && ip.is_ipv6() && ip.is_unspecified() {
            out.push((
                tracker.service.path.clone(),
                "[::] stores IPv4 peers as IPv6 ones, which some clients never connect to; behind the edge they are stored right".to_owned(),
            ));
        }
    }
    for plain in &decisions.plain {
        if plain.kind == PlainKind::Api
            && !plain.service.use_tls_proxy
            && !plain.service.bind.ip().is_loopback()
        {
            out.push((
                plain.service.path.clone(),
                "its admin token crosses the network readable for everybody; give it a domain and use_tls_proxy, or bind 127.0.0.1".to_owned(),
            ));
        }
    }
    if environment.private {
        out.push((
            "tracker.core.private".to_owned(),
            "announces carry a key in their path; the edge's log leaves it out".to_owned(),
        ));
    }
    if let Issuer::Acme { staging: true } = decisions.issuer {
        out.push((
            "https.use_staging".to_owned(),
            "no client trusts staging certificates, and BitTorrent clients only say that the tracker fails".to_owned(),
        ));
    }
    let private: Vec<&str> = decisions
        .tls_names()
        .into_iter()
        .filter(|name| super::plan::is_private(name))
        .collect();
    if matches!(decisions.issuer, Issuer::Acme { .. }) && !private.is_empty() {
        out.push((
            private.join(", "),
            "no public authority certifies it; give its route `tls: {issuerRef: {kind: InternalCA}}`".to_owned(),
        ));
    }
    out
}

/// One thing to do.
struct Step {
    what: String,
    lines: Vec<String>,
}

impl Step {
    fn new(what: impl Into<String>, lines: impl IntoIterator<Item = String>) -> Self {
        Self {
            what: what.into(),
            lines: lines.into_iter().collect(),
        }
    }
}

fn next(decisions: &Decisions<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(on) = decisions.on_reverse_proxy() {
        steps.push(Step::new(
            "tracker.toml: one switch for all HTTP trackers of the process",
            ["[core.net]".to_owned(), format!("on_reverse_proxy = {on}")],
        ));
    }
    steps.extend(close_ports(decisions));
    steps.extend(listen(decisions));
    steps.extend(dns(decisions));
    if !files(decisions).is_empty() {
        steps.extend(switch(decisions));
    }
    steps
}

/// Ports that only the edge may reach.
fn edge_ports(decisions: &Decisions<'_>) -> Vec<(u16, &'static str)> {
    let trackers = decisions
        .http
        .iter()
        .filter(|one| one.exposure != Exposure::Direct)
        .map(|one| (one.service.bind.port(), "tracker"));
    let plain = decisions
        .plain
        .iter()
        .filter(|one| one.service.use_tls_proxy)
        .map(|one| {
            let of = match one.kind {
                PlainKind::Grafana => "grafana",
                _ => "tracker",
            };
            (one.service.bind.port(), of)
        });
    trackers.chain(plain).collect()
}

fn close_ports(decisions: &Decisions<'_>) -> Option<Step> {
    let ports = edge_ports(decisions);
    if ports.is_empty() {
        return None;
    }
    Some(match decisions.options.home {
        Home::Folder => {
            let mut lines = Vec::new();
            for of in ["tracker", "grafana"] {
                let own: Vec<String> = ports
                    .iter()
                    .filter(|(_, owner)| *owner == of)
                    .map(|(port, _)| format!("\"127.0.0.1:{port}:{port}\""))
                    .collect();
                if !own.is_empty() {
                    lines.push(format!("{of}: ports: [{}]", own.join(", ")));
                }
            }
            Step::new(
                "docker-compose.yml: publish these ports to this machine only (what Docker publishes passes by ufw)",
                lines,
            )
        }
        Home::Kubernetes => Step::new(
            "Services with these ports, and labels that the NetworkPolicy selects; ClusterIP is enough",
            ports
                .iter()
                .map(|(port, of)| {
                    let name = match *of {
                        "grafana" => &decisions.options.grafana_service,
                        _ => &decisions.options.tracker_service,
                    };
                    format!("{name}:{port}")
                })
                .chain(decisions.udp.iter().map(|one| {
                    let name = &decisions.options.tracker_service;
                    format!("{name}:{}/UDP", one.service.bind.port())
                })),
        ),
    })
}

/// Where trackers without TLS are announced, the edge has to listen.
fn listen(decisions: &Decisions<'_>) -> Option<Step> {
    let ports: Vec<u16> = decisions
        .http
        .iter()
        .filter(|one| one.exposure == Exposure::Http)
        .map(|one| one.service.bind.port())
        .collect();
    if ports.is_empty() {
        return None;
    }
    Some(match decisions.options.home {
        Home::Folder => {
            let addresses: Vec<String> = match decisions.options.addresses.as_slice() {
                [] => vec!["ADDRESS".to_owned()],
                known => known.iter().map(ToString::to_string).collect(),
            };
            let listeners: Vec<String> = std::iter::once("80".to_owned())
                .chain(
                    ports
                        .iter()
                        .flat_map(|port| addresses.iter().map(|address| authority(address, *port))),
                )
                .collect();
            Step::new(
                "/etc/tidegate/tidegate.env: listen at the ports of trackers without TLS (by address, as the trackers have them on loopback)",
                [format!("TIDEGATE_HTTP={}", listeners.join(","))],
            )
        }
        Home::Kubernetes => {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            Step::new(
                "the chart's values: listen at the ports of trackers without TLS",
                [format!(
                    "listeners: {{http: {{extraPorts: [{}]}}}}",
                    ports.join(", ")
                )],
            )
        }
    })
}

fn dns(decisions: &Decisions<'_>) -> Option<Step> {
    let announced = decisions.announced();
    let mut names: BTreeSet<&str> = decisions.tls_names();
    names.extend(announced.keys());
    names.retain(|name| name.parse::<IpAddr>().is_err());
    if names.is_empty() {
        return None;
    }
    let width = names.iter().map(|name| name.len() + 1).max().unwrap_or(0);
    let records = |addresses: &[IpAddr]| -> Vec<(&str, String)> {
        if addresses.is_empty() {
            return vec![("A", "ADDRESS".to_owned())];
        }
        addresses
            .iter()
            .map(|ip| (if ip.is_ipv4() { "A" } else { "AAAA" }, ip.to_string()))
            .collect()
    };
    let mut lines = Vec::new();
    for name in names {
        let name_dot = format!("{name}.");
        let own = own_addresses(decisions, name);
        let addresses = if own.is_empty() {
            &decisions.options.addresses
        } else {
            &own
        };
        for (kind, address) in records(addresses) {
            lines.push(format!("{name_dot:<width$} IN {kind:<4} {address}"));
        }
        if let Some((udp, tcp)) = announced.get(name) {
            let ports: Vec<String> = udp
                .iter()
                .map(|port| format!("UDP:{port}"))
                .chain(tcp.iter().map(|port| format!("TCP:{port}")))
                .collect();
            lines.push(format!(
                "{name_dot:<width$} IN TXT  \"BITTORRENT {}\"",
                ports.join(" ")
            ));
        }
    }
    let what = if announced.is_empty() {
        "DNS records"
    } else {
        "DNS records; TXT tells clients and tracker lists where a tracker is (BEP 34)"
    };
    Some(Step::new(what, lines))
}

/// Addresses that only UDP trackers of this name listen on, such as floating ones.
fn own_addresses(decisions: &Decisions<'_>, name: &str) -> Vec<IpAddr> {
    if decisions.options.home != Home::Folder || decisions.tls_names().contains(name) {
        return Vec::new();
    }
    decisions
        .udp
        .iter()
        .filter(|one| one.hostnames.iter().any(|own| own == name))
        .map(|one| one.service.bind.ip())
        .filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
        .collect()
}

fn switch(decisions: &Decisions<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    let tls = !decisions.tls_names().is_empty();
    match decisions.options.home {
        Home::Folder => {
            if matches!(decisions.issuer, Issuer::Acme { .. }) {
                steps.push(Step::new(
                    "take Caddy's certificates over, so that none has to be ordered",
                    ["tidegate import --from caddy /opt/torrust/storage/caddy/data/caddy --dir DIR".to_owned()],
                ));
            }
            steps.push(Step::new(
                "look at what would be served",
                ["tidegate check DIR".to_owned()],
            ));
            if tls {
                steps.push(Step::new(
                    "change over; back is the same the other way round",
                    [
                        "docker compose stop caddy && systemctl start tidegate".to_owned(),
                        "systemctl stop tidegate && docker compose start caddy".to_owned(),
                    ],
                ));
            }
        }
        Home::Kubernetes => {
            steps.push(Step::new(
                "apply, and wait until every route is ready",
                [
                    "kubectl apply -f DIR".to_owned(),
                    format!("kubectl get tlsr -n {} -w", decisions.options.namespace),
                ],
            ));
        }
    }
    if let Some(api) = decisions.environment.api.as_ref()
        && decisions.on_reverse_proxy() == Some(true)
    {
        let at = match decisions.options.home {
            Home::Folder => local(api.bind).to_string(),
            Home::Kubernetes => format!(
                "{}.{}:{}",
                decisions.options.tracker_service,
                decisions.options.namespace,
                api.bind.port()
            ),
        };
        steps.push(Step::new(
            "see that peers keep their addresses: announce a torrent, then ask the tracker who has it",
            [format!("curl 'http://{at}/api/v1/torrent/INFO_HASH?token=TOKEN'")],
        ));
    }
    steps
}

/// The three ways out of a mixed set.
pub(super) fn ways(decisions: &Decisions<'_>) -> String {
    let side = |through: bool| {
        decisions
            .http
            .iter()
            .filter(move |one| one.service.use_tls_proxy == through)
    };
    let names = |through: bool| {
        let names: Vec<String> = side(through)
            .map(|one| format!("{} (port {})", one.rule, one.service.bind.port()))
            .collect();
        names.join(", ")
    };
    let nameless: Vec<String> = side(false)
        .filter(|one| one.service.domain.is_none())
        .map(|one| format!("{}.domain", one.service.path))
        .collect();
    let (through, direct) = (names(true), names(false));
    let mut ways = [
        (
            "--mixed-as https",
            vec![format!("over TLS like the others: {direct}")],
        ),
        (
            "--mixed-as http",
            vec![
                format!("announce URLs as they are, but through the edge: {direct}"),
                "the edge's plain listener names the peer in the header as well, so that all are alike".to_owned(),
            ],
        ),
        (
            "--mixed-as direct",
            vec![
                format!("without TLS and without the edge: {through}"),
                "the tracker then has on_reverse_proxy = false".to_owned(),
            ],
        ),
    ];
    if !nameless.is_empty() {
        let missing = nameless.join(", ");
        ways[0].1.push(format!("needs {missing}"));
        ways[1].1.push(format!(
            "needs {missing}, or --public-address with how peers call this machine"
        ));
    }
    let mut text =
        "Nothing was written. Take one of three ways, or change use_tls_proxy in the file:\n"
            .to_owned();
    for (option, lines) in ways {
        for (index, line) in lines.into_iter().enumerate() {
            let option = if index == 0 { option } else { "" };
            let _ = writeln!(text, "  {option:<17}  {line}");
        }
    }
    text
}
