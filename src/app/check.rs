//! `tidegate check`: what `run` would say about a folder, without serving it.

use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use super::report::problem_view;
use crate::admin::{ProblemView, SeverityView};
use crate::source::Finding;
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
}

/// Checks the folder at this moment. Writes nothing and connects to nothing.
pub fn check(folder: &Path, now: SystemTime) -> CheckReport {
    let refreshed = Source::folder(
        folder,
        Some(folder.join(crate::source::state::DEFAULT_NAME)),
    )
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
    CheckReport {
        ok: errors == 0,
        folder: folder.display().to_string(),
        files: refreshed.files,
        objects: refreshed.counts.values().sum(),
        errors,
        warnings: problems.len() - errors,
        problems,
    }
}

/// Nothing is issued here, so that a missing certificate is no mistake of the objects.
pub(super) fn is_unissued(finding: &Finding) -> bool {
    finding.severity == Severity::Progress
}
