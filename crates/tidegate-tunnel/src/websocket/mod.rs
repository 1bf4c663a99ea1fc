//! A byte stream in WebSocket frames (RFC 6455), for networks where nothing but HTTP passes.
//!
//! ```text
//! bytes ─► binary frames, masked by the client with the key 0 ─► bytes
//! ```
//!
//! Frames mean nothing here but bytes: a frame is read while it still arrives, and written from the caller's buffers
//! without a copy. A frame of zero mask is a valid one and saves both ends the work. Messages as such, text, and
//! extensions do not exist; pings are answered, a close ends the stream.

mod decode;
#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use decode::{Close, Decoder, Event};
pub use decode::{MAX_FRAME, ProtocolError};

/// Payload announced at once. Bytes that a write does not take complete the frame later.
const WRITE_FRAME: usize = 256 * 1024;
/// Read ahead: headers, and payloads smaller than this, come from memory.
const READ_AHEAD: usize = 16 * 1024;
/// Slices of one vectored write, our header among them.
const SLICES: usize = 32;
/// First byte of a header: a whole binary message.
const BINARY: u8 = 0x82;
const PONG: u8 = 0x8a;
const CLOSE: u8 = 0x88;
const MASKED: u8 = 0x80;
/// In place of a length: it follows in so many bits.
const LENGTH_16: u8 = 0x7e;
const LENGTH_64: u8 = 0x7f;

/// Which end of the WebSocket this is: clients mask, servers do not (RFC 6455 §5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Has dialled: the agent.
    Client,
    /// Has accepted: the edge.
    Server,
}

/// The stream. What it wraps is a connection on which the handshake is over.
#[derive(Debug)]
pub struct WebSocketStream<I> {
    io: I,
    role: Role,
    decoder: Decoder,
    /// Read, but not decoded yet.
    ahead: BytesMut,
    /// Header of the frame being written, as far as it is not written.
    header: Header,
    /// Payload that was announced and is not written.
    announced: usize,
    /// Control frame being written.
    control: Bytes,
    /// The next control frame: a close, or the answer to the latest ping.
    control_next: Option<Bytes>,
    reading: Reading,
    /// A close was sent or is about to be: nothing may follow.
    closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Frames,
    /// A close came, or the connection ended between frames.
    Ended,
    Failed(ProtocolError),
}

/// At most 14 bytes.
#[derive(Debug, Default)]
struct Header {
    bytes: [u8; 14],
    start: usize,
    end: usize,
}

impl Header {
    fn left(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn push(&mut self, more: &[u8]) {
        self.bytes[self.end..self.end + more.len()].copy_from_slice(more);
        self.end += more.len();
    }

    /// RFC 6455 §5.2.
    fn of(first: u8, payload: usize, role: Role) -> Self {
        let mut header = Self::default();
        let mask = match role {
            Role::Client => MASKED,
            Role::Server => 0,
        };
        match payload {
            0..=125 => header.push(&[first, mask | u8::try_from(payload).unwrap_or_default()]),
            126..=0xffff => {
                header.push(&[first, mask | LENGTH_16]);
                header.push(&u16::try_from(payload).unwrap_or_default().to_be_bytes());
            }
            _ => {
                header.push(&[first, mask | LENGTH_64]);
                header.push(&(payload as u64).to_be_bytes());
            }
        }
        if role == Role::Client {
            header.push(&[0; 4]);
        }
        header
    }
}

impl<I> WebSocketStream<I> {
    /// Wraps a connection.
    pub fn new(io: I, role: Role) -> Self {
        Self {
            io,
            role,
            decoder: Decoder::new(role),
            ahead: BytesMut::new(),
            header: Header::default(),
            announced: 0,
            control: Bytes::new(),
            control_next: None,
            reading: Reading::Frames,
            closed: false,
        }
    }

    fn queue(&mut self, first: u8, payload: &[u8]) {
        // Control payloads are at most 125 bytes, which the decoder sees to.
        let mut frame = Header::of(first, payload.len(), self.role).left().to_vec();
        frame.extend_from_slice(payload);
        self.control_next = Some(frame.into());
    }

    fn close(&mut self, code: Option<u16>) {
        if !self.closed {
            self.closed = true;
            let code = code.map(u16::to_be_bytes);
            self.queue(CLOSE, code.as_ref().map_or(&[], |code| &code[..]));
        }
    }

