//! Functions that files spell out in several operators become the one operator they are: `HardSigmoid`, `HardSwish`,
//! `Swish`, `Gelu`, `LayerNormalization`, `Attention`, products of integers that are scaled.
use std::sync::Arc;

use super::{Here, Net};
use crate::graph::ValueId;
use crate::ops::{Attr, Attrs, OpDef, OpError, find, internal};
use crate::tensor::DType;

/// One form: finds it ending at node `i` and says what it is.
type Form = fn(&Net<'_>, Here<'_>) -> Option<Found>;

/// What a form stands for.
struct Found {
    def: &'static OpDef,
    attrs: Attrs,
    inputs: Vec<Option<ValueId>>,
    /// Values of the form itself, from which nobody else may read; their makers are removed, last to first.
    inner: Vec<ValueId>,
}

/// Forms by the operator they end in, in sweeps over all nodes. Each needs the ones above it to be done.
static SWEEPS: &[&[(&str, Form)]] = &[WHOLE, FORMS];

/// Forms that hold another one, and must be seen before it.
static WHOLE: &[(&str, Form)] = &[("Reshape", attention_of_tokens)];

static FORMS: &[(&str, Form)] = &[
    ("Div", hard_sigmoid),
    ("Mul", hard_sigmoid),
    ("Mul", gated),
    ("Div", hard_swish_last),
    ("Mul", hard_swish_last),
    ("Mul", gelu),
    ("Add", layer_norm),
    ("Mul", scaled_integers),
    ("MatMul", attention),
];

pub(super) fn run(net: &mut Net<'_>) -> Result<(), OpError> {
    let n = net.len();
    for (sweep, i) in SWEEPS.iter().flat_map(|s| (0..n).map(move |i| (s, i))) {
        for (ends_in, form) in *sweep {
            let Some(found) = net.is(i, ends_in).and_then(|h| form(net, h)) else { continue };
            // All the values of the form are read by the form alone.
            let inside = |v: ValueId| {
                found.inner.iter().filter(|&&u| u == v).count() == net.readers[v] && net.maker(v).is_some()
            };
            if !found.inner.iter().all(|&v| inside(v)) {
                continue;
            }
            let mut makers: Vec<usize> = found.inner.iter().filter_map(|&v| net.maker(v)).collect();
            makers.sort_unstable();
            makers.dedup();
            net.replace(i, found.def, Arc::new(found.attrs), found.inputs);
            makers.into_iter().rev().for_each(|m| net.remove(m));
        }
    }
    Ok(())
}

fn operator(name: &str) -> Option<&'static OpDef> {
    find("", name)
}

/// The operands of a commutative operator, the constant of one float second.
fn with_scalar(net: &Net<'_>, h: Here<'_>) -> Option<(ValueId, f32)> {
    let (a, b) = (h.input(0)?, h.input(1)?);
    let value = |x: ValueId, s: ValueId| {
        let value = net.scalar(s)?;
        (net.shape(h.output()?) == net.shape(x)).then_some((x, value))
    };
    value(a, b).or_else(|| if matches!(h.def.name, "Add" | "Mul") { value(b, a) } else { None })
}

fn near(a: f32, b: f32) -> bool {
    (a - b).abs() <= 1e-6 * b.abs().max(1.0)
}

/// `x + 3` held between 0 and 6: gives `x`, and the values between.
fn relu6_of_shifted(net: &Net<'_>, v: ValueId) -> Option<(ValueId, [ValueId; 2])> {
    let clip = net.made_by(v, "Clip")?;
    let bound = |i: usize, name: &str| match clip.input(i) {
        Some(b) => net.scalar(b),
        None => clip.attrs.float(name, f32::NAN).ok(),
    };
    if !(near(bound(1, "min")?, 0.0) && near(bound(2, "max")?, 6.0)) {
        return None;
    }
    let sum = clip.input(0)?;
    let (x, three) = with_scalar(net, net.made_by(sum, "Add")?)?;
    near(three, 3.0).then_some((x, [v, sum]))
}

/// `clip(x + 3, 0, 6) / 6`.
fn hard_sigmoid(net: &Net<'_>, h: Here<'_>) -> Option<Found> {
    let (v, factor) = with_scalar(net, h)?;
    if !near(if h.def.name == "Div" { 1.0 / factor } else { factor }, 1.0 / 6.0) {
        return None;
    }
    let (x, inner) = relu6_of_shifted(net, v)?;
    let attrs = Attrs::of([("alpha", Attr::Float(1.0 / 6.0)), ("beta", Attr::Float(0.5))]);
    Some(Found { def: operator("HardSigmoid")?, attrs, inputs: vec![Some(x)], inner: inner.to_vec() })
}

