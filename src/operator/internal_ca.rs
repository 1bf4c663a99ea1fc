//! The internal CA's root, the same for all replicas: a document, copied into each state folder.
//!
//! The first replica makes the root; whoever comes later, or was slower, takes that one. Leaves are each
//! replica's own: clients trust the root.

use std::time::{Duration, SystemTime};

use tidegate_model::Secret;

use super::documents::{DocumentError, DocumentStore};
use crate::source::ca::{self, CaError, InternalCa};
use crate::source::state::{StateError, StateFolder};

const KIND: &str = "internal-ca";
const NAME: &str = "root";

/// Why the root cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The API server.
    #[error("share the internal CA's root")]
    Document(#[from] DocumentError),
    /// The state folder.
    #[error("keep the internal CA's root")]
    State(#[from] StateError),
    /// The CA.
    #[error("make the internal CA's root")]
    Ca(#[from] CaError),
}

/// Puts the shared root into the state folder, or shares the one that is made there.
pub async fn share_root(
    documents: &DocumentStore,
    state: &StateFolder,
    now: SystemTime,
) -> Result<(), ShareError> {
    for _ in 0..3 {
        if let Some(root) = documents.get(KIND, NAME).await? {
            let text = String::from_utf8_lossy(root.expose()).into_owned();
            if state.read(ca::ROOT)?.as_ref() != Some(&text) {
                state.write(ca::ROOT, &text)?;
            }
            // One that is damaged or has expired is set aside and made anew, and then shared.
            InternalCa::open(state, Duration::ZERO, now)?;
            let kept = state.read(ca::ROOT)?.unwrap_or_default();
            if kept == text {
                return Ok(());
            }
            match documents
                .put(KIND, NAME, Secret::new(kept.into_bytes()))
                .await
            {
                Err(DocumentError::Outdated(_)) => continue,
                other => return Ok(other?),
            }
        }
        InternalCa::open(state, Duration::ZERO, now)?;
        let made = state.read(ca::ROOT)?.unwrap_or_default();
        match documents
            .put(KIND, NAME, Secret::new(made.into_bytes()))
            .await
        {
            // Another replica was faster: its root is taken.
            Err(DocumentError::Outdated(_)) => {}
            other => return Ok(other?),
        }
    }
    Err(ShareError::Document(DocumentError::Outdated(
        NAME.to_owned(),
    )))
}
