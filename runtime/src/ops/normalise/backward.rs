//! Gradients of normalisation.
//!
//! `N` is the number of elements normalised together.
use hone_gpu::norm::{NormBack, Of};
use hone_kernels::gradient::{self, LayerNorm};

use super::PIECE;
use super::layer::{axis, is_row, normalised};
use crate::autodiff::Backward;
use crate::graph::ValueId;
use crate::ops::shape::elements;
use crate::ops::{Attr, Attrs, Fact, HONE, OpDef, OpError, need, no_kernel};
use crate::plan::{At, Io, Kernel, Lowered, Lowering, Recorded};
use crate::tensor::{DType, Tensor};

/// `dY`, `X` and `Scale [N]` to `dX`, `dScale [N]` and `dB [N]`, of a layer normalisation by mean and variance, or by the
/// mean square when `centred` is 0.
static LAYER_NORM_VJP: OpDef = OpDef::new(
    "LayerNormalizationVjp",
    "gradients of layer normalisation by its operand, scale and bias",
    |_, inputs| {
        let (x, scale) = (need(inputs, 1, "X")?, need(inputs, 2, "Scale")?);
        let row = Fact::new(scale.dtype, scale.shape.clone());
        Ok(Some(vec![Fact::new(x.dtype, x.shape.clone()), row.clone(), row]))
    },
    |attrs, inputs| {
        let (dy, x, scale) = (need(inputs, 0, "dY")?, need(inputs, 1, "X")?, need(inputs, 2, "Scale")?);
        let axis = axis(attrs, x.shape())?;
        let (rows, n) = (elements(&x.shape()[..axis])?, elements(&x.shape()[axis..])?);
        let centred = attrs.flag("centred", true)?;
        let z = normalised(x.data().to_f64(), rows, n, f64::from(attrs.float("epsilon", 1e-5)?), centred);
        let (g, gain) = (dy.data().to_f64(), scale.data().to_f64());
        if g.len() != z.rows.len() || gain.len() != n {
            return Err(OpError::shape("dY and Scale", (x.shape(), n), (dy.shape(), scale.shape())));
        }
        let (mut dx, mut dgain, mut dbias) = (vec![0.0; g.len()], vec![0.0; n], vec![0.0; n]);
        for r in 0..rows {
            let (g, z, dx) = (&g[r * n..][..n], &z.rows[r * n..][..n], &mut dx[r * n..][..n]);
            let inverse = 1.0 / n as f64;
            let level = if centred { (0..n).map(|i| g[i] * gain[i]).sum::<f64>() * inverse } else { 0.0 };
            let along = (0..n).map(|i| g[i] * gain[i] * z[i]).sum::<f64>() * inverse;
            for i in 0..n {
                dx[i] = g[i] * gain[i] - level - z[i] * along;
                dgain[i] += g[i] * z[i];
                dbias[i] += g[i];
            }
        }
        dx.iter_mut().enumerate().for_each(|(i, v)| *v *= z.inverse[i / n]);
        Ok(vec![
            Tensor::from_f64(x.dtype(), x.shape(), &dx)?,
            Tensor::from_f64(scale.dtype(), scale.shape(), &dgain)?,
            Tensor::from_f64(scale.dtype(), scale.shape(), &dbias)?,
        ])
    },
)
.domain(HONE)
.kernel(layer_lower)
.gpu(layer_recorded);

fn layer_lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    if (0..3).any(|i| l.dtype(i) != Some(DType::F32)) {
        return no_kernel(l);
    }
    let shape = l.shape(1)?;
    let n = elements(&shape[axis(l.attrs, shape)?..])?;
    let kernel = LayerNormVjp {
        n,
        epsilon: l.attrs.float("epsilon", 1e-5)?,
        centred: l.attrs.flag("centred", true)?,
        dx: l.wants(0),
        parameters: l.wants(1) || l.wants(2),
    };
    Ok(Some(Lowered::new(kernel, vec![0, 1, 2]).with_scratch(2 * n)))
}

fn layer_recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let shape = l.shape(1)?;
    let axis = axis(l.attrs, shape)?;
    let (rows, length) = (elements(&shape[..axis])?, elements(&shape[axis..])?);
    if (0..3).any(|i| l.dtype(i) != Some(DType::F32)) || rows == 0 || length == 0 {
        return Ok(None);
    }
    let (epsilon, centred) = (l.attrs.float("epsilon", 1e-5)?, l.attrs.flag("centred", true)?);
    let call = |of| NormBack { of, rows, length, centred, epsilon }.call();
    let mut out = Recorded::default();
    let moments = out.scratch(8 * rows);
    // What is not wanted goes where nobody looks.
    let mut place = |i: usize, n: usize| if l.wants(i) { At::Out(i) } else { out.scratch(4 * n) };
    let (dx, dscale, dbias) = (place(0, rows * length), place(1, length), place(2, length));
    let out = out.and(call(Of::Operand), vec![At::In(0), At::In(1), At::In(2), dx, moments.clone()]);
    if !l.wants(1) && !l.wants(2) {
        return Ok(out);
    }
    let at = vec![At::In(0), At::In(1), moments, dscale, dbias];
    Ok(out.and_then(|out| out.and(call(Of::Parameters), at)))
}

