//! Reductions over axes: `ReduceSum`, `ReduceMean`, `ReduceMax`, …
//!
//! The axes are an attribute in old versions and an input in new ones (`ReduceSum` from 13, the others from 18); without
//! axes everything is reduced, or nothing when `noop_with_empty_axes` says so. The functions around the accumulation
//! (the square root of `ReduceL2`, the logarithm of `ReduceLogSum`) apply in either case.
use hone_gpu::rows as gpu;
use hone_kernels::reduce::{self, Fold, Rows};

use super::shape::{Known, axes_of, elements, list, list_fact};
use super::{Attr, Attrs, Fact, MICROSOFT, OpDef, OpError, for_each_strided, need, strides_of};
use crate::autodiff::Backward;
use crate::graph::ValueId;
use crate::plan::{At, Io, Kernel, Lowered, Lowering, Recorded};
use crate::tensor::{DType, Tensor};

/// The rows of this family.
pub(super) static OPS: &[&OpDef] = &[
    &REDUCE_SUM,
    &REDUCE_MEAN,
    &REDUCE_MAX,
    &REDUCE_MIN,
    &REDUCE_PROD,
    &REDUCE_L1,
    &REDUCE_L2,
    &REDUCE_LOG_SUM,
    &REDUCE_LOG_SUM_EXP,
    &REDUCE_SUM_SQUARE,
    &REDUCE_SUM_INTEGER,
];

/// What a reduction computes.
#[derive(Clone, Copy, PartialEq)]
enum Of {
    Sum,
    Mean,
    Max,
    Min,
    Prod,
    L1,
    L2,
    LogSum,
    LogSumExp,
    SumSquare,
}

macro_rules! reduction {
    ($konst:ident, $name:literal, $doc:literal, $of:expr) => {
        static $konst: OpDef = OpDef::new($name, $doc, shape_rule, |attrs, inputs| {
            let x = need(inputs, 0, "data")?;
            let mask = reduced(attrs, x.shape().len(), list(attrs, inputs, 1, "axes")?.as_deref())?;
            forward($of, x, &mask, attrs.flag("keepdims", true)?, x.dtype())
        })
        .kernel(|l| lower($of, l))
        .gpu(|l| recorded($of, l))
        .vjp(|b| vjp($of, b));
    };
}

reduction!(REDUCE_SUM, "ReduceSum", "the sum over axes", Of::Sum);
reduction!(REDUCE_MEAN, "ReduceMean", "the mean over axes", Of::Mean);
reduction!(REDUCE_MAX, "ReduceMax", "the largest over axes", Of::Max);
reduction!(REDUCE_MIN, "ReduceMin", "the smallest over axes", Of::Min);
reduction!(REDUCE_PROD, "ReduceProd", "the product over axes", Of::Prod);
reduction!(REDUCE_L1, "ReduceL1", "the sum of absolute values over axes", Of::L1);
reduction!(REDUCE_L2, "ReduceL2", "the root of the sum of squares over axes", Of::L2);
reduction!(REDUCE_LOG_SUM, "ReduceLogSum", "the logarithm of the sum over axes", Of::LogSum);
reduction!(REDUCE_LOG_SUM_EXP, "ReduceLogSumExp", "the logarithm of the sum of exponentials over axes", Of::LogSumExp);
reduction!(REDUCE_SUM_SQUARE, "ReduceSumSquare", "the sum of squares over axes", Of::SumSquare);

/// The sum of bytes as 32-bit integers.
static REDUCE_SUM_INTEGER: OpDef = OpDef::new(
    "ReduceSumInteger",
    "the sum of 8-bit integers over axes, as 32-bit integers",
    |attrs, inputs| {
        let mut facts = shape_rule(attrs, &inputs[..inputs.len().min(1)])?;
        if let Some(facts) = &mut facts {
            for f in facts {
                f.dtype = wide(f.dtype);
            }
        }
        Ok(facts)
    },
    |attrs, inputs| {
        let x = need(inputs, 0, "data")?;
        let mask = reduced(attrs, x.shape().len(), attrs.ints("axes")?)?;
        forward(Of::Sum, x, &mask, attrs.flag("keepdims", true)?, wide(x.dtype()))
    },
)
.domain(MICROSOFT);

