//! Lowering of convolutions to matrix products over tiles of columns, and to direct loops for depthwise ones.
use std::sync::Arc;

use hone_kernels::conv::{self, NR, Packed, Product, Window};
use hone_kernels::epilogue::{self, Activation};

use super::transpose::Transposed;
use super::{Conv, activation};
use crate::ops::OpError;
use crate::plan::{Io, Kept, Kernel, Lowered, Lowering, Weight, bytes, floats};
use crate::tensor::DType;

/// Rows of columns laid out together.
const ROWS: usize = 256;
/// Elements of a tile of columns: what stays in a second-level cache.
const TILE: usize = 32 * 1024;

/// `Conv` and `FusedConv`.
pub(super) fn conv(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    if (0..l.inputs()).any(|i| i != 1 && l.has(i) && l.dtype(i) != Some(DType::F32)) {
        return Ok(None);
    }
    let bias_shape = if l.has(2) { Some(l.shape(2)?) } else { None };
    let c = Conv::of(l.attrs, l.shape(0)?, l.shape(1)?, bias_shape)?;
    let Some(window) = c.geometry.window() else { return Ok(None) };
    let activation = activation(l.attrs)?;
    let k = c.c * window.taps();
    let rows = c.o / c.groups;
    let mut operands = Operands::new(l);
    let (bias, z) = (operands.read(2), operands.read(3));
    if c.c == 1 && c.groups > 1 {
        let Some(weights) = Depthwise::weights(l, &mut operands, window.taps())? else { return Ok(None) };
        let bytes = weights.bytes();
        let kernel = Depthwise { conv: c, window, weights, bias, z, activation };
        return Ok(Some(Lowered::new(kernel, operands.reads).with_weights(bytes)));
    }
    let groups = c.groups;
    let Some(weights) =
        Weights::new(l, &mut operands, groups, rows, k, [rows * k, k, 1], |axis| (axis == 0).then_some(1))?
    else {
        return Ok(None);
    };
    let tile = Tile::new(k, window.positions(), TILE);
    let (bytes, scratch) = (weights.bytes(), tile.floats() + weights.scratch());
    let kernel = Columns { conv: c, window, weights, tile, bias, z, activation };
    Ok(Some(Lowered::new(kernel, operands.reads).with_scratch(scratch).with_weights(bytes)))
}

/// `ConvTranspose`.
pub(super) fn conv_transpose(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    if (0..l.inputs()).any(|i| i != 1 && l.has(i) && l.dtype(i) != Some(DType::F32)) {
        return Ok(None);
    }
    let bias_shape = if l.has(2) { Some(l.shape(2)?) } else { None };
    let t = Transposed::of(l.attrs, l.shape(0)?, l.shape(1)?, bias_shape)?;
    let Some(window) = t.geometry.window() else { return Ok(None) };
    let mut operands = Operands::new(l);
    let bias = operands.read(2);
    let rows = t.o * window.taps();
    let scale = |axis: usize| (axis == 1).then_some(window.taps());
    let Some(weights) = Weights::new(l, &mut operands, t.groups, rows, t.c, [t.c * rows, 1, rows], scale)? else {
        return Ok(None);
    };
    // The products of a tile are as many rows as an output channel has weights.
    let tile = Tile::new(t.c, window.positions(), TILE.min((16 * TILE / rows.max(1)).max(NR) * ROWS.min(t.c.max(1))));
    let products = rows.saturating_mul(tile.pitch);
    let scratch = tile.floats().saturating_add(products).saturating_add(weights.scratch());
    let bytes = weights.bytes();
    Ok(Some(
        Lowered::new(Scattered { t, window, weights, tile, bias }, operands.reads)
            .with_scratch(scratch)
            .with_weights(bytes),
    ))
}

/// Collects what a kernel reads while it runs.
pub(super) struct Operands<'l> {
    l: &'l Lowering<'l>,
    pub(super) reads: Vec<usize>,
}

impl<'l> Operands<'l> {
    /// The input `X`, always the first.
    pub(super) fn new(l: &'l Lowering<'_>) -> Operands<'l> {
        Operands { l, reads: vec![0] }
    }

    /// Reads input `i` too, if it is given: its position among the operands.
    pub(super) fn read(&mut self, i: usize) -> Option<usize> {
        self.l.has(i).then(|| {
            self.reads.push(i);
            self.reads.len() - 1
        })
    }
}

