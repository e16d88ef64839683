//! Conversion of element types, by value and by bits.
use half::{bf16, f16};
use hone_gpu::functions::function;
use hone_gpu::map;

use super::super::{Attrs, Fact, OpDef, OpError, need, record};
use super::walk::{Element, mapped};
use crate::autodiff::Backward;
use crate::plan::{Lowered, Lowering};
use crate::tensor::{DType, Data, Tensor, small};

/// to another type, by value
pub(super) static CAST: OpDef = OpDef::new(
    "Cast",
    "another element type, by value; floats out of an integer's range saturate",
    |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        Ok(Some(vec![Fact::new(target(attrs)?, x.shape.clone())]))
    },
    |attrs, inputs| cast(attrs, need(inputs, 0, "input")?, target(attrs)?),
)
.kernel(|l| Ok(kernel(l, target(l.attrs)?)))
.gpu(|l| {
    let shape = l.shape(0)?;
    // 64-bit integers would lose their high half.
    let known = l.dtype(0).and_then(record::element).is_some();
    Ok(match target(l.attrs)? {
        DType::F32 if known => record::mapped(l, function("CastToFloat"), vec![], &[(0, shape)], map::Element::F32),
        DType::Bool if known => record::mapped(l, function("CastToBool"), vec![], &[(0, shape)], map::Element::U8),
        _ => None,
    })
})
.vjp(vjp);

/// to the type of another tensor, by value
pub(super) static CAST_LIKE: OpDef = OpDef::new(
    "CastLike",
    "the element type of another tensor, by value",
    |_, inputs| {
        let (x, like) = (need(inputs, 0, "input")?, need(inputs, 1, "target_type")?);
        Ok(Some(vec![Fact::new(like.dtype, x.shape.clone())]))
    },
    |attrs, inputs| cast(attrs, need(inputs, 0, "input")?, need(inputs, 1, "target_type")?.dtype()),
)
.kernel(|l| Ok(l.dtype(1).and_then(|to| kernel(l, to))))
.vjp(vjp);

/// The gradient as numbers of the operand's type; none where floats become integers, since rounding is constant almost
/// everywhere.
fn vjp(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, x, y) = (b.dy()?, b.x(0)?, b.y()?);
    let dtype = b.cotangent(x);
    // The sum of a product of codes has a gradient in floats; other integers have no use for one.
    if b.dtype(y).is_float() && (b.dtype(x).is_float() || b.dtype(x) == DType::I32) {
        let dx = b.cast(dy, dtype)?;
        b.give(0, dx);
    }
    Ok(())
}

/// another type of as many bits, bit by bit
pub(super) static BIT_CAST: OpDef = OpDef::new(
    "BitCast",
    "another element type of as many bits, bit by bit",
    |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        Ok(Some(vec![Fact::new(target(attrs)?, x.shape.clone())]))
    },
    |attrs, inputs| {
        let (x, to) = (need(inputs, 0, "input")?, target(attrs)?);
        if x.dtype().bits() != to.bits() {
            return Err(OpError::unsupported(format!("BitCast of {} to {to}, of another width", x.dtype())));
        }
        let mut bytes = match x.data() {
            Data::Small(_, v) => v.clone(),
            other => other.as_bytes().to_vec(),
        };
        // Here a byte holds the code of a narrow type, and the sign above it when it is signed.
        if to.bits() < 8 {
            let codes: Vec<i128> = bytes.iter().map(|&b| i128::from(b) & ((1 << to.bits()) - 1)).collect();
            if to.is_integer() {
                return Ok(vec![Tensor::from_i128(to, x.shape(), &codes)?]);
            }
            bytes = codes.into_iter().map(|c| c as u8).collect();
        }
        Ok(vec![Tensor::new(x.shape(), Data::from_le_bytes(to, &native_to_le(bytes, to)))?])
    },
);

/// The bytes of elements in this machine's order, in little-endian order.
fn native_to_le(mut bytes: Vec<u8>, dtype: DType) -> Vec<u8> {
    if cfg!(target_endian = "big") {
        bytes.chunks_exact_mut(dtype.size_bytes()).for_each(<[u8]>::reverse);
    }
    bytes
}

/// The attribute `to`: a number, or before version 6 a name.
fn target(attrs: &Attrs) -> Result<DType, OpError> {
    if attrs.opset < 6
        && let Ok(name) = attrs.str("to", "")
    {
        let dtype = match name {
            "FLOAT" => DType::F32,
            "FLOAT16" => DType::F16,
            "DOUBLE" => DType::F64,
            "INT8" => DType::I8,
            "INT16" => DType::I16,
            "INT32" => DType::I32,
            "INT64" => DType::I64,
            "UINT8" => DType::U8,
            "UINT16" => DType::U16,
            "UINT32" => DType::U32,
            "UINT64" => DType::U64,
            "BOOL" => DType::Bool,
            other => return Err(OpError::unsupported(format!("conversion to `{other}`"))),
        };
        return Ok(dtype);
    }
    let to = attrs.int("to", 0)?;
    DType::from_onnx(to).ok_or_else(|| OpError::unsupported(format!("conversion to ONNX element type {to}")))
}

fn cast(attrs: &Attrs, x: &Tensor, to: DType) -> Result<Vec<Tensor>, OpError> {
    let data = convert(attrs, x.data(), to)?;
    Ok(vec![Tensor::new(x.shape(), data)?])
}

