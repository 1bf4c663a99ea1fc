//! The codec as tables: bytes in, head and frames out, whole and one byte at a time.

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, StatusCode, Version, header};
use http_body_util::{Either, Full};
use proptest::prelude::*;

use crate::chunked::Decoder;
use crate::head::{self, HeadReader};
use crate::upload::Framing;
use crate::{Http1Error, MAX_HEAD, RawTarget, Reason};

type Body = Either<Full<Bytes>, NoFrames>;

fn full(text: &'static str) -> Body {
    Either::Left(Full::from(text))
}

/// What a reader made of a response.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    status: u16,
    body: Vec<u8>,
    trailers: Vec<String>,
    /// Whether the connection could be used again after it; never with bytes left over.
    reusable: bool,
    left_over: usize,
}

/// Reads one response in pieces; the connection closes after the last one. Err has the error's text.
fn read(method: &Method, bytes: &[u8], piece: usize) -> Result<Read, String> {
    let text = |error: Http1Error| error.to_string();
    let mut pieces = bytes.chunks(piece);
    let mut inbox = BytesMut::new();
    let mut reader = HeadReader::default();
    let head = loop {
        if let Some(head) = reader.read(&mut inbox).map_err(text)? {
            break head;
        }
        inbox.extend_from_slice(pieces.next().ok_or("closed in the head")?);
    };
    let (mut decoder, reusable) = head::framing(&head, method).map_err(text)?;
    let mut read = Read {
        status: head.status().as_u16(),
        body: Vec::new(),
        trailers: Vec::new(),
        reusable,
        left_over: 0,
    };
    loop {
        while let Some(frame) = decoder.decode(&mut inbox).map_err(text)? {
            match frame.into_data() {
                Ok(data) => read.body.extend_from_slice(&data),
                Err(frame) => {
                    for (name, value) in &frame.into_trailers().unwrap() {
                        let value = value.to_str().unwrap();
                        read.trailers.push(format!("{name}: {value}"));
                    }
                }
            }
        }
        if decoder.is_end() {
            read.left_over = inbox.len() + pieces.map(<[u8]>::len).sum::<usize>();
            return Ok(read);
        }
        match pieces.next() {
            Some(piece) => inbox.extend_from_slice(piece),
            None => decoder.closed().map_err(text)?,
        }
    }
}

fn read_all(method: &Method, bytes: &str) -> Result<Read, String> {
    let whole = read(method, bytes.as_bytes(), bytes.len());
    for piece in [1, 2, 3, 7] {
        assert_eq!(
            read(method, bytes.as_bytes(), piece),
            whole,
            "{bytes:?} by {piece}"
        );
    }
    whole
}

#[track_caller]
fn check(method: &Method, bytes: &str, body: &str, reusable: bool, left_over: usize) {
    let read = read_all(method, bytes).unwrap();
    assert_eq!(
        (&*read.body, read.reusable, read.left_over),
        (body.as_bytes(), reusable, left_over),
        "{bytes:?}"
    );
}

#[test]
fn a_body_ends_where_its_head_says() {
    for (head, rest, body, reusable, left_over) in [
        ("Content-Length: 2\r\n", "ok", "ok", true, 0),
        ("Content-Length: 2   \r\n", "ok", "ok", true, 0),
        ("Content-Length: 0\r\n", "", "", true, 0),
        ("Content-Length: 2\r\n", "ok\r\n", "ok", true, 2),
        ("Content-Length: 2, 2\r\n", "ok", "ok", true, 0),
        (
            "Content-Length: 2\r\nContent-Length: 2\r\n",
            "ok",
            "ok",
            true,
            0,
        ),
        (
            "Content-Length: 2\r\nConnection: x, Close\r\n",
            "ok",
            "ok",
            false,
            0,
        ),
        ("", "until the end", "until the end", false, 0),
        (
            "Connection: keep-alive\r\n",
            "until the end",
            "until the end",
            false,
            0,
        ),
        (
            "Transfer-Encoding: chunked\r\n",
            "2\r\nok\r\n0\r\n\r\n",
            "ok",
            true,
            0,
        ),
        (
            "Transfer-Encoding: Chunked\r\n",
            "2\r\nok\r\n0\r\n\r\nHTTP",
            "ok",
            true,
            4,
        ),
        (
            "Content-Length: 9\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
            "",
            false,
            0,
        ),
    ] {
        let bytes = format!("HTTP/1.1 200 OK\r\n{head}\r\n{rest}");
        check(&Method::GET, &bytes, body, reusable, left_over);
    }
    check(
        &Method::GET,
        "\r\n\r\nHTTP/1.1 200\nContent-Length: 1\n\nx",
        "x",
        true,
        0,
    );
    let old = "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n";
    check(&Method::GET, &format!("{old}\r\nx"), "x", false, 0);
    let kept = format!("{old}Connection: Keep-Alive\r\n\r\nx");
    check(&Method::GET, &kept, "x", true, 0);
}

