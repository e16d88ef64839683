//! The values a journal holds, as an application hands them in: plain `f32` vectors, no encoding. `body` has the
//! payloads they become.
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::StoreError;

/// Longest payload in bytes. A feature of 1,024 and 1,000 logits take 8 KiB.
pub const MAX_PAYLOAD_BYTES: usize = 4 << 20;

/// A BLAKE3 digest; its text is 64 lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = StoreError;

    /// # Errors
    /// [`StoreError::Unfit`] unless `text` is 64 lowercase hexadecimal digits.
    fn from_str(text: &str) -> Result<Digest, StoreError> {
        let unfit = || StoreError::Unfit { field: "digest", reason: format!("{text:?} is not 64 hexadecimal digits") };
        let digits = text.as_bytes();
        if digits.len() != 64 || !is_lower_hex(text) {
            return Err(unfit());
        }
        let mut out = [0u8; 32];
        for (byte, pair) in out.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| unfit())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| unfit())?;
        }
        Ok(Digest(out))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Digest, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What kind of record a line of the journal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An answer put before a person.
    Shown,
    /// An answer nobody was asked about.
    Inference,
    /// Something a person said.
    Press,
    /// Something that happened to an adapter.
    Adapter,
    /// A line of text.
    Note,
    /// A numbering assigned to a pad.
    Epoch,
    /// An event of a pad that is no press.
    Pad,
    /// The list of records that were made unreadable.
    Redaction,
    /// A change of the classes a model knows. Version 2.
    Classes,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 9] = [
        Kind::Shown,
        Kind::Inference,
        Kind::Press,
        Kind::Adapter,
        Kind::Note,
        Kind::Epoch,
        Kind::Pad,
        Kind::Redaction,
        Kind::Classes,
    ];

    /// The name in the journal and in exports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Shown => "shown",
            Kind::Inference => "inference",
            Kind::Press => "press",
            Kind::Adapter => "adapter",
            Kind::Note => "note",
            Kind::Epoch => "epoch",
            Kind::Pad => "pad",
            Kind::Redaction => "redaction",
            Kind::Classes => "classes",
        }
    }

    /// The inverse of [`Kind::name`].
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| k.name() == name)
    }
}

/// Who pressed. Its text is `pad:<uid>`, `gpio`, `stdin`, `web`, `key` or `command`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A pad, by its unique id in lowercase hexadecimal (at most 64 digits).
    Pad(String),
    /// Buttons wired to this machine whose lines are not told apart; those heard as a pad are a `pad:` whose id begins with
    /// `6770696f`, "gpio".
    Gpio,
    /// Lines on standard input.
    Stdin,
    /// The web page.
    Web,
    /// The keyboard of the terminal.
    Key,
    /// `hone feedback add`.
    Command,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Pad(uid) => write!(f, "pad:{uid}"),
            Source::Gpio => f.write_str("gpio"),
            Source::Stdin => f.write_str("stdin"),
            Source::Web => f.write_str("web"),
            Source::Key => f.write_str("key"),
            Source::Command => f.write_str("command"),
        }
    }
}

impl FromStr for Source {
    type Err = StoreError;

    /// # Errors
    /// [`StoreError::Unfit`] for a text that names no source.
    fn from_str(text: &str) -> Result<Source, StoreError> {
        match text {
            "gpio" => return Ok(Source::Gpio),
            "stdin" => return Ok(Source::Stdin),
            "web" => return Ok(Source::Web),
            "key" => return Ok(Source::Key),
            "command" => return Ok(Source::Command),
            _ => {}
        }
        if let Some(uid) = text.strip_prefix("pad:") {
            check_uid(uid)?;
            return Ok(Source::Pad(uid.to_string()));
        }
        let reason = format!("{text:?} is none of pad:<uid>, gpio, stdin, web, key, command");
        Err(StoreError::Unfit { field: "source", reason })
    }
}

