//! Operators that find elements by index, or indices by element.
//!
//! Negative indices count from the end; an index out of range is an error, also where it is known only at run time.
use super::OpDef;
use super::{OpError, ints_of};
use crate::plan::Reads;
use crate::tensor::{DType, Data, Tensor};

mod cumulative;
mod gather;
mod nms;
mod order;
mod scatter;
mod select;
mod unique;

/// The rows of this family.
pub(super) static OPS: &[&OpDef] = &[
    &cumulative::CUM_PROD,
    &cumulative::CUM_SUM,
    &gather::GATHER,
    &gather::GATHER_ELEMENTS,
    &gather::GATHER_ND,
    &gather::GATHER_ND_MICROSOFT,
    &nms::NON_MAX_SUPPRESSION,
    &order::ARG_MAX,
    &order::ARG_MIN,
    &order::TOP_K,
    &scatter::SCATTER,
    &scatter::SCATTER_ELEMENTS,
    &scatter::SCATTER_ND,
    &scatter::TENSOR_SCATTER,
    &select::COMPRESS,
    &select::NON_ZERO,
    &select::ONE_HOT,
    &unique::UNIQUE,
    &unique::UNIQUE_MICROSOFT,
];

/// `index` along an axis of length `dim`, counted from the front.
///
/// # Errors
/// [`OpError::Shape`] when it is outside `-dim..dim`.
#[inline(always)]
fn position(index: i64, dim: usize) -> Result<usize, OpError> {
    let at = if index < 0 { index.wrapping_add(dim as i64) } else { index };
    // A negative one that is left becomes larger than any length.
    if at as u64 >= dim as u64 { Err(outside(index, dim)) } else { Ok(at as usize) }
}

#[cold]
fn outside(index: i64, dim: usize) -> OpError {
    OpError::shape("indices", format!("numbers from -{dim} to {}", dim as i64 - 1), index)
}

/// Product of the lengths before `axis`, length of `axis`, product of those after it.
fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

/// Indices of a reference function, which are integers.
fn indices_of(t: &Tensor) -> Result<Vec<i64>, OpError> {
    if t.dtype().is_integer() { Ok(ints_of(t)) } else { Err(OpError::unsupported(format!("indices of {}", t.dtype()))) }
}

/// Indices of a kernel.
#[derive(Clone, Copy)]
enum Ints<'a> {
    I32(&'a [i32]),
    I64(&'a [i64]),
}

impl<'a> Ints<'a> {
    /// Whether a kernel can read indices of that type.
    fn takes(dtype: Option<DType>) -> Option<bool> {
        match dtype {
            Some(DType::I64) => Some(true),
            Some(DType::I32) => Some(false),
            _ => None,
        }
    }

    fn of(reads: &Reads<'a>, operand: usize, wide: bool) -> Ints<'a> {
        if wide { Ints::I64(reads.of(operand)) } else { Ints::I32(reads.of(operand)) }
    }

    #[inline(always)]
    fn at(&self, i: usize) -> i64 {
        match self {
            Ints::I32(v) => i64::from(v[i]),
            Ints::I64(v) => v[i],
        }
    }
}

/// Numbers that order as the elements do: NaN above everything and equal to itself, the two zeros equal.
fn order_keys(data: &Data) -> Vec<i128> {
    if !data.dtype().is_float() {
        return data.to_i128();
    }
    let key = |x: f64| match x {
        x if x.is_nan() => i128::MAX,
        x if x < 0.0 => -i128::from((-x).to_bits()),
        x => i128::from(x.abs().to_bits()),
    };
    data.to_f64().into_iter().map(key).collect()
}

/// Calls `$f::<N>($args)` for elements of `$bytes` bytes.
macro_rules! by_bytes {
    ($bytes:expr, $f:ident($($arg:expr),*)) => {
        match $bytes {
            1 => $f::<1>($($arg),*),
            2 => $f::<2>($($arg),*),
            4 => $f::<4>($($arg),*),
            _ => $f::<8>($($arg),*),
        }
    };
}
use by_bytes;
