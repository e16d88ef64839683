//! What a paired pad and its host make of frames that nobody with the key made for this moment, and of later versions.

mod common;

use common::Rng;
use common::table::{Table, UID, opened};
use hone_wire::auth::SessionKeys;
use hone_wire::frame::{Body, Deframed, Deframer, encode_body};
use hone_wire::host::{Notice, Refusal};
use hone_wire::message::{HostHello, Message, PadHello, Welcome, number};

const KEY: [u8; 16] = [5; 16];
/// `HONE_HOSTILE_FRAMES=1000000` is the whole proof.
const FRAMES: u32 = 40_000;

fn crc32c(bytes: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    (!crc).to_le_bytes()
}

/// A frame without its checksum as it goes over the line, with a checksum that fits.
fn on_the_line(checked: &[u8]) -> Vec<u8> {
    let raw: Vec<u8> = checked.iter().copied().chain(crc32c(checked)).collect();
    let mut line = vec![0];
    for block in raw.split(|byte| *byte == 0) {
        line.push(block.len() as u8 + 1);
        line.extend(block);
    }
    line.push(0);
    line
}

fn checked(encoded: &[u8]) -> Vec<u8> {
    let mut deframer = Deframer::new();
    for byte in encoded {
        if let Deframed::Run(raw) = deframer.push(*byte) {
            return raw[..raw.len() - 4].to_vec();
        }
    }
    panic!("no frame in {encoded:02x?}");
}

#[test]
fn no_frame_that_is_replayed_cut_changed_or_made_without_the_key_is_accepted() {
    let asked = std::env::var("HONE_HOSTILE_FRAMES").ok();
    let frames = asked.map_or(FRAMES, |frames| frames.parse().expect("HONE_HOSTILE_FRAMES is a number"));
    let mut table = Table::paired(KEY);
    for _ in 0..5 {
        table.hold(1, 50);
        table.run(1_100);
    }
    let tagged = |frames: &[Vec<u8>]| -> Vec<Vec<u8>> {
        frames.iter().map(|frame| checked(frame)).filter(|frame| frame[0] & 0x10 != 0).collect()
    };
    let (to_host, to_pad) = (tagged(&table.to_host), tagged(&table.to_pad));
    assert!(to_host.len() > 5 && to_pad.len() > 5);
    // What is replayed is right in itself: the double's own framing is, too.
    assert_eq!(on_the_line(&to_pad[0]), table.to_pad.iter().find(|frame| checked(frame) == to_pad[0]).unwrap()[..]);

    let (presses, host, pad) = (table.events().len(), *table.host.counters(), *table.pad.counters());
    let mut rng = Rng::new(11);
    let mut kinds = [0u32; 6];
    for _ in 0..frames {
        let for_pad = rng.one_in(2);
        let (own, others) = if for_pad { (&to_pad, &to_host) } else { (&to_host, &to_pad) };
        let mut frame = own[rng.below(own.len() as u32) as usize].clone();
        let kind = rng.below(6);
        kinds[kind as usize] += 1;
        let line = match kind {
            // Replayed, as it was.
            0 => on_the_line(&frame),
            // Reflected to its sender.
            1 => on_the_line(&others[rng.below(others.len() as u32) as usize]),
            // One to three bits changed, none of them back.
            2 => {
                let bits: std::collections::HashSet<u32> =
                    (0..1 + rng.below(3)).map(|_| rng.below(8 * frame.len() as u32)).collect();
                for bit in bits {
                    frame[bit as usize / 8] ^= 1 << (bit % 8);
                }
                if frame[0] & 0x10 == 0 && matches!(frame[1], number::HostHello | number::PadHello) {
                    continue;
                }
                on_the_line(&frame)
            }
            // Cut short.
            3 => on_the_line(&frame[..rng.below(frame.len() as u32) as usize]),
            // Untagged, with the session's number and a counter yet to come.
            4 => {
                frame.truncate(frame.len() - 8);
                frame[0] &= !0x10;
                frame[6..10].copy_from_slice(&(1_000_000 + rng.below(1_000)).to_le_bytes());
                on_the_line(&frame)
            }
            // Tagged with another key.
            _ => {
                let body: Body = frame[10..frame.len() - 8].iter().copied().collect();
                let session = u32::from_le_bytes([frame[2], frame[3], frame[4], frame[5]]);
                let key: [u8; 16] = std::array::from_fn(|_| rng.below(256) as u8);
                encode_body(frame[1], &body, session, 1_000_000 + rng.below(1_000), Some(&key)).to_vec()
            }
        };
        if for_pad {
            table.inject_to_pad(&line);
        } else {
            table.inject_to_host(&line);
        }
    }
    let refused = table.host.counters().refused() + table.pad.counters().refused() - host.refused() - pad.refused();
    println!("{frames} frames, {refused} refused and counted; by kind {kinds:?}");
    assert_eq!((table.host.counters().accepted, table.pad.counters().accepted), (host.accepted, pad.accepted));
    assert_eq!(table.events().len(), presses, "nothing was pressed");
    assert!(refused > frames / 10 * 9, "{refused} of {frames}");
    assert!(kinds.iter().all(|made| *made > frames / 8), "{kinds:?}");
    // And the line still works.
    table.hold(1, 50);
    table.run(500);
    assert_eq!(table.events().len(), presses + 1);
}