/// Whose word it is: where it came from, and the badge that counted there, for people who share a pad. Each rater says
/// one thing about a prediction and has an error rate of its own. Its text is that of the source, with ` badge <n>` behind
/// it where there was one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RaterId {
    /// Where presses come from.
    pub source: Source,
    /// The number of the badge.
    pub badge: Option<u16>,
}

impl fmt::Display for RaterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.badge {
            Some(badge) => write!(f, "{} badge {badge}", self.source),
            None => write!(f, "{}", self.source),
        }
    }
}

impl Serialize for Source {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Source, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Refuses a pad id that is not 1 to 64 lowercase hexadecimal digits.
pub(super) fn check_uid(uid: &str) -> Result<(), StoreError> {
    if uid.is_empty() || uid.len() > 64 || !is_lower_hex(uid) {
        let reason = format!("{uid:?} is not 1 to 64 lowercase hexadecimal digits");
        return Err(StoreError::Unfit { field: "pad uid", reason });
    }
    Ok(())
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// What the model saw and made of it, before any adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The digest of the graph (the backbone) that made `feature` and `logits`.
    pub model_digest: String,
    /// The adapter that was in use; `None` is the factory head.
    pub adapter_id: Option<String>,
    /// The pooled feature, `f32 [d]`. Stored as f16, so it reads back rounded; every element must be finite as f16.
    pub feature: Vec<f32>,
    /// The logits of the graph without the adapter, `f32 [C]`, stored exactly; finite.
    pub logits: Vec<f32>,
    /// The kept inputs, as digests of files in `blobs/` that were written before.
    pub inputs: Vec<Digest>,
}

/// An answer about to be put before a person.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// What the model saw.
    pub example: Example,
    /// The class that is shown.
    pub class: u32,
    /// Its label.
    pub label: String,
    /// The probability with which this class was chosen to be shown (1 when always the top one), in `(0, 1]`.
    pub mu: f32,
    /// The probability the model gives the class, in `[0, 1]`.
    pub p: f32,
}

/// An answer that was not put before a person: kept for drift figures, has no id and no feature.
#[derive(Clone, Debug, PartialEq)]
pub struct Inference {
    /// The digest of the graph.
    pub model_digest: String,
    /// The adapter in use; `None` is the factory head.
    pub adapter_id: Option<String>,
    /// The top class.
    pub class: u32,
    /// Its label.
    pub label: String,
    /// Its probability, in `[0, 1]`.
    pub p: f32,
}

/// The number of a press: the `seq` of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PressId(pub u64);

/// What a person can say.
#[derive(Clone, Debug, PartialEq)]
pub enum PressKind {
    /// 👍 or 👎 on the shown answer.
    Thumb {
        /// True for 👍.
        up: bool,
    },
    /// "It is class c."
    Correction {
        /// The right class.
        class: u32,
    },
    /// "This, now, is class c": an example without a shown answer. Has no prediction id.
    Demonstration {
        /// Its class.
        class: u32,
        /// What the model saw.
        example: Box<Example>,
    },
    /// One to five stars on the shown answer.
    Stars {
        /// 1..=5.
        stars: u8,
    },
    /// The shown answer rather than class `over`.
    Preference {
        /// The class liked less.
        over: u32,
    },
    /// Takes back a press. Needs no prediction id.
    Undo {
        /// The press; `None` is the newest effective press of the same rater.
        press_id: Option<PressId>,
    },
    /// "I do not know."
    NotSure,
}

/// How long before the host recorded it a press was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Age {
    /// Known, in milliseconds; 0 for a press on this machine.
    Exact {
        /// Milliseconds.
        ms: u64,
    },
    /// Somewhere in an interval: the pad has restarted since.
    Between {
        /// At least so many milliseconds.
        min_ms: u64,
        /// At most so many milliseconds.
        max_ms: u64,
    },
    /// Not known.
    Unknown,
}

