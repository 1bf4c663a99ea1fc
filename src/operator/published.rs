//! Certificates as Secrets of the routes' namespaces, for whoever else needs them there: `ROUTE-tls`, of type
//! `kubernetes.io/tls`.
//!
//! They are copies: what the edge serves comes from its own documents, so that a Secret that is deleted or
//! damaged by hand harms nothing and is mended. One that somebody else made under that name is never written;
//! the route's status says so.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret as KubeSecret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use tidegate_acme::record::Issued;
use tidegate_model::{ObjectName, RouteId};
use tidegate_telemetry::chain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, FIELD_MANAGER};
use super::watch::World;
use crate::translate::PublishedSecret;

/// Label of Secrets that are ours.
pub(super) const MANAGED: &str = "edge.tidegate.dev/managed";
/// Annotation: the route whose certificate it is.
const ROUTE: &str = "edge.tidegate.dev/route";
const ISSUER: &str = "edge.tidegate.dev/issuer";
const NAMES: &str = "edge.tidegate.dev/alt-names";
const NOT_AFTER: &str = "edge.tidegate.dev/not-after";
/// Requests that are under way at one time.
const PARALLEL: usize = 8;
/// Time for one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// First pause after a failure; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// What is to be published: the certificate of each route.
pub type Publications = BTreeMap<RouteId, Arc<Issued>>;

/// How it stands, by route.
pub type PublishedSecrets = BTreeMap<RouteId, PublishedSecret>;

/// Keeps the Secrets. One runs while this replica leads.
pub struct Publisher {
    cluster: Cluster,
    world: Arc<World>,
    wanted: watch::Receiver<Arc<Publications>>,
    state: watch::Sender<Arc<PublishedSecrets>>,
    /// Versions that hold what is wanted, or that are not ours.
    looked_at: BTreeMap<RouteId, Looked>,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

struct Looked {
    issued: Arc<Issued>,
    version: String,
}

/// The Secret's name of a route's certificate. A mapping of an agent is named `AGENT:MAPPING`, and no object of
/// Kubernetes may have that colon.
fn secret_name(route: &RouteId) -> ObjectName {
    let name = format!("{}-tls", route.name).replace(':', ".");
    ObjectName::new(Arc::clone(&route.namespace), name)
}

/// The Secret and the route whose certificate it is, if it is one of ours.
pub(super) fn ours(meta: &ObjectMeta) -> Option<(ObjectName, ObjectName)> {
    meta.labels.as_ref()?.get(MANAGED)?;
    let route = meta.annotations.as_ref()?.get(ROUTE)?;
    let (namespace, name) = route.split_once('/')?;
    let secret = secret_name(&RouteId::new(namespace, name));
    let here = meta.namespace.as_deref() == Some(&*secret.namespace)
        && meta.name.as_deref() == Some(&*secret.name);
    here.then(|| (secret, ObjectName::new(namespace, name)))
}

/// What to do about a Secret that exists.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is as it should be.
    Good,
    /// It is ours and differs.
    Mend,
    /// Somebody else's.
    Foreign,
}

fn judge(found: &KubeSecret, wanted: &KubeSecret, route: &RouteId) -> Verdict {
    let value = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|map| map.get(key)).cloned()
    };
    let ours = value(&found.metadata.labels, MANAGED).is_some()
        && value(&found.metadata.annotations, ROUTE) == Some(route.to_string());
    if !ours {
        return Verdict::Foreign;
    }
    let same = found.data == wanted.data
        && [ISSUER, NAMES, NOT_AFTER].iter().all(|key| {
            value(&found.metadata.annotations, key) == value(&wanted.metadata.annotations, key)
        });
    if same { Verdict::Good } else { Verdict::Mend }
}