fn wide(dtype: DType) -> DType {
    if dtype.is_signed_integer() { DType::I32 } else { DType::U32 }
}

/// For each axis, whether it is reduced.
///
/// # Errors
/// [`OpError::Attribute`] when an axis is out of range or named twice.
fn reduced(attrs: &Attrs, rank: usize, axes: Option<&[i64]>) -> Result<Vec<bool>, OpError> {
    let axes = axes.unwrap_or(&[]);
    if axes.is_empty() {
        return Ok(vec![!attrs.flag("noop_with_empty_axes", false)?; rank]);
    }
    // A scalar has one element along any axis it is asked for.
    if rank == 0 && axes.iter().all(|a| [0, -1].contains(a)) {
        return Ok(Vec::new());
    }
    let mut mask = vec![false; rank];
    for a in axes_of(axes, rank)? {
        mask[a] = true;
    }
    Ok(mask)
}

fn reduced_shape(shape: &[usize], mask: &[bool], keep: bool) -> Vec<usize> {
    shape.iter().zip(mask).filter(|&(_, &r)| keep || !r).map(|(&d, &r)| if r { 1 } else { d }).collect()
}

fn shape_rule(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let x = need(inputs, 0, "data")?;
    let Known::Yes(axes) = list_fact(attrs, inputs, 1, "axes")? else { return Ok(None) };
    let mask = reduced(attrs, x.shape.len(), axes.as_deref())?;
    Ok(Some(vec![Fact::new(x.dtype, reduced_shape(&x.shape, &mask, attrs.flag("keepdims", true)?))]))
}

/// The formula: floats in `f64`, integers modulo their width.
fn forward(of: Of, x: &Tensor, mask: &[bool], keep: bool, dtype: DType) -> Result<Vec<Tensor>, OpError> {
    let shape = reduced_shape(x.shape(), mask, keep);
    let n = elements(&shape)?;
    // Elements reduced to each result.
    let count = x.shape().iter().zip(mask).filter(|&(_, &r)| r).map(|(&d, _)| d).product::<usize>();
    let target = target_strides(x.shape(), mask);
    let over = |f: &mut dyn FnMut(usize, usize)| {
        let mut i = 0;
        for_each_strided(0, &target, x.shape(), |t| {
            f(t, i);
            i += 1;
        });
    };
    if !x.dtype().is_float() {
        let v = x.data().to_i128();
        let (low, high) = x.dtype().range().unwrap_or((0, 1));
        let start = match of {
            Of::Max => low,
            Of::Min => high,
            Of::Prod => 1,
            _ => 0,
        };
        let mut y = vec![start; n];
        if of == Of::LogSumExp {
            let v: Vec<f64> = v.iter().map(|&v| v as f64).collect();
            return Ok(vec![Tensor::from_f64(dtype, &shape, &log_sum_exp(&v, n, over))?]);
        }
        over(&mut |t, i| {
            let (a, v) = (y[t], v[i]);
            y[t] = match of {
                Of::Max => a.max(v),
                Of::Min => a.min(v),
                Of::Prod => a.wrapping_mul(v),
                Of::L1 => a.wrapping_add(v.abs()),
                Of::L2 | Of::SumSquare => a.wrapping_add(v.wrapping_mul(v)),
                _ => a.wrapping_add(v),
            };
        });
        let real = |f: fn(f64) -> f64| y.iter().map(|&v| f(v as f64)).collect::<Vec<_>>();
        return Ok(vec![match of {
            Of::L2 => Tensor::from_f64(dtype, &shape, &real(f64::sqrt))?,
            Of::LogSum => Tensor::from_f64(dtype, &shape, &real(f64::ln))?,
            Of::Mean => {
                let mean: Vec<i128> = y.iter().map(|&v| v / count.max(1) as i128).collect();
                Tensor::from_i128(dtype, &shape, &mean)?
            }
            _ => Tensor::from_i128(dtype, &shape, &y)?,
        }]);
    }
    let v = x.data().to_f64();
    if of == Of::LogSumExp {
        return Ok(vec![Tensor::from_f64(dtype, &shape, &log_sum_exp(&v, n, over))?]);
    }
    let start = match of {
        Of::Max => f64::NEG_INFINITY,
        Of::Min => f64::INFINITY,
        Of::Prod => 1.0,
        _ => 0.0,
    };
    let mut y = vec![start; n];
    over(&mut |t, i| {
        let (a, v) = (y[t], v[i]);
        y[t] = match of {
            Of::Max => {
                if v > a || v.is_nan() {
                    v
                } else {
                    a
                }
            }
            Of::Min => {
                if v < a || v.is_nan() {
                    v
                } else {
                    a
                }
            }
            Of::Prod => a * v,
            Of::L1 => a + v.abs(),
            Of::L2 | Of::SumSquare => a + v * v,
            _ => a + v,
        };
    });
    for v in &mut y {
        *v = match of {
            Of::L2 => v.sqrt(),
            Of::LogSum => v.ln(),
            Of::Mean => *v / count as f64,
            _ => *v,
        };
    }
    Ok(vec![Tensor::from_f64(dtype, &shape, &y)?])
}

