//! The edge's side of the control socket: one connection at a time, each request bounded.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;

use super::desk::{Desk, Question, Reply, refuse};

/// Bytes of a request's body.
const LONGEST_BODY: usize = 64 * 1024;
/// Time for a request's head, and for its body.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves one connection to its end.
pub(super) async fn connection(stream: UnixStream, desk: Arc<dyn Desk>) {
    let service = service_fn(move |request| {
        let desk = Arc::clone(&desk);
        async move {
            let reply = match question(request).await {
                Ok(question) => desk.answer(question).await,
                Err(refused) => refused,
            };
            let mut response = Response::new(Full::<Bytes>::from(reply.body));
            *response.status_mut() = reply.status;
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            Ok::<_, Infallible>(response)
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(error = %error, "a connection to the control socket failed");
    }
}

async fn question(request: Request<Incoming>) -> Result<Question, Reply> {
    let too_large = || {
        refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            "BadRequest",
            format!("the body cannot be read or is longer than {LONGEST_BODY} bytes"),
        )
    };
    if request.body().size_hint().lower() > LONGEST_BODY as u64 {
        return Err(too_large());
    }
    let (head, body) = request.into_parts();
    let collected = Limited::new(body, LONGEST_BODY).collect();
    match tokio::time::timeout(PATIENCE, collected).await {
        Ok(Ok(body)) => Ok(Question {
            method: head.method,
            path: head.uri.path().to_owned(),
            body: body.to_bytes().to_vec(),
        }),
        Ok(Err(_)) => Err(too_large()),
        Err(_) => Err(refuse(
            StatusCode::REQUEST_TIMEOUT,
            "BadRequest",
            "the body did not arrive in time",
        )),
    }
}
