//! Renders a translation for people: statuses, then hosts with their entries, then clusters.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use tidegate_model::{
    Action, AddressParameters, Agent, Certificate, Cluster, Filters, HostPattern, Limits,
    PathMatch, RequestMatch, RouteEntry, Snapshot, Timeouts, TlsMode, ValueMatch, VirtualHost,
};

use crate::translate::Translation;

pub(super) fn render(translation: &Translation) -> String {
    let statuses = &translation.statuses;
    let mut out = Map::new();
    let mut section = Map::new();
    for (id, status) in &statuses.routes {
        section.insert(format!("TlsRoute {id}"), status_of(status));
    }
    for (id, status) in &statuses.agents {
        section.insert(format!("TunnelAgent {id}"), status_of(status));
    }
    for (name, status) in &statuses.issuers {
        section.insert(format!("AcmeIssuer {name}"), status_of(status));
    }
    out.insert("1 statuses".to_owned(), section.into());
    let problems: Vec<_> = translation
        .problems
        .iter()
        .map(|problem| format!("{} {problem}", problem.reason))
        .collect();
    out.insert("2 problems".to_owned(), problems.into());
    out.insert("3 hosts".to_owned(), hosts(&translation.snapshot));
    let clusters: Map<String, Value> = translation
        .snapshot
        .clusters()
        .iter()
        .map(|cluster| (cluster.key.to_string(), cluster_of(cluster)))
        .collect();
    out.insert("4 clusters".to_owned(), clusters.into());
    let wanted: Vec<_> = translation
        .wanted_certificates
        .iter()
        .map(|wanted| {
            let names: Vec<_> = wanted.names.iter().map(ToString::to_string).collect();
            format!(
                "{}: {} by {:?}",
                wanted.route,
                names.join(", "),
                wanted.issuer
            )
        })
        .collect();
    out.insert("5 wanted certificates".to_owned(), wanted.into());
    if !translation.udp_trackers.is_empty() {
        let relays = &translation.snapshot.udp_relays;
        let trackers: Vec<_> = translation
            .udp_trackers
            .iter()
            .map(|tracker| {
                let relay = relays.iter().find(|relay| relay.id == tracker.id);
                json!([format!("{tracker:?}"), format!("{relay:?}")])
            })
            .collect();
        out.insert("6 udp trackers".to_owned(), trackers.into());
    }
    let wanted = translation.udp_services.iter();
    let wanted = wanted.map(|service| format!("wanted {service:?}"));
    let unwanted = translation.unwanted_services.iter();
    let unwanted = unwanted.map(|service| format!("unwanted {service:?}"));
    let services: Vec<_> = wanted.chain(unwanted).collect();
    if !services.is_empty() {
        out.insert("7 services".to_owned(), services.into());
    }
    if !translation.snapshot.agents.is_empty() {
        let agents = translation.snapshot.agents.iter();
        let agents = agents.map(|(id, agent)| (id.to_string(), agent_of(agent)));
        let agents: Map<String, Value> = agents.collect();
        out.insert("8 agents".to_owned(), agents.into());
    }
    if !translation.snapshot.ports.is_empty() {
        let ports = translation.snapshot.ports.values().map(|port| {
            let access = port.access.as_ref();
            let access = access.map_or(String::new(), |it| format!(", only {it:?}"));
            let cluster = &port.cluster.name;
            format!("{} for {}: {cluster}{access}", port.id, port.route)
        });
        let ports: Vec<_> = ports.collect();
        out.insert("9 ports".to_owned(), ports.into());
    }
    let mut text = serde_saphyr::to_string(&out).unwrap();
    // A CA is part of what the identity follows from.
    for mapping in translation
        .snapshot
        .agents
        .values()
        .flat_map(|it| &it.mappings)
    {
        if mapping
            .tls
            .as_ref()
            .is_some_and(|tls| !tls.ca_der.is_empty())
        {
            text = text.replace(mapping.id.as_str(), "(with CA)");
        }
    }
    without_fingerprints(&text)
}

/// Certificates are made anew for each run.
fn without_fingerprints(text: &str) -> String {
    regex::Regex::new("ca=[0-9a-f]{16}")
        .unwrap()
        .replace_all(text, "ca=(sha256)")
        .into_owned()
}

fn status_of<T: serde::Serialize>(status: &T) -> Value {
    let mut value = serde_json::to_value(status).unwrap();
    let conditions = value["conditions"].as_array().cloned().unwrap_or_default();
    let conditions: Vec<Value> = conditions
        .iter()
        .map(|condition| {
            let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
            let time = text("lastTransitionTime");
            let since = time.strip_prefix("2026-01-01T").unwrap_or(&time);
            json!(format!(
                "{}={} {} since {since}: {}",
                text("type"),
                text("status"),
                text("reason"),
                text("message")
            ))
        })
        .collect();
    value["conditions"] = conditions.into();
    if let Some(fingerprint) = value.pointer_mut("/certificate/fingerprint") {
        assert_eq!(fingerprint.as_str().unwrap().len(), 64);
        *fingerprint = "(sha256)".into();
    }
    value
}

