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
use hone_kernels::winograd::{self, Shape};

use super::lower::Operands;
use super::{Conv, FUSED_CONV, activation};
use crate::ops::internal::{DOMAIN, first, reference_last, shape_last};
use crate::ops::{Attrs, OpDef, OpError};
use crate::plan::{At, Bf16, Grid, Io, Kept, Kernel, Lines, Lowered, Lowering, Reads, Recorded, Weight, bytes, floats};
use crate::tensor::DType;

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
    let plain = [0, 2, 3].into_iter().all(|i| !l.has(i) || l.dtype(i) == Some(DType::F32));
    let Some(weight) = l.weight(1).filter(|_| plain) else { return Ok(None) };
    let conv = Conv::of(l.attrs, &first(l.shape(0)?), l.shape(1)?, if l.has(2) { Some(l.shape(2)?) } else { None })?;
    let Some(window) = window(&conv) else { return Ok(None) };
    let (mut operands, activation, bf16) = (Operands::new(l), activation(l.attrs)?, l.bf16 == Bf16::Weights);
    let (bias, residual) = (operands.read(2), operands.read(3));
    if !bf16 && let Some((shape, weights)) = squares(l, &conv, window, &weight) {
        let (scratch, bytes) = (shape.scratch_len(l.threads), weights.len() * 4);
        let kernel = Squares { shape, weights, bias, residual, activation };
        return Ok(Some(Lowered::new(kernel, operands.reads).with_scratch(scratch).with_weights(bytes)));
    }
    let Some(weights) = Weights::of(l, &conv, window.taps(), &weight, bf16)? else { return Ok(None) };
    let bytes = weights.bytes();
    let kernel = Last { conv, window, weights, bias, residual, activation };
    Ok(Some(Lowered::new(kernel, operands.reads).with_weights(bytes)))
}

fn recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let plain = [0, 2, 3].into_iter().all(|i| !l.has(i) || l.dtype(i) == Some(DType::F32));
    let Some(weight) = l.weight(1).filter(|_| plain) else { return Ok(None) };
    let c = Conv::of(l.attrs, &first(l.shape(0)?), l.shape(1)?, if l.has(2) { Some(l.shape(2)?) } else { None })?;
    let Some(window) = window(&c) else { return Ok(None) };
    let (taps, per, activation) = (window.taps(), c.o / c.groups, activation(l.attrs)?);
    let (bias, residual) = (l.has(2), l.has(3));
    let mut rest: Vec<At> = [2, 3].into_iter().filter(|&i| l.has(i)).map(At::In).collect();
    rest.push(At::Out(0));
    if depthwise(&c) {
        let Some(w) = expanded(l, &c, taps, &weight).map(|w| l.now(w)) else { return Ok(None) };
        let of = Of::Depthwise { bias, residual, activation };
        let call = Windows { window, batch: c.n, channels: c.o, first: false, of }.call();
        return Ok(Recorded::one(call, [vec![At::In(0), At::floats(&w)], rest].concat()));
    }
    let (k, groups, lie) = (taps * c.c, c.groups, Lie { per, channels: c.c, taps });
    let (numbers, len) = ([groups, per, c.c, taps], groups * gpu::packed_len(k, per));
    let mut operands = vec![At::In(0)];
    let right = match &weight {
        Weight::F32(w) => {
            let (name, bytes, right) = match l.bf16 {
                _ if l.f16 => ("gpu convolution in f16", 2, gpu::Right::PackedF16),
                Bf16::Weights => ("gpu convolution in bf16", 2, gpu::Right::PackedBf16),
                _ => ("gpu convolution", 4, gpu::Right::Packed),
            };
            let from = w.clone();
            let make = move || {
                let w = floats(&from);
                let group = |g: usize| {
                    let at = |k: usize, j: usize| w[lie.at(g, j, k)];
                    match right {
                        gpu::Right::PackedF16 => gpu::pack_f16(k, per, at),
                        gpu::Right::PackedBf16 => gpu::pack_bf16(k, per, at),
                        _ => gpu::pack(k, per, at),
                    }
                };
                (0..groups).flat_map(group).collect()
            };
            operands.push(l.image(name, &[w], &numbers, bytes * len, make));
            right
        }
        Weight::Q8 { q, .. } => {
            let Some(scale) = scales(&c, &weight) else { return Ok(None) };
            let from = q.clone();
            let make = move || {
                let w = bytes(&from);
                (0..groups).flat_map(|g| gpu::pack_i8(k, per, |k, j| w[lie.at(g, j, k)])).collect()
            };
            operands.extend([l.image("gpu convolution", &[q], &numbers, len, make), At::floats(&scale)]);
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
        matrices: l.matrices,
    };
    Ok(Recorded::one(product.call(), [operands, rest].concat()))
}