fn log_sum_exp(v: &[f64], n: usize, over: impl Fn(&mut dyn FnMut(usize, usize))) -> Vec<f64> {
    let mut max = vec![f64::NEG_INFINITY; n];
    over(&mut |t, i| max[t] = max[t].max(v[i]));
    // Nothing is taken off an infinite maximum: ∞ - ∞ is no number.
    max.iter_mut().filter(|m| m.is_infinite()).for_each(|m| *m = 0.0);
    let mut sum = vec![0.0; n];
    over(&mut |t, i| sum[t] += (v[i] - max[t]).exp());
    sum.iter().zip(&max).map(|(s, m)| s.ln() + m).collect()
}

/// Step in the result for a step along each axis of the operand; 0 along reduced axes.
fn target_strides(shape: &[usize], mask: &[bool]) -> Vec<usize> {
    let kept = reduced_shape(shape, mask, true);
    strides_of(&kept).into_iter().zip(mask).map(|(s, &r)| if r { 0 } else { s }).collect()
}

fn lower(of: Of, l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    if l.dtype(0) != Some(DType::F32) || (l.has(1) && l.constant(1).is_none()) {
        return Ok(None);
    }
    let shape = l.shape(0)?;
    let axes = match l.constant(1) {
        Some(t) => Some(super::ints_of(t)),
        None => l.attrs.ints("axes")?.map(<[i64]>::to_vec),
    };
    let mask = reduced(l.attrs, shape.len(), axes.as_deref())?;
    let n = elements(shape)?;
    if u32::try_from(n).is_err() {
        return Ok(None);
    }
    let results = reduced_shape(shape, &mask, true).iter().product::<usize>();
    let count = shape.iter().zip(&mask).filter(|&(_, &r)| r).map(|(&d, _)| d).product::<usize>();
    let (len, along, targets) = rows(shape, &mask);
    let kernel = Reduce { of, scale: 1.0 / count as f32, len, along, targets };
    let scratch = if of == Of::LogSumExp { results } else { 0 };
    Ok(Some(Lowered::new(kernel, vec![0]).with_scratch(scratch)))
}

