//! Sampling at positions that are an input, and the grids of such positions.
use super::lower;
use crate::ops::shape::elements;
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, ints_of, need};
use crate::tensor::{DType, Data, Tensor};

/// `y[n, c, p] = x[n, c, grid[n, p]]`, interpolated; the last axis of `grid` names positions innermost axis first, -1 and
/// 1 being the ends of an axis.
///
/// Source: `onnx.reference.ops.op_grid_sample`; positions are computed in `f32` unless `X` or `grid` is `f64`.
pub(super) static GRID_SAMPLE: OpDef = OpDef::new(
    "GridSample",
    "samples of images or volumes at positions that are an input",
    |_, inputs| facts(inputs),
    sample,
)
.kernel(lower::grid_sample);

/// The same before the standard had it.
pub(super) static MICROSOFT_GRID_SAMPLE: OpDef =
    OpDef::new("GridSample", "samples of images at positions that are an input", |_, inputs| facts(inputs), sample)
        .domain(MICROSOFT)
        .kernel(lower::grid_sample);

/// `grid[n, p] = theta[n] · [position of p, 1]`: positions of an image or volume under an affine map.
pub(super) static AFFINE_GRID: OpDef = OpDef::new(
    "AffineGrid",
    "a grid of positions under an affine map",
    |_, inputs| {
        let (theta, size) = (need(inputs, 0, "theta")?, need(inputs, 1, "size")?);
        let Some(size) = size.ints() else { return Ok(None) };
        Ok(Some(vec![Fact::new(theta.dtype, affine_shape(&theta.shape, &size)?)]))
    },
    |attrs, inputs| {
        let (theta, size) = (need(inputs, 0, "theta")?, need(inputs, 1, "size")?);
        let shape = affine_shape(theta.shape(), &ints_of(size))?;
        let align = attrs.flag("align_corners", false)?;
        let axes = shape.len() - 2;
        let space = &shape[1..=axes];
        let positions: Vec<Vec<f64>> = space
            .iter()
            .map(|&n| {
                let step = if align { 2.0 / (n as f64 - 1.0) } else { 2.0 / n as f64 };
                let first = if align { -1.0 } else { -1.0 + step / 2.0 };
                (0..n).map(|i| if i == 0 { first } else { first + i as f64 * step }).collect()
            })
            .collect();
        let points: usize = space.iter().product();
        let mut y = Vec::with_capacity(elements(&shape)?);
        for theta in theta.data().to_f64().chunks_exact(axes * (axes + 1)) {
            for p in 0..points {
                let mut rest = p;
                // Innermost axis first, then the 1 of homogeneous coordinates.
                let mut at = [1.0; 4];
                for a in (0..axes).rev() {
                    at[axes - 1 - a] = positions[a][rest % space[a]];
                    rest /= space[a];
                }
                for row in theta.chunks_exact(axes + 1) {
                    y.push(row.iter().enumerate().map(|(i, t)| t * if i == axes { 1.0 } else { at[i] }).sum());
                }
            }
        }
        Ok(vec![Tensor::from_f64(theta.dtype(), &shape, &y)?])
    },
);

fn affine_shape(theta: &[usize], size: &[i64]) -> Result<Vec<usize>, OpError> {
    let axes = match size.len() {
        4 => 2,
        5 => 3,
        _ => return Err(OpError::shape("size", "[N, C, H, W] or [N, C, D, H, W]", size)),
    };
    let length = |d: i64| usize::try_from(d).map_err(|_| OpError::shape("size", "lengths", size));
    let n = length(size[0])?;
    if theta != [n, axes, axes + 1] {
        return Err(OpError::shape("theta", [n, axes, axes + 1], theta));
    }
    let mut shape = vec![n];
    for &d in &size[2..] {
        shape.push(length(d)?);
    }
    shape.push(axes);
    elements(&shape)?;
    Ok(shape)
}

fn facts(inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let (x, grid) = (need(inputs, 0, "X")?, need(inputs, 1, "grid")?);
    Ok(Some(vec![Fact::new(x.dtype, sampled_shape(&x.shape, &grid.shape)?)]))
}

