//! `tidegate check`: what `run` would say about a folder, without serving it.

use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use super::report::problem_view;
use crate::admin::ProblemView;
use crate::standalone::{Finding, Source};

/// The outcome of a check; what `--output json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// Whether nothing is wrong.
    pub ok: bool,
    /// The folder that was checked.
    pub folder: String,
    /// Number of files that were read.
    pub files: usize,
    /// Number of objects that are right.
    pub objects: usize,
    /// Everything that is wrong, by file and line.
    pub problems: Vec<ProblemView>,
}

/// Checks the folder at this moment. Writes nothing and connects to nothing.
pub fn check(folder: &Path, now: SystemTime) -> CheckReport {
    let refreshed = Source::folder(
        folder,
        Some(folder.join(crate::standalone::state::DEFAULT_NAME)),
    )
    .refresh(now);
    let problems: Vec<ProblemView> = refreshed
        .findings
        .iter()
        .filter(|finding| !is_unissued(finding))
        .map(problem_view)
        .collect();
    CheckReport {
        ok: problems.is_empty(),
        folder: folder.display().to_string(),
        files: refreshed.files,
        objects: refreshed.counts.values().sum(),
        problems,
    }
}

/// Nothing is issued here, so that a missing certificate is no mistake of the objects.
pub(super) fn is_unissued(finding: &Finding) -> bool {
    finding.reason == "Issuing"
}
