//! Gradients through quantised tensors and weights.
//!
//! Rounding is taken for the identity where it does not saturate (the straight-through estimator: Bengio, Léonard and
//! Courville, 2013): gradients by codes are floats. Quantised weights stay as they are in the product back.
use hone_kernels::gemm::{self, Gemm, Packed};
use hone_kernels::product;

use super::blocks::{NBits, code};
use crate::autodiff::Backward;
use crate::graph::ValueId;
use crate::ops::{Attrs, Fact, HONE, OpDef, OpError, axis_of, need, no_kernel};
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Tensor};

/// A scale or zero point, as a tensor that broadcasts with the data, in the type of gradients.
fn spread(b: &mut Backward<'_>, v: ValueId, x: &[usize], dtype: DType) -> Result<ValueId, OpError> {
    let attrs = b.attrs();
    if attrs.int("block_size", 0)? != 0 {
        return Err(OpError::unsupported("a gradient through activations quantised in blocks"));
    }
    let n: usize = b.shape(v).iter().product();
    let v = b.cast(v, dtype)?;
    if n == 1 {
        return b.reshape(v, &[]);
    }
    let axis = axis_of(attrs.int("axis", 1)?, x.len())?;
    let mut shape = vec![1; x.len() - axis];
    shape[0] = n;
    b.reshape(v, &shape)
}

/// Of `(x - zero_point) · scale` by the codes.
pub(super) fn dequantize(b: &mut Backward<'_>) -> Result<(), OpError> {
    if b.wants(1) || b.wants(2) {
        return Err(OpError::unsupported("a gradient by a scale of quantisation"));
    }
    let (dy, x, scale) = (b.dy()?, b.x(0)?, b.x(1)?);
    let (shape, dtype) = (b.shape(x).to_vec(), b.cotangent(x));
    let dy = b.cast(dy, dtype)?;
    let scale = spread(b, scale, &shape, dtype)?;
    let dx = b.mul(dy, scale)?;
    b.give(0, dx);
    Ok(())
}

/// Of `saturate(round(x / scale) + zero_point)` by `x`: the codes' gradient over the scale, 0 where they saturate.
pub(super) fn quantize(b: &mut Backward<'_>) -> Result<(), OpError> {
    if b.wants(1) || b.wants(2) {
        return Err(OpError::unsupported("a gradient by a scale of quantisation"));
    }
    let (dy, x, scale, codes) = (b.dy()?, b.x(0)?, b.x(1)?, b.y()?);
    let (shape, dtype) = (b.shape(x).to_vec(), b.dtype(x));
    let (low, high) = b.dtype(codes).range().ok_or_else(|| OpError::unsupported("a gradient through float codes"))?;
    let scale = spread(b, scale, &shape, dtype)?;
    let steps = b.div(x, scale)?;
    let mut exact = b.unary("Round", steps)?;
    if let Some(zero) = b.optional(2) {
        let zero = spread(b, zero, &shape, dtype)?;
        exact = b.add(exact, zero)?;
    }
    let (low, high) = (b.scalar(dtype, low as f64)?, b.scalar(dtype, high as f64)?);
    let (above, below) = (b.binary("GreaterOrEqual", exact, low)?, b.binary("LessOrEqual", exact, high)?);
    let inside = b.binary("And", above, below)?;
    let dy = b.cast(dy, dtype)?;
    let dx = b.div(dy, scale)?;
    let dx = b.only(inside, dx)?;
    b.give(0, dx);
    Ok(())
}

/// Gradients `dY [M, N]`, then `B`, `scales`, `zero_points` and `g_idx` as the operator has them, to `dA = dY · dequant(B)`.
static NBITS_VJP: OpDef = OpDef::new(
    "MatMulNBitsVjp",
    "product of a gradient with a weight of 2, 4 or 8 bits in blocks",
    |attrs, inputs| {
        let (dy, g) = (need(inputs, 0, "dY")?, NBits::of(attrs)?);
        Ok(Some(vec![Fact::new(dy.dtype, shape(&g, &dy.shape)?)]))
    },
    |attrs, inputs| {
        let (dy, g) = (need(inputs, 0, "dY")?, NBits::of(attrs)?);
        let (to, w) = (shape(&g, dy.shape())?, g.weight(inputs)?);
        let gs = dy.data().to_f64();
        let mut dx = vec![0.0; gs.len() / g.n * g.k];
        for (g_row, dx) in gs.chunks_exact(g.n).zip(dx.chunks_exact_mut(g.k)) {
            for (v, w) in g_row.iter().zip(w.chunks_exact(g.k)) {
                dx.iter_mut().zip(w).for_each(|(d, w)| *d += v * f64::from(*w));
            }
        }
        Ok(vec![Tensor::from_f64(dy.dtype(), &to, &dx)?])
    },
)
.domain(HONE)
.kernel(nbits_lower);

fn shape(g: &NBits, dy: &[usize]) -> Result<Vec<usize>, OpError> {
    match dy.split_last() {
        Some((&n, lead)) if n == g.n => Ok([lead, &[g.k]].concat()),
        _ => Err(OpError::shape("dY of MatMulNBits", format!("[…, {}]", g.n), dy)),
    }
}

/// Rows of the weight dequantised together.
const ROWS: usize = 64;

