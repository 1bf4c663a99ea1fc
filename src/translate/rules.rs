//! One rule of a route: its matches, and what then happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_model::{
    Action, AddressParameters, BackendGroup, HostPattern, HttpTracker, Limits, PathMatch,
    PathRewrite, RedirectPath, RequestMatch, RouteEntry, Rule, StaticFolder, Timeouts,
    WeightedBackend,
};

use super::backends::{Destination, destination, port};
use super::balancing::{Policy, count_or};
use super::durations::limit_or;
use super::filters::{self, Answer};
use super::matches::request_match;
use super::probes;
use super::quantities::quantity;
use super::references::References;
use super::report::{Field, Report};
use super::udp::{self, CompiledUdp};
use super::words::{host_pattern, one_of};
use crate::api::RouteRule;
use crate::api::conditions::Reason;

/// Announces and scrapes have no body; this leaves room for odd clients.
const TRACKER_BODY_LIMIT: u64 = 64 * 1024;

/// A rule, compiled.
#[derive(Debug)]
pub(super) struct CompiledRule {
    /// Its own hostnames; empty for those of the route.
    pub(super) hostnames: Vec<HostPattern>,
    /// One entry per match.
    pub(super) entries: Vec<RouteEntry>,
    /// Where it answers.
    pub(super) way: Way,
    /// A UDP tracker, which has no entries.
    pub(super) udp: Option<CompiledUdp>,
    /// How often its tracker is asked which addresses it takes.
    pub(super) probe: Option<Duration>,
}

impl CompiledRule {
    /// The hostnames that it is about: its own, else those of the route.
    pub(super) fn hostnames_among<'a>(&'a self, route: &'a [HostPattern]) -> &'a [HostPattern] {
        if self.hostnames.is_empty() {
            route
        } else {
            &self.hostnames
        }
    }
}

/// Where a rule answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Over TLS, and over plain HTTP as the route says.
    Tls,
    /// Over plain HTTP only, on the listener with that port or on every one.
    Plain(Option<u16>),
    /// Nowhere: a tracker that peers reach without this edge.
    Nowhere,
}

/// Name for logs and messages.
pub(super) fn name_of(rule: &RouteRule, index: usize) -> String {
    rule.name
        .clone()
        .unwrap_or_else(|| format!("rules[{index}]"))
}

/// Reads one rule; None when something in it is wrong.
pub(super) fn compile(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &RouteRule,
    index: usize,
) -> Option<CompiledRule> {
    if udp::is_udp(wire) {
        return udp::compile(report, references, field, wire, index);
    }
    let mut good = true;
    let hostnames = hostnames(report, &field.at("hostnames"), &wire.hostnames);
    let matches = all_matches(report, field, wire);
    let name = name_of(wire, index);
    let bucket = format!("{}/{name}", references.id);
    let filters_field = field.at("filters");
    let compiled = filters::compile(report, references, &filters_field, &wire.filters, &bucket);
    let policy = Policy::of(report, field, wire);
    let timeouts = timeouts(report, field, wire);
    let way = way(report, references, field, wire);
    let address_parameters = address_parameters(report, field, wire);
    let probe = probes::interval(report, field, wire);
    let limits = limits(report, field, wire, wire.tracker.is_some());

    let answered = compiled
        .as_ref()
        .is_none_or(|compiled| compiled.answer.is_some());
    if wire.backends.is_empty() && !answered {
        report.invalid(
            field.at("backends"),
            "the rule has no backend",
            "add one such as {service: {name: blog, port: 80}}, or a filter of type RequestRedirect or FixedResponse",
        );
        good = false;
    }
    if let Some(compiled) = &compiled
        && compiled.answer.is_some()
        && !wire.backends.is_empty()
    {
        report.invalid(
            field.at("backends"),
            "a filter answers the request, so no backend is ever asked",
            "leave out the backends or the filter",
        );
        good = false;
    }
    let group = policy
        .as_ref()
        .and_then(|policy| backends(report, references, &field.at("backends"), wire, policy));

    let (hostnames, matches, compiled) = (hostnames?, matches?, compiled?);
    policy?;
    let (timeouts, limits, way, group) = (timeouts?, limits?, way?, group?);
    let address_parameters = address_parameters?;
    if !good {
        return None;
    }
    let parts = Parts {
        name,
        compiled,
        group,
        timeouts,
        limits,
        tracker: wire
            .tracker
            .as_ref()
            .map(|_| HttpTracker { address_parameters }),
        plain: matches!(way, Way::Plain(_)),
    };
    let entries = parts.entries(report, references, matches)?;
    Some(CompiledRule {
        hostnames,
        entries,
        way,
        probe,
        udp: None,
    })
}

