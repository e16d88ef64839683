//! Convolution with channels last, ending in a sum and an activation.
use std::ops::Range;
use std::sync::Arc;

use hone_gpu::product as gpu;
use hone_gpu::window::{Of, Windows};
use hone_kernels::bf16::{self, Pair};
use hone_kernels::conv::Window;
use hone_kernels::epilogue::{Activation, Epilogue};
use hone_kernels::gemm::{self, Packed};
use hone_kernels::nhwc;
use hone_kernels::threads::Pool;

use super::lower::Operands;
use super::{Conv, FUSED_CONV, activation};
use crate::ops::internal::{DOMAIN, first, reference_last, shape_last};
use crate::ops::{Attrs, OpDef, OpError};
use crate::plan::{At, Bf16, Grid, Io, Kept, Kernel, Lines, Lowered, Lowering, Reads, Recorded, Weight};
use crate::tensor::{DType, Data};

/// `activation(Conv(X, W, B) + Z)` with `X`, `Z` and the result channels last; `W` as in the file.
pub(crate) static CONV: OpDef = OpDef::new(
    "ConvLast",
    "convolution with channels last, an optional sum with Z, and an activation",
    |attrs, inputs| shape_last(&FUSED_CONV, attrs, inputs, &[3]),
    |attrs, inputs| reference_last(&FUSED_CONV, attrs, inputs, &[3]),
)
.domain(DOMAIN)
.kernel(lower)
.gpu(recorded);

/// Whether a convolution of `x: [N, C, …]` with constant weights of that shape has a kernel here.
pub(crate) fn takes(attrs: &Attrs, x: &[usize], w: &[usize]) -> bool {
    Conv::of(attrs, x, w, None).is_ok_and(|c| window(&c).is_some())
}

fn window(c: &Conv) -> Option<Window> {
    c.geometry.window().filter(|w| nhwc::supports(w, c.c * c.groups, c.groups))
}

fn lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let floats = [0, 2, 3].into_iter().all(|i| !l.has(i) || l.dtype(i) == Some(DType::F32));
    let Some(weight) = l.weight(1).filter(|_| floats) else { return Ok(None) };
    let conv = Conv::of(l.attrs, &first(l.shape(0)?), l.shape(1)?, if l.has(2) { Some(l.shape(2)?) } else { None })?;
    let Some(window) = window(&conv) else { return Ok(None) };
    let Some(weights) = Weights::of(l, &conv, window.taps(), &weight, l.bf16 == Bf16::Weights)? else {
        return Ok(None);
    };
    let mut operands = Operands::new(l);
    let (bias, residual) = (operands.read(2), operands.read(3));
    let bytes = weights.bytes();
    let kernel = Last { conv, window, weights, bias, residual, activation: activation(l.attrs)? };
    Ok(Some(Lowered::new(kernel, operands.reads).with_weights(bytes)))
}