/// `x · sigmoid(x)` and `x · hard_sigmoid(x)`.
fn gated(net: &Net<'_>, h: Here<'_>) -> Option<Found> {
    let (a, b) = (h.input(0)?, h.input(1)?);
    [(a, b), (b, a)].into_iter().find_map(|(x, gate)| {
        let (name, attrs) = if net.made_by(gate, "Sigmoid").is_some_and(|s| s.input(0) == Some(x)) {
            ("Swish", Attrs::of([]))
        } else {
            let gate = net.made_by(gate, "HardSigmoid")?;
            let (alpha, beta) = (gate.attrs.float("alpha", 0.2).ok()?, gate.attrs.float("beta", 0.5).ok()?);
            if gate.input(0) != Some(x) || !near(alpha, 1.0 / 6.0) || !near(beta, 0.5) {
                return None;
            }
            ("HardSwish", Attrs::of([]))
        };
        Some(Found { def: operator(name)?, attrs, inputs: vec![Some(x)], inner: vec![gate] })
    })
}

/// `x · clip(x + 3, 0, 6) / 6`, the division last.
fn hard_swish_last(net: &Net<'_>, h: Here<'_>) -> Option<Found> {
    let (product, factor) = with_scalar(net, h)?;
    if !near(if h.def.name == "Div" { 1.0 / factor } else { factor }, 1.0 / 6.0) {
        return None;
    }
    let m = net.made_by(product, "Mul")?;
    let (a, b) = (m.input(0)?, m.input(1)?);
    [(a, b), (b, a)].into_iter().find_map(|(x, gate)| {
        let (of, inner) = relu6_of_shifted(net, gate)?;
        let inner = vec![product, inner[0], inner[1]];
        let def = operator("HardSwish")?;
        (of == x).then(|| Found { def, attrs: Attrs::of([]), inputs: vec![Some(x)], inner })
    })
}

/// `x · (1 + erf(x / √2)) / 2`, the half at any of its places.
fn gelu(net: &Net<'_>, h: Here<'_>) -> Option<Found> {
    let mut inner = Vec::new();
    let mut half = false;
    // The factors of the product that ends here, a constant half taken out wherever it is.
    let mut factors = Vec::new();
    let mut open = vec![h];
    while let Some(product) = open.pop() {
        for v in [product.input(0)?, product.input(1)?] {
            match net.made_by(v, "Mul") {
                _ if !half && net.scalar(v).is_some_and(|s| near(s, 0.5)) => half = true,
                Some(deeper) if factors.len() + open.len() < 2 && net.readers[v] == 1 => {
                    inner.push(v);
                    open.push(deeper);
                }
                _ => factors.push(v),
            }
        }
    }
    let [a, b] = factors[..] else { return None };
    if !half {
        return None;
    }
    [(a, b), (b, a)].into_iter().find_map(|(x, gate)| {
        let (erf, one) = with_scalar(net, net.made_by(gate, "Add")?)?;
        let scaled = net.made_by(erf, "Erf")?.input(0)?;
        let maker = net.is(net.maker(scaled)?, "Div").or_else(|| net.made_by(scaled, "Mul"))?;
        let (of, factor) = with_scalar(net, maker)?;
        let factor = if maker.def.name == "Div" { 1.0 / factor } else { factor };
        if of != x || !near(one, 1.0) || !near(factor, std::f32::consts::FRAC_1_SQRT_2) {
            return None;
        }
        let mut inner = inner.clone();
        inner.extend([gate, erf, scaled]);
        Some(Found { def: operator("Gelu")?, attrs: Attrs::of([]), inputs: vec![Some(x)], inner })
    })
}

