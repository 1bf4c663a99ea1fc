//! What objects name: Secrets, ConfigMaps, Services and TunnelAgents of their namespace.
//!
//! The one place where a name becomes an object. No field has a namespace, so what an object names is always
//! looked for in its own; for objects of no namespace in the program's (`docs/adr/0032`). Nothing else reads
//! `Inputs::secrets`, `config_maps`, `services` or `agents` by name.

use std::sync::Arc;

use rustls::RootCertStore;
use tidegate_model::{BasicAuth, Fingerprint, ObjectName, RouteId, Secret};

use super::certificates::{CertificateError, parse_ca_der, parse_roots};
use super::report::{Field, Report};
use super::{Inputs, ReferenceKind, SecretData, ServicePortData, reach};
use crate::api::conditions::Reason;
use crate::api::{BasicAuthFilter, ServiceRef, TunnelAgent};

/// Looks things up for one object and notes what is missing.
pub(super) struct References<'a> {
    pub(super) inputs: &'a Inputs,
    pub(super) id: &'a RouteId,
}

/// Something that an object names.
#[derive(Debug)]
pub(super) enum Found<T> {
    /// It is there.
    Here(T),
    /// It is named well, but it does not exist or is not usable; the report says so.
    Missing,
}

/// What a port of a Service is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// Trusted CAs and their identity.
pub(super) type Roots = (Arc<RootCertStore>, Fingerprint);

// === impl References ===

