//! Tensors made of little: one value, a progression, a diagonal.
use super::operands::{Facts, Operands, Tensors};
use crate::map_data;
use crate::ops::shape::elements;
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, need, optional};
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Data, Tensor};

/// `ConstantOfShape`: one value (0.0 when none is given) in every place.
pub(super) static CONSTANT_OF_SHAPE: OpDef = OpDef::new(
    "ConstantOfShape",
    "a tensor of the given shape with one value everywhere",
    |attrs, inputs| {
        Ok(target(&Facts(attrs, inputs))?.zip(Some(fill(attrs)?)).map(|(s, v)| vec![Fact::new(v.dtype(), s)]))
    },
    |attrs, inputs| {
        let shape = target(&Tensors(attrs, inputs))?.ok_or(OpError::MissingInput { index: 0, name: "input" })?;
        let (value, n) = (fill(attrs)?, elements(&shape)?);
        Ok(vec![Tensor::new(&shape, map_data!(&value, v => vec![v[0]; n]))?])
    },
)
.kernel(|l| Ok(Some(Lowered::new(Fill(fill(l.attrs)?.as_bytes().to_vec()), Vec::new()))));

fn target(o: &dyn Operands) -> Result<Option<Vec<usize>>, OpError> {
    let Some(dims) = o.list(0, "input")? else { return Ok(None) };
    let dims = dims.ok_or(OpError::MissingInput { index: 0, name: "input" })?;
    let shape: Option<Vec<usize>> = dims.iter().map(|&d| usize::try_from(d).ok()).collect();
    let shape = shape.ok_or_else(|| OpError::shape("input", "dimensions that are not negative", &dims))?;
    elements(&shape)?;
    Ok(Some(shape))
}

/// The one value, as data of one element.
fn fill(attrs: &Attrs) -> Result<Data, OpError> {
    match attrs.tensor("value")? {
        None => Ok(Data::F32(vec![0.0])),
        Some(t) if t.len() == 1 => Ok(t.data().clone()),
        Some(t) => Err(OpError::attribute("value", format!("has {} elements instead of one", t.len()))),
    }
}

/// The bytes of one element, in every place.
struct Fill(Vec<u8>);

impl Kernel for Fill {
    fn name(&self) -> &'static str {
        "fill"
    }

    fn run(&self, io: &mut Io<'_>) {
        super::pad::fill_bytes(&self.0, io.split().1.bytes(0));
    }
}

/// `Range`: `start + i · delta` below (with a negative step above) `limit`.
pub(super) static RANGE: OpDef =
    OpDef::new("Range", "an arithmetic progression", range_rule, range).kernel(range_lower);

/// ONNX Runtime's `Range`, whose step is 1 when not given.
pub(super) static RANGE_MICROSOFT: OpDef =
    OpDef::new("Range", "an arithmetic progression", range_rule, range).kernel(range_lower).domain(MICROSOFT);

fn range_rule(_: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let start = need(inputs, 0, "start")?;
    need(inputs, 1, "limit")?;
    let values: Vec<Option<&Tensor>> = inputs.iter().map(|f| f.and_then(|f| f.value.as_deref())).collect();
    if (0..3).any(|i| optional(inputs, i).is_some() && optional(&values, i).is_none()) {
        return Ok(None);
    }
    Ok(Some(vec![Fact::new(start.dtype, vec![Progression::new(&values)?.len])]))
}

fn range(_: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    Ok(vec![Progression::new(inputs)?.tensor()?])
}

/// A progression known when the plan is made is copied; it is only here when it was too large to be a constant.
fn range_lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let values: Vec<Option<&Tensor>> = (0..l.inputs()).map(|i| l.constant(i).map(|t| &**t)).collect();
    if (0..l.inputs()).any(|i| l.has(i) && values[i].is_none()) {
        return Ok(None);
    }
    let made = Progression::new(&values)?.tensor()?;
    Ok(Some(Lowered::new(super::pad::Stored(made.data().as_bytes().to_vec()), Vec::new())))
}

