//! Dense tensors in row-major order: the value that crosses every module boundary of this crate.
//!
//! Deliberately without arithmetic, views or broadcasting: those belong to `ops` and `plan`. What is here is what every
//! operator needs of a container: making one, reading it as numbers, and picking elements whatever their type.
use std::fmt;

use half::{bf16, f16};

pub mod safetensors;
pub mod small;

macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident $name:literal $onnx:literal $bytes:literal $class:ident;)*) => {
        /// Element types hone computes with, spelled as safetensors and NumPy users know them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DType { $($(#[$doc])* $variant,)* }

        impl DType {
            /// Every element type.
            pub const ALL: &'static [DType] = &[$(DType::$variant),*];

            /// Bytes of one element as it is held here; types of fewer than eight bits take one byte each.
            pub const fn size_bytes(self) -> usize {
                match self { $(DType::$variant => $bytes,)* }
            }

            /// The name used in manifests and messages: `f32`, `i64`, …
            pub const fn name(self) -> &'static str {
                match self { $(DType::$variant => $name,)* }
            }

            /// The number of ONNX's `TensorProto.DataType`.
            pub const fn onnx(self) -> i32 {
                match self { $(DType::$variant => $onnx,)* }
            }

            const fn class(self) -> Kind {
                match self { $(DType::$variant => Kind::$class,)* }
            }
        }
    };
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Float,
    Signed,
    Unsigned,
    Bool,
}

dtypes! {
    /// IEEE 754 binary32.
    F32 "f32" 1 4 Float;
    /// IEEE 754 binary16.
    F16 "f16" 10 2 Float;
    /// The upper half of an IEEE 754 binary32.
    BF16 "bf16" 16 2 Float;
    /// IEEE 754 binary64.
    F64 "f64" 11 8 Float;
    /// Signed 8-bit integer.
    I8 "i8" 3 1 Signed;
    /// Signed 16-bit integer.
    I16 "i16" 5 2 Signed;
    /// Signed 32-bit integer.
    I32 "i32" 6 4 Signed;
    /// Signed 64-bit integer.
    I64 "i64" 7 8 Signed;
    /// Unsigned 8-bit integer.
    U8 "u8" 2 1 Unsigned;
    /// Unsigned 16-bit integer.
    U16 "u16" 4 2 Unsigned;
    /// Unsigned 32-bit integer.
    U32 "u32" 12 4 Unsigned;
    /// Unsigned 64-bit integer.
    U64 "u64" 13 8 Unsigned;
    /// Boolean, one byte each.
    Bool "bool" 9 1 Bool;
    /// 8-bit float, four bits of exponent, no infinity.
    F8E4M3FN "f8e4m3fn" 17 1 Float;
    /// 8-bit float, four bits of exponent, no infinity, no negative zero.
    F8E4M3FNUZ "f8e4m3fnuz" 18 1 Float;
    /// 8-bit float, five bits of exponent.
    F8E5M2 "f8e5m2" 19 1 Float;
    /// 8-bit float, five bits of exponent, no infinity, no negative zero.
    F8E5M2FNUZ "f8e5m2fnuz" 20 1 Float;
    /// A power of two in eight bits: a scale.
    F8E8M0 "f8e8m0" 24 1 Float;
    /// 4-bit float, one byte each here.
    F4E2M1 "f4e2m1" 23 1 Float;
    /// Signed 4-bit integer, one byte each here.
    I4 "i4" 22 1 Signed;
    /// Unsigned 4-bit integer, one byte each here.
    U4 "u4" 21 1 Unsigned;
    /// Signed 2-bit integer, one byte each here.
    I2 "i2" 26 1 Signed;
    /// Unsigned 2-bit integer, one byte each here.
    U2 "u2" 25 1 Unsigned;
}

