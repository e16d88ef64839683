//! `int8-weights`: 8-bit weights behind `DequantizeLinear`, computed with as floats: a fourth of the size, no calibration.
//!
//! The other schemes use it for the operators they have no form of their own for.
use super::edit::Edit;
use super::observe::Watch;
use super::qdq::dequantised;
use super::weight::{Weight, snr};
use super::{Context, Layer, Scheme};

/// Weight-only 8-bit.
pub(super) static INT8_WEIGHTS: Scheme = Scheme {
    name: "int8-weights",
    doc: "8-bit weights, one scale a channel, behind DequantizeLinear; activations in f32",
    calibrated: false,
    widens: false,
    opset: 1,
    watch: |_| Watch::new(),
    apply,
};

fn apply(edit: &mut Edit, context: &Context<'_>) -> Vec<Layer> {
    let mut layers = Vec::new();
    for i in 0..edit.graph.nodes.len() {
        if !context.kept(edit, i) {
            layers.extend(quantise(edit, context, i));
        }
    }
    layers
}

/// Elements below which a weight is not worth the nodes that dequantise it.
pub(super) const FEWEST: usize = 256;

/// Operands of a node that are weights, and the axis of their channels.
fn operands(edit: &Edit, node: usize) -> &'static [(usize, Option<usize>)] {
    let Some((op, attrs)) = edit.standard(node) else { return &[] };
    match op {
        "Conv" => &[(1, Some(0))],
        // Input channels, groups and output channels are one behind the other.
        "ConvTranspose" => &[(1, None)],
        "Gemm" if attrs.int("transB", 0).is_ok_and(|t| t != 0) => &[(1, Some(0))],
        "Gemm" => &[(1, Some(1))],
        "MatMul" => match edit.floats(node, 1) {
            Some((_, w)) if w.shape().len() == 2 => &[(1, Some(1))],
            _ => &[(1, None)],
        },
        "LSTM" | "GRU" | "RNN" => &[(1, Some(1)), (2, Some(1))],
        "Gather" if attrs.int("axis", 0).is_ok_and(|a| a == 0) => &[(0, Some(0))],
        _ => &[],
    }
}

/// Quantises the weights of one node; `None` when it has none of a size worth it.
pub(super) fn quantise(edit: &mut Edit, context: &Context<'_>, node: usize) -> Option<Layer> {
    let mut elements = 0;
    let mut least = f64::INFINITY;
    for &(slot, axis) in operands(edit, node) {
        let Some((id, w)) = edit.floats(node, slot) else { continue };
        let values = w.as_f32().ok()?;
        if values.len() < FEWEST || axis.is_some_and(|a| a >= w.shape().len()) {
            continue;
        }
        let weight = Weight::of(&w, values, axis, context.settings.reduced, |_| 0.0);
        let name = edit.name(id);
        let result = dequantised(edit, &name, weight.tensor(), weight.scale_and_zero(), weight.axis);
        least = least.min(snr(values, &weight.reals()));
        elements += values.len();
        // Every other reader of the weight that takes it the same way reads the same codes.
        for other in 0..edit.graph.nodes.len() {
            let same = operands(edit, other).contains(&(slot, axis)) && !context.kept(edit, other);
            let inputs = &mut edit.graph.nodes[other].inputs;
            if same && inputs.get(slot) == Some(&Some(id)) {
                inputs[slot] = Some(result);
            }
        }
    }
    (elements > 0).then(|| edit.layer(node, elements, Some(least)))
}
