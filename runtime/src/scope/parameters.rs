//! Which operands of which operators are parameters, and what constant is behind one.
use std::sync::Arc;

use crate::graph::{Op, ValueId};
use crate::quant::edit::Edit;
use crate::tensor::{DType, Tensor};

/// What a parameter is to its operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Multiplies: weight decay is meant for it.
    Weight,
    /// A bias, or scale and shift of a normalisation.
    Bias,
    /// The same, where the constant is a vector along one axis: an addition or multiplication with any other is no
    /// layer.
    Vector,
}

use Role::{Bias, Vector, Weight};

/// Operator, operand, role.
const PARAMETERS: &[(&str, usize, Role)] = &[
    ("Add", 0, Vector),
    ("Add", 1, Vector),
    ("Attention", 1, Weight),
    ("Attention", 2, Bias),
    ("BatchNormalization", 1, Bias),
    ("BatchNormalization", 2, Bias),
    ("BiasGelu", 1, Bias),
    ("Conv", 1, Weight),
    ("Conv", 2, Bias),
    ("ConvTranspose", 1, Weight),
    ("ConvTranspose", 2, Bias),
    ("Einsum", 0, Weight),
    ("Einsum", 1, Weight),
    ("FastGelu", 1, Bias),
    ("FusedConv", 1, Weight),
    ("FusedConv", 2, Bias),
    ("FusedGemm", 1, Weight),
    ("FusedGemm", 2, Bias),
    ("FusedMatMul", 1, Weight),
    ("GRU", 1, Weight),
    ("GRU", 2, Weight),
    ("GRU", 3, Bias),
    ("Gather", 0, Weight),
    ("Gemm", 0, Weight),
    ("Gemm", 1, Weight),
    ("Gemm", 2, Bias),
    ("GroupNormalization", 1, Bias),
    ("GroupNormalization", 2, Bias),
    ("InstanceNormalization", 1, Bias),
    ("InstanceNormalization", 2, Bias),
    ("LSTM", 1, Weight),
    ("LSTM", 2, Weight),
    ("LSTM", 3, Bias),
    ("LSTM", 7, Weight),
    ("LayerNormalization", 1, Bias),
    ("LayerNormalization", 2, Bias),
    ("MatMul", 0, Weight),
    ("MatMul", 1, Weight),
    ("MatMulNBits", 5, Bias),
    ("Mul", 0, Vector),
    ("Mul", 1, Vector),
    ("MultiHeadAttention", 3, Bias),
    ("PRelu", 1, Bias),
    ("RMSNormalization", 1, Bias),
    ("RNN", 1, Weight),
    ("RNN", 2, Weight),
    ("RNN", 3, Bias),
    ("SimplifiedLayerNormalization", 1, Bias),
    ("SkipLayerNormalization", 2, Bias),
    ("SkipLayerNormalization", 3, Bias),
    ("SkipLayerNormalization", 4, Bias),
    ("SkipSimplifiedLayerNormalization", 2, Bias),
    ("SkipSimplifiedLayerNormalization", 3, Bias),
];

/// What is behind an operand that depends on constants only.
#[derive(Clone, Debug)]
pub(super) enum Behind {
    /// A constant of floats, perhaps moved about.
    Float(ValueId),
    /// A constant of whole numbers, dequantised.
    Quantised(ValueId),
}

/// Operators that only move elements or change their type: what is behind their operand is behind their result.
pub(super) const MOVERS: &[&str] = &["Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"];

/// The node that makes a value.
pub(super) fn maker(edit: &Edit, v: ValueId) -> Option<usize> {
    edit.graph.nodes.iter().position(|n| n.outputs.contains(&Some(v)))
}

/// What is behind operand `v`; `None` for what depends on the graph's inputs, and for other constants.
pub(super) fn behind(edit: &Edit, v: ValueId) -> Option<Behind> {
    if let Some(t) = &edit.graph.values[v].constant {
        return super::is_float(t).then_some(Behind::Float(v));
    }
    let mut roots = Vec::new();
    constants(edit, v, &mut roots)?;
    // The weight is the largest of them, and the first of equals; the others are scales and zero points.
    let len = |v: ValueId| edit.graph.values[v].constant.as_ref().map_or(0, |t| t.len());
    let root = roots.into_iter().reduce(|a, b| if len(b) > len(a) { b } else { a })?;
    let t = edit.graph.values[root].constant.as_deref()?;
    if super::is_float(t) {
        return Some(Behind::Float(root));
    }
    // Wider whole numbers are shapes and positions, and 32 bits a bias behind its scale.
    let held = t.dtype().bits() <= 16 || edit.graph.nodes[maker(edit, v)?].op.name() == "DequantizeLinear";
    held.then_some(Behind::Quantised(root))
}

/// Operators of dequantisation spelled out, as some exporters do.
const SPELLED: &[&str] = &["Add", "DequantizeLinear", "Div", "Mul", "Sub"];

/// The constants a value is made of by movers and dequantisation; `None` when it is made of anything else.
fn constants(edit: &Edit, v: ValueId, into: &mut Vec<ValueId>) -> Option<()> {
    if edit.graph.values[v].constant.is_some() {
        into.push(v);
        return Some(());
    }
    let n = &edit.graph.nodes[maker(edit, v)?];
    let op = n.op.name();
    if MOVERS.contains(&op) {
        return constants(edit, n.inputs.first().copied().flatten()?, into);
    }
    if !SPELLED.contains(&op) {
        return None;
    }
    n.inputs.iter().flatten().try_for_each(|&v| constants(edit, v, into))
}

