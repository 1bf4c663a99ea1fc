//! What becomes of a refresh: a published snapshot, a log that tells each thing once, and the state as people
//! and programs read it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_model::SnapshotStore;
use tidegate_telemetry::chain;
use tokio::sync::watch;

use super::report::{Process, control_view};
use crate::admin::ControlView;
use crate::source::state::StateFolder;
use crate::source::{Finding, Refreshed};
use crate::translate::Severity;

/// Name of the status file in the state folder.
pub(super) const STATUS_FILE: &str = "status.json";

/// What was told before, so that nothing is told twice.
#[derive(Debug, Default)]
pub(super) struct Tracked {
    told: BTreeSet<Finding>,
    loaded_before: bool,
}

impl Tracked {
    /// Publishes the snapshot, tells what is new and what was mended, and shows the rest on the admin listener.
    pub(super) fn apply(
        &mut self,
        mut refreshed: Refreshed,
        process: &Process,
        store: &SnapshotStore,
        state: &StateFolder,
        control: &watch::Sender<Arc<ControlView>>,
        now: SystemTime,
    ) {
        let revision = store.load().revision;
        // Before the store takes the hosts that the view names.
        let mut view = control_view(process, &refreshed, revision, now);
        let findings: BTreeSet<Finding> = refreshed.findings.iter().cloned().collect();
        let published = store.publish(std::mem::take(&mut refreshed.translation.snapshot));
        if let Some(revision) = published {
            view.revision = revision;
            tracing::info!(
                revision,
                hosts = store.load().snapshot.hosts.len(),
                problems = findings.len(),
                "published"
            );
        }
        for finding in findings.difference(&self.told) {
            tell(finding);
        }
        let mended = self.told.difference(&findings);
        for mended in mended.filter(|finding| finding.severity != Severity::Progress) {
            tracing::info!(
                object = mended.object.as_deref(),
                field = %mended.field,
                reason = %mended.reason,
                "mended"
            );
        }
        if refreshed.empty && (published.is_some() || !self.loaded_before) {
            tracing::warn!(
                folder = process.folder.as_deref(),
                "the folder holds no objects: nothing is served until it does; a first TlsRoute is shown by `tidegate run --help`"
            );
        }
        self.told = findings;
        let previous = control.borrow().clone();
        let updated_at = std::mem::replace(&mut view.updated_at, previous.updated_at.clone());
        let same = *previous == view;
        view.updated_at = updated_at;
        if same && std::mem::replace(&mut self.loaded_before, true) {
            return;
        }
        self.loaded_before = true;
        if let Ok(text) = serde_json::to_string(&view)
            && let Err(error) = state.write_unsynced(STATUS_FILE, &text)
        {
            tracing::warn!(error = %chain(&error), "cannot write the status file");
        }
        control.send_replace(Arc::new(view));
    }
}

fn tell(finding: &Finding) {
    if finding.severity == Severity::Progress {
        tracing::info!(
            object = finding.object.as_deref(),
            reason = %finding.reason,
            "{}",
            finding.message
        );
        return;
    }
    let place = finding.file.as_ref().map(|file| match finding.line {
        Some(line) => format!("{}:{line}", file.display()),
        None => file.display().to_string(),
    });
    tracing::warn!(
        place = place.as_deref(),
        object = finding.object.as_deref(),
        field = Some(finding.field.as_str()).filter(|field| !field.is_empty()),
        reason = %finding.reason,
        hint = finding.hint.as_deref(),
        kept = finding.kept,
        "{}",
        finding.message
    );
}
