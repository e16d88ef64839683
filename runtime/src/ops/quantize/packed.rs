//! Kernel of `MatMulNBits` on `f32`. The weight is read as it stands in the file.
use hone_gpu::product as gpu;
use hone_kernels::epilogue::Activation;
use hone_kernels::gemm::{self, Gemm, Packed};
use hone_kernels::nbits::{self, ROWS, Shape, Weight};

use super::blocks::NBits;
use crate::ops::OpError;
use crate::plan::{At, Io, Kernel, Lowered, Lowering, Recorded, floats};
use crate::tensor::DType;

/// From so many rows on, a panel of the weight is dequantised once for all of them.
const MANY: usize = 16;

struct Blocks {
    m: usize,
    shape: Shape,
    /// `[N, blocks]`, or one for all.
    zero: Vec<f32>,
    bias: Option<usize>,
}

impl Blocks {
    fn scratch(&self) -> usize {
        let s = self.shape;
        if self.m < MANY { ROWS * s.split_len() } else { gemm::NR * (s.block + s.k + self.m) }
    }
}

impl Kernel for Blocks {
    fn name(&self) -> &'static str {
        match (self.m < MANY, self.shape.bits) {
            (true, 2) => "nbits2-rows",
            (true, 4) => "nbits4-rows",
            (true, _) => "nbits8-rows",
            (false, 2) => "nbits2-panels",
            (false, 4) => "nbits4-panels",
            (false, _) => "nbits8-panels",
        }
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let s = self.shape;
        let (x, y) = (reads.f32(0), writes.f32(0));
        let w = Weight { shape: s, codes: reads.bytes(1), scale: reads.f32(2), zero: &self.zero };
        let bias = self.bias.map_or(&[][..], |slot| reads.f32(slot));
        if self.m < MANY {
            for first in (0..self.m).step_by(ROWS) {
                let rows = ROWS.min(self.m - first);
                for (r, out) in scratch.chunks_exact_mut(s.split_len()).take(rows).enumerate() {
                    nbits::split(s, &x[(first + r) * s.k..][..s.k], out);
                }
                nbits::rows(&w, rows, scratch, bias, &mut y[first * s.n..][..rows * s.n]);
            }
            return;
        }
        let (spare, rest) = scratch.split_at_mut(gemm::NR * s.block);
        let (panel, out) = rest.split_at_mut(gemm::NR * s.k);
        for first in (0..s.n).step_by(gemm::NR) {
            nbits::panel(&w, first, spare, panel);
            let width = gemm::NR.min(s.n - first);
            let problem = Gemm {
                m: self.m,
                k: s.k,
                n: width,
                x,
                x_stride: s.k,
                w: Packed::F32(panel),
                bias: bias.get(first..first + width),
                accumulate: false,
            };
            gemm::gemm_on(pool, &problem, out);
            for (row, y) in out.chunks_exact(width).zip(y.chunks_exact_mut(s.n)) {
                y[first..first + width].copy_from_slice(row);
            }
        }
    }
}

/// `MatMulNBits` of four bits on a GPU, the weight four bits there too.
pub(super) fn recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let f32 = |i: usize| !l.has(i) || l.dtype(i) == Some(DType::F32);
    let g = NBits::of(l.attrs)?;
    let (Some(codes), Some(scale)) = (l.constant(1), l.constant(2)) else { return Ok(None) };
    let known = !l.has(3) || l.constant(3).is_some();
    if !f32(0) || !f32(2) || !f32(5) || codes.dtype() != DType::U8 || l.has(4) || g.bits != 4 || !known {
        return Ok(None);
    }
    let zeros = l.constant(3).map(|t| (t.dtype(), t.len()));
    g.check(codes.len(), scale.len(), zeros)?;
    let zero = l.constant(3).cloned();
    scale.as_f32()?;
    // All that the forms depend on, besides the constants.
    let numbers = [g.k, g.n, g.block, g.bits];
    let (bytes, row, k, n, blocks) = (codes.clone(), g.row_bytes(), g.k, g.n, g.blocks);
    let packed = move || {
        let bytes = bytes.data().as_bytes();
        gpu::pack_4(k, n, |k, j| (bytes[j * row + k / 2] >> (4 * (k % 2))) & 15)
    };
    let packed = l.image("gpu four bits", &[codes], &numbers, gpu::packed_len(k, n) / 2, packed);
    let len = 4 * gpu::packed_len(blocks, n);
    let from = scale.clone();
    let scales = move || gpu::pack(blocks, n, |b, j| floats(&from)[j * blocks + b]);
    let scales = l.image("gpu scales of blocks", &[scale], &numbers, len, scales);
    let from = scale.clone();
    let of: Vec<_> = [scale].into_iter().chain(&zero).collect();
    let zeros = zero.clone();
    let offsets = move || {
        let zero = g.zeros(zeros.as_deref());
        let zero = |j: usize, b: usize| zero[if zero.len() == 1 { 0 } else { j * blocks + b }];
        gpu::pack(blocks, n, |b, j| floats(&from)[j * blocks + b] * zero(j, b))
    };
    let offsets = l.image("gpu offsets of blocks", &of, &numbers, len, offsets);
    let mut at = vec![At::In(0), packed, scales, offsets];
    at.extend(l.has(5).then_some(At::In(5)));
    at.push(At::Out(0));
    let product = gpu::Product {
        m: l.shape(0)?.iter().product::<usize>() / g.k,
        n: g.n,
        k: g.k,
        left: gpu::Left::Matrix { row: g.k, step: 1 },
        right: gpu::Right::Packed4 { block: g.block },
        y_row: g.n,
        batch: gpu::Batch::one(),
        bias: l.has(5),
        residual: false,
        alpha: 1.0,
        activation: Activation::None,
        matrices: l.matrices,
    };
    Ok(Recorded::one(product.call(), at))
}

/// `MatMulNBits`.
pub(super) fn lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let f32 = |i: usize| !l.has(i) || l.dtype(i) == Some(DType::F32);
    if !f32(0) || !f32(2) || !f32(5) || l.dtype(1) != Some(DType::U8) || l.has(4) {
        return Ok(None);
    }
    let g = NBits::of(l.attrs)?;
    g.shape(l.shape(0)?)?;
    let len = |i: usize| -> Result<usize, OpError> { Ok(l.shape(i)?.iter().product()) };
    let zeros = match (l.has(3), l.dtype(3)) {
        (true, Some(t)) => Some((t, len(3)?)),
        _ => None,
    };
    g.check(len(1)?, len(2)?, zeros)?;
    if l.has(5) && len(5)? != g.n {
        return Err(OpError::shape("bias of MatMulNBits", g.n, l.shape(5)?));
    }
    let zero = match (l.has(3), l.constant(3)) {
        (true, None) => return Ok(None),
        (true, Some(z)) => g.zeros(Some(z)),
        (false, _) => vec![(1u32 << (g.bits - 1)) as f32],
    };
    let mut reads = vec![0, 1, 2];
    let bias = l.has(5).then(|| {
        reads.push(5);
        3
    });
    let bytes = zero.len() * 4;
    let m = len(0)? / g.k;
    let k = Blocks { m, shape: Shape { k: g.k, n: g.n, bits: g.bits, block: g.block }, zero, bias };
    let scratch = k.scratch();
    Ok(Some(Lowered::new(k, reads).with_scratch(scratch).with_weights(bytes)))
}