impl References<'_> {
    /// The full name of something in the object's namespace.
    pub(super) fn sibling(&self, name: &str) -> ObjectName {
        ObjectName::new(Arc::clone(&self.id.namespace), name)
    }

    /// A Secret of that name in another namespace. Only where one person owns all of them: to others it would
    /// tell what they must not know.
    fn elsewhere(&self, wanted: &ObjectName) -> Option<&ObjectName> {
        let mut others = self.inputs.secrets.keys();
        others
            .find(|other| other.name == wanted.name)
            .filter(|_| !self.inputs.environment.is_shared())
    }

    pub(super) fn secret(
        &self,
        report: &mut Report,
        field: &Field<'_>,
        name: &str,
    ) -> Option<&Arc<SecretData>> {
        let full = self.sibling(name);
        report.names(ReferenceKind::Secret, full.clone());
        let found = self.inputs.secrets.get(&full);
        if found.is_none() {
            report.add(
                field,
                Reason::SecretNotFound,
                format!("Secret {full} does not exist"),
                self.elsewhere(&full).map_or_else(
                    || format!("create it in namespace {}", full.namespace),
                    |other| {
                        format!(
                            "Secret {other} exists, but only Secrets of namespace {} are read",
                            full.namespace
                        )
                    },
                ),
            );
        }
        found
    }

    /// One value of a Secret, under the first of the keys that is there.
    pub(super) fn secret_key(
        &self,
        report: &mut Report,
        field: &Field<'_>,
        name: &str,
        keys: &[&str],
    ) -> Option<&[u8]> {
        let secret = self.secret(report, field, name)?;
        let found = keys.iter().find_map(|key| secret.data.get(*key));
        if found.is_none() {
            let present: Vec<_> = secret.data.keys().map(String::as_str).collect();
            report.add(
                field,
                Reason::InvalidSecret,
                format!(
                    "Secret {} has no key {:?} (it has: {})",
                    self.sibling(name),
                    keys.first().copied().unwrap_or_default(),
                    if present.is_empty() {
                        "none".to_owned()
                    } else {
                        present.join(", ")
                    }
                ),
                "add the key",
            );
        }
        found.map(Vec::as_slice)
    }

    /// A port of a Service, where Services are objects.
    pub(super) fn service(
        &self,
        report: &mut Report,
        field: &Field<'_>,
        wire: &ServiceRef,
        transport: Transport,
    ) -> Option<ServicePortData> {
        debug_assert!(self.inputs.environment.is_shared());
        let full = self.sibling(&wire.name);
        report.names(ReferenceKind::Service, full.clone());
        let at = field.at("name");
        let Some(service) = self.inputs.services.get(&full) else {
            let hint = format!(
                "create it in namespace {}; a route leads to Services of its own namespace only",
                full.namespace
            );
            let message = format!("Service {full} does not exist");
            report.add(at, Reason::BackendNotFound, message, hint);
            return None;
        };
        if let Some(name) = &service.external_name {
            report.add(
                at,
                Reason::BackendNotFound,
                format!("Service {full} is but another name of {name:?} (type ExternalName)"),
                format!(
                    "write address: \"{name}:{}\" in place of service",
                    wire.port
                ),
            );
            return None;
        }
        let (ports, protocol) = match transport {
            Transport::Tcp => (&service.ports, "TCP"),
            Transport::Udp => (&service.udp_ports, "UDP"),
        };
        let port = ports.iter().find(|port| i32::from(port.port) == wire.port);
        let Some(port) = port else {
            let mut known: Vec<_> = ports.iter().map(|port| port.port).collect();
            known.sort_unstable();
            let known: Vec<_> = known.iter().map(ToString::to_string).collect();
            report.add(
                field.at("port"),
                Reason::BackendNotFound,
                format!("Service {full} has no {protocol} port {}", wire.port),
                match known.len() {
                    0 => format!("give the Service a {protocol} port"),
                    _ => format!("it has: {}", known.join(", ")),
                },
            );
            return None;
        };
        let reach = self.inputs.environment.reach.of_services();
        let (addresses, refused) = reach.sort_out(port.addresses.clone());
        if let Some(refused) = refused {
            report.add(
                field,
                Reason::BackendNotAllowed,
                format!("Service {full} leads where backends may not: {refused}"),
                reach::ALLOW,
            );
        } else if addresses.is_empty() {
            report.add(
                field,
                Reason::NoReadyEndpoints,
                format!(
                    "Service {full} has no endpoint for port {} that is ready",
                    wire.port
                ),
                "see whether its selector names pods and whether those are ready",
            );
        }
        Some(ServicePortData {
            addresses,
            ..port.clone()
        })
    }

    /// A TunnelAgent of whatever class; of two with one name the first.
    pub(super) fn agent(&self, full: &ObjectName) -> Option<&Arc<TunnelAgent>> {
        self.inputs.agents.iter().find(|agent| {
            agent.metadata.name.as_deref() == Some(&*full.name)
                && agent.metadata.namespace.as_deref().unwrap_or("default") == &*full.namespace
        })
    }

    /// CAs from a Secret's or ConfigMap's `ca.crt`.
    pub(super) fn roots(
        &self,
        report: &mut Report,
        field: &Field<'_>,
        secret: Option<&str>,
        config_map: Option<&str>,
    ) -> Option<Roots> {
        self.cas(report, field, secret, config_map, parse_roots)
    }

    /// The same as DER, for those who verify elsewhere.
    pub(super) fn ca_der(
        &self,
        report: &mut Report,
        field: &Field<'_>,
        secret: Option<&str>,
        config_map: Option<&str>,
    ) -> Option<Vec<Vec<u8>>> {
        self.cas(report, field, secret, config_map, parse_ca_der)
    }

    fn cas<T>(
        &self,
        report: &mut Report,
        field: &Field<'_>,
        secret: Option<&str>,
        config_map: Option<&str>,
        parse: impl Fn(&[u8]) -> Result<T, CertificateError>,
    ) -> Option<T> {
        const KEY: &str = "ca.crt";
        let member = if secret.is_some() {
            "caSecretName"
        } else {
            "caConfigMapName"
        };
        let field = field.at(member);
        let (pem, reason) = match (secret, config_map) {
            (Some(name), _) => {
                let pem = self.secret_key(report, &field, name, &[KEY])?;
                (pem, Reason::InvalidSecret)
            }
            (None, Some(name)) => {
                let full = self.sibling(name);
                report.names(ReferenceKind::ConfigMap, full.clone());
                let Some(map) = self.inputs.config_maps.get(&full) else {
                    report.add(
                        field,
                        Reason::ConfigMapNotFound,
                        format!("ConfigMap {full} does not exist"),
                        format!("create it in namespace {}", full.namespace),
                    );
                    return None;
                };
                let Some(pem) = map.data.get(KEY) else {
                    report.add(
                        field,
                        Reason::ConfigMapNotFound,
                        format!("ConfigMap {full} has no key {KEY:?}"),
                        "add the key",
                    );
                    return None;
                };
                (pem.as_bytes(), Reason::ConfigMapNotFound)
            }
            (None, None) => return None,
        };
        match parse(pem) {
            Ok(roots) => Some(roots),
            Err(error) => {
                report.add(
                    field,
                    reason,
                    format!("key {KEY:?}: {error}"),
                    "put the CA certificates there in PEM",
                );
                None
            }
        }
    }

    /// Users and hashes of an htpasswd file in a Secret.
    pub(super) fn basic_auth(
        &self,
        report: &mut Report,
        field: &Field<'_>,
        wire: &BasicAuthFilter,
    ) -> Option<Vec<(String, Secret<String>)>> {
        let field = field.at("secretName");
        let text = self.secret_key(report, &field, &wire.secret_name, &["auth", ".htpasswd"])?;
        let full = self.sibling(&wire.secret_name);
        let mut bad = |message: String, hint: &str| {
            report.add(field, Reason::InvalidSecret, message, hint);
        };
        let Ok(text) = std::str::from_utf8(text) else {
            bad(
                format!("Secret {full} is not UTF-8"),
                "write lines of user:hash",
            );
            return None;
        };
        let mut users = Vec::new();
        let mut good = true;
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let number = index + 1;
            // Neither user nor hash is quoted: a line that was written the wrong way round holds a password.
            match line.split_once(':') {
                Some((user, hash)) if !user.is_empty() => {
                    let known = ["$2a$", "$2b$", "$2y$", "$argon2"]
                        .iter()
                        .any(|prefix| hash.starts_with(prefix));
                    if known {
                        users.push((user.to_owned(), Secret::new(hash.to_owned())));
                    } else {
                        bad(
                            format!("line {number} of Secret {full} has no bcrypt or argon2 hash"),
                            "make it with htpasswd -B",
                        );
                        good = false;
                    }
                }
                _ => {
                    bad(
                        format!("line {number} of Secret {full} is not user:hash"),
                        "make it with htpasswd -B",
                    );
                    good = false;
                }
            }
        }
        if users.is_empty() && good {
            bad(
                format!("Secret {full} names no user"),
                "write lines of user:hash",
            );
            good = false;
        }
        good.then_some(users)
    }
}

/// Puts users, realm and header together.
pub(super) fn basic_auth_filter(
    users: Vec<(String, Secret<String>)>,
    realm: Option<&str>,
    user_header: Option<http::HeaderName>,
) -> Arc<BasicAuth> {
    Arc::new(BasicAuth {
        realm: realm.unwrap_or("restricted").to_owned(),
        users,
        user_header,
    })
}
