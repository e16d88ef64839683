//! By how much a model answers otherwise once its paths are folded into weights that are quantised again: measured on
//! samples, since no bound of the rounding says it.
use std::sync::Arc;

use crate::graph::Graph;
use crate::plan::{PlanError, RunOptions, Runner};
use crate::tensor::Tensor;

/// Answers of a folded model beside those of the same one with its paths beside the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moved {
    /// Rows compared: all axes of the answers but the last.
    pub rows: usize,
    /// Largest absolute difference of two numbers.
    pub largest: f32,
    /// Largest magnitude of a number with the paths beside.
    pub of: f32,
    /// Smallest cosine between two rows, 1 where both are all 0.
    pub cosine: f64,
    /// Rows whose largest number is at the same place in both.
    pub same_top: usize,
}

impl Moved {
    /// `beside` and `folded` are the same answers of both models, sample for sample.
    ///
    /// # Panics
    /// When two of a pair differ in length, or rows are empty.
    pub fn of<'a>(pairs: impl IntoIterator<Item = (&'a [f32], &'a [f32], usize)>) -> Moved {
        let mut out = Moved { rows: 0, largest: 0.0, of: 0.0, cosine: 1.0, same_top: 0 };
        for (beside, folded, columns) in pairs {
            assert_eq!(beside.len(), folded.len(), "answers of the same model have the same shape");
            for (a, b) in beside.chunks_exact(columns).zip(folded.chunks_exact(columns)) {
                let far = a.iter().zip(b).map(|(a, b)| (a - b).abs());
                // A number that is none is as far away as can be.
                out.largest = far.fold(out.largest, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) });
                out.of = a.iter().fold(out.of, |m, v| m.max(v.abs()));
                let dot =
                    |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
                let (aa, bb) = (dot(a, a), dot(b, b));
                let cosine = if aa == 0.0 && bb == 0.0 { 1.0 } else { dot(a, b) / (aa * bb).sqrt() };
                out.cosine = if cosine.is_finite() { out.cosine.min(cosine) } else { -1.0 };
                let top = |v: &[f32]| (0..v.len()).fold(0, |top, i| if v[i] > v[top] { i } else { top });
                out.same_top += usize::from(top(a) == top(b));
                out.rows += 1;
            }
        }
        out
    }
}

/// A graph that is asked for some of its values, one sample after the other.
pub struct Asked {
    runner: Runner,
}

impl Asked {
    /// For values of those names; what the graph has not is left out.
    pub fn new(graph: &Graph, names: &[&str]) -> Asked {
        let mut asked = graph.clone();
        asked.outputs = names.iter().filter_map(|n| graph.values.iter().position(|v| v.name == *n)).collect();
        asked.prune();
        Asked { runner: Runner::new(Arc::new(asked), RunOptions::default()) }
    }

    /// The values for the inputs of one sample in the graph's order.
    ///
    /// # Errors
    /// [`PlanError`] when the graph does not run on them.
    pub fn of(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, PlanError> {
        self.runner.run(inputs)
    }
}

/// The graph's inputs of a sample, in the graph's order.
///
/// # Errors
/// The name of one that the sample has not.
pub fn ordered<'s>(graph: &Graph, sample: &'s [(String, Tensor)]) -> Result<Vec<&'s Tensor>, String> {
    let given = |name: String| sample.iter().find(|(n, _)| *n == name).map(|(_, t)| t).ok_or(name);
    graph.input_names().into_iter().map(given).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_difference_the_smallest_cosine_and_equal_places_of_the_largest_are_those_of_all_rows() {
        let beside = [1.0, 0.0, 0.0, 2.0, 3.0, 4.0];
        let folded = [1.0, 0.5, 0.0, 2.0, 4.0, 3.0];
        let moved = Moved::of([(&beside[..], &folded[..], 2), (&[0.0; 2], &[0.0; 2], 2)]);
        assert_eq!((moved.rows, moved.largest, moved.of, moved.same_top), (4, 1.0, 4.0, 3));
        // (1, 0) and (1, 0.5); (3, 4) and (4, 3) have 24 / 25.
        assert!((moved.cosine - 1.0 / 1.25f64.sqrt()).abs() < 1e-12, "{moved:?}");
        let lost = Moved::of([(&[1.0, 2.0][..], &[f32::NAN, 2.0][..], 2)]);
        assert_eq!((lost.largest, lost.cosine), (f32::INFINITY, -1.0));
    }
}
