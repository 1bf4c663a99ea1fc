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
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::chunked::Decoder;
use crate::head::{self, HeadReader};
use crate::upload::Upload;
use crate::{BodyError, Connection, Http1Error, Upgraded};

/// 1xx responses before the final one. RFC 9110 §15.2 has no limit; a program that sends more never ends.
const MAX_INFORMATIONAL: usize = 100;

/// Where a connection goes when its exchange is over.
pub trait Home<S> {
    /// The connection is free: both messages ended exactly, and nothing is left over.
    fn take_in(self, connection: Box<Connection<S>>);
}

/// Who wants to know of 1xx responses other than 100 and 101 (RFC 9110 §15.2).
pub trait Interim: Sync {
    /// One came, as the backend wrote it, to a request with this method.
    fn take(&self, head: Response<()>, request: &Method);
}

/// What an exchange keeps to.
pub struct Terms<'a, H> {
    /// Time for the response's head after the request was sent whole, and for a backend that stops reading.
    pub first_byte: Option<Duration>,
    /// Takes 1xx responses; without it they are dropped.
    pub interim: Option<&'a dyn Interim>,
    /// Where the connection goes afterwards; None closes it.
    pub home: Option<H>,
}

/// An exchange without a response. The connection is closed.
#[derive(Debug)]
pub struct Failed {
    /// What went wrong.
    pub error: Http1Error,
    /// Whether the backend cannot have seen anything of the request, which then still has its body.
    pub unsent: bool,
    /// Whether a byte of a response came.
    pub answered: bool,
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

struct Running<'a, S, B> {
    connection: Box<Connection<S>>,
    upload: Upload<B>,
    sent: bool,
    /// The backend takes no more; it may still have answered.
    write_failed: Option<Http1Error>,
    reader: HeadReader,
    answered: bool,
    informational: usize,
    waiting: Waiting,
    first_byte: Option<Duration>,
    interim: Option<&'a dyn Interim>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Sends the request, in origin-form and with a Host, and waits for the head of the response. Of the
    /// request only the body is consumed, and not even that when nothing was sent. The default of a body is
    /// an empty one.
    pub async fn exchange<B, H>(
        mut self: Box<Self>,
        request: &mut Request<B>,
        terms: Terms<'_, H>,
    ) -> Result<Response<ResponseBody<S, B, H>>, Failed>
    where
        B: Body<Data = Bytes> + Default + Unpin,
        B::Error: Into<BodyError>,
        H: Home<S>,
    {
        let framing = head::write_request(self.outbox.begin(), request);
        let body = std::mem::take(request.body_mut());
        let Terms {
            first_byte,
            interim,
            home,
        } = terms;
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
            first_byte,
            interim,
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

impl<S, B> Running<'_, S, B>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
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
        let Some(limit) = self.first_byte else {
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
                if status != StatusCode::CONTINUE
                    && let Some(interim) = self.interim
                {
                    interim.take(head, method);
                }
            }
            if ready!(self.connection.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(Http1Error::Closed));
            }
            self.answered = true;
        }
    }
}

/// The body of a response: owns the connection until its end.
pub struct ResponseBody<S, B, H: Home<S>> {
    connection: Option<Box<Connection<S>>>,
    decoder: Decoder,
    /// The request body, where the response was faster.
    upload: Option<Upload<B>>,
    home: Option<H>,
}

impl<S, B, H: Home<S>> ResponseBody<S, B, H> {
    /// The connection is closed after this response.
    pub fn forbid_reuse(&mut self) {
        self.home = None;
    }

    /// The whole body, where it has a length and came together with its head. The connection is then free.
    pub fn take_whole(&mut self) -> Option<Bytes> {
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
    pub fn into_upgraded(mut self) -> Option<Upgraded<S>> {
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
}

impl<S, B, H> ResponseBody<S, B, H>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
    H: Home<S>,
{
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

impl<S, B, H> Body for ResponseBody<S, B, H>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
    H: Home<S> + Unpin,
{
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

impl<S, B, H: Home<S>> Drop for ResponseBody<S, B, H> {
    fn drop(&mut self) {
        self.settle();
    }
}
