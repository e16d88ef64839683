//! What was tuned of a plain ONNX file, which has no bundle and no state directory: one safetensors file.
//!
//! Its metadata hold, as JSON under `hone`, which model it belongs to, how its tensors are put into the graph and, for
//! a new head, what its classes are called.
use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{AdapterError, PREFIX, Tuned};
use crate::scope::Spec;
use crate::tensor::safetensors;

/// The schema of the metadata.
const SCHEMA: &str = "hone.adapter/1";

/// A tuned ONNX file's adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterFile {
    /// BLAKE3 of the ONNX file.
    pub base: String,
    /// What was tuned.
    pub tuned: Tuned,
    /// The classes' names, where the data named them.
    pub labels: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    schema: String,
    base: String,
    run: String,
    spec: Spec,
    labels: Vec<String>,
}

impl AdapterFile {
    /// The name of an ONNX file in [`AdapterFile::base`].
    pub fn digest(onnx: &[u8]) -> String {
        blake3::hash(onnx).to_hex().to_string()
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// [`AdapterError::Unfit`] for tensors that are not `f32`.
    pub fn to_bytes(&self) -> Result<Vec<u8>, AdapterError> {
        let unfit = |reason| AdapterError::Unfit { field: "leaves", reason };
        let t = &self.tuned;
        let about = About {
            schema: SCHEMA.into(),
            base: self.base.clone(),
            run: t.run.clone(),
            spec: t.spec.clone(),
            labels: self.labels.clone(),
        };
        let about = serde_json::to_string(&about).map_err(|e| unfit(e.to_string()))?;
        let tensors: Vec<_> = t.tensors.iter().map(|(n, t)| (format!("{PREFIX}{n}"), t.clone())).collect();
        let metadata = HashMap::from([("format".to_string(), "pt".to_string()), ("hone".to_string(), about)]);
        safetensors::write(&tensors, metadata).map_err(unfit)
    }

    /// Reads the file; `onnx` is the model it is to be put on.
    ///
    /// # Errors
    /// [`AdapterError::OtherBase`] for another model's, [`AdapterError::Unfit`] for what is no adapter.
    pub fn from_bytes(bytes: &[u8], onnx: &[u8]) -> Result<AdapterFile, AdapterError> {
        let unfit = |reason| AdapterError::Unfit { field: "file", reason };
        let (tensors, metadata) = safetensors::read(bytes).map_err(unfit)?;
        let about = metadata.get("hone").ok_or_else(|| unfit("it was not written by `hone tune`".into()))?;
        let about: About = serde_json::from_str(about).map_err(|e| unfit(e.to_string()))?;
        if about.schema != SCHEMA {
            return Err(unfit(format!("its schema is {}, this version reads {SCHEMA}", about.schema)));
        }
        let expected = AdapterFile::digest(onnx);
        if about.base != expected {
            return Err(AdapterError::OtherBase { expected, found: about.base });
        }
        let mut leaves = Vec::with_capacity(tensors.len());
        for (name, t) in tensors {
            let leaf = name.strip_prefix(PREFIX).ok_or_else(|| unfit(format!("{name} is no tensor of an adapter")))?;
            leaves.push((leaf.to_string(), t));
        }
        let tuned = Tuned { spec: about.spec, run: about.run, tensors: leaves };
        Ok(AdapterFile { base: about.base, tuned, labels: about.labels })
    }
}
