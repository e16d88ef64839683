//! Frozen matrices that stay as the model has them, in whichever direction they are used.
use std::sync::Arc;

use hone_kernels::panels::{self, Along, Lying};
use hone_kernels::threads::Pool;
use hone_kernels::{bf16, gemm};

use crate::plan::{Bf16, Lowering, Weight};
use crate::tensor::{Data, Tensor};

/// Rows from which packing a matrix in every run costs little beside its product.
pub(super) const MANY_ROWS: usize = 32;

/// A constant right operand of a product.
pub(super) struct LyingMatrix {
    weight: Weight,
    /// It is `[N, K]`.
    turned: bool,
    along: Along,
    /// Packed, and multiplied, in bf16.
    pairs: bool,
}

impl LyingMatrix {
    /// Input 1 as `[K, N]`, or `[N, K]` when `turned`, for a product with `m` rows; `columns` is the axis of it that the columns
    /// run along. `None` where it is better packed beforehand, and for what is no weight.
    pub(super) fn of(
        l: &Lowering<'_>,
        m: usize,
        (k, n): (usize, usize),
        turned: bool,
        columns: Option<usize>,
    ) -> Option<LyingMatrix> {
        if m < MANY_ROWS || k * n == 0 {
            return None;
        }
        let weight = l.weight(1)?;
        if weight.shape().iter().product::<usize>() != k * n {
            return None;
        }
        let along = match &weight {
            Weight::F32(_) => Along::Columns,
            Weight::Q8 { scale, axis, .. } => {
                let along = if columns? == *axis { Along::Columns } else { Along::Steps };
                let length = if along == Along::Columns { n } else { k };
                (scale.len() == 1 || scale.len() == length).then_some(along)?
            }
        };
        // Scales along the reduction have no packed form.
        let scaled_steps = matches!(&weight, Weight::Q8 { scale, .. } if scale.len() > 1) && along == Along::Steps;
        let pairs = match &weight {
            Weight::F32(_) => l.bf16 == Bf16::Weights,
            Weight::Q8 { .. } => l.bf16 != Bf16::Nothing,
        };
        (l.lean || scaled_steps).then_some(LyingMatrix { weight, turned, along, pairs })
    }

    /// The constant it is.
    pub(super) fn constant(&self) -> &Arc<Tensor> {
        match &self.weight {
            Weight::F32(t) | Weight::Q8 { q: t, .. } => t,
        }
    }

    /// The kernel's name.
    pub(super) fn label(&self) -> &'static str {
        match (&self.weight, self.pairs) {
            (Weight::F32(_), false) => "gemm-f32-lying",
            (Weight::F32(_), true) => "gemm-f32wbf16-lying",
            (Weight::Q8 { .. }, false) => "gemm-f32w8-lying",
            (Weight::Q8 { .. }, true) => "gemm-f32w8bf16-lying",
        }
    }

    /// Floats of memory that [`LyingMatrix::pack`] wants.
    pub(super) fn room(&self, k: usize, n: usize) -> usize {
        if self.pairs { bf16::packed_len(n, k) } else { gemm::packed_len(n, k) }
    }

    /// Packs it for [`gemm`] into the first [`LyingMatrix::room`] elements of `out`.
    pub(super) fn pack<'a>(&self, pool: &Pool, k: usize, n: usize, out: &'a mut [f32]) -> gemm::Packed<'a> {
        let b = match (&self.weight, self.constant().data()) {
            (Weight::Q8 { scale, .. }, Data::I8(q)) => Lying::I8 { q, scale, along: self.along },
            (_, Data::F32(v)) => Lying::F32(v),
            _ => unreachable!("a weight is floats or codes of 8 bits"),
        };
        let out = &mut out[..self.room(k, n)];
        if self.pairs {
            let out = bf16::of_floats(out);
            pool.pieces(out, k.div_ceil(2) * gemm::NR, |p, out| panels::pairs(p, n, k, self.turned, &b, out));
            return gemm::Packed::Bf16(out);
        }
        pool.pieces(out, k * gemm::NR, |p, out| panels::panel(p, n, k, self.turned, &b, out));
        gemm::Packed::F32(out)
    }
}
