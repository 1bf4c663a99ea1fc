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
//! itself. One that is there and does not serve the answer yet is waited for, within a bound; one that accepts
//! no connection is soon taken for dead (`inquiry`). An order must not hang on either: they are named in the
//! log. Answers that come while others are asked about do not wait for these.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use serde::{Deserialize, Serialize};
use tidegate_acme::answers::{Answer, AnswerSet, Answers};
use tidegate_model::{ObjectName, Secret};
use tidegate_telemetry::chain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::addresses::Endpoint;
use super::documents::{DocumentStore, secret_name};
use super::inquiry::Inquiry;
use super::watch::World;

/// Kind of the document that holds the answers.
const KIND: &str = "answers";
const NAME: &str = "challenges";
/// Time in which another replica must serve an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for one whose probes fail: it may be starting, and be reached without its Service.
const PATIENCE_UNREADY: Duration = Duration::from_secs(3);

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
    /// How they are asked.
    pub inquiry: Inquiry,
}

impl Presenter {
    /// Runs until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let _ = stop.run_until_cancelled(Box::pin(self.present())).await;
    }

    async fn present(self) {
        let mut wanted = self.answers.subscribe();
        // What a leader before has left is nobody's any more.
        let left = SharedAnswers::of(&self.world);
        let base = left.version + 1;
        let mut before = Arc::new(BTreeSet::new());
        // Those under way, in the order of their versions: a version counts as served when those before do.
        let mut questions = FuturesOrdered::new();
        loop {
            let set = wanted.borrow_and_update().clone();
            let version = base + set.version;
            // At the beginning there may be answers to an order that goes on, or none and old ones that must go.
            if set.version > 0 || set.answers != before || !left.answers.is_empty() {
                let share = async {
                    self.share(&set, version).await;
                    let mut served = self.served.clone();
                    let served = served.wait_for(|served| *served >= version).await;
                    served.is_ok()
                };
                if !self.meanwhile(&mut questions, share).await {
                    return;
                }
                let new: Vec<Answer> = set.answers.difference(&before).cloned().collect();
                before = Arc::clone(&set.answers);
                let version = set.version;
                let asked = self.ask_replicas(new);
                questions.push_back(async move {
                    asked.await;
                    version
                });
            }
            if self
                .meanwhile(&mut questions, wanted.changed())
                .await
                .is_err()
            {
                return;
            }
        }
    }

    /// Does that while the questions go on.
    async fn meanwhile<T>(
        &self,
        questions: &mut FuturesOrdered<impl Future<Output = u64>>,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                Some(version) = questions.next() => self.answers.mark_served(version),
            }
        }
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

    /// Asks every other replica every new answer, until all give them or their time is over.
    async fn ask_replicas(&self, new: Vec<Answer>) {
        let Some(replicas) = self.replicas.as_ref().filter(|_| !new.is_empty()) else {
            return;
        };
        let others = |port| -> Vec<Endpoint> {
            let mut all = self.world.endpoints(&replicas.service, port);
            all.retain(|endpoint| !replicas.own.contains(&endpoint.ip));
            all
        };
        let (http, https) = (others("http"), others("https"));
        let questions = new.iter().flat_map(|answer| {
            let endpoints = match answer {
                Answer::Http01 { .. } => &http,
                Answer::TlsAlpn01 { .. } => &https,
            };
            endpoints.iter().map(move |endpoint| (answer, *endpoint))
        });
        let wanted = self.answers.subscribe();
        let questions = questions.map(|(answer, endpoint)| {
            let wanted = wanted.clone();
            async move {
                let patience = if endpoint.serving {
                    PATIENCE
                } else {
                    PATIENCE_UNREADY
                };
                let still = || wanted.borrow().answers.contains(answer);
                self.inquiry
                    .ask(answer, endpoint.address, patience, still)
                    .await;
            }
        });
        futures_util::future::join_all(questions).await;
    }
}
