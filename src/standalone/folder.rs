//! Reads a folder of objects: which files there are, and what they hold.
//!
//! Never follows a link in circles, never reads hidden names (a mounted ConfigMap keeps its data under
//! `..data` and links to it) nor the state folder. What cannot be read is told per file; whoever keeps the
//! last good objects needs to know whether a file is gone or only unreadable.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Largest file that is read, in bytes.
pub(crate) const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Most files that are read.
pub(crate) const MAX_FILES: usize = 50_000;
const MAX_DEPTH: usize = 16;

/// What makes a file worth reading again. A replaced file differs in its inode, an edited one in its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileStamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

/// Every file of the folder, by path relative to it, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    /// Files that may hold objects.
    pub(crate) files: BTreeMap<PathBuf, Entry>,
    /// Folders that cannot be listed, and why. Files below them are neither there nor gone.
    pub(crate) unreadable: BTreeMap<PathBuf, String>,
    /// Whether there are more files than are read.
    pub(crate) too_many: bool,
}

/// A file of the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// What it is for.
    pub(crate) role: Role,
    /// When it must be read again.
    pub(crate) stamp: FileStamp,
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Documents in YAML or JSON.
    Objects,
    /// `secrets/NAMESPACE/NAME/KEY`: one value of a Secret.
    SecretValue,
}

/// Lists the folder. An error is about the folder itself.
pub(crate) fn list(root: &Path, state: Option<&Path>) -> io::Result<Listing> {
    let mut walk = Walk {
        root,
        state: state.and_then(|state| fs::canonicalize(state).ok()),
        seen: BTreeSet::new(),
        listing: Listing::default(),
    };
    fs::read_dir(root)?;
    walk.folder(Path::new(""), 0);
    Ok(walk.listing)
}

/// Reads one file; None when it is gone.
pub(crate) fn read(root: &Path, file: &Path) -> Result<Option<String>, String> {
    let bytes = match fs::read(root.join(file)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(reason_of(&error)),
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(match text.strip_prefix('\u{feff}') {
            Some(rest) => rest.to_owned(),
            None => text,
        })),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let before = String::from_utf8_lossy(&error.as_bytes()[..valid]);
            let line = 1 + before.matches('\n').count();
            Err(format!(
                "is not UTF-8: line {line} has the byte 0x{:02x}; save the file as UTF-8",
                error.as_bytes().get(valid).copied().unwrap_or_default()
            ))
        }
    }
}

/// What an I/O error means for the person who has to mend it.
pub(crate) fn reason_of(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "permission denied for user {}; make it readable (`chmod a+r`, and `a+x` on the folders above)",
            rustix::process::geteuid().as_raw()
        ),
        io::ErrorKind::NotFound => "does not exist".to_owned(),
        io::ErrorKind::NotADirectory => "is not a folder".to_owned(),
        _ => error.to_string(),
    }
}

struct Walk<'a> {
    root: &'a Path,
    state: Option<PathBuf>,
    seen: BTreeSet<PathBuf>,
    listing: Listing,
}

impl Walk<'_> {
    fn folder(&mut self, relative: &Path, depth: usize) {
        let path = self.root.join(relative);
        let canonical = match fs::canonicalize(&path) {
            Ok(canonical) => canonical,
            Err(error) => return self.unreadable(relative, &error),
        };
        // The same folder through a second link would repeat its objects.
        if self.state.as_ref() == Some(&canonical) || !self.seen.insert(canonical) {
            return;
        }
        if depth > MAX_DEPTH {
            let error = io::Error::other(format!("is more than {MAX_DEPTH} folders deep"));
            return self.unreadable(relative, &error);
        }
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) => return self.unreadable(relative, &error),
        };
        let mut names: Vec<_> = entries
            .filter_map(Result::ok)
            .map(|entry| entry.file_name())
            .collect();
        names.sort_unstable();
        for name in names {
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let child = relative.join(&name);
            match fs::metadata(self.root.join(&child)) {
                Ok(metadata) if metadata.is_dir() => self.folder(&child, depth + 1),
                Ok(metadata) if metadata.is_file() => self.file(child, &metadata),
                // Sockets, pipes, devices.
                Ok(_) => {}
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && !dangling(self.root, &child) =>
                {
                    // Deleted since the folder was listed.
                }
                Err(error) => {
                    if role(&child).is_some() {
                        self.unreadable(&child, &error);
                    }
                }
            }
        }
    }

    fn file(&mut self, relative: PathBuf, metadata: &fs::Metadata) {
        use std::os::unix::fs::MetadataExt;
        let Some(role) = role(&relative) else { return };
        if self.listing.files.len() >= MAX_FILES {
            self.listing.too_many = true;
            return;
        }
        let stamp = FileStamp {
            modified: metadata.modified().ok(),
            length: metadata.len(),
            inode: metadata.ino(),
        };
        self.listing.files.insert(relative, Entry { role, stamp });
    }

    fn unreadable(&mut self, relative: &Path, error: &io::Error) {
        self.listing
            .unreadable
            .insert(relative.to_owned(), reason_of(error));
    }
}

