//! Statuses as the API server keeps them: written by whoever leads, and only what differs.
//!
//! A status is applied as a whole under our field manager; what others wrote into it is not touched. Every write
//! names the version of the object that it follows, so that what a replica has begun which does not lead any
//! more, and does not know it yet, is refused. Objects that are not understood get their condition as well,
//! beside what was said of them before. What was written is not written again while the watch has not shown it;
//! what was refused is tried again later, by itself.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::object::HasStatus;
use serde::{Deserialize as _, Serialize};
use serde_json::{Value as Json, json};
use tidegate_model::ObjectName;
use tidegate_telemetry::chain;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::cluster::{Cluster, FIELD_MANAGER};
use super::events::Told;
use super::lease::Tenure;
use super::objects::{Guarded, Ours, Wrong, reference};
use super::watch::World;
use crate::api::conditions::{ConditionType, Reason, find_condition, set_condition};
use crate::api::{
    AcmeIssuer, AcmeIssuerStatus, Condition, TlsRoute, TlsRouteStatus, TunnelAgent,
    TunnelAgentStatus,
};
use crate::translate::{Kind, ObjectRef, Statuses};

/// Requests that are under way at one time.
const PARALLEL: usize = 8;
/// Statuses that are written before it is looked again what is wanted.
const BATCH: usize = 256;
/// Time for one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// First pause after a failure; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How late a watch is believed to be. What it has not shown by then is written again if it still differs.
const LATE: Duration = Duration::from_secs(30);

/// Writes statuses. One runs while this replica leads.
#[derive(Debug)]
pub struct StatusWriter {
    /// The API server.
    pub cluster: Cluster,
    /// What it has now.
    pub world: Arc<World>,
    /// The class of objects that are written about.
    pub class: Option<String>,
    /// What it should have.
    pub wanted: watch::Receiver<Arc<Statuses>>,
    /// Until when this replica may write them.
    pub tenure: Tenure,
}

/// A kind whose objects have a status.
trait Reported: Ours + HasStatus<Status: PartialEq + Serialize> {
    /// What should be said of the object.
    fn wanted<'a>(all: &'a Statuses, name: &ObjectName) -> Option<&'a Self::Status>;

    /// The generation that it speaks of, and its conditions.
    fn parts(status: &Self::Status) -> (Option<i64>, &[Condition]);
}

macro_rules! reported {
    ($kind:ident, $status:ident, |$all:ident, $name:ident| $wanted:expr) => {
        impl Reported for $kind {
            fn wanted<'a>($all: &'a Statuses, $name: &ObjectName) -> Option<&'a $status> {
                $wanted
            }

            fn parts(status: &$status) -> (Option<i64>, &[Condition]) {
                (status.observed_generation, &status.conditions)
            }
        }
    };
}

reported!(TlsRoute, TlsRouteStatus, |all, name| all.routes.get(name));
reported!(TunnelAgent, TunnelAgentStatus, |all, name| all
    .agents
    .get(name));
reported!(AcmeIssuer, AcmeIssuerStatus, |all, name| all
    .issuers
    .get(&*name.name));

/// An object as a watch has shown it. While it is held, no other can have its address.
type Shown = Arc<dyn Any + Send + Sync>;

/// A status to be written.
struct Change {
    status: Json,
    /// Ready as it is and as it should be.
    before: Option<Condition>,
    after: Option<Condition>,
}

/// One status that differs.
struct Difference {
    object: ObjectRef,
    uid: Option<String>,
    shown: Shown,
    /// The version that it follows: what was shown, or was written since.
    version: String,
    change: Change,
}

/// What was written.
struct Written {
    /// The object as it was shown then.
    shown: Shown,
    status: Json,
    /// The version that it became.
    version: String,
    at: Instant,
}

/// What was done about an object.
#[derive(Default)]
struct Done {
    written: Option<Written>,
    /// When to try again, and the pause until then.
    retry: Option<(Instant, Duration)>,
}

/// What was done about objects; those that need no word are not in it.
#[derive(Default)]
struct Ledger(BTreeMap<ObjectRef, Done>);

/// What is remembered from one look to the next.
struct Memory {
    ledger: Ledger,
    told: Told,
}

/// How writing a status ended.
enum Outcome {
    /// As this version.
    Written(String),
    /// The object is gone.
    Gone,
    /// The object has changed since it was shown.
    Behind,
    /// The API server refuses it.
    Refused,
    /// The API server does not answer, or this replica may not lead any more.
    Away,
}

