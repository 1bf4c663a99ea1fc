//! Bytes without an HTTP library in between: an origin that keeps what it received, exactly.
//!
//! Answers each request it can delimit with an empty 200, so that connections live on and a smuggled
//! request would be seen as one more request.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it came over the wire.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// The head with its line ends, up to and with the empty line.
    pub(crate) head: String,
    /// The body as framed, chunk sizes and all.
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// The request line.
    pub(crate) fn line(&self) -> &str {
        self.head.split("\r\n").next().unwrap_or_default()
    }

    /// Header lines as (name as written, value).
    pub(crate) fn headers(&self) -> Vec<(&str, &str)> {
        self.head
            .split("\r\n")
            .skip(1)
            .filter(|line| !line.is_empty())
            .map(|line| line.split_once(':').unwrap_or((line, "")))
            .map(|(name, value)| (name, value.trim()))
            .collect()
    }

    /// Values of a header field, whatever its case.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        self.headers()
            .into_iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect()
    }
}

/// A recording origin. Ends with the test process.
pub(crate) struct RawOrigin {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    broken: Arc<Mutex<Vec<String>>>,
}

impl RawOrigin {
    /// Answers each request with an empty 200.
    pub(crate) fn recording() -> Self {
        Self::answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    }

    /// Answers each request with these bytes.
    pub(crate) fn answering(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let origin = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            broken: Arc::default(),
        };
        let (seen, broken) = (Arc::clone(&origin.seen), Arc::clone(&origin.broken));
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (seen, broken) = (Arc::clone(&seen), Arc::clone(&broken));
                std::thread::spawn(move || {
                    let rest = record(stream, &seen, answer);
                    if !rest.is_empty() {
                        broken
                            .lock()
                            .unwrap()
                            .push(String::from_utf8_lossy(&rest).into_owned());
                    }
                });
            }
        });
        origin
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every request so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Bytes left on ended connections that were no complete request.
    pub(crate) fn broken(&self) -> Vec<String> {
        self.broken.lock().unwrap().clone()
    }
}

fn record(mut stream: TcpStream, seen: &Mutex<Vec<Seen>>, answer: &[u8]) -> Vec<u8> {
    let _ = stream.set_read_timeout(Some(Duration::from_mins(2)));
    let mut pending = Vec::new();
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        pending.extend_from_slice(&buffer[..count]);
        while let Some((head, end)) = request_end(&pending) {
            seen.lock().unwrap().push(Seen {
                head: String::from_utf8_lossy(&pending[..head]).into_owned(),
                body: pending[head..end].to_vec(),
            });
            pending.drain(..end);
            if stream.write_all(answer).is_err() {
                return pending;
            }
        }
    }
    pending
}

/// Where the first request's head and body end, as a lenient origin reads them.
fn request_end(bytes: &[u8]) -> Option<(usize, usize)> {
    let head = find(bytes, b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    if text.contains("\r\ntransfer-encoding:") {
        return Some((head, head + chunked_end(&bytes[head..])?));
    }
    let length = text
        .split("\r\ncontent-length:")
        .nth(1)
        .and_then(|rest| rest.lines().next()?.trim().parse::<usize>().ok())
        .unwrap_or(0);
    (bytes.len() >= head + length).then_some((head, head + length))
}

/// Where a chunked body ends, trailers included.
fn chunked_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line_end = at + find(&bytes[at..], b"\r\n")?;
        let line = String::from_utf8_lossy(&bytes[at..line_end]).into_owned();
        let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
        at = line_end + 2;
        if size == 0 {
            if bytes[at..].starts_with(b"\r\n") {
                return Some(at + 2);
            }
            return Some(at + find(&bytes[at..], b"\r\n\r\n")? + 4);
        }
        at += size + 2;
        if at > bytes.len() {
            return None;
        }
    }
}

/// Where a needle begins.
pub(crate) fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes
        .windows(needle.len())
        .position(|window| window == needle)
}
