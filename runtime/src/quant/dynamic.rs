//! `int8-dynamic`: 8-bit weights, activations quantised as they come; no calibration.
//!
//! Products become `DynamicQuantizeLinear`, `MatMulInteger` or `ConvInteger`, a conversion and a multiplication by both
//! scales, exactly as ONNX Runtime's `quantize_dynamic` writes them, so that it fuses them as its own. An `LSTM` becomes
//! `DynamicQuantizeLSTM`. Weights are `i8`, symmetric, one scale an output channel.
use std::collections::BTreeMap;

use super::edit::{Edit, tensor};
use super::observe::Watch;
use super::weight::{Weight, snr};
use super::{Context, Layer, Scheme, weights};
use crate::graph::ValueId;
use crate::ops::{Attr, MICROSOFT};
use crate::tensor::{DType, Data, Tensor};

/// Dynamic 8-bit.
pub(super) static INT8_DYNAMIC: Scheme = Scheme {
    name: "int8-dynamic",
    doc: "8-bit weights, activations quantised as they come: MatMulInteger, ConvInteger, DynamicQuantizeLSTM",
    calibrated: false,
    widens: false,
    opset: 11,
    watch: |_| Watch::new(),
    apply,
};

/// Codes, scale and zero point of an activation.
type Codes = (ValueId, ValueId, ValueId);

fn apply(edit: &mut Edit, context: &Context<'_>) -> Vec<Layer> {
    let mut activations = BTreeMap::new();
    let mut layers = Vec::new();
    for i in 0..edit.graph.nodes.len() {
        if context.kept(edit, i) {
            continue;
        }
        let done = match edit.standard(i).map(|(op, _)| op) {
            Some("MatMul" | "Gemm") => product(edit, context, i, &mut activations),
            Some("Conv") => convolution(edit, context, i, &mut activations),
            Some("LSTM") => lstm(edit, context, i),
            _ => None,
        };
        layers.extend(done.or_else(|| weights::quantise(edit, context, i)));
    }
    layers
}

/// The quantised form of an activation, one for all its readers.
fn quantised(edit: &mut Edit, x: ValueId, known: &mut BTreeMap<ValueId, Codes>) -> Codes {
    *known.entry(x).or_insert_with(|| {
        let name = edit.name(x);
        let codes = edit.value(&format!("{name}_quantized"));
        let scale = edit.value(&format!("{name}_scale"));
        let zero = edit.value(&format!("{name}_zero_point"));
        let op = ("", "DynamicQuantizeLinear");
        edit.node(op, &format!("{name}_QuantizeLinear"), &[Some(x)], &[codes, scale, zero], []);
        (codes, scale, zero)
    })
}

/// The weight's codes, scale and zero point as constants.
fn constants(edit: &mut Edit, id: ValueId, codes: Tensor, scale: Tensor, zero: Tensor) -> [ValueId; 3] {
    let name = edit.name(id);
    [
        edit.constant(&format!("{name}_quantized"), codes),
        edit.constant(&format!("{name}_scale"), scale),
        edit.constant(&format!("{name}_zero_point"), zero),
    ]
}

/// `sum · (scale of x · scale of w)`, and the bias, into `to`.
fn to_float(
    edit: &mut Edit,
    label: &str,
    sum: ValueId,
    [x_scale, w_scale]: [ValueId; 2],
    bias: Option<ValueId>,
    to: ValueId,
) {
    let cast = edit.value(&format!("{label}_cast_output"));
    let float = [("to", Attr::Int(i64::from(DType::F32.onnx())))];
    edit.node(("", "Cast"), &format!("{label}_cast"), &[Some(sum)], &[cast], float);
    let scales = edit.value(&format!("{label}_scales_mul_output"));
    edit.node(("", "Mul"), &format!("{label}_scales_mul"), &[Some(x_scale), Some(w_scale)], &[scales], []);
    let scaled = if bias.is_some() { edit.value(&format!("{label}_scaled_output")) } else { to };
    edit.node(("", "Mul"), &format!("{label}_output_scale_mul"), &[Some(cast), Some(scales)], &[scaled], []);
    if bias.is_some() {
        edit.node(("", "Add"), &format!("{label}_bias_add"), &[Some(scaled), bias], &[to], []);
    }
}

