//! The Kubernetes source: what is known of the cluster in, one translation out, again and again.
//!
//! Publishes and writes nothing: `app` calls [`Source::refresh`] when something may have changed and does with
//! the result what it must. Blocks on the state folder, which holds the internal CA's certificates.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_acme::answers::for_data_plane;
use tidegate_acme::record::{CertificateRecord, Issued};
use tidegate_acme::store::Kind as DocumentKind;
use tidegate_model::{Certificate, ChallengeAnswers, PortState, RouteId, RuleId, UdpRelayState};
use tokio::sync::watch;

use super::cache::Cache;
use super::default_issuer::DefaultIssuerFile;
use super::documents::Document;
use super::objects::{Guarded, Ours, reference};
use super::published::{Publications, PublishedSecrets};
use super::replicas::SharedAnswers;
use super::sessions::{Known, merged};
use super::tickets::SharedKeys;
use super::watch::World;
use crate::source::yaml::schema::FieldProblem;
use crate::source::{Finding, InternalIssuer, Issuance, Parsed, Refreshed, next_moment, wanted};
use crate::translate::{
    Environment, Exposure, Inputs, IssuerChoice, LastGood, ObjectRef, ProbeReport, PublicPlace,
    Refusals, Severity, Translation, translate,
};

/// Everything between the watches and a translation.
#[derive(Debug)]
pub struct Source {
    world: Arc<World>,
    environment: Environment,
    internal: Option<InternalIssuer>,
    /// Only where this replica orders.
    issuance: Option<Issuance>,
    last_good: Arc<LastGood>,
    tracker_reports: Arc<BTreeMap<RuleId, ProbeReport>>,
    records: BTreeMap<String, Read>,
    parsed: Parsed,
    published: watch::Receiver<Arc<PublishedSecrets>>,
    challenges: Arc<ChallengeAnswers>,
    ticket_keys: SharedKeys,
    default_issuer: Option<Arc<DefaultIssuerFile>>,
    exposure: Option<Exposure>,
    place: PublicPlace,
    refusals: Option<watch::Receiver<Arc<Refusals>>>,
    https_port: Option<u16>,
    udp_relays: Option<Arc<Vec<UdpRelayState>>>,
    ports: Option<Arc<Vec<PortState>>>,
    /// What this replica knows of agents, its name, and how many replicas there are.
    agents: Option<(Known, String, usize)>,
}

/// A certificate's document as it was last read.
#[derive(Debug)]
struct Read {
    document: Arc<Document>,
    id: RouteId,
    issued: Option<Arc<Issued>>,
    certificate: Option<Arc<Certificate>>,
}

impl Source {
    /// A source of what is known of this cluster.
    /// `published` tells how the Secrets stand that certificates are published in.
    pub fn new(
        world: Arc<World>,
        environment: Environment,
        published: watch::Receiver<Arc<PublishedSecrets>>,
    ) -> Self {
        Self {
            world,
            environment,
            internal: None,
            issuance: None,
            last_good: Arc::default(),
            tracker_reports: Arc::default(),
            records: BTreeMap::new(),
            parsed: Parsed::default(),
            published,
            challenges: Arc::default(),
            ticket_keys: SharedKeys::default(),
            default_issuer: None,
            exposure: None,
            place: PublicPlace::default(),
            refusals: None,
            https_port: None,
            udp_relays: None,
            ports: None,
            agents: None,
        }
    }

    /// Issues certificates from this internal CA from now on.
    pub fn set_internal(&mut self, internal: InternalIssuer) {
        self.internal = Some(internal);
    }

    /// Takes the default issuer from this file from now on.
    pub fn set_default_issuer(&mut self, file: Arc<DefaultIssuerFile>) {
        self.default_issuer = Some(file);
    }

    /// This replica orders from now on, or not any more.
    pub fn set_acme(&mut self, issuance: Option<Issuance>) {
        self.issuance = issuance;
    }

    /// The certificates that belong into Secrets: of routes that want one of an ACME issuer, as it is in the
    /// documents.
    pub fn publications(&self, translation: &Translation) -> Publications {
        let by_route: BTreeMap<&RouteId, &Arc<Issued>> = self
            .records
            .values()
            .filter_map(|read| Some((&read.id, read.issued.as_ref()?)))
            .collect();
        translation
            .wanted_certificates
            .iter()
            .filter(|wanted| matches!(wanted.issuer, IssuerChoice::Acme(_)))
            .filter_map(|wanted| {
                let issued = by_route.get(&wanted.route)?;
                Some((wanted.route.clone(), Arc::clone(issued)))
            })
            .collect()
    }

