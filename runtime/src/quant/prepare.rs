//! What is done to a float graph before any scheme: constants computed, batch normalisation and padding folded into the
//! convolution they belong to. The results are the same numbers, up to the rounding of `f32`.
use std::sync::Arc;

use super::edit::{Edit, tensor};
use crate::graph::{Graph, Op};
use crate::ops::{Attr, Attrs, Kind, ints_of};
use crate::tensor::Tensor;

/// Constants this small are always computed; larger ones only when they do not grow, and by operators that only move
/// elements or take each for itself.
const SMALL_BYTES: usize = 4096;
const OF_LARGE: &[&str] =
    &["Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Concat", "Mul", "Add", "Sub", "Div", "Neg"];

/// The graph with everything folded that can be.
pub(super) fn prepare(graph: &Graph, opset: i64) -> Graph {
    let mut edit = Edit::new(graph.clone(), opset);
    constants(&mut edit);
    padding(&mut edit);
    normalisation(&mut edit);
    edit.finish()
}

fn bytes(t: &Tensor) -> usize {
    t.len() * t.dtype().size_bytes()
}

/// Computes nodes whose operands are all constant.
fn constants(edit: &mut Edit) {
    for i in 0..edit.graph.nodes.len() {
        let n = &edit.graph.nodes[i];
        let Op::Own(def, attrs) = &n.op else { continue };
        if def.kind != Kind::Pure || n.inputs.is_empty() && def.name != "Constant" {
            continue;
        }
        let operands: Option<Vec<Option<Arc<Tensor>>>> = n
            .inputs
            .iter()
            .map(|v| match v {
                None => Some(None),
                Some(v) => edit.graph.values[*v].constant.clone().map(Some),
            })
            .collect();
        let Some(operands) = operands else { continue };
        let given: usize = operands.iter().flatten().map(|t| bytes(t)).sum();
        if given > SMALL_BYTES && !OF_LARGE.contains(&def.name) {
            continue;
        }
        let operands: Vec<Option<&Tensor>> = operands.iter().map(|t| t.as_deref()).collect();
        // An operator that refuses its operands here will say so when the graph runs.
        let Ok(results) = (def.reference)(attrs, &operands) else { continue };
        if results.iter().map(bytes).sum::<usize>() > SMALL_BYTES.max(given) {
            continue;
        }
        let outputs = n.outputs.clone();
        if outputs.len() > results.len() || outputs.iter().flatten().any(|&v| edit.is_output(v)) {
            continue;
        }
        for (v, t) in outputs.iter().zip(results) {
            if let Some(v) = v {
                edit.graph.values[*v].constant = Some(Arc::new(t));
            }
        }
        edit.graph.nodes[i].outputs.iter_mut().for_each(|v| *v = None);
    }
    edit.graph.nodes.retain(|n| n.outputs.iter().any(Option::is_some));
}

/// Zero padding of the spatial dimensions before a convolution becomes its own.
fn padding(edit: &mut Edit) {
    for conv in 0..edit.graph.nodes.len() {
        let Some(("Conv", attrs)) = edit.standard(conv) else { continue };
        let Some(x) = edit.graph.nodes[conv].inputs.first().copied().flatten() else { continue };
        let Some(pad) = edit.graph.nodes.iter().position(|n| n.outputs.first() == Some(&Some(x))) else { continue };
        let Some(("Pad", pad_attrs)) = edit.standard(pad) else { continue };
        let explicit = !attrs.map.contains_key("auto_pad") || is(&attrs, "auto_pad", "NOTSET");
        let zeros = !pad_attrs.map.contains_key("mode") || is(&pad_attrs, "mode", "constant");
        let value = match edit.graph.nodes[pad].inputs.get(2).copied().flatten() {
            None => Some(pad_attrs.float("value", 0.0).map(f64::from).unwrap_or(f64::NAN)),
            Some(_) => edit.operand(pad, 2).and_then(|(_, t)| t.data().to_f64().first().copied()),
        };
        let axes = edit.graph.nodes[pad].inputs.get(3).copied().flatten();
        let pads = match edit.operand(pad, 1) {
            Some((_, t)) => ints_of(&t),
            None => match pad_attrs.map.get("pads") {
                Some(Attr::Ints(v)) => v.clone(),
                _ => continue,
            },
        };
        let Some((_, w)) = edit.operand(conv, 1) else { continue };
        let rank = w.shape().len();
        let spatial = rank - 2;
        if !explicit || !zeros || value != Some(0.0) || axes.is_some() || pads.len() != 2 * rank {
            continue;
        }
        let sides = |at: usize| &pads[at..at + spatial];
        if pads[..2].iter().chain(&pads[rank..rank + 2]).any(|&p| p != 0) || pads.iter().any(|&p| p < 0) {
            continue;
        }
        let own = match attrs.map.get("pads") {
            Some(Attr::Ints(v)) if v.len() == 2 * spatial => v.clone(),
            None => vec![0; 2 * spatial],
            _ => continue,
        };
        let both = sides(2).iter().chain(sides(rank + 2)).zip(&own).map(|(a, b)| a + b).collect();
        let mut attrs = (*attrs).clone();
        attrs.map.insert("pads".into(), Attr::Ints(both));
        let from = edit.graph.nodes[pad].inputs[0];
        let node = &mut edit.graph.nodes[conv];
        node.inputs[0] = from;
        set_attrs(node, attrs);
    }
}

