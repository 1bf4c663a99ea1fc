//! What a refresh gives: the translation, and what people are told of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_acme::settings::Wanted;
use tidegate_model::{Certificate, Snapshot, TlsMode};

use crate::translate::{Severity, Translation};

/// Validity is looked at again at least this often, whatever the source does.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Something that a person should mend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The file, relative to the folder, if it came from one.
    pub file: Option<PathBuf>,
    /// Line in the file, from 1.
    pub line: Option<u64>,
    /// Column in the line, from 1.
    pub column: Option<u64>,
    /// Which document of the file, from 1, if it has more than one.
    pub document: Option<usize>,
    /// The object, such as `TlsRoute default/blog`, if it is known.
    pub object: Option<String>,
    /// Field path, such as `spec.rules[0].backends`; empty when it is about the whole.
    pub field: String,
    /// How much it matters.
    pub severity: Severity,
    /// What kind of problem, in `PascalCase`.
    pub reason: String,
    /// What was found.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
    /// Whether an older version of the object is served because of it.
    pub kept: bool,
}

/// The state of things after a refresh.
#[derive(Debug)]
pub struct Refreshed {
    /// Snapshot and statuses.
    pub translation: Translation,
    /// Everything that is wrong, in the order of files and lines.
    pub findings: Vec<Finding>,
    /// Number of objects by kind.
    pub counts: BTreeMap<&'static str, usize>,
    /// Number of objects that are served in their last good version, by kind.
    pub kept: BTreeMap<&'static str, usize>,
    /// Number of files that were read.
    pub files: usize,
    /// Whether there is no object at all.
    pub empty: bool,
    /// Certificates that the ACME engine must get and keep.
    pub wanted: Vec<Wanted>,
    /// Version of the answers to challenges that are in the snapshot.
    pub answers: u64,
    /// When to refresh again even if nothing else changes.
    pub next: SystemTime,
}

/// When a translation must be made again although no object changed: a certificate that ends or begins
/// changes what is served and said.
pub fn next_moment(
    snapshot: &Snapshot,
    renewals: Option<SystemTime>,
    now: SystemTime,
) -> SystemTime {
    let validity = snapshot
        .hosts
        .values()
        .filter_map(|host| served_certificate(&host.tls))
        .flat_map(|certificate| [certificate.not_before, certificate.not_after]);
    renewals
        .into_iter()
        .chain(validity)
        .filter(|moment| *moment > now)
        .min()
        .unwrap_or(now + LONGEST_PAUSE)
        .min(now + LONGEST_PAUSE)
}

fn served_certificate(tls: &TlsMode) -> Option<&Arc<Certificate>> {
    match tls {
        TlsMode::Terminate(policy) => policy.certificate.as_ref(),
        TlsMode::Passthrough(_) => None,
    }
}
