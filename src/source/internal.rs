//! The internal CA's certificates as inputs of a translation: wanted of it, standing in until an authority
//! has issued, and the one for clients that name no host.
//!
//! Blocks on files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_model::{Certificate, CertificateOrigin, HostPattern, RouteId};
use tidegate_telemetry::chain;

use super::Finding;
use super::ca::{CaError, InternalCa, Leaf};
use super::state::StateFolder;
use crate::translate::{
    Inputs, IssuerChoice, Severity, Translation, WantedCertificate, parse_certificate, translate,
};

/// Id of the certificate for clients that send no server name.
const DEFAULT_LEAF: &str = "default certificate";

/// Issues and keeps certificates of the internal CA.
#[derive(Debug)]
pub struct InternalIssuer {
    ca: InternalCa,
    state: Arc<StateFolder>,
    default_names: Vec<HostPattern>,
    parsed: BTreeMap<String, (Leaf, Arc<Certificate>)>,
    leaves: Leaves,
    default_certificate: Option<Arc<Certificate>>,
}

/// What was issued, by route.
#[derive(Debug, Default, PartialEq)]
struct Leaves {
    /// Wanted of the internal CA.
    issued: BTreeMap<RouteId, Arc<Certificate>>,
    /// Standing in until an AcmeIssuer has issued.
    placeholders: BTreeMap<RouteId, Arc<Certificate>>,
}

impl InternalIssuer {
    /// Opens the CA of a state folder, or makes one. `default_names` are those that clients without a
    /// server name may mean.
    pub fn open(
        state: Arc<StateFolder>,
        lifetime: Duration,
        default_names: Vec<HostPattern>,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        Ok(Self {
            ca: InternalCa::open(&state, lifetime, now)?,
            state,
            default_names,
            parsed: BTreeMap::new(),
            leaves: Leaves::default(),
            default_certificate: None,
        })
    }

    /// Translates with the certificates that this CA has issued, issues what the translation wants of it, and
    /// placeholders for what nobody has issued yet, and translates again if that changes anything.
    /// `inputs.issued` holds what authorities have issued.
    pub fn translate(
        &mut self,
        inputs: &mut Inputs,
        now: SystemTime,
        findings: &mut Vec<Finding>,
    ) -> Translation {
        let names = self.default_names.clone();
        match self.certificate(DEFAULT_LEAF, &names, now) {
            Ok(certificate) => self.default_certificate = Some(certificate),
            Err(error) => findings.push(finding(None, &error)),
        }
        inputs
            .default_certificate
            .clone_from(&self.default_certificate);
        let ordered = inputs.issued.clone();
        self.leaves.add_to(inputs);
        let translation = translate(inputs, now);
        // What must be issued is known only now; what was issued changes what is served.
        if !self.issue(&translation.wanted_certificates, &ordered, now, findings) {
            return translation;
        }
        inputs.issued = ordered;
        self.leaves.add_to(inputs);
        translate(inputs, now)
    }

    /// Whether anything changed.
    fn issue(
        &mut self,
        wanted: &[WantedCertificate],
        ordered: &BTreeMap<RouteId, Arc<Certificate>>,
        now: SystemTime,
        findings: &mut Vec<Finding>,
    ) -> bool {
        let mut leaves = Leaves::default();
        let mut ids = BTreeSet::from([DEFAULT_LEAF.to_owned()]);
        for certificate in wanted {
            let route = &certificate.route;
            let placeholder = match certificate.issuer {
                IssuerChoice::InternalCa => false,
                IssuerChoice::Acme(_) if ordered.contains_key(route) => continue,
                IssuerChoice::Acme(_) => true,
            };
            let id = route.to_string();
            let leaf = match self.certificate(&id, &certificate.names, now) {
                Ok(parsed) => Some(parsed),
                Err(error) => {
                    findings.push(finding(Some(route), &error));
                    self.leaves.of(placeholder).get(route).cloned()
                }
            };
            if let Some(leaf) = leaf {
                leaves.of(placeholder).insert(route.clone(), leaf);
            }
            ids.insert(id);
        }
        self.parsed.retain(|id, _| ids.contains(id));
        self.ca.retain(&self.state, &ids);
        let changed = leaves != self.leaves;
        self.leaves = leaves;
        changed
    }

    /// When the first certificate wants to be issued again.
    pub fn next_renewal(&self) -> Option<SystemTime> {
        self.ca.next_renewal()
    }

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
}

impl Leaves {
    fn add_to(&self, inputs: &mut Inputs) {
        let issued = self.issued.iter();
        inputs
            .issued
            .extend(issued.map(|(route, leaf)| (route.clone(), Arc::clone(leaf))));
        inputs.placeholders.clone_from(&self.placeholders);
    }

    fn of(&mut self, placeholder: bool) -> &mut BTreeMap<RouteId, Arc<Certificate>> {
        if placeholder {
            &mut self.placeholders
        } else {
            &mut self.issued
        }
    }
}

fn finding(route: Option<&RouteId>, error: &CaError) -> Finding {
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
