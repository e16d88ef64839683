//! What frames say: one struct for each message, one table of their types, one 20-byte event.
//!
//! Growth: a body may be longer than this version knows and the rest is ignored, so a field is appended, never inserted;
//! shorter is an error; a new message takes a new type, which an older side answers with [`Nak`]. To add one, write its
//! struct with `write` and `parse`, a row in the [`Message`] table below, and its row in `FORMAT.md`.
//!
//! States (lamps, display, prompt, configuration) are absolute, never "toggle", so a repeat does no harm.

use crate::auth::Key;
pub use crate::event::{Diagnostic, EVENT_LEN, Event, Kind};
use crate::frame::{Body, append};
use heapless::Vec;
use nom::bytes::complete::take;
use nom::error::{Error as NomError, ErrorKind};
use nom::number::complete::{le_u8, le_u16, le_u32};
use nom::{IResult, Parser};

/// Most events in one frame.
pub const MAX_EVENTS: usize = 8;
/// Most bytes of a prompt's labels, each with its length byte.
pub const MAX_LABELS: usize = 200;
/// Most bytes of text for a display.
pub const MAX_TEXT: usize = 160;

/// Why a checked frame's body is not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// A type this version does not know; to be answered with [`Nak`].
    UnknownType,
    /// Shorter than its type's fields.
    Short,
    /// Of a type that only the other side may send. Only [`Message::parse_for_pad`] says so.
    WrongWay,
    /// Long enough, but a field has a value that cannot be: a count over its bound, a label that is not UTF-8.
    Malformed,
}

/// The table of messages: type number, to whom it goes, name. Everything else follows from it.
macro_rules! messages {
    (@for_pad to_host $name:ident $body:ident) => { return Err(BodyError::WrongWay) };
    (@for_pad $way:ident $name:ident $body:ident) => { $name::parse($body).map(|(_, message)| Self::$name(message)) };
    ($(#[doc = $doc:literal] $kind:literal $way:ident $name:ident,)+) => {
        /// One message, of any type.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Message {
            $(#[doc = $doc] $name($name),)+
        }

        /// Type numbers and names of all messages, ascending.
        pub const TYPES: &[(u8, &str)] = &[$(($kind, stringify!($name)),)+];

        /// Type numbers by name, for where there is no message to ask.
        #[expect(non_upper_case_globals, reason = "a constant is named as its message is")]
        pub mod number {
            $(#[doc = $doc] pub const $name: u8 = $kind;)+
        }

        impl Message {
            /// The type number that stands in the frame's header.
            #[must_use]
            pub fn kind(&self) -> u8 {
                match self {
                    $(Self::$name(_) => $kind,)+
                }
            }

            /// The body's bytes.
            #[must_use]
            pub fn body(&self) -> Body {
                let mut body = Body::new();
                match self {
                    $(Self::$name(message) => message.write(&mut body),)+
                }
                body
            }

            /// Reads the body of a checked frame. Bytes beyond the known fields are ignored.
            ///
            /// # Errors
            /// [`BodyError`], by cause.
            pub fn parse(kind: u8, body: &[u8]) -> Result<Self, BodyError> {
                let parsed = match kind {
                    $($kind => $name::parse(body).map(|(_, message)| Self::$name(message)),)+
                    _ => return Err(BodyError::UnknownType),
                };
                parsed.map_err(body_error)
            }

            /// As [`Message::parse`], for a pad: what only a pad sends is not read, and a pad's image need not know how.
            ///
            /// # Errors
            /// [`BodyError`], by cause.
            pub fn parse_for_pad(kind: u8, body: &[u8]) -> Result<Self, BodyError> {
                let parsed = match kind {
                    $($kind => messages!(@for_pad $way $name body),)+
                    _ => return Err(BodyError::UnknownType),
                };
                parsed.map_err(body_error)
            }
        }

        $(impl From<$name> for Message {
            fn from(message: $name) -> Self {
                Self::$name(message)
            }
        })+
    };
}

messages! {
    /// Host to pad, untagged: who is there?
    1 to_pad HostHello,
    /// Pad to host, untagged: I am, and this is where my numbering stands.
    2 to_host PadHello,
    /// Host to pad: the session begins; first tagged frame.
    3 to_pad Welcome,
    /// Pad to host: presses.
    4 to_host Events,
    /// Host to pad: all before this number is durable.
    5 to_pad Ack,
    /// Host to pad: lamps.
    6 to_pad Leds,
    /// Host to pad: are you there?
    7 to_pad Ping,
    /// Pad to host: yes, and this is the state I hold.
    8 to_host Pong,
    /// Host to pad: text.
    9 to_pad Display,
    /// Host to pad: a tone.
    10 to_pad Buzzer,
    /// Host to pad: the question presses now answer.
    11 to_pad Prompt,
    /// Host to pad: timings.
    12 to_pad Config,
    /// Pad to host: which buttons are down; for tests and set-up, not durable.
    13 to_host Input,
    /// Pad to host: health.
    14 to_host Stats,
    /// Either way: that frame was of no use to me, and why.
    15 either Nak,
    /// Host to pad, tag required: restart.
    16 to_pad Reboot,
    /// Host to pad: a pairing key, heeded only while two buttons have been held for 5 s.
    17 to_pad Pair,
}

/// The host's greeting, repeated until answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostHello {
    /// Oldest major version the host speaks.
    pub wire_min: u8,
    /// Newest major version the host speaks.
    pub wire_max: u8,
    /// Fresh for each greeting, unpredictable across restarts of the host.
    pub nonce: [u8; 8],
}

/// The pad's greeting: an answer to a [`HostHello`], or, with `echo` zero, the news that it has just booted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PadHello {
    /// Oldest major version the pad speaks.
    pub wire_min: u8,
    /// Newest major version the pad speaks.
    pub wire_max: u8,
    /// Bit 0: the pad holds a pairing key.
    pub flags: u8,
    /// Number of buttons.
    pub buttons: u8,
    /// Number of lamps.
    pub leds: u8,
    /// Identity of the board, unique and fixed.
    pub uid: [u8; 8],
    /// Name of the numbering of its events; 0 = none yet, the host is to assign one.
    pub epoch: u32,
    /// Counts restarts of the pad, modulo 2¹⁶.
    pub boot: u16,
    /// Number of the oldest event still held.
    pub first: u32,
    /// Number the next event will get.
    pub next: u32,
    /// Fresh for each answer.
    pub nonce: [u8; 8],
    /// Nonce of the [`HostHello`] this answers; zero when it answers none.
    pub echo: [u8; 8],
    /// Firmware version: major, minor, patch.
    pub firmware: [u8; 3],
    /// First bytes of the firmware image's digest.
    pub firmware_hash: [u8; 8],
}

