//! Passes a command's question from a replica that does not lead to the one that does, and the answer back.
//!
//! ```text
//! command ─► this replica ─► Secret (question) ─► the leader's watch ─► engine
//!                ▲                                                         │
//!                └────────── watch ◄── the same Secret (answer) ◄──────────┘
//! ```
//!
//! A document of its own kind for each question: who may write Secrets in the program's namespace holds every
//! key of the edge anyway, and no replica needs a port or a password for another. A question is done at most
//! once: the leader marks it as taken, by a write that names the version it follows, before it begins; whoever
//! leads next does not repeat what was taken. Questions hold no secret.

use std::collections::BTreeSet;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tidegate_acme::plan::moment;
use tidegate_model::Secret;
use tidegate_telemetry::chain;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::documents::{Document, DocumentError, DocumentStore, secret_name};
use super::watch::World;

/// Kind of the documents.
const KIND: &str = "question";
/// Time within which somebody must take a question.
const TAKEN: Duration = Duration::from_secs(10);
/// Time within which it must be answered; longer than an edge lets a command wait.
const ANSWERED: Duration = Duration::from_secs(65);
/// Age at which nobody waits for an answer any more, clocks that differ included.
const OLD: Duration = Duration::from_mins(2);
/// Age at which what is left of a question goes.
const FORGOTTEN: Duration = Duration::from_mins(5);
/// How often it is looked for what is left, if nothing happens.
const LOOK: Duration = Duration::from_mins(5);
/// Questions that are answered at one time.
const PARALLEL: usize = 8;
/// Pause before an answer is written once more.
const AGAIN: Duration = Duration::from_secs(1);

/// A question and, later, its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    version: u32,
    /// The replica that asks.
    asked_by: String,
    /// By its clock.
    #[serde(with = "moment::rfc3339")]
    asked_at: SystemTime,
    question: Question,
    /// The leader that began with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    taken_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<Answer>,
}

/// What is asked, as on the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Path of the request.
    pub path: String,
    /// Its body.
    pub body: String,
}

/// What the leader says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Status of HTTP.
    pub status: u16,
    /// Its body.
    pub body: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The question could not be written.
    #[error("pass the question on to the replica that leads")]
    Write(#[from] DocumentError),
    /// Nothing was done.
    #[error("wait for the replica that leads: it did not take the question, and nothing was done")]
    NotTaken,
    /// Something may have been done.
    #[error("wait for the replica that leads: it took the question and did not answer in time")]
    NotAnswered,
}

impl Written {
    fn of(content: &Secret<Vec<u8>>) -> Option<Self> {
        serde_json::from_slice(content.expose()).ok()
    }

    fn content(&self) -> Secret<Vec<u8>> {
        // Texts and times: this cannot fail.
        Secret::new(serde_json::to_vec(self).unwrap_or_default())
    }
}

/// The side that asks.
#[derive(Debug)]
pub struct Relay {
    /// Where questions are written.
    pub store: Arc<DocumentStore>,
    /// Where answers are seen.
    pub world: Arc<World>,
    /// What this replica is called.
    pub identity: String,
}

impl Relay {
    /// Asks whoever leads, and waits.
    pub async fn ask(&self, question: Question) -> Result<Answer, RelayError> {
        let name = format!("{:032x}", fastrand::u128(..));
        let store = self.store.anew();
        let written = Written {
            version: 1,
            asked_by: self.identity.clone(),
            asked_at: SystemTime::now(),
            question,
            taken_by: None,
            answer: None,
        };
        let mut changes = self.world.changes();
        store.put(KIND, &name, written.content()).await?;
        let asked = Instant::now();
        let secret = secret_name(KIND, &name);
        let mut taken = false;
        loop {
            changes.mark_unchanged();
            let shown = self.world.document(&self.world.namespace, &secret);
            if let Some(shown) = shown.and_then(|shown| Written::of(&shown.content)) {
                taken |= shown.taken_by.is_some();
                if let Some(answer) = shown.answer {
                    self.clear_away(&store, &name).await;
                    return Ok(answer);
                }
            }
            let patience = if taken { ANSWERED } else { TAKEN };
            let left = patience.saturating_sub(asked.elapsed());
            if left.is_zero() && taken {
                return Err(RelayError::NotAnswered);
            }
            if left.is_zero() {
                // Only if nobody took it since.
                if store.delete_unchanged(KIND, &name).await? {
                    return Err(RelayError::NotTaken);
                }
                taken = true;
                continue;
            }
            let _ = timeout(left, changes.changed()).await;
        }
    }

    async fn clear_away(&self, store: &DocumentStore, name: &str) {
        if let Err(error) = store.delete(KIND, name).await {
            tracing::debug!(error = %chain(&error), "a question stays until the leader removes it");
        }
    }
}

/// Who answers.
pub type Answering = dyn Fn(Question) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync;

/// The side that answers. One runs while this replica leads.
pub struct Clerk {
    /// Where answers are written.
    pub store: Arc<DocumentStore>,
    /// Where questions are seen.
    pub world: Arc<World>,
    /// What this replica is called.
    pub identity: String,
    /// What it says.
    pub answering: Box<Answering>,
}

