//! `GroupQueryAttention` of ONNX Runtime: causal attention of language models over a cache of fixed capacity.
use super::core::{Core, Rows, Sizes, Stage, core, head_size, heads_of, scale_of, tokens_first};
use super::fused::{Areas, Counted, Fused, Place, Source, Step, Turn};
use super::mask::{Layer, Mask, Meaning, Positions, Window};
use super::microsoft::Seen;
use super::rotary::{row_of, turn};
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, ints_of, need, optional};
use crate::plan::{Lowered, Lowering};
use crate::tensor::{DType, Tensor};

/// `query [B, S, H·D]`, `key` and `value` `[B, S, G·D]`, or all packed in `query`; `past_key` and `past_value`
/// `[B, G, P, D]`, `seqlens_k [B]` (keys that count, less one), `total_sequence_length` (their maximum), `cos_cache` and
/// `sin_cache`, `position_ids`, `attention_bias`, `head_sink [H]`, and weights of a norm of each head of Q and K. Gives
/// `[B, S, H·D]` and caches `[B, G, max(P, total), D]`, whose rows behind the keys that count are zero.
///
/// When `total_sequence_length` is `S` this is the first prompt: its keys are the first of the cache.
pub(super) static GROUP_QUERY_ATTENTION: OpDef =
    OpDef::new("GroupQueryAttention", "grouped-query attention with a cache and rotary embedding", shape, reference)
        .domain(MICROSOFT)
        .kernel(lower);

/// What the operands say, by types, shapes and the value of `total_sequence_length`.
pub(super) struct Call {
    /// `l` is the capacity of the caches that come out.
    pub(super) sizes: Sizes,
    /// Capacity of the caches that go in.
    pub(super) past: usize,
    pub(super) prompt: bool,
    pub(super) scale: f64,
    pub(super) softcap: f64,
    pub(super) mask: Mask,
    /// Input and rows of Q, K and V.
    pub(super) operands: [(usize, Rows); 3],
    /// Features that turn, and rows of the caches of cosines.
    pub(super) rotary: Option<(usize, usize)>,
    pub(super) interleaved: bool,
    pub(super) smooth: bool,
    /// Epsilon of the norm of each head of Q and of K.
    norms: Option<[f64; 2]>,
}

const SEQLENS: usize = 5;

