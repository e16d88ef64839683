//! The event: one press, or a few other things, in 20 bytes that never change once numbered.
//!
//! The same bytes go over the wire and into a pad's store.

use nom::number::complete::{le_u8, le_u16, le_u32};
use nom::{IResult, Parser};

/// Bytes of an event.
pub const EVENT_LEN: usize = 20;

/// One thing a person did, numbered by the pad. 20 bytes, never changed once numbered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Its number under the pad's epoch, from 1, without gaps.
    pub seq: u32,
    /// Pad's clock when the press **began** (first edge), ms since that boot.
    pub t_ms: u32,
    /// The boot `t_ms` counts from.
    pub boot: u16,
    /// What it was.
    pub kind: Kind,
    /// Bits 4..0 the button or input; bit 7 see [`Event::is_ambiguous`]; bits 6..5 zero.
    pub src: u8,
    /// Depends on `kind`.
    pub value: u16,
    /// How long it lasted, in 10 ms, saturating.
    pub dur_10ms: u16,
    /// The prompt shown when the press began; 0 = none.
    pub prompt: u32,
}

/// What an event is. The pad decides what was done, never what it means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A short press.
    #[default]
    Click,
    /// A press that has become long; sent while the button is still down.
    Long,
    /// Two short presses in quick succession.
    Double,
    /// The end of a press already reported as [`Kind::Long`].
    LongRelease,
    /// A rating; `value` = high byte maximum, low byte rating.
    Rating,
    /// A choice among classes; `value` = the class.
    Class,
    /// A knob; `value` = net detents, two's complement, merged while unsent.
    Rotary,
    /// An undo; `value` = how far back.
    Undo,
    /// A person's badge; `value` = its number.
    Badge,
    /// Presses that a full queue could not hold; `value` = how many. A loss is an event, never silent.
    Dropped,
    /// Buttons pressed together and released; `value` = mask of buttons, `src` = the lowest.
    Chord,
    /// A chord still held after 5 s; `value` and `src` as for [`Kind::Chord`], which then does not follow.
    ChordHeld,
    /// The device speaks about itself; `value` = a [`Diagnostic`] code.
    Diagnostic,
    /// A kind of a later version: to be stored and acknowledged like any other.
    Other(u8),
}

impl Kind {
    /// The kinds this version knows, each with its number.
    pub const ALL: &[(u8, Kind)] = &[
        (1, Kind::Click),
        (2, Kind::Long),
        (3, Kind::Double),
        (4, Kind::LongRelease),
        (5, Kind::Rating),
        (6, Kind::Class),
        (7, Kind::Rotary),
        (8, Kind::Undo),
        (9, Kind::Badge),
        (10, Kind::Dropped),
        (11, Kind::Chord),
        (12, Kind::ChordHeld),
        (255, Kind::Diagnostic),
    ];

    /// The kind with this number.
    #[must_use]
    pub fn from_code(code: u8) -> Self {
        Self::ALL.iter().find(|(known, _)| *known == code).map_or(Self::Other(code), |(_, kind)| *kind)
    }

    /// Its number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Other(code) => code,
            known => Self::ALL.iter().find(|(_, kind)| *kind == known).map_or(0, |(code, _)| *code),
        }
    }
}

/// What a device says about itself in `value` of [`Kind::Diagnostic`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Diagnostic {
    /// A button has been down for more than 10 s; `src` = the button.
    StuckButton = 1,
    /// The firmware restarted after a panic; `dur_10ms` = the line, `prompt` = FNV-1a of the file's path.
    Panic = 2,
    /// Made by the **host**: numbers before this one will never come, because their acknowledgement was remembered by the
    /// pad alone (the host's journal is younger than the pad's numbering). `prompt` = how many.
    Gap = 3,
    /// The firmware restarted after a fault of its processor; `prompt` = address of the instruction, or the number of an
    /// exception that nothing handles.
    Fault = 4,
}

impl Event {
    /// Bit of `src`: see [`Event::is_ambiguous`].
    pub const AMBIGUOUS: u8 = 1 << 7;

    /// The button or input.
    #[must_use]
    pub fn button(&self) -> u8 {
        self.src & 0x1f
    }

    /// Whether the press began less than 150 ms after the prompt changed, so that it may answer the one before.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        self.src & Self::AMBIGUOUS != 0
    }

    /// The event's bytes, as on the wire and in a pad's store.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; EVENT_LEN] {
        let mut bytes = [0; EVENT_LEN];
        bytes[0..4].copy_from_slice(&self.seq.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.t_ms.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.boot.to_le_bytes());
        bytes[10] = self.kind.code();
        bytes[11] = self.src;
        bytes[12..14].copy_from_slice(&self.value.to_le_bytes());
        bytes[14..16].copy_from_slice(&self.dur_10ms.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.prompt.to_le_bytes());
        bytes
    }

    /// The event in these bytes. Every 20 bytes are an event.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; EVENT_LEN]) -> Self {
        Self::parse(bytes).map(|(_, event)| event).unwrap_or_default()
    }

    pub(crate) fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        (le_u32, le_u32, le_u16, le_u8.map(Kind::from_code), le_u8, le_u16, le_u16, le_u32)
            .map(|(seq, t_ms, boot, kind, src, value, dur_10ms, prompt)| Self {
                seq,
                t_ms,
                boot,
                kind,
                src,
                value,
                dur_10ms,
                prompt,
            })
            .parse(i)
    }
}