    /// What a control frame asks for.
    fn answer(&mut self, event: Event) {
        match event {
            // Only the latest of several pings needs an answer (RFC 6455 §5.5.3), which bounds what is kept.
            Event::Ping(payload) if !self.closed => self.queue(PONG, &payload),
            Event::Data | Event::Ping(_) | Event::Pong => {}
            Event::Close(Close { code }) => {
                self.reading = Reading::Ended;
                self.close(code);
            }
        }
    }

    fn fail(&mut self, error: ProtocolError) {
        self.reading = Reading::Failed(error);
        self.close(Some(error.close_code()));
    }
}

impl<I: AsyncWrite + Unpin> WebSocketStream<I> {
    /// Writes control frames, which stand between others only.
    fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.announced > 0 || !self.header.left().is_empty() {
            return Poll::Ready(Ok(()));
        }
        loop {
            if self.control.is_empty() {
                match self.control_next.take() {
                    Some(next) => self.control = next,
                    None => return Poll::Ready(Ok(())),
                }
            }
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.control))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.control.advance(count),
            }
        }
    }

    /// Writes bytes of the caller's as the rest of the frame that was begun, or as a new one.
    fn poll_payload(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        if self.announced == 0 {
            ready!(self.poll_control(cx))?;
            if self.closed {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            self.announced = total.min(WRITE_FRAME);
            self.header = Header::of(BINARY, self.announced, self.role);
        }
        loop {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut used = 0;
            let mut room = self.announced;
            if !self.header.left().is_empty() {
                slices[0] = IoSlice::new(self.header.left());
                used = 1;
            }
            for buffer in buffers.iter().filter(|buffer| !buffer.is_empty()) {
                if used == SLICES || room == 0 {
                    break;
                }
                let part = &buffer[..buffer.len().min(room)];
                slices[used] = IoSlice::new(part);
                room -= part.len();
                used += 1;
            }
            let io = Pin::new(&mut self.io);
            let count = ready!(io.poll_write_vectored(cx, &slices[..used]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_header = count.min(self.header.left().len());
            self.header.start += of_header;
            let written = count - of_header;
            self.announced -= written;
            if written > 0 {
                return Poll::Ready(Ok(written));
            }
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketStream<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            // Answers leave as soon as they can; a reader does not wait for them.
            if !this.control.is_empty() || this.control_next.is_some() {
                let _ = this.poll_control(cx)?;
                let _ = Pin::new(&mut this.io).poll_flush(cx)?;
            }
            match this.reading {
                Reading::Frames if buf.remaining() > 0 => {}
                Reading::Frames | Reading::Ended => return Poll::Ready(Ok(())),
                Reading::Failed(error) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
                }
            }
            while !this.ahead.is_empty() && buf.remaining() > 0 {
                match this.decoder.decode(&mut this.ahead, buf) {
                    Ok(Some(event)) => this.answer(event),
                    Ok(None) => break,
                    // What came before it is fine, and is handed out first.
                    Err(error) => this.fail(error),
                }
                if this.reading != Reading::Frames {
                    break;
                }
            }
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if this.reading != Reading::Frames {
                continue;
            }
            let direct = this.decoder.payload_left();
            if this.ahead.is_empty() && direct >= READ_AHEAD.min(buf.remaining()) && direct > 0 {
                // A long payload goes where the caller wants it.
                // Setting the memory to zero first is cheap beside TLS, and needs no unsafe code.
                let room = buf.initialize_unfilled_to(direct.min(buf.remaining()));
                let mut part = ReadBuf::new(room);
                ready!(Pin::new(&mut this.io).poll_read(cx, &mut part))?;
                let count = part.filled().len();
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                this.decoder.direct(&mut room[..count]);
                buf.advance(count);
                return Poll::Ready(Ok(()));
            }
            if ready!(this.poll_read_ahead(cx))? == 0 {
                if this.decoder.is_between_frames() && this.ahead.is_empty() {
                    this.reading = Reading::Ended;
                    return Poll::Ready(Ok(()));
                }
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

impl<I: AsyncRead + Unpin> WebSocketStream<I> {
    fn poll_read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.ahead.reserve(READ_AHEAD);
        let before = self.ahead.len();
        // Zeroing is cheap beside the system call, and needs no unsafe code.
        self.ahead.resize(before + READ_AHEAD, 0);
        let mut room = ReadBuf::new(&mut self.ahead[before..]);
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut room);
        let count = room.filled().len();
        self.ahead.truncate(before + count);
        ready!(polled)?;
        Poll::Ready(Ok(count))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketStream<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_payload(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_payload(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_control(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.close(Some(decode::NORMAL));
        ready!(this.poll_control(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
