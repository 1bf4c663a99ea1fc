//! Statuses as the API server keeps them: written by whoever leads, and only what differs.
//!
//! A status is applied as a whole under our field manager; what others wrote into it is not touched. Objects
//! that are not understood get their condition as well.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde_json::json;
use tidegate_telemetry::chain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, FIELD_MANAGER};
use super::events::{Teller, Told};
use super::watch::World;
use crate::api::conditions::{ConditionType, Reason, set_condition};
use crate::api::{AcmeIssuer, Condition, TlsRoute, TunnelAgent};
use crate::translate::{Kind, ObjectRef, Statuses};

/// Requests that are under way at one time.
const PARALLEL: usize = 8;
/// Time for one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// First pause after a failure; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Writes statuses. One runs while this replica leads.
#[derive(Debug)]
pub struct StatusWriter {
    /// The API server.
    pub cluster: Cluster,
    /// What it has now.
    pub world: Arc<World>,
    /// What it should have.
    pub wanted: watch::Receiver<Arc<Statuses>>,
}

/// One status that differs.
struct Difference {
    object: ObjectRef,
    uid: Option<String>,
    body: serde_json::Value,
    before: Option<Condition>,
    after: Option<Condition>,
}

impl StatusWriter {
    /// Runs until the token is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let teller = Teller::new(&self.cluster);
        let mut told = Told::default();
        let mut changes = self.world.changes();
        let mut pause = FIRST_PAUSE;
        let _ = stop
            .run_until_cancelled(async {
                loop {
                    changes.mark_unchanged();
                    let wanted = Arc::clone(&self.wanted.borrow_and_update());
                    let differences = self.differences(&wanted, SystemTime::now());
                    let failed = self.write(differences, &teller, &mut told).await;
                    if failed > 0 {
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                        continue;
                    }
                    pause = FIRST_PAUSE;
                    tokio::select! {
                        another = self.wanted.changed() => if another.is_err() { return },
                        // Somebody may have written over it.
                        more = changes.changed() => {
                            if more.is_err() { return }
                            // What follows from the change is wanted soon.
                            tokio::time::sleep(Duration::from_millis(200)).await;
                        }
                    }
                }
            })
            .await;
    }

    fn differences(&self, wanted: &Statuses, now: SystemTime) -> Vec<Difference> {
        let mut all = Vec::new();
        for (name, object) in self.world.routes.all() {
            if let Some(wrong) = &object.wrong {
                let status = object.good.as_ref().and_then(|good| good.status.as_ref());
                let conditions = status.map(|status| &status.conditions[..]);
                let object = reference(Kind::TlsRoute, Some(&name.namespace), &name.name);
                all.extend(not_understood(object, conditions, wrong, now));
            } else if let Some(good) = &object.good
                && let Some(status) = wanted.routes.get(&name)
                && good.metadata.generation == status.observed_generation
                && good.status.as_ref() != Some(status)
            {
                let before = good.status.as_ref().map(|status| &status.conditions[..]);
                let object = reference(Kind::TlsRoute, Some(&name.namespace), &name.name);
                all.extend(difference(
                    object,
                    &**good,
                    before,
                    &status.conditions,
                    status,
                ));
            }
        }
        for (name, object) in self.world.agents.all() {
            if let Some(wrong) = &object.wrong {
                let object = reference(Kind::TunnelAgent, Some(&name.namespace), &name.name);
                all.extend(not_understood(object, None, wrong, now));
            } else if let Some(good) = &object.good
                && let Some(status) = wanted.agents.get(&name)
                && good.metadata.generation == status.observed_generation
                && good.status.as_ref() != Some(status)
            {
                let before = good.status.as_ref().map(|status| &status.conditions[..]);
                let object = reference(Kind::TunnelAgent, Some(&name.namespace), &name.name);
                all.extend(difference(
                    object,
                    &**good,
                    before,
                    &status.conditions,
                    status,
                ));
            }
        }
        for (name, object) in self.world.issuers.all() {
            if let Some(wrong) = &object.wrong {
                let object = reference(Kind::AcmeIssuer, None, &name.name);
                all.extend(not_understood(object, None, wrong, now));
            } else if let Some(good) = &object.good
                && let Some(status) = wanted.issuers.get(&*name.name)
                && good.metadata.generation == status.observed_generation
                && good.status.as_ref() != Some(status)
            {
                let before = good.status.as_ref().map(|status| &status.conditions[..]);
                let object = reference(Kind::AcmeIssuer, None, &name.name);
                all.extend(difference(
                    object,
                    &**good,
                    before,
                    &status.conditions,
                    status,
                ));
            }
        }
        all
    }

    /// Returns how many could not be written.
    async fn write(&self, all: Vec<Difference>, teller: &Teller, told: &mut Told) -> usize {
        let mut failed = 0;
        let mut outcomes = futures_util::stream::iter(all)
            .map(|difference| async {
                let outcome = tokio::time::timeout(PATIENCE, self.patch(&difference)).await;
                (difference, outcome)
            })
            .buffer_unordered(PARALLEL);
        while let Some((difference, outcome)) = outcomes.next().await {
            match outcome {
                Ok(Ok(())) => {
                    if let Some(after) = &difference.after {
                        let object = &difference.object;
                        let uid = difference.uid.as_deref();
                        told.tell(teller, object, uid, difference.before.as_ref(), after)
                            .await;
                    }
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => {}
                Ok(Err(error)) => {
                    failed += 1;
                    tracing::warn!(object = %difference.object, error = %chain(&error), "cannot write a status; trying again");
                }
                Err(_) => failed += 1,
            }
        }
        failed
    }

    async fn patch(&self, difference: &Difference) -> kube::Result<()> {
        let object = &difference.object;
        let kind = match object.kind {
            Kind::TlsRoute => ApiResource::erase::<TlsRoute>(&()),
            Kind::TunnelAgent => ApiResource::erase::<TunnelAgent>(&()),
            Kind::AcmeIssuer => ApiResource::erase::<AcmeIssuer>(&()),
        };
        let client = self.cluster.client.clone();
        // What comes back is read as metadata only: it may be an object that is not understood.
        let api: Api<DynamicObject> = match &object.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &kind),
            None => Api::all_with(client, &kind),
        };
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&difference.body);
        api.patch_status(&object.name, &params, &patch)
            .await
            .map(drop)
    }
}

