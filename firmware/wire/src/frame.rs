//! Frames: from a stream of bytes to checked, perhaps authenticated bodies, and back.
//!
//! This layer knows how bytes are delimited, checked and tagged, and nothing of what a body says. The order of checks is
//! fixed, because each failure has its own cause: checksum (the cable), version (the other side's age), tag (the key).

use crate::WIRE_MAJOR;
use crate::auth::{self, Key, TAG_LEN};
use crate::faults::Faults;
use crate::message::Message;
use heapless::Vec;
use nom::Parser;
use nom::number::complete::{le_u8, le_u32};

/// Longest frame before stuffing, in bytes. Below 254, so COBS adds exactly one byte.
pub const MAX_RAW: usize = 240;
/// Longest frame on the wire, in bytes: one stuffing byte and two delimiters more.
pub const MAX_ENCODED: usize = MAX_RAW + 3;
/// Where a frame begins in [`Encoded`], before it is stuffed.
const RAW_AT: usize = 2;
/// Bytes of a frame before its body.
pub const HEADER_LEN: usize = 10;
/// Bytes of a frame's checksum.
pub const CRC_LEN: usize = 4;
/// Longest body, in bytes, in a frame with or without a tag.
pub const MAX_BODY: usize = MAX_RAW - HEADER_LEN - TAG_LEN - CRC_LEN;

/// A frame with its stuffing removed.
pub type Raw = Vec<u8, MAX_RAW>;
/// A frame as it goes onto the wire, delimiters included.
pub type Encoded = Vec<u8, MAX_ENCODED>;
/// A message body under construction.
pub type Body = Vec<u8, MAX_BODY>;

/// Bit of the first byte which says that a tag is present.
const TAGGED: u8 = 1 << 4;
/// Features without which a frame cannot be understood; this version knows none.
const INCOMPATIBLE: u8 = 0x0f;
/// CRC-32C of each half byte: firmware has more time than flash, and a frame is short.
const CRC_TABLE: [u32; 16] = {
    let mut table = [0; 16];
    let mut half = 0;
    while half < 16 {
        let mut crc = half as u32;
        let mut bit = 0;
        while bit < 4 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[half] = crc;
        half += 1;
    }
    table
};

/// A checked frame, borrowing its body from the bytes it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Message type; see [`crate::message`].
    pub kind: u8,
    /// Session the sender believes in; 0 in greetings.
    pub session: u32,
    /// Rises with each frame of one direction and session, a repeat included. It is not an event's number.
    pub ctr: u32,
    /// Whether the frame carried a tag, which then was right.
    pub tagged: bool,
    /// The body, still unread.
    pub body: &'a [u8],
}

/// Why bytes are not a frame. Each has its counter in [`Counters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Shorter than header, tag and checksum.
    Short,
    /// The checksum differs: noise on the cable.
    Crc,
    /// Another major version of the wire.
    Version {
        /// The version found.
        found: u8,
    },
    /// The frame needs features this side does not know, and says that it may not be read without them.
    Incompatible {
        /// The unknown feature bits.
        bits: u8,
    },
    /// The tag is wrong, or this side holds no key to check it with.
    Tag,
}

impl<'a> Frame<'a> {
    /// Checks an un-stuffed frame. `key` is what the other side tags with, if this side knows one.
    ///
    /// An untagged frame is returned with `tagged: false` even where a key is known: greetings are untagged, and whether
    /// anything else may be is for the link to decide.
    ///
    /// # Errors
    /// The first check that fails, in the order checksum, version, features, tag.
    pub fn parse(raw: &'a [u8], key: Option<&Key>) -> Result<Self, FrameError> {
        Self::parse_with(raw, key, Faults::default())
    }

    #[doc(hidden)]
    pub fn parse_with(raw: &'a [u8], key: Option<&Key>, faults: Faults) -> Result<Self, FrameError> {
        if raw.len() < HEADER_LEN + CRC_LEN {
            return Err(FrameError::Short);
        }
        let (checked, crc) = raw.split_at(raw.len() - CRC_LEN);
        if crc32c(checked).to_le_bytes() != crc && !faults.ignore_crc {
            return Err(FrameError::Crc);
        }
        let (body, (flags, kind, session, ctr)) = header(checked).map_err(|_| FrameError::Short)?;
        if flags >> 5 != WIRE_MAJOR {
            return Err(FrameError::Version { found: flags >> 5 });
        }
        if flags & INCOMPATIBLE != 0 {
            return Err(FrameError::Incompatible { bits: flags & INCOMPATIBLE });
        }
        let tagged = flags & TAGGED != 0;
        let body = if tagged {
            let body_len = body.len().checked_sub(TAG_LEN).ok_or(FrameError::Short)?;
            let (covered, found) = checked.split_at(checked.len() - TAG_LEN);
            let key = key.ok_or(FrameError::Tag)?;
            if !auth::same(&auth::tag(key, covered), found) {
                return Err(FrameError::Tag);
            }
            &body[..body_len]
        } else {
            body
        };
        Ok(Self { kind, session, ctr, tagged, body })
    }
}