fn agent_of(agent: &Agent) -> Value {
    let mappings = agent.mappings.iter().map(|mapping| {
        let mut text = format!(
            "{} {} {:?} for {}",
            mapping.target,
            mapping.id,
            mapping.protocol,
            mapping.names.join(", ")
        );
        if let Some(tls) = &mapping.tls {
            let cas = tls.ca_der.len();
            write!(
                text,
                "; tls {:?}, {cas} CAs, insecure {}",
                tls.server_name, tls.insecure_skip_verify
            )
            .unwrap();
        }
        if let Some(version) = mapping.proxy_protocol {
            write!(text, "; PROXY {version:?}").unwrap();
        }
        text
    });
    let mut mappings: Vec<_> = mappings.collect();
    mappings.sort();
    let verdicts = agent.verdicts.iter();
    let verdicts =
        verdicts.map(|it| format!("{} {} {}: {}", it.name, it.accepted, it.reason, it.message));
    let verdicts: Vec<_> = verdicts.collect();
    json!({
        "1 keys": agent.keys.len(),
        "2 suspended": agent.suspended,
        "3 hold": format!("{:?}", agent.hold),
        "4 mappings": mappings,
        "5 verdicts": verdicts,
    })
}

fn hosts(snapshot: &Snapshot) -> Value {
    let mut all: Vec<_> = snapshot.hosts.values().collect();
    all.sort_by(|a, b| a.pattern.cmp(&b.pattern));
    all.iter()
        .map(|host| (host.pattern.to_string(), host_of(host)))
        .collect::<Map<String, Value>>()
        .into()
}

fn host_of(host: &VirtualHost) -> Value {
    let mut out = Map::new();
    out.insert("route".to_owned(), host.route.to_string().into());
    let tls = match &host.tls {
        TlsMode::Passthrough(cluster) => format!("passthrough to {}", cluster.key),
        TlsMode::Terminate(policy) => {
            let certificate = policy
                .certificate
                .as_ref()
                .map_or("none".to_owned(), |found| certificate_of(found));
            let client = policy
                .client_auth
                .as_ref()
                .map(|auth| format!(", client certificates {:?}", auth.mode))
                .unwrap_or_default();
            format!(
                "{:?}, certificate {certificate}{client}",
                policy.min_version
            )
        }
    };
    out.insert("tls".to_owned(), tls.into());
    out.insert("plain".to_owned(), format!("{:?}", host.plain_http).into());
    if let Some(hsts) = &host.hsts {
        out.insert("hsts".to_owned(), hsts.to_str().unwrap().into());
    }
    if host.guards_by_path {
        out.insert("guardsByPath".to_owned(), true.into());
    }
    for rules in &host.plain {
        let port = rules.port.map_or("any".to_owned(), |port| port.to_string());
        let lines: Vec<_> = rules.entries.iter().map(plain_of).collect();
        out.insert(format!("plain, port {port}"), lines.into());
    }
    let entries: Vec<_> = host.entries.iter().map(entry_of).collect();
    out.insert("entries".to_owned(), entries.into());
    out.into()
}

fn plain_of(entry: &RouteEntry) -> String {
    let own = if entry.rule.plain {
        "answers"
    } else {
        "as plain says"
    };
    format!("{} {own}", entry.rule.name)
}

fn certificate_of(certificate: &Certificate) -> String {
    let names: Vec<_> = certificate
        .names
        .iter()
        .map(HostPattern::to_string)
        .collect();
    format!("for {} from {:?}", names.join(", "), certificate.origin)
}

fn entry_of(entry: &RouteEntry) -> Value {
    let rule = &entry.rule;
    let mut out = Map::new();
    out.insert("1 match".to_owned(), match_of(&entry.request).into());
    out.insert("2 rule".to_owned(), rule.name.clone().into());
    let action = match &rule.action {
        Action::Forward(group) => {
            let shares: Vec<_> = group
                .backends
                .iter()
                .map(|backend| format!("{} of {}", backend.weight, backend.cluster.key))
                .collect();
            format!("forward {}", shares.join("; "))
        }
        other => format!("{other:?}"),
    };
    out.insert("3 action".to_owned(), action.into());
    if rule.filters != Filters::default() {
        out.insert("filters".to_owned(), filters_of(&rule.filters));
    }
    if rule.timeouts != Timeouts::default() {
        out.insert("timeouts".to_owned(), format!("{:?}", rule.timeouts).into());
    }
    if rule.limits != Limits::default() {
        out.insert("limits".to_owned(), format!("{:?}", rule.limits).into());
    }
    if let Some(tracker) = &rule.tracker {
        let shown = match tracker.address_parameters {
            AddressParameters::Pass => true.into(),
            AddressParameters::Strip => "strips addresses".into(),
        };
        out.insert("tracker".to_owned(), shown);
    }
    out.into()
}