impl DType {
    /// The inverse of [`DType::name`]; `None` for a name hone does not know.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.iter().copied().find(|d| d.name() == name)
    }

    /// The inverse of [`DType::onnx`]; `None` for strings, complex numbers and numbers not assigned.
    pub fn from_onnx(number: i64) -> Option<DType> {
        DType::ALL.iter().copied().find(|d| i64::from(d.onnx()) == number)
    }

    /// Whether its values are floating point numbers.
    pub fn is_float(self) -> bool {
        self.class() == Kind::Float
    }

    /// Whether its values are floating point numbers of 16 bits.
    pub fn is_half(self) -> bool {
        matches!(self, DType::F16 | DType::BF16)
    }

    /// Whether its values are integers; booleans are not.
    pub fn is_integer(self) -> bool {
        matches!(self.class(), Kind::Signed | Kind::Unsigned)
    }

    /// Whether it is a signed integer.
    pub fn is_signed_integer(self) -> bool {
        self.class() == Kind::Signed
    }

    /// Bits of one element in an ONNX file.
    pub fn bits(self) -> usize {
        match self {
            DType::I4 | DType::U4 | DType::F4E2M1 => 4,
            DType::I2 | DType::U2 => 2,
            d => 8 * d.size_bytes(),
        }
    }

    /// Smallest and largest value of an integer type; `None` for floats and booleans.
    pub fn range(self) -> Option<(i128, i128)> {
        let bits = self.bits() as u32;
        match self.class() {
            Kind::Signed => Some((-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)),
            Kind::Unsigned => Some((0, (1i128 << bits) - 1)),
            _ => None,
        }
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
    /// Upper halves of 32-bit floats.
    BF16(Vec<bf16>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// Signed bytes.
    I8(Vec<i8>),
    /// 16-bit integers.
    I16(Vec<i16>),
    /// 32-bit integers.
    I32(Vec<i32>),
    /// 64-bit integers.
    I64(Vec<i64>),
    /// Unsigned bytes.
    U8(Vec<u8>),
    /// Unsigned 16-bit integers.
    U16(Vec<u16>),
    /// Unsigned 32-bit integers.
    U32(Vec<u32>),
    /// Unsigned 64-bit integers.
    U64(Vec<u64>),
    /// Booleans.
    Bool(Vec<bool>),
    /// The types of eight bits or fewer that no machine computes with, one code a byte; `I4` and `I2` sign-extended.
    Small(DType, Vec<u8>),
}

/// Evaluates `$body` with `$v` bound to the vector of elements, whatever its type, and rewraps the vector it gives.
#[macro_export]
#[doc(hidden)]
macro_rules! map_data {
    ($data:expr, $v:ident => $body:expr) => {{
        use $crate::tensor::Data as D;
        match $data {
            D::F32($v) => D::F32($body),
            D::F16($v) => D::F16($body),
            D::BF16($v) => D::BF16($body),
            D::F64($v) => D::F64($body),
            D::I8($v) => D::I8($body),
            D::I16($v) => D::I16($body),
            D::I32($v) => D::I32($body),
            D::I64($v) => D::I64($body),
            D::U8($v) => D::U8($body),
            D::U16($v) => D::U16($body),
            D::U32($v) => D::U32($body),
            D::U64($v) => D::U64($body),
            D::Bool($v) => D::Bool($body),
            D::Small(t, $v) => D::Small(*t, $body),
        }
    }};
}

/// Evaluates `$body` with `$v` bound to the vector of elements, whatever its type.
#[macro_export]
#[doc(hidden)]
macro_rules! with_data {
    ($data:expr, $v:ident => $body:expr) => {{
        use $crate::tensor::Data as D;
        match $data {
            D::F32($v) => $body,
            D::F16($v) => $body,
            D::BF16($v) => $body,
            D::F64($v) => $body,
            D::I8($v) => $body,
            D::I16($v) => $body,
            D::I32($v) => $body,
            D::I64($v) => $body,
            D::U8($v) => $body,
            D::U16($v) => $body,
            D::U32($v) => $body,
            D::U64($v) => $body,
            D::Bool($v) => $body,
            D::Small(_, $v) => $body,
        }
    }};
}

impl Data {
    /// Number of elements.
    pub fn len(&self) -> usize {
        with_data!(self, v => v.len())
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
            Data::BF16(_) => DType::BF16,
            Data::F64(_) => DType::F64,
            Data::I8(_) => DType::I8,
            Data::I16(_) => DType::I16,
            Data::I32(_) => DType::I32,
            Data::I64(_) => DType::I64,
            Data::U8(_) => DType::U8,
            Data::U16(_) => DType::U16,
            Data::U32(_) => DType::U32,
            Data::U64(_) => DType::U64,
            Data::Bool(_) => DType::Bool,
            Data::Small(t, _) => *t,
        }
    }

    /// `n` zeros (or `false`) of that type.
    pub fn zeros(dtype: DType, n: usize) -> Data {
        match dtype {
            DType::F32 => Data::F32(vec![0.0; n]),
            DType::F16 => Data::F16(vec![f16::ZERO; n]),
            DType::BF16 => Data::BF16(vec![bf16::ZERO; n]),
            DType::F64 => Data::F64(vec![0.0; n]),
            DType::I8 => Data::I8(vec![0; n]),
            DType::I16 => Data::I16(vec![0; n]),
            DType::I32 => Data::I32(vec![0; n]),
            DType::I64 => Data::I64(vec![0; n]),
            DType::U8 => Data::U8(vec![0; n]),
            DType::U16 => Data::U16(vec![0; n]),
            DType::U32 => Data::U32(vec![0; n]),
            DType::U64 => Data::U64(vec![0; n]),
            DType::Bool => Data::Bool(vec![false; n]),
            small => Data::Small(small, vec![0; n]),
        }
    }

    /// The elements at those indices, in that order.
    ///
    /// # Panics
    /// When an index is not below [`Data::len`].
    pub fn pick(&self, indices: &[usize]) -> Data {
        map_data!(self, v => indices.iter().map(|&i| v[i]).collect())
    }

    /// The elements at those indices; where there is none, the first element of `fill`, which has the same type.
    ///
    /// # Panics
    /// When an index is not below [`Data::len`], or the types differ.
    pub fn pick_or(&self, indices: &[Option<usize>], fill: &Data) -> Data {
        let mut all = self.clone();
        let n = all.len();
        all.append(fill);
        all.pick(&indices.iter().map(|i| i.unwrap_or(n)).collect::<Vec<_>>())
    }

    /// Appends elements of the same type.
    ///
    /// # Panics
    /// When the types differ.
    pub fn append(&mut self, other: &Data) {
        match (self, other) {
            (Data::F32(a), Data::F32(b)) => a.extend_from_slice(b),
            (Data::F16(a), Data::F16(b)) => a.extend_from_slice(b),
            (Data::BF16(a), Data::BF16(b)) => a.extend_from_slice(b),
            (Data::F64(a), Data::F64(b)) => a.extend_from_slice(b),
            (Data::I8(a), Data::I8(b)) => a.extend_from_slice(b),
            (Data::I16(a), Data::I16(b)) => a.extend_from_slice(b),
            (Data::I32(a), Data::I32(b)) => a.extend_from_slice(b),
            (Data::I64(a), Data::I64(b)) => a.extend_from_slice(b),
            (Data::U8(a), Data::U8(b)) => a.extend_from_slice(b),
            (Data::U16(a), Data::U16(b)) => a.extend_from_slice(b),
            (Data::U32(a), Data::U32(b)) => a.extend_from_slice(b),
            (Data::U64(a), Data::U64(b)) => a.extend_from_slice(b),
            (Data::Bool(a), Data::Bool(b)) => a.extend_from_slice(b),
            (Data::Small(s, a), Data::Small(t, b)) if s == t => a.extend_from_slice(b),
            (a, b) => panic!("{} elements were appended to {}", b.dtype(), a.dtype()),
        }
    }

    /// Writes `other[j]` to `self[at[j]]`, in order.
    ///
    /// # Panics
    /// When an index is not below [`Data::len`], or the types differ.
    pub fn put(&mut self, at: &[usize], other: &Data) {
        let n = self.len();
        let mut source: Vec<usize> = (0..n).collect();
        for (j, &i) in at.iter().enumerate() {
            source[i] = n + j;
        }
        self.append(other);
        *self = self.pick(&source);
    }

    /// The elements as numbers, exactly: `f64` holds every float type and every integer up to 2⁵³.
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Data::F32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Data::F16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Data::BF16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Data::F64(v) => v.clone(),
            Data::Small(t, v) if t.is_float() => v.iter().map(|&c| f64::from(small::decode(*t, c))).collect(),
            // The types of large tensors of codes, without numbers of sixteen bytes on the way.
            Data::I8(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Data::U8(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Data::I32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            ints => ints.to_i128().into_iter().map(|x| x as f64).collect(),
        }
    }

    /// The elements as integers; floats are truncated towards zero and saturate, booleans are 0 and 1.
    pub fn to_i128(&self) -> Vec<i128> {
        match self {
            Data::I8(v) => v.iter().map(|&x| i128::from(x)).collect(),
            Data::I16(v) => v.iter().map(|&x| i128::from(x)).collect(),
            Data::I32(v) => v.iter().map(|&x| i128::from(x)).collect(),
            Data::I64(v) => v.iter().map(|&x| i128::from(x)).collect(),
            Data::U8(v) => v.iter().map(|&x| i128::from(x)).collect(),
            Data::U16(v) => v.iter().map(|&x| i128::from(x)).collect(),
            Data::U32(v) => v.iter().map(|&x| i128::from(x)).collect(),
            Data::U64(v) => v.iter().map(|&x| i128::from(x)).collect(),
            Data::Bool(v) => v.iter().map(|&x| i128::from(x)).collect(),
            Data::Small(DType::I4 | DType::I2, v) => v.iter().map(|&x| i128::from(x as i8)).collect(),
            Data::Small(DType::U4 | DType::U2, v) => v.iter().map(|&x| i128::from(x)).collect(),
            floats => floats.to_f64().into_iter().map(|x| x as i128).collect(),
        }
    }

    /// Elements of `dtype` nearest to those numbers. Floats round half to even and overflow as IEEE 754 says (the types
    /// without infinity saturate); integers truncate towards zero and saturate; a boolean is "not zero".
    pub fn from_f64(dtype: DType, v: &[f64]) -> Data {
        match dtype {
            DType::F32 => Data::F32(v.iter().map(|&x| x as f32).collect()),
            DType::F16 => Data::F16(v.iter().map(|&x| f16::from_f64(x)).collect()),
            DType::BF16 => Data::BF16(v.iter().map(|&x| bf16::from_f64(x)).collect()),
            DType::F64 => Data::F64(v.to_vec()),
            DType::Bool => Data::Bool(v.iter().map(|&x| x != 0.0).collect()),
            t if t.is_float() => Data::Small(t, v.iter().map(|&x| small::encode(t, x as f32, true)).collect()),
            t => {
                let (low, high) = t.range().unwrap_or((0, 0));
                Data::from_i128(t, &v.iter().map(|&x| (x as i128).clamp(low, high)).collect::<Vec<_>>())
            }
        }
    }

    /// Elements of `dtype` from integers; what does not fit wraps around, as C's and NumPy's conversions do.
    pub fn from_i128(dtype: DType, v: &[i128]) -> Data {
        match dtype {
            DType::I8 => Data::I8(v.iter().map(|&x| x as i8).collect()),
            DType::I16 => Data::I16(v.iter().map(|&x| x as i16).collect()),
            DType::I32 => Data::I32(v.iter().map(|&x| x as i32).collect()),
            DType::I64 => Data::I64(v.iter().map(|&x| x as i64).collect()),
            DType::U8 => Data::U8(v.iter().map(|&x| x as u8).collect()),
            DType::U16 => Data::U16(v.iter().map(|&x| x as u16).collect()),
            DType::U32 => Data::U32(v.iter().map(|&x| x as u32).collect()),
            DType::U64 => Data::U64(v.iter().map(|&x| x as u64).collect()),
            DType::Bool => Data::Bool(v.iter().map(|&x| x != 0).collect()),
            DType::I4 => Data::Small(dtype, v.iter().map(|&x| (((x as u8) << 4) as i8 >> 4) as u8).collect()),
            DType::I2 => Data::Small(dtype, v.iter().map(|&x| (((x as u8) << 6) as i8 >> 6) as u8).collect()),
            DType::U4 => Data::Small(dtype, v.iter().map(|&x| x as u8 & 15).collect()),
            DType::U2 => Data::Small(dtype, v.iter().map(|&x| x as u8 & 3).collect()),
            // Straight to f32: by way of f64 a large integer would be rounded twice.
            DType::F32 => Data::F32(v.iter().map(|&x| x as f32).collect()),
            float => Data::from_f64(float, &v.iter().map(|&x| x as f64).collect::<Vec<_>>()),
        }
    }

    /// Elements from little-endian bytes, [`DType::size_bytes`] each; types of fewer than eight bits one a byte.
    /// Trailing bytes that make no element are dropped.
    pub fn from_le_bytes(dtype: DType, bytes: &[u8]) -> Data {
        macro_rules! read {
            ($variant:ident, $t:ty) => {
                Data::$variant(bytes.as_chunks().0.iter().map(|b| <$t>::from_le_bytes(*b)).collect())
            };
        }
        match dtype {
            DType::F32 => read!(F32, f32),
            DType::F16 => read!(F16, f16),
            DType::BF16 => read!(BF16, bf16),
            DType::F64 => read!(F64, f64),
            DType::I8 => read!(I8, i8),
            DType::I16 => read!(I16, i16),
            DType::I32 => read!(I32, i32),
            DType::I64 => read!(I64, i64),
            DType::U8 => Data::U8(bytes.to_vec()),
            DType::U16 => read!(U16, u16),
            DType::U32 => read!(U32, u32),
            DType::U64 => read!(U64, u64),
            DType::Bool => Data::Bool(bytes.iter().map(|&b| b != 0).collect()),
            small => Data::Small(small, bytes.to_vec()),
        }
    }

    /// The memory of the elements, as this machine lays them out.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Data::Bool(v) => bytemuck::cast_slice(v),
            Data::Small(_, v) | Data::U8(v) => v,
            Data::F32(v) => bytemuck::cast_slice(v),
            Data::F16(v) => bytemuck::cast_slice(v),
            Data::BF16(v) => bytemuck::cast_slice(v),
            Data::F64(v) => bytemuck::cast_slice(v),
            Data::I8(v) => bytemuck::cast_slice(v),
            Data::I16(v) => bytemuck::cast_slice(v),
            Data::I32(v) => bytemuck::cast_slice(v),
            Data::I64(v) => bytemuck::cast_slice(v),
            Data::U16(v) => bytemuck::cast_slice(v),
            Data::U32(v) => bytemuck::cast_slice(v),
            Data::U64(v) => bytemuck::cast_slice(v),
        }
    }

    /// Takes elements of the same type and number from memory laid out as [`Data::as_bytes`] gives it.
    ///
    /// # Panics
    /// When `bytes` is of another length.
    pub fn copy_from_bytes(&mut self, bytes: &[u8]) {
        match self {
            // A byte that is not 0 is true, whatever else it is.
            Data::Bool(v) => {
                assert_eq!(v.len(), bytes.len(), "as many elements");
                v.iter_mut().zip(bytes).for_each(|(v, &b)| *v = b != 0);
            }
            Data::Small(_, v) | Data::U8(v) => v.copy_from_slice(bytes),
            Data::F32(v) => bytemuck::cast_slice_mut(v).copy_from_slice(bytes),
            Data::F16(v) => bytemuck::cast_slice_mut(v).copy_from_slice(bytes),
            Data::BF16(v) => bytemuck::cast_slice_mut(v).copy_from_slice(bytes),
            Data::F64(v) => bytemuck::cast_slice_mut(v).copy_from_slice(bytes),
            Data::I8(v) => bytemuck::cast_slice_mut(v).copy_from_slice(bytes),
            Data::I16(v) => bytemuck::cast_slice_mut(v).copy_from_slice(bytes),
            Data::I32(v) => bytemuck::cast_slice_mut(v).copy_from_slice(bytes),
            Data::I64(v) => bytemuck::cast_slice_mut(v).copy_from_slice(bytes),
            Data::U16(v) => bytemuck::cast_slice_mut(v).copy_from_slice(bytes),
            Data::U32(v) => bytemuck::cast_slice_mut(v).copy_from_slice(bytes),
            Data::U64(v) => bytemuck::cast_slice_mut(v).copy_from_slice(bytes),
        }
    }

    /// Elements from memory laid out as [`Data::as_bytes`] gives it, aligned for the type.
    ///
    /// # Panics
    /// When `bytes` is not aligned for the type or no whole number of elements.
    pub fn from_bytes(dtype: DType, bytes: &[u8]) -> Data {
        match dtype {
            DType::F32 => Data::F32(bytemuck::cast_slice(bytes).to_vec()),
            DType::F16 => Data::F16(bytemuck::cast_slice(bytes).to_vec()),
            DType::BF16 => Data::BF16(bytemuck::cast_slice(bytes).to_vec()),
            DType::F64 => Data::F64(bytemuck::cast_slice(bytes).to_vec()),
            DType::I8 => Data::I8(bytemuck::cast_slice(bytes).to_vec()),
            DType::I16 => Data::I16(bytemuck::cast_slice(bytes).to_vec()),
            DType::I32 => Data::I32(bytemuck::cast_slice(bytes).to_vec()),
            DType::I64 => Data::I64(bytemuck::cast_slice(bytes).to_vec()),
            DType::U8 => Data::U8(bytes.to_vec()),
            DType::U16 => Data::U16(bytemuck::cast_slice(bytes).to_vec()),
            DType::U32 => Data::U32(bytemuck::cast_slice(bytes).to_vec()),
            DType::U64 => Data::U64(bytemuck::cast_slice(bytes).to_vec()),
            DType::Bool => Data::Bool(bytes.iter().map(|&b| b != 0).collect()),
            small => Data::Small(small, bytes.to_vec()),
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

/// Most dimensions of a tensor: twice what other runtimes take.
pub const MOST_DIMENSIONS: usize = 64;

/// Number of elements of `shape`, or `None` for a shape no tensor may have: more than [`MOST_DIMENSIONS`], or a product
/// that overflows. Empty dimensions do not hide the others: strides are products of those.
pub fn checked_len(shape: &[usize]) -> Option<usize> {
    let full = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))?;
    if shape.len() > MOST_DIMENSIONS || isize::try_from(full).is_err() {
        return None;
    }
    Some(if shape.contains(&0) { 0 } else { full })
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
        let data = Data::zeros(dtype, n);
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

    /// The elements, to be overwritten; their number and type stay.
    pub(crate) fn overwrite(&mut self, bytes: &[u8]) {
        self.data.copy_from_bytes(bytes);
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

    /// Numbers rounded to `dtype` as [`Data::from_f64`] does.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_f64(dtype: DType, shape: &[usize], v: &[f64]) -> Result<Tensor, TensorError> {
        Tensor::new(shape, Data::from_f64(dtype, v))
    }

    /// Integers wrapped to `dtype` as [`Data::from_i128`] does.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_i128(dtype: DType, shape: &[usize], v: &[i128]) -> Result<Tensor, TensorError> {
        Tensor::new(shape, Data::from_i128(dtype, v))
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
        for &d in DType::ALL {
            assert_eq!(DType::from_name(d.name()), Some(d));
            assert_eq!(DType::from_onnx(i64::from(d.onnx())), Some(d));
            assert_eq!(Data::zeros(d, 3).dtype(), d);
        }
    }
}
