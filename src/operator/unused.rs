//! Marks what is kept for routes that are gone, so that people can see it and remove it, and in the end removes
//! documents itself.
//!
//! A certificate outlives its route on purpose: whoever makes the route again gets it without an order. So its
//! document and its copy `ROUTE-tls` are marked when the route is deleted, and the mark goes when it is back. A
//! document goes for good a long time after its certificate has expired. Copies are never deleted here: they are
//! in namespaces of others, who may use them, and the program has no permission for it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Secret as KubeSecret;
use kube::Api;
use kube::api::{ListParams, ObjectMeta, PartialObjectMeta, Patch, PatchParams};
use serde_json::json;
use tidegate_acme::plan::moment::{parse_rfc3339, rfc3339_text};
use tidegate_acme::record::CertificateRecord;
use tidegate_acme::store::Kind;
use tidegate_model::ObjectName;
use tidegate_telemetry::chain;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::documents::{Document, DocumentStore};
use super::published;
use super::watch::World;

/// Label of what no route uses.
pub(super) const UNUSED: &str = "edge.tidegate.dev/unused";
/// Annotation: since when.
pub(super) const SINCE: &str = "edge.tidegate.dev/unused-since";
/// Who owns the two. Not the manager of the rest: what that one applies would drop them.
const MANAGER: &str = "tidegate-unused";
/// Time for one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Quiet time after a change.
const HOLD_OFF: Duration = Duration::from_secs(1);
/// Pause before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// How often it is looked what has become old.
const LOOK: Duration = Duration::from_hours(1);

/// What to do about something that is kept for a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Nothing,
    Mark,
    Unmark,
    Remove,
}

/// Whether something is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    No,
    /// Nobody can read since when.
    Damaged,
    Since(SystemTime),
}

/// What is kept for a route.
#[derive(Debug, Clone, Copy)]
struct Thing {
    /// Whether the route exists.
    used: bool,
    mark: Mark,
    /// When its certificate ends, if it has one; None if it must not be removed.
    ends: Option<SystemTime>,
}

fn decide(thing: Thing, keep: Duration, now: SystemTime) -> Step {
    match (thing.used, thing.mark) {
        (true, Mark::No) => Step::Nothing,
        (true, Mark::Damaged | Mark::Since(_)) => Step::Unmark,
        (false, Mark::No | Mark::Damaged) => Step::Mark,
        (false, Mark::Since(since)) => match thing.ends {
            // A route that was deleted long after that is missed for as long.
            Some(ends) if now >= ends.max(since) + keep => Step::Remove,
            _ => Step::Nothing,
        },
    }
}

/// The mark of an object.
pub(super) fn mark_of(meta: &ObjectMeta) -> Mark {
    let labels = meta.labels.as_ref();
    let since = meta.annotations.as_ref().and_then(|all| all.get(SINCE));
    match since.and_then(|since| parse_rfc3339(since)) {
        Some(since) => Mark::Since(since),
        None if since.is_some() || labels.is_some_and(|all| all.contains_key(UNUSED)) => {
            Mark::Damaged
        }
        None => Mark::No,
    }
}

/// Sets the mark, or removes it, of an object that is still of this version.
pub(super) async fn write_mark(
    api: &Api<KubeSecret>,
    name: &str,
    version: Option<&str>,
    since: Option<SystemTime>,
) -> kube::Result<PartialObjectMeta<KubeSecret>> {
    let patch = json!({"metadata": {
        "resourceVersion": version,
        "labels": {UNUSED: since.map(|_| "true")},
        "annotations": {SINCE: since.map(rfc3339_text)},
    }});
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch_metadata(name, &params, &Patch::Merge(&patch))
        .await
}

/// Keeps the marks. One runs while this replica leads.
pub struct Janitor {
    /// Where copies are.
    pub cluster: Cluster,
    /// What is known of the cluster.
    pub world: Arc<World>,
    /// The engine's own, so that it knows the versions that are written here.
    pub store: Arc<DocumentStore>,
    /// How long documents are kept after their certificate has expired.
    pub keep: Duration,
}

impl fmt::Debug for Janitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Janitor").finish_non_exhaustive()
    }
}

