//! `tidegate check`: what `run` would say about a folder, without serving it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use super::report::problem_view;
use crate::admin::{ProblemView, SeverityView};
use crate::api::conditions::{ConditionType, find_condition};
use crate::source::{Finding, Place, Refreshed};
use crate::standalone::Source;
use crate::translate::Severity;

/// The outcome of a check; what `--output json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// Whether nothing is wrong but what warnings tell.
    pub ok: bool,
    /// The folder that was checked.
    pub folder: String,
    /// Number of files that were read.
    pub files: usize,
    /// Number of objects that are right.
    pub objects: usize,
    /// Number of problems that somebody must mend.
    pub errors: usize,
    /// Number of problems that harm nothing.
    pub warnings: usize,
    /// Everything that is wrong, by file and line.
    pub problems: Vec<ProblemView>,
    /// How clients reach the UDP trackers of each route, one line each.
    pub udp_trackers: BTreeMap<String, Vec<String>>,
    /// What to write into the DNS for each route, as lines of a zone file.
    pub dns_records: BTreeMap<String, Vec<String>>,
}

/// Checks the folder at this moment. Writes nothing and connects to nothing. `addresses` are those at which the
/// edge will be reached.
pub fn check(folder: &Path, addresses: Vec<IpAddr>, now: SystemTime) -> CheckReport {
    let state = folder.join(crate::source::state::DEFAULT_NAME);
    let place = Place {
        told: addresses,
        ..Place::default()
    };
    let refreshed = Source::folder(folder, Some(state))
        .with_place(place)
        .refresh(now);
    let problems: Vec<ProblemView> = refreshed
        .findings
        .iter()
        .filter(|finding| !is_unissued(finding))
        .map(problem_view)
        .collect();
    let errors = problems
        .iter()
        .filter(|problem| problem.severity == SeverityView::Error)
        .count();
    let agents = refreshed.translation.statuses.agents.iter();
    CheckReport {
        ok: errors == 0,
        folder: folder.display().to_string(),
        files: refreshed.files,
        objects: refreshed.counts.values().sum(),
        errors,
        warnings: problems.len() - errors,
        problems,
        udp_trackers: udp_trackers(&refreshed),
        dns_records: refreshed
            .translation
            .statuses
            .routes
            .iter()
            .map(|(id, status)| (id, &status.dns_records))
            .chain(agents.map(|(id, status)| (id, &status.dns_records)))
            .filter(|(_, records)| !records.is_empty())
            .map(|(id, records)| (id.to_string(), records.clone()))
            .collect(),
    }
}

/// What is said of clients' addresses, of routes that have UDP trackers.
fn udp_trackers(refreshed: &Refreshed) -> BTreeMap<String, Vec<String>> {
    let routes = &refreshed.translation.statuses.routes;
    let trackers = refreshed.translation.udp_trackers.iter();
    let said = trackers.filter_map(|tracker| {
        let id = &tracker.id.route;
        let conditions = &routes.get(id)?.conditions;
        let found = find_condition(conditions, ConditionType::ClientAddressPreserved)?;
        let prefix = format!("{}: ", tracker.id.rule);
        let line = found.message.lines().find(|it| it.starts_with(&prefix))?;
        Some((id.to_string(), line.to_owned()))
    });
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (route, line) in said {
        all.entry(route).or_default().push(line);
    }
    all
}

/// Nothing is issued here, so that a missing certificate is no mistake of the objects.
pub(super) fn is_unissued(finding: &Finding) -> bool {
    finding.severity == Severity::Progress
}