impl Call {
    pub(super) fn new<'a>(attrs: &Attrs, total: i64, of: impl Fn(usize) -> Option<Seen<'a>>) -> Result<Call, OpError> {
        for (i, what) in [(12, "k_scale"), (13, "v_scale"), (16, "query_seqlens")] {
            if of(i).is_some() {
                return Err(OpError::unsupported(format!("GroupQueryAttention with `{what}`")));
            }
        }
        if attrs.flag("sliding_window_cache", false)? || attrs.outputs > 3 {
            return Err(OpError::unsupported("GroupQueryAttention with sliding_window_cache or output_qk"));
        }
        let shape_of = |i: usize| of(i).map(|t| t.1);
        let must = |index: usize, name: &'static str| shape_of(index).ok_or(OpError::MissingInput { index, name });
        let (h, g) = (heads_of(attrs, "num_heads")?, heads_of(attrs, "kv_num_heads")?);
        let q = must(0, "query")?;
        let &[b, s, width] = q else { return Err(OpError::shape("query", "rank 3", q)) };
        let (d, operands) = match (shape_of(1), shape_of(2)) {
            (None, None) => {
                let d = head_size("num_heads", h.saturating_add(2 * g), width)?;
                (d, [0, h * d, (h + g) * d].map(|base| (0, Rows::tokens_first(s, width, base, d))))
            }
            (Some(k), Some(v)) => {
                let d = head_size("num_heads", h, width)?;
                if k != [b, s, g * d] || v != k {
                    return Err(OpError::shape("key and value", [b, s, g * d], (k, v)));
                }
                let kv = Rows::tokens_first(s, g * d, 0, d);
                (d, [(0, Rows::tokens_first(s, width, 0, d)), (1, kv), (2, kv)])
            }
            (k, v) => return Err(OpError::shape("key and value", "both or none", (k, v))),
        };
        if !h.is_multiple_of(g) {
            return Err(OpError::attribute("num_heads", format!("is {h}, no multiple of {g}")));
        }
        let past = match (shape_of(3), shape_of(4)) {
            (None, None) => 0,
            (Some(&[kb, kg, p, kd]), Some(v)) if (kb, kg, kd) == (b, g, d) && v == [b, g, p, d] => p,
            (k, v) => return Err(OpError::shape("past_key and past_value", [b, g, 0, d], (k, v))),
        };
        let seqlens = must(SEQLENS, "seqlens_k")?;
        if seqlens.iter().product::<usize>() != b {
            return Err(OpError::shape("seqlens_k", [b], seqlens));
        }
        let total = usize::try_from(total)
            .ok()
            .filter(|&t| t >= s && t < 1 << 40)
            .ok_or_else(|| OpError::shape("total_sequence_length", format!("at least {s}"), total))?;
        let sizes = Sizes { b, h, g, s, l: total.max(past), d, e: d };
        let prompt = total == s;
        let mut window = Window::default();
        if attrs.flag("causal", true)? {
            window.right = Some(0);
            let local = attrs.int("local_window_size", -1)?;
            window.left = usize::try_from(local).ok().filter(|&n| n > 0).map(|n| n - 1);
        }
        let positions = if prompt { Positions::PromptLessOne(SEQLENS) } else { Positions::CountedLessOne(SEQLENS) };
        let mut mask = Mask { window, positions, ..Mask::none() };
        if let Some((dtype, shape)) = of(10) {
            let keys = shape.last().copied().unwrap_or(1).min(sizes.l);
            let to = [b, h, s, keys];
            mask.layers.push(Layer::broadcast("attention_bias", Meaning::Add, 10, (dtype, shape), to)?);
        }
        if let Some(sink) = shape_of(11)
            && sink != [h]
        {
            return Err(OpError::shape("head_sink", [h], sink));
        }
        let rotary = if attrs.flag("do_rotary", false)? {
            let (cos, sin) = (must(7, "cos_cache")?, must(8, "sin_cache")?);
            match *cos {
                [rows, half] if 2 * half <= d && cos == sin => Some((2 * half, rows)),
                _ => {
                    return Err(OpError::shape(
                        "cos_cache and sin_cache",
                        format!("[positions, {}]", d / 2),
                        (cos, sin),
                    ));
                }
            }
        } else {
            None
        };
        if let Some(ids) = shape_of(9)
            && ids != [b, s]
        {
            return Err(OpError::shape("position_ids", [b, s], ids));
        }
        let norms = match (shape_of(14), shape_of(15)) {
            (None, None) => None,
            (Some(q), Some(k)) if q == [d] && k == [d] => {
                let epsilon = attrs.float("qk_norm_epsilon", 1e-6)?;
                let of = |name: &str| attrs.float(name, epsilon).map(f64::from);
                Some([of("q_norm_epsilon")?, of("k_norm_epsilon")?])
            }
            (q, k) => return Err(OpError::shape("q_norm_weight and k_norm_weight", [d], (q, k))),
        };
        Ok(Call {
            sizes,
            past,
            prompt,
            scale: scale_of(attrs, d)?,
            softcap: f64::from(attrs.float("softcap", 0.0)?),
            mask,
            operands,
            rotary,
            interleaved: attrs.flag("rotary_interleaved", false)?,
            smooth: attrs.flag("smooth_softmax", false)?,
            norms,
        })
    }

    /// Keys of the past that count, by `seqlens_k` of a batch.
    ///
    /// # Errors
    /// [`OpError::Shape`] when that is not between 0 and what the caches hold.
    pub(super) fn counted(&self, seqlen: i64) -> Result<usize, OpError> {
        if self.prompt {
            return Ok(0);
        }
        let Sizes { s, l, .. } = self.sizes;
        let past = seqlen.saturating_add(1).saturating_sub(s as i64);
        usize::try_from(past)
            .ok()
            .filter(|&p| p <= self.past && p + s <= l)
            .ok_or_else(|| OpError::shape("seqlens_k", format!("a past of 0 to {} keys", self.past), seqlen))
    }

    /// Position of a token for the rotary embedding. `ids` are the position ids, if given; of a prompt's the first alone
    /// counts.
    pub(super) fn position(&self, batch: usize, token: usize, counted: usize, ids: Option<&[i64]>) -> i64 {
        match ids {
            Some(ids) if self.prompt => ids[0].saturating_add(token as i64),
            Some(ids) => ids[batch * self.sizes.s + token],
            None => (counted + token) as i64,
        }
    }
}

