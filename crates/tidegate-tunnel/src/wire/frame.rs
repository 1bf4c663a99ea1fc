//! Cuts the bytes of a control stream into frames.
//!
//! A length that is too large is refused before anything is kept for it; memory grows with what arrived only.

use bytes::{Buf, Bytes, BytesMut};

use super::WireError;

/// The longest content of a frame, in bytes.
pub const MAX_FRAME: usize = 1024 * 1024;

const LENGTH: usize = size_of::<u32>();

/// Room for the length, which is known at the end.
pub(super) fn open() -> Vec<u8> {
    let mut frame = Vec::with_capacity(128);
    frame.extend_from_slice(&[0; LENGTH]);
    frame
}

/// Sets the length.
pub(super) fn close(mut frame: Vec<u8>) -> Result<Bytes, WireError> {
    let content = frame.len() - LENGTH;
    match u32::try_from(content) {
        Ok(length) if content <= MAX_FRAME => {
            frame[..LENGTH].copy_from_slice(&length.to_be_bytes());
            Ok(frame.into())
        }
        _ => Err(WireError::TooLong(content)),
    }
}

/// Collects what arrives until a frame is complete.
#[derive(Debug, Default)]
pub struct FrameReader {
    arrived: BytesMut,
}

impl FrameReader {
    /// Takes what arrived next. Call [`FrameReader::next_frame`] until it has nothing more before the next one.
    pub fn push(&mut self, data: &[u8]) {
        self.arrived.extend_from_slice(data);
    }

    /// Content of the next frame, once it is complete.
    ///
    /// # Errors
    /// [`WireError::TooLong`]; the stream cannot be read any further.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, WireError> {
        let Some((length, rest)) = self.arrived.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Err(WireError::TooLong(length));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.arrived.advance(LENGTH);
        Ok(Some(self.arrived.split_to(length).freeze()))
    }
}
