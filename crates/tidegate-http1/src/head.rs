//! Heads: a request as bytes, bytes as a response (RFC 9112 §3, §4, §6.3).
//!
//! Pure. What a response says of its own end is decided here and nowhere else; a head that could be read
//! in two ways is an error, or at least the last one of its connection.

use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
};
use http_body::Body;

use crate::chunked::Decoder;
use crate::upload::Framing;
use crate::{Http1Error, MAX_HEAD};

/// Fields of a response head. Some services in homes send more than a hundred.
const MAX_FIELDS: usize = 256;

const TOO_LARGE: Http1Error = Http1Error::BadHead("more bytes than are accepted");

/// Room for the fields that are added on the way to the client.
const EXTRA_FIELDS: usize = 4;

// === requests ===

/// What the request line holds instead of the request's URI: an origin-form with bytes that no URI may hold.
/// Goes with the request as an extension; other protocols send the URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawTarget(Bytes);

impl RawTarget {
    /// None when it is no path, or when the bytes could end the target or its line.
    pub fn new(target: impl Into<Bytes>) -> Option<Self> {
        let target = target.into();
        let fine = |byte: &u8| matches!(byte, 0x21..=0x7e | 0x80..);
        (target.starts_with(b"/") && target.iter().all(fine)).then_some(Self(target))
    }

    /// The bytes as they are sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Writes the head of a request in origin-form. Returns how its body is to be sent.
pub(super) fn write_request<B: Body>(out: &mut Vec<u8>, request: &Request<B>) -> Framing {
    out.extend_from_slice(request.method().as_str().as_bytes());
    out.push(b' ');
    let target = match request.extensions().get::<RawTarget>() {
        Some(raw) => raw.as_bytes(),
        None => request
            .uri()
            .path_and_query()
            .map_or("/", PathAndQuery::as_str)
            .as_bytes(),
    };
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let mut stated = None;
    for (name, value) in request.headers() {
        if *name == header::CONTENT_LENGTH {
            stated = Some(value);
        } else if *name != header::TRANSFER_ENCODING {
            write_field(out, name, value.as_bytes());
        }
    }
    let stated = stated.and_then(|value| parse_length(value.as_bytes()));
    let body = request.body();
    let framing = if body.is_end_stream() {
        if stated == Some(0) {
            out.extend_from_slice(b"Content-Length: 0\r\n");
        }
        Framing::None
    } else if let Some(length) = stated.or_else(|| body.size_hint().exact()) {
        write_field(out, &header::CONTENT_LENGTH, length.to_string().as_bytes());
        Framing::Length(length)
    } else {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        Framing::Chunked
    };
    out.extend_from_slice(b"\r\n");
    framing
}

fn write_field(out: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    write_name(out, name.as_str());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Some backends match names by case (a tracker exits without this): title case, as everybody writes them.
fn write_name(out: &mut Vec<u8>, name: &str) {
    let usual = match name {
        "te" => "TE",
        "dnt" => "DNT",
        "sec-websocket-extensions" => "Sec-WebSocket-Extensions",
        "sec-websocket-key" => "Sec-WebSocket-Key",
        "sec-websocket-protocol" => "Sec-WebSocket-Protocol",
        "sec-websocket-version" => "Sec-WebSocket-Version",
        _ => {
            let start = out.len();
            out.extend_from_slice(name.as_bytes());
            let mut first = true;
            for byte in &mut out[start..] {
                if first {
                    byte.make_ascii_uppercase();
                }
                first = *byte == b'-';
            }
            return;
        }
    };
    out.extend_from_slice(usual.as_bytes());
}

// === responses ===

/// The reason of a status line (RFC 9112 §4) where it is not the usual one; an extension of the response. Holds
/// nothing but white space and visible characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason(pub Bytes);

/// `1*DIGIT` up to 2^63-1, as a Content-Length is (RFC 9110 §8.6).
pub fn parse_length(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits
        .iter()
        .try_fold(0_u64, |length, digit| {
            let digit = char::from(*digit).to_digit(10)?;
            length.checked_mul(10)?.checked_add(digit.into())
        })
        .filter(|length| i64::try_from(*length).is_ok())
}

/// Searches for the end of a head across reads without reading twice.
#[derive(Debug, Default)]
pub(super) struct HeadReader {
    searched: usize,
}

impl HeadReader {
    /// Takes a whole head from the front of the buffer, or nothing.
    pub(super) fn read(
        &mut self,
        inbox: &mut BytesMut,
    ) -> Result<Option<Response<()>>, Http1Error> {
        if self.searched == 0 && skip_empty_lines(inbox) {
            return Ok(None);
        }
        let Some(end) = head_end(inbox, self.searched) else {
            self.searched = inbox.len();
            if self.searched > MAX_HEAD {
                return Err(TOO_LARGE);
            }
            return Ok(None);
        };
        self.searched = 0;
        if end > MAX_HEAD {
            return Err(TOO_LARGE);
        }
        parse(&inbox.split_to(end).freeze()).map(Some)
    }
}

/// RFC 9112 §2.2: empty lines before a head are skipped. True when the last one is not complete.
fn skip_empty_lines(inbox: &mut BytesMut) -> bool {
    loop {
        match inbox[..] {
            [b'\n', ..] => inbox.advance(1),
            [b'\r', b'\n', ..] => inbox.advance(2),
            [b'\r'] => return true,
            _ => return false,
        }
    }
}

/// The index after the first empty line.
fn head_end(inbox: &[u8], searched: usize) -> Option<usize> {
    // The line end before it may be among what was searched already.
    let mut from = searched.saturating_sub(2);
    loop {
        let lf = from + memchr::memchr(b'\n', &inbox[from..])?;
        match inbox[lf + 1..] {
            [b'\n', ..] => return Some(lf + 2),
            [b'\r', b'\n', ..] => return Some(lf + 3),
            _ => from = lf + 1,
        }
    }
}

fn parse(head: &Bytes) -> Result<Response<()>, Http1Error> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let status = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, head, &mut fields)
        .map_err(Http1Error::Head)?;
    let (httparse::Status::Complete(_), Some(minor), Some(code)) =
        (status, parsed.version, parsed.code)
    else {
        return Err(Http1Error::BadHead("an empty line in the wrong place"));
    };
    let code = StatusCode::from_u16(code).map_err(|_| Http1Error::BadHead("an invalid status"))?;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len() + EXTRA_FIELDS);
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| Http1Error::BadHead("an invalid field name"))?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
            .map_err(|_| Http1Error::BadHead("an invalid field value"))?;
        headers.append(name, value);
    }
    let mut response = Response::new(());
    *response.status_mut() = code;
    *response.version_mut() = if minor == 0 {
        Version::HTTP_10
    } else {
        Version::HTTP_11
    };
    *response.headers_mut() = headers;
    if let Some(reason) = parsed.reason
        && Some(reason) != code.canonical_reason()
    {
        let reason = Reason(head.slice_ref(reason.as_bytes()));
        response.extensions_mut().insert(reason);
    }
    Ok(response)
}

