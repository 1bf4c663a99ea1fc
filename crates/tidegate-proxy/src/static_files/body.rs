//! The bytes of a file: small ones at once, large ones in chunks as the client takes them.

use std::fs::File;
use std::io::{self, Read as _, SeekFrom};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
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

/// The part of the file from `start`.
pub(super) fn of_file(found: FoundFile, start: u64, length: u64) -> Body {
    if let Some(first) = found.first {
        let whole = Bytes::from(first);
        let part = usize::try_from(start)
            .ok()
            .zip(usize::try_from(length).ok())
            .and_then(|(start, length)| Some((start, start.checked_add(length)?)))
            .filter(|(_, end)| *end <= whole.len())
            .map(|(start, end)| whole.slice(start..end));
        return Body::full(part.unwrap_or_default());
    }
    Body::boxed(FileBody {
        file: tokio::fs::File::from_std(found.file),
        seek: (start != 0).then_some(Seek::Wanted(start)),
        left: length,
        buffer: BytesMut::new(),
    })
}

enum Seek {
    Wanted(u64),
    Started,
}

/// Reads as it is polled; a file that shrinks meanwhile breaks the body off, since its length was promised.
struct FileBody {
    file: tokio::fs::File,
    seek: Option<Seek>,
    left: u64,
    buffer: BytesMut,
}

impl FileBody {
    fn poll_seek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(Seek::Wanted(start)) = self.seek {
            Pin::new(&mut self.file).start_seek(SeekFrom::Start(start))?;
            self.seek = Some(Seek::Started);
        }
        if self.seek.is_some() {
            ready!(Pin::new(&mut self.file).poll_complete(cx))?;
            self.seek = None;
        }
        Poll::Ready(Ok(()))
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
        if this.left == 0 {
            return Poll::Ready(None);
        }
        ready!(this.poll_seek(cx))?;
        this.buffer.reserve(CHUNK);
        let file = Pin::new(&mut this.file);
        let read = ready!(tokio_util::io::poll_read_buf(file, cx, &mut this.buffer))?;
        if read == 0 {
            return Poll::Ready(Some(Err("the file became shorter".into())));
        }
        let mut chunk = this.buffer.split().freeze();
        if let Ok(left) = usize::try_from(this.left) {
            chunk.truncate(left);
        }
        this.left -= chunk.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
