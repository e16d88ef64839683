//! Types, dimensions and tensors between tract and us.
use std::collections::BTreeMap;

use tract_onnx::tract_core::internal as tract;

use crate::graph::Dim;
use crate::tensor::{DType, Data, Tensor};

/// Symbols by name, to turn our dimensions back into tract's.
pub(super) type Symbols = BTreeMap<String, tract::Symbol>;

/// Our name of an element type; `None` for one hone does not hold (strings, symbolic integers, complex).
pub(super) fn dtype(dt: tract::DatumType) -> Option<DType> {
    use tract::DatumType as D;
    Some(match dt {
        D::F32 => DType::F32,
        D::F16 => DType::F16,
        D::F64 => DType::F64,
        D::I8 => DType::I8,
        D::U8 => DType::U8,
        D::I32 => DType::I32,
        D::I64 => DType::I64,
        D::Bool => DType::Bool,
        _ => return None,
    })
}

/// tract's name of an element type.
pub(super) fn datum_type(d: DType) -> tract::DatumType {
    use tract::DatumType as D;
    match d {
        DType::F32 => D::F32,
        DType::F16 => D::F16,
        DType::F64 => D::F64,
        DType::I8 => D::I8,
        DType::U8 => D::U8,
        DType::I32 => D::I32,
        DType::I64 => D::I64,
        DType::Bool => D::Bool,
    }
}

/// A dimension of tract's as ours.
pub(super) fn dim(d: &tract::TDim) -> Result<Dim, String> {
    use tract::TDim as T;
    let all = |l: &[T]| l.iter().map(dim).collect::<Result<Vec<_>, _>>();
    Ok(match d {
        T::Val(v) => Dim::Val(*v),
        T::Sym(s) => Dim::sym(&s.to_string()),
        T::Add(l) => all(l)?.iter().fold(Dim::Val(0), |a, b| a.plus(b)),
        T::Mul(l) => all(l)?.iter().fold(Dim::Val(1), |a, b| a.times(b)),
        T::MulInt(k, d) => dim(d)?.times(&Dim::Val(*k)),
        T::Div(d, by) => dim(d)?.div_floor(i64::try_from(*by).ok().filter(|b| *b > 0).ok_or("a division by zero")?),
        T::Broadcast(l) => Dim::Broadcast(all(l)?),
        T::Min(l) => Dim::Min(all(l)?),
        T::Max(l) => Dim::Max(all(l)?),
        other => return Err(format!("has the dimension `{other}`, a comparison")),
    })
}

/// A dimension of ours as tract's; the symbols must come from tract.
pub(super) fn tdim(d: &Dim, symbols: &Symbols) -> tract::TractResult<tract::TDim> {
    use tract::TDim as T;
    let all = |l: &[Dim]| l.iter().map(|d| tdim(d, symbols)).collect::<tract::TractResult<Vec<T>>>();
    Ok(match d {
        Dim::Val(v) => T::Val(*v),
        Dim::Sym(s) => match symbols.get(&**s) {
            Some(s) => T::Sym(s.clone()),
            None => tract::bail!("dimension `{s}` comes from no input of the node"),
        },
        Dim::Add(l) => all(l)?.into_iter().fold(T::Val(0), |a, b| a + b),
        Dim::Mul(l) => all(l)?.into_iter().fold(T::Val(1), |a, b| a * b),
        Dim::Div(d, by) => tdim(d, symbols)?.div_floor_by(*by),
        Dim::Broadcast(l) => T::Broadcast(all(l)?).simplify(),
        Dim::Min(l) => T::Min(all(l)?).simplify(),
        Dim::Max(l) => T::Max(all(l)?).simplify(),
    })
}

trait FloorDiv {
    fn div_floor_by(self, by: i64) -> tract::TDim;
}

impl FloorDiv for tract::TDim {
    fn div_floor_by(self, by: i64) -> tract::TDim {
        tract::TDim::Div(Box::new(self), by as u64).simplify()
    }
}

/// The symbols of `d`, added to `into`.
pub(super) fn collect_symbols(d: &tract::TDim, into: &mut Symbols) {
    for s in d.symbols() {
        into.insert(s.to_string(), s);
    }
}

/// Element type and shape of a typed fact.
pub(super) fn fact(f: &tract::TypedFact) -> Result<(DType, Vec<Dim>), String> {
    let d =
        dtype(f.datum_type).ok_or_else(|| format!("has elements of {:?}, which hone does not hold", f.datum_type))?;
    let shape = f.shape.iter().map(dim).collect::<Result<Vec<_>, _>>()?;
    Ok((d, shape))
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
        DType::U8 => Data::U8(take!(u8)),
        DType::I32 => Data::I32(take!(i32)),
        DType::I64 => Data::I64(take!(i64)),
        DType::Bool => Data::Bool(take!(bool)),
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
        Data::U8(v) => tract::Tensor::from_shape(s, v),
        Data::I32(v) => tract::Tensor::from_shape(s, v),
        Data::I64(v) => tract::Tensor::from_shape(s, v),
        Data::Bool(v) => tract::Tensor::from_shape(s, v),
    }
}
