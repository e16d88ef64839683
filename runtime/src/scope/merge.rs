//! What was trained, folded into the weights: a graph of the operators it had, for runtimes that know no adapters.
//!
//! A weight of whole numbers is made real, changed, and made whole again as it was: the same type, axis and symmetry,
//! new scales; a 32-bit bias follows its weight's scale, because runtimes take it for granted that it does. Where a
//! weight has another reader, or a form that cannot be made again here, the path stays beside it: more nodes, the same
//! numbers.
use std::collections::BTreeSet;
use std::sync::Arc;

use super::lora::{self, Kind, Target};
use super::parameters::{self, maker};
use super::{ScopeError, Spec, place};
use crate::graph::{Graph, Op, ValueId};
use crate::ops;
use crate::quant::edit::Edit;
use crate::quant::repack;
use crate::tensor::{DType, Tensor};

/// A graph with what was trained folded in.
#[derive(Clone, Debug)]
pub struct Merged {
    /// The graph.
    pub graph: Graph,
    /// Layers whose weight has changed.
    pub folded: Vec<String>,
    /// Layers beside whose weight a path stays.
    pub beside: Vec<String>,
}

/// `graph` with the trained values of `spec` in its weights.
///
/// # Errors
/// [`ScopeError`], as [`place`] and [`Scoped::with`](super::Scoped::with).
pub fn merge(graph: &Graph, opset: i64, spec: &Spec, tensors: &[(String, Tensor)]) -> Result<Merged, ScopeError> {
    let scoped = place(graph, opset, spec)?;
    let mut edit = Edit::new(scoped.with(tensors)?, opset);
    let (mut folded, mut beside) = (Vec::new(), Vec::new());
    for side in &scoped.sides {
        let nodes: Vec<usize> =
            side.nodes.iter().filter_map(|n| edit.graph.nodes.iter().position(|x| x.name == *n)).collect();
        let targets: Vec<Target> = nodes.iter().filter_map(|&n| lora::target(&edit, n)).collect();
        let done = targets.len() == side.nodes.len()
            && delta(&edit, &targets[0].kind, side).is_some_and(|d| add(&mut edit, nodes[0], &targets[0], &nodes, &d));
        if !done {
            beside.push(side.layer.clone());
            continue;
        }
        for (t, name) in targets.iter().zip(&side.nodes) {
            let result = named(&edit, &format!("{name}/lora_B"));
            take_away(&mut edit, t.made_by, t.slot, result);
        }
        folded.push(side.layer.clone());
    }
    for d in &scoped.deltas {
        let Some(node) = edit.graph.nodes.iter().position(|n| n.name == d.node) else { continue };
        let Some(t) = lora::target(&edit, node) else { continue };
        let value = |edit: &Edit, name: &str| edit.graph.values.iter().find(|v| v.name == name)?.constant.clone();
        let change = value(&edit, &d.delta).map(|t| t.data().to_f64());
        if change.is_some_and(|c| add(&mut edit, node, &t, &[node], &c)) {
            let result = named(&edit, &format!("{}/side", d.delta));
            take_away(&mut edit, t.made_by, t.slot, result);
            folded.push(d.layer.clone());
        } else {
            beside.push(d.layer.clone());
        }
    }
    narrow(&mut edit, &scoped.trainable);
    Ok(Merged { graph: edit.finish(), folded, beside })
}

/// Half floats that were trained by a master in `f32` become constants again.
fn narrow(edit: &mut Edit, trainable: &[String]) {
    for i in 0..edit.graph.nodes.len() {
        let node = &edit.graph.nodes[i];
        let ends = (node.inputs.first().copied().flatten(), node.outputs.first().copied().flatten());
        let (Some(master), Some(v)) = ends else { continue };
        let name = edit.name(master);
        let Op::Own(_, attrs) = &node.op else { continue };
        let to = attrs.int("to", 0).ok().and_then(DType::from_onnx).filter(|_| node.op.name() == "Cast");
        let Some(to) = to.filter(|_| edit.name(v).starts_with(&format!("{name}{}", super::HALF))) else { continue };
        let wide = edit.graph.values[master].constant.clone().filter(|_| trainable.contains(&name));
        let half = wide.and_then(|t| Tensor::from_f64(to, t.shape(), &t.data().to_f64()).ok());
        let Some(half) = half else { continue };
        let values = &mut edit.graph.values;
        values[v].constant = Some(Arc::new(half));
        let other = std::mem::replace(&mut values[v].name, name);
        values[master].name = other;
        edit.graph.nodes[i].outputs[0] = None;
    }
}

