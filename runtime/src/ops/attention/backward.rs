//! Gradients of attention, by way of its formula: products, masks, softmax, products.
//!
//! What the fused kernels never keep, the scores of every query and key, is computed again for the backward part of one
//! node and dies there.
use super::core::Sizes;
use super::mask::{Mask, Meaning};
use super::microsoft::{self, Projected, Seen};
use super::{multi_head, standard};
use crate::autodiff::Backward;
use crate::graph::ValueId;
use crate::ops::{Attr, Attrs, Fact, HONE, OpDef, OpError, flat, need, optional};
use crate::tensor::Tensor;

/// Which operator's operands and attributes those are.
const OF: &str = "mask_of";
/// The operand that is left out of the mask, because it is added as it is.
const WITHOUT: &str = "mask_without";
/// What is added to the score of a hidden key: little enough that nothing is left of it, and a number.
const HIDDEN: f64 = -1e30;

/// What an attention operator adds to its scores `[B, H, S, L]`, from all of its operands.
static ATTENTION_MASK: OpDef = OpDef::new(
    "AttentionMask",
    "what an attention operator adds to its scores",
    |attrs, inputs| {
        let (sizes, _) = mask_of(attrs, |i| optional(inputs, i).map(|f| (f.dtype, &f.shape[..])))?;
        let Sizes { b, h, s, l, .. } = sizes;
        Ok(Some(vec![Fact::new(need(inputs, number(attrs)?, "Q")?.dtype, vec![b, h, s, l])]))
    },
    |attrs, inputs| {
        let (sizes, mut mask) = mask_of(attrs, |i| optional(inputs, i).map(|t| (t.dtype(), t.shape())))?;
        let Sizes { b, h, s, l, .. } = sizes;
        let without = attrs.int(WITHOUT, -1)?;
        mask.layers.retain(|layer| layer.operand as i64 != without);
        let values = mask.values(inputs);
        let mut out = vec![0.0; crate::ops::shape::elements(&[b, h, s, l])?];
        for (n, row) in out.chunks_exact_mut(l.max(1)).enumerate() {
            mask.add(&values, [b, s], [n / s.max(1) / h, n / s.max(1) % h, n % s.max(1)], row);
            row.iter_mut().for_each(|v| *v = v.max(HIDDEN));
        }
        Ok(vec![Tensor::from_f64(need(inputs, number(attrs)?, "Q")?.dtype(), &[b, h, s, l], &out)?])
    },
)
.domain(HONE)
.vjp(flat);

/// The operand whose type is that of the scores: of codes, their scale.
fn number(attrs: &Attrs) -> Result<usize, OpError> {
    Ok(if attrs.str(OF, "")? == "codes" { 3 } else { 0 })
}

fn mask_of<'a>(attrs: &Attrs, of: impl Fn(usize) -> Option<Seen<'a>>) -> Result<(Sizes, Mask), OpError> {
    match attrs.str(OF, "")? {
        "standard" => standard::Call::new(attrs, of).map(|c| (c.sizes, c.mask)),
        "multi_head" => multi_head::Call::new(attrs, of).map(|c| (c.sizes, c.mask)),
        "codes" => microsoft::call_of_codes(attrs, of).map(|p| (p.sizes, p.mask)),
        _ => microsoft::call(attrs, of).map(|(p, _)| (p.sizes, p.mask)),
    }
}

/// Types and shapes of the operands, while a gradient is made.
fn seen(b: &Backward<'_>) -> Vec<Option<Fact>> {
    b.operands().iter().map(|v| v.map(|v| Fact { value: None, ..b.fact(v).clone() })).collect()
}

fn of<'a>(facts: &'a [Option<Fact>]) -> impl Fn(usize) -> Option<Seen<'a>> {
    move |i| facts.get(i).and_then(Option::as_ref).map(|f| (f.dtype, &f.shape[..]))
}

/// What is common to all of them.
struct Problem {
    sizes: Sizes,
    scale: f64,
    softcap: f64,
    mask: Mask,
    of: &'static str,
    /// The operand of numbers to add.
    bias: usize,
}

/// `[B, tokens, heads · width]` as `[B, heads, tokens, width]`.
fn heads(b: &mut Backward<'_>, x: ValueId, heads: usize) -> Result<ValueId, OpError> {
    let &[batch, tokens, width] = b.shape(x) else {
        return Err(OpError::shape("operand", "[B, T, H · D]", b.shape(x)));
    };
    let x = b.reshape(x, &[batch, tokens, heads, width / heads.max(1)])?;
    b.transpose(x, &[0, 2, 1, 3])
}

/// The inverse of [`heads`].
fn tokens(b: &mut Backward<'_>, x: ValueId) -> Result<ValueId, OpError> {
    let x = b.transpose(x, &[0, 2, 1, 3])?;
    let &[batch, tokens, heads, width] = b.shape(x) else {
        return Err(OpError::shape("operand", "[B, T, H, D]", b.shape(x)));
    };
    b.reshape(x, &[batch, tokens, heads * width])
}

