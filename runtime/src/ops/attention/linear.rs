//! `LinearAttention`: attention whose past is one matrix a head.
use super::core::{head_size, heads_of};
use crate::ops::{Attrs, Fact, OpDef, OpError, need, optional};
use crate::tensor::Tensor;

/// `State += k ⊗ v` a token, with decay and correction, read by `scale · qᵀ · State`.
///
/// query `[B, T, H·D]`, key `[B, T, G·D]`, value `[B, T, G·E]`, past state `[B, G, D, E]`, decay `[B, T, G·D]` or
/// `[B, T, G]` (the logarithm of what is kept), beta `[B, T, G]` or `[B, T, 1]`; gives `[B, T, H·E]` and the state.
pub(super) static LINEAR_ATTENTION: OpDef = OpDef::new(
    "LinearAttention",
    "attention by a recurrent state: linear, gated, delta and gated delta rules",
    shape,
    reference,
);

struct Call {
    b: usize,
    t: usize,
    h: usize,
    g: usize,
    d: usize,
    e: usize,
    gated: bool,
    corrected: bool,
    /// Numbers of decay a head.
    decays: usize,
    /// Heads of beta.
    betas: usize,
}

fn call<'a>(attrs: &Attrs, of: impl Fn(usize) -> Option<&'a [usize]>) -> Result<Call, OpError> {
    let rank3 = |index: usize, name: &'static str| match of(index) {
        Some(&[b, t, w]) => Ok((b, t, w)),
        Some(other) => Err(OpError::shape(name, "rank 3", other)),
        None => Err(OpError::MissingInput { index, name }),
    };
    let (h, g) = (heads_of(attrs, "q_num_heads")?, heads_of(attrs, "kv_num_heads")?);
    let ((b, t, qw), (kb, kt, kw), (vb, vt, vw)) = (rank3(0, "query")?, rank3(1, "key")?, rank3(2, "value")?);
    let d = head_size("q_num_heads", h, qw)?;
    let e = head_size("kv_num_heads", g, vw)?;
    if !h.is_multiple_of(g) || head_size("kv_num_heads", g, kw)? != d || (kb, kt, vb, vt) != (b, t, b, t) {
        return Err(OpError::shape("key and value", "batch, length and heads of query", (kb, kt, kw, vb, vt, vw)));
    }
    let (gated, corrected) = match attrs.str("update_rule", "gated_delta")? {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return Err(OpError::attribute("update_rule", format!("is `{other}`"))),
    };
    if let Some(shape) = of(3)
        && shape != [b, g, d, e]
    {
        return Err(OpError::shape("past_state", [b, g, d, e], shape));
    }
    let (mut decays, mut betas) = (1, 1);
    if gated {
        let (db, dt, w) = rank3(4, "decay")?;
        decays = if w == g { 1 } else { d };
        if (db, dt, w) != (b, t, g * decays) {
            return Err(OpError::shape("decay", format!("[{b}, {t}, {g} or {}]", g * d), (db, dt, w)));
        }
    }
    if corrected {
        let (bb, bt, w) = rank3(5, "beta")?;
        betas = w;
        if (bb, bt) != (b, t) || (w != g && w != 1) {
            return Err(OpError::shape("beta", format!("[{b}, {t}, {g} or 1]"), (bb, bt, w)));
        }
    }
    Ok(Call { b, t, h, g, d, e, gated, corrected, decays, betas })
}

fn shape(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let c = call(attrs, |i| optional(inputs, i).map(|f| &f.shape[..]))?;
    let t = need(inputs, 0, "query")?.dtype;
    let state = optional(inputs, 3).map_or(t, |f| f.dtype);
    Ok(Some(vec![Fact::new(t, vec![c.b, c.t, c.h * c.e]), Fact::new(state, vec![c.b, c.g, c.d, c.e])]))
}

fn reference(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let c = call(attrs, |i| optional(inputs, i).map(Tensor::shape))?;
    let Call { b, t, h, g, d, e, .. } = c;
    let numbers = |i: usize| optional(inputs, i).map(|x| x.data().to_f64()).unwrap_or_default();
    let (q, k, v, decay, beta) = (numbers(0), numbers(1), numbers(2), numbers(4), numbers(5));
    let scale = super::core::scale_of(attrs, d)?;
    let mut state = match optional(inputs, 3) {
        Some(past) => past.data().to_f64(),
        None => vec![0.0; crate::ops::shape::elements(&[b, g, d, e])?],
    };
    let mut y = vec![0.0; crate::ops::shape::elements(&[b, t, h, e])?];
    let mut write = vec![0.0; e];
    for batch in 0..b {
        for token in 0..t {
            let at = batch * t + token;
            for head in 0..g {
                let state = &mut state[(batch * g + head) * d * e..][..d * e];
                let key = &k[(at * g + head) * d..][..d];
                write.copy_from_slice(&v[(at * g + head) * e..][..e]);
                for (r, row) in state.chunks_exact_mut(e.max(1)).enumerate().filter(|_| c.gated) {
                    let kept = decay[(at * g + head) * c.decays + r.min(c.decays - 1)].exp();
                    row.iter_mut().for_each(|x| *x *= kept);
                }
                if c.corrected {
                    for (row, &x) in state.chunks_exact(e.max(1)).zip(key) {
                        write.iter_mut().zip(row).for_each(|(w, s)| *w -= s * x);
                    }
                    let rate = beta[at * c.betas + head.min(c.betas - 1)];
                    write.iter_mut().for_each(|w| *w *= rate);
                }
                for (row, &x) in state.chunks_exact_mut(e.max(1)).zip(key) {
                    row.iter_mut().zip(&write).for_each(|(s, w)| *s += x * w);
                }
                for reader in head * (h / g)..(head + 1) * (h / g) {
                    let q = &q[(at * h + reader) * d..][..d];
                    let out = &mut y[(at * h + reader) * e..][..e];
                    for (row, &x) in state.chunks_exact(e.max(1)).zip(q) {
                        out.iter_mut().zip(row).for_each(|(o, s)| *o += scale * x * s);
                    }
                }
            }
        }
    }
    let dtype = need(inputs, 0, "query")?.dtype();
    let state_type = optional(inputs, 3).map_or(dtype, Tensor::dtype);
    Ok(vec![Tensor::from_f64(dtype, &[b, t, h * e], &y)?, Tensor::from_f64(state_type, &[b, g, d, e], &state)?])
}