#[test]
fn some_responses_have_no_body_whatever_they_say() {
    for (method, status, fields, reusable) in [
        (Method::HEAD, "200 OK", "Content-Length: 5\r\n", true),
        (
            Method::HEAD,
            "200 OK",
            "Transfer-Encoding: chunked\r\n",
            true,
        ),
        (Method::HEAD, "200 OK", "", true),
        (
            Method::GET,
            "304 Not Modified",
            "Content-Length: 5\r\n",
            true,
        ),
        (Method::GET, "204 No Content", "", true),
        (Method::GET, "204 No Content", "Content-Length: 0\r\n", true),
        (
            Method::GET,
            "204 No Content",
            "Content-Length: 5\r\n",
            false,
        ),
        (
            Method::GET,
            "204 No Content",
            "Transfer-Encoding: chunked\r\n",
            false,
        ),
        (
            Method::GET,
            "101 Switching Protocols",
            "Upgrade: x\r\n",
            false,
        ),
    ] {
        let bytes = format!("HTTP/1.1 {status}\r\n{fields}\r\nhello");
        check(&method, &bytes, "", reusable, 5);
    }
}

#[test]
fn what_has_two_readings_or_none_is_an_error() {
    let chunked =
        |rest: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{rest}");
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\nbody");
    for (bytes, part) in [
        (
            head("Content-Length: 1\r\nContent-Length: 2\r\n"),
            "two different lengths",
        ),
        (head("Content-Length: 1, 2\r\n"), "two different lengths"),
        (head("Content-Length: +4\r\n"), "an invalid Content-Length"),
        (head("Content-Length: 4 4\r\n"), "an invalid Content-Length"),
        (head("Content-Length:\r\n"), "an invalid Content-Length"),
        (
            head("Content-Length: 99999999999999999999\r\n"),
            "an invalid Content-Length",
        ),
        (
            head("Transfer-Encoding: gzip, chunked\r\n"),
            "an unknown Transfer-Encoding",
        ),
        (
            head("Transfer-Encoding: identity\r\n"),
            "an unknown Transfer-Encoding",
        ),
        (
            head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
            "several Transfer-Encoding",
        ),
        (head("A: b\r\n c\r\n"), "parse the response head"),
        (head("A : b\r\n"), "parse the response head"),
        (head(" A: b\r\n"), "parse the response head"),
        (head("A: b\rC: d\r\n"), "parse the response head"),
        (head("A: b\0\r\n"), "parse the response head"),
        (head("A\r\n"), "parse the response head"),
        (head(&"A: b\r\n".repeat(257)), "parse the response head"),
        (
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            "in HTTP/1.0",
        ),
        (
            "HTTP/2.0 200 OK\r\n\r\n".to_owned(),
            "parse the response head",
        ),
        (
            "HTTP/1.1 20 OK\r\n\r\n".to_owned(),
            "parse the response head",
        ),
        ("SSH-2.0-x\r\n\r\n".to_owned(), "parse the response head"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbody".to_owned(),
            "closed the connection",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Le".to_owned(),
            "closed in the head",
        ),
        (chunked("5\r\nbody"), "closed the connection"),
        (chunked("4\r\nbody\r\n0\r\n"), "closed the connection"),
        (chunked("4\r\nbodyX\r\n0\r\n\r\n"), "longer than its size"),
        (chunked("4\nbody\r\n0\r\n\r\n"), "an invalid chunk size"),
        (
            chunked("4;a\nbody\r\n0\r\n\r\n"),
            "a line that ends without CR",
        ),
        (chunked("4\rbody\r\n0\r\n\r\n"), "a CR without LF"),
        (chunked("0x4\r\nbody\r\n0\r\n\r\n"), "an invalid chunk size"),
        (chunked("-4\r\nbody\r\n0\r\n\r\n"), "a chunk without a size"),
        (chunked(" 4\r\nbody\r\n0\r\n\r\n"), "a chunk without a size"),
        (chunked("4 x\r\nbody\r\n0\r\n\r\n"), "an invalid chunk size"),
        (chunked("10000000000000004\r\nbody"), "too long a chunk"),
        (
            chunked("0\r\nA: b\n\r\n\r\n"),
            "a line that ends without CR",
        ),
        (chunked("0\r\nA b\r\n\r\n"), "an invalid trailer section"),
        (
            chunked("0\r\nA: b\r\n c\r\n\r\n"),
            "an invalid trailer section",
        ),
        (
            chunked(&format!("4;{}\r\n", "x".repeat(17_000))),
            "too many chunk extensions",
        ),
        (
            chunked(&format!("0\r\nA: {}", "x".repeat(17_000))),
            "too large a trailer section",
        ),
    ] {
        let error = read_all(&Method::GET, &bytes).unwrap_err();
        assert!(error.contains(part), "{bytes:?}: {error}");
    }
}

