//! The format as bytes: what version 1 looks like for ever, and what a reader does with what it does not know.

use hone_wire::auth::SessionKeys;
use hone_wire::frame::{Deframed, Deframer, Frame, FrameError, MAX_BODY, MAX_ENCODED, MAX_RAW, encode, encode_body};
use hone_wire::message::{
    Ack, BodyError, Buzzer, Config, Diagnostic, Display, EVENT_LEN, Event, Events, HostHello, Input, Kind, Labels,
    Leds, Message, Nak, NakReason, PadHello, Pair, Ping, Pong, Prompt, Reboot, RebootTarget, Stats, TYPES, Welcome,
};
use proptest::prelude::*;

fn event() -> Event {
    Event {
        seq: 0x0403_0201,
        t_ms: 0x0807_0605,
        boot: 0x0a09,
        kind: Kind::Long,
        src: 0x83,
        value: 0x0c0b,
        dur_10ms: 0x0e0d,
        prompt: 0x1211_100f,
    }
}

/// One of each message, every field with a value of its own.
fn one_of_each() -> Vec<Message> {
    vec![
        HostHello { wire_min: 1, wire_max: 2, nonce: *b"hostnonc" }.into(),
        PadHello {
            wire_min: 1,
            wire_max: 3,
            flags: 1,
            buttons: 5,
            leds: 4,
            uid: *b"pad-uid1",
            epoch: 0x11,
            boot: 0x12,
            first: 0x13,
            next: 0x14,
            nonce: *b"padnonce",
            echo: *b"hostnonc",
            firmware: [0, 1, 2],
            firmware_hash: *b"fw-hash!",
        }
        .into(),
        Welcome { wire: 1, epoch: 2, ack: 3, credit: 8, echo: *b"padnonce" }.into(),
        Events { epoch: 1, now_ms: 2, events: [event()].into_iter().collect() }.into(),
        Ack { epoch: 1, ack: 2, credit: 3 }.into(),
        Leds { mask: 0x8001 }.into(),
        Ping { t_ms: 0x0100_0000 }.into(),
        Pong { t_ms: 1, now_ms: 2, prompt_id: 3, leds: 4, config: 5 }.into(),
        Display { text: "wie?".try_into().unwrap() }.into(),
        Buzzer { hertz: 440, ms: 100 }.into(),
        Prompt { prompt_id: 9, ttl_ms: 5000, labels: Labels::pack(["yes", "no"]).unwrap() }.into(),
        Config { debounce_ms: 8, long_ms: 600, double_ms: 250, chord_ms: 150, hash: 7 }.into(),
        Input { now_ms: 1, buttons: 0x1f }.into(),
        Stats { uptime_ms: 1, reset_cause: 2, queued: 3, lost: 4, noise: 5, tag: 6, other: 7 }.into(),
        Nak { kind: 99, reason: NakReason::UnknownType, ctr: 1 }.into(),
        Reboot { target: RebootTarget::Bootloader }.into(),
        Pair { key: *b"0123456789abcdef" }.into(),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unstuffed(encoded: &[u8]) -> Vec<u8> {
    let mut deframer = Deframer::new();
    encoded
        .iter()
        .find_map(|byte| match deframer.push(*byte) {
            Deframed::Run(raw) => Some(raw.to_vec()),
            _ => None,
        })
        .expect("a whole frame")
}

#[test]
fn an_event_is_these_twenty_bytes() {
    assert_eq!(hex(&event().to_bytes()), "0102030405060708090a02830b0c0d0e0f101112");
    assert_eq!(Event::from_bytes(&event().to_bytes()), event());
    assert_eq!((event().button(), event().is_ambiguous()), (3, true));
}

#[test]
fn frames_of_version_1_are_these_bytes() {
    for (message, golden) in one_of_each().iter().zip(GOLDEN) {
        for (key, golden) in [(None, golden[0]), (Some(&[7; 16]), golden[1])] {
            assert_eq!(hex(&encode(message, 0x0102_0304, 5, key)), golden, "{message:?}");
        }
    }
    let keys = SessionKeys::derive(&[7; 16], &one_of_each()[0].body(), &one_of_each()[1].body());
    assert_eq!(hex(&keys.pad_to_host), GOLDEN_PAD_TO_HOST);
    assert_eq!(hex(&keys.host_to_pad), GOLDEN_HOST_TO_PAD);
}

#[test]
fn frames_of_a_version_or_with_a_feature_to_come_are_told_from_damaged_ones() {
    let read = |golden: &str| {
        let bytes: Vec<u8> =
            (0..golden.len()).step_by(2).map(|at| u8::from_str_radix(&golden[at..at + 2], 16).unwrap()).collect();
        Frame::parse(&unstuffed(&bytes), None).map(|frame| frame.kind)
    };
    assert_eq!(read(GOLDEN[0][0]), Ok(1));
    assert_eq!(read(GOLDEN_OF_VERSION_2), Err(FrameError::Version { found: 2 }));
    assert_eq!(read(GOLDEN_WITH_A_FEATURE), Err(FrameError::Incompatible { bits: 4 }));
}

#[test]
fn each_message_comes_back_as_it_was_sent() {
    let messages = one_of_each();
    assert_eq!(
        messages.iter().map(Message::kind).collect::<Vec<_>>(),
        TYPES.iter().map(|(n, _)| *n).collect::<Vec<_>>()
    );
    for message in messages {
        for key in [None, Some(&[3; 16])] {
            let raw = unstuffed(&encode(&message, 4, 5, key));
            let frame = Frame::parse(&raw, key).unwrap();
            assert_eq!(Message::parse(frame.kind, frame.body), Ok(message.clone()));
        }
    }
}

#[test]
fn a_longer_body_is_read_and_a_shorter_one_is_not() {
    for message in one_of_each() {
        let body = message.body();
        let longer: Vec<u8> = body.iter().copied().chain([0xee; 9]).collect();
        assert_eq!(Message::parse(message.kind(), &longer), Ok(message.clone()));
        for len in 0..body.len() {
            assert_eq!(Message::parse(message.kind(), &body[..len]), Err(BodyError::Short), "{message:?} at {len}");
        }
    }
}

#[test]
fn the_document_lists_every_message_and_kind_under_its_number() {
    let document = include_str!("../FORMAT.md");
    for (number, name) in TYPES {
        assert!(document.contains(&format!("| {number} | `{name}` |")), "{name}");
    }
    for (number, kind) in Kind::ALL {
        assert_eq!(Kind::from_code(*number), *kind);
        assert!(document.contains(&format!("{number} ")), "{kind:?}");
    }
    assert_eq!(Diagnostic::Gap as u16, 3);
}

#[test]
fn the_documents_rulers_are_the_bodies_of_the_code() {
    let document = include_str!("../FORMAT.md");
    for (message, (number, name)) in one_of_each().iter().zip(TYPES) {
        let title = format!("\n{number} {name} ");
        let mut lines = document.split_once(&title).unwrap_or_else(|| panic!("no ruler of {name}")).1.lines().skip(1);
        let offsets = lines.next().unwrap().split_whitespace().map(|at| usize::from_str_radix(at, 16).unwrap());
        let fields = lines.next().unwrap().split(['├', '┼', '┤']).filter(|field| !field.is_empty()).count();
        let bytes: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(bytes.concat(), hex(&message.body()), "{name}");
        let mut at = 0;
        let ends: Vec<usize> = bytes
            .iter()
            .map(|field| {
                at += field.len() / 2;
                at
            })
            .collect();
        assert_eq!(offsets.skip(1).collect::<Vec<_>>(), ends, "{name}");
        assert_eq!(fields, bytes.len(), "{name}");
    }
}

#[test]
fn senseless_fields_are_refused_and_unknown_kinds_are_kept() {
    let mut nine = vec![0; 8];
    nine.push(9);
    nine.resize(9 + 9 * EVENT_LEN, 0);
    assert_eq!(Message::parse(4, &nine), Err(BodyError::Malformed));
    assert_eq!(Message::parse(9, &[2, 0xc3, 0x28]), Err(BodyError::Malformed), "not UTF-8");
    assert_eq!(Message::parse(16, &[2]), Err(BodyError::Malformed), "an unknown reboot target");
    assert_eq!(Message::parse(0, &[]), Err(BodyError::UnknownType));
    let unknown = Event { kind: Kind::Other(77), ..event() };
    assert_eq!(Event::from_bytes(&unknown.to_bytes()), unknown);
}

#[test]
fn labels_that_do_not_fit_are_refused_whole() {
    let long = "x".repeat(120);
    assert_eq!(Labels::pack([&long[..], &long[..]]), Err(&long[..]));
    assert_eq!(Labels::pack(["ä", ""]).unwrap().iter().collect::<Vec<_>>(), ["ä", ""]);
}

#[test]
fn the_fullest_messages_fit_into_a_frame() {
    let full = [
        Message::from(Events { epoch: 0, now_ms: 0, events: [event(); 8].into_iter().collect() }),
        Prompt { prompt_id: 1, ttl_ms: 1, labels: Labels::pack(["y".repeat(199).as_str()]).unwrap() }.into(),
        Display { text: "z".repeat(160).as_str().try_into().unwrap() }.into(),
    ];
    for message in full {
        assert!(message.body().len() <= MAX_BODY);
        let encoded = encode(&message, u32::MAX, u32::MAX, Some(&[1; 16]));
        assert!(encoded.len() <= MAX_ENCODED);
        let raw = unstuffed(&encoded);
        let frame = Frame::parse(&raw, Some(&[1; 16])).unwrap();
        assert_eq!(Message::parse(frame.kind, frame.body), Ok(message));
    }
}

proptest! {
    #[test]
    fn any_body_survives_framing_tagging_and_noise_before_it(
        kind: u8, session: u32, ctr: u32, key: Option<[u8; 16]>,
        body in prop::collection::vec(any::<u8>(), 0..=MAX_BODY),
        noise in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let bytes = body.iter().copied().collect();
        let encoded = encode_body(kind, &bytes, session, ctr, key.as_ref());
        prop_assert!(encoded[1..encoded.len() - 1].iter().all(|byte| *byte != 0));
        let mut deframer = Deframer::new();
        let mut last = None;
        for byte in noise.iter().chain(&encoded) {
            if let Deframed::Run(raw) = deframer.push(*byte) { last = Some(raw) }
        }
        let raw = last.expect("the frame after the noise");
        let frame = Frame::parse(&raw, key.as_ref()).unwrap();
        prop_assert_eq!(frame, Frame { kind, session, ctr, tagged: key.is_some(), body: &body });
    }

    #[test]
    fn no_bytes_whatever_upset_deframer_or_parsers(
        bytes in prop::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(0u8), 1 => Just(1u8)], 0..2000),
        key: Option<[u8; 16]>,
    ) {
        let mut deframer = Deframer::new();
        for byte in &bytes {
            if let Deframed::Run(raw) = deframer.push(*byte) {
                prop_assert!(raw.len() <= MAX_RAW);
                let _ = Frame::parse(&raw, key.as_ref());
            }
        }
        for (kind, _) in TYPES {
            let _ = Message::parse(*kind, &bytes);
        }
        let _ = Frame::parse(&bytes, key.as_ref());
    }

    #[test]
    fn what_a_parser_takes_it_writes_back_as_it_was(kind in 1u8..=17, body in prop::collection::vec(any::<u8>(), 0..=MAX_BODY)) {
        if let Ok(message) = Message::parse(kind, &body) {
            let written = message.body();
            prop_assert_eq!(&written[..], &body[..written.len()]);
        }
    }

    #[test]
    fn one_damaged_bit_is_never_accepted(bit in 0usize..(20 * 8), body in prop::collection::vec(any::<u8>(), 6)) {
        let mut raw = unstuffed(&encode_body(7, &body.iter().copied().collect(), 1, 2, None));
        raw[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(Frame::parse(&raw, None), Err(FrameError::Crc));
    }
}

// Made by a second implementation of COBS, CRC-32C and SipHash-2-4, written from their definitions.
// Session 0x01020304, counter 5: without a tag, and with one of the key of sevens.
const GOLDEN: [[&str; 2]; 17] = [
    // HostHello
    [
        "00082001040302010501010f0102686f73746e6f6e6382e939d200",
        "0008300104030201050101170102686f73746e6f6e63a9157341b1d08d44b914c7f400",
    ],
    // PadHello
    [
        "00082002040302010501010f01030105047061642d7569643111010102120213010102140101117061646e6f6e6365686f73746e6f6e630f010266772d68617368216ec9c3dc00",
        "00083002040302010501010f01030105047061642d7569643111010102120213010102140101117061646e6f6e6365686f73746e6f6e6316010266772d6861736821a8eff74c9f11fcb9fef6b30100",
    ],
    // Welcome
    [
        "00082003040302010501010301020101020301010e087061646e6f6e636594262eee00",
        "000830030403020105010103010201010203010116087061646e6f6e6365353b10e89dc58f64b78f432b00",
    ],
    // Events
    [
        "000820040403020105010102010101020201011a010102030405060708090a02830b0c0d0e0f101112aa777e2600",
        "0008300404030201050101020101010202010122010102030405060708090a02830b0c0d0e0f1011121f3e2a0c6502c8855ba08a8b00",
    ],
    // Ack
    [
        "000820050403020105010102010101020201010603d23d3e7100",
        "000830050403020105010102010101020201010e03809178d6623addc873112e7f00",
    ],
    // Leds
    ["0008200604030201050101070180a7fe0b6800", "00083006040302010501010f0180b6a7b47eeeb47a89141e203c00"],
    // Ping
    ["00082007040302010501010101010601a87989c400", "00083007040302010501010101010e0154cda9bb3f9e52a42cc5ec6000"],
    // Pong
    [
        "00082008040302010501010201010102020101020301010204020501010581fe280400",
        "00083008040302010501010201010102020101020301010204020501010dbc040845562826d913734ac500",
    ],
    // Display
    ["00082009040302010501010a047769653fe4e3435b00", "00083009040302010501010d047769653f33bd641851e58605ccd956a200"],
    // Buzzer
    ["0008200a0403020105010104b8016405484ff7b700", "0008300a0403020105010104b801640deb2a7605615baac4bd5623b000"],
    // Prompt
    [
        "0008200b0403020105010102090101038813010d0203796573026e6f4aadfb6600",
        "0008300b040302010501010209010103881301150203796573026e6f5fad05306de80a6e9ac8352e00",
    ],
    // Config
    [
        "0008200c0403020105010105085802fa02960207010105cefc912b00",
        "0008300c0403020105010105085802fa0296020701010d2524ca5be16e5cce4ed3d45900",
    ],
    // Input
    [
        "0008200d0403020105010102010101021f05db6d848e00",
        "0008300d0403020105010102010101021f0da567d6534a66dcf3ad67423600",
    ],
    // Stats
    [
        "0008200e040302010501010201010103020302040101020501010206010102070101059907dfa100",
        "0008300e0403020105010102010101030203020401010205010102060101020701010df4fc298344169c374e3a2b0100",
    ],
    // Nak
    [
        "0008200f040302010501010463010101010514440d2c00",
        "0008300f040302010501010463010101010319ac0ae9b1b70793bd85524700",
    ],
    // Reboot
    ["00082010040302010501010601fa3fc78c00", "00083010040302010501010e01fd6f83386ff02068a6b2155e00"],
    // Pair
    [
        "00082011040302010501011530313233343536373839616263646566c69fe69200",
        "00083011040302010501011d30313233343536373839616263646566ea3dd7ecb7291e85c02e4f2500",
    ],
];
const GOLDEN_OF_VERSION_2: &str =
    "0003400101010101010101200207686f73746e6f6e636d6f7265206f662076657273696f6e2032914157a500";
const GOLDEN_WITH_A_FEATURE: &str = "00082407040302010501010101010601415a789100";
const GOLDEN_PAD_TO_HOST: &str = "11a99335e7108b6a337a6d7f3c810341";
const GOLDEN_HOST_TO_PAD: &str = "b6c8541467ea1a9b3a2706d41d229313";
