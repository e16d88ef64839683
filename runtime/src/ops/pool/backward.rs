//! Gradients of pooling.
use hone_gpu::planes::{Of, Planes};
use hone_kernels::conv::Window;
use hone_kernels::pool;

use super::Windows;
use crate::autodiff::Backward;
use crate::graph::ValueId;
use crate::ops::shape::elements;
use crate::ops::{Attr, Attrs, Fact, HONE, OpDef, OpError, need, no_kernel, optional};
use crate::plan::{At, Io, Kernel, Lowered, Lowering, Recorded};
use crate::tensor::{DType, Tensor};

/// `dY` and `X` to `dX`: to the first of the largest under each window, as MaxPool's indices have it.
static MAX_POOL_VJP: OpDef = OpDef::new(
    "MaxPoolVjp",
    "gradient of a maximum under a sliding window",
    |_, inputs| {
        let x = need(inputs, 1, "X")?;
        Ok(Some(vec![Fact::new(x.dtype, x.shape.clone())]))
    },
    |attrs, inputs| {
        let (dy, x) = (need(inputs, 0, "dY")?, need(inputs, 1, "X")?);
        let w = Windows::of(attrs, x.shape())?;
        fits(&w, dy.shape())?;
        let (xs, gs) = (x.data().to_f64(), dy.data().to_f64());
        let (pixels, windows) = (w.geometry.input_len(), w.geometry.output_len());
        let mut dx = vec![0.0; xs.len()];
        let mut p = 0;
        w.geometry.for_each_window(|_, taps| {
            for plane in 0..w.planes {
                let values = &xs[plane * pixels..][..pixels];
                if let Some(i) = largest(taps.iter().map(|t| t.0), |i| values[i]) {
                    dx[plane * pixels + i] += gs[plane * windows + p];
                }
            }
            p += 1;
        });
        Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &dx)?])
    },
)
.domain(HONE)
.kernel(|l| match tiled(l)? {
    Some(lowered) => Ok(Some(lowered)),
    None => lower(l, 1, |_, _| 0.0),
})
.gpu(|l| recorded(l, 1, None));

/// `dY`, with the shape of the operand as the attribute `to`, to `dX`: an equal part to all that count in the mean.
static AVERAGE_POOL_VJP: OpDef = OpDef::new(
    "AveragePoolVjp",
    "gradient of a mean under a sliding window",
    |attrs, inputs| {
        let dy = need(inputs, 0, "dY")?;
        Ok(Some(vec![Fact::new(dy.dtype, to(attrs)?)]))
    },
    |attrs, inputs| {
        let dy = need(inputs, 0, "dY")?;
        let shape = to(attrs)?;
        let w = Windows::of(attrs, &shape)?;
        fits(&w, dy.shape())?;
        let padded = attrs.flag("count_include_pad", false)?;
        let gs = dy.data().to_f64();
        let (pixels, windows) = (w.geometry.input_len(), w.geometry.output_len());
        let mut dx = vec![0.0; elements(&shape)?];
        let mut p = 0;
        w.geometry.for_each_window(|at, taps| {
            let part = 1.0 / w.count(at, padded).max(1) as f64;
            for plane in 0..w.planes {
                let g = gs[plane * windows + p] * part;
                taps.iter().for_each(|&(i, _)| dx[plane * pixels + i] += g);
            }
            p += 1;
        });
        Ok(vec![Tensor::from_f64(dy.dtype(), &shape, &dx)?])
    },
)
.domain(HONE)
.kernel(|l| {
    let padded = l.attrs.flag("count_include_pad", false)?;
    lower(l, 0, move |w, at| 1.0 / w.count(at, padded).max(1) as f32)
})
.gpu(|l| {
    let w = Windows::of(l.attrs, &to(l.attrs)?)?;
    recorded(l, 0, Some(super::lower::factors(&w, l.attrs.flag("count_include_pad", false)?)))
});

