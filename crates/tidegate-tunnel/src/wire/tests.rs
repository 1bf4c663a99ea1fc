//! Messages come out as they went in, those of the future do no harm, and no input is too strange.

use std::sync::Arc;
use std::time::Duration;

use minicbor::Encoder;
use proptest::prelude::*;
use tidegate_model::{self as model, AgentTarget, MappingId};

use super::*;

fn content(frame: &Bytes) -> &[u8] {
    &frame[4..]
}

fn hello() -> Hello {
    Hello {
        version: "1.2.3".to_owned(),
        instance: "ab".repeat(16),
        link: 1,
        os: "linux".to_owned(),
        arch: "aarch64".to_owned(),
        features: vec!["one".to_owned(), "two".to_owned()],
    }
}

fn text() -> impl Strategy<Value = String> {
    "[a-zäß\"\\n]{0,12}"
}

fn from_edge() -> impl Strategy<Value = FromEdge> {
    let mapping = (
        text(),
        text(),
        any::<u8>(),
        any::<Option<u8>>(),
        any::<u64>(),
    );
    let mapping = (
        mapping,
        proptest::option::of((text(), any::<Vec<u8>>(), any::<bool>())),
    );
    let mapping = mapping.prop_map(|((id, target, protocol, proxy, connect), tls)| Mapping {
        tls: tls.map(|(name, ca, skip)| AgentTls {
            server_name: (name != "a").then_some(name),
            ca_der: vec![ca.into()],
            insecure_skip_verify: skip,
        }),
        names: vec![id.clone(), target.clone()],
        id,
        target,
        protocol,
        proxy_protocol: proxy,
        connect_timeout_ms: connect,
    });
    let mappings = (any::<u64>(), proptest::collection::vec(mapping, 0..5));
    prop_oneof![
        (any::<u32>(), text(), text()).prop_map(|(replicas, session, replica)| {
            Welcome {
                protocol: 1,
                edge_version: "2".to_owned(),
                replica,
                replicas,
                session,
            }
            .into()
        }),
        mappings.prop_map(|(version, mappings)| Mappings { version, mappings }.into()),
        (any::<u64>(), text(), any::<bool>()).prop_map(|(version, name, accepted)| {
            let verdict = Verdict {
                name,
                accepted,
                ..Verdict::default()
            };
            Verdicts {
                version,
                verdicts: vec![verdict],
            }
            .into()
        }),
        (any::<u64>(), any::<u64>(), text()).prop_map(|(deadline_ms, jitter_ms, reason)| {
            Drain {
                deadline_ms,
                jitter_ms,
                reason,
            }
            .into()
        }),
        (any::<u64>(), text()).prop_map(|(id, mapping)| Probe { id, mapping }.into()),
        (any::<Option<u64>>(), text(), text()).prop_map(|(retry_after_ms, reason, message)| {
            Bye {
                retry_after_ms,
                reason,
                message,
            }
            .into()
        }),
        any::<u64>().prop_map(|token| Ping { token }.into()),
    ]
}

proptest! {
    #[test]
    fn a_message_comes_out_as_it_went_in(message in from_edge()) {
        let bytes = message.encode().unwrap();
        prop_assert_eq!(FromEdge::decode(content(&bytes)).unwrap(), Some(message));
    }

    #[test]
    fn no_input_is_too_strange(input in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = FromEdge::decode(&input);
        let _ = FromAgent::decode(&input);
    }

    /// Nearer to what is valid, and so deeper.
    #[test]
    fn no_damaged_message_is_too_strange(
        message in from_edge(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = content(&message.encode().unwrap()).to_vec();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let _ = FromEdge::decode(&bytes);
    }

    #[test]
    fn no_damaged_registration_is_too_strange(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = content(&FromAgent::from(registrations()).encode().unwrap()).to_vec();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let _ = FromAgent::decode(&bytes);
    }

    #[test]
    fn frames_come_out_however_the_stream_is_cut(
        frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20),
        cut in 1_usize..50,
    ) {
        let mut stream = Vec::new();
        for frame in &frames {
            let mut bytes = frame::open();
            bytes.extend_from_slice(frame);
            stream.extend_from_slice(&frame::close(bytes).unwrap());
        }
        let (mut reader, mut found) = (FrameReader::default(), Vec::new());
        for piece in stream.chunks(cut) {
            reader.push(piece);
            while let Some(frame) = reader.next_frame().unwrap() {
                found.push(frame.to_vec());
            }
        }
        prop_assert_eq!(found, frames);
    }
}

