//! Convolutions of integers.
//!
//! Dimension letters: `N` batch, `C` channels in, `O` channels out, `G` groups, `P` output positions.
use super::window::Window;
use super::{coded, codes, fact, range_of, round_to};
use crate::ops::shape::elements;
use crate::ops::{Attrs, MICROSOFT, OpDef, OpError, need, optional};
use crate::tensor::{DType, Data, Tensor};

/// `Σ (x - x_zero_point)(w - w_zero_point)` in `i32`.
pub(super) static CONV_INTEGER: OpDef = OpDef::new(
    "ConvInteger",
    "convolution of 8-bit integers in i32",
    |attrs, inputs| {
        let (x, w) = (need(inputs, 0, "x")?, need(inputs, 1, "w")?);
        fact(DType::I32, Conv::of(attrs, &x.shape, &w.shape)?.shape())
    },
    |attrs, inputs| {
        let (x, w) = (need(inputs, 0, "x")?, need(inputs, 1, "w")?);
        let c = Conv::of(attrs, x.shape(), w.shape())?;
        let y = c.integers(x, w, optional(inputs, 2), optional(inputs, 3))?;
        Ok(vec![Tensor::new(&c.shape(), Data::I32(y))?])
    },
)
.kernel(super::patches::integer)
.vjp(super::spelled::conv_integer);

/// `requantise((Σ (x - x_zero_point)(w - w_zero_point) + bias) · x_scale · w_scale / y_scale)`.
pub(super) static QLINEAR_CONV: OpDef =
    OpDef::new("QLinearConv", "convolution of 8-bit integers, requantised", q_shape, q_reference)
        .kernel(super::patches::qlinear)
        .vjp(super::spelled::conv);

/// The same, with `channels_last`.
pub(super) static MS_QLINEAR_CONV: OpDef =
    OpDef::new("QLinearConv", "convolution of 8-bit integers, requantised", q_shape, q_reference)
        .domain(MICROSOFT)
        .kernel(super::patches::qlinear)
        .vjp(super::spelled::conv);

fn q_shape(attrs: &Attrs, inputs: &[Option<&crate::ops::Fact>]) -> Result<Option<Vec<crate::ops::Fact>>, OpError> {
    let (x, w) = (need(inputs, 0, "x")?, need(inputs, 3, "w")?);
    for (i, name) in [(1, "x_scale"), (2, "x_zero_point"), (4, "w_scale"), (5, "w_zero_point"), (6, "y_scale")] {
        need(inputs, i, name)?;
    }
    let last = attrs.flag("channels_last", false)?;
    let x_shape = if last { channels_second(&x.shape) } else { x.shape.clone() };
    let shape = Conv::of(attrs, &x_shape, &w.shape)?.shape();
    fact(need(inputs, 7, "y_zero_point")?.dtype, if last { channels_at_end(&shape) } else { shape })
}

fn q_reference(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let (x, w) = (need(inputs, 0, "x")?, need(inputs, 3, "w")?);
    let last = attrs.flag("channels_last", false)?;
    let moved = if last { Some(to_channels_second(x)?) } else { None };
    let x = moved.as_ref().unwrap_or(x);
    let c = Conv::of(attrs, x.shape(), w.shape())?;
    let mut y = c.integers(x, w, Some(need(inputs, 2, "x_zero_point")?), Some(need(inputs, 5, "w_zero_point")?))?;
    let p = c.window.positions();
    if let Some(b) = optional(inputs, 8) {
        let b = codes(b, "B")?;
        if b.len() != c.o {
            return Err(OpError::shape("B of QLinearConv", c.o, b.len()));
        }
        y.iter_mut().enumerate().for_each(|(i, y)| *y = y.wrapping_add(b[i / p % c.o]));
    }
    let y_zero = need(inputs, 7, "y_zero_point")?;
    let scale = c.rescale(need(inputs, 1, "x_scale")?, need(inputs, 4, "w_scale")?, need(inputs, 6, "y_scale")?)?;
    let (zero, range) = (super::single(y_zero, "y")? as i32, range_of(y_zero.dtype())?);
    let q: Vec<i32> =
        y.iter().enumerate().map(|(i, &v)| round_to(v as f32 * scale[i / p % c.o], zero, range)).collect();
    let y = coded(y_zero.dtype(), &c.shape(), &q)?;
    Ok(vec![if last { to_channels_last(&y)? } else { y }])
}

/// `[N, …, C]` as `[N, C, …]`.
pub(super) fn channels_second(s: &[usize]) -> Vec<usize> {
    match s {
        [n, spatial @ .., c] => [&[*n, *c], spatial].concat(),
        other => other.to_vec(),
    }
}

/// `[N, C, …]` as `[N, …, C]`.
pub(super) fn channels_at_end(s: &[usize]) -> Vec<usize> {
    match s {
        [n, c, spatial @ ..] => [&[*n], spatial, &[*c]].concat(),
        other => other.to_vec(),
    }
}

/// `[N, …, C]` moved to `[N, C, …]`.
pub(super) fn to_channels_second(t: &Tensor) -> Result<Tensor, OpError> {
    let shape = channels_second(t.shape());
    let (n, c, p) = planes(&shape)?;
    let at: Vec<usize> =
        (0..n).flat_map(|n| (0..c).flat_map(move |ch| (0..p).map(move |i| (n * p + i) * c + ch))).collect();
    Ok(Tensor::new(&shape, t.data().pick(&at))?)
}