/// `[B, H, S, E]` of queries, keys and values with their heads first.
fn attend(b: &mut Backward<'_>, p: &Problem, q: ValueId, k: ValueId, v: ValueId) -> Result<ValueId, OpError> {
    let Sizes { b: batch, h, g, l, d, e, .. } = p.sizes;
    // Each key head serves the query heads of its group.
    let repeat = |b: &mut Backward<'_>, x: ValueId, width: usize| -> Result<ValueId, OpError> {
        if g == h {
            return Ok(x);
        }
        let x = b.reshape(x, &[batch, g, 1, l, width])?;
        let x = b.expand(x, &[batch, g, h / g, l, width])?;
        b.reshape(x, &[batch, h, l, width])
    };
    let (k, v) = (repeat(b, k, d)?, repeat(b, v, e)?);
    // Scaled before the product: the gradient's factor is then on the smaller side too.
    let q = b.scaled(q, p.scale)?;
    let mut scores = b.matmul((q, false), (k, true), 1.0)?;
    if p.softcap > 0.0 {
        let share = b.scaled(scores, 1.0 / p.softcap)?;
        let share = b.unary("Tanh", share)?;
        scores = b.scaled(share, p.softcap)?;
    }
    let hides = |m: &Mask| !m.layers.is_empty() || m.window != Default::default() || m.positions.operand().is_some();
    let mut visible = None;
    if hides(&p.mask) {
        let trained = b.wants(p.bias);
        let mut attrs = Attrs::clone(&b.attrs());
        attrs.map.insert(OF.into(), Attr::Str(p.of.into()));
        if trained {
            let layer = p.mask.layers.iter().find(|layer| layer.operand == p.bias);
            let whole = layer.is_some_and(|layer| layer.meaning == Meaning::Add && layer.keys == (0..l));
            let bias = b.x(p.bias)?;
            if !whole {
                return Err(OpError::unsupported("a gradient by a mask that is shorter than the keys, or of booleans"));
            }
            attrs.map.insert(WITHOUT.into(), Attr::Int(p.bias as i64));
            scores = b.add(scores, bias)?;
        }
        let operands = b.operands();
        let mask = b.one(&ATTENTION_MASK, attrs, &operands)?;
        scores = b.add(scores, mask)?;
        let hidden = b.scalar_like(mask, 0.5 * HIDDEN)?;
        let seen = b.binary("Greater", mask, hidden)?;
        visible = Some(seen);
    }
    let mut share = b.standard("Softmax", [("axis", Attr::Int(-1))], &[scores])?;
    if let Some(visible) = visible {
        // A query that sees nothing gives zeros.
        share = b.only(visible, share)?;
    }
    b.binary("MatMul", share, v)
}

/// Keys or values with those of the past before them.
fn with_past(b: &mut Backward<'_>, past: Option<ValueId>, new: ValueId) -> Result<ValueId, OpError> {
    match past {
        Some(past) => b.concat(&[past, new], 2),
        None => Ok(new),
    }
}

/// Of the standard's `Attention`.
pub(super) fn standard(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let facts = seen(b);
        let c = standard::Call::new(&b.attrs(), of(&facts))?;
        let (mut q, mut k, mut v) = (b.x(0)?, b.x(1)?, b.x(2)?);
        if c.packed {
            (q, k, v) = (heads(b, q, c.sizes.h)?, heads(b, k, c.sizes.g)?, heads(b, v, c.sizes.g)?);
        }
        let (past_k, past_v) = (b.optional(4), b.optional(5));
        let (k, v) = (with_past(b, past_k, k)?, with_past(b, past_v, v)?);
        let p = Problem { sizes: c.sizes, scale: c.scale, softcap: c.softcap, mask: c.mask, of: "standard", bias: 3 };
        let mut y = attend(b, &p, q, k, v)?;
        if c.packed {
            y = tokens(b, y)?;
        }
        Ok(vec![y, k, v])
    })
}