fn match_of(request: &RequestMatch) -> String {
    let mut parts = Vec::new();
    match &request.path {
        None => {}
        Some(PathMatch::Exact(path)) => parts.push(format!("path is {path}")),
        Some(PathMatch::Prefix(path)) => parts.push(format!("path under {path}")),
        Some(PathMatch::Regex(regex)) => parts.push(format!("path matches {}", regex.as_str())),
    }
    let value = |value: &ValueMatch| match value {
        ValueMatch::Exact(text) => format!("is {text:?}"),
        ValueMatch::Regex(regex) => format!("matches {}", regex.as_str()),
    };
    if let Some(method) = &request.method {
        parts.push(format!("method is {method}"));
    }
    for header in &request.headers {
        parts.push(format!("header {} {}", header.name, value(&header.value)));
    }
    for query in &request.query {
        parts.push(format!("query {} {}", query.name, value(&query.value)));
    }
    if parts.is_empty() {
        "everything".to_owned()
    } else {
        parts.join(" and ")
    }
}

fn filters_of(filters: &Filters) -> Value {
    let default = Filters::default();
    let mut out: BTreeMap<&str, String> = BTreeMap::new();
    let mut put = |name, differs: bool, text: String| {
        if differs {
            out.insert(name, text);
        }
    };
    put(
        "ipAccess",
        filters.ip_access.is_some(),
        format!("{:?}", filters.ip_access),
    );
    put(
        "rateLimits",
        !filters.rate_limits.is_empty(),
        format!("{:?}", filters.rate_limits),
    );
    put(
        "cors",
        filters.cors.is_some(),
        format!("{:?}", filters.cors),
    );
    put(
        "basicAuth",
        filters.basic_auth.is_some(),
        format!("{:?}", filters.basic_auth),
    );
    let auth = filters.forward_auth.as_ref().map(|auth| {
        format!(
            "{} {} sees {:?} gives {:?} within {:?}",
            auth.cluster.key, auth.path, auth.request_headers, auth.response_headers, auth.timeout
        )
    });
    put("forwardAuth", auth.is_some(), auth.unwrap_or_default());
    put(
        "requestHeaders",
        filters.request_headers != default.request_headers,
        format!("{:?}", filters.request_headers),
    );
    put(
        "rewrite",
        filters.rewrite.is_some(),
        format!("{:?}", filters.rewrite),
    );
    let mirrors: Vec<_> = filters
        .mirrors
        .iter()
        .map(|mirror| format!("{} % to {}", mirror.percent, mirror.cluster.key))
        .collect();
    put("mirrors", !mirrors.is_empty(), mirrors.join(", "));
    put(
        "responseHeaders",
        filters.response_headers != default.response_headers,
        format!("{:?}", filters.response_headers),
    );
    put(
        "compression",
        filters.compression.is_some(),
        format!("{:?}", filters.compression),
    );
    json!(out)
}

/// What a cluster says beyond its key.
fn cluster_of(cluster: &Cluster) -> Value {
    let mut out = Map::new();
    out.insert("target".to_owned(), format!("{:?}", cluster.target).into());
    out.insert(
        "protocol".to_owned(),
        format!("{:?}", cluster.protocol).into(),
    );
    if let Some(tls) = &cluster.tls {
        let roots = if tls.roots.is_some() { "own" } else { "system" };
        let text = format!(
            "server name {:?}, {roots} CAs{}",
            tls.server_name,
            if tls.insecure_skip_verify {
                ", unverified"
            } else {
                ""
            }
        );
        out.insert("tls".to_owned(), text.into());
    }
    if let Some(version) = cluster.proxy_protocol {
        out.insert("proxyProtocol".to_owned(), format!("{version:?}").into());
    }
    out.insert(
        "loadBalancing".to_owned(),
        format!("{:?}", cluster.load_balancing).into(),
    );
    if let Some(check) = &cluster.active_health {
        out.insert("activeHealth".to_owned(), format!("{check:?}").into());
    }
    let passive = &cluster.passive_health;
    out.insert(
        "passiveHealth".to_owned(),
        format!(
            "{} failures, {:?}",
            passive.consecutive_failures, passive.ejection_time
        )
        .into(),
    );
    if let Some(max) = cluster.circuit.max_requests {
        out.insert("maxRequests".to_owned(), max.into());
    }
    out.insert(
        "connectTimeout".to_owned(),
        format!("{:?}", cluster.connect_timeout).into(),
    );
    out.into()
}
