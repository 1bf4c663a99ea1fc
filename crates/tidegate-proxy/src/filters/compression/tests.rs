//! Round trips, what is left alone, and that a stream is not held back.

use std::collections::VecDeque;
use std::task::Waker;

use async_compression::tokio::write::{BrotliDecoder, GzipDecoder, ZstdDecoder};
use http_body_util::BodyExt;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use super::*;

/// Yields its frames, with a pause wherever None stands.
struct Script(VecDeque<Option<Frame<Bytes>>>);

impl HttpBody for Script {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.0.pop_front() {
            Some(Some(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(None) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None => Poll::Ready(None),
        }
    }
}

fn script(frames: Vec<Option<Frame<Bytes>>>) -> Body {
    Body::boxed(Script(frames.into()))
}

#[allow(clippy::unnecessary_wraps, reason = "None is a pause in a script")]
fn data(text: &[u8]) -> Option<Frame<Bytes>> {
    Some(Frame::data(Bytes::copy_from_slice(text)))
}

const ALL: [CompressionAlgorithm; 3] = [
    CompressionAlgorithm::Zstd,
    CompressionAlgorithm::Brotli,
    CompressionAlgorithm::Gzip,
];

/// Decodes what is there so far; the stream may go on.
async fn decode(algorithm: CompressionAlgorithm, bytes: &[u8]) -> Vec<u8> {
    macro_rules! decode {
        ($decoder:ident) => {{
            let mut decoder = $decoder::new(Vec::new());
            decoder.write_all(bytes).await.unwrap();
            decoder.flush().await.unwrap();
            decoder.into_inner()
        }};
    }
    match algorithm {
        CompressionAlgorithm::Gzip => decode!(GzipDecoder),
        CompressionAlgorithm::Brotli => decode!(BrotliDecoder),
        CompressionAlgorithm::Zstd => decode!(ZstdDecoder),
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

#[test]
fn what_is_there_is_sent_when_the_source_pauses() {
    for algorithm in ALL {
        let frames = vec![
            data(b"event: 1\n"),
            None,
            data(b"event: 2\n"),
            None,
            None,
            data(b"end"),
        ];
        let mut body = Compressed::new(script(frames), algorithm);
        let mut cx = Context::from_waker(Waker::noop());
        let mut sent = Vec::new();
        let mut poll = || match Pin::new(&mut body).poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => {
                sent.extend_from_slice(&frame.into_data().unwrap());
                Some(run(decode(algorithm, &sent)))
            }
            Poll::Pending => None,
            Poll::Ready(other) => panic!("{algorithm:?}: {other:?}"),
        };
        assert_eq!(
            poll().as_deref(),
            Some(b"event: 1\n".as_slice()),
            "{algorithm:?}"
        );
        assert_eq!(
            poll().as_deref(),
            Some(b"event: 1\nevent: 2\n".as_slice()),
            "{algorithm:?}"
        );
        assert_eq!(poll(), None, "nothing new: {algorithm:?}");
        assert_eq!(poll().unwrap(), b"event: 1\nevent: 2\nend", "{algorithm:?}");
        assert!(matches!(
            Pin::new(&mut body).poll_frame(&mut cx),
            Poll::Ready(None)
        ));
        assert!(body.is_end_stream());
    }
}

/// Breaks off at once.
struct Broken;

impl HttpBody for Broken {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(Some(Err("cut".into())))
    }
}

#[test]
fn trailers_and_errors_pass() {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("1"));
    let frames = vec![data(b"abc"), Some(Frame::trailers(trailers.clone()))];
    let body = Compressed::new(script(frames), CompressionAlgorithm::Gzip);
    let collected = run(body.collect()).unwrap();
    assert_eq!(collected.trailers(), Some(&trailers));
    assert_eq!(
        run(decode(CompressionAlgorithm::Gzip, &collected.to_bytes())),
        b"abc"
    );

    let body = Compressed::new(Body::boxed(Broken), CompressionAlgorithm::Zstd);
    assert_eq!(run(body.collect()).unwrap_err().to_string(), "cut");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn every_body_survives(
        chunks in proptest::collection::vec(proptest::collection::vec(0_u8..4, 0..9000), 0..6),
        pauses in any::<u8>(),
    ) {
        for algorithm in ALL {
            let mut frames = Vec::new();
            for (i, chunk) in chunks.iter().enumerate() {
                if pauses >> (i % 8) & 1 == 1 {
                    frames.push(None);
                }
                frames.push(data(chunk));
            }
            let body = Compressed::new(script(frames), algorithm);
            let sent = run(body.collect()).unwrap().to_bytes();
            prop_assert_eq!(run(decode(algorithm, &sent)), chunks.concat());
        }
    }
}

