//! Lowering of resampling: nearest neighbours of any type by bytes, interpolation of `f32`.
use hone_gpu::kernel::bytes_of_words;
use hone_gpu::resample::Resample;
use hone_kernels::resample::{self, Axis, Corners, TILE};

use super::grid::{Interpolation, Sampling, sampled_shape};
use super::resize::{Map, Mode, Settings, axes, nearest, operands, scales_attribute};
use crate::ops::OpError;
use crate::plan::{At, Io, Kernel, Lowered, Lowering, Recorded};
use crate::tensor::{DType, Tensor};

pub(super) fn resize(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    lower(l, &Settings::resize(l.attrs)?)
}

pub(super) fn upsample(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    lower(l, &Settings::first(l.attrs)?)
}

/// How each axis that changes is resized, and the shape of the result.
type Resized = (Vec<Map>, Vec<usize>);

/// What operands and attributes say; `None` where that depends on values, or positions lie
/// outside.
fn maps(l: &Lowering<'_>, settings: &Settings) -> Result<Option<Resized>, OpError> {
    let constants = operands(settings).map(|i| (l.has(i), l.constant(i)));
    if constants.iter().any(|(given, value)| *given && value.is_none()) {
        return Ok(None);
    }
    let floats = |t: &Tensor| t.data().to_f64();
    let [roi, scales, sizes] = constants.map(|(_, t)| t.map(|t| floats(t)));
    let scales = match scales {
        Some(v) => v,
        None => scales_attribute(l.attrs)?,
    };
    let sizes: Vec<i64> = sizes.unwrap_or_default().into_iter().map(|v| v as i64).collect();
    let shape = l.shape(0)?;
    let (axes, out) = axes(settings, l.attrs, shape, &roi.unwrap_or_default(), &scales, &sizes)?;
    let maps: Vec<Map> = axes.iter().map(|a| settings.map(a)).collect();
    let large = shape.iter().chain(&out).any(|&d| d > u32::MAX as usize);
    let fits = !large && maps.iter().all(|m| m.outside.is_empty());
    Ok(fits.then_some((maps, out)))
}

fn lower(l: &Lowering<'_>, settings: &Settings) -> Result<Option<Lowered>, OpError> {
    let Some(dtype) = l.dtype(0) else { return Ok(None) };
    let Some((maps, out)) = maps(l, settings)? else { return Ok(None) };
    let shape = l.shape(0)?;
    if settings.mode == Mode::Nearest {
        return Ok(Neighbours::new(maps, shape, &out, dtype.size_bytes())?.map(|k| Lowered::new(k, vec![0])));
    }
    if dtype != DType::F32 {
        return Ok(None);
    }
    let passes = passes(&maps, shape);
    let between = passes.iter().rev().skip(1).map(|p| crate::ops::shape::elements(&[p.outer, p.output, p.inner]));
    let largest = between.collect::<Result<Vec<_>, _>>()?.into_iter().max().unwrap_or(0);
    // Two areas taken in turn; one is enough for a single intermediate result.
    let areas = passes.len().saturating_sub(1).min(2);
    Ok(Some(Lowered::new(Passes { passes, area: largest }, vec![0]).with_scratch(largest.saturating_mul(areas))))
}

/// On a GPU the same, one axis after the other; nearest neighbours are those with one weight, 1.
pub(super) fn record_resize(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    record(l, &Settings::resize(l.attrs)?)
}

pub(super) fn record_upsample(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    record(l, &Settings::first(l.attrs)?)
}

fn record(l: &Lowering<'_>, settings: &Settings) -> Result<Option<Recorded>, OpError> {
    if l.dtype(0) != Some(DType::F32) {
        return Ok(None);
    }
    let Some((maps, _)) = maps(l, settings)? else { return Ok(None) };
    let passes = passes(&maps, l.shape(0)?);
    let mut out = Recorded::default();
    let mut from = At::In(0);
    for (i, p) in passes.iter().enumerate() {
        let to = match i + 1 == passes.len() {
            true => At::Out(0),
            false => out.scratch(4 * crate::ops::shape::elements(&[p.outer, p.output, p.inner])?),
        };
        let call = Resample { outer: p.outer, length: p.input, count: p.output, inner: p.inner, taps: p.taps }.call();
        let at = vec![from, At::bytes(bytes_of_words(&p.at)), At::floats(&p.weights), to.clone()];
        let Some(more) = out.and(call, at) else { return Ok(None) };
        (out, from) = (more, to);
    }
    Ok((!passes.is_empty()).then_some(out))
}

fn passes(maps: &[Map], shape: &[usize]) -> Vec<Pass> {
    let mut lengths = shape.to_vec();
    let pass = |m: &Map| {
        let outer = lengths[..m.axis].iter().product();
        let inner = lengths[m.axis + 1..].iter().product();
        lengths[m.axis] = m.output;
        Pass {
            outer,
            input: m.input,
            output: m.output,
            inner,
            taps: m.taps,
            at: m.at.iter().map(|&i| i as u32).collect(),
            weights: m.weights.iter().map(|&w| w as f32).collect(),
        }
    };
    maps.iter().map(pass).collect()
}

/// One axis resized.
struct Pass {
    outer: usize,
    input: usize,
    output: usize,
    inner: usize,
    taps: usize,
    at: Vec<u32>,
    weights: Vec<f32>,
}

/// One axis after the other.
struct Passes {
    passes: Vec<Pass>,
    /// Floats of the largest intermediate result.
    area: usize,
}

