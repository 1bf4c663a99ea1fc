//! Services of UDP trackers as objects: made, mended and deleted by whoever leads.
//!
//! Applied under our field manager, owned by their TlsRoute, so that they go with it. One that somebody else made is
//! never touched; the route's status says so. What a person changes in ours is changed back, and told in an Event of
//! the route. What should be there is decided by `translate`; how it stands is what the watch of Services shows.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Api, Resource as _};
use serde_json::{Value as Json, json};
use tidegate_model::{ObjectName, RuleId};
use tidegate_telemetry::chain;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, FIELD_MANAGER};
use super::events;
use super::lease::Tenure;
use super::objects::reference;
use super::published::MANAGED;
use super::watch::World;
use crate::api::conditions::Reason;
use crate::api::{GROUP, TlsRoute, VERSION};
use crate::translate::{FoundService, Refusals, Translation, UnwantedService, WantedService};

/// Annotation: the route, as `NAMESPACE/NAME`.
const ROUTE: &str = "edge.tidegate.dev/route";
/// Annotation: its rule.
const RULE: &str = "edge.tidegate.dev/rule";
/// Annotation by which `MetalLB` is asked for more than one address.
const METALLB: &str = "metallb.io/loadBalancerIPs";
/// How long a client stays with its pod: connection ids live two minutes (BEP 15), and trackers' peers come again
/// sooner than this.
const STICKY_SECONDS: u32 = 600;
/// Requests that are under way at one time.
const PARALLEL: usize = 4;
/// Time for one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// First pause after a failure; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// How late the watch is believed to be. What still differs then is written again.
const LATE: Duration = Duration::from_secs(30);

/// What should be there, and what should not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Wanted {
    services: Vec<WantedService>,
    unwanted: Vec<UnwantedService>,
}

/// What translations want, and what the keeper cannot do.
#[derive(Debug, Default)]
pub struct TrackerServices {
    wanted: watch::Sender<Arc<Wanted>>,
    refused: watch::Sender<Arc<Refusals>>,
}

impl TrackerServices {
    /// Notes what a translation wants.
    pub fn want(&self, translation: &Translation) {
        let wanted = Wanted {
            services: translation.udp_services.clone(),
            unwanted: translation.unwanted_services.clone(),
        };
        self.wanted.send_if_modified(|known| {
            let changed = **known != wanted;
            if changed {
                *known = Arc::new(wanted);
            }
            changed
        });
    }

    /// What cannot be written, and why.
    pub fn refused(&self) -> watch::Receiver<Arc<Refusals>> {
        self.refused.subscribe()
    }

    /// Who writes. One runs while this replica leads.
    pub fn keeper(&self, cluster: &Cluster, world: &Arc<World>, tenure: Tenure) -> Keeper {
        Keeper {
            cluster: cluster.clone(),
            world: Arc::clone(world),
            wanted: self.wanted.subscribe(),
            refused: self.refused.clone(),
            tenure,
            written: BTreeMap::new(),
        }
    }
}

/// Keeps the Services.
pub struct Keeper {
    cluster: Cluster,
    world: Arc<World>,
    wanted: watch::Receiver<Arc<Wanted>>,
    refused: watch::Sender<Arc<Refusals>>,
    tenure: Tenure,
    written: BTreeMap<ObjectName, Written>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

/// What was written, and what was seen when it was.
struct Written {
    wanted: WantedService,
    seen: Option<Arc<FoundService>>,
    at: Instant,
}

/// What to do about a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Nothing,
    Make,
    Mend,
}

/// What there is under the name of a Service that is wanted.
#[derive(Debug, Clone, Copy)]
enum There<'a> {
    Nothing,
    /// A Service that is nothing to UDP trackers.
    Unfit,
    Service(&'a FoundService),
}

