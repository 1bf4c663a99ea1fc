//! How a phase ends a request before its rule's action has answered it, and the only place that turns a
//! failure into a response.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};

use crate::body::Body;
use crate::error::ProxyError;
use crate::exchange::RequestGuard;
use crate::normalize::Refusal;
use crate::respond;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Why a request goes no further.
pub(crate) enum Stop {
    /// The message itself is not acceptable; an HTTP/1 connection closes after the answer.
    Refused(Refusal),
    /// The edge answers with a page of its own.
    Page {
        status: StatusCode,
        reason: &'static str,
        field: Option<(HeaderName, HeaderValue)>,
    },
    /// A filter has the whole answer.
    Answered(Box<Response<Body>>),
    /// No backend answered.
    Failed(ProxyError),
}

impl Stop {
    pub(crate) fn page(status: StatusCode, reason: &'static str) -> Self {
        Self::Page {
            status,
            reason,
            field: None,
        }
    }

    pub(crate) fn page_with(
        status: StatusCode,
        reason: &'static str,
        name: HeaderName,
        value: HeaderValue,
    ) -> Self {
        Self::Page {
            status,
            reason,
            field: Some((name, value)),
        }
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ProxyError> for Stop {
    fn from(error: ProxyError) -> Self {
        Self::Failed(error)
    }
}

/// What an error page would look like; kept because the request is consumed on its way.
pub(crate) struct PageWish {
    pub(crate) version: Version,
    head_only: bool,
    /// A browser may ask again by itself.
    repeatable: bool,
    accept: Option<HeaderValue>,
    language: Option<HeaderValue>,
}

impl PageWish {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        Self {
            version: request.version(),
            head_only: request.method() == Method::HEAD,
            repeatable: matches!(*request.method(), Method::GET | Method::HEAD),
            accept: request.headers().get(header::ACCEPT).cloned(),
            language: request.headers().get(header::ACCEPT_LANGUAGE).cloned(),
        }
    }

    fn page(&self, status: StatusCode, reason: &str, guard: &RequestGuard) -> Response<Body> {
        self.page_again(status, reason, guard, None)
    }

    /// The page of what may be better after that time.
    fn page_again(
        &self,
        status: StatusCode,
        reason: &str,
        guard: &RequestGuard,
        again: Option<Duration>,
    ) -> Response<Body> {
        let id = guard.request_id();
        let (accept, language) = (self.accept.as_ref(), self.language.as_ref());
        let reload = again.filter(|_| self.repeatable);
        let mut response = respond::error_page(
            status,
            reason,
            &id,
            accept,
            language,
            self.head_only,
            reload,
        );
        if let Some(again) = again {
            let seconds = HeaderValue::from(again.as_secs().max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        // For clients that show no body; the same id is in the page and in the access log.
        if let Ok(id) = HeaderValue::try_from(id) {
            response.headers_mut().insert(X_REQUEST_ID, id);
        }
        response
    }
}

/// The only place that turns a failure into a response.
pub(crate) fn stopped(stop: Stop, wish: &PageWish, guard: &mut RequestGuard) -> Response<Body> {
    match stop {
        Stop::Answered(response) => *response,
        Stop::Refused(refusal) => {
            guard.refused(refusal.reason);
            tracing::debug!(
                reason = refusal.reason,
                message = refusal.message,
                "request refused"
            );
            let mut response = wish.page(refusal.status, refusal.reason, guard);
            close_after(&mut response, wish.version);
            response
        }
        Stop::Page {
            status,
            reason,
            field,
        } => {
            guard.refused(reason);
            let mut response = wish.page(status, reason, guard);
            if let Some((name, value)) = field {
                response.headers_mut().insert(name, value);
            }
            response
        }
        Stop::Failed(error) => {
            guard.failed(&error);
            let again = error.retry_after();
            let mut response = wish.page_again(error.status(), error.reason(), guard, again);
            if error.leaves_body_unread() {
                close_after(&mut response, wish.version);
            }
            response
        }
    }
}

/// Asks an HTTP/1 client to close after this answer.
pub(crate) fn close_after(response: &mut Response<Body>, version: Version) {
    if version < Version::HTTP_2 {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// A response without a body.
pub(crate) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    response
}
