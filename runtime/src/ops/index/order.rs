//! The largest and smallest elements along an axis, and where they are.
use super::{around, order_keys};
use crate::ops::shape::elements;
use crate::ops::{Attrs, Fact, OpDef, OpError, axis_of, ints_of, need, optional};
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Tensor};

/// `ArgMax`: index of the largest element along `axis`; of equal ones the first, or the last. A NaN counts
/// as the largest.
pub(super) static ARG_MAX: OpDef =
    OpDef::new("ArgMax", "the index of the largest element along an axis", arg_rule, |a, i| arg(a, i, true))
        .kernel(|l| arg_lower(l, true));

/// `ArgMin`: index of the smallest element along `axis`; of equal ones the first, or the last. A NaN counts
/// as the smallest.
pub(super) static ARG_MIN: OpDef =
    OpDef::new("ArgMin", "the index of the smallest element along an axis", arg_rule, |a, i| arg(a, i, false))
        .kernel(|l| arg_lower(l, false));

fn arg_rule(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let (_, shape) = arg_shape(attrs, &need(inputs, 0, "data")?.shape)?;
    Ok(Some(vec![Fact::new(DType::I64, shape)]))
}

fn arg_shape(attrs: &Attrs, from: &[usize]) -> Result<(usize, Vec<usize>), OpError> {
    let axis = axis_of(attrs.int("axis", 0)?, from.len())?;
    let mut shape = from.to_vec();
    shape[axis] = 1;
    if !attrs.flag("keepdims", true)? {
        shape.remove(axis);
    }
    if from[axis] == 0 && elements(&shape)? > 0 {
        return Err(OpError::shape(format!("axis {axis} to search"), "at least one element", 0));
    }
    Ok((axis, shape))
}

fn arg(attrs: &Attrs, inputs: &[Option<&Tensor>], largest: bool) -> Result<Vec<Tensor>, OpError> {
    let x = need(inputs, 0, "data")?;
    let (axis, shape) = arg_shape(attrs, x.shape())?;
    let (outer, dim, inner) = around(x.shape(), axis);
    let last = attrs.flag("select_last_index", false)?;
    let mut keys = order_keys(x.data());
    if !largest {
        // NumPy, which the standard is written in, takes a NaN for the smallest as well as for the largest.
        keys.iter_mut().for_each(|k| *k = if *k == i128::MAX { *k } else { !*k });
    }
    let mut out = Vec::with_capacity(elements(&shape)?);
    for o in 0..outer {
        for j in 0..inner {
            let key = |i: usize| keys[(o * dim + i) * inner + j];
            let mut best = 0;
            for i in 1..dim {
                if key(i) > key(best) || (last && key(i) == key(best)) {
                    best = i;
                }
            }
            out.push(best as i64);
        }
    }
    Ok(vec![Tensor::i64(&shape, out)?])
}

fn arg_lower(l: &Lowering<'_>, largest: bool) -> Result<Option<Lowered>, OpError> {
    let (axis, _) = arg_shape(l.attrs, l.shape(0)?)?;
    let (_, dim, inner) = around(l.shape(0)?, axis);
    if l.dtype(0) != Some(DType::F32) || dim == 0 || inner == 0 {
        return Ok(None);
    }
    let last = l.attrs.flag("select_last_index", false)?;
    Ok(Some(Lowered::new(Arg { dim, inner, largest, last }, vec![0]).with_scratch(inner)))
}

/// Order of `f32` as integers: NaN above everything, the two zeros equal.
#[inline(always)]
fn order_key(x: f32) -> i32 {
    let bits = (x + 0.0).to_bits() as i32;
    if x.is_nan() { i32::MAX } else { bits ^ (((bits >> 31) as u32) >> 1) as i32 }
}

struct Arg {
    dim: usize,
    inner: usize,
    largest: bool,
    last: bool,
}

impl Kernel for Arg {
    fn name(&self) -> &'static str {
        "arg-f32"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes, scratch) = io.parts();
        let x = reads.f32(0);
        let y = writes.of::<i64>(0);
        let best: &mut [i32] = bytemuck::cast_slice_mut(scratch);
        // The largest of the complements is the smallest; a NaN is above them too.
        let key = |x: f32| if self.largest || x.is_nan() { order_key(x) } else { !order_key(x) };
        for (x, y) in x.chunks_exact(self.dim * self.inner).zip(y.chunks_exact_mut(self.inner)) {
            if self.inner == 1 {
                let best = x.iter().fold(i32::MIN, |a, &b| a.max(key(b)));
                let is = |x: &f32| key(*x) == best;
                y[0] = if self.last { x.iter().rposition(is) } else { x.iter().position(is) }.unwrap_or(0) as i64;
                continue;
            }
            let mut rows = x.chunks_exact(self.inner);
            rows.next().into_iter().for_each(|x| best.iter_mut().zip(x).for_each(|(b, &x)| *b = key(x)));
            y.fill(0);
            for (i, x) in rows.enumerate() {
                for ((b, y), &x) in best.iter_mut().zip(&mut *y).zip(x) {
                    let k = key(x);
                    if k > *b || (self.last && k == *b) {
                        *b = k;
                        *y = i as i64 + 1;
                    }
                }
            }
        }
    }
}

