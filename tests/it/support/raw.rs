//! Bytes without an HTTP library in between: an origin that keeps what it received, exactly.
//!
//! Answers each request head it can delimit with an empty 200, so that connections live on and a
//! smuggled request would be seen as one more head.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What was received on each connection, in the order of their accept.
type Received = Arc<Mutex<Vec<Vec<u8>>>>;

/// A recording origin. Ends with the test process.
pub(crate) struct RawOrigin {
    address: SocketAddr,
    received: Received,
}

impl RawOrigin {
    /// Answers `HTTP/1.1 200 OK` with an empty body to each head.
    pub(crate) fn recording() -> Self {
        Self::answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    }

    /// Answers each head with these bytes.
    pub(crate) fn answering(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let received = Received::default();
        let keep = Arc::clone(&received);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let keep = Arc::clone(&keep);
                std::thread::spawn(move || record(stream, &keep, answer));
            }
        });
        Self { address, received }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes everything received since the last call, one text per connection.
    pub(crate) fn take(&self) -> Vec<String> {
        let mut received = self.received.lock().unwrap();
        let texts = received
            .iter_mut()
            .map(|bytes| String::from_utf8_lossy(&std::mem::take(bytes)).into_owned())
            .filter(|text| !text.is_empty())
            .collect();
        drop(received);
        texts
    }
}

fn record(mut stream: TcpStream, received: &Received, answer: &[u8]) {
    let index = {
        let mut received = received.lock().unwrap();
        received.push(Vec::new());
        received.len() - 1
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
    let mut pending = Vec::new();
    let mut buffer = [0; 65_536];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        received.lock().unwrap()[index].extend_from_slice(&buffer[..count]);
        pending.extend_from_slice(&buffer[..count]);
        while let Some(end) = request_end(&pending) {
            pending.drain(..end);
            if stream.write_all(answer).is_err() {
                return;
            }
        }
    }
}

/// The end of the first request, by Content-Length or chunks, as a lenient origin reads it.
fn request_end(bytes: &[u8]) -> Option<usize> {
    let head = find(bytes, b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    if text.contains("\r\ntransfer-encoding:") {
        return Some(head + find(&bytes[head..], b"0\r\n\r\n")? + 5);
    }
    let length = text
        .split("\r\ncontent-length:")
        .nth(1)
        .and_then(|rest| rest.lines().next()?.trim().parse::<usize>().ok())
        .unwrap_or(0);
    (bytes.len() >= head + length).then_some(head + length)
}

/// Where a needle begins.
pub(crate) fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}