fn registrations() -> Registrations {
    let agent = Registration {
        agent: "default/homelab".to_owned(),
        instance: "ab".repeat(16),
        mappings: vec!["0".repeat(16), "1".repeat(16)],
    };
    Registrations {
        agents: vec![agent, Registration::default()],
        more: true,
        links: 3,
        draining: true,
    }
}

#[test]
fn what_the_agent_says_comes_out_as_it_went_in() {
    let wish = Requested {
        name: "ha".to_owned(),
        hostname: "ha.example.com".to_owned(),
        target: "http://127.0.0.1:8123".to_owned(),
        insecure_skip_verify: true,
        description: Some("Home".to_owned()),
        port: Some(25_565),
        proxy_protocol: Some(2),
    };
    let refused = Refused {
        id: "0".repeat(16),
        reason: "TargetNotAllowed".to_owned(),
        message: String::new(),
    };
    let count = MappingCount {
        id: "1".repeat(16),
        in_flight: 1,
        requests: u64::MAX,
        failed: 0,
    };
    let said: Vec<FromAgent> = vec![
        hello().into(),
        Request {
            version: 3,
            mappings: vec![wish],
        }
        .into(),
        MappingsReady {
            version: 4,
            refused: vec![refused],
        }
        .into(),
        DrainDone {}.into(),
        AgentDrain {
            reason: "Shutdown".to_owned(),
        }
        .into(),
        ProbeResult {
            id: 5,
            ok: true,
            connect_us: Some(6),
            ..ProbeResult::default()
        }
        .into(),
        Stats {
            in_flight: 7,
            mappings: vec![count],
            ..Stats::default()
        }
        .into(),
        Pong { token: 8 }.into(),
        registrations().into(),
    ];
    for message in said {
        let bytes = message.encode().unwrap();
        assert_eq!(FromAgent::decode(content(&bytes)).unwrap(), Some(message));
    }
}

/// Edges and agents of other versions read the same: this changes never.
#[test]
fn the_bytes_are_what_the_protocol_says() {
    let ping = FromEdge::from(Ping { token: 24 }).encode().unwrap();
    assert_eq!(ping[..], [0, 0, 0, 6, 0x82, 6, 0xa1, 0, 0x18, 24]);
    let bye = Bye::new(Retry::Never, "Revoked", "");
    let bye = FromEdge::from(bye).encode().unwrap();
    let expected = b"\x00\x00\x00\x0e\x82\x05\xa2\x01\x67Revoked\x02\x60";
    assert_eq!(bye[..], expected[..]);
    let agent = Registration {
        agent: "a/b".to_owned(),
        instance: "c".to_owned(),
        mappings: vec!["d".to_owned()],
    };
    let told = Registrations {
        agents: vec![agent],
        links: 2,
        ..Registrations::default()
    };
    let told = FromAgent::from(told).encode().unwrap();
    let expected =
        b"\x82\x08\xa4\x00\x81\xa3\x00\x63a/b\x01\x61c\x02\x81\x61d\x01\xf4\x02\x02\x03\xf4";
    assert_eq!(content(&told), &expected[..]);
}

/// What a later version may add, and an earlier one passes over.
#[test]
fn messages_of_the_future_do_no_harm() {
    let mut kind = Encoder::new(Vec::new());
    kind.array(3).unwrap().u32(4_000_000).unwrap();
    kind.map(1)
        .unwrap()
        .str("no")
        .unwrap()
        .bool(true)
        .unwrap()
        .null()
        .unwrap();
    assert_eq!(FromEdge::decode(&kind.into_writer()).unwrap(), None);

    // Hello with a field of every form among its own, in another order, and an element after its fields.
    let mut future = Encoder::new(Vec::new());
    future.begin_array().unwrap().u32(0).unwrap();
    future.map(7).unwrap();
    future
        .u32(90)
        .unwrap()
        .begin_map()
        .unwrap()
        .str("deep")
        .unwrap();
    future
        .array(2)
        .unwrap()
        .f64(1.5)
        .unwrap()
        .bytes(b"bytes")
        .unwrap()
        .end()
        .unwrap();
    future.u32(2).unwrap().u8(1).unwrap();
    future.u32(1).unwrap().str("instance").unwrap();
    future.u32(91).unwrap().i64(-5).unwrap();
    future.u32(0).unwrap().str("9.0.0").unwrap();
    future
        .u32(92)
        .unwrap()
        .begin_array()
        .unwrap()
        .null()
        .unwrap()
        .end()
        .unwrap();
    future
        .u32(5)
        .unwrap()
        .begin_array()
        .unwrap()
        .str("new")
        .unwrap()
        .end()
        .unwrap();
    future.str("signature").unwrap().end().unwrap();
    let read = FromAgent::decode(&future.into_writer()).unwrap().unwrap();
    let expected = Hello {
        version: "9.0.0".to_owned(),
        instance: "instance".to_owned(),
        link: 1,
        features: vec!["new".to_owned()],
        ..Hello::default()
    };
    assert_eq!(read, FromAgent::Hello(expected));

    // What an earlier version did not send yet.
    let mut past = Encoder::new(Vec::new());
    past.array(2)
        .unwrap()
        .u32(3)
        .unwrap()
        .map(1)
        .unwrap()
        .u32(0)
        .unwrap()
        .u64(9)
        .unwrap();
    let expected = Drain {
        deadline_ms: 9,
        ..Drain::default()
    };
    let read = FromEdge::decode(&past.into_writer()).unwrap();
    assert_eq!(read, Some(FromEdge::Drain(expected)));
}

