//! Types and tensors between tract and us, for operators that run by tract's code.
use tract_onnx::tract_core::internal as tract;

use crate::tensor::{DType, Data, Tensor};

/// Our name of an element type; `None` for one the two do not share.
pub(super) fn dtype(dt: tract::DatumType) -> Option<DType> {
    use tract::DatumType as D;
    Some(match dt {
        D::F32 => DType::F32,
        D::F16 => DType::F16,
        D::F64 => DType::F64,
        D::I8 => DType::I8,
        D::I16 => DType::I16,
        D::I32 => DType::I32,
        D::I64 => DType::I64,
        D::U8 => DType::U8,
        D::U16 => DType::U16,
        D::U32 => DType::U32,
        D::U64 => DType::U64,
        D::Bool => DType::Bool,
        _ => return None,
    })
}

/// A tensor of tract's as ours.
pub(super) fn tensor(t: &tract::Tensor) -> Result<Tensor, String> {
    macro_rules! take {
        ($t:ty) => {
            t.try_as_plain_ram().and_then(|v| v.as_slice::<$t>().map(<[$t]>::to_vec)).map_err(|e| e.to_string())?
        };
    }
    // Shape arithmetic that came out constant is integers to everybody else.
    if t.datum_type() == tract::DatumType::TDim {
        let dims = take!(tract::TDim);
        let ints = dims.iter().map(|d| d.to_i64()).collect::<Result<Vec<i64>, _>>().map_err(|e| e.to_string())?;
        return Tensor::i64(t.shape(), ints).map_err(|e| e.to_string());
    }
    let data = match dtype(t.datum_type()).ok_or_else(|| format!("elements of {:?}", t.datum_type()))? {
        DType::F32 => Data::F32(take!(f32)),
        DType::F16 => Data::F16(take!(half::f16)),
        DType::F64 => Data::F64(take!(f64)),
        DType::I8 => Data::I8(take!(i8)),
        DType::I16 => Data::I16(take!(i16)),
        DType::I32 => Data::I32(take!(i32)),
        DType::I64 => Data::I64(take!(i64)),
        DType::U8 => Data::U8(take!(u8)),
        DType::U16 => Data::U16(take!(u16)),
        DType::U32 => Data::U32(take!(u32)),
        DType::U64 => Data::U64(take!(u64)),
        DType::Bool => Data::Bool(take!(bool)),
        other => return Err(format!("elements of {other}")),
    };
    Tensor::new(t.shape(), data).map_err(|e| e.to_string())
}

/// A tensor of ours as tract's.
pub(super) fn to_tract(t: &Tensor) -> tract::TractResult<tract::Tensor> {
    let s = t.shape();
    match t.data() {
        Data::F32(v) => tract::Tensor::from_shape(s, v),
        Data::F16(v) => tract::Tensor::from_shape(s, v),
        Data::F64(v) => tract::Tensor::from_shape(s, v),
        Data::I8(v) => tract::Tensor::from_shape(s, v),
        Data::I16(v) => tract::Tensor::from_shape(s, v),
        Data::I32(v) => tract::Tensor::from_shape(s, v),
        Data::I64(v) => tract::Tensor::from_shape(s, v),
        Data::U8(v) => tract::Tensor::from_shape(s, v),
        Data::U16(v) => tract::Tensor::from_shape(s, v),
        Data::U32(v) => tract::Tensor::from_shape(s, v),
        Data::U64(v) => tract::Tensor::from_shape(s, v),
        Data::Bool(v) => tract::Tensor::from_shape(s, v),
        other => tract::bail!("tract holds no {}", other.dtype()),
    }
}
