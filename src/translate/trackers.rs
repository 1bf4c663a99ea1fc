//! The uniform tracker rule: HTTP trackers of one process all go through the TLS proxy or all do not.
//!
//! A tracker process has one switch that says whether client addresses come from X-Forwarded-For. Mixed
//! trackers would make it record wrong addresses for one half, silently.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate_model::RouteId;

use super::report::{Field, Report};
use super::rules::name_of;
use crate::api::conditions::Reason;
use crate::api::policies::{DIRECT, MIXED, MIXED_HINT, THROUGH};
use crate::api::{RouteRule, TlsRouteSpec};

/// One tracker, as people know it.
#[derive(Debug, Clone)]
struct TrackerUse {
    /// `http1 (http1.example.com)`, or the route where several are meant.
    label: String,
    proxied: bool,
}

fn trackers(spec: &TlsRouteSpec) -> impl Iterator<Item = (usize, &RouteRule, bool)> {
    spec.rules.iter().enumerate().filter_map(|(index, rule)| {
        let tracker = rule.tracker.as_ref()?;
        // A UDP tracker has nothing to do with the switch of the HTTP trackers.
        if tracker.type_.as_deref() == Some("UDP") {
            return None;
        }
        Some((index, rule, tracker.exposure.as_deref() != Some("Direct")))
    })
}

fn label(spec: &TlsRouteSpec, rule: &RouteRule, index: usize) -> String {
    let hosts = if rule.hostnames.is_empty() {
        &spec.hostnames
    } else {
        &rule.hostnames
    };
    format!("{} ({})", name_of(rule, index), hosts.join(", "))
}

fn sides(all: &[TrackerUse]) -> (String, String) {
    let list = |proxied| {
        all.iter()
            .filter(|one| one.proxied == proxied)
            .map(|one| one.label.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    (list(true), list(false))
}

/// Checks the rules of one object.
pub(super) fn check_within(report: &mut Report, spec: &TlsRouteSpec) {
    let all: Vec<TrackerUse> = trackers(spec)
        .map(|(index, rule, proxied)| TrackerUse {
            label: label(spec, rule, index),
            proxied,
        })
        .collect();
    let (through, direct) = sides(&all);
    if !through.is_empty() && !direct.is_empty() {
        complain(report, &through, &direct);
    }
}

fn complain(report: &mut Report, through: &str, direct: &str) {
    report.add(
        Field::SPEC.at("rules"),
        Reason::MixedTrackerProxy,
        format!("{MIXED} {through} {THROUGH} {direct} {DIRECT}"),
        format!(
            "either take tracker.exposure: Direct out of {direct}, or set it in {through} as well; {MIXED_HINT}"
        ),
    );
}

/// What makes the trackers of several routes those of one process: what the user says, else one Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Process {
    Group(String),
    Service(String),
}

fn processes(spec: &TlsRouteSpec) -> BTreeSet<Process> {
    match &spec.tracker_group {
        Some(group) => [Process::Group(group.clone())].into(),
        None => trackers(spec)
            .flat_map(|(_, rule, _)| &rule.backends)
            .filter_map(|backend| Some(Process::Service(backend.service.as_ref()?.name.clone())))
            .collect(),
    }
}

/// The processes seen so far, oldest route first.
#[derive(Debug, Default)]
pub(super) struct TrackerGroups {
    seen: BTreeMap<(Arc<str>, Process), Vec<TrackerUse>>,
}

// === impl TrackerGroups ===

impl TrackerGroups {
    /// Adds a route to its processes, unless it would mix one; then nothing is added, and the report says so.
    /// The older routes stay as they are.
    pub(super) fn admit(&mut self, report: &mut Report, id: &RouteId, spec: &TlsRouteSpec) -> bool {
        // A route by itself is not mixed; that was looked at before.
        let Some((_, _, proxied)) = trackers(spec).next() else {
            return true;
        };
        let own = TrackerUse {
            label: id.to_string(),
            proxied,
        };
        let keys: Vec<_> = processes(spec)
            .into_iter()
            .map(|process| (Arc::clone(&id.namespace), process))
            .collect();
        for key in &keys {
            let known = self.seen.get(key).map(Vec::as_slice).unwrap_or_default();
            let (through, direct) = sides(&[known, std::slice::from_ref(&own)].concat());
            if !through.is_empty() && !direct.is_empty() {
                complain(report, &through, &direct);
                return false;
            }
        }
        for key in keys {
            self.seen.entry(key).or_default().push(own.clone());
        }
        true
    }
}
