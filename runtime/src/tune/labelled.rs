//! Labelled samples of a data set as examples for a graph.
use std::collections::BTreeMap;

use super::{Example, Examples, Target, TuneError, Wants};
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
    wants: Wants,
}

impl<'a> Labelled<'a> {
    /// The rows as examples for a loss that `wants` that of them; `class_of` tells the class of a label, and
    /// `preprocessor` makes the inputs of rows that do not hold them.
    ///
    /// # Errors
    /// [`TuneError::Data`] for a label that is no class where classes are learned, and for rows that need a preprocessor
    /// where there is none.
    pub fn new(
        graph: &Graph,
        preprocessor: Option<&'a Preprocessor>,
        rows: impl IntoIterator<Item = &'a Row>,
        wants: Wants,
        class_of: ClassOf<'_>,
    ) -> Result<Labelled<'a>, TuneError> {
        let data = |what: String| TuneError::Data { what };
        let mut out = Vec::new();
        for row in rows {
            let unknown = || data(format!("the data says `{}`, which is no label of the model", row.label));
            let class = (wants == Wants::Classes).then(|| class_of(&row.label).ok_or_else(unknown)).transpose()?;
            if row.tensors.is_none() && preprocessor.is_none() {
                return Err(data(
                    "an .onnx file does not say how to make its inputs from a sample: give --config DIR with \
                     preprocessor_config.json or tokenizer.json, or samples that are .npz files of the inputs"
                        .into(),
                ));
            }
            out.push((row, class));
        }
        Ok(Labelled { preprocessor, inputs: graph.input_names(), rows: out, wants })
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
        let target = match (self.wants, class, named.remove(TARGET)) {
            (Wants::Pairs, ..) => Target::None,
            (_, Some(class), _) => Target::Class(*class),
            (_, None, Some(t)) => Target::Values(t),
            (_, None, None) => {
                return Err(bad(format!("this objective needs a member `{TARGET}` in every .npz sample")));
            }
        };
        let take = |name: &String| {
            let has = named.keys().cloned().collect::<Vec<_>>().join(", ");
            named.get(name).cloned().ok_or_else(|| bad(format!("there is no input `{name}` in it; it has {has}")))
        };
        let inputs = self.inputs.iter().map(take).collect::<Result<Vec<Tensor>, _>>()?;
        let single = |t: &&Tensor| t.shape().first() != Some(&2);
        if self.wants == Wants::Pairs
            && let Some(t) = inputs.iter().find(single)
        {
            let found = t.shape();
            return Err(bad(format!(
                "this objective takes pairs, two rows of every input, in an .npz sample; an input of it is {found:?}"
            )));
        }
        Ok(Example { inputs, target })
    }

    fn digest(&self) -> String {
        let mut h = blake3::Hasher::new();
        // Lengths go before what they are of, so that no two lists of samples have the same bytes.
        let mut add = |part: Option<&[u8]>| {
            h.update(&part.map_or(u64::MAX, |p| p.len() as u64).to_le_bytes()).update(part.unwrap_or_default());
        };
        add(self.preprocessor.map(|p| p.digest().as_bytes()));
        for (row, class) in &self.rows {
            // All of a sample: a field more would have to be named here.
            let Row { split: _, label, image, audio, text, sensor, tensors } = row;
            add(Some(label.as_bytes()));
            add(class.map(|c| (c as u64).to_le_bytes()).as_ref().map(|c| &c[..]));
            for part in [image, audio, tensors] {
                add(part.as_deref());
            }
            for part in [text, sensor] {
                add(part.as_deref().map(str::as_bytes));
            }
        }
        h.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{BundleWriter, Dim, GraphEntry, Manifest, Port};
    use crate::tensor::DType;

    /// What makes one reading a step of `x` out of lines of a sensor, with that mean.
    fn preprocessor(mean: f64) -> Preprocessor {
        let mut manifest = Manifest::new("readings", "1.0.0", "2026-11-23T18:00:00Z");
        let shape = vec![Dim::Symbol("N".into()), Dim::Fixed(1), Dim::Fixed(2)];
        let modality = Some("sensor".to_string());
        manifest.inputs = vec![Port { name: "x".into(), dtype: DType::F32, shape, modality, of: None }];
        let path = "onnx/model.onnx".to_string();
        manifest.graphs.push(GraphEntry { name: "main".into(), path, role: "main".into(), state: vec![] });
        let mut writer = BundleWriter::new(manifest);
        writer.add("onnx/model.onnx", "graph", b"not read here".to_vec()).unwrap();
        let channel = serde_json::json!({"name": "x", "unit": "g", "mean": mean, "scale": 1});
        let sensors =
            serde_json::json!({"schema": "hone.sensors/1", "rate_hz": 10, "window": 2, "channels": [channel]});
        writer.add("sensors.json", "config", sensors.to_string().into_bytes()).unwrap();
        Preprocessor::from_bundle(&writer.finish().unwrap()).unwrap()
    }

    #[test]
    fn examples_are_told_from_others_by_everything_they_are_made_of_and_by_what_makes_tensors_of_them() {
        let mut graph = Graph::default();
        let x = graph.add_value("x", None, None);
        graph.inputs.push(x);
        assert_eq!(DType::F32, preprocessor(0.0).prepare(&readings("x\n1\n2\n").sample()).unwrap().0[0].1.dtype());
        let digest = |p: &Preprocessor, row: &Row| {
            Labelled::new(&graph, Some(p), [row], Wants::Classes, &|l| l.parse().ok()).unwrap().digest()
        };
        let (own, row) = (preprocessor(0.0), readings("x\n1\n2\n"));
        let first = digest(&own, &row);
        assert_eq!(first, digest(&preprocessor(0.0), &row.clone()));
        let others = [
            digest(&own, &readings("x\n1\n3\n")),
            digest(&preprocessor(0.5), &row),
            digest(&own, &Row { label: "2".into(), ..row.clone() }),
            digest(&own, &Row { sensor: None, text: row.sensor.clone(), ..row.clone() }),
            digest(&own, &Row { image: Some(b"a".to_vec()), ..row.clone() }),
            digest(&own, &Row { audio: Some(b"a".to_vec()), ..row.clone() }),
            digest(&own, &Row { tensors: Some(b"a".to_vec()), ..row.clone() }),
        ];
        for (i, other) in others.iter().enumerate() {
            assert_ne!(first, *other, "{i}");
            assert!(!others[..i].contains(other), "{i}");
        }
    }

    fn readings(lines: &str) -> Row {
        Row { label: "1".into(), sensor: Some(lines.into()), ..Row::default() }
    }
}
