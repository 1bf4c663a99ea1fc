//! What the edge must remember, as Secrets of its own namespace: the ACME engine's documents, answers to
//! challenges, keys that replicas share.
//!
//! One Secret per document, named by kind and a digest of the document's name, which an annotation tells in
//! full. Only the holder of the Lease writes, but for questions to it, and every write says which version it
//! follows: whoever held the Lease before and does not know yet that it is lost is refused by the API server.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret as KubeSecret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use sha2::{Digest as _, Sha256};
use tidegate_acme::store::{Key, Kind, Store, StoreError, WRITE_TEST};
use tidegate_model::Secret;

use super::cluster::FIELD_MANAGER;
use super::unused::{self, Mark};

/// Label that every document has; its value is the kind.
pub const LABEL: &str = "edge.tidegate.dev/document";
/// Annotation with the name of the document within its kind.
const NAME: &str = "edge.tidegate.dev/document-name";
/// Key of the Secret that holds the document.
const CONTENT: &str = "document.json";
/// Type of these Secrets, so that nobody takes them for something else.
const TYPE: &str = "edge.tidegate.dev/document";
/// Time for one request.
const PATIENCE: Duration = Duration::from_secs(10);

/// A document as a watch shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub(super) kind: String,
    /// Name within the kind.
    pub name: String,
    /// The document.
    pub content: Secret<Vec<u8>>,
    /// Whether it is marked as unused.
    pub(super) unused: Mark,
}

impl Document {
    /// Reads the Secret; None if it is no document.
    pub(super) fn of(secret: &KubeSecret) -> Option<Self> {
        let kind = secret.metadata.labels.as_ref()?.get(LABEL)?.clone();
        let name = secret.metadata.annotations.as_ref()?.get(NAME)?.clone();
        let content = secret.data.as_ref()?.get(CONTENT)?.0.clone();
        Some(Self {
            kind,
            name,
            content: Secret::new(content),
            unused: unused::mark_of(&secret.metadata),
        })
    }

    pub(super) fn is(&self, kind: Kind) -> bool {
        self.kind == kind.as_str()
    }
}

/// Why a document could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The API server refused, or could not be asked.
    #[error("ask the API server for Secret {name}")]
    Api {
        /// The Secret.
        name: String,
        /// What it said.
        #[source]
        source: Box<kube::Error>,
    },
    /// Somebody else wrote meanwhile.
    #[error("write Secret {0}: another replica wrote it since it was read here")]
    Outdated(String),
    /// No answer in time.
    #[error("write Secret {0}: the API server did not answer in time")]
    Late(String),
}

/// The Secret's name of a document.
pub fn secret_name(kind: &str, name: &str) -> String {
    let digest = Sha256::digest(name.as_bytes());
    let mut short = String::with_capacity(16);
    for byte in &digest[..8] {
        use std::fmt::Write as _;
        // Writing to a String cannot fail.
        let _ = write!(short, "{byte:02x}");
    }
    format!("tidegate-{kind}-{short}")
}

/// Documents of a namespace.
pub struct DocumentStore {
    client: Client,
    namespace: String,
    /// Versions as they were last read or written here.
    versions: Mutex<BTreeMap<String, String>>,
    /// So that no write of a Secret overtakes another one of this process.
    writing: [tokio::sync::Mutex<()>; 16],
}