/// `(x - mean) / sqrt(mean((x - mean)²) + epsilon) · scale + shift` over the last axis.
fn layer_norm(net: &Net<'_>, h: Here<'_>) -> Option<Found> {
    let row = |v: ValueId, of: usize| net.shape(v) == [of];
    let sides = |h: Here<'_>| Some([(h.input(0)?, h.input(1)?), (h.input(1)?, h.input(0)?)]);
    let out = *net.shape(h.output()?).last()?;
    let (scaled, shift) = sides(h)?.into_iter().find(|&(_, s)| row(s, out))?;
    let (normed, scale) = sides(net.made_by(scaled, "Mul")?)?.into_iter().find(|&(_, s)| row(s, out))?;
    let quotient = net.made_by(normed, "Div")?;
    let (centred, root) = (quotient.input(0)?, quotient.input(1)?);
    let sum = net.made_by(root, "Sqrt")?.input(0)?;
    let (variance, epsilon) =
        sides(net.made_by(sum, "Add")?)?.into_iter().find_map(|(v, e)| Some((v, net.scalar(e)?)))?;
    let square = mean_of_last(net, variance)?;
    let squared = net.at(net.maker(square)?)?;
    let base = squared.input(0)?;
    // Every value once for each time the form reads it.
    let mut inner = vec![scaled, normed, root, sum, variance, square, centred, base];
    match squared.def.name {
        "Pow" if near(net.scalar(squared.input(1)?)?, 2.0) => {}
        "Mul" if squared.input(1) == Some(base) => inner.push(base),
        _ => return None,
    }
    let difference = |v: ValueId| {
        let d = net.made_by(v, "Sub")?;
        let (x, mean) = (d.input(0)?, d.input(1)?);
        (mean_of_last(net, mean)? == x).then_some((x, mean))
    };
    let (x, mean) = difference(centred)?;
    inner.push(mean);
    if base != centred {
        // Some exporters take the difference twice.
        let (again, second) = difference(base)?;
        inner.push(second);
        if again != x {
            return None;
        }
    }
    let attrs = Attrs::of([("axis", Attr::Int(-1)), ("epsilon", Attr::Float(epsilon))]);
    let f32s = [x, scale, shift].iter().all(|&v| net.fact(v).is_some_and(|f| f.dtype == DType::F32));
    let def = operator("LayerNormalization")?;
    (f32s && net.shape(x).last() == Some(&out)).then(|| Found {
        def,
        attrs,
        inputs: vec![Some(x), Some(scale), Some(shift)],
        inner,
    })
}

/// `cast(MatMulInteger(q, w)) · (scale of q · scales of w)`, with constant weights.
fn scaled_integers(net: &Net<'_>, h: Here<'_>) -> Option<Found> {
    let (a, b) = (h.input(0)?, h.input(1)?);
    let one = |v: ValueId| net.shape(v).iter().product::<usize>() == 1 && net.constant(v).is_none();
    [(a, b), (b, a)].into_iter().find_map(|(real, scales)| {
        let cast = net.made_by(real, "Cast")?;
        let sums = cast.input(0)?;
        let product = net.made_by(sums, "MatMulInteger")?;
        let both = net.made_by(scales, "Mul")?;
        let (s, t) = (both.input(0)?, both.input(1)?);
        let (of_q, of_w) = if one(s) { (s, t) } else { (t, s) };
        let (w, columns) = (net.constant(product.input(1)?)?, *net.shape(real).last()?);
        let w_scale = net.constant(of_w)?;
        let fits = net.fact(real)?.dtype == DType::F32
            && one(of_q)
            && w.shape().len() == 2
            && w_scale.dtype() == DType::F32
            && (w_scale.len() == 1 || w_scale.shape() == [columns])
            && product.input(3).is_none_or(|z| net.constant(z).is_some())
            && net.shape(h.output()?) == net.shape(real);
        let inputs =
            vec![product.input(0), product.input(1), Some(of_q), Some(of_w), product.input(2), product.input(3)];
        let inner = vec![real, sums, scales];
        fits.then(|| Found { def: &internal::PRODUCT_SCALED, attrs: Attrs::of([]), inputs, inner })
    })
}

/// `softmax(q · kᵀ · scale + mask) · v`.
struct Scores {
    q: ValueId,
    /// What is transposed to be multiplied with `q`, and how.
    k: (ValueId, [i64; 4]),
    v: ValueId,
    mask: Option<ValueId>,
    scale: f32,
    inner: Vec<ValueId>,
}