/// A tile of columns.
#[derive(Clone, Copy)]
struct Tile {
    /// Rows laid out together.
    rows: usize,
    /// Columns, a multiple of [`NR`].
    pitch: usize,
}

impl Tile {
    fn new(k: usize, positions: usize, elements: usize) -> Tile {
        let rows = k.clamp(1, ROWS);
        let pitch = (elements / rows / NR * NR).clamp(NR, positions.div_ceil(NR).max(1) * NR);
        Tile { rows, pitch }
    }

    fn floats(self) -> usize {
        self.rows * self.pitch
    }
}

/// Weights of every group: packed beforehand when they are constant, at each run when they are not.
enum Weights {
    /// Of all groups, a matrix of so many elements each.
    F32(Arc<Kept<f32>>, usize),
    Q8(Arc<Kept<i8>>, usize, Vec<Vec<f32>>),
    Read {
        operand: usize,
        rows: usize,
        k: usize,
        transposed: bool,
    },
}

impl Weights {
    /// The element of row `i`, column `k` of group `g` is at `(g · steps[0]) + i · steps[1] + k · steps[2]`; `scale(axis)` says how many
    /// rows share a scale when scales run along that axis, if they run along rows at all.
    fn new(
        l: &Lowering<'_>,
        operands: &mut Operands<'_>,
        groups: usize,
        rows: usize,
        k: usize,
        steps: [usize; 3],
        scale: impl Fn(usize) -> Option<usize>,
    ) -> Result<Option<Weights>, OpError> {
        let at = move |g: usize, i: usize, kk: usize| g * steps[0] + i * steps[1] + kk * steps[2];
        let (numbers, len) = ([&[groups, rows, k][..], &steps].concat(), conv::packed_len(rows, k));
        match l.weight(1) {
            Some(Weight::F32(t)) => {
                t.as_f32()?;
                let from = t.clone();
                let packed = l.packed("rows of weights", &[&t], &numbers, groups * len, move || {
                    let (w, mut out) = (floats(&from), vec![0.0; groups * len]);
                    let groups = out.chunks_mut(len.max(1)).enumerate();
                    groups.for_each(|(g, out)| conv::pack(rows, k, |i, kk| w[at(g, i, kk)], out));
                    out
                });
                Ok(Some(Weights::F32(packed, len)))
            }
            Some(Weight::Q8 { q, scale: s, axis }) => {
                let share = if s.len() == 1 { Some(usize::MAX) } else { scale(axis) };
                let Some(share) = share.filter(|_| q.dtype() == DType::I8) else { return Ok(None) };
                if s.len() != 1 && s.len() != q.shape()[axis] {
                    return Err(OpError::shape("the scales of W", q.shape()[axis], s.len()));
                }
                let from = q.clone();
                let packed = l.packed("rows of weights", &[&q], &numbers, groups * len, move || {
                    let (w, mut out) = (bytes(&from), vec![0; groups * len]);
                    let groups = out.chunks_mut(len.max(1)).enumerate();
                    groups.for_each(|(g, out)| conv::pack(rows, k, |i, kk| w[at(g, i, kk)], out));
                    out
                });
                // Scales count output channels: of all groups along axis 0, of one group along axis 1.
                let of_row = |g: usize, i: usize| {
                    let first = if axis == 0 { g * rows } else { 0 };
                    if s.len() == 1 { s[0] } else { s[first + i / share] }
                };
                let scales = (0..groups).map(|g| (0..rows).map(|i| of_row(g, i)).collect()).collect();
                Ok(Some(Weights::Q8(packed, len, scales)))
            }
            None if l.dtype(1) == Some(DType::F32) => {
                // Row 0's second element tells whether the matrix is stored by rows or by columns.
                let transposed = k > 1 && steps[2] != 1;
                Ok(operands.read(1).map(|operand| Weights::Read { operand, rows, k, transposed }))
            }
            None => Ok(None),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Weights::F32(w, _) => w.len() * 4,
            Weights::Q8(q, _, s) => q.len() + s.iter().map(|s| s.len() * 4).sum::<usize>(),
            Weights::Read { .. } => 0,
        }
    }