    /// How clients reach this replica, as far as it can see.
    pub fn set_exposure(&mut self, exposure: Exposure) {
        self.exposure = Some(exposure);
    }

    /// Tells in statuses which Services of UDP trackers cannot be written.
    pub fn follow_refusals(&mut self, refusals: watch::Receiver<Arc<Refusals>>) {
        self.refusals = Some(refusals);
    }

    /// What trackers have told of themselves, where this replica asks them.
    pub fn set_tracker_reports(&mut self, reports: Arc<BTreeMap<RuleId, ProbeReport>>) {
        self.tracker_reports = reports;
    }

    /// Where clients reach this edge, and its port of HTTPS as they see it.
    pub fn set_place(&mut self, place: PublicPlace, https_port: Option<u16>) {
        self.place = place;
        self.https_port = https_port;
    }

    /// What became of the relays of UDP trackers on this replica.
    pub fn set_udp_relays(&mut self, states: Arc<Vec<UdpRelayState>>) {
        self.udp_relays = Some(states);
    }

    /// What became of the ports of mappings on this replica.
    pub fn set_ports(&mut self, states: Arc<Vec<PortState>>) {
        self.ports = Some(states);
    }

    /// What this replica, which has this name, knows of agents, and how many replicas there are.
    pub fn set_agents(&mut self, known: Known, identity: &str, replicas: usize) {
        self.agents = Some((known, identity.to_owned(), replicas));
    }

    /// Translates what is known now.
    pub fn refresh(&mut self, now: SystemTime) -> Refreshed {
        let mut inputs = Inputs {
            environment: self.environment.clone(),
            last_good: Arc::clone(&self.last_good),
            tracker_reports: Arc::clone(&self.tracker_reports),
            exposure: self.exposure.clone(),
            place: self.place.clone(),
            https_port: self.https_port,
            udp_relays: self.udp_relays.clone(),
            ports: self.ports.clone(),
            ..Inputs::default()
        };
        self.world.fill(&mut inputs);
        self.fill_issued(&mut inputs);
        inputs.ticket_keys = self.ticket_keys.of(&self.world);
        let answers = self.fill_answers(&mut inputs);
        if let Some(issuance) = &mut self.issuance {
            // Newer than what the watch has shown; its answers count once every replica can see them.
            let challenges = Arc::clone(&inputs.challenges);
            issuance.fill(&mut inputs, &mut self.parsed);
            inputs.challenges = challenges;
        }
        if let Some(refusals) = &self.refusals {
            inputs.service_refusals = Arc::clone(&refusals.borrow());
        }
        if let Some((known, identity, replicas)) = &self.agents {
            let (seen, requests) = merged(&self.world, identity, known, *replicas, now);
            inputs.agents_seen = Some(Arc::new(seen));
            inputs.agent_requests = Arc::new(requests);
        }
        inputs.published = PublishedSecrets::clone(&self.published.borrow());
        let mut findings = Vec::new();
        if let Some(file) = &self.default_issuer {
            let class = self.environment.class_name.as_deref();
            let objects = (self.world.issuers.all().into_iter())
                .filter(|(_, issuer)| issuer.class() == class)
                .map(|(name, _)| name.name.to_string())
                .collect();
            file.fill(&mut inputs, &objects, &mut findings);
        }
        let mut translation = match &mut self.internal {
            Some(internal) => internal.translate(&mut inputs, now, &mut findings),
            None => translate(&inputs, now),
        };
        self.last_good = Arc::new(std::mem::take(&mut translation.last_good));
        findings.extend(self.not_understood());
        findings.extend(translation.problems.iter().map(|problem| {
            let file = self.default_issuer.as_ref();
            let place = file.and_then(|file| file.place(&problem.object, &problem.field));
            let (file, line) = place.unzip();
            Finding {
                file,
                line: line.flatten(),
                column: None,
                document: None,
                object: Some(problem.object.to_string()),
                field: problem.field.clone(),
                severity: problem.severity(),
                reason: problem.reason.to_string(),
                message: problem.message.clone(),
                hint: problem.hint.clone(),
                kept: false,
            }
        }));
        findings.sort();
        findings.dedup();
        let renewals = self
            .internal
            .as_ref()
            .and_then(InternalIssuer::next_renewal);
        Refreshed {
            next: next_moment(&translation.snapshot, renewals, now),
            counts: self.world.counts(),
            kept: BTreeMap::new(),
            files: 0,
            empty: false,
            wanted: wanted(&translation),
            answers,
            translation,
            findings,
        }
    }

