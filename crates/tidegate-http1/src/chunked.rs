//! The end of a body: counted, chunked (RFC 9112 §7.1), at the close of the connection, or at once.
//!
//! Pure: takes bytes from the front of a buffer and yields frames. Chunks are read strictly; a line that
//! two readers could end at different places is an error. Must not read past the end of its message.

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;

use crate::Http1Error;

/// Bytes of chunk extensions and padding in one body: nobody reads them, so they must not cost much.
const MAX_EXTENSIONS: usize = 16 * 1024;

/// Bytes and fields of a trailer section.
const MAX_TRAILERS: usize = 16 * 1024;
const MAX_TRAILER_FIELDS: usize = 100;

/// Where a body ends.
#[derive(Debug)]
pub(super) enum Decoder {
    /// After so many bytes more, at least one.
    Length(u64),
    Chunked(Chunked),
    /// With the connection.
    UntilClose,
    /// Here.
    End,
}

impl Decoder {
    pub(super) fn length(length: u64) -> Self {
        if length == 0 {
            Self::End
        } else {
            Self::Length(length)
        }
    }

    pub(super) fn chunked() -> Self {
        Self::Chunked(Chunked {
            state: State::Size {
                value: 0,
                digits: 0,
            },
            extensions: 0,
            failed: None,
        })
    }

    pub(super) const fn is_end(&self) -> bool {
        matches!(self, Self::End)
    }

    /// The next frame. None at the end, and when more bytes are needed.
    pub(super) fn decode(
        &mut self,
        inbox: &mut BytesMut,
    ) -> Result<Option<Frame<Bytes>>, Http1Error> {
        let frame = match self {
            Self::End => return Ok(None),
            Self::Length(left) => {
                let frame = take(left, inbox);
                if *left == 0 {
                    *self = Self::End;
                }
                return Ok(frame);
            }
            Self::UntilClose => {
                let mut all = u64::MAX;
                return Ok(take(&mut all, inbox));
            }
            Self::Chunked(chunked) => chunked.decode(inbox)?,
        };
        if let Self::Chunked(chunked) = self
            && matches!(chunked.state, State::End)
        {
            *self = Self::End;
        }
        Ok(frame)
    }

    /// The connection has ended.
    pub(super) fn closed(&mut self) -> Result<(), Http1Error> {
        match self {
            Self::UntilClose | Self::End => {
                *self = Self::End;
                Ok(())
            }
            Self::Length(_) | Self::Chunked(_) => Err(Http1Error::Closed),
        }
    }
}

/// At most `left` bytes, counted off.
fn take(left: &mut u64, inbox: &mut BytesMut) -> Option<Frame<Bytes>> {
    if inbox.is_empty() {
        return None;
    }
    let n = usize::try_from(*left).map_or(inbox.len(), |left| left.min(inbox.len()));
    *left -= n as u64;
    Some(Frame::data(inbox.split_to(n).freeze()))
}

/// State of a chunked body.
#[derive(Debug)]
pub(super) struct Chunked {
    state: State,
    extensions: usize,
    /// Found while looking ahead, behind bytes that were still good.
    failed: Option<Http1Error>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Size {
        value: u64,
        digits: u8,
    },
    /// White space after the size, which old servers pad with.
    Padding(u64),
    Extension(u64),
    SizeLf(u64),
    /// Bytes of the chunk still to come, at least one.
    Data(u64),
    DataCr,
    DataLf,
    /// Bytes that were searched for the end of the section.
    Trailers(usize),
    End,
}