/// What to do about a Service that is wanted, owned by the route of that uid.
fn step(wanted: &WantedService, there: There<'_>, owner: &str) -> Step {
    match there {
        There::Nothing => Step::Make,
        There::Unfit => Step::Nothing,
        // Somebody else's.
        There::Service(found) if found.made_for.as_ref() != Some(&wanted.id) => Step::Nothing,
        There::Service(found)
            if wanted.is(&found.spec) && found.owner.as_deref() == Some(owner) =>
        {
            Step::Nothing
        }
        There::Service(_) => Step::Mend,
    }
}

/// The rule that a Service was made for, if it is one of ours.
pub(super) fn made_for(service: &Service) -> Option<RuleId> {
    let meta = &service.metadata;
    meta.labels.as_ref()?.get(MANAGED)?;
    let annotations = meta.annotations.as_ref()?;
    let (namespace, name) = annotations.get(ROUTE)?.split_once('/')?;
    Some(RuleId {
        route: tidegate_model::RouteId::new(namespace, name),
        rule: annotations.get(RULE)?.clone(),
    })
}

fn object(wanted: &WantedService, owner: &str) -> Json {
    let WantedService { name, id, spec, .. } = wanted;
    let mut annotations = json!({ROUTE: id.route.to_string(), RULE: id.rule});
    if !wanted.addresses.is_empty() {
        let all: Vec<String> = wanted.addresses.iter().map(ToString::to_string).collect();
        annotations[METALLB] = all.join(",").into();
    }
    let ports = spec.ports.iter().map(
        |port| json!({"name": "udp", "protocol": "UDP", "port": port.port, "targetPort": port.target()}),
    );
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": &*name.name,
            "namespace": &*name.namespace,
            "labels": {MANAGED: "true", "app.kubernetes.io/managed-by": FIELD_MANAGER},
            "annotations": annotations,
            "ownerReferences": [{
                "apiVersion": format!("{GROUP}/{VERSION}"),
                "kind": "TlsRoute",
                "name": &*id.route.name,
                "uid": owner,
                "controller": true,
            }],
        },
        "spec": {
            "type": spec.type_,
            "externalTrafficPolicy": "Local",
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": STICKY_SECONDS}},
            "selector": spec.selector,
            "ports": ports.collect::<Vec<_>>(),
        },
    });
    if let Some(policy) = &spec.family_policy {
        object["spec"]["ipFamilyPolicy"] = json!(policy);
        object["spec"]["ipFamilies"] = json!(spec.families);
    }
    if let Some(address) = &spec.load_balancer_ip {
        object["spec"]["loadBalancerIP"] = json!(address);
    }
    object
}

