//! A product with constant weights, ending in a bias, a sum and an activation.
use hone_gpu::product as gpu;
use hone_kernels::epilogue::{Activation, Epilogue};
use hone_kernels::gemm;

use super::lying::LyingMatrix;
use super::{Lie, PackedMatrix, on_gpu};
use crate::ops::conv::activation;
use crate::ops::internal::DOMAIN;
use crate::ops::shape::elements;
use crate::ops::{Attrs, Fact, OpDef, OpError, need, optional};
use crate::plan::{At, Io, Kernel, Lowered, Lowering, Recorded};
use crate::tensor::{DType, Tensor};

/// `activation(x · w + bias + z)` for `x: [..., K]` and `w: [K, N]`, or `[N, K]` with `transB`; `bias: [N]` and `z` of the
/// shape of the result may be absent.
pub(crate) static DENSE: OpDef = OpDef::new(
    "Dense",
    "product with constant weights, a bias, a sum with z, and an activation",
    |attrs, inputs| {
        let (x, w) = (need(inputs, 0, "x")?, need(inputs, 1, "w")?);
        let shape = Sizes::of(attrs, &x.shape, &w.shape)?.shape(&x.shape);
        Ok(Some(vec![Fact::new(x.dtype, shape)]))
    },
    reference,
)
.domain(DOMAIN)
.kernel(lower)
.gpu(recorded);

/// Where `z` is.
pub(crate) const Z: usize = 3;

/// Rows, reduction, columns.
#[derive(Clone, Copy)]
struct Sizes {
    m: usize,
    k: usize,
    n: usize,
    turned: bool,
}

impl Sizes {
    fn of(attrs: &Attrs, x: &[usize], w: &[usize]) -> Result<Sizes, OpError> {
        let turned = attrs.flag("transB", false)?;
        let (k, n) = match (w, turned) {
            (&[k, n], false) | (&[n, k], true) => (k, n),
            _ => return Err(OpError::shape("weights of a product", "a matrix", w)),
        };
        match x.split_last() {
            Some((&last, lead)) if last == k && k > 0 => Ok(Sizes { m: elements(lead)?, k, n, turned }),
            _ => Err(OpError::shape("x of a product", format!("[..., {k}]"), x)),
        }
    }

    fn shape(&self, x: &[usize]) -> Vec<usize> {
        [&x[..x.len() - 1], &[self.n]].concat()
    }

    /// Where the weight of row `kk` and column `j` is.
    fn at(&self, kk: usize, j: usize) -> usize {
        if self.turned { j * self.k + kk } else { kk * self.n + j }
    }

    /// Where the first weight is, and how far on the next row and the next column are.
    fn steps(&self) -> [usize; 3] {
        if self.turned { [0, 1, self.k] } else { [0, self.n, 1] }
    }
}

/// Whether a product of those shapes is one of these.
pub(crate) fn takes(attrs: &Attrs, x: &[usize], w: &[usize]) -> bool {
    Sizes::of(attrs, x, w).is_ok()
}

fn reference(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let (x, w) = (need(inputs, 0, "x")?, need(inputs, 1, "w")?);
    let s = Sizes::of(attrs, x.shape(), w.shape())?;
    let (xs, ws) = (x.as_f32()?, w.as_f32()?);
    let bias = optional(inputs, 2).map_or(Ok(&[][..]), Tensor::as_f32)?;
    let z = optional(inputs, Z).map_or(Ok(&[][..]), Tensor::as_f32)?;
    let activation = activation(attrs)?;
    let one = |i: usize| {
        let (r, j) = (i / s.n, i % s.n);
        let sum: f64 = (0..s.k).map(|kk| f64::from(xs[r * s.k + kk]) * f64::from(ws[s.at(kk, j)])).sum();
        let more = |v: &[f32], i: usize| v.get(i).copied().map_or(0.0, f64::from);
        activation.reference(sum + more(bias, j) + more(z, i)) as f32
    };
    Ok(vec![Tensor::f32(&s.shape(x.shape()), (0..s.m * s.n).map(one).collect())?])
}

