//! `Attention` of ONNX Runtime: one matrix makes Q, K and V.
//!
//! What follows the projection is [`Projected`], which `QAttention` shares.
use hone_kernels::gemm;

use super::core::{Core, Rows, Sizes, Stage, core, head_size, heads_of, joined, scale_of, tokens_first};
use super::fused::{Areas, Counted, Fused, Place, Source, Step};
use super::mask::{Layer, Mask, Meaning, Positions};
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, need, optional};
use crate::plan::{Lowered, Lowering, Weight};
use crate::tensor::{DType, Tensor};

/// `input [B, S, I]`, `weights [I, H·D + H·D + H·E]`, `bias`, `mask_index`, `past [2, B, H, P, D]`, `attention_bias`; gives
/// `[B, S, H·E]` and the keys and values with the past.
pub(super) static ATTENTION: OpDef =
    OpDef::new("Attention", "self-attention with its input projection, mask and cache", shape, reference)
        .domain(MICROSOFT)
        .kernel(lower)
        .vjp(super::backward::projected);

/// Which inputs of a node say what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands {
    /// `mask_index`: `[B]` ends, `[2·B]` ends and starts, `[3·B+2]` ends first, `[B, L]`, `[B, S, L]` or `[B, 1, M, M]`.
    pub(crate) mask_index: usize,
    /// `past`.
    pub(crate) past: usize,
    /// `attention_bias`, when the operator has one.
    pub(crate) attention_bias: Option<usize>,
}

/// Attention over rows `[B, S, H·D + H·D + H·E]` of projected queries, keys and values.
pub(crate) struct Projected {
    /// Its lengths; `g` is `h`.
    pub(crate) sizes: Sizes,
    /// Keys of the past.
    pub(crate) past: usize,
    /// Factor of the products.
    pub(crate) scale: f64,
    /// The mask; its operands are those of the node.
    pub(crate) mask: Mask,
    /// Whether `present` is a result.
    pub(crate) present: bool,
    operands: Operands,
}

/// Type and shape of an operand.
pub(crate) type Seen<'a> = (DType, &'a [usize]);

impl Projected {
    /// From the attributes `num_heads`, `unidirectional`, `scale`, `mask_filter_value` and `qkv_hidden_sizes`, for `[B, S]`
    /// tokens of `width` projected features. `of(i)` is the type and shape of input `i` of the node.
    ///
    /// # Errors
    /// [`OpError`] naming the attribute or operand that does not fit.
    pub(crate) fn new<'a>(
        attrs: &Attrs,
        operands: Operands,
        [b, s]: [usize; 2],
        width: usize,
        of: impl Fn(usize) -> Option<Seen<'a>>,
    ) -> Result<Projected, OpError> {
        for name in ["do_rotary", "past_present_share_buffer"] {
            if attrs.flag(name, false)? {
                return Err(OpError::unsupported(format!("attention with its projection and `{name}`")));
            }
        }
        let h = heads_of(attrs, "num_heads")?;
        let third = (width / 3) as i64;
        let hidden = match attrs.ints("qkv_hidden_sizes")? {
            Some(&[q, k, v]) if q == k => [q, v],
            None if width.is_multiple_of(3) => [third, third],
            other => return Err(OpError::attribute("qkv_hidden_sizes", format!("is {other:?} for {width} columns"))),
        };
        if hidden.iter().any(|&n| n < 0 || n > width as i64) || 2 * hidden[0] + hidden[1] != width as i64 {
            return Err(OpError::attribute("qkv_hidden_sizes", format!("does not sum to {width}")));
        }
        let (d, e) = (head_size("num_heads", h, hidden[0] as usize)?, head_size("num_heads", h, hidden[1] as usize)?);
        let past = match of(operands.past) {
            None => 0,
            Some((_, &[2, pb, ph, p, pd])) if (pb, ph, pd, pd) == (b, h, d, e) => p,
            Some((_, other)) => return Err(OpError::shape("past", format!("[2, {b}, {h}, P, {d}]"), other)),
        };
        let present = attrs.outputs > 1;
        if present && d != e {
            return Err(OpError::unsupported("`present` of heads of different sizes"));
        }
        let l = past.checked_add(s).ok_or_else(|| OpError::unsupported("a past as long as memory"))?;
        let sizes = Sizes { b, h, g: h, s, l, d, e };
        let filter = f64::from(attrs.float("mask_filter_value", -10_000.0)?);
        let mut mask = Mask { positions: Positions::Past(past), ..Mask::none() };
        if attrs.flag("unidirectional", false)? && s > 1 {
            mask.window.right = Some(0);
        }
        if let Some(seen) = of(operands.mask_index) {
            mask.layers.extend(padding_layer("mask_index", operands.mask_index, seen, sizes, past, filter)?);
        }
        if let Some((operand, seen)) = operands.attention_bias.and_then(|o| of(o).map(|seen| (o, seen))) {
            mask.layers.push(Layer::broadcast("attention_bias", Meaning::Add, operand, seen, [b, h, s, l])?);
        }
        Ok(Projected { sizes, past, scale: scale_of(attrs, d)?, mask, present, operands })
    }

    /// The results.
    pub(crate) fn facts(&self, dtype: DType) -> Vec<Fact> {
        let Sizes { b, h, s, l, d, e, .. } = self.sizes;
        let mut facts = vec![Fact::new(dtype, vec![b, s, h * e])];
        if self.present {
            facts.push(Fact::new(dtype, vec![2, b, h, l, d]));
        }
        facts
    }

    /// Where Q, K and V are in the projected rows.
    pub(crate) fn rows(&self) -> [Rows; 3] {
        let Sizes { h, s, d, e, .. } = self.sizes;
        let width = h * (2 * d + e);
        [(0, d), (h * d, d), (2 * h * d, e)].map(|(base, size)| Rows::tokens_first(s, width, base, size))
    }

    /// The results, as `dtype`, for projected rows `qkv`. `inputs` are the node's.
    ///
    /// # Errors
    /// [`OpError::Shape`] when `qkv` is too short.
    pub(crate) fn attend(&self, inputs: &[Option<&Tensor>], qkv: &[f64], dtype: DType) -> Result<Vec<Tensor>, OpError> {
        let Sizes { b, h, s, l, d, e, .. } = self.sizes;
        if qkv.len() != b * s * h * (2 * d + e) {
            return Err(OpError::shape("projected rows", [b, s, h * (2 * d + e)], qkv.len()));
        }
        let [rq, rk, rv] = self.rows();
        let q = rq.gather(qkv, [b, h, s, d]);
        let (mut k, mut v) = (rk.gather(qkv, [b, h, s, d]), rv.gather(qkv, [b, h, s, e]));
        if let Some(past) = optional(inputs, self.operands.past) {
            let past = past.data().to_f64();
            let (pk, pv) = past.split_at(past.len() / 2);
            k = joined(pk, &k, b * h, self.past, s, d);
            v = joined(pv, &v, b * h, self.past, s, e);
        }
        let values = self.mask.values(inputs);
        let mask = |b_: usize, h_: usize, i: usize, row: &mut [f64]| self.mask.add(&values, [b, s], [b_, h_, i], row);
        let problem =
            Core { sizes: self.sizes, q: &q, k: &k, v: &v, scale: self.scale, softcap: 0.0, mask: &mask, sink: None };
        let y = tokens_first(&core(&problem, Stage::Nothing)?.y, b, s, h, e);
        let mut out = vec![Tensor::from_f64(dtype, &[b, s, h * e], &y)?];
        if self.present {
            k.extend_from_slice(&v);
            out.push(Tensor::from_f64(dtype, &[2, b, h, l, d], &k)?);
        }
        Ok(out)
    }
}

