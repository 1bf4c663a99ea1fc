//! An AcmeIssuer from a file instead of an object: the one that a chart's values describe.
//!
//! It is the default issuer under its own name. Objects win: one of the same name replaces it, and one that says
//! `default: true` leaves it a mere issuer. The file is read again and again; while it is wrong, what it said
//! before stays in use. There is no object whose status could be written: what is wrong is told in the log, on
//! the admin listener and in the conditions of routes.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::watch::World;
use crate::api::AcmeIssuer;
use crate::source::Finding;
use crate::source::yaml::document::{self, Node};
use crate::source::yaml::kinds::{self, MAX_OBJECT_BYTES, Object};
use crate::translate::{Inputs, IssuerFile, Kind, ObjectRef, Severity};

/// Pause between two looks. The file systems of pods tell nobody of a change reliably.
const PAUSE: Duration = Duration::from_secs(5);

/// The file.
#[derive(Debug)]
pub struct DefaultIssuerFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// As it was last read; or why it could not be.
    text: Option<Result<String, String>>,
    good: Option<Good>,
    findings: Vec<Finding>,
    /// Whether the issuer in use is that of the file.
    used: bool,
}

/// What the file said when it was last right.
struct Good {
    name: String,
    issuer: Arc<AcmeIssuer>,
    /// For the lines of fields.
    node: Node,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("issuer", &self.good.as_ref().map(|good| &good.name))
            .field("used", &self.used)
            .finish_non_exhaustive()
    }
}

