//! Labelled samples of a data set as examples for a graph.
use std::collections::BTreeMap;

use super::{Example, Examples, Target, TuneError};
use crate::bundle::npz;
use crate::dataset::Row;
use crate::graph::Graph;
use crate::modality::Preprocessor;
use crate::tensor::Tensor;

/// The class of a label, where it is one.
pub type ClassOf<'a> = &'a dyn Fn(&str) -> Option<usize>;

/// The member of an `.npz` sample that is no input but what the output should be.
pub const TARGET: &str = "target";

/// Samples with what makes tensors of them.
pub struct Labelled<'a> {
    preprocessor: Option<&'a Preprocessor>,
    inputs: Vec<String>,
    rows: Vec<(&'a Row, Option<usize>)>,
}

impl<'a> Labelled<'a> {
    /// The rows as examples; `class_of` tells the class of a label, where classes are learned, and `preprocessor` makes
    /// the inputs of rows that do not hold them.
    ///
    /// # Errors
    /// [`TuneError::Data`] for a label that is no class, and for rows that need a preprocessor where there is none.
    pub fn new(
        graph: &Graph,
        preprocessor: Option<&'a Preprocessor>,
        rows: impl IntoIterator<Item = &'a Row>,
        class_of: Option<ClassOf<'_>>,
    ) -> Result<Labelled<'a>, TuneError> {
        let data = |what: String| TuneError::Data { what };
        let mut out = Vec::new();
        for row in rows {
            let class =
                match class_of {
                    None => None,
                    Some(of) => Some(of(&row.label).ok_or_else(|| {
                        data(format!("the data says `{}`, which is no label of the model", row.label))
                    })?),
                };
            if row.tensors.is_none() && preprocessor.is_none() {
                return Err(data(
                    "an .onnx file does not say how to make its inputs from a sample: give --config DIR with \
                     preprocessor_config.json or tokenizer.json, or samples that are .npz files of the inputs"
                        .into(),
                ));
            }
            out.push((row, class));
        }
        Ok(Labelled { preprocessor, inputs: graph.input_names(), rows: out })
    }
}

impl Examples for Labelled<'_> {
    fn count(&self) -> usize {
        self.rows.len()
    }

    fn class(&self, i: usize) -> Option<usize> {
        self.rows[i].1
    }

    fn example(&mut self, i: usize) -> Result<Example, TuneError> {
        let (row, class) = &self.rows[i];
        let bad = |what: String| TuneError::Data { what: format!("sample {} ({}): {what}", i + 1, row.label) };
        let mut named: BTreeMap<String, Tensor> = match (&row.tensors, self.preprocessor) {
            (Some(bytes), _) => npz::read_npz(bytes).map_err(|e| bad(e.to_string()))?.into_iter().collect(),
            (None, Some(p)) => p.prepare(&row.sample()).map_err(|e| bad(e.to_string()))?.0.into_iter().collect(),
            (None, None) => BTreeMap::new(),
        };
        let target = match (class, named.remove(TARGET)) {
            (Some(class), _) => Target::Class(*class),
            (None, Some(t)) => Target::Values(t),
            (None, None) => return Err(bad(format!("this objective needs a member `{TARGET}` in every .npz sample"))),
        };
        let take = |name: &String| {
            let has = named.keys().cloned().collect::<Vec<_>>().join(", ");
            named.get(name).cloned().ok_or_else(|| bad(format!("there is no input `{name}` in it; it has {has}")))
        };
        Ok(Example { inputs: self.inputs.iter().map(take).collect::<Result<_, _>>()?, target })
    }

    fn digest(&self) -> String {
        let mut h = blake3::Hasher::new();
        for (row, class) in &self.rows {
            h.update(row.label.as_bytes()).update(&[0]).update(&class.map_or(u64::MAX, |c| c as u64).to_le_bytes());
            for part in [&row.image, &row.audio, &row.tensors].into_iter().flatten() {
                h.update(&(part.len() as u64).to_le_bytes()).update(part);
            }
            h.update(row.text.as_deref().unwrap_or_default().as_bytes());
        }
        h.finalize().to_hex().to_string()
    }
}
