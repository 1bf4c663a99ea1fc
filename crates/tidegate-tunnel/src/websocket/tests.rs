//! Bytes come out as they went in, with ourselves and with another implementation; the rest is refused.

use futures_util::{SinkExt as _, StreamExt as _};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::WebSocketStream as Other;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Message, Role as OtherRole};

use super::*;

fn content(length: usize) -> Vec<u8> {
    let byte = |n: usize| n.to_le_bytes()[0] ^ n.to_le_bytes()[1] ^ 0x5a;
    (0..length).map(byte).collect()
}

/// Through a pipe that takes so many bytes at once.
async fn passes(pipe: usize, length: usize) {
    let (client, server) = tokio::io::duplex(pipe);
    let mut client = WebSocketStream::new(client, Role::Client);
    let mut server = WebSocketStream::new(server, Role::Server);
    let there = content(length);
    let back: Vec<u8> = there.iter().rev().copied().collect();
    let (mut from_server, mut from_client) = (Vec::new(), Vec::new());
    let client_side = async {
        client.write_all(&there).await.unwrap();
        client.flush().await.unwrap();
        client.read_to_end(&mut from_server).await.unwrap();
    };
    let server_side = async {
        let mut room = vec![0; length];
        server.read_exact(&mut room).await.unwrap();
        from_client = room;
        server.write_all(&back).await.unwrap();
        server.shutdown().await.unwrap();
    };
    tokio::join!(client_side, server_side);
    assert!(
        from_client == there && from_server == back,
        "{pipe} {length}"
    );
}

#[tokio::test]
async fn bytes_pass_both_ways() {
    for pipe in [1, 7, 4096, 1 << 20] {
        for length in [1, 125, 126, 65_535, 65_536] {
            passes(pipe, length).await;
        }
    }
    passes(100_000, 2_000_000).await;
}

/// Independently implemented, masking with random keys, with fragments, pings and a farewell.
#[tokio::test]
async fn another_implementation_understands_us_and_we_it() {
    let (ours, theirs) = tokio::io::duplex(5000);
    let mut ours = WebSocketStream::new(ours, Role::Server);
    let mut theirs = Other::from_raw_socket(theirs, OtherRole::Client, None).await;
    let sent = content(300_000);
    let their_side = async {
        let (first, rest) = sent.split_at(100_000);
        let (second, third) = rest.split_at(5);
        theirs.send(Message::binary(first.to_vec())).await.unwrap();
        theirs
            .send(Message::Ping("are you there".into()))
            .await
            .unwrap();
        let begin = Frame::message(second.to_vec(), OpCode::Data(Data::Binary), false);
        theirs.send(Message::Frame(begin)).await.unwrap();
        theirs
            .send(Message::Ping("in between".into()))
            .await
            .unwrap();
        let end = Frame::message(third.to_vec(), OpCode::Data(Data::Continue), true);
        theirs.send(Message::Frame(end)).await.unwrap();
        let mut found = Vec::new();
        let mut pongs = Vec::new();
        while let Some(message) = theirs.next().await {
            match message.unwrap() {
                Message::Binary(data) => found.extend_from_slice(&data),
                Message::Pong(payload) => pongs.push(payload.to_vec()),
                Message::Close(close) => assert_eq!(u16::from(close.unwrap().code), 1000),
                other => panic!("{other:?}"),
            }
        }
        (found, pongs)
    };
    let our_side = async {
        let mut found = vec![0; sent.len()];
        ours.read_exact(&mut found).await.unwrap();
        ours.write_all(&found).await.unwrap();
        ours.shutdown().await.unwrap();
        // Their farewell.
        assert_eq!(ours.read(&mut [0]).await.unwrap(), 0);
        found
    };
    let ((back, pongs), there) = tokio::join!(their_side, our_side);
    assert!(there == sent && back == sent);
    // The latest at least.
    assert_eq!(pongs.last().unwrap(), b"in between");

    let (ours, theirs) = tokio::io::duplex(5000);
    let mut ours = WebSocketStream::new(ours, Role::Client);
    let mut theirs = Other::from_raw_socket(theirs, OtherRole::Server, None).await;
    ours.write_all(b"hello").await.unwrap();
    ours.flush().await.unwrap();
    assert_eq!(
        theirs.next().await.unwrap().unwrap(),
        Message::binary("hello")
    );
    theirs.close(None).await.unwrap();
    assert_eq!(ours.read(&mut [0]).await.unwrap(), 0);
    let refused = ours.write(b"late").await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
}

