//! `MultiHeadAttention` of ONNX Runtime: Q, K and V come projected, apart or packed.
use super::core::{Core, Rows, Sizes, Stage, core, head_size, heads_of, joined, scale_of, tokens_first};
use super::fused::{Areas, Counted, Fused, Place, Source, Step};
use super::mask::{Layer, Mask, Meaning, Positions};
use super::microsoft::{Seen, padding_layer};
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, need, optional};
use crate::plan::{Lowered, Lowering};
use crate::tensor::{DType, Tensor};

/// `query [B, S, H·D]` with `key [B, N, H·D]` and `value [B, N, H·E]`, or `[B, H, N, ·]` as they stand in a cache; or
/// `key [B, N, H, 2, D]`; or `query [B, S, H, 3, D]`. Then the projection's `bias`, `key_padding_mask`, `attention_bias`,
/// `past_key`, `past_value`. Gives `[B, S, H·E]`, the keys and values with the past, and the masked scores.
pub(super) static MULTI_HEAD_ATTENTION: OpDef =
    OpDef::new("MultiHeadAttention", "attention of projected queries, keys and values", shape, reference)
        .domain(MICROSOFT)
        .kernel(lower)
        .vjp(super::backward::multi_head);

/// What the operands say, by types and shapes.
pub(super) struct Call {
    pub(super) sizes: Sizes,
    pub(super) past: usize,
    pub(super) scale: f64,
    pub(super) mask: Mask,
    /// Input and rows of Q, K and V.
    pub(super) operands: [(usize, Rows); 3],
}

impl Call {
    pub(super) fn new<'a>(attrs: &Attrs, of: impl Fn(usize) -> Option<Seen<'a>>) -> Result<Call, OpError> {
        if of(8).is_some() || of(9).is_some() {
            return Err(OpError::unsupported("MultiHeadAttention over a shared buffer or with cache_indirection"));
        }
        let shape_of = |i: usize| of(i).map(|t| t.1);
        let q = shape_of(0).ok_or(OpError::MissingInput { index: 0, name: "query" })?;
        let h = heads_of(attrs, "num_heads")?;
        let wrong = |what: &str, expected: &str, found: &[usize]| Err(OpError::shape(what, expected, found));
        let (b, s, d, rq) = match *q {
            [b, s, width] => {
                let d = head_size("num_heads", h, width)?;
                (b, s, d, Rows::tokens_first(s, width, 0, d))
            }
            [b, s, heads, 3, d] if heads == h => (b, s, d, Rows::interleaved(s, h, [0, 3], d)),
            _ => return wrong("query", "[B, S, hidden] or [B, S, heads, 3, size]", q),
        };
        let (new, e, rk, rv) = match (q.len(), shape_of(1), shape_of(2)) {
            (5, None, None) => (s, d, (0, Rows::interleaved(s, h, [1, 3], d)), (0, Rows::interleaved(s, h, [2, 3], d))),
            (3, Some(&[kb, n, heads, 2, kd]), None) if (kb, heads, kd) == (b, h, d) => {
                (n, d, (1, Rows::interleaved(n, h, [0, 2], d)), (1, Rows::interleaved(n, h, [1, 2], d)))
            }
            (3, Some(&[kb, n, kw]), Some(&[vb, vn, vw])) if (kb, kw, vb, vn) == (b, h * d, b, n) => {
                let e = head_size("num_heads", h, vw)?;
                (n, e, (1, Rows::tokens_first(n, kw, 0, d)), (2, Rows::tokens_first(n, vw, 0, e)))
            }
            (3, Some(&[kb, kh, n, kd]), Some(&[vb, vh, vn, e])) if (kb, kh, kd, vb, vh, vn) == (b, h, d, b, h, n) => {
                (n, e, (1, Rows::heads_first(h, n, d)), (2, Rows::heads_first(h, n, e)))
            }
            (_, k, v) => return Err(OpError::shape("key and value", "shapes that fit the query", (k, v))),
        };
        if let Some(bias) = shape_of(3)
            && bias != [h * (2 * d + e)]
        {
            return Err(OpError::shape("bias", [h * (2 * d + e)], bias));
        }
        let past = match (shape_of(6), shape_of(7)) {
            (None, None) => 0,
            (Some(&[kb, kh, p, kd]), Some(&[vb, vh, vp, ve]))
                if (kb, kh, kd, vb, vh, vp, ve) == (b, h, d, b, h, p, e) =>
            {
                p
            }
            (k, v) => return Err(OpError::shape("past_key and past_value", [b, h, 0, d], (k, v))),
        };
        let l = past.checked_add(new).ok_or_else(|| OpError::unsupported("a past as long as memory"))?;
        let sizes = Sizes { b, h, g: h, s, l, d, e };
        let filter = f64::from(attrs.float("mask_filter_value", -10_000.0)?);
        let mut mask = Mask { positions: Positions::Past(past), ..Mask::none() };
        if attrs.flag("unidirectional", false)? && s > 1 {
            mask.window.right = Some(0);
        }
        if let Some(seen) = of(4) {
            mask.layers.extend(padding_layer("key_padding_mask", 4, seen, sizes, past, filter)?);
        }
        if let Some(seen) = of(5) {
            mask.layers.push(Layer::broadcast("attention_bias", Meaning::Add, 5, seen, [b, h, s, l])?);
        }
        Ok(Call { sizes, past, scale: scale_of(attrs, d)?, mask, operands: [(0, rq), rk, rv] })
    }
}