fn named(edit: &Edit, value: &str) -> Option<ValueId> {
    edit.graph.values.iter().position(|v| v.name == value)
}

/// `s · A · B` in the shape of the layer's weight as the product takes it: `[K, N]`, or the convolution's.
fn delta(edit: &Edit, kind: &Kind, side: &super::Side) -> Option<Vec<f64>> {
    let constant = |name: &str| edit.graph.values.iter().find(|v| v.name == name)?.constant.clone();
    let (a, b) = (constant(&side.a)?, constant(&side.b)?);
    let (av, bv) = (a.data().to_f64(), b.data().to_f64());
    let s = f64::from(side.scale);
    Some(match kind {
        Kind::Linear { k, n } => {
            let r = a.shape()[1];
            let mut out = vec![0.0; k * n];
            for i in 0..*k {
                for j in 0..r {
                    let x = s * av[i * r + j];
                    out[i * n..][..*n].iter_mut().zip(&bv[j * n..]).for_each(|(o, b)| *o += x * b);
                }
            }
            out
        }
        Kind::Conv { shape, .. } => {
            let (n, inner, r) = (shape[0], shape[1..].iter().product::<usize>(), a.shape()[0]);
            let mut out = vec![0.0; n * inner];
            for i in 0..n {
                for j in 0..r {
                    let x = s * bv[i * r + j];
                    out[i * inner..][..inner].iter_mut().zip(&av[j * inner..]).for_each(|(o, a)| *o += x * a);
                }
            }
            out
        }
    })
}

/// Takes the addition of `side` after result `slot` of a node away again.
fn take_away(edit: &mut Edit, node: usize, slot: usize, side: Option<ValueId>) {
    let Some(side) = side else { return };
    let alone = edit.graph.nodes[node].outputs[slot];
    let adds = |n: &crate::graph::Node| n.op.name() == "Add" && n.inputs[..] == [alone, Some(side)];
    let Some(sum) = edit.graph.nodes.iter().position(adds) else { return };
    let y = edit.graph.nodes[sum].outputs[0].take();
    edit.graph.nodes[node].outputs[slot] = y;
}

/// Adds `change` (as the product takes its weight) to the weight that the nodes share; whether it was done.
fn add(edit: &mut Edit, node: usize, t: &Target, nodes: &[usize], change: &[f64]) -> bool {
    if !only_readers(edit, t.weight, nodes) {
        return false;
    }
    match edit.graph.nodes[node].op.name() {
        "MatMulNBits" => blocks(edit, node, t, change),
        "MatMulInteger" => integers(edit, node, t, change),
        "DynamicQuantizeMatMul" => false,
        _ => {
            let change: Vec<f64> = change.iter().map(|c| c / f64::from(t.gain)).collect();
            constant(edit, node, t, &change).is_some()
        }
    }
}

/// Whether nobody but those nodes reads the constant, movers and dequantisation in between.
fn only_readers(edit: &Edit, v: ValueId, nodes: &[usize]) -> bool {
    edit.graph.nodes.iter().enumerate().all(|(i, n)| {
        if !n.inputs.contains(&Some(v)) || nodes.contains(&i) {
            return true;
        }
        let passes =
            n.op.name() == "DequantizeLinear" && n.inputs[0] == Some(v) || parameters::MOVERS.contains(&n.op.name());
        passes && n.outputs.iter().flatten().all(|&y| !edit.is_output(y) && only_readers(edit, y, nodes))
    })
}