/// RFC 6455, the sections that `ProtocolError` names. Frames of a client carry a mask of zeros.
#[tokio::test]
async fn what_the_protocol_does_not_allow_is_refused() {
    use ProtocolError as E;
    let mask = [0; 4];
    let masked =
        |first: u8, second: u8, rest: &[u8]| [&[first, 0x80 | second][..], &mask, rest].concat();
    let long = |mark: u8, length: &[u8]| [&[0x82, 0x80 | mark][..], length, &mask].concat();
    let cases: Vec<(E, u16, Vec<u8>)> = vec![
        (E::ReservedBits, 1002, masked(0xc2, 1, b"x")),
        (E::ReservedBits, 1002, masked(0x92, 1, b"x")),
        (E::Opcode(3), 1002, masked(0x83, 0, b"")),
        (E::Opcode(11), 1002, masked(0x8b, 0, b"")),
        (E::NotMasked, 1002, b"\x82\x01x".to_vec()),
        (E::LengthForm, 1002, long(LENGTH_16, &[0, 125])),
        (
            E::LengthForm,
            1002,
            long(LENGTH_64, &0xffff_u64.to_be_bytes()),
        ),
        (
            E::TooLong,
            1009,
            long(LENGTH_64, &(MAX_FRAME + 1).to_be_bytes()),
        ),
        (E::TooLong, 1009, long(LENGTH_64, &u64::MAX.to_be_bytes())),
        (E::Control, 1002, masked(0x09, 0, b"")),
        (E::Control, 1002, masked(0x89, 126, b"\0\x7e")),
        (E::Continuation, 1002, masked(0x80, 0, b"")),
        (
            E::Continuation,
            1002,
            [masked(0x82, 1, b"x"), masked(0x80, 0, b"")].concat(),
        ),
        (
            E::Interleaved,
            1002,
            [masked(0x02, 1, b"x"), masked(0x82, 1, b"x")].concat(),
        ),
        (E::Text, 1003, masked(0x81, 1, b"x")),
        (E::CloseCode, 1002, masked(0x88, 1, b"x")),
        (E::CloseCode, 1002, masked(0x88, 2, &1005_u16.to_be_bytes())),
        (E::CloseCode, 1002, masked(0x88, 2, &999_u16.to_be_bytes())),
        (E::CloseReason, 1007, masked(0x88, 3, b"\x03\xe8\xff")),
    ];
    for (error, code, input) in cases {
        // Whole, and byte by byte.
        for pipe in [1000, 1] {
            let (ours, theirs) = tokio::io::duplex(pipe);
            let mut ours = WebSocketStream::new(ours, Role::Server);
            let our_side = async {
                let mut found = Vec::new();
                let refused = ours.read_to_end(&mut found).await.unwrap_err();
                let _ = ours.shutdown().await;
                let again = ours.read(&mut [0]).await.unwrap_err();
                assert_eq!(again.kind(), io::ErrorKind::InvalidData);
                drop(ours);
                refused
            };
            let (mut read, mut write) = tokio::io::split(theirs);
            let sends = write.write_all(&input);
            let hears = async {
                let mut farewell = Vec::new();
                let _ = read.read_to_end(&mut farewell).await;
                farewell
            };
            let (refused, _, farewell) = tokio::join!(our_side, sends, hears);
            let found = refused.get_ref().and_then(|it| it.downcast_ref::<E>());
            assert_eq!(found, Some(&error), "{input:x?}");
            let [high, low] = code.to_be_bytes();
            assert_eq!(farewell, [0x88, 2, high, low], "{error}");
        }
    }
    // Servers do not mask.
    let (ours, mut theirs) = tokio::io::duplex(100);
    let mut ours = WebSocketStream::new(ours, Role::Client);
    theirs.write_all(&masked(0x82, 1, b"x")).await.unwrap();
    let refused = ours.read(&mut [0]).await.unwrap_err();
    let found = refused.get_ref().and_then(|it| it.downcast_ref::<E>());
    assert_eq!(found, Some(&E::Masked));
}

