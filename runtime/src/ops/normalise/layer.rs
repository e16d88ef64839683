//! Layer normalisation by mean and variance, and by the mean square alone.
//!
//! `N` is the number of elements normalised together: those of the axes from `axis` on.
use hone_gpu::rows::{Along, Rows};
use hone_kernels::normalise;

use super::{PIECE, backward};
use crate::ops::shape::{broadcast, broadcast_indices};
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, axis_of, need, no_kernel, optional};
use crate::plan::{At, Io, Kernel, Lowered, Lowering, Recorded};
use crate::tensor::{DType, Tensor};

/// `(x - mean) / sqrt(var + epsilon) · scale + bias`.
pub(super) static LAYER_NORMALIZATION: OpDef = OpDef::new(
    "LayerNormalization",
    "(x - mean) / sqrt(var + epsilon) · scale + bias over the axes from `axis` on",
    |attrs, inputs| shape_rule(attrs, inputs, true),
    |attrs, inputs| forward(attrs, inputs, true),
)
.kernel(|l| lower(l, true))
.gpu(|l| recorded(l, true))
.vjp(|b| backward::layer(b, true));

/// The same in ONNX Runtime's domain.
pub(super) static MS_LAYER_NORMALIZATION: OpDef =
    OpDef::new("LayerNormalization", LAYER_NORMALIZATION.doc, LAYER_NORMALIZATION.shape, LAYER_NORMALIZATION.reference)
        .domain(MICROSOFT)
        .kernel(LAYER_NORMALIZATION.lower)
        .gpu(|l| recorded(l, true))
        .vjp(|b| backward::layer(b, true));

/// `x / sqrt(mean(x²) + epsilon) · scale`.
pub(super) static RMS_NORMALIZATION: OpDef = OpDef::new(
    "RMSNormalization",
    "x / sqrt(mean(x²) + epsilon) · scale over the axes from `axis` on",
    |attrs, inputs| shape_rule(attrs, inputs, false),
    |attrs, inputs| forward(attrs, inputs, false),
)
.kernel(|l| lower(l, false))
.gpu(|l| recorded(l, false))
.vjp(|b| backward::layer(b, false));

/// The same with the inverse of the root as second output, as ONNX Runtime had it first.
pub(super) static SIMPLIFIED_LAYER_NORMALIZATION: OpDef = OpDef::new(
    "SimplifiedLayerNormalization",
    RMS_NORMALIZATION.doc,
    RMS_NORMALIZATION.shape,
    RMS_NORMALIZATION.reference,
)
.kernel(RMS_NORMALIZATION.lower)
.gpu(|l| recorded(l, false))
.vjp(|b| backward::layer(b, false));

/// The same in ONNX Runtime's domain.
pub(super) static MS_SIMPLIFIED_LAYER_NORMALIZATION: OpDef = OpDef::new(
    "SimplifiedLayerNormalization",
    RMS_NORMALIZATION.doc,
    RMS_NORMALIZATION.shape,
    RMS_NORMALIZATION.reference,
)
.domain(MICROSOFT)
.kernel(RMS_NORMALIZATION.lower)
.gpu(|l| recorded(l, false))
.vjp(|b| backward::layer(b, false));

/// The type of the moments an operator gives: 32-bit floats unless `stash_type` says otherwise.
pub(super) fn stash_type(attrs: &Attrs) -> Result<DType, OpError> {
    let number = attrs.int("stash_type", 1)?;
    match DType::from_onnx(number) {
        Some(t) if t.is_float() => Ok(t),
        _ => Err(OpError::attribute("stash_type", format!("{number} is no type of floats"))),
    }
}

/// Rows normalised by the formula, with their means and the inverses of their roots.
pub(super) struct Normalised {
    pub(super) rows: Vec<f64>,
    pub(super) mean: Vec<f64>,
    pub(super) inverse: Vec<f64>,
}

/// Normalises `rows` rows of `n` by mean and variance, or by the mean square when not `centred`.
pub(super) fn normalised(mut v: Vec<f64>, rows: usize, n: usize, epsilon: f64, centred: bool) -> Normalised {
    let (mut means, mut inverses) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    for r in 0..rows {
        let row = &mut v[r * n..(r + 1) * n];
        let mean = if centred { row.iter().sum::<f64>() / n as f64 } else { 0.0 };
        let var = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n as f64;
        let inverse = 1.0 / (var + epsilon).sqrt();
        row.iter_mut().for_each(|v| *v = (*v - mean) * inverse);
        means.push(mean);
        inverses.push(inverse);
    }
    Normalised { rows: v, mean: means, inverse: inverses }
}

pub(super) fn axis(attrs: &Attrs, shape: &[usize]) -> Result<usize, OpError> {
    axis_of(attrs.int("axis", -1)?, shape.len())
}

fn shape_rule(attrs: &Attrs, inputs: &[Option<&Fact>], centred: bool) -> Result<Option<Vec<Fact>>, OpError> {
    let (x, scale) = (need(inputs, 0, "X")?, need(inputs, 1, "Scale")?);
    let axis = axis(attrs, &x.shape)?;
    let mut moments = x.shape.clone();
    moments[axis..].fill(1);
    let stash = Fact::new(stash_type(attrs)?, moments);
    // The result has the type of the scale, which may differ from that of what is normalised.
    let mut facts = vec![Fact::new(scale.dtype, x.shape.clone()), stash.clone()];
    if centred {
        facts.push(stash);
    }
    Ok(Some(facts))
}

