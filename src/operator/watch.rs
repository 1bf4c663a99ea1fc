//! Follows the API server: one watch per kind and namespace, each for ever.
//!
//! Lists are read page by page, watches go on where they ended, and what cannot be reached is tried again with
//! growing pauses. Whoever reads the [`World`] sees what was last known.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret as KubeSecret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tidegate_acme::store::Kind as DocumentKind;
use tidegate_model::ObjectName;
use tidegate_telemetry::{chain, spawn_named};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::addresses::{self, Endpoint};
use super::cache::{Cache, Feed};
use super::cluster::Cluster;
use super::documents::{self, Document};
use super::named::Named;
use super::objects::{Guarded, Ours, Seen, guarded, name_of};
use super::pauses::Pauses;
use super::services::{
    FoundReplica, ServiceShape, SliceShape, by_service, join, other_replicas, service_shape,
    slice_shape,
};
use crate::api::{AcmeIssuer, TlsRoute, TunnelAgent};
use crate::translate::{ExposedService, Inputs, Reference, ServiceData, mapping_routes};

/// The API server's own Service. Its slice has the same name.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// What is known of the cluster, kept up to date for as long as the tasks run.
#[derive(Debug)]
pub struct World {
    pub(super) routes: Cache<Guarded<TlsRoute>>,
    pub(super) agents: Cache<Guarded<TunnelAgent>>,
    pub(super) issuers: Cache<Guarded<AcmeIssuer>>,
    pub(super) services: Cache<ServiceShape>,
    pub(super) slices: Cache<SliceShape>,
    /// The Service of this edge, if `services` does not have it.
    own_service: Cache<ServiceShape>,
    /// Where the API server really is, if `slices` does not have it.
    pub(super) api_servers: Cache<SliceShape>,
    pub(super) documents: Cache<Document>,
    pub(super) named: Named,
    changes: watch::Sender<u64>,
    shown: watch::Sender<u64>,
    trouble: AtomicU32,
    /// Namespace of this program.
    pub(super) namespace: String,
    /// Addresses of the API server, as far as they were known at the start.
    api_server: Vec<SocketAddr>,
}

