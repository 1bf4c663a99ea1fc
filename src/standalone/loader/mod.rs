//! From a folder to objects: what is new, what is wrong, and what is kept although it is wrong now.
//!
//! ```text
//! folder ─► listing ─► changed files ─► documents ─► objects ─┐
//!                                                             ├─► Loaded
//! objects of the load before (files that are broken now) ─────┘
//! ```
//!
//! A bad document harms only itself: the last good version of the object it held is kept and said. A deleted
//! file deletes its objects; a file or folder that cannot be read deletes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::folder::{self, FileStamp, Listing, Role};
use crate::source::yaml::document;
use crate::source::yaml::kinds::{self, Identity, MAX_OBJECT_BYTES, Object, ObjectKind};
use crate::translate::{Inputs, SecretData, Severity};

/// Most objects that are read.
pub(crate) const MAX_OBJECTS: usize = 50_000;
/// Most problems of one load whose line is looked up, each of which reads a file again.
const MOST_LINES: usize = 200;
/// A file that changed less than this ago is read again although its time did not move: file systems count
/// time in steps.
const TIME_STEP: Duration = Duration::from_secs(2);

/// Something wrong with a file, or with an object in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProblem {
    /// The file, relative to the folder; empty for the folder itself.
    pub file: PathBuf,
    /// Which document of the file, from 1, if the file has more than one.
    pub document: Option<usize>,
    /// Line, from 1.
    pub line: Option<u64>,
    /// Column, from 1.
    pub column: Option<u64>,
    /// The object, if it could be told.
    pub object: Option<Identity>,
    /// Field path, such as `spec.rules[0]`; empty when it is about the whole.
    pub field: String,
    /// What kind of problem, in `PascalCase`.
    pub reason: &'static str,
    /// What was found.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
    /// Whether an object is served in an older version because of it.
    pub kept: bool,
}

/// An object and the place it came from.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    pub(crate) identity: Identity,
    pub(crate) object: Object,
    pub(crate) file: PathBuf,
    pub(crate) document: usize,
}

/// Where something stands.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) file: PathBuf,
    /// Only of files with more than one document.
    pub(crate) document: Option<usize>,
    pub(crate) line: Option<u64>,
}

/// What a folder holds at this moment.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    objects: Vec<Located>,
    /// Everything that is wrong, by file and line.
    pub problems: Vec<FileProblem>,
    /// Objects that are served in their last good version.
    pub kept: Vec<Identity>,
    /// Number of files that were looked at.
    pub files: usize,
    ages: Arc<BTreeMap<Identity, i64>>,
}

/// Reads a folder again and again.
#[derive(Debug)]
pub struct Loader {
    root: PathBuf,
    state: Option<PathBuf>,
    files: BTreeMap<PathBuf, LoadedFile>,
    last: Vec<Located>,
    /// When an object was first seen, as a number that counts up.
    ages: Arc<BTreeMap<Identity, i64>>,
    seen: i64,
}

#[derive(Debug)]
struct LoadedFile {
    stamps: Vec<FileStamp>,
    read_at: SystemTime,
    objects: Vec<Located>,
    problems: Vec<FileProblem>,
    failed: Failed,
}

/// Which objects of a file may have been lost to mistakes.
#[derive(Debug, Default)]
struct Failed {
    /// Something failed before it could say what it was.
    anything: bool,
    named: BTreeSet<Identity>,
}

impl FileProblem {
    /// One about a file as a whole.
    fn of_file(file: &Path, reason: &'static str, message: String) -> Self {
        Self {
            file: file.to_owned(),
            document: None,
            line: None,
            column: None,
            object: None,
            field: String::new(),
            reason,
            message,
            hint: None,
            kept: false,
        }
    }

    /// One about an object.
    fn of_object(located: &Located, reason: &'static str, message: String) -> Self {
        Self {
            document: Some(located.document),
            object: Some(located.identity.clone()),
            ..Self::of_file(&located.file, reason, message)
        }
    }

    /// How much it matters.
    pub fn severity(&self) -> Severity {
        match self.reason {
            kinds::FOREIGN_KIND => Severity::Warning,
            _ => Severity::Error,
        }
    }
}

