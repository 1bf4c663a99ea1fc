//! One request to a target and its answer, on a connection of the pool or on a new one.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Response, Uri, Version};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tidegate_telemetry::chain;
use tokio::time::timeout;

use super::body::{AnswerBody, AskBody};
use super::connect::For;
use super::counters::Counted;
use super::failure::{Failure, Reason};
use super::pool::{Lease, Stream as SharedStream};
use super::proxy_header::Visitor;
use super::raw_target::{self, RawTarget};
use super::{Upstream, fields};
use crate::stream::Stream;

/// Time until an answer begins. The edge ends what takes its visitor too long; this ends what everybody forgot.
const ANSWER: Duration = Duration::from_secs(3600);
/// Fields of an answer, as HTTP/2 counts them: what the link takes, less what it adds.
const MOST_FIELDS: usize = 60 * 1024;
/// Fields of an answer, as HTTP/1 writes them.
const MOST_HEAD: usize = 128 * 1024;
/// Windows towards targets that speak HTTP/2: large, because the link has windows of its own.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// A request as it goes to the target, still without the form of one version of HTTP.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) authority: Option<Authority>,
    pub(super) path: PathAndQuery,
    pub(super) headers: HeaderMap,
    pub(super) body: AskBody,
}

impl Ask {
    fn http1(mut self) -> Request<AskBody> {
        fields::join_cookies(&mut self.headers);
        if let Some(authority) = &self.authority
            && let Ok(host) = HeaderValue::from_str(authority.as_str())
        {
            self.headers.insert(header::HOST, host);
        }
        let mut request = Request::new(self.body);
        *request.method_mut() = self.method;
        *request.uri_mut() = Uri::from(self.path);
        *request.headers_mut() = self.headers;
        request
    }

    fn http2(mut self, scheme: &'static str) -> Result<Request<AskBody>, Failure> {
        // One name for the host is enough, and two might differ.
        self.headers.remove(header::HOST);
        let mut uri = Uri::builder().scheme(scheme).path_and_query(self.path);
        if let Some(authority) = self.authority {
            uri = uri.authority(authority);
        }
        let failed = |error: http::Error| Failure::of(Reason::BadRequest, &error);
        let mut request = Request::new(self.body);
        *request.method_mut() = self.method;
        *request.uri_mut() = uri.build().map_err(failed)?;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers;
        Ok(request)
    }
}

/// A request that may be sent twice, without its body, which is empty.
fn copy_of(request: &Request<AskBody>) -> Option<Request<AskBody>> {
    let idempotent = request.method().is_idempotent();
    (idempotent && request.body().is_end_stream()).then(|| {
        let mut copy = Request::new(AskBody::None);
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.version_mut() = request.version();
        *copy.headers_mut() = request.headers().clone();
        copy
    })
}

impl Upstream {
    /// Sends the request and waits for the answer's head. What is rare is boxed: every request in flight would have
    /// room for it.
    pub(super) async fn exchange(
        self: &Arc<Self>,
        ask: Ask,
        visitor: Option<Visitor>,
        counted: Counted,
    ) -> Result<Response<AnswerBody>, Failure> {
        // With a PROXY header each visitor has connections of its own.
        if visitor.is_none()
            && let Some((sender, stream)) = self.pool.join()
        {
            return Box::pin(self.on_http2(sender, stream, ask, counted)).await;
        }
        let Some(lease) = self.pool.take(visitor) else {
            return Box::pin(self.on_new_connection(ask, visitor, counted)).await;
        };
        let request = ask.http1();
        let copy = copy_of(&request);
        match self.on_http1(lease, request, counted).await {
            Ok(response) => Ok(response),
            Err((failed, counted)) => {
                // A server may end a connection that waits at the very moment that it is used.
                let copy = copy.filter(|_| !failed.answered);
                let again = failed.unsent.map(|unsent| *unsent).or(copy);
                let again = again.ok_or(failed.failure)?;
                Box::pin(self.on_new_http1(again, visitor, counted)).await
            }
        }
    }

