//! Takes WebSocket frames apart, whatever pieces they come in, and refuses what RFC 6455 does not allow.
//!
//! Payloads of data frames are copied to the reader and never kept; of control frames at most 125 bytes are.

use bytes::{Buf, BytesMut};
use tokio::io::ReadBuf;

use super::Role;

/// The longest frame that is accepted, in bytes of payload. Frames cost no memory, but one that long is an accident.
pub const MAX_FRAME: u64 = 64 * 1024 * 1024;

/// Longest payload of a control frame, RFC 6455 §5.5.
const MAX_CONTROL: usize = 125;

/// RFC 6455 §7.4.1.
pub(super) const NORMAL: u16 = 1000;

/// What the other end may not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// §5.2: no extension was agreed on.
    #[error("a WebSocket frame has reserved bits")]
    ReservedBits,
    /// §5.2.
    #[error("a WebSocket frame has the reserved opcode {0}")]
    Opcode(u8),
    /// §5.1: a client masks.
    #[error("a WebSocket frame of a client is not masked")]
    NotMasked,
    /// §5.1: a server does not.
    #[error("a WebSocket frame of a server is masked")]
    Masked,
    /// §5.2: the shortest form that holds the length.
    #[error("the length of a WebSocket frame is not in its shortest form")]
    LengthForm,
    /// Longer than [`MAX_FRAME`].
    #[error("a WebSocket frame is too long")]
    TooLong,
    /// §5.5.
    #[error("a WebSocket control frame is in pieces or too long")]
    Control,
    /// §5.4: a piece without its beginning.
    #[error("a WebSocket frame continues what was not begun")]
    Continuation,
    /// §5.4: a new message within another.
    #[error("a WebSocket message begins within another")]
    Interleaved,
    /// There are only bytes here.
    #[error("a WebSocket frame is text")]
    Text,
    /// §5.5.1, §7.4: one byte, or a code that nobody may send.
    #[error("a WebSocket close frame has no valid code")]
    CloseCode,
    /// §5.5.1.
    #[error("the reason of a WebSocket close frame is not UTF-8")]
    CloseReason,
}

impl ProtocolError {
    /// What the other end is told, RFC 6455 §7.4.1.
    pub fn close_code(self) -> u16 {
        match self {
            Self::Text => 1003,
            Self::CloseReason => 1007,
            Self::TooLong => 1009,
            _ => 1002,
        }
    }
}

/// What was decoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Bytes went to the reader, or a frame began or ended.
    Data,
    Ping(Vec<u8>),
    Pong,
    Close(Close),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Close {
    pub(super) code: Option<u16>,
}

#[derive(Debug)]
pub(super) struct Decoder {
    role: Role,
    /// A message was begun and not ended.
    in_message: bool,
    frame: Frame,
}

#[derive(Debug)]
enum Frame {
    /// The next bytes are a header.
    None,
    Data {
        left: u64,
        mask: Mask,
    },
    Control {
        opcode: u8,
        length: usize,
        mask: Mask,
    },
}

/// Where in the four bytes of the masking key the next byte of the payload is.
#[derive(Debug, Clone, Copy)]
struct Mask {
    key: [u8; 4],
    at: usize,
}

impl Mask {
    fn apply(&mut self, data: &mut [u8]) {
        if self.key == [0; 4] {
            return;
        }
        // The key as it stands for the next byte, twice, so that eight bytes are done at once.
        let key: [u8; 8] = std::array::from_fn(|place| self.key[(self.at + place) % 4]);
        let word = u64::from_ne_bytes(key);
        let (words, rest) = data.as_chunks_mut::<8>();
        for bytes in words {
            *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
        }
        for (byte, by) in rest.iter_mut().zip(key) {
            *byte ^= by;
        }
        self.at = (self.at + data.len()) % 4;
    }
}

