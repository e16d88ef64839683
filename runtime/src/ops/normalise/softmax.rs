//! Softmax, its logarithm and its limit along one axis; before opset 13, over all axes from `axis` on.
use hone_gpu::functions::function;
use hone_gpu::map::{Element, Map, Operand};
use hone_gpu::rows::{Along, Rows};
use hone_kernels::{gradient, normalise};

use super::PIECE;
use crate::autodiff::Backward;
use crate::ops::shape::{broadcast, broadcast_indices, elements, same_as_input};
use crate::ops::{Attr, Attrs, HONE, MICROSOFT, OpDef, OpError, axis_of, flat, need, no_kernel, record};
use crate::plan::{At, Io, Kernel, Lowered, Lowering, Recorded};
use crate::tensor::{DType, Tensor};

/// `e^(x - max) / Σ`.
pub(super) static SOFTMAX: OpDef = OpDef::new(
    "Softmax",
    "e^(x - max) / Σ along one axis (from opset 13), or over the axis and all after it (before)",
    same_as_input,
    |attrs, inputs| along(attrs, need(inputs, 0, "input")?, &softmax),
)
.kernel(|l| lower(l, false))
.gpu(|l| recorded(l, Rows::Softmax))
.vjp(|b| backward(b, &SOFTMAX_VJP));

/// Its logarithm.
pub(super) static LOG_SOFTMAX: OpDef = OpDef::new(
    "LogSoftmax",
    "x - max - ln Σ e^(x - max) along one axis (from opset 13), or over the axis and all after it (before)",
    same_as_input,
    |attrs, inputs| along(attrs, need(inputs, 0, "input")?, &log_softmax),
)
.kernel(|l| lower(l, true))
.gpu(|l| recorded(l, Rows::LogSoftmax))
.vjp(|b| backward(b, &LOG_SOFTMAX_VJP));

/// One where the first of the largest is, zero elsewhere.
pub(super) static HARDMAX: OpDef = OpDef::new(
    "Hardmax",
    "one at the first of the largest along one axis (from opset 13), or over the axis and all after it (before)",
    same_as_input,
    |attrs, inputs| along(attrs, need(inputs, 0, "input")?, &hardmax),
)
.vjp(flat);

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
.domain(MICROSOFT)
.vjp(|b| {
    b.through(|b| {
        let attrs = b.attrs();
        let (x, bias) = (b.x(0)?, b.x(1)?);
        let axis = attrs.int("axis", 1)?;
        if broadcast(b.shape(bias), b.shape(x)).ok().as_deref() != Some(b.shape(x)) {
            return Err(OpError::unsupported("a gradient through a bias that does not broadcast by NumPy's rules"));
        }
        let sum = b.add(x, bias)?;
        // The version before 13 takes all axes from `axis` on together.
        let old = Attrs { opset: 11, ..Attrs::of([("axis", Attr::Int(axis))]) };
        Ok(vec![b.one(&SOFTMAX, old, &[Some(sum)])?])
    })
});

/// Of the softmax `y`: `y · (dy - Σ dy · y)`.
static SOFTMAX_VJP: OpDef =
    OpDef::new("SoftmaxVjp", "y · (dy - Σ dy y) along one axis", same_as_input, |attrs, inputs| {
        paired(attrs, inputs, |dy, y| {
            let sum: f64 = dy.iter().zip(y).map(|(g, y)| g * y).sum();
            dy.iter_mut().zip(y).for_each(|(g, y)| *g = y * (*g - sum));
        })
    })
    .domain(HONE)
    .kernel(|l| lower_backward(l, false))
    .gpu(|l| recorded_backward(l, false));

/// Of its logarithm `y`: `dy - e^y Σ dy`.
static LOG_SOFTMAX_VJP: OpDef =
    OpDef::new("LogSoftmaxVjp", "dy - e^y Σ dy along one axis", same_as_input, |attrs, inputs| {
        paired(attrs, inputs, |dy, y| {
            let sum: f64 = dy.iter().sum();
            dy.iter_mut().zip(y).for_each(|(g, y)| *g -= y.exp() * sum);
        })
    })
    .domain(HONE)
    .kernel(|l| lower_backward(l, true))
    .gpu(|l| recorded_backward(l, true));

fn backward(b: &mut Backward<'_>, op: &'static OpDef) -> Result<(), OpError> {
    let (dy, y, attrs) = (b.dy()?, b.y()?, Attrs::clone(&b.attrs()));
    let dx = b.one(op, attrs, &[Some(dy), Some(y)])?;
    b.give(0, dx);
    Ok(())
}