impl World {
    /// Begins to watch; `service` is that of this edge. Ends with the token.
    pub fn watch(
        cluster: &Cluster,
        service: Option<&str>,
        stop: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Arc<Self> {
        let scopes = Scopes::of(&cluster.watched);
        let also_own = scopes.with(&cluster.namespace);
        let elsewhere = !also_own.covers(API_SERVER.0);
        let own_service = service.filter(|_| !scopes.covers(&cluster.namespace));
        let world = Arc::new(Self {
            routes: Cache::new(scopes.0.len()),
            agents: Cache::new(scopes.0.len()),
            issuers: Cache::new(1),
            services: Cache::new(scopes.0.len()),
            slices: Cache::new(also_own.0.len()),
            own_service: Cache::optional(usize::from(own_service.is_some())),
            api_servers: Cache::optional(usize::from(elsewhere)),
            documents: Cache::new(1),
            named: Named::new(cluster.client.clone(), also_own.0.len(), scopes.0.len()),
            changes: watch::Sender::new(0),
            shown: watch::Sender::new(0),
            trouble: AtomicU32::new(0),
            namespace: cluster.namespace.clone(),
            api_server: cluster.api_server.clone(),
        });
        let watches = Watches {
            cluster,
            world: &world,
            stop,
            tasks,
        };
        watches.ours(&scopes, |world| &world.routes);
        watches.ours(&scopes, |world| &world.agents);
        watches.issuers();
        watches.each::<Service, _>(
            &scopes,
            |world| &world.services,
            |service, _| Some(service_shape(&service)),
        );
        watches.each::<EndpointSlice, _>(
            &also_own,
            |world| &world.slices,
            |slice, _| slice_shape(&slice),
        );
        watches.each::<PartialObjectMeta<KubeSecret>, _>(
            &also_own,
            |world| &world.named.secret_versions,
            |secret, _| secret.metadata.resource_version.clone(),
        );
        watches.each::<PartialObjectMeta<ConfigMap>, _>(
            &scopes,
            |world| &world.named.map_versions,
            |map, _| map.metadata.resource_version.clone(),
        );
        watches.documents();
        watches.own_service(own_service.unwrap_or_default());
        watches.api_servers();
        world
    }

    /// Counts what changed; also tells when the first lists are complete. The statuses of our own kinds are no
    /// change: nothing that is served follows from them.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The same with those statuses.
    pub(super) fn shown(&self) -> watch::Receiver<u64> {
        self.shown.subscribe()
    }

    /// Whether every list was read once.
    pub fn is_complete(&self) -> bool {
        self.routes.is_complete()
            && self.agents.is_complete()
            && self.issuers.is_complete()
            && self.services.is_complete()
            && self.slices.is_complete()
            && self.own_service.is_complete()
            && self.api_servers.is_complete()
            && self.documents.is_complete()
            && self.named.is_complete()
    }

    /// Watches that cannot reach the API server at this moment.
    pub fn trouble(&self) -> u32 {
        self.trouble.load(Ordering::Relaxed)
    }

    /// Number of objects by kind.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        [
            ("TlsRoute", self.routes.len()),
            ("TunnelAgent", self.agents.len()),
            ("AcmeIssuer", self.issuers.len()),
        ]
        .into()
    }

    /// Fills in the objects, and what was fetched of what they name.
    pub(super) fn fill(&self, inputs: &mut Inputs) {
        let good = |guarded: Vec<(ObjectName, Arc<Guarded<TlsRoute>>)>| {
            guarded.into_iter().filter_map(|(_, it)| it.good.clone())
        };
        inputs.routes = good(self.routes.all()).collect();
        inputs.agents = (self.agents.all().into_iter())
            .filter_map(|(_, it)| it.good.clone())
            .collect();
        inputs.issuers = (self.issuers.all().into_iter())
            .filter_map(|(_, it)| it.good.clone())
            .collect();
        inputs.services = self.services();
        let known = self.api_server.iter().copied().chain(self.kubernetes());
        inputs.environment.reach = Arc::new(inputs.environment.reach.with_api_server(known));
        self.named.fill(inputs);
    }

    /// A Service as it is reached from outside, if there is one of that name where we look.
    pub fn exposed(&self, service: &ObjectName) -> Option<ExposedService> {
        let shape = self.services.get(service);
        let shape = shape.or_else(|| self.own_service.get(service))?;
        Some(ExposedService {
            name: service.to_string(),
            type_: shape.type_.clone(),
            local: shape.local,
            addresses: shape.outside.clone(),
            names: shape.outside_names.clone(),
        })
    }

    /// Where the API server really is, by the endpoints of its own Service.
    fn kubernetes(&self) -> impl Iterator<Item = SocketAddr> {
        let slices = self.slices.all().into_iter().chain(self.api_servers.all());
        let own = slices.filter(|(name, slice)| (&*name.namespace, &*slice.service) == API_SERVER);
        own.flat_map(|(_, slice)| {
            let ports: Vec<u16> = slice.ports.values().copied().collect();
            let all = slice.all.clone();
            all.into_iter().flat_map(move |ip| {
                ports
                    .clone()
                    .into_iter()
                    .map(move |port| SocketAddr::new(ip, port))
            })
        })
    }

    fn services(&self) -> BTreeMap<ObjectName, Arc<ServiceData>> {
        let slices = self.slices.all();
        let of = by_service(slices.iter().map(|(name, slice)| (name, &**slice)));
        self.services
            .all()
            .into_iter()
            .map(|(name, service)| {
                let slices = of.get(&name).map(Vec::as_slice).unwrap_or_default();
                let data = join(&service, &slices.iter().copied());
                (name, Arc::new(data))
            })
            .collect()
    }

    /// Where the named port of a Service is answered, by endpoints that are ready or not, but not ending.
    pub(super) fn endpoints(&self, service: &ObjectName, port: &str) -> Vec<Endpoint> {
        let slices = self.slices.all();
        let of = by_service(slices.iter().map(|(name, slice)| (name, &**slice)));
        addresses::of_port(of.get(service).map(Vec::as_slice).unwrap_or_default(), port)
    }

    /// The other replicas behind this Service, as its port `replicas` leads to them; those too that start or end. Addresses
    /// of the families that this replica has, which `own` are of, come first.
    pub fn other_replicas(
        &self,
        service: &ObjectName,
        own_name: &str,
        own: &[IpAddr],
    ) -> Vec<FoundReplica> {
        let slices = self.slices.all();
        let of = by_service(slices.iter().map(|(name, slice)| (name, &**slice)));
        let slices = of.get(service).map(Vec::as_slice).unwrap_or_default();
        other_replicas(slices, own_name, own.first().is_some_and(IpAddr::is_ipv6))
    }

    /// Addresses of the replicas behind this Service.
    pub fn replicas(&self, service: &ObjectName) -> BTreeSet<IpAddr> {
        let endpoints = self.endpoints(service, "https");
        endpoints.into_iter().map(|it| it.ip).collect()
    }

    /// How many of them there are, of which several may have the same address.
    pub fn replica_count(&self, service: &ObjectName) -> usize {
        self.endpoints(service, "https").len()
    }

    /// What of these is known to exist and not fetched in its current version.
    pub fn stale<'a>(&self, references: impl IntoIterator<Item = &'a Reference>) -> Vec<Reference> {
        self.named.stale(references)
    }

    /// Fetches these, and forgets what is not among `wanted`.
    pub async fn fetch(&self, stale: Vec<Reference>) {
        self.named.fetch(stale).await;
    }

    /// The version of a Secret that exists.
    pub(super) fn secret_version(&self, name: &ObjectName) -> Option<Arc<String>> {
        self.named.secret_versions.get(name)
    }

    /// The documents of a kind, by the name they have within it.
    pub fn documents(&self, kind: DocumentKind) -> Vec<Arc<Document>> {
        let all = self.documents.all().into_iter().map(|(_, it)| it);
        all.filter(|document| document.is(kind)).collect()
    }

    /// Every route, of whatever class, understood or not, and the mappings of agents that stand for one.
    pub(super) fn route_names(&self) -> BTreeSet<ObjectName> {
        let routes = self.routes.all().into_iter().map(|(name, _)| name);
        let agents = self.agents.all().into_iter();
        let mappings = agents.flat_map(|(name, agent)| match &agent.good {
            Some(agent) => mapping_routes(&name, agent),
            None => Vec::new(),
        });
        routes.chain(mappings).collect()
    }

    /// The documents of a kind that the engine does not know.
    pub(super) fn documents_of(&self, kind: &str) -> Vec<Arc<Document>> {
        let all = self.documents.all().into_iter().map(|(_, it)| it);
        all.filter(|document| document.kind == kind).collect()
    }

    /// The document of that Secret's name.
    pub fn document(&self, namespace: &str, name: &str) -> Option<Arc<Document>> {
        self.documents.get(&ObjectName::new(namespace, name))
    }

    /// Tells that something changed.
    pub(super) fn changed(&self) {
        self.tell(true);
    }

    fn tell(&self, matters: bool) {
        let count = |count: &mut u64| *count = count.wrapping_add(1);
        if matters {
            self.changes.send_modify(count);
        }
        self.shown.send_modify(count);
    }
}