fn product(edit: &mut Edit, context: &Context<'_>, i: usize, known: &mut BTreeMap<ValueId, Codes>) -> Option<Layer> {
    let (op, attrs) = edit.standard(i)?;
    let x = edit.graph.nodes[i].inputs[0].filter(|&x| edit.graph.values[x].constant.is_none())?;
    let (id, w) = edit.floats(i, 1)?;
    let [rows, columns] = *w.shape() else { return None };
    if w.len() < weights::FEWEST {
        return None;
    }
    let gemm = op == "Gemm";
    let int = |name: &str| attrs.int(name, 0).unwrap_or(0) != 0;
    let factor = |name: &str| attrs.float(name, 1.0).unwrap_or(1.0);
    if gemm && int("transA") {
        return None;
    }
    let turned = gemm && int("transB");
    let (k, n) = if turned { (columns, rows) } else { (rows, columns) };
    let (alpha, beta) = if gemm { (factor("alpha"), factor("beta")) } else { (1.0, 1.0) };
    let given = w.as_f32().ok()?;
    // [K, N], as MatMulInteger takes it.
    let at = |r: usize, c: usize| alpha * if turned { given[c * k + r] } else { given[r * n + c] };
    let values: Vec<f32> = (0..k * n).map(|e| at(e / n, e % n)).collect();
    let bias = match edit.graph.nodes[i].inputs.get(2).copied().flatten() {
        Some(b) if gemm && beta == 1.0 => Some(b),
        Some(_) if gemm => {
            let (b, t) = edit.floats(i, 2)?;
            let scaled = t.as_f32().ok()?.iter().map(|v| v * beta).collect();
            let name = edit.name(b);
            Some(edit.constant(&format!("{name}_scaled"), tensor(t.shape(), scaled)))
        }
        _ => None,
    };
    let weight = Weight::of(&tensor(&[k, n], values.clone()), &values, Some(1), context.settings.reduced, |_| 0.0);
    let (scale, zero) = weight.scale_and_zero();
    let [w_codes, w_scale, w_zero] = constants(edit, id, weight.tensor(), scale, zero);
    let (x_codes, x_scale, x_zero) = quantised(edit, x, known);
    let layer = edit.layer(i, given.len(), Some(snr(&values, &weight.reals())));
    let label = layer.name.clone();
    let to = edit.graph.nodes[i].outputs[0]?;
    edit.graph.nodes[i].outputs[0] = None;
    let sum = edit.value(&format!("{}_output_quantized", layer.output));
    let operands = [Some(x_codes), Some(w_codes), Some(x_zero), Some(w_zero)];
    edit.node(("", "MatMulInteger"), &format!("{label}_quant"), &operands, &[sum], []);
    to_float(edit, &label, sum, [x_scale, w_scale], bias, to);
    Some(layer)
}

fn convolution(
    edit: &mut Edit,
    context: &Context<'_>,
    i: usize,
    known: &mut BTreeMap<ValueId, Codes>,
) -> Option<Layer> {
    let (_, attrs) = edit.standard(i)?;
    let x = edit.graph.nodes[i].inputs[0].filter(|&x| edit.graph.values[x].constant.is_none())?;
    let (id, w) = edit.floats(i, 1)?;
    if w.len() < weights::FEWEST {
        return None;
    }
    // Scale and bias of a channel, broadcast over what the convolution makes: [N, C, …].
    let mut shape = vec![1; w.shape().len() - 1];
    shape[0] = w.shape()[0];
    let bias = match edit.graph.nodes[i].inputs.get(2).copied().flatten() {
        None => None,
        Some(_) => {
            let (b, t) = edit.floats(i, 2)?;
            let name = edit.name(b);
            Some(edit.constant(&format!("{name}_reshaped"), tensor(&shape, t.as_f32().ok()?.to_vec())))
        }
    };
    let values = w.as_f32().ok()?;
    let weight = Weight::of(&w, values, Some(0), context.settings.reduced, |_| 0.0);
    let zero = Tensor::new(&[], Data::I8(vec![0])).ok()?;
    let scale = tensor(&shape, weight.scale.clone());
    let [w_codes, w_scale, w_zero] = constants(edit, id, weight.tensor(), scale, zero);
    let (x_codes, x_scale, x_zero) = quantised(edit, x, known);
    let layer = edit.layer(i, values.len(), Some(snr(values, &weight.reals())));
    let label = layer.name.clone();
    let to = edit.graph.nodes[i].outputs[0]?;
    edit.graph.nodes[i].outputs[0] = None;
    let sum = edit.value(&format!("{}_output_quantized", layer.output));
    let operands = [Some(x_codes), Some(w_codes), Some(x_zero), Some(w_zero)];
    let made = edit.node(("", "ConvInteger"), &format!("{label}_quant"), &operands, &[sum], []);
    super::prepare::copy_attrs(&mut edit.graph.nodes[made], &attrs);
    to_float(edit, &label, sum, [x_scale, w_scale], bias, to);
    Some(layer)
}

fn lstm(edit: &mut Edit, context: &Context<'_>, i: usize) -> Option<Layer> {
    let (_, attrs) = edit.standard(i)?;
    if attrs.int("layout", 0) != Ok(0) {
        return None;
    }
    let mut elements = 0;
    let mut least = f64::INFINITY;
    let mut operands = edit.graph.nodes[i].inputs.clone();
    operands.resize(8, None);
    let mut tail = Vec::new();
    for slot in [1, 2] {
        let (id, w) = edit.floats(i, slot)?;
        let [d, gates, k] = *w.shape() else { return None };
        let values = w.as_f32().ok()?;
        let rows = tensor(&[d * gates, k], values.to_vec());
        let weight = Weight::of(&rows, values, Some(0), context.settings.reduced, |_| 0.0);
        least = least.min(snr(values, &weight.reals()));
        elements += values.len();
        // [D, K, 4H]: each direction turned.
        let turned = |e: usize| weight.codes[(e / (k * gates) * gates + e % gates) * k + e / gates % k];
        let codes = Tensor::new(&[d, k, gates], Data::I8((0..w.len()).map(turned).collect())).ok()?;
        let zero = Tensor::new(&[d, gates], Data::I8(vec![0; d * gates])).ok()?;
        let [codes, scale, zero] = constants(edit, id, codes, tensor(&[d, gates], weight.scale.clone()), zero);
        operands[slot] = Some(codes);
        tail.extend([Some(scale), Some(zero)]);
    }
    operands.extend(tail);
    let layer = edit.layer(i, elements, Some(least));
    let outputs = std::mem::take(&mut edit.graph.nodes[i].outputs);
    let made = edit.node((MICROSOFT, "DynamicQuantizeLSTM"), &format!("{}_quant", layer.name), &operands, &[], []);
    super::prepare::copy_attrs(&mut edit.graph.nodes[made], &attrs);
    edit.graph.nodes[made].outputs = outputs;
    Some(layer)
}
