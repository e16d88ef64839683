//! Lowering of convolutions to matrix products over columns, which are channels under a shift where the window allows it, and to direct
//! loops for depthwise ones.
use std::ops::Range;
use std::sync::Arc;

use hone_kernels::conv::{self, NR, Packed, Product, Window};
use hone_kernels::epilogue::{self, Activation};
use hone_kernels::planes;
use hone_kernels::shifted::Shifted;

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
        let Some(weights) = Direct::of(l, &mut operands, window.taps())? else { return Ok(None) };
        let bytes = weights.bytes() + size_of::<Shifted>();
        let (channels, multiplier) = (c.o, c.o / c.groups);
        let lowered = match Shifted::convolution(&window) {
            Some(shifted) => {
                let scratch = l.threads * shifted.scratch();
                let name = "conv-depthwise-f32";
                let kernel = Planes { name, shifted, channels, multiplier, weights, bias, z, activation };
                Lowered::new(kernel, operands.reads).with_scratch(scratch)
            }
            None => Lowered::new(Depthwise { conv: c, window, weights, bias, z, activation }, operands.reads),
        };
        return Ok(Some(lowered.with_weights(bytes)));
    }
    let taps = window.taps();
    let lie = Lie { group: rows * k, row: k, channel: taps, taps, turned: false };
    let Some(weights) = Weights::new(l, &mut operands, c.groups, (rows, k), lie, |axis| (axis == 0).then_some(1))?
    else {
        return Ok(None);
    };
    let kernel = Columns::new(
        ["conv-columns-f32", "conv-columns-f32w8"],
        (c.n, c.groups, c.c, rows),
        window,
        weights,
        (bias, z),
        activation,
    );
    let (bytes, scratch) = (kernel.bytes(), kernel.scratch(l.threads));
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
    let (taps, rows) = (window.taps(), t.o * window.taps());
    if t.c == 1
        && t.o == 1
        && t.groups > 1
        && let Some(shifted) = Shifted::transpose(&window)
    {
        let Some(weights) = Direct::of(l, &mut operands, taps)? else { return Ok(None) };
        let (bytes, scratch) = (weights.bytes() + size_of::<Shifted>(), l.threads * shifted.scratch());
        let (name, activation) = ("conv-transpose-depthwise-f32", Activation::None);
        let kernel = Planes { name, shifted, channels: t.groups, multiplier: 1, weights, bias, z: None, activation };
        return Ok(Some(Lowered::new(kernel, operands.reads).with_scratch(scratch).with_weights(bytes)));
    }
    if window.stride == [1; 3] {
        // Without a stride it is the convolution of the other side by the window turned round.
        let turned = turned(&window);
        let lie = Lie { group: t.c * rows, row: taps, channel: rows, taps, turned: true };
        let scale = |axis: usize| (axis == 1).then_some(1);
        let Some(weights) = Weights::new(l, &mut operands, t.groups, (t.o, t.c * taps), lie, scale)? else {
            return Ok(None);
        };
        let sizes = (t.n, t.groups, t.c, t.o);
        let names = ["conv-transpose-columns-f32", "conv-transpose-columns-f32w8"];
        let kernel = Columns::new(names, sizes, turned, weights, (bias, None), Activation::None);
        let (bytes, scratch) = (kernel.bytes(), kernel.scratch(l.threads));
        return Ok(Some(Lowered::new(kernel, operands.reads).with_scratch(scratch).with_weights(bytes)));
    }
    let lie = Lie { group: t.c * rows, row: 1, channel: rows, taps: 1, turned: false };
    let scale = |axis: usize| (axis == 1).then_some(taps);
    let Some(weights) = Weights::new(l, &mut operands, t.groups, (rows, t.c), lie, scale)? else {
        return Ok(None);
    };
    // The products of a tile are as many rows as an output channel has weights.
    let tile = Tile::new(t.c, window.positions(), TILE.min((16 * TILE / rows.max(1)).max(NR) * ROWS.min(t.c.max(1))));
    let kernel = Scattered { t, window, weights, tile, bias };
    let scratch =
        kernel.each().saturating_mul(l.threads.min(kernel.t.n).max(1)).saturating_add(kernel.weights.scratch());
    let bytes = kernel.weights.bytes();
    Ok(Some(Lowered::new(kernel, operands.reads).with_scratch(scratch).with_weights(bytes)))
}