impl Keeper {
    /// Runs until the token is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        stop.run_until_cancelled(Box::pin(self.work())).await;
    }

    async fn work(&mut self) {
        let mut changes = self.world.changes();
        let mut pause = FIRST_PAUSE;
        loop {
            changes.mark_unchanged();
            if self.round().await > 0 {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
            pause = FIRST_PAUSE;
            let waiting = !self.written.is_empty();
            tokio::select! {
                another = self.wanted.changed() => if another.is_err() { return },
                more = changes.changed() => if more.is_err() { return },
                () = sleep(LATE), if waiting => {}
            }
        }
    }

    /// Looks at everything. Returns how many could not be written.
    async fn round(&mut self) -> usize {
        // Whoever leads by now may want something else.
        if !self.tenure.holds() {
            return 1;
        }
        let wanted = Arc::clone(&self.wanted.borrow_and_update());
        let now = Instant::now();
        self.written.retain(|name, written| {
            let still = wanted.services.iter().any(|it| it.name == *name);
            still && now < written.at + LATE
        });
        let mut due = Vec::new();
        for service in &wanted.services {
            let shape = self.world.services.get(&service.name);
            let seen = shape.as_ref().and_then(|it| it.udp.clone());
            let owner = self.world.routes.get(&service.id.route);
            let owner = owner.and_then(|it| it.good.as_ref()?.meta().uid.clone());
            // Gone since.
            let Some(owner) = owner else { continue };
            let there = match (&shape, &seen) {
                (None, _) => There::Nothing,
                (Some(_), None) => There::Unfit,
                (Some(_), Some(found)) => There::Service(found),
            };
            let step = step(service, there, &owner);
            let waits = self
                .written
                .get(&service.name)
                .is_some_and(|it| it.wanted == *service && it.seen == seen);
            if step != Step::Nothing && !waits {
                due.push((service.clone(), seen, step, owner));
            }
        }
        let mut refused = Refusals::clone(&self.refused.borrow());
        // What is not written any more is not refused either.
        refused.retain(|name, _| due.iter().any(|(service, ..)| service.name == *name));
        let mut failed = 0;
        let cluster = &self.cluster;
        let mut outcomes = futures_util::stream::iter(due)
            .map(|(service, seen, step, owner)| async move {
                let outcome = timeout(PATIENCE, apply(cluster, &service, step, &owner)).await;
                (service, seen, step, owner, outcome)
            })
            .buffer_unordered(PARALLEL);
        let mut mended = Vec::new();
        while let Some((service, seen, step, owner, outcome)) = outcomes.next().await {
            let name = service.name.clone();
            match outcome {
                Ok(Ok(())) => {
                    tracing::info!(route = %service.id.route, rule = service.id.rule, service = %name, mended = step == Step::Mend, "wrote the Service of a UDP tracker");
                    refused.remove(&name);
                    if let (Step::Mend, Some(seen)) = (step, &seen)
                        && !service.is(&seen.spec)
                    {
                        mended.push((service.clone(), Arc::clone(seen), owner));
                    }
                    let written = Written {
                        wanted: service,
                        seen,
                        at: Instant::now(),
                    };
                    self.written.insert(name, written);
                }
                Ok(Err(error)) => {
                    failed += 1;
                    let said = match &error {
                        kube::Error::Api(status) => status.message.clone(),
                        _ => chain(&error).to_string(),
                    };
                    if refused.get(&name) != Some(&said) {
                        tracing::warn!(route = %service.id.route, service = %name, error = said, "cannot write the Service of a UDP tracker; trying again");
                    }
                    refused.insert(name, said);
                }
                Err(_) => {
                    failed += 1;
                    tracing::warn!(service = %name, after = ?PATIENCE, "cannot write the Service of a UDP tracker in time; trying again");
                }
            }
        }
        drop(outcomes);
        for service in &wanted.unwanted {
            failed += usize::from(!self.delete(service).await);
        }
        for (service, seen, owner) in mended {
            self.tell(&service, &seen, owner).await;
        }
        self.refused.send_if_modified(|known| {
            let changed = **known != refused;
            if changed {
                *known = Arc::new(refused);
            }
            changed
        });
        failed
    }

    /// Deletes what was made for a rule that is gone. Returns whether it is done.
    async fn delete(&self, service: &UnwantedService) -> bool {
        let name = &service.name;
        // It may have been deleted since.
        let shape = self.world.services.get(name);
        let same = shape
            .and_then(|it| it.udp.clone())
            .is_some_and(|it| it.uid == service.uid);
        if !same {
            return true;
        }
        let api = Api::<Service>::namespaced(self.cluster.client.clone(), &name.namespace);
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(service.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match timeout(PATIENCE, api.delete(&name.name, &params)).await {
            Ok(Ok(_)) => {
                tracing::info!(service = %name, "deleted the Service of a UDP tracker that no rule has any more");
                true
            }
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => true,
            Ok(Err(error)) => {
                tracing::warn!(service = %name, error = %chain(&error), "cannot delete the Service of a UDP tracker; trying again");
                false
            }
            Err(_) => false,
        }
    }

    /// Tells the route what somebody had done to its Service.
    async fn tell(&self, service: &WantedService, seen: &FoundService, uid: String) {
        let reporter = events::reporter(&self.cluster);
        let recorder = Recorder::new(self.cluster.client.clone(), reporter);
        let name = &service.name;
        let (reason, what) = if seen.spec.local {
            (Reason::ServiceLocal, "was not as it should be")
        } else {
            (
                Reason::SourceAddressReplaced,
                "had externalTrafficPolicy Cluster, by which the tracker sees addresses of nodes",
            )
        };
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_string(),
            note: Some(format!("Service {name} {what}; it was set back")),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        let route = reference::<TlsRoute>(&service.id.route);
        events::tell(&recorder, &route, Some(uid), &event).await;
    }
}

async fn apply(
    cluster: &Cluster,
    service: &WantedService,
    step: Step,
    owner: &str,
) -> kube::Result<()> {
    let name = &service.name;
    let api = Api::<Service>::namespaced(cluster.client.clone(), &name.namespace);
    let mut params = PatchParams::apply(FIELD_MANAGER);
    if step == Step::Mend {
        // Ours: what somebody changed by hand is changed back. One that was made by somebody else a moment ago
        // conflicts, and stays as it is.
        params = params.force();
    }
    let object = Patch::Apply(object(service, owner));
    api.patch(&name.name, &params, &object).await.map(drop)
}

#[cfg(test)]
mod tests {
    use tidegate_model::RouteId;

    use super::*;
    use crate::operator::services::service_shape;
    use crate::translate::{ServiceSpec, UdpServicePort};

    fn wanted() -> WantedService {
        WantedService {
            name: ObjectName::new("default", "torrust-udp1"),
            id: RuleId {
                route: RouteId::new("default", "torrust"),
                rule: "udp1".to_owned(),
            },
            spec: ServiceSpec {
                type_: "LoadBalancer".to_owned(),
                local: true,
                sticky: true,
                selector: [("app".to_owned(), "tracker".to_owned())].into(),
                ports: vec![UdpServicePort {
                    port: 6969,
                    target: "udp".to_owned(),
                    node_port: None,
                }],
                families: vec!["IPv4".to_owned()],
                family_policy: Some("SingleStack".to_owned()),
                load_balancer_ip: Some("203.0.113.7".to_owned()),
            },
            addresses: vec!["203.0.113.7".parse().unwrap()],
        }
    }

    /// As the API server shows what was applied.
    fn shown(object: &Json) -> Option<Arc<FoundService>> {
        let mut object = object.clone();
        object["metadata"]["uid"] = json!("of the Service");
        object["spec"]["ports"][0]["nodePort"] = json!(30969);
        service_shape(&serde_json::from_value(object).unwrap()).udp
    }

    #[test]
    fn what_is_applied_is_found_again_and_only_ours_is_ever_written() {
        let wanted = wanted();
        let object = object(&wanted, "uid");
        let found = shown(&object).unwrap();
        assert_eq!(found.spec.ports[0].node_port, Some(30969));
        let step = |found: &FoundService| step(&wanted, There::Service(found), "uid");
        assert_eq!(step(&found), Step::Nothing);
        assert_eq!(super::step(&wanted, There::Nothing, "uid"), Step::Make);
        assert_eq!(super::step(&wanted, There::Unfit, "uid"), Step::Nothing);
        assert_eq!(
            super::step(&wanted, There::Service(&found), "another"),
            Step::Mend,
            "the route was made again"
        );
        for (pointer, value) in [
            ("/spec/externalTrafficPolicy", json!("Cluster")),
            ("/spec/type", json!("NodePort")),
            ("/spec/selector/app", json!("other")),
            ("/spec/ports/0/port", json!(6970)),
            ("/spec/ports/0/targetPort", json!(6970)),
            ("/spec/sessionAffinity", json!("None")),
            ("/spec/loadBalancerIP", json!("203.0.113.8")),
        ] {
            let mut drifted = object.clone();
            *drifted.pointer_mut(pointer).unwrap() = value;
            assert_eq!(step(&shown(&drifted).unwrap()), Step::Mend, "{pointer}");
            // The same in somebody else's.
            drifted["metadata"]["labels"] = json!({});
            assert_eq!(step(&shown(&drifted).unwrap()), Step::Nothing, "{pointer}");
        }
    }
}