impl DefaultIssuerFile {
    /// The file at this path, which may not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            state: Mutex::default(),
        }
    }

    /// Tells the world when the file has changed, until the token is cancelled.
    pub async fn follow(self: Arc<Self>, world: Arc<World>, stop: CancellationToken) {
        let look = async {
            loop {
                tokio::time::sleep(PAUSE).await;
                let file = Arc::clone(&self);
                let changed = tokio::task::spawn_blocking(move || {
                    let text = read(&file.path);
                    file.lock().text.as_ref() != Some(&text)
                });
                if changed.await.unwrap_or(false) {
                    world.changed();
                }
            }
        };
        stop.run_until_cancelled(look).await;
    }

    /// Reads the file, and adds its issuer to those of objects; `objects` are the names of those of this edge's
    /// class. Blocks on the file system.
    pub(super) fn fill(
        &self,
        inputs: &mut Inputs,
        objects: &BTreeSet<String>,
        findings: &mut Vec<Finding>,
    ) {
        let text = read(&self.path);
        let mut state = self.lock();
        if state.text.as_ref() != Some(&text) {
            state.take(&self.path, text);
        }
        findings.extend(state.findings.iter().cloned());
        state.used = false;
        let shown = self.path.display().to_string();
        let Some(good) = &state.good else {
            inputs.issuer_file = Some(IssuerFile {
                path: shown,
                issuer: None,
            });
            return;
        };
        if objects.contains(&good.name) {
            findings.push(Finding {
                object: Some(format!("AcmeIssuer {}", good.name)),
                field: "metadata.name".to_owned(),
                line: good.node.line_of("metadata.name"),
                severity: Severity::Warning,
                ..finding(
                    &self.path,
                    "IssuerReplaced",
                    format!(
                        "the AcmeIssuer {} of the API server is used instead of this file",
                        good.name
                    ),
                    "delete that object, or give the issuer in the file another name",
                )
            });
            return;
        }
        let other = (inputs.own_issuers())
            .find(|issuer| issuer.spec.default == Some(true))
            .map(|issuer| issuer.metadata.name.clone().unwrap_or_default());
        let mut issuer = AcmeIssuer::clone(&good.issuer);
        issuer.spec.default = Some(other.is_none());
        // Whoever was given the file is meant by it.
        issuer
            .spec
            .class_name
            .clone_from(&inputs.environment.class_name);
        if let Some(other) = other {
            findings.push(Finding {
                object: Some(format!("AcmeIssuer {}", good.name)),
                severity: Severity::Warning,
                ..finding(
                    &self.path,
                    "NotTheDefault",
                    format!("AcmeIssuer {other} says default: true, so the one in this file is not the default"),
                    "remove default: true from that object, or leave --default-issuer-file out",
                )
            });
        }
        inputs.issuer_file = Some(IssuerFile {
            path: shown,
            issuer: Some(good.name.clone()),
        });
        inputs.issuers.push(Arc::new(issuer));
        state.used = true;
    }

    /// File and line of a field of this object, if it is the one in the file.
    pub(super) fn place(&self, object: &ObjectRef, field: &str) -> Option<(PathBuf, Option<u64>)> {
        let state = self.lock();
        let good = state.good.as_ref().filter(|_| state.used)?;
        let ours = object.kind == Kind::AcmeIssuer && object.name == good.name;
        ours.then(|| (self.path.clone(), good.node.line_of(field)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, path: &Path, text: Result<String, String>) {
        let understood = match &text {
            Ok(text) => understand(path, text),
            Err(message) => Err(vec![finding(
                path,
                "FileUnreadable",
                message.clone(),
                "mount it, or leave --default-issuer-file out",
            )]),
        };
        match understood {
            Ok(good) => {
                tracing::info!(file = %path.display(), issuer = good.name, "read the default issuer");
                self.good = Some(good);
                self.findings.clear();
            }
            Err(findings) => {
                self.findings = findings;
                for finding in &mut self.findings {
                    finding.kept = self.good.is_some();
                }
            }
        }
        self.text = Some(text);
    }
}

fn finding(
    file: &Path,
    reason: &str,
    message: impl Into<String>,
    hint: impl Into<String>,
) -> Finding {
    Finding {
        file: Some(file.to_owned()),
        line: None,
        column: None,
        document: None,
        object: None,
        field: String::new(),
        severity: Severity::Error,
        reason: reason.to_owned(),
        message: message.into(),
        hint: Some(hint.into()),
        kept: false,
    }
}

/// The text, or why there is none.
fn read(path: &Path) -> Result<String, String> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "the file does not exist".to_owned(),
        _ => format!("the file cannot be read: {error}"),
    };
    let mut bytes = Vec::new();
    let mut file = fs::File::open(path)
        .map_err(failed)?
        .take(MAX_OBJECT_BYTES as u64 + 1);
    file.read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_OBJECT_BYTES {
        return Err(format!("the file has more than {MAX_OBJECT_BYTES} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "the file is not text in UTF-8".to_owned())
}

/// Where to read what a field may hold.
fn explained(field: &str) -> String {
    let steps = field
        .split('.')
        .map(|step| step.split('[').next().unwrap_or_default());
    let path: Vec<&str> = std::iter::once("acmeissuers").chain(steps).collect();
    let path = path.join(".");
    format!(
        "`kubectl explain {}` tells what may stand there",
        path.trim_end_matches('.')
    )
}

/// Exactly one AcmeIssuer.
fn understand(path: &Path, text: &str) -> Result<Good, Vec<Finding>> {
    let only = "write one AcmeIssuer; `kubectl apply` everything else";
    let documents = document::split(text);
    let document = match &documents[..] {
        [document] => document,
        [] => {
            let message = "the file holds no document";
            return Err(vec![finding(path, "EmptyFile", message, only)]);
        }
        [_, second, ..] => {
            let message = format!("the file holds {} documents", documents.len());
            return Err(vec![Finding {
                line: Some(second.first_line),
                ..finding(path, "SeveralDocuments", message, only)
            }]);
        }
    };
    let parse = || {
        document.parse().map_err(|error| {
            vec![Finding {
                line: error.line,
                column: error.column,
                ..finding(
                    path,
                    "MalformedYaml",
                    error.message,
                    "mend the syntax at or above this place",
                )
            }]
        })
    };
    let node = parse()?;
    let mut findings = Vec::new();
    let mut issuer = None;
    for decoded in kinds::decode(parse()?) {
        let line = decoded.line;
        let object = decoded.identity.as_ref().map(ToString::to_string);
        findings.extend(decoded.problems.into_iter().map(|problem| Finding {
            line: problem.line.or(line),
            object: object.clone(),
            field: problem.path.clone(),
            ..finding(
                path,
                problem.reason,
                problem.message,
                problem.hint.unwrap_or_else(|| explained(&problem.path)),
            )
        }));
        match (decoded.object, decoded.identity) {
            (Some(Object::Issuer(found)), Some(identity)) if issuer.is_none() => {
                issuer = Some((identity.name, found));
            }
            (None, _) => {}
            (Some(_), _) => findings.push(Finding {
                line,
                field: "kind".to_owned(),
                object,
                ..finding(
                    path,
                    "UnknownKind",
                    "the file must hold one AcmeIssuer",
                    only,
                )
            }),
        }
    }
    match issuer {
        Some((name, issuer)) if findings.is_empty() => Ok(Good { name, issuer, node }),
        _ if findings.is_empty() => {
            let message = "the file holds no AcmeIssuer";
            Err(vec![finding(path, "EmptyFile", message, only)])
        }
        _ => Err(findings),
    }
}

#[cfg(test)]
mod tests;
