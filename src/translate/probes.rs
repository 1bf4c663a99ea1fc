//! Which trackers are asked whether they read X-Forwarded-For, and what their answers mean for a route.
//!
//! Asks nobody: whoever does gets a list, and brings back what it was told as one of the inputs.

use std::sync::Arc;
use std::time::Duration;

use tidegate_model::{Action, Cluster, HostPattern, Reach, RouteId, RuleId};
use tidegate_tracker::probe::Reading;

use super::Inputs;
use super::durations::duration_or;
use super::report::{Field, Report};
use super::routes::{CompiledRoute, HostService};
use super::rules::{CompiledRule, Way};
use super::status::Conditions;
use super::trackers::label;
use crate::api::conditions::{ConditionType, Reason};
use crate::api::{RouteRule, TlsRouteSpec};

const DEFAULT_INTERVAL: Duration = Duration::from_hours(1);
/// More often than peers announce would be traffic of its own.
const SHORTEST_INTERVAL: Duration = Duration::from_mins(1);

/// A tracker that is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct TrackerProbe {
    /// Which one.
    pub id: RuleId,
    /// How it is reached.
    pub cluster: Arc<Cluster>,
    /// Where its addresses may lead.
    pub reach: Arc<Reach>,
    /// For Host.
    pub host: String,
    /// Whether it should read X-Forwarded-For.
    pub behind_edge: bool,
    /// Time between two questions.
    pub interval: Duration,
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeReport {
    /// Somebody answered.
    Answered(Reading),
    /// Nobody did; the text says why.
    Failed(String),
}

/// A rule's wish to have its tracker asked.
#[derive(Debug, Clone)]
pub(super) struct CompiledProbe {
    rule: String,
    label: String,
    direct: bool,
    cluster: Arc<Cluster>,
    host: String,
    interval: Duration,
}

/// How often the tracker of a rule is to be asked, if at all.
pub(super) fn interval(
    report: &mut Report,
    field: &Field<'_>,
    wire: &RouteRule,
) -> Option<Duration> {
    let probe = wire.tracker.as_ref()?.probe.as_ref()?;
    let tracker = field.at("tracker");
    let probe_field = tracker.at("probe");
    let at = probe_field.at("interval");
    let written = probe.interval.as_deref();
    let interval = duration_or(report, &at, written, DEFAULT_INTERVAL)?;
    if interval < SHORTEST_INTERVAL {
        let written = written.unwrap_or_default();
        report.invalid(at, format!("{written:?} is too often"), "write 1m or more");
        return None;
    }
    Some(interval)
}

/// The probes of a route.
pub(super) fn of_rules(spec: &TlsRouteSpec, rules: &[CompiledRule]) -> Vec<CompiledProbe> {
    let probe = |(wire, rule): (&RouteRule, &CompiledRule)| {
        let interval = rule.probe?;
        let entry = rule.entries.first()?;
        let Action::Forward(group) = &entry.rule.action else {
            return None;
        };
        let written = wire.hostnames.iter().chain(&spec.hostnames);
        let named = |name: &String| match HostPattern::parse(name) {
            Ok(HostPattern::Exact(name)) => Some(name),
            _ => None,
        };
        let host = written.clone().find_map(named)?;
        Some(CompiledProbe {
            rule: entry.rule.name.clone(),
            label: label(spec, wire),
            direct: rule.way == Way::Nowhere,
            cluster: Arc::clone(&group.backends.first()?.cluster),
            host: host.in_url(),
            interval,
        })
    };
    spec.rules.iter().zip(rules).filter_map(probe).collect()
}

/// The list of a route for whoever asks.
pub(super) fn wanted<'a>(
    inputs: &'a Inputs,
    id: &'a RouteId,
    route: &'a CompiledRoute,
) -> impl Iterator<Item = TrackerProbe> + 'a {
    route.probes.iter().map(|probe| TrackerProbe {
        id: RuleId {
            route: id.clone(),
            rule: probe.rule.clone(),
        },
        cluster: Arc::clone(&probe.cluster),
        reach: Arc::clone(&inputs.environment.reach),
        host: probe.host.clone(),
        behind_edge: !probe.direct,
        interval: probe.interval,
    })
}