impl Janitor {
    /// Runs until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(Box::pin(self.work())).await;
    }

    async fn work(&self) {
        let mut changes = self.world.changes();
        let mut looked: Option<BTreeSet<ObjectName>> = None;
        loop {
            changes.mark_unchanged();
            let routes: BTreeSet<ObjectName> = self.world.route_names();
            let mut failed = self.documents(&routes).await;
            if looked.as_ref() != Some(&routes) {
                match timeout(PATIENCE * 6, self.copies(&routes)).await {
                    Ok(Ok(())) => looked = Some(routes),
                    Ok(Err(error)) => {
                        failed = true;
                        tracing::warn!(error = %chain(&error), "cannot mark what no route uses; trying again");
                    }
                    Err(_) => failed = true,
                }
            }
            if failed {
                sleep(AGAIN).await;
                continue;
            }
            tokio::select! {
                more = changes.changed() => if more.is_err() { return },
                // Others may have written marks, too.
                () = sleep(LOOK) => looked = None,
            }
            sleep(HOLD_OFF).await;
        }
    }

    /// Looks at the documents of certificates. Returns whether something failed.
    async fn documents(&self, routes: &BTreeSet<ObjectName>) -> bool {
        let now = SystemTime::now();
        let mut failed = false;
        for document in self.world.documents(Kind::Certificate) {
            // An import that no route has taken yet has no route's name.
            let Some((namespace, name)) = document.name.split_once('/') else {
                continue;
            };
            let used = routes.contains(&ObjectName::new(namespace, name));
            let mark = document.unused;
            let ends = (!used && mark != Mark::No)
                .then(|| ends(&document))
                .flatten();
            let kind = Kind::Certificate.as_str();
            let step = decide(Thing { used, mark, ends }, self.keep, now);
            let outcome = match step {
                Step::Nothing => continue,
                Step::Mark => self.store.mark(kind, &document.name, Some(now)).await,
                Step::Unmark => self.store.mark(kind, &document.name, None).await,
                Step::Remove => self.store.delete(kind, &document.name).await,
            };
            match outcome {
                Ok(()) => tell(step, "document of the certificate", &document.name),
                Err(error) => {
                    failed = true;
                    tracing::debug!(certificate = document.name, error = %chain(&error), "cannot mark a document; trying again");
                }
            }
        }
        failed
    }

    /// Looks at the Secrets that certificates are published in.
    async fn copies(&self, routes: &BTreeSet<ObjectName>) -> kube::Result<()> {
        let client = &self.cluster.client;
        let scopes: Vec<Api<KubeSecret>> = if self.cluster.watched.is_empty() {
            vec![Api::all(client.clone())]
        } else {
            let watched: BTreeSet<&String> = self.cluster.watched.iter().collect();
            let scope = |namespace: &&String| Api::namespaced(client.clone(), namespace);
            watched.iter().map(scope).collect()
        };
        let now = SystemTime::now();
        for scope in scopes {
            let mut params = ListParams::default().labels(published::MANAGED).limit(500);
            loop {
                let page = scope.list_metadata(&params).await?;
                for secret in &page.items {
                    self.copy(&secret.metadata, routes, now).await?;
                }
                match page.metadata.continue_ {
                    Some(token) if !token.is_empty() => params = params.continue_token(&token),
                    _ => break,
                }
            }
        }
        Ok(())
    }

    async fn copy(
        &self,
        meta: &ObjectMeta,
        routes: &BTreeSet<ObjectName>,
        now: SystemTime,
    ) -> kube::Result<()> {
        let Some((secret, route)) = published::ours(meta) else {
            return Ok(());
        };
        let thing = Thing {
            used: routes.contains(&route),
            mark: mark_of(meta),
            ends: None,
        };
        let step = decide(thing, self.keep, now);
        let since = match step {
            Step::Mark => Some(now),
            Step::Unmark => None,
            Step::Nothing | Step::Remove => return Ok(()),
        };
        let api = Api::namespaced(self.cluster.client.clone(), &secret.namespace);
        let version = meta.resource_version.as_deref();
        match write_mark(&api, &secret.name, version, since).await {
            Ok(_) => tell(step, "published certificate", &route.to_string()),
            // Gone, or changed since: the change is looked at again.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn ends(document: &Document) -> Option<SystemTime> {
    let record: CertificateRecord = serde_json::from_slice(document.content.expose()).ok()?;
    // One that never was is over at once.
    Some(
        record
            .current
            .map_or(SystemTime::UNIX_EPOCH, |issued| issued.not_after),
    )
}

fn tell(step: Step, what: &str, route: &str) {
    match step {
        Step::Mark => tracing::info!(route, what, "kept for a route that is gone, and marked"),
        Step::Unmark => tracing::info!(route, what, "its route is back; it is not marked any more"),
        Step::Remove => tracing::info!(route, what, "removed: its route is gone for long"),
        Step::Nothing => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_route_uses_is_marked_and_goes_long_after_it_has_ended() {
        let day = Duration::from_hours(24);
        let keep = 30 * day;
        let now = SystemTime::UNIX_EPOCH + 1000 * day;
        let ago = |days: u32| now - days * day;
        let since = Mark::Since;
        for (used, mark, ends, expected) in [
            (true, Mark::No, Some(ago(900)), Step::Nothing),
            (true, since(ago(400)), Some(ago(900)), Step::Unmark),
            (true, Mark::Damaged, None, Step::Unmark),
            (false, Mark::No, Some(ago(900)), Step::Mark),
            // A mark that nobody can read is none.
            (false, Mark::Damaged, Some(ago(900)), Step::Mark),
            (false, since(ago(1)), Some(ago(900)), Step::Nothing),
            (false, since(ago(29)), Some(ago(900)), Step::Nothing),
            (false, since(ago(30)), Some(ago(30)), Step::Remove),
            (false, since(ago(400)), Some(ago(29)), Step::Nothing),
            (false, since(ago(400)), Some(now + day), Step::Nothing),
            (false, since(ago(400)), Some(ago(31)), Step::Remove),
            // By a clock that was ahead.
            (false, since(now + day), Some(ago(900)), Step::Nothing),
            // What must not be removed.
            (false, since(ago(900)), None, Step::Nothing),
        ] {
            let thing = Thing { used, mark, ends };
            assert_eq!(decide(thing, keep, now), expected, "{thing:?}");
        }
    }

    #[test]
    fn a_mark_is_read_as_it_is_written() {
        let mut meta = ObjectMeta::default();
        assert_eq!(mark_of(&meta), Mark::No);
        meta.labels = Some([(UNUSED.to_owned(), "true".to_owned())].into());
        assert_eq!(mark_of(&meta), Mark::Damaged);
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let text = rfc3339_text(since);
        meta.annotations = Some([(SINCE.to_owned(), text)].into());
        assert_eq!(mark_of(&meta), Mark::Since(since));
    }
}
