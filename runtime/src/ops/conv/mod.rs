//! Convolutions over any number of spatial axes: plain, fused, causal, transposed, deformable.
//!
//! Dimension letters: `N` batch, `C` channels in, `O` channels out, `G` groups; "windows" are output positions and
//! "taps" kernel positions, as [`Geometry`] counts them.
use hone_kernels::epilogue::Activation;

use super::elementwise::named;
use super::{Attrs, Fact, MICROSOFT, OpDef, OpError, need, optional};
use crate::tensor::{Data, Tensor};

mod backward;
mod causal;
mod deform;
mod geometry;
pub(crate) mod last;
mod lower;
mod planes;
mod transpose;

pub(super) use geometry::Geometry;

/// The operators of this family.
pub(super) static OPS: &[&OpDef] = &[
    &CONV,
    &FUSED_CONV,
    &causal::CAUSAL_CONV_WITH_STATE,
    &transpose::CONV_TRANSPOSE,
    &transpose::COL2IM,
    &deform::DEFORM_CONV,
];

/// Convolution as ONNX defines it (cross-correlation).
static CONV: OpDef = OpDef::new(
    "Conv",
    "convolution (cross-correlation) over any number of spatial axes, grouped, strided, dilated",
    |attrs, inputs| {
        let (x, w) = (need(inputs, 0, "X")?, need(inputs, 1, "W")?);
        let conv = Conv::of(attrs, &x.shape, &w.shape, optional(inputs, 2).map(|b| &b.shape[..]))?;
        Ok(Some(vec![Fact::new(x.dtype, conv.output_shape())]))
    },
    |attrs, inputs| {
        let (x, w, b) = (need(inputs, 0, "X")?, need(inputs, 1, "W")?, optional(inputs, 2));
        let conv = Conv::of(attrs, x.shape(), w.shape(), b.map(Tensor::shape))?;
        let b = b.map(|b| b.data().to_f64());
        let y = conv.convolve(&x.data().to_f64(), &w.data().to_f64(), b.as_deref())?;
        Ok(vec![Tensor::from_f64(x.dtype(), &conv.output_shape(), &y)?])
    },
)
.kernel(lower::conv)
.gpu(planes::conv)
.vjp(backward::conv);

/// ONNX Runtime's `activation(Conv(X, W, B) + Z)`.
static FUSED_CONV: OpDef = OpDef::new(
    "FusedConv",
    "convolution, an optional sum with Z, and an activation",
    |attrs, inputs| {
        let (x, w) = (need(inputs, 0, "X")?, need(inputs, 1, "W")?);
        let conv = Conv::of(attrs, &x.shape, &w.shape, optional(inputs, 2).map(|b| &b.shape[..]))?;
        activation(attrs)?;
        let shape = conv.output_shape();
        if let Some(z) = optional(inputs, 3).filter(|z| z.shape != shape) {
            return Err(OpError::shape("Z", shape, &z.shape));
        }
        Ok(Some(vec![Fact::new(x.dtype, shape)]))
    },
    |attrs, inputs| {
        let (x, w, b) = (need(inputs, 0, "X")?, need(inputs, 1, "W")?, optional(inputs, 2));
        let conv = Conv::of(attrs, x.shape(), w.shape(), b.map(Tensor::shape))?;
        let shape = conv.output_shape();
        let b = b.map(|b| b.data().to_f64());
        let mut y = conv.convolve(&x.data().to_f64(), &w.data().to_f64(), b.as_deref())?;
        if let Some(z) = optional(inputs, 3) {
            if z.shape() != shape {
                return Err(OpError::shape("Z", shape, z.shape()));
            }
            y.iter_mut().zip(z.data().to_f64()).for_each(|(y, z)| *y += z);
        }
        let activation = activation(attrs)?;
        y.iter_mut().for_each(|v| *v = activation.reference(*v));
        Ok(vec![Tensor::from_f64(x.dtype(), &shape, &y)?])
    },
)
.domain(MICROSOFT)
.kernel(lower::conv)
.vjp(backward::fused_conv);

