//! The ACME engine's documents as files of the state folder.
//!
//! `acme/KIND/NAME.json`, 0600, written whole. Names are encoded so that any text is one file name.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tidegate_acme::store::{Key, Kind, Store, StoreError, WRITE_TEST};
use tidegate_model::Secret;

use super::state::{StateError, StateFolder};

/// What stays readable in a file name.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
const SUFFIX: &str = ".json";

/// Documents in a state folder.
#[derive(Debug, Clone)]
pub struct AcmeStore {
    state: Arc<StateFolder>,
}

impl AcmeStore {
    /// Documents of this folder.
    pub fn new(state: Arc<StateFolder>) -> Self {
        Self { state }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&StateFolder) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, Box<dyn std::error::Error + Send + Sync>> {
        let state = Arc::clone(&self.state);
        let done = tokio::task::spawn_blocking(move || work(&state)).await;
        Ok(done??)
    }
}

fn folder(kind: Kind) -> String {
    format!("acme/{}", kind.as_str())
}

fn path(key: &Key) -> String {
    let name = utf8_percent_encode(&key.name, ENCODED);
    format!("{}/{name}{SUFFIX}", folder(key.kind))
}

#[async_trait]
impl Store for AcmeStore {
    async fn read(&self, key: &Key) -> Result<Option<Secret<Vec<u8>>>, StoreError> {
        let path = path(key);
        let content = self.blocking(move |state| state.read(&path)).await;
        let content = content.map_err(|source| StoreError::Read {
            key: key.clone(),
            source,
        })?;
        Ok(content.map(|text| Secret::new(text.into_bytes())))
    }

    async fn write(&self, key: &Key, content: Secret<Vec<u8>>) -> Result<(), StoreError> {
        let path = path(key);
        self.blocking(move |state| state.write(&path, &String::from_utf8_lossy(content.expose())))
            .await
            .map_err(|source| StoreError::Write {
                key: key.clone(),
                source,
            })
    }

    async fn remove(&self, key: &Key) -> Result<(), StoreError> {
        let path = path(key);
        self.blocking(move |state| state.remove(&path))
            .await
            .map_err(|source| StoreError::Write {
                key: key.clone(),
                source,
            })
    }

    async fn list(&self, kind: Kind) -> Result<Vec<Key>, StoreError> {
        let names = self
            .blocking(move |state| Ok(state.list(&folder(kind))))
            .await;
        let names = names.map_err(|source| StoreError::Read {
            key: Key::new(kind, "*"),
            source,
        })?;
        let mut keys: Vec<Key> = names
            .iter()
            .filter_map(|name| name.strip_suffix(SUFFIX))
            .map(|name| Key::new(kind, percent_decode_str(name).decode_utf8_lossy()))
            .collect();
        keys.sort();
        Ok(keys)
    }

    async fn write_test(&self) -> Result<(), StoreError> {
        // Several may test at one time, a command beside the edge too.
        static TESTS: AtomicU64 = AtomicU64::new(0);
        let number = TESTS.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let name = format!(
            "{}/.write-test-{process}-{number}",
            folder(Kind::Certificate)
        );
        let written = self.blocking(move |state| {
            state.write(&name, &" ".repeat(WRITE_TEST))?;
            state.remove(&name)
        });
        written.await.map_err(|source| StoreError::Write {
            key: Key::new(Kind::Certificate, "of a test"),
            source,
        })
    }

    async fn set_aside(&self, key: &Key) -> Result<String, StoreError> {
        let path = path(key);
        let aside = self.blocking(move |state| state.set_aside(&path)).await;
        let aside = aside.map_err(|source| StoreError::Write {
            key: key.clone(),
            source,
        })?;
        Ok(aside.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use tidegate_acme::store::tested;

    use super::*;

    #[tokio::test]
    async fn any_name_is_one_private_file() {
        let folder = tempfile::tempdir().unwrap();
        let state = Arc::new(StateFolder::open(folder.path()).unwrap());
        let store = AcmeStore::new(state);
        let key = Key::new(Kind::Certificate, "default/../../etc/passwd");
        store
            .write(&key, Secret::new(b"{}".to_vec()))
            .await
            .unwrap();
        let listed = store.list(Kind::Certificate).await.unwrap();
        assert_eq!(listed, std::slice::from_ref(&key));
        let file = folder
            .path()
            .join("acme/certificate/default%2F..%2F..%2Fetc%2Fpasswd.json");
        assert!(file.is_file());
        let aside = store.set_aside(&key).await.unwrap();
        assert!(aside.ends_with(".json.corrupt-1"), "{aside}");
        assert!(store.list(Kind::Certificate).await.unwrap().is_empty());
        assert!(store.read(&key).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_write_test_leaves_nothing_and_says_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let state = Arc::new(StateFolder::open(folder.path()).unwrap());
        let store = AcmeStore::new(state);
        // Each certificate's task may test at the same time.
        let tests = (0..50).map(|_| {
            let store = store.clone();
            tokio::spawn(async move { tested(&store).await })
        });
        let tests: Vec<_> = tests.collect();
        for test in tests {
            assert_eq!(test.await.unwrap(), Ok(()));
        }
        let certificates = folder.path().join("acme/certificate");
        assert_eq!(std::fs::read_dir(&certificates).unwrap().count(), 0);
        // As unwritable for root as for anybody.
        std::fs::remove_dir(&certificates).unwrap();
        std::fs::write(&certificates, "").unwrap();
        let error = tested(&store).await.unwrap_err();
        assert!(error.contains(".write-test"), "{error}");
    }
}