impl PadHello {
    /// Bit of `flags`: the pad holds a pairing key.
    pub const PAIRED: u8 = 1;

    /// Whether the pad holds a pairing key, by its own word.
    #[must_use]
    pub fn is_paired(&self) -> bool {
        self.flags & Self::PAIRED != 0
    }
}

/// Opens a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Welcome {
    /// Major version chosen.
    pub wire: u8,
    /// Numbering in force. Differs from the pad's only when that was lost: the pad then numbers anew from 1.
    pub epoch: u32,
    /// All events before this number are durable at the host.
    pub ack: u32,
    /// Events the pad may send beyond `ack`.
    pub credit: u8,
    /// Nonce of the [`PadHello`] this answers: a late welcome must not be taken by a pad that restarted since.
    pub echo: [u8; 8],
}

/// Events in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Numbering they belong to.
    pub epoch: u32,
    /// Pad's clock when the frame was made, ms since its boot, modulo 2³².
    pub now_ms: u32,
    /// The events.
    pub events: Vec<Event, MAX_EVENTS>,
}

/// Cumulative acknowledgement, sent only once everything it covers is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// Numbering it refers to.
    pub epoch: u32,
    /// The number the host wants next.
    pub ack: u32,
    /// Events the pad may send beyond `ack`; 0 = the host cannot store any now.
    pub credit: u8,
}

/// Lamps, absolute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leds {
    /// Bit i: lamp i is on.
    pub mask: u16,
}

/// Asks for a sign of life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ping {
    /// Host's clock, ms, any origin; comes back in the [`Pong`].
    pub t_ms: u32,
}

/// A sign of life with the states the pad holds, so that the host can mend one that was lost on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pong {
    /// As in the [`Ping`].
    pub t_ms: u32,
    /// Pad's clock, ms since its boot.
    pub now_ms: u32,
    /// Prompt shown; 0 = none.
    pub prompt_id: u32,
    /// Lamps the host asked for.
    pub leds: u16,
    /// Hash of the configuration in force; 0 = the pad's own.
    pub config: u32,
}

/// Text for a pad that has a display. Lines are separated by `\n`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Display {
    /// The text, UTF-8.
    pub text: heapless::String<MAX_TEXT>,
}

/// A tone. Not repeated by the host: a late tone is worse than none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buzzer {
    /// Pitch in Hz; 0 = silence.
    pub hertz: u16,
    /// Length in ms.
    pub ms: u16,
}

