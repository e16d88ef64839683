//! `QuantizeLinear`, `DequantizeLinear` and `DynamicQuantizeLinear`.
use super::{fact, round_to};
use crate::ops::{Attrs, Fact, Kind, MICROSOFT, OpDef, OpError, axis_of, need, optional};
use crate::plan::{Lowered, Lowering, Recorded};
use crate::tensor::{DType, Data, Tensor, small};

/// `y = saturate(round(x / scale) + zero_point)`.
pub(super) static QUANTIZE_LINEAR: OpDef =
    OpDef::new("QuantizeLinear", "round(x / scale) + zero_point, per tensor, per axis or per block", q_shape, quantize)
        .kernel(q_lower)
        .gpu(q_recorded)
        .vjp(super::backward::quantize);

/// The same in ONNX Runtime's domain, with 16-bit and 4-bit types before the standard had them.
pub(super) static MS_QUANTIZE_LINEAR: OpDef =
    OpDef::new("QuantizeLinear", "round(x / scale) + zero_point, per tensor, per axis or per block", q_shape, quantize)
        .domain(MICROSOFT)
        .kernel(q_lower)
        .gpu(q_recorded)
        .vjp(super::backward::quantize);

/// `y = (x - zero_point) · scale`.
pub(super) static DEQUANTIZE_LINEAR: OpDef =
    OpDef::new("DequantizeLinear", "(x - zero_point) · scale, per tensor, per axis or per block", d_shape, dequantize)
        .kind(Kind::Kept)
        .kernel(super::convert::dequantise)
        .gpu(super::convert::dequantise_recorded)
        .vjp(super::backward::dequantize);

/// The same in ONNX Runtime's domain.
pub(super) static MS_DEQUANTIZE_LINEAR: OpDef =
    OpDef::new("DequantizeLinear", "(x - zero_point) · scale, per tensor, per axis or per block", d_shape, dequantize)
        .domain(MICROSOFT)
        .kind(Kind::Kept)
        .kernel(super::convert::dequantise)
        .gpu(super::convert::dequantise_recorded)
        .vjp(super::backward::dequantize);

/// Scale and zero point from the data, then `QuantizeLinear` to `u8`.
pub(super) static DYNAMIC_QUANTIZE_LINEAR: OpDef = OpDef::new(
    "DynamicQuantizeLinear",
    "u8 codes with the scale and zero point that just hold the data and 0",
    |_, inputs| {
        let x = need(inputs, 0, "x")?;
        Ok(Some(vec![Fact::new(DType::U8, x.shape.clone()), Fact::new(DType::F32, []), Fact::new(DType::U8, [])]))
    },
    |_, inputs| {
        let x = need(inputs, 0, "x")?;
        let v: Vec<f32> = x.data().to_f64().into_iter().map(|v| v as f32).collect();
        let (scale, zero) = dynamic_range(&v);
        let q = v.iter().map(|&v| round_to(v / scale, zero, (0, 255)) as u8).collect();
        Ok(vec![
            Tensor::new(x.shape(), Data::U8(q))?,
            Tensor::f32(&[], vec![scale])?,
            Tensor::new(&[], Data::U8(vec![zero as u8]))?,
        ])
    },
)
.kernel(super::convert::dynamic)
.gpu(super::convert::dynamic_recorded)
.vjp(super::backward::dynamic);

/// Scale and zero point of `u8` codes for that data: 0 is always exact, and a range of nothing but 0 has scale 1.
pub(in crate::ops) fn dynamic_range(x: &[f32]) -> (f32, i32) {
    let low = x.iter().fold(0f32, |a, &b| a.min(b));
    let high = x.iter().fold(0f32, |a, &b| a.max(b));
    range_to_affine(low, high)
}

/// As [`dynamic_range`], from the least and the greatest value, which enclose 0.
pub(in crate::ops) fn range_to_affine(low: f32, high: f32) -> (f32, i32) {
    let scale = if high == low { 1.0 } else { (high - low) / 255.0 };
    let zero = (0.0 - low / scale).clamp(0.0, 255.0).round_ties_even() as i32;
    (scale, zero)
}

/// Which scale an element has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grid {
    /// One for all.
    Tensor,
    /// One per index of an axis of `len` elements, each `inner` elements of memory apart.
    Axis { inner: usize, len: usize },
    /// One per `block` consecutive elements of the axis, `count` blocks a line.
    Blocks { inner: usize, len: usize, block: usize, count: usize },
}

impl Grid {
    /// From the shapes of the data, the scale and the zero point.
    pub(super) fn of(attrs: &Attrs, x: &[usize], scale: &[usize], zero: Option<&[usize]>) -> Result<Grid, OpError> {
        let block = attrs.int("block_size", 0)?;
        if block < 0 {
            return Err(OpError::attribute("block_size", format!("is {block}")));
        }
        let elements = |s: &[usize]| s.iter().fold(1usize, |n, &d| n.saturating_mul(d));
        if let Some(zero) = zero.filter(|z| *z != scale && elements(z) != elements(scale)) {
            return Err(OpError::shape("zero point", format!("the shape of the scale, {scale:?}"), zero));
        }
        if block == 0 && scale.len() <= 1 && elements(scale) == 1 {
            return Ok(Grid::Tensor);
        }
        let axis = axis_of(attrs.int("axis", 1)?, x.len())?;
        let (inner, len) = (elements(&x[axis + 1..]), x[axis]);
        if block == 0 {
            return match scale {
                [n] if *n == len => Ok(Grid::Axis { inner, len }),
                _ if elements(scale) == 1 => Ok(Grid::Tensor),
                _ => Err(OpError::shape("scale", format!("one, or {len} for axis {axis}"), scale)),
            };
        }
        let block = block as usize;
        let count = len.div_ceil(block);
        let mut expected = x.to_vec();
        expected[axis] = count;
        if scale != expected {
            return Err(OpError::shape("scale of blocks", expected, scale));
        }
        Ok(Grid::Blocks { inner, len, block, count })
    }