/// The window that slides over the output of a window without stride and makes its input.
fn turned(w: &Window) -> Window {
    let reach = |a: usize| ((w.kernel[a] - 1) * w.dilation[a]) as isize;
    Window { input: w.output, output: w.input, pad: std::array::from_fn(|a| reach(a) - w.pad[a]), ..*w }
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

/// Where the elements of the matrices of a convolution's weights lie.
#[derive(Clone, Copy)]
struct Lie {
    /// From one group, row and channel to the next.
    group: usize,
    row: usize,
    channel: usize,
    /// Taps of a channel, one after another.
    taps: usize,
    /// The last tap is the first.
    turned: bool,
}

impl Lie {
    /// The element of row `i`, column `k` of group `g`.
    fn at(self, g: usize, i: usize, k: usize) -> usize {
        let column = match (self.taps, self.turned) {
            (1, _) => k * self.channel,
            (taps, false) => k / taps * self.channel + k % taps,
            (taps, true) => k / taps * self.channel + taps - 1 - k % taps,
        };
        g * self.group + i * self.row + column
    }

    fn numbers(self) -> [usize; 5] {
        [self.group, self.row, self.channel, self.taps, usize::from(self.turned)]
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
        lie: Lie,
    },
}

impl Weights {
    /// Matrices of so many rows and columns. `scale(axis)` says how many rows share a scale when scales run along that axis, if
    /// they run along rows at all.
    fn new(
        l: &Lowering<'_>,
        operands: &mut Operands<'_>,
        groups: usize,
        (rows, k): (usize, usize),
        lie: Lie,
        scale: impl Fn(usize) -> Option<usize>,
    ) -> Result<Option<Weights>, OpError> {
        let (numbers, len) = ([&[groups, rows, k][..], &lie.numbers()].concat(), conv::packed_len(rows, k));
        match l.weight(1) {
            Some(Weight::F32(t)) => {
                t.as_f32()?;
                let from = t.clone();
                let packed = l.packed("rows of weights", &[&t], &numbers, groups * len, move || {
                    let (w, mut out) = (floats(&from), vec![0.0; groups * len]);
                    let groups = out.chunks_mut(len.max(1)).enumerate();
                    groups.for_each(|(g, out)| conv::pack(rows, k, |i, kk| w[lie.at(g, i, kk)], out));
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
                    groups.for_each(|(g, out)| conv::pack(rows, k, |i, kk| w[lie.at(g, i, kk)], out));
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
                Ok(operands.read(1).map(|operand| Weights::Read { operand, rows, k, lie }))
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
            Weights::Read { operand, rows, k, lie } => {
                let (rows, k) = (*rows, *k);
                let w = &read(*operand)[g * rows * k..][..rows * k];
                conv::pack(rows, k, |i, kk| w[lie.at(0, i, kk)], packed);
                Packed::F32(packed)
            }
        }
    }

    fn are_codes(&self) -> bool {
        matches!(self, Weights::Q8(..))
    }
}

/// A convolution as products of weights and columns, an image a thread.
struct Columns {
    /// With `f32` and with 8-bit weights.
    names: [&'static str; 2],
    /// Images, groups, and channels of a group on the side that is read and on the other.
    sizes: (usize, usize, usize, usize),
    window: Window,
    weights: Weights,
    made: Made,
    bias: Option<usize>,
    z: Option<usize>,
    activation: Activation,
}

/// How columns come about.
enum Made {
    /// The planes of an image are columns as they lie.
    Lying(Tile),
    /// They are channels under a shift, some lines of an image at a time.
    Shifted(Box<[Strip]>),
    /// They are laid out one by one.
    Tiled(Tile),
}

/// Some lines of the result: which, of which lines of the image, and how those are laid out.
struct Strip {
    made: Range<usize>,
    read: Range<usize>,
    shifted: Shifted,
}

impl Strip {
    /// As many at a time as [`TILE`] has room for; `None` where `window` is not one that is laid out so.
    fn of(window: &Window, channels: usize) -> Option<Box<[Strip]>> {
        let height = window.output[1];
        let lay_out = |made: Range<usize>| {
            let shifted = Shifted::convolution(&window.part(made.clone()))?;
            Some(Strip { read: window.lines(made.clone()), made, shifted })
        };
        let fits = |lines: usize| lay_out(0..lines).is_some_and(|l| l.shifted.floats(channels) <= TILE);
        // Halves, so that few are asked: what is left out is less than half of the room.
        let mut lines = height;
        while lines > 1 && !fits(lines) {
            lines = lines.div_ceil(2);
        }
        (0..height).step_by(lines.max(1)).map(|first| lay_out(first..height.min(first + lines))).collect()
    }
}

impl Columns {
    fn new(
        names: [&'static str; 2],
        sizes: (usize, usize, usize, usize),
        window: Window,
        weights: Weights,
        (bias, z): (Option<usize>, Option<usize>),
        activation: Activation,
    ) -> Columns {
        let tile = Tile::new(sizes.2 * window.taps(), window.positions(), TILE);
        let made = if window.is_pointwise() && window.positions().is_multiple_of(NR) {
            Made::Lying(tile)
        } else if window.is_pointwise() {
            Made::Tiled(tile)
        } else {
            Strip::of(&window, sizes.2).map_or(Made::Tiled(tile), Made::Shifted)
        };
        Columns { names, sizes, window, weights, made, bias, z, activation }
    }

    /// Floats of columns that a thread lays out.
    fn each(&self) -> usize {
        match &self.made {
            Made::Lying(_) => 0,
            Made::Shifted(lines) => lines.iter().map(|l| l.shifted.floats(self.sizes.2)).max().unwrap_or(0),
            Made::Tiled(tile) => tile.floats(),
        }
    }

    fn scratch(&self, threads: usize) -> usize {
        self.each() * threads.min(self.sizes.0).max(1) + self.weights.scratch()
    }

    fn bytes(&self) -> usize {
        let lines = if let Made::Shifted(lines) = &self.made { lines.len() } else { 0 };
        self.weights.bytes() + lines * size_of::<Strip>()
    }
}

impl Kernel for Columns {
    fn name(&self) -> &'static str {
        self.names[usize::from(self.weights.are_codes())]
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let (x, y) = (reads.f32(0), writes.f32(0));
        let Columns { window, sizes: (_, groups, c, rows), .. } = self;
        let (groups, c, rows, positions) = (*groups, *c, *rows, window.positions());
        let k = c * window.taps();
        let (packed, columns) = scratch.split_at_mut(self.weights.scratch());
        let image = c * window.pixels();
        let made = rows * positions;
        for g in 0..groups {
            let w = self.weights.group(g, packed, |i| reads.f32(i));
            let bias = self.bias.map(|i| &reads.f32(i)[g * rows..][..rows]);
            pool.pieces_with(y, (groups * made).max(1), (columns, self.each()), |n, y, columns| {
                let x = &x[(n * groups + g) * image..][..image];
                let y = &mut y[g * made..][..made];
                let each = |product: Product<'_>, first: usize| {
                    conv::product(&Product { m: rows, w, bias, y_stride: positions, ..product }, &mut y[first..]);
                };
                match &self.made {
                    Made::Lying(tile) => multiply_lying(x, k, positions, *tile, each),
                    Made::Shifted(lines) => multiply_shifted(window, x, k, lines, columns, each),
                    Made::Tiled(tile) => multiply(window, x, k, *tile, columns, each),
                }
            });
        }
        finish(y, self.z.map(|i| reads.f32(i)), self.activation);
    }
}

/// A part of a product that is yet to be told its weights and rows.
fn part<'a>(
    k: usize,
    part: Range<usize>,
    columns: &'a [f32],
    rows: conv::Rows<'a>,
    (n, lines): (usize, conv::Lines),
) -> Product<'a> {
    Product { m: 0, k, part, w: Packed::F32(&[]), columns, rows, n, lines, bias: None, y_stride: 0 }
}

/// [`multiply`] of channels under a shift, some lines at a time.
fn multiply_shifted(
    window: &Window,
    x: &[f32],
    k: usize,
    strips: &[Strip],
    columns: &mut [f32],
    mut each: impl FnMut(Product<'_>, usize),
) {
    let width = window.input[2];
    for Strip { made, read, shifted } in strips {
        let channels = x.chunks_exact(window.pixels().max(1));
        for (x, laid) in channels.zip(columns.chunks_exact_mut(shifted.step().max(1))) {
            shifted.lay_out(&x[read.start * width..read.end * width], laid);
        }
        let n = (shifted.columns(), shifted.results());
        each(part(k, 0..k, columns, shifted.rows(), n), made.start * window.output[2]);
    }
}

/// [`multiply`] of a matrix that lies as columns do: `k` rows of `positions`, which are whole vectors.
fn multiply_lying(x: &[f32], k: usize, positions: usize, tile: Tile, mut each: impl FnMut(Product<'_>, usize)) {
    for first in (0..positions).step_by(tile.pitch) {
        let n = positions.min(first + tile.pitch) - first;
        for start in (0..k.max(1)).step_by(tile.rows) {
            let columns = &x[(start * positions + first).min(x.len())..];
            let rows = conv::Rows::apart(positions);
            each(part(k, start..k.min(start + tile.rows), columns, rows, (n, conv::Lines::whole(n))), first);
        }
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
            let reduced = start..k.min(start + tile.rows);
            let columns = &mut columns[..reduced.len() * pitch];
            conv::columns(window, x, reduced.clone(), first..last, pitch, columns);
            let rows = conv::Rows::apart(pitch);
            each(part(k, reduced, columns, rows, (n, conv::Lines::whole(n))), first);
        }
    }
}

fn finish(y: &mut [f32], z: Option<&[f32]>, activation: Activation) {
    if let Some(z) = z {
        y.iter_mut().zip(z).for_each(|(y, z)| *y += z);
    }
    epilogue::apply(activation, y);
}

/// A convolution of one input channel a group whose window [`Shifted`] does not take.
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
    /// Depthwise weights are few: quantised ones are expanded here.
    fn of(l: &Lowering<'_>, operands: &mut Operands<'_>, taps: usize) -> Result<Option<Direct>, OpError> {
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

    fn bytes(&self) -> usize {
        match self {
            Direct::Held(w) => w.len() * 4,
            Direct::Read(_) => 0,
        }
    }

    fn get<'a>(&'a self, read: impl Fn(usize) -> &'a [f32]) -> &'a [f32] {
        match self {
            Direct::Held(w) => w,
            Direct::Read(i) => read(*i),
        }
    }
}

/// A convolution of one input channel a group, or its transpose, by shifted planes.
struct Planes {
    name: &'static str,
    shifted: Shifted,
    channels: usize,
    multiplier: usize,
    weights: Direct,
    bias: Option<usize>,
    z: Option<usize>,
    activation: Activation,
}

impl Kernel for Planes {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let y = writes.f32(0);
        let Planes { shifted, channels, multiplier, .. } = self;
        let (w, bias) = (self.weights.get(|i| reads.f32(i)), self.bias.map(|i| reads.f32(i)));
        let of = planes::Depthwise { shifted, channels: *channels, multiplier: *multiplier, x: reads.f32(0), w, bias };
        planes::depthwise(pool, &of, scratch, y);
        finish(y, self.z.map(|i| reads.f32(i)), self.activation);
    }
}

impl Kernel for Depthwise {
    fn name(&self) -> &'static str {
        "conv-depthwise-lines-f32"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let (x, y) = (reads.f32(0), writes.f32(0));
        let w = self.weights.get(|i| reads.f32(i));
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

/// A transposed convolution that strides: products of weights and input, added where they belong, an image a thread.
struct Scattered {
    t: Transposed,
    window: Window,
    weights: Weights,
    tile: Tile,
    bias: Option<usize>,
}

impl Scattered {
    /// Rows of the products of a group.
    fn rows(&self) -> usize {
        self.t.o * self.window.taps()
    }

    /// Floats of scratch a thread needs.
    fn each(&self) -> usize {
        self.tile.floats().saturating_add(self.rows().saturating_mul(self.tile.pitch))
    }
}

impl Kernel for Scattered {
    fn name(&self) -> &'static str {
        if self.weights.are_codes() { "conv-transpose-f32w8" } else { "conv-transpose-f32" }
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let (x, y) = (reads.f32(0), writes.f32(0));
        let Scattered { t, window, tile, .. } = self;
        let (positions, image, rows) = (window.positions(), window.pixels(), self.rows());
        let (packed, own) = scratch.split_at_mut(self.weights.scratch());
        let line = [1, 1, positions];
        let points =
            Window { input: line, kernel: [1; 3], output: line, stride: [1; 3], dilation: [1; 3], pad: [0; 3] };
        for g in 0..t.groups {
            let w = self.weights.group(g, packed, |i| reads.f32(i));
            pool.pieces_with(y, (t.groups * t.o * image).max(1), (own, self.each()), |n, y, own| {
                let (columns, products) = own.split_at_mut(tile.floats());
                let x = &x[(n * t.groups + g) * t.c * positions..][..t.c * positions];
                let y = &mut y[g * t.o * image..][..t.o * image];
                for o in 0..t.o {
                    y[o * image..][..image].fill(self.bias.map_or(0.0, |i| reads.f32(i)[g * t.o + o]));
                }
                multiply(&points, x, t.c, *tile, columns, |product, first| {
                    let (pitch, last) = (product.rows.step, product.part.end == t.c);
                    let places = first..first + product.n;
                    conv::product(&Product { m: rows, w, bias: None, y_stride: pitch, ..product }, products);
                    if last {
                        conv::add_columns(window, &products[..rows * pitch], 0..rows, places, pitch, y);
                    }
                });
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_is_too_large_to_be_laid_out_at_once_is_convolved_strip_by_strip() {
        for (input, stride, dilation, pad) in
            [([90, 80], [1, 1], 1, 1), ([131, 90], [2, 1], 1, 0), ([120, 101], [1, 2], 2, 3)]
        {
            let out = |a: usize| (input[a] + 2 * pad - (2 * dilation + 1)) / stride[a] + 1;
            let window = Window {
                input: [1, input[0], input[1]],
                kernel: [1, 3, 3],
                output: [1, out(0), out(1)],
                stride: [1, stride[0], stride[1]],
                dilation: [1, dilation, dilation],
                pad: [0, pad as isize, pad as isize],
            };
            let (c, m) = (9, 5);
            let (k, positions) = (c * window.taps(), window.positions());
            let strips = Strip::of(&window, c).unwrap();
            assert!(strips.len() > 1 && strips.iter().all(|s| s.shifted.floats(c) <= TILE), "{window:?}");
            let numbers = |n: usize| (0..n).map(|i| (i * 7919 % 1013) as f32 / 506.5 - 1.0).collect::<Vec<_>>();
            let (x, w) = (numbers(c * window.pixels()), numbers(m * k));
            let mut packed = vec![0.0; conv::packed_len(m, k)];
            conv::pack(m, k, |i, kk| w[i * k + kk], &mut packed);
            let mut want = vec![0.0; m * positions];
            conv::reference(&window, c, &x, m, &w, None, &mut want);
            let mut found = vec![f32::NAN; m * positions];
            let mut columns = vec![f32::NAN; strips.iter().map(|s| s.shifted.floats(c)).max().unwrap()];
            multiply_shifted(&window, &x, k, &strips, &mut columns, |product, first| {
                let whole = Product { m, w: Packed::F32(&packed), y_stride: positions, ..product };
                conv::product(&whole, &mut found[first..]);
            });
            for (i, (a, b)) in want.iter().zip(&found).enumerate() {
                assert!((a - b).abs() <= 2.0 * k as f32 * f32::EPSILON, "{window:?} at {i}: {a} {b}");
            }
        }
    }
}