/// The shape and the transformed weights of a convolution that is faster by squares, where there is memory for them.
fn squares(l: &Lowering<'_>, c: &Conv, window: Window, weight: &Weight) -> Option<(Shape, Arc<Kept<f32>>)> {
    let Weight::F32(w) = weight else { return None };
    let shape = Shape::best(window, c.n, c.c, c.o).filter(|_| c.groups == 1 && !l.lean)?;
    let (from, len, lie) = (w.clone(), shape.packed_len(), Lie { per: c.o, channels: c.c, taps: window.taps() });
    let numbers = [c.o, c.c, shape.square.out()];
    let w = l.packed("convolution by squares", &[w], &numbers, len, move || {
        let (w, mut out) = (floats(&from), vec![0.0; len]);
        shape.pack(|o, tap, channel| w[lie.at(0, o, tap * lie.channels + channel)], &mut out);
        out
    });
    Some((shape, w))
}

/// A convolution by squares, which goes through a whole image at once.
struct Squares {
    shape: Shape,
    weights: Arc<Kept<f32>>,
    bias: Option<usize>,
    residual: Option<usize>,
    activation: Activation,
}

impl Kernel for Squares {
    fn name(&self) -> &'static str {
        "conv-last-winograd-f32"
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let residual = self.residual.map(|i| reads.f32(i));
        let epilogue = Epilogue { residual, after: false, activation: self.activation };
        let bias = self.bias.map(|i| reads.f32(i));
        let c = winograd::Conv { x: reads.f32(0), w: &self.weights, bias, epilogue };
        self.shape.conv(pool, &c, scratch, writes.f32(0));
    }
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

/// Where the weights of a group are in the file, where the kernel positions are innermost. A row of a packed matrix has the
/// channels innermost.
#[derive(Clone, Copy)]
struct Lie {
    /// Channels out.
    per: usize,
    /// Channels in.
    channels: usize,
    taps: usize,
}

impl Lie {
    /// The place of element `k` of row `j` of group `g`.
    fn at(self, g: usize, j: usize, k: usize) -> usize {
        ((g * self.per + j) * self.channels + k % self.channels) * self.taps + k / self.channels
    }
}

/// A scale for each channel out; `None` for scales that run along another axis.
fn scales(c: &Conv, weight: &Weight) -> Option<Vec<f32>> {
    match weight {
        Weight::F32(_) => None,
        Weight::Q8 { scale, .. } if scale.len() == 1 => Some(vec![scale[0]; c.o]),
        Weight::Q8 { scale, axis, .. } => (scale.len() == c.o && *axis == 0).then(|| scale.clone()),
    }
}

