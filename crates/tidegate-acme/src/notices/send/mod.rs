//! Delivers notices: one bounded queue for each target, retries that grow apart, no influence on renewals.
//!
//! A target that does not answer holds up nobody else; when its queue is full the newest notice is dropped
//! and that is logged. Nothing here is stored: whoever hands notices out asks what has not arrived yet
//! ([`Notifier::waiting`]), and keeps it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::Full;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tower_service::Service as _;

use super::target::{Endpoint, NoticeError, Target, WebhookTarget};
use super::{Notice, mail};
use crate::client::{Proxied, told_to_wait};
use crate::oneshot::{self, Call, OneshotError};
use crate::plan::moment::between;
use crate::trust;

/// Notices that wait for one target.
const QUEUE: usize = 64;

/// Bytes of an answer that are read.
const BODY_LIMIT: usize = 16 * 1024;

/// Waits that a receiver may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(6 * 3600);

/// How deliveries are repeated.
#[derive(Debug, Clone)]
pub struct NotifierSettings {
    /// Waits before the second, third, … attempt; their number bounds the attempts.
    pub retries: Vec<Duration>,
    /// Notified whenever a [`DeliveryState`] has changed.
    pub changed: Arc<Notify>,
}

impl Default for NotifierSettings {
    fn default() -> Self {
        Self {
            retries: [10, 60, 300, 1800, 7200].map(Duration::from_secs).to_vec(),
            changed: Arc::default(),
        }
    }
}

/// What became of the notices to one target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeliveryState {
    /// Name of the target.
    pub target: String,
    /// How many arrived.
    pub delivered: u64,
    /// How many were given up after all attempts.
    pub failed: u64,
    /// How many found the queue full.
    pub dropped: u64,
    /// Why the last attempt failed; none after a success.
    pub last_error: Option<NoticeError>,
}

/// Hands notices to all targets. Dropping it ends the tasks after what is queued.
#[derive(Debug)]
pub struct Notifier {
    lanes: Vec<Lane>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Lane {
    target: Arc<Target>,
    queue: mpsc::Sender<Arc<Notice>>,
    /// Queued or being delivered, oldest first.
    waiting: Waiting,
    state: watch::Sender<DeliveryState>,
}

type Waiting = Arc<Mutex<VecDeque<Arc<Notice>>>>;

fn lock(waiting: &Waiting) -> MutexGuard<'_, VecDeque<Arc<Notice>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Notifier {
    /// Starts one task for each target on the current runtime. The handles end once the notifier is
    /// dropped and the queues are empty; aborting them ends deliveries at once.
    pub fn start(targets: Vec<Target>, settings: &NotifierSettings) -> (Self, Vec<JoinHandle<()>>) {
        let mut tasks = Vec::new();
        let lanes = targets
            .into_iter()
            .map(|target| {
                let (queue, queued) = mpsc::channel(QUEUE);
                let lane = Lane {
                    state: watch::Sender::new(DeliveryState {
                        target: target.name().to_owned(),
                        ..DeliveryState::default()
                    }),
                    target: Arc::new(target),
                    queue,
                    waiting: Waiting::default(),
                };
                let work = run(
                    Arc::clone(&lane.target),
                    queued,
                    Arc::clone(&lane.waiting),
                    settings.clone(),
                    lane.state.clone(),
                );
                tasks.push(tidegate_telemetry::spawn_named("notices", work));
                lane
            })
            .collect();
        let changed = Arc::clone(&settings.changed);
        (Self { lanes, changed }, tasks)
    }

    /// Queues a notice for every target that wants to hear of its severity; never waits.
    pub fn tell(&self, notice: Notice) {
        let notice = Arc::new(notice);
        for lane in &self.lanes {
            if notice.severity < lane.target.least() {
                continue;
            }
            // Noted first, for it may have arrived by the time that the next line would be reached.
            lock(&lane.waiting).push_back(Arc::clone(&notice));
            if lane.queue.try_send(Arc::clone(&notice)).is_err() {
                lock(&lane.waiting).pop_back();
                lane.state.send_modify(|state| state.dropped += 1);
                self.changed.notify_one();
                tracing::warn!(
                    target_name = lane.target.name(),
                    kind = notice.kind.reason(),
                    subject = notice.subject,
                    "notice dropped, too many wait for this target"
                );
            }
        }
    }