fn recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let floats = [0, 2, 3].into_iter().all(|i| !l.has(i) || l.dtype(i) == Some(DType::F32));
    let Some(weight) = l.weight(1).filter(|_| floats) else { return Ok(None) };
    let c = Conv::of(l.attrs, &first(l.shape(0)?), l.shape(1)?, if l.has(2) { Some(l.shape(2)?) } else { None })?;
    let Some(window) = window(&c) else { return Ok(None) };
    let (taps, per, activation) = (window.taps(), c.o / c.groups, activation(l.attrs)?);
    let (bias, residual) = (l.has(2), l.has(3));
    let mut rest: Vec<At> = [2, 3].into_iter().filter(|&i| l.has(i)).map(At::In).collect();
    rest.push(At::Out(0));
    if depthwise(&c) {
        let Some(Weights::Depthwise(w)) = Weights::of(l, &c, taps, &weight, false)? else { return Ok(None) };
        let of = Of::Depthwise { bias, residual, activation };
        let call = Windows { window, batch: c.n, channels: c.o, first: false, of }.call();
        return Ok(Recorded::one(call, [vec![At::In(0), At::floats(&w)], rest].concat()));
    }
    let k = taps * c.c;
    // Row `o` has the channels of a group innermost; in the file the kernel positions are.
    let at = |g: usize, k: usize, j: usize| ((g * per + j) * c.c + k % c.c) * taps + k / c.c;
    let mut operands = vec![At::In(0)];
    let right = match &weight {
        Weight::F32(w) => {
            let w = w.as_f32()?;
            let all = (0..c.groups).flat_map(|g| gpu::pack(k, per, |k, j| w[at(g, k, j)]));
            operands.push(At::Weights(all.collect()));
            gpu::Right::Packed
        }
        Weight::Q8 { q, scale, axis } => {
            let Data::I8(w) = q.data() else { return Ok(None) };
            let scale = match scale.len() {
                1 => vec![scale[0]; c.o],
                n if n == c.o && *axis == 0 => scale.clone(),
                _ => return Ok(None),
            };
            let all = (0..c.groups).flat_map(|g| gpu::pack_i8(k, per, |k, j| w[at(g, k, j)]));
            operands.extend([At::Weights(all.collect()), At::floats(&scale)]);
            gpu::Right::PackedI8
        }
    };
    let pixel = c.c * c.groups;
    let left = if window.is_pointwise() && c.groups == 1 {
        gpu::Left::Matrix { row: pixel, step: 1 }
    } else {
        gpu::Left::Window { window, channels: c.c, pixel }
    };
    let product = gpu::Product {
        m: c.n * window.positions(),
        n: per,
        k,
        left,
        right,
        y_row: c.o,
        batch: gpu::Batch {
            lengths: [1, 1, 1, c.groups],
            a: [0, 0, 0, c.c],
            w: [0, 0, 0, gpu::packed_len(k, per)],
            y: [0, 0, 0, per],
        },
        bias,
        residual,
        alpha: 1.0,
        activation,
    };
    Ok(Recorded::one(product.call(), [operands, rest].concat()))
}

/// Weights as the kernels read them.
enum Weights {
    /// `[taps, C]`.
    Depthwise(Arc<Kept<f32>>),
    F32(Arc<Kept<f32>>),
    Bf16(Arc<Kept<Pair>>),
    Q8 {
        q: Arc<Kept<i8>>,
        scale: Vec<f32>,
    },
}

impl Weights {
    /// Floats in bf16 where that is wanted and they are multiplied in tiles. `None` for scales that run along another axis than the
    /// channels out.
    fn of(
        l: &Lowering<'_>,
        c: &Conv,
        taps: usize,
        weight: &Weight,
        wants_bf16: bool,
    ) -> Result<Option<Weights>, OpError> {
        let per = c.o / c.groups;
        // Row `o` has the channels of a group innermost; in the file the kernel positions are.
        let at = |o: usize, k: usize| (o * c.c + k % c.c) * taps + k / c.c;
        Ok(Some(match weight {
            Weight::F32(w) => {
                let w = w.as_f32()?;
                if depthwise(c) {
                    let turned = (0..taps * c.o).map(|i| w[i % c.o * taps + i / c.o]);
                    Weights::Depthwise(l.packs.keep(turned.collect()))
                } else if wants_bf16 {
                    let pack = |j: &dyn Fn(usize, usize) -> f32, out: &mut [Pair]| bf16::pack(per, taps * c.c, j, out);
                    let len = bf16::packed_len(per, taps * c.c);
                    Weights::Bf16(l.packs.keep(packed(c, per, len, |o, k| w[at(o, k)], pack)))
                } else {
                    Weights::F32(l.packs.keep(packed_plain(c, per, taps, |o, k| w[at(o, k)])))
                }
            }
            Weight::Q8 { q, scale, axis } => {
                let Data::I8(w) = q.data() else { return Ok(None) };
                let scale = match scale.len() {
                    1 => vec![scale[0]; c.o],
                    n if n == c.o && *axis == 0 => scale.clone(),
                    _ => return Ok(None),
                };
                if depthwise(c) {
                    // Few enough to be expanded.
                    let of = |i: usize| f32::from(w[i % c.o * taps + i / c.o]) * scale[i % c.o];
                    Weights::Depthwise(l.packs.keep((0..taps * c.o).map(of).collect()))
                } else {
                    Weights::Q8 { q: l.packs.keep(packed_plain(c, per, taps, |o, k| w[at(o, k)])), scale }
                }
            }
        }))
    }

