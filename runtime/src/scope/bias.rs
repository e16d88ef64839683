//! `bias`: biases, and scales and shifts of normalisation; where a layer's bias is whole numbers, a shift beside it.
use super::parameters::{self, Behind, Role};
use super::{Placing, Scope, ScopeError};
use crate::graph::Op;

/// The row of [`super::SCOPES`].
pub(super) static BIAS: Scope =
    Scope { name: "bias", doc: "biases, and scales and shifts of normalisation", changes_features: true, place };

fn place(p: &mut Placing<'_>) -> Result<(), ScopeError> {
    for node in p.nodes() {
        if p.headed.contains(&node) {
            continue;
        }
        for (slot, role, behind) in parameters::of(&p.edit, node) {
            match (role, behind) {
                (Role::Bias, Behind::Float(v)) => p.train(v, false),
                (Role::Bias, Behind::Quantised(v)) => shift(p, node, slot, v),
                _ => {}
            }
        }
    }
    Ok(())
}

/// A shift by channel beside a layer whose bias is whole numbers.
fn shift(p: &mut Placing<'_>, node: usize, slot: usize, bias: usize) {
    let Some(t) = parameters::tensor(&p.edit, bias) else { return };
    let n = t.len();
    let Op::Own(def, _) = &p.edit.graph.nodes[node].op else { return };
    // Channels are the last axis, but for convolutions, where the axes of space follow.
    let space = match (def.name, slot) {
        ("Conv" | "ConvTranspose", 2) => {
            let weight = p.edit.graph.nodes[node].inputs.get(1).copied().flatten();
            weight.and_then(|v| parameters::shape(&p.edit, v)).map(|s| s.len().saturating_sub(2))
        }
        ("Gemm", 2) => Some(0),
        _ => None,
    };
    let Some(space) = space else { return };
    let shape = [vec![n], vec![1; space]].concat();
    let name = p.edit.name(bias);
    let weight = p.edit.graph.nodes[node].inputs.get(1).copied().flatten();
    let half = weight.and_then(|w| parameters::half(&p.edit, w));
    let leaf = p.leaf(&format!("{name}.shift"), &shape, vec![0.0; n], false);
    let leaf = match half {
        Some(half) => {
            let name = format!("{name}.shift{}", super::HALF);
            let rounded = p.edit.value(&name);
            p.cast(&name, leaf, rounded, half);
            rounded
        }
        None => leaf,
    };
    p.beside(node, 0, leaf);
}
