//! Dense tensors in row-major order: the value that crosses every module boundary of this crate.
//!
//! Deliberately without arithmetic, views or broadcasting: those belong to `ops` and `plan`.
use std::fmt;

use half::f16;

/// Element types hone computes with, spelled as safetensors and NumPy users know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// IEEE 754 binary64.
    F64,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
    /// Boolean, one byte each.
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            DType::I8 | DType::U8 | DType::Bool => 1,
            DType::F16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::F64 | DType::I64 => 8,
        }
    }

    /// The name used in manifests and messages: `f32`, `i64`, …
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::F64 => "f64",
            DType::I8 => "i8",
            DType::U8 => "u8",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::Bool => "bool",
        }
    }

    /// The inverse of [`DType::name`]; `None` for a name hone does not know.
    pub fn from_name(name: &str) -> Option<DType> {
        [DType::F32, DType::F16, DType::F64, DType::I8, DType::U8, DType::I32, DType::I64, DType::Bool]
            .into_iter()
            .find(|d| d.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The elements of a [`Tensor`], one vector per type.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 16-bit floats.
    F16(Vec<f16>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// Signed bytes.
    I8(Vec<i8>),
    /// Unsigned bytes.
    U8(Vec<u8>),
    /// 32-bit integers.
    I32(Vec<i32>),
    /// 64-bit integers.
    I64(Vec<i64>),
    /// Booleans.
    Bool(Vec<bool>),
}

impl Data {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Data::F32(v) => v.len(),
            Data::F16(v) => v.len(),
            Data::F64(v) => v.len(),
            Data::I8(v) => v.len(),
            Data::U8(v) => v.len(),
            Data::I32(v) => v.len(),
            Data::I64(v) => v.len(),
            Data::Bool(v) => v.len(),
        }
    }

    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Data::F32(_) => DType::F32,
            Data::F16(_) => DType::F16,
            Data::F64(_) => DType::F64,
            Data::I8(_) => DType::I8,
            Data::U8(_) => DType::U8,
            Data::I32(_) => DType::I32,
            Data::I64(_) => DType::I64,
            Data::Bool(_) => DType::Bool,
        }
    }
}

/// What is wrong with a tensor that was about to be made or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The element count is not the product of the shape.
    #[error("a tensor of shape {shape:?} needs {expected} elements, {found} were given")]
    Length {
        /// The shape asked for.
        shape: Vec<usize>,
        /// The product of `shape`.
        expected: usize,
        /// Elements actually present.
        found: usize,
    },
    /// The product of the shape does not fit in memory arithmetic.
    #[error("shape {shape:?} has more elements than this machine can address")]
    TooLarge {
        /// The shape asked for.
        shape: Vec<usize>,
    },
    /// Elements of another type were asked for.
    #[error("a tensor of {found} was read as {expected}")]
    DType {
        /// The type asked for.
        expected: DType,
        /// The type present.
        found: DType,
    },
}

/// A dense row-major tensor. The element count always equals the product of the shape; rank 0 is a scalar.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

/// Number of elements of `shape`, or `None` when the product overflows.
pub fn checked_len(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

impl Tensor {
    /// A tensor of `shape` over `data`.
    ///
    /// # Errors
    /// [`TensorError::Length`] when the count differs from the product of `shape`, [`TensorError::TooLarge`] on overflow.
    pub fn new(shape: &[usize], data: Data) -> Result<Tensor, TensorError> {
        let expected = checked_len(shape).ok_or_else(|| TensorError::TooLarge { shape: shape.to_vec() })?;
        if expected != data.len() {
            return Err(TensorError::Length { shape: shape.to_vec(), expected, found: data.len() });
        }
        Ok(Tensor { shape: shape.to_vec(), data })
    }

    /// An `f32` tensor.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Result<Tensor, TensorError> {
        Tensor::new(shape, Data::F32(data))
    }

    /// An `i64` tensor.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn i64(shape: &[usize], data: Vec<i64>) -> Result<Tensor, TensorError> {
        Tensor::new(shape, Data::I64(data))
    }

    /// A tensor of zeros (or `false`).
    ///
    /// # Errors
    /// [`TensorError::TooLarge`] when the element count overflows.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Tensor, TensorError> {
        let n = checked_len(shape).ok_or_else(|| TensorError::TooLarge { shape: shape.to_vec() })?;
        let data = match dtype {
            DType::F32 => Data::F32(vec![0.0; n]),
            DType::F16 => Data::F16(vec![f16::ZERO; n]),
            DType::F64 => Data::F64(vec![0.0; n]),
            DType::I8 => Data::I8(vec![0; n]),
            DType::U8 => Data::U8(vec![0; n]),
            DType::I32 => Data::I32(vec![0; n]),
            DType::I64 => Data::I64(vec![0; n]),
            DType::Bool => Data::Bool(vec![false; n]),
        };
        Ok(Tensor { shape: shape.to_vec(), data })
    }

    /// The dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// True when some dimension is zero.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Gives the elements away.
    pub fn into_data(self) -> Data {
        self.data
    }

    /// The elements as `f32`.
    ///
    /// # Errors
    /// [`TensorError::DType`] when they are not.
    pub fn as_f32(&self) -> Result<&[f32], TensorError> {
        match &self.data {
            Data::F32(v) => Ok(v),
            other => Err(TensorError::DType { expected: DType::F32, found: other.dtype() }),
        }
    }

    /// The elements as `i64`.
    ///
    /// # Errors
    /// [`TensorError::DType`] when they are not.
    pub fn as_i64(&self) -> Result<&[i64], TensorError> {
        match &self.data {
            Data::I64(v) => Ok(v),
            other => Err(TensorError::DType { expected: DType::I64, found: other.dtype() }),
        }
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// [`TensorError::Length`] when the counts differ.
    pub fn reshaped(self, shape: &[usize]) -> Result<Tensor, TensorError> {
        Tensor::new(shape, self.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_element_count_is_an_error_that_names_both_figures() {
        let e = Tensor::f32(&[2, 3], vec![0.0; 5]).unwrap_err();
        assert_eq!(e, TensorError::Length { shape: vec![2, 3], expected: 6, found: 5 });
    }

    #[test]
    fn a_shape_whose_product_overflows_is_refused_without_allocating() {
        assert!(matches!(Tensor::zeros(DType::F32, &[usize::MAX, 2]), Err(TensorError::TooLarge { .. })));
    }

    #[test]
    fn every_dtype_name_reads_back() {
        for d in [DType::F32, DType::F16, DType::F64, DType::I8, DType::U8, DType::I32, DType::I64, DType::Bool] {
            assert_eq!(DType::from_name(d.name()), Some(d));
        }
    }
}