    /// Floats of scratch a run needs to pack one group.
    fn scratch(&self) -> usize {
        match self {
            Weights::Read { rows, k, .. } => conv::packed_len(*rows, *k),
            _ => 0,
        }
    }

    /// The weights of group `g`; `packed` is [`Weights::scratch`] floats, `read` gives operands.
    fn group<'a>(&'a self, g: usize, packed: &'a mut [f32], read: impl Fn(usize) -> &'a [f32]) -> Packed<'a> {
        match self {
            Weights::F32(w, len) => Packed::F32(&w[g * len..][..*len]),
            Weights::Q8(q, len, scale) => Packed::I8 { q: &q[g * len..][..*len], scale: &scale[g] },
            Weights::Read { operand, rows, k, transposed } => {
                let (rows, k) = (*rows, *k);
                let w = &read(*operand)[g * rows * k..][..rows * k];
                if *transposed {
                    conv::pack(rows, k, |i, kk| w[kk * rows + i], packed);
                } else {
                    conv::pack(rows, k, |i, kk| w[i * k + kk], packed);
                }
                Packed::F32(packed)
            }
        }
    }

    fn label(&self, f32: &'static str, int8: &'static str) -> &'static str {
        if matches!(self, Weights::Q8(..)) { int8 } else { f32 }
    }
}

/// A convolution as products of weights and tiles of columns.
struct Columns {
    conv: Conv,
    window: Window,
    weights: Weights,
    tile: Tile,
    bias: Option<usize>,
    z: Option<usize>,
    activation: Activation,
}

impl Kernel for Columns {
    fn name(&self) -> &'static str {
        self.weights.label("conv-columns-f32", "conv-columns-f32w8")
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes, scratch) = io.parts();
        let (x, y) = (reads.f32(0), writes.f32(0));
        let Columns { conv: c, window, tile, .. } = self;
        let (rows, k, positions) = (c.o / c.groups, c.c * window.taps(), window.positions());
        let (columns, packed) = scratch.split_at_mut(tile.floats());
        let image = c.c * window.pixels();
        for g in 0..c.groups {
            let w = self.weights.group(g, packed, |i| reads.f32(i));
            let bias = self.bias.map(|i| &reads.f32(i)[g * rows..][..rows]);
            for n in 0..c.n {
                let part = n * c.groups + g;
                let x = &x[part * image..][..image];
                let y = &mut y[part * rows * positions..][..rows * positions];
                multiply(window, x, k, *tile, columns, |product, first| {
                    conv::product(&Product { m: rows, w, bias, y_stride: positions, ..product }, &mut y[first..]);
                });
            }
        }
        finish(y, self.z.map(|i| reads.f32(i)), self.activation);
    }
}

