//! Notes: every lossy step (truncation, resampling, clipping, CPU fallback) is said in the result.
use std::fmt;

/// One lossy or surprising step: what happened, from what, to what.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Note {
    /// A stable kebab-case code: `resampled`, `truncated`, `clipped`, `downmixed`, `resized`, `unknown-token`, `cpu-fallback` …
    pub code: String,
    /// The state before, with its unit (`44100 Hz`).
    pub from: String,
    /// The state after, with its unit (`16000 Hz`).
    pub to: String,
}

impl Note {
    /// A note.
    pub fn new(code: &str, from: impl Into<String>, to: impl Into<String>) -> Note {
        Note { code: code.to_string(), from: from.into(), to: to.into() }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.code, self.from, self.to)
    }
}