impl Loader {
    /// A loader of the folder; the state folder inside it is left out.
    pub fn new(root: impl Into<PathBuf>, state: Option<PathBuf>) -> Self {
        Self {
            root: root.into(),
            state,
            files: BTreeMap::new(),
            last: Vec::new(),
            ages: Arc::default(),
            seen: 0,
        }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Reads what changed and returns everything. Blocks on the file system.
    pub fn load(&mut self, now: SystemTime) -> Loaded {
        let listing = match folder::list(&self.root, self.state.as_deref()) {
            Ok(listing) => listing,
            Err(error) => return self.lost_folder(&error),
        };
        let mut files = self.read(&listing, now);
        let mut listing = listing;
        let sites = self.sites(&files);
        if !sites.is_empty() {
            let outside = |path: &Path| !sites.iter().any(|site| path.starts_with(site));
            files.retain(|path, _| outside(path));
            listing.files.retain(|path, _| outside(path));
            listing.unreadable.retain(|path, _| outside(path));
        }
        let mut problems = listing_problems(&listing);
        let mut objects = Vec::new();
        let mut owners: BTreeMap<Identity, (PathBuf, usize)> = BTreeMap::new();
        for file in files.values_mut() {
            problems.extend(file.problems.iter().cloned());
            for located in &file.objects {
                if let Some((other, document)) = owners.get(&located.identity) {
                    problems.push(duplicate(located, other, *document));
                    continue;
                }
                if objects.len() >= MAX_OBJECTS {
                    problems.push(too_many_objects(located));
                    break;
                }
                owners.insert(
                    located.identity.clone(),
                    (located.file.clone(), located.document),
                );
                objects.push(located.clone());
            }
        }
        let mut kept = Vec::new();
        for old in std::mem::take(&mut self.last) {
            if owners.contains_key(&old.identity) || !is_lost(&old, &files, &listing) {
                continue;
            }
            kept.push(old.identity.clone());
            owners.insert(old.identity.clone(), (old.file.clone(), old.document));
            objects.push(old);
        }
        mark_kept(&mut problems, &kept, &objects);
        objects.sort_by(|a, b| (&a.file, a.document).cmp(&(&b.file, b.document)));
        self.age(&objects);
        problems.sort_by(|a, b| (&a.file, a.line, a.document).cmp(&(&b.file, b.line, b.document)));
        self.files = files;
        self.last.clone_from(&objects);
        Loaded {
            objects,
            problems,
            kept,
            files: listing.files.len(),
            ages: self.ages.clone(),
        }
    }

    /// Nothing in a file says when its object was made. An object is as old as its first sight, and those of one
    /// load by their order: a new file never takes a hostname from one that is being served.
    fn age(&mut self, objects: &[Located]) {
        let mut ages = BTreeMap::new();
        for located in objects {
            let age = self.ages.get(&located.identity).copied();
            let age = age.unwrap_or_else(|| {
                self.seen += 1;
                self.seen
            });
            ages.insert(located.identity.clone(), age);
        }
        self.ages = Arc::new(ages);
    }

    fn lost_folder(&self, error: &std::io::Error) -> Loaded {
        let kept: Vec<Identity> = self
            .last
            .iter()
            .map(|located| located.identity.clone())
            .collect();
        Loaded {
            problems: vec![FileProblem {
                kept: !kept.is_empty(),
                ..FileProblem::of_file(
                    Path::new(""),
                    "FolderUnreadable",
                    format!(
                        "the folder {:?} cannot be read: {}",
                        self.root.display(),
                        folder::reason_of(error)
                    ),
                )
            }],
            objects: self.last.clone(),
            kept,
            files: 0,
            ages: self.ages.clone(),
        }
    }

    fn read(&mut self, listing: &Listing, now: SystemTime) -> BTreeMap<PathBuf, LoadedFile> {
        let mut files = BTreeMap::new();
        let mut secrets: BTreeMap<PathBuf, Vec<(PathBuf, FileStamp)>> = BTreeMap::new();
        for (path, entry) in &listing.files {
            match entry.role {
                Role::Objects => {
                    let stamps = vec![entry.stamp.clone()];
                    let loaded = self.unchanged(path, &stamps).or_else(|| {
                        if entry.stamp.length() == 0 && self.held_objects(path) {
                            return Some(emptied(path, &entry.stamp, now));
                        }
                        read_objects(&self.root, path, &entry.stamp, now)
                    });
                    if let Some(loaded) = loaded {
                        files.insert(path.clone(), loaded);
                    }
                }
                Role::SecretValue => {
                    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
                    secrets
                        .entry(folder)
                        .or_default()
                        .push((path.clone(), entry.stamp.clone()));
                }
            }
        }
        for (folder, values) in secrets {
            let stamps: Vec<FileStamp> = values.iter().map(|(_, stamp)| stamp.clone()).collect();
            let loaded = self
                .unchanged(&folder, &stamps)
                .unwrap_or_else(|| read_secret(&self.root, &folder, &values, stamps, now));
            files.insert(folder, loaded);
        }
        files
    }

    /// Folders of `static` backends that lie inside the folder of objects. What they hold is content, often
    /// JSON, and may come from people who must not configure the edge.
    fn sites(&self, files: &BTreeMap<PathBuf, LoadedFile>) -> BTreeSet<PathBuf> {
        let root = self.root.canonicalize().ok();
        files
            .values()
            .flat_map(|file| &file.objects)
            .chain(&self.last)
            .filter_map(|located| match &located.object {
                Object::Route(route) => Some(route),
                _ => None,
            })
            .flat_map(|route| &route.spec.rules)
            .flat_map(|rule| &rule.backends)
            .filter_map(|backend| backend.r#static.as_ref())
            .filter_map(|site| {
                let path = Path::new(&site.path);
                let inside = if path.is_absolute() {
                    path.strip_prefix(root.as_ref()?).ok()?
                } else {
                    path
                };
                let inside: PathBuf = inside
                    .components()
                    .filter(|part| *part != Component::CurDir)
                    .collect();
                let plain = inside
                    .components()
                    .all(|part| matches!(part, Component::Normal(_)));
                // A site that is the whole folder would hide the objects themselves.
                (plain && !inside.as_os_str().is_empty()).then_some(inside)
            })
            .collect()
    }

    fn held_objects(&self, path: &Path) -> bool {
        self.files.get(path).is_some_and(|file| {
            !file.objects.is_empty() || file.problems.iter().any(|it| it.reason == "EmptyFile")
        })
    }

    fn unchanged(&mut self, path: &Path, stamps: &[FileStamp]) -> Option<LoadedFile> {
        let old = self.files.get(path)?;
        let settled = stamps
            .iter()
            .all(|stamp| stamp.settled_before(old.read_at, TIME_STEP));
        if settled && old.stamps == stamps && !old.failed.anything {
            self.files.remove(path)
        } else {
            None
        }
    }
}

/// A file without a byte is more likely half saved than meant.
fn emptied(path: &Path, stamp: &FileStamp, now: SystemTime) -> LoadedFile {
    LoadedFile {
        stamps: vec![stamp.clone()],
        read_at: now,
        objects: Vec::new(),
        problems: vec![FileProblem {
            hint: Some("delete the file to remove its objects".to_owned()),
            ..FileProblem::of_file(
                path,
                "EmptyFile",
                "the file is empty, and held objects before".to_owned(),
            )
        }],
        failed: Failed {
            anything: true,
            named: BTreeSet::new(),
        },
    }
}

fn read_objects(
    root: &Path,
    path: &Path,
    stamp: &FileStamp,
    now: SystemTime,
) -> Option<LoadedFile> {
    let mut loaded = LoadedFile {
        stamps: vec![stamp.clone()],
        read_at: now,
        objects: Vec::new(),
        problems: Vec::new(),
        failed: Failed::default(),
    };
    let whole = |reason, message: String, hint: Option<String>| FileProblem {
        hint,
        ..FileProblem::of_file(path, reason, message)
    };
    if stamp.length() > folder::MAX_FILE_BYTES {
        loaded.failed.anything = true;
        loaded.problems.push(whole(
            "TooLarge",
            format!("the file has {} bytes", stamp.length()),
            Some(format!(
                "a file may have at most {} bytes; split it",
                folder::MAX_FILE_BYTES
            )),
        ));
        return Some(loaded);
    }
    let text = match folder::read(root, path) {
        Ok(Some(text)) => text,
        // Deleted since the folder was listed: as if it had never been there.
        Ok(None) => return None,
        Err(message) => {
            loaded.failed.anything = true;
            loaded.problems.push(whole("FileUnreadable", message, None));
            return Some(loaded);
        }
    };
    let documents = document::split(&text);
    let several = documents.len() > 1;
    for raw in &documents {
        let number = several.then_some(raw.number);
        // A list is bounded by the file; its items are looked at one by one below.
        let is_list = raw.text.len() > MAX_OBJECT_BYTES && raw.is_list();
        if raw.text.len() > MAX_OBJECT_BYTES && !is_list {
            loaded.failed.anything = true;
            loaded.problems.push(FileProblem {
                document: number,
                line: Some(raw.first_line),
                ..whole(
                    "TooLarge",
                    format!("the document has {} bytes", raw.text.len()),
                    Some(format!(
                        "an object may have at most {MAX_OBJECT_BYTES} bytes, in Kubernetes too"
                    )),
                )
            });
            continue;
        }
        let node = match raw.parse() {
            Ok(node) => node,
            Err(error) => {
                loaded.failed.anything = true;
                loaded.problems.push(FileProblem {
                    document: number,
                    line: error.line,
                    column: error.column,
                    ..whole(
                        "MalformedYaml",
                        error.message,
                        Some("mend the syntax at or above this place".to_owned()),
                    )
                });
                continue;
            }
        };
        for decoded in kinds::decode(node) {
            for problem in decoded.problems {
                match &decoded.identity {
                    Some(identity) => {
                        loaded.failed.named.insert(identity.clone());
                    }
                    None if problem.reason == kinds::FOREIGN_KIND => {}
                    None => loaded.failed.anything = true,
                }
                loaded.problems.push(FileProblem {
                    document: number,
                    line: problem.line.or(decoded.line),
                    object: decoded.identity.clone(),
                    field: problem.path,
                    ..whole(problem.reason, problem.message, problem.hint)
                });
            }
            if let (Some(identity), Some(object)) = (decoded.identity, decoded.object) {
                loaded.objects.push(Located {
                    identity,
                    object,
                    file: path.to_owned(),
                    document: raw.number,
                });
            }
        }
    }
    Some(loaded)
}

fn read_secret(
    root: &Path,
    folder: &Path,
    values: &[(PathBuf, FileStamp)],
    stamps: Vec<FileStamp>,
    now: SystemTime,
) -> LoadedFile {
    let part = |index: usize| {
        folder
            .components()
            .nth(index)
            .map(|part| part.as_os_str().to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let identity = Identity {
        kind: ObjectKind::Secret,
        namespace: part(1),
        name: part(2),
    };
    let mut loaded = LoadedFile {
        stamps,
        read_at: now,
        objects: Vec::new(),
        problems: Vec::new(),
        failed: Failed::default(),
    };
    let mut data = BTreeMap::new();
    for (path, stamp) in values {
        let key = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let result = if stamp.length() > MAX_OBJECT_BYTES as u64 {
            Err(format!(
                "has {} bytes, a Secret may have at most {MAX_OBJECT_BYTES}",
                stamp.length()
            ))
        } else {
            match std::fs::read(root.join(path)) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(folder::reason_of(&error)),
            }
        };
        match result {
            Ok(Some(bytes)) => {
                data.insert(key, bytes);
            }
            Ok(None) => {}
            Err(message) => {
                loaded.failed.anything = true;
                loaded.problems.push(FileProblem {
                    object: Some(identity.clone()),
                    ..FileProblem::of_file(path, "FileUnreadable", message)
                });
            }
        }
    }
    if !loaded.failed.anything && !data.is_empty() {
        let type_ = if data.contains_key("tls.crt") {
            "kubernetes.io/tls"
        } else {
            "Opaque"
        };
        loaded.objects.push(Located {
            identity,
            object: Object::Secret(Arc::new(SecretData {
                type_: type_.to_owned(),
                data,
            })),
            file: folder.to_owned(),
            document: 1,
        });
    }
    loaded
}

/// Whether an object of the last load was lost to a mistake rather than removed.
fn is_lost(old: &Located, files: &BTreeMap<PathBuf, LoadedFile>, listing: &Listing) -> bool {
    let below_unreadable = listing
        .unreadable
        .keys()
        .any(|unreadable| old.file.starts_with(unreadable));
    below_unreadable
        || files
            .get(&old.file)
            .is_some_and(|file| file.failed.anything || file.failed.named.contains(&old.identity))
}

fn mark_kept(problems: &mut [FileProblem], kept: &[Identity], objects: &[Located]) {
    if kept.is_empty() {
        return;
    }
    let kept: BTreeSet<&Identity> = kept.iter().collect();
    let files: BTreeSet<&Path> = objects
        .iter()
        .filter(|located| kept.contains(&located.identity))
        .map(|located| located.file.as_path())
        .collect();
    for problem in problems {
        problem.kept = match &problem.object {
            Some(identity) => kept.contains(identity),
            None if problem.reason == kinds::FOREIGN_KIND => false,
            None => files.iter().any(|file| file.starts_with(&problem.file)),
        };
    }
}

fn listing_problems(listing: &Listing) -> Vec<FileProblem> {
    let mut problems: Vec<FileProblem> = listing
        .unreadable
        .iter()
        .map(|(path, message)| FileProblem::of_file(path, "FileUnreadable", message.clone()))
        .collect();
    if listing.too_many {
        problems.push(FileProblem::of_file(
            Path::new(""),
            "TooManyFiles",
            format!(
                "the folder has more than {} files; the rest is not read",
                folder::MAX_FILES
            ),
        ));
    }
    problems
}

fn duplicate(located: &Located, other: &Path, document: usize) -> FileProblem {
    let place = if other == located.file {
        format!("document {document} of this file")
    } else {
        format!("{} (document {document})", other.display())
    };
    FileProblem {
        field: "metadata.name".to_owned(),
        hint: Some("rename or remove one of the two".to_owned()),
        ..FileProblem::of_object(
            located,
            "DuplicateObject",
            format!(
                "{} is already defined in {place}, which counts",
                located.identity
            ),
        )
    }
}

fn too_many_objects(located: &Located) -> FileProblem {
    FileProblem {
        hint: Some("split it over two edges".to_owned()),
        ..FileProblem::of_object(
            located,
            "TooManyObjects",
            format!("the folder has more than {MAX_OBJECTS} objects; the rest is not read"),
        )
    }
}

impl Loaded {
    /// What the folder gives to the translation; certificates and the environment are the caller's.
    pub fn inputs(&self) -> Inputs {
        let mut inputs = Inputs::default();
        for located in &self.objects {
            let age = self
                .ages
                .get(&located.identity)
                .copied()
                .unwrap_or_default();
            match &located.object {
                Object::Route(route) => inputs.routes.push(aged(route, age)),
                Object::Agent(agent) => inputs.agents.push(aged(agent, age)),
                Object::Issuer(issuer) => inputs.issuers.push(Arc::clone(issuer)),
                Object::Secret(secret) => {
                    inputs
                        .secrets
                        .insert(located.identity.object_name(), Arc::clone(secret));
                }
                Object::ConfigMap(map) => {
                    inputs
                        .config_maps
                        .insert(located.identity.object_name(), Arc::clone(map));
                }
            }
        }
        inputs
    }

    /// Number of objects by kind.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for located in &self.objects {
            *counts.entry(located.identity.kind.as_str()).or_default() += 1;
        }
        counts
    }

    /// Number of objects that are served in their last good version, by kind.
    pub fn kept_counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for identity in &self.kept {
            *counts.entry(identity.kind.as_str()).or_default() += 1;
        }
        counts
    }