impl StatusWriter {
    /// Runs until the token is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let (told, teller) = Told::new(&self.cluster);
        let memory = Memory {
            ledger: Ledger::default(),
            told,
        };
        let both = async { tokio::join!(self.write_all(memory), teller.run()) };
        let _ = stop.run_until_cancelled(both).await;
    }

    async fn write_all(&mut self, mut memory: Memory) {
        let mut shown = self.world.shown();
        let mut pause = FIRST_PAUSE;
        loop {
            shown.mark_unchanged();
            let wanted = Arc::clone(&self.wanted.borrow_and_update());
            let mut due = self.due(&wanted, &memory.ledger);
            let more = due.len() > BATCH;
            due.truncate(BATCH);
            if !self.write(due, &mut memory).await {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
            pause = FIRST_PAUSE;
            if more {
                continue;
            }
            let again = memory.tidy(&self.world, Instant::now());
            let again = async {
                match again {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                another = self.wanted.changed() => if another.is_err() { return },
                // Somebody may have written over it.
                more = shown.changed() => {
                    if more.is_err() { return }
                    // What follows from the change is wanted soon.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                () = again => {}
            }
        }
    }

    /// What is to be written now: a batch, and one more if that is not all.
    fn due(&self, wanted: &Statuses, ledger: &Ledger) -> Vec<Difference> {
        let mut due = Vec::new();
        self.due_of(&self.world.issuers, wanted, ledger, &mut due);
        self.due_of(&self.world.agents, wanted, ledger, &mut due);
        self.due_of(&self.world.routes, wanted, ledger, &mut due);
        due
    }

    fn due_of<K: Reported>(
        &self,
        cache: &Cache<Guarded<K>>,
        wanted: &Statuses,
        ledger: &Ledger,
        due: &mut Vec<Difference>,
    ) {
        let (now, at) = (SystemTime::now(), Instant::now());
        for (name, object) in cache.all() {
            // The rest is looked at again after this batch.
            if due.len() > BATCH {
                return;
            }
            let (uid, change) = match (&object.wrong, &object.good) {
                (Some(wrong), good) if wrong.class == self.class => {
                    (&wrong.uid, not_understood(wrong, good.is_some(), now))
                }
                (None, Some(good)) => {
                    let wanted = K::wanted(wanted, &name);
                    let change = wanted.and_then(|wanted| difference(&**good, wanted));
                    (&good.meta().uid, change)
                }
                _ => continue,
            };
            let (Some(change), Some(version)) = (change, &object.version) else {
                continue;
            };
            let reference = reference::<K>(&name);
            let shown = Arc::clone(&object) as Shown;
            let difference = Difference {
                version: ledger
                    .version(&reference, &shown)
                    .unwrap_or(version)
                    .to_owned(),
                object: reference,
                uid: uid.clone(),
                shown,
                change,
            };
            if !ledger.is_done(&difference, at) {
                due.push(difference);
            }
        }
    }

    /// Returns whether the API server answered.
    async fn write(&self, due: Vec<Difference>, memory: &mut Memory) -> bool {
        let away = AtomicBool::new(false);
        let mut outcomes = futures_util::stream::iter(due)
            .map(|difference| async {
                // Nobody who is away is asked hundreds of times.
                if away.load(Ordering::Relaxed) {
                    return (difference, Outcome::Away);
                }
                let outcome = self.write_one(&difference).await;
                if matches!(outcome, Outcome::Away) {
                    away.store(true, Ordering::Relaxed);
                }
                (difference, outcome)
            })
            .buffer_unordered(PARALLEL);
        while let Some((difference, outcome)) = outcomes.next().await {
            memory.note(difference, &outcome, Instant::now());
        }
        !away.load(Ordering::Relaxed)
    }

    async fn write_one(&self, difference: &Difference) -> Outcome {
        let object = &difference.object;
        if !self.tenure.holds() {
            return Outcome::Away;
        }
        match tokio::time::timeout(PATIENCE, self.patch(difference)).await {
            Ok(Ok(version)) => Outcome::Written(version),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Outcome::Gone,
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                tracing::debug!(object = %object, "its status is not written: it has changed since");
                Outcome::Behind
            }
            Ok(Err(error)) => {
                tracing::warn!(object = %object, error = %chain(&error), "cannot write a status; trying again");
                match error {
                    kube::Error::Api(status) if status.code < 500 => Outcome::Refused,
                    _ => Outcome::Away,
                }
            }
            Err(_) => {
                tracing::warn!(object = %object, after = ?PATIENCE, "cannot write a status in time; trying again");
                Outcome::Away
            }
        }
    }

    /// Returns the version that the object has then.
    async fn patch(&self, difference: &Difference) -> kube::Result<String> {
        let object = &difference.object;
        let kind = match object.kind {
            Kind::TlsRoute => ApiResource::erase::<TlsRoute>(&()),
            Kind::TunnelAgent => ApiResource::erase::<TunnelAgent>(&()),
            Kind::AcmeIssuer => ApiResource::erase::<AcmeIssuer>(&()),
        };
        let client = self.cluster.client.clone();
        // What comes back may be an object that is not understood.
        let api: Api<DynamicObject> = match &object.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &kind),
            None => Api::all_with(client, &kind),
        };
        let body = json!({
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "metadata": {
                "name": object.name,
                "namespace": object.namespace,
                "resourceVersion": difference.version,
            },
            "status": difference.change.status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let written = api
            .patch_status(&object.name, &params, &Patch::Apply(&body))
            .await?;
        Ok(written.metadata.resource_version.unwrap_or_default())
    }
}

impl Ledger {
    /// Whether nothing is to be done at this moment.
    fn is_done(&self, difference: &Difference, now: Instant) -> bool {
        self.0.get(&difference.object).is_some_and(|done| {
            let written = done.written.as_ref().is_some_and(|written| {
                Arc::ptr_eq(&written.shown, &difference.shown)
                    && written.status == difference.change.status
                    && now < written.at + LATE
            });
            written || done.retry.is_some_and(|(at, _)| now < at)
        })
    }

    /// The version that the object became by our own hand since it was shown.
    fn version(&self, object: &ObjectRef, shown: &Shown) -> Option<&String> {
        let written = self.0.get(object)?.written.as_ref()?;
        Arc::ptr_eq(&written.shown, shown).then_some(&written.version)
    }

    fn refused(&mut self, object: ObjectRef, now: Instant) {
        let done = self.0.entry(object).or_default();
        let pause = match done.retry {
            Some((_, pause)) => (pause * 2).min(LONGEST_PAUSE),
            None => FIRST_PAUSE,
        };
        done.retry = Some((now + pause, pause));
    }

    fn written(&mut self, object: ObjectRef, written: Written) {
        let done = Done {
            written: Some(written),
            retry: None,
        };
        self.0.insert(object, done);
    }

    /// Forgets what the watch has shown by now.
    fn tidy(&mut self, now: Instant) {
        self.0.retain(|_, done| {
            done.written.take_if(|written| written.at + LATE <= now);
            done.written.is_some() || done.retry.is_some()
        });
    }

    /// When something is to be looked at again.
    fn next(&self) -> Option<Instant> {
        let moments = self.0.values().flat_map(|done| {
            let written = done.written.as_ref().map(|written| written.at + LATE);
            let retry = done.retry.map(|(at, _)| at);
            written.into_iter().chain(retry)
        });
        moments.min()
    }
}

impl Memory {
    fn note(&mut self, difference: Difference, outcome: &Outcome, now: Instant) {
        match outcome {
            Outcome::Away => return,
            Outcome::Refused | Outcome::Behind => {
                return self.ledger.refused(difference.object, now);
            }
            Outcome::Written(_) | Outcome::Gone => {}
        }
        let Difference {
            object,
            uid,
            shown,
            version,
            change,
        } = difference;
        if let Some(after) = &change.after
            && matches!(outcome, Outcome::Written(_))
        {
            let before = change.before.as_ref();
            self.told.note(&object, uid.as_deref(), before, after);
        }
        let written = Written {
            shown,
            status: change.status,
            version: match outcome {
                Outcome::Written(version) => version.clone(),
                _ => version,
            },
            at: now,
        };
        self.ledger.written(object, written);
    }

    /// Forgets what is over, and returns when something is to be looked at again.
    fn tidy(&mut self, world: &World, now: Instant) -> Option<Instant> {
        self.ledger.tidy(now);
        if self.told.len() > world.counts().values().sum() {
            self.told.retain(|object| {
                let namespace = object.namespace.as_deref().unwrap_or_default();
                let name = ObjectName::new(namespace, object.name.as_str());
                match object.kind {
                    Kind::TlsRoute => world.routes.get(&name).is_some(),
                    Kind::TunnelAgent => world.agents.get(&name).is_some(),
                    Kind::AcmeIssuer => world.issuers.get(&name).is_some(),
                }
            });
        }
        self.ledger.next()
    }
}

/// The status to be written if it differs from what is there.
fn difference<K: Reported>(object: &K, wanted: &K::Status) -> Option<Change> {
    let (generation, after) = K::parts(wanted);
    // What is wanted of another generation is not wanted of this one.
    if object.meta().generation != generation || object.status() == Some(wanted) {
        return None;
    }
    let before = object.status().map(|status| K::parts(status).1);
    let ready = |conditions| find_condition(conditions, ConditionType::Ready).cloned();
    let status = serde_json::to_value(wanted).ok()?;
    Some(Change {
        status,
        before: before.and_then(ready),
        after: ready(after),
    })
}

/// The same for an object that is not understood: what was said of it, and that.
fn not_understood(wrong: &Wrong, kept: bool, now: SystemTime) -> Option<Change> {
    let known = Vec::<Condition>::deserialize(&wrong.status["conditions"]).unwrap_or_default();
    let mut conditions = known.clone();
    let mut message = "this version of tidegate does not understand the object".to_owned();
    for problem in &wrong.problems {
        message.push('\n');
        message.push_str(&problem.to_string());
    }
    message.push_str("\nmend it, or run the version of tidegate that the definitions belong to");
    if kept {
        message.push_str("; an earlier version of it that was understood stays in use");
    }
    for type_ in [ConditionType::Accepted, ConditionType::Ready] {
        set_condition(
            &mut conditions,
            type_,
            false,
            Reason::Invalid,
            message.clone(),
            wrong.generation,
            now,
        );
    }
    let ready =
        |conditions: &[Condition]| find_condition(conditions, ConditionType::Ready).cloned();
    let observed = wrong.status["observedGeneration"].as_i64();
    if conditions == known && observed == wrong.generation {
        return None;
    }
    let (before, after) = (ready(&known), ready(&conditions));
    let mut status = wrong.status.clone();
    if !status.is_object() {
        status = json!({});
    }
    status["observedGeneration"] = json!(wrong.generation);
    status["conditions"] = json!(conditions);
    Some(Change {
        status,
        before,
        after,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::yaml::schema::FieldProblem;

    fn shown() -> Shown {
        Arc::new(7)
    }

    fn blog(shown: &Shown, status: &str) -> Difference {
        Difference {
            object: reference::<TlsRoute>(&ObjectName::new("default", "blog")),
            uid: None,
            shown: Arc::clone(shown),
            version: "7".to_owned(),
            change: Change {
                status: json!(status),
                before: None,
                after: None,
            },
        }
    }

    #[test]
    fn what_was_written_is_not_written_again_because_the_watch_is_late() {
        let mut ledger = Ledger::default();
        let (now, before, after) = (Instant::now(), shown(), shown());
        let first = blog(&before, "a");
        assert!(!ledger.is_done(&first, now));
        let object = first.object.clone();
        assert_eq!(ledger.version(&object, &before), None);
        let written = Written {
            shown: first.shown,
            status: first.change.status,
            version: "8".to_owned(),
            at: now,
        };
        ledger.written(object.clone(), written);
        let follows = |shown| ledger.version(&object, shown).map(String::as_str);
        assert_eq!((follows(&before), follows(&after)), (Some("8"), None));
        assert!(ledger.is_done(&blog(&before, "a"), now));
        assert!(!ledger.is_done(&blog(&before, "b"), now), "wanted since");
        assert!(
            !ledger.is_done(&blog(&after, "a"), now),
            "somebody wrote over it"
        );
        let late = ledger.next().unwrap();
        assert!(!ledger.is_done(&blog(&before, "a"), late));
        ledger.tidy(late);
        assert_eq!(ledger.next(), None);
    }

    #[test]
    fn what_is_refused_is_tried_again_after_growing_pauses() {
        let mut ledger = Ledger::default();
        let (mut now, shown) = (Instant::now(), shown());
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let wrong = blog(&shown, "a");
            ledger.refused(wrong.object.clone(), now);
            assert!(ledger.is_done(&wrong, now));
            let next = ledger.next().unwrap();
            assert!(!ledger.is_done(&wrong, next));
            pauses.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn what_is_not_understood_keeps_what_was_said_and_is_told_once() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let mut wrong = Wrong {
            generation: Some(3),
            uid: None,
            class: None,
            problems: vec![FieldProblem {
                path: "spec.suspend".to_owned(),
                line: None,
                reason: "WrongType",
                message: "should be true or false, found a mapping".to_owned(),
                hint: None,
            }],
            status: json!({
                "observedGeneration": 2, "hostnames": ["a.example"],
                "conditions": [{
                    "type": "Programmed", "status": "True", "reason": "Programmed", "message": "served",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            }),
        };
        let Change { status, after, .. } = not_understood(&wrong, true, at(10)).unwrap();
        assert_eq!(status["hostnames"], json!(["a.example"]));
        assert_eq!(status["observedGeneration"], 3);
        let conditions = status["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 3, "{status}");
        let message = after.unwrap().message;
        assert!(
            message.contains("\nspec.suspend: should be true or false, found a mapping\n")
                && message.ends_with("stays in use"),
            "{message}"
        );
        wrong.status = status;
        assert!(not_understood(&wrong, true, at(20)).is_none());
        assert!(not_understood(&wrong, false, at(20)).is_some());
    }
}
