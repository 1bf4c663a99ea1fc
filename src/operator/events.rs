//! Events of objects: told when Ready or its reason changes, by whoever leads.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tidegate_telemetry::chain;

use super::cluster::{Cluster, FIELD_MANAGER};
use crate::api::conditions::{Condition, Reason};
use crate::api::{GROUP, VERSION};
use crate::translate::ObjectRef;

/// The API server refuses notes over 1 KiB.
const LONGEST_NOTE: usize = 1024;

/// Publishes Events.
pub(super) struct Teller {
    recorder: Recorder,
}

impl Teller {
    pub(super) fn new(cluster: &Cluster) -> Self {
        let reporter = Reporter {
            controller: FIELD_MANAGER.to_owned(),
            instance: Some(cluster.identity.clone()),
        };
        Self {
            recorder: Recorder::new(cluster.client.clone(), reporter),
        }
    }
}

/// What was told, so that nothing is told twice.
#[derive(Debug, Default)]
pub(super) struct Told {
    last: BTreeMap<ObjectRef, (String, String)>,
}

impl Told {
    /// Tells the new state of Ready if it is news.
    pub(super) async fn tell(
        &mut self,
        teller: &Teller,
        object: &ObjectRef,
        uid: Option<&str>,
        before: Option<&Condition>,
        after: &Condition,
    ) {
        let news = (after.status.clone(), after.reason.clone());
        let known = before.map(|it| (it.status.clone(), it.reason.clone()));
        let told = self.last.insert(object.clone(), news.clone());
        if told.or(known).is_some_and(|told| told == news) {
            return;
        }
        let event = event(after);
        let regarding = ObjectReference {
            api_version: Some(format!("{GROUP}/{VERSION}")),
            kind: Some(object.kind.to_string()),
            name: Some(object.name.clone()),
            namespace: object.namespace.clone(),
            uid: uid.map(str::to_owned),
            ..ObjectReference::default()
        };
        if let Err(error) = teller.recorder.publish(&event, &regarding).await {
            tracing::debug!(object = %object, error = %chain(&error), "cannot tell an Event");
        }
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