/// What the standard leaves undefined: a float out of the range of an integer saturates, NaN becomes 0; narrow integers
/// (fewer than eight bits) take the low bits of the truncated value, as NumPy's extension types do.
fn convert(attrs: &Attrs, x: &Data, to: DType) -> Result<Data, OpError> {
    let saturate = attrs.flag("saturate", true)?;
    let data = if x.dtype() == to {
        x.clone()
    } else if to == DType::F8E8M0 {
        let mode = attrs.str("round_mode", "up")?;
        let codes: Result<Vec<u8>, OpError> =
            x.to_f64().iter().map(|&v| scale_code(v as f32, mode, saturate)).collect();
        Data::Small(to, codes?)
    } else if to.is_float() && to.size_bytes() == 1 {
        // An infinity overflows as any number too large does.
        let finite = |v: f64| if (v as f32).is_infinite() { f32::MAX.copysign(v as f32) } else { v as f32 };
        Data::Small(to, x.to_f64().iter().map(|&v| small::encode(to, finite(v), saturate)).collect())
    } else if !x.dtype().is_float() && to == DType::F32 {
        // Directly, because by way of `f64` it would round twice.
        Data::F32(x.to_i128().iter().map(|&v| v as f32).collect())
    } else if !x.dtype().is_float() || to.is_integer() && to.bits() < 8 {
        Data::from_i128(to, &x.to_i128())
    } else {
        Data::from_f64(to, &x.to_f64())
    };
    Ok(data)
}

/// The code of a power of two (e8m0) for `value`, whose sign is dropped: `up` away from zero, `down` towards it,
/// `nearest` with ties up. NaN and infinity are NaN, or the largest power where `saturate` applies to infinity.
///
/// Source: `to_float8e8m0` of the standard's own `numpy_helper`, and the table of `Cast`.
fn scale_code(value: f32, mode: &str, saturate: bool) -> Result<u8, OpError> {
    let bits = value.abs().to_bits();
    let (e, m) = (bits >> 23, bits & 0x7f_ffff);
    let up = match mode {
        "up" => m > 0,
        "down" => false,
        // A subnormal counts from 2^-127, the smallest power there is.
        "nearest" => {
            if e == 0 {
                m > 0x40_0000
            } else {
                m >= 0x40_0000
            }
        }
        other => return Err(OpError::attribute("round_mode", format!("is `{other}`, not up, down or nearest"))),
    };
    if value.is_nan() || !saturate && value == 0.0 {
        return Ok(255);
    }
    if value.is_infinite() {
        return Ok(if saturate { 254 } else { 255 });
    }
    let code = e + u32::from(up);
    Ok(if code > 254 && saturate { 254 } else { code.min(255) as u8 })
}

/// A number type a kernel converts.
trait Number: Element {
    const DTYPE: DType;
}

macro_rules! numbers {
    ($($t:ty = $dtype:ident),*) => { $(impl Number for $t { const DTYPE: DType = DType::$dtype; })* };
}
numbers!(f32 = F32, f64 = F64, f16 = F16, bf16 = BF16, i64 = I64, i32 = I32, i16 = I16, i8 = I8, u8 = U8);

/// The kernel for conversions among the common types.
fn kernel(l: &Lowering<'_>, to: DType) -> Option<Lowered> {
    let from = l.dtype(0)?;
    if from == to {
        return super::value::copied(l).ok().flatten();
    }
    macro_rules! rows {
        ($($from:ty => $to:ty: $f:expr;)*) => {
            match (from, to) {
                $((<$from as Number>::DTYPE, <$to as Number>::DTYPE) => {
                    Some(mapped::<$from, $to, _>("Cast", $f))
                })*
                // A boolean is a byte, 0 or 1.
                (DType::Bool, DType::F32) => Some(mapped::<u8, f32, _>("Cast", f32::from)),
                (DType::Bool, DType::F16) => Some(mapped::<u8, f16, _>("Cast", f16::from)),
                (DType::Bool, DType::I64) => Some(mapped::<u8, i64, _>("Cast", i64::from)),
                (DType::Bool, DType::I32) => Some(mapped::<u8, i32, _>("Cast", i32::from)),
                (DType::Bool, DType::U8) => Some(mapped::<u8, u8, _>("Cast", |x| x)),
                (DType::F32, DType::Bool) => Some(mapped::<f32, u8, _>("Cast", |x| u8::from(x != 0.0))),
                (DType::I64, DType::Bool) => Some(mapped::<i64, u8, _>("Cast", |x| u8::from(x != 0))),
                (DType::I32, DType::Bool) => Some(mapped::<i32, u8, _>("Cast", |x| u8::from(x != 0))),
                (DType::U8, DType::Bool) => Some(mapped::<u8, u8, _>("Cast", |x| u8::from(x != 0))),
                _ => None,
            }
        };
    }
    rows! {
        f32 => f64: f64::from;
        f32 => f16: f16::from_f32;
        f32 => bf16: bf16::from_f32;
        f32 => i64: |x| x as i64;
        f32 => i32: |x| x as i32;
        f32 => i16: |x| x as i16;
        f32 => i8: |x| x as i8;
        f32 => u8: |x| x as u8;
        f64 => f32: |x| x as f32;
        f64 => i64: |x| x as i64;
        f64 => i32: |x| x as i32;
        f16 => f32: f16::to_f32;
        bf16 => f32: bf16::to_f32;
        i64 => f32: |x| x as f32;
        i64 => f64: |x| x as f64;
        i64 => f16: |x| f16::from_f64(x as f64);
        i64 => i32: |x| x as i32;
        i32 => f32: |x| x as f32;
        i32 => i64: i64::from;
        i32 => f64: f64::from;
        i16 => f32: f32::from;
        i8 => f32: f32::from;
        i8 => i32: i32::from;
        i8 => i64: i64::from;
        u8 => f32: f32::from;
        u8 => i32: i32::from;
        u8 => i64: i64::from;
    }
}