fn is(attrs: &Attrs, name: &str, text: &str) -> bool {
    matches!(attrs.map.get(name), Some(Attr::Str(s)) if s == text)
}

pub(super) fn set_attrs(node: &mut crate::graph::Node, attrs: Attrs) {
    if let Op::Own(def, _) = node.op {
        node.op = Op::Own(def, Arc::new(attrs));
    }
}

/// `y = (conv(x) + b - mean) · g / sqrt(var + ε) + beta` becomes a convolution with another weight and bias.
fn normalisation(edit: &mut Edit) {
    for norm in 0..edit.graph.nodes.len() {
        let Some(("BatchNormalization", attrs)) = edit.standard(norm) else { continue };
        let trained = attrs.int("training_mode", 0).unwrap_or(1) != 0;
        let Some(x) = edit.graph.nodes[norm].inputs.first().copied().flatten() else { continue };
        let Some(conv) = edit.graph.nodes.iter().position(|n| n.outputs.first() == Some(&Some(x))) else { continue };
        let read = edit.graph.nodes.iter().flat_map(|n| n.inputs.iter().flatten()).filter(|&&v| v == x).count();
        let Some(("Conv", _)) = edit.standard(conv) else { continue };
        let extra = edit.graph.nodes[norm].outputs.iter().skip(1).any(Option::is_some);
        if trained || extra || read != 1 || edit.is_output(x) {
            continue;
        }
        let parts: Option<Vec<Arc<Tensor>>> = (1..5).map(|s| edit.floats(norm, s).map(|(_, t)| t)).collect();
        let (Some(parts), Some((w_id, w))) = (parts, edit.floats(conv, 1)) else { continue };
        let channels = w.shape()[0];
        let bias = match edit.graph.nodes[conv].inputs.get(2).copied().flatten() {
            None => Some(vec![0.0; channels]),
            Some(_) => edit.floats(conv, 2).map(|(_, t)| t.data().to_f64()),
        };
        let parts: Vec<Vec<f64>> = parts.iter().map(|t| t.data().to_f64()).collect();
        let Some(bias) = bias.filter(|b| b.len() == channels && parts.iter().all(|p| p.len() == channels)) else {
            continue;
        };
        let epsilon = f64::from(attrs.float("epsilon", 1e-5).unwrap_or(1e-5));
        let factor: Vec<f64> = (0..channels).map(|c| parts[0][c] / (parts[3][c] + epsilon).sqrt()).collect();
        let inner = w.len() / channels;
        let weight = w.data().to_f64().iter().enumerate().map(|(i, v)| (v * factor[i / inner]) as f32).collect();
        let bias = (0..channels).map(|c| ((bias[c] - parts[2][c]) * factor[c] + parts[1][c]) as f32).collect();
        let name = edit.name(w_id);
        let weight = edit.constant(&format!("{name}_folded"), tensor(w.shape(), weight));
        let bias = edit.constant(&format!("{name}_folded_bias"), tensor(&[channels], bias));
        let out = edit.graph.nodes[norm].outputs[0];
        let node = &mut edit.graph.nodes[conv];
        node.inputs.resize(3, None);
        (node.inputs[1], node.inputs[2]) = (Some(weight), Some(bias));
        node.outputs[0] = out;
        edit.graph.nodes[norm].outputs[0] = None;
    }
    edit.graph.nodes.retain(|n| n.outputs.iter().any(Option::is_some));
}

/// Gives a node made by a pass the attributes of the one it stands for.
pub(super) fn copy_attrs(node: &mut crate::graph::Node, from: &Attrs) {
    if let Op::Own(def, own) = &node.op {
        let attrs = Attrs { map: from.map.clone(), outputs: from.outputs, opset: own.opset };
        node.op = Op::Own(def, Arc::new(attrs));
    }
}
