//! Running sums and products.
use super::around;
use crate::ops::{Attrs, Fact, OpDef, OpError, axis_of, ints_of, need};
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Data, Tensor};

/// `CumSum`: `y[i] = Σ x[..=i]` along an axis; `exclusive` without `x[i]`, `reverse` from the end.
pub(super) static CUM_SUM: OpDef =
    OpDef::new("CumSum", "the running sum along an axis", rule, |a, i| run(a, i, &Fold::SUM))
        .kernel(|l| lower(l, false))
        .vjp(super::backward::cum_sum);

/// `CumProd`: `y[i] = Π x[..=i]` along an axis; `exclusive` without `x[i]`, `reverse` from the end.
pub(super) static CUM_PROD: OpDef =
    OpDef::new("CumProd", "the running product along an axis", rule, |a, i| run(a, i, &Fold::PRODUCT))
        .kernel(|l| lower(l, true));

fn rule(_: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let (x, axis) = (need(inputs, 0, "x")?, need(inputs, 1, "axis")?);
    if let Some(axis) = &axis.value {
        axis_in(axis, x.shape.len())?;
    }
    Ok(Some(vec![Fact::new(x.dtype, x.shape.clone())]))
}

fn axis_in(t: &Tensor, rank: usize) -> Result<usize, OpError> {
    match ints_of(t)[..] {
        [axis] => axis_of(axis, rank),
        _ => Err(OpError::shape("axis", "one number", t.shape())),
    }
}

/// What is folded, in both kinds of arithmetic.
struct Fold {
    float: (f64, fn(f64, f64) -> f64),
    int: (i128, fn(i128, i128) -> i128),
}

impl Fold {
    const SUM: Fold = Fold { float: (0.0, |a, b| a + b), int: (0, i128::wrapping_add) };
    // Wrapping in 128 bits keeps the lower 64 right.
    const PRODUCT: Fold = Fold { float: (1.0, |a, b| a * b), int: (1, i128::wrapping_mul) };
}

fn run(attrs: &Attrs, inputs: &[Option<&Tensor>], fold: &Fold) -> Result<Vec<Tensor>, OpError> {
    let x = need(inputs, 0, "x")?;
    let axis = axis_in(need(inputs, 1, "axis")?, x.shape().len())?;
    let walk = Walk::new(attrs, x.shape(), axis)?;
    let data = if x.dtype().is_float() {
        Data::from_f64(x.dtype(), &walk.fold(&x.data().to_f64(), fold.float.0, fold.float.1))
    } else {
        Data::from_i128(x.dtype(), &walk.fold(&x.data().to_i128(), fold.int.0, fold.int.1))
    };
    Ok(vec![Tensor::new(x.shape(), data)?])
}

/// The order in which an axis is walked.
struct Walk {
    outer: usize,
    dim: usize,
    inner: usize,
    exclusive: bool,
    reverse: bool,
}

impl Walk {
    fn new(attrs: &Attrs, shape: &[usize], axis: usize) -> Result<Walk, OpError> {
        let (outer, dim, inner) = around(shape, axis);
        let (exclusive, reverse) = (attrs.flag("exclusive", false)?, attrs.flag("reverse", false)?);
        Ok(Walk { outer, dim, inner, exclusive, reverse })
    }

    fn fold<T: Copy>(&self, x: &[T], first: T, f: fn(T, T) -> T) -> Vec<T> {
        let mut y = x.to_vec();
        for o in 0..self.outer {
            for j in 0..self.inner {
                let mut sum = first;
                for i in 0..self.dim {
                    let i = if self.reverse { self.dim - 1 - i } else { i };
                    let at = (o * self.dim + i) * self.inner + j;
                    let next = f(sum, x[at]);
                    y[at] = if self.exclusive { sum } else { next };
                    sum = next;
                }
            }
        }
        y
    }

    /// The same a row of `inner` elements at a time, each from the row before it.
    #[inline(always)]
    fn rows<T: Copy>(&self, x: &[T], y: &mut [T], first: T, f: impl Fn(T, T) -> T) {
        let n = self.inner;
        for (x, y) in x.chunks_exact(self.dim * n).zip(y.chunks_exact_mut(self.dim * n)) {
            let at = |i: usize| if self.reverse { self.dim - 1 - i } else { i } * n;
            let start = at(0);
            if self.exclusive {
                y[start..start + n].fill(first);
            } else {
                y[start..start + n].copy_from_slice(&x[start..start + n]);
            }
            for i in 1..self.dim {
                let (before, now) = (at(i - 1), at(i));
                let from = if self.exclusive { before } else { now };
                let (low, high) = y.split_at_mut(before.max(now));
                let (last, here) = if before < now {
                    (&low[before..before + n], &mut high[..n])
                } else {
                    (&high[..n], &mut low[now..now + n])
                };
                here.iter_mut().zip(last).zip(&x[from..from + n]).for_each(|((y, &a), &b)| *y = f(a, b));
            }
        }
    }
}

fn lower(l: &Lowering<'_>, product: bool) -> Result<Option<Lowered>, OpError> {
    let (Some(dtype), Some(axis)) = (l.dtype(0), l.constant(1)) else { return Ok(None) };
    let walk = Walk::new(l.attrs, l.shape(0)?, axis_in(axis, l.shape(0)?.len())?)?;
    let known = matches!(dtype, DType::F32 | DType::F64 | DType::I32 | DType::I64);
    if !known || walk.dim == 0 || walk.inner == 0 {
        return Ok(None);
    }
    Ok(Some(Lowered::new(Running { walk, dtype, product }, vec![0])))
}

struct Running {
    walk: Walk,
    dtype: DType,
    product: bool,
}

impl Kernel for Running {
    fn name(&self) -> &'static str {
        "running"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        macro_rules! go {
            ($t:ty, $add:expr, $mul:expr) => {{
                let (x, y) = (reads.of::<$t>(0), writes.of::<$t>(0));
                if self.product { self.walk.rows(x, y, 1 as $t, $mul) } else { self.walk.rows(x, y, 0 as $t, $add) }
            }};
        }
        match self.dtype {
            DType::F32 => go!(f32, |a, b| a + b, |a, b| a * b),
            DType::F64 => go!(f64, |a, b| a + b, |a, b| a * b),
            DType::I32 => go!(i32, i32::wrapping_add, i32::wrapping_mul),
            _ => go!(i64, i64::wrapping_add, i64::wrapping_mul),
        }
    }
}