/// A weight in floats, or behind `DequantizeLinear`.
fn constant(edit: &mut Edit, node: usize, t: &Target, change: &[f64]) -> Option<()> {
    let w = edit.graph.values[t.weight].constant.clone()?;
    // From the operand back to the constant: whether it is turned on the way.
    let mut turned = t.transposed;
    let mut v = edit.graph.nodes[node].inputs.get(1).copied().flatten()?;
    let mut dequantise = None;
    while v != t.weight {
        let at = maker(edit, v)?;
        match edit.graph.nodes[at].op.name() {
            "Transpose" if w.shape().len() == 2 => turned = !turned,
            "DequantizeLinear" => dequantise = Some(at),
            "Cast" | "Identity" => {}
            _ => return None,
        }
        v = edit.graph.nodes[at].inputs.first().copied().flatten()?;
    }
    let change = match (&t.kind, turned) {
        (Kind::Linear { k, n }, true) => (0..k * n).map(|e| change[e % k * n + e / k]).collect(),
        _ => change.to_vec(),
    };
    if change.len() != w.len() {
        return None;
    }
    let Some(at) = dequantise else {
        let sum: Vec<f64> = w.data().to_f64().iter().zip(&change).map(|(w, c)| w + c).collect();
        edit.graph.values[t.weight].constant = Some(Arc::new(Tensor::from_f64(w.dtype(), w.shape(), &sum).ok()?));
        return Some(());
    };
    let Op::Own(_, attrs) = &edit.graph.nodes[at].op else { return None };
    if attrs.int("block_size", 0).ok()? != 0 {
        return None;
    }
    let axis = attrs.int("axis", 1).ok()?;
    let (s_id, scale) = edit.operand(at, 1)?;
    let zero = edit.operand(at, 2);
    let rank = w.shape().len() as i64;
    let axis = (scale.len() > 1).then(|| usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()).flatten();
    // A scale that something else reads as well must stay.
    let alone = |v: ValueId| edit.graph.nodes.iter().filter(|n| n.inputs.contains(&Some(v))).count() == 1;
    let zeros: Vec<f64> = zero.as_ref().map_or(vec![0.0; scale.len()], |(_, z)| z.data().to_f64());
    let middle = whole_middle(w.dtype(), &zeros);
    if !alone(s_id) || middle.is_none() && !zero.as_ref().is_some_and(|(z, _)| alone(*z)) {
        return None;
    }
    let scales = scale.data().to_f64();
    let channel = crate::quant::channel(w.shape(), axis);
    let real: Vec<f64> = w
        .data()
        .to_f64()
        .iter()
        .zip(&change)
        .enumerate()
        .map(|(i, (q, d))| {
            let c = channel(i);
            (q - zeros[c]) * scales[c] + d
        })
        .collect();
    let made = Whole::of(&real, w.dtype(), scales.len(), &channel, middle)?;
    let shape = w.shape().to_vec();
    edit.graph.values[t.weight].constant = Some(Arc::new(made.codes(w.dtype(), &shape)?));
    edit.graph.values[s_id].constant =
        Some(Arc::new(Tensor::from_f64(scale.dtype(), scale.shape(), &made.scales).ok()?));
    if let (None, Some((z, t))) = (middle, &zero) {
        edit.graph.values[*z].constant = Some(Arc::new(Tensor::from_f64(t.dtype(), t.shape(), &made.zeros).ok()?));
    }
    follow(edit, node, &scales, &made.scales);
    Some(())
}

/// The code that stands for 0, where a whole weight is symmetric.
fn whole_middle(dtype: DType, zeros: &[f64]) -> Option<f64> {
    let (low, high) = dtype.range()?;
    let middle = (low + high + 1).div_euclid(2) as f64;
    zeros.iter().all(|&z| z == middle).then_some(middle)
}

/// Whole numbers that stand for reals.
struct Whole {
    codes: Vec<f64>,
    scales: Vec<f64>,
    zeros: Vec<f64>,
}

impl Whole {
    fn of(
        real: &[f64],
        dtype: DType,
        channels: usize,
        channel: &dyn Fn(usize) -> usize,
        middle: Option<f64>,
    ) -> Option<Whole> {
        let (low, high) = dtype.range()?;
        let (low, high) = (low as f64, high as f64);
        let (mut least, mut most) = (vec![0f64; channels], vec![0f64; channels]);
        for (i, v) in real.iter().enumerate() {
            let c = channel(i);
            (least[c], most[c]) = (least[c].min(*v), most[c].max(*v));
        }
        let mut out = Whole { codes: Vec::with_capacity(real.len()), scales: Vec::new(), zeros: Vec::new() };
        for c in 0..channels {
            let (scale, zero) = match middle {
                // As the quantiser does it: the lowest code is not used.
                Some(middle) => (most[c].max(-least[c]) / (high - middle), middle),
                None => {
                    let scale = (most[c] - least[c]) / (high - low);
                    (scale, if scale > 0.0 { (low - least[c] / scale).round_ties_even().clamp(low, high) } else { low })
                }
            };
            // Scales are held as f32, and codes must be those of the scale that is held.
            out.scales.push(if scale as f32 > 0.0 { f64::from(scale as f32) } else { 1.0 });
            out.zeros.push(zero);
        }
        for (i, v) in real.iter().enumerate() {
            let c = channel(i);
            out.codes.push(((v / out.scales[c]).round_ties_even() + out.zeros[c]).clamp(low, high));
        }
        Some(out)
    }