/// Builds the frame of a message, tagged when a key is given, delimiters included.
///
/// The types of [`Message`] bound every body to [`MAX_BODY`], so this cannot fail.
#[must_use]
pub fn encode(message: &Message, session: u32, ctr: u32, key: Option<&Key>) -> Encoded {
    encode_body(message.kind(), &message.body(), session, ctr, key)
}

/// As [`encode`], from a body that is already bytes: for a greeting whose exact bytes also enter the session keys, and
/// for tests of types this version does not know.
#[must_use]
pub fn encode_body(kind: u8, body: &Body, session: u32, ctr: u32, key: Option<&Key>) -> Encoded {
    // A leading delimiter ends whatever half frame or banner the line carried before; the second zero is where stuffing
    // begins.
    let mut out = Encoded::new();
    append(&mut out, &[0, 0]);
    let flags = WIRE_MAJOR << 5 | if key.is_some() { TAGGED } else { 0 };
    append(&mut out, &[flags, kind]);
    append(&mut out, &session.to_le_bytes());
    append(&mut out, &ctr.to_le_bytes());
    append(&mut out, body);
    if let Some(key) = key {
        let tag = auth::tag(key, &out[RAW_AT..]);
        append(&mut out, &tag);
    }
    let crc = crc32c(&out[RAW_AT..]).to_le_bytes();
    append(&mut out, &crc);
    stuff(&mut out[RAW_AT - 1..]);
    append(&mut out, &[0]);
    out
}

/// What became of the frames one side received. All counts saturate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that passed every check.
    pub accepted: u32,
    /// Stuffing that ended in the middle of a block: bytes were lost.
    pub stuffing: u32,
    /// Runs of bytes longer than any frame: a delimiter was lost, or this is not our protocol.
    pub overlong: u32,
    /// Frames shorter than their header.
    pub short: u32,
    /// Checksums that differ: noise.
    pub crc: u32,
    /// Frames of another major version.
    pub version: u32,
    /// Frames with unknown incompatible features.
    pub incompatible: u32,
    /// Wrong tags: another key, or forgery.
    pub tag: u32,
    /// Untagged frames where a tag is required.
    pub untagged: u32,
    /// Frames whose counter did not rise: repeated by the line, or replayed.
    pub replay: u32,
    /// Frames of another session, or before there is one.
    pub session: u32,
    /// Types this side does not know; answered with `Nak`.
    pub unknown: u32,
    /// Bodies shorter than their type, or senseless.
    pub body: u32,
    /// Frames this side could not queue for sending.
    pub overrun: u32,
}

impl Counters {
    /// Nothing counted yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            accepted: 0,
            stuffing: 0,
            overlong: 0,
            short: 0,
            crc: 0,
            version: 0,
            incompatible: 0,
            tag: 0,
            untagged: 0,
            replay: 0,
            session: 0,
            unknown: 0,
            body: 0,
            overrun: 0,
        }
    }

    /// Counts one refused frame.
    pub fn count(&mut self, error: FrameError) {
        bump(match error {
            FrameError::Short => &mut self.short,
            FrameError::Crc => &mut self.crc,
            FrameError::Version { .. } => &mut self.version,
            FrameError::Incompatible { .. } => &mut self.incompatible,
            FrameError::Tag => &mut self.tag,
        });
    }

    /// All that was refused or could not be sent.
    #[must_use]
    pub fn refused(&self) -> u32 {
        [
            self.stuffing,
            self.overlong,
            self.short,
            self.crc,
            self.version,
            self.incompatible,
            self.tag,
            self.untagged,
            self.replay,
            self.session,
            self.unknown,
            self.body,
            self.overrun,
        ]
        .iter()
        .fold(0, |sum, n| sum.saturating_add(*n))
    }
}

