//! What a crash must not lose, behind a trait: files standalone, Secrets on Kubernetes.
//!
//! Documents are small JSON texts that hold private keys. A write is all or nothing and durable when it
//! returns; only one engine uses a store at a time (a lock or a lease sees to that).

use std::fmt;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_model::Secret;

/// Kinds of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// An account at one directory: key and URL.
    Account,
    /// A certificate with its key, its order and its failures.
    Certificate,
    /// Orders and failures of an account, for the authority's limits.
    Ledger,
    /// Which notices were sent.
    Notices,
}

impl Kind {
    /// The word for paths and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Certificate => "certificate",
            Self::Ledger => "ledger",
            Self::Notices => "notices",
        }
    }
}

/// Kind and name of a document.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The kind.
    pub kind: Kind,
    /// Unique within the kind; any text, which the store must make safe for itself.
    pub name: String,
}

impl Key {
    /// Joins the two.
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// Why a document could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Reading failed.
    #[error("read the {key} from the store")]
    Read {
        /// The document.
        key: Key,
        /// What the store said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Writing failed; what was there before is still there.
    #[error("write the {key} to the store")]
    Write {
        /// The document.
        key: Key,
        /// What the store said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The document is no longer what was written; it was kept aside.
    #[error("the {key} in the store cannot be understood and was kept aside as {aside}")]
    Corrupt {
        /// The document.
        key: Key,
        /// Where it is now.
        aside: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

impl StoreError {
    /// The reason where writing failed.
    pub const UNWRITABLE: &str = "StoreUnwritable";

    /// The reason for conditions and metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "StoreUnreadable",
            Self::Write { .. } => Self::UNWRITABLE,
            Self::Corrupt { .. } => "StoreCorrupt",
        }
    }
}

/// Bytes that a write test writes: more than a certificate with its key and its history has.
pub const WRITE_TEST: usize = 32 * 1024;

/// Where documents are kept.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The content; None when there is none.
    async fn read(&self, key: &Key) -> Result<Option<Secret<Vec<u8>>>, StoreError>;
    /// Writes, all or nothing; durable when it returns.
    async fn write(&self, key: &Key, content: Secret<Vec<u8>>) -> Result<(), StoreError>;
    /// Removes what may be missing.
    async fn remove(&self, key: &Key) -> Result<(), StoreError>;
    /// Names of all documents of a kind.
    async fn list(&self, kind: Kind) -> Result<Vec<Key>, StoreError>;
    /// Finds out whether a document of [`WRITE_TEST`] bytes could be kept now, and leaves nothing behind. Many
    /// may ask at one time.
    async fn write_test(&self) -> Result<(), StoreError>;
    /// Moves a document out of the way without deleting it; says where it went.
    async fn set_aside(&self, key: &Key) -> Result<String, StoreError>;
}

/// Reads a document. One that cannot be understood is set aside and reported; the next read finds none.
pub async fn load<T: DeserializeOwned>(
    store: &dyn Store,
    key: &Key,
) -> Result<Option<T>, StoreError> {
    let Some(content) = store.read(key).await? else {
        return Ok(None);
    };
    match serde_json::from_slice(content.expose()) {
        Ok(document) => Ok(Some(document)),
        Err(source) => Err(StoreError::Corrupt {
            key: key.clone(),
            aside: store.set_aside(key).await?,
            source,
        }),
    }
}

/// Reads a document without moving one that cannot be understood, because the store may be another
/// process's; says in words what is wrong with that one, and nothing of its text.
pub async fn peek<T: DeserializeOwned>(
    store: &dyn Store,
    key: &Key,
) -> Result<Option<Result<T, String>>, StoreError> {
    let content = store.read(key).await?;
    Ok(content.map(|content| {
        serde_json::from_slice(content.expose()).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            format!("it is damaged at line {line}, column {column}")
        })
    }))
}

/// What came of a write test, in words.
pub async fn tested(store: &dyn Store) -> Result<(), String> {
    let tested = store.write_test().await;
    tested.map_err(|error| tidegate_telemetry::chain(&error).to_string())
}

/// Writes a document.
pub async fn save<T: Serialize + Sync>(
    store: &dyn Store,
    key: &Key,
    document: &T,
) -> Result<(), StoreError> {
    let content = serde_json::to_vec_pretty(document).map_err(|source| StoreError::Write {
        key: key.clone(),
        source: Box::new(source),
    })?;
    store.write(key, Secret::new(content)).await
}

/// Keeps documents for as long as the process runs.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct MemoryStore {
    documents: std::sync::Mutex<std::collections::BTreeMap<Key, Vec<u8>>>,
}

#[cfg(test)]
impl MemoryStore {
    fn lock(&self) -> std::sync::MutexGuard<'_, std::collections::BTreeMap<Key, Vec<u8>>> {
        self.documents
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
#[async_trait]
impl Store for MemoryStore {
    async fn read(&self, key: &Key) -> Result<Option<Secret<Vec<u8>>>, StoreError> {
        let documents = self.lock();
        Ok(documents.get(key).cloned().map(Secret::new))
    }

    async fn write(&self, key: &Key, content: Secret<Vec<u8>>) -> Result<(), StoreError> {
        let mut documents = self.lock();
        documents.insert(key.clone(), content.expose().clone());
        Ok(())
    }

    async fn remove(&self, key: &Key) -> Result<(), StoreError> {
        self.lock().remove(key);
        Ok(())
    }

    async fn list(&self, kind: Kind) -> Result<Vec<Key>, StoreError> {
        let documents = self.lock();
        Ok(documents
            .keys()
            .filter(|key| key.kind == kind)
            .cloned()
            .collect())
    }

    async fn write_test(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn set_aside(&self, key: &Key) -> Result<String, StoreError> {
        let mut documents = self.lock();
        let aside = Key::new(key.kind, format!("{}.corrupt-1", key.name));
        if let Some(content) = documents.remove(key) {
            documents.insert(aside.clone(), content);
        }
        Ok(aside.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_corrupt_document_is_set_aside_and_said_once() {
        let store = MemoryStore::default();
        let key = Key::new(Kind::Ledger, "le");
        store.write(&key, Secret::new(b"{".to_vec())).await.unwrap();
        let error = load::<Vec<u8>>(&store, &key).await.unwrap_err();
        assert_eq!(error.reason(), "StoreCorrupt");
        assert_eq!(
            error.to_string(),
            "the ledger le in the store cannot be understood and was kept aside as le.corrupt-1"
        );
        assert!(load::<Vec<u8>>(&store, &key).await.unwrap().is_none());
        assert_eq!(store.list(Kind::Ledger).await.unwrap().len(), 1);
    }
}
