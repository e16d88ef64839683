//! Frozen matrices that stay as the model has them, in whichever direction they are used.
use std::sync::Arc;

use hone_kernels::gemm;
use hone_kernels::panels::{self, Along, Lying};
use hone_kernels::threads::Pool;

use crate::plan::{Lowering, Weight};
use crate::tensor::{Data, Tensor};

/// Rows from which packing a matrix in every run costs little beside its product.
pub(super) const MANY_ROWS: usize = 32;

/// A constant right operand of a product.
pub(super) struct LyingMatrix {
    weight: Weight,
    /// It is `[N, K]`.
    turned: bool,
    along: Along,
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
        (l.lean || scaled_steps).then_some(LyingMatrix { weight, turned, along })
    }

    /// The constant it is.
    pub(super) fn constant(&self) -> &Arc<Tensor> {
        match &self.weight {
            Weight::F32(t) | Weight::Q8 { q: t, .. } => t,
        }
    }

    /// The kernel's name.
    pub(super) fn label(&self) -> &'static str {
        match &self.weight {
            Weight::F32(_) => "gemm-f32-lying",
            Weight::Q8 { .. } => "gemm-f32w8-lying",
        }
    }

    /// Packs it for [`gemm`] into `out`, of [`gemm::packed_len`] elements.
    pub(super) fn pack(&self, pool: &Pool, k: usize, n: usize, out: &mut [f32]) {
        let b = match (&self.weight, self.constant().data()) {
            (Weight::Q8 { scale, .. }, Data::I8(q)) => Lying::I8 { q, scale, along: self.along },
            (_, Data::F32(v)) => Lying::F32(v),
            _ => return,
        };
        pool.pieces(out, k * gemm::NR, |p, out| panels::panel(p, n, k, self.turned, &b, out));
    }
}