struct LayerNormVjp {
    n: usize,
    epsilon: f32,
    centred: bool,
    dx: bool,
    parameters: bool,
}

impl Kernel for LayerNormVjp {
    fn name(&self) -> &'static str {
        "layer-norm-vjp-rows"
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let (dy, x, gain) = (reads.f32(0), reads.f32(1), reads.f32(2));
        let norm = LayerNorm { n: self.n, epsilon: self.epsilon, centred: self.centred, gain };
        if self.dx {
            let dx = writes.f32(0);
            let piece = pool.share(dx.len(), self.n, PIECE);
            pool.pieces(dx, piece, |i, dx| {
                let at = i * piece..i * piece + dx.len();
                gradient::layer_norm(norm, &dy[at.clone()], &x[at], dx);
            });
        }
        if self.parameters {
            let (dgain, dbias) = scratch.split_at_mut(self.n);
            gradient::layer_norm_parameters(norm, dy, x, dgain, dbias);
            for (i, sums) in [(1, dgain), (2, dbias)] {
                let out = writes.f32(i);
                if !out.is_empty() {
                    out.copy_from_slice(&sums[..out.len()]);
                }
            }
        }
    }
}

/// Of layer normalisation. Where its moments are used too, or its scale is no row, by way of the formula's operators.
pub(super) fn layer(b: &mut Backward<'_>, centred: bool) -> Result<(), OpError> {
    let attrs = b.attrs();
    let (x, scale) = (b.x(0)?, b.x(1)?);
    let shape = b.shape(x).to_vec();
    let axis = axis(&attrs, &shape)?;
    let bias = if centred { b.optional(2) } else { None };
    let fits = |b: &Backward<'_>, v: ValueId| b.shape(v).len() <= shape.len() && is_row(b.shape(v), &shape[axis..]);
    let plain = (1..b.results()).all(|i| b.dy_of(i).is_none())
        && fits(b, scale)
        && bias.is_none_or(|v| fits(b, v))
        && b.dtype(scale) == b.dtype(x);
    if !plain {
        return b.through(|b| {
            let (y, mean, inverse) = formula(b, x, axis, attrs.float("epsilon", 1e-5)?, centred)?;
            let y = b.mul(y, scale)?;
            let y = match bias {
                Some(bias) => b.add(y, bias)?,
                None => y,
            };
            Ok(match mean {
                Some(mean) => vec![y, mean, inverse],
                None => vec![y, inverse],
            })
        });
    }
    let n = elements(&shape[axis..])?;
    let row = b.reshape(scale, &[n])?;
    let own = Attrs::of([
        ("axis", Attr::Int(axis as i64)),
        ("epsilon", Attr::Float(attrs.float("epsilon", 1e-5)?)),
        ("centred", Attr::Int(i64::from(centred))),
    ]);
    let dy = b.dy()?;
    let wanted = [b.wants(0), b.wants(1), bias.is_some() && b.wants(2)];
    let made = b.apply(&LAYER_NORM_VJP, own, &[Some(dy), Some(x), Some(row)], &wanted)?;
    for (i, g) in made.into_iter().enumerate() {
        if let Some(g) = g {
            let own = b.x_shape(i)?;
            let g = b.reshape(g, &own)?;
            b.give(i, g);
        }
    }
    Ok(())
}

/// `(x - mean) / sqrt(var + epsilon)` over the axes from `axis` on, the mean, and the inverse of the root, as nodes.
fn formula(
    b: &mut Backward<'_>,
    x: ValueId,
    axis: usize,
    epsilon: f32,
    centred: bool,
) -> Result<(ValueId, Option<ValueId>, ValueId), OpError> {
    let axes: Vec<usize> = (axis..b.shape(x).len()).collect();
    let mean = if centred { Some(b.reduce("ReduceMean", x, &axes, true)?) } else { None };
    let x = match mean {
        Some(mean) => b.sub(x, mean)?,
        None => x,
    };
    let square = b.mul(x, x)?;
    let var = b.reduce("ReduceMean", square, &axes, true)?;
    let epsilon = b.scalar_like(x, f64::from(epsilon))?;
    let var = b.add(var, epsilon)?;
    let root = b.unary("Sqrt", var)?;
    let inverse = b.unary("Reciprocal", root)?;
    Ok((b.mul(x, inverse)?, mean, inverse))
}

/// `x` normalised over its last axis, by the operator that has a kernel for it and for its gradient.
pub(super) fn plain_rows(
    b: &mut Backward<'_>,
    x: ValueId,
    gain: Option<ValueId>,
    epsilon: f32,
    centred: bool,
) -> Result<ValueId, OpError> {
    let n = b.shape(x).last().copied().unwrap_or(1);
    let gain = match gain {
        Some(gain) => gain,
        None => {
            let ones = Tensor::from_f64(b.dtype(x), &[n], &vec![1.0; n])?;
            b.constant(ones)
        }
    };
    let name = if centred { "LayerNormalization" } else { "RMSNormalization" };
    b.standard(name, [("axis", Attr::Int(-1)), ("epsilon", Attr::Float(epsilon))], &[x, gain])
}
