//! `int8-qdq`: static quantisation written as `QuantizeLinear` and `DequantizeLinear` around float operators.
//!
//! Where the pairs stand is what ONNX Runtime's quantizer writes and its optimiser (and our plan) turns into integer
//! kernels: around `Conv`, `MatMul`, `Gemm`, additions, pools and movements, with no pair between a product and the
//! rectifier after it, whose work the range of the codes does. Activations are `u8` with a zero point, weights `i8`,
//! symmetric, one scale an output channel, biases `i32` with the product of both scales. It departs from that quantizer in
//! two places: the result of a `MatMul` or `Gemm` gets a pair only where somebody reads it quantised, so that the float
//! operators of a transformer read floats; and a float reader of a float value is left alone.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::edit::{Edit, tensor};
use super::observe::Watch;
use super::range::{self, Codes};
use super::weight::{Weight, snr};
use super::{Context, Layer, Scheme, bias, weights};
use crate::graph::ValueId;
use crate::ops::{Attr, Attrs, MICROSOFT};
use crate::tensor::{Data, Tensor};

/// Static 8-bit.
pub(super) static INT8_QDQ: Scheme = Scheme {
    name: "int8-qdq",
    doc: "static 8-bit weights and activations, as QuantizeLinear and DequantizeLinear around float operators",
    calibrated: true,
    widens: false,
    opset: 10,
    watch,
    apply,
};

/// Operators that only move elements: their result has the codes of what they move.
const MOVES: &[&str] = &[
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "MaxPool",
    "Slice",
    "Gather",
    "Split",
    "Pad",
    "Resize",
];
/// Operators of one quantised operand that have a result of their own range.
const UNARY: &[&str] = &["AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"];
/// Operators that are quantised when all their operands are.
const JOINS: &[&str] = &["Add", "Mul", "Concat"];

/// What becomes of the graph.
#[derive(Default)]
struct Marks {
    /// Values that get a pair; `Some` names the value whose codes they share.
    pairs: BTreeMap<ValueId, Option<ValueId>>,
    /// Nodes that compute on codes.
    nodes: BTreeSet<usize>,
    /// Rectifiers the range of the codes replaces.
    absorbed: BTreeSet<usize>,
}

/// The constant operands of a product.
struct Product {
    weight_axis: Option<usize>,
    has_weight: bool,
}

/// Reads a product that can be quantised.
fn product(edit: &Edit, node: usize) -> Option<(&'static str, Product)> {
    let (op, attrs) = edit.standard(node)?;
    let inputs = &edit.graph.nodes[node].inputs;
    let constant =
        |slot: usize| inputs.get(slot).copied().flatten().is_some_and(|v| edit.graph.values[v].constant.is_some());
    if constant(0) || inputs.first().copied().flatten().is_none() {
        return None;
    }
    let weight = edit.floats(node, 1);
    match op {
        "Conv" => weight.map(|_| (op, Product { weight_axis: Some(0), has_weight: true })),
        "Gemm" => {
            let (_, w) = weight?;
            let turned = attrs.int("transB", 0).ok()? != 0;
            (w.shape().len() == 2).then(|| {
                let weight_axis = Some(if turned { 0 } else { 1 });
                (op, Product { weight_axis, has_weight: true })
            })
        }
        "MatMul" => match weight {
            Some((_, w)) => Some((op, Product { weight_axis: (w.shape().len() == 2).then_some(1), has_weight: true })),
            None => (!constant(1)).then_some((op, Product { weight_axis: None, has_weight: false })),
        },
        _ => None,
    }
}

/// The activations of everything that could be quantised.
fn watch(edit: &Edit) -> Watch {
    let marks = mark(edit, &|_| false, &|_| true);
    let mut out: Watch = marks.pairs.keys().map(|&v| (v, None)).collect();
    // What an absorbed rectifier hides is needed where the search keeps its product in f32.
    for n in edit.graph.nodes.iter().filter(|n| matches!(n.op.name(), "Relu" | "Clip")) {
        out.extend(n.outputs.iter().flatten().map(|&v| (v, None)));
    }
    for (i, n) in edit.graph.nodes.iter().enumerate() {
        let Some((op, _)) = product(edit, i) else { continue };
        let axis = if op == "Conv" { 1 } else { -1 };
        if let Some(x) = n.inputs[0] {
            out.insert(x, Some(axis));
        }
        out.extend(n.outputs.iter().flatten().map(|&v| (v, None)).filter(|(v, _)| !marks.pairs.contains_key(v)));
    }
    out
}

