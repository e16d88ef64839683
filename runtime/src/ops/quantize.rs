//! `QuantizeLinear` and `DequantizeLinear`, per tensor, per axis and blocked, as ONNX defines them.
//!
//! They are never left to the importer's own rewriting, which runs quantised graphs in float and is wrong around
//! Softmax. A `DequantizeLinear` of a constant weight is absorbed by the operator that uses it (`Lowering::weight`).
use super::{Attrs, Fact, OpDef, OpError, Origin, axis_of, need, no_kernel};
use crate::tensor::{DType, Data, Tensor};

/// `x = (q - zero_point) · scale`.
pub(super) static DEQUANTIZE_LINEAR: OpDef = OpDef {
    name: "DequantizeLinear",
    doc: "(q - zero_point) · scale, per tensor, per axis or per block",
    origin: Origin::Onnx,
    shape: |_, inputs| {
        let q = need(inputs, 0, "x")?;
        let scale = need(inputs, 1, "x_scale")?;
        Ok(vec![Fact::new(scale.dtype, q.shape.clone())])
    },
    reference: |attrs, inputs, shapes| {
        let (q, scale) = (need(inputs, 0, "x")?, need(inputs, 1, "x_scale")?);
        let q_of = Groups::new(attrs, q.shape(), scale)?;
        let zero = zero_points(inputs, scale)?;
        let s = scale.as_f32()?;
        let y = integers(q)?
            .into_iter()
            .enumerate()
            .map(|(i, v)| {
                let g = q_of.of(i);
                (i64::from(v) - zero.as_ref().map_or(0, |z| i64::from(z[g]))) as f32 * s[g]
            })
            .collect();
        Ok(vec![Tensor::f32(&shapes[0], y)?])
    },
    lower: no_kernel,
};

/// `q = saturate(round_half_even(x / scale) + zero_point)`.
pub(super) static QUANTIZE_LINEAR: OpDef = OpDef {
    name: "QuantizeLinear",
    doc: "saturate(round half to even(x / scale) + zero_point), per tensor, per axis or per block",
    origin: Origin::Onnx,
    shape: |attrs, inputs| {
        let x = need(inputs, 0, "x")?;
        let dtype = quantised_type(attrs, inputs.get(2).copied().flatten().map(|z| z.dtype))?;
        Ok(vec![Fact::new(dtype, x.shape.clone())])
    },
    reference: |attrs, inputs, shapes| {
        let (x, scale) = (need(inputs, 0, "x")?, need(inputs, 1, "y_scale")?);
        let groups = Groups::new(attrs, x.shape(), scale)?;
        let dtype = quantised_type(attrs, inputs.get(2).copied().flatten().map(Tensor::dtype))?;
        let zero = zero_points(inputs, scale)?;
        let s = scale.as_f32()?;
        let (low, high) = match dtype {
            DType::U8 => (0, 255),
            DType::I8 => (-128, 127),
            other => return Err(OpError::Unsupported { what: format!("QuantizeLinear to {other}") }),
        };
        let q = x.as_f32()?.iter().enumerate().map(|(i, &v)| {
            let g = groups.of(i);
            let r = (v / s[g]).round_ties_even() + zero.as_ref().map_or(0.0, |z| z[g] as f32);
            // A NaN has no integer; it saturates low, as ONNX Runtime's conversion does.
            if r.is_nan() { low } else { r.clamp(low as f32, high as f32) as i32 }
        });
        let data = match dtype {
            DType::U8 => Data::U8(q.map(|v| v as u8).collect()),
            _ => Data::I8(q.map(|v| v as i8).collect()),
        };
        Ok(vec![Tensor::new(&shapes[0], data)?])
    },
    lower: no_kernel,
};

/// The element type of a quantised tensor: that of the zero point, else what `output_dtype` says, else `u8`.
fn quantised_type(attrs: &Attrs, zero_point: Option<DType>) -> Result<DType, OpError> {
    // Numbers of ONNX's TensorProto.DataType.
    match (zero_point, attrs.int("output_dtype", 0)?) {
        (Some(dtype), _) => Ok(dtype),
        (None, 0 | 2) => Ok(DType::U8),
        (None, 3) => Ok(DType::I8),
        (None, other) => Err(OpError::Unsupported { what: format!("QuantizeLinear to ONNX data type {other}") }),
    }
}

/// The zero points, one for each scale.
fn zero_points(inputs: &[Option<&Tensor>], scale: &Tensor) -> Result<Option<Vec<i32>>, OpError> {
    let Some(zero) = inputs.get(2).copied().flatten() else { return Ok(None) };
    if zero.len() != scale.len() {
        return Err(OpError::Shape {
            what: "zero points".into(),
            expected: format!("{:?}, as the scales", scale.shape()),
            found: format!("{:?}", zero.shape()),
        });
    }
    integers(zero).map(Some)
}

fn integers(t: &Tensor) -> Result<Vec<i32>, OpError> {
    match t.data() {
        Data::I8(v) => Ok(v.iter().map(|&x| i32::from(x)).collect()),
        Data::U8(v) => Ok(v.iter().map(|&x| i32::from(x)).collect()),
        Data::I32(v) => Ok(v.clone()),
        other => Err(OpError::Unsupported { what: format!("quantised values of {}", other.dtype()) }),
    }
}

/// Which scale belongs to an element.
struct Groups {
    /// Elements after the axis.
    inner: usize,
    /// Length of the axis.
    len: usize,
    /// Elements of the axis that share a scale.
    block: usize,
    /// Scales along the axis.
    count: usize,
    blocked: bool,
    per_tensor: bool,
}

impl Groups {
    fn new(attrs: &Attrs, shape: &[usize], scale: &Tensor) -> Result<Groups, OpError> {
        if scale.shape().len() <= 1 && scale.len() == 1 {
            return Ok(Groups { inner: 1, len: 1, block: 1, count: 1, blocked: false, per_tensor: true });
        }
        let axis = axis_of(attrs.int("axis", 1)?, shape.len())?;
        let inner = shape[axis + 1..].iter().product();
        let block_size = attrs.int("block_size", 0)?;
        let block_size = usize::try_from(block_size)
            .map_err(|_| OpError::Attribute { name: "block_size".into(), why: format!("is {block_size}") })?;
        let blocked = block_size != 0;
        let block = block_size.max(1);
        let count = shape[axis].div_ceil(block);
        let expected = if blocked { shape.iter().product::<usize>() / shape[axis].max(1) * count } else { shape[axis] };
        if scale.len() != expected {
            return Err(OpError::Shape {
                what: format!("scales along axis {axis} of {shape:?}"),
                expected: expected.to_string(),
                found: format!("{:?}", scale.shape()),
            });
        }
        Ok(Groups { inner, len: shape[axis], block, count, blocked, per_tensor: false })
    }

    fn of(&self, i: usize) -> usize {
        // One scale, or one element of each axis after the quantised one, has nothing to divide by.
        if self.per_tensor || self.inner == 0 || self.len == 0 {
            return 0;
        }
        let along = i / self.inner % self.len;
        if !self.blocked {
            return along;
        }
        let outer = i / self.inner / self.len;
        (outer * self.count + along / self.block) * self.inner + i % self.inner
    }
}