/// The part of a mask that ONNX Runtime's integer masks are: ends, ends and starts, or keep flags for `sizes.l` keys (two
/// dimensions may speak of the keys behind the past alone). `None` when it says nothing.
///
/// # Errors
/// [`OpError::Shape`] naming `name`.
pub(super) fn padding_layer(
    name: &str,
    operand: usize,
    (dtype, shape): Seen<'_>,
    sizes: Sizes,
    past: usize,
    filter: f64,
) -> Result<Option<Layer>, OpError> {
    let Sizes { b, s, l, .. } = sizes;
    let keep = Meaning::Keep(filter);
    let strided = |strides: [usize; 4], base: usize, keys: std::ops::Range<usize>| {
        Ok(Some(Layer { meaning: keep, operand, dtype, strides, base, keys }))
    };
    match *shape {
        [n] if n == b || n == 3 * b + 2 => Ok(Some(Layer::lengths(Meaning::End(filter), operand, dtype))),
        [n] if n == 2 * b => Ok(Some(Layer::lengths(Meaning::EndStart(filter), operand, dtype))),
        [n, keys] if n == b && keys == l => strided([l, 0, 0, 1], 0, 0..l),
        [n, keys] if n == b && keys == l - past => strided([keys, 0, 0, 1], 0, past..l),
        // One flag a batch masks every key alike, which changes nothing.
        [n, 1] if n == b || n == 1 => Ok(None),
        [n, queries, keys] if (n, queries, keys) == (b, s, l) => strided([s * l, 0, l, 1], 0, 0..l),
        [n, 1, m, m2] if (n, m) == (b, m2) && m >= l => strided([m * m, 0, m, 1], past * m, 0..l),
        _ => Err(OpError::shape(name, format!("[{b}], [{}], [{b}, {l}] or [{b}, {s}, {l}]", 2 * b), shape)),
    }
}

/// The operands of this operator.
const OPERANDS: Operands = Operands { mask_index: 3, past: 4, attention_bias: Some(5) };
/// Those of `QAttention`, after input, weight and bias with their scales and zero points.
const OF_CODES: Operands = Operands { mask_index: 5, past: 8, attention_bias: None };

