//! One HTTP/2 stream: the request goes through the phases, the backend's interim responses and the response
//! go to the client as its window allows. A stream that the client resets drops its exchange.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use tidegate_http2::{Outgoing, SendBodyError, StreamIo, reason_of};
use tokio::sync::oneshot;

use super::date;
use crate::body::{BodyError, ClientBody};
use crate::connection::Connection;
use crate::exchange::EarlyHints;
use crate::http as phases;
use crate::normalize;
use crate::upgrade::ClientUpgrade;

/// Why a stream ended before its response did.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the client reset the stream: {0}")]
    Reset(Reason),
    #[error("send on an HTTP/2 stream")]
    Send(#[source] h2::Error),
    #[error("the response ended early")]
    Body(#[source] BodyError),
}

/// Serves a stream to its end.
pub(super) async fn serve(
    connection: Arc<Connection>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    if let Err(broken) = answer(connection, request, &mut respond).await {
        let error = tidegate_telemetry::chain(&broken);
        tracing::debug!(%error, "stream ended early");
    }
}

async fn answer(
    connection: Arc<Connection>,
    request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), Broken> {
    let head_only = request.method() == Method::HEAD;
    let (parts, recv) = request.into_parts();
    let mut tunnel = None;
    let mut upgrade = None;
    let body = if parts.method == Method::CONNECT {
        // DATA of a CONNECT is what goes through the tunnel; a length would speak of something else.
        if parts
            .headers
            .get(header::CONTENT_LENGTH)
            .is_some_and(|length| length != "0")
        {
            respond.send_reset(Reason::PROTOCOL_ERROR);
            return Ok(());
        }
        if parts.extensions.get::<h2::ext::Protocol>().is_some() {
            let (give, take) = oneshot::channel();
            tunnel = Some((give, recv));
            upgrade = Some(ClientUpgrade::Http2(take));
        }
        ClientBody::Empty
    } else {
        ClientBody::http2(recv, &parts.headers)
    };
    let hints = EarlyHints::default();
    let request = Request::from_parts(parts, body);
    let response = {
        let handling = phases::handle(connection, request, upgrade, Some(hints.clone()));
        let mut handling = pin!(handling);
        poll_fn(|cx| {
            let handled = handling.as_mut().poll(cx);
            hints.take_each(cx, |hint| {
                // A client that cannot be told is told by the response, or is gone.
                let _ = respond.send_informational(hint);
            });
            if let Poll::Ready(response) = handled {
                return Poll::Ready(Ok(response));
            }
            respond.poll_reset(cx).map(|reset| match reset {
                Ok(reason) => Err(Broken::Reset(reason)),
                Err(error) => Err(Broken::Send(error)),
            })
        })
        .await?
    };
    let (mut parts, body) = response.into_parts();
    normalize::strip_connection_fields(&mut parts.headers);
    parts.headers.entry(header::DATE).or_insert_with(date::now);
    if let Some((give, recv)) = tunnel
        && parts.status.is_success()
    {
        let send = start(respond, Response::from_parts(parts, ()), false)?;
        // Nobody waits for it when the edge is just being cut.
        let _ = give.send(StreamIo::new(recv, send));
        return Ok(());
    }
    // RFC 9110 §6.4.1: these end with their head. HEAD and its GET announce the same length.
    let empty = body.is_end_stream()
        || matches!(
            parts.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
    if !empty && let Some(length) = body.size_hint().exact() {
        parts
            .headers
            .entry(header::CONTENT_LENGTH)
            .or_insert_with(|| length.into());
    }
    let bodiless = empty || head_only;
    let send = start(respond, Response::from_parts(parts, ()), bodiless)?;
    if bodiless {
        return Ok(());
    }
    let mut outgoing = Outgoing::new(send, body);
    let outcome = poll_fn(|cx| outgoing.poll(cx)).await;
    outcome.map_err(|error| match error {
        SendBodyError::Reset(reason) => Broken::Reset(reason),
        SendBodyError::Send(error) => Broken::Send(error),
        SendBodyError::Body(error) => {
            outgoing.reset(reason_of(&*error));
            Broken::Body(error)
        }
    })
}

fn start(
    respond: &mut SendResponse<Bytes>,
    head: Response<()>,
    end: bool,
) -> Result<SendStream<Bytes>, Broken> {
    respond.send_response(head, end).map_err(|error| {
        respond.send_reset(Reason::INTERNAL_ERROR);
        Broken::Send(error)
    })
}