/// Reads hostnames; None when one is wrong.
pub(super) fn hostnames(
    report: &mut Report,
    field: &Field<'_>,
    wire: &[String],
) -> Option<Vec<HostPattern>> {
    let mut good = true;
    let mut found: Vec<HostPattern> = Vec::with_capacity(wire.len());
    for (index, name) in wire.iter().enumerate() {
        match host_pattern(report, &field.index(index), name) {
            Some(pattern) if found.contains(&pattern) => {
                report.invalid(
                    field.index(index),
                    format!("{name:?} stands there twice"),
                    "leave out one",
                );
                good = false;
            }
            Some(pattern) => found.push(pattern),
            None => good = false,
        }
    }
    good.then_some(found)
}

fn all_matches(
    report: &mut Report,
    field: &Field<'_>,
    wire: &RouteRule,
) -> Option<Vec<RequestMatch>> {
    if wire.r#match.is_some() && !wire.matches.is_empty() {
        report.invalid(
            field,
            "match and matches are both set",
            "put all conditions under matches",
        );
        return None;
    }
    if let Some(single) = &wire.r#match {
        return request_match(report, &field.at("match"), single).map(|found| vec![found]);
    }
    if wire.matches.is_empty() {
        return Some(vec![RequestMatch::default()]);
    }
    let at = field.at("matches");
    let found: Vec<_> = wire
        .matches
        .iter()
        .enumerate()
        .map(|(index, wire)| request_match(report, &at.index(index), wire))
        .collect();
    found.into_iter().collect()
}

/// What the backends of a rule come to.
#[derive(Debug)]
enum Group {
    None,
    Forward(BackendGroup),
    Static(StaticFolder),
    Unresolved,
}

fn backends(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &RouteRule,
    policy: &Policy,
) -> Option<Group> {
    let mut good = true;
    let mut weighted = Vec::new();
    let mut folder = None;
    for (index, backend) in wire.backends.iter().enumerate() {
        let at = field.index(index);
        let weight = count_or(report, &at.at("weight"), backend.weight, 1, 0);
        let found = destination(report, references, &at, backend, policy);
        let (Some(weight), Some(found)) = (weight, found) else {
            good = false;
            continue;
        };
        match found {
            Destination::Cluster(cluster) => weighted.push(WeightedBackend { weight, cluster }),
            Destination::Static(_) if wire.backends.len() > 1 => {
                report.invalid(
                    at,
                    "a static backend stands beside others",
                    "make it the only backend of its rule",
                );
                good = false;
            }
            Destination::Static(found) => folder = Some(found),
            Destination::Unresolved => {}
        }
    }
    if !good {
        return None;
    }
    Some(match folder {
        Some(folder) => Group::Static(folder),
        None if wire.backends.is_empty() => Group::None,
        // What is left takes the share of what is missing; with nothing left clients get 503.
        None if weighted.is_empty() => Group::Unresolved,
        None => Group::Forward(BackendGroup { backends: weighted }),
    })
}