/// Namespaces to watch; None is all of them.
#[derive(Debug, Clone)]
struct Scopes(Vec<Option<String>>);

impl Scopes {
    fn of(watched: &[String]) -> Self {
        if watched.is_empty() {
            return Self(vec![None]);
        }
        let mut all: Vec<_> = watched.iter().cloned().map(Some).collect();
        all.sort();
        all.dedup();
        Self(all)
    }

    fn covers(&self, namespace: &str) -> bool {
        let mut all = self.0.iter();
        all.any(|scope| scope.as_deref().is_none_or(|it| it == namespace))
    }

    fn with(&self, namespace: &str) -> Self {
        let mut all = self.0.clone();
        if !self.covers(namespace) {
            all.push(Some(namespace.to_owned()));
        }
        Self(all)
    }
}

struct Watches<'a> {
    cluster: &'a Cluster,
    world: &'a Arc<World>,
    stop: &'a CancellationToken,
    tasks: &'a TaskTracker,
}

impl Watches<'_> {
    /// Watches one of our own namespaced kinds.
    fn ours<K>(&self, scopes: &Scopes, cache: fn(&World) -> &Cache<Guarded<K>>)
    where
        K: Ours + Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        self.each_but(
            scopes,
            cache,
            |object: Seen<K>, before| Some(guarded(object, before)),
            Guarded::is_alike,
        );
    }

    fn issuers(&self) {
        self.one(
            &Api::<Seen<AcmeIssuer>>::all(self.cluster.client.clone()),
            &watcher::Config::default(),
            |world| &world.issuers,
            |object, before| Some(guarded(object, before)),
            Guarded::is_alike,
        );
    }

    fn documents(&self) {
        let client = self.cluster.client.clone();
        self.one(
            &Api::<KubeSecret>::namespaced(client, &self.cluster.namespace),
            &watcher::Config::default().labels(documents::LABEL),
            |world| &world.documents,
            |secret, _| Document::of(&secret),
            PartialEq::eq,
        );
    }

    /// Watches one Service where we otherwise do not look.
    fn own_service(&self, name: &str) {
        let client = self.cluster.client.clone();
        self.one(
            &Api::<Service>::namespaced(client, &self.cluster.namespace),
            &watcher::Config::default().fields(&format!("metadata.name={name}")),
            |world| &world.own_service,
            |service, _| Some(service_shape(&service)),
            PartialEq::eq,
        );
    }

    /// Watches one slice where we otherwise do not look.
    fn api_servers(&self) {
        let (namespace, name) = API_SERVER;
        self.one(
            &Api::<EndpointSlice>::namespaced(self.cluster.client.clone(), namespace),
            &watcher::Config::default().fields(&format!("metadata.name={name}")),
            |world| &world.api_servers,
            |slice, _| slice_shape(&slice),
            PartialEq::eq,
        );
    }

    /// Watches in one place, if the cache expects a feed.
    fn one<K, T>(
        &self,
        api: &Api<K>,
        config: &watcher::Config,
        cache: fn(&World) -> &Cache<T>,
        convert: fn(K, Option<&T>) -> Option<T>,
        is_alike: fn(&T, &T) -> bool,
    ) where
        K: Watched,
        T: PartialEq + Send + Sync + 'static,
    {
        for feed in cache(self.world).feeds() {
            let (api, config) = (api.clone(), config.clone());
            self.spawn(api, config, feed, cache, convert, is_alike);
        }
    }

    /// Watches a namespaced kind wherever we look.
    fn each<K, T>(
        &self,
        scopes: &Scopes,
        cache: fn(&World) -> &Cache<T>,
        convert: fn(K, Option<&T>) -> Option<T>,
    ) where
        K: Watched + Resource<Scope = kube::core::NamespaceResourceScope>,
        T: PartialEq + Send + Sync + 'static,
    {
        self.each_but(scopes, cache, convert, PartialEq::eq);
    }

    /// The same of a kind whose objects may differ without a change.
    fn each_but<K, T>(
        &self,
        scopes: &Scopes,
        cache: fn(&World) -> &Cache<T>,
        convert: fn(K, Option<&T>) -> Option<T>,
        is_alike: fn(&T, &T) -> bool,
    ) where
        K: Watched + Resource<Scope = kube::core::NamespaceResourceScope>,
        T: PartialEq + Send + Sync + 'static,
    {
        for (scope, feed) in scopes.0.iter().zip(cache(self.world).feeds()) {
            let client = self.cluster.client.clone();
            let api = match scope {
                Some(namespace) => Api::<K>::namespaced(client, namespace),
                None => Api::<K>::all(client),
            };
            let config = watcher::Config::default();
            self.spawn(api, config, feed, cache, convert, is_alike);
        }
    }

    fn spawn<K, T>(
        &self,
        api: Api<K>,
        config: watcher::Config,
        feed: Feed,
        cache: fn(&World) -> &Cache<T>,
        convert: fn(K, Option<&T>) -> Option<T>,
        is_alike: fn(&T, &T) -> bool,
    ) where
        K: Watched,
        T: PartialEq + Send + Sync + 'static,
    {
        let task = follow(
            api,
            config.any_semantic(),
            Arc::clone(self.world),
            feed,
            cache,
            convert,
            is_alike,
        );
        let stop = self.stop.clone();
        let task = async move {
            stop.run_until_cancelled(task).await;
        };
        spawn_named("watch", self.tasks.track_future(task));
    }
}

