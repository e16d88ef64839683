//! Operators that normalise: softmax along an axis, layers and groups of channels by their moments, losses of softmax.
use super::{OpDef, OpError};
use crate::tensor::Tensor;

mod axes;
mod backward;
mod channels;
mod groups;
mod layer;
mod loss;
mod skip;
mod softmax;

/// The rows of this family.
pub(super) static OPS: &[&OpDef] = &[
    &softmax::SOFTMAX,
    &softmax::LOG_SOFTMAX,
    &softmax::HARDMAX,
    &softmax::BIAS_SOFTMAX,
    &layer::LAYER_NORMALIZATION,
    &layer::MS_LAYER_NORMALIZATION,
    &layer::RMS_NORMALIZATION,
    &layer::SIMPLIFIED_LAYER_NORMALIZATION,
    &layer::MS_SIMPLIFIED_LAYER_NORMALIZATION,
    &skip::SKIP_LAYER_NORMALIZATION,
    &skip::SKIP_SIMPLIFIED_LAYER_NORMALIZATION,
    &skip::EMBED_LAYER_NORMALIZATION,
    &channels::BATCH_NORMALIZATION,
    &channels::LRN,
    &groups::INSTANCE_NORMALIZATION,
    &groups::GROUP_NORMALIZATION,
    &groups::MS_GROUP_NORM,
    &groups::MS_SKIP_GROUP_NORM,
    &axes::LP_NORMALIZATION,
    &axes::MEAN_VARIANCE_NORMALIZATION,
    &loss::NEGATIVE_LOG_LIKELIHOOD_LOSS,
    &loss::SOFTMAX_CROSS_ENTROPY_LOSS,
];

/// Elements from which a piece of the rows is worth a thread.
const PIECE: usize = 1 << 14;

/// The elements of a parameter that must have `n`.
///
/// # Errors
/// [`OpError::Shape`] when it has another number of them.
fn parameter(t: &Tensor, n: usize, name: &str) -> Result<Vec<f64>, OpError> {
    if t.len() != n {
        return Err(OpError::shape(name, format!("{n} elements"), t.shape()));
    }
    Ok(t.data().to_f64())
}

/// Mean and population variance.
fn moments(v: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = v.clone().count() as f64;
    let mean = v.clone().sum::<f64>() / n;
    (mean, v.map(|v| (v - mean) * (v - mean)).sum::<f64>() / n)
}
