//! Deformable convolution: every position of every window is displaced by an offset of its own.
use super::Conv;
use super::geometry::Geometry;
use crate::ops::shape::elements;
use crate::ops::{Attrs, Fact, OpDef, OpError, need, optional};
use crate::tensor::Tensor;

/// `y[n, o, p] = bias[o] + Σ_{c, k} w[o, c, k] · mask[n, k, p] · x[n, c, p · stride + k · dilation - pad + offset[n, k, :, p]]`,
/// sampled linearly, zero outside the input.
///
/// Source: <https://arxiv.org/abs/1703.06211>, <https://arxiv.org/abs/1811.11168>.
pub(super) static DEFORM_CONV: OpDef = OpDef::new(
    "DeformConv",
    "convolution whose sampling positions are displaced by an input",
    |attrs, inputs| {
        let (x, w, offset) = (need(inputs, 0, "X")?, need(inputs, 1, "W")?, need(inputs, 2, "offset")?);
        let shape = |i: usize| optional(inputs, i).map(|f: &Fact| &f.shape[..]);
        let d = Deformable::of(attrs, &x.shape, &w.shape, &offset.shape, shape(3), shape(4))?;
        Ok(Some(vec![Fact::new(x.dtype, d.conv.output_shape())]))
    },
    |attrs, inputs| {
        let (x, w, offset) = (need(inputs, 0, "X")?, need(inputs, 1, "W")?, need(inputs, 2, "offset")?);
        let (bias, mask) = (optional(inputs, 3), optional(inputs, 4));
        let shape = |t: Option<&Tensor>| t.map(|t| t.shape().to_vec());
        let (bias_shape, mask_shape) = (shape(bias), shape(mask));
        let d =
            Deformable::of(attrs, x.shape(), w.shape(), offset.shape(), bias_shape.as_deref(), mask_shape.as_deref())?;
        let bias = bias.map(|b| b.data().to_f64());
        let mask = mask.map(|m| m.data().to_f64());
        let (xs, ws, offset) = (x.data().to_f64(), w.data().to_f64(), offset.data().to_f64());
        let y = d.convolve(&xs, &ws, &offset, bias.as_deref(), mask.as_deref())?;
        Ok(vec![Tensor::from_f64(x.dtype(), &d.conv.output_shape(), &y)?])
    },
);

pub(super) struct Deformable {
    pub(super) conv: Conv,
    pub(super) offset_groups: usize,
}

impl Deformable {
    pub(super) fn of(
        attrs: &Attrs,
        x: &[usize],
        w: &[usize],
        offset: &[usize],
        bias: Option<&[usize]>,
        mask: Option<&[usize]>,
    ) -> Result<Deformable, OpError> {
        let conv = Conv::of(attrs, x, w, bias)?;
        let offset_groups = usize::try_from(attrs.int("offset_group", 1)?).unwrap_or(0);
        if offset_groups == 0 || !x[1].is_multiple_of(offset_groups) {
            return Err(OpError::attribute("offset_group", format!("does not divide {} channels", x[1])));
        }
        let g = &conv.geometry;
        let of_taps = |per_tap: usize| {
            let mut shape = vec![conv.n, offset_groups * g.kernel_len() * per_tap];
            shape.extend(&g.output);
            shape
        };
        let expected = of_taps(g.axes());
        if offset != expected {
            return Err(OpError::shape("offset", expected, offset));
        }
        let expected = of_taps(1);
        if let Some(m) = mask.filter(|m| **m != expected) {
            return Err(OpError::shape("mask", expected, m));
        }
        // The sampled taps of one image are held together.
        elements(&[x[1], g.kernel_len(), g.output_len()])?;
        Ok(Deformable { conv, offset_groups })
    }

    fn convolve(
        &self,
        x: &[f64],
        w: &[f64],
        offset: &[f64],
        bias: Option<&[f64]>,
        mask: Option<&[f64]>,
    ) -> Result<Vec<f64>, OpError> {
        let Conv { n, c, o, groups, geometry: g } = &self.conv;
        let (n, c, o, groups) = (*n, *c, *o, *groups);
        let (pixels, taps, windows) = (g.input_len(), g.kernel_len(), g.output_len());
        let channels = c * groups;
        let per_offset = (channels / self.offset_groups).max(1);
        let mut y = vec![0.0; elements(&self.conv.output_shape())?];
        let mut columns = vec![0.0; elements(&[channels, taps, windows])?];
        let mut at = vec![0.0; g.axes()];
        let mut corners = Vec::new();
        for n in 0..n {
            for og in 0..self.offset_groups {
                for tap in 0..taps {
                    for p in 0..windows {
                        let row = (n * self.offset_groups + og) * taps + tap;
                        for (a, at) in at.iter_mut().enumerate() {
                            let moved = offset[(row * g.axes() + a) * windows + p];
                            *at = base(g, a, p, tap) as f64 + moved;
                        }
                        linear_corners(&g.input, &at, &mut corners);
                        let weight = mask.map_or(1.0, |m| m[row * windows + p]);
                        for ch in og * per_offset..((og + 1) * per_offset).min(channels) {
                            let plane = &x[(n * channels + ch) * pixels..][..pixels];
                            let v: f64 = corners.iter().map(|&(i, w)| plane[i] * w).sum();
                            columns[(ch * taps + tap) * windows + p] = v * weight;
                        }
                    }
                }
            }
            for o in 0..o {
                let first = o / (self.conv.o / groups).max(1) * c * taps;
                let y = &mut y[(n * self.conv.o + o) * windows..][..windows];
                y.fill(bias.map_or(0.0, |b| b[o]));
                for k in 0..c * taps {
                    let w = w[o * c * taps + k];
                    let column = &columns[(first + k) * windows..][..windows];
                    y.iter_mut().zip(column).for_each(|(y, x)| *y += w * x);
                }
            }
        }
        Ok(y)
    }
}

/// Where kernel position `tap` of window `p` lies along `axis` before it is displaced (row-major numbers of both).
pub(super) fn base(g: &Geometry, axis: usize, p: usize, tap: usize) -> i64 {
    let digit = |i: usize, lengths: &[usize]| i / lengths[axis + 1..].iter().product::<usize>() % lengths[axis];
    let (o, k) = (digit(p, &g.output), digit(tap, &g.kernel));
    (o * g.stride[axis] + k * g.dilation[axis]) as i64 - g.begin[axis]
}

/// The points of a grid of lengths `shape` around `at`, with the weights of linear interpolation; points outside the
/// grid are left out, and all of them where `at` is no number.
pub(in crate::ops) fn linear_corners(shape: &[usize], at: &[f64], corners: &mut Vec<(usize, f64)>) {
    corners.clear();
    corners.push((0, 1.0));
    for (&length, &x) in shape.iter().zip(at) {
        if !(x > -1.0 && x < length as f64) {
            corners.clear();
            return;
        }
        let low = x.floor();
        let ratio = x - low;
        let ends = [(low, 1.0 - ratio), (low + 1.0, ratio)];
        let before = corners.len();
        for i in 0..before {
            let (index, weight) = corners[i];
            for &(at, w) in &ends {
                if at >= 0.0 && at < length as f64 {
                    corners.push((index * length + at as usize, weight * w));
                }
            }
        }
        corners.drain(..before);
    }
}
