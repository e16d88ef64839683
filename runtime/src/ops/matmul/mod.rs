//! Products: `MatMul`, `Gemm`, `Einsum` and their fused forms; determinants and inverses.
//!
//! All products are one [`Contraction`]: batches of `Σ_k a[i, k] · b[k, j]` over operands that lie as they lie.
use std::sync::Arc;

use hone_gpu::product as gpu;
use hone_kernels::bf16::{self, Pair};
use hone_kernels::gemm::{self, Packed};

use super::{OpDef, OpError};
use crate::plan::{At, Bf16, Kept, Lowering, Weight};

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
pub(super) struct PackedMatrix {
    f32: Arc<Kept<f32>>,
    bf16: Arc<Kept<Pair>>,
    q: Arc<Kept<i8>>,
    scale: Vec<f32>,
}

/// A constant matrix as a product on a GPU has it, and the operands it then reads: element `(k, j)` is element `at(k, j)` of
/// `weight`. `None` when the scales of a quantised weight do not run along `axis`, the columns.
pub(super) fn on_gpu(
    weight: &Weight,
    k: usize,
    n: usize,
    axis: usize,
    at: impl Fn(usize, usize) -> usize,
) -> Result<Option<(gpu::Right, Vec<At>)>, OpError> {
    Ok(match weight {
        Weight::F32(t) => {
            let v = t.as_f32()?;
            Some((gpu::Right::Packed, vec![At::Weights(gpu::pack(k, n, |k, j| v[at(k, j)]).into())]))
        }
        Weight::Q8 { q, scale, axis: along } => {
            let crate::tensor::Data::I8(v) = q.data() else { return Ok(None) };
            if scale.len() != 1 && (*along != axis || scale.len() != n) {
                return Ok(None);
            }
            let scale: Vec<f32> = (0..n).map(|j| scale[if scale.len() == 1 { 0 } else { j }]).collect();
            let w = At::Weights(gpu::pack_i8(k, n, |k, j| v[at(k, j)]).into());
            Some((gpu::Right::PackedI8, vec![w, At::floats(&scale)]))
        }
    })
}

impl PackedMatrix {
    /// Packs, in bf16 where that is wanted, `[n, k]` whose element `(j, kk)` is element `at(j, kk)` of `weight`. `None` when the scales of a quantised
    /// weight do not run along `j`.
    pub(super) fn new(
        l: &Lowering<'_>,
        weight: &Weight,
        n: usize,
        k: usize,
        row_axis: usize,
        row0: usize,
        at: impl Fn(usize, usize) -> usize,
    ) -> Result<Option<PackedMatrix>, OpError> {
        let mut m = PackedMatrix { f32: Arc::default(), bf16: Arc::default(), q: Arc::default(), scale: Vec::new() };
        match weight {
            Weight::F32(t) if l.bf16 == Bf16::Weights => {
                let v = t.as_f32()?;
                let mut packed = vec![Pair::default(); bf16::packed_len(n, k)];
                bf16::pack(n, k, |j, kk| v[at(j, kk)], &mut packed);
                m.bf16 = l.packs.keep(packed);
            }
            Weight::F32(t) => {
                let v = t.as_f32()?;
                let mut packed = vec![0.0; gemm::packed_len(n, k)];
                gemm::pack(n, k, |j, kk| v[at(j, kk)], &mut packed);
                m.f32 = l.packs.keep(packed);
            }
            Weight::Q8 { q, scale, axis } => {
                if scale.len() != 1 && *axis != row_axis {
                    return Ok(None);
                }
                let crate::tensor::Data::I8(v) = q.data() else { return Ok(None) };
                if scale.len() != 1 && scale.len() != q.shape()[*axis] {
                    return Err(OpError::Shape {
                        what: format!("scales along axis {axis} of weights {:?}", q.shape()),
                        expected: q.shape()[*axis].to_string(),
                        found: scale.len().to_string(),
                    });
                }
                let mut packed = vec![0; gemm::packed_len(n, k)];
                gemm::pack(n, k, |j, kk| v[at(j, kk)], &mut packed);
                m.q = l.packs.keep(packed);
                m.scale = (0..n).map(|j| if scale.len() == 1 { scale[0] } else { scale[row0 + j] }).collect();
            }
        }
        Ok(Some(m))
    }

    pub(super) fn view(&self) -> Packed<'_> {
        if !self.q.is_empty() {
            Packed::I8 { q: &self.q, scale: &self.scale }
        } else if !self.bf16.is_empty() {
            Packed::Bf16(&self.bf16)
        } else {
            Packed::F32(&self.f32)
        }
    }

    pub(super) fn bytes(&self) -> usize {
        (self.f32.len() + self.bf16.len()) * 4 + self.q.len() + self.scale.len() * 4
    }

    /// The kernel name that says what the weights are.
    pub(super) fn label(&self, f32: &'static str, int8: &'static str, bf16: &'static str) -> &'static str {
        match self.view() {
            Packed::F32(_) => f32,
            Packed::I8 { .. } => int8,
            Packed::Bf16(_) => bf16,
        }
    }
}
