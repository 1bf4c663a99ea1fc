//! Changes objects where they stand: in the files of the folder.
//!
//! A change is found by kind and name, checked against the schema, written in place of the old text, and the file
//! replaced whole. Comments and everything else in the file stay. What is kept in Git may be marked: a file named
//! [`READ_ONLY`] in a folder says that nothing in it or below is to be changed here.

mod patch;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::Value as Json;

use self::patch::{PatchError, Step};
use super::folder::{self, Role};
use crate::source::state;
use crate::source::yaml::document;
use crate::source::yaml::kinds::{self, Identity};
use crate::source::yaml::schema::FieldProblem;

/// Name of the file that marks a folder as not to be changed here.
pub(crate) const READ_ONLY: &str = ".tidegate-read-only";

/// Why an object was not changed. Nothing is then different from before.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EditError<E> {
    /// The change itself is refused.
    #[error("change the object")]
    Refused(#[source] E),
    /// No file has the object.
    #[error("find {0}: no file of the folder has it")]
    NotFound(String),
    /// Several places have it.
    #[error("change {object}: it stands in {first} and in {second}; remove one of them")]
    Twice {
        /// The object.
        object: String,
        /// A file.
        first: String,
        /// Another one, or the same.
        second: String,
    },
    /// The folder is marked.
    #[error(
        "change {file}: {marker} says that it is changed elsewhere, such as in Git; change it there"
    )]
    ReadOnly {
        /// The file.
        file: String,
        /// The mark.
        marker: String,
    },
    /// The object would not be valid.
    #[error("change {object}: it would not be valid")]
    Invalid {
        /// The object.
        object: String,
        /// What is wrong, field by field.
        problems: Vec<FieldProblem>,
    },
    /// The text cannot be edited.
    #[error("change {object} in {file}: {why}; edit the file by hand")]
    Unusual {
        /// The object.
        object: String,
        /// The file.
        file: String,
        /// What stands in the way.
        why: String,
    },
    /// The file cannot be read or written.
    #[error("change {file}: {why}")]
    File {
        /// The file.
        file: String,
        /// What the system said, and how to mend it.
        why: String,
    },
    /// Somebody else changed it at the same moment.
    #[error("change {0}: somebody else changed it at the same moment; try again")]
    Changed(String),
}

impl<E> EditError<E> {
    /// One word.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Refused(_) => "Refused",
            Self::NotFound(_) => "NotFound",
            Self::Twice { .. } => "DuplicateObject",
            Self::ReadOnly { .. } => "ReadOnly",
            Self::Invalid { .. } => "InvalidValue",
            Self::Unusual { .. } => "NotEditable",
            Self::File { .. } => "FileNotWritable",
            Self::Changed(_) => "Conflict",
        }
    }
}

/// An object where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    /// Kind and name.
    pub(crate) identity: Identity,
    /// What it says, defaults not filled in.
    pub(crate) object: Json,
    /// Its file, relative to the folder.
    pub(crate) file: PathBuf,
    /// Why it is not to be changed here.
    pub(crate) read_only: Option<String>,
}

/// Changes the files of one folder, one change at a time.
#[derive(Debug)]
pub(crate) struct Editor {
    root: PathBuf,
    state: Option<PathBuf>,
    one_at_a_time: Mutex<()>,
}

/// A place in a file.
struct Found {
    file: PathBuf,
    text: String,
    /// Where the document is in the text.
    range: std::ops::Range<usize>,
    path: Vec<Step>,
    identity: Identity,
    object: Json,
}

impl Editor {
    /// For the objects of this folder, but for the state folder in it.
    pub(crate) fn new(root: &Path, state: Option<PathBuf>) -> Self {
        Self {
            root: root.to_owned(),
            state,
            one_at_a_time: Mutex::new(()),
        }
    }

    /// Every object of a kind that can be read. Blocks on files.
    pub(crate) fn all(&self, kind: kinds::ObjectKind) -> Vec<Standing> {
        let mut standing = Vec::new();
        self.look(|found| {
            if found.identity.kind == kind {
                standing.push(Standing {
                    read_only: self.mark_above(&found.file).map(|mark| {
                        format!("{} says that it is changed elsewhere", mark.display())
                    }),
                    identity: found.identity,
                    file: found.file,
                    object: found.object,
                });
            }
        });
        standing
    }

