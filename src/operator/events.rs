//! Events of objects: told when Ready or its reason changes, by whoever leads.
//!
//! They wait in a queue of their own, so that nobody waits for a status because of them. They are for people
//! and need not arrive: what finds the queue full, or is not taken, is not told.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tidegate_telemetry::chain;
use tokio::sync::mpsc;

use super::cluster::{Cluster, FIELD_MANAGER};
use crate::api::conditions::{Condition, Reason};
use crate::api::{GROUP, VERSION};
use crate::translate::ObjectRef;

/// The API server refuses notes over 1 KiB.
const LONGEST_NOTE: usize = 1024;
/// Events that wait.
const QUEUE: usize = 20_000;
/// Time for one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events that a recorder remembers so as to count those that repeat. It looks through all of them each time.
const REMEMBERED: usize = 256;

/// The state of Ready of an object.
#[derive(Debug)]
struct News {
    object: ObjectRef,
    uid: Option<String>,
    ready: Condition,
}

/// Notes what is news.
#[derive(Debug)]
pub(super) struct Told {
    queue: mpsc::Sender<News>,
    /// Status and reason that were told last.
    last: BTreeMap<ObjectRef, (String, String)>,
}

/// Publishes what was noted.
pub(super) struct Teller {
    queue: mpsc::Receiver<News>,
    client: kube::Client,
    reporter: Reporter,
}

impl Told {
    /// With what publishes.
    pub(super) fn new(cluster: &Cluster) -> (Self, Teller) {
        let (told, queue) = Self::queue();
        let teller = Teller {
            queue,
            client: cluster.client.clone(),
            reporter: reporter(cluster),
        };
        (told, teller)
    }

    fn queue() -> (Self, mpsc::Receiver<News>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let told = Self {
            queue: sender,
            last: BTreeMap::new(),
        };
        (told, receiver)
    }

    /// Notes the new state of Ready if it is news.
    pub(super) fn note(
        &mut self,
        object: &ObjectRef,
        uid: Option<&str>,
        before: Option<&Condition>,
        ready: &Condition,
    ) {
        let state = |it: &Condition| (it.status.clone(), it.reason.clone());
        let told = self.last.insert(object.clone(), state(ready));
        if told.or(before.map(state)) == Some(state(ready)) {
            return;
        }
        let news = News {
            object: object.clone(),
            uid: uid.map(str::to_owned),
            ready: ready.clone(),
        };
        if self.queue.try_send(news).is_err() {
            tracing::debug!(object = %object, "too many Events wait; this one is not told");
        }
    }

    /// How many objects are remembered.
    pub(super) fn len(&self) -> usize {
        self.last.len()
    }

    /// Forgets objects that are gone.
    pub(super) fn retain(&mut self, exists: impl Fn(&ObjectRef) -> bool) {
        self.last.retain(|object, _| exists(object));
    }
}

impl Teller {
    /// Publishes until nothing more can be noted: one after the other, because statuses matter more.
    pub(super) async fn run(mut self) {
        loop {
            let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
            for _ in 0..REMEMBERED {
                let Some(news) = self.queue.recv().await else {
                    return;
                };
                let event = event(&news.ready);
                tell(&recorder, &news.object, news.uid, &event).await;
            }
        }
    }
}

/// As whom Events are told.
pub(super) fn reporter(cluster: &Cluster) -> Reporter {
    Reporter {
        controller: FIELD_MANAGER.to_owned(),
        instance: Some(cluster.identity.clone()),
    }
}

/// Tells an Event of the object with that uid, within a time.
pub(super) async fn tell(
    recorder: &Recorder,
    object: &ObjectRef,
    uid: Option<String>,
    event: &Event,
) {
    let regarding = ObjectReference {
        api_version: Some(format!("{GROUP}/{VERSION}")),
        kind: Some(object.kind.to_string()),
        name: Some(object.name.clone()),
        namespace: object.namespace.clone(),
        uid,
        ..ObjectReference::default()
    };
    let telling = recorder.publish(event, &regarding);
    match tokio::time::timeout(PATIENCE, telling).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::debug!(object = %object, error = %chain(&error), "cannot tell an Event");
        }
        Err(_) => tracing::debug!(object = %object, "cannot tell an Event in time"),
    }
}

/// Work in progress is no warning.
fn event(ready: &Condition) -> Event {
    let quiet = ready.status == "True"
        || [Reason::Issuing, Reason::Pending, Reason::Suspended]
            .iter()
            .any(|reason| reason.as_str() == ready.reason);
    Event {
        type_: if quiet {
            EventType::Normal
        } else {
            EventType::Warning
        },
        reason: ready.reason.clone(),
        note: Some(cut(&ready.message)),
        action: "Reconcile".to_owned(),
        secondary: None,
    }
}

fn cut(message: &str) -> String {
    if message.len() <= LONGEST_NOTE {
        return message.to_owned();
    }
    let mut end = LONGEST_NOTE - 4;
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    format!("{} …", &message[..end])
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::api::conditions::{ConditionType, set_condition};

    #[test]
    fn nothing_is_told_twice() {
        let (mut told, mut queue) = Told::queue();
        let object = ObjectRef {
            kind: crate::translate::Kind::TlsRoute,
            namespace: Some("default".to_owned()),
            name: "blog".to_owned(),
        };
        let ready = |status, reason| {
            let mut all = Vec::new();
            set_condition(
                &mut all,
                ConditionType::Ready,
                status,
                reason,
                "so it is",
                Some(1),
                SystemTime::UNIX_EPOCH,
            );
            all.remove(0)
        };
        let (fine, bad) = (
            ready(true, Reason::Ready),
            ready(false, Reason::BackendNotFound),
        );
        let mut note = |before: Option<&Condition>, after: &Condition| {
            told.note(&object, None, before, after);
            queue.try_recv().is_ok()
        };
        assert!(
            !note(Some(&fine), &fine),
            "who led before has told it, as the status says"
        );
        assert!(note(Some(&fine), &bad));
        // The watch has not shown the status yet.
        assert!(!note(Some(&fine), &bad));
        assert!(note(Some(&bad), &fine));
        told.retain(|_| false);
        assert_eq!(told.len(), 0);
    }

    #[test]
    fn an_event_warns_only_of_what_needs_a_person() {
        for (status, reason, expected) in [
            (true, Reason::Ready, EventType::Normal),
            (false, Reason::Issuing, EventType::Normal),
            (false, Reason::OrderFailed, EventType::Warning),
            (false, Reason::BackendNotFound, EventType::Warning),
        ] {
            let mut all = Vec::new();
            let message = "ä".repeat(1000);
            set_condition(
                &mut all,
                ConditionType::Ready,
                status,
                reason,
                message,
                Some(1),
                SystemTime::UNIX_EPOCH,
            );
            let event = event(&all[0]);
            assert_eq!(event.type_, expected, "{reason}");
            assert!(event.note.unwrap().len() <= LONGEST_NOTE);
        }
    }
}