/// `TopK`: the `k` largest (or smallest) elements along `axis` in order, and their indices; of equal ones the one with
/// the lower index comes first. Unsorted is sorted too.
pub(super) static TOP_K: OpDef = OpDef::new(
    "TopK",
    "the largest or smallest elements along an axis, and their indices",
    |attrs, inputs| {
        let x = need(inputs, 0, "X")?;
        let given = match optional(inputs, 1) {
            Some(f) => match f.ints() {
                Some(k) => Some(k),
                None => return Ok(None),
            },
            None => None,
        };
        let (_, shape, _) = top_shape(attrs, &x.shape, given)?;
        Ok(Some(vec![Fact::new(x.dtype, shape.clone()), Fact::new(DType::I64, shape)]))
    },
    |attrs, inputs| {
        let x = need(inputs, 0, "X")?;
        let (axis, shape, k) = top_shape(attrs, x.shape(), optional(inputs, 1).map(ints_of))?;
        let largest = attrs.flag("largest", true)?;
        let (outer, dim, inner) = around(x.shape(), axis);
        let mut keys = order_keys(x.data());
        if largest {
            keys.iter_mut().for_each(|k| *k = !*k);
        }
        let mut at = vec![0usize; elements(&shape)?];
        let mut row: Vec<(i128, usize)> = Vec::with_capacity(dim);
        for o in 0..outer {
            for j in 0..inner {
                row.clear();
                row.extend((0..dim).map(|i| (keys[(o * dim + i) * inner + j], i)));
                row.sort_unstable();
                row[..k].iter().enumerate().for_each(|(n, &(_, i))| at[(o * k + n) * inner + j] = i);
            }
        }
        // Where the n-th of the result is in the operand.
        let place = |n: usize| (n / (k * inner) * dim + at[n]) * inner + n % inner;
        let places: Vec<usize> = (0..at.len()).map(place).collect();
        Ok(vec![
            Tensor::new(&shape, x.data().pick(&places))?,
            Tensor::i64(&shape, at.into_iter().map(|i| i as i64).collect())?,
        ])
    },
)
.kernel(|l| {
    let given = match (l.has(1), l.constant(1)) {
        (false, _) => None,
        (true, Some(k)) => Some(ints_of(k)),
        (true, None) => return Ok(None),
    };
    let (axis, _, k) = top_shape(l.attrs, l.shape(0)?, given)?;
    let (_, dim, inner) = around(l.shape(0)?, axis);
    if l.dtype(0) != Some(DType::F32) || k == 0 || inner == 0 || u32::try_from(dim).is_err() {
        return Ok(None);
    }
    let largest = l.attrs.flag("largest", true)?;
    Ok(Some(Lowered::new(Top { dim, inner, k, largest }, vec![0]).with_scratch(2 * dim)))
})
.vjp(super::backward::top_k);

/// Axis, shape and `k`, which is an attribute before version 10.
fn top_shape(attrs: &Attrs, from: &[usize], given: Option<Vec<i64>>) -> Result<(usize, Vec<usize>, usize), OpError> {
    let axis = axis_of(attrs.int("axis", -1)?, from.len())?;
    let k = given.unwrap_or(vec![attrs.int("k", -1)?]);
    let wrong = || OpError::shape("K", format!("one number from 0 to {}", from[axis]), &k);
    let k = match k[..] {
        [k] => usize::try_from(k).ok().filter(|&k| k <= from[axis]).ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    let mut shape = from.to_vec();
    shape[axis] = k;
    Ok((axis, shape, k))
}

struct Top {
    dim: usize,
    inner: usize,
    k: usize,
    largest: bool,
}

impl Kernel for Top {
    fn name(&self) -> &'static str {
        "top-k-f32"
    }

    fn run(&self, io: &mut Io<'_>) {
        let Top { dim, inner, k, largest } = *self;
        let (reads, writes, scratch) = io.parts();
        // Key and index in one number: their order is that of the result.
        let row: &mut [u64] = bytemuck::cast_slice_mut(scratch);
        for (o, x) in reads.f32(0).chunks_exact(dim * inner).enumerate() {
            for j in 0..inner {
                for (i, (r, &x)) in row.iter_mut().zip(x[j..].iter().step_by(inner)).enumerate() {
                    let key = order_key(x) as u32 ^ 0x8000_0000;
                    *r = u64::from(if largest { !key } else { key }) << 32 | i as u64;
                }
                if k < dim {
                    row.select_nth_unstable(k - 1);
                }
                row[..k].sort_unstable();
                for (n, r) in row[..k].iter().enumerate() {
                    let (i, to) = ((*r as u32) as usize, (o * k + n) * inner + j);
                    if let Some(y) = writes.f32(0).get_mut(to) {
                        *y = x[i * inner + j];
                    }
                    if let Some(y) = writes.of::<i64>(1).get_mut(to) {
                        *y = i as i64;
                    }
                }
            }
        }
    }
}