impl fmt::Debug for Clerk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clerk").finish_non_exhaustive()
    }
}

/// What to do about a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Nothing,
    /// Take it, and answer.
    Take,
    /// Whoever took it has ended: say so.
    Lost,
    /// Nobody waits for it.
    Remove,
}

fn decide(written: Option<&Written>, now: SystemTime) -> Step {
    let Some(written) = written else {
        return Step::Remove;
    };
    let age = match now.duration_since(written.asked_at) {
        Ok(age) => age,
        Err(ahead) => ahead.duration(),
    };
    match (&written.answer, &written.taken_by) {
        _ if age > FORGOTTEN => Step::Remove,
        (Some(_), _) => Step::Nothing,
        // What this process took is not asked about again.
        (None, Some(_)) => Step::Lost,
        (None, None) if age > OLD => Step::Remove,
        (None, None) => Step::Take,
    }
}

impl Clerk {
    /// Runs until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.serve()).await;
    }

    async fn serve(&self) {
        let mut changes = self.world.changes();
        let mut work = FuturesUnordered::new();
        let mut under_way = BTreeSet::new();
        // Done with; the watch may not have shown it yet.
        let mut done: BTreeSet<String> = BTreeSet::new();
        loop {
            changes.mark_unchanged();
            let shown = self.world.documents_of(KIND);
            done.retain(|name| shown.iter().any(|document| document.name == *name));
            for document in shown {
                let name = &document.name;
                let known = under_way.contains(name) || done.contains(name);
                if known || under_way.len() >= PARALLEL {
                    continue;
                }
                let written = Written::of(&document.content);
                let step = decide(written.as_ref(), SystemTime::now());
                if step != Step::Nothing {
                    under_way.insert(name.clone());
                    work.push(self.turn(document, step));
                }
            }
            tokio::select! {
                Some(name) = work.next() => {
                    under_way.remove(&name);
                    done.insert(name);
                }
                more = changes.changed() => if more.is_err() { return },
                () = sleep(LOOK) => done.clear(),
            }
        }
    }

    /// Does that, and says which it was.
    async fn turn(&self, document: Arc<Document>, step: Step) -> String {
        let name = document.name.clone();
        let outcome = match step {
            Step::Remove => self.store.anew().delete(KIND, &name).await,
            _ => self.answer(&name).await,
        };
        if let Err(error) = outcome {
            tracing::warn!(error = %chain(&error), "a question of another replica cannot be answered");
        }
        name
    }

    async fn answer(&self, name: &str) -> Result<(), DocumentError> {
        let store = self.store.anew();
        // The watch may be behind.
        let read = store.get(KIND, name).await?;
        let Some(mut written) = read.as_ref().and_then(Written::of) else {
            return Ok(());
        };
        let answer = match decide(Some(&written), SystemTime::now()) {
            Step::Take => {
                written.taken_by = Some(self.identity.clone());
                store.put(KIND, name, written.content()).await?;
                let (question, by) = (written.question.clone(), &written.asked_by);
                tracing::info!(replica = by, path = question.path, "another replica was asked");
                (self.answering)(question).await
            }
            Step::Lost => Answer {
                status: 503,
                body: r#"{"reason":"LeaderLost","message":"the replica that led took the question and ended; it may be done or not: `tidegate certs` tells"}"#.to_owned(),
            },
            Step::Nothing | Step::Remove => return Ok(()),
        };
        written.answer = Some(answer);
        loop {
            match store.put(KIND, name, written.content()).await {
                // Nobody waits for it any more.
                Ok(()) | Err(DocumentError::Outdated(_)) => return Ok(()),
                Err(error) => {
                    tracing::debug!(error = %chain(&error), "cannot write an answer; trying again");
                }
            }
            sleep(AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_taken_once_and_goes_in_the_end() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let answer = || Answer {
            status: 200,
            body: "{}".to_owned(),
        };
        for (asked_at, taken, answered, expected) in [
            (now, false, false, Step::Take),
            (now - minutes(1), false, false, Step::Take),
            // By a clock that is ahead.
            (now + minutes(1), false, false, Step::Take),
            (now - minutes(3), false, false, Step::Remove),
            (now + minutes(3), false, false, Step::Remove),
            (now, true, false, Step::Lost),
            (now - minutes(3), true, false, Step::Lost),
            (now, true, true, Step::Nothing),
            (now - minutes(3), true, true, Step::Nothing),
            (now - minutes(6), true, true, Step::Remove),
            (now - minutes(6), true, false, Step::Remove),
            (now - minutes(6), false, false, Step::Remove),
        ] {
            let written = Written {
                version: 1,
                asked_by: "two".to_owned(),
                asked_at,
                question: Question {
                    path: "/v1/renew".to_owned(),
                    body: "{}".to_owned(),
                },
                taken_by: taken.then(|| "one".to_owned()),
                answer: answered.then(answer),
            };
            assert_eq!(decide(Some(&written), now), expected, "{written:?}");
            assert_eq!(Written::of(&written.content()), Some(written));
        }
        assert_eq!(decide(None, now), Step::Remove, "damaged");
    }
}