fn shape(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let c = Call::new(attrs, |i| optional(inputs, i).map(|f| (f.dtype, &f.shape[..])))?;
    let t = need(inputs, 0, "query")?.dtype;
    let Sizes { b, h, s, l, d, e, .. } = c.sizes;
    let shapes = [vec![b, s, h * e], vec![b, h, l, d], vec![b, h, l, e], vec![b, h, s, l]];
    Ok(Some(shapes.into_iter().map(|shape| Fact::new(t, shape)).collect()))
}

fn reference(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let c = Call::new(attrs, |i| optional(inputs, i).map(|t| (t.dtype(), t.shape())))?;
    let dtype = need(inputs, 0, "query")?.dtype();
    let Sizes { b, h, s, l, d, e, .. } = c.sizes;
    let new = l - c.past;
    let bias = optional(inputs, 3).map(|t| t.data().to_f64());
    let part = |i: usize, tokens: usize, width: usize, first: usize| -> Result<Vec<f64>, OpError> {
        let (operand, rows) = c.operands[i];
        let mut x = rows.gather(&need(inputs, operand, "operand")?.data().to_f64(), [b, h, tokens, width]);
        if let Some(bias) = &bias {
            for (n, row) in x.chunks_exact_mut(width.max(1)).enumerate() {
                let head = n / tokens.max(1) % h;
                row.iter_mut().zip(&bias[first + head * width..]).for_each(|(x, b)| *x += b);
            }
        }
        Ok(x)
    };
    let (q, mut k, mut v) = (part(0, s, d, 0)?, part(1, new, d, h * d)?, part(2, new, e, 2 * h * d)?);
    if let (Some(pk), Some(pv)) = (optional(inputs, 6), optional(inputs, 7)) {
        k = joined(&pk.data().to_f64(), &k, b * h, c.past, new, d);
        v = joined(&pv.data().to_f64(), &v, b * h, c.past, new, e);
    }
    let values = c.mask.values(inputs);
    let mask = |b_: usize, h_: usize, i: usize, row: &mut [f64]| c.mask.add(&values, [b, s], [b_, h_, i], row);
    let problem = Core { sizes: c.sizes, q: &q, k: &k, v: &v, scale: c.scale, softcap: 0.0, mask: &mask, sink: None };
    let stage = if attrs.outputs > 3 { Stage::Masked } else { Stage::Nothing };
    let got = core(&problem, stage)?;
    let mut out = vec![
        Tensor::from_f64(dtype, &[b, s, h * e], &tokens_first(&got.y, b, s, h, e))?,
        Tensor::from_f64(dtype, &[b, h, l, d], &k)?,
        Tensor::from_f64(dtype, &[b, h, l, e], &v)?,
    ];
    if stage == Stage::Masked {
        out.push(Tensor::from_f64(dtype, &[b, h, s, l], &got.scores)?);
    }
    Ok(out)
}

fn lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let c = Call::new(l.attrs, |i| Some((l.dtype(i)?, l.shape(i).ok()?)))?;
    if l.dtype(0) != Some(DType::F32) || l.wants(3) {
        return Ok(None);
    }
    let Sizes { b, h, s, l: keys, d, e, .. } = c.sizes;
    let mut areas = Areas::default();
    let mut steps = Vec::new();
    // Operands are read where they are, unless there is something to add, to put before them or to give back.
    let mut part = |i: usize, tokens: usize, width: usize, first: usize| -> Result<Source, OpError> {
        let (operand, rows) = c.operands[i];
        let new = Source { place: Place::Read(operand), rows };
        let past = (i > 0 && l.has(5 + i)).then_some(5 + i);
        let counted = if i > 0 { c.past } else { 0 };
        let total = counted + tokens;
        let place = match i > 0 && l.wants(i) {
            true => Place::Write(i),
            false if past.is_some() || l.has(3) => areas.take(&[b, h, total, width])?,
            false => return Ok(new),
        };
        let to = Source { place, rows: Rows::heads_first(h, total, width) };
        steps.push(Step::Lay {
            past: past.map(|p| Source { place: Place::Read(p), rows: Rows::heads_first(h, counted, width) }),
            new,
            to,
            heads: h,
            counted: Counted::Fixed(counted),
            tokens,
            capacity: total,
            width,
            bias: l.has(3).then_some((3, first)),
        });
        Ok(to)
    };
    let new = keys - c.past;
    let (q, k, v) = (part(0, s, d, 0)?, part(1, new, d, h * d)?, part(2, new, e, 2 * h * d)?);
    let fused = Fused {
        sizes: c.sizes,
        q,
        k,
        v,
        y: Rows::tokens_first(s, h * e, 0, e),
        scale: c.scale as f32,
        softcap: 0.0,
        mask: c.mask,
        sink: None,
        steps,
        held: areas.floats,
    };
    fused.lower(l)
}