impl Decoder {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            in_message: false,
            frame: Frame::None,
        }
    }

    /// Bytes of the current data frame that have not arrived.
    pub(super) fn payload_left(&self) -> usize {
        match self.frame {
            Frame::Data { left, .. } => usize::try_from(left).unwrap_or(usize::MAX),
            _ => 0,
        }
    }

    pub(super) fn is_between_frames(&self) -> bool {
        matches!(self.frame, Frame::None)
    }

    /// Takes payload that was read past [`Decoder::decode`]; at most [`Decoder::payload_left`].
    pub(super) fn direct(&mut self, data: &mut [u8]) {
        if let Frame::Data { left, mask } = &mut self.frame {
            mask.apply(data);
            *left = left.saturating_sub(data.len() as u64);
            if *left == 0 {
                self.frame = Frame::None;
            }
        }
    }

    /// Decodes as much as gives one event; None when it takes more input. Leaves in the input what it did not need.
    pub(super) fn decode(
        &mut self,
        input: &mut BytesMut,
        output: &mut ReadBuf<'_>,
    ) -> Result<Option<Event>, ProtocolError> {
        match &mut self.frame {
            Frame::None => self.header(input),
            Frame::Data { left, .. } => {
                let count = input
                    .len()
                    .min(output.remaining())
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                if count == 0 {
                    return Ok(None);
                }
                let mut data = input.split_to(count);
                self.direct(&mut data);
                output.put_slice(&data);
                Ok(Some(Event::Data))
            }
            Frame::Control {
                opcode,
                length,
                mask,
            } => {
                if input.len() < *length {
                    return Ok(None);
                }
                let mut payload = input.split_to(*length);
                mask.apply(&mut payload);
                let opcode = *opcode;
                self.frame = Frame::None;
                control(opcode, &payload).map(Some)
            }
        }
    }

    /// RFC 6455 §5.2.
    fn header(&mut self, input: &mut BytesMut) -> Result<Option<Event>, ProtocolError> {
        let &[first, second, ref rest @ ..] = &input[..] else {
            return Ok(None);
        };
        let (last, opcode, masked) = (first & 0x80 != 0, first & 0x0f, second & 0x80 != 0);
        if first & 0x70 != 0 {
            return Err(ProtocolError::ReservedBits);
        }
        match (self.role, masked) {
            (Role::Server, false) => return Err(ProtocolError::NotMasked),
            (Role::Client, true) => return Err(ProtocolError::Masked),
            _ => {}
        }
        let short = second & 0x7f;
        // What can be known is refused before more arrives.
        match opcode {
            0 if !self.in_message => return Err(ProtocolError::Continuation),
            1 => return Err(ProtocolError::Text),
            2 if self.in_message => return Err(ProtocolError::Interleaved),
            8..=10 if !last || usize::from(short) > MAX_CONTROL => {
                return Err(ProtocolError::Control);
            }
            0 | 2 | 8..=10 => {}
            _ => return Err(ProtocolError::Opcode(opcode)),
        }
        let (length, rest, size) = match short {
            126 => match rest.split_first_chunk::<2>() {
                None => return Ok(None),
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest, 4),
            },
            127 => match rest.split_first_chunk::<8>() {
                None => return Ok(None),
                Some((length, rest)) => (u64::from_be_bytes(*length), rest, 10),
            },
            _ => (u64::from(short), rest, 2),
        };
        let shortest = match size {
            4 => length > 125,
            10 => length > 0xffff,
            _ => true,
        };
        if !shortest {
            return Err(ProtocolError::LengthForm);
        }
        if length > MAX_FRAME {
            return Err(ProtocolError::TooLong);
        }
        let (key, size) = if masked {
            match rest.first_chunk::<4>() {
                None => return Ok(None),
                Some(key) => (*key, size + 4),
            }
        } else {
            ([0; 4], size)
        };
        input.advance(size);
        let mask = Mask { key, at: 0 };
        self.frame = if opcode < 8 {
            self.in_message = !last;
            match length {
                0 => Frame::None,
                left => Frame::Data { left, mask },
            }
        } else {
            let length = usize::from(short);
            Frame::Control {
                opcode,
                length,
                mask,
            }
        };
        if let Frame::Control { length: 0, .. } = self.frame {
            self.frame = Frame::None;
            return control(opcode, &[]).map(Some);
        }
        Ok(Some(Event::Data))
    }
}

fn control(opcode: u8, payload: &[u8]) -> Result<Event, ProtocolError> {
    match (opcode, payload) {
        (9, _) => Ok(Event::Ping(payload.to_vec())),
        (10, _) => Ok(Event::Pong),
        (_, []) => Ok(Event::Close(Close { code: None })),
        (_, &[high, low, ref reason @ ..]) => {
            let code = u16::from_be_bytes([high, low]);
            // §7.4.1, §7.4.2 and the registry: 1004 to 1006 and 1015 are never sent.
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(ProtocolError::CloseCode);
            }
            if str::from_utf8(reason).is_err() {
                return Err(ProtocolError::CloseReason);
            }
            Ok(Event::Close(Close { code: Some(code) }))
        }
        (_, [_]) => Err(ProtocolError::CloseCode),
    }
}