fn reference(kind: Kind, namespace: Option<&str>, name: &str) -> ObjectRef {
    ObjectRef {
        kind,
        namespace: namespace.map(str::to_owned),
        name: name.to_owned(),
    }
}

fn difference<K: Resource<DynamicType = ()>>(
    object: ObjectRef,
    good: &K,
    before: Option<&[Condition]>,
    after: &[Condition],
    status: &impl Serialize,
) -> Option<Difference> {
    let ready = |conditions: &[Condition]| {
        let mut all = conditions.iter();
        all.find(|it| it.type_ == ConditionType::Ready.as_str())
            .cloned()
    };
    let status = serde_json::to_value(status).ok()?;
    Some(Difference {
        body: body(&object, &status),
        uid: good.meta().uid.clone(),
        before: before.and_then(ready),
        after: ready(after),
        object,
    })
}

fn not_understood(
    object: ObjectRef,
    known: Option<&[Condition]>,
    wrong: &super::objects::Wrong,
    now: SystemTime,
) -> Option<Difference> {
    let mut conditions = known.unwrap_or_default().to_vec();
    let before = conditions.clone();
    let message = format!(
        "this version of tidegate does not understand the object: {}; an earlier version of it that was understood stays in use",
        wrong.error
    );
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
    (conditions != before).then(|| {
        let status = json!({"observedGeneration": wrong.generation, "conditions": conditions});
        Difference {
            body: body(&object, &status),
            uid: None,
            before: None,
            after: None,
            object,
        }
    })
}

fn body(object: &ObjectRef, status: &serde_json::Value) -> serde_json::Value {
    json!({
        "apiVersion": format!("{}/{}", crate::api::GROUP, crate::api::VERSION),
        "kind": object.kind.to_string(),
        "metadata": {"name": object.name, "namespace": object.namespace},
        "status": status,
    })
}
