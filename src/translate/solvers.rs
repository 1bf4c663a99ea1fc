//! Solvers of an issuer: their fields checked, their Secrets looked up, the writers of DNS records made.
//!
//! A writer is made once and used until anything it was made from changes, a Secret's value included. What
//! is wrong is told with its field; no value of a Secret is quoted.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use tidegate_acme::dns::rfc2136::{self, Rfc2136, TsigAlgorithm};
use tidegate_acme::dns::webhook::{self, Credentials, Webhook};
use tidegate_acme::dns::{DnsSolver, SolverError, exec, propagation, providers};
use tidegate_acme::plan::challenge::{Broken, ChallengeType};
use tidegate_acme::settings::{DnsMethod, Method, Solver};
use tidegate_model::{HostPattern, Secret};

use super::durations::positive_duration_or;
use super::references::References;
use super::report::{Field, Report};
use super::words::{host_pattern, one_of};
use super::{LastGood, ProgramPolicy};
use crate::api::conditions::Reason;
use crate::api::{
    Dns01Solver, ExecSolver, ProviderSolver, Rfc2136Solver, SecretKeyRef, Solver as WireSolver,
    WebhookSolver,
};

/// Port of name servers that are given without one.
const DNS_PORT: u16 = 53;
/// Time for one exchange with the server that is updated.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(10);

type Writer = Arc<dyn DnsSolver>;

/// Writers by the digest of what they were made from.
pub(super) struct Made<'a> {
    before: &'a BTreeMap<[u8; 32], Writer>,
    used: BTreeMap<[u8; 32], Writer>,
}

impl<'a> Made<'a> {
    /// Those of the last translation.
    pub(super) fn from(last: &'a LastGood) -> Self {
        Self {
            before: &last.dns_solvers,
            used: BTreeMap::new(),
        }
    }

    /// Those that are still used.
    pub(super) fn into_used(self) -> BTreeMap<[u8; 32], Writer> {
        self.used
    }

    fn get(
        &mut self,
        digest: [u8; 32],
        make: impl FnOnce() -> Result<Writer, SolverError>,
    ) -> Result<Writer, SolverError> {
        let known = self.used.get(&digest).or_else(|| self.before.get(&digest));
        let writer = match known {
            Some(known) => Arc::clone(known),
            None => make()?,
        };
        self.used.insert(digest, Arc::clone(&writer));
        Ok(writer)
    }
}

/// A digest over fields that cannot be shifted into each other.
struct Fields(Sha256);

impl Fields {
    fn of(kind: &str) -> Self {
        let mut fields = Self(Sha256::new());
        fields.add(kind);
        fields
    }

    fn add(&mut self, field: impl AsRef<[u8]>) {
        let field = field.as_ref();
        let length = u64::try_from(field.len()).unwrap_or(u64::MAX);
        self.0.update(length.to_be_bytes());
        self.0.update(field);
    }