/// Weights of a depthwise convolution `[taps, C]`, which are few enough to be floats.
fn expanded(l: &Lowering<'_>, c: &Conv, taps: usize, weight: &Weight) -> Option<Arc<Kept<f32>>> {
    let (o, len) = (c.o, taps * c.o);
    let (how, numbers) = ("depthwise channels last", [taps, o]);
    let place = move |i: usize| i % o * taps + i / o;
    Some(match weight {
        Weight::F32(w) => {
            let from = w.clone();
            let make = move || (0..len).map(|i| floats(&from)[place(i)]).collect();
            l.packed(how, &[w], &numbers, len, make)
        }
        Weight::Q8 { q, .. } => {
            let (scale, from) = (scales(c, weight)?, q.clone());
            let numbers = [&numbers[..], &scale.iter().map(|s| s.to_bits() as usize).collect::<Vec<_>>()].concat();
            let make = move || (0..len).map(|i| f32::from(bytes(&from)[place(i)]) * scale[i % o]).collect();
            l.packed(how, &[q], &numbers, len, make)
        }
    })
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
        if depthwise(c) {
            return Ok(expanded(l, c, taps, weight).map(Weights::Depthwise));
        }
        let (per, k, groups) = (c.o / c.groups, c.c * taps, c.groups);
        let lie = Lie { per, channels: c.c, taps };
        let numbers = [groups, per, c.c, taps];
        Ok(Some(match weight {
            Weight::F32(w) if wants_bf16 => {
                let (from, len) = (w.clone(), bf16::packed_len(per, k));
                Weights::Bf16(l.packed("convolution in bf16", &[w], &numbers, groups * len, move || {
                    let w = floats(&from);
                    matrices(groups, len, |g, out| bf16::pack(per, k, |j, kk| w[lie.at(g, j, kk)], out))
                }))
            }
            Weight::F32(w) => {
                let (from, len) = (w.clone(), gemm::packed_len(per, k));
                Weights::F32(l.packed("convolution", &[w], &numbers, groups * len, move || {
                    let w = floats(&from);
                    matrices(groups, len, |g, out| gemm::pack(per, k, |j, kk| w[lie.at(g, j, kk)], out))
                }))
            }
            Weight::Q8 { q, .. } => {
                let Some(scale) = scales(c, weight) else { return Ok(None) };
                let (from, len) = (q.clone(), gemm::packed_len(per, k));
                let q = l.packed("convolution", &[q], &numbers, groups * len, move || {
                    let w = bytes(&from);
                    matrices(groups, len, |g, out| gemm::pack(per, k, |j, kk| w[lie.at(g, j, kk)], out))
                });
                Weights::Q8 { q, scale }
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

/// The matrices of all groups, one after the other, each of `len` elements.
fn matrices<P: Copy + Default>(groups: usize, len: usize, pack: impl Fn(usize, &mut [P])) -> Vec<P> {
    let mut out = vec![P::default(); groups * len];
    out.chunks_mut(len.max(1)).enumerate().for_each(|(g, out)| pack(g, out));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Graph, Node, Op};
    use crate::ops::Attr;
    use crate::plan::{RunOptions, Runner};
    use crate::tensor::Tensor;

    fn noise(shape: &[usize], seed: u32) -> Tensor {
        let mut s = seed;
        let mut one = || {
            s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (s >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        Tensor::f32(shape, (0..shape.iter().product()).map(|_| one()).collect()).unwrap()
    }

    #[test]
    fn a_convolution_by_squares_is_the_formula_and_so_it_is_on_several_threads() {
        for (batch, residual) in [(1, false), (3, true)] {
            let mut graph = Graph::default();
            let x = graph.add_value("x", None, None);
            let w = graph.add_value("w", None, Some(Arc::new(noise(&[24, 16, 3, 3], 1))));
            let b = graph.add_value("b", None, Some(Arc::new(noise(&[24], 2))));
            let z = residual.then(|| graph.add_value("z", None, None));
            let y = graph.add_value("y", None, None);
            (graph.inputs, graph.outputs) = ([Some(x), z].into_iter().flatten().collect(), vec![y]);
            let attrs = Attrs::of([("pads", Attr::Ints(vec![1; 4])), ("activation", Attr::Str("Relu".into()))]);
            let op = Op::Own(&CONV, Arc::new(attrs));
            let inputs = vec![Some(x), Some(w), Some(b), z];
            graph.nodes.push(Node { name: "conv".into(), op, inputs, outputs: vec![Some(y)] });
            let graph = Arc::new(graph);
            let given = [noise(&[batch, 19, 26, 16], 3), noise(&[batch, 19, 26, 24], 4)];
            let given: Vec<&Tensor> = given.iter().take(graph.inputs.len()).collect();
            let run = |reference, threads| {
                let pool = Arc::new(Pool::new(threads));
                let mut runner = Runner::new(graph.clone(), RunOptions { reference, pool, ..RunOptions::default() });
                let y = runner.run(&given).unwrap().remove(0);
                let kernel = runner.last_plan().unwrap().steps()[0].kernel;
                (y.as_f32().unwrap().to_vec(), kernel)
            };
            let ((want, _), (one, kernel), (many, _)) = (run(true, 1), run(false, 1), run(false, 3));
            assert_eq!(kernel, "conv-last-winograd-f32");
            assert_eq!(one, many);
            for (i, (a, b)) in want.iter().zip(&one).enumerate() {
                // As derived where the kernel is tested: 31 · (C + 12 √C) · ε / 2, six times over.
                assert!((a - b).abs() < 7e-4, "{i}: {a} {b}");
            }
        }
    }
}
