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
use instant_acme::{BodyWrapper, BytesResponse, HttpClient, Problem};
use rustls::RootCertStore;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::plan::moment::{between, rounded_up};
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
    /// It cannot answer now.
    #[error("{url} answered {status}")]
    Busy {
        /// The URL.
        url: String,
        /// Its status.
        status: StatusCode,
        /// When it asked to come back.
        retry_after: Option<SystemTime>,
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
            Self::Busy { status, .. } if *status == StatusCode::TOO_MANY_REQUESTS => "RateLimited",
            Self::Exchange { .. } | Self::Timeout { .. } | Self::NotAsked | Self::Busy { .. } => {
                "CaUnreachable"
            }
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
    /// Until when the last answer asked to wait.
    told: Arc<Mutex<Option<SystemTime>>>,
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
            told: Arc::default(),
        })
    }

    /// The same client for one attempt, whose waits are nobody else's: an authority that asks to wait
    /// with one order says nothing about another, nor about when to ask for renewal information.
    #[must_use]
    pub fn for_one_attempt(&self) -> Self {
        Self {
            told: Arc::default(),
            ..self.clone()
        }
    }

    /// What the headers of answers said so far.
    pub fn hints(&self) -> Hints {
        self.lock().clone()
    }

    /// Until when the authority asked this clone to wait, if its last answers did.
    pub fn told_to_wait(&self) -> Option<SystemTime> {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner)
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
        let wait = retry_after(&response, SystemTime::now());
        let body = response.into_body();
        let problem = |problem: String| ClientError::Directory {
            url: url.to_owned(),
            status,
            problem,
        };
        if is_busy(status) {
            return Err(ClientError::Busy {
                url: url.to_owned(),
                status,
                retry_after: wait,
            });
        }
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
        let wait = retry_after(response, now);
        if wait.is_some() || is_busy(status) {
            *self.told.lock().unwrap_or_else(PoisonError::into_inner) = wait;
        }
    }
}

/// Whether the same request may be answered another time.
fn is_busy(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

/// The problem of an answer that says none: overloaded front ends send pages of their own, and an answer
/// to HEAD has no body at all (RFC 8555 §6.7 demands a document, §7.2 does not say what a refused nonce is).
fn problem_of(head: bool, response: &Response<Bytes>) -> Option<Problem> {
    let status = response.status();
    if !is_busy(status) {
        return None;
    }
    let told: Option<Problem> = serde_json::from_slice(response.body()).ok();
    let is_told = |problem: &Problem| {
        let told = problem.r#type.as_deref();
        told.is_some_and(|told| told.contains("acme:error:"))
    };
    if !head && told.as_ref().is_some_and(is_told) {
        return None;
    }
    let detail = told.and_then(|problem| problem.detail);
    let kind = match status {
        StatusCode::TOO_MANY_REQUESTS => "rateLimited",
        _ => "serverInternal",
    };
    Some(Problem {
        r#type: Some(format!("urn:ietf:params:acme:error:{kind}")),
        detail: Some(detail.unwrap_or_else(|| format!("it answered {status}"))),
        status: Some(status.as_u16()),
        subproblems: Vec::new(),
    })
}

/// `Retry-After` in a form that cannot do harm: instant-acme adds what it says to the time, which panics
/// beyond the end of time.
fn bound_wait(response: &mut Response<Bytes>, now: SystemTime) {
    let wait = retry_after(response, now);
    let headers = response.headers_mut();
    headers.remove(header::RETRY_AFTER);
    if let Some(at) = wait {
        headers.insert(header::RETRY_AFTER, between(now, at).as_secs().into());
    }
}

impl HttpClient for AcmeClient {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let client = self.clone();
        let head = request.method() == Method::HEAD;
        Box::pin(async move {
            match client.exchange(request).await {
                Ok(mut response) => {
                    if let Some(problem) = problem_of(head, &response) {
                        return Err(instant_acme::Error::Api(problem));
                    }
                    bound_wait(&mut response, SystemTime::now());
                    Ok(BytesResponse::from(response.map(Full::new)))
                }
                Err(error) => Err(instant_acme::Error::Other(Box::new(error))),
            }
        })
    }
}

/// When an answer says to come back (RFC 9110 §10.2.3), within bounds.
fn retry_after<B>(response: &Response<B>, now: SystemTime) -> Option<SystemTime> {
    // What is stored has whole seconds, and a fraction less would be too early.
    told_to_wait(response.headers(), now).map(rounded_up)
}

/// The same from the headers alone.
pub(crate) fn told_to_wait(headers: &HeaderMap, now: SystemTime) -> Option<SystemTime> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let longest = now + LONGEST_RETRY_AFTER;
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that is too large for anything is a long time too.
        let wait = value.parse().map_or(Duration::MAX, Duration::from_secs);
        return Some(now.checked_add(wait).map_or(longest, |at| at.min(longest)));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    Some(at.clamp(now, longest))
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

    #[test]
    fn a_busy_front_end_is_understood_without_a_problem_document() {
        let said = |status: u16, head: bool, body: &'static str| {
            let response = Response::builder()
                .status(status)
                .body(Bytes::from_static(body.as_bytes()))
                .unwrap();
            problem_of(head, &response).map(|problem| {
                let kind = problem.r#type.unwrap();
                let kind = kind.rsplit(':').next().unwrap();
                format!("{kind}: {}", problem.detail.unwrap())
            })
        };
        let limited = r#"{"type": "urn:ietf:params:acme:error:rateLimited", "detail": "slow"}"#;
        for (status, head, body, expected) in [
            (
                503,
                false,
                "<html>",
                Some("serverInternal: it answered 503 Service Unavailable"),
            ),
            (
                502,
                false,
                r#"{"detail": "down"}"#,
                Some("serverInternal: down"),
            ),
            (
                429,
                true,
                "",
                Some("rateLimited: it answered 429 Too Many Requests"),
            ),
            (429, true, limited, Some("rateLimited: slow")),
            // What says what it is is left alone, and what is no matter of time too.
            (429, false, limited, None),
            (503, false, limited, None),
            (404, false, "<html>", None),
            (200, false, "{}", None),
        ] {
            assert_eq!(
                said(status, head, body).as_deref(),
                expected,
                "{status} {body}"
            );
        }
    }

    #[test]
    fn a_wait_beyond_the_end_of_time_is_not_passed_on() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let passed_on = |value: &str| {
            let mut response = Response::builder()
                .header(header::RETRY_AFTER, value)
                .body(Bytes::new())
                .unwrap();
            bound_wait(&mut response, now);
            let left = response.headers().get(header::RETRY_AFTER);
            left.map(|left| left.to_str().unwrap().to_owned())
        };
        assert_eq!(passed_on("3").as_deref(), Some("3"));
        assert_eq!(passed_on("18446744073709551615").as_deref(), Some("604800"));
        assert_eq!(
            passed_on("99999999999999999999999").as_deref(),
            Some("604800")
        );
        assert_eq!(passed_on("-5"), None);
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
