//! Softmax, its logarithm and its limit along one axis; before opset 13, over all axes from `axis` on.
use hone_kernels::normalise;

use super::PIECE;
use crate::ops::shape::{broadcast, broadcast_indices, elements, same_as_input};
use crate::ops::{Attrs, MICROSOFT, OpDef, OpError, axis_of, need, no_kernel};
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Tensor};

/// `e^(x - max) / Σ`.
pub(super) static SOFTMAX: OpDef = OpDef::new(
    "Softmax",
    "e^(x - max) / Σ along one axis (from opset 13), or over the axis and all after it (before)",
    same_as_input,
    |attrs, inputs| along(attrs, need(inputs, 0, "input")?, &softmax),
)
.kernel(|l| lower(l, false));

/// Its logarithm.
pub(super) static LOG_SOFTMAX: OpDef = OpDef::new(
    "LogSoftmax",
    "x - max - ln Σ e^(x - max) along one axis (from opset 13), or over the axis and all after it (before)",
    same_as_input,
    |attrs, inputs| along(attrs, need(inputs, 0, "input")?, &log_softmax),
)
.kernel(|l| lower(l, true));

/// One where the first of the largest is, zero elsewhere.
pub(super) static HARDMAX: OpDef = OpDef::new(
    "Hardmax",
    "one at the first of the largest along one axis (from opset 13), or over the axis and all after it (before)",
    same_as_input,
    |attrs, inputs| along(attrs, need(inputs, 0, "input")?, &hardmax),
);

/// Softmax of a sum, over all axes from `axis` on.
pub(super) static BIAS_SOFTMAX: OpDef = OpDef::new(
    "BiasSoftmax",
    "softmax of data + bias over the axis and all after it",
    same_as_input,
    |attrs, inputs| {
        let (x, bias) = (need(inputs, 0, "data")?, need(inputs, 1, "bias")?);
        let axis = axis_of(attrs.int("axis", 1)?, x.shape().len())?;
        let at = bias_places(attrs, x.shape(), bias.shape(), axis)?;
        let (mut v, b) = (x.data().to_f64(), bias.data().to_f64());
        v.iter_mut().zip(at).for_each(|(v, i)| *v += b[i]);
        let run = Run { len: x.shape()[axis..].iter().product(), inner: 1 };
        run.map(&mut v, &softmax);
        Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &v)?])
    },
)
.domain(MICROSOFT);

/// For each element of the data, its element of the bias: by NumPy's rules where they fit; otherwise the bias is rows that
/// are each repeated (`is_inner_broadcast`) or that repeat as a whole.
fn bias_places(attrs: &Attrs, x: &[usize], bias: &[usize], axis: usize) -> Result<Vec<usize>, OpError> {
    if broadcast(bias, x).is_ok_and(|s| s == x) {
        return broadcast_indices(bias, x);
    }
    let (n, all, len) = (elements(x)?, elements(bias)?, elements(&x[axis..])?);
    if all == 0 || n % all != 0 || len == 0 || all % len != 0 {
        return Err(OpError::shape("bias", format!("a shape that broadcasts to {x:?}"), bias));
    }
    let repeats = n / all;
    let inner = attrs.flag("is_inner_broadcast", true)?;
    Ok((0..n).map(|i| if inner { i / len / repeats * len + i % len } else { i % all }).collect())
}

/// What is normalised together: `len` elements, `inner` apart.
struct Run {
    len: usize,
    inner: usize,
}

impl Run {
    fn new(attrs: &Attrs, shape: &[usize]) -> Result<Run, OpError> {
        let old = attrs.opset < 13;
        let axis = attrs.int("axis", if old { 1 } else { -1 })?;
        if shape.is_empty() {
            return Ok(Run { len: 1, inner: 1 });
        }
        // The matrix an old version makes of its operand may have one column.
        if old && axis == shape.len() as i64 {
            return Ok(Run { len: 1, inner: 1 });
        }
        let axis = axis_of(axis, shape.len())?;
        let after = shape[axis + 1..].iter().product();
        Ok(if old { Run { len: shape[axis] * after, inner: 1 } } else { Run { len: shape[axis], inner: after } })
    }

    fn map(&self, v: &mut [f64], f: &dyn Fn(&mut [f64])) {
        let block = self.len * self.inner;
        if block == 0 {
            return;
        }
        let mut row = vec![0.0; self.len];
        for block in v.chunks_exact_mut(block) {
            for i in 0..self.inner {
                (0..self.len).for_each(|j| row[j] = block[j * self.inner + i]);
                f(&mut row);
                (0..self.len).for_each(|j| block[j * self.inner + i] = row[j]);
            }
        }
    }
}

fn along(attrs: &Attrs, x: &Tensor, f: &dyn Fn(&mut [f64])) -> Result<Vec<Tensor>, OpError> {
    let run = Run::new(attrs, x.shape())?;
    let mut v = x.data().to_f64();
    run.map(&mut v, f);
    Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &v)?])
}

fn softmax(row: &mut [f64]) {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    row.iter_mut().for_each(|v| *v = (*v - max).exp());
    let sum: f64 = row.iter().sum();
    row.iter_mut().for_each(|v| *v /= sum);
}

fn log_softmax(row: &mut [f64]) {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|v| (v - max).exp()).sum();
    row.iter_mut().for_each(|v| *v = *v - max - sum.ln());
}

fn hardmax(row: &mut [f64]) {
    let largest = (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
    row.iter_mut().enumerate().for_each(|(i, v)| *v = f64::from(u8::from(i == largest)));
}

fn lower(l: &Lowering<'_>, log: bool) -> Result<Option<Lowered>, OpError> {
    let run = Run::new(l.attrs, l.shape(0)?)?;
    if l.dtype(0) != Some(DType::F32) {
        return no_kernel(l);
    }
    let scratch = if run.inner == 1 { 0 } else { run.inner.saturating_mul(2) };
    Ok(Some(Lowered::new(SoftmaxKernel { run, log }, vec![0]).with_scratch(scratch)))
}

struct SoftmaxKernel {
    run: Run,
    log: bool,
}

impl Kernel for SoftmaxKernel {
    fn name(&self) -> &'static str {
        if self.run.inner == 1 { "softmax-rows" } else { "softmax-columns" }
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let Run { len, inner } = self.run;
        if inner == 1 {
            let (x, y) = (reads.f32(0), writes.f32(0));
            let piece = pool.share(y.len(), len, PIECE);
            pool.pieces(y, piece, |i, y| normalise::softmax(len, self.log, &x[i * piece..][..y.len()], y));
        } else {
            normalise::softmax_inner(len, inner, self.log, reads.f32(0), writes.f32(0), scratch);
        }
    }
}