/// Of ONNX Runtime's `MultiHeadAttention`.
pub(super) fn multi_head(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let facts = seen(b);
        let c = multi_head::Call::new(&b.attrs(), of(&facts))?;
        let Sizes { h, d, e, .. } = c.sizes;
        // Part `i` of a tensor whose axis 3 (2 of keys and values together) holds several.
        let part = |b: &mut Backward<'_>, x: ValueId, i: usize| -> Result<ValueId, OpError> {
            let &[batch, tokens, heads, _, width] = b.shape(x) else {
                return Err(OpError::shape("operand", "[B, T, H, parts, D]", b.shape(x)));
            };
            let x = b.slice(x, 3, i, i + 1)?;
            let x = b.reshape(x, &[batch, tokens, heads, width])?;
            b.transpose(x, &[0, 2, 1, 3])
        };
        let query = b.x(0)?;
        let (q, k, v) = match (b.shape(query).len(), b.optional(1), b.optional(2)) {
            (5, ..) => (part(b, query, 0)?, part(b, query, 1)?, part(b, query, 2)?),
            (_, Some(k), None) => (heads(b, query, h)?, part(b, k, 0)?, part(b, k, 1)?),
            (_, Some(k), Some(v)) if b.shape(k).len() == 4 => (heads(b, query, h)?, k, v),
            (_, Some(k), Some(v)) => (heads(b, query, h)?, heads(b, k, h)?, heads(b, v, h)?),
            _ => return Err(OpError::MissingInput { index: 1, name: "key" }),
        };
        let mut parts = [q, k, v];
        if let Some(bias) = b.optional(3) {
            let mut from = 0;
            for (x, width) in parts.iter_mut().zip([d, d, e]) {
                let own = b.slice(bias, 0, from, from + h * width)?;
                let own = b.reshape(own, &[h, 1, width])?;
                *x = b.add(*x, own)?;
                from += h * width;
            }
        }
        let [q, k, v] = parts;
        let (past_k, past_v) = (b.optional(6), b.optional(7));
        let (k, v) = (with_past(b, past_k, k)?, with_past(b, past_v, v)?);
        let p = Problem { sizes: c.sizes, scale: c.scale, softcap: 0.0, mask: c.mask, of: "multi_head", bias: 5 };
        let y = attend(b, &p, q, k, v)?;
        Ok(vec![tokens(b, y)?, k, v])
    })
}

/// Of ONNX Runtime's `Attention`, which projects first.
pub(super) fn projected(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let facts = seen(b);
        let (p, _) = microsoft::call(&b.attrs(), of(&facts))?;
        let (x, w) = (b.x(0)?, b.x(1)?);
        let mut rows = b.binary("MatMul", x, w)?;
        if let Some(bias) = b.optional(2) {
            rows = b.add(rows, bias)?;
        }
        from_rows(b, rows, p, 4, "projected")
    })
}

/// The results of a `QAttention` whose codes and weight are projected to `rows`.
pub(in crate::ops) fn of_codes(b: &mut Backward<'_>, rows: ValueId) -> Result<Vec<ValueId>, OpError> {
    let facts = seen(b);
    let p = microsoft::call_of_codes(&b.attrs(), of(&facts))?;
    from_rows(b, rows, p, 8, "codes")
}

/// The results for projected rows, with the past that operand `past` holds.
fn from_rows(
    b: &mut Backward<'_>,
    rows: ValueId,
    p: Projected,
    past: usize,
    of: &'static str,
) -> Result<Vec<ValueId>, OpError> {
    let Sizes { h, d, e, .. } = p.sizes;
    let mut parts = [rows; 3];
    for (part, (from, to)) in parts.iter_mut().zip([(0, h * d), (h * d, 2 * h * d), (2 * h * d, h * (2 * d + e))]) {
        let own = b.slice(rows, 2, from, to)?;
        *part = heads(b, own, h)?;
    }
    let [q, mut k, mut v] = parts;
    if let Some(past) = b.optional(past) {
        let shape = b.shape(past)[1..].to_vec();
        for (side, x) in [&mut k, &mut v].into_iter().enumerate() {
            let own = b.slice(past, 0, side, side + 1)?;
            let own = b.reshape(own, &shape)?;
            *x = with_past(b, Some(own), *x)?;
        }
    }
    let problem = Problem { sizes: p.sizes, scale: p.scale, softcap: 0.0, mask: p.mask, of, bias: 5 };
    let y = attend(b, &problem, q, k, v)?;
    let y = tokens(b, y)?;
    if !p.present {
        return Ok(vec![y]);
    }
    let one = |b: &mut Backward<'_>, x: ValueId| {
        let shape = [&[1], b.shape(x)].concat();
        b.reshape(x, &shape)
    };
    let (k, v) = (one(b, k)?, one(b, v)?);
    let present = b.concat(&[k, v], 0)?;
    Ok(vec![y, present])
}

/// Of a rotation: the rotation back, by the sines negated. `sines` is the position of those.
pub(super) fn rotary(b: &mut Backward<'_>, sines: usize) -> Result<(), OpError> {
    if (1..b.inputs()).any(|i| b.wants(i)) {
        return Err(OpError::unsupported("a gradient by the angles of a rotary embedding"));
    }
    let (dy, sin, attrs) = (b.dy()?, b.x(sines)?, Attrs::clone(&b.attrs()));
    let back = b.unary("Neg", sin)?;
    let mut operands = b.operands();
    operands[0] = Some(dy);
    operands[sines] = Some(back);
    let op = b.node_op().ok_or_else(|| OpError::unsupported("an operator that is not ours"))?;
    let dx = b.one(op, attrs, &operands)?;
    b.give(0, dx);
    Ok(())
}