/// Decides which values get a pair. `kept` are nodes to leave alone, `known` tells whether a value's range is known and
/// may be quantised.
fn mark(edit: &Edit, kept: &dyn Fn(usize) -> bool, known: &dyn Fn(ValueId) -> bool) -> Marks {
    let graph = &edit.graph;
    let uses = edit.uses();
    let wanted = wanted(edit, kept);
    let mut marks = Marks::default();
    let constant = |v: ValueId| graph.values[v].constant.is_some();
    for (i, n) in graph.nodes.iter().enumerate() {
        let Some((op, attrs)) = edit.standard(i) else { continue };
        let (Some(Some(x)), Some(Some(y))) = (n.inputs.first().copied(), n.outputs.first().copied()) else { continue };
        if kept(i) {
            continue;
        }
        if let Some((_, p)) = product(edit, i) {
            let operands: Vec<ValueId> =
                if p.has_weight { vec![x] } else { n.inputs.iter().flatten().copied().collect() };
            let result = op == "Conv" || wanted.contains(&y);
            if operands.iter().any(|&v| !known(v)) || op == "Conv" && !known(y) {
                continue;
            }
            for &v in &operands {
                marks.pairs.entry(v).or_insert(None);
            }
            if result && known(y) {
                marks.pairs.insert(y, None);
            }
            marks.nodes.insert(i);
            continue;
        }
        let quantised = |v: ValueId| marks.pairs.contains_key(&v);
        if matches!(op, "Relu" | "Clip") && quantised(x) && known(y) {
            let own = marks.pairs.get(&x) == Some(&None);
            let made = graph.nodes.iter().position(|n| n.outputs.first() == Some(&Some(x)));
            let by_product = made.is_some_and(|m| marks.nodes.contains(&m));
            let alone = uses[x].len() == 1 && !edit.is_output(x);
            if own && by_product && alone && holds_zero(edit, i, op, &attrs) {
                marks.pairs.remove(&x);
                marks.absorbed.insert(i);
            } else {
                marks.nodes.insert(i);
            }
            marks.pairs.insert(y, None);
        } else if MOVES.contains(&op)
            && quantised(x)
            && moves(edit, i, op, &attrs)
            && n.outputs.iter().flatten().all(|&v| known(v))
        {
            marks.pairs.extend(n.outputs.iter().flatten().map(|&v| (v, Some(x))));
            marks.nodes.insert(i);
        } else if UNARY.contains(&op) && quantised(x) && known(y) {
            marks.pairs.insert(y, None);
            marks.nodes.insert(i);
        } else if JOINS.contains(&op)
            && known(y)
            && n.inputs.iter().flatten().all(|&v| quantised(v) && !constant(v))
            && n.inputs.len() >= 2
        {
            marks.pairs.insert(y, None);
            marks.nodes.insert(i);
        }
    }
    marks
}

/// Values that a product reads, directly or through operators that hand codes on.
fn wanted(edit: &Edit, kept: &dyn Fn(usize) -> bool) -> BTreeSet<ValueId> {
    let constant = |v: ValueId| edit.graph.values[v].constant.is_some();
    let mut out = BTreeSet::new();
    for (i, n) in edit.graph.nodes.iter().enumerate().rev() {
        let Some((op, _)) = edit.standard(i) else { continue };
        if kept(i) {
            continue;
        }
        let made = n.outputs.iter().flatten().any(|v| out.contains(v));
        let reads = match op {
            _ if product(edit, i).is_some() => 2,
            _ if made && (matches!(op, "Relu" | "Clip") || MOVES.contains(&op) || UNARY.contains(&op)) => 1,
            // With a constant operand it is no join: a bias added to a product stays f32.
            _ if made && JOINS.contains(&op) && !n.inputs.iter().flatten().any(|&v| constant(v)) => n.inputs.len(),
            _ => 0,
        };
        out.extend(n.inputs.iter().take(reads).flatten().filter(|&&v| !constant(v)));
    }
    out
}