#[test]
fn a_head_without_end_is_given_up() {
    let mut bytes = b"HTTP/1.1 200 OK\r\nA: ".to_vec();
    bytes.resize(MAX_HEAD + 10, b'x');
    let error = read(&Method::GET, &bytes, 1000).unwrap_err();
    assert!(error.contains("more bytes than are accepted"), "{error}");
    bytes.extend_from_slice(b"\r\n\r\n");
    assert!(read(&Method::GET, &bytes, bytes.len()).is_err());
}

#[test]
fn chunks_have_extensions_padding_and_trailers() {
    let bytes = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                 1;a=\"b;c\"\r\na\r\n0002  \r\nbc\r\nA \t;x\r\n0123456789\r\n00\r\n\
                 Checksum: 1\r\nServer-Timing: a\r\nServer-Timing: b\r\n\r\nHTTP/1.1 200";
    let read = read_all(&Method::GET, bytes).unwrap();
    assert_eq!(read.body, b"abc0123456789");
    assert_eq!(
        read.trailers,
        ["checksum: 1", "server-timing: a", "server-timing: b"]
    );
    assert_eq!((read.reusable, read.left_over), (true, 12));
}

#[test]
fn the_end_is_known_with_the_last_bytes() {
    let mut inbox = BytesMut::from("2\r\nok\r\n0\r\n\r\n");
    let mut decoder = Decoder::chunked();
    let frame = decoder.decode(&mut inbox).unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), Bytes::from("ok"));
    assert!(decoder.is_end() && inbox.is_empty());

    let mut inbox = BytesMut::from("2\r\nok\r\n!");
    let mut decoder = Decoder::chunked();
    assert!(decoder.decode(&mut inbox).unwrap().is_some());
    assert!(
        !decoder.is_end(),
        "what is wrong behind them is an error of its own"
    );
    assert!(decoder.decode(&mut inbox).is_err());
}

#[test]
fn a_head_keeps_its_fields_and_an_unusual_reason() {
    let mut inbox =
        BytesMut::from("HTTP/1.0 299 Fine by me\r\nSet-Cookie: a\r\nset-cookie: \u{e9} \r\n\r\n");
    let head = HeadReader::default().read(&mut inbox).unwrap().unwrap();
    assert_eq!(head.status(), StatusCode::from_u16(299).unwrap());
    assert_eq!(head.version(), Version::HTTP_10);
    let cookies: Vec<_> = head.headers().get_all(header::SET_COOKIE).iter().collect();
    assert_eq!(cookies, ["a".as_bytes(), "\u{e9}".as_bytes()]);
    let reason = head.extensions().get::<Reason>();
    assert_eq!(reason.unwrap().0, "Fine by me");
}

