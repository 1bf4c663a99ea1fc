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

use tidegate_model::{Certificate, CertificateOrigin, Fingerprint, HostPattern, RouteId};
use tidegate_telemetry::chain;

use tidegate_acme::settings::Wanted;

use super::ca::{CaError, InternalCa, Leaf};
use super::issuance::{self, Issuance};
use super::kinds::{Identity, ObjectKind};
use super::loader::{Loaded, Loader};
use super::state::StateFolder;
use crate::api::TlsRoute;
use crate::translate::{
    Environment, Inputs, IssuerChoice, Kind, LastGood, Severity, StaticFilesPolicy, Translation,
    WantedCertificate, parse_certificate, translate,
};

/// Id of the certificate for clients that send no server name.
const DEFAULT_LEAF: &str = "default certificate";
/// Validity is looked at again at least this often, whatever the folder does.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Something that a person should mend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The file, relative to the folder, if it came from one.
    pub file: Option<PathBuf>,
    /// Line in the file, from 1.
    pub line: Option<u64>,
    /// Column in the line, from 1.
    pub column: Option<u64>,
    /// Which document of the file, from 1, if it has more than one.
    pub document: Option<usize>,
    /// The object, such as `TlsRoute default/blog`, if it is known.
    pub object: Option<String>,
    /// Field path, such as `spec.rules[0].backends`; empty when it is about the whole.
    pub field: String,
    /// How much it matters.
    pub severity: Severity,
    /// What kind of problem, in `PascalCase`.
    pub reason: String,
    /// What was found.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
    /// Whether an older version of the object is served because of it.
    pub kept: bool,
}

/// The state of things after a refresh.
#[derive(Debug)]
pub struct Refreshed {
    /// Snapshot and statuses.
    pub translation: Translation,
    /// Everything that is wrong, in the order of files and lines.
    pub findings: Vec<Finding>,
    /// Number of objects by kind.
    pub counts: BTreeMap<ObjectKind, usize>,
    /// Objects that are served in their last good version.
    pub kept: Vec<Identity>,
    /// Number of files that were read.
    pub files: usize,
    /// Whether the folder holds nothing at all.
    pub empty: bool,
    /// Certificates that the ACME engine must get and keep.
    pub wanted: Vec<Wanted>,
    /// Version of the answers to challenges that are in the snapshot.
    pub answers: u64,
    /// When to refresh again even if no file changes.
    pub next: SystemTime,
}

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
    keeper: Option<Keeper>,
    issuance: Option<Issuance>,
    environment: Environment,
    last_good: Arc<LastGood>,
    issued: InternalLeaves,
    default_certificate: Option<Arc<Certificate>>,
}

/// What the internal CA issued, by route.
#[derive(Debug, Default, PartialEq)]
struct InternalLeaves {
    /// Wanted of it.
    issued: BTreeMap<RouteId, Arc<Certificate>>,
    /// Standing in until an AcmeIssuer has issued.
    placeholders: BTreeMap<RouteId, Arc<Certificate>>,
}

impl InternalLeaves {
    fn add_to(&self, inputs: &mut Inputs) {
        let issued = self.issued.iter();
        inputs
            .issued
            .extend(issued.map(|(route, leaf)| (route.clone(), Arc::clone(leaf))));
        inputs.placeholders.clone_from(&self.placeholders);
    }
}

/// What issues certificates.
#[derive(Debug)]
struct Keeper {
    ca: InternalCa,
    state: Arc<StateFolder>,
    default_names: Vec<HostPattern>,
    parsed: BTreeMap<String, (Leaf, Arc<Certificate>)>,
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
            keeper: None,
            issuance: None,
            environment,
            last_good: Arc::default(),
            issued: InternalLeaves::default(),
            default_certificate: None,
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
        self.keeper = Some(Keeper {
            ca: InternalCa::open(&state, lifetime, now)?,
            state,
            default_names,
            parsed: BTreeMap::new(),
        });
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

