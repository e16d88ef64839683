//! The values a journal holds: what an application hands in, and the JSON they become.
//!
//! Public types carry plain `f32` vectors; the private `…Body` types are the payloads of FORMAT.md (base64, digests).
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use half::f16;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

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
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 8] =
        [Kind::Shown, Kind::Inference, Kind::Press, Kind::Adapter, Kind::Note, Kind::Epoch, Kind::Pad, Kind::Redaction];

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
    /// Buttons wired to this machine.
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
        /// The press; `None` is the newest effective press of the same source.
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
    /// Who.
    pub source: Source,
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
            age: Age::Exact { ms: 0 },
        }
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

// ---- payloads -------------------------------------------------------------------------------------------------------

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExampleBody {
    pub model_digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_id: Option<String>,
    pub feature: String,
    pub feature_digest: Digest,
    pub logits: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Digest>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShownBody {
    pub prediction_id: u32,
    pub class: u32,
    pub label: String,
    // f64 and not f32: the text of an f32 inside a JSON value depends on serde_json's features, that of an f64 does not.
    pub mu: f64,
    pub p: f64,
    pub example: ExampleBody,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InferenceBody {
    pub model_digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_id: Option<String>,
    pub class: u32,
    pub label: String,
    pub p: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Said {
    Thumb {
        up: bool,
    },
    Correction {
        class: u32,
    },
    Demonstration {
        class: u32,
        example: Box<ExampleBody>,
    },
    Stars {
        stars: u8,
    },
    Preference {
        over: u32,
    },
    Undo {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        press_id: Option<PressId>,
    },
    NotSure,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PadRef {
    pub uid: String,
    pub epoch: u32,
    pub seq: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PressBody {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction_id: Option<u32>,
    pub orphan: bool,
    pub said: Said,
    pub confirmed: bool,
    pub ambiguous: bool,
    pub suspect: bool,
    pub source: Source,
    pub age: Age,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad: Option<PadRef>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoteBody {
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EpochBody {
    pub uid: String,
    pub epoch: u32,
    pub next: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PadBody {
    pub pad: PadRef,
    pub name: String,
    pub detail: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RedactionBody {
    pub seqs: Vec<u64>,
    /// Pairs of an undo that is now unreadable and the press of somebody else that it keeps undone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undone: Vec<(PressId, PressId)>,
}

/// A payload with its kind.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Body {
    Shown(ShownBody),
    Inference(InferenceBody),
    Press(PressBody),
    Adapter(AdapterEvent),
    Note(NoteBody),
    Epoch(EpochBody),
    Pad(PadBody),
    Redaction(RedactionBody),
}

impl Body {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Body::Shown(_) => Kind::Shown,
            Body::Inference(_) => Kind::Inference,
            Body::Press(_) => Kind::Press,
            Body::Adapter(_) => Kind::Adapter,
            Body::Note(_) => Kind::Note,
            Body::Epoch(_) => Kind::Epoch,
            Body::Pad(_) => Kind::Pad,
            Body::Redaction(_) => Kind::Redaction,
        }
    }

    /// The canonical JSON text of the payload.
    pub(super) fn canonical(&self) -> Result<String, StoreError> {
        let value = match self {
            Body::Shown(b) => serde_json::to_value(b),
            Body::Inference(b) => serde_json::to_value(b),
            Body::Press(b) => serde_json::to_value(b),
            Body::Adapter(b) => serde_json::to_value(b),
            Body::Note(b) => serde_json::to_value(b),
            Body::Epoch(b) => serde_json::to_value(b),
            Body::Pad(b) => serde_json::to_value(b),
            Body::Redaction(b) => serde_json::to_value(b),
        };
        let value = value.map_err(|e| StoreError::Unfit { field: "payload", reason: e.to_string() })?;
        let text = canonical(&value);
        if text.len() > MAX_PAYLOAD_BYTES {
            let reason = format!("{} bytes, at most {MAX_PAYLOAD_BYTES} are kept", text.len());
            return Err(StoreError::Unfit { field: "payload", reason });
        }
        Ok(text)
    }

    /// Reads a payload of `kind`; the reason when it is none.
    pub(super) fn parse(kind: Kind, text: &str) -> Result<Body, String> {
        fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
            serde_json::from_str(text).map_err(|e| e.to_string())
        }
        Ok(match kind {
            Kind::Shown => Body::Shown(read(text)?),
            Kind::Inference => Body::Inference(read(text)?),
            Kind::Press => Body::Press(read(text)?),
            Kind::Adapter => Body::Adapter(read(text)?),
            Kind::Note => Body::Note(read(text)?),
            Kind::Epoch => Body::Epoch(read(text)?),
            Kind::Pad => Body::Pad(read(text)?),
            Kind::Redaction => Body::Redaction(read(text)?),
        })
    }

    /// The kept inputs this payload refers to.
    pub(super) fn inputs(&self) -> &[Digest] {
        match self {
            Body::Shown(b) => &b.example.inputs,
            Body::Press(PressBody { said: Said::Demonstration { example, .. }, .. }) => &example.inputs,
            _ => &[],
        }
    }
}

/// JSON without white space and with the keys of every object in byte order, whatever features serde_json was built with.
pub(super) fn canonical(value: &Value) -> String {
    let mut out = String::new();
    write_canonical(value, &mut out);
    out
}

fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            out.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write_canonical(&map[key], out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

impl Example {
    pub(super) fn to_body(&self) -> Result<ExampleBody, StoreError> {
        check_name("model_digest", &self.model_digest)?;
        if let Some(id) = &self.adapter_id {
            check_name("adapter_id", id)?;
        }
        let unfit = |field, reason| StoreError::Unfit { field, reason };
        if self.feature.is_empty() {
            return Err(unfit("feature", "it is empty".to_string()));
        }
        let mut feature = Vec::with_capacity(self.feature.len() * 2);
        for (i, &v) in self.feature.iter().enumerate() {
            let half = f16::from_f32(v);
            if !half.is_finite() {
                return Err(unfit("feature", format!("element {i} is {v}, which is not finite in f16")));
            }
            feature.extend_from_slice(&half.to_le_bytes());
        }
        if let Some(i) = self.logits.iter().position(|v| !v.is_finite()) {
            return Err(unfit("logits", format!("element {i} is {}", self.logits[i])));
        }
        let logits: Vec<u8> = self.logits.iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok(ExampleBody {
            model_digest: self.model_digest.clone(),
            adapter_id: self.adapter_id.clone(),
            feature_digest: Digest::of(&feature),
            feature: STANDARD.encode(&feature),
            logits: STANDARD.encode(&logits),
            inputs: self.inputs.clone(),
        })
    }
}

impl ExampleBody {
    /// Decodes; the reason when a field is malformed, not finite or does not have its digest.
    pub(super) fn to_example(&self) -> Result<Example, String> {
        let bytes = STANDARD.decode(&self.feature).map_err(|e| format!("feature: {e}"))?;
        if Digest::of(&bytes) != self.feature_digest {
            return Err("feature does not have its digest".to_string());
        }
        if bytes.is_empty() || bytes.len() % 2 != 0 {
            return Err(format!("feature has {} bytes, which is no f16 vector", bytes.len()));
        }
        let feature: Vec<f32> = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        let bytes = STANDARD.decode(&self.logits).map_err(|e| format!("logits: {e}"))?;
        if bytes.len() % 4 != 0 {
            return Err(format!("logits have {} bytes, which is no f32 vector", bytes.len()));
        }
        let logits: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        if feature.iter().chain(&logits).any(|v| !v.is_finite()) {
            return Err("feature or logits are not finite".to_string());
        }
        Ok(Example {
            model_digest: self.model_digest.clone(),
            adapter_id: self.adapter_id.clone(),
            feature,
            logits,
            inputs: self.inputs.clone(),
        })
    }
}

impl Shown {
    pub(super) fn to_body(&self, prediction_id: u32) -> Result<ShownBody, StoreError> {
        check_probability("p", self.p)?;
        check_probability("mu", self.mu)?;
        if self.mu == 0.0 {
            let reason = "0: a class that is never chosen cannot have been shown".to_string();
            return Err(StoreError::Unfit { field: "mu", reason });
        }
        Ok(ShownBody {
            prediction_id,
            class: self.class,
            label: self.label.clone(),
            mu: f64::from(self.mu),
            p: f64::from(self.p),
            example: self.example.to_body()?,
        })
    }
}

impl Inference {
    pub(super) fn to_body(&self) -> Result<InferenceBody, StoreError> {
        check_name("model_digest", &self.model_digest)?;
        check_probability("p", self.p)?;
        Ok(InferenceBody {
            model_digest: self.model_digest.clone(),
            adapter_id: self.adapter_id.clone(),
            class: self.class,
            label: self.label.clone(),
            p: f64::from(self.p),
        })
    }
}

impl Press {
    /// The payload; `is_shown` tells whether the prediction it names is known.
    pub(super) fn to_body(&self, pad: Option<PadRef>, is_shown: bool) -> Result<PressBody, StoreError> {
        let unfit = |field, reason: &str| StoreError::Unfit { field, reason: reason.to_string() };
        if let Source::Pad(uid) = &self.source {
            check_uid(uid)?;
        }
        if let Age::Between { min_ms, max_ms } = self.age
            && min_ms > max_ms
        {
            return Err(unfit("age", "its least is more than its most"));
        }
        let mut about_a_prediction = true;
        let said = match &self.said {
            PressKind::Thumb { up } => Said::Thumb { up: *up },
            PressKind::Correction { class } => Said::Correction { class: *class },
            PressKind::Demonstration { class, example } => {
                about_a_prediction = false;
                if self.prediction_id.is_some() {
                    return Err(unfit("prediction_id", "a demonstration is about no prediction"));
                }
                Said::Demonstration { class: *class, example: Box::new(example.to_body()?) }
            }
            PressKind::Stars { stars } if (1..=5).contains(stars) => Said::Stars { stars: *stars },
            PressKind::Stars { .. } => return Err(unfit("stars", "they go from 1 to 5")),
            PressKind::Preference { over } => Said::Preference { over: *over },
            PressKind::Undo { press_id } => {
                about_a_prediction = false;
                Said::Undo { press_id: *press_id }
            }
            PressKind::NotSure => Said::NotSure,
        };
        Ok(PressBody {
            prediction_id: self.prediction_id,
            orphan: about_a_prediction && !is_shown,
            said,
            confirmed: self.confirmed,
            ambiguous: self.ambiguous,
            suspect: self.suspect,
            source: self.source.clone(),
            age: self.age,
            pad,
        })
    }
}

impl PressBody {
    /// The prediction this press counts for; `None` for orphans, demonstrations and undos.
    pub(super) fn bound(&self) -> Option<u32> {
        match self.said {
            Said::Demonstration { .. } | Said::Undo { .. } => None,
            _ if self.orphan => None,
            _ => self.prediction_id,
        }
    }
}

impl AdapterEvent {
    pub(super) fn check(&self) -> Result<(), StoreError> {
        check_name("id", &self.id)?;
        check_name("base_digest", &self.base_digest)?;
        match self.numbers.iter().find(|(_, v)| !v.is_finite()) {
            Some((name, v)) => Err(StoreError::Unfit { field: "numbers", reason: format!("{name} is {v}") }),
            None => Ok(()),
        }
    }
}

fn check_probability(field: &'static str, value: f32) -> Result<(), StoreError> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(StoreError::Unfit { field, reason: format!("{value} is no probability") })
}

fn check_name(field: &'static str, value: &str) -> Result<(), StoreError> {
    if value.is_empty() || value.len() > 128 || !value.bytes().all(|b| b.is_ascii_graphic()) {
        let reason = format!("{value:?} is not 1 to 128 printable ASCII characters");
        return Err(StoreError::Unfit { field, reason });
    }
    Ok(())
}
