//! Products: `MatMul`, `Gemm`, `Einsum` and their fused forms; determinants and inverses.
//!
//! All products are one [`Contraction`]: batches of `Σ_k a[i, k] · b[k, j]` over operands that lie as they lie.
use std::sync::Arc;

use hone_gpu::product as gpu;
use hone_kernels::bf16::{self, Pair};
use hone_kernels::gemm::{self, Packed};

use super::{OpDef, OpError};
use crate::plan::{At, Bf16, Kept, Lowering, Weight, bytes, floats};
use crate::tensor::DType;

mod backward;
pub(in crate::ops) use backward::frozen_codes;
mod contraction;
pub(in crate::ops) mod dense;
mod einsum;
mod fused;
mod linear;
mod lying;
mod product;

use contraction::Contraction;

/// The rows of this family.
pub(super) static OPS: &[&OpDef] = &[
    &product::MATMUL,
    &product::GEMM,
    &product::FUSED_MATMUL,
    &product::TRANSPOSE_MATMUL,
    &fused::FUSED_GEMM,
    &fused::GEMM_FAST_GELU,
    &einsum::EINSUM,
    &linear::DET,
    &linear::INVERSE,
];

/// A frozen matrix packed for [`gemm`].
pub(super) enum PackedMatrix {
    F32(Arc<Kept<f32>>),
    Bf16(Arc<Kept<Pair>>),
    Q8 { q: Arc<Kept<i8>>, scale: Vec<f32> },
}

/// Where the elements of a matrix are in a weight, and the numbers that say so.
pub(super) struct Lie<'n, F> {
    /// The place of element `(kk, j)` of `[K, N]`.
    pub(super) at: F,
    /// All that the places depend on.
    pub(super) numbers: &'n [usize],
}

/// A constant matrix as a product on a GPU has it, and the operands it then reads. `None` when the scales of a quantised weight
/// do not run along `axis`, the columns.
pub(super) fn on_gpu(
    l: &Lowering<'_>,
    weight: &Weight,
    k: usize,
    n: usize,
    axis: usize,
    lie: Lie<'_, impl Fn(usize, usize) -> usize + Send + Sync + 'static>,
) -> Result<Option<(gpu::Right, Vec<At>)>, OpError> {
    let (numbers, at) = ([&[k, n], lie.numbers].concat(), lie.at);
    let len = gpu::packed_len(k, n);
    Ok(match weight {
        Weight::F32(t) => {
            t.as_f32()?;
            let from = t.clone();
            if l.f16 {
                let make = move || gpu::pack_f16(k, n, |k, j| floats(&from)[at(k, j)]);
                let image = l.image("gpu matrix in f16", &[t], &numbers, 2 * len, make);
                return Ok(Some((gpu::Right::PackedF16, vec![image])));
            }
            if l.bf16 == Bf16::Weights {
                let make = move || gpu::pack_bf16(k, n, |k, j| floats(&from)[at(k, j)]);
                let image = l.image("gpu matrix in bf16", &[t], &numbers, 2 * len, make);
                return Ok(Some((gpu::Right::PackedBf16, vec![image])));
            }
            let make = move || gpu::pack(k, n, |k, j| floats(&from)[at(k, j)]);
            Some((gpu::Right::Packed, vec![l.image("gpu matrix", &[t], &numbers, 4 * len, make)]))
        }
        Weight::Q8 { q, scale, axis: along } => {
            if q.dtype() != DType::I8 || scale.len() != 1 && (*along != axis || scale.len() != n) {
                return Ok(None);
            }
            let scale: Vec<f32> = (0..n).map(|j| scale[if scale.len() == 1 { 0 } else { j }]).collect();
            let from = q.clone();
            let make = move || gpu::pack_i8(k, n, |k, j| bytes(&from)[at(k, j)]);
            Some((gpu::Right::PackedI8, vec![l.image("gpu matrix", &[q], &numbers, len, make), At::floats(&scale)]))
        }
    })
}

impl PackedMatrix {
    /// Packs, in bf16 where that is wanted, `[n, k]` whose element `(j, kk)` lies in `weight` where the element `(kk, j)` of its transpose
    /// does. `None` when the scales of a quantised weight do not run along `j`.
    pub(super) fn new(
        l: &Lowering<'_>,
        weight: &Weight,
        n: usize,
        k: usize,
        row_axis: usize,
        row0: usize,
        lie: Lie<'_, impl Fn(usize, usize) -> usize + Send + 'static>,
    ) -> Result<Option<PackedMatrix>, OpError> {
        let (numbers, at) = ([&[n, k], lie.numbers].concat(), lie.at);
        Ok(Some(match weight {
            Weight::F32(t) if l.bf16 == Bf16::Weights => {
                t.as_f32()?;
                let (from, len) = (t.clone(), bf16::packed_len(n, k));
                PackedMatrix::Bf16(l.packed("matrix in bf16", &[t], &numbers, len, move || {
                    let (v, mut packed) = (floats(&from), vec![Pair::default(); len]);
                    bf16::pack(n, k, |j, kk| v[at(kk, j)], &mut packed);
                    packed
                }))
            }
            Weight::F32(t) => {
                t.as_f32()?;
                let (from, len) = (t.clone(), gemm::packed_len(n, k));
                PackedMatrix::F32(l.packed("matrix", &[t], &numbers, len, move || {
                    let (v, mut packed) = (floats(&from), vec![0.0; len]);
                    gemm::pack(n, k, |j, kk| v[at(kk, j)], &mut packed);
                    packed
                }))
            }
            Weight::Q8 { q, scale, axis } => {
                if q.dtype() != DType::I8 || scale.len() != 1 && *axis != row_axis {
                    return Ok(None);
                }
                if scale.len() != 1 && scale.len() != q.shape()[*axis] {
                    return Err(OpError::Shape {
                        what: format!("scales along axis {axis} of weights {:?}", q.shape()),
                        expected: q.shape()[*axis].to_string(),
                        found: scale.len().to_string(),
                    });
                }
                let (from, len) = (q.clone(), gemm::packed_len(n, k));
                let q = l.packed("matrix", &[q], &numbers, len, move || {
                    let (v, mut packed) = (bytes(&from), vec![0; len]);
                    gemm::pack(n, k, |j, kk| v[at(kk, j)], &mut packed);
                    packed
                });
                let scale = (0..n).map(|j| if scale.len() == 1 { scale[0] } else { scale[row0 + j] }).collect();
                PackedMatrix::Q8 { q, scale }
            }
        }))
    }

    pub(super) fn view(&self) -> Packed<'_> {
        match self {
            PackedMatrix::F32(w) => Packed::F32(w),
            PackedMatrix::Bf16(w) => Packed::Bf16(w),
            PackedMatrix::Q8 { q, scale } => Packed::I8 { q, scale },
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            PackedMatrix::F32(w) => w.len() * 4,
            PackedMatrix::Bf16(w) => w.len() * 4,
            PackedMatrix::Q8 { q, scale } => q.len() + scale.len() * 4,
        }
    }

    /// The kernel name that says what the weights are.
    pub(super) fn label(&self, f32: &'static str, int8: &'static str, bf16: &'static str) -> &'static str {
        match self {
            PackedMatrix::F32(_) => f32,
            PackedMatrix::Q8 { .. } => int8,
            PackedMatrix::Bf16(_) => bf16,
        }
    }
}
