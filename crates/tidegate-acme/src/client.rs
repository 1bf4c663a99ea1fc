//! The HTTP client that speaks to certification authorities.
//!
//! instant-acme's own has no deadline, no limit on bodies and does not show `Retry-After`; ours has all
//! three, honours `HTTPS_PROXY`/`NO_PROXY`, verifies with the issuer's own CAs where it has some, and
//! notices how far the authority's clock is from ours.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use rustls::RootCertStore;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::plan::moment::between;
use crate::plan::renewal::{AriFailure, AriState, AriWindow};
use crate::settings::TrustedRoots;
use crate::trust;

/// Longest answer that is read: chains of RSA certificates stay far below.
const MAX_BODY: usize = 1 << 20;
/// A whole exchange, connection included.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Waits that an authority may ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// What is counted in place of a status where no answer came.
const NO_ANSWER: u16 = 0;

type BoxError = Box<dyn StdError + Send + Sync>;

/// Why the authority could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The system has no CAs to trust.
    #[error("load the CAs that this system trusts: {0}; give the issuer a caSecretName")]
    Roots(String),
    /// No TLS client can be made.
    #[error("set up the TLS client")]
    Tls(#[source] rustls::Error),
    /// The address is not one that can be asked.
    #[error("{0:?} is not an https URL")]
    Url(String),
    /// It was not asked.
    #[error("the directory was not asked")]
    NotAsked,
    /// No answer came.
    #[error("ask {host}")]
    Exchange {
        /// Host of the URL.
        host: String,
        /// What went wrong.
        #[source]
        source: BoxError,
    },
    /// It took too long.
    #[error("no answer from {host} within {} s", TIMEOUT.as_secs())]
    Timeout {
        /// Host of the URL.
        host: String,
    },
    /// An answer that is no directory.
    #[error("{url} answered {status}: {problem}")]
    Directory {
        /// The URL.
        url: String,
        /// Its status.
        status: StatusCode,
        /// What is wrong.
        problem: String,
    },
}

impl ClientError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Roots(_) | Self::Tls(_) => "TlsClient",
            Self::Url(_) => "Invalid",
            Self::Exchange { source, .. } if is_untrusted(source.as_ref()) => "CaUntrusted",
            Self::Exchange { .. } | Self::Timeout { .. } | Self::NotAsked => "CaUnreachable",
            Self::Directory { .. } => "NotADirectory",
        }
    }
}

/// Whether a certificate was refused somewhere in the chain of causes.
pub(crate) fn is_untrusted(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return true;
        }
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && let Some(inner) = io.get_ref()
            && is_untrusted(inner)
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// What the headers of answers said that instant-acme does not pass on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hints {
    /// Asked to wait until then, by the last 429 or 503.
    pub retry_after: Option<SystemTime>,
    /// The authority's clock minus ours, in seconds.
    pub clock_ahead: Option<i64>,
    /// Requests by status; 0 where no answer came.
    pub requests: BTreeMap<u16, u64>,
}

/// A client for one issuer. Clones share connections and hints.
#[derive(Clone)]
pub struct AcmeClient {
    client: Client<HttpsConnector<Proxied>, BodyWrapper<Bytes>>,
    hints: Arc<Mutex<Hints>>,
}

impl fmt::Debug for AcmeClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcmeClient").finish_non_exhaustive()
    }
}

impl AcmeClient {
    /// Makes a client that trusts these CAs, or the system's.
    pub fn new(roots: Option<&TrustedRoots>) -> Result<Self, ClientError> {
        let roots = match roots {
            Some(roots) => Arc::clone(&roots.roots),
            None => Arc::new(system_roots()?),
        };
        let config = trust::client(roots).map_err(ClientError::Tls)?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only()
            .enable_http1()
            .wrap_connector(Proxied::from_environment());
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(2)
            .build(connector);
        Ok(Self {
            client,
            hints: Arc::default(),
        })
    }

    /// What the headers of answers said so far.
    pub fn hints(&self) -> Hints {
        self.lock().clone()
    }