    /// Changes one object. Blocks on files.
    ///
    /// `change` gets what the object says and leaves what it shall say; it is called once.
    pub(crate) fn edit<E>(
        &self,
        identity: &Identity,
        change: impl FnOnce(&mut Json) -> Result<(), E>,
    ) -> Result<Json, EditError<E>> {
        let _one = self
            .one_at_a_time
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut places = Vec::new();
        self.look(|found| {
            if found.identity == *identity {
                places.push(found);
            }
        });
        let mut places = places.into_iter();
        let found = match (places.next(), places.next()) {
            (Some(found), None) => found,
            (Some(first), Some(second)) => {
                return Err(EditError::Twice {
                    object: identity.to_string(),
                    first: first.file.display().to_string(),
                    second: second.file.display().to_string(),
                });
            }
            (None, _) => return Err(EditError::NotFound(identity.to_string())),
        };
        if let Some(marker) = self.mark_above(&found.file) {
            return Err(EditError::ReadOnly {
                file: found.file.display().to_string(),
                marker: marker.display().to_string(),
            });
        }
        let mut object = found.object.clone();
        change(&mut object).map_err(EditError::Refused)?;
        if object == found.object {
            return Ok(object);
        }
        let problems = problems_of(&object);
        if !problems.is_empty() {
            return Err(EditError::Invalid {
                object: identity.to_string(),
                problems,
            });
        }
        let text = found.with(&object).map_err(|error| EditError::Unusual {
            object: identity.to_string(),
            file: found.file.display().to_string(),
            why: error.to_string(),
        })?;
        self.replace(&found, &text)?;
        Ok(object)
    }

    fn look(&self, mut each: impl FnMut(Found)) {
        let Ok(listing) = folder::list(&self.root, self.state.as_deref()) else {
            return;
        };
        let files = listing.files.into_iter();
        for (file, _) in files.filter(|(_, entry)| entry.role == Role::Objects) {
            // What cannot be read is told by the loader.
            if let Ok(Some(text)) = folder::read(&self.root, &file) {
                objects_of(&file, &text, &mut each);
            }
        }
    }

    /// The mark in the file's folder or one above, up to the root.
    fn mark_above(&self, file: &Path) -> Option<PathBuf> {
        file.ancestors()
            .skip(1)
            .map(|folder| folder.join(READ_ONLY))
            .find(|mark| self.root.join(mark).exists())
    }

    /// Replaces the file, if it is still as it was read.
    fn replace<E>(&self, found: &Found, text: &str) -> Result<(), EditError<E>> {
        let shown = found.file.display().to_string();
        let failed = |error: &io::Error| EditError::File {
            file: shown.clone(),
            why: match error.kind() {
                io::ErrorKind::ReadOnlyFilesystem => {
                    "its file system is read-only; change it where it comes from".to_owned()
                }
                _ => folder::reason_of(error),
            },
        };
        // A link is followed, so that it stays one.
        let path = fs::canonicalize(self.root.join(&found.file)).map_err(|error| failed(&error))?;
        let now = folder::read(&self.root, &found.file);
        if now.ok().flatten().as_deref() != Some(&found.text) {
            return Err(EditError::Changed(shown));
        }
        replace_whole(&path, text).map_err(|error| failed(&error))
    }
}

impl Found {
    /// The file's text with another object in its place.
    fn with(&self, object: &Json) -> Result<String, PatchError> {
        let (before, rest) = self.text.split_at(self.range.start);
        let (document, after) = rest.split_at(self.range.len());
        let json = self
            .file
            .extension()
            .is_some_and(|it| it.eq_ignore_ascii_case("json"));
        let patched = if json && self.path.is_empty() {
            // JSON has no comments that could be lost.
            serde_json::to_string_pretty(object).map_err(|_| PatchError::Unusual)? + "\n"
        } else {
            patch::patch(document, &self.path, &self.object, object)?
        };
        let separated = after.is_empty() || patched.ends_with('\n');
        let gap = if separated { "" } else { "\n" };
        Ok(format!("{before}{patched}{gap}{after}"))
    }
}

fn objects_of(file: &Path, text: &str, each: &mut impl FnMut(Found)) {
    let mut start = 0;
    for document in document::split(text) {
        // Documents are slices of the text, in its order.
        start += text[start..].find(document.text).unwrap_or_default();
        let range = start..start + document.text.len();
        start = range.end;
        let Ok(node) = document.parse() else { continue };
        let json = node.to_json();
        let items = json["items"].as_array().filter(|_| document.is_list());
        for (index, decoded) in kinds::decode(node).into_iter().enumerate() {
            let Some(identity) = decoded.identity else {
                continue;
            };
            let (path, object) = match items.and_then(|items| items.get(index)) {
                Some(item) => (
                    vec![Step::Key("items".to_owned()), Step::Index(index)],
                    item.clone(),
                ),
                None => (Vec::new(), json.clone()),
            };
            each(Found {
                file: file.to_owned(),
                text: text.to_owned(),
                range: range.clone(),
                path,
                identity,
                object,
            });
        }
    }
}

fn problems_of(object: &Json) -> Vec<FieldProblem> {
    let decoded = kinds::decode(document::Node::from_json(object));
    decoded.into_iter().flat_map(|it| it.problems).collect()
}

/// Written beside and renamed, with owner and mode of the file that it replaces.
fn replace_whole(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Hidden, so that nobody reads it as objects.
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let before = fs::metadata(path)?;
    state::replace(path, &temporary, text.as_bytes(), true, |file| {
        // Only root may give a file away; others keep their own.
        let _ = std::os::unix::fs::fchown(file, Some(before.uid()), Some(before.gid()));
        file.set_permissions(fs::Permissions::from_mode(before.mode() & 0o7777))
    })
}

#[cfg(test)]
mod tests;
