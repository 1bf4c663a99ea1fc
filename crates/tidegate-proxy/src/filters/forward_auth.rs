//! Asks another service whether a request may pass: the only filter besides mirroring that talks to a
//! backend. The request's body is never sent there.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header, request};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use tidegate_model::{ForwardAuth, Target};

use crate::body::{Body, UpstreamBody};
use crate::error::ProxyError;
use crate::normalize;
use crate::stop::Stop;
use crate::upstream::connect::ProxiedAddresses;
use crate::upstream::{self, Answer, SendOptions, Upstreams};

const X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// Lets the request pass, with the headers that the service adds, or stops it with the service's answer.
/// Expects the forwarding headers to be set already.
pub(crate) async fn ask(
    upstreams: &Upstreams,
    auth: &Arc<ForwardAuth>,
    parts: &mut request::Parts,
    proxied: ProxiedAddresses,
) -> Result<(), Stop> {
    let question = Box::new(question(auth, parts)?);
    let options = SendOptions {
        proxied: Some(proxied),
        ..SendOptions::default()
    };
    let asking = upstream::send(upstreams, &auth.cluster, question, &options);
    // Connecting counts too.
    let answer = tokio::time::timeout(auth.timeout, asking)
        .await
        .map_err(|_| ProxyError::FirstByteTimeout {
            endpoint: auth.cluster.name.clone(),
            limit: auth.timeout,
        })?
        .map_err(|failed| failed.error)?;
    if !answer.response.status().is_success() {
        return Err(Stop::Answered(Box::new(pass_on(auth, answer)?)));
    }
    for name in &auth.response_headers {
        // What the client sent under such a name is never believed.
        parts.headers.remove(name);
        for value in answer.response.headers().get_all(name) {
            parts.headers.append(name.clone(), value.clone());
        }
    }
    free_connection(answer, auth.timeout);
    Ok(())
}

/// Bytes of a yes that are read so that its connection can be used again.
const MAX_YES: usize = 16 * 1024;

/// Reads what the service says beside its yes, without making the request wait for it.
fn free_connection(answer: Answer, limit: Duration) {
    let mut body = http_body_util::Limited::new(answer.response.into_body(), MAX_YES);
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(async move {
        let reading = async { while let Some(Ok(_)) = body.frame().await {} };
        // What was not read to its end by then closes its connection.
        let _ = tokio::time::timeout(limit, reading).await;
    });
}

fn question(auth: &ForwardAuth, parts: &request::Parts) -> Result<Request<Body>, ProxyError> {
    let mut headers = if auth.request_headers.is_empty() {
        let mut all = parts.headers.clone();
        for name in [
            header::CONTENT_LENGTH,
            header::CONTENT_TYPE,
            header::CONTENT_ENCODING,
            header::EXPECT,
            header::TE,
        ] {
            all.remove(name);
        }
        all
    } else {
        let mut some = HeaderMap::new();
        let names = auth.request_headers.iter();
        for name in names.filter(|name| **name != header::HOST) {
            for value in parts.headers.get_all(name) {
                some.append(name.clone(), value.clone());
            }
        }
        some
    };
    for name in [
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-real-ip",
    ] {
        if let Some(value) = parts.headers.get(name) {
            headers.insert(HeaderName::from_static(name), value.clone());
        }
    }
    let bad = |detail| ProxyError::BadResponse {
        endpoint: auth.cluster.name.clone(),
        detail,
    };
    let method = HeaderValue::from_str(parts.method.as_str())
        .map_err(|_| bad("the method is no field value"))?;
    headers.insert(X_FORWARDED_METHOD, method);
    let target = parts
        .uri
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    let target = HeaderValue::from_str(target).map_err(|_| bad("the target is no field value"))?;
    headers.insert(X_FORWARDED_URI, target);
    let host = match &auth.cluster.target {
        Target::Host { host, port } => format!("{host}:{port}"),
        Target::Addresses(_) | Target::Agent { .. } => auth.cluster.name.clone(),
    };
    let host = HeaderValue::from_str(&host).map_err(|_| bad("its name is no Host"))?;
    headers.insert(header::HOST, host);

    let mut question = Request::new(Body::Empty);
    *question.method_mut() = Method::GET;
    *question.uri_mut() = auth
        .path
        .parse()
        .map_err(|_| bad("its path is no request target"))?;
    *question.headers_mut() = headers;
    Ok(question)
}

/// The service's own answer: a login page, a redirect to one, a 401.
fn pass_on(auth: &ForwardAuth, answer: Answer) -> Result<Response<Body>, ProxyError> {
    let (mut parts, incoming) = answer.response.into_parts();
    normalize::response(&mut parts, &Method::GET).map_err(|refusal| ProxyError::BadResponse {
        endpoint: auth.cluster.name.clone(),
        detail: refusal.message,
    })?;
    parts.version = http::Version::HTTP_11;
    let idle = Some(auth.timeout);
    let body = UpstreamBody::new(incoming, answer.active, idle, None, false);
    Ok(Response::from_parts(parts, Body::Upstream(Box::new(body))))
}