#[test]
fn nothing_is_kept_for_what_is_only_announced() {
    let mut reader = FrameReader::default();
    reader.push(&u32::MAX.to_be_bytes());
    assert!(matches!(reader.next_frame(), Err(WireError::TooLong(_))));
    let mut reader = FrameReader::default();
    reader.push(&u32::try_from(MAX_FRAME).unwrap().to_be_bytes());
    assert!(reader.next_frame().unwrap().is_none());

    // A list, a text and bytes of 2^40 items, of which none is there.
    for announced in [0x9b_u8, 0x7b, 0x5b] {
        let mut message = vec![0x82, 1, 0xa2, 0, 0, 1, announced];
        message.extend_from_slice(&(1_u64 << 40).to_be_bytes());
        assert!(FromEdge::decode(&message).is_err(), "{announced:x}");
    }

    // A list that is there, but too long.
    let mut message = Encoder::new(Vec::new());
    message.array(2).unwrap().u32(0).unwrap();
    message
        .map(4)
        .unwrap()
        .u32(0)
        .unwrap()
        .str("")
        .unwrap()
        .u32(1)
        .unwrap()
        .str("")
        .unwrap();
    message.u32(2).unwrap().u8(0).unwrap().u32(5).unwrap();
    let items = MAX_ITEMS as u64 + 1;
    message.array(items).unwrap();
    for _ in 0..items {
        message.str("").unwrap();
    }
    let error = FromAgent::decode(&message.into_writer()).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("too long"), "{source}");

    let long = Bye::new(Retry::Now, "", &"x".repeat(MAX_FRAME));
    let refused = FromEdge::from(long).encode();
    assert!(matches!(refused, Err(WireError::TooLong(_))));
}

#[test]
fn a_farewell_says_when_to_come_back() {
    for retry in [
        Retry::Now,
        Retry::After(Duration::from_secs(3)),
        Retry::Never,
    ] {
        assert_eq!(Bye::new(retry, "", "").retry(), retry);
    }
}

#[test]
fn a_mapping_means_the_same_at_both_ends() {
    let mapping = model::Mapping {
        id: MappingId::from_hash([1; 8]),
        target: AgentTarget::parse("https://[::1]:8443").unwrap(),
        protocol: model::UpstreamProtocol::Http2,
        tls: Some(model::AgentTls {
            server_name: Some("nas.lan".to_owned()),
            ca_der: vec![vec![1, 2], vec![]],
            insecure_skip_verify: false,
        }),
        proxy_protocol: Some(model::ProxyProtocolVersion::V2),
        connect_timeout: Duration::from_millis(2500),
        names: vec!["default/homelab:ha".to_owned()],
    };
    let sent = mappings(1, &[Arc::new(mapping.clone())]);
    let bytes = FromEdge::from(sent).encode().unwrap();
    let Some(FromEdge::Mappings(read)) = FromEdge::decode(content(&bytes)).unwrap() else {
        panic!("other message");
    };
    let read = read.mappings.into_iter().next().unwrap();
    assert_eq!(model::Mapping::try_from(read.clone()), Ok(mapping));

    // What this agent does not know, it refuses by itself.
    for (unknown, reason) in [
        (
            Mapping {
                protocol: 3,
                ..read.clone()
            },
            "ProtocolNotSupported",
        ),
        (
            Mapping {
                proxy_protocol: Some(3),
                ..read.clone()
            },
            "ProxyProtocolNotSupported",
        ),
        (
            Mapping {
                target: "quic://nas:1".to_owned(),
                ..read.clone()
            },
            "TargetNotSupported",
        ),
        (
            Mapping {
                id: "1".to_owned(),
                ..read
            },
            "InvalidMapping",
        ),
    ] {
        let error = model::Mapping::try_from(unknown).unwrap_err();
        assert_eq!(error.refused("x").reason, reason);
    }
}
