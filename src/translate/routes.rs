//! One route: its specification, compiled. What it shares with other routes (hostnames, tracker groups)
//! and its certificate come later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use tidegate_model::{
    Action, ClientAuth, ClientAuthMode, Cluster, HostPattern, PlainHttp, PlainRules, RouteEntry,
    Rule, TlsVersion,
};

use super::matches::{decides_by_path, precedence};
use super::probes::{self, CompiledProbe};
use super::references::References;
use super::report::{Field, Report};
use super::rules::{self, CompiledRule, Way};
use super::udp::CompiledUdp;
use super::words::one_of;
use super::{mappings, trackers};
use crate::api::conditions::Reason;
use crate::api::{HttpPolicy, TlsPolicy, TlsRouteSpec};

/// A route that can be served.
#[derive(Debug)]
pub(super) struct CompiledRoute {
    /// Every hostname of the route and what it leads to.
    pub(super) hosts: BTreeMap<HostPattern, HostService>,
    pub(super) tls: CompiledTls,
    pub(super) plain_http: PlainHttp,
    pub(super) hsts: Option<HeaderValue>,
    /// Its UDP trackers.
    pub(super) udp: Vec<CompiledUdp>,
    /// Trackers that are asked which addresses they take.
    pub(super) probes: Vec<CompiledProbe>,
}

// === impl CompiledRoute ===

impl CompiledRoute {
    /// Whether the hostname is served over TLS.
    pub(super) fn is_secure(&self, host: &HostPattern) -> bool {
        match self.hosts.get(host) {
            Some(HostService::Rules { entries, .. }) => !entries.is_empty(),
            Some(HostService::Passthrough(_)) => true,
            None => false,
        }
    }

    /// Whether any hostname is served over TLS here.
    pub(super) fn needs_certificate(&self) -> bool {
        self.hosts.keys().any(|host| self.is_secure(host))
    }
}

/// What a hostname leads to.
#[derive(Debug)]
pub(super) enum HostService {
    /// Rules for requests.
    Rules {
        /// Over TLS, by precedence; none if every rule answers over plain HTTP only.
        entries: Vec<RouteEntry>,
        /// Over plain HTTP, where some rules answer there whatever the others do.
        plain: Vec<PlainRules>,
    },
    /// A backend that speaks TLS itself; None when it cannot be reached as things are.
    Passthrough(Option<Arc<Cluster>>),
}

/// How TLS is spoken.
#[derive(Debug)]
pub(super) enum CompiledTls {
    Terminate {
        min_version: TlsVersion,
        client_auth: Option<Arc<ClientAuth>>,
        source: CertificateSource,
    },
    Passthrough,
}

/// Where the certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CertificateSource {
    DefaultIssuer,
    InternalCa,
    Acme(String),
    Secret(String),
}