    /// Index of the scale of element `i`.
    pub(super) fn at(self, i: usize) -> usize {
        match self {
            Grid::Tensor => 0,
            Grid::Axis { inner, len } => i / inner % len,
            Grid::Blocks { inner, len, block, count } => {
                (i / inner / len * count + i / inner % len / block) * inner + i % inner
            }
        }
    }
}

/// Element type of the codes of a `QuantizeLinear`.
fn code_type(attrs: &Attrs, zero: Option<DType>) -> Result<DType, OpError> {
    let asked = named_type(attrs, "output_dtype")?;
    match (zero, asked) {
        (Some(z), Some(a)) if z != a => {
            Err(OpError::attribute("output_dtype", format!("is {a}, and the zero point is {z}")))
        }
        (Some(t), _) | (None, Some(t)) => Ok(t),
        (None, None) => Ok(DType::U8),
    }
}

/// An element type given by its number in the standard; `None` when absent or 0.
fn named_type(attrs: &Attrs, name: &str) -> Result<Option<DType>, OpError> {
    match attrs.int(name, 0)? {
        0 => Ok(None),
        n => DType::from_onnx(n).map(Some).ok_or_else(|| OpError::attribute(name, format!("{n} is no element type"))),
    }
}

fn q_shape(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let (x, scale, zero) = (need(inputs, 0, "x")?, need(inputs, 1, "y_scale")?, optional(inputs, 2));
    Grid::of(attrs, &x.shape, &scale.shape, zero.map(|z| &z.shape[..]))?;
    fact(code_type(attrs, zero.map(|z| z.dtype))?, x.shape.clone())
}

fn q_lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let dtype = code_type(l.attrs, if l.has(2) { l.dtype(2) } else { None })?;
    super::convert::quantise(l, dtype)
}

fn q_recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let dtype = code_type(l.attrs, if l.has(2) { l.dtype(2) } else { None })?;
    super::convert::quantise_recorded(l, dtype)
}

/// The quotient is rounded to `precision` (the scale's type when absent) before it is rounded to an integer, as the
/// standard says. Codes that are floats take no zero point but 0.
fn quantize(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let (x, scale, zero) = (need(inputs, 0, "x")?, need(inputs, 1, "y_scale")?, optional(inputs, 2));
    let grid = Grid::of(attrs, x.shape(), scale.shape(), zero.map(Tensor::shape))?;
    let dtype = code_type(attrs, zero.map(Tensor::dtype))?;
    let precision = named_type(attrs, "precision")?.unwrap_or(match scale.dtype() {
        // A power of two divides exactly: what is divided decides.
        DType::F8E8M0 => x.dtype(),
        t => t,
    });
    let s = scale.data().to_f64();
    let quotients: Vec<f64> = x.data().to_f64().iter().enumerate().map(|(i, v)| v / s[grid.at(i)]).collect();
    let quotients = match precision {
        DType::F32 | DType::F16 | DType::BF16 => Data::from_f64(precision, &quotients).to_f64(),
        _ => quotients,
    };
    if dtype.is_float() {
        let saturate = attrs.flag("saturate", true)?;
        let data = match dtype {
            DType::F32 | DType::F16 | DType::BF16 | DType::F64 => Data::from_f64(dtype, &quotients),
            _ => Data::Small(dtype, quotients.iter().map(|&v| small::encode(dtype, v as f32, saturate)).collect()),
        };
        return Ok(vec![Tensor::new(x.shape(), data)?]);
    }
    let Some((low, high)) = dtype.range() else {
        return Err(OpError::unsupported(format!("QuantizeLinear to {dtype}")));
    };
    let z = zero.map(|z| z.data().to_i128());
    let q: Vec<i128> = quotients
        .iter()
        .enumerate()
        .map(|(i, v)| {
            let z = z.as_ref().map_or(0, |z| z[grid.at(i)]);
            if v.is_nan() { low } else { (v.round_ties_even() as i128).saturating_add(z).clamp(low, high) }
        })
        .collect();
    Ok(vec![Tensor::from_i128(dtype, x.shape(), &q)?])
}

fn d_type(attrs: &Attrs, scale: DType) -> Result<DType, OpError> {
    Ok(named_type(attrs, "output_dtype")?.unwrap_or(scale))
}

fn d_shape(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let (x, scale, zero) = (need(inputs, 0, "x")?, need(inputs, 1, "x_scale")?, optional(inputs, 2));
    Grid::of(attrs, &x.shape, &scale.shape, zero.map(|z| &z.shape[..]))?;
    fact(d_type(attrs, scale.dtype)?, x.shape.clone())
}

fn dequantize(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let (x, scale, zero) = (need(inputs, 0, "x")?, need(inputs, 1, "x_scale")?, optional(inputs, 2));
    let grid = Grid::of(attrs, x.shape(), scale.shape(), zero.map(Tensor::shape))?;
    let (s, z) = (scale.data().to_f64(), zero.map(|z| z.data().to_f64()));
    let v: Vec<f64> = x
        .data()
        .to_f64()
        .iter()
        .enumerate()
        .map(|(i, q)| (q - z.as_ref().map_or(0.0, |z| z[grid.at(i)])) * s[grid.at(i)])
        .collect();
    Ok(vec![Tensor::from_f64(d_type(attrs, scale.dtype())?, x.shape(), &v)?])
}