/// Of a mean with `factors`, else of the largest.
fn recorded(l: &Lowering<'_>, operand: usize, factors: Option<Vec<f32>>) -> Result<Option<Recorded>, OpError> {
    let shape = if operand == 1 { l.shape(1)?.to_vec() } else { to(l.attrs)? };
    let w = Windows::of(l.attrs, &shape)?;
    let floats = (0..=operand).all(|i| l.dtype(i) == Some(DType::F32));
    let Some(window) = w.geometry.window().filter(|_| floats) else { return Ok(None) };
    let (of, second) = match &factors {
        Some(factors) => (Of::Average, At::floats(factors)),
        None => (Of::Max, At::In(1)),
    };
    let call = Planes { of, window, batch: 1, groups: w.planes, c: 1, o: 1 }.call();
    Ok(Recorded::one(call, vec![At::In(0), second, At::Out(0)]))
}

fn to(attrs: &Attrs) -> Result<Vec<usize>, OpError> {
    let to = attrs.ints("to")?.ok_or_else(|| OpError::attribute("to", "is missing"))?;
    Ok(to.iter().map(|&d| d as usize).collect())
}

fn fits(w: &Windows, dy: &[usize]) -> Result<(), OpError> {
    if w.output_shape() == dy { Ok(()) } else { Err(OpError::shape("dY", w.output_shape(), dy)) }
}

/// The first of the largest; a NaN is larger than all.
fn largest<T: PartialOrd + Copy>(at: impl Iterator<Item = usize>, value: impl Fn(usize) -> T) -> Option<usize> {
    let mut found: Option<(usize, T)> = None;
    for i in at {
        let v = value(i);
        // Only a NaN differs from itself.
        let nan = |v: T| v.partial_cmp(&v).is_none();
        if found.is_none_or(|(_, f)| v > f || nan(v) && !nan(f)) {
            found = Some((i, v));
        }
    }
    found.map(|(i, _)| i)
}

/// [`largest`] without branches, which no CPU can foresee.
fn largest_of(taps: &[u32], values: &[f32]) -> Option<usize> {
    let (&first, rest) = taps.split_first()?;
    let (mut found, mut most) = (first as usize, values[first as usize]);
    for &t in rest {
        let v = values[t as usize];
        let stays = (v <= most) | most.is_nan();
        found = if stays { found } else { t as usize };
        most = if stays { most } else { v };
    }
    Some(found)
}

/// Windows that tile their planes: `dX` is written line by line, in vectors.
fn tiled(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let window = Windows::of(l.attrs, l.shape(1)?)?.geometry.window().filter(pool::tiles);
    let floats = (0..2).all(|i| l.dtype(i) == Some(DType::F32));
    Ok(window.filter(|_| floats).map(|window| Lowered::new(Tiled { window }, vec![0, 1])))
}

struct Tiled {
    window: Window,
}

impl Kernel for Tiled {
    fn name(&self) -> &'static str {
        "max-pool-vjp-tiles"
    }

    fn run(&self, io: &mut Io<'_>) {
        let threads = io.pool;
        let (reads, writes) = io.split();
        pool::max_gradients(threads, &self.window, reads.f32(1), reads.f32(0), writes.f32(0));
    }
}

/// By taps that were listed when the plan was made. `reads` operands besides the gradient; `part` of each window.
fn lower(
    l: &Lowering<'_>,
    operand: usize,
    part: impl Fn(&Windows, &[usize]) -> f32,
) -> Result<Option<Lowered>, OpError> {
    let shape = if operand == 1 { l.shape(1)?.to_vec() } else { to(l.attrs)? };
    let w = Windows::of(l.attrs, &shape)?;
    let f32 = (0..=operand).all(|i| l.dtype(i) == Some(DType::F32));
    if !f32 || u32::try_from(w.geometry.input_len()).is_err() {
        return no_kernel(l);
    }
    let (mut taps, mut ends, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    w.geometry.for_each_window(|at, list| {
        taps.extend(list.iter().map(|t| t.0 as u32));
        ends.push(taps.len() as u32);
        parts.push(part(&w, at));
    });
    let bytes = 4 * (taps.len() + 2 * ends.len());
    let kernel = Scatter { pixels: w.geometry.input_len(), taps, ends, parts, mean: operand == 0 };
    let reads = if operand == 1 { vec![0, 1] } else { vec![0] };
    Ok(Some(Lowered::new(kernel, reads).with_weights(bytes)))
}

struct Scatter {
    pixels: usize,
    /// Positions of all windows, one after another.
    taps: Vec<u32>,
    /// Where each window's end.
    ends: Vec<u32>,
    parts: Vec<f32>,
    mean: bool,
}

impl Kernel for Scatter {
    fn name(&self) -> &'static str {
        if self.mean { "average-pool-vjp" } else { "max-pool-vjp" }
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        let (dy, x, dx) = (reads.f32(0), reads.f32(1), writes.f32(0));
        let windows = self.ends.len();
        if self.pixels == 0 {
            return;
        }
        let piece = pool.share(dx.len(), self.pixels, 1 << 14);
        pool.pieces(dx, piece, |k, dx| {
            dx.fill(0.0);
            for (i, dx) in dx.chunks_exact_mut(self.pixels).enumerate() {
                let plane = k * piece / self.pixels + i;
                let mut from = 0;
                for (p, &end) in self.ends.iter().enumerate() {
                    let (g, taps) = (dy[plane * windows + p], &self.taps[from..end as usize]);
                    from = end as usize;
                    if self.mean {
                        let g = g * self.parts[p];
                        taps.iter().for_each(|&t| dx[t as usize] += g);
                    } else {
                        let values = &x[plane * self.pixels..][..self.pixels];
                        if let Some(i) = largest_of(taps, values) {
                            dx[i] += g;
                        }
                    }
                }
            }
        });
    }
}