/// The question that presses answer from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Rises from prompt to prompt, across restarts of the host too; 0 = nothing is being asked.
    pub prompt_id: u32,
    /// The question stands for so long, ms from its arrival; 0 = until the next.
    pub ttl_ms: u32,
    /// The answers on offer, in the order of the buttons.
    pub labels: Labels,
}

/// Short texts, packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Each label: a length byte, then UTF-8.
    packed: Vec<u8, MAX_LABELS>,
    count: u8,
}

/// How the pad is to read its buttons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Equal samples, 1 ms apart, that make a level; 1 to 255.
    pub debounce_ms: u8,
    /// A press this long is a long one, ms.
    pub long_ms: u16,
    /// A second press beginning within this time of a release makes a double, ms; 0 = off. While on, every click waits
    /// so long before it counts.
    pub double_ms: u16,
    /// Two presses beginning within this time of each other make a chord, ms; 0 = off.
    pub chord_ms: u16,
    /// Chosen by the host, not 0; the pad repeats it in [`Pong`].
    pub hash: u32,
}

impl Config {
    /// The pad's own, until a host says otherwise.
    pub const OWN: Self = Self { debounce_ms: 8, long_ms: 600, double_ms: 0, chord_ms: 150, hash: 0 };
}

impl Default for Config {
    fn default() -> Self {
        Self::OWN
    }
}

/// The debounced buttons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// Pad's clock, ms since its boot.
    pub now_ms: u32,
    /// Bit i: button i is down.
    pub buttons: u16,
}

/// The pad's health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Time since boot, ms.
    pub uptime_ms: u32,
    /// Why it last restarted; the board's own code.
    pub reset_cause: u8,
    /// Events held.
    pub queued: u16,
    /// Presses lost to a full queue and not yet reported.
    pub lost: u32,
    /// Frames refused for noise: checksum, stuffing, length.
    pub noise: u32,
    /// Frames refused for a wrong or missing tag.
    pub tag: u32,
    /// Frames refused for anything else.
    pub other: u32,
}

/// A frame was of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nak {
    /// Type of the frame.
    pub kind: u8,
    /// Why.
    pub reason: NakReason,
    /// Counter of the frame.
    pub ctr: u32,
}

/// Why a frame was of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NakReason {
    /// Its type is unknown.
    UnknownType,
    /// Its body could not be read.
    Body,
    /// Its tag is wrong. Sent untagged, hence no more than a hint.
    Tag,
    /// It may not be done now, or not without a tag.
    Forbidden,
    /// A reason of a later version.
    Other(u8),
}

/// Restarts the pad. Never heeded without a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reboot {
    /// Into what.
    pub target: RebootTarget,
}

/// What a pad restarts into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebootTarget {
    /// The firmware.
    App,
    /// The loader that takes new firmware.
    Bootloader,
}

/// Gives a pad its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The pairing key.
    pub key: Key,
}

impl core::fmt::Debug for Pair {
    // Keys do not belong in logs.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Pair(..)")
    }
}

impl Prompt {
    /// Nothing is being asked.
    pub const NONE: Self = Self { prompt_id: 0, ttl_ms: 0, labels: Labels::NONE };
}

impl Labels {
    /// No labels.
    pub const NONE: Self = Self { packed: Vec::new(), count: 0 };

    /// Packs labels; what does not fit into [`MAX_LABELS`] bytes is refused whole, not cut.
    ///
    /// # Errors
    /// The label that did not fit.
    pub fn pack<'a>(labels: impl IntoIterator<Item = &'a str>) -> Result<Self, &'a str> {
        let mut packed = Self::default();
        for label in labels {
            let len = u8::try_from(label.len()).map_err(|_| label)?;
            if packed.count == u8::MAX || packed.packed.len() + 1 + label.len() > MAX_LABELS {
                return Err(label);
            }
            append(&mut packed.packed, &[len]);
            append(&mut packed.packed, label.as_bytes());
            packed.count += 1;
        }
        Ok(packed)
    }

    /// The labels in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let mut rest = &self.packed[..];
        core::iter::from_fn(move || {
            let (len, tail) = rest.split_first()?;
            let (label, tail) = tail.split_at_checked(usize::from(*len))?;
            rest = tail;
            core::str::from_utf8(label).ok()
        })
    }

    /// How many labels there are.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        let (mut i, count) = le_u8(i)?;
        let mut labels = Self::default();
        for _ in 0..count {
            let (rest, len) = le_u8(i)?;
            let (rest, label) = text(rest, len)?;
            if labels.packed.len() + 1 + label.len() > MAX_LABELS {
                return malformed(i);
            }
            append(&mut labels.packed, &[len]);
            append(&mut labels.packed, label.as_bytes());
            labels.count += 1;
            i = rest;
        }
        Ok((i, labels))
    }
}