    async fn on_new_connection(
        self: &Arc<Self>,
        ask: Ask,
        visitor: Option<Visitor>,
        counted: Counted,
    ) -> Result<Response<AnswerBody>, Failure> {
        let stream = self.open(visitor, For::Requests).await?;
        if self.is_http2(&stream) {
            let sender = self.start_http2(stream).await?;
            let (sender, stream) = if visitor.is_some() {
                (sender, None)
            } else {
                let (sender, stream) = self.pool.share(sender);
                (sender, Some(stream))
            };
            return self
                .send_http2(sender, stream, ask.http2(self.scheme())?, counted)
                .await
                .map_err(|it| it.0.failure);
        }
        let lease = self.start_http1(stream, visitor).await?;
        let sent = self.on_http1(lease, ask.http1(), counted).await;
        sent.map_err(|(failed, _)| failed.failure)
    }

    /// As [`Self::exchange`], with bytes for a target that no URI may hold.
    pub(super) async fn exchange_raw(
        self: &Arc<Self>,
        mut ask: Ask,
        raw: &HeaderValue,
        visitor: Option<Visitor>,
        counted: Counted,
    ) -> Result<Response<AnswerBody>, Failure> {
        ask.path = PathAndQuery::from_static(raw_target::PLACEHOLDER);
        let stream = self.open(visitor, For::Http1).await?;
        let stream = RawTarget::new(stream, &ask.method, raw).ok_or_else(|| {
            Failure::new(Reason::BadRequest, "the request target would end its line")
        })?;
        let failed = |error: hyper::Error| Failure::of(Reason::BadResponse, &error);
        let (mut sender, connection) = http1_builder()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        tokio::spawn(quietly(connection));
        let sent = timeout(ANSWER, sender.send_request(ask.http1())).await;
        let response = sent.map_err(|_| too_slow(self))?.map_err(failed)?;
        self.answer(response, None, counted)
            .map_err(|(failed, _)| failed.failure)
    }

    async fn on_new_http1(
        self: &Arc<Self>,
        request: Request<AskBody>,
        visitor: Option<Visitor>,
        counted: Counted,
    ) -> Result<Response<AnswerBody>, Failure> {
        // The target spoke HTTP/1 a moment ago.
        let stream = self.open(visitor, For::Http1).await?;
        let lease = self.start_http1(stream, visitor).await?;
        self.on_http1(lease, request, counted)
            .await
            .map_err(|(failed, _)| failed.failure)
    }

    async fn start_http1(
        self: &Arc<Self>,
        stream: Stream,
        visitor: Option<Visitor>,
    ) -> Result<Lease, Failure> {
        let handshake = http1_builder().handshake(TokioIo::new(stream)).await;
        let (sender, connection) =
            handshake.map_err(|error| Failure::of(Reason::BadResponse, &error))?;
        tokio::spawn(quietly(connection));
        Ok(self.pool.lease(sender, visitor))
    }