/// Whether the range of the codes, which always holds 0, can do what the rectifier does.
fn holds_zero(edit: &Edit, node: usize, op: &str, attrs: &Attrs) -> bool {
    if op == "Relu" {
        return true;
    }
    let bound = |slot: usize, name: &str, missing: f32| match edit.graph.nodes[node].inputs.get(slot).copied().flatten()
    {
        Some(_) => edit.floats(node, slot).map(|(_, t)| t.data().to_f64()[0]),
        None => attrs.float(name, missing).ok().map(f64::from),
    };
    let low = bound(1, "min", f32::NEG_INFINITY).is_some_and(|v| v <= 0.0);
    low && bound(2, "max", f32::INFINITY).is_some_and(|v| v >= 0.0)
}

/// Whether this use of a moving operator keeps codes as they are.
fn moves(edit: &Edit, node: usize, op: &str, attrs: &Attrs) -> bool {
    let text = |name: &str, default: &str| match attrs.map.get(name) {
        Some(Attr::Str(s)) => s.clone(),
        _ => default.to_string(),
    };
    match op {
        // Codes of eight bits since version 12.
        "MaxPool" => edit.opset >= 12 && edit.graph.nodes[node].outputs.iter().skip(1).all(Option::is_none),
        "Pad" => {
            let zero = match edit.graph.nodes[node].inputs.get(2).copied().flatten() {
                None => attrs.float("value", 0.0).is_ok_and(|v| v == 0.0),
                Some(_) => edit.operand(node, 2).is_some_and(|(_, t)| t.data().to_f64().iter().all(|&v| v == 0.0)),
            };
            edit.opset >= 11 && (text("mode", "constant") != "constant" || zero)
        }
        // Nearest neighbours are elements; means of them are rounded to codes.
        "Resize" => edit.opset >= 11 && matches!(text("mode", "nearest").as_str(), "nearest" | "linear"),
        _ => true,
    }
}

