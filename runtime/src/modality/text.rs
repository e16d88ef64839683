//! Text → token ids, through `tokenizer.json` and the library that wrote it.
use serde_json::Value;
use tokenizers::Tokenizer;

use super::ModalityError;
use crate::{Note, Tensor};

/// Longest text that is looked at, in bytes.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// A `tokenizer.json`.
pub struct TextProcessor {
    tokenizer: Tokenizer,
    /// Id and spelling of the token that stands for what the vocabulary lacks.
    unknown: Option<(u32, String)>,
}

/// What models take of a text, each `i64 [1, L]`.
#[derive(Clone, Debug, PartialEq)]
pub struct TextTensors {
    /// Token ids.
    pub ids: Tensor,
    /// 1 for a token, 0 for padding.
    pub attention_mask: Tensor,
    /// Segment ids.
    pub type_ids: Tensor,
}

impl TextProcessor {
    /// Reads a `tokenizer.json`; its truncation and padding are followed.
    ///
    /// # Errors
    /// [`ModalityError::Config`] with the library's message.
    pub fn from_json(bytes: &[u8]) -> Result<TextProcessor, ModalityError> {
        let refuse =
            |key: &str, reason: String| ModalityError::Config { file: "tokenizer.json", key: key.into(), reason };
        let value: Value = serde_json::from_slice(bytes).map_err(|e| refuse("(top)", e.to_string()))?;
        // The library subtracts the number of special tokens from this without looking.
        if value.pointer("/truncation/max_length").is_some_and(|v| v.as_u64() == Some(0)) {
            return Err(refuse("truncation.max_length", "is 0".into()));
        }
        let tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| refuse("(top)", e.to_string()))?;
        if let Some(truncation) = tokenizer.get_truncation() {
            let special =
                tokenizer.get_post_processor().map_or(0, |p| tokenizers::PostProcessor::added_tokens(p, false));
            if truncation.max_length <= special + truncation.stride {
                let reason = format!("{} leaves no room for text", truncation.max_length);
                return Err(refuse("truncation.max_length", reason));
            }
        }
        let unknown = match (value.pointer("/model/unk_token"), value.pointer("/model/unk_id")) {
            (Some(Value::String(token)), _) => tokenizer.token_to_id(token).map(|id| (id, token.clone())),
            (_, Some(Value::Number(id))) => id
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .and_then(|id| tokenizer.id_to_token(id).map(|t| (id, t))),
            _ => None,
        };
        Ok(TextProcessor { tokenizer, unknown })
    }

    /// A text → ids `i64 [1, L]`, with notes `truncated` (bytes of the text that were kept) and `unknown-token`.
    ///
    /// # Errors
    /// [`ModalityError::Text`] when the text is longer than 1 MiB, or gives no token and nothing pads it.
    pub fn encode(&self, text: &str) -> Result<(Tensor, Vec<Note>), ModalityError> {
        self.encode_all(text).map(|(tensors, notes)| (tensors.ids, notes))
    }

    /// As [`TextProcessor::encode`], with the mask and segment ids some models take beside the ids.
    ///
    /// # Errors
    /// As [`TextProcessor::encode`].
    pub fn encode_all(&self, text: &str) -> Result<(TextTensors, Vec<Note>), ModalityError> {
        let refuse = |reason: String| ModalityError::Text { reason };
        if text.len() > MAX_TEXT_BYTES {
            return Err(refuse(format!("it has {} bytes; at most {MAX_TEXT_BYTES} are looked at", text.len())));
        }
        let encoding = self.tokenizer.encode(text, true).map_err(|e| refuse(e.to_string()))?;
        if encoding.is_empty() {
            return Err(refuse("it has no token, and tokenizer.json has no padding".into()));
        }
        let mut notes = vec![];
        if !encoding.get_overflowing().is_empty() {
            let spans = || {
                let special = encoding.get_special_tokens_mask();
                encoding.get_offsets().iter().zip(special).filter(|(_, s)| **s == 0).map(|(o, _)| *o)
            };
            let kept = spans().map(|o| o.1).max().unwrap_or(0) - spans().map(|o| o.0).min().unwrap_or(0);
            notes.push(Note::new("truncated", format!("{} bytes", text.len()), format!("{kept} bytes")));
        }
        let mask = encoding.get_attention_mask();
        if let Some((id, token)) = &self.unknown {
            let real = mask.iter().filter(|m| **m == 1).count();
            let unknown = encoding.get_ids().iter().zip(mask).filter(|(i, m)| *i == id && **m == 1).count();
            if unknown > 0 {
                notes.push(Note::new("unknown-token", format!("{unknown} of {real} tokens"), token.clone()));
            }
        }
        let row = |v: &[u32]| Tensor::i64(&[1, v.len()], v.iter().map(|&v| i64::from(v)).collect());
        let tensors = TextTensors {
            ids: row(encoding.get_ids())?,
            attention_mask: row(mask)?,
            type_ids: row(encoding.get_type_ids())?,
        };
        Ok((tensors, notes))
    }
}
