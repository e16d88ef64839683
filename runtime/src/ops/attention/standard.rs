//! `Attention` of the standard (opsets 23, 24 and 25).
use hone_gpu::functions::function;
use hone_gpu::map::{Element, Map, Operand};
use hone_gpu::{product as gpu, rows as gpu_rows};
use hone_kernels::epilogue::Activation;

use super::core::{Core, Rows, Sizes, Stage, core, head_size, heads_first, heads_of, joined, scale_of, tokens_first};
use super::fused::{Areas, Counted, Fused, Place, Source, Step};
use super::mask::{Layer, Mask, Meaning, Positions, Window};
use crate::ops::{Attrs, Fact, OpDef, OpError, need, optional};
use crate::plan::{At, Lowered, Lowering, Recorded};
use crate::tensor::{DType, Tensor};

/// `softmax(cap(scale · Q · Kᵀ) + mask) · V`.
///
/// Q `[B, H, S, D]` or `[B, S, H·D]`, K and V likewise with `G` heads; then a mask that broadcasts to `[B, H, S, L]` (its
/// last axis may be shorter: keys beyond it are hidden), past keys and values `[B, G, P, ·]`, and for caches kept outside
/// the number of keys that count, `[B]`. Gives Y in the layout of Q, the keys and values with the past, and scores.
pub(super) static ATTENTION: OpDef =
    OpDef::new("Attention", "scaled dot-product attention with masks, a cache and grouped heads", shape, reference)
        .kernel(lower)
        .gpu(recorded)
        .vjp(super::backward::standard);

/// What the operands say, by types and shapes.
pub(super) struct Call {
    pub(super) sizes: Sizes,
    /// Keys of the past.
    pub(super) past: usize,
    /// Q, K, V and Y have their heads inside the last axis.
    pub(super) packed: bool,
    pub(super) scale: f64,
    pub(super) softcap: f64,
    pub(super) mask: Mask,
}

type Seen<'a> = (DType, &'a [usize]);