/// What can be watched.
trait Watched:
    Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static
{
}

async fn follow<K, T>(
    api: Api<K>,
    config: watcher::Config,
    world: Arc<World>,
    feed: Feed,
    cache: fn(&World) -> &Cache<T>,
    convert: fn(K, Option<&T>) -> Option<T>,
    is_alike: fn(&T, &T) -> bool,
) where
    K: Watched,
    T: PartialEq + Send + Sync,
{
    let kind = K::kind(&()).into_owned();
    let cache = cache(&world);
    let mut failing_since: Option<SystemTime> = None;
    let mut events = std::pin::pin!(watcher(api, config).backoff(Pauses::default()));
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                if failing_since.is_none() {
                    world.trouble.fetch_add(1, Ordering::Relaxed);
                    failing_since = Some(SystemTime::now());
                    tracing::warn!(kind, error = %chain(&error), hint = hint(&error), "cannot watch; what is known stays in use");
                } else {
                    tracing::debug!(kind, error = %chain(&error), "still cannot watch");
                }
                // Roles that somebody wrote for an earlier version lack this one.
                if is_refused(&error) && cache.refused(feed) {
                    world.changed();
                }
                continue;
            }
        };
        // The beginning of a list is told before the API server has answered.
        if !matches!(event, watcher::Event::Init)
            && let Some(since) = failing_since.take()
        {
            world.trouble.fetch_sub(1, Ordering::Relaxed);
            let after = since.elapsed().unwrap_or_default();
            tracing::info!(kind, ?after, "watching again");
        }
        let mut matters = true;
        let shown = match event {
            watcher::Event::Init => {
                cache.begin(feed);
                false
            }
            watcher::Event::InitApply(object) => {
                let name = name_of(&object);
                let before = cache.get(&name);
                if let Some(object) = convert(object, before.as_deref()) {
                    cache.listed(feed, name, object);
                }
                false
            }
            watcher::Event::InitDone => cache.end(feed),
            watcher::Event::Apply(object) => {
                let name = name_of(&object);
                let before = cache.get(&name);
                match convert(object, before.as_deref()) {
                    Some(object) => {
                        matters = before.is_none_or(|before| !is_alike(&before, &object));
                        cache.apply(feed, name, object)
                    }
                    None => cache.delete(feed, &name),
                }
            }
            watcher::Event::Delete(object) => cache.delete(feed, &name_of(&object)),
        };
        if shown {
            world.tell(matters);
        }
    }
}

fn status_of(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

fn is_refused(error: &watcher::Error) -> bool {
    status_of(error) == Some(403)
}

/// What a person can do about a watch that is refused.
fn hint(error: &watcher::Error) -> Option<&'static str> {
    match status_of(error)? {
        404 => Some("install the definitions: `tidegate crds | kubectl apply --server-side -f -`"),
        403 => Some(
            "the service account lacks a permission; the chart's roles name all that are needed",
        ),
        401 => Some("the credentials were refused; see the kubeconfig or the service account"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_is_looked_at_too_and_none_twice() {
        assert_eq!(Scopes::of(&[]).with("tidegate").0, [None]);
        let two = Scopes::of(&["b".to_owned(), "a".to_owned(), "a".to_owned()]);
        assert_eq!(two.0, [Some("a".to_owned()), Some("b".to_owned())]);
        assert_eq!(two.with("a").0, two.0);
        assert_eq!(two.with("c").0.len(), 3);
    }
}
