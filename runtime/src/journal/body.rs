//! The payloads of FORMAT.md: what the values of `record` become as JSON, checked on the way in and on the way out.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use half::f16;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::StoreError;
use super::record::{
    AdapterAction, AdapterEvent, Age, ClassChange, ClassesEvent, Digest, Example, Inference, Kind, MAX_PAYLOAD_BYTES,
    Press, PressId, PressKind, RaterId, Shown, Source, check_uid,
};

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
    /// The refused prediction of the same sample in whose place this class was offered. Version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u32>,
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
    /// The badge that counted. Version 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub badge: Option<u16>,
    /// It may count beside earlier presses about the same prediction. Version 3.
    #[serde(default, skip_serializing_if = "is_false")]
    pub beside: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
fn is_false(value: &bool) -> bool {
    !*value
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

impl PadBody {
    /// Whether a badge was shown to the pad then, as `feedback::ledger` records it: the name may stand in the detail.
    pub(super) fn shows_badge(&self, badge: u16) -> bool {
        let number = self.detail.strip_prefix("badge ").and_then(|rest| rest.split(' ').next());
        self.name == "badge" && number.is_some_and(|n| n.parse() == Ok(badge))
    }
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
    Classes(ClassesEvent),
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
            Body::Classes(_) => Kind::Classes,
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
            Body::Classes(b) => serde_json::to_value(b),
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
            Kind::Classes => Body::Classes(read(text)?),
        })
    }

    /// The oldest version of the format that has a record like this.
    pub(super) fn version(&self) -> i64 {
        match self {
            Body::Press(PressBody { badge: Some(_), .. } | PressBody { beside: true, .. }) => 3,
            Body::Adapter(AdapterEvent { action: AdapterAction::Retired, .. }) => 3,
            Body::Classes(_) | Body::Shown(ShownBody { after: Some(_), .. }) => 2,
            _ => 1,
        }
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
            after: None,
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
    /// The payload; `is_shown` tells whether the prediction it names is known, `beside`
    /// whether what was said of it before and this are settled by rater.
    pub(super) fn to_body(&self, pad: Option<PadRef>, is_shown: bool, beside: bool) -> Result<PressBody, StoreError> {
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
            badge: self.badge,
            beside: beside && about_a_prediction,
        })
    }
}

impl PressBody {
    /// Whose word it is.
    pub(super) fn rater(&self) -> RaterId {
        RaterId { source: self.source.clone(), badge: self.badge }
    }

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

impl ClassesEvent {
    pub(super) fn check(&self) -> Result<(), StoreError> {
        check_name("base_digest", &self.base_digest)?;
        match &self.change {
            ClassChange::Add { name } | ClassChange::Rename { name, .. } => check_label(name),
            ClassChange::Merge { .. } => Ok(()),
        }
    }
}

/// Longest name of a class, in bytes.
pub(super) const MAX_LABEL_BYTES: usize = 64;

fn check_label(name: &str) -> Result<(), StoreError> {
    if name.is_empty() || name.trim() != name || name.len() > MAX_LABEL_BYTES || name.chars().any(char::is_control) {
        let reason =
            format!("{name:?} is not 1 to {MAX_LABEL_BYTES} bytes without control characters or blanks at its ends");
        return Err(StoreError::Unfit { field: "the name of a class", reason });
    }
    Ok(())
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