#[test]
fn a_request_is_written_as_backends_know_it() {
    let write = |method: &str, fields: &[(&str, &str)], body: Body| {
        let mut request = Request::builder().method(method).uri("/a?b=%2f");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let mut out = Vec::new();
        let framing = head::write_request(&mut out, &request.body(body).unwrap());
        (String::from_utf8(out).unwrap(), framing)
    };
    let unknown = || Either::Right(NoFrames);
    assert_eq!(
        write(
            "GET",
            &[("host", "a"), ("x-real-ip", "b"), ("te", "trailers")],
            full("")
        ),
        (
            "GET /a?b=%2f HTTP/1.1\r\nHost: a\r\nX-Real-Ip: b\r\nTE: trailers\r\n\r\n".to_owned(),
            Framing::None
        )
    );
    let lines = |fields, body| {
        let (text, framing) = write("POST", fields, body);
        (text.split_once("\r\n").unwrap().1.to_owned(), framing)
    };
    assert_eq!(
        lines(&[("content-length", "0")], full("")),
        ("Content-Length: 0\r\n\r\n".to_owned(), Framing::None)
    );
    assert_eq!(
        lines(&[("sec-websocket-key", "k")], full("abc")),
        (
            "Sec-WebSocket-Key: k\r\nContent-Length: 3\r\n\r\n".to_owned(),
            Framing::Length(3)
        )
    );
    assert_eq!(
        lines(&[("content-length", "7"), ("a", "b")], unknown()),
        (
            "A: b\r\nContent-Length: 7\r\n\r\n".to_owned(),
            Framing::Length(7)
        )
    );
    assert_eq!(
        lines(&[("transfer-encoding", "gzip")], unknown()),
        (
            "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
            Framing::Chunked
        )
    );
}

/// A body whose length nobody knows.
struct NoFrames;

impl http_body::Body for NoFrames {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(None)
    }
}

proptest! {
    /// Any bytes: no panic, and the pieces they come in do not matter.
    #[test]
    fn any_bytes_have_one_reading(
        head in "(HTTP/1.1 200 OK\r\n)(Transfer-Encoding: chunked\r\n|Content-Length: [0-9]{1,2}\r\n)?\r\n",
        body in "([0-9a-f]{1,2}(;x)?\r?\n|[a-z]{0,9}\r\n|0\r\n\r\n|A: b\r\n|\\PC{0,3}){0,6}",
        piece in 1_usize..9,
    ) {
        let bytes = head + &body;
        let whole = read(&Method::GET, bytes.as_bytes(), bytes.len());
        prop_assert_eq!(read(&Method::GET, bytes.as_bytes(), piece), whole);
    }
}

#[test]
fn a_value_is_not_copied_nor_read_again() {
    // The head's fields share one allocation with what was read.
    let mut inbox = BytesMut::from("HTTP/1.1 200 OK\r\nA: value\r\n\r\n");
    let range = inbox.as_ptr_range();
    let head = HeadReader::default().read(&mut inbox).unwrap().unwrap();
    let value: &HeaderValue = &head.headers()["a"];
    assert!(range.contains(&value.as_bytes().as_ptr()));
}

#[test]
fn a_raw_target_stands_in_the_request_line_and_cannot_end_it() {
    let raw = RawTarget::new(&b"/announce?info_hash=\x80\"<|"[..]).unwrap();
    let mut request = Request::get("/announce").body(full("")).unwrap();
    request.extensions_mut().insert(raw);
    let mut out = Vec::new();
    head::write_request(&mut out, &request);
    assert_eq!(out, b"GET /announce?info_hash=\x80\"<| HTTP/1.1\r\n\r\n");
    for bad in [
        "announce",
        "/a b",
        "/a\r\nb",
        "/\t",
        "/\x7f",
        "http://x/",
        "",
    ] {
        assert_eq!(RawTarget::new(bad), None, "{bad:?}");
    }
}
