//! What lives as long as a request: counters, the access-log record, and the response body that carries
//! both until its last byte.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tidegate_http1::Interim;
use tidegate_model::{HostName, RouteId, Rule};

use crate::access_log::{self, Keys};
use crate::body::{Body, BodyError};
use crate::connection::Connection;
use crate::error::ProxyError;
use crate::filters::concurrency::InFlightGuard;
use crate::metrics::RouteMetrics;
use crate::normalize;
use crate::odd_query::RawQuery;
use crate::tracker::{Said, TrackerWatch};

/// Counts a request as in flight until it is dropped, then logs it.
pub(crate) struct RequestGuard {
    connection: Arc<Connection>,
    started: Instant,
    served: u64,
    version: Version,
    status: StatusCode,
    metrics: Option<Arc<RouteMetrics>>,
    sent: u64,
    id: u128,
    in_flight: Option<InFlightGuard>,
    hints: Option<EarlyHints>,
    /// An announce or scrape.
    tracker: Option<Box<TrackerWatch>>,
    /// The body came to its end.
    ended: bool,
    record: Option<Box<Record>>,
}

/// What only the access log needs; absent when it is off.
struct Record {
    method: Method,
    target: Uri,
    /// What stood in the target's query where the codec could not take it.
    raw_query: Option<RawQuery>,
    host: Option<HostName>,
    route: Option<RouteId>,
    rule: Option<Arc<Rule>>,
    client: Option<IpAddr>,
    upstream: Option<SocketAddr>,
    retries: usize,
    reason: Option<&'static str>,
    error: Option<String>,
    aborted: bool,
    user_agent: Option<HeaderValue>,
    referer: Option<HeaderValue>,
}

impl RequestGuard {
    pub(crate) fn begin<B>(
        connection: &Arc<Connection>,
        request: &Request<B>,
        hints: Option<EarlyHints>,
    ) -> Self {
        let shared = &connection.worker.shared;
        shared.metrics.in_flight.inc();
        let record = shared.settings.access_log.enabled.then(|| {
            Box::new(Record {
                method: request.method().clone(),
                target: request.uri().clone(),
                raw_query: request.extensions().get().cloned(),
                host: None,
                route: None,
                rule: None,
                client: None,
                upstream: None,
                retries: 0,
                reason: None,
                error: None,
                aborted: false,
                user_agent: request.headers().get(header::USER_AGENT).cloned(),
                referer: request.headers().get(header::REFERER).cloned(),
            })
        });
        Self {
            served: connection.clock.request_begins(),
            connection: Arc::clone(connection),
            started: Instant::now(),
            version: request.version(),
            status: StatusCode::OK,
            metrics: None,
            sent: 0,
            id: fastrand::u128(..),
            in_flight: None,
            hints,
            tracker: None,
            ended: false,
            record,
        }
    }

    pub(crate) const fn version(&self) -> Version {
        self.version
    }

    /// Where interim responses of the backend go; None where the client cannot be told.
    pub(crate) fn hints(&self) -> Option<EarlyHints> {
        self.hints.clone()
    }

    /// 32 hex digits, the same in error page and log.
    pub(crate) fn request_id(&self) -> String {
        let mut id = String::with_capacity(32);
        // Writing to a String cannot fail.
        let _ = write!(id, "{:032x}", self.id);
        id
    }

    pub(crate) fn is_last_of_connection(&self) -> bool {
        let limits = &self.connection.worker.shared.settings.limits;
        self.connection.clock.is_leaving() || self.served >= limits.requests_per_connection
    }

    pub(crate) fn host(&mut self, host: &HostName) {
        if let Some(record) = &mut self.record {
            record.host = Some(host.clone());
        }
    }

    pub(crate) fn route(&mut self, route: &RouteId, metrics: &Arc<RouteMetrics>) {
        self.metrics = Some(Arc::clone(metrics));
        if let Some(record) = &mut self.record {
            record.route = Some(route.clone());
        }
    }

    pub(crate) fn rule(&mut self, rule: &Arc<Rule>) {
        if let Some(record) = &mut self.record {
            record.rule = Some(Arc::clone(rule));
        }
    }

    /// The rule leads to a tracker: what its answer says is counted and logged.
    pub(crate) fn tracker(&mut self, rule: &Rule, method: &Method, target: &str) {
        let metrics = &self.connection.worker.shared.metrics;
        let handles = || metrics.tracker(&rule.route, &rule.name);
        self.tracker = TrackerWatch::begin(handles, method, target);
    }

    /// A backend answered with this header.
    pub(crate) fn answered_by_backend(&mut self, headers: &HeaderMap) {
        if let Some(tracker) = &mut self.tracker {
            tracker.answered(headers);
        }
    }

    pub(crate) fn client(&mut self, client: IpAddr) {
        if let Some(record) = &mut self.record {
            record.client = Some(client);
        }
    }

    pub(crate) fn upstream(&mut self, address: SocketAddr, retries: usize) {
        if retries > 0 {
            let retries = u64::try_from(retries).unwrap_or_default();
            self.connection
                .worker
                .shared
                .metrics
                .retries
                .inc_by(retries);
        }
        if let Some(record) = &mut self.record {
            record.upstream = Some(address);
            record.retries = retries;
        }
    }

    /// Keeps the client's place among its requests until the response has ended.
    pub(crate) fn hold(&mut self, place: Option<InFlightGuard>) {
        self.in_flight = place;
    }

    /// The edge itself refused.
    pub(crate) fn refused(&mut self, reason: &'static str) {
        self.connection
            .worker
            .shared
            .metrics
            .request_refused(reason);
        if let Some(record) = &mut self.record {
            record.reason = Some(reason);
        }
    }