/// A million pings cost one answer's memory, and a reader who only reads answers.
#[tokio::test]
async fn pings_are_answered_by_a_reader_and_do_not_pile_up() {
    let (ours, mut theirs) = tokio::io::duplex(64);
    let mut ours = WebSocketStream::new(ours, Role::Server);
    let our_side = async {
        let mut byte = [0];
        ours.read_exact(&mut byte).await.unwrap();
        assert!(ours.control.len() < 140 && ours.ahead.len() <= READ_AHEAD);
        ours.flush().await.unwrap();
        byte[0]
    };
    let their_side = async {
        for n in 0..10_000_u16 {
            let [high, low] = n.to_be_bytes();
            let ping = [0x89, 0x82, 0, 0, 0, 0, high, low];
            theirs.write_all(&ping).await.unwrap();
        }
        theirs
            .write_all(&[0x82, 0x81, 1, 2, 3, 4, b'x' ^ 1])
            .await
            .unwrap();
        let mut pong = [0; 4];
        loop {
            theirs.read_exact(&mut pong).await.unwrap();
            assert_eq!(pong[..2], [0x8a, 2]);
            if pong[2..] == 9_999_u16.to_be_bytes() {
                break;
            }
        }
    };
    let (byte, ()) = tokio::join!(our_side, their_side);
    assert_eq!(byte, b'x');
}

/// A connection that breaks off within a frame is no end, one between frames is.
#[tokio::test]
async fn an_end_within_a_frame_is_an_error() {
    for (input, fine) in [
        (&b""[..], true),
        (b"\x82\x01x", true),
        (b"\x82", false),
        (b"\x82\x7e\x01", false),
        (b"\x82\x02x", false),
        (b"\x89\x01", false),
    ] {
        let mut ours =
            WebSocketStream::new(tokio::io::join(input, tokio::io::sink()), Role::Client);
        let read = ours.read_to_end(&mut Vec::new()).await;
        assert_eq!(read.is_ok(), fine, "{input:x?}");
    }
}

/// A frame as a client may send it.
fn frame(first: u8, key: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match u16::try_from(payload.len()) {
        Ok(length @ ..=125) => frame.push(MASKED | length.to_be_bytes()[1]),
        Ok(length) => {
            frame.push(MASKED | LENGTH_16);
            frame.extend_from_slice(&length.to_be_bytes());
        }
        Err(_) => {
            frame.push(MASKED | LENGTH_64);
            frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&key);
    frame.extend(
        payload
            .iter()
            .zip(key.iter().cycle())
            .map(|(byte, by)| byte ^ by),
    );
    frame
}

proptest! {
    #[test]
    fn frames_mean_the_same_however_they_are_cut(
        messages in proptest::collection::vec(
            (proptest::collection::vec(0..70_000_usize, 1..4), any::<[u8; 4]>(), any::<bool>()),
            0..6,
        ),
        input_cut in 1..5000_usize,
        output_cut in 1..5000_usize,
    ) {
        let (mut input, mut expected) = (BytesMut::new(), Vec::new());
        for (pieces, key, ping) in &messages {
            for (place, length) in pieces.iter().enumerate() {
                let opcode = if place == 0 { 2 } else { 0 };
                let last = if place + 1 == pieces.len() { 0x80 } else { 0 };
                let payload = content(*length);
                input.extend_from_slice(&frame(opcode | last, *key, &payload));
                expected.extend_from_slice(&payload);
                if *ping {
                    input.extend_from_slice(&frame(0x89, *key, b"ping"));
                }
            }
        }
        let mut decoder = Decoder::new(Role::Server);
        let (mut arrived, mut found) = (BytesMut::new(), Vec::new());
        for piece in input.chunks(input_cut) {
            arrived.extend_from_slice(piece);
            loop {
                let mut room = vec![0; output_cut];
                let mut room = ReadBuf::new(&mut room);
                let event = decoder.decode(&mut arrived, &mut room).unwrap();
                found.extend_from_slice(room.filled());
                match event {
                    None => break,
                    Some(Event::Ping(payload)) => prop_assert_eq!(payload, b"ping"),
                    Some(event) => prop_assert_eq!(event, Event::Data),
                }
            }
        }
        prop_assert!(found == expected && arrived.is_empty() && decoder.is_between_frames());
    }

    #[test]
    fn no_input_is_too_strange(
        input in proptest::collection::vec(any::<u8>(), 0..300),
        server in any::<bool>(),
    ) {
        let role = if server { Role::Server } else { Role::Client };
        let mut decoder = Decoder::new(role);
        let mut arrived = BytesMut::from(&input[..]);
        let mut room = [0; 400];
        let mut room = ReadBuf::new(&mut room);
        // Each event takes a byte at least.
        let mut events = 0;
        while let Ok(Some(_)) = decoder.decode(&mut arrived, &mut room) {
            events += 1;
            prop_assert!(events <= input.len());
        }
        prop_assert!(room.filled().len() <= input.len());
    }
}