impl Kernel for Passes {
    fn name(&self) -> &'static str {
        "resize-axes-f32"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes, scratch) = io.parts();
        let (x, y) = (reads.f32(0), writes.f32(0));
        let (mut from, mut to) = scratch.split_at_mut(self.area.min(scratch.len()));
        if self.passes.is_empty() {
            y.copy_from_slice(x);
        }
        for (i, p) in self.passes.iter().enumerate() {
            let axis = Axis {
                outer: p.outer,
                input: p.input,
                output: p.output,
                inner: p.inner,
                taps: p.taps,
                at: &p.at,
                weights: &p.weights,
            };
            let (first, last) = (i == 0, i + 1 == self.passes.len());
            match (first, last) {
                (true, true) => resample::resize(&axis, x, y),
                (true, false) => resample::resize(&axis, x, from),
                (false, true) => resample::resize(&axis, from, y),
                (false, false) => {
                    resample::resize(&axis, from, to);
                    std::mem::swap(&mut from, &mut to);
                }
            }
        }
    }
}

/// Elements of any type copied: the rows they come from, and where in their row.
struct Neighbours {
    rows: Vec<usize>,
    /// `None` when rows are copied whole.
    columns: Option<Vec<usize>>,
    input: usize,
    output: usize,
    element_bytes: usize,
}

impl Neighbours {
    fn new(mut maps: Vec<Map>, x: &[usize], out: &[usize], bytes: usize) -> Result<Option<Neighbours>, OpError> {
        let (Some(&input), Some(&output)) = (x.last(), out.last()) else { return Ok(None) };
        let last = maps.iter().position(|m| m.axis == x.len() - 1).map(|i| maps.remove(i));
        let rows = nearest(&maps, &x[..x.len() - 1], &out[..out.len() - 1])?;
        let Some(rows) = rows.into_iter().collect() else { return Ok(None) };
        Ok(Some(Neighbours { rows, columns: last.map(|m| m.at), input, output, element_bytes: bytes }))
    }

    fn copy<const B: usize>(&self, x: &[u8], y: &mut [u8], columns: &[usize]) {
        let (x, y) = (x.as_chunks::<B>().0, y.as_chunks_mut::<B>().0);
        let mut before = None;
        for (i, &row) in self.rows.iter().enumerate() {
            if before == Some(row) {
                // An enlarged image repeats rows.
                y.copy_within((i - 1) * self.output..i * self.output, i * self.output);
                continue;
            }
            before = Some(row);
            let x = &x[row * self.input..][..self.input];
            let y = &mut y[i * self.output..][..self.output];
            y.iter_mut().zip(columns).for_each(|(y, &c)| *y = x[c]);
        }
    }
}

impl Kernel for Neighbours {
    fn name(&self) -> &'static str {
        "resize-nearest-bytes"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let (x, y) = (reads.bytes(0), writes.bytes(0));
        match (&self.columns, self.element_bytes) {
            (None, bytes) => {
                let row = self.input * bytes;
                for (y, &from) in y.chunks_exact_mut(row.max(1)).zip(&self.rows) {
                    y.copy_from_slice(&x[from * row..][..row]);
                }
            }
            (Some(columns), 1) => self.copy::<1>(x, y, columns),
            (Some(columns), 2) => self.copy::<2>(x, y, columns),
            (Some(columns), 4) => self.copy::<4>(x, y, columns),
            (Some(columns), _) => self.copy::<8>(x, y, columns),
        }
    }
}

/// Bilinear samples of `f32` images.
pub(super) fn grid_sample(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let sampling = Sampling::of(l.attrs)?;
    let (x, grid) = (l.shape(0)?, l.shape(1)?);
    let shape = sampled_shape(x, grid)?;
    let f32 = [l.dtype(0), l.dtype(1)] == [Some(DType::F32); 2];
    let &[n, channels, height, width] = x else { return Ok(None) };
    let fits = (1..=u32::MAX as usize).contains(&(height.saturating_mul(width)));
    if !f32 || sampling.mode != Interpolation::Linear || !fits {
        return Ok(None);
    }
    let points = shape[2] * shape[3];
    Ok(Some(Lowered::new(Bilinear { sampling, n, channels, height, width, points }, vec![0, 1])))
}

struct Bilinear {
    sampling: Sampling,
    n: usize,
    channels: usize,
    height: usize,
    width: usize,
    points: usize,
}

impl Kernel for Bilinear {
    fn name(&self) -> &'static str {
        "grid-sample-bilinear-f32"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let (x, grid, y) = (reads.f32(0), reads.f32(1), writes.f32(0));
        let pixels = self.height * self.width;
        let mut corners = Corners::default();
        for n in 0..self.n {
            for first in (0..self.points).step_by(TILE) {
                let count = TILE.min(self.points - first);
                let at = &grid[(n * self.points + first) * 2..][..count * 2];
                for (q, [gx, gy]) in at.as_chunks::<2>().0.iter().enumerate() {
                    let rows = self.sampling.linear(f64::from(*gy), self.height, false);
                    let columns = self.sampling.linear(f64::from(*gx), self.width, false);
                    for c in 0..4 {
                        let ((row, v), (column, w)) = (rows[c / 2], columns[c % 2]);
                        let at = row.zip(column);
                        corners.at[c][q] = at.map_or(0, |(row, column)| (row * self.width + column) as u32);
                        corners.weights[c][q] = if at.is_some() { (v * w) as f32 } else { 0.0 };
                    }
                }
                for c in 0..self.channels {
                    let plane = n * self.channels + c;
                    let y = &mut y[plane * self.points + first..][..count];
                    resample::gather(&corners, &x[plane * pixels..][..pixels], y);
                }
            }
        }
    }
}