fn lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let floats = [0, 2, Z].into_iter().all(|i| !l.has(i) || l.dtype(i) == Some(DType::F32));
    let Some(weight) = l.weight(1).filter(|_| floats) else { return Ok(None) };
    let s = Sizes::of(l.attrs, l.shape(0)?, l.shape(1)?)?;
    let axis = usize::from(!s.turned);
    let steps = s.steps();
    let lie = Lie { at: move |kk, j| s.at(kk, j), numbers: &steps };
    let w = match LyingMatrix::of(l, s.m, (s.k, s.n), s.turned, Some(axis)) {
        Some(w) => Frozen::Lying(w),
        None => match PackedMatrix::new(l, &weight, s.n, s.k, axis, 0, lie)? {
            Some(w) => Frozen::Packed(w),
            None => return Ok(None),
        },
    };
    let mut reads = vec![0];
    let mut slot = |i: usize| {
        l.has(i).then(|| {
            reads.push(i);
            reads.len() - 1
        })
    };
    let (bias, residual) = (slot(2), slot(Z));
    let (bytes, scratch, held) = match &w {
        Frozen::Packed(w) => (w.bytes(), 0, None),
        Frozen::Lying(w) => (0, w.room(s.k, s.n), Some(w.constant().clone())),
    };
    let kernel = Dense { m: s.m, k: s.k, n: s.n, w, bias, residual, activation: activation(l.attrs)? };
    Ok(Some(Lowered::new(kernel, reads).with_weights(bytes).with_scratch(scratch).holding(held)))
}

fn recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let floats = [0, 2, Z].into_iter().all(|i| !l.has(i) || l.dtype(i) == Some(DType::F32));
    let Some(weight) = l.weight(1).filter(|_| floats) else { return Ok(None) };
    let s = Sizes::of(l.attrs, l.shape(0)?, l.shape(1)?)?;
    let axis = usize::from(!s.turned);
    let steps = s.steps();
    let lie = Lie { at: move |kk, j| s.at(kk, j), numbers: &steps };
    let Some((right, mut at)) = on_gpu(l, &weight, s.k, s.n, axis, lie)? else { return Ok(None) };
    at.insert(0, At::In(0));
    at.extend([2, Z].into_iter().filter(|&i| l.has(i)).map(At::In));
    at.push(At::Out(0));
    let product = gpu::Product {
        m: s.m,
        n: s.n,
        k: s.k,
        left: gpu::Left::Matrix { row: s.k, step: 1 },
        right,
        y_row: s.n,
        batch: gpu::Batch::one(),
        bias: l.has(2),
        residual: l.has(Z),
        alpha: 1.0,
        activation: activation(l.attrs)?,
        matrices: l.matrices,
    };
    Ok(Recorded::one(product.call(), at))
}

/// How the weights are had.
enum Frozen {
    Packed(PackedMatrix),
    Lying(LyingMatrix),
}

struct Dense {
    m: usize,
    k: usize,
    n: usize,
    w: Frozen,
    bias: Option<usize>,
    residual: Option<usize>,
    activation: Activation,
}

impl Kernel for Dense {
    fn name(&self) -> &'static str {
        match &self.w {
            Frozen::Packed(w) => w.label("dense-f32", "dense-f32w8", "dense-f32wbf16"),
            Frozen::Lying(w) => w.label(),
        }
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let w = match &self.w {
            Frozen::Packed(w) => w.view(),
            Frozen::Lying(w) => w.pack(pool, self.k, self.n, scratch),
        };
        let bias = self.bias.map(|i| reads.f32(i));
        let residual = self.residual.map(|i| reads.f32(i));
        let g = gemm::Gemm {
            m: self.m,
            k: self.k,
            n: self.n,
            x: reads.f32(0),
            x_stride: self.k,
            w,
            bias,
            accumulate: false,
        };
        let epilogue = Epilogue { residual, after: false, activation: self.activation };
        gemm::gemm_fused(pool, &g, &epilogue, writes.f32(0));
    }
}
