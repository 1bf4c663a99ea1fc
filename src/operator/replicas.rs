//! Answers to challenges reach every replica before an authority is told to look.
//!
//! ```text
//! engine ─► answers ─► Secret ─► every replica's watch ─► its Snapshot
//!    ▲                                                        │
//!    └── served ◄── each replica asked as the authority will ask it
//! ```
//!
//! The authority's question reaches whichever replica the network chooses. So the leader writes the answers
//! into a document, waits until its own data plane serves them, and asks the other replicas the question
//! itself. A replica that does not answer within a bound is named in the log and not waited for: it may be
//! dead, and an order must not hang on it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_acme::answers::{Answer, AnswerSet, Answers};
use tidegate_acme::preflight::facts::LoopbackAnswer;
use tidegate_acme::preflight::loopback::ask;
use tidegate_model::{ObjectName, Secret};
use tidegate_telemetry::chain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::documents::{DocumentStore, secret_name};
use super::watch::World;

/// Kind of the document that holds the answers.
const KIND: &str = "answers";
const NAME: &str = "challenges";
/// Time in which the other replicas must serve an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause before a replica that does not serve it yet is asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SharedAnswers {
    /// Counts changes by one leader.
    pub(super) version: u64,
    /// The answers.
    pub(super) answers: BTreeSet<Answer>,
}

impl SharedAnswers {
    /// As the watch has shown them.
    pub(super) fn of(world: &World) -> Self {
        let document = world.document(&world.namespace, &secret_name(KIND, NAME));
        document
            .and_then(|document| serde_json::from_slice(document.content.expose()).ok())
            .unwrap_or_default()
    }
}

/// Where the other replicas are.
#[derive(Debug, Clone)]
pub struct Replicas {
    /// The Service whose endpoints are the replicas, with ports named `http` and `https`.
    pub service: ObjectName,
    /// Addresses of this replica, which is not asked.
    pub own: Vec<IpAddr>,
}

/// Shares what the engine wants served. One runs while this replica leads.
#[derive(Debug)]
pub struct Presenter {
    /// The engine's answers.
    pub answers: Answers,
    /// Where they are written.
    pub store: Arc<DocumentStore>,
    /// What is known of the cluster.
    pub world: Arc<World>,
    /// The version of the answers in the snapshot that this replica serves.
    pub served: watch::Receiver<u64>,
    /// The others.
    pub replicas: Option<Replicas>,
}

impl Presenter {
    /// Runs until the token is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut wanted = self.answers.subscribe();
        // What a leader before has left is nobody's any more.
        let left = SharedAnswers::of(&self.world);
        let base = left.version + 1;
        let _ = stop
            .run_until_cancelled(async {
                let mut before = Arc::new(BTreeSet::new());
                loop {
                    let set = wanted.borrow_and_update().clone();
                    let version = base + set.version;
                    // At the beginning there may be answers to an order that goes on, or none and old ones
                    // that must go.
                    if set.version == 0 && set.answers == before && left.answers.is_empty() {
                        if wanted.changed().await.is_err() {
                            return;
                        }
                        continue;
                    }
                    self.share(&set, version).await;
                    if self
                        .served
                        .wait_for(|served| *served >= version)
                        .await
                        .is_err()
                    {
                        return;
                    }
                    let new: Vec<Answer> = set.answers.difference(&before).cloned().collect();
                    self.ask_replicas(&new).await;
                    before = Arc::clone(&set.answers);
                    self.answers.mark_served(set.version);
                    if wanted.changed().await.is_err() {
                        return;
                    }
                }
            })
            .await;
    }

    /// Writes, again and again until it is written.
    async fn share(&self, set: &AnswerSet, version: u64) {
        let shared = SharedAnswers {
            version,
            answers: (*set.answers).clone(),
        };
        let Ok(content) = serde_json::to_vec(&shared) else {
            return;
        };
        loop {
            let written = self
                .store
                .put(KIND, NAME, Secret::new(content.clone()))
                .await;
            let Err(error) = written else { return };
            tracing::warn!(error = %chain(&error), "cannot share answers to challenges; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
            // Whose version it was is not known any more.
            if let Err(error) = self.store.get(KIND, NAME).await {
                tracing::debug!(error = %chain(&error), "cannot read the shared answers");
            }
        }
    }

    /// Asks every other replica every new answer, until all give them or the time is over.
    async fn ask_replicas(&self, new: &[Answer]) {
        let Some(replicas) = self.replicas.as_ref().filter(|_| !new.is_empty()) else {
            return;
        };
        let others = |port| -> Vec<SocketAddr> {
            let all = self.world.endpoints(&replicas.service, port);
            all.into_iter()
                .filter(|(ip, _)| !replicas.own.contains(ip))
                .map(|(_, address)| address)
                .collect()
        };
        let (http, https) = (others("http"), others("https"));
        let questions = new.iter().flat_map(|answer| {
            let addresses = match answer {
                Answer::Http01 { .. } => &http,
                Answer::TlsAlpn01 { .. } => &https,
            };
            addresses.iter().map(move |address| (answer, *address))
        });
        let questions = questions.map(|(answer, address)| async move {
            let until = async {
                loop {
                    match ask(answer, address, PATIENCE).await {
                        LoopbackAnswer::Ours => return,
                        other => tracing::debug!(%address, ?answer, ?other, "a replica does not serve an answer yet"),
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            };
            if tokio::time::timeout(PATIENCE, until).await.is_err() {
                tracing::warn!(%address, ?answer, "a replica does not serve the answer to a challenge; if the authority asks that one, the order fails");
            }
        });
        futures_util::future::join_all(questions).await;
    }
}