fn timeouts(report: &mut Report, field: &Field<'_>, wire: &RouteRule) -> Option<Timeouts> {
    let default = Timeouts::default();
    let Some(wire) = &wire.timeouts else {
        return Some(default);
    };
    let at = field.at("timeouts");
    let before = report.count();
    let mut one = |member: &str, written: Option<&str>, default: Option<Duration>| {
        limit_or(report, &at.at(member), written, default)
    };
    let found = Timeouts {
        first_byte: one("firstByte", wire.first_byte.as_deref(), default.first_byte),
        idle: one("idle", wire.idle.as_deref(), default.idle),
        request: one("request", wire.request.as_deref(), default.request),
        upgraded_idle: one(
            "upgradedIdle",
            wire.upgraded_idle.as_deref(),
            default.upgraded_idle,
        ),
    };
    (report.count() == before).then_some(found)
}

fn way(
    report: &mut Report,
    references: &References<'_>,
    field: &Field<'_>,
    wire: &RouteRule,
) -> Option<Way> {
    let Some(tracker) = &wire.tracker else {
        return Some(Way::Tls);
    };
    let at = field.at("tracker");
    let type_ = tracker.type_.as_deref();
    let mut good = one_of(
        report,
        &at.at("type"),
        type_,
        (),
        &[("HTTP", ()), ("UDP", ())],
    )
    .is_some();
    if tracker.udp.is_some() {
        report.invalid(
            at.at("udp"),
            "the tracker is one of HTTP",
            "set tracker.type: UDP, or leave udp out",
        );
        good = false;
    }
    let written = match tracker.port {
        None => Some(None),
        Some(written) => port(report, &at.at("port"), written).map(Some),
    };
    let way = one_of(
        report,
        &at.at("exposure"),
        tracker.exposure.as_deref(),
        Way::Tls,
        &[
            ("HTTPS", Way::Tls),
            ("HTTP", Way::Plain(written.flatten())),
            ("Direct", Way::Nowhere),
        ],
    );
    good &= written.is_some();
    if let Some(Way::Plain(port)) = way {
        plain_listener(report, references, &at, port);
    } else if tracker.port.is_some() && way.is_some() {
        report.invalid(
            at.at("port"),
            "port belongs to exposure HTTP",
            "leave it out, or set exposure: HTTP",
        );
        good = false;
    }
    let filters = field.at("filters");
    for (index, filter) in wire.filters.iter().enumerate() {
        let why = match filter.type_.as_str() {
            "Compression" => {
                "responses of a tracker are not compressed, because clients expect them as they are"
            }
            "RequestMirror" => "announces are not mirrored, because each would count twice",
            _ => continue,
        };
        report.invalid(
            filters.index(index),
            why,
            "leave it out, or leave out tracker",
        );
        good = false;
    }
    way.filter(|_| good)
}

/// Says when no listener of this edge has the port of a tracker's announce URL.
fn plain_listener(
    report: &mut Report,
    references: &References<'_>,
    at: &Field<'_>,
    port: Option<u16>,
) {
    let Some(known) = &references.inputs.environment.plain_ports else {
        return;
    };
    let wanted = port.unwrap_or(80);
    if known.contains(&wanted) || (port.is_none() && !known.is_empty()) {
        return;
    }
    let mut all = known.clone();
    all.push(wanted);
    all.sort_unstable();
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    let found = match port {
        Some(port) => format!("no listener of this edge for plain HTTP has port {port}"),
        None => "this edge has no listener for plain HTTP".to_owned(),
    };
    report.add(
        at.at(if port.is_some() { "port" } else { "exposure" }),
        Reason::PlainListenerMissing,
        format!("{found}, so no peer reaches this tracker"),
        format!("start the edge with --http {}", all.join(",")),
    );
}

fn address_parameters(
    report: &mut Report,
    field: &Field<'_>,
    wire: &RouteRule,
) -> Option<AddressParameters> {
    let written = wire.tracker.as_ref();
    one_of(
        report,
        &field.at("tracker").at("addressParameters"),
        written.and_then(|tracker| tracker.address_parameters.as_deref()),
        AddressParameters::Pass,
        &[
            ("Pass", AddressParameters::Pass),
            ("Strip", AddressParameters::Strip),
        ],
    )
}