impl Scores {
    /// The form that ends in the product with `v`, over four axes.
    fn of(net: &Net<'_>, h: Here<'_>) -> Option<Scores> {
        let (weights, v) = (h.input(0)?, h.input(1)?);
        let softmax = net.made_by(weights, "Softmax")?;
        let default = if softmax.attrs.opset < 13 { 1 } else { -1 };
        let rows = matches!(softmax.attrs.int("axis", default).ok()?, -1 | 3);
        let all = |v: ValueId| net.shape(v).len() == 4 && net.fact(v).is_some_and(|f| f.dtype == DType::F32);
        let mut inner = vec![weights];
        let mut scores = softmax.input(0)?;
        let mut mask = None;
        if let Some(sum) = net.made_by(scores, "Add") {
            let (a, b) = (sum.input(0)?, sum.input(1)?);
            let product = |v: ValueId| ["MatMul", "Div", "Mul"].iter().any(|n| net.made_by(v, n).is_some());
            let inside = |v: ValueId| product(v) && net.read_once(v) && net.shape(v) == net.shape(scores);
            let (of, added) = [(a, b), (b, a)].into_iter().find(|&(v, _)| inside(v))?;
            // The operator broadcasts a mask over batches, heads and queries, not over keys.
            let (shape, keys) = (net.shape(added), net.shape(scores)[3]);
            if shape.len() < 2 || shape.last() != Some(&keys) || net.fact(added)?.dtype != DType::F32 {
                return None;
            }
            inner.push(scores);
            (scores, mask) = (of, Some(added));
        }
        let mut scale = 1.0;
        if let Some(scaled) = net.made_by(scores, "Div").or_else(|| net.made_by(scores, "Mul")) {
            let (x, s) = with_scalar(net, scaled)?;
            scale = if scaled.def.name == "Div" { 1.0 / s } else { s };
            inner.push(scores);
            scores = x;
        }
        let product = net.made_by(scores, "MatMul")?;
        let (q, turned) = (product.input(0)?, product.input(1)?);
        let keys = net.made_by(turned, "Transpose")?;
        let perm: [i64; 4] = keys.attrs.ints("perm").ok()??.try_into().ok()?;
        inner.extend([scores, turned]);
        let fits = rows && all(q) && all(v) && all(turned) && scale > 0.0;
        let (sq, st, sv) = (net.shape(q), net.shape(turned), net.shape(v));
        let agree = fits && sq[..2] == st[..2] && st[..2] == sv[..2] && sq[3] == st[2] && st[3] == sv[2];
        agree.then_some(Scores { q, k: (keys.input(0)?, perm), v, mask, scale, inner })
    }

    fn found(self, [q, k, v]: [ValueId; 3], heads: Option<usize>) -> Option<Found> {
        let mut attrs = Attrs { opset: 23, ..Attrs::of([("scale", Attr::Float(self.scale))]) };
        for name in ["q_num_heads", "kv_num_heads"] {
            attrs.map.extend(heads.map(|h| (name.to_string(), Attr::Int(h as i64))));
        }
        let inputs = vec![Some(q), Some(k), Some(v), self.mask];
        Some(Found { def: operator("Attention")?, attrs, inputs, inner: self.inner })
    }
}

/// Attention over four axes, heads first.
fn attention(net: &Net<'_>, h: Here<'_>) -> Option<Found> {
    let s = Scores::of(net, h)?;
    let parts = [s.q, s.k.0, s.v];
    (s.k.1 == [0, 1, 3, 2]).then(|| s.found(parts, None))?
}

/// Attention between tokens whose heads are taken apart before and put together after it.
fn attention_of_tokens(net: &Net<'_>, h: Here<'_>) -> Option<Found> {
    let turned = h.input(0)?;
    let apart = |v: ValueId, perm: &[i64]| {
        let t = net.made_by(v, "Transpose")?;
        (t.attrs.ints("perm").ok()?? == perm).then(|| t.input(0))?
    };
    let product = apart(turned, &[0, 2, 1, 3])?;
    let mut s = Scores::of(net, net.made_by(product, "MatMul")?)?;
    let &[b, heads, tokens, width] = net.shape(product) else { return None };
    if net.shape(h.output()?) != [b, tokens, heads * width] {
        return None;
    }
    s.inner.extend([turned, product, s.q, s.v]);
    let keys = match s.k.1 {
        [0, 2, 3, 1] => s.k.0,
        [0, 1, 3, 2] => {
            s.inner.push(s.k.0);
            apart(s.k.0, &[0, 2, 1, 3])?
        }
        _ => return None,
    };
    let split = [apart(s.q, &[0, 2, 1, 3])?, keys, apart(s.v, &[0, 2, 1, 3])?];
    s.inner.extend(split);
    // From tokens of all heads to tokens of one each.
    let whole = |v: ValueId| {
        let x = net.made_by(v, "Reshape")?.input(0)?;
        let &[b, t, h, d] = net.shape(v) else { return None };
        (net.shape(x) == [b, t, h * d]).then_some(x)
    };
    let parts = [whole(split[0])?, whole(split[1])?, whole(split[2])?];
    s.found(parts, Some(heads))
}

/// The operand when `v` is its mean over the last axis, which is kept.
fn mean_of_last(net: &Net<'_>, v: ValueId) -> Option<ValueId> {
    let mean = net.made_by(v, "ReduceMean")?;
    let x = mean.input(0)?;
    let rank = net.shape(x).len();
    let axes = match mean.input(1) {
        Some(a) => net.fact(a)?.ints()?,
        None => mean.attrs.ints("axes").ok()??.to_vec(),
    };
    let [axis] = axes[..] else { return None };
    let last = axis == -1 || axis + 1 == rank as i64;
    (last && mean.attrs.flag("keepdims", true).ok()?).then_some(x)
}