/// The attention of a `QAttention`.
pub(super) fn call_of_codes<'a>(attrs: &Attrs, of: impl Fn(usize) -> Option<Seen<'a>>) -> Result<Projected, OpError> {
    let must = |index: usize, name: &'static str| of(index).map(|t| t.1).ok_or(OpError::MissingInput { index, name });
    let (x, w) = (must(0, "input")?, must(1, "weight")?);
    match (x, w) {
        (&[b, s, i], &[wi, width]) if i == wi => Projected::new(attrs, OF_CODES, [b, s], width, of),
        _ => Err(OpError::shape("operands of QAttention", "[B, S, I] and [I, 3H]", (x, w))),
    }
}

/// Checks input, weights and bias; gives the attention and the length of the input's features.
pub(super) fn call<'a>(attrs: &Attrs, of: impl Fn(usize) -> Option<Seen<'a>>) -> Result<(Projected, usize), OpError> {
    let must = |index: usize, name: &'static str| of(index).map(|t| t.1).ok_or(OpError::MissingInput { index, name });
    let (x, w) = (must(0, "input")?, must(1, "weights")?);
    let (&[b, s, i], &[wi, width]) = (x, w) else {
        return Err(OpError::shape("input and weights", "rank 3 and rank 2", (x, w)));
    };
    if i != wi {
        return Err(OpError::shape("rows of weights", i, wi));
    }
    if let Some((_, bias)) = of(2)
        && bias != [width]
    {
        return Err(OpError::shape("bias", [width], bias));
    }
    Ok((Projected::new(attrs, OPERANDS, [b, s], width, of)?, i))
}

fn shape(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let (p, _) = call(attrs, |i| optional(inputs, i).map(|f| (f.dtype, &f.shape[..])))?;
    Ok(Some(p.facts(need(inputs, 0, "input")?.dtype)))
}

fn reference(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let (p, features) = call(attrs, |i| optional(inputs, i).map(|t| (t.dtype(), t.shape())))?;
    let (x, w) = (need(inputs, 0, "input")?, need(inputs, 1, "weights")?);
    let width = w.shape()[1];
    let bias = optional(inputs, 2).map(|t| t.data().to_f64());
    let (rows, w) = (x.data().to_f64(), w.data().to_f64());
    let mut qkv = vec![0.0; crate::ops::shape::elements(&[p.sizes.b, p.sizes.s, width])?];
    for (i, y) in qkv.chunks_exact_mut(width.max(1)).enumerate() {
        if let Some(bias) = &bias {
            y.copy_from_slice(bias);
        }
        for (k, &x) in rows[i * features..][..features].iter().enumerate() {
            y.iter_mut().zip(&w[k * width..][..width]).for_each(|(y, w)| *y += x * w);
        }
    }
    p.attend(inputs, &qkv, x.dtype())
}

fn lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let (p, features) = call(l.attrs, |i| Some((l.dtype(i)?, l.shape(i).ok()?)))?;
    let (Some(Weight::F32(w)), Some(DType::F32)) = (l.weight(1), l.dtype(0)) else { return Ok(None) };
    let bias = match (l.has(2), l.constant(2)) {
        (false, _) => None,
        (true, Some(bias)) => Some(bias.as_f32()?.to_vec()),
        (true, None) => return Ok(None),
    };
    let Sizes { b, h, s, l: keys, d, e, .. } = p.sizes;
    let width = h * (2 * d + e);
    let w = w.as_f32()?;
    let mut weight = vec![0.0; gemm::packed_len(width, features)];
    gemm::pack(width, features, |j, k| w[k * width + j], &mut weight);
    let mut areas = Areas::default();
    let place = areas.take(&[b * s, width])?;
    let Place::Held(to) = place else { return Ok(None) };
    let mut steps = vec![Step::Project { x: 0, m: b * s, k: features, n: width, weight, bias, to }];
    let [q, mut k, mut v] = p.rows().map(|rows| Source { place, rows });
    let past = l.has(OPERANDS.past);
    if past || l.wants(1) {
        for (side, part) in [&mut k, &mut v].into_iter().enumerate() {
            let size = [d, e][side];
            // Keys and values are the two halves of one tensor.
            let half = |capacity: usize, place: Place| {
                let rows = Rows::heads_first(h, capacity, size);
                Source { place, rows: Rows { base: side * b * rows.batch, ..rows } }
            };
            let to = if l.wants(1) {
                half(keys, Place::Write(1))
            } else {
                let rows = Rows::heads_first(h, keys, size);
                Source { place: areas.take(&[b, h, keys, size])?, rows }
            };
            steps.push(Step::Lay {
                past: past.then(|| half(p.past, Place::Read(OPERANDS.past))),
                new: *part,
                to,
                heads: h,
                counted: Counted::Fixed(p.past),
                tokens: s,
                capacity: keys,
                width: size,
                bias: None,
            });
            *part = to;
        }
    }
    let fused = Fused {
        sizes: p.sizes,
        q,
        k,
        v,
        y: Rows::tokens_first(s, h * e, 0, e),
        scale: p.scale as f32,
        softcap: 0.0,
        mask: p.mask,
        sink: None,
        steps,
        held: areas.floats,
    };
    fused.lower(l)
}