fn secret(route: &RouteId, issued: &Issued) -> KubeSecret {
    let name = secret_name(route);
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let since = issued
        .not_after
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let not_after = i64::try_from(since.as_secs())
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .map(|time| time.to_string())
        .unwrap_or_default();
    KubeSecret {
        metadata: ObjectMeta {
            name: Some(name.name.to_string()),
            namespace: Some(name.namespace.to_string()),
            labels: Some(
                [
                    (MANAGED.to_owned(), "true".to_owned()),
                    (
                        "app.kubernetes.io/managed-by".to_owned(),
                        FIELD_MANAGER.to_owned(),
                    ),
                ]
                .into(),
            ),
            annotations: Some(
                [
                    (ROUTE.to_owned(), route.to_string()),
                    (ISSUER.to_owned(), issued.issuer.clone().unwrap_or_default()),
                    (NAMES.to_owned(), issued.names.join(",")),
                    (NOT_AFTER.to_owned(), not_after),
                ]
                .into(),
            ),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(
            [
                ("tls.crt".to_owned(), bytes(&issued.chain_pem)),
                ("tls.key".to_owned(), bytes(issued.key_pem.expose())),
            ]
            .into(),
        ),
        ..KubeSecret::default()
    }
}

impl Publisher {
    /// Publishes what is wanted; says how it stands by `state`.
    pub fn new(
        cluster: Cluster,
        world: Arc<World>,
        wanted: watch::Receiver<Arc<Publications>>,
        state: watch::Sender<Arc<PublishedSecrets>>,
    ) -> Self {
        Self {
            cluster,
            world,
            wanted,
            state,
            looked_at: BTreeMap::new(),
        }
    }

    /// Runs until the token is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut changes = self.world.changes();
        let mut pause = FIRST_PAUSE;
        let _ = stop
            .run_until_cancelled(async {
                loop {
                    changes.mark_unchanged();
                    if self.round().await == 0 {
                        pause = FIRST_PAUSE;
                        tokio::select! {
                            another = self.wanted.changed() => if another.is_err() { return },
                            more = changes.changed() => if more.is_err() { return },
                        }
                    } else {
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                }
            })
            .await;
    }

    /// Looks at everything that may have changed. Returns how many could not be published.
    async fn round(&mut self) -> usize {
        let wanted = Arc::clone(&self.wanted.borrow_and_update());
        self.looked_at.retain(|route, _| wanted.contains_key(route));
        let mut due = Vec::new();
        for (route, issued) in wanted.iter() {
            let version = self.world.secret_version(&secret_name(route));
            let known = self.looked_at.get(route);
            let fresh = known.is_some_and(|known| {
                known.issued == *issued && version.as_deref() == Some(&known.version)
            });
            if !fresh {
                due.push((route.clone(), Arc::clone(issued), version.is_some()));
            }
        }
        let mut state = PublishedSecrets::clone(&self.state.borrow());
        state.retain(|route, _| wanted.contains_key(route));
        let mut failed = 0;
        let client = &self.cluster;
        let mut outcomes = futures_util::stream::iter(due)
            .map(|(route, issued, exists)| async move {
                let work = publish(client, &route, &issued, exists);
                let outcome = tokio::time::timeout(PATIENCE, work).await;
                (route, issued, outcome)
            })
            .buffer_unordered(PARALLEL);
        while let Some((route, issued, outcome)) = outcomes.next().await {
            let name = secret_name(&route);
            match outcome {
                Ok(Ok((version, verdict))) => {
                    let published = if verdict == Verdict::Foreign {
                        PublishedSecret::Foreign(name.to_string())
                    } else {
                        PublishedSecret::Here(name.name.to_string())
                    };
                    if state.get(&route) != Some(&published) && verdict == Verdict::Foreign {
                        tracing::warn!(%route, secret = %name, "the certificate is not published: somebody else made a Secret of that name");
                    }
                    if verdict == Verdict::Mend {
                        tracing::info!(%route, secret = %name, "published the certificate");
                    }
                    state.insert(route.clone(), published);
                    self.looked_at.insert(route, Looked { issued, version });
                }
                Ok(Err(error)) => {
                    failed += 1;
                    tracing::warn!(%route, secret = %name, error = %chain(&error), "cannot publish a certificate; it is served all the same");
                }
                Err(_) => {
                    failed += 1;
                    tracing::warn!(%route, secret = %name, "cannot publish a certificate: the API server did not answer in time; it is served all the same");
                }
            }
        }
        self.state.send_if_modified(|known| {
            let changed = **known != state;
            if changed {
                *known = Arc::new(state);
            }
            changed
        });
        failed
    }
}

async fn publish(
    cluster: &Cluster,
    route: &RouteId,
    issued: &Issued,
    exists: bool,
) -> kube::Result<(String, Verdict)> {
    let name = secret_name(route);
    let api = Api::<KubeSecret>::namespaced(cluster.client.clone(), &name.namespace);
    let wanted = secret(route, issued);
    let mut params = PatchParams::apply(FIELD_MANAGER);
    if exists && let Some(found) = api.get_opt(&name.name).await? {
        let verdict = judge(&found, &wanted, route);
        if verdict != Verdict::Mend {
            return Ok((found.metadata.resource_version.unwrap_or_default(), verdict));
        }
        // Ours: what somebody changed by hand is changed back.
        params = params.force();
    }
    let written = api
        .patch(&name.name, &params, &Patch::Apply(&wanted))
        .await?;
    let version = written.metadata.resource_version.unwrap_or_default();
    Ok((version, Verdict::Mend))
}

#[cfg(test)]
mod tests {
    use tidegate_model::Secret;

    use super::*;

    fn issued() -> Issued {
        Issued {
            chain_pem: "chain".to_owned(),
            key_pem: Secret::new("key".to_owned()),
            names: vec!["a.example".to_owned(), "b.example".to_owned()],
            issuer: Some("le".to_owned()),
            directory: None,
            profile: None,
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(86_400),
            ari_id: None,
            revoked: None,
            revoked_because: None,
        }
    }

    #[test]
    fn a_secret_of_somebody_else_is_never_written() {
        let route = RouteId::new("default", "blog");
        let wanted = secret(&route, &issued());
        let annotations = wanted.metadata.annotations.as_ref().unwrap();
        assert_eq!(annotations[NAMES], "a.example,b.example");
        assert_eq!(annotations[NOT_AFTER], "1970-01-02T00:00:00Z");
        assert_eq!(judge(&wanted, &wanted, &route), Verdict::Good);

        let named =
            ours(&wanted.metadata).map(|(secret, route)| (secret.to_string(), route.to_string()));
        let expected = ("default/blog-tls".to_owned(), "default/blog".to_owned());
        assert_eq!(named, Some(expected));
        let mapping = secret(&RouteId::new("default", "homelab:nas"), &issued());
        assert_eq!(mapping.metadata.name.as_deref(), Some("homelab.nas-tls"));
        let whose = ours(&mapping.metadata).map(|(_, route)| route.to_string());
        assert_eq!(whose.as_deref(), Some("default/homelab:nas"));
        let mut copied = wanted.metadata.clone();
        copied.namespace = Some("other".to_owned());
        assert_eq!(ours(&copied), None, "somebody's copy of it");

        let mut garbage = wanted.clone();
        garbage.data = Some([("tls.crt".to_owned(), ByteString(b"x".to_vec()))].into());
        assert_eq!(judge(&garbage, &wanted, &route), Verdict::Mend);

        let mut foreign = garbage.clone();
        foreign.metadata.labels = None;
        assert_eq!(judge(&foreign, &wanted, &route), Verdict::Foreign);
        let another = RouteId::new("default", "shop");
        assert_eq!(judge(&wanted, &wanted, &another), Verdict::Foreign);
    }
}