impl std::fmt::Debug for DocumentStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DocumentStore")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl DocumentStore {
    /// Documents of this namespace.
    pub fn new(client: Client, namespace: impl Into<String>) -> Self {
        Self {
            client,
            namespace: namespace.into(),
            versions: Mutex::default(),
            writing: Default::default(),
        }
    }

    /// The same documents, with nothing read or written yet.
    #[must_use]
    pub fn anew(&self) -> Self {
        Self::new(self.client.clone(), self.namespace.as_str())
    }

    fn api(&self) -> Api<KubeSecret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn alone(&self, secret: &str) -> tokio::sync::MutexGuard<'_, ()> {
        let sum: usize = secret.bytes().map(usize::from).sum();
        self.writing[sum % self.writing.len()].lock().await
    }

    fn version(&self, secret: &str) -> Option<String> {
        let versions = self.versions.lock();
        let versions = versions.unwrap_or_else(PoisonError::into_inner);
        versions.get(secret).cloned()
    }

    fn remember(&self, secret: &str, version: Option<String>) {
        let versions = self.versions.lock();
        let mut versions = versions.unwrap_or_else(PoisonError::into_inner);
        match version {
            Some(version) => versions.insert(secret.to_owned(), version),
            None => versions.remove(secret),
        };
    }

    /// Reads a document of any kind.
    pub async fn get(
        &self,
        kind: &str,
        name: &str,
    ) -> Result<Option<Secret<Vec<u8>>>, DocumentError> {
        let secret = secret_name(kind, name);
        let found = limited(&secret, self.api().get_opt(&secret)).await?;
        self.remember(
            &secret,
            found
                .as_ref()
                .and_then(|found| found.metadata.resource_version.clone()),
        );
        Ok(found
            .as_ref()
            .and_then(Document::of)
            .map(|document| document.content))
    }

    /// Writes a document of any kind, if it is still as it was when it was last read or written here.
    pub async fn put(
        &self,
        kind: &str,
        name: &str,
        content: Secret<Vec<u8>>,
    ) -> Result<(), DocumentError> {
        let secret = secret_name(kind, name);
        let _alone = self.alone(&secret).await;
        let mut object = self.object(&secret, kind, name, &content);
        let written = if let Some(version) = self.version(&secret) {
            object.metadata.resource_version = Some(version);
            let params = PatchParams::apply(FIELD_MANAGER).force();
            let patch = Patch::Apply(&object);
            limited(&secret, self.api().patch(&secret, &params, &patch)).await?
        } else {
            let params = PostParams {
                field_manager: Some(FIELD_MANAGER.to_owned()),
                ..PostParams::default()
            };
            limited(&secret, self.api().create(&params, &object)).await?
        };
        self.remember(&secret, written.metadata.resource_version);
        Ok(())
    }

    /// Marks a document as unused since then, or not any more.
    pub(super) async fn mark(
        &self,
        kind: &str,
        name: &str,
        since: Option<SystemTime>,
    ) -> Result<(), DocumentError> {
        let secret = secret_name(kind, name);
        let alone = self.alone(&secret).await;
        if self.version(&secret).is_none() {
            self.get(kind, name).await?;
        }
        let version = self.version(&secret);
        let api = self.api();
        let written = unused::write_mark(&api, &secret, version.as_deref(), since);
        match limited(&secret, written).await {
            Ok(written) => {
                self.remember(&secret, written.metadata.resource_version);
                Ok(())
            }
            // Of one that is not in use nothing else is under way: what is there now counts.
            Err(DocumentError::Outdated(_)) if since.is_some() => {
                drop(alone);
                self.get(kind, name).await?;
                Err(DocumentError::Outdated(secret))
            }
            Err(DocumentError::Api { source, .. }) if is_missing(&source) => {
                self.remember(&secret, None);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The Secret of a document.
    fn object(
        &self,
        secret: &str,
        kind: &str,
        name: &str,
        content: &Secret<Vec<u8>>,
    ) -> KubeSecret {
        KubeSecret {
            metadata: ObjectMeta {
                name: Some(secret.to_owned()),
                namespace: Some(self.namespace.clone()),
                labels: Some(
                    [
                        (LABEL.to_owned(), kind.to_owned()),
                        (
                            "app.kubernetes.io/managed-by".to_owned(),
                            FIELD_MANAGER.to_owned(),
                        ),
                    ]
                    .into(),
                ),
                annotations: Some([(NAME.to_owned(), name.to_owned())].into()),
                ..ObjectMeta::default()
            },
            type_: Some(TYPE.to_owned()),
            data: Some([(CONTENT.to_owned(), ByteString(content.expose().clone()))].into()),
            ..KubeSecret::default()
        }
    }

    /// Deletes a document of any kind.
    pub async fn delete(&self, kind: &str, name: &str) -> Result<(), DocumentError> {
        self.delete_secret(&secret_name(kind, name)).await
    }

    /// Deletes it if it is still as it was when it was last read or written here. Returns whether it was.
    pub async fn delete_unchanged(&self, kind: &str, name: &str) -> Result<bool, DocumentError> {
        let secret = secret_name(kind, name);
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                resource_version: self.version(&secret),
                uid: None,
            }),
            ..DeleteParams::default()
        };
        match limited(&secret, self.api().delete(&secret, &params)).await {
            Ok(_) => {}
            Err(DocumentError::Api { source, .. }) if is_missing(&source) => {}
            Err(DocumentError::Outdated(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
        self.remember(&secret, None);
        Ok(true)
    }

    async fn delete_secret(&self, secret: &str) -> Result<(), DocumentError> {
        let params = DeleteParams::default();
        match limited(secret, self.api().delete(secret, &params)).await {
            Ok(_) => {}
            Err(DocumentError::Api { source, .. }) if is_missing(&source) => {}
            Err(error) => return Err(error),
        }
        self.remember(secret, None);
        Ok(())
    }
}

async fn limited<T>(
    secret: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, DocumentError> {
    match tokio::time::timeout(PATIENCE, request).await {
        Err(_) => Err(DocumentError::Late(secret.to_owned())),
        Ok(Ok(done)) => Ok(done),
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
            Err(DocumentError::Outdated(secret.to_owned()))
        }
        Ok(Err(source)) => Err(DocumentError::Api {
            name: secret.to_owned(),
            source: Box::new(source),
        }),
    }
}

fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

#[async_trait]
impl Store for DocumentStore {
    async fn read(&self, key: &Key) -> Result<Option<Secret<Vec<u8>>>, StoreError> {
        self.get(key.kind.as_str(), &key.name)
            .await
            .map_err(|source| StoreError::Read {
                key: key.clone(),
                source: Box::new(source),
            })
    }

    async fn write(&self, key: &Key, content: Secret<Vec<u8>>) -> Result<(), StoreError> {
        self.put(key.kind.as_str(), &key.name, content)
            .await
            .map_err(|source| StoreError::Write {
                key: key.clone(),
                source: Box::new(source),
            })
    }

    async fn remove(&self, key: &Key) -> Result<(), StoreError> {
        let secret = secret_name(key.kind.as_str(), &key.name);
        self.delete_secret(&secret)
            .await
            .map_err(|source| StoreError::Write {
                key: key.clone(),
                source: Box::new(source),
            })
    }

    async fn list(&self, kind: Kind) -> Result<Vec<Key>, StoreError> {
        let params = ListParams::default().labels(&format!("{LABEL}={}", kind.as_str()));
        let mut keys = Vec::new();
        let mut next = params.limit(500);
        loop {
            let page = limited("list", self.api().list(&next)).await;
            let page = page.map_err(|source| StoreError::Read {
                key: Key::new(kind, "*"),
                source: Box::new(source),
            })?;
            for secret in &page.items {
                if let Some(document) = Document::of(secret) {
                    keys.push(Key::new(kind, document.name));
                }
            }
            match page.metadata.continue_ {
                Some(token) if !token.is_empty() => next = next.continue_token(&token),
                _ => break,
            }
        }
        keys.sort();
        Ok(keys)
    }

    async fn write_test(&self) -> Result<(), StoreError> {
        let name = "tidegate-write-test";
        let content = " ".repeat(WRITE_TEST).into_bytes();
        let object = self.object(name, "write-test", "", &Secret::new(content));
        // Everything that could refuse it is asked: permissions, quotas, webhooks.
        let params = PostParams {
            dry_run: true,
            field_manager: Some(FIELD_MANAGER.to_owned()),
        };
        let tested = limited(name, self.api().create(&params, &object)).await;
        tested.map(drop).map_err(|source| StoreError::Write {
            key: Key::new(Kind::Certificate, "of a test"),
            source: Box::new(source),
        })
    }

    async fn set_aside(&self, key: &Key) -> Result<String, StoreError> {
        let failed = |source: DocumentError| StoreError::Write {
            key: key.clone(),
            source: Box::new(source),
        };
        let kind = key.kind.as_str();
        let aside_kind = format!("corrupt-{kind}");
        let content = self.get(kind, &key.name).await.map_err(failed)?;
        let mut aside = None;
        if let Some(content) = content {
            let free = (1..=99_u32).map(|number| format!("{}.{number}", key.name));
            for name in free {
                match self.put(&aside_kind, &name, content.clone()).await {
                    Ok(()) => {
                        aside = Some(secret_name(&aside_kind, &name));
                        break;
                    }
                    Err(DocumentError::Outdated(_)) => {}
                    Err(error) => return Err(failed(error)),
                }
            }
            if aside.is_none() {
                return Err(failed(DocumentError::Outdated(aside_kind)));
            }
        }
        let secret = secret_name(kind, &key.name);
        self.delete_secret(&secret).await.map_err(failed)?;
        Ok(format!(
            "Secret {}/{}",
            self.namespace,
            aside.unwrap_or(secret)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_a_name_that_the_api_server_takes() {
        let name = secret_name("certificate", "default/../../Ä*.example.com");
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
            "{name}"
        );
        assert_ne!(name, secret_name("certificate", "default/blog"));
        assert!(name.len() <= 63);
    }

    #[test]
    fn only_secrets_with_label_name_and_content_are_documents() {
        let mut secret = KubeSecret::default();
        assert!(Document::of(&secret).is_none());
        secret.metadata.labels = Some([(LABEL.to_owned(), "ledger".to_owned())].into());
        secret.metadata.annotations = Some([(NAME.to_owned(), "le".to_owned())].into());
        assert!(Document::of(&secret).is_none());
        secret.data = Some([(CONTENT.to_owned(), ByteString(b"{}".to_vec()))].into());
        let document = Document::of(&secret).unwrap();
        assert!(document.is(Kind::Ledger) && !document.is(Kind::Account));
        assert!(
            !format!("{document:?}").contains("123"),
            "nothing of the content is shown"
        );
    }
}