    /// Certificates that authorities have issued, from their documents.
    fn fill_issued(&mut self, inputs: &mut Inputs) {
        let mut before = std::mem::take(&mut self.records);
        for document in self.world.documents(DocumentKind::Certificate) {
            let name = document.name.clone();
            let read = match before.remove(&name) {
                Some(read) if Arc::ptr_eq(&read.document, &document) => read,
                before => match read(document, before, &mut self.parsed) {
                    Some(read) => read,
                    None => continue,
                },
            };
            if let Some(certificate) = &read.certificate {
                let certificate = Arc::clone(certificate);
                inputs.issued.insert(read.id.clone(), certificate);
            }
            self.records.insert(name, read);
        }
        // Those that the engine alone knows are in the snapshot that was published last.
        drop(before);
        self.parsed.forget_unused();
    }

    /// Answers to challenges, as every replica sees them. Returns their version.
    fn fill_answers(&mut self, inputs: &mut Inputs) -> u64 {
        let shared = SharedAnswers::of(&self.world);
        match for_data_plane(&shared.answers, &self.challenges) {
            Ok(challenges) if challenges != *self.challenges => {
                self.challenges = Arc::new(challenges);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(error = %error, "cannot make the certificate of a challenge");
            }
        }
        inputs.challenges = Arc::clone(&self.challenges);
        shared.version
    }

    fn not_understood(&self) -> Vec<Finding> {
        let class = self.environment.class_name.as_deref();
        self.world
            .not_understood(class)
            .into_iter()
            .map(|(object, problem, kept)| Finding {
                file: None,
                line: None,
                column: None,
                document: None,
                object: Some(object.to_string()),
                field: problem.path,
                severity: Severity::Error,
                reason: problem.reason.to_owned(),
                message: format!(
                    "{}; this version of tidegate does not understand the object",
                    problem.message
                ),
                hint: Some(problem.hint.unwrap_or_else(|| {
                    "apply the definitions that belong to this version, and the object again"
                        .to_owned()
                })),
                kept,
            })
            .collect()
    }
}

fn read(document: Arc<Document>, before: Option<Read>, parsed: &mut Parsed) -> Option<Read> {
    let record: CertificateRecord = match serde_json::from_slice(document.content.expose()) {
        Ok(record) => record,
        Err(error) => {
            let (line, column) = (error.line(), error.column());
            tracing::error!(certificate = %document.name, line, column, "the document of a certificate is damaged; what was served stays in use");
            // Known to be bad under this identity, so that it is told once.
            return before.map(|before| Read { document, ..before });
        }
    };
    let (namespace, name) = record.id.split_once('/')?;
    let id = RouteId::new(namespace, name);
    let issued = record.current.map(Arc::new);
    let certificate = issued.as_ref().and_then(|issued| {
        let parsed = parsed.of(&record.id, issued);
        parsed
            .inspect_err(|error| {
                tracing::error!(certificate = %record.id, error = %error, "the certificate in the store cannot be used");
            })
            .ok()
    });
    Some(Read {
        document,
        id,
        issued,
        certificate,
    })
}

impl World {
    /// What is not understood in objects of this class, and whether an earlier version of the object is in use.
    fn not_understood(&self, class: Option<&str>) -> Vec<(ObjectRef, FieldProblem, bool)> {
        fn of<K: Ours>(
            cache: &Cache<Guarded<K>>,
            class: Option<&str>,
        ) -> Vec<(ObjectRef, FieldProblem, bool)> {
            let mut found = Vec::new();
            for (name, object) in cache.all() {
                if let Some(wrong) = &object.wrong
                    && object.class() == class
                {
                    let problems = wrong.problems.iter().cloned();
                    let kept = object.good.is_some();
                    found.extend(problems.map(|problem| (reference::<K>(&name), problem, kept)));
                }
            }
            found
        }
        let mut all = of(&self.routes, class);
        all.extend(of(&self.agents, class));
        all.extend(of(&self.issuers, class));
        all
    }
}