impl Chunked {
    fn decode(&mut self, inbox: &mut BytesMut) -> Result<Option<Frame<Bytes>>, Http1Error> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        if let Some(trailers) = self.advance(inbox)? {
            return Ok(Some(Frame::trailers(trailers)));
        }
        let State::Data(left) = &mut self.state else {
            return Ok(None);
        };
        let frame = take(left, inbox);
        if *left == 0 {
            self.state = State::DataCr;
            // The end is worth knowing together with the last bytes. Trailers are a frame of their own.
            match self.advance_unless_trailers(inbox) {
                Ok(()) => {}
                Err(failed) => self.failed = Some(failed),
            }
        }
        Ok(frame)
    }

    fn advance_unless_trailers(&mut self, inbox: &mut BytesMut) -> Result<(), Http1Error> {
        self.lines(inbox)?;
        if matches!(self.state, State::Trailers(_)) && inbox.starts_with(b"\r\n") {
            inbox.advance(2);
            self.state = State::End;
        }
        Ok(())
    }

    /// Reads up to the next byte of data or to the end.
    fn advance(&mut self, inbox: &mut BytesMut) -> Result<Option<HeaderMap>, Http1Error> {
        self.lines(inbox)?;
        if let State::Trailers(searched) = self.state {
            return self.trailers(inbox, searched);
        }
        Ok(None)
    }

    /// The lines between data.
    fn lines(&mut self, inbox: &mut BytesMut) -> Result<(), Http1Error> {
        let bad = |what| Err(Http1Error::BadChunk(what));
        let mut used = 0;
        for byte in inbox.iter() {
            self.state = match (self.state, *byte) {
                (State::Data(_) | State::Trailers(_) | State::End, _) => break,
                (State::Size { value, digits }, byte) => {
                    match (char::from(byte).to_digit(16), byte) {
                        // Sixteen digits would be more than any length a message can have.
                        (Some(_), _) if digits >= 15 => return bad("too long a chunk"),
                        (Some(digit), _) => State::Size {
                            value: value << 4 | u64::from(digit),
                            digits: digits + 1,
                        },
                        _ if digits == 0 => return bad("a chunk without a size"),
                        (None, b'\r') => State::SizeLf(value),
                        (None, b';') => State::Extension(value),
                        (None, b' ' | b'\t') => State::Padding(value),
                        (None, _) => return bad("an invalid chunk size"),
                    }
                }
                (State::Padding(size) | State::Extension(size), b'\r') => State::SizeLf(size),
                (State::Padding(size), b';') => State::Extension(size),
                (State::Padding(size), b' ' | b'\t') => {
                    self.count_extension()?;
                    State::Padding(size)
                }
                (State::Padding(_), _) => return bad("an invalid chunk size"),
                (State::Extension(_), b'\n') => return bad("a line that ends without CR"),
                (State::Extension(size), _) => {
                    self.count_extension()?;
                    State::Extension(size)
                }
                (State::SizeLf(0), b'\n') => State::Trailers(0),
                (State::SizeLf(size), b'\n') => State::Data(size),
                (State::DataCr, b'\r') => State::DataLf,
                (State::DataLf, b'\n') => State::Size {
                    value: 0,
                    digits: 0,
                },
                (State::SizeLf(_), _) => return bad("a CR without LF"),
                (State::DataCr | State::DataLf, _) => return bad("a chunk longer than its size"),
            };
            used += 1;
        }
        inbox.advance(used);
        Ok(())
    }

    fn count_extension(&mut self) -> Result<(), Http1Error> {
        self.extensions += 1;
        if self.extensions > MAX_EXTENSIONS {
            return Err(Http1Error::BadChunk("too many chunk extensions"));
        }
        Ok(())
    }

    fn trailers(
        &mut self,
        inbox: &mut BytesMut,
        searched: usize,
    ) -> Result<Option<HeaderMap>, Http1Error> {
        if inbox.starts_with(b"\r\n") {
            inbox.advance(2);
            self.state = State::End;
            return Ok(None);
        }
        let from = searched.saturating_sub(3);
        let end = inbox[from..]
            .windows(4)
            .position(|window| window == b"\r\n\r\n");
        let Some(end) = end.map(|end| from + end + 4) else {
            if inbox.len() > MAX_TRAILERS {
                return Err(Http1Error::BadChunk("too large a trailer section"));
            }
            self.state = State::Trailers(inbox.len());
            return Ok(None);
        };
        if end > MAX_TRAILERS {
            return Err(Http1Error::BadChunk("too large a trailer section"));
        }
        let section = inbox.split_to(end).freeze();
        self.state = State::End;
        parse_trailers(&section).map(Some)
    }
}

fn parse_trailers(section: &Bytes) -> Result<HeaderMap, Http1Error> {
    const INVALID: Http1Error = Http1Error::BadChunk("an invalid trailer section");
    let bare_lf =
        |(at, byte): (usize, &u8)| *byte == b'\n' && (at == 0 || section[at - 1] != b'\r');
    if section.iter().enumerate().any(bare_lf) {
        return Err(Http1Error::BadChunk("a line that ends without CR"));
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(section, &mut fields)
    else {
        return Err(INVALID);
    };
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| INVALID)?;
        let value = section.slice_ref(field.value);
        trailers.append(
            name,
            HeaderValue::from_maybe_shared(value).map_err(|_| INVALID)?,
        );
    }
    Ok(trailers)
}