    /// Delivers a notice to every target now, once, past the queues; what came of it, by target.
    pub async fn tell_now(&self, notice: &Notice) -> Vec<(String, Result<(), NoticeError>)> {
        let mut outcomes = Vec::new();
        for lane in &self.lanes {
            let outcome = deliver(&lane.target, notice).await;
            lane.state.send_modify(|state| match &outcome {
                Ok(()) => {
                    state.delivered += 1;
                    state.last_error = None;
                }
                Err(error) => {
                    state.failed += 1;
                    state.last_error = Some(error.clone());
                }
            });
            self.changed.notify_one();
            outcomes.push((lane.target.name().to_owned(), outcome));
        }
        outcomes
    }

    /// What has neither arrived nor been given up, by target.
    pub fn waiting(&self) -> Vec<(String, Vec<Notice>)> {
        self.lanes
            .iter()
            .map(|lane| {
                let waiting = lock(&lane.waiting);
                let notices = waiting.iter().map(|notice| notice.as_ref().clone());
                (lane.target.name().to_owned(), notices.collect())
            })
            .collect()
    }

    /// What became of the notices so far, by target.
    pub fn states(&self) -> Vec<DeliveryState> {
        self.lanes
            .iter()
            .map(|lane| lane.state.borrow().clone())
            .collect()
    }
}

async fn run(
    target: Arc<Target>,
    mut queued: mpsc::Receiver<Arc<Notice>>,
    waiting: Waiting,
    settings: NotifierSettings,
    state: watch::Sender<DeliveryState>,
) {
    while let Some(notice) = queued.recv().await {
        let mut waits = settings.retries.iter();
        loop {
            let outcome = deliver(&target, &notice).await;
            let Err(error) = outcome else {
                lock(&waiting).pop_front();
                state.send_modify(|state| {
                    state.delivered += 1;
                    state.last_error = None;
                });
                settings.changed.notify_one();
                tracing::info!(
                    target_name = target.name(),
                    kind = notice.kind.reason(),
                    subject = notice.subject,
                    "notice delivered"
                );
                break;
            };
            state.send_modify(|state| state.last_error = Some(error.clone()));
            settings.changed.notify_one();
            let wait = waits.next().filter(|_| error.is_temporary());
            let Some(wait) = wait else {
                lock(&waiting).pop_front();
                state.send_modify(|state| state.failed += 1);
                settings.changed.notify_one();
                tracing::error!(
                    target_name = target.name(),
                    kind = notice.kind.reason(),
                    subject = notice.subject,
                    reason = error.reason(),
                    error = %error,
                    "notice not delivered"
                );
                break;
            };
            let told = error.retry_after().unwrap_or_default();
            let wait = told.min(LONGEST_WAIT).max(*wait);
            tracing::warn!(
                target_name = target.name(),
                reason = error.reason(),
                error = %error,
                wait_s = wait.as_secs(),
                "notice not delivered, trying again"
            );
            tokio::time::sleep(wait).await;
        }
    }
}

/// Delivers one notice, once.
///
/// # Errors
///
/// Why it did not arrive, without any secret.
pub async fn deliver(target: &Target, notice: &Notice) -> Result<(), NoticeError> {
    target.check()?;
    match target {
        Target::Webhook(webhook) => call(Proxied::from_environment(), webhook, notice).await,
        Target::Smtp(smtp) => mail::send(smtp, notice).await,
    }
}