impl HostHello {
    fn write(&self, out: &mut Body) {
        append(out, &[self.wire_min, self.wire_max]);
        append(out, &self.nonce);
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        (le_u8, le_u8, array).map(|(wire_min, wire_max, nonce)| Self { wire_min, wire_max, nonce }).parse(i)
    }
}

impl PadHello {
    fn write(&self, out: &mut Body) {
        append(out, &[self.wire_min, self.wire_max, self.flags, self.buttons, self.leds]);
        append(out, &self.uid);
        append(out, &self.epoch.to_le_bytes());
        append(out, &self.boot.to_le_bytes());
        append(out, &self.first.to_le_bytes());
        append(out, &self.next.to_le_bytes());
        append(out, &self.nonce);
        append(out, &self.echo);
        append(out, &self.firmware);
        append(out, &self.firmware_hash);
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        let (i, (wire_min, wire_max, flags, buttons, leds)) = (le_u8, le_u8, le_u8, le_u8, le_u8).parse(i)?;
        let (i, (uid, epoch, boot, first, next)) = (array, le_u32, le_u16, le_u32, le_u32).parse(i)?;
        let (i, (nonce, echo, firmware, firmware_hash)) = (array, array, array, array).parse(i)?;
        let hello = Self {
            wire_min,
            wire_max,
            flags,
            buttons,
            leds,
            uid,
            epoch,
            boot,
            first,
            next,
            nonce,
            echo,
            firmware,
            firmware_hash,
        };
        Ok((i, hello))
    }
}

impl Welcome {
    fn write(&self, out: &mut Body) {
        append(out, &[self.wire]);
        append(out, &self.epoch.to_le_bytes());
        append(out, &self.ack.to_le_bytes());
        append(out, &[self.credit]);
        append(out, &self.echo);
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        (le_u8, le_u32, le_u32, le_u8, array)
            .map(|(wire, epoch, ack, credit, echo)| Self { wire, epoch, ack, credit, echo })
            .parse(i)
    }
}

impl Events {
    fn write(&self, out: &mut Body) {
        append(out, &self.epoch.to_le_bytes());
        append(out, &self.now_ms.to_le_bytes());
        append(out, &[self.events.len() as u8]);
        for event in &self.events {
            append(out, &event.to_bytes());
        }
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        let (mut i, (epoch, now_ms, count)) = (le_u32, le_u32, le_u8).parse(i)?;
        let mut events = Vec::new();
        for _ in 0..count {
            let (rest, event) = Event::parse(i)?;
            if events.push(event).is_err() {
                return malformed(i);
            }
            i = rest;
        }
        Ok((i, Self { epoch, now_ms, events }))
    }
}

impl Ack {
    fn write(&self, out: &mut Body) {
        append(out, &self.epoch.to_le_bytes());
        append(out, &self.ack.to_le_bytes());
        append(out, &[self.credit]);
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        (le_u32, le_u32, le_u8).map(|(epoch, ack, credit)| Self { epoch, ack, credit }).parse(i)
    }
}

impl Leds {
    fn write(&self, out: &mut Body) {
        append(out, &self.mask.to_le_bytes());
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        le_u16.map(|mask| Self { mask }).parse(i)
    }
}

impl Ping {
    fn write(&self, out: &mut Body) {
        append(out, &self.t_ms.to_le_bytes());
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        le_u32.map(|t_ms| Self { t_ms }).parse(i)
    }
}

impl Pong {
    fn write(&self, out: &mut Body) {
        append(out, &self.t_ms.to_le_bytes());
        append(out, &self.now_ms.to_le_bytes());
        append(out, &self.prompt_id.to_le_bytes());
        append(out, &self.leds.to_le_bytes());
        append(out, &self.config.to_le_bytes());
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        (le_u32, le_u32, le_u32, le_u16, le_u32)
            .map(|(t_ms, now_ms, prompt_id, leds, config)| Self { t_ms, now_ms, prompt_id, leds, config })
            .parse(i)
    }
}

impl Display {
    fn write(&self, out: &mut Body) {
        append(out, &[self.text.len() as u8]);
        append(out, self.text.as_bytes());
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        let (rest, len) = le_u8(i)?;
        let (rest, found) = text(rest, len)?;
        match heapless::String::try_from(found) {
            Ok(text) => Ok((rest, Self { text })),
            Err(_) => malformed(i),
        }
    }
}