/// Adds one to a counter, holding at its greatest value.
pub fn bump(counter: &mut u32) {
    *counter = counter.saturating_add(1);
}

/// Removes the stuffing from a stream, byte by byte, in bounded memory; finds its feet again at the next zero byte.
#[derive(Clone, Debug, Default)]
pub struct Deframer {
    raw: Raw,
    /// Code byte of the block being read; 0 before the first.
    code: u8,
    /// Bytes of that block still to come.
    left: u8,
    overlong: bool,
}

/// What a byte given to a [`Deframer`] completed.
#[expect(clippy::large_enum_variant, reason = "there is no heap to box on, and the value is consumed at once")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deframed {
    /// Nothing yet.
    Pending,
    /// A whole run between two delimiters, un-stuffed, still to be checked by [`Frame::parse`].
    Run(Raw),
    /// A run that ended in the middle of a block.
    Stuffing,
    /// A run longer than any frame.
    Overlong,
}

impl Deframer {
    /// A deframer that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { raw: Raw::new(), code: 0, left: 0, overlong: false }
    }

    /// Takes the next byte of the stream.
    pub fn push(&mut self, byte: u8) -> Deframed {
        if byte == 0 && self.code == 0 {
            // Nothing lies between this delimiter and the last; `overlong` begins after a code.
            return Deframed::Pending;
        }
        if byte == 0 {
            let ended = core::mem::take(self);
            return match ended {
                Self { overlong: true, .. } => Deframed::Overlong,
                Self { left: 0, raw, .. } => Deframed::Run(raw),
                _ => Deframed::Stuffing,
            };
        }
        if self.overlong {
            return Deframed::Pending;
        }
        let fits = if self.left == 0 {
            // Every block but the last stands for its bytes and a zero, save a block of the greatest length.
            let closes_with_zero = self.code != 0 && self.code != u8::MAX;
            self.code = byte;
            self.left = byte - 1;
            !closes_with_zero || self.raw.push(0).is_ok()
        } else {
            self.left -= 1;
            self.raw.push(byte).is_ok()
        };
        self.overlong = !fits;
        Deframed::Pending
    }

    /// As [`Deframer::push`], with failures counted: the raw run if the byte completed one.
    pub fn push_counted(&mut self, byte: u8, counters: &mut Counters) -> Option<Raw> {
        match self.push(byte) {
            Deframed::Pending => None,
            Deframed::Run(raw) => Some(raw),
            Deframed::Stuffing => {
                bump(&mut counters.stuffing);
                None
            }
            Deframed::Overlong => {
                bump(&mut counters.overlong);
                None
            }
        }
    }
}

/// CRC-32C (Castagnoli).
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_more(0, bytes)
}

/// The checksum of what `crc` is that of, followed by `bytes`.
#[must_use]
pub fn crc32c_more(crc: u32, bytes: &[u8]) -> u32 {
    let step = |crc: u32, half: u32| crc >> 4 ^ CRC_TABLE[((crc ^ half) & 0xf) as usize];
    !bytes.iter().fold(!crc, |crc, byte| step(step(crc, u32::from(*byte)), u32::from(*byte >> 4)))
}

fn header(bytes: &[u8]) -> nom::IResult<&[u8], (u8, u8, u32, u32)> {
    (le_u8, le_u8, le_u32, le_u32).parse(bytes)
}

/// Consistent overhead byte stuffing, in place: each zero becomes the distance to the next one or to the end. The first
/// byte is a zero put before the frame. Shorter than 254 bytes, no run needs splitting.
fn stuff(bytes: &mut [u8]) {
    let mut distance = 1;
    for byte in bytes.iter_mut().rev() {
        if *byte == 0 {
            *byte = distance;
            distance = 1;
        } else {
            distance += 1;
        }
    }
}

