//! A web service that writes the record: `POST {url}/present` and `/cleanup` with `{"fqdn","value"}`, the
//! contract of lego's `httpreq`, so that the services written for it can be used.
//!
//! Each call has one deadline and a limit on what is read. Redirects are not followed: credentials would go
//! along. Credentials are sent over https or to this machine only, and no error text repeats them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::Full;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Serialize;
use tidegate_model::{Reach, Secret};

use super::{DnsSolver, SolverError, TxtRecord};
use crate::oneshot::{self, Call};
use crate::trust;

/// Time for one call when nothing else is set.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

const BODY_LIMIT: usize = 16 * 1024;

/// How much of an answer an error repeats.
const SHOWN: usize = 300;

/// Who calls.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// HTTP Basic (RFC 7617).
    Basic {
        /// User name.
        user: String,
        /// Its password.
        password: Secret<String>,
    },
    /// Bearer token (RFC 6750).
    Bearer(Secret<String>),
}

/// What is called, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `https://host[:port][/path]`; `/present` and `/cleanup` are appended.
    pub url: String,
    /// Sent with each call.
    pub credentials: Option<Credentials>,
    /// Certification authorities in PEM that are trusted instead of the system's.
    pub ca_bundle: Option<String>,
    /// Time for one call.
    pub timeout: Duration,
    /// Where it may be.
    pub reach: Arc<Reach>,
}

/// Calls a web service.
#[derive(Debug)]
pub struct Webhook {
    base: Uri,
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    authorization: Option<Secret<String>>,
    timeout: Duration,
    reach: Arc<Reach>,
}

#[derive(Serialize)]
struct Body<'a> {
    fqdn: &'a str,
    value: &'a str,
}

impl Webhook {
    /// Checks the settings; calls nobody yet.
    pub fn new(settings: &Settings) -> Result<Self, SolverError> {
        let wrong = |what: String, fix: &str| SolverError::Settings {
            what,
            fix: fix.to_owned(),
        };
        let base: Uri = settings.url.parse().map_err(|_| {
            wrong(
                "the webhook's url cannot be read".to_owned(),
                "write it as https://host/path",
            )
        })?;
        let (Some(scheme), Some(authority)) = (base.scheme_str(), base.authority()) else {
            return Err(wrong(
                "the webhook's url has no scheme or host".to_owned(),
                "write it as https://host/path",
            ));
        };
        if authority.as_str().contains('@') || base.query().is_some() {
            return Err(wrong(
                "the webhook's url holds user information or a query".to_owned(),
                "put credentials into their own fields, where they are kept from logs",
            ));
        }
        let host = base
            .host()
            .unwrap_or_default()
            .trim_matches(['[', ']'])
            .to_owned();
        let local = host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.is_loopback());
        let tls = match scheme {
            "https" => Some(tls_config(settings.ca_bundle.as_deref())?),
            "http" if local || settings.credentials.is_none() => None,
            "http" => {
                return Err(wrong(
                    "the webhook's credentials would cross the network in clear text".to_owned(),
                    "use an https url",
                ));
            }
            other => {
                return Err(wrong(
                    format!("the webhook's url has scheme {other:?}"),
                    "use an https url",
                ));
            }
        };
        let default_port = if tls.is_some() { 443 } else { 80 };
        let port = base.port_u16().unwrap_or(default_port);
        if let Some(refused) = oneshot::refused(&settings.reach, &host, port) {
            return Err(wrong(
                format!("the webhook's url: {refused}"),
                oneshot::ALLOW,
            ));
        }
        Ok(Self {
            host,
            port,
            reach: Arc::clone(&settings.reach),
            base,
            tls,
            authorization: settings.credentials.as_ref().map(authorization),
            timeout: settings.timeout,
        })
    }

    async fn call(&self, action: &'static str, record: &TxtRecord) -> Result<(), SolverError> {
        let path = format!("{}/{action}", self.base.path().trim_end_matches('/'));
        let authority = self
            .base
            .authority()
            .map_or("", http::uri::Authority::as_str);
        let url = format!(
            "{}://{authority}{path}",
            self.base.scheme_str().unwrap_or("https")
        );
        let failed = |problem: String| SolverError::Webhook {
            url: url.clone(),
            problem,
        };
        let body = serde_json::to_vec(&Body {
            fqdn: &record.fqdn,
            value: &record.value,
        })
        .map_err(|error| failed(error.to_string()))?;
        let mut request = Request::post(&path)
            .header(header::HOST, authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "tidegate");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization.expose());
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|_| failed("the credentials hold characters no header may".to_owned()))?;
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| failed(format!("{:?} is no host name", self.host)))?;
        let found = oneshot::addresses(&self.reach, &self.host, self.port, self.timeout).await;
        let addresses = found.map_err(failed)?;
        let mut outcome = Err(failed("the host has no address".to_owned()));
        for address in addresses {
            let call = Call {
                address,
                tls: self.tls.clone().map(|config| (config, name.clone())),
                timeout: self.timeout,
                body_limit: BODY_LIMIT,
            };
            match oneshot::send(call, request.clone()).await {
                Ok(reply) if reply.status.is_success() => return Ok(()),
                Ok(reply) => return Err(failed(self.quoted(&reply))),
                Err(error @ oneshot::OneshotError::Connect(_)) => {
                    outcome = Err(failed(error.to_string()));
                }
                Err(error) => return Err(failed(error.to_string())),
            }
        }
        outcome
    }

    fn quoted(&self, reply: &oneshot::Reply) -> String {
        let mut text = String::from_utf8_lossy(&reply.body).trim().to_owned();
        if let Some(authorization) = &self.authorization {
            let secret = authorization.expose();
            let bare = secret.split_once(' ').map_or(secret.as_str(), |(_, s)| s);
            text = text.replace(bare, "[redacted]");
        }
        let text: String = text.chars().take(SHOWN).collect();
        let sep = if text.is_empty() { "" } else { ": " };
        format!(
            "status {}{sep}{}",
            reply.status.as_u16(),
            text.replace('\n', " | ")
        )
    }
}

fn authorization(credentials: &Credentials) -> Secret<String> {
    Secret::new(match credentials {
        Credentials::Basic { user, password } => {
            let pair = format!("{user}:{}", password.expose());
            let coded = base64::engine::general_purpose::STANDARD.encode(pair);
            format!("Basic {coded}")
        }
        Credentials::Bearer(token) => format!("Bearer {}", token.expose()),
    })
}

fn tls_config(ca_bundle: Option<&str>) -> Result<Arc<ClientConfig>, SolverError> {
    trust::client_of_bundle(ca_bundle, "the webhook's caBundle").map_err(|what| {
        SolverError::Settings {
            what,
            fix: "give certificates in PEM, each between BEGIN CERTIFICATE and END CERTIFICATE"
                .to_owned(),
        }
    })
}

#[async_trait]
impl DnsSolver for Webhook {
    fn name(&self) -> String {
        format!("webhook {}", self.base)
    }

    async fn present(&self, record: &TxtRecord, _now: SystemTime) -> Result<(), SolverError> {
        self.call("present", record).await
    }

    async fn remove(&self, record: &TxtRecord, _now: SystemTime) -> Result<(), SolverError> {
        self.call("cleanup", record).await
    }
}