/// Of `MaxPool`.
pub(super) fn max_pool(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, x, attrs) = (b.dy()?, b.x(0)?, Attrs::clone(&b.attrs()));
    let dx = b.one(&MAX_POOL_VJP, attrs, &[Some(dy), Some(x)])?;
    b.give(0, dx);
    Ok(())
}

/// Of `AveragePool`.
pub(super) fn average_pool(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, shape, mut attrs) = (b.dy()?, b.x_shape(0)?, Attrs::clone(&b.attrs()));
    attrs.map.insert("to".into(), Attr::Ints(shape.iter().map(|&d| d as i64).collect()));
    let dx = b.one(&AVERAGE_POOL_VJP, attrs, &[Some(dy)])?;
    b.give(0, dx);
    Ok(())
}

/// Of pooling over whole planes, by a reduction that is the same.
pub(super) fn global(
    b: &mut Backward<'_>,
    reduce: impl Fn(&mut Backward<'_>, ValueId, &[usize]) -> Result<ValueId, OpError>,
) -> Result<(), OpError> {
    b.through(|b| {
        let x = b.x(0)?;
        let axes: Vec<usize> = (2..b.shape(x).len()).collect();
        Ok(vec![reduce(b, x, &axes)?])
    })
}

/// `(Σ |x|^p)^(1/p)` over axes.
pub(super) fn norm(b: &mut Backward<'_>, x: ValueId, axes: &[usize], p: f64) -> Result<ValueId, OpError> {
    let size = b.unary("Abs", x)?;
    let (order, inverse) = (b.scalar_like(x, p)?, b.scalar_like(x, 1.0 / p)?);
    let powers = b.binary("Pow", size, order)?;
    let sum = b.sum(powers, axes)?;
    b.binary("Pow", sum, inverse)
}

/// Of `MaxUnpool`: what was put somewhere is read from there.
pub(super) fn max_unpool(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, indices) = (b.dy()?, b.x(1)?);
    let shape = b.x_shape(0)?;
    let asked = match optional(&[b.optional(2).map(|v| b.fact(v).clone()).as_ref()], 0) {
        Some(fact) => Some(fact.ints().ok_or_else(|| OpError::unsupported("a shape that depends on data"))?),
        None => None,
    };
    let (inner, full) = super::unpooled(&b.attrs(), &shape, asked.as_deref())?;
    // A larger result has the inner one in its corner; a smaller one lost what the gradient has zeros for.
    let mut dy = dy;
    if inner != full {
        let pads: Vec<i64> = vec![0; full.len()];
        let ends = inner.iter().zip(&full).map(|(&i, &f)| i as i64 - f as i64);
        let pads = b.ints(pads.into_iter().chain(ends).collect::<Vec<_>>())?;
        dy = b.standard("Pad", [], &[dy, pads])?;
    }
    let flat = b.reshape(dy, &[elements(&inner)?])?;
    let dx = b.binary("Gather", flat, indices)?;
    b.give(0, dx);
    Ok(())
}