/// Lays out the columns of `x` tile by tile and gives each as a [`Product`] to be completed, with its first position.
fn multiply(
    window: &Window,
    x: &[f32],
    k: usize,
    tile: Tile,
    columns: &mut [f32],
    mut each: impl FnMut(Product<'_>, usize),
) {
    let positions = window.positions();
    for first in (0..positions).step_by(tile.pitch) {
        let last = positions.min(first + tile.pitch);
        let n = last - first;
        let pitch = n.div_ceil(NR) * NR;
        // A reduction of nothing still writes the bias.
        for start in (0..k.max(1)).step_by(tile.rows) {
            let part = start..k.min(start + tile.rows);
            let columns = &mut columns[..part.len() * pitch];
            conv::columns(window, x, part.clone(), first..last, pitch, columns);
            let w = Packed::F32(&[]);
            each(Product { m: 0, k, part, w, columns, pitch, n, bias: None, y_stride: 0 }, first);
        }
    }
}

fn finish(y: &mut [f32], z: Option<&[f32]>, activation: Activation) {
    if let Some(z) = z {
        y.iter_mut().zip(z).for_each(|(y, z)| *y += z);
    }
    epilogue::apply(activation, y);
}

/// A convolution of one input channel a group.
struct Depthwise {
    conv: Conv,
    window: Window,
    weights: Direct,
    bias: Option<usize>,
    z: Option<usize>,
    activation: Activation,
}

/// Weights as they lie in the file.
enum Direct {
    Held(Arc<Kept<f32>>),
    Read(usize),
}

impl Direct {
    fn bytes(&self) -> usize {
        match self {
            Direct::Held(w) => w.len() * 4,
            Direct::Read(_) => 0,
        }
    }
}

impl Depthwise {
    /// Depthwise weights are few: quantised ones are expanded here.
    fn weights(l: &Lowering<'_>, operands: &mut Operands<'_>, taps: usize) -> Result<Option<Direct>, OpError> {
        match l.weight(1) {
            Some(Weight::F32(t)) => {
                t.as_f32()?;
                let from = t.clone();
                let make = move || floats(&from).to_vec();
                Ok(Some(Direct::Held(l.packed("as it lies", &[&t], &[], t.len(), make))))
            }
            Some(Weight::Q8 { q, scale, axis }) => {
                if q.dtype() != DType::I8 || scale.len() != 1 && (axis != 0 || scale.len() * taps != q.len()) {
                    return Ok(None);
                }
                let numbers: Vec<usize> =
                    [taps].into_iter().chain(scale.iter().map(|s| s.to_bits() as usize)).collect();
                let from = q.clone();
                Ok(Some(Direct::Held(l.packed("expanded", &[&q], &numbers, q.len(), move || {
                    let of = |i: usize| if scale.len() == 1 { scale[0] } else { scale[i / taps] };
                    bytes(&from).iter().enumerate().map(|(i, &q)| f32::from(q) * of(i)).collect()
                }))))
            }
            None if l.dtype(1) == Some(DType::F32) => Ok(operands.read(1).map(Direct::Read)),
            None => Ok(None),
        }
    }
}

impl Kernel for Depthwise {
    fn name(&self) -> &'static str {
        "conv-depthwise-f32"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let (x, y) = (reads.f32(0), writes.f32(0));
        let w = match &self.weights {
            Direct::Held(w) => w,
            Direct::Read(i) => reads.f32(*i),
        };
        let (pixels, taps, positions) = (self.window.pixels(), self.window.taps(), self.window.positions());
        let (channels, multiplier) = (self.conv.o, self.conv.o / self.conv.groups);
        for n in 0..self.conv.n {
            for o in 0..channels {
                let x = &x[(n * self.conv.groups + o / multiplier) * pixels..][..pixels];
                let y = &mut y[(n * channels + o) * positions..][..positions];
                let bias = self.bias.map_or(0.0, |i| reads.f32(i)[o]);
                conv::depthwise(&self.window, x, &w[o * taps..][..taps], bias, y);
            }
        }
        finish(y, self.z.map(|i| reads.f32(i)), self.activation);
    }
}

/// A transposed convolution: products of weights and input, added where they belong.
struct Scattered {
    t: Transposed,
    window: Window,
    weights: Weights,
    tile: Tile,
    bias: Option<usize>,
}

impl Kernel for Scattered {
    fn name(&self) -> &'static str {
        self.weights.label("conv-transpose-f32", "conv-transpose-f32w8")
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes, scratch) = io.parts();
        let (x, y) = (reads.f32(0), writes.f32(0));
        let Scattered { t, window, tile, .. } = self;
        let (positions, image) = (window.positions(), window.pixels());
        let rows = t.o * window.taps();
        let (columns, rest) = scratch.split_at_mut(tile.floats());
        let (products, packed) = rest.split_at_mut(rows * tile.pitch);
        let line = [1, 1, positions];
        let points =
            Window { input: line, kernel: [1; 3], output: line, stride: [1; 3], dilation: [1; 3], pad: [0; 3] };
        for g in 0..t.groups {
            let w = self.weights.group(g, packed, |i| reads.f32(i));
            for n in 0..t.n {
                let part = n * t.groups + g;
                let x = &x[part * t.c * positions..][..t.c * positions];
                let y = &mut y[part * t.o * image..][..t.o * image];
                for o in 0..t.o {
                    y[o * image..][..image].fill(self.bias.map_or(0.0, |i| reads.f32(i)[g * t.o + o]));
                }
                multiply(&points, x, t.c, *tile, columns, |product, first| {
                    let (pitch, last) = (product.pitch, product.part.end == t.c);
                    let places = first..first + product.n;
                    conv::product(&Product { m: rows, w, bias: None, y_stride: pitch, ..product }, products);
                    if last {
                        conv::add_columns(window, &products[..rows * pitch], 0..rows, places, pitch, y);
                    }
                });
            }
        }
    }
}