#[test]
fn a_host_of_a_later_version_is_told_which_is_spoken_here_and_meets_the_pad_only_if_it_speaks_it() {
    for (wire_min, wire_max, speaks) in [(1, 1, true), (1, 7, true), (0, 1, true), (2, 7, false), (0, 0, false)] {
        let mut table = Table::new(None, None);
        let hello = Message::from(HostHello { wire_min, wire_max, nonce: *b"\x09future!" });
        let mut body = hello.body();
        // A later version says more.
        body.extend_from_slice(&[0xee; 20]).unwrap();
        let before = table.pad.counters().version;
        table.inject_to_pad(&encode_body(number::HostHello, &body, 0, 0, None));
        let answer = std::iter::from_fn(|| table.pad.pop_tx()).map(|frame| opened(&frame, None));
        let echoed = answer.filter(|(kind, .., body)| *kind == number::PadHello && body[35..43] == *b"\x09future!");
        let ranges: Vec<[u8; 2]> = echoed.map(|(.., body)| [body[0], body[1]]).collect();
        assert_eq!(ranges, [[1, 1]], "{wire_min}..={wire_max}");
        assert_eq!(table.pad.counters().version - before, u32::from(!speaks), "{wire_min}..={wire_max}");
    }
}

#[test]
fn a_greeting_without_a_common_version_ends_no_session() {
    let mut table = Table::paired(KEY);
    let hello = Message::from(HostHello { wire_min: 2, wire_max: 7, nonce: *b"\x09future!" });
    table.inject_to_pad(&encode_body(number::HostHello, &hello.body(), 0, 0, None));
    assert!(table.pad.is_up());
    table.hold(1, 60);
    assert_eq!(table.events().len(), 1);
    assert!(table.pad.is_up() && table.host.is_up());
    assert!(!table.notices.iter().any(|notice| matches!(notice, Notice::Down(_))));
}

#[test]
fn a_pad_of_another_version_is_refused_by_its_range_and_welcomed_in_this_one_where_both_speak_it() {
    for (wire_min, wire_max, speaks) in [(2, 5, false), (1, 5, true)] {
        let mut table = Table::new(Some(KEY), Some(KEY));
        table.host.poll(1, &mut |_| {});
        let greeting = table.host.pop_tx().expect("it greets");
        let (.., host_body) = opened(&greeting, None);
        let nonce = host_body[2..10].try_into().unwrap();
        let hello = PadHello {
            wire_min,
            wire_max,
            flags: PadHello::PAIRED,
            uid: UID,
            epoch: 3,
            first: 1,
            next: 1,
            nonce: *b"padnonce",
            echo: nonce,
            ..PadHello::default()
        };
        // A later version says more, and all of it is in the keys.
        let mut body = Message::from(hello).body();
        body.extend_from_slice(&[0xee; 20]).unwrap();
        table.inject_to_host(&encode_body(number::PadHello, &body, 0, 0, None));
        let refused = Notice::Refused(Refusal::Version { min: wire_min, max: wire_max });
        assert_eq!(table.notices, if speaks { vec![] } else { vec![refused] });
        let answer = table.host.pop_tx();
        assert_eq!(answer.is_some(), speaks);
        let Some(answer) = answer else { continue };
        let keys = SessionKeys::derive(&KEY, &host_body, &body);
        let (kind, .., welcome) = opened(&answer, Some(&keys.host_to_pad));
        let welcome = Message::parse(kind, &welcome);
        assert!(matches!(welcome, Ok(Message::Welcome(Welcome { wire: 1, .. }))), "{welcome:?}");
    }
}

#[test]
fn a_pad_takes_no_welcome_into_a_version_it_does_not_speak() {
    for (wire, takes) in [(0, false), (1, true), (2, false)] {
        let mut table = Table::new(None, None);
        let hello = Message::from(HostHello { wire_min: 1, wire_max: 2, nonce: *b"\x09future!" });
        table.inject_to_pad(&encode_body(number::HostHello, &hello.body(), 0, 0, None));
        let echo = std::iter::from_fn(|| table.pad.pop_tx()).map(|frame| opened(&frame, None).3).last().unwrap();
        let echo = echo[27..35].try_into().unwrap();
        let welcome = Message::from(Welcome { wire, epoch: 1, ack: 1, credit: 8, echo });
        table.inject_to_pad(&encode_body(number::Welcome, &welcome.body(), 1, 1, None));
        assert_eq!(table.pad.is_up(), takes, "{wire}");
    }
}

#[test]
fn frames_of_another_major_version_or_with_features_not_known_are_dropped_and_counted_apart() {
    let mut table = Table::up();
    let (version, incompatible) = (table.pad.counters().version, table.pad.counters().incompatible);
    let mut frame = checked(table.to_pad.last().unwrap());
    for flags in (0..8).map(|major| major << 5).filter(|flags| *flags != 1 << 5) {
        frame[0] = flags;
        table.inject_to_pad(&on_the_line(&frame));
    }
    for bit in 0..4 {
        frame[0] = 1 << 5 | 1 << bit;
        table.inject_to_pad(&on_the_line(&frame));
    }
    assert_eq!(table.pad.counters().version - version, 7);
    assert_eq!(table.pad.counters().incompatible - incompatible, 4);
    assert!(table.pad.is_up());
}