/// Reads a specification. Problems that make it unusable are those of the condition Accepted; the result
/// is None exactly then.
pub(super) fn compile(
    report: &mut Report,
    references: &References<'_>,
    spec: &TlsRouteSpec,
) -> Option<CompiledRoute> {
    let field = Field::SPEC;
    let hostnames = rules::hostnames(report, &field.at("hostnames"), &spec.hostnames);
    let passthrough = passthrough(report, &field.at("tls"), spec.tls.as_ref());
    let tls = tls(report, references, &field.at("tls"), spec.tls.as_ref());
    let http = http(
        report,
        &field.at("http"),
        spec.http.as_ref(),
        passthrough == Some(true),
    );
    let at = field.at("rules");
    if spec.rules.is_empty() {
        report.invalid(
            at,
            "there is no rule",
            "add one such as {backends: [{service: {name: blog, port: 80}}]}",
        );
    }
    let mut compiled: Vec<Option<CompiledRule>> = Vec::with_capacity(spec.rules.len());
    let mut names: Vec<&str> = Vec::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        let at = at.index(index);
        if rule.hostnames.is_empty() && spec.hostnames.is_empty() {
            report.invalid(
                at.at("hostnames"),
                "neither the rule nor the route names a hostname",
                "set spec.hostnames, or hostnames in every rule",
            );
        }
        if let Some(name) = &rule.name {
            if names.contains(&name.as_str()) {
                report.invalid(
                    at.at("name"),
                    format!("{name:?} is also the name of an earlier rule"),
                    "give it another name",
                );
            }
            names.push(name);
        }
        if passthrough == Some(true) {
            report.forbid(
                &at,
                &[
                    ("match", rule.r#match.is_some()),
                    ("matches", !rule.matches.is_empty()),
                    ("filters", !rule.filters.is_empty()),
                ],
                "requests are not opened with tls.mode Passthrough",
                "leave it out, or set tls.mode: Terminate",
            );
            if rule.backends.len() > 1 {
                report.invalid(
                    at.at("backends"),
                    "there is more than one backend, and tls.mode is Passthrough",
                    "keep one; its name may have several addresses",
                );
            }
            if rule
                .backends
                .iter()
                .any(|backend| backend.r#static.is_some())
            {
                report.invalid(
                    at.at("backends").index(0),
                    "a static backend cannot answer with tls.mode Passthrough",
                    "use service or address",
                );
            }
            let tracker = rule.tracker.as_ref();
            if tracker.is_some_and(|tracker| tracker.exposure.as_deref() == Some("HTTP")) {
                report.invalid(
                    at.at("tracker").at("exposure"),
                    "HTTP needs rules for requests, and tls.mode is Passthrough",
                    "leave it out, or set tls.mode: Terminate",
                );
            }
        }
        mappings::check_mode(report, &at, rule, passthrough == Some(true));
        compiled.push(rules::compile(report, references, &at, rule, index));
    }
    trackers::check_within(report, spec);

    if report.has(crate::api::conditions::ConditionType::Accepted) {
        return None;
    }
    let compiled: Vec<CompiledRule> = compiled.into_iter().collect::<Option<_>>()?;
    let (plain_http, strict) = http?;
    let probes = probes::of_rules(spec, &compiled);
    let hostnames = hostnames?;
    let udp = udp_trackers(&hostnames, &compiled);
    let hosts = if passthrough? {
        passthrough_hosts(report, &hostnames, compiled)?
    } else {
        let mut hosts = rule_hosts(&hostnames, &compiled);
        if tls.as_ref()?.1 {
            close(&mut hosts);
        }
        hosts
    };
    Some(CompiledRoute {
        hosts,
        tls: tls?.0,
        plain_http,
        hsts: strict,
        udp,
        probes,
    })
}

fn passthrough(report: &mut Report, field: &Field<'_>, wire: Option<&TlsPolicy>) -> Option<bool> {
    one_of(
        report,
        &field.at("mode"),
        wire.and_then(|tls| tls.mode.as_deref()),
        false,
        &[("Terminate", false), ("Passthrough", true)],
    )
}

/// The second part says that client certificates were asked for but cannot be verified.
fn tls(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: Option<&TlsPolicy>,
) -> Option<(CompiledTls, bool)> {
    let terminate = |source| CompiledTls::Terminate {
        min_version: TlsVersion::default(),
        client_auth: None,
        source,
    };
    let Some(wire) = wire else {
        return Some((terminate(CertificateSource::DefaultIssuer), false));
    };
    if wire.mode.as_deref() == Some("Passthrough") {
        report.forbid(
            field,
            &[
                ("issuerRef", wire.issuer_ref.is_some()),
                ("secretName", wire.secret_name.is_some()),
                ("minVersion", wire.min_version.is_some()),
                ("clientAuth", wire.client_auth.is_some()),
            ],
            "the backend speaks TLS with tls.mode Passthrough",
            "leave it out, or set tls.mode: Terminate",
        );
        return Some((CompiledTls::Passthrough, false));
    }
    let min_version = one_of(
        report,
        &field.at("minVersion"),
        wire.min_version.as_deref(),
        TlsVersion::Tls12,
        &[("1.2", TlsVersion::Tls12), ("1.3", TlsVersion::Tls13)],
    );
    let source = certificate_source(report, field, wire);
    let mut unverifiable = false;
    let client_auth = match &wire.client_auth {
        None => Some(None),
        Some(wire) => {
            let at = field.at("clientAuth");
            let mode = one_of(
                report,
                &at.at("mode"),
                wire.mode.as_deref(),
                ClientAuthMode::Required,
                &[
                    ("Required", ClientAuthMode::Required),
                    ("Optional", ClientAuthMode::Optional),
                ],
            );
            if wire.ca_secret_name.is_some() == wire.ca_config_map_name.is_some() {
                report.invalid(
                    at,
                    "the CA is not named in one of the two ways",
                    "set exactly one of caSecretName and caConfigMapName",
                );
            }
            let roots = references.roots(
                report,
                &at,
                wire.ca_secret_name.as_deref(),
                wire.ca_config_map_name.as_deref(),
            );
            unverifiable = roots.is_none();
            mode.map(|mode| {
                roots.map(|(roots, fingerprint)| {
                    Arc::new(ClientAuth {
                        roots,
                        mode,
                        fingerprint,
                    })
                })
            })
        }
    };
    Some((
        CompiledTls::Terminate {
            min_version: min_version?,
            client_auth: client_auth?,
            source: source?,
        },
        unverifiable,
    ))
}

fn certificate_source(
    report: &mut Report,
    field: &Field<'_>,
    wire: &TlsPolicy,
) -> Option<CertificateSource> {
    let Some(issuer) = &wire.issuer_ref else {
        return Some(match &wire.secret_name {
            Some(name) => CertificateSource::Secret(name.clone()),
            None => CertificateSource::DefaultIssuer,
        });
    };
    if wire.secret_name.is_some() {
        report.invalid(
            field,
            "issuerRef and secretName are both set",
            "keep issuerRef to have a certificate issued, or secretName to use an existing one",
        );
        return None;
    }
    let at = field.at("issuerRef");
    let internal = one_of(
        report,
        &at.at("kind"),
        issuer.kind.as_deref(),
        false,
        &[("AcmeIssuer", false), ("InternalCA", true)],
    )?;
    match (internal, &issuer.name) {
        (true, None) => Some(CertificateSource::InternalCa),
        (false, Some(name)) => Some(CertificateSource::Acme(name.clone())),
        (true, Some(name)) => {
            report.invalid(
                at.at("name"),
                format!("the internal CA has no name, but {name:?} is given"),
                "leave out name",
            );
            None
        }
        (false, None) => {
            report.invalid(
                at.at("name"),
                "it is missing",
                "name an AcmeIssuer, or set kind: InternalCA",
            );
            None
        }
    }
}

fn http(
    report: &mut Report,
    field: &Field<'_>,
    wire: Option<&HttpPolicy>,
    passthrough: bool,
) -> Option<(PlainHttp, Option<HeaderValue>)> {
    #[derive(Clone, Copy, PartialEq)]
    enum Plain {
        Redirect,
        Serve,
        Refuse,
    }
    let Some(wire) = wire else {
        return Some((PlainHttp::Redirect(StatusCode::PERMANENT_REDIRECT), None));
    };
    let plain = one_of(
        report,
        &field.at("plain"),
        wire.plain.as_deref(),
        Plain::Redirect,
        &[
            ("Redirect", Plain::Redirect),
            ("Serve", Plain::Serve),
            ("Refuse", Plain::Refuse),
        ],
    );
    let status = match wire.redirect_status {
        None | Some(308) => Some(StatusCode::PERMANENT_REDIRECT),
        Some(301) => Some(StatusCode::MOVED_PERMANENTLY),
        Some(other) => {
            report.invalid(
                field.at("redirectStatus"),
                format!("{other} is not one of the two"),
                "write 308 (keeps the method) or 301 (what old clients know)",
            );
            None
        }
    };
    let hsts = match &wire.hsts {
        None => Some(None),
        Some(_) if passthrough => {
            report.invalid(
                field.at("hsts"),
                "responses are not opened with tls.mode Passthrough",
                "leave it out; the backend can send the header",
            );
            None
        }
        Some(wire) => strict_transport_security(report, &field.at("hsts"), wire).map(Some),
    };
    if passthrough && plain == Some(Plain::Serve) {
        report.invalid(
            field.at("plain"),
            "\"Serve\" needs rules for requests, and tls.mode is Passthrough",
            "write Redirect or Refuse",
        );
        return None;
    }
    let (plain, status) = (plain?, status?);
    Some((
        match plain {
            Plain::Redirect => PlainHttp::Redirect(status),
            Plain::Serve => PlainHttp::Serve,
            Plain::Refuse => PlainHttp::Refuse,
        },
        hsts?,
    ))
}

/// RFC 6797 §6.1. A max-age of zero is valid: it takes an earlier promise back.
fn strict_transport_security(
    report: &mut Report,
    field: &Field<'_>,
    wire: &crate::api::Hsts,
) -> Option<HeaderValue> {
    const YEAR: Duration = Duration::from_hours(8760);
    let max_age =
        super::durations::duration_or(report, &field.at("maxAge"), wire.max_age.as_deref(), YEAR)?;
    let below = wire.include_sub_domains.unwrap_or(false);
    let preload = wire.preload.unwrap_or(false);
    if preload && (!below || max_age < YEAR) {
        report.invalid(
            field.at("preload"),
            "browsers take a name into their lists only with subdomains and for a year",
            "set includeSubDomains: true and maxAge: 8760h, or leave preload out",
        );
        return None;
    }
    let mut value = format!("max-age={}", max_age.as_secs());
    if below {
        value.push_str("; includeSubDomains");
    }
    if preload {
        value.push_str("; preload");
    }
    HeaderValue::from_str(&value).ok()
}

/// The UDP trackers of a route, each with its names.
fn udp_trackers(route_hosts: &[HostPattern], rules: &[CompiledRule]) -> Vec<CompiledUdp> {
    let found = rules.iter().filter_map(|rule| {
        let mut udp = rule.udp.clone()?;
        udp.tracker.hostnames = rule.hostnames_among(route_hosts).to_vec();
        Some(udp)
    });
    found.collect()
}

fn rule_hosts(
    route_hosts: &[HostPattern],
    rules: &[CompiledRule],
) -> BTreeMap<HostPattern, HostService> {
    let mut own: BTreeMap<HostPattern, Vec<RouteEntry>> = BTreeMap::new();
    let mut plain: BTreeMap<HostPattern, Vec<PlainEntry>> = BTreeMap::new();
    for rule in rules {
        let hosts = rule.hostnames_among(route_hosts);
        let entries = || rule.entries.iter().cloned();
        for host in hosts.iter().filter(|_| rule.way != Way::Nowhere) {
            let over_tls = own.entry(host.clone()).or_default();
            if let Way::Plain(port) = rule.way {
                let over_plain = plain.entry(host.clone()).or_default();
                over_plain.extend(entries().map(|entry| (port, entry)));
            } else {
                over_tls.extend(entries());
            }
        }
    }
    for entries in own.values_mut() {
        entries.sort_by(precedence);
    }
    // A name also gets what the route says about the wildcard above it, after its own entries: the
    // certificate and router look a name up only once.
    let below: Vec<(HostPattern, Vec<RouteEntry>)> = own
        .keys()
        .filter_map(|host| {
            let (_, entries) = own.iter().find(|(pattern, _)| is_above(pattern, host))?;
            Some((host.clone(), entries.clone()))
        })
        .collect();
    for (host, entries) in below {
        if let Some(all) = own.get_mut(&host) {
            for entry in entries {
                if !all.iter().any(|known| {
                    Arc::ptr_eq(&known.rule, &entry.rule) && known.request == entry.request
                }) {
                    all.push(entry);
                }
            }
        }
    }
    own.into_iter()
        .map(|(host, entries)| {
            let plain = plain_rules(&plain, &host, &entries);
            (host, HostService::Rules { entries, plain })
        })
        .collect()
}

/// What a rule answers over plain HTTP, and the port that it does so on.
type PlainEntry = (Option<u16>, RouteEntry);

fn is_above(pattern: &HostPattern, host: &HostPattern) -> bool {
    match (pattern, host) {
        (HostPattern::Wildcard(_), HostPattern::Exact(name)) => pattern.matches(name),
        _ => false,
    }
}

/// The rules of a host for each port on which some answer over plain HTTP. Those over TLS are among them, so that
/// the most specific one decides.
fn plain_rules(
    all: &BTreeMap<HostPattern, Vec<PlainEntry>>,
    host: &HostPattern,
    over_tls: &[RouteEntry],
) -> Vec<PlainRules> {
    let counts = |pattern: &HostPattern| pattern == host || is_above(pattern, host);
    let mine = || all.iter().filter(|(it, _)| counts(it)).flat_map(|it| it.1);
    let ports: BTreeSet<Option<u16>> = mine().map(|(port, _)| *port).collect();
    let of_port = |port| {
        let mut entries: Vec<RouteEntry> = mine()
            .filter(|(of, _)| of.is_none() || *of == port)
            .map(|(_, entry)| entry)
            .chain(over_tls)
            .cloned()
            .collect();
        entries.sort_by(precedence);
        PlainRules {
            port,
            guards_by_path: entries.iter().any(|it| decides_by_path(&it.request)),
            entries,
        }
    };
    ports.into_iter().map(of_port).collect()
}

fn passthrough_hosts(
    report: &mut Report,
    route_hosts: &[HostPattern],
    rules: Vec<CompiledRule>,
) -> Option<BTreeMap<HostPattern, HostService>> {
    let mut hosts = BTreeMap::new();
    let served = |(_, rule): &(usize, CompiledRule)| rule.way != Way::Nowhere;
    for (index, rule) in rules.into_iter().enumerate().filter(served) {
        let cluster = rule
            .entries
            .first()
            .and_then(|entry| match &entry.rule.action {
                Action::Forward(group) => {
                    group.backends.first().map(|one| Arc::clone(&one.cluster))
                }
                _ => None,
            });
        for host in rule.hostnames_among(route_hosts).to_vec() {
            if hosts.contains_key(&host) {
                report.invalid(
                    Field::SPEC.at("rules").index(index),
                    format!("{host} is already passed through by an earlier rule"),
                    "keep one rule per hostname",
                );
                return None;
            }
            hosts.insert(host, HostService::Passthrough(cluster.clone()));
        }
    }
    Some(hosts)
}

/// Turns every rule into 503. Asked-for client certificates that cannot be verified must not become none.
fn close(hosts: &mut BTreeMap<HostPattern, HostService>) {
    for service in hosts.values_mut() {
        let HostService::Rules { entries, plain } = service else {
            continue;
        };
        let plain = plain.iter_mut().flat_map(|it| &mut it.entries);
        for entry in entries.iter_mut().chain(plain) {
            let rule = &entry.rule;
            entry.rule = Arc::new(Rule {
                route: rule.route.clone(),
                name: rule.name.clone(),
                filters: rule.filters.clone(),
                action: Action::Unavailable(
                    "the CA that client certificates are verified with is missing".to_owned(),
                ),
                timeouts: rule.timeouts.clone(),
                limits: rule.limits.clone(),
                tracker: rule.tracker,
                plain: rule.plain,
            });
        }
    }
}

/// Says of a passthrough without PROXY protocol that the backend does not see who comes.
pub(super) fn note_lost_addresses(report: &mut Report, route: &CompiledRoute) {
    if !matches!(route.tls, CompiledTls::Passthrough) {
        return;
    }
    let by_agent: BTreeSet<_> = report
        .mappings()
        .filter(|mapping| mapping.proxy_protocol.is_some())
        .map(|mapping| mapping.id.clone())
        .collect();
    let hides_clients = |cluster: &Cluster| match mappings::of_cluster(cluster) {
        // The agent sends the header.
        Some((_, mapping)) => !by_agent.contains(&mapping),
        None => cluster.proxy_protocol.is_none(),
    };
    let lost = route
        .hosts
        .iter()
        .find_map(|(host, service)| match service {
            HostService::Passthrough(Some(cluster)) if hides_clients(cluster) => Some(host),
            _ => None,
        });
    if let Some(host) = lost {
        report.add(
            Field::SPEC.at("rules"),
            Reason::AddressLost,
            format!("the backend of {host} sees the edge's address instead of the client's"),
            "set proxyProtocol: v2 on the backend and let it expect the header",
        );
    }
}
