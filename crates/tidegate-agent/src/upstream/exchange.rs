//! One request to a target and its answer, on a connection of the pool or on a new one.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Response, Uri, Version};
use http_body::Body as _;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tidegate_http1::{Connection, Http1Error, RawTarget, Terms};
use tidegate_model::UpstreamProtocol;
use tidegate_telemetry::chain;
use tokio::time::timeout;

use super::body::{AnswerBody, AskBody};
use super::connect::For;
use super::counters::Counted;
use super::failure::{Failure, Reason};
use super::pool::{Home, Stream as SharedStream};
use super::proxy_header::Visitor;
use super::{Upstream, fields};
use crate::stream::Stream;

/// Time until an answer begins once the request is sent. The edge ends what takes its visitor too long; this ends
/// what everybody forgot.
const ANSWER: Duration = Duration::from_secs(3600);
/// Fields of an answer, as HTTP/2 counts them: what the link takes, less what it adds.
const MOST_FIELDS: usize = 60 * 1024;
/// Windows towards targets that speak HTTP/2: large, because the link has windows of its own.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// A request as it goes to the target, still without the form of one version of HTTP.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) authority: Option<Authority>,
    pub(super) path: PathAndQuery,
    /// Instead of the path, where no URI may hold what came.
    pub(super) raw: Option<RawTarget>,
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
        if let Some(raw) = self.raw {
            request.extensions_mut().insert(raw);
        }
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