impl Call {
    /// `of(i)` is the type and shape of input `i`.
    pub(super) fn new<'a>(attrs: &Attrs, of: impl Fn(usize) -> Option<Seen<'a>>) -> Result<Call, OpError> {
        let must =
            |index: usize, name: &'static str| of(index).map(|t| t.1).ok_or(OpError::MissingInput { index, name });
        let (q, k, v) = (must(0, "Q")?, must(1, "K")?, must(2, "V")?);
        let wrong = |what: &str, expected: &str, found: &[usize]| Err(OpError::shape(what, expected, found));
        let (mut sizes, packed) = match (q, k, v) {
            (&[b, h, s, d], &[kb, g, l, kd], &[vb, vg, vl, e]) => {
                if (kb, vb, kd) != (b, b, d) || (vg, vl) != (g, l) {
                    return wrong("K and V", "batch, heads and sizes that agree with Q and each other", k);
                }
                (Sizes { b, h, g, s, l, d, e }, false)
            }
            (&[b, s, qw], &[kb, l, kw], &[vb, vl, vw]) => {
                let (h, g) = (heads_of(attrs, "q_num_heads")?, heads_of(attrs, "kv_num_heads")?);
                let d = head_size("q_num_heads", h, qw)?;
                let e = head_size("kv_num_heads", g, vw)?;
                if (kb, vb, vl) != (b, b, l) || head_size("kv_num_heads", g, kw)? != d {
                    return wrong("K and V", "batch, heads and sizes that agree with Q and each other", k);
                }
                (Sizes { b, h, g, s, l, d, e }, true)
            }
            _ => return wrong("Q, K and V", "all of rank 3 or all of rank 4", q),
        };
        if sizes.g == 0 || !sizes.h.is_multiple_of(sizes.g) {
            return Err(OpError::shape("heads of Q", format!("a multiple of {}", sizes.g), sizes.h));
        }
        let past = match (of(4), of(5)) {
            (None, None) => 0,
            (Some((_, &[b, g, p, d])), Some((_, &[vb, vg, vp, e])))
                if (b, g, d) == (sizes.b, sizes.g, sizes.d) && (vb, vg, vp, e) == (b, g, p, sizes.e) =>
            {
                p
            }
            (k, v) => return Err(OpError::shape("past_key and past_value", "[B, G, P, D] and [B, G, P, E]", (k, v))),
        };
        sizes.l = sizes.l.checked_add(past).ok_or_else(|| OpError::unsupported("a past as long as memory"))?;
        let side = |name: &str| match attrs.int(name, -1)? {
            -1 => Ok(None),
            n if n >= 0 => Ok(Some(n as usize)),
            n => Err(OpError::attribute(name, format!("must be -1 or more, is {n}"))),
        };
        let mut window = Window { left: side("left_window_size")?, right: side("right_window_size")? };
        if attrs.flag("is_causal", false)? {
            window.right = Some(0);
        }
        let mut mask = Mask { window, positions: Positions::Past(past), ..Mask::none() };
        if let Some((dtype, shape)) = of(3) {
            let meaning = if dtype == DType::Bool { Meaning::Keep(f64::NEG_INFINITY) } else { Meaning::Add };
            let columns = shape.last().copied().unwrap_or(sizes.l).min(sizes.l);
            let to = [sizes.b, sizes.h, sizes.s, columns];
            mask.layers.push(Layer::broadcast("attn_mask", meaning, 3, (dtype, shape), to)?);
        }
        if let Some((_, shape)) = of(6) {
            if shape != [sizes.b] || of(4).is_some() {
                return Err(OpError::shape("nonpad_kv_seqlen", format!("[{}], and no past_key", sizes.b), shape));
            }
            mask.positions = Positions::Counted(6);
        }
        let scale = if attrs.has("scale") { f64::from(attrs.float("scale", 1.0)?) } else { scale_of(attrs, sizes.d)? };
        Ok(Call { sizes, past, packed, scale, softcap: f64::from(attrs.float("softcap", 0.0)?), mask })
    }

    fn of_tensors(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Call, OpError> {
        Call::new(attrs, |i| optional(inputs, i).map(|t| (t.dtype(), t.shape())))
    }
}

fn shape(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let c = Call::new(attrs, |i| optional(inputs, i).map(|f| (f.dtype, &f.shape[..])))?;
    let (q, v) = (need(inputs, 0, "Q")?.dtype, need(inputs, 2, "V")?.dtype);
    let Sizes { b, h, g, s, l, d, e } = c.sizes;
    let y = if c.packed { vec![b, s, h * e] } else { vec![b, h, s, e] };
    Ok(Some(vec![
        Fact::new(q, y),
        Fact::new(q, vec![b, g, l, d]),
        Fact::new(v, vec![b, g, l, e]),
        Fact::new(q, vec![b, h, s, l]),
    ]))
}