/// `[N, C, …]` moved to `[N, …, C]`.
pub(super) fn to_channels_last(t: &Tensor) -> Result<Tensor, OpError> {
    let (n, c, p) = planes(t.shape())?;
    let at: Vec<usize> =
        (0..n).flat_map(|n| (0..p).flat_map(move |i| (0..c).map(move |ch| (n * c + ch) * p + i))).collect();
    Ok(Tensor::new(&channels_at_end(t.shape()), t.data().pick(&at))?)
}

/// Batch, channels, and elements of a plane of `[N, C, …]`.
pub(super) fn planes(s: &[usize]) -> Result<(usize, usize, usize), OpError> {
    match s {
        [n, c, spatial @ ..] => Ok((*n, *c, elements(spatial)?)),
        other => Err(OpError::shape("an image", "[N, C, …]", other)),
    }
}

/// A convolution at concrete shapes.
pub(super) struct Conv {
    pub(super) n: usize,
    /// Channels in of one group.
    pub(super) c: usize,
    pub(super) o: usize,
    pub(super) groups: usize,
    pub(super) window: Window,
}

impl Conv {
    pub(super) fn of(attrs: &Attrs, x: &[usize], w: &[usize]) -> Result<Conv, OpError> {
        let (&[n, channels, ref spatial @ ..], &[o, c, ref kernel @ ..]) = (x, w) else {
            return Err(OpError::shape("operands of a convolution", "[N, C, …] and [O, C/G, …]", (x, w)));
        };
        let window = Window::of(attrs, spatial, Some(kernel))?;
        let groups = usize::try_from(attrs.int("group", 1)?).unwrap_or(0);
        if groups == 0 || !o.is_multiple_of(groups) || c.checked_mul(groups) != Some(channels) {
            return Err(OpError::shape(
                format!("weights of a convolution in {groups} groups"),
                format!("[O, {channels}/{groups}, …]"),
                w,
            ));
        }
        let conv = Conv { n, c, o, groups, window };
        elements(&conv.shape())?;
        Ok(conv)
    }

    /// Of the result.
    pub(super) fn shape(&self) -> Vec<usize> {
        [&[self.n, self.o], &self.window.output[..]].concat()
    }

    /// `x_scale · w_scale / y_scale` for each channel out.
    pub(super) fn rescale(&self, x: &Tensor, w: &Tensor, y: &Tensor) -> Result<Vec<f32>, OpError> {
        let (x, y) = (super::single(x, "x")? as f32, super::single(y, "y")? as f32);
        let w = w.data().to_f64();
        if w.len() != 1 && w.len() != self.o {
            return Err(OpError::shape("w_scale", format!("one, or {}", self.o), w.len()));
        }
        Ok((0..self.o).map(|o| x * w[if w.len() == 1 { 0 } else { o }] as f32 / y).collect())
    }

    /// Zero points of the weights, one a channel out.
    pub(super) fn weight_zeros(&self, z: Option<&Tensor>) -> Result<Vec<i32>, OpError> {
        let Some(z) = z else { return Ok(vec![0; self.o]) };
        let v = codes(z, "w_zero_point")?;
        match v.len() {
            1 => Ok(vec![v[0]; self.o]),
            n if n == self.o => Ok(v),
            n => Err(OpError::shape("w_zero_point", format!("one, or {}", self.o), n)),
        }
    }

    /// `Σ (x - zx)(w - zw)` in wrapping `i32`; outside the input there is the zero point, which adds nothing.
    pub(super) fn integers(
        &self,
        x: &Tensor,
        w: &Tensor,
        zx: Option<&Tensor>,
        zw: Option<&Tensor>,
    ) -> Result<Vec<i32>, OpError> {
        let zx = zx.map_or(Ok(0.0), |z| super::single(z, "x"))? as i32;
        let zw = self.weight_zeros(zw)?;
        let xs: Vec<i32> = codes(x, "x")?.into_iter().map(|v| v.wrapping_sub(zx)).collect();
        let (taps, p, plane) = (self.window.taps(), self.window.positions(), self.window.inputs());
        let per_out = self.c * taps;
        let ws: Vec<i32> =
            codes(w, "w")?.into_iter().enumerate().map(|(i, v)| v.wrapping_sub(zw[i / per_out.max(1)])).collect();
        let og = self.o / self.groups;
        let mut y = vec![0i32; elements(&self.shape())?];
        let mut inside = Vec::new();
        for at in 0..p {
            self.window.inside(at, &mut inside);
            for n in 0..self.n {
                for o in 0..self.o {
                    let first = (n * self.groups + o / og) * self.c;
                    let mut sum = 0i32;
                    for c in 0..self.c {
                        let (x, w) = (&xs[(first + c) * plane..][..plane], &ws[o * per_out + c * taps..][..taps]);
                        for &(tap, i) in &inside {
                            sum = sum.wrapping_add(x[i].wrapping_mul(w[tap]));
                        }
                    }
                    y[(n * self.o + o) * p + at] = sum;
                }
            }
        }
        Ok(y)
    }
}
