//! What an environment file says, as far as an edge cares, and everything that is wrong with it at once.
//!
//! Follows the deployer's meaning of `domain` and `use_tls_proxy`: both for HTTPS; a domain alone changes
//! nothing; neither means HTTP on the bound port; the proxy without a domain is refused. Tokens and passwords
//! are stepped over.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::Value;
use tidegate_model::HostName;

use super::Mistake;
use super::json::{Findings, Section};

/// An environment of the deployer, without its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `environment.name`, if it is a plain name.
    pub(super) name: Option<String>,
    /// Whether announces carry a key in their path.
    pub(super) private: bool,
    pub(super) udp: Vec<Service>,
    pub(super) http: Vec<Service>,
    pub(super) api: Option<Service>,
    pub(super) health: Option<Service>,
    pub(super) grafana: Option<Service>,
    pub(super) prometheus: bool,
    pub(super) https: Option<Https>,
    /// Sections that are there and are none of the edge's business.
    pub(super) others: Vec<&'static str>,
    /// Paths of fields that nobody knows.
    pub(super) unknown: Vec<String>,
}

/// Something that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    /// Its path in the file, such as `tracker.http_trackers[0]`.
    pub(super) path: String,
    /// Where it listens in its container.
    pub(super) bind: SocketAddr,
    pub(super) domain: Option<HostName>,
    pub(super) use_tls_proxy: bool,
}

/// Settings of the certificate authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Https {
    pub(super) admin_email: String,
    pub(super) use_staging: bool,
}

/// Where Grafana listens in its container, which the file does not say.
const GRAFANA: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 3000);

/// Reads an environment file.
///
/// # Errors
///
/// Everything that is wrong with it, in the order of the file's sections.
pub fn parse(text: &str) -> Result<Environment, Vec<Mistake>> {
    let mut findings = Findings::default();
    let document: Value = match serde_json::from_str(text) {
        Ok(document) => document,
        Err(error) => {
            findings.mistake(
                "",
                format!("the file is not JSON: {error}"),
                "mend it at or above this place",
            );
            return Err(findings.mistakes);
        }
    };
    let environment =
        Section::root(&document, &mut findings).and_then(|root| read(&root, &mut findings));
    match environment {
        Some(environment) if findings.mistakes.is_empty() => Ok(Environment {
            unknown: findings.unknown,
            ..environment
        }),
        _ => Err(findings.mistakes),
    }
}

fn read(root: &Section<'_>, findings: &mut Findings) -> Option<Environment> {
    if !root.has("tracker") {
        findings.mistake("tracker", "is missing", hint_without_tracker(root));
        return None;
    }
    let others = ["ssh_credentials", "provider", "backup"];
    root.knows(
        &[
            "$schema",
            "environment",
            "tracker",
            "https",
            "grafana",
            "prometheus",
            others[0],
            others[1],
            others[2],
        ],
        findings,
    );
    let name = root
        .section("environment", findings)
        .and_then(|section| section.text("name", findings))
        .filter(|name| is_plain(name))
        .map(ToOwned::to_owned);
    let tracker = root.section("tracker", findings)?;
    tracker.knows(
        &[
            "core",
            "udp_trackers",
            "http_trackers",
            "http_api",
            "health_check_api",
        ],
        findings,
    );
    let core = tracker.section("core", findings);
    if let Some(core) = &core {
        core.knows(&["database", "private"], findings);
    }
    let private = core
        .as_ref()
        .and_then(|core| core.flag("private", findings))
        .unwrap_or(false);
    let udp: Vec<Service> = tracker
        .list("udp_trackers", findings)
        .iter()
        .filter_map(|section| service(section, &["bind_address", "domain"], None, findings))
        .collect();
    let http: Vec<Service> = tracker
        .list("http_trackers", findings)
        .iter()
        .filter_map(|section| service(section, PROXIED, None, findings))
        .collect();
    let api_fields = &["bind_address", "admin_token", "domain", "use_tls_proxy"];
    let api = optional(&tracker, "http_api", api_fields, None, findings);
    let health = optional(&tracker, "health_check_api", PROXIED, None, findings);
    let grafana_fields = &["admin_user", "admin_password", "domain", "use_tls_proxy"];
    let grafana = optional(root, "grafana", grafana_fields, Some(GRAFANA), findings);
    let https = https(root, findings);
    let environment = Environment {
        name,
        private,
        udp,
        http,
        api,
        health,
        grafana,
        prometheus: root.has("prometheus"),
        https,
        others: others.into_iter().filter(|other| root.has(other)).collect(),
        unknown: Vec::new(),
    };
    environment.check_across(root, findings);
    Some(environment)
}

