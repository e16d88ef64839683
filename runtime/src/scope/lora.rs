//! `lora`: a low-rank path `s · (x · A) · B` beside a product `x · W` (Hu et al., 2021), whatever numbers `W` is kept
//! in.
//!
//! `A` is drawn by the seed as PyTorch draws a layer's weight, `B` is 0: the path adds nothing until it is trained.
//! Beside a convolution, `A` is a convolution of `r` channels with its strides, padding and dilations, `B` one of 1×1.
//! Layers that share a weight share its path.
use std::collections::BTreeMap;
use std::sync::Arc;

use super::parameters::{self, Behind};
use super::{Placing, Scope, ScopeError, uniform};
use crate::graph::{Op, ValueId};
use crate::ops::Attrs;
use crate::quant::edit::{Edit, glob};
use crate::tensor::DType;

/// The row of [`super::SCOPES`].
pub(super) static LORA: Scope = Scope {
    name: "lora",
    doc: "low-rank paths beside the weights of MatMul, Gemm and Conv without groups, quantised or not",
    changes_features: true,
    place,
};

/// A low-rank path.
#[derive(Clone, Debug, PartialEq)]
pub struct Side {
    /// What the layer is called, see [`Spec::targets`](super::Spec::targets).
    pub layer: String,
    /// The constant that holds its weight.
    pub weight: String,
    /// The constant `A`: `[K, r]`, or `[r, C, k…]` of a convolution.
    pub a: String,
    /// The constant `B`: `[r, N]`, or `[N, r, 1…]` of a convolution.
    pub b: String,
    /// `s`.
    pub scale: f32,
    /// Nodes whose product it stands beside, by name.
    pub nodes: Vec<String>,
}

/// What a layer computes with its weight.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// `x [… K] · W [K, N]`.
    Linear { k: usize, n: usize },
    /// A convolution with a weight of that shape.
    Conv { shape: Vec<usize>, attrs: Arc<Attrs> },
}

/// A layer that can have something beside it.
pub(super) struct Target {
    /// What it reads, in floats.
    pub(super) x: ValueId,
    /// The node and result that hold its product in floats.
    pub(super) made_by: usize,
    pub(super) slot: usize,
    pub(super) kind: Kind,
    /// What it is called.
    pub(super) stem: String,
    /// The constant that holds its weight, and whether the product takes it transposed.
    pub(super) weight: ValueId,
    pub(super) transposed: bool,
    /// What the product is multiplied by.
    pub(super) gain: f32,
    /// Of what half floats it reads and gives are, if they are such.
    pub(super) half: Option<DType>,
}

