//! Reading the members of a JSON object one by one, so that what is left over can be refused.
use serde_json::{Map, Value};

use super::ModalityError;

/// The members of an object that were not taken yet.
pub(crate) struct Members {
    file: &'static str,
    left: Map<String, Value>,
}

impl Members {
    pub(crate) fn parse(file: &'static str, text: &str) -> Result<Members, ModalityError> {
        let refuse = |reason: String| ModalityError::Config { file, key: "(top)".into(), reason };
        match serde_json::from_str(text).map_err(|e| refuse(e.to_string()))? {
            Value::Object(left) => Ok(Members { file, left }),
            _ => Err(refuse("is not an object".into())),
        }
    }

    pub(crate) fn refuse(&self, key: &str, reason: impl Into<String>) -> ModalityError {
        ModalityError::Config { file: self.file, key: key.to_string(), reason: reason.into() }
    }

    /// The member, unless it is absent or null.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.left.remove(key).filter(|v| !v.is_null())
    }

    pub(crate) fn flag(&mut self, key: &str) -> Result<Option<bool>, ModalityError> {
        let value = self.take(key);
        value.map(|v| v.as_bool().ok_or_else(|| self.refuse(key, format!("{v} is not true or false")))).transpose()
    }

    /// A finite number.
    pub(crate) fn number(&mut self, key: &str) -> Result<Option<f64>, ModalityError> {
        let value = self.take(key);
        value
            .map(|v| {
                v.as_f64().filter(|v| v.is_finite()).ok_or_else(|| self.refuse(key, format!("{v} is not a number")))
            })
            .transpose()
    }

    /// A whole number from 0 up; `1.0` counts as one.
    pub(crate) fn whole(&mut self, key: &str) -> Result<Option<u64>, ModalityError> {
        let Some(v) = self.number(key)? else { return Ok(None) };
        if v < 0.0 || v.fract() != 0.0 || v > 9e15 {
            return Err(self.refuse(key, format!("{v} is not a whole number")));
        }
        Ok(Some(v as u64))
    }

    /// A whole number in `range`.
    #[cfg(feature = "audio")]
    pub(crate) fn count(
        &mut self,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<usize>, ModalityError> {
        match self.whole(key)? {
            Some(v) if !range.contains(&v) => {
                Err(self.refuse(key, format!("{v} is not from {} to {}", range.start(), range.end())))
            }
            v => Ok(v.map(|v| v as usize)),
        }
    }

    /// A finite number, or a list of them.
    #[cfg(feature = "image")]
    pub(crate) fn numbers(&mut self, key: &str) -> Result<Option<Vec<f64>>, ModalityError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let list = match &value {
            Value::Array(list) => list.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>(),
            single => single.as_f64().map(|v| vec![v]),
        };
        match list {
            Some(list) if !list.is_empty() && list.iter().all(|v| v.is_finite()) => Ok(Some(list)),
            _ => Err(self.refuse(key, format!("{value} is not a number or a list of numbers"))),
        }
    }

    #[cfg(feature = "audio")]
    pub(crate) fn text(&mut self, key: &str) -> Result<Option<String>, ModalityError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.refuse(key, format!("{other} is not a string"))),
        }
    }

    /// Refuses what is left, except nulls, switches that are off, names of `harmless` and private (`_…`) hints.
    pub(crate) fn finish(self, harmless: &[&str]) -> Result<(), ModalityError> {
        let changes = |key: &str, value: &Value| {
            !value.is_null() && *value != Value::Bool(false) && !key.starts_with('_') && !harmless.contains(&key)
        };
        match self.left.iter().find(|(k, v)| changes(k, v)) {
            Some((key, value)) => {
                Err(self.refuse(key, format!("hone does not know what {value} changes, so it is refused")))
            }
            None => Ok(()),
        }
    }
}
