//! Attention and embedding on quantised weights, as ONNX Runtime's contributed operators define them.
//!
//! Dimension letters: `B` batch, `S` steps, `T` steps with the past, `H` hidden size, `N` heads, `D` size of a head.
use super::{Affine, codes, single};
use crate::ops::shape::elements;
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, ints_of, need, optional};
use crate::tensor::{DType, Data, Tensor};

/// Self-attention of codes with a quantised projection.
pub(super) static QATTENTION: OpDef = OpDef::new(
    "QAttention",
    "self-attention whose input and projection are 8-bit codes",
    |attrs, inputs| {
        let (x, w) = (need(inputs, 0, "input")?, need(inputs, 1, "weight")?);
        let dtype = need(inputs, 3, "input_scale")?.dtype;
        let past = optional(inputs, 8).map(|p| &p.shape[..]);
        let g = Heads::of(attrs, &x.shape, &w.shape, past)?;
        Ok(Some(vec![Fact::new(dtype, [g.b, g.s, g.n * g.d]), Fact::new(dtype, [2, g.b, g.n, g.t, g.d])]))
    },
    attention,
)
.domain(MICROSOFT)
.kernel(super::heads::lower)
.vjp(super::spelled::attention);

#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) b: usize,
    pub(super) s: usize,
    /// Size of an input row.
    pub(super) i: usize,
    pub(super) n: usize,
    pub(super) d: usize,
    pub(super) t: usize,
}

impl Heads {
    pub(super) fn of(attrs: &Attrs, x: &[usize], w: &[usize], past: Option<&[usize]>) -> Result<Heads, OpError> {
        let (&[b, s, i], &[wi, w3]) = (x, w) else {
            return Err(OpError::shape("operands of QAttention", "[B, S, I] and [I, 3H]", (x, w)));
        };
        let n = usize::try_from(attrs.int("num_heads", 0)?).unwrap_or(0);
        if wi != i || n == 0 || n > w3 || !w3.is_multiple_of(3 * n) || w3 == 0 {
            return Err(OpError::shape(format!("weight of QAttention with {n} heads"), format!("[{i}, 3H]"), w));
        }
        let d = w3 / 3 / n;
        let before = match past {
            None => 0,
            Some(&[2, pb, pn, p, pd]) if (pb, pn, pd) == (b, n, d) => p,
            Some(p) => return Err(OpError::shape("past of QAttention", format!("[2, {b}, {n}, P, {d}]"), p)),
        };
        let t = before.saturating_add(s);
        elements(&[2, b, n, t, d])?;
        elements(&[b, s, w3])?;
        elements(&[b, n, s, t])?;
        Ok(Heads { b, s, i, n, d, t })
    }
}

fn attention(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let (x, w, bias) = (need(inputs, 0, "input")?, need(inputs, 1, "weight")?, need(inputs, 2, "bias")?);
    let (xs, ws) = (need(inputs, 3, "input_scale")?, need(inputs, 4, "weight_scale")?);
    let past = optional(inputs, 8);
    let Heads { b, s, i: size, n, d, t } = Heads::of(attrs, x.shape(), w.shape(), past.map(Tensor::shape))?;
    let h = n * d;
    let columns = 3 * h;
    let x_zero = optional(inputs, 6).map_or(Ok(0.0), |z| single(z, "input"))? as i32;
    let per_column = |v: Vec<f64>, what: &str| match v.len() {
        1 => Ok(vec![v[0]; columns]),
        n if n == columns => Ok(v),
        n => Err(OpError::shape(what, format!("one, or {columns}"), n)),
    };
    let scale = per_column(ws.data().to_f64(), "weight_scale")?;
    let w_zero = per_column(optional(inputs, 7).map_or(vec![0.0], |z| z.data().to_f64()), "weight_zero_point")?;
    let x_scale = single(xs, "input")? as f32;
    let bias = bias.data().to_f64();
    if bias.len() != columns {
        return Err(OpError::shape("bias of QAttention", columns, bias.len()));
    }
    let (xv, wv) = (codes(x, "input")?, codes(w, "weight")?);
    // Q, K and V of every row: [B·S, 3H].
    let mut qkv = vec![0f32; b * s * columns];
    let mut acc = vec![0i32; columns];
    for r in 0..b * s {
        acc.fill(0);
        for k in 0..size {
            let v = xv[r * size + k].wrapping_sub(x_zero);
            for j in 0..columns {
                acc[j] = acc[j].wrapping_add(v.wrapping_mul(wv[k * columns + j].wrapping_sub(w_zero[j] as i32)));
            }
        }
        for j in 0..columns {
            qkv[r * columns + j] = acc[j] as f32 * (x_scale * scale[j] as f32) + bias[j] as f32;
        }
    }
    let before = t - s;
    let past = past.map(|p| p.data().to_f64());
    // Keys, then values: [2, B, N, T, D].
    let mut present = vec![0f64; 2 * b * n * t * d];
    for kv in 0..2 {
        for bb in 0..b {
            for head in 0..n {
                let plane = ((kv * b + bb) * n + head) * t * d;
                if let Some(p) = &past {
                    let from = ((kv * b + bb) * n + head) * before * d;
                    present[plane..plane + before * d].copy_from_slice(&p[from..from + before * d]);
                }
                for step in 0..s {
                    let from = (bb * s + step) * columns + (kv + 1) * h + head * d;
                    for i in 0..d {
                        present[plane + (before + step) * d + i] = f64::from(qkv[from + i]);
                    }
                }
            }
        }
    }
    let mask = Mask::of(attrs, optional(inputs, 5), b, s, t)?;
    let scale = match attrs.float("scale", 0.0)? {
        0.0 => 1.0 / (d as f64).sqrt(),
        v => f64::from(v),
    };
    let mut y = vec![0f64; b * s * h];
    let mut row = vec![0f64; t];
    for bb in 0..b {
        for head in 0..n {
            let keys = &present[(bb * n + head) * t * d..][..t * d];
            let values = &present[((b + bb) * n + head) * t * d..][..t * d];
            for step in 0..s {
                let q = &qkv[(bb * s + step) * columns + head * d..][..d];
                for (i, key) in keys.chunks_exact(d).enumerate() {
                    let dot: f64 = q.iter().zip(key).map(|(q, k)| f64::from(*q) * k).sum();
                    row[i] = dot * scale + mask.at(bb, step, i);
                }
                let max = row.iter().fold(f64::NEG_INFINITY, |a, &v| a.max(v));
                row.iter_mut().for_each(|v| *v = (*v - max).exp());
                let sum: f64 = row.iter().sum();
                let out = &mut y[(bb * s + step) * h + head * d..][..d];
                for (p, value) in row.iter().zip(values.chunks_exact(d)) {
                    out.iter_mut().zip(value).for_each(|(o, v)| *o += p / sum * v);
                }
            }
        }
    }
    let dtype = xs.dtype();
    Ok(vec![Tensor::from_f64(dtype, &[b, s, h], &y)?, Tensor::from_f64(dtype, &[2, b, n, t, d], &present)?])
}