fn recorded(of: Of, l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    if l.dtype(0) != Some(DType::F32) || (l.has(1) && l.constant(1).is_none()) {
        return Ok(None);
    }
    let shape = l.shape(0)?;
    let axes = match l.constant(1) {
        Some(t) => Some(super::ints_of(t)),
        None => l.attrs.ints("axes")?.map(<[i64]>::to_vec),
    };
    let mask = reduced(l.attrs, shape.len(), axes.as_deref())?;
    // Neighbouring axes of one kind are one. Of several reduced ones the last goes first, and the others see its result.
    let mut axes: Vec<(usize, bool)> = Vec::new();
    for (&d, &r) in shape.iter().zip(&mask).filter(|(d, _)| **d != 1) {
        match axes.last_mut() {
            Some((length, kind)) if *kind == r => *length *= d,
            _ => axes.push((d, r)),
        }
    }
    let blocks: Vec<usize> = (0..axes.len()).rev().filter(|&a| axes[a].1).collect();
    let rows = match of {
        Of::Sum | Of::Mean => gpu::Rows::Sum,
        Of::Max => gpu::Rows::Max,
        Of::Min => gpu::Rows::Min,
        Of::Prod => gpu::Rows::Prod,
        Of::L1 => gpu::Rows::L1,
        Of::L2 => gpu::Rows::L2,
        Of::LogSum => gpu::Rows::LogSum,
        Of::SumSquare => gpu::Rows::SumSquare,
        Of::LogSumExp => gpu::Rows::LogSumExp,
    };
    // What the others make of results of it is the same only for these.
    let again = matches!(of, Of::Sum | Of::Mean | Of::Max | Of::Min | Of::Prod);
    if blocks.len() > 1 && !again {
        return Ok(None);
    }
    let count: usize = axes.iter().filter(|a| a.1).map(|a| a.0).product();
    let (mut out, mut from) = (Recorded::default(), At::In(0));
    for (i, &a) in blocks.iter().enumerate() {
        let outer: usize = axes[..a].iter().map(|a| a.0).product();
        let inner: usize = axes[a + 1..].iter().filter(|a| !a.1).map(|a| a.0).product();
        let last = i + 1 == blocks.len();
        let factor = if of == Of::Mean && last { 1.0 / count as f32 } else { 1.0 };
        let to = if last { At::Out(0) } else { out.scratch(4 * outer * inner) };
        let along = gpu::Along { rows, outer, length: axes[a].0, inner, scales: axes[a].0, epsilon: 0.0, factor };
        let Some(next) = out.and(along.call(), vec![from, to.clone()]) else { return Ok(None) };
        (out, from) = (next, to);
    }
    // Nothing but axes of length one is reduced: each element alone.
    if blocks.is_empty() {
        return Ok(super::record::along(rows, axes.iter().map(|a| a.0).product(), 1, 1, 1.0));
    }
    Ok(Some(out))
}

/// The rows of a reduction, as [`Rows`] has them: neighbouring axes of one kind are one axis, the last is the row.
fn rows(shape: &[usize], mask: &[bool]) -> (usize, bool, Vec<u32>) {
    let mut axes: Vec<(usize, bool)> = Vec::new();
    for (&d, &r) in shape.iter().zip(mask) {
        match axes.last_mut() {
            _ if d == 1 => {}
            Some((len, along)) if *along == r => *len *= d,
            _ => axes.push((d, r)),
        }
    }
    let (len, along) = axes.pop().unwrap_or((1, false));
    let mut step = if along { 1 } else { len };
    let mut strides = vec![0; axes.len()];
    for (s, &(d, r)) in strides.iter_mut().zip(&axes).rev() {
        if !r {
            *s = step;
            step *= d;
        }
    }
    let outer: Vec<usize> = axes.iter().map(|a| a.0).collect();
    let mut targets = Vec::new();
    // The caller has seen that every element has a number of 32 bits; so has every result.
    if len > 0 {
        for_each_strided(0, &strides, &outer, |t| targets.push(t as u32));
    }
    (len, along, targets)
}

/// The gradient by each element of what it was reduced to.
fn vjp(of: Of, b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, x, y) = (b.dy()?, b.x(0)?, b.y()?);
    let shape = b.shape(x).to_vec();
    let axes = match b.optional(1) {
        Some(v) => Some(b.fact(v).ints().ok_or_else(|| OpError::unsupported("axes that depend on data"))?),
        None => b.attrs().ints("axes")?.map(<[i64]>::to_vec),
    };
    let mask = reduced(&b.attrs(), shape.len(), axes.as_deref())?;
    let kept = reduced_shape(&shape, &mask, true);
    let count = shape.iter().zip(&mask).filter(|&(_, &r)| r).map(|(&d, _)| d).product::<usize>();
    let (dy, y) = (b.reshape(dy, &kept)?, b.reshape(y, &kept)?);
    let dx = match of {
        Of::Sum => dy,
        Of::Mean => b.scaled(dy, 1.0 / count as f64)?,
        Of::Max | Of::Min => {
            // To all that are the extreme, in equal parts.
            let equal = b.binary("Equal", x, y)?;
            let dtype = b.dtype(x);
            let marks = b.indicator(equal, dtype)?;
            let axes: Vec<usize> = (0..shape.len()).filter(|&i| mask[i]).collect();
            let ties = b.sum(marks, &axes)?;
            let part = b.div(dy, ties)?;
            b.mul(part, marks)?
        }
        Of::L1 => {
            let sign = b.unary("Sign", x)?;
            b.mul(dy, sign)?
        }
        Of::L2 => {
            // The norm of nothing but zeros has the gradient 0, one of those it may have.
            let ratio = b.div(x, y)?;
            let zero = b.scalar_like(y, 0.0)?;
            let some = b.binary("Greater", y, zero)?;
            let ratio = b.only(some, ratio)?;
            b.mul(dy, ratio)?
        }
        Of::SumSquare => {
            let twice = b.scaled(x, 2.0)?;
            b.mul(dy, twice)?
        }
        Of::LogSum => {
            let y = b.unary("Neg", y)?;
            let inverse = b.unary("Exp", y)?;
            b.mul(dy, inverse)?
        }
        Of::LogSumExp => {
            let share = b.sub(x, y)?;
            let share = b.unary("Exp", share)?;
            b.mul(dy, share)?
        }
        Of::Prod => {
            let others = product_of_others(b, x, &mask)?;
            b.mul(dy, others)?
        }
    };
    let dx = b.expand(dx, &shape)?;
    b.give(0, dx);
    Ok(())
}

