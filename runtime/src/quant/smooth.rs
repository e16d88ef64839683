//! Migration of outliers from activations to weights before static quantisation.
//!
//! A channel of an activation that is far larger than the others takes the codes of all of them. Each channel is divided
//! by `s = max|x|^α / max|w|^(1-α)`, and the rows of the weights it meets are multiplied by it: the product is the same.
//! Source: Xiao et al., SmoothQuant, 2022. The division goes into the layer normalisation before where nobody else reads
//! it, else into a multiplication.
use std::collections::BTreeMap;

use super::edit::{Edit, Use, tensor};
use super::observe::{Stats, Watch};
use crate::graph::ValueId;

/// Factors nearer to zero than this stay where they are.
const LEAST: f64 = 1e-5;

/// Products of an activation with a constant matrix, by the activation.
fn products(edit: &Edit) -> BTreeMap<ValueId, Vec<usize>> {
    let mut out: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
    for (i, n) in edit.graph.nodes.iter().enumerate() {
        let Some((op, attrs)) = edit.standard(i) else { continue };
        let plain = op == "MatMul" || op == "Gemm" && attrs.int("transA", 0) == Ok(0);
        let Some((_, w)) = edit.floats(i, 1).filter(|(_, w)| plain && w.shape().len() == 2) else { continue };
        if let Some(x) = n.inputs[0].filter(|&x| edit.graph.values[x].constant.is_none() && !w.is_empty()) {
            out.entry(x).or_default().push(i);
        }
    }
    out
}

/// The activations whose channels have to be known.
pub(super) fn watch(edit: &Edit) -> Watch {
    products(edit).into_keys().map(|x| (x, Some(-1))).collect()
}

/// Whether the weight of a product is `[N, K]`.
fn turned(edit: &Edit, node: usize) -> bool {
    edit.standard(node).is_some_and(|(op, attrs)| op == "Gemm" && attrs.int("transB", 0) != Ok(0))
}

/// Moves what `alpha` (0 to 1) says.
pub(super) fn migrate(edit: &mut Edit, alpha: f64, stats: &BTreeMap<String, Stats>) {
    for (x, nodes) in products(edit) {
        let name = edit.name(x);
        let Some(seen) = stats.get(&name).map(|s| s.channel_absmax.clone()) else { continue };
        let k = seen.len();
        let mut weights = vec![0f32; k];
        let mut fits = k > 0;
        for &i in &nodes {
            let Some((_, w)) = edit.floats(i, 1) else { continue };
            let along = turned(edit, i);
            let (rows, columns) = (w.shape()[0], w.shape()[1]);
            fits &= k == if along { columns } else { rows };
            let Ok(values) = w.as_f32() else { continue };
            for (e, v) in values.iter().enumerate().filter(|_| fits) {
                let row = if along { e % columns } else { e / columns };
                weights[row] = weights[row].max(v.abs());
            }
        }
        if !fits {
            continue;
        }
        let factor = |(&x, &w): (&f32, &f32)| {
            let s = f64::from(x).powf(alpha) / f64::from(w).powf(1.0 - alpha);
            if s.is_finite() && s > LEAST { s as f32 } else { 1.0 }
        };
        let s: Vec<f32> = seen.iter().zip(&weights).map(factor).collect();
        let uses: Vec<Use> = edit.uses()[x].clone();
        let alone = uses.len() == nodes.len() && !edit.is_output(x);
        let smoothed = if alone && into_normalisation(edit, x, &s) {
            x
        } else {
            let inverse =
                edit.constant(&format!("{name}_smooth_scale"), tensor(&[k], s.iter().map(|s| 1.0 / s).collect()));
            let y = edit.value(&format!("{name}_smooth"));
            edit.node(("", "Mul"), &format!("{name}_smooth_mul"), &[Some(x), Some(inverse)], &[y], []);
            y
        };
        for i in nodes {
            let Some((id, w)) = edit.floats(i, 1) else { continue };
            let along = turned(edit, i);
            let columns = w.shape()[1];
            let row = |e: usize| if along { e % columns } else { e / columns };
            let values = w.data().to_f64().iter().enumerate().map(|(e, v)| (v * f64::from(s[row(e)])) as f32).collect();
            let name = edit.name(id);
            let moved = edit.constant(&format!("{name}_smooth"), tensor(w.shape(), values));
            let inputs = &mut edit.graph.nodes[i].inputs;
            (inputs[0], inputs[1]) = (Some(smoothed), Some(moved));
        }
    }
}

/// Divides scale and bias of the layer normalisation that makes `x`, if one does.
fn into_normalisation(edit: &mut Edit, x: ValueId, s: &[f32]) -> bool {
    let Some(maker) = edit.graph.nodes.iter().position(|n| n.outputs.first() == Some(&Some(x))) else { return false };
    let Some(("LayerNormalization", _)) = edit.standard(maker) else { return false };
    let parts: Vec<_> = [1, 2].into_iter().map(|slot| edit.floats(maker, slot)).collect();
    let fits = |p: &Option<(ValueId, std::sync::Arc<crate::tensor::Tensor>)>| {
        p.as_ref().is_some_and(|(_, t)| t.shape() == [s.len()])
    };
    let without = edit.graph.nodes[maker].inputs.get(2).copied().flatten().is_none();
    if !fits(&parts[0]) || !(without || fits(&parts[1])) {
        return false;
    }
    for (slot, part) in (1..).zip(parts) {
        let Some((id, t)) = part else { continue };
        let divided = t.data().to_f64().iter().zip(s).map(|(v, s)| (v / f64::from(*s)) as f32).collect();
        let name = edit.name(id);
        let moved = edit.constant(&format!("{name}_smooth"), tensor(t.shape(), divided));
        edit.graph.nodes[maker].inputs[slot] = Some(moved);
    }
    true
}