/// Where the body of a final response (or of 101) ends, and whether the connection may be used again.
pub(super) fn framing(
    response: &Response<()>,
    request: &Method,
) -> Result<(Decoder, bool), Http1Error> {
    let (status, headers) = (response.status(), response.headers());
    let encoded = headers.contains_key(header::TRANSFER_ENCODING);
    let keep_alive = keep_alive(response.version(), headers);
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok((Decoder::End, false));
    }
    if status == StatusCode::NO_CONTENT {
        // RFC 9112 §6.1: a server that announces a body here may well send one.
        let announced = encoded || length(headers)?.is_some_and(|length| length > 0);
        return Ok((Decoder::End, keep_alive && !announced));
    }
    if status == StatusCode::NOT_MODIFIED || *request == Method::HEAD {
        return Ok((Decoder::End, keep_alive));
    }
    if encoded {
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        let (Some(only), None) = (codings.next(), codings.next()) else {
            return Err(Http1Error::BadHead("several Transfer-Encoding fields"));
        };
        if response.version() != Version::HTTP_11 {
            return Err(Http1Error::BadHead("a Transfer-Encoding in HTTP/1.0"));
        }
        if !only.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(Http1Error::BadHead("an unknown Transfer-Encoding"));
        }
        let ambiguous = headers.contains_key(header::CONTENT_LENGTH);
        return Ok((Decoder::chunked(), keep_alive && !ambiguous));
    }
    Ok(match length(headers)? {
        Some(length) => (Decoder::length(length), keep_alive),
        None => (Decoder::UntilClose, false),
    })
}

/// One number, however often it is said.
fn length(headers: &HeaderMap) -> Result<Option<u64>, Http1Error> {
    let mut length = None;
    let fields = headers.get_all(header::CONTENT_LENGTH).iter();
    for digits in fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b',')) {
        let one = parse_length(digits.trim_ascii())
            .ok_or(Http1Error::BadHead("an invalid Content-Length"))?;
        if length.is_some_and(|length| length != one) {
            return Err(Http1Error::BadHead("two different lengths"));
        }
        length = Some(one);
    }
    Ok(length)
}

/// RFC 9112 §9.3.
fn keep_alive(version: Version, headers: &HeaderMap) -> bool {
    let mut said = false;
    for field in headers.get_all(header::CONNECTION) {
        for option in field.as_bytes().split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            if option.eq_ignore_ascii_case(b"close") {
                return false;
            }
            said |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    version == Version::HTTP_11 || said
}
