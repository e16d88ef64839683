//! Correction of the shift that rounded weights give the mean of a result.
//!
//! Rounding moves the mean of output channel `m` by `Σ (w' - w) · E[x]`; that much is taken off its bias. `E[x]` is the mean of
//! the input's channel over the calibration samples (at the border of a padded convolution it is a little less).
//! Source: Nagel et al., Data-Free Quantization, 2019.
use super::Context;
use super::edit::Edit;
use super::weight::Weight;

/// What the mean of each output channel is too large by; `None` when the means of the input are not known.
pub(super) fn shift(
    edit: &Edit,
    context: &Context<'_>,
    node: usize,
    weight: &Weight,
    exact: &[f32],
) -> Option<Vec<f64>> {
    let (op, attrs) = edit.standard(node)?;
    let mean = context.stats(edit, edit.graph.nodes[node].inputs[0]?)?.channel_mean();
    let channels = weight.shape[weight.axis?];
    let off: Vec<f64> = weight.reals().iter().zip(exact).map(|(a, b)| f64::from(a - b)).collect();
    let mut out = vec![0.0; channels];
    if op == "Conv" {
        let group = usize::try_from(attrs.int("group", 1).ok()?).ok()?.max(1);
        let (per_group, inner) = (weight.shape[1], weight.shape[2..].iter().product::<usize>().max(1));
        if mean.len() != group * per_group || !channels.is_multiple_of(group) {
            return None;
        }
        for (e, v) in off.iter().enumerate() {
            let (m, c) = (e / (per_group * inner), e / inner % per_group);
            out[m] += v * mean[m / (channels / group) * per_group + c];
        }
        return Some(out);
    }
    let (rows, columns) = (weight.shape[0], weight.shape[1]);
    let along_rows = weight.axis == Some(0);
    if mean.len() != if along_rows { columns } else { rows } {
        return None;
    }
    for (e, v) in off.iter().enumerate() {
        let (r, c) = (e / columns, e % columns);
        let (m, k) = if along_rows { (r, c) } else { (c, r) };
        out[m] += v * mean[k];
    }
    Some(out)
}
