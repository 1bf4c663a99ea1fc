//! The bytes of a file: small ones at once, large ones in chunks as the client takes them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, SeekFrom};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::AsyncSeek;

use super::resolve::FoundFile;
use crate::body::{Body, BodyError};

/// Bytes per read, and the largest file that is read at once.
const CHUNK: usize = 64 * 1024;

/// Reads a small file as a whole, on the thread that opened it.
pub(super) fn read_first(file: &mut File, length: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(size) = usize::try_from(length).ok().filter(|size| *size <= CHUNK) else {
        return Ok(None);
    };
    let mut bytes = vec![0; size];
    file.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}

/// A stretch of a body.
#[derive(Debug)]
pub(super) enum Piece {
    /// Bytes at hand.
    Text(Bytes),
    /// A part of the file, never empty.
    File { start: u64, length: u64 },
}

impl Piece {
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Text(bytes) => bytes.len() as u64,
            Self::File { length, .. } => *length,
        }
    }
}

/// A body of pieces of the file in this order.
pub(super) fn of_pieces(found: FoundFile, pieces: Vec<Piece>) -> Body {
    if let Some(first) = found.first {
        return Body::full(joined(&Bytes::from(first), pieces).unwrap_or_default());
    }
    Body::boxed(FileBody {
        file: tokio::fs::File::from_std(found.file),
        seek: None,
        at: 0,
        left: pieces.iter().map(Piece::length).sum(),
        pieces: pieces.into(),
        buffer: BytesMut::new(),
    })
}

fn joined(whole: &Bytes, pieces: Vec<Piece>) -> Option<Bytes> {
    let mut parts = Vec::with_capacity(pieces.len());
    for piece in pieces {
        parts.push(match piece {
            Piece::Text(bytes) => bytes,
            Piece::File { start, length } => {
                let start = usize::try_from(start).ok()?;
                let end = start.checked_add(usize::try_from(length).ok()?)?;
                (end <= whole.len()).then(|| whole.slice(start..end))?
            }
        });
    }
    Some(match parts.as_slice() {
        [one] => one.clone(),
        _ => parts.concat().into(),
    })
}

/// Reads as it is polled; a file that shrinks meanwhile breaks the body off, since its length was promised.
struct FileBody {
    file: tokio::fs::File,
    /// The place that a seek under way leads to.
    seek: Option<u64>,
    /// The place that the next read begins at.
    at: u64,
    pieces: VecDeque<Piece>,
    /// Bytes of all pieces.
    left: u64,
    buffer: BytesMut,
}

impl FileBody {
    fn poll_seek(&mut self, start: u64, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.seek.is_none() && self.at != start {
            Pin::new(&mut self.file).start_seek(SeekFrom::Start(start))?;
            self.seek = Some(start);
        }
        if let Some(start) = self.seek {
            ready!(Pin::new(&mut self.file).poll_complete(cx))?;
            self.at = start;
            self.seek = None;
        }
        Poll::Ready(Ok(()))
    }

    /// At most a chunk of the file; at least a byte, unless it has become shorter.
    fn poll_chunk(
        &mut self,
        start: u64,
        length: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, BodyError>> {
        ready!(self.poll_seek(start, cx))?;
        let most = usize::try_from(length).map_or(CHUNK, |length| length.min(CHUNK));
        self.buffer.reserve(most);
        let file = Pin::new(&mut self.file);
        let mut room = (&mut self.buffer).limit(most);
        let read = ready!(tokio_util::io::poll_read_buf(file, cx, &mut room))?;
        if read == 0 {
            return Poll::Ready(Err("the file became shorter".into()));
        }
        self.at += read as u64;
        Poll::Ready(Ok(self.buffer.split().freeze()))
    }
}

impl HttpBody for FileBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let chunk = match this.pieces.front() {
            None => return Poll::Ready(None),
            Some(Piece::Text(bytes)) => bytes.clone(),
            Some(&Piece::File { start, length }) => ready!(this.poll_chunk(start, length, cx))?,
        };
        let sent = chunk.len() as u64;
        match this.pieces.front_mut() {
            Some(Piece::File { start, length }) if sent < *length => {
                *start += sent;
                *length -= sent;
            }
            _ => drop(this.pieces.pop_front()),
        }
        this.left -= sent;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
