//! The state folder: what the edge itself must remember, readable by nobody else.
//!
//! Folders are 0700 and files 0600. A file is written beside its place, synced and renamed, so that a crash
//! leaves the old one or the new one, never half of one. A lock keeps two edges from sharing a folder. What
//! cannot be read is set aside as `NAME.corrupt-N` and never deleted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Name of the state folder inside the folder of objects, unless another is given.
pub const DEFAULT_NAME: &str = ".tidegate";

const LOCK: &str = "lock";

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder cannot be made.
    #[error("create the state folder {path:?}; give another with --state-dir")]
    Create {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process holds it.
    #[error(
        "use the state folder {path:?}: another tidegate uses it{owner}; stop that one, or give this one its own with --state-dir"
    )]
    Locked {
        /// The folder.
        path: PathBuf,
        /// ` (process 123)` when it said so.
        owner: String,
    },
    /// A file cannot be read.
    #[error("read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("write {path:?}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl StateError {
    /// The reason for statuses and metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Create { .. } => "StateFolderUnusable",
            Self::Locked { .. } => "StateFolderLocked",
            Self::Read { .. } => "StateUnreadable",
            Self::Write { .. } => "StateUnwritable",
        }
    }
}

/// An open state folder.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    /// Held until the folder is dropped; the system frees it when the process ends in any way.
    lock: Option<File>,
}

impl StateFolder {
    /// Opens the folder for reading, whether or not it exists or somebody holds it.
    pub fn peek(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            lock: None,
        }
    }

    /// Makes the folder if need be and takes its lock.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StateError> {
        let path = path.into();
        make_private(&path).map_err(|source| StateError::Create {
            path: path.clone(),
            source,
        })?;
        let lock_path = path.join(LOCK);
        let write_error = |source| StateError::Write {
            path: lock_path.clone(),
            source,
        };
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path);
        let mut lock = match opened {
            // What is there can be served, and whoever wants to write is told.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                File::open(&lock_path).map_err(|_| write_error(error))?
            }
            opened => opened.map_err(write_error)?,
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut owner = String::new();
                let _ = lock.read_to_string(&mut owner);
                let owner = match owner.trim() {
                    "" => String::new(),
                    pid => format!(" (process {pid})"),
                };
                return Err(StateError::Locked { path, owner });
            }
            Err(fs::TryLockError::Error(source)) => return Err(write_error(source)),
        }
        // A wrong process id in a message is no reason to stay down, on a full disk least of all.
        if let Err(error) = note_owner(&mut lock) {
            tracing::warn!(lock = %lock_path.display(), %error, "the process id cannot be noted");
        }
        Ok(Self {
            path,
            lock: Some(lock),
        })
    }

    /// Whether a running process holds the folder.
    pub fn is_held(&self) -> bool {
        File::open(self.path.join(LOCK))
            .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
    }

    /// Takes over the folder with the lock that another process of the same edge held and passed on.
    pub fn inherit(path: impl Into<PathBuf>, lock: File) -> Self {
        let mut lock = lock;
        // A wrong process id in a message is no reason to refuse an upgrade.
        let _ = note_owner(&mut lock);
        Self {
            path: path.into(),
            lock: Some(lock),
        }
    }

    /// The lock, to be passed on.
    pub fn lock(&self) -> Option<&File> {
        self.lock.as_ref()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content of a file; None when there is none.
    pub fn read(&self, name: &str) -> Result<Option<String>, StateError> {
        let path = self.path.join(name);
        match fs::read(&path) {
            // Bytes that are no text fail wherever the text is parsed, which is where it is set aside.
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Read { path, source }),
        }
    }

    /// Writes a file, all or nothing. Folders in the name are made.
    pub fn write(&self, name: &str, content: &str) -> Result<(), StateError> {
        let path = self.path.join(name);
        write_whole(&path, content.as_bytes(), true)
            .map_err(|source| StateError::Write { path, source })
    }

    /// The same for what may be lost when the machine loses power, but is never seen half written while it
    /// runs.
    pub fn write_unsynced(&self, name: &str, content: &str) -> Result<(), StateError> {
        let path = self.path.join(name);
        write_whole(&path, content.as_bytes(), false)
            .map_err(|source| StateError::Write { path, source })
    }

    /// Names of the files in a folder of the state; none when there is no such folder.
    pub fn list(&self, folder: &str) -> Vec<String> {
        fs::read_dir(self.path.join(folder))
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect()
    }

    /// Removes a file that may be missing.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateError::Write {
                path,
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// Renames a file that cannot be used to `NAME.corrupt-N` and returns its new path.
    pub fn set_aside(&self, name: &str) -> Result<PathBuf, StateError> {
        let path = self.path.join(name);
        let mut number = 1_u32;
        let aside = loop {
            let aside = self.path.join(format!("{name}.corrupt-{number}"));
            if !aside.exists() {
                break aside;
            }
            number += 1;
        };
        fs::rename(&path, &aside).map_err(|source| StateError::Write { path, source })?;
        Ok(aside)
    }
}

fn note_owner(lock: &mut File) -> io::Result<()> {
    use std::io::Seek;
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}

/// Makes the folder and its parents; the folder itself becomes private, parents that exist are left alone.
fn make_private(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    let mut permissions = fs::metadata(path)?.permissions();
    if permissions.mode() & 0o077 != 0 {
        permissions.set_mode(0o700);
        fs::set_permissions(path, permissions)?;
    }
    Ok(())
}

fn write_whole(path: &Path, content: &[u8], durable: bool) -> io::Result<()> {
    make_private(path.parent().unwrap_or(Path::new(".")))?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    replace(path, Path::new(&temporary), content, durable, |_| Ok(()))
}

/// Writes the temporary file beside and renames it, all or nothing. It is private until `dress` has made it otherwise.
pub(crate) fn replace(
    path: &Path,
    temporary: &Path,
    content: &[u8],
    durable: bool,
    dress: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let written = (|| {
        // A file of this name can only be left by an earlier process of the same id.
        let _ = fs::remove_file(temporary);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(temporary)?;
        file.write_all(content)?;
        dress(&file)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(temporary, path)?;
        if durable {
            // The rename itself is durable only once the folder is synced.
            File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        }
        Ok(())
    })();
    if written.is_err() {
        let _ = fs::remove_file(temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_private_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path().join("state")).unwrap();
        assert_eq!(state.read("a/b").unwrap(), None);
        state.write("a/b", "one").unwrap();
        state.write("a/b", "two").unwrap();
        assert_eq!(state.read("a/b").unwrap().as_deref(), Some("two"));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(state.path().join("a/b")), 0o600);
        assert_eq!(mode(state.path().join("a")), 0o700);
        assert_eq!(mode(state.path().to_owned()), 0o700);
        assert_eq!(fs::read_dir(state.path().join("a")).unwrap().count(), 1);
        let aside = state.set_aside("a/b").unwrap();
        assert!(aside.ends_with("a/b.corrupt-1"));
        state.write("a/b", "three").unwrap();
        assert!(state.set_aside("a/b").unwrap().ends_with("a/b.corrupt-2"));
    }

    #[test]
    fn a_second_edge_is_told_who_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateFolder::open(folder.path()).unwrap();
        let error = StateFolder::open(folder.path()).unwrap_err();
        assert_eq!(error.reason(), "StateFolderLocked");
        let text = error.to_string();
        assert!(text.contains(&std::process::id().to_string()), "{text}");
        drop(first);
        assert!(StateFolder::open(folder.path()).is_ok());
    }
}