/// Of an exchange whose connection goes there afterwards.
fn terms(home: Option<Home>) -> Terms<'static, Home> {
    Terms {
        first_byte: Some(ANSWER),
        interim: None,
        home,
    }
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
        // With a PROXY header each visitor has connections of its own, and HTTP/2 carries nothing but URIs.
        if visitor.is_none()
            && ask.raw.is_none()
            && let Some((sender, stream)) = self.pool.join()
        {
            return Box::pin(self.on_http2(sender, stream, ask, counted)).await;
        }
        let Some((connection, home)) = self.pool.take(visitor) else {
            return Box::pin(self.on_new_connection(ask, visitor, counted)).await;
        };
        let mut request = ask.http1();
        let repeatable = request.method().is_idempotent() && request.body().is_end_stream();
        match connection.exchange(&mut request, terms(Some(home))).await {
            Ok(response) => self.answer(response, |body| AnswerBody::http1(body, counted)),
            Err(failed) => {
                // A server may end a connection that waits at the very moment that it is used.
                let silent = !failed.answered && !matches!(failed.error, Http1Error::FirstByte(_));
                if failed.unsent || (repeatable && silent) {
                    // The target spoke HTTP/1 a moment ago.
                    return Box::pin(self.on_new_http1(request, visitor, true, counted)).await;
                }
                Err(self.lost(&failed.error))
            }
        }
    }

    async fn on_new_connection(
        self: &Arc<Self>,
        ask: Ask,
        visitor: Option<Visitor>,
        counted: Counted,
    ) -> Result<Response<AnswerBody>, Failure> {
        if ask.raw.is_some() {
            // Others may want HTTP/2 from a target that can speak both.
            let keep = match self.protocol {
                UpstreamProtocol::Auto => self.tls.is_none(),
                protocol => protocol == UpstreamProtocol::Http1,
            };
            return self.on_new_http1(ask.http1(), visitor, keep, counted).await;
        }
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
                .map_err(|failed| failed.failure);
        }
        let home = Some(self.pool.home(visitor));
        self.on_http1(stream, ask.http1(), home, counted).await
    }

    async fn on_new_http1(
        self: &Arc<Self>,
        request: Request<AskBody>,
        visitor: Option<Visitor>,
        keep: bool,
        counted: Counted,
    ) -> Result<Response<AnswerBody>, Failure> {
        let stream = self.open(visitor, For::Http1).await?;
        let home = keep.then(|| self.pool.home(visitor));
        self.on_http1(stream, request, home, counted).await
    }

    async fn on_http1(
        &self,
        stream: Stream,
        mut request: Request<AskBody>,
        home: Option<Home>,
        counted: Counted,
    ) -> Result<Response<AnswerBody>, Failure> {
        let exchange = Connection::new(stream).exchange(&mut request, terms(home));
        match exchange.await {
            Ok(response) => self.answer(response, |body| AnswerBody::http1(body, counted)),
            Err(failed) => Err(self.lost(&failed.error)),
        }
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
            Err(Unanswered {
                unsent: Some(unsent),
                ..
            }) => {
                let (request, counted) = *unsent;
                let stream = self.open(None, For::Requests).await?;
                if !self.is_http2(&stream) {
                    let message = format!("{} does not speak HTTP/2 any more", self.target);
                    return Err(Failure::new(Reason::BadResponse, message));
                }
                let sender = self.start_http2(stream).await?;
                let (sender, stream) = self.pool.share(sender);
                let sent = self.send_http2(sender, Some(stream), request, counted);
                sent.await.map_err(|failed| failed.failure)
            }
            Err(failed) => Err(failed.failure),
        }
    }

    async fn send_http2(
        &self,
        mut sender: http2::SendRequest<AskBody>,
        stream: Option<SharedStream>,
        request: Request<AskBody>,
        mut counted: Counted,
    ) -> Result<Response<AnswerBody>, Unanswered> {
        let mut error = match timeout(ANSWER, sender.try_send_request(request)).await {
            Err(_) => return Err(too_slow(self).into()),
            Ok(Ok(response)) => {
                counted.keep(stream);
                let answer = self.answer(response, |body| AnswerBody::Http2(body, counted));
                return answer.map_err(Into::into);
            }
            Ok(Err(error)) => error,
        };
        let unsent = error.take_message();
        let message = format!("{}: {}", self.target, chain(&error.into_error()));
        Err(Unanswered {
            failure: Failure::new(Reason::BadResponse, message),
            unsent: unsent.map(|request| Box::new((request, counted))),
        })
    }

    /// An exchange of HTTP/1 without an answer.
    pub(super) fn lost(&self, error: &Http1Error) -> Failure {
        if let Http1Error::FirstByte(_) = error {
            return too_slow(self);
        }
        let message = format!("{}: {}", self.target, chain(error));
        Failure::new(Reason::BadResponse, message)
    }

    /// The target's answer as it goes to the edge.
    pub(super) fn answer<B>(
        &self,
        response: Response<B>,
        body: impl FnOnce(B) -> AnswerBody,
    ) -> Result<Response<AnswerBody>, Failure> {
        let refused = |what| {
            let message = format!("{} {what}", self.target);
            Err(Failure::new(Reason::BadResponse, message))
        };
        let (mut parts, from) = response.into_parts();
        if parts.status == http::StatusCode::SWITCHING_PROTOCOLS {
            return refused("switches protocols unasked");
        }
        fields::strip_connection(&mut parts.headers);
        fields::strip_tunnel(&mut parts.headers);
        if fields::size(&parts.headers) > MOST_FIELDS {
            return refused("answers with more than 60 KiB of fields");
        }
        parts.version = Version::HTTP_2;
        parts.extensions.clear();
        Ok(Response::from_parts(parts, body(from)))
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// A request of HTTP/2 without an answer; whole again if nothing of it was sent.
struct Unanswered {
    failure: Failure,
    unsent: Option<Box<(Request<AskBody>, Counted)>>,
}

impl From<Failure> for Unanswered {
    fn from(failure: Failure) -> Self {
        let unsent = None;
        Self { failure, unsent }
    }
}

fn too_slow(upstream: &Upstream) -> Failure {
    let (target, limit) = (&upstream.target, ANSWER.as_secs());
    Failure::new(
        Reason::ResponseTimeout,
        format!("{target} does not answer within {limit} s"),
    )
}

/// Drives a connection. Its errors reach whoever waits for an answer; here they would be said twice.
async fn quietly(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        tracing::debug!(error = %chain(&error), "a connection to a target ended");
    }
}
