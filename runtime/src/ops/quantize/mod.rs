//! Operators on integers that stand for reals: `real = (q - zero_point) · scale`.
//!
//! Rounding is half to even. Where ONNX Runtime computes a rescaling in `f32`, so do the formulas here: integers that
//! decide an output code are then the same. A `DequantizeLinear` of a constant weight is absorbed by the operator that
//! uses it (`Lowering::weight`).
use super::{Fact, OpDef, OpError, need, optional};
use crate::tensor::{DType, Data, Tensor};

mod attention;
mod backward;
mod blocks;
mod conv;
mod convert;
mod elementwise;
pub(in crate::ops) mod fused;
mod heads;
mod linear;
mod looked;
mod matmul;
mod packed;
mod patches;
mod pool;
mod product;
mod spelled;
mod tables;
mod window;
pub(crate) use blocks::nbits_weight;
pub(in crate::ops) use convert::quantised_as_it_comes;
pub(in crate::ops) use linear::dynamic_range;
pub(in crate::ops) use product::{Lie, Right, less_zeros, told_product};
pub(in crate::ops) use spelled::lstm as lstm_vjp;

/// The rows of this family.
pub(super) static OPS: &[&OpDef] = &[
    &linear::QUANTIZE_LINEAR,
    &linear::DEQUANTIZE_LINEAR,
    &linear::DYNAMIC_QUANTIZE_LINEAR,
    &linear::MS_QUANTIZE_LINEAR,
    &linear::MS_DEQUANTIZE_LINEAR,
    &matmul::MATMUL_INTEGER,
    &matmul::QLINEAR_MATMUL,
    &matmul::QGEMM,
    &matmul::MATMUL_INTEGER_TO_FLOAT,
    &matmul::DYNAMIC_QUANTIZE_MATMUL,
    &conv::CONV_INTEGER,
    &conv::QLINEAR_CONV,
    &conv::MS_QLINEAR_CONV,
    &elementwise::QLINEAR_ADD,
    &elementwise::QLINEAR_MUL,
    &elementwise::QLINEAR_SIGMOID,
    &elementwise::QLINEAR_LEAKY_RELU,
    &elementwise::QLINEAR_SOFTMAX,
    &elementwise::QLINEAR_WHERE,
    &elementwise::QLINEAR_CONCAT,
    &elementwise::QLINEAR_REDUCE_MEAN,
    &pool::QLINEAR_GLOBAL_AVERAGE_POOL,
    &pool::QLINEAR_AVERAGE_POOL,
    &pool::NHWC_MAX_POOL,
    &blocks::MATMUL_NBITS,
    &blocks::GATHER_BLOCK_QUANTIZED,
    &attention::QATTENTION,
    &attention::QEMBED_LAYER_NORMALIZATION,
];

/// Scale and zero point of a tensor quantised as a whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::ops) struct Affine {
    pub(in crate::ops) scale: f32,
    pub(in crate::ops) zero: i32,
}

impl Affine {
    /// Reads the operands at `at` (scale) and `at + 1` (zero point, 0 when absent), each of one element.
    ///
    /// # Errors
    /// [`OpError`] naming `what` when one is missing or has not one element.
    pub(in crate::ops) fn of(inputs: &[Option<&Tensor>], at: usize, what: &'static str) -> Result<Affine, OpError> {
        let scale = single(need(inputs, at, what)?, what)?;
        let zero = optional(inputs, at + 1).map_or(Ok(0.0), |z| single(z, what))?;
        Ok(Affine { scale: scale as f32, zero: zero as i32 })
    }

    /// The real a code stands for.
    pub(in crate::ops) fn real(self, q: i32) -> f32 {
        q.wrapping_sub(self.zero) as f32 * self.scale
    }

    /// The code of a real, within `range`.
    pub(in crate::ops) fn code(self, v: f32, range: (i32, i32)) -> i32 {
        round_to(v / self.scale, self.zero, range)
    }
}

/// The only element of a scale or zero point.
pub(in crate::ops) fn single(t: &Tensor, what: &str) -> Result<f64, OpError> {
    match t.data().to_f64()[..] {
        [v] => Ok(v),
        _ => Err(OpError::shape(format!("scale or zero point of {what}"), "one element", t.shape())),
    }
}

/// `v` rounded half to even, plus `zero`, within `range`; NaN becomes the smallest code, as ONNX Runtime has it.
pub(in crate::ops) fn round_to(v: f32, zero: i32, range: (i32, i32)) -> i32 {
    if v.is_nan() {
        return range.0;
    }
    (v.round_ties_even() as i64).saturating_add(i64::from(zero)).clamp(i64::from(range.0), i64::from(range.1)) as i32
}

/// Smallest and largest code of an integer type of 16 bits or fewer.
///
/// # Errors
/// [`OpError::Unsupported`] for another type.
pub(in crate::ops) fn range_of(dtype: DType) -> Result<(i32, i32), OpError> {
    match dtype.range() {
        Some((low, high)) if dtype.bits() <= 16 => Ok((low as i32, high as i32)),
        _ => Err(OpError::unsupported(format!("{dtype} as a quantised type"))),
    }
}

/// The codes of a tensor of integers of 32 bits or fewer.
///
/// # Errors
/// [`OpError::Unsupported`] for another type.
pub(in crate::ops) fn codes(t: &Tensor, what: &str) -> Result<Vec<i32>, OpError> {
    Ok(match t.data() {
        Data::U8(v) => v.iter().map(|&q| i32::from(q)).collect(),
        Data::I8(v) => v.iter().map(|&q| i32::from(q)).collect(),
        Data::I32(v) => v.clone(),
        d if d.dtype().is_integer() && d.dtype().bits() <= 32 => d.to_i128().into_iter().map(|q| q as i32).collect(),
        d => return Err(OpError::unsupported(format!("{what} of {}", d.dtype()))),
    })
}

/// A tensor of codes, which are within the range of `dtype`.
pub(in crate::ops) fn coded(dtype: DType, shape: &[usize], q: &[i32]) -> Result<Tensor, OpError> {
    Ok(match dtype {
        DType::U8 => Tensor::new(shape, Data::U8(q.iter().map(|&q| q as u8).collect()))?,
        DType::I8 => Tensor::new(shape, Data::I8(q.iter().map(|&q| q as i8).collect()))?,
        _ => Tensor::from_i128(dtype, shape, &q.iter().map(|&q| i128::from(q)).collect::<Vec<_>>())?,
    })
}

/// One output.
fn fact(dtype: DType, shape: impl Into<Vec<usize>>) -> Result<Option<Vec<Fact>>, OpError> {
    Ok(Some(vec![Fact::new(dtype, shape)]))
}