    /// Takes the wait that was asked for, so that it counts once.
    pub fn take_retry_after(&self) -> Option<SystemTime> {
        self.lock().retry_after.take()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Hints> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the directory.
    pub async fn directory(&self, url: &str) -> Result<Directory, ClientError> {
        let uri: Uri = url
            .parse()
            .ok()
            .filter(|uri: &Uri| uri.scheme_str() == Some("https") && uri.host().is_some())
            .ok_or_else(|| ClientError::Url(url.to_owned()))?;
        let mut request = Request::new(BodyWrapper::default());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri;
        let response = self.exchange(request).await?;
        let status = response.status();
        let body = response.into_body();
        let problem = |problem: String| ClientError::Directory {
            url: url.to_owned(),
            status,
            problem,
        };
        if !status.is_success() {
            return Err(problem("an ACME directory answers 200".to_owned()));
        }
        serde_json::from_slice(&body)
            .map_err(|error| problem(format!("that is no ACME directory ({error})")))
    }

    /// Asks when to renew a certificate (RFC 9773 §4.1); `id` is its identifier.
    pub async fn renewal_info(
        &self,
        url: &str,
        id: &str,
    ) -> Result<AriState, (AriFailure, Option<Duration>)> {
        let mut request = Request::new(BodyWrapper::default());
        *request.uri_mut() = format!("{}/{id}", url.trim_end_matches('/'))
            .parse()
            .map_err(|_| (AriFailure::Malformed, None))?;
        let now = SystemTime::now();
        let response = self
            .exchange(request)
            .await
            .map_err(|_| (AriFailure::Unavailable, None))?;
        let wait = retry_after(&response, now).map(|at| between(now, at));
        let status = response.status();
        if !status.is_success() {
            // Too many questions are no sign that it is not offered.
            let failure = if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS {
                AriFailure::Unsupported
            } else {
                AriFailure::Unavailable
            };
            return Err((failure, wait));
        }
        let info: RenewalInfo =
            serde_json::from_slice(response.body()).map_err(|_| (AriFailure::Malformed, wait))?;
        let explanation = info.explanation_url.as_deref();
        Ok(AriState::answered(
            info.suggested_window,
            explanation,
            wait,
            now,
        ))
    }

    /// One exchange, with all limits.
    pub(crate) async fn exchange(
        &self,
        mut request: Request<BodyWrapper<Bytes>>,
    ) -> Result<Response<Bytes>, ClientError> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        request.headers_mut().insert(
            header::USER_AGENT,
            header::HeaderValue::from_static(concat!("tidegate/", env!("CARGO_PKG_VERSION"))),
        );
        let exchange = async {
            let response = self.client.request(request).await.map_err(BoxError::from)?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, MAX_BODY).collect().await?.to_bytes();
            Ok(Response::from_parts(parts, body))
        };
        let outcome = match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(outcome) => outcome.map_err(|source| ClientError::Exchange { host, source }),
            Err(_) => Err(ClientError::Timeout { host }),
        };
        match &outcome {
            Ok(response) => self.note(response, SystemTime::now()),
            Err(_) => *self.lock().requests.entry(NO_ANSWER).or_default() += 1,
        }
        outcome
    }

    fn note<B>(&self, response: &Response<B>, now: SystemTime) {
        let status = response.status();
        let mut hints = self.lock();
        *hints.requests.entry(status.as_u16()).or_default() += 1;
        if let Some(date) = date_of(response, &header::DATE) {
            hints.clock_ahead = Some(seconds_between(now, date));
        }
        if matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            hints.retry_after = retry_after(response, now);
        }
    }
}

impl HttpClient for AcmeClient {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move {
            match client.exchange(request).await {
                Ok(response) => Ok(BytesResponse::from(response.map(Full::new))),
                Err(error) => Err(instant_acme::Error::Other(Box::new(error))),
            }
        })
    }
}

/// When an answer says to come back (RFC 9110 §10.2.3), within bounds.
fn retry_after<B>(response: &Response<B>, now: SystemTime) -> Option<SystemTime> {
    told_to_wait(response.headers(), now)
}

/// The same from the headers alone.
pub(crate) fn told_to_wait(headers: &HeaderMap, now: SystemTime) -> Option<SystemTime> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    let at = match value.trim().parse() {
        Ok(seconds) => now.checked_add(Duration::from_secs(seconds))?,
        Err(_) => httpdate::parse_http_date(value).ok()?,
    };
    Some(at.clamp(now, now + LONGEST_RETRY_AFTER))
}