fn compression() -> Compression {
    Compression {
        algorithms: ALL.to_vec(),
        min_size: 100,
        content_types: Vec::new(),
    }
}

fn response(status: u16, fields: &[(&str, &str)], size: usize) -> Response<Body> {
    let builder = Response::builder().status(status);
    let builder = fields
        .iter()
        .fold(builder, |b, (name, value)| b.header(*name, *value));
    builder.body(Body::full(vec![b'a'; size])).unwrap()
}

fn request(accept: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::ACCEPT_ENCODING,
        HeaderValue::from_str(accept).unwrap(),
    );
    headers
}

#[test]
fn a_compressed_response_says_so() {
    let fields = [
        ("content-type", "text/html; charset=utf-8"),
        ("content-length", "1000"),
        ("accept-ranges", "bytes"),
        ("etag", "\"abc\""),
        ("vary", "origin"),
    ];
    let plain = response(200, &fields, 1000);
    let found = apply(
        &compression(),
        &Method::GET,
        &request("br;q=0.9, gzip;q=0.5"),
        plain,
    );
    let (parts, body) = found.into_parts();
    let vary: Vec<_> = parts.headers.get_all("vary").iter().collect();
    assert_eq!(vary, ["origin", "accept-encoding"]);
    assert_eq!(parts.headers["content-encoding"], "br");
    assert_eq!(parts.headers["etag"], "W/\"abc\"");
    for gone in ["content-length", "accept-ranges"] {
        assert!(!parts.headers.contains_key(gone), "{gone}");
    }
    let sent = run(body.collect()).unwrap().to_bytes();
    assert!(sent.len() < 100);
    assert_eq!(
        run(decode(CompressionAlgorithm::Brotli, &sent)),
        vec![b'a'; 1000]
    );
}

#[test]
fn what_should_not_be_compressed_is_left_alone() {
    let html = ("content-type", "text/html");
    for (status, fields, size, varies) in [
        (200, vec![("content-type", "image/png")], 1000, false),
        (
            200,
            vec![("content-type", "text/event-stream")],
            1000,
            false,
        ),
        (200, vec![("content-type", "application/grpc")], 1000, false),
        (200, vec![], 1000, false),
        (200, vec![html], 99, false),
        (200, vec![html, ("content-length", "99")], 1000, false),
        (200, vec![html, ("content-encoding", "gzip")], 1000, false),
        (
            200,
            vec![html, ("cache-control", "public, No-Transform")],
            1000,
            false,
        ),
        (
            206,
            vec![html, ("content-range", "bytes 0-999/2000")],
            1000,
            false,
        ),
        (304, vec![html], 1000, false),
        (204, vec![html], 1000, false),
    ] {
        let plain = response(status, &fields, size);
        let found = apply(&compression(), &Method::GET, &request("gzip"), plain);
        let encoded = found
            .headers()
            .get("content-encoding")
            .is_some_and(|v| v == "gzip");
        let already = fields.iter().any(|(name, _)| *name == "content-encoding");
        assert_eq!(encoded, already, "{status} {fields:?}");
        assert_eq!(
            found.headers().contains_key("vary"),
            varies,
            "{status} {fields:?}"
        );
    }
    // Caches must know that the answer depends on the client even when this one gets it plain.
    for (method, accept) in [(Method::GET, "deflate"), (Method::HEAD, "gzip")] {
        let found = apply(
            &compression(),
            &method,
            &request(accept),
            response(200, &[html], 1000),
        );
        assert!(
            !found.headers().contains_key("content-encoding"),
            "{method} {accept}"
        );
        assert_eq!(found.headers()["vary"], "accept-encoding");
    }
}

#[test]
fn a_rule_may_name_its_own_types() {
    let own = |types: &[&str]| Compression {
        content_types: types.iter().map(|t| (*t).to_owned()).collect(),
        ..compression()
    };
    for (types, content_type, expected) in [
        (
            &["application/x-bittorrent"] as &[&str],
            "application/x-bittorrent",
            true,
        ),
        (&["application/x-bittorrent"], "text/html", false),
        (&["text/*"], "TEXT/csv", true),
        (&["*/*"], "application/octet-stream", true),
        (&["*/*"], "text/event-stream", false),
    ] {
        let plain = response(200, &[("content-type", content_type)], 1000);
        let found = apply(&own(types), &Method::GET, &request("gzip"), plain);
        assert_eq!(
            found.headers().contains_key("content-encoding"),
            expected,
            "{content_type}"
        );
    }
}
