//! `tidegate export` and `import`: what an edge must not lose, carried to another machine, and what other
//! programs leave, taken over.
//!
//! Making and trying need no lock; only changing a state folder does, which a running edge holds. Nothing
//! here orders a certificate.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_acme::bundle::{self, BundleError, LONGEST};
use tidegate_acme::import::{self, ImportError, Target, TargetRoute};
use tidegate_acme::store::StoreError;
use tidegate_model::Secret;

use crate::source::AcmeStore;
use crate::source::state::{StateError, StateFolder};
use crate::standalone::Source;

pub use tidegate_acme::bundle::{Done, Mode, Outcome, SHORTEST_PASSPHRASE};
pub use tidegate_acme::import::{Found, Program, Skipped};
pub use tidegate_acme::store::Key;

/// Why something cannot be carried.
#[derive(Debug, thiserror::Error)]
pub enum PortabilityError {
    /// There is nothing to carry.
    #[error(
        "find certificates in the state folder {0:?}: no AcmeIssuer has issued there and nothing was imported; say where the state is with --state-dir"
    )]
    Nothing(PathBuf),
    /// The caller may not.
    #[error(
        "open the state folder {0:?}: this user may not; use the user that the edge runs as, or sudo"
    )]
    Forbidden(PathBuf),
    /// The edge runs.
    #[error(
        "import into the state folder {0:?}: an edge uses it, and would not notice; stop it, import, and start it again (--dry-run can be used at any time)"
    )]
    InUse(PathBuf),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The export cannot be made or read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The other program's files cannot be read.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A document cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file exists.
    #[error("write {0:?}: it exists; give another name")]
    Exists(PathBuf),
    /// The file cannot be used.
    #[error("{action} {path:?}")]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The rights cannot be given up.
    #[error("act as the owner of the state folder {path:?}")]
    Owner {
        /// The state folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No runtime.
    #[error("set up the command")]
    Runtime(#[source] io::Error),
}

/// What an export holds.
#[derive(Debug)]
pub struct Exported {
    /// Its documents.
    pub included: Vec<Key>,
    /// Documents that could not be understood, each with what is wrong.
    pub left_out: Vec<(Key, String)>,
    /// Bytes of the file.
    pub size: usize,
}

/// Whether there is anything to export, before anybody is asked for a passphrase.
pub fn can_export(state: &Path, file: &Path) -> Result<(), PortabilityError> {
    if file.symlink_metadata().is_ok() {
        return Err(PortabilityError::Exists(file.to_owned()));
    }
    if let Err(source) = std::fs::read_dir(state)
        && source.kind() == io::ErrorKind::PermissionDenied
    {
        return Err(PortabilityError::Forbidden(state.to_owned()));
    }
    let folder = StateFolder::peek(state);
    let kinds = ["account", "certificate", "ledger", "notices"];
    if kinds
        .iter()
        .all(|kind| folder.list(&format!("acme/{kind}")).is_empty())
    {
        return Err(PortabilityError::Nothing(state.to_owned()));
    }
    Ok(())
}

/// Writes everything of the state folder, which may be in use, into a new file.
pub fn export(
    state: &Path,
    file: &Path,
    passphrase: &Secret<String>,
    now: SystemTime,
) -> Result<Exported, PortabilityError> {
    can_export(state, file)?;
    let store = AcmeStore::new(Arc::new(StateFolder::peek(state)));
    let program = concat!("tidegate ", env!("CARGO_PKG_VERSION"));
    let made = block_on(bundle::export(&store, passphrase, program, now))??;
    let error = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => PortabilityError::Exists(file.to_owned()),
        _ => PortabilityError::File {
            action: "write",
            path: file.to_owned(),
            source,
        },
    };
    let mut out = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(error)?;
    if let Err(source) = out.write_all(&made.file).and_then(|()| out.sync_all()) {
        // Half of an export is worse than none.
        let _ = std::fs::remove_file(file);
        return Err(error(source));
    }
    Ok(Exported {
        included: made.included,
        left_out: made.left_out,
        size: made.file.len(),
    })
}