impl Buzzer {
    fn write(&self, out: &mut Body) {
        append(out, &self.hertz.to_le_bytes());
        append(out, &self.ms.to_le_bytes());
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        (le_u16, le_u16).map(|(hertz, ms)| Self { hertz, ms }).parse(i)
    }
}

impl Prompt {
    fn write(&self, out: &mut Body) {
        append(out, &self.prompt_id.to_le_bytes());
        append(out, &self.ttl_ms.to_le_bytes());
        append(out, &[self.labels.count]);
        append(out, &self.labels.packed);
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        (le_u32, le_u32, Labels::parse).map(|(prompt_id, ttl_ms, labels)| Self { prompt_id, ttl_ms, labels }).parse(i)
    }
}

impl Config {
    fn write(&self, out: &mut Body) {
        append(out, &[self.debounce_ms]);
        append(out, &self.long_ms.to_le_bytes());
        append(out, &self.double_ms.to_le_bytes());
        append(out, &self.chord_ms.to_le_bytes());
        append(out, &self.hash.to_le_bytes());
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        (le_u8, le_u16, le_u16, le_u16, le_u32)
            .map(|(debounce_ms, long_ms, double_ms, chord_ms, hash)| Self {
                debounce_ms,
                long_ms,
                double_ms,
                chord_ms,
                hash,
            })
            .parse(i)
    }
}

impl Input {
    fn write(&self, out: &mut Body) {
        append(out, &self.now_ms.to_le_bytes());
        append(out, &self.buttons.to_le_bytes());
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        (le_u32, le_u16).map(|(now_ms, buttons)| Self { now_ms, buttons }).parse(i)
    }
}

impl Stats {
    fn write(&self, out: &mut Body) {
        append(out, &self.uptime_ms.to_le_bytes());
        append(out, &[self.reset_cause]);
        append(out, &self.queued.to_le_bytes());
        for count in [self.lost, self.noise, self.tag, self.other] {
            append(out, &count.to_le_bytes());
        }
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        (le_u32, le_u8, le_u16, le_u32, le_u32, le_u32, le_u32)
            .map(|(uptime_ms, reset_cause, queued, lost, noise, tag, other)| Self {
                uptime_ms,
                reset_cause,
                queued,
                lost,
                noise,
                tag,
                other,
            })
            .parse(i)
    }
}

impl Nak {
    fn write(&self, out: &mut Body) {
        append(out, &[self.kind, self.reason.code()]);
        append(out, &self.ctr.to_le_bytes());
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        (le_u8, le_u8.map(NakReason::from_code), le_u32).map(|(kind, reason, ctr)| Self { kind, reason, ctr }).parse(i)
    }
}

impl NakReason {
    fn code(self) -> u8 {
        match self {
            Self::UnknownType => 1,
            Self::Body => 2,
            Self::Tag => 3,
            Self::Forbidden => 4,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::UnknownType,
            2 => Self::Body,
            3 => Self::Tag,
            4 => Self::Forbidden,
            other => Self::Other(other),
        }
    }
}

impl Reboot {
    fn write(&self, out: &mut Body) {
        append(
            out,
            &[match self.target {
                RebootTarget::App => 0,
                RebootTarget::Bootloader => 1,
            }],
        );
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        match le_u8(i)? {
            (rest, 0) => Ok((rest, Self { target: RebootTarget::App })),
            (rest, 1) => Ok((rest, Self { target: RebootTarget::Bootloader })),
            // Guessing would be the wrong kind of tolerance here.
            _ => malformed(i),
        }
    }
}

impl Pair {
    fn write(&self, out: &mut Body) {
        append(out, &self.key);
    }

    fn parse(i: &[u8]) -> IResult<&[u8], Self> {
        array.map(|key| Self { key }).parse(i)
    }
}

fn body_error(error: nom::Err<NomError<&[u8]>>) -> BodyError {
    match error {
        nom::Err::Error(NomError { code: ErrorKind::Eof, .. }) | nom::Err::Incomplete(_) => BodyError::Short,
        nom::Err::Error(_) | nom::Err::Failure(_) => BodyError::Malformed,
    }
}

fn array<const N: usize>(i: &[u8]) -> IResult<&[u8], [u8; N]> {
    let (rest, bytes) = take(N)(i)?;
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    Ok((rest, array))
}

fn text(i: &[u8], len: u8) -> IResult<&[u8], &str> {
    let (rest, bytes) = take(usize::from(len))(i)?;
    match core::str::from_utf8(bytes) {
        Ok(text) => Ok((rest, text)),
        Err(_) => malformed(i),
    }
}

fn malformed<T>(i: &[u8]) -> IResult<&[u8], T> {
    Err(nom::Err::Failure(NomError::new(i, ErrorKind::Verify)))
}
