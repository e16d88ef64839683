//! `head`: the last layer. A weight of whole numbers stays; a float difference beside it is trained in its place.
use std::collections::BTreeSet;

use super::lora::{self, Kind};
use super::parameters::{self, Behind, Role};
use super::{Delta, Placing, Scope, ScopeError};
use crate::graph::{Declared, Dim, Graph, ValueId};
use crate::ops::Attr;
use crate::quant::edit::Edit;
use crate::tensor::DType;

/// The row of [`super::SCOPES`].
pub(super) static HEAD: Scope = Scope { name: "head", doc: "the last linear layer", changes_features: false, place };

/// Operators between the last layer and the output, by which operand of theirs it is found.
const BETWEEN: &[&str] = &[
    "Cast",
    "DequantizeLinear",
    "Flatten",
    "Identity",
    "LogSoftmax",
    "QuantizeLinear",
    "Reshape",
    "Sigmoid",
    "Softmax",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

/// The value that holds what an output is before softmax or sigmoid: itself where it is neither.
pub fn logits_of(graph: &Graph, output: &str) -> String {
    let maker = graph.nodes.iter().find(|n| {
        matches!(n.op.name(), "Softmax" | "LogSoftmax" | "Sigmoid")
            && n.outputs.first().copied().flatten().is_some_and(|v| graph.values[v].name == output)
    });
    match maker.and_then(|n| n.inputs.first().copied().flatten()) {
        Some(v) => graph.values[v].name.clone(),
        None => output.to_string(),
    }
}

fn place(p: &mut Placing<'_>) -> Result<(), ScopeError> {
    let (node, passed) = last_layer(&p.edit, p.output)?;
    p.headed.insert(node);
    p.headed.extend(&passed);
    if let Some(classes) = p.spec.new_head {
        return renew(p, node, classes);
    }
    let (mut has_weight, mut has_bias) = (false, false);
    for at in [vec![node], passed].concat() {
        for (_, role, behind) in parameters::of(&p.edit, at) {
            if let Behind::Float(v) = behind {
                has_weight |= role == Role::Weight;
                has_bias |= role == Role::Bias;
                p.train(v, role == Role::Weight);
            }
        }
    }
    if !has_weight {
        dense(p, node, !has_bias)?;
    }
    Ok(())
}

/// The last node with a weight, and the ones between it and the output that have a bias.
fn last_layer(edit: &Edit, output: ValueId) -> Result<(usize, Vec<usize>), ScopeError> {
    let no = |why: String| ScopeError::NoHead { why };
    let mut v = output;
    let mut passed = Vec::new();
    let mut seen = BTreeSet::new();
    loop {
        let name = edit.name(v);
        let node = parameters::maker(edit, v).ok_or_else(|| no(format!("there is no layer before `{name}`")))?;
        if !seen.insert(node) {
            return Err(no(format!("the graph goes round in a circle at `{name}`")));
        }
        if lora::target(edit, node).is_some() {
            return Ok((node, passed));
        }
        let n = &edit.graph.nodes[node];
        let weighted = parameters::of(edit, node).iter().any(|(_, role, _)| *role == Role::Weight);
        if weighted {
            return Ok((node, passed));
        }
        let op = n.op.name();
        if op == "Mul"
            && let Some(product) = lora::scaled_product(edit, node)
        {
            return Ok((product, passed));
        }
        // A bias or a scale behind a product.
        let varying = || n.inputs.iter().flatten().copied().find(|&v| edit.graph.values[v].constant.is_none());
        v = match op {
            "Add" | "Mul" if n.inputs.iter().flatten().any(|&v| edit.graph.values[v].constant.is_some()) => {
                passed.push(node);
                varying()
            }
            _ if BETWEEN.contains(&op) => n.inputs.first().copied().flatten(),
            _ => return Err(no(format!("`{name}` is made by {op} (node `{}`), not by a linear layer", n.name))),
        }
        .ok_or_else(|| no(format!("there is no layer before `{name}`")))?;
    }
}

/// A difference of the whole weight beside it, 0 at first, and a shift where no bias is trained.
fn dense(p: &mut Placing<'_>, node: usize, shifted: bool) -> Result<(), ScopeError> {
    let why = || ScopeError::NoHead {
        why: format!("the weight of node `{}` has no form known here", p.edit.graph.nodes[node].name),
    };
    let target = lora::target(&p.edit, node).ok_or_else(why)?;
    let delta = format!("{}.delta", target.stem);
    let side = p.edit.value(&format!("{delta}/side"));
    let shape = match &target.kind {
        Kind::Linear { k, n } => vec![*k, *n],
        Kind::Conv { shape, .. } => shape.clone(),
    };
    let (layer, name) = (target.stem.clone(), p.edit.graph.nodes[node].name.clone());
    p.deltas.push(Delta { layer, delta: delta.clone(), node: name });
    let leaf = p.leaf(&delta, &shape, vec![0.0; shape.iter().product()], true);
    let (x, made) = (p.wide(target.x, target.half), p.narrowed(side, target.half));
    lora::product(p, &target.kind, &delta, x, leaf, made);
    p.beside(target.made_by, target.slot, side);
    if !shifted {
        return Ok(());
    }
    let (channels, space) = match &target.kind {
        Kind::Linear { n, .. } => (*n, 0),
        Kind::Conv { shape, .. } => (shape[0], shape.len() - 2),
    };
    let shift = [vec![channels], vec![1; space]].concat();
    let shift = p.leaf(&format!("{}.shift", target.stem), &shift, vec![0.0; channels], false);
    let shift = match target.half {
        Some(half) => {
            let name = format!("{}.shift{}", target.stem, super::HALF);
            let rounded = p.edit.value(&name);
            p.cast(&name, shift, rounded, half);
            rounded
        }
        None => shift,
    };
    let Some(at) = p.edit.graph.nodes.iter().position(|n| n.inputs.get(1) == Some(&Some(side))) else { return Ok(()) };
    p.beside(at, 0, shift);
    Ok(())
}

/// A new layer of `classes` outputs, all 0 at first, in place of the last one and what follows it.
fn renew(p: &mut Placing<'_>, node: usize, classes: usize) -> Result<(), ScopeError> {
    let name = p.edit.graph.nodes[node].name.clone();
    let why = || ScopeError::NoHead { why: format!("node `{name}` has no form of a layer known here") };
    let target = lora::target(&p.edit, node).ok_or_else(why)?;
    // Every maker of the output is replaced; what nobody reads any more is dropped at the end.
    let old = p.edit.value(&format!("{}/old", p.spec.output));
    let output = p.output;
    for n in &mut p.edit.graph.nodes {
        n.outputs.iter_mut().filter(|v| **v == Some(output)).for_each(|v| *v = Some(old));
    }
    let (weight, bias) = ("head.new.weight", "head.new.bias");
    let x = p.wide(target.x, target.half);
    match &target.kind {
        Kind::Linear { k, .. } => {
            let w = p.leaf(weight, &[*k, classes], vec![0.0; k * classes], true);
            let b = p.leaf(bias, &[classes], vec![0.0; classes], false);
            let product = p.edit.value("head.new.product");
            p.edit.node(("", "MatMul"), "head.new.product", &[Some(x), Some(w)], &[product], []);
            p.edit.node(("", "Add"), "head.new", &[Some(product), Some(b)], &[output], []);
        }
        Kind::Conv { shape, .. } => {
            // Outputs of a head are a row for each sample, whatever the convolution had of space.
            let k: usize = shape[1..].iter().product();
            let w = p.leaf(weight, &[k, classes], vec![0.0; k * classes], true);
            let b = p.leaf(bias, &[classes], vec![0.0; classes], false);
            let (flat, product) = (p.edit.value("head.new.feature"), p.edit.value("head.new.product"));
            p.edit.node(("", "Flatten"), "head.new.feature", &[Some(x)], &[flat], [("axis", Attr::Int(1))]);
            p.edit.node(("", "MatMul"), "head.new.product", &[Some(flat), Some(w)], &[product], []);
            p.edit.node(("", "Add"), "head.new", &[Some(product), Some(b)], &[output], []);
        }
    }
    let lead = p.edit.graph.values[output].declared.as_ref().and_then(|d| d.shape.as_ref()?.first().cloned());
    let dims = vec![lead.unwrap_or(Dim::Any), Dim::Fixed(classes)];
    p.edit.graph.values[output].declared = Some(Declared { dtype: DType::F32, shape: Some(dims) });
    Ok(())
}