/// A convolution at concrete shapes.
pub(super) struct Conv {
    /// Batch.
    pub(super) n: usize,
    /// Channels in of one group.
    pub(super) c: usize,
    /// Channels out, of all groups.
    pub(super) o: usize,
    /// Groups.
    pub(super) groups: usize,
    /// The window.
    pub(super) geometry: Geometry,
}

impl Conv {
    /// Checks `x: [N, C, …]`, `w: [O, C/G, …]` and `bias: [O]` against each other and the attributes.
    ///
    /// # Errors
    /// [`OpError`] naming the operand that does not fit.
    pub(super) fn of(attrs: &Attrs, x: &[usize], w: &[usize], bias: Option<&[usize]>) -> Result<Conv, OpError> {
        if x.len() < 3 {
            return Err(OpError::shape("X", "[N, C, …] with a spatial axis", x));
        }
        if w.len() != x.len() {
            return Err(OpError::shape("W", format!("rank {}, as X", x.len()), w));
        }
        let groups = groups(attrs)?;
        if !w[0].is_multiple_of(groups) || w[1].checked_mul(groups) != Some(x[1]) {
            return Err(OpError::shape("W", format!("[O, {}/{groups}, …] with O in {groups} groups", x[1]), w));
        }
        if let Some(b) = bias.filter(|b| **b != w[..1]) {
            return Err(OpError::shape("B", &w[..1], b));
        }
        let geometry = Geometry::of(attrs, &x[2..], Some(&w[2..]))?;
        Ok(Conv { n: x[0], c: w[1], o: w[0], groups, geometry })
    }

    /// `[N, O, …]`.
    pub(super) fn output_shape(&self) -> Vec<usize> {
        let mut shape = vec![self.n, self.o];
        shape.extend(&self.geometry.output);
        shape
    }

    /// `y[n, o, p] = bias[o] + Σ_{c, k} x[n, g(o) · C/G + c, p · stride + k · dilation - pad] · w[o, c, k]`, row-major,
    /// for operands whose shapes [`Conv::of`] checked.
    ///
    /// # Errors
    /// [`OpError::Tensor`] when the result cannot be held.
    pub(super) fn convolve(&self, x: &[f64], w: &[f64], bias: Option<&[f64]>) -> Result<Vec<f64>, OpError> {
        let Conv { n, c, o, groups, geometry } = self;
        let (n, c, o) = (*n, *c, *o);
        let (pixels, taps_len, windows) = (geometry.input_len(), geometry.kernel_len(), geometry.output_len());
        let mut y = vec![0.0; super::shape::elements(&self.output_shape())?];
        let per_group = (o / groups).max(1);
        let mut p = 0;
        geometry.for_each_window(|_, taps| {
            for n in 0..n {
                for o in 0..o {
                    let mut sum = bias.map_or(0.0, |b| b[o]);
                    let first = n * c * groups + o / per_group * c;
                    for ch in 0..c {
                        let (x, w) = (&x[(first + ch) * pixels..], &w[(o * c + ch) * taps_len..]);
                        for &(i, k) in taps {
                            sum += x[i] * w[k];
                        }
                    }
                    y[(n * self.o + o) * windows + p] = sum;
                }
            }
            p += 1;
        });
        Ok(y)
    }
}

/// The attribute `group`.
fn groups(attrs: &Attrs) -> Result<usize, OpError> {
    usize::try_from(attrs.int("group", 1)?)
        .ok()
        .filter(|&g| g > 0)
        .ok_or_else(|| OpError::attribute("group", "is not positive"))
}

/// What `FusedConv` ends in: `activation` and `activation_params`; absent is no activation.
pub(super) fn activation(attrs: &Attrs) -> Result<Activation, OpError> {
    match attrs.str("activation", "")? {
        "" => Ok(Activation::None),
        name => named(name, attrs.floats("activation_params")?.unwrap_or(&[]))
            .ok_or_else(|| OpError::unsupported(format!("the activation `{name}` of FusedConv"))),
    }
}

/// The elements of an `f32` or other tensor rounded to the element type of `like` and back: what a stored value holds.
fn rounded(like: &Tensor, v: &[f64]) -> Vec<f64> {
    Data::from_f64(like.dtype(), v).to_f64()
}