    fn bytes(&self) -> usize {
        match self {
            Weights::Depthwise(w) | Weights::F32(w) => w.len() * 4,
            Weights::Bf16(w) => w.len() * 4,
            Weights::Q8 { q, scale } => q.len() + scale.len() * 4,
        }
    }
}

fn depthwise(c: &Conv) -> bool {
    c.c == 1 && c.groups > 1 && c.o == c.groups
}

/// The matrices of all groups, one after the other.
fn packed_plain<T: Copy + Default>(c: &Conv, per: usize, taps: usize, w: impl Fn(usize, usize) -> T) -> Vec<T> {
    let k = c.c * taps;
    packed(c, per, gemm::packed_len(per, k), w, |w, out| gemm::pack(per, k, w, out))
}

/// The same by any packing of one matrix, which takes `len` elements.
fn packed<T, P: Copy + Default>(
    c: &Conv,
    per: usize,
    len: usize,
    w: impl Fn(usize, usize) -> T,
    pack: impl Fn(&dyn Fn(usize, usize) -> T, &mut [P]),
) -> Vec<P> {
    let mut out = vec![P::default(); c.groups * len];
    for (g, out) in out.chunks_mut(len.max(1)).enumerate() {
        pack(&|j, kk| w(g * per + j, kk), out);
    }
    out
}

struct Last {
    conv: Conv,
    window: Window,
    weights: Weights,
    bias: Option<usize>,
    residual: Option<usize>,
    activation: Activation,
}

impl Kernel for Last {
    fn name(&self) -> &'static str {
        match self.weights {
            Weights::Depthwise(_) => "conv-last-depthwise-f32",
            Weights::F32(_) => "conv-last-f32",
            Weights::Bf16(_) => "conv-last-f32wbf16",
            Weights::Q8 { .. } => "conv-last-f32w8",
        }
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        let residual = self.residual.map(|i| reads.f32(i));
        self.convolve(self.window, self.conv.n, reads.f32(0), reads, residual, pool, writes.f32(0));
    }

    fn lines(&self) -> Option<&dyn Lines> {
        (self.window.is_flat() && self.residual.is_none()).then_some(self)
    }
}

impl Lines for Last {
    fn grid(&self) -> Grid {
        let c = &self.conv;
        Grid::of(&self.window, c.n, c.c * c.groups * 4, c.o * 4)
    }

    fn meets(&self, of: Range<usize>) -> Range<usize> {
        self.window.lines(of)
    }

    fn make(&self, of: Range<usize>, x: &[u8], reads: &Reads<'_>, pool: &Pool, y: &mut [u8]) {
        let (x, y) = (bytemuck::cast_slice(x), bytemuck::cast_slice_mut(y));
        self.convolve(self.window.part(of), 1, x, reads, None, pool, y);
    }
}

impl Last {
    fn convolve(
        &self,
        window: Window,
        batch: usize,
        x: &[f32],
        reads: &Reads<'_>,
        residual: Option<&[f32]>,
        pool: &Pool,
        y: &mut [f32],
    ) {
        let c = &self.conv;
        let bias = self.bias.map(|i| reads.f32(i));
        let epilogue = Epilogue { residual, after: false, activation: self.activation };
        let w = match &self.weights {
            Weights::Depthwise(w) => {
                let d = nhwc::Depthwise { window, batch, channels: c.o, x, w, bias, epilogue };
                return nhwc::depthwise(pool, &d, y);
            }
            Weights::F32(w) => Packed::F32(w),
            Weights::Bf16(w) => Packed::Bf16(w),
            Weights::Q8 { q, scale } => Packed::I8 { q, scale },
        };
        let (channels, outputs, groups) = (c.c * c.groups, c.o, c.groups);
        nhwc::conv(pool, &nhwc::Conv { window, batch, channels, outputs, groups, x, w, bias, epilogue }, y);
    }
}
