//! Datagrams on a byte stream, as a UDP mapping carries them: u16 length, big-endian, then so many bytes.
//!
//! Lengths of up to 65 535 need no check; an empty datagram is one too.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The longest datagram that fits.
pub const MAX_DATAGRAM: usize = u16::MAX as usize;

/// A datagram that cannot be framed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a datagram of {0} bytes is longer than {MAX_DATAGRAM}")]
pub struct TooLong(pub usize);

/// Appends the datagram in its frame.
///
/// # Errors
/// [`TooLong`]; nothing is appended then.
pub fn encode(datagram: &[u8], into: &mut BytesMut) -> Result<(), TooLong> {
    let length = u16::try_from(datagram.len()).map_err(|_| TooLong(datagram.len()))?;
    into.reserve(2 + datagram.len());
    into.put_u16(length);
    into.put_slice(datagram);
    Ok(())
}

/// Takes the first datagram off what was read; None until it is complete.
pub fn decode(from: &mut BytesMut) -> Option<Bytes> {
    let length = usize::from(u16::from_be_bytes([*from.first()?, *from.get(1)?]));
    if from.len() < 2 + length {
        return None;
    }
    from.advance(2);
    Some(from.split_to(length).freeze())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn datagrams_come_out_as_they_went_in_however_the_stream_is_cut(
            datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20),
            cut in 1_usize..40,
        ) {
            let mut stream = BytesMut::new();
            for datagram in &datagrams {
                encode(datagram, &mut stream).unwrap();
            }
            let (mut read, mut found) = (BytesMut::new(), Vec::new());
            for piece in stream.chunks(cut) {
                read.extend_from_slice(piece);
                while let Some(datagram) = decode(&mut read) {
                    found.push(datagram.to_vec());
                }
            }
            prop_assert_eq!(found, datagrams);
            prop_assert!(read.is_empty());
        }
    }

    #[test]
    fn what_is_too_long_leaves_no_trace() {
        let mut stream = BytesMut::new();
        assert_eq!(encode(&vec![0; 65_536], &mut stream), Err(TooLong(65_536)));
        assert!(stream.is_empty());
        encode(&vec![0; 65_535], &mut stream).unwrap();
        assert_eq!(decode(&mut stream).unwrap().len(), 65_535);
    }
}