fn date_of<B>(response: &Response<B>, name: &header::HeaderName) -> Option<SystemTime> {
    let value = response.headers().get(name)?.to_str().ok()?;
    httpdate::parse_http_date(value).ok()
}

/// `to - from` in seconds.
fn seconds_between(from: SystemTime, to: SystemTime) -> i64 {
    let signed = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match to.duration_since(from) {
        Ok(ahead) => signed(ahead),
        Err(behind) => -signed(behind.duration()),
    }
}

fn system_roots() -> Result<RootCertStore, ClientError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found
            .errors
            .first()
            .map_or_else(|| "there are none".to_owned(), ToString::to_string);
        return Err(ClientError::Roots(why));
    }
    Ok(roots)
}

/// The answer to a question for renewal information (RFC 9773 §4.2).
#[derive(Debug, Deserialize)]
struct RenewalInfo {
    #[serde(rename = "suggestedWindow")]
    suggested_window: AriWindow,
    #[serde(rename = "explanationURL", default)]
    explanation_url: Option<String>,
}

/// What an authority says of itself (RFC 8555 §7.1.1).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Directory {
    /// Where orders are placed; what tells a directory from other JSON.
    pub new_order: String,
    /// Where renewal information is asked for, if it is offered (RFC 9773).
    #[serde(default)]
    pub renewal_info: Option<String>,
    /// The rest.
    #[serde(default)]
    pub meta: DirectoryMeta,
}

/// Facts about an authority.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectoryMeta {
    /// URL of the terms of service.
    #[serde(default)]
    pub terms_of_service: Option<String>,
    /// Names that CAA records may allow it by (RFC 8659).
    #[serde(default)]
    pub caa_identities: Vec<String>,
    /// Whether accounts need an external binding.
    #[serde(default)]
    pub external_account_required: bool,
    /// Profiles by name, each with a description.
    #[serde(default)]
    pub profiles: BTreeMap<String, String>,
}

/// Connects directly, or by CONNECT through the proxy that the environment names for the host.
#[derive(Clone)]
pub(crate) struct Proxied {
    tcp: HttpConnector,
    proxies: Arc<Matcher>,
}

impl Proxied {
    /// As `HTTPS_PROXY` and `NO_PROXY` say.
    pub(crate) fn from_environment() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(Duration::from_secs(10)));
        tcp.set_nodelay(true);
        Self {
            tcp,
            proxies: Arc::new(Matcher::from_env()),
        }
    }

    /// Through this proxy, whatever the environment says.
    #[cfg(test)]
    pub(crate) fn by(proxy: String) -> Self {
        Self {
            proxies: Arc::new(Matcher::builder().https(proxy).build()),
            ..Self::from_environment()
        }
    }

    /// Whether a proxy stands before this URL.
    pub(crate) fn stands_before(&self, target: &Uri) -> bool {
        self.proxies.intercept(target).is_some()
    }
}

impl tower_service::Service<Uri> for Proxied {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let mut tcp = self.tcp.clone();
        match self.proxies.intercept(&target) {
            None => Box::pin(async move { Ok(tcp.call(target).await?) }),
            Some(proxy) => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), tcp);
                if let Some(credentials) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(credentials.clone());
                }
                Box::pin(async move { Ok(tunnel.call(target).await?) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_read_in_both_forms_and_bounded() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let wait = |value: &str| {
            let response = Response::builder()
                .header(header::RETRY_AFTER, value)
                .body(())
                .unwrap();
            retry_after(&response, now).map(|at| at.duration_since(now).unwrap().as_secs())
        };
        assert_eq!(wait("120"), Some(120));
        assert_eq!(wait("Tue, 14 Nov 2023 22:14:20 GMT"), Some(60));
        assert_eq!(wait("Tue, 14 Nov 2000 22:14:20 GMT"), Some(0));
        assert_eq!(wait("99999999999"), Some(7 * 24 * 3600));
        assert_eq!(wait("soon"), None);
    }

    #[tokio::test]
    async fn only_https_is_asked() {
        let client = AcmeClient::new(None);
        let Ok(client) = client else { return };
        let error = client.directory("http://ca.example/dir").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"http://ca.example/dir\" is not an https URL"
        );
    }
}