fn dangling(root: &Path, relative: &Path) -> bool {
    fs::symlink_metadata(root.join(relative)).is_ok()
}

fn role(relative: &Path) -> Option<Role> {
    let mut parts = relative.components();
    if parts
        .next()
        .is_some_and(|part| part.as_os_str() == "secrets")
        && parts.count() == 3
    {
        return Some(Role::SecretValue);
    }
    let extension = relative.extension()?.to_str()?;
    ["yaml", "yml", "json"]
        .iter()
        .any(|known| extension.eq_ignore_ascii_case(known))
        .then_some(Role::Objects)
}

impl FileStamp {
    /// Size in bytes.
    pub(crate) const fn length(&self) -> u64 {
        self.length
    }

    /// Whether the last change lies so far before `read_at` that a later one would show in the time.
    pub(crate) fn settled_before(&self, read_at: SystemTime, step: std::time::Duration) -> bool {
        self.modified
            .is_some_and(|modified| modified + step < read_at)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(listing: &Listing) -> Vec<String> {
        listing
            .files
            .keys()
            .map(|path| path.display().to_string())
            .collect()
    }

    #[test]
    fn yaml_and_json_files_are_found_below_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for file in [
            "b.yaml",
            "a.yml",
            "sub/deep/c.json",
            "notes.txt",
            ".hidden/x.yaml",
            ".hidden.yaml",
            "state/x.yaml",
            "secrets/default/web/tls.crt",
            "secrets/default/web/tls.key",
            "secrets/plain.yaml",
        ] {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), "").unwrap();
        }
        symlink(root, root.join("sub/loop")).unwrap();
        symlink(root.join("missing"), root.join("dangling.yaml")).unwrap();
        let listing = list(root, Some(&root.join("state"))).unwrap();
        assert_eq!(
            names(&listing),
            [
                "a.yml",
                "b.yaml",
                "secrets/default/web/tls.crt",
                "secrets/default/web/tls.key",
                "secrets/plain.yaml",
                "sub/deep/c.json",
            ]
        );
        let unreadable: Vec<_> = listing.unreadable.keys().collect();
        assert_eq!(unreadable, [Path::new("dangling.yaml")]);
        assert!(list(&root.join("nothing"), None).is_err());
    }

    #[test]
    fn a_swapped_link_changes_the_listing() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for (version, text) in [("..1", "a: 1"), ("..2", "b: 1")] {
            fs::create_dir(root.join(version)).unwrap();
            fs::write(root.join(version).join("x.yaml"), text).unwrap();
        }
        symlink("..1", root.join("..data")).unwrap();
        symlink("..data/x.yaml", root.join("x.yaml")).unwrap();
        let before = list(root, None).unwrap();
        assert_eq!(names(&before), ["x.yaml"]);
        symlink("..2", root.join("..new")).unwrap();
        fs::rename(root.join("..new"), root.join("..data")).unwrap();
        assert_ne!(list(root, None).unwrap(), before);
        assert_eq!(
            read(root, Path::new("x.yaml")).unwrap().as_deref(),
            Some("b: 1")
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_told_with_their_line() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("x.yaml"), b"a: 1\nb: \xff\n").unwrap();
        let error = read(folder.path(), Path::new("x.yaml")).unwrap_err();
        assert!(
            error.contains("line 2") && error.contains("0xff"),
            "{error}"
        );
        assert_eq!(read(folder.path(), Path::new("gone.yaml")), Ok(None));
    }
}