fn apply(edit: &mut Edit, context: &Context<'_>) -> Vec<Layer> {
    let names: Vec<String> = edit.graph.nodes.iter().map(|n| n.name.clone()).collect();
    let marks = {
        let kept = |i: usize| context.keep.contains(&names[i]);
        let known = |v: ValueId| {
            context.stats(edit, v).is_some() && !context.settings.fixed.contains(&edit.graph.values[v].name)
        };
        mark(edit, &kept, &known)
    };
    let codes: BTreeMap<ValueId, Codes> = marks
        .pairs
        .keys()
        .filter_map(|&v| {
            let mut root = v;
            while let Some(Some(from)) = marks.pairs.get(&root) {
                root = *from;
            }
            let stats = context.stats(edit, root)?;
            Some((v, range::codes(context.settings.calibration, &stats.histogram)))
        })
        .collect();

    let mut layers: BTreeMap<usize, Layer> = BTreeMap::new();
    for &i in &marks.nodes {
        layers.insert(i, edit.layer(i, 0, None));
    }

    // Before values change hands: a product's operands are found by the values it reads now.
    let mut weights: BTreeMap<(ValueId, Option<usize>), (ValueId, Weight)> = BTreeMap::new();
    for &i in &marks.nodes {
        let Some((op, p)) = product(edit, i) else { continue };
        if !p.has_weight {
            continue;
        }
        let scale = edit.graph.nodes[i].inputs[0].and_then(|x| codes.get(&x)).map_or(1.0, |c| c.scale);
        let (elements, ratio) = constants(edit, context, (i, op), p.weight_axis, scale, &mut weights);
        if let Some(layer) = layers.get_mut(&i) {
            (layer.weight_elements, layer.weight_snr_db) = (elements, Some(ratio));
        }
    }

    for &i in &marks.absorbed {
        let (from, to) = (edit.graph.nodes[i].inputs[0], edit.graph.nodes[i].outputs[0]);
        let maker = edit.graph.nodes.iter().position(|n| n.outputs.first() == Some(&from));
        edit.graph.nodes[i].outputs[0] = None;
        if let (Some(maker), Some(to)) = (maker, to) {
            edit.graph.nodes[maker].outputs[0] = Some(to);
            if let Some(layer) = layers.get_mut(&maker) {
                layer.output = edit.name(to);
                layer.quantised_output = edit.name(to);
            }
        }
    }

    let uses = edit.uses();
    let mut written: BTreeMap<ValueId, (ValueId, ValueId)> = BTreeMap::new();
    let mut stands_for: BTreeMap<String, String> = BTreeMap::new();
    for (&v, shared) in &marks.pairs {
        let Some(&code) = codes.get(&v) else { continue };
        let root = shared.map_or(v, |mut from| {
            while let Some(Some(next)) = marks.pairs.get(&from) {
                from = *next;
            }
            from
        });
        let root_name = edit.name(root);
        let (scale, zero) = *written.entry(root).or_insert_with(|| {
            let zero = Tensor::new(&[], Data::U8(vec![code.zero])).expect("one element");
            (
                edit.scalar(&format!("{root_name}_scale"), code.scale),
                edit.constant(&format!("{root_name}_zero_point"), zero),
            )
        });
        let maker = edit.graph.nodes.iter().position(|n| n.outputs.contains(&Some(v)));
        let by_codes = maker.is_some_and(|m| marks.nodes.contains(&m));
        let name = edit.name(v);
        let readers: Vec<_> = uses[v].iter().filter(|u| by_codes || marks.nodes.contains(&u.node)).copied().collect();
        let (source, result) = if edit.is_output(v) && by_codes {
            let source = edit.value(&format!("{name}_QuantizeLinear_Input"));
            let slot = edit.graph.nodes[maker.expect("made by codes")].outputs.iter_mut().find(|o| **o == Some(v));
            *slot.expect("its maker lists it") = Some(source);
            (source, v)
        } else {
            (v, edit.value(&format!("{name}_DequantizeLinear_Output")))
        };
        let q = edit.value(&format!("{name}_QuantizeLinear_Output"));
        pair(edit, &name, [source, q, result], [scale, zero]);
        for u in readers {
            edit.graph.nodes[u.node].inputs[u.slot] = Some(result);
        }
        stands_for.insert(name, edit.name(result));
    }
    // Recurrent layers, embeddings and products whose operands cannot be codes: their weights still can.
    for (i, name) in names.iter().enumerate() {
        if !marks.nodes.contains(&i) && !context.keep.contains(name) {
            layers.extend(weights::quantise(edit, context, i).map(|layer| (i, layer)));
        }
    }
    let mut layers: Vec<Layer> = layers.into_values().collect();
    for layer in &mut layers {
        if let Some(name) = stands_for.get(&layer.quantised_output) {
            layer.quantised_output.clone_from(name);
        }
    }
    layers
}

/// The domain of the pairs: per-channel scales are in the standard since version 13.
fn domain(edit: &Edit) -> &'static str {
    if edit.opset >= 13 { "" } else { MICROSOFT }
}

fn pair(edit: &mut Edit, name: &str, [from, q, to]: [ValueId; 3], [scale, zero]: [ValueId; 2]) {
    let domain = domain(edit);
    let operands = |v: ValueId| [Some(v), Some(scale), Some(zero)];
    edit.node((domain, "QuantizeLinear"), &format!("{name}_QuantizeLinear"), &operands(from), &[q], []);
    edit.node((domain, "DequantizeLinear"), &format!("{name}_DequantizeLinear"), &operands(q), &[to], []);
}

/// A `DequantizeLinear` of constant codes; gives its result.
pub(super) fn dequantised(
    edit: &mut Edit,
    name: &str,
    q: Tensor,
    (scale, zero): (Tensor, Tensor),
    axis: Option<usize>,
) -> ValueId {
    let domain = domain(edit);
    let operands = [
        Some(edit.constant(&format!("{name}_quantized"), q)),
        Some(edit.constant(&format!("{name}_scale"), scale)),
        Some(edit.constant(&format!("{name}_zero_point"), zero)),
    ];
    let result = edit.value(&format!("{name}_DequantizeLinear_Output"));
    let op = (domain, "DequantizeLinear");
    let label = format!("{name}_DequantizeLinear");
    match axis {
        Some(axis) => edit.node(op, &label, &operands, &[result], [("axis", Attr::Int(axis as i64))]),
        None => edit.node(op, &label, &operands, &[result], []),
    };
    result
}