/// Whether a state folder can be changed, before anybody is asked for a passphrase.
pub fn can_import(state: &Path, mode: Mode) -> Result<(), PortabilityError> {
    if mode == Mode::Apply && StateFolder::peek(state).is_held() {
        return Err(PortabilityError::InUse(state.to_owned()));
    }
    Ok(())
}

/// Reads an export into the state folder.
pub fn import_file(
    state: &Path,
    file: &Path,
    passphrase: &Secret<String>,
    mode: Mode,
    now: SystemTime,
) -> Result<Vec<Outcome>, PortabilityError> {
    let content = read_file(file)?;
    let folder = open(state, mode)?;
    let store = AcmeStore::new(Arc::clone(&folder));
    Ok(block_on(bundle::import(
        &store, &content, passphrase, mode, now,
    ))??)
}

/// Takes over what another program left. What was done, and what could not be used.
pub fn import_from(
    state: &Path,
    objects: Option<&Path>,
    program: Program,
    path: &Path,
    mode: Mode,
    now: SystemTime,
) -> Result<(Vec<Outcome>, Vec<Skipped>), PortabilityError> {
    let mut found = program.read(path, now)?;
    let target = objects
        .map(|objects| target(objects, state, now))
        .unwrap_or_default();
    let folder = open(state, mode)?;
    let store = AcmeStore::new(Arc::clone(&folder));
    let outcomes = block_on(import::place(&store, &mut found, &target, mode, now))?;
    Ok((outcomes?, found.skipped))
}

/// The routes and issuers of a folder of objects.
fn target(objects: &Path, state: &Path, now: SystemTime) -> Target {
    let refreshed = Source::folder(objects, Some(state.to_owned())).refresh(now);
    Target {
        issuers: refreshed
            .translation
            .issuers
            .iter()
            .map(|(name, issuer)| (name.clone(), issuer.directory.clone()))
            .collect(),
        routes: refreshed
            .wanted
            .into_iter()
            .map(|wanted| TargetRoute {
                id: wanted.id,
                names: wanted.names,
            })
            .collect(),
    }
}

fn read_file(file: &Path) -> Result<Vec<u8>, PortabilityError> {
    let mut content = Vec::new();
    std::fs::File::open(file)
        // One byte more tells that it is too long.
        .and_then(|open| open.take(LONGEST + 1).read_to_end(&mut content))
        .map_err(|source| PortabilityError::File {
            action: "read",
            path: file.to_owned(),
            source,
        })?;
    Ok(content)
}

fn open(state: &Path, mode: Mode) -> Result<Arc<StateFolder>, PortabilityError> {
    let folder = match mode {
        Mode::DryRun => StateFolder::peek(state),
        Mode::Apply => {
            act_as_owner(state)?;
            StateFolder::open(state).map_err(|error| match error {
                StateError::Locked { path, .. } => PortabilityError::InUse(path),
                other => other.into(),
            })?
        }
    };
    Ok(Arc::new(folder))
}

/// Whoever imports with sudo, to be able to read the other program's files, must not leave files that the
/// edge's own user cannot read, nor write wherever that user's links lead. So from here on this process has
/// no more rights than the owner of the state folder; threads that it starts inherit them.
pub(super) fn act_as_owner(state: &Path) -> Result<(), PortabilityError> {
    use rustix::process::{Gid, Uid, geteuid};
    use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
    let Ok(owner) = std::fs::metadata(state) else {
        // Made by us, and ours.
        return Ok(());
    };
    if !geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
    set_thread_groups(&[gid])
        .and_then(|()| set_thread_gid(gid))
        .and_then(|()| set_thread_uid(uid))
        .map_err(|error| PortabilityError::Owner {
            path: state.to_owned(),
            source: error.into(),
        })
}

fn block_on<T>(work: impl Future<Output = T>) -> Result<T, PortabilityError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(PortabilityError::Runtime)?;
    Ok(runtime.block_on(work))
}
