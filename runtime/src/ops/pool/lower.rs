//! Lowering of pooling of `f32` planes over at most three spatial axes.
use hone_gpu::rows::Rows;
use hone_gpu::window as gpu;
use hone_kernels::conv::Window;
use hone_kernels::pool;

use super::Windows;
use crate::ops::OpError;
use crate::plan::{At, Io, Kernel, Lowered, Lowering, Recorded};
use crate::tensor::DType;

pub(super) fn max_pool(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    if l.wants(1) {
        return Ok(None);
    }
    windows(l, |_| Pooling::Max)
}

pub(super) fn average_pool(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let padded = l.attrs.flag("count_include_pad", false)?;
    windows(l, |w| Pooling::Average { factors: factors(w, padded) })
}

/// One over the number of positions that count in a mean, a window.
pub(super) fn factors(w: &Windows, padded: bool) -> Vec<f32> {
    let mut factors = Vec::with_capacity(w.geometry.output_len());
    w.geometry.for_each_window(|at, _| factors.push(1.0 / w.count(at, padded).max(1) as f32));
    factors
}

pub(super) fn global_average_pool(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    global(l, false)
}

pub(super) fn global_max_pool(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    global(l, true)
}

fn windows(l: &Lowering<'_>, pooling: impl Fn(&Windows) -> Pooling) -> Result<Option<Lowered>, OpError> {
    if l.dtype(0) != Some(DType::F32) {
        return Ok(None);
    }
    let w = Windows::of(l.attrs, l.shape(0)?)?;
    let Some(window) = w.geometry.window() else { return Ok(None) };
    let pooling = pooling(&w);
    Ok(Some(Lowered::new(Planes { window, pooling }, vec![0])))
}

pub(super) fn max_pool_recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    if l.wants(1) {
        return Ok(None);
    }
    recorded(l, &Windows::of(l.attrs, l.shape(0)?)?, true, None)
}

pub(super) fn average_pool_recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let w = Windows::of(l.attrs, l.shape(0)?)?;
    let factors = factors(&w, l.attrs.flag("count_include_pad", false)?);
    recorded(l, &w, true, Some(&factors))
}

/// Pooling of floats on a GPU, channels `first` or last: the mean with `factors`, else the largest.
pub(super) fn recorded(
    l: &Lowering<'_>,
    w: &Windows,
    first: bool,
    factors: Option<&[f32]>,
) -> Result<Option<Recorded>, OpError> {
    let Some(window) = w.geometry.window().filter(|_| l.dtype(0) == Some(DType::F32)) else { return Ok(None) };
    let [batch, channels] = w.lead;
    let of = if factors.is_some() { gpu::Of::Average } else { gpu::Of::Max };
    let call = gpu::Windows { window, batch, channels, first, of }.call();
    let mut at = vec![At::In(0)];
    at.extend(factors.map(At::floats));
    at.push(At::Out(0));
    Ok(Recorded::one(call, at))
}

pub(super) fn global_recorded(l: &Lowering<'_>, max: bool) -> Result<Option<Recorded>, OpError> {
    let x = l.shape(0)?;
    let planes = super::planes(x)?;
    let pixels: usize = x[2..].iter().product();
    if l.dtype(0) != Some(DType::F32) {
        return Ok(None);
    }
    let rows = if max { Rows::Max } else { Rows::Sum };
    Ok(crate::ops::record::along(rows, planes[0] * planes[1], pixels, 1, if max { 1.0 } else { 1.0 / pixels as f32 }))
}

enum Pooling {
    Max,
    Average {
        /// One over the number of positions that count, a window.
        factors: Vec<f32>,
    },
}

struct Planes {
    window: Window,
    pooling: Pooling,
}

impl Kernel for Planes {
    fn name(&self) -> &'static str {
        "pool-f32"
    }

    fn run(&self, io: &mut Io<'_>) {
        let threads = io.pool;
        let (reads, writes) = io.split();
        let (x, y) = (reads.f32(0), writes.f32(0));
        match &self.pooling {
            Pooling::Max => pool::max_planes(threads, &self.window, x, y),
            Pooling::Average { factors } => pool::mean_planes(threads, &self.window, x, factors, y),
        }
    }
}

fn global(l: &Lowering<'_>, max: bool) -> Result<Option<Lowered>, OpError> {
    if l.dtype(0) != Some(DType::F32) {
        return Ok(None);
    }
    let x = l.shape(0)?;
    super::planes(x)?;
    Ok(Some(Lowered::new(Global { pixels: x[2..].iter().product(), max }, vec![0])))
}

struct Global {
    pixels: usize,
    max: bool,
}

impl Kernel for Global {
    fn name(&self) -> &'static str {
        "pool-global-f32"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let x = reads.f32(0);
        for (i, y) in writes.f32(0).iter_mut().enumerate() {
            let plane = &x[i * self.pixels..][..self.pixels];
            *y = if self.max { pool::max(plane) } else { pool::sum(plane) / self.pixels as f32 };
        }
    }
}