    fn end(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// The solver. One that cannot be used is left out, which the report says: only names that it alone is for
/// are harmed, and they are told by what stays of it.
pub(super) fn build(
    references: &References<'_>,
    report: &mut Report,
    field: &Field<'_>,
    wire: &WireSolver,
    made: &mut Made<'_>,
) -> Solver {
    let before = report.count();
    let set = [
        wire.http01.is_some(),
        wire.tls_alpn01.is_some(),
        wire.dns01.is_some(),
        wire.dns_persist01.is_some(),
    ];
    if set.iter().filter(|set| **set).count() != 1 {
        report.invalid(
            field,
            "it does not say in one way how challenges are answered",
            "set exactly one of http01, tlsAlpn01, dns01 and dnsPersist01",
        );
    }
    let selector = wire.selector.clone().unwrap_or_default();
    let at = field.at("selector");
    let zones = patterns(report, &at.at("dnsZones"), &selector.dns_zones);
    let names = patterns(report, &at.at("dnsNames"), &selector.dns_names);
    let method = if let Some(dns) = &wire.dns01 {
        let field = field.at("dns01");
        let build = Build {
            references,
            field,
            made,
        };
        build.method(report, dns).map(Method::Dns01)
    } else if wire.dns_persist01.is_some() {
        Some(Method::DnsPersist01)
    } else if wire.tls_alpn01.is_some() {
        Some(Method::TlsAlpn01)
    } else {
        Some(Method::Http01)
    };
    let method = match method {
        Some(method) if report.count() == before => method,
        _ => Method::Broken(kind(wire), broken(report, before, &wire.name)),
    };
    Solver {
        name: wire.name.clone(),
        zones,
        names,
        method,
    }
}

/// What the solver would answer, as far as it says.
fn kind(wire: &WireSolver) -> ChallengeType {
    if wire.dns01.is_some() {
        ChallengeType::Dns01
    } else if wire.dns_persist01.is_some() {
        ChallengeType::DnsPersist01
    } else if wire.tls_alpn01.is_some() {
        ChallengeType::TlsAlpn01
    } else {
        ChallengeType::Http01
    }
}

/// What was reported of the solver since `before`, for the names that it is for; the report says that it is
/// left out.
fn broken(report: &mut Report, before: usize, name: &str) -> Broken {
    let found = report.since(before);
    let texts = found
        .iter()
        .map(|problem| format!("{}: {}", problem.field, problem.message));
    let broken = Broken {
        why: texts.collect::<Vec<_>>().join(", "),
        fix: found
            .iter()
            .find_map(|problem| problem.hint.clone())
            .unwrap_or_else(|| "mend the solver in the AcmeIssuer".to_owned()),
    };
    for problem in found {
        problem.message = format!("solver {name:?} is left out: {}", problem.message);
    }
    broken
}

fn patterns(report: &mut Report, field: &Field<'_>, names: &[String]) -> Vec<HostPattern> {
    names
        .iter()
        .enumerate()
        .filter_map(|(index, name)| host_pattern(report, &field.index(index), name))
        .collect()
}

/// `192.0.2.53`, `192.0.2.53:53`, `2001:db8::53` or `[2001:db8::53]:53`.
fn name_server(text: &str) -> Option<SocketAddr> {
    let address = text.parse::<IpAddr>();
    let given = address.map(|ip| SocketAddr::new(ip, DNS_PORT)).ok();
    given.or_else(|| text.parse().ok())
}

/// A dns-01 solver in the making.
struct Build<'a, 'b> {
    references: &'a References<'a>,
    field: Field<'a>,
    made: &'a mut Made<'b>,
}

impl Build<'_, '_> {
    fn method(mut self, report: &mut Report, wire: &Dns01Solver) -> Option<DnsMethod> {
        let field = self.field;
        let set = [
            wire.rfc2136.is_some(),
            wire.webhook.is_some(),
            wire.exec.is_some(),
            wire.provider.is_some(),
        ];
        if set.iter().filter(|set| **set).count() != 1 {
            report.invalid(
                field,
                "it does not say in one way who writes the record",
                "set exactly one of rfc2136, webhook, exec and provider",
            );
        }
        let defaults = propagation::Settings::default();
        let timeout = positive_duration_or(
            report,
            &field.at("propagationTimeout"),
            wire.propagation_timeout.as_deref(),
            defaults.timeout,
        );
        let at = field.at("nameServers");
        let mut servers = Vec::new();
        for (index, text) in wire.name_servers.iter().enumerate() {
            match name_server(text) {
                Some(server) => servers.push(server),
                None => report.invalid(
                    at.index(index),
                    format!("{text:?} is not the address of a name server"),
                    "write one such as 192.0.2.53 or [2001:db8::53]:5353",
                ),
            }
        }
        let asked = if servers.is_empty() {
            &self.references.inputs.environment.name_servers
        } else {
            &servers
        };
        let asked = asked.clone();
        let (digest, solver) = if let Some(rfc2136) = &wire.rfc2136 {
            self.rfc2136(report, rfc2136)
        } else if let Some(webhook) = &wire.webhook {
            self.webhook(report, webhook)
        } else if let Some(exec) = &wire.exec {
            self.exec(report, exec)
        } else if let Some(provider) = &wire.provider {
            self.provider(report, provider, &asked)
        } else {
            None
        }?;
        let mut fields = Fields::of("method");
        fields.add(digest);
        fields.add(format!("{asked:?} {servers:?} {timeout:?}"));
        Some(DnsMethod {
            solver,
            name_servers: asked,
            propagation: propagation::Settings {
                servers,
                timeout: timeout?,
                ..defaults
            },
            fingerprint: fields.end(),
        })
    }

    fn rfc2136(&mut self, report: &mut Report, wire: &Rfc2136Solver) -> Option<([u8; 32], Writer)> {
        let parent = self.field;
        let field = parent.at("rfc2136");
        let tsig = field.at("tsig");
        let server = name_server(&wire.server);
        if server.is_none() {
            report.invalid(
                field.at("server"),
                format!("{:?} is not the address of a name server", wire.server),
                "write its IP address and port, such as 192.0.2.53:53",
            );
        }
        let algorithm = one_of(
            report,
            &tsig.at("algorithm"),
            wire.tsig.algorithm.as_deref(),
            TsigAlgorithm::default(),
            &[
                ("hmac-sha256", TsigAlgorithm::HmacSha256),
                ("hmac-sha384", TsigAlgorithm::HmacSha384),
                ("hmac-sha512", TsigAlgorithm::HmacSha512),
            ],
        );
        let at = tsig.at("secretRef");
        let key = self.secret(report, &at, &wire.tsig.secret_ref)?;
        if STANDARD
            .decode(key.expose())
            .map_or(true, |key| key.is_empty())
        {
            report.add(
                at,
                Reason::InvalidSecret,
                format!(
                    "key {:?} of Secret {} is not a TSIG key in base64",
                    wire.tsig.secret_ref.key, wire.tsig.secret_ref.name
                ),
                "copy the text after `secret` from the output of tsig-keygen, without quotes",
            );
            return None;
        }
        let settings = rfc2136::Settings {
            server: server?,
            zone: wire.zone.clone(),
            key_name: wire.tsig.key_name.clone(),
            key,
            algorithm: algorithm?,
            timeout: UPDATE_TIMEOUT,
        };
        let mut fields = Fields::of("rfc2136");
        fields.add(settings.server.to_string());
        fields.add(wire.zone.as_deref().unwrap_or_default());
        fields.add(&settings.key_name);
        fields.add(format!("{algorithm:?}"));
        fields.add(settings.key.expose());
        self.make(report, &field, fields.end(), || {
            Ok(Arc::new(Rfc2136::new(&settings)?))
        })
    }

    fn webhook(&mut self, report: &mut Report, wire: &WebhookSolver) -> Option<([u8; 32], Writer)> {
        let parent = self.field;
        let field = parent.at("webhook");
        let mut fields = Fields::of("webhook");
        fields.add(&wire.url);
        let auth = field.at("auth");
        let credentials = match &wire.auth {
            None => None,
            Some(given) => match (&given.basic, &given.bearer) {
                (Some(basic), None) => {
                    let at = auth.at("basic");
                    let at = at.at("secretName");
                    let mut value = |key: &str| {
                        let secret = SecretKeyRef {
                            name: basic.secret_name.clone(),
                            key: key.to_owned(),
                        };
                        self.secret(report, &at, &secret)
                    };
                    let user = value("username")?;
                    let password = value("password")?;
                    fields.add("basic");
                    fields.add(user.expose());
                    fields.add(password.expose());
                    Some(Credentials::Basic {
                        user: user.expose().clone(),
                        password,
                    })
                }
                (None, Some(bearer)) => {
                    let at = auth.at("bearer");
                    let at = at.at("secretRef");
                    let token = self.secret(report, &at, &bearer.secret_ref)?;
                    fields.add("bearer");
                    fields.add(token.expose());
                    Some(Credentials::Bearer(token))
                }
                _ => {
                    report.invalid(
                        auth,
                        "it does not say in one way how the edge identifies itself",
                        "set exactly one of basic and bearer, or leave auth out",
                    );
                    return None;
                }
            },
        };
        let mut ca_bundle = None;
        if let Some(name) = &wire.ca_secret_name {
            // Checks it, and says where it is wrong.
            self.references.roots(report, &field, Some(name), None)?;
            let at = field.at("caSecretName");
            let pem = self.references.secret_key(report, &at, name, &["ca.crt"])?;
            fields.add("ca");
            fields.add(pem);
            ca_bundle = Some(String::from_utf8_lossy(pem).into_owned());
        }
        let settings = webhook::Settings {
            url: wire.url.clone(),
            credentials,
            ca_bundle,
            timeout: webhook::DEFAULT_TIMEOUT,
            reach: Arc::clone(&self.references.inputs.environment.reach),
        };
        fields.add(format!("{:?}", settings.reach));
        self.make(report, &field.at("url"), fields.end(), || {
            Ok(Arc::new(Webhook::new(&settings)?))
        })
    }

    fn exec(&mut self, report: &mut Report, wire: &ExecSolver) -> Option<([u8; 32], Writer)> {
        let parent = self.field;
        let field = parent.at("exec");
        if self.references.inputs.environment.programs == ProgramPolicy::Refused {
            report.add(
                field,
                Reason::UnsupportedValue,
                "programs are not run here: whoever may write an AcmeIssuer could run any",
                "use rfc2136, webhook or provider",
            );
            return None;
        }
        let mut fields = Fields::of("exec");
        fields.add(&wire.command);
        for arg in &wire.args {
            fields.add(arg);
        }
        let mut env = BTreeMap::new();
        if let Some(name) = &wire.environment_secret_name {
            let at = field.at("environmentSecretName");
            let secret = Arc::clone(self.references.secret(report, &at, name)?);
            for key in secret.data.keys() {
                let value = self.secret(
                    report,
                    &at,
                    &SecretKeyRef {
                        name: name.clone(),
                        key: key.clone(),
                    },
                )?;
                fields.add(key);
                fields.add(value.expose());
                env.insert(key.clone(), value);
            }
        }
        let settings = exec::Settings {
            program: PathBuf::from(&wire.command),
            args: wire.args.clone(),
            env,
            timeout: exec::DEFAULT_TIMEOUT,
        };
        self.make(report, &field.at("command"), fields.end(), || {
            Ok(Arc::new(exec::Exec::new(settings)?))
        })
    }

    fn provider(
        &mut self,
        report: &mut Report,
        wire: &ProviderSolver,
        name_servers: &[SocketAddr],
    ) -> Option<([u8; 32], Writer)> {
        let parent = self.field;
        let field = parent.at("provider");
        let at = field.at("credentials");
        let name = &wire.credentials.secret_name;
        let from = at.at("secretName");
        let secret = Arc::clone(self.references.secret(report, &from, name)?);
        let keys: BTreeMap<&String, &String> = if wire.credentials.keys.is_empty() {
            secret.data.keys().map(|key| (key, key)).collect()
        } else {
            wire.credentials.keys.iter().collect()
        };
        let mut fields = Fields::of("provider");
        fields.add(&wire.name);
        fields.add(wire.zone.as_deref().unwrap_or_default());
        fields.add(format!("{name_servers:?}"));
        let mut credentials = BTreeMap::new();
        for (credential, key) in keys {
            let given = SecretKeyRef {
                name: name.clone(),
                key: key.clone(),
            };
            let value = self.secret(report, &from, &given)?;
            fields.add(credential);
            fields.add(value.expose());
            credentials.insert(credential.clone(), value);
        }
        let settings = providers::Settings {
            provider: wire.name.clone(),
            credentials,
            zone: wire.zone.clone(),
            timeout: providers::DEFAULT_TIMEOUT,
        };
        if let Err(error) = providers::check(&settings) {
            refuse(report, &field, Reason::Invalid, &error);
            return None;
        }
        let digest = fields.end();
        let solver = self.made.get(digest, || {
            providers::solver(&settings, DnsMethod::client(name_servers)?)
        });
        match solver {
            Ok(solver) => Some((digest, solver)),
            Err(error) => {
                refuse(report, &field, Reason::UnsupportedValue, &error);
                None
            }
        }
    }

    fn make(
        &mut self,
        report: &mut Report,
        field: &Field<'_>,
        digest: [u8; 32],
        make: impl FnOnce() -> Result<Writer, SolverError>,
    ) -> Option<([u8; 32], Writer)> {
        match self.made.get(digest, make) {
            Ok(writer) => Some((digest, writer)),
            Err(error) => {
                refuse(report, field, Reason::Invalid, &error);
                None
            }
        }
    }

    /// A value as text, without the white space around it.
    fn secret(
        &self,
        report: &mut Report,
        field: &Field<'_>,
        of: &SecretKeyRef,
    ) -> Option<Secret<String>> {
        let value = self
            .references
            .secret_key(report, field, &of.name, &[&of.key])?;
        match std::str::from_utf8(value).map(str::trim) {
            Ok(text) if !text.is_empty() => Some(Secret::new(text.to_owned())),
            _ => {
                report.add(
                    field,
                    Reason::InvalidSecret,
                    format!("key {:?} of Secret {} holds no text", of.key, of.name),
                    "write the credential there as text",
                );
                None
            }
        }
    }
}

fn refuse(report: &mut Report, field: &Field<'_>, reason: Reason, error: &SolverError) {
    let text = tidegate_telemetry::chain(error).to_string();
    report.add(field, reason, text, error.fix());
}