/// The type of an operand that is behind constants where it is read, if that is half floats.
pub(super) fn half(edit: &Edit, v: ValueId) -> Option<DType> {
    let if_half = |dtype: DType| Some(dtype).filter(|d| d.is_half());
    if let Some(t) = &edit.graph.values[v].constant {
        return if_half(t.dtype());
    }
    let node = &edit.graph.nodes[maker(edit, v)?];
    let operand = |i: usize| half(edit, node.inputs.get(i).copied().flatten()?);
    match (&node.op, node.op.name()) {
        (Op::Own(_, attrs), "Cast") => DType::from_onnx(attrs.int("to", 0).ok()?).and_then(if_half),
        (_, "DequantizeLinear") => operand(1),
        _ => operand(0),
    }
}

/// Shape of an operand that is behind constants, where it can be told without running anything.
pub(super) fn shape(edit: &Edit, v: ValueId) -> Option<Vec<usize>> {
    if let Some(t) = &edit.graph.values[v].constant {
        return Some(t.shape().to_vec());
    }
    let node = &edit.graph.nodes[maker(edit, v)?];
    let own = shape(edit, node.inputs.first().copied().flatten()?)?;
    match node.op.name() {
        "Cast" | "DequantizeLinear" | "Identity" => Some(own),
        "Add" | "Div" | "Mul" | "Sub" => {
            let other = shape(edit, node.inputs.get(1).copied().flatten()?)?;
            let rank = own.len().max(other.len());
            let at = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
            Some((0..rank).map(|i| at(&own, i).max(at(&other, i))).collect())
        }
        "Transpose" => {
            let Op::Own(_, attrs) = &node.op else { return None };
            match attrs.ints("perm").ok()? {
                Some(perm) => perm.iter().map(|&p| own.get(usize::try_from(p).ok()?).copied()).collect(),
                None => Some(own.into_iter().rev().collect()),
            }
        }
        _ => None,
    }
}

/// The parameters of a node: operand, its role, and what is behind it.
pub(super) fn of(edit: &Edit, node: usize) -> Vec<(usize, Role, Behind)> {
    let n = &edit.graph.nodes[node];
    let Op::Own(def, attrs) = &n.op else { return Vec::new() };
    let mut out = Vec::new();
    for &(_, slot, role) in PARAMETERS.iter().filter(|(op, ..)| *op == def.name) {
        let Some(v) = n.inputs.get(slot).copied().flatten() else { continue };
        let Some(found) = behind(edit, v) else { continue };
        let constant = match found {
            Behind::Float(id) | Behind::Quantised(id) => edit.graph.values[id].constant.clone(),
        };
        let fits = match (def.name, role) {
            (_, Vector) => matches!(found, Behind::Float(_)) && constant.as_deref().is_some_and(is_vector),
            ("Gather", _) => {
                attrs.int("axis", 0).is_ok_and(|a| a == 0) && constant.is_some_and(|t| t.shape().len() == 2)
            }
            _ => true,
        };
        if fits {
            out.push((slot, if role == Vector { Bias } else { role }, found));
        }
    }
    out
}

/// Whether exactly one axis is longer than 1.
fn is_vector(t: &Tensor) -> bool {
    t.shape().iter().filter(|&&d| d > 1).count() == 1
}

/// What a layer is called by the framework it comes from: its weight's name without what quantisation and PyTorch put
/// behind it. Where an exporter has named the weight by a number, the name of the bias that is added to the product
/// tells, or the node's.
pub(super) fn stem(edit: &Edit, weight: ValueId, node: usize) -> String {
    let mut name = edit.name(weight);
    let numbered = ["onnx::", "val_", "_val_", "const_", "_to_copy"];
    if numbered.iter().any(|p| name.starts_with(p)) {
        if let Some(layer) = added(edit, node) {
            return layer;
        }
        let path = edit.graph.nodes[node].name.trim_start_matches('/');
        let path = path.rsplit_once('/').map_or(path, |(layer, _)| layer);
        if !path.is_empty() {
            name = path.replace('/', ".");
        }
    }
    for suffix in ["_quantized", "_Q4", "_Q8", "_Q2", "_folded", ".weight"] {
        if let Some(short) = name.strip_suffix(suffix)
            && !short.is_empty()
        {
            name = short.to_string();
        }
    }
    name
}

/// The layer whose bias is added to a node's result.
fn added(edit: &Edit, node: usize) -> Option<String> {
    let y = edit.graph.nodes[node].outputs.first().copied().flatten()?;
    let add = edit.graph.nodes.iter().find(|n| n.op.name() == "Add" && n.inputs.contains(&Some(y)))?;
    let bias = add.inputs.iter().flatten().find(|&&v| edit.graph.values[v].constant.is_some())?;
    edit.graph.values[*bias].name.strip_suffix(".bias").map(String::from)
}

/// The tensor of a constant.
pub(super) fn tensor(edit: &Edit, v: ValueId) -> Option<Arc<Tensor>> {
    edit.graph.values[v].constant.clone()
}