    fn codes(&self, dtype: DType, shape: &[usize]) -> Option<Tensor> {
        let codes: Vec<i128> = self.codes.iter().map(|&c| c as i128).collect();
        Tensor::from_i128(dtype, shape, &codes).ok()
    }
}

/// A 32-bit bias keeps its value in the new steps of its weight.
fn follow(edit: &mut Edit, node: usize, before: &[f64], after: &[f64]) {
    let Some(v) = edit.graph.nodes[node].inputs.get(2).copied().flatten() else { return };
    let Some(at) = maker(edit, v) else { return };
    if edit.graph.nodes[at].op.name() != "DequantizeLinear" {
        return;
    }
    let (Some((b_id, b)), Some((s_id, s))) = (edit.operand(at, 0), edit.operand(at, 1)) else { return };
    if b.dtype() != DType::I32 {
        return;
    }
    let at = |v: &[f64], c: usize| v[if v.len() == 1 { 0 } else { c.min(v.len() - 1) }];
    let old = s.data().to_f64();
    let scale: Vec<f64> = (0..old.len().max(before.len()))
        .map(|c| f64::from((at(&old, c) * at(after, c) / at(before, c)) as f32))
        .collect();
    let codes: Vec<i128> = b
        .data()
        .to_f64()
        .iter()
        .enumerate()
        .map(|(c, q)| (q * at(&old, c) / at(&scale, c)).round_ties_even() as i128)
        .collect();
    let shape: Vec<usize> = if scale.len() == old.len() { s.shape().to_vec() } else { vec![scale.len()] };
    if let (Ok(q), Ok(s)) =
        (Tensor::from_i128(DType::I32, b.shape(), &codes), Tensor::from_f64(s.dtype(), &shape, &scale))
    {
        edit.graph.values[b_id].constant = Some(Arc::new(q));
        edit.graph.values[s_id].constant = Some(Arc::new(s));
    }
}

/// The weight of `MatMulInteger`: `[K, N]`, its scale in the product that makes the result real.
fn integers(edit: &mut Edit, node: usize, t: &Target, change: &[f64]) -> bool {
    let scales = || {
        let v = edit.graph.nodes[t.made_by].inputs.get(1).copied().flatten()?;
        let product = maker(edit, v)?;
        edit.operand(product, 1).or_else(|| edit.operand(product, 0)).map(|(id, s)| (id, s, product))
    };
    let Some((s_id, scale, product)) = scales() else { return false };
    let readers = edit.graph.nodes.iter().enumerate().filter(|(_, n)| n.inputs.contains(&Some(s_id)));
    if readers.map(|(i, _)| i).ne([product]) {
        return false;
    }
    let Some(w) = edit.graph.values[t.weight].constant.clone() else { return false };
    let zero = edit.operand(node, 3);
    let axis = (scale.len() > 1).then(|| w.shape().len() - 1);
    let zeros: Vec<f64> = match &zero {
        Some((_, z)) if z.len() == scale.len() => z.data().to_f64(),
        Some((_, z)) if z.len() == 1 => vec![z.data().to_f64()[0]; scale.len()],
        Some(_) => return false,
        None => vec![0.0; scale.len()],
    };
    let Some(middle) = whole_middle(w.dtype(), &zeros) else { return false };
    let scales = scale.data().to_f64();
    let channel = crate::quant::channel(w.shape(), axis);
    let codes = w.data().to_f64();
    let real: Vec<f64> =
        codes.iter().zip(change).enumerate().map(|(i, (q, d))| (q - middle) * scales[channel(i)] + d).collect();
    let Some(made) = Whole::of(&real, w.dtype(), scales.len(), &channel, Some(middle)) else { return false };
    let (q, s) = (made.codes(w.dtype(), w.shape()), Tensor::from_f64(scale.dtype(), scale.shape(), &made.scales));
    let (Some(q), Ok(s)) = (q, s) else { return false };
    edit.graph.values[t.weight].constant = Some(Arc::new(q));
    edit.graph.values[s_id].constant = Some(Arc::new(s));
    true
}