/// The layer a node is, if it is one.
pub(super) fn target(edit: &Edit, node: usize) -> Option<Target> {
    let n = &edit.graph.nodes[node];
    let Op::Own(def, attrs) = &n.op else { return None };
    let input = |i: usize| n.inputs.get(i).copied().flatten();
    let flag = |name: &str| attrs.int(name, 0).is_ok_and(|v| v != 0);
    let gain = attrs.float("alpha", 1.0).unwrap_or(0.0);
    let constant = |v: ValueId| edit.graph.values[v].constant.is_some();
    let of = |x: ValueId, weight: ValueId, kind: Kind, transposed: bool| {
        let stem = parameters::stem(edit, weight, node);
        let half = match def.name {
            "MatMul" | "Gemm" | "FusedMatMul" | "Conv" => input(1).and_then(|w| parameters::half(edit, w)),
            "MatMulNBits" => input(2).and_then(|s| parameters::half(edit, s)),
            _ => None,
        };
        Some(Target { x, made_by: node, slot: 0, kind, stem, weight, transposed, gain: 1.0, half })
    };
    let held = |v: ValueId| match parameters::behind(edit, v)? {
        Behind::Float(id) | Behind::Quantised(id) => Some(id),
    };
    let varies = |x: ValueId| parameters::behind(edit, x).is_none() && !constant(x);
    match def.name {
        "MatMul" | "Gemm" | "FusedMatMul" => {
            let (x, w) = (input(0)?, input(1)?);
            let weight = held(w)?;
            let &[rows, columns] = &parameters::shape(edit, w)?[..] else { return None };
            let plain =
                !flag("transA") && gain != 0.0 && gain.is_finite() && !flag("transBatchA") && !flag("transBatchB");
            if !varies(x) || !plain {
                return None;
            }
            let transposed = flag("transB");
            let (k, n) = if transposed { (columns, rows) } else { (rows, columns) };
            Some(Target { gain, ..of(x, weight, Kind::Linear { k, n }, transposed)? })
        }
        "Conv" => {
            let (x, w) = (input(0)?, input(1)?);
            let weight = held(w)?;
            let shape = parameters::shape(edit, w)?;
            if !varies(x) || shape.len() < 3 || attrs.int("group", 1).ok()? != 1 {
                return None;
            }
            of(x, weight, Kind::Conv { shape, attrs: attrs.clone() }, false)
        }
        "MatMulNBits" => {
            let (k, n) = (attrs.int("K", 0).ok()?, attrs.int("N", 0).ok()?);
            let kind = Kind::Linear { k: usize::try_from(k).ok()?, n: usize::try_from(n).ok()? };
            of(input(0)?, input(1).filter(|&w| constant(w))?, kind, false)
        }
        "DynamicQuantizeMatMul" => {
            let w = input(1)?;
            let &[k, n] = edit.graph.values[w].constant.as_ref()?.shape() else { return None };
            of(input(0)?, w, Kind::Linear { k, n }, false)
        }
        "MatMulInteger" => {
            let w = input(1)?;
            let &[k, n] = edit.graph.values[w].constant.as_ref()?.shape() else { return None };
            let quantise = &edit.graph.nodes[parameters::maker(edit, input(0)?)?];
            if quantise.op.name() != "DynamicQuantizeLinear" {
                return None;
            }
            let x = quantise.inputs.first().copied().flatten()?;
            let cast = reader(edit, n_output(edit, node)?, "Cast")?;
            let scale = reader(edit, n_output(edit, cast)?, "Mul")?;
            let mut found = of(x, w, Kind::Linear { k, n }, false)?;
            found.made_by = scale;
            Some(found)
        }
        _ => None,
    }
}

fn n_output(edit: &Edit, node: usize) -> Option<ValueId> {
    edit.graph.nodes[node].outputs.first().copied().flatten()
}

/// The only reader of a value, if it is of that operator.
fn reader(edit: &Edit, v: ValueId, op: &str) -> Option<usize> {
    let mut readers = edit.graph.nodes.iter().enumerate().filter(|(_, n)| n.inputs.contains(&Some(v)));
    let (only, n) = readers.next()?;
    (readers.next().is_none() && n.op.name() == op && !edit.is_output(v)).then_some(only)
}

/// The product of whole numbers whose result in floats a node gives, if it gives one.
pub(super) fn scaled_product(edit: &Edit, node: usize) -> Option<usize> {
    let cast = parameters::maker(edit, edit.graph.nodes[node].inputs.first().copied().flatten()?)?;
    let product = parameters::maker(edit, edit.graph.nodes[cast].inputs.first().copied().flatten()?)?;
    target(edit, product).filter(|t| t.made_by == node).map(|_| product)
}

/// `x` times a weight of the layer's kind, as `y`.
pub(super) fn product(p: &mut Placing<'_>, kind: &Kind, name: &str, x: ValueId, weight: ValueId, y: ValueId) {
    match kind {
        Kind::Linear { .. } => {
            p.edit.node(("", "MatMul"), name, &[Some(x), Some(weight)], &[y], []);
        }
        Kind::Conv { attrs, .. } => {
            let node = p.edit.node(("", "Conv"), name, &[Some(x), Some(weight)], &[y], []);
            if let Op::Own(def, own) = &p.edit.graph.nodes[node].op {
                let attrs = Attrs { map: attrs.map.clone(), outputs: 1, opset: own.opset };
                p.edit.graph.nodes[node].op = Op::Own(def, Arc::new(attrs));
            }
        }
    }
}

