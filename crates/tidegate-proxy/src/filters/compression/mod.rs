//! Opt-in compression of responses.
//!
//! A streamed body is never held back: whenever the source has nothing more at the moment, what was
//! compressed so far is flushed and sent. Off unless a rule asks for it, because compressed pages that mix
//! secrets with input from outside leak them (BREACH). Never decompresses anything.

use std::pin::Pin;
use std::task::{Context, Poll};

use async_compression::Level;
use async_compression::tokio::write::{BrotliEncoder, GzipEncoder, ZstdEncoder};
use bytes::{Buf, Bytes};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tidegate_model::{Compression, CompressionAlgorithm};
use tokio::io::AsyncWrite;

use super::accept_encoding;
use crate::body::{Body, BodyError};

/// Compressed bytes that are sent without waiting for the source to pause.
const CHUNK: usize = 16 * 1024;

/// Media types that are worth it when the rule names none.
const COMPRESSIBLE: &[&str] = &[
    "text/*",
    "application/json",
    "application/javascript",
    "application/x-javascript",
    "application/xml",
    "application/wasm",
    "application/manifest+json",
    "application/ld+json",
    "application/problem+json",
    "application/rss+xml",
    "application/atom+xml",
    "application/xhtml+xml",
    "application/vnd.ms-fontobject",
    "image/svg+xml",
    "image/bmp",
    "font/ttf",
    "font/otf",
];

/// Compresses the response if rule, response and client allow it.
pub(crate) fn apply(
    compression: &Compression,
    method: &Method,
    request_headers: &HeaderMap,
    response: Response<Body>,
) -> Response<Body> {
    if !is_eligible(compression, &response) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    append_vary(&mut parts.headers);
    let offers: Vec<_> = compression
        .algorithms
        .iter()
        .map(|algorithm| (token(*algorithm), *algorithm))
        .collect();
    let algorithm = accept_encoding::choose(request_headers, &offers);
    let Some(algorithm) = algorithm.filter(|_| method != Method::HEAD) else {
        return Response::from_parts(parts, body);
    };
    let headers = &mut parts.headers;
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::ACCEPT_RANGES);
    headers.remove("content-md5");
    headers.remove("digest");
    headers.remove("content-digest");
    headers.insert(
        header::CONTENT_ENCODING,
        HeaderValue::from_static(token(algorithm)),
    );
    weaken_etag(headers);
    Response::from_parts(parts, Body::boxed(Compressed::new(body, algorithm)))
}

const fn token(algorithm: CompressionAlgorithm) -> &'static str {
    match algorithm {
        CompressionAlgorithm::Zstd => "zstd",
        CompressionAlgorithm::Brotli => "br",
        CompressionAlgorithm::Gzip => "gzip",
    }
}

fn is_eligible(compression: &Compression, response: &Response<Body>) -> bool {
    let headers = response.headers();
    let status = response.status();
    let without_body = status.is_informational()
        || matches!(
            status,
            StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED
        );
    if without_body
        || headers.contains_key(header::CONTENT_ENCODING)
        || headers.contains_key(header::CONTENT_RANGE)
        || is_forbidden(headers)
    {
        return false;
    }
    let known_size = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .or_else(|| response.body().size_hint().exact());
    known_size.is_none_or(|size: u64| size >= compression.min_size.max(1))
        && is_compressible(&compression.content_types, headers)
}

/// RFC 9111 §5.2.2.6.
fn is_forbidden(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|directive| directive.trim().eq_ignore_ascii_case("no-transform"))
}

fn is_compressible(wanted: &[String], headers: &HeaderMap) -> bool {
    let Some(Ok(value)) = headers.get(header::CONTENT_TYPE).map(HeaderValue::to_str) else {
        return false;
    };
    let media_type = value.split(';').next().unwrap_or(value).trim();
    if media_type.eq_ignore_ascii_case("text/event-stream") {
        return false;
    }
    let covers = |pattern: &str| match pattern.strip_suffix("/*") {
        Some("*") => true,
        Some(class) => media_type
            .split_once('/')
            .is_some_and(|(found, _)| found.eq_ignore_ascii_case(class)),
        None => media_type.eq_ignore_ascii_case(pattern),
    };
    if wanted.is_empty() {
        COMPRESSIBLE.iter().any(|pattern| covers(pattern))
    } else {
        wanted.iter().any(|pattern| covers(pattern))
    }
}

fn append_vary(headers: &mut HeaderMap) {
    let named = headers
        .get_all(header::VARY)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|name| {
            matches!(name.trim(), "*") || name.trim().eq_ignore_ascii_case("accept-encoding")
        });
    if !named {
        headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
}