/// The weight of `MatMulNBits`, in blocks along rows of `[N, K]`.
fn blocks(edit: &mut Edit, node: usize, t: &Target, change: &[f64]) -> bool {
    let Op::Own(_, attrs) = edit.graph.nodes[node].op.clone() else { return false };
    let Kind::Linear { k, n } = t.kind else { return false };
    let operands: Vec<Option<Arc<Tensor>>> = (0..5).map(|i| edit.operand(node, i).map(|(_, t)| t)).collect();
    let refs: Vec<Option<&Tensor>> = operands.iter().map(|t| t.as_deref()).collect();
    // An order of its own for columns is nobody's business here.
    if operands[4].is_some() {
        return false;
    }
    let Ok(w) = ops::nbits_weight(&attrs, &refs) else { return false };
    let real: Vec<f32> = (0..n * k).map(|e| (f64::from(w[e]) + change[e % k * n + e / k]) as f32).collect();
    let int = |name: &str, default| attrs.int(name, default).ok().and_then(|v| usize::try_from(v).ok());
    let (Some(bits), Some(size)) = (int("bits", 4), int("block_size", 0)) else { return false };
    let Some(made) = repack(&real, k, bits, size, operands[3].is_none()) else { return false };
    let mut list = vec![(1, made.codes), (2, made.scales)];
    list.extend(made.zeros.map(|z| (3, z)));
    for (slot, t) in &list {
        let Some((_, before)) = edit.operand(node, *slot) else { return false };
        if before.len() != t.len() || before.dtype() != t.dtype() {
            return false;
        }
    }
    for (slot, made) in list {
        let Some((id, before)) = edit.operand(node, slot) else { continue };
        if let Ok(t) = made.reshaped(before.shape()) {
            edit.graph.values[id].constant = Some(Arc::new(t));
        }
    }
    true
}

/// Adds a difference to the last layer's weight `[C, d]` and bias `[C]`, by the names of its constants.
///
/// # Errors
/// [`ScopeError::NoHead`] when they are no `f32` constants of a `Gemm` or `MatMul`.
pub fn add_head(graph: &mut Graph, weight: &str, bias: Option<&str>, dw: &[f32], db: &[f32]) -> Result<(), ScopeError> {
    let no = |why: String| ScopeError::NoHead { why };
    let id = |graph: &Graph, name: &str| {
        let v =
            graph.values.iter().position(|v| v.name == name && v.constant.as_ref().is_some_and(|t| super::is_float(t)));
        v.ok_or_else(|| no(format!("`{name}` is no f32 constant of the graph")))
    };
    let w = id(graph, weight)?;
    let readers: BTreeSet<usize> =
        (0..graph.nodes.len()).filter(|&i| graph.nodes[i].inputs.get(1) == Some(&Some(w))).collect();
    let Some(Op::Own(def, attrs)) = readers.first().map(|&i| &graph.nodes[i].op) else {
        return Err(no(format!("`{weight}` is no weight of a layer")));
    };
    let classes = db.len();
    let rows = def.name == "Gemm" && attrs.int("transB", 0).is_ok_and(|t| t != 0);
    let d = dw.len() / classes.max(1);
    let mut change = |v: ValueId, add: &dyn Fn(usize) -> f32| -> Result<(), ScopeError> {
        let t = graph.values[v].constant.clone().ok_or_else(|| no("a weight is gone".into()))?;
        let sum = t.as_f32().map_err(|e| no(e.to_string()))?.iter().enumerate().map(|(i, x)| x + add(i)).collect();
        let t = Tensor::f32(t.shape(), sum).map_err(|e| no(e.to_string()))?;
        graph.values[v].constant = Some(Arc::new(t));
        Ok(())
    };
    change(w, &|i| if rows { dw[i] } else { dw[i % classes * d + i / classes] })?;
    match bias {
        None if db.iter().all(|&b| b == 0.0) => Ok(()),
        None => Err(no("it has no bias, and a correction learned from presses needs one".into())),
        Some(name) => {
            let b = id(graph, name)?;
            let t = graph.values[b].constant.clone().ok_or_else(|| no("a bias is gone".into()))?;
            let sum = t.as_f32().map_err(|e| no(e.to_string()))?.iter().zip(db).map(|(x, d)| x + d).collect();
            graph.values[b].constant = Some(Arc::new(Tensor::f32(t.shape(), sum).map_err(|e| no(e.to_string()))?));
            Ok(())
        }
    }
}
