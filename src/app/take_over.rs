//! `tidegate import torrust`: an environment file in, files of objects out.
//!
//! What the objects are is decided by `import`; whether they are right, by the same `translate` that the edge asks.
//! Nothing is written that it refuses, and no file of other content is replaced unasked.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::admin::{ProblemView, SeverityView};
use crate::import::torrust::{self, Mistake, Options, Plan, PlannedFile};
use crate::source::yaml::document;
use crate::source::yaml::kinds::{self, Object};
use crate::translate::{Environment, Inputs, Severity, StaticFilesPolicy, translate};

/// Longest environment file that is read, in bytes.
const LONGEST: u64 = 1024 * 1024;

/// Why nothing is taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// The file cannot be read.
    #[error("read {path:?}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no environment file.
    #[error("read {0:?}: it has more than {LONGEST} bytes, which no environment file has")]
    TooLong(PathBuf),
    /// The file says what cannot be.
    #[error("take over {path:?}:{}", lines(mistakes))]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong with it.
        mistakes: Vec<Mistake>,
    },
    /// Files would be lost.
    #[error(
        "write {}: other content is there; look at it with --dry-run, then remove it or give --overwrite",
        shown(.0)
    )]
    Differ(Vec<PathBuf>),
    /// A file cannot be written.
    #[error("write {path:?}")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn lines(mistakes: &[Mistake]) -> String {
    let mut lines = String::new();
    for mistake in mistakes {
        let _ = write!(lines, "\n  {mistake}");
    }
    lines
}

fn shown(paths: &[PathBuf]) -> String {
    let shown: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    shown.join(", ")
}

/// A plan and what the edge would say of it.
#[derive(Debug)]
pub struct Prepared {
    /// The plan.
    pub plan: Plan,
    /// What is wrong with its objects. Not empty: they must not be written.
    pub problems: Vec<ProblemView>,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It was not there.
    New,
    /// It had other content.
    Replaced,
    /// It was there already.
    Same,
}

/// Reads an environment file and plans what becomes of it.
///
/// # Errors
///
/// When the file cannot be read, or says what cannot be.
pub fn prepare(path: &Path, options: &Options, now: SystemTime) -> Result<Prepared, TakeOverError> {
    let text = read(path)?;
    let refused = |mistakes| TakeOverError::Mistakes {
        path: path.to_owned(),
        mistakes,
    };
    let environment = torrust::parse(&text).map_err(refused)?;
    let plan = torrust::plan(&environment, options).map_err(refused)?;
    let problems = judge(&plan.files, now);
    Ok(Prepared { plan, problems })
}

fn read(path: &Path) -> Result<String, TakeOverError> {
    let unreadable = |source| TakeOverError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = fs::File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    file.take(LONGEST + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > LONGEST {
        return Err(TakeOverError::TooLong(path.to_owned()));
    }
    Ok(text)
}

/// What `check` would say of these files if they were all there is.
fn judge(files: &[PlannedFile], now: SystemTime) -> Vec<ProblemView> {
    let mut problems = Vec::new();
    let mut inputs = Inputs {
        environment: Environment {
            static_files: StaticFilesPolicy::default(),
            ..Environment::default()
        },
        ..Inputs::default()
    };
    for file in files {
        for raw in document::split(&file.text) {
            let node = match raw.parse() {
                Ok(node) => node,
                Err(error) => {
                    problems.push(problem(file, "MalformedYaml", error.message));
                    continue;
                }
            };
            for decoded in kinds::decode(node) {
                for wrong in decoded.problems {
                    if wrong.reason != kinds::FOREIGN_KIND {
                        problems.push(ProblemView {
                            line: wrong.line,
                            object: decoded.identity.as_ref().map(ToString::to_string),
                            field: Some(wrong.path),
                            hint: wrong.hint,
                            ..problem(file, wrong.reason, wrong.message)
                        });
                    }
                }
                match decoded.object {
                    Some(Object::Route(route)) => inputs.routes.push(route),
                    Some(Object::Issuer(issuer)) => inputs.issuers.push(Arc::clone(&issuer)),
                    _ => {}
                }
            }
        }
    }
    let translation = translate(&inputs, now);
    problems.extend(
        translation
            .problems
            .into_iter()
            .filter(|found| found.severity() == Severity::Error)
            .map(|found| ProblemView {
                file: None,
                line: None,
                column: None,
                document: None,
                object: Some(found.object.to_string()),
                field: Some(found.field),
                severity: SeverityView::Error,
                reason: found.reason.to_string(),
                message: found.message,
                hint: found.hint,
                kept: false,
            }),
    );
    problems
}

fn problem(file: &PlannedFile, reason: &str, message: String) -> ProblemView {
    ProblemView {
        file: Some(file.name.clone()),
        line: None,
        column: None,
        document: None,
        object: None,
        field: None,
        severity: SeverityView::Error,
        reason: reason.to_owned(),
        message,
        hint: None,
        kept: false,
    }
}

/// Writes the files of a plan, all or, where others would be lost, none.
///
/// # Errors
///
/// When files of other content are there, or a file cannot be written.
pub fn write(
    folder: &Path,
    files: &[PlannedFile],
    overwrite: bool,
) -> Result<Vec<(PathBuf, Written)>, TakeOverError> {
    let unwritable = |path: &Path, source| TakeOverError::Unwritable {
        path: path.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for file in files {
        let path = folder.join(&file.name);
        let state = match fs::read(&path) {
            Ok(there) if there == file.text.as_bytes() => Written::Same,
            Ok(_) => Written::Replaced,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Written::New,
            Err(error) => return Err(unwritable(&path, error)),
        };
        found.push((path, state));
    }
    let lost: Vec<PathBuf> = found
        .iter()
        .filter(|(_, state)| *state == Written::Replaced)
        .map(|(path, _)| path.clone())
        .collect();
    if !overwrite && !lost.is_empty() {
        return Err(TakeOverError::Differ(lost));
    }
    fs::create_dir_all(folder).map_err(|error| unwritable(folder, error))?;
    for ((path, state), file) in found.iter().zip(files) {
        if *state != Written::Same {
            replace(path, &file.text).map_err(|error| unwritable(path, error))?;
        }
    }
    Ok(found)
}

/// An edge may watch the folder: it sees the whole file or none. Hidden names are not read.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = fs::File::create(&aside)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written
}