fn reference(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let c = Call::of_tensors(attrs, inputs)?;
    let Sizes { b, h, g, s, l, d, e } = c.sizes;
    let (tq, tv) = (need(inputs, 0, "Q")?.dtype(), need(inputs, 2, "V")?.dtype());
    let new = l - c.past;
    let heads = |i: usize, tokens: usize, heads: usize, width: usize| -> Result<Vec<f64>, OpError> {
        let x = need(inputs, i, "operand")?.data().to_f64();
        Ok(if c.packed { heads_first(&x, b, tokens, heads, width) } else { x })
    };
    let (q, mut k, mut v) = (heads(0, s, h, d)?, heads(1, new, g, d)?, heads(2, new, g, e)?);
    if let (Some(pk), Some(pv)) = (optional(inputs, 4), optional(inputs, 5)) {
        k = joined(&pk.data().to_f64(), &k, b * g, c.past, new, d);
        v = joined(&pv.data().to_f64(), &v, b * g, c.past, new, e);
    }
    let values = c.mask.values(inputs);
    let mask = |b_: usize, h_: usize, i: usize, row: &mut [f64]| c.mask.add(&values, [b, s], [b_, h_, i], row);
    let stage = match (attrs.outputs > 3, attrs.int("qk_matmul_output_mode", 0)?) {
        (false, _) => Stage::Nothing,
        (_, 0) => Stage::Raw,
        (_, 1) => Stage::Capped,
        (_, 2) => Stage::Masked,
        (_, 3) => Stage::Softmax,
        (_, n) => return Err(OpError::attribute("qk_matmul_output_mode", format!("must be 0 to 3, is {n}"))),
    };
    let problem =
        Core { sizes: c.sizes, q: &q, k: &k, v: &v, scale: c.scale, softcap: c.softcap, mask: &mask, sink: None };
    let got = core(&problem, stage)?;
    let y = if c.packed { tokens_first(&got.y, b, s, h, e) } else { got.y };
    let y_shape: &[usize] = if c.packed { &[b, s, h * e] } else { &[b, h, s, e] };
    let mut out = vec![
        Tensor::from_f64(tq, y_shape, &y)?,
        Tensor::from_f64(tq, &[b, g, l, d], &k)?,
        Tensor::from_f64(tv, &[b, g, l, e], &v)?,
    ];
    if stage != Stage::Nothing {
        out.push(Tensor::from_f64(tq, &[b, h, s, l], &got.scores)?);
    }
    Ok(out)
}

/// Scores, mask, softmax and mixture as calls of their own, the scores in scratch. Without a past, a window or a soft cap.
fn recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let c = Call::new(l.attrs, |i| Some((l.dtype(i)?, l.shape(i).ok()?)))?;
    let floats = (0..3).all(|i| l.dtype(i) == Some(DType::F32));
    let plain = c.past == 0 && c.softcap == 0.0 && c.mask.window == Window::default();
    let alone = (1..4).all(|i| !l.wants(i)) && !l.has(4) && !l.has(5) && c.mask.positions == Positions::Past(0);
    if !floats || !plain || !alone {
        return Ok(None);
    }
    let Sizes { b, h, g, s, l: keys, d, e } = c.sizes;
    let rows = |tokens: usize, heads: usize, width: usize| {
        if c.packed {
            Rows::tokens_first(tokens, heads * width, 0, width)
        } else {
            Rows::heads_first(heads, tokens, width)
        }
    };
    let (q, k, v, y) = (rows(s, h, d), rows(keys, g, d), rows(keys, g, e), rows(s, h, e));
    let (share, area) = (h / g, s * keys);
    let scores = [0, h * area, share * area, area];
    let shared = |r: Rows| [0, r.batch, r.head, 0];
    let own = |r: Rows| [0, r.batch, share * r.head, r.head];
    let product = |m, n, k| gpu::Product {
        m,
        n,
        k,
        left: gpu::Left::Matrix { row: 0, step: 1 },
        right: gpu::Right::Packed,
        y_row: n,
        batch: gpu::Batch { lengths: [1, b, g, share], a: [0; 4], w: [0; 4], y: [0; 4] },
        bias: false,
        residual: false,
        alpha: 1.0,
        activation: Activation::None,
        matrices: l.matrices,
    };
    let lengths = [1, b, g, share];
    let first = gpu::Product {
        left: gpu::Left::Matrix { row: q.token, step: 1 },
        right: gpu::Right::Plain { row: 1, step: k.token },
        batch: gpu::Batch { lengths, a: own(q), w: shared(k), y: scores },
        alpha: c.scale as f32,
        ..product(s, keys, d)
    };
    let mut out = Recorded::default();
    // Calls do not write what they read: the scores go from one area to the other and back.
    let areas = [out.scratch(4 * b * h * area), out.scratch(4 * b * h * area)];
    let mut turn = 0;
    let mut done = out.and(first.call(), vec![At::In(0), At::In(1), areas[0].clone()]);
    for layer in &c.mask.layers {
        let (name, constants, element) = match (layer.meaning, layer.dtype) {
            (Meaning::Add, DType::F32) => ("Add", vec![], Element::F32),
            (Meaning::Keep(value), DType::Bool) => ("AddUnless", vec![value as f32], Element::U8),
            _ => return Ok(None),
        };
        if layer.base != 0 || layer.keys != (0..keys) {
            return Ok(None);
        }
        let shape = vec![b, h, s, keys];
        let operands = vec![
            Operand { element: Element::F32, strides: crate::ops::strides_of(&shape) },
            Operand { element, strides: layer.strides.to_vec() },
        ];
        let Some(function) = function(name) else { return Ok(None) };
        let map = Map { function, constants, shape, operands, result: Element::F32 };
        let at = vec![areas[turn].clone(), At::In(layer.operand), areas[1 - turn].clone()];
        done = done.and_then(|r| r.and(map.call(), at));
        turn = 1 - turn;
    }
    let rows = gpu_rows::Rows::SoftmaxOrNothing;
    let softmax =
        gpu_rows::Along { rows, outer: b * h * s, length: keys, inner: 1, scales: 1, epsilon: 0.0, factor: 1.0 };
    let last = gpu::Product {
        left: gpu::Left::Matrix { row: keys, step: 1 },
        right: gpu::Right::Plain { row: v.token, step: 1 },
        batch: gpu::Batch { lengths, a: scores, w: shared(v), y: own(y) },
        y_row: y.token,
        ..product(s, e, keys)
    };
    let done = done.and_then(|r| r.and(softmax.call(), vec![areas[turn].clone(), areas[1 - turn].clone()]));
    Ok(done.and_then(|r| r.and(last.call(), vec![areas[1 - turn].clone(), At::In(2), At::Out(0)])))
}

