//! What a quantised model is measured by: labels where there are any, else agreement with the float model.
use std::sync::Arc;

use super::{Agreement, CompressError, Gathered};
use crate::graph::Graph;
use crate::plan::{RunOptions, Runner};
use crate::session::Outputs;
use crate::tensor::Tensor;

/// Samples and what is right about them.
pub(super) struct Task<'a> {
    samples: &'a [Vec<Tensor>],
    kind: Kind<'a>,
    /// The output that is judged, as the float graph computes it for each sample.
    output: String,
    reference: Vec<Tensor>,
}

enum Kind<'a> {
    Labels(&'a [usize]),
    Agreement(Agreement),
}

/// How good a model is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Score {
    /// Accuracy or agreement, from 0 to 1.
    pub(super) value: f64,
    /// Mean relative error of the judged output: tells two models of equal accuracy apart.
    pub(super) error: f64,
}

impl<'a> Task<'a> {
    /// Runs the float graph once on every sample.
    ///
    /// # Errors
    /// When it does not run, or an output that is to be judged is not there.
    pub(super) fn new(
        data: &'a Gathered,
        graph: &Graph,
        agreement: Agreement,
        run: &RunOptions,
    ) -> Result<Task<'a>, CompressError> {
        let (output, kind) = match &data.labels {
            Some((logits, truths)) => (logits.clone(), Kind::Labels(truths)),
            None => {
                let first = graph.outputs.first().map(|&v| graph.values[v].name.clone());
                let first = first.ok_or_else(|| CompressError::Data { what: "the model has no output".into() })?;
                (first, Kind::Agreement(agreement))
            }
        };
        let all = values(graph, [output.as_str()], &data.measure, run)?;
        let reference: Vec<Tensor> = all.into_iter().flatten().collect();
        if let Some(t) = reference.iter().find(|t| t.as_f32().is_err()) {
            let what = format!("output `{output}` is of {}: only f32 outputs can be compared", t.dtype());
            return Err(CompressError::Data { what });
        }
        Ok(Task { samples: &data.measure, kind, output, reference })
    }

    pub(super) fn len(&self) -> usize {
        self.samples.len()
    }

    pub(super) fn can_measure(&self) -> bool {
        !self.samples.is_empty()
    }

    pub(super) fn metric(&self) -> &'static str {
        match self.kind {
            Kind::Labels(_) => "accuracy",
            Kind::Agreement(Agreement::Cosine) => "cosine",
            Kind::Agreement(Agreement::Top1) => "top-1",
        }
    }

    /// The score of whatever `run` computes.
    ///
    /// # Errors
    /// Those of `run`.
    pub(super) fn score(
        &self,
        mut run: impl FnMut(&[Tensor]) -> Result<Outputs, CompressError>,
    ) -> Result<Score, CompressError> {
        let (mut value, mut error) = (0.0, 0.0);
        for (i, (sample, want)) in self.samples.iter().zip(&self.reference).enumerate() {
            let found = run(sample)?;
            let found = found.iter().find(|(n, _)| *n == self.output).and_then(|(_, t)| t.as_f32().ok());
            // `new` has read the output of the float graph as f32; a pass keeps its name and type.
            let (Some(found), Ok(want)) = (found, want.as_f32()) else { continue };
            let width = self.reference[i].shape().last().copied().unwrap_or(1).max(1);
            value += match self.kind {
                Kind::Labels(truths) => f64::from(u8::from(largest(found) == Some(truths[i]))),
                Kind::Agreement(Agreement::Cosine) => cosine(want, found),
                Kind::Agreement(Agreement::Top1) => {
                    let rows = want.chunks_exact(width).zip(found.chunks_exact(width));
                    let same = rows.filter(|(a, b)| largest(a) == largest(b)).count();
                    same as f64 / (want.len() / width).max(1) as f64
                }
            };
            error += relative(want, found);
        }
        let n = self.len().max(1) as f64;
        Ok(Score { value: value / n, error: error / n })
    }

    /// The score of a graph.
    ///
    /// # Errors
    /// When it does not run.
    pub(super) fn score_graph(&self, graph: &Graph, run: &RunOptions) -> Result<Score, CompressError> {
        let mut one = graph.clone();
        one.outputs.retain(|&v| graph.values[v].name == self.output);
        let mut runner = Runner::new(Arc::new(one), run.clone());
        self.score(|sample| {
            let found = runner.run(&sample.iter().collect::<Vec<_>>())?;
            Ok(found.into_iter().map(|t| (self.output.clone(), t)).collect())
        })
    }
}

/// Values of a graph by name, for each sample.
///
/// # Errors
/// When it does not run.
pub(super) fn values<'n>(
    graph: &Graph,
    names: impl IntoIterator<Item = &'n str>,
    samples: &[Vec<Tensor>],
    run: &RunOptions,
) -> Result<Vec<Vec<Tensor>>, CompressError> {
    let mut looking = graph.clone();
    let id = |name: &str| {
        let made = graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten()).chain(&graph.inputs);
        made.copied().find(|&v| graph.values[v].name == name)
    };
    looking.outputs = names
        .into_iter()
        .map(|name| id(name).ok_or_else(|| CompressError::Data { what: format!("the graph has no value `{name}`") }))
        .collect::<Result<_, _>>()?;
    let mut runner = Runner::new(Arc::new(looking), run.clone());
    samples.iter().map(|s| Ok(runner.run(&s.iter().collect::<Vec<_>>())?)).collect()
}

/// Index of the largest element, the first of equals.
fn largest(v: &[f32]) -> Option<usize> {
    (0..v.len()).reduce(|a, b| if v[b] > v[a] { b } else { a })
}

/// 1 for two vectors of zeros.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths == 0.0 { f64::from(u8::from(a == b)) } else { dot(a, b) / lengths }
}

/// ‖a − b‖ / ‖a‖.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let off: f64 = a.iter().zip(b).map(|(x, y)| square(f64::from(*x) - f64::from(*y))).sum();
    let whole: f64 = a.iter().map(|x| square(f64::from(*x))).sum();
    (off / whole.max(f64::MIN_POSITIVE)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_angle_between_vectors_and_the_first_of_equal_elements() {
        assert_eq!(cosine(&[1.0, 0.0], &[2.0, 0.0]), 1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 3.0]), 0.0);
        assert_eq!((cosine(&[0.0], &[0.0]), cosine(&[0.0], &[1.0])), (1.0, 0.0));
        assert_eq!(largest(&[1.0, 3.0, 3.0]), Some(1));
        assert_eq!(relative(&[3.0, 4.0], &[3.0, 9.0]), 1.0);
    }
}