    async fn start_http2(&self, stream: Stream) -> Result<http2::SendRequest<AskBody>, Failure> {
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(64 * 1024)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(15))
            .handshake(TokioIo::new(stream));
        let late = || {
            Failure::new(
                Reason::ConnectTimeout,
                format!("{} starts no HTTP/2", self.target),
            )
        };
        let handshake = timeout(self.connect_timeout, handshake)
            .await
            .map_err(|_| late())?;
        let (sender, connection) =
            handshake.map_err(|error| Failure::of(Reason::BadResponse, &error))?;
        tokio::spawn(quietly(connection));
        Ok(sender)
    }

    async fn on_http1(
        &self,
        mut lease: Lease,
        request: Request<AskBody>,
        counted: Counted,
    ) -> Result<Response<AnswerBody>, (Unanswered, Counted)> {
        let Some(sender) = lease.sender() else {
            let failure = Failure::new(Reason::BadResponse, "the connection is gone");
            return Err((
                Unanswered {
                    failure,
                    unsent: Some(Box::new(request)),
                    answered: false,
                },
                counted,
            ));
        };
        match timeout(ANSWER, sender.try_send_request(request)).await {
            Err(_) => Err((
                Unanswered {
                    failure: too_slow(self),
                    unsent: None,
                    answered: true,
                },
                counted,
            )),
            Ok(Err(error)) => Err((self.unanswered(error), counted)),
            Ok(Ok(response)) => {
                // A connection that says it ends does so by itself.
                self.answer(response, Some(lease), counted)
            }
        }
    }

    async fn on_http2(
        self: &Arc<Self>,
        sender: http2::SendRequest<AskBody>,
        stream: SharedStream,
        ask: Ask,
        counted: Counted,
    ) -> Result<Response<AnswerBody>, Failure> {
        let request = ask.http2(self.scheme())?;
        match self
            .send_http2(sender, Some(stream), request, counted)
            .await
        {
            Ok(response) => Ok(response),
            Err((
                Unanswered {
                    unsent: Some(again),
                    ..
                },
                counted,
            )) => {
                let stream = self.open(None, For::Requests).await?;
                if !self.is_http2(&stream) {
                    let message = format!("{} does not speak HTTP/2 any more", self.target);
                    return Err(Failure::new(Reason::BadResponse, message));
                }
                let sender = self.start_http2(stream).await?;
                let (sender, stream) = self.pool.share(sender);
                let sent = self.send_http2(sender, Some(stream), *again, counted).await;
                sent.map_err(|(failed, _)| failed.failure)
            }
            Err((failed, _)) => Err(failed.failure),
        }
    }

    async fn send_http2(
        &self,
        mut sender: http2::SendRequest<AskBody>,
        stream: Option<SharedStream>,
        request: Request<AskBody>,
        mut counted: Counted,
    ) -> Result<Response<AnswerBody>, (Unanswered, Counted)> {
        match timeout(ANSWER, sender.try_send_request(request)).await {
            Err(_) => Err((
                Unanswered {
                    failure: too_slow(self),
                    unsent: None,
                    answered: true,
                },
                counted,
            )),
            Ok(Err(error)) => Err((self.unanswered(error), counted)),
            Ok(Ok(response)) => {
                counted.keep(stream);
                self.answer(response, None, counted)
            }
        }
    }

    fn unanswered(&self, mut error: TrySendError<Request<AskBody>>) -> Unanswered {
        let unsent = error.take_message().map(Box::new);
        let error = error.into_error();
        let message = format!("{}: {}", self.target, chain(&error));
        let failure = Failure::new(Reason::BadResponse, message);
        Unanswered {
            failure,
            unsent,
            answered: false,
        }
    }

    /// The target's answer as it goes to the edge.
    fn answer(
        &self,
        response: Response<Incoming>,
        lease: Option<Lease>,
        counted: Counted,
    ) -> Result<Response<AnswerBody>, (Unanswered, Counted)> {
        let refused = |message| {
            let failure = Failure::new(Reason::BadResponse, message);
            Unanswered {
                failure,
                unsent: None,
                answered: true,
            }
        };
        let (mut parts, incoming) = response.into_parts();
        if parts.status == http::StatusCode::SWITCHING_PROTOCOLS {
            let message = format!("{} switches protocols unasked", self.target);
            return Err((refused(message), counted));
        }
        fields::strip_connection(&mut parts.headers);
        fields::strip_tunnel(&mut parts.headers);
        if fields::size(&parts.headers) > MOST_FIELDS {
            let message = format!("{} answers with more than 60 KiB of fields", self.target);
            return Err((refused(message), counted));
        }
        parts.version = Version::HTTP_2;
        parts.extensions.clear();
        let body = AnswerBody::Target {
            incoming,
            lease,
            counted,
        };
        Ok(Response::from_parts(parts, body))
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// A request without an answer; whole again if nothing of it was sent.
struct Unanswered {
    failure: Failure,
    unsent: Option<Box<Request<AskBody>>>,
    /// There was an answer, which could not be used, or there was time enough for one.
    answered: bool,
}

fn too_slow(upstream: &Upstream) -> Failure {
    let (target, limit) = (&upstream.target, ANSWER.as_secs());
    Failure::new(
        Reason::ResponseTimeout,
        format!("{target} does not answer within {limit} s"),
    )
}

/// HTTP/1 as servers in homes speak it.
pub(super) fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MOST_HEAD).max_headers(256);
    builder
}

/// Drives a connection. Its errors reach whoever waits for an answer; here they would be said twice.
pub(super) async fn quietly(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        tracing::debug!(error = %chain(&error), "a connection to a target ended");
    }
}