/// What is added to a score: the filter value for a key the mask hides, minus infinity for one in the future.
struct Mask {
    added: Vec<f64>,
    s: usize,
    t: usize,
}

impl Mask {
    fn of(attrs: &Attrs, mask: Option<&Tensor>, b: usize, s: usize, t: usize) -> Result<Mask, OpError> {
        let rule = MaskRule::of(attrs, mask.map(Tensor::shape), b, s, t)?;
        let v = mask.map(ints_of).unwrap_or_default();
        let mut added = Vec::with_capacity(elements(&[b, s, t])?);
        for bb in 0..b {
            for step in 0..s {
                added.extend((0..t).map(|i| f64::from(rule.added(|k| v[k], bb, step, i))));
            }
        }
        Ok(Mask { added, s, t })
    }

    fn at(&self, b: usize, step: usize, i: usize) -> f64 {
        self.added[(b * self.s + step) * self.t + i]
    }
}

/// How a mask is read: `[B]` (lengths), `[2B]` (ends, then starts), `[B, T]`, `[B, S, T]` or `[B, 1, M, M]` with `M ≥ T`.
pub(super) struct MaskRule {
    b: usize,
    s: usize,
    t: usize,
    shape: Vec<usize>,
    filter: f32,
    causal: bool,
}

impl MaskRule {
    pub(super) fn of(
        attrs: &Attrs,
        shape: Option<&[usize]>,
        b: usize,
        s: usize,
        t: usize,
    ) -> Result<MaskRule, OpError> {
        let shape = shape.unwrap_or_default();
        let known = match *shape {
            [] => true,
            [n] => n == b || n == 2 * b,
            [n, last] => n == b && (last == t || last == 1) || (n == 1 && last == t),
            [n, rows, last] => (n, rows, last) == (b, s, t),
            [n, 1, rows, last] => n == b && rows == last && last >= t,
            _ => false,
        };
        if !known {
            return Err(OpError::shape("mask_index of QAttention", format!("[{b}], [{}] or [{b}, {t}]", 2 * b), shape));
        }
        let filter = attrs.float("mask_filter_value", -10000.0)?;
        Ok(MaskRule { b, s, t, shape: shape.to_vec(), filter, causal: attrs.flag("unidirectional", false)? })
    }

    /// What is added to the score of key `i` for a step of a sequence; `v` gives the elements of the mask.
    pub(super) fn added(&self, v: impl Fn(usize) -> i64, b: usize, step: usize, i: usize) -> f32 {
        let (s, t) = (self.s, self.t);
        let now = t - s + step;
        if self.causal && i > now {
            return f32::NEG_INFINITY;
        }
        let shown = match *self.shape {
            [] => true,
            [n] if n == self.b => (i as i64) < v(b),
            [_] => (i as i64) < v(b) && i as i64 >= v(self.b + b),
            [n, last] => v(if n == 1 { 0 } else { b * last } + if last == 1 { 0 } else { i }) > 0,
            [_, _, _] => v((b * s + step) * t + i) > 0,
            [_, _, rows, last] => v((b * rows + now) * last + i) > 0,
            _ => true,
        };
        if shown { 0.0 } else { self.filter }
    }
}