/// Appends to a vector whose capacity the callers' types guarantee.
pub(crate) fn append<const N: usize>(out: &mut Vec<u8, N>, bytes: &[u8]) {
    let fitted = out.extend_from_slice(bytes);
    debug_assert!(fitted.is_ok(), "bodies are bounded by their types");
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::message::{Ping, Pong};

    fn unstuffed(encoded: &[u8]) -> Raw {
        let mut deframer = Deframer::new();
        for &byte in encoded {
            if let Deframed::Run(raw) = deframer.push(byte) {
                return raw;
            }
        }
        panic!("no frame in {encoded:02x?}");
    }

    /// Rewrites the first byte of a frame and its checksum.
    fn with_flags(message: &Message, flags: u8) -> Raw {
        let mut raw = unstuffed(&encode(message, 0, 1, None));
        raw[0] = flags;
        let end = raw.len() - CRC_LEN;
        let crc = crc32c(&raw[..end]).to_le_bytes();
        raw[end..].copy_from_slice(&crc);
        raw
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        // The check value every catalogue of checksums gives for "123456789".
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        // And each byte counts, as somebody else's implementation has it.
        let theirs = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
        let bytes: std::vec::Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        for len in 0..bytes.len() {
            assert_eq!(crc32c(&bytes[..len]), theirs.checksum(&bytes[..len]), "{len} bytes");
            assert_eq!(crc32c_more(crc32c(&bytes[..len / 3]), &bytes[len / 3..len]), crc32c(&bytes[..len]));
        }
    }

    #[test]
    fn each_failure_of_a_frame_is_named_and_counted_apart() {
        let ping = Message::Ping(Ping { t_ms: 7 });
        let good = unstuffed(&encode(&ping, 0, 1, None));
        let mut noisy = good.clone();
        noisy[3] ^= 0x40;
        let tagged = unstuffed(&encode(&ping, 0, 1, Some(&[1; 16])));
        let mut counters = Counters::default();
        for (raw, key, expected) in [
            (&good[..5], None, FrameError::Short),
            (&noisy[..], None, FrameError::Crc),
            (&with_flags(&ping, 2 << 5)[..], None, FrameError::Version { found: 2 }),
            (&with_flags(&ping, 1 << 5 | 4)[..], None, FrameError::Incompatible { bits: 4 }),
            (&with_flags(&ping, 1 << 5 | TAGGED)[..], None, FrameError::Short),
            (&tagged[..], Some(&[2; 16]), FrameError::Tag),
            (&tagged[..], None, FrameError::Tag),
        ] {
            assert_eq!(Frame::parse(raw, key), Err(expected));
            counters.count(expected);
        }
        assert_eq!((counters.short, counters.crc, counters.version), (2, 1, 1));
        assert_eq!((counters.incompatible, counters.tag, counters.refused()), (1, 2, 7));
    }

    #[test]
    fn a_tag_covers_every_bit_of_header_and_body() {
        let key = [9; 16];
        let pong = Message::Pong(Pong { t_ms: 1, now_ms: 2, prompt_id: 3, leds: 4, config: 5 });
        let raw = unstuffed(&encode(&pong, 6, 7, Some(&key)));
        let frame = Frame::parse(&raw, Some(&key)).unwrap();
        assert_eq!((frame.session, frame.ctr, frame.tagged), (6, 7, true));
        let end = raw.len() - CRC_LEN;
        for bit in 0..end * 8 {
            let mut forged = raw.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            // The forger knows the checksum, so it always fits.
            let crc = crc32c(&forged[..end]).to_le_bytes();
            forged[end..].copy_from_slice(&crc);
            match Frame::parse(&forged, Some(&key)) {
                Err(_) => {}
                // Clearing the tag bit makes an untagged frame, which says so.
                Ok(frame) => assert!(!frame.tagged && bit == 4, "bit {bit}"),
            }
        }
    }

    #[test]
    fn noise_before_a_frame_costs_only_itself() {
        let ping = Message::Ping(Ping { t_ms: 0 });
        let mut deframer = Deframer::new();
        let mut counters = Counters::default();
        let mut runs = 0;
        for byte in b"boot: hello\r\n".iter().copied().chain(encode(&ping, 0, 1, None)) {
            if let Some(raw) = deframer.push_counted(byte, &mut counters) {
                assert!(Frame::parse(&raw, None).is_ok());
                runs += 1;
            }
        }
        assert_eq!((runs, counters.stuffing), (1, 1));
    }

    #[test]
    fn a_run_without_delimiters_is_dropped_and_the_next_frame_is_read() {
        let mut deframer = Deframer::new();
        for _ in 0..10_000 {
            assert_eq!(deframer.push(0x55), Deframed::Pending);
        }
        assert_eq!(deframer.push(0), Deframed::Overlong);
        let ping = encode(&Message::Ping(Ping { t_ms: 3 }), 0, 1, None);
        assert!(ping.iter().any(|byte| matches!(deframer.push(*byte), Deframed::Run(_))));
    }
}