fn shape(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let Some(total) = need(inputs, 6, "total_sequence_length")?.ints() else { return Ok(None) };
    let c = Call::new(attrs, total.first().copied().unwrap_or(-1), |i| {
        optional(inputs, i).map(|f| (f.dtype, &f.shape[..]))
    })?;
    let t = need(inputs, 0, "query")?.dtype;
    let Sizes { b, h, g, s, l, d, .. } = c.sizes;
    Ok(Some(vec![Fact::new(t, vec![b, s, h * d]), Fact::new(t, vec![b, g, l, d]), Fact::new(t, vec![b, g, l, d])]))
}

fn reference(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let total = ints_of(need(inputs, 6, "total_sequence_length")?).first().copied().unwrap_or(-1);
    let c = Call::new(attrs, total, |i| optional(inputs, i).map(|t| (t.dtype(), t.shape())))?;
    let dtype = need(inputs, 0, "query")?.dtype();
    let Sizes { b, h, g, s, l, d, .. } = c.sizes;
    let numbers = |i: usize| optional(inputs, i).map(|t| t.data().to_f64());
    let part = |i: usize, heads: usize| -> Result<Vec<f64>, OpError> {
        let (operand, rows) = c.operands[i];
        Ok(rows.gather(&need(inputs, operand, "operand")?.data().to_f64(), [b, heads, s, d]))
    };
    let (mut q, mut k, v) = (part(0, h)?, part(1, g)?, part(2, g)?);
    if let (Some(epsilons), Some(wq), Some(wk)) = (c.norms, numbers(14), numbers(15)) {
        for (x, w, epsilon) in [(&mut q, wq, epsilons[0]), (&mut k, wk, epsilons[1])] {
            for row in x.chunks_exact_mut(d.max(1)) {
                let square = row.iter().map(|x| x * x).sum::<f64>() / d as f64;
                row.iter_mut().zip(&w).for_each(|(x, w)| *x *= w / (square + epsilon).sqrt());
            }
        }
    }
    let seqlens = ints_of(need(inputs, SEQLENS, "seqlens_k")?);
    let counted = seqlens.iter().map(|&n| c.counted(n)).collect::<Result<Vec<_>, _>>()?;
    if let (Some((turned, rows)), Some(cos), Some(sin)) = (c.rotary, numbers(7), numbers(8)) {
        let half = turned / 2;
        let ids = optional(inputs, 9).map(ints_of);
        for (x, heads) in [(&mut q, h), (&mut k, g)] {
            for (n, row) in x.chunks_exact_mut(d.max(1)).enumerate() {
                let (batch, token) = (n / s / heads, n % s);
                let at = row_of(c.position(batch, token, counted[batch], ids.as_deref()), rows)? * half;
                turn(row, &cos[at..][..half], &sin[at..][..half], c.interleaved);
            }
        }
    }
    let cache = |past: Option<Vec<f64>>, new: &[f64]| -> Result<Vec<f64>, OpError> {
        let mut y = vec![0.0; crate::ops::shape::elements(&[b, g, l, d])?];
        for (head, y) in y.chunks_exact_mut((l * d).max(1)).enumerate() {
            let kept = counted[head / g] * d;
            if let Some(past) = &past {
                y[..kept].copy_from_slice(&past[head * c.past * d..][..kept]);
            }
            y[kept..][..s * d].copy_from_slice(&new[head * s * d..][..s * d]);
        }
        Ok(y)
    };
    let (k, v) = (cache(numbers(3), &k)?, cache(numbers(4), &v)?);
    let values = c.mask.values(inputs);
    let mask = |b_: usize, h_: usize, i: usize, row: &mut [f64]| c.mask.add(&values, [b, s], [b_, h_, i], row);
    let sink = numbers(11).or_else(|| c.smooth.then(|| vec![0.0; h]));
    let problem = Core {
        sizes: c.sizes,
        q: &q,
        k: &k,
        v: &v,
        scale: c.scale,
        softcap: c.softcap,
        mask: &mask,
        sink: sink.as_deref(),
    };
    let y = tokens_first(&core(&problem, Stage::Nothing)?.y, b, s, h, d);
    Ok(vec![
        Tensor::from_f64(dtype, &[b, s, h * d], &y)?,
        Tensor::from_f64(dtype, &[b, g, l, d], &k)?,
        Tensor::from_f64(dtype, &[b, g, l, d], &v)?,
    ])
}

