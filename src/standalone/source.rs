//! The standalone source: folder and internal CA in, one translation out, again and again.
//!
//! ```text
//! folder ─► Loader ─► Inputs ─► translate ─► wanted certificates ─► InternalCa ─┐
//!                       ▲                                                       │
//!                       └──────────────── issued certificates ◄─────────────────┘
//! ```
//!
//! Publishes nothing and watches nothing: `app` calls [`Source::refresh`] when something may have changed and
//! does with the result what it must. Blocks on files.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_model::{
    AgentId, HostPattern, ObservedAgent, PortState, RequestedMapping, RouteId, RuleId,
    UdpRelayState,
};

use super::loader::{Loaded, Loader};
use crate::api::TlsRoute;
use crate::source::ca::CaError;
use crate::source::state::StateFolder;
use crate::source::tickets::KeptKeys;
use crate::source::wishes::Wishes;
use crate::source::yaml::kinds::{Identity, ObjectKind};
use crate::source::{
    Finding, InternalIssuer, Issuance, Parsed, Place, Refreshed, next_moment, wanted,
};
use crate::translate::{
    Environment, Kind, LastGood, PortPolicy, ProbeReport, SeenAgents, StaticFilesPolicy,
    Translation, translate,
};

/// Where the objects come from.
#[derive(Debug)]
enum Objects {
    Folder(Box<Loader>),
    /// Built by a command, without files.
    Given(Vec<Arc<TlsRoute>>),
}

/// Folder, state and internal CA of one edge.
#[derive(Debug)]
pub struct Source {
    objects: Objects,
    internal: Option<InternalIssuer>,
    ticket_keys: Option<KeptKeys>,
    issuance: Option<Issuance>,
    parsed: Parsed,
    environment: Environment,
    place: Place,
    udp_relays: Option<Arc<Vec<UdpRelayState>>>,
    ports: Option<Arc<Vec<PortState>>>,
    last_good: Arc<LastGood>,
    tracker_reports: Arc<BTreeMap<RuleId, ProbeReport>>,
    agents_seen: Option<Arc<SeenAgents>>,
    agent_requests: Arc<Wishes>,
}

impl Source {
    /// Objects from the files of a folder.
    pub fn folder(root: &Path, state: Option<PathBuf>) -> Self {
        let environment = Environment {
            static_files: StaticFilesPolicy::RelativeTo(root.to_owned()),
            ..Environment::default()
        };
        Self::new(
            Objects::Folder(Box::new(Loader::new(root, state))),
            environment,
        )
    }

    /// Objects that need no files.
    pub fn given(routes: Vec<TlsRoute>) -> Self {
        let routes = routes.into_iter().map(Arc::new).collect();
        Self::new(Objects::Given(routes), Environment::default())
    }

    fn new(objects: Objects, environment: Environment) -> Self {
        Self {
            objects,
            internal: None,
            ticket_keys: None,
            issuance: None,
            parsed: Parsed::default(),
            environment,
            place: Place::default(),
            udp_relays: None,
            ports: None,
            last_good: Arc::default(),
            tracker_reports: Arc::default(),
            agents_seen: None,
            agent_requests: Arc::default(),
        }
    }

    /// Issues certificates from the internal CA of this state folder from now on. Without it, wanted
    /// certificates stay unissued, which is right for `check` and `explain`.
    pub fn with_ca(
        mut self,
        state: Arc<StateFolder>,
        lifetime: Duration,
        default_names: Vec<HostPattern>,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        self.ticket_keys = Some(KeptKeys::new(Arc::clone(&state)));
        self.internal = Some(InternalIssuer::open(state, lifetime, default_names, now)?);
        Ok(self)
    }

    /// Certificates of AcmeIssuers come from this engine from now on. Without it, the internal CA stands in.
    #[must_use]
    pub fn with_acme(mut self, issuance: Issuance) -> Self {
        self.set_acme(issuance);
        self
    }

    /// The same for a source that is in use.
    pub fn set_acme(&mut self, issuance: Issuance) {
        self.issuance = Some(issuance);
    }

    /// What became of the relays of UDP trackers.
    pub fn set_udp_relays(&mut self, states: Arc<Vec<UdpRelayState>>) {
        self.udp_relays = Some(states);
    }

    /// What trackers have told of themselves.
    pub fn set_tracker_reports(&mut self, reports: Arc<BTreeMap<RuleId, ProbeReport>>) {
        self.tracker_reports = reports;
    }

    /// What the edge knows of agents, and what these ask for.
    pub fn set_agents(
        &mut self,
        seen: &[ObservedAgent],
        requests: Arc<BTreeMap<AgentId, Vec<RequestedMapping>>>,
    ) {
        let agents = seen.iter().map(|agent| (agent.id.clone(), agent.clone()));
        self.agents_seen = Some(Arc::new(SeenAgents {
            agents: agents.collect(),
            replicas: 1,
        }));
        self.agent_requests = requests;
    }

    /// What agents asked for before this process began.
    #[must_use]
    pub fn with_agent_requests(mut self, requests: &Wishes) -> Self {
        self.agent_requests = Arc::new(requests.clone());
        self
    }

    /// Asks these name servers for the zones of challenges, instead of this machine's.
    #[must_use]
    pub fn with_name_servers(mut self, servers: Vec<SocketAddr>) -> Self {
        self.environment.name_servers = servers;
        self
    }