fn forward(attrs: &Attrs, inputs: &[Option<&Tensor>], centred: bool) -> Result<Vec<Tensor>, OpError> {
    let (x, scale) = (need(inputs, 0, "X")?, need(inputs, 1, "Scale")?);
    let bias = if centred { optional(inputs, 2) } else { None };
    let axis = axis(attrs, x.shape())?;
    let (rows, n) = (x.shape()[..axis].iter().product(), x.shape()[axis..].iter().product());
    let epsilon = f64::from(attrs.float("epsilon", 1e-5)?);
    let mut y = normalised(x.data().to_f64(), rows, n, epsilon, centred);
    let (at, scales) = (places("Scale", scale, x.shape())?, scale.data().to_f64());
    y.rows.iter_mut().zip(at).for_each(|(v, i)| *v *= scales[i]);
    if let Some(bias) = bias {
        let (at, biases) = (places("B", bias, x.shape())?, bias.data().to_f64());
        y.rows.iter_mut().zip(at).for_each(|(v, i)| *v += biases[i]);
    }
    let mut moments = x.shape().to_vec();
    moments[axis..].fill(1);
    let stash = stash_type(attrs)?;
    let mut out = vec![Tensor::from_f64(scale.dtype(), x.shape(), &y.rows)?];
    if centred {
        out.push(Tensor::from_f64(stash, &moments, &y.mean)?);
    }
    out.push(Tensor::from_f64(stash, &moments, &y.inverse)?);
    Ok(out)
}

fn places(name: &str, t: &Tensor, to: &[usize]) -> Result<Vec<usize>, OpError> {
    if !broadcast(t.shape(), to).is_ok_and(|s| s == to) {
        return Err(OpError::shape(name, format!("a shape that broadcasts to {to:?}"), t.shape()));
    }
    broadcast_indices(t.shape(), to)
}

/// Whether a parameter of `shape` has one element for each element normalised together.
pub(super) fn is_row(shape: &[usize], normalised: &[usize]) -> bool {
    fn bare(s: &[usize]) -> &[usize] {
        &s[s.iter().take_while(|&&d| d == 1).count()..]
    }
    bare(shape) == bare(normalised)
}

fn lower(l: &Lowering<'_>, centred: bool) -> Result<Option<Lowered>, OpError> {
    let shape = l.shape(0)?;
    let row = &shape[axis(l.attrs, shape)?..];
    let offset = centred && l.has(2);
    let fits =
        |i: usize| l.dtype(i) == Some(DType::F32) && l.shape(i).is_ok_and(|s| s.len() <= shape.len() && is_row(s, row));
    if l.dtype(0) != Some(DType::F32) || l.wants(1) || l.wants(2) || !fits(1) || (offset && !fits(2)) {
        return no_kernel(l);
    }
    let reads = if offset { vec![0, 1, 2] } else { vec![0, 1] };
    let epsilon = l.attrs.float("epsilon", 1e-5)?;
    Ok(Some(Lowered::new(NormRows { n: row.iter().product(), epsilon, offset, centred }, reads)))
}

fn recorded(l: &Lowering<'_>, centred: bool) -> Result<Option<Recorded>, OpError> {
    let shape = l.shape(0)?;
    let axis = axis(l.attrs, shape)?;
    let row = &shape[axis..];
    let bias = centred && l.has(2);
    let fits =
        |i: usize| l.dtype(i) == Some(DType::F32) && l.shape(i).is_ok_and(|s| s.len() <= shape.len() && is_row(s, row));
    if l.dtype(0) != Some(DType::F32) || l.wants(1) || l.wants(2) || !fits(1) || (bias && !fits(2)) {
        return Ok(None);
    }
    let (outer, length) = (shape[..axis].iter().product(), row.iter().product());
    let epsilon = l.attrs.float("epsilon", 1e-5)?;
    let along =
        Along { rows: Rows::Norm { centred, bias }, outer, length, inner: 1, scales: length, epsilon, factor: 1.0 };
    let mut at = vec![At::In(0), At::In(1)];
    at.extend(bias.then_some(At::In(2)));
    at.push(At::Out(0));
    Ok(Recorded::one(along.call(), at))
}

struct NormRows {
    n: usize,
    epsilon: f32,
    offset: bool,
    centred: bool,
}

impl Kernel for NormRows {
    fn name(&self) -> &'static str {
        if self.centred { "layer-norm-rows" } else { "rms-norm-rows" }
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        let (x, gain, offset) = (reads.f32(0), reads.f32(1), self.offset.then(|| reads.f32(2)));
        let f = if self.centred { normalise::layer_norm } else { normalise::rms_norm };
        let y = writes.f32(0);
        let piece = pool.share(y.len(), self.n, PIECE);
        pool.pieces(y, piece, |i, y| f(self.n, self.epsilon, &x[i * piece..][..y.len()], gain, offset, y));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_by_row_is_not_taken_for_a_scale_by_column() {
        assert!(is_row(&[4], &[4]) && is_row(&[1, 1, 4], &[4]) && is_row(&[3, 4], &[1, 3, 4]));
        assert!(!is_row(&[4, 1], &[4]) && !is_row(&[1], &[4]) && !is_row(&[4, 3], &[3, 4]));
    }
}