/// The bytes differ from those that a strong tag promises (RFC 9110 §8.8.1).
fn weaken_etag(headers: &mut HeaderMap) {
    let weak = headers
        .get(header::ETAG)
        .map(HeaderValue::as_bytes)
        .filter(|tag| !tag.starts_with(b"W/"))
        .and_then(|tag| HeaderValue::from_bytes(&[b"W/", tag].concat()).ok());
    if let Some(weak) = weak {
        headers.insert(header::ETAG, weak);
    }
}

/// Encoders that write into memory, which is always ready.
#[allow(
    clippy::large_enum_variant,
    reason = "boxed as a whole, once per compressed response"
)]
enum Encoder {
    Gzip(GzipEncoder<Vec<u8>>),
    Brotli(BrotliEncoder<Vec<u8>>),
    Zstd(ZstdEncoder<Vec<u8>>),
}

impl Encoder {
    /// Levels are chosen for answers made on the fly: beyond them time grows faster than the gain.
    fn new(algorithm: CompressionAlgorithm) -> Self {
        match algorithm {
            CompressionAlgorithm::Gzip => {
                Self::Gzip(GzipEncoder::with_quality(Vec::new(), Level::Precise(5)))
            }
            CompressionAlgorithm::Brotli => {
                Self::Brotli(BrotliEncoder::with_quality(Vec::new(), Level::Precise(4)))
            }
            CompressionAlgorithm::Zstd => {
                Self::Zstd(ZstdEncoder::with_quality(Vec::new(), Level::Precise(3)))
            }
        }
    }

    fn writer(&mut self) -> Pin<&mut (dyn AsyncWrite + Send + Unpin)> {
        Pin::new(match self {
            Self::Gzip(encoder) => encoder,
            Self::Brotli(encoder) => encoder,
            Self::Zstd(encoder) => encoder,
        })
    }

    fn output(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
        }
    }
}

/// What is left to do.
enum Stage {
    /// The source may have more.
    Reading,
    /// The source has ended; trailers follow the last bytes.
    Trailers(Option<HeaderMap>),
    Done,
}

/// A body that is compressed as it comes.
struct Compressed {
    source: Body,
    encoder: Box<Encoder>,
    stage: Stage,
    /// Whether something was written since the last flush.
    dirty: bool,
}

impl Compressed {
    fn new(source: Body, algorithm: CompressionAlgorithm) -> Self {
        Self {
            source,
            encoder: Box::new(Encoder::new(algorithm)),
            stage: Stage::Reading,
            dirty: false,
        }
    }

    /// Compresses all of the data. Pending would mean that memory is not ready, which cannot be.
    fn write(&mut self, cx: &mut Context<'_>, mut data: Bytes) -> Poll<Result<(), BodyError>> {
        while data.has_remaining() {
            let written = std::task::ready!(self.encoder.writer().poll_write(cx, &data))?;
            data.advance(written);
            self.dirty = true;
        }
        Poll::Ready(Ok(()))
    }

    fn take_output(&mut self) -> Option<Frame<Bytes>> {
        let output = std::mem::take(self.encoder.output());
        (!output.is_empty()).then(|| Frame::data(output.into()))
    }
}

impl HttpBody for Compressed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            match &mut this.stage {
                Stage::Reading => {}
                Stage::Trailers(trailers) => {
                    let trailers = trailers.take();
                    this.stage = Stage::Done;
                    return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                }
                Stage::Done => return Poll::Ready(None),
            }
            let trailers = match Pin::new(&mut this.source).poll_frame(cx) {
                Poll::Pending => {
                    if this.dirty {
                        std::task::ready!(this.encoder.writer().poll_flush(cx))?;
                        this.dirty = false;
                    }
                    return match this.take_output() {
                        Some(frame) => Poll::Ready(Some(Ok(frame))),
                        None => Poll::Pending,
                    };
                }
                Poll::Ready(Some(Err(error))) => {
                    this.stage = Stage::Done;
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        std::task::ready!(this.write(cx, data))?;
                        if this.encoder.output().len() < CHUNK {
                            continue;
                        }
                        return Poll::Ready(this.take_output().map(Ok));
                    }
                    Err(frame) => frame.into_trailers().ok(),
                },
                Poll::Ready(None) => None,
            };
            std::task::ready!(this.encoder.writer().poll_shutdown(cx))?;
            this.stage = Stage::Trailers(trailers);
            if let Some(frame) = this.take_output() {
                return Poll::Ready(Some(Ok(frame)));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests;