    /// Says in the statuses when a tracker waits for a listener for plain HTTP that is not among these ports.
    #[must_use]
    pub fn with_plain_ports(mut self, ports: Vec<u16>) -> Self {
        self.environment.plain_ports = Some(ports);
        self
    }

    /// Ports that mappings of agents may have. Without this, as in a check, any.
    #[must_use]
    pub fn with_ports(mut self, policy: PortPolicy) -> Self {
        self.environment.ports = Some(Arc::new(policy));
        self
    }

    /// What became of the ports of mappings.
    pub fn set_ports(&mut self, states: Arc<Vec<PortState>>) {
        self.ports = Some(states);
    }

    /// Says in the statuses where clients reach this edge.
    #[must_use]
    pub fn with_place(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    /// Reads what changed, issues what is missing or due, translates everything.
    pub fn refresh(&mut self, now: SystemTime) -> Refreshed {
        let loaded = match &mut self.objects {
            Objects::Folder(loader) => loader.load(now),
            Objects::Given(_) => Loaded::default(),
        };
        let mut inputs = loaded.inputs();
        if let Objects::Given(routes) = &self.objects {
            inputs.routes.clone_from(routes);
        }
        inputs.environment = self.environment.clone();
        inputs.place = self.place.now();
        inputs.https_port = self.place.https_port();
        inputs.udp_relays.clone_from(&self.udp_relays);
        inputs.ports.clone_from(&self.ports);
        inputs.last_good = Arc::clone(&self.last_good);
        inputs.tracker_reports = Arc::clone(&self.tracker_reports);
        inputs.agents_seen.clone_from(&self.agents_seen);
        inputs.agent_requests = Arc::clone(&self.agent_requests);
        let mut rotation = None;
        if let Some(kept) = &mut self.ticket_keys {
            let (keys, next) = kept.at(now);
            inputs.ticket_keys = Some(keys);
            rotation = next;
        }
        let mut findings = Vec::new();
        let answers = match &mut self.issuance {
            Some(issuance) => issuance.fill(&mut inputs, &mut self.parsed),
            None => 0,
        };
        let mut translation = match &mut self.internal {
            Some(internal) => internal.translate(&mut inputs, now, &mut findings),
            None => translate(&inputs, now),
        };
        self.last_good = Arc::new(std::mem::take(&mut translation.last_good));
        findings.extend(self.findings(&loaded, &translation));
        findings.sort();
        findings.dedup();
        let renewals = self
            .internal
            .as_ref()
            .and_then(InternalIssuer::next_renewal);
        let renewals = renewals.into_iter().chain(rotation).min();
        let next = next_moment(&translation.snapshot, renewals, now);
        Refreshed {
            counts: match &self.objects {
                Objects::Folder(_) => loaded.counts(),
                Objects::Given(routes) => [(ObjectKind::TlsRoute.as_str(), routes.len())].into(),
            },
            empty: matches!(self.objects, Objects::Folder(_)) && loaded.is_empty(),
            files: loaded.files,
            kept: loaded.kept_counts(),
            wanted: wanted(&translation),
            answers,
            translation,
            findings,
            next,
        }
    }

    fn findings(&self, loaded: &Loaded, translation: &Translation) -> Vec<Finding> {
        let root = match &self.objects {
            Objects::Folder(folder) => Some(folder.root()),
            Objects::Given(_) => None,
        };
        let mut findings: Vec<Finding> = loaded
            .problems
            .iter()
            .map(|problem| Finding {
                file: Some(problem.file.clone()),
                line: problem.line,
                column: problem.column,
                document: problem.document,
                object: problem.object.as_ref().map(ToString::to_string),
                field: problem.field.clone(),
                severity: problem.severity(),
                reason: problem.reason.to_owned(),
                message: problem.message.clone(),
                hint: problem.hint.clone(),
                kept: problem.kept,
            })
            .collect();
        let mut places = root.map(|root| loaded.places(root));
        let served: BTreeSet<&RouteId> = translation
            .snapshot
            .hosts
            .values()
            .map(|host| &host.route)
            .collect();
        for problem in &translation.problems {
            let identity = Identity {
                kind: match problem.object.kind {
                    Kind::TlsRoute => ObjectKind::TlsRoute,
                    Kind::TunnelAgent => ObjectKind::TunnelAgent,
                    Kind::AcmeIssuer => ObjectKind::AcmeIssuer,
                },
                namespace: problem.object.namespace.clone().unwrap_or_default(),
                name: problem.object.name.clone(),
            };
            let place = places
                .as_mut()
                .and_then(|places| places.of(&identity, &problem.field));
            let route = identity.object_name();
            // Refused, and served all the same: as it was when it was right.
            let kept = identity.kind == ObjectKind::TlsRoute
                && served.contains(&route)
                && is_refused(translation, &route);
            let (file, document, line) = match place {
                Some(place) => (Some(place.file), place.document, place.line),
                None => (None, None, None),
            };
            findings.push(Finding {
                file,
                line,
                column: None,
                document,
                object: Some(identity.to_string()),
                field: problem.field.clone(),
                severity: problem.severity(),
                reason: problem.reason.to_string(),
                message: problem.message.clone(),
                hint: problem.hint.clone(),
                kept,
            });
        }
        findings
    }
}

fn is_refused(translation: &Translation, route: &RouteId) -> bool {
    translation
        .statuses
        .routes
        .get(route)
        .is_some_and(|status| {
            status
                .conditions
                .iter()
                .any(|condition| condition.type_ == "Accepted" && condition.status == "False")
        })
}