fn optional(
    parent: &Section<'_>,
    field: &str,
    known: &[&str],
    fixed: Option<SocketAddr>,
    findings: &mut Findings,
) -> Option<Service> {
    let section = parent.section(field, findings)?;
    service(&section, known, fixed, findings)
}

/// Fields of what can go through the proxy.
const PROXIED: &[&str] = &["bind_address", "domain", "use_tls_proxy"];

/// People give the file that the deployer keeps for itself, because it has the name of the issue.
fn hint_without_tracker(root: &Section<'_>) -> &'static str {
    const STATES: [&str; 4] = ["Created", "Provisioned", "Released", "Running"];
    if STATES.iter().any(|state| root.has(state)) {
        "this is the state that the deployer keeps below data/; give the file that `create environment --env-file` was given, such as envs/NAME.json"
    } else {
        "give the file that `create environment --env-file` was given, such as envs/NAME.json"
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// Reads something that listens; `fixed` where the file does not say at which address.
fn service(
    section: &Section<'_>,
    known: &[&str],
    fixed: Option<SocketAddr>,
    findings: &mut Findings,
) -> Option<Service> {
    section.knows(known, findings);
    let bind = fixed.or_else(|| bind_address(section, findings));
    let domain = domain(section, findings);
    let use_tls_proxy = known.contains(&"use_tls_proxy")
        && section.flag("use_tls_proxy", findings).unwrap_or(false);
    if use_tls_proxy && !section.has("domain") {
        findings.mistake(
            section.at("domain"),
            "is missing although use_tls_proxy is true",
            "write the hostname that clients ask for, or take use_tls_proxy out",
        );
    }
    let bind = bind?;
    if use_tls_proxy && bind.ip().to_canonical().is_loopback() {
        findings.mistake(
            section.at("bind_address"),
            format!("{bind} can only be reached from inside the tracker's container, and use_tls_proxy is true"),
            format!(
                "bind 0.0.0.0:{}, and publish it on the machine's loopback address only",
                bind.port()
            ),
        );
    }
    Some(Service {
        path: section.path().to_owned(),
        bind,
        domain,
        use_tls_proxy,
    })
}

fn bind_address(section: &Section<'_>, findings: &mut Findings) -> Option<SocketAddr> {
    let path = section.at("bind_address");
    let fix = "write where it listens, such as \"0.0.0.0:7070\"";
    let text = section.needed_text("bind_address", fix, findings)?;
    let Ok(bind) = text.parse::<SocketAddr>() else {
        findings.mistake(
            path,
            format!("{text:?} is not an address with a port"),
            "write one such as \"0.0.0.0:7070\" or \"[::]:7070\"",
        );
        return None;
    };
    if bind.port() == 0 {
        findings.mistake(
            path,
            format!("{text:?} lets the system choose a port, which nobody can be sent to"),
            "write the port, such as 7070",
        );
        return None;
    }
    Some(bind)
}

fn domain(section: &Section<'_>, findings: &mut Findings) -> Option<HostName> {
    let path = section.at("domain");
    let text = section.text("domain", findings)?;
    let fix =
        "write a hostname such as \"http1.tracker.example.com\", without scheme, port and path";
    match HostName::parse(text) {
        Ok(name) if name.ip().is_some() => {
            findings.mistake(path, format!("{text:?} is an address"), fix);
            None
        }
        Ok(name) if !name.as_str().contains('.') => {
            findings.mistake(path, format!("{text:?} has no dot"), fix);
            None
        }
        Ok(name) => Some(name),
        Err(error) => {
            findings.mistake(path, error.to_string(), fix);
            None
        }
    }
}

fn https(root: &Section<'_>, findings: &mut Findings) -> Option<Https> {
    let section = root.section("https", findings)?;
    section.knows(&["admin_email", "use_staging"], findings);
    let use_staging = section.flag("use_staging", findings).unwrap_or(false);
    let path = section.at("admin_email");
    let fix = "write an address that the certificate authority may write to";
    let email = section.needed_text("admin_email", fix, findings)?;
    if !is_email(email) {
        findings.mistake(
            path,
            format!("{email:?} is not an e-mail address"),
            "write one such as \"admin@example.com\"",
        );
        return None;
    }
    Some(Https {
        admin_email: email.to_owned(),
        use_staging,
    })
}

/// Good enough for a `mailto:` that is going to stand in quotes.
fn is_email(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !"\"\\,;:<>()[]?&%#".contains(c);
    text.len() <= 254
        && text.chars().all(plain)
        && text.split_once('@').is_some_and(|(user, host)| {
            !user.is_empty() && HostName::parse(host).is_ok() && host.contains('.')
        })
}

impl Environment {
    /// Everything that answers HTTP, with what people call it.
    pub(super) fn services(&self) -> impl Iterator<Item = &Service> {
        self.http
            .iter()
            .chain(&self.api)
            .chain(&self.health)
            .chain(&self.grafana)
    }

    pub(super) fn uses_tls(&self) -> bool {
        self.services().any(|service| service.use_tls_proxy)
    }

    fn check_across(&self, root: &Section<'_>, findings: &mut Findings) {
        if self.uses_tls() && !root.has("https") {
            let path = self
                .services()
                .find(|service| service.use_tls_proxy)
                .map(|service| service.path.as_str())
                .unwrap_or_default();
            findings.mistake(
                "https.admin_email",
                format!("is missing although {path}.use_tls_proxy is true"),
                "add \"https\": {\"admin_email\": \"admin@example.com\"}",
            );
        }
        let mut names: BTreeMap<&HostName, &Service> = BTreeMap::new();
        for service in self.services().filter(|service| service.use_tls_proxy) {
            let Some(domain) = &service.domain else {
                continue;
            };
            if let Some(other) = names.insert(domain, service) {
                findings.mistake(
                    format!("{}.domain", service.path),
                    format!("{:?} is also that of {}", domain.as_str(), other.path),
                    "give each its own hostname, or write the route by hand: one hostname may lead to several services by path",
                );
            }
        }
        // All of them are one process. Behind an edge only the port tells them apart.
        let mut ports: BTreeMap<u16, &Service> = BTreeMap::new();
        for service in self.http.iter().chain(&self.api).chain(&self.health) {
            match ports.get(&service.bind.port()) {
                Some(other) => twice(service, other, findings),
                None => drop(ports.insert(service.bind.port(), service)),
            }
        }
        // Over UDP several public addresses may share a port.
        let mut binds: BTreeMap<SocketAddr, &Service> = BTreeMap::new();
        for service in &self.udp {
            match binds.get(&service.bind) {
                Some(other) => twice(service, other, findings),
                None => drop(binds.insert(service.bind, service)),
            }
        }
    }
}

fn twice(service: &Service, other: &Service, findings: &mut Findings) {
    findings.mistake(
        format!("{}.bind_address", service.path),
        format!(
            "port {} is also that of {}",
            service.bind.port(),
            other.path
        ),
        "give each its own port",
    );
}