fn limits(
    report: &mut Report,
    field: &Field<'_>,
    wire: &RouteRule,
    tracker: bool,
) -> Option<Limits> {
    let default = tracker.then_some(TRACKER_BODY_LIMIT);
    let Some(wire) = &wire.limits else {
        return Some(Limits {
            request_body: default,
            requests_per_client: None,
        });
    };
    let at = field.at("limits");
    let request_body = match &wire.request_body {
        None => default,
        written => Some(quantity(report, &at.at("requestBody"), written.as_ref())?),
    };
    let requests_per_client = match wire.requests_per_client {
        None => None,
        written => Some(count_or(
            report,
            &at.at("requestsPerClient"),
            written,
            1,
            1,
        )?),
    };
    Some(Limits {
        request_body,
        requests_per_client,
    })
}

/// Everything of a rule but its matches.
struct Parts {
    name: String,
    compiled: filters::Compiled,
    group: Group,
    timeouts: Timeouts,
    limits: Limits,
    tracker: Option<HttpTracker>,
    plain: bool,
}

// === impl Parts ===

impl Parts {
    /// One entry per match. Matches share one rule, unless the rule looks at what the prefix was.
    fn entries(
        &self,
        report: &mut Report,
        references: &References<'_>,
        matches: Vec<RequestMatch>,
    ) -> Option<Vec<RouteEntry>> {
        let by_prefix =
            self.compiled.needs_prefix.is_some() || matches!(self.group, Group::Static(_));
        let mut rules: BTreeMap<Option<String>, Arc<Rule>> = BTreeMap::new();
        let mut entries = Vec::with_capacity(matches.len());
        for request in matches {
            let prefix = match &request.path {
                None => Some("/".to_owned()),
                Some(PathMatch::Prefix(prefix)) => Some(prefix.clone()),
                Some(PathMatch::Exact(_) | PathMatch::Regex(_)) => None,
            };
            if prefix.is_none()
                && let Some(field) = &self.compiled.needs_prefix
            {
                report.invalid(
                    field,
                    "ReplacePrefixMatch needs a prefix, but a match of this rule has none",
                    "match by pathPrefix, or use ReplaceFullPath",
                );
                return None;
            }
            let key = if by_prefix { prefix } else { None };
            let rule = rules
                .entry(key)
                .or_insert_with_key(|prefix| Arc::new(self.rule(references, prefix.as_deref())));
            entries.push(RouteEntry {
                request,
                rule: Arc::clone(rule),
            });
        }
        Some(entries)
    }

    fn rule(&self, references: &References<'_>, prefix: Option<&str>) -> Rule {
        let prefix = prefix.unwrap_or_default();
        let mut filters = self.compiled.filters.clone();
        if let Some(rewrite) = &mut filters.rewrite
            && let Some(PathRewrite::Replace(path)) = &mut rewrite.path
        {
            set_matched(path, prefix);
        }
        let action = if self.compiled.unresolved {
            Action::Unavailable("something that guards this rule is missing".to_owned())
        } else {
            match (&self.compiled.answer, &self.group) {
                (Some(Answer::Redirect(redirect)), _) => {
                    let mut redirect = redirect.clone();
                    if let Some(path) = &mut redirect.path {
                        set_matched(path, prefix);
                    }
                    Action::Redirect(redirect)
                }
                (Some(Answer::Respond(response)), _) => Action::Respond(response.clone()),
                (None, Group::Forward(group)) => Action::Forward(group.clone()),
                (None, Group::Static(folder)) => Action::Static(StaticFolder {
                    strip_prefix: prefix.trim_end_matches('/').to_owned(),
                    ..folder.clone()
                }),
                (None, Group::Unresolved | Group::None) => {
                    Action::Unavailable("no backend of this rule can be reached".to_owned())
                }
            }
        };
        Rule {
            route: references.id.clone(),
            name: self.name.clone(),
            filters,
            action,
            timeouts: self.timeouts.clone(),
            limits: self.limits.clone(),
            tracker: self.tracker,
            plain: self.plain,
        }
    }
}

fn set_matched(path: &mut RedirectPath, prefix: &str) {
    if let RedirectPath::Prefix { matched, .. } = path {
        prefix.clone_into(matched);
    }
}