fn lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let Some(total) = l.constant(6) else { return Ok(None) };
    let total = ints_of(total).first().copied().unwrap_or(-1);
    let c = Call::new(l.attrs, total, |i| Some((l.dtype(i)?, l.shape(i).ok()?)))?;
    let integers = l.dtype(SEQLENS) == Some(DType::I32) && l.dtype(9).is_none_or(|t| t == DType::I64);
    if l.dtype(0) != Some(DType::F32) || !integers || c.norms.is_some() || c.rotary.is_some_and(|r| r.1 == 0) {
        return Ok(None);
    }
    let Sizes { b, h, g, s, l: keys, d, .. } = c.sizes;
    let counted = if c.prompt {
        Counted::Fixed(0)
    } else {
        let most = c.past.min(keys - s);
        Counted::Told { input: SEQLENS, less: s, most }
    };
    let mut areas = Areas::default();
    let mut steps = Vec::new();
    let given = c.operands.map(|(input, rows)| Source { place: Place::Read(input), rows });
    let turned = |at: Source, heads: usize, behind: bool| {
        let (turned, positions) = c.rotary?;
        let ids = l.has(9).then_some((9, c.prompt));
        let (caches, half, interleaved) = ([7, 8], turned / 2, c.interleaved);
        Some(Step::Turn(Turn {
            at,
            heads,
            tokens: s,
            width: d,
            behind,
            counted,
            caches,
            positions,
            half,
            ids,
            interleaved,
        }))
    };
    let mut q = given[0];
    if c.rotary.is_some() {
        let to = Source { place: areas.take(&[b, h, s, d])?, rows: Rows::heads_first(h, s, d) };
        steps.push(Step::Lay {
            past: None,
            new: q,
            to,
            heads: h,
            counted: Counted::Fixed(0),
            tokens: s,
            capacity: s,
            width: d,
            bias: None,
        });
        steps.extend(turned(to, h, false));
        q = to;
    }
    let mut cache = |i: usize| -> Result<Source, OpError> {
        let place = if l.wants(i) { Place::Write(i) } else { areas.take(&[b, g, keys, d])? };
        let to = Source { place, rows: Rows::heads_first(g, keys, d) };
        let past = Source { place: Place::Read(2 + i), rows: Rows::heads_first(g, c.past, d) };
        steps.push(Step::Lay {
            past: l.has(2 + i).then_some(past),
            new: given[i],
            to,
            heads: g,
            counted,
            tokens: s,
            capacity: keys,
            width: d,
            bias: None,
        });
        if i == 1 {
            steps.extend(turned(to, g, true));
        }
        Ok(to)
    };
    let (k, v) = (cache(1)?, cache(2)?);
    let fused = Fused {
        sizes: c.sizes,
        q,
        k,
        v,
        y: Rows::tokens_first(s, h * d, 0, d),
        scale: c.scale as f32,
        softcap: c.softcap as f32,
        mask: c.mask,
        sink: if l.has(11) { Some(Some(11)) } else { c.smooth.then_some(None) },
        steps,
        held: areas.floats,
    };
    fused.lower(l)
}
