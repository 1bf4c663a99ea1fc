//! From a request path to an open file. Runs on a blocking thread.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

use super::body::read_first;
use super::listing::{Entry, MAX_ENTRIES};

/// Content codings of files that lie beside the plain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Brotli,
    Zstd,
    Gzip,
}

impl Coding {
    /// In order of preference.
    pub(super) const ALL: [Self; 3] = [Self::Brotli, Self::Zstd, Self::Gzip];

    pub(super) const fn token(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    const fn extension(self) -> &'static str {
        match self {
            Self::Brotli => ".br",
            Self::Zstd => ".zst",
            Self::Gzip => ".gz",
        }
    }
}

/// What is looked for.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) root: PathBuf,
    /// Below the root; normal components only.
    pub(super) path: PathBuf,
    /// The request path ends in a slash.
    pub(super) is_folder: bool,
    pub(super) index: Vec<String>,
    pub(super) listing: bool,
    pub(super) fallback: Option<String>,
    /// What the client takes, best first.
    pub(super) codings: Vec<Coding>,
}

/// What is there.
#[derive(Debug)]
pub(super) enum Found {
    File(FoundFile),
    /// A folder whose path lacks the slash.
    Folder,
    Listing(Vec<Entry>),
}

/// An open regular file.
#[derive(Debug)]
pub(super) struct FoundFile {
    pub(super) file: File,
    /// First bytes, if the file is small enough to be read at once.
    pub(super) first: Option<Vec<u8>>,
    pub(super) length: u64,
    pub(super) modified: Option<std::time::SystemTime>,
    /// Name of the plain file, which tells the media type.
    pub(super) name: String,
    pub(super) coding: Option<Coding>,
    /// Whether a coded sibling exists, so that the answer varies.
    pub(super) has_codings: bool,
}

/// The path below the root, or None for what is never served: dotfiles (but `.well-known`), names with a
/// slash or NUL in them, `..`.
pub(super) fn relative(path: &str, strip_prefix: &str) -> Option<PathBuf> {
    let mut rest = path.split('/').filter(|segment| !segment.is_empty());
    for expected in strip_prefix
        .split('/')
        .filter(|segment| !segment.is_empty())
    {
        // The rule matched already, by the canonical spelling.
        let segment = rest.next()?;
        if !percent_decode_str(segment).eq(percent_decode_str(expected)) {
            return None;
        }
    }
    let mut relative = PathBuf::new();
    for segment in rest {
        let name: Vec<u8> = percent_decode_str(segment).collect();
        let is_known_dot = relative.as_os_str().is_empty() && name == b".well-known";
        if (name.starts_with(b".") && !is_known_dot) || name.iter().any(|b| matches!(b, 0 | b'/')) {
            return None;
        }
        relative.push(OsStr::from_bytes(&name));
    }
    Some(relative)
}

// === impl Question ===

impl Question {
    pub(super) fn answer(self) -> io::Result<Found> {
        let root = self.root.canonicalize()?;
        match self.look(&root) {
            Err(error) if is_missing(&error) => {
                let Some(fallback) = &self.fallback else {
                    return Err(error);
                };
                let path = within(&root, &root.join(fallback))?;
                let metadata = path.metadata()?;
                self.open(&root, &path, &metadata).map(Found::File)
            }
            other => other,
        }
    }

    fn look(&self, root: &Path) -> io::Result<Found> {
        let path = within(root, &root.join(&self.path))?;
        let metadata = path.metadata()?;
        if !metadata.is_dir() {
            if self.is_folder {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            return self.open(root, &path, &metadata).map(Found::File);
        }
        if !self.is_folder {
            return Ok(Found::Folder);
        }
        for name in &self.index {
            let Ok(index) = within(root, &path.join(name)) else {
                continue;
            };
            match index.metadata() {
                Ok(metadata) if metadata.is_file() => {
                    return self.open(root, &index, &metadata).map(Found::File);
                }
                _ => {}
            }
        }
        if self.listing {
            return list(&path).map(Found::Listing);
        }
        Err(io::ErrorKind::NotFound.into())
    }

    fn open(&self, root: &Path, path: &Path, metadata: &Metadata) -> io::Result<FoundFile> {
        // Opening a pipe would wait for its other end for ever.
        if !metadata.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let siblings: Vec<_> = Coding::ALL
            .into_iter()
            .filter_map(|coding| Some((coding, sibling(root, path, coding)?)))
            .collect();
        let chosen = self
            .codings
            .iter()
            .find_map(|coding| siblings.iter().find(|(found, _)| found == coding));
        let (coding, opened) = match chosen {
            Some((coding, path)) => (Some(*coding), path.as_path()),
            None => (None, path),
        };
        let mut file = File::open(opened)?;
        let metadata = file.metadata()?;
        let length = metadata.len();
        Ok(FoundFile {
            first: read_first(&mut file, length)?,
            file,
            length,
            modified: metadata.modified().ok(),
            name,
            coding,
            has_codings: !siblings.is_empty(),
        })
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Follows symbolic links and refuses what they lead to outside of the root. A name that is too long and a
/// link that leads to itself are as good as missing.
fn within(root: &Path, path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Ok(real) if real.starts_with(root) => Ok(real),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

fn sibling(root: &Path, path: &Path, coding: Coding) -> Option<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(coding.extension());
    let sibling = within(root, Path::new(&name)).ok()?;
    sibling.metadata().ok()?.is_file().then_some(sibling)
}

fn list(folder: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in folder.read_dir()?.take(MAX_ENTRIES) {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        // Not through links: where they lead may not be served.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_symlink() {
            continue;
        }
        entries.push(Entry {
            name,
            is_folder: metadata.is_dir(),
            length: metadata.len(),
            modified: metadata.modified().ok(),
        });
    }
    entries.sort_by(|a, b| (!a.is_folder, &a.name).cmp(&(!b.is_folder, &b.name)));
    Ok(entries)
}