/// Sum of word, position and segment embeddings, all 8-bit codes, then layer normalisation.
pub(super) static QEMBED_LAYER_NORMALIZATION: OpDef = OpDef::new(
    "QEmbedLayerNormalization",
    "layer normalisation of embeddings that are 8-bit codes",
    |_, inputs| {
        let (ids, words) = (need(inputs, 0, "input_ids")?, need(inputs, 2, "word_embedding_quant")?);
        let (&[b, s], &[_, h]) = (&ids.shape[..], &words.shape[..]) else {
            return Err(OpError::shape(
                "operands of QEmbedLayerNormalization",
                "[B, S] and [V, H]",
                (&ids.shape, &words.shape),
            ));
        };
        elements(&[b, s, h])?;
        Ok(Some(vec![Fact::new(need(inputs, 8, "word_embedding_scale")?.dtype, [b, s, h]), Fact::new(DType::I32, [b])]))
    },
    |attrs, inputs| {
        let ids = need(inputs, 0, "input_ids")?;
        let &[b, s] = ids.shape() else { return Err(OpError::shape("input_ids", "[B, S]", ids.shape())) };
        let table = |at: usize, name: &'static str, scale: usize| -> Result<(usize, Vec<f32>), OpError> {
            let t = need(inputs, at, name)?;
            let zero = optional(inputs, scale + 5).map_or(Ok(0.0), |z| single(z, name))? as i32;
            let a = Affine { scale: single(need(inputs, scale, name)?, name)? as f32, zero };
            let size = t.shape().last().copied().unwrap_or(0);
            Ok((size, codes(t, name)?.into_iter().map(|q| a.real(q)).collect()))
        };
        let (h, words) = table(2, "word_embedding_quant", 8)?;
        let (hp, positions) = table(3, "position_embedding_quant", 9)?;
        let segments = match optional(inputs, 1) {
            Some(ids) if ids.shape() == [b, s] => Some((ints_of(ids), table(4, "segment_embedding_quant", 10)?)),
            Some(ids) => return Err(OpError::shape("segment_ids", [b, s], ids.shape())),
            None => None,
        };
        let (hg, gamma) = table(5, "gamma_quant", 11)?;
        let (hb, beta) = table(6, "beta_quant", 12)?;
        if [hp, hg, hb, segments.as_ref().map_or(h, |s| s.1.0)].iter().any(|&v| v != h) || h == 0 {
            return Err(OpError::shape("embeddings of QEmbedLayerNormalization", format!("rows of {h}"), [hp, hg, hb]));
        }
        let epsilon = f64::from(attrs.float("epsilon", 1e-12)?);
        let row = |table: &[f32], i: i64, name: &str| -> Result<Vec<f32>, OpError> {
            match usize::try_from(i).ok().filter(|&i| i < table.len() / h) {
                Some(i) => Ok(table[i * h..][..h].to_vec()),
                None => Err(OpError::shape(name.to_string(), format!("below {}", table.len() / h), i)),
            }
        };
        let mut y = Vec::with_capacity(elements(&[b, s, h])?);
        for (at, &id) in ints_of(ids).iter().enumerate() {
            let mut v: Vec<f64> = row(&words, id, "an id")?.into_iter().map(f64::from).collect();
            let position = row(&positions, (at % s) as i64, "a position")?;
            v.iter_mut().zip(position).for_each(|(v, p)| *v += f64::from(p));
            if let Some((ids, (_, table))) = &segments {
                v.iter_mut().zip(row(table, ids[at], "a segment")?).for_each(|(v, p)| *v += f64::from(p));
            }
            let mean = v.iter().sum::<f64>() / h as f64;
            let var = v.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / h as f64;
            let r = 1.0 / (var + epsilon).sqrt();
            y.extend((0..h).map(|j| (v[j] - mean) * r * f64::from(gamma[j]) + f64::from(beta[j])));
        }
        let lengths = match optional(inputs, 7) {
            None => vec![0; b],
            Some(m) if m.shape() == [b, s] => {
                let v = ints_of(m);
                (0..b).map(|i| v[i * s..][..s].iter().filter(|&&v| v == 1).count() as i32).collect()
            }
            Some(m) => return Err(OpError::shape("mask", [b, s], m.shape())),
        };
        let dtype = need(inputs, 8, "word_embedding_scale")?.dtype();
        Ok(vec![Tensor::from_f64(dtype, &[b, s, h], &y)?, Tensor::new(&[b], Data::I32(lengths))?])
    },
)
.domain(MICROSOFT);