/// Replaces weight and bias of a product by dequantised codes; gives the weight's elements and signal-to-noise ratio.
fn constants(
    edit: &mut Edit,
    context: &Context<'_>,
    (node, op): (usize, &'static str),
    axis: Option<usize>,
    input_scale: f32,
    weights: &mut BTreeMap<(ValueId, Option<usize>), (ValueId, Weight)>,
) -> (usize, f64) {
    let (w_id, w) = edit.floats(node, 1).expect("a product with a weight");
    let (_, attrs) = edit.standard(node).expect("products are standard");
    let (alpha, beta) = match op {
        "Gemm" => (attrs.float("alpha", 1.0).unwrap_or(1.0), attrs.float("beta", 1.0).unwrap_or(1.0)),
        _ => (1.0, 1.0),
    };
    let values: Vec<f32> = w.as_f32().expect("floats").iter().map(|v| v * alpha).collect();
    let channels = axis.map_or(1, |a| w.shape()[a]);
    let bias: Option<Vec<f32>> = edit
        .floats(node, 2)
        .filter(|(_, b)| b.len() == channels && b.shape().iter().rev().skip(1).all(|&d| d == 1) && axis.is_some())
        .map(|(_, b)| b.as_f32().expect("floats").iter().map(|v| v * beta).collect());
    // A bias of 32 bits must be able to hold its value in steps of both scales.
    let least = |c: usize| {
        let b = bias.as_ref().map_or(0.0, |b| f64::from(b[c].abs()));
        (b / f64::from(i32::MAX) * 1.0001 / f64::from(input_scale)) as f32
    };
    // Of a shared weight the first use decides: with an alpha of its own a use has codes of its own.
    let shared = (alpha == 1.0).then(|| weights.get(&(w_id, axis)).cloned()).flatten();
    let (result, weight) = shared.unwrap_or_else(|| {
        let weight = Weight::of(&w, &values, axis, context.settings.reduced, least);
        let name = edit.name(w_id);
        let result = dequantised(edit, &name, weight.tensor(), weight.scale_and_zero(), weight.axis);
        if alpha == 1.0 {
            weights.insert((w_id, axis), (result, weight.clone()));
        }
        (result, weight)
    });
    let ratio = snr(&values, &weight.reals());
    let mut bias = bias;
    if context.settings.correct_bias
        && (bias.is_some() || op != "MatMul" && edit.graph.nodes[node].inputs.get(2).copied().flatten().is_none())
        && let Some(shift) = bias::shift(edit, context, node, &weight, &values)
    {
        let before = bias.unwrap_or_else(|| vec![0.0; channels]);
        bias = Some(before.iter().zip(shift).map(|(b, s)| (f64::from(*b) - s) as f32).collect());
    }
    edit.graph.nodes[node].inputs[1] = Some(result);
    if let Some(bias) = bias {
        let scale: Vec<f32> = weight.scale.iter().map(|s| s * input_scale).collect();
        let q: Vec<i32> =
            bias.iter().zip(&scale).map(|(b, s)| (f64::from(*b) / f64::from(*s)).round_ties_even() as i32).collect();
        let given = edit.graph.nodes[node].inputs.get(2).copied().flatten();
        let name = given.map_or_else(|| format!("{}_bias", edit.name(w_id)), |b| edit.name(b));
        let zeros = Data::I32(vec![0; channels]);
        let shape = [channels];
        let made = |d: Data| Tensor::new(&shape, d).expect("one for each channel");
        let result = dequantised(edit, &name, made(Data::I32(q)), (tensor(&shape, scale), made(zeros)), Some(0));
        edit.graph.nodes[node].inputs.resize(3, None);
        edit.graph.nodes[node].inputs[2] = Some(result);
    } else if beta != 1.0 {
        // The bias stays as it is, and so does its factor.
        set(edit, node, &attrs, &[("alpha", 1.0)]);
        return (values.len(), ratio);
    }
    if alpha != 1.0 || beta != 1.0 {
        set(edit, node, &attrs, &[("alpha", 1.0), ("beta", 1.0)]);
    }
    (values.len(), ratio)
}

fn set(edit: &mut Edit, node: usize, attrs: &Arc<Attrs>, to: &[(&str, f32)]) {
    let mut attrs = (**attrs).clone();
    for (name, v) in to {
        attrs.map.insert((*name).into(), Attr::Float(*v));
    }
    super::prepare::set_attrs(&mut edit.graph.nodes[node], attrs);
}
