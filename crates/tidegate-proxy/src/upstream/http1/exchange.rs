//! One request and its response on a connection, both at the same time.
//!
//! Whoever waits for the response drives the upload too: first the future of [`Connection::exchange`], then
//! the body. Must never pool a connection that is not at the exact end of both messages.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::chunked::Decoder;
use super::head::{self, HeadReader};
use super::upload::Upload;
use super::{Connection, Http1Error, Upgraded};
use crate::body::Body;
use crate::exchange::EarlyHints;
use crate::normalize;
use crate::upstream::pool::Home;

/// 1xx responses before the final one. RFC 9110 §15.2 has no limit; a program that sends more never ends.
const MAX_INFORMATIONAL: usize = 100;

/// What an exchange keeps to.
pub(crate) struct Terms<'a> {
    /// Time for the response's head after the request was sent whole, and for a backend that stops reading.
    pub(crate) first_byte: Option<Duration>,
    /// Takes 1xx responses; without it they are dropped.
    pub(crate) hints: Option<&'a EarlyHints>,
    /// Where the connection goes afterwards; None closes it.
    pub(crate) home: Option<Home>,
}

/// An exchange without a response. The connection is closed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: Http1Error,
    /// Whether the backend cannot have seen anything of the request.
    pub(crate) unsent: bool,
    /// Whether a byte of a response came.
    pub(crate) answered: bool,
}

/// Whom the exchange waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// The client, whose body has a clock of its own.
    ForBody,
    /// The backend, which does not read; with what it has read of all.
    ToWrite(u64),
    ForHead,
}

struct Running<'a> {
    connection: Box<Connection>,
    upload: Upload,
    sent: bool,
    /// The backend takes no more; it may still have answered.
    write_failed: Option<Http1Error>,
    reader: HeadReader,
    answered: bool,
    informational: usize,
    waiting: Waiting,
    terms: &'a Terms<'a>,
}

impl Connection {
    /// Sends the request, in origin-form and with a Host, and waits for the head of the response. Of the
    /// request only the body is consumed, and not even that when nothing was sent.
    pub(crate) async fn exchange(
        mut self: Box<Self>,
        request: &mut Request<Body>,
        mut terms: Terms<'_>,
    ) -> Result<Response<ResponseBody>, Failed> {
        let framing = head::write_request(self.outbox.begin(), request);
        let body = std::mem::replace(request.body_mut(), Body::Empty);
        let home = terms.home.take();
        let before = self.outbox.total();
        let mut running = Running {
            connection: self,
            upload: Upload::new(body, framing),
            sent: false,
            write_failed: None,
            reader: HeadReader::default(),
            answered: false,
            informational: 0,
            waiting: Waiting::ForBody,
            terms: &terms,
        };
        let method = request.method();
        match poll_fn(|cx| running.poll(method, cx)).await {
            Ok((head, decoder, reusable)) => Ok(head.map(|()| ResponseBody {
                upload: (!running.sent).then_some(running.upload),
                connection: Some(running.connection),
                decoder,
                home: home.filter(|_| reusable && running.write_failed.is_none()),
            })),
            Err(error) => {
                let untouched = !running.upload.touched;
                let unsent = untouched && running.connection.outbox.total() == before;
                if unsent {
                    *request.body_mut() = running.upload.into_body();
                }
                Err(Failed {
                    error,
                    unsent,
                    answered: running.answered,
                })
            }
        }
    }
}

type Head = (Response<()>, Decoder, bool);