/// `[N, C, …grid's]`.
pub(super) fn sampled_shape(x: &[usize], grid: &[usize]) -> Result<Vec<usize>, OpError> {
    if x.len() < 3 {
        return Err(OpError::shape("X", "[N, C, …] with a spatial axis", x));
    }
    if grid.len() != x.len() || grid[0] != x[0] || grid[grid.len() - 1] != x.len() - 2 {
        return Err(OpError::shape("grid", format!("[{}, …, {}] of rank {}", x[0], x.len() - 2, x.len()), grid));
    }
    let mut shape = x[..2].to_vec();
    shape.extend(&grid[1..grid.len() - 1]);
    elements(&shape)?;
    Ok(shape)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interpolation {
    Nearest,
    Linear,
    Cubic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Padding {
    Zeros,
    Border,
    Reflection,
}

/// What the attributes say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampling {
    pub(super) mode: Interpolation,
    pub(super) padding: Padding,
    pub(super) align_corners: bool,
}

impl Sampling {
    pub(super) fn of(attrs: &Attrs) -> Result<Sampling, OpError> {
        Ok(Sampling {
            mode: match attrs.str("mode", "linear")? {
                "nearest" => Interpolation::Nearest,
                "linear" | "bilinear" => Interpolation::Linear,
                "cubic" | "bicubic" => Interpolation::Cubic,
                other => return Err(OpError::attribute("mode", format!("is `{other}`"))),
            },
            padding: match attrs.str("padding_mode", "zeros")? {
                "zeros" => Padding::Zeros,
                "border" => Padding::Border,
                "reflection" => Padding::Reflection,
                other => return Err(OpError::attribute("padding_mode", format!("is `{other}`"))),
            },
            align_corners: attrs.flag("align_corners", false)?,
        })
    }

    /// The position that `n` in -1..1 names on an axis of that length.
    fn position(&self, n: f64, length: usize, double: bool) -> f64 {
        let (l, s) = (length as f64, length as f32);
        match (self.align_corners, double) {
            (true, true) => (n + 1.0) / 2.0 * (l - 1.0),
            (true, false) => f64::from((n as f32 + 1.0) / 2.0 * (s - 1.0)),
            (false, true) => ((n + 1.0) * l - 1.0) / 2.0,
            (false, false) => f64::from(((n as f32 + 1.0) * s - 1.0) / 2.0),
        }
    }

    /// First and last position of an axis.
    fn bounds(&self, length: usize) -> (f64, f64) {
        let l = length as f64;
        if self.align_corners { (0.0, l - 1.0) } else { (-0.5, l - 0.5) }
    }

    /// The element at position `i` of an axis, under the padding; `None` is zero.
    fn element(&self, i: f64, length: usize) -> Option<usize> {
        let last = length.checked_sub(1)?;
        let i = match self.padding {
            Padding::Zeros if i >= 0.0 && i <= last as f64 => i,
            Padding::Zeros => return None,
            Padding::Border => i,
            Padding::Reflection => {
                let (low, high) = self.bounds(length);
                reflected(i, low, high)
            }
        };
        Some(i.clamp(0.0, last as f64) as usize)
    }

    /// The elements of an axis that make up the value at `n`, with their weights.
    fn taps(&self, n: f64, length: usize, double: bool, taps: &mut Vec<(Option<usize>, f64)>) {
        taps.clear();
        match self.mode {
            Interpolation::Nearest => {
                let x = self.position(n, length, double).round_ties_even();
                taps.push((self.element(self.padded(x, length), length), 1.0));
            }
            Interpolation::Linear => taps.extend(self.linear(n, length, double)),
            Interpolation::Cubic => {
                let x = self.position(n, length, double);
                // At a border the four elements are clamped and not the position: so do PyTorch and ONNX Runtime, unlike
                // the standard's reference implementation, whose tests have no such case.
                let x = if self.padding == Padding::Border { x } else { self.padded(x, length) };
                for (i, w) in cubic(x - x.floor()).into_iter().enumerate() {
                    taps.push((self.element(x.floor() + i as f64 - 1.0, length), w));
                }
            }
        }
    }

    /// The two elements of an axis around the value at `n`, with their weights.
    pub(super) fn linear(&self, n: f64, length: usize, double: bool) -> [(Option<usize>, f64); 2] {
        let x = self.padded(self.position(n, length, double), length);
        let (low, ratio) = (x.floor(), x - x.floor());
        [(self.element(low, length), 1.0 - ratio), (self.element(low + 1.0, length), ratio)]
    }

    /// A position outside an axis moved onto it, as the padding says.
    fn padded(&self, x: f64, length: usize) -> f64 {
        let (low, high) = self.bounds(length);
        match self.padding {
            Padding::Border if x < low || x > high => x.clamp(0.0, (length as f64 - 1.0).max(0.0)),
            Padding::Reflection => reflected(x, low, high),
            _ => x,
        }
    }
}

/// `x` reflected at `low` and `high` until it lies between them.
fn reflected(x: f64, low: f64, high: f64) -> f64 {
    let range = high - low;
    let beyond = if x < low { low - x } else { x - high };
    if beyond.is_nan() || beyond <= 0.0 || range <= 0.0 {
        return x;
    }
    let times = (beyond / range).trunc();
    let rest = beyond - times * range;
    let even = times % 2.0 == 0.0;
    if (x < low) == even { low + rest } else { high - rest }
}

/// Weights of the four elements around a position `ratio` after the second.
///
/// Source: Keys, Cubic convolution interpolation, with α = -0.75.
fn cubic(ratio: f64) -> [f64; 4] {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    [far(ratio + 1.0), near(ratio), near(1.0 - ratio), far(2.0 - ratio)]
}

fn sample(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let (x, grid) = (need(inputs, 0, "X")?, need(inputs, 1, "grid")?);
    let shape = sampled_shape(x.shape(), grid.shape())?;
    let sampling = Sampling::of(attrs)?;
    let space = &x.shape()[2..];
    let axes = space.len();
    let (pixels, points): (usize, usize) = (space.iter().product(), shape[2..].iter().product());
    let channels = shape[1];
    let double = [x.dtype(), grid.dtype()].contains(&DType::F64);
    let grid = grid.data().to_f64();
    let mut picked = vec![None; if sampling.mode == Interpolation::Nearest { elements(&shape)? } else { 0 }];
    let (xs, mut y) = if sampling.mode == Interpolation::Nearest {
        (Vec::new(), Vec::new())
    } else {
        (x.data().to_f64(), vec![0.0; elements(&shape)?])
    };
    let mut taps = Vec::new();
    let (mut from, mut wider) = (Vec::new(), Vec::new());
    for n in 0..shape[0] {
        for p in 0..points {
            let at = &grid[(n * points + p) * axes..][..axes];
            from.clear();
            from.push((0, 1.0));
            for (a, &length) in space.iter().enumerate() {
                sampling.taps(at[axes - 1 - a], length, double, &mut taps);
                wider.clear();
                for &(before, w) in &from {
                    wider.extend(taps.iter().filter_map(|&(i, v)| Some((before * length + i?, w * v))));
                }
                std::mem::swap(&mut from, &mut wider);
            }
            for c in 0..channels {
                let plane = (n * channels + c) * pixels;
                let out = (n * channels + c) * points + p;
                if sampling.mode == Interpolation::Nearest {
                    picked[out] = from.first().map(|&(i, _)| plane + i);
                } else {
                    y[out] = from.iter().map(|&(i, w)| w * xs[plane + i]).sum();
                }
            }
        }
    }
    if sampling.mode == Interpolation::Nearest {
        return Ok(vec![Tensor::new(&shape, x.data().pick_or(&picked, &Data::zeros(x.dtype(), 1)))?]);
    }
    Ok(vec![Tensor::from_f64(x.dtype(), &shape, &y)?])
}