fn place(p: &mut Placing<'_>) -> Result<(), ScopeError> {
    let all: Vec<(usize, Target)> = p
        .nodes()
        .into_iter()
        .filter(|node| !p.headed.contains(node))
        .filter_map(|node| Some((node, target(&p.edit, node)?)))
        .collect();
    let fits = |pattern: &str, (node, t): &(usize, Target)| {
        let names = [&t.stem, &p.edit.name(t.weight), &p.edit.graph.nodes[*node].name];
        names.iter().any(|name| glob(pattern.as_bytes(), name.as_bytes()))
    };
    for pattern in &p.spec.targets {
        if !all.iter().any(|t| fits(pattern, t)) {
            let mut has: Vec<String> = all.iter().map(|(_, t)| t.stem.clone()).collect();
            has.dedup();
            return Err(ScopeError::Pattern { pattern: pattern.clone(), has });
        }
    }
    let chosen: Vec<bool> = all
        .iter()
        .map(|t| p.spec.targets.is_empty() || p.spec.targets.iter().any(|pattern| fits(pattern, t)))
        .collect();
    let scale = p.spec.alpha / p.spec.rank as f32;
    let mut made: BTreeMap<(ValueId, bool), (usize, ValueId, ValueId, ValueId)> = BTreeMap::new();
    for ((node, t), _) in all.iter().zip(chosen).filter(|(_, chosen)| *chosen) {
        let key = (t.weight, t.transposed);
        let (at, a, b, s) = match made.get(&key) {
            Some(&found) => found,
            None => {
                let found = path(p, t, scale);
                made.insert(key, found);
                found
            }
        };
        let name = p.edit.graph.nodes[*node].name.clone();
        let (narrow, scaled, side) = (
            p.edit.value(&format!("{name}/lora_A")),
            p.edit.value(&format!("{name}/lora_scaled")),
            p.edit.value(&format!("{name}/lora_B")),
        );
        let x = p.wide(t.x, t.half);
        let made = p.narrowed(side, t.half);
        product(p, &t.kind, &format!("{name}/lora_A"), x, a, narrow);
        p.edit.node(("", "Mul"), &format!("{name}/lora_scaled"), &[Some(narrow), Some(s)], &[scaled], []);
        let op = if matches!(t.kind, Kind::Linear { .. }) { "MatMul" } else { "Conv" };
        p.edit.node(("", op), &format!("{name}/lora_B"), &[Some(scaled), Some(b)], &[made], []);
        p.beside(t.made_by, t.slot, side);
        p.sides[at].nodes.push(name);
    }
    Ok(())
}

/// The constants of a path: its place among the sides, `A`, `B` and the scale.
fn path(p: &mut Placing<'_>, t: &Target, scale: f32) -> (usize, ValueId, ValueId, ValueId) {
    let r = p.spec.rank;
    let (a, b, fan) = match &t.kind {
        Kind::Linear { k, n } => (vec![*k, r], vec![r, *n], *k),
        Kind::Conv { shape, .. } => {
            let inner = &shape[1..];
            let one = vec![1; shape.len() - 2];
            ([&[r][..], inner].concat(), [vec![shape[0], r], one].concat(), inner.iter().product())
        }
    };
    let (a_name, b_name) = (format!("{}.lora_A", t.stem), format!("{}.lora_B", t.stem));
    // As `torch.nn.Linear.reset_parameters` and PEFT: Kaiming's uniform with a = √5 is 1/√fan.
    let bound = 1.0 / (fan.max(1) as f32).sqrt();
    let values = uniform(p.spec.seed, &a_name, a.iter().product(), bound);
    let a = if p.spec.freeze_a {
        p.edit.constant(&a_name, crate::quant::edit::tensor(&a, values))
    } else {
        p.leaf(&a_name, &a, values, true)
    };
    let zeros = vec![0.0; b.iter().product()];
    let b = p.leaf(&b_name, &b, zeros, true);
    let s = p.edit.scalar(&format!("{}.lora_scale", t.stem), scale);
    p.sides.push(Side {
        layer: t.stem.clone(),
        weight: p.edit.name(t.weight),
        a: p.edit.name(a),
        b: p.edit.name(b),
        scale,
        nodes: Vec::new(),
    });
    (p.sides.len() - 1, a, b, s)
}
