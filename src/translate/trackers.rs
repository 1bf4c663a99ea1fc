//! The uniform tracker rule: HTTP trackers of one process all go through the TLS proxy or all do not.
//!
//! A tracker process has one switch that says whether client addresses come from X-Forwarded-For. Mixed
//! trackers would make it record wrong addresses for one half, silently.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_model::RouteId;

use super::report::{Field, Report};
use super::rules::name_of;
use crate::api::conditions::Reason;
use crate::api::{RouteRule, TlsRouteSpec};

/// One tracker, as people know it.
#[derive(Debug, Clone)]
struct TrackerUse {
    /// `http1 (http1.example.com)`, with the route before it when several are meant.
    label: String,
    proxied: bool,
}

fn trackers(spec: &TlsRouteSpec) -> impl Iterator<Item = (usize, &RouteRule, bool)> {
    spec.rules.iter().enumerate().filter_map(|(index, rule)| {
        let tracker = rule.tracker.as_ref()?;
        Some((index, rule, tracker.use_tls_proxy.unwrap_or(true)))
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
        format!(
            "HTTP trackers of one process are mixed: {through} through the TLS proxy, {direct} directly"
        ),
        format!(
            "either take tracker.useTlsProxy: false out of {direct}, or set it in {through} as well; trackers of different processes belong in routes with different trackerGroup"
        ),
    );
}

/// The groups seen so far, oldest route first.
#[derive(Debug, Default)]
pub(super) struct TrackerGroups {
    groups: BTreeMap<(Arc<str>, String), Vec<TrackerUse>>,
}

// === impl TrackerGroups ===

impl TrackerGroups {
    /// Adds a route to its group, unless it would mix the group; then nothing is added, and the report says
    /// so. The older routes stay as they are.
    pub(super) fn admit(&mut self, report: &mut Report, id: &RouteId, spec: &TlsRouteSpec) -> bool {
        let Some(group) = &spec.tracker_group else {
            return true;
        };
        let own: Vec<TrackerUse> = trackers(spec)
            .map(|(index, rule, proxied)| TrackerUse {
                label: format!("{id}/{}", label(spec, rule, index)),
                proxied,
            })
            .collect();
        let key = (Arc::clone(&id.namespace), group.clone());
        let known = self.groups.get(&key).map(Vec::as_slice).unwrap_or_default();
        let all = [known, own.as_slice()].concat();
        let (through, direct) = sides(&all);
        if !through.is_empty() && !direct.is_empty() {
            complain(report, &through, &direct);
            return false;
        }
        self.groups.insert(key, all);
        true
    }
}