async fn call(
    proxied: Proxied,
    target: &WebhookTarget,
    notice: &Notice,
) -> Result<(), NoticeError> {
    let endpoint = target.endpoint()?;
    let request: Request<Full<Bytes>> = target.request(notice)?.map(Full::new);
    let tls = if endpoint.tls {
        let name = ServerName::try_from(endpoint.host.clone()).map_err(|_| {
            NoticeError::settings(
                &target.name,
                "the URL's host is no name",
                "write it as https://host/path",
            )
        })?;
        Some((tls_config(target)?, name))
    } else {
        None
    };
    let unreachable = |problem: String| NoticeError::Unreachable {
        target: target.name.clone(),
        host: endpoint.host.clone(),
        problem: target.redacted(&problem),
    };
    let whole = Uri::try_from(format!("https://{}/", endpoint.authority));
    if let Some(uri) = whole
        .ok()
        .filter(|uri| tls.is_some() && proxied.stands_before(uri))
    {
        let call = Call {
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            tls,
            timeout: target.timeout,
            body_limit: BODY_LIMIT,
        };
        let exchange = through(proxied, uri, call, request);
        return match tokio::time::timeout(target.timeout, exchange).await {
            Ok(Ok(reply)) if reply.status.is_success() => Ok(()),
            Ok(Ok(reply)) => Err(refused(target, &endpoint, &reply)),
            Ok(Err(error)) => Err(unreachable(error)),
            Err(_) => Err(unreachable(
                OneshotError::Timeout(target.timeout).to_string(),
            )),
        };
    }
    let mut outcome = Err(unreachable("the host has no address".to_owned()));
    for address in addresses(target, &endpoint).await.map_err(unreachable)? {
        let call = Call {
            address,
            tls: tls.clone(),
            timeout: target.timeout,
            body_limit: BODY_LIMIT,
        };
        match oneshot::send(call, request.clone()).await {
            Ok(reply) if reply.status.is_success() => return Ok(()),
            Ok(reply) => return Err(refused(target, &endpoint, &reply)),
            // Only a connection that never was may be tried elsewhere: the rest may have arrived.
            Err(error @ OneshotError::Connect(_)) => outcome = Err(unreachable(error.to_string())),
            Err(error) => return Err(unreachable(error.to_string())),
        }
    }
    outcome
}

/// Through the proxy that `HTTPS_PROXY` names. Plain HTTP is never sent through one: it is for receivers
/// near by, and many proxies tunnel to port 443 only.
async fn through(
    mut proxied: Proxied,
    uri: Uri,
    call: Call,
    request: Request<Full<Bytes>>,
) -> Result<oneshot::Reply, String> {
    let stream = proxied
        .call(uri)
        .await
        .map_err(|error| format!("connect through the proxy: {error}"))?;
    oneshot::over(stream.into_inner(), call, request)
        .await
        .map_err(|error| error.to_string())
}

async fn addresses(target: &WebhookTarget, endpoint: &Endpoint) -> Result<Vec<SocketAddr>, String> {
    let (host, port) = (endpoint.host.as_str(), endpoint.port);
    let mut found = oneshot::addresses(&target.reach, host, port, target.timeout).await?;
    found.truncate(4);
    Ok(found)
}

fn refused(target: &WebhookTarget, endpoint: &Endpoint, reply: &oneshot::Reply) -> NoticeError {
    let status = reply.status;
    let text = String::from_utf8_lossy(&reply.body);
    let text = target.redacted(text.trim());
    let answer = if status.is_redirection() {
        format!(
            "status {}, a redirect, which is not followed; set the URL that it leads to",
            status.as_u16()
        )
    } else if text.is_empty() {
        format!("status {}", status.as_u16())
    } else {
        format!("status {}: {text}", status.as_u16())
    };
    NoticeError::Refused {
        target: target.name.clone(),
        host: endpoint.host.clone(),
        answer,
        retry_after: {
            let now = SystemTime::now();
            told_to_wait(&reply.headers, now).map(|at| between(now, at))
        },
        temporary: status.is_server_error()
            || [
                StatusCode::REQUEST_TIMEOUT,
                StatusCode::TOO_EARLY,
                StatusCode::TOO_MANY_REQUESTS,
            ]
            .contains(&status),
    }
}

fn tls_config(target: &WebhookTarget) -> Result<Arc<ClientConfig>, NoticeError> {
    trust::client_of_bundle(target.ca_bundle.as_deref(), "the caBundle").map_err(|problem| {
        NoticeError::settings(
            &target.name,
            &problem,
            "give certificates in PEM, each between BEGIN CERTIFICATE and END CERTIFICATE",
        )
    })
}

#[cfg(test)]
mod tests;