    /// No backend answered.
    pub(crate) fn failed(&mut self, error: &ProxyError) {
        let reason = error.reason();
        let shared = &self.connection.worker.shared;
        shared.metrics.upstream_failed(reason);
        let text = tidegate_telemetry::chain(error).to_string();
        if error.blames_endpoint() {
            let route = self
                .record
                .as_ref()
                .and_then(|record| record.route.as_ref());
            let route = route.map(ToString::to_string);
            tracing::warn!(reason, error = text, route, "no answer from the backend");
        }
        if let Some(record) = &mut self.record {
            record.reason = Some(reason);
            record.error = Some(text);
        }
    }

    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = status;
    }

    /// Keeps the connection counted as busy for as long as the upgraded stream lives.
    pub(crate) fn stay_busy(&self) -> Busy {
        self.connection.clock.request_begins();
        Busy(Arc::clone(&self.connection))
    }

    fn log(&self, record: &Record, said: &Said) {
        let settings = &self.connection.worker.shared.settings.access_log;
        access_log::emit(
            settings,
            &access_log::Line {
                request_id: self.id,
                client: record
                    .client
                    .unwrap_or_else(|| self.connection.facts.client.ip()),
                method: &record.method,
                host: record.host.as_ref().map(HostName::as_str),
                target: &record.target,
                raw_query: record.raw_query.as_ref().map(RawQuery::as_str),
                version: self.version,
                status: self.status,
                sent: self.sent,
                duration: self.started.elapsed(),
                route: record.route.as_ref(),
                rule: record.rule.as_ref().map(|rule| rule.name.as_str()),
                upstream: record.upstream,
                retries: record.retries,
                reason: record.reason,
                error: record.error.as_deref(),
                aborted: record.aborted,
                user_agent: record.user_agent.as_ref(),
                referer: record.referer.as_ref(),
                keys: match &record.rule {
                    Some(rule) if rule.tracker.is_some() => Keys::Tracker,
                    Some(_) => Keys::None,
                    None => Keys::Unknown,
                },
                tracker_failure: said.failure.as_deref(),
                tracker_warning: said.warning.as_deref(),
            },
        );
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.connection.clock.request_ends();
        let metrics = &self.connection.worker.shared.metrics;
        metrics.in_flight.dec();
        metrics.sent_bytes.inc_by(self.sent);
        if let Some(route) = &self.metrics {
            route.record(self.status, self.started.elapsed().as_secs_f64());
        }
        let said = match self.tracker.take() {
            Some(tracker) => tracker.end(self.ended),
            None => Said::default(),
        };
        if let Some(record) = &self.record {
            self.log(record, &said);
        }
    }
}

/// Interim responses that a client gets for one request. Two or three are known in practice; the codec keeps
/// them until the client reads.
const MAX_HINTS: usize = 16;

/// Interim responses other than 100 and 101 (RFC 9110 §15.2, RFC 8297) on their way from a backend's
/// connection to the client's stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct EarlyHints(Arc<Mutex<Hints>>);

#[derive(Debug, Default)]
struct Hints {
    waiting: Vec<Response<()>>,
    passed: usize,
    stream: Option<Waker>,
}

/// What the backend says before its response is cleaned like every response, and left out when that is not
/// possible. What comes in excess is dropped.
impl Interim for EarlyHints {
    fn take(&self, head: Response<()>, request: &Method) {
        let (mut parts, ()) = head.into_parts();
        if normalize::response(&mut parts, request).is_err() {
            return;
        }
        let mut hints = self.hints();
        if hints.passed == MAX_HINTS {
            return;
        }
        hints.passed += 1;
        hints.waiting.push(Response::from_parts(parts, ()));
        if let Some(stream) = &hints.stream {
            stream.wake_by_ref();
        }
    }
}

impl EarlyHints {
    fn hints(&self) -> MutexGuard<'_, Hints> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what has come; the stream is woken for what comes later.
    pub(crate) fn take_each(&self, cx: &Context<'_>, mut each: impl FnMut(Response<()>)) {
        let mut hints = self.hints();
        match &hints.stream {
            Some(known) if known.will_wake(cx.waker()) => {}
            _ => hints.stream = Some(cx.waker().clone()),
        }
        hints.waiting.drain(..).for_each(&mut each);
    }
}

/// An upgraded stream: its connection is not idle.
pub(crate) struct Busy(Arc<Connection>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.clock.request_ends();
    }
}

/// A response body with the guard of its request.
pub(crate) struct ResponseBody {
    body: Body,
    guard: RequestGuard,
    /// Whether the connection's clock counts this body as offered.
    offered: bool,
}

impl ResponseBody {
    pub(crate) fn new(body: Body, guard: RequestGuard) -> Self {
        let mut this = Self {
            body,
            guard,
            offered: false,
        };
        if this.body.is_end_stream() {
            this.guard.ended = true;
        } else {
            this.offer();
        }
        this
    }

    fn offer(&mut self) {
        if self.guard.version == Version::HTTP_2 && !self.offered {
            self.offered = true;
            self.guard.connection.clock.offer();
        }
    }

    fn withdraw(&mut self) {
        if self.offered {
            self.offered = false;
            self.guard.connection.clock.withdraw();
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.withdraw();
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            self.withdraw();
            return Poll::Pending;
        };
        if self.offered {
            self.guard.connection.clock.taken();
        } else {
            self.offer();
        }
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.guard.sent += data.len() as u64;
                    if let Some(tracker) = &mut self.guard.tracker {
                        tracker.passes(data);
                        self.guard.ended = self.body.is_end_stream();
                    }
                }
            }
            Some(Err(error)) => {
                let text = tidegate_telemetry::chain(&**error).to_string();
                if let Some(record) = &mut self.guard.record {
                    record.aborted = true;
                    record.error = Some(text);
                }
            }
            None => self.guard.ended = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