/// For each element, the product of those it is reduced with, itself left out: right also where one of them is 0.
fn product_of_others(b: &mut Backward<'_>, x: ValueId, mask: &[bool]) -> Result<ValueId, OpError> {
    let shape = b.shape(x).to_vec();
    let order: Vec<usize> = (0..mask.len()).filter(|&i| !mask[i]).chain((0..mask.len()).filter(|&i| mask[i])).collect();
    let turned: Vec<usize> = order.iter().map(|&i| shape[i]).collect();
    let kept = mask.iter().filter(|&&r| !r).count();
    let (rows, count) = (turned[..kept].iter().product(), turned[kept..].iter().product());
    let x = b.transpose(x, &order)?;
    let x = b.reshape(x, &[rows, count])?;
    let axis = b.constant(Tensor::i64(&[], vec![1])?);
    let running = |b: &mut Backward<'_>, reverse: i64| {
        b.standard("CumProd", [("exclusive", Attr::Int(1)), ("reverse", Attr::Int(reverse))], &[x, axis])
    };
    let (before, after) = (running(b, 0)?, running(b, 1)?);
    let others = b.mul(before, after)?;
    let others = b.reshape(others, &turned)?;
    let mut back = vec![0; order.len()];
    order.iter().enumerate().for_each(|(i, &o)| back[o] = i);
    b.transpose(others, &back)
}

struct Reduce {
    of: Of,
    /// One over the number of elements reduced to each result.
    scale: f32,
    len: usize,
    along: bool,
    targets: Vec<u32>,
}

impl Kernel for Reduce {
    fn name(&self) -> &'static str {
        if self.along { "reduce-rows" } else { "reduce-columns" }
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes, scratch) = io.parts();
        let (x, y) = (reads.f32(0), writes.f32(0));
        let rows = Rows { len: self.len, along: self.along, targets: &self.targets };
        let fold = match self.of {
            Of::Sum | Of::Mean | Of::LogSum => Fold::Sum,
            Of::L1 => Fold::SumAbs,
            Of::L2 | Of::SumSquare => Fold::SumSquare,
            Of::Prod => Fold::Prod,
            Of::Max => Fold::Max,
            Of::Min => Fold::Min,
            Of::LogSumExp => return reduce::log_sum_exp(rows, x, y, scratch),
        };
        reduce::reduce(fold, rows, x, y);
        match self.of {
            Of::Mean => y.iter_mut().for_each(|v| *v *= self.scale),
            Of::L2 => y.iter_mut().for_each(|v| *v = v.sqrt()),
            Of::LogSum => y.iter_mut().for_each(|v| *v = v.ln()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_axes_of_one_kind_become_one_row() {
        assert_eq!(rows(&[2, 3, 4, 5], &[false, false, true, true]), (20, true, vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(rows(&[2, 1, 3], &[true, false, false]), (3, false, vec![0, 0]));
        assert_eq!(rows(&[2, 3, 2], &[false, true, false]), (2, false, vec![0, 0, 0, 2, 2, 2]));
        assert_eq!(rows(&[], &[]), (1, false, vec![0]));
        assert_eq!(rows(&[2, 0], &[false, true]), (0, true, vec![]));
    }
}