    /// Whether the folder holds nothing, right or wrong.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.problems.is_empty()
    }

    /// Looks up where fields of objects stand.
    pub(crate) fn places<'a>(&'a self, root: &'a Path) -> Places<'a> {
        Places {
            root,
            objects: self
                .objects
                .iter()
                .map(|located| (&located.identity, located))
                .collect(),
            lines_left: MOST_LINES,
        }
    }
}

/// Looks up where fields of objects stand. Files are read now: lines are not kept for what is right.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    root: &'a Path,
    objects: BTreeMap<&'a Identity, &'a Located>,
    lines_left: usize,
}

impl Places<'_> {
    /// The place of a field, if the object came from a file.
    pub(crate) fn of(&mut self, identity: &Identity, field: &str) -> Option<Place> {
        let located = self.objects.get(identity)?;
        let mut place = Place {
            file: located.file.clone(),
            document: None,
            line: None,
        };
        if self.lines_left == 0 {
            return Some(place);
        }
        self.lines_left -= 1;
        if let Ok(Some(text)) = folder::read(self.root, &located.file) {
            let documents = document::split(&text);
            place.document = (documents.len() > 1).then_some(located.document);
            place.line = documents
                .iter()
                .find(|raw| raw.number == located.document)
                .and_then(|raw| raw.parse().ok())
                .and_then(|node| node.line_of(field));
        }
        Some(place)
    }
}

/// The object with its age as time of creation, unless it has one.
fn aged<T>(object: &Arc<T>, age: i64) -> Arc<T>
where
    T: kube::Resource + Clone,
{
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    if object.meta().creation_timestamp.is_some() {
        return Arc::clone(object);
    }
    let mut object = T::clone(object);
    object.meta_mut().creation_timestamp = Timestamp::from_second(age).ok().map(Time);
    Arc::new(object)
}

#[cfg(test)]
mod tests;