/// `f` of each run of the gradient, which it changes, and of the result.
fn paired(attrs: &Attrs, inputs: &[Option<&Tensor>], f: impl Fn(&mut [f64], &[f64])) -> Result<Vec<Tensor>, OpError> {
    let (dy, y) = (need(inputs, 0, "dY")?, need(inputs, 1, "Y")?);
    let Run { len, inner } = Run::new(attrs, y.shape())?;
    let (mut g, v) = (dy.data().to_f64(), y.data().to_f64());
    if g.len() != v.len() {
        return Err(OpError::shape("dY", y.shape(), dy.shape()));
    }
    let block = (len * inner).max(1);
    let (mut row, mut result) = (vec![0.0; len], vec![0.0; len]);
    for (g, v) in g.chunks_exact_mut(block).zip(v.chunks_exact(block)) {
        for i in 0..inner {
            (0..len).for_each(|j| (row[j], result[j]) = (g[j * inner + i], v[j * inner + i]));
            f(&mut row, &result);
            (0..len).for_each(|j| g[j * inner + i] = row[j]);
        }
    }
    Ok(vec![Tensor::from_f64(dy.dtype(), dy.shape(), &g)?])
}

fn lower_backward(l: &Lowering<'_>, log: bool) -> Result<Option<Lowered>, OpError> {
    let run = Run::new(l.attrs, l.shape(1)?)?;
    if l.dtype(0) != Some(DType::F32) || l.dtype(1) != Some(DType::F32) {
        return no_kernel(l);
    }
    let scratch = if run.inner == 1 { 0 } else { run.inner };
    Ok(Some(Lowered::new(SoftmaxBackward { run, log }, vec![0, 1]).with_scratch(scratch)))
}

fn recorded_backward(l: &Lowering<'_>, log: bool) -> Result<Option<Recorded>, OpError> {
    let shape = l.shape(1)?;
    let Run { len, inner } = Run::new(l.attrs, shape)?;
    let n = elements(shape)?;
    if l.dtype(0) != Some(DType::F32) || l.dtype(1) != Some(DType::F32) || l.shape(0)? != shape || n == 0 {
        return Ok(None);
    }
    let outer = n / (len * inner);
    let mut out = Recorded::default();
    let (sums, mut of) = (out.scratch(4 * outer * inner), At::In(0));
    let shape = vec![outer, len, inner];
    let whole = vec![len * inner, inner, 1];
    let operand = |strides: Vec<usize>| Operand { element: Element::F32, strides };
    let map = |name: &str, operands| {
        let map =
            Map { function: function(name)?, constants: vec![], shape: shape.clone(), operands, result: Element::F32 };
        map.call()
    };
    if !log {
        let products = out.scratch(4 * n);
        let call = map("Mul", vec![operand(whole.clone()), operand(whole.clone())]);
        let Some(next) = out.and(call, vec![At::In(0), At::In(1), products.clone()]) else { return Ok(None) };
        (out, of) = (next, products);
    }
    let along = Along { rows: Rows::Sum, outer, length: len, inner, scales: len, epsilon: 0.0, factor: 1.0 };
    let Some(out) = out.and(along.call(), vec![of, sums.clone()]) else { return Ok(None) };
    let last = vec![operand(whole.clone()), operand(whole), operand(vec![inner, 0, 1])];
    let call = map(if log { "LogSoftmaxVjp" } else { "SoftmaxVjp" }, last);
    Ok(out.and(call, vec![At::In(0), At::In(1), sums, At::Out(0)]))
}

struct SoftmaxBackward {
    run: Run,
    log: bool,
}

impl Kernel for SoftmaxBackward {
    fn name(&self) -> &'static str {
        if self.run.inner == 1 { "softmax-vjp-rows" } else { "softmax-vjp-columns" }
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let Run { len, inner } = self.run;
        let (dy, y, dx) = (reads.f32(0), reads.f32(1), writes.f32(0));
        if inner == 1 {
            let piece = pool.share(dx.len(), len, PIECE);
            pool.pieces(dx, piece, |i, dx| {
                let at = i * piece..i * piece + dx.len();
                gradient::softmax(len, self.log, &dy[at.clone()], &y[at], dx);
            });
        } else {
            gradient::softmax_inner(len, inner, self.log, dy, y, dx, scratch);
        }
    }
}

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

fn recorded(l: &Lowering<'_>, rows: Rows) -> Result<Option<Recorded>, OpError> {
    let shape = l.shape(0)?;
    let Run { len, inner } = Run::new(l.attrs, shape)?;
    let outer = elements(shape)?.checked_div(len * inner).unwrap_or(0);
    Ok(if l.dtype(0) == Some(DType::F32) { record::along(rows, outer, len, inner, 1.0) } else { None })
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