fn lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let c = Call::new(l.attrs, |i| Some((l.dtype(i)?, l.shape(i).ok()?)))?;
    if (0..3).any(|i| l.dtype(i) != Some(DType::F32)) || l.wants(3) {
        return Ok(None);
    }
    let Sizes { b, h, g, s, l: keys, d, e } = c.sizes;
    let new = keys - c.past;
    let rows = |tokens: usize, heads: usize, width: usize| {
        if c.packed {
            Rows::tokens_first(tokens, heads * width, 0, width)
        } else {
            Rows::heads_first(heads, tokens, width)
        }
    };
    let read = |i: usize, tokens: usize, heads: usize, width: usize| Source {
        place: Place::Read(i),
        rows: rows(tokens, heads, width),
    };
    let mut areas = Areas::default();
    let mut steps = Vec::new();
    // Keys and values are read where they are, unless they are to be put behind a past or given back.
    let mut side = |i: usize, width: usize| -> Result<Source, OpError> {
        let given = read(i, new, g, width);
        let place = match (l.wants(i), l.has(3 + i)) {
            (true, _) => Place::Write(i),
            (false, true) => areas.take(&[b, g, keys, width])?,
            (false, false) => return Ok(given),
        };
        let to = Source { place, rows: Rows::heads_first(g, keys, width) };
        let past = Source { place: Place::Read(3 + i), rows: Rows::heads_first(g, c.past, width) };
        steps.push(Step::Lay {
            past: l.has(3 + i).then_some(past),
            new: given,
            to,
            heads: g,
            counted: Counted::Fixed(c.past),
            tokens: new,
            capacity: keys,
            width,
            bias: None,
        });
        Ok(to)
    };
    let (k, v) = (side(1, d)?, side(2, e)?);
    let fused = Fused {
        sizes: c.sizes,
        q: read(0, s, h, d),
        k,
        v,
        y: rows(s, h, e),
        scale: c.scale as f32,
        softcap: c.softcap as f32,
        mask: c.mask,
        sink: None,
        steps,
        held: areas.floats,
    };
    fused.lower(l)
}
