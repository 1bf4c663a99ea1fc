//! One encrypted file with everything that must not be lost: accounts, certificates, ledgers, notices.
//!
//! ```text
//! store ─► documents ─► JSON ─► sealed file ─► JSON ─► documents ─► merged into a store
//! ```
//!
//! Reading one into a store takes nothing away from it: what is newer stays, twice is the same as once.
//! Neither direction orders anything: the next start of an engine finds what was read.

pub(crate) mod merge;
mod sealed;

use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tidegate_model::Secret;

pub use merge::{Done, Outcome};
pub use sealed::{LONGEST, SHORTEST_PASSPHRASE};

use crate::plan::ledger::Ledger;
use crate::plan::moment;
use crate::record::{AccountRecord, CertificateRecord};
use crate::store::{Key, Kind, Store, StoreError, peek};

/// Version of the JSON within.
const VERSION: u32 = 1;

/// Why an export cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Not made by us.
    #[error("read the export: it is not a file that `tidegate export` made")]
    Foreign,
    /// Made by a later release.
    #[error(
        "read the export: it has format {0}, which this tidegate does not know; use a newer one"
    )]
    Version(u8),
    /// The end is missing.
    #[error(
        "read the export: it was cut, at least {missing} bytes are missing at its end; copy it again"
    )]
    Cut {
        /// Bytes that are missing.
        missing: u64,
    },
    /// Changed on its way.
    #[error("read the export: it was changed since it was made; copy it again")]
    Damaged,
    /// Longer than anything we make.
    #[error("read the export: it is longer than {} MiB", LONGEST >> 20)]
    TooLong,
    /// The header asks for what would stop the machine.
    #[error("read the export: deriving its key needs {asked} {what}, which no tidegate asks for")]
    Cost {
        /// Of what.
        what: &'static str,
        /// How much.
        asked: u32,
    },
    /// The key does not fit.
    #[error("decrypt the export: the passphrase is wrong, or somebody changed the file on purpose")]
    Passphrase,
    /// Too easy to guess.
    #[error(
        "encrypt the export: the passphrase has fewer than {SHORTEST_PASSPHRASE} characters; whoever gets the file can try any number of them"
    )]
    ShortPassphrase,
    /// No key can be derived.
    #[error("derive a key from the passphrase: {0}")]
    Derive(argon2::Error),
    /// The cipher or the random number generator failed.
    #[error("encrypt the export")]
    Encrypt,
    /// The content is of another version. Holds no text of it, which is secret.
    #[error("understand the export: line {line}, column {column} of its content is unexpected")]
    Content {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BundleError {
    fn content(error: &serde_json::Error) -> Self {
        Self::Content {
            line: error.line(),
            column: error.column(),
        }
    }
}

/// What is inside.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    version: u32,
    #[serde(with = "moment::rfc3339")]
    created_at: SystemTime,
    /// Name and version of the program.
    program: String,
    #[serde(default)]
    accounts: Vec<Named<AccountRecord>>,
    #[serde(default)]
    certificates: Vec<Named<CertificateRecord>>,
    #[serde(default)]
    ledgers: Vec<Named<Ledger>>,
    #[serde(default)]
    notices: Vec<Named<serde_json::Value>>,
}

/// A document with its name in the store.
#[derive(Debug, Serialize, Deserialize)]
struct Named<T> {
    name: String,
    document: T,
}

/// An export that was made.
#[derive(Debug)]
pub struct Export {
    /// The file.
    pub file: Vec<u8>,
    /// What is in it.
    pub included: Vec<Key>,
    /// What is not, and why.
    pub left_out: Vec<(Key, String)>,
}

/// Makes an export of everything in the store, which may be in use. Takes a second of one core and 64 MiB
/// of memory.
pub async fn export(
    store: &dyn Store,
    passphrase: &Secret<String>,
    program: &str,
    now: SystemTime,
) -> Result<Export, BundleError> {
    let mut collected = Collected {
        store,
        included: Vec::new(),
        left_out: Vec::new(),
    };
    let content = Content {
        version: VERSION,
        created_at: now,
        program: program.to_owned(),
        accounts: collected.all(Kind::Account).await?,
        certificates: collected.all(Kind::Certificate).await?,
        ledgers: collected.all(Kind::Ledger).await?,
        notices: collected.all(Kind::Notices).await?,
    };
    let text = serde_json::to_vec(&content).map_err(|error| BundleError::content(&error))?;
    Ok(Export {
        file: sealed::seal(text, passphrase, sealed::COST)?,
        included: collected.included,
        left_out: collected.left_out,
    })
}

struct Collected<'a> {
    store: &'a dyn Store,
    included: Vec<Key>,
    left_out: Vec<(Key, String)>,
}

impl Collected<'_> {
    /// Every document of a kind that can be understood.
    async fn all<T: DeserializeOwned>(&mut self, kind: Kind) -> Result<Vec<Named<T>>, StoreError> {
        let mut documents = Vec::new();
        for key in self.store.list(kind).await? {
            match peek(self.store, &key).await? {
                None => {}
                Some(Ok(document)) => {
                    documents.push(Named {
                        name: key.name.clone(),
                        document,
                    });
                    self.included.push(key);
                }
                Some(Err(why)) => self.left_out.push((key, why)),
            }
        }
        Ok(documents)
    }
}

/// Whether changes are made or only told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Make them.
    Apply,
    /// Only say what would be done.
    DryRun,
}

/// Reads an export into a store, which nobody else may use meanwhile. What was done with each document, in
/// the order in which it was done; after an error it can be repeated.
pub async fn import(
    store: &dyn Store,
    file: &[u8],
    passphrase: &Secret<String>,
    mode: Mode,
    now: SystemTime,
) -> Result<Vec<Outcome>, BundleError> {
    let content = sealed::open(file, passphrase)?;
    let content: Content =
        serde_json::from_slice(content.expose()).map_err(|error| BundleError::content(&error))?;
    if content.version > VERSION {
        let version = u8::try_from(content.version).unwrap_or(u8::MAX);
        return Err(BundleError::Version(version));
    }
    let mut into = merge::Merge::new(store, mode, now);
    // What limits orders comes before what makes them unnecessary.
    for Named { name, document } in content.accounts {
        into.account(name, document).await?;
    }
    for Named { name, document } in content.ledgers {
        into.ledger(name, document).await?;
    }
    for Named { name, document } in content.certificates {
        into.certificate(name, document).await?;
    }
    for Named { name, document } in content.notices {
        into.notices(name, document).await?;
    }
    Ok(into.outcomes)
}

#[cfg(test)]
mod tests;