/// Numbers of a progression: exact integers, or floats.
struct Progression {
    dtype: DType,
    len: usize,
    start: (f64, i128),
    delta: (f64, i128),
}

impl Progression {
    fn new(inputs: &[Option<&Tensor>]) -> Result<Progression, OpError> {
        let dtype = need(inputs, 0, "start")?.dtype();
        let number = |index: usize, name: &'static str| -> Result<(f64, i128), OpError> {
            let t = need(inputs, index, name)?;
            match (t.data().to_f64().first(), t.data().to_i128().first()) {
                (Some(&f), Some(&i)) if t.len() == 1 && t.dtype() == dtype => Ok((f, i)),
                _ => Err(OpError::shape(name, format!("one {dtype}"), format!("{} {:?}", t.dtype(), t.shape()))),
            }
        };
        let (start, limit) = (number(0, "start")?, number(1, "limit")?);
        let delta = if optional(inputs, 2).is_some() { number(2, "delta")? } else { (1.0, 1) };
        if delta.0 == 0.0 {
            return Err(OpError::attribute("delta", "is 0"));
        }
        let len = if dtype.is_float() {
            // The difference is a number of the type, as in the standard's function; halves are widened first.
            let distance = limit.0 - start.0;
            let distance = if dtype == DType::F32 { f64::from(distance as f32) } else { distance };
            let n = (distance / delta.0).ceil();
            if n.is_nan() || n > 1e15 {
                return Err(OpError::attribute("limit", "is no number of steps away"));
            }
            n.max(0.0) as usize
        } else {
            let (distance, step) = (limit.1 - start.1, delta.1);
            let n = if step > 0 {
                (distance + step - 1).div_euclid(step)
            } else {
                (-distance - step - 1).div_euclid(-step)
            };
            usize::try_from(n.max(0)).unwrap_or(usize::MAX)
        };
        elements(&[len])?;
        Ok(Progression { dtype, len, start, delta })
    }

    fn tensor(&self) -> Result<Tensor, OpError> {
        Ok(if self.dtype.is_float() {
            let v: Vec<f64> = (0..self.len).map(|i| self.start.0 + i as f64 * self.delta.0).collect();
            Tensor::from_f64(self.dtype, &[self.len], &v)?
        } else {
            let v: Vec<i128> = (0..self.len).map(|i| self.start.1 + i as i128 * self.delta.1).collect();
            Tensor::from_i128(self.dtype, &[self.len], &v)?
        })
    }
}

/// `EyeLike`: ones on diagonal `k` of a matrix of the operand's shape.
pub(super) static EYE_LIKE: OpDef = OpDef::new(
    "EyeLike",
    "ones on one diagonal, zeros elsewhere, in the shape of the operand",
    |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        matrix(&x.shape)?;
        Ok(Some(vec![Fact::new(eye_dtype(attrs, x.dtype)?, x.shape.clone())]))
    },
    |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        let (rows, columns) = matrix(x.shape())?;
        let (dtype, k) = (eye_dtype(attrs, x.dtype())?, attrs.int("k", 0)?);
        let mut v = vec![0i128; rows * columns];
        for i in 0..rows {
            let j = (i as i64).checked_add(k).and_then(|j| usize::try_from(j).ok());
            if let Some(j) = j.filter(|&j| j < columns) {
                v[i * columns + j] = 1;
            }
        }
        Ok(vec![Tensor::from_i128(dtype, x.shape(), &v)?])
    },
);

fn matrix(shape: &[usize]) -> Result<(usize, usize), OpError> {
    match shape {
        &[rows, columns] => Ok((rows, columns)),
        other => Err(OpError::shape("input", "a matrix", other)),
    }
}

fn eye_dtype(attrs: &Attrs, like: DType) -> Result<DType, OpError> {
    match attrs.int("dtype", 0)? {
        0 => Ok(like),
        n => DType::from_onnx(n).ok_or_else(|| OpError::unsupported(format!("EyeLike of element type {n}"))),
    }
}