/// What was told, as the condition says it. The worst counts, and all of them are named.
pub(super) fn judge(
    conditions: &mut Conditions,
    inputs: &Inputs,
    id: &RouteId,
    route: &CompiledRoute,
) {
    let mut worst: Option<Verdict> = None;
    let mut said = Vec::new();
    for probe in &route.probes {
        let key = RuleId {
            route: id.clone(),
            rule: probe.rule.clone(),
        };
        let Some(report) = inputs.tracker_reports.get(&key) else {
            continue;
        };
        let (verdict, message) = verdict(probe, report);
        said.push((verdict, message));
        worst = worst.max(Some(verdict));
    }
    let Some(worst) = worst else { return };
    // What is well is not told beside what is not.
    let message: Vec<String> = said
        .into_iter()
        .filter(|(verdict, _)| *verdict == worst || *verdict != Verdict::Good)
        .map(|(_, message)| message)
        .collect();
    let type_ = ConditionType::ClientAddressPreserved;
    let message = message.join("\n");
    let direct = route.probes.iter().any(|probe| probe.direct);
    let served = |of: &HostService| matches!(of, HostService::Rules { .. });
    match worst {
        Verdict::Wrong if direct => {
            conditions.set(type_, false, Reason::TrackerReadsHeader, message);
        }
        Verdict::Wrong => conditions.set(type_, false, Reason::TrackerIgnoresHeader, message),
        Verdict::Unknown => conditions.set_unknown(type_, Reason::TrackerProbeFailed, message),
        Verdict::Good if route.hosts.values().any(served) => {
            conditions.set(type_, true, Reason::TrackerReadsHeader, message);
        }
        Verdict::Good => conditions.set(type_, true, Reason::TrackerIgnoresHeader, message),
    }
}

/// What an answer means, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Good,
    Unknown,
    Wrong,
}

fn verdict(probe: &CompiledProbe, report: &ProbeReport) -> (Verdict, String) {
    let label = &probe.label;
    let reading = match report {
        ProbeReport::Answered(reading) => reading,
        ProbeReport::Failed(why) => {
            return (
                Verdict::Unknown,
                format!("{label} could not be asked whether it reads X-Forwarded-For: {why}"),
            );
        }
    };
    match (reading, probe.direct) {
        (Reading::Reads, false) => (
            Verdict::Good,
            format!("sent in X-Forwarded-For, and {label} reads it"),
        ),
        (Reading::Reads, true) => (
            Verdict::Wrong,
            format!(
                "{label} believes X-Forwarded-For, although peers reach it without this edge: it refuses announces without that header, and whoever sends one names any address; set on_reverse_proxy = false under [core.net] in its tracker.toml and restart it"
            ),
        ),
        (Reading::Ignores { listed }, false) => (
            Verdict::Wrong,
            format!(
                "{label} does not read X-Forwarded-For: {}; set on_reverse_proxy = true under [core.net] in its tracker.toml and restart it (other trackers: whatever makes them trust a reverse proxy)",
                match listed {
                    Some(ip) => format!("it lists every peer with the address {ip}"),
                    None => "it takes every peer for itself and lists none".to_owned(),
                }
            ),
        ),
        (Reading::Ignores { .. }, true) => (
            Verdict::Good,
            format!("{label} takes the addresses that peers connect from"),
        ),
        (Reading::Closed(words), _) => (
            Verdict::Unknown,
            format!(
                "{label} does not tell strangers whether it reads X-Forwarded-For; it says {words:?}"
            ),
        ),
        (Reading::Unclear(what), _) => (
            Verdict::Unknown,
            format!("the answers of {label} do not tell whether it reads X-Forwarded-For: {what}"),
        ),
    }
}