/// Something a person said, as a transport hands it in.
#[derive(Clone, Debug, PartialEq)]
pub struct Press {
    /// The prediction it is about. Unknown to the journal, or `None`: an orphan, stored and never trained.
    pub prediction_id: Option<u32>,
    /// What was said.
    pub said: PressKind,
    /// Said with emphasis (long press, repeat): goes to the reservoir that never trains.
    pub confirmed: bool,
    /// Made within 150 ms of a change of the shown answer.
    pub ambiguous: bool,
    /// Over the rate limit, or from a source under suspicion.
    pub suspect: bool,
    /// Where it comes from.
    pub source: Source,
    /// The badge that counted there when it was made.
    pub badge: Option<u16>,
    /// When, counted back from now.
    pub age: Age,
}

impl Press {
    /// A plain press made just now: not confirmed, not ambiguous, not suspect.
    pub fn new(prediction_id: Option<u32>, said: PressKind, source: Source) -> Press {
        Press {
            prediction_id,
            said,
            confirmed: false,
            ambiguous: false,
            suspect: false,
            source,
            badge: None,
            age: Age::Exact { ms: 0 },
        }
    }
}

impl Press {
    /// Whose word it is.
    pub fn rater(&self) -> RaterId {
        RaterId { source: self.source.clone(), badge: self.badge }
    }
}

/// One event of a pad, by its number.
#[derive(Clone, Debug, PartialEq)]
pub struct PadPress {
    /// The pad's number for the event: 1, 2, 3, … within an epoch.
    pub seq: u32,
    /// What it was.
    pub event: PadEvent,
}

/// What an event of a pad means to the host.
#[derive(Clone, Debug, PartialEq)]
pub enum PadEvent {
    /// A press. Its `source` is replaced by the pad.
    Press(Press),
    /// The host's own remark that numbers before this one will never come: it may stand beyond the mark.
    Gap {
        /// How many.
        missing: u32,
    },
    /// Anything else that takes a number: dropped events, diagnostics, a button without a meaning.
    Other {
        /// A short name, `dropped`.
        name: String,
        /// What a reader needs to know.
        detail: String,
    },
}

/// What happened to an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterAction {
    /// Became the one in use after the gate let it through.
    Published,
    /// The one before it came back.
    RolledBack,
    /// The gate refused it.
    Vetoed,
    /// A trip-wire stopped learning.
    Frozen,
    /// A person chose it.
    Used,
    /// It was removed, having been learned from presses that were redacted since. Version 3.
    Retired,
}

/// Something that happened to an adapter, with the figures that decided it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterEvent {
    /// The adapter; `factory` for none.
    pub id: String,
    /// The bundle it belongs to.
    pub base_digest: String,
    /// What happened.
    pub action: AdapterAction,
    /// Named figures, finite: accuracies, counts, probabilities.
    pub numbers: BTreeMap<String, f64>,
}

/// A change of the classes that the model of one bundle knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassesEvent {
    /// The bundle whose classes they are.
    pub base_digest: String,
    /// What changed.
    pub change: ClassChange,
}

/// What a person can do to the classes of a model. A class is a number that never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ClassChange {
    /// A class more, with the next free number.
    Add {
        /// Its name.
        name: String,
    },
    /// Another name for a class.
    Rename {
        /// The class.
        class: u32,
        /// Its name from now on.
        name: String,
    },
    /// Two classes are one from now on.
    Merge {
        /// The class that is answered no more.
        from: u32,
        /// The class answered in its place.
        into: u32,
    },
}

/// One record as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// 1, 2, 3, … without a gap.
    pub seq: u64,
    /// What it is.
    pub kind: Kind,
    /// The run of the operating system it was written in.
    pub boot_id: String,
    /// Monotonic nanoseconds of that run, suspended time included.
    pub mono_ns: u64,
    /// The wall clock, milliseconds since 1970 UTC; may jump, orders nothing.
    pub wall_ms: i64,
    /// Canonical JSON as FORMAT.md describes it; `None` when redacted.
    pub payload: Option<String>,
    /// BLAKE3 of the payload as it was first written.
    pub digest: Digest,
    /// The chain up to and with this record.
    pub chain: Digest,
}