impl Running<'_> {
    fn poll(&mut self, method: &Method, cx: &mut Context<'_>) -> Poll<Result<Head, Http1Error>> {
        if !self.sent && self.write_failed.is_none() {
            match self.upload.poll_send(&mut self.connection, cx) {
                Poll::Ready(Ok(())) => self.sent = true,
                Poll::Ready(Err(Http1Error::Write(error))) => {
                    // It may have refused and closed; the refusal is then still to be read.
                    self.write_failed = Some(Http1Error::Write(error));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        match self.poll_head(method, cx) {
            Poll::Ready(Err(Http1Error::Read(_) | Http1Error::Closed))
                if self.write_failed.is_some() =>
            {
                let first = self.write_failed.take().unwrap_or(Http1Error::Closed);
                return Poll::Ready(Err(first));
            }
            Poll::Ready(head) => return Poll::Ready(head),
            Poll::Pending => {}
        }
        self.poll_clock(cx).map(Err)
    }

    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<Http1Error> {
        let Some(limit) = self.terms.first_byte else {
            return Poll::Pending;
        };
        let waiting = if self.sent || self.write_failed.is_some() {
            Waiting::ForHead
        } else if self.connection.outbox.is_empty() {
            Waiting::ForBody
        } else {
            Waiting::ToWrite(self.connection.outbox.total())
        };
        if waiting == Waiting::ForBody {
            self.waiting = waiting;
            return Poll::Pending;
        }
        if waiting != self.waiting {
            self.waiting = waiting;
            self.connection.set_clock(limit);
        }
        ready!(self.connection.poll_clock(cx));
        Poll::Ready(Http1Error::FirstByte(limit))
    }

    fn poll_head(
        &mut self,
        method: &Method,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Head, Http1Error>> {
        loop {
            while let Some(head) = self.reader.read(&mut self.connection.inbox)? {
                let status = head.status();
                if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
                    let (decoder, reusable) = head::framing(&head, method)?;
                    return Poll::Ready(Ok((head, decoder, reusable)));
                }
                self.informational += 1;
                if self.informational > MAX_INFORMATIONAL {
                    let error = Http1Error::BadHead("too many informational ones before it");
                    return Poll::Ready(Err(error));
                }
                if status != StatusCode::CONTINUE {
                    self.pass_on(head, method);
                }
            }
            if ready!(self.connection.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(Http1Error::Closed));
            }
            self.answered = true;
        }
    }

    /// A 1xx response: cleaned like every other, and left out when that is not possible.
    fn pass_on(&self, head: Response<()>, method: &Method) {
        let Some(hints) = self.terms.hints else {
            return;
        };
        let (mut parts, ()) = head.into_parts();
        if normalize::response(&mut parts, method).is_ok() {
            hints.push(Response::from_parts(parts, ()));
        }
    }
}

/// The body of a response: owns the connection until its end.
pub(crate) struct ResponseBody {
    connection: Option<Box<Connection>>,
    decoder: Decoder,
    /// The request body, where the response was faster.
    upload: Option<Upload>,
    home: Option<Home>,
}

impl ResponseBody {
    /// The connection is closed after this response.
    pub(crate) fn forbid_reuse(&mut self) {
        self.home = None;
    }

    /// The whole body, where it has a length and came together with its head. The connection is then free.
    pub(crate) fn take_whole(&mut self) -> Option<Bytes> {
        let connection = self.connection.as_mut()?;
        let Decoder::Length(left) = self.decoder else {
            return None;
        };
        if self.upload.is_some() || (connection.inbox.len() as u64) < left {
            return None;
        }
        let frame = self.decoder.decode(&mut connection.inbox).ok()??;
        self.settle();
        frame.into_data().ok()
    }

    /// The connection itself, after 101.
    pub(crate) fn into_upgraded(mut self) -> Option<Upgraded> {
        let connection = *self.connection.take()?;
        Some(Upgraded::new(connection.io, connection.inbox.freeze()))
    }

    /// Gives the connection back when both messages are over, and closes it when only the response is.
    fn settle(&mut self) {
        if !self.decoder.is_end() {
            return;
        }
        if let Some(mut connection) = self.connection.take()
            && let Some(home) = self.home.take()
            && self.upload.is_none()
            && connection.rest()
        {
            home.take_in(connection);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Http1Error>>> {
        let Some(connection) = &mut self.connection else {
            // Given back at its end, or lost before: then it must not look complete, however often one asks.
            let end = self.decoder.is_end();
            return Poll::Ready((!end).then_some(Err(Http1Error::Closed)));
        };
        if let Some(upload) = &mut self.upload {
            match upload.poll_send(connection, cx) {
                Poll::Ready(Ok(())) => self.upload = None,
                Poll::Ready(Err(Http1Error::Write(_))) => {
                    self.home = None;
                    self.upload = None;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Pending => {}
            }
        }
        loop {
            if let Some(frame) = self.decoder.decode(&mut connection.inbox)? {
                self.settle();
                return Poll::Ready(Some(Ok(frame)));
            }
            if self.decoder.is_end() {
                self.settle();
                return Poll::Ready(None);
            }
            if ready!(connection.poll_fill(cx))? == 0 {
                self.decoder.closed()?;
            }
        }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Http1Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Http1Error>>> {
        let this = self.get_mut();
        let frame = this.poll(cx);
        if let Poll::Ready(Some(Err(_))) = &frame {
            this.connection = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.decoder.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        match self.decoder {
            Decoder::Length(left) => SizeHint::with_exact(left),
            Decoder::End => SizeHint::with_exact(0),
            Decoder::Chunked(_) | Decoder::UntilClose => SizeHint::default(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.settle();
    }
}