fn nbits_lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let g = NBits::of(l.attrs)?;
    let m = l.shape(0)?.iter().product::<usize>() / g.n.max(1);
    let codes = l.shape(1)?.iter().product();
    if l.dtype(0) != Some(DType::F32)
        || l.dtype(2) != Some(DType::F32)
        || l.has(4)
        || l.has(3) && l.constant(3).is_none()
    {
        return no_kernel(l);
    }
    let zeros = l.constant(3).map(|t| (t.dtype(), t.len()));
    g.check(codes, l.shape(2)?.iter().product(), zeros)?;
    let zero = g.zeros(l.constant(3).map(|t| &**t));
    let scratch = ROWS * g.k + gemm::packed_len(g.k, ROWS);
    let bytes = 4 * zero.len();
    Ok(Some(Lowered::new(NBitsVjp { m, g, zero }, vec![0, 1, 2]).with_scratch(scratch).with_weights(bytes)))
}

struct NBitsVjp {
    m: usize,
    g: NBits,
    zero: Vec<f32>,
}

impl Kernel for NBitsVjp {
    fn name(&self) -> &'static str {
        "nbits-vjp-panels"
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let (dy, codes, scale, dx) = (reads.f32(0), reads.bytes(1), reads.f32(2), writes.f32(0));
        let NBits { k, n, bits, block, blocks } = self.g;
        let row_bytes = self.g.row_bytes();
        let (rows, packed) = scratch.split_at_mut(ROWS * k);
        for first in (0..n).step_by(ROWS) {
            let count = ROWS.min(n - first);
            for (j, w) in rows.chunks_exact_mut(k).take(count).enumerate() {
                let row = &codes[(first + j) * row_bytes..][..row_bytes];
                for (b, w) in w.chunks_mut(block).enumerate() {
                    let at = (first + j) * blocks + b;
                    let (s, z) = (scale[at], self.zero[at]);
                    w.iter_mut()
                        .enumerate()
                        .for_each(|(i, w)| *w = (f32::from(code(row, b * block + i, bits)) - z) * s);
                }
            }
            let packed = &mut packed[..gemm::packed_len(k, count)];
            product::pack_plain(k, count, &rows[..count * k], packed);
            let problem = Gemm {
                x: &dy[first..],
                x_stride: n,
                w: Packed::F32(packed),
                m: self.m,
                k: count,
                n: k,
                bias: None,
                accumulate: first > 0,
            };
            gemm::gemm_on(pool, &problem, dx);
        }
    }
}

/// Of `MatMulNBits`, whose weight is frozen.
pub(super) fn nbits(b: &mut Backward<'_>) -> Result<(), OpError> {
    if (1..5).any(|i| b.wants(i)) {
        return Err(OpError::unsupported("a gradient by a weight quantised in blocks: an adapter beside it has one"));
    }
    let dy = b.dy()?;
    if b.wants(0) {
        let inputs = [Some(dy), b.optional(1), b.optional(2), b.optional(3), b.optional(4)];
        let attrs = Attrs::clone(&b.attrs());
        let dx = b.one(&NBITS_VJP, attrs, &inputs)?;
        b.give(0, dx);
    }
    if b.wants(5) {
        let axes: Vec<usize> = (0..b.shape(dy).len() - 1).collect();
        let g = b.reduce("ReduceSum", dy, &axes, false)?;
        b.give(5, g);
    }
    Ok(())
}

/// Of a product of integers by its left operand, whose codes have gradients in floats; the right one is frozen.
pub(super) fn integer(b: &mut Backward<'_>) -> Result<(), OpError> {
    if b.wants(1) {
        return Err(OpError::unsupported("a gradient by a weight of integers: an adapter beside it has one"));
    }
    let (dy, x, w) = (b.dy()?, b.x(0)?, b.x(1)?);
    let own = b.shape(x).to_vec();
    let dtype = b.cotangent(x);
    let one = b.scalar(dtype, 1.0)?;
    let op = crate::ops::find("", "DequantizeLinear").ok_or_else(|| OpError::unsupported("DequantizeLinear"))?;
    let zero = b.optional(3);
    let is_zero = |b: &Backward<'_>, z: ValueId| {
        b.fact(z).value.as_ref().is_some_and(|t| t.data().to_i128().iter().all(|&v| v == 0))
    };
    let zero = zero.filter(|&z| !is_zero(b, z));
    let plain = match zero {
        // One for each column: a float weight, because a packed one has one zero point.
        Some(z) if b.shape(z).iter().product::<usize>() != 1 => {
            let (w, z) = (b.cast(w, dtype)?, b.cast(z, dtype)?);
            b.sub(w, z)?
        }
        Some(z) => {
            let z = b.reshape(z, &[])?;
            b.one(op, Attrs::of([]), &[Some(w), Some(one), Some(z)])?
        }
        None => b.one(op, Attrs::of([]), &[Some(w), Some(one)])?,
    };
    let dy = b.cast(dy, dtype)?;
    let g = b.matmul((dy, false), (plain, true), 1.0)?;
    let g = b.unbroadcast(g, &own, &own)?;
    b.give(0, g);
    Ok(())
}

/// Of codes whose scale comes from the data: it is taken for a constant.
pub(super) fn dynamic(b: &mut Backward<'_>) -> Result<(), OpError> {
    let Some(dy) = b.dy_of(0) else { return Ok(()) };
    let scale = match b.result(1) {
        Some(v) => v,
        None => return Err(OpError::unsupported("codes without their scale")),
    };
    let x = b.x(0)?;
    let dtype = b.dtype(x);
    let (dy, scale) = (b.cast(dy, dtype)?, b.cast(scale, dtype)?);
    let dx = b.div(dy, scale)?;
    b.give(0, dx);
    Ok(())
}