    /// Asks these name servers for the zones of challenges, instead of this machine's.
    #[must_use]
    pub fn with_name_servers(mut self, servers: Vec<SocketAddr>) -> Self {
        self.environment.name_servers = servers;
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
        inputs.last_good = Arc::clone(&self.last_good);
        let mut findings = Vec::new();
        if let Some(keeper) = &mut self.keeper {
            let names = keeper.default_names.clone();
            match keeper.certificate(DEFAULT_LEAF, &names, now) {
                Ok(certificate) => self.default_certificate = Some(certificate),
                Err(error) => findings.push(ca_finding(None, &error)),
            }
        }
        inputs
            .default_certificate
            .clone_from(&self.default_certificate);
        let answers = match &mut self.issuance {
            Some(issuance) => issuance.fill(&mut inputs),
            None => 0,
        };
        let ordered = inputs.issued.clone();
        self.issued.add_to(&mut inputs);
        let mut translation = translate(&inputs, now);
        // What must be issued is known only now; what was issued changes what is served.
        if self.issue(
            &translation.wanted_certificates,
            &ordered,
            now,
            &mut findings,
        ) {
            inputs.issued.clone_from(&ordered);
            self.issued.add_to(&mut inputs);
            translation = translate(&inputs, now);
        }
        self.last_good = Arc::new(translation.last_good.clone());
        findings.extend(self.findings(&loaded, &translation));
        findings.sort();
        findings.dedup();
        let next = self
            .keeper
            .as_ref()
            .and_then(|keeper| keeper.ca.next_renewal())
            .into_iter()
            .chain(
                // A certificate that ends or begins changes what is served and said.
                translation
                    .snapshot
                    .hosts
                    .values()
                    .filter_map(|host| served_certificate(&host.tls))
                    .flat_map(|certificate| [certificate.not_before, certificate.not_after]),
            )
            .filter(|moment| *moment > now)
            .min()
            .unwrap_or(now + LONGEST_PAUSE)
            .min(now + LONGEST_PAUSE);
        Refreshed {
            counts: match &self.objects {
                Objects::Folder(_) => loaded.counts(),
                Objects::Given(routes) => [(ObjectKind::TlsRoute, routes.len())].into(),
            },
            empty: matches!(self.objects, Objects::Folder(_)) && loaded.is_empty(),
            files: loaded.files,
            kept: loaded.kept,
            wanted: issuance::wanted(&translation),
            answers,
            translation,
            findings,
            next,
        }
    }

    /// Issues what is wanted of the internal CA and due, and placeholders for what is not `ordered` yet;
    /// whether anything changed.
    fn issue(
        &mut self,
        wanted: &[WantedCertificate],
        ordered: &BTreeMap<RouteId, Arc<Certificate>>,
        now: SystemTime,
        findings: &mut Vec<Finding>,
    ) -> bool {
        let Some(keeper) = &mut self.keeper else {
            return false;
        };
        let mut leaves = InternalLeaves::default();
        let mut ids = BTreeSet::from([DEFAULT_LEAF.to_owned()]);
        for certificate in wanted {
            let route = &certificate.route;
            let (old, new) = match certificate.issuer {
                IssuerChoice::InternalCa => (&self.issued.issued, &mut leaves.issued),
                IssuerChoice::Acme(_) if ordered.contains_key(route) => continue,
                IssuerChoice::Acme(_) => (&self.issued.placeholders, &mut leaves.placeholders),
            };
            let id = route.to_string();
            match keeper.certificate(&id, &certificate.names, now) {
                Ok(parsed) => {
                    new.insert(route.clone(), parsed);
                }
                Err(error) => {
                    findings.push(ca_finding(Some(route), &error));
                    if let Some(old) = old.get(route) {
                        new.insert(route.clone(), Arc::clone(old));
                    }
                }
            }
            ids.insert(id);
        }
        keeper.retain(&ids);
        let changed = leaves != self.issued;
        self.issued = leaves;
        changed
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

impl Keeper {
    fn certificate(
        &mut self,
        id: &str,
        names: &[HostPattern],
        now: SystemTime,
    ) -> Result<Arc<Certificate>, CaError> {
        let leaf = self.ca.leaf(&self.state, id, names, now)?;
        if let Some((known, parsed)) = self.parsed.get(id)
            && known.cert_pem == leaf.cert_pem
        {
            return Ok(Arc::clone(parsed));
        }
        let parsed = parse_certificate(
            leaf.cert_pem.as_bytes(),
            leaf.key_pem.expose().as_bytes(),
            CertificateOrigin::InternalCa,
        )
        .map(Arc::new)
        .map_err(|_| CaError::Issue {
            names: id.to_owned(),
            source: rcgen::Error::CouldNotParseCertificate,
        })?;
        self.parsed
            .insert(id.to_owned(), (leaf, Arc::clone(&parsed)));
        Ok(parsed)
    }

    fn retain(&mut self, wanted: &BTreeSet<String>) {
        self.parsed.retain(|id, _| wanted.contains(id));
        self.ca.retain(&self.state, wanted);
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

fn served_certificate(tls: &tidegate_model::TlsMode) -> Option<&Arc<Certificate>> {
    match tls {
        tidegate_model::TlsMode::Terminate(policy) => policy.certificate.as_ref(),
        tidegate_model::TlsMode::Passthrough(_) => None,
    }
}

fn ca_finding(route: Option<&RouteId>, error: &CaError) -> Finding {
    Finding {
        file: None,
        line: None,
        column: None,
        document: None,
        object: route.map(|route| format!("TlsRoute {route}")),
        field: String::new(),
        severity: Severity::Error,
        reason: error.reason().to_owned(),
        message: format!("cannot {}", chain(error)),
        hint: None,
        kept: false,
    }
}

/// The certificates of a snapshot, each once, by fingerprint.
pub fn certificates(
    snapshot: &tidegate_model::Snapshot,
) -> BTreeMap<Fingerprint, Arc<Certificate>> {
    snapshot
        .hosts
        .values()
        .filter_map(|host| served_certificate(&host.tls))
        .chain(&snapshot.default_certificate)
        .map(|certificate| (certificate.fingerprint, Arc::clone(certificate)))
        .collect()
}
