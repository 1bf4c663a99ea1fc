//! Keys of TLS session tickets, the same for all replicas: a document that whoever holds the Lease rotates
//! and every replica watches.
//!
//! Each key names its times, so a rotation waits for nobody and a lost API server breaks no session before the
//! keys' time is over. Whoever deletes the Secret makes all tickets void; new keys are made at once.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_model::TicketKeys;
use tidegate_telemetry::chain;
use tokio_util::sync::CancellationToken;

use super::documents::{Document, DocumentError, DocumentStore, secret_name};
use super::watch::World;
use crate::source::tickets::{next_rotation, of_document, rotate_now, to_document};

/// Kind of the document.
const KIND: &str = "session-tickets";
const NAME: &str = "keys";
/// Pause before a rotation that failed is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// Longest pause, because clocks may be set.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// The keys as the watch has last shown them.
#[derive(Debug, Default)]
pub(super) struct SharedKeys {
    document: Option<Arc<Document>>,
    keys: Option<Arc<TicketKeys>>,
}

impl SharedKeys {
    /// None while nobody has made any. A damaged document leaves the keys that were known.
    pub(super) fn of(&mut self, world: &World) -> Option<Arc<TicketKeys>> {
        self.shown(world.document(&world.namespace, &secret_name(KIND, NAME)));
        self.keys.clone()
    }

    fn shown(&mut self, document: Option<Arc<Document>>) {
        let Some(document) = document else {
            *self = Self::default();
            return;
        };
        if let Some(known) = &self.document
            && Arc::ptr_eq(known, &document)
        {
            return;
        }
        match of_document(&document.content) {
            Some(keys) if self.keys.as_deref() != Some(&keys) => self.keys = Some(Arc::new(keys)),
            Some(_) => {}
            None => {
                tracing::warn!(
                    secret = secret_name(KIND, NAME),
                    "the keys of session tickets are damaged; whoever leads makes new ones"
                );
            }
        }
        self.document = Some(document);
    }
}

/// Makes and removes keys in time. One runs while this replica leads.
#[derive(Debug)]
pub struct Rotator {
    /// Where the keys are written.
    pub store: Arc<DocumentStore>,
    /// What is known of the cluster.
    pub world: Arc<World>,
}

impl Rotator {
    /// Runs until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let rotations = async {
            let mut changes = self.world.changes();
            loop {
                let pause = self.turn().await;
                let waited = tokio::time::timeout(pause, changes.changed()).await;
                if matches!(waited, Ok(Err(_))) {
                    return;
                }
            }
        };
        stop.run_until_cancelled(rotations).await;
    }

    /// Does what is due; how long nothing else is.
    async fn turn(&self) -> Duration {
        let now = SystemTime::now();
        let document = (self.world).document(&self.world.namespace, &secret_name(KIND, NAME));
        let shown = document.and_then(|document| of_document(&document.content));
        let shown = shown.unwrap_or_default();
        if rotate_now(&shown, now).is_none() {
            let next = next_rotation(&shown).unwrap_or(now + AGAIN);
            let pause = next.duration_since(now).unwrap_or_default();
            return pause.clamp(Duration::from_secs(1), LONGEST_PAUSE);
        }
        match self.rotate(now).await {
            Ok(()) => {}
            Err(DocumentError::Outdated(_)) => {
                tracing::debug!("another replica has rotated the keys of session tickets");
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "cannot rotate the keys of session tickets; trying again");
            }
        }
        AGAIN
    }

    /// What the watch has shown may be old: what is written follows from what is read now.
    async fn rotate(&self, now: SystemTime) -> Result<(), DocumentError> {
        let known = self.store.get(KIND, NAME).await?;
        let known = known.and_then(|content| of_document(&content));
        if let Some(rotated) = rotate_now(&known.unwrap_or_default(), now) {
            self.store.put(KIND, NAME, to_document(&rotated)).await?;
            tracing::info!(
                keys = rotated.all().len(),
                "rotated the keys of session tickets"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use k8s_openapi::api::core::v1::Secret as KubeSecret;

    use super::*;

    fn document(content: &[u8]) -> Option<Arc<Document>> {
        let mut secret = KubeSecret::default();
        let labels = [(super::super::documents::LABEL.to_owned(), KIND.to_owned())];
        secret.metadata.labels = Some(labels.into());
        let annotations = [(
            "edge.tidegate.dev/document-name".to_owned(),
            NAME.to_owned(),
        )];
        secret.metadata.annotations = Some(annotations.into());
        let content = ByteString(content.to_vec());
        secret.data = Some([("document.json".to_owned(), content)].into());
        Document::of(&secret).map(Arc::new)
    }

    #[test]
    fn damage_leaves_what_was_known_and_a_deleted_document_leaves_nothing() {
        let now = SystemTime::now();
        let made = rotate_now(&TicketKeys::default(), now).unwrap();
        let mut shared = SharedKeys::default();
        shared.shown(None);
        assert!(shared.keys.is_none());
        shared.shown(document(to_document(&made).expose()));
        let known = shared.keys.clone().unwrap();
        assert_eq!(*known, made);
        // A snapshot with the same keys must be the same to whoever has derived from them.
        shared.shown(document(to_document(&made).expose()));
        assert!(Arc::ptr_eq(shared.keys.as_ref().unwrap(), &known));
        shared.shown(document(b"{}"));
        assert!(Arc::ptr_eq(shared.keys.as_ref().unwrap(), &known));
        shared.shown(None);
        assert!(shared.keys.is_none());
    }
}
