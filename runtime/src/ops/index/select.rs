//! Elements chosen by a condition, indices of elements, and indices written out as vectors.
use super::around;
use crate::map_data;
use crate::ops::shape::{depends_on_data, elements};
use crate::ops::{Attrs, Fact, OpDef, OpError, axis_of, ints_of, need};
use crate::plan::{Io, Kernel, Lowered};
use crate::tensor::{DType, Data, Tensor};

/// `Compress`: slices along `axis` (elements of the flattened tensor without one) whose condition is true.
pub(super) static COMPRESS: OpDef = OpDef::new(
    "Compress",
    "the slices along an axis, or the elements, whose condition is true",
    |attrs, inputs| {
        let (x, condition) = (need(inputs, 0, "input")?, need(inputs, 1, "condition")?);
        let Some(condition) = &condition.value else { return Ok(None) };
        let (shape, axis) = flattened(attrs, &x.shape)?;
        Ok(Some(vec![Fact::new(x.dtype, compressed(&shape, axis, chosen(condition, shape[axis])?.len()))]))
    },
    |attrs, inputs| {
        let (x, condition) = (need(inputs, 0, "input")?, need(inputs, 1, "condition")?);
        let (shape, axis) = flattened(attrs, x.shape())?;
        let (outer, dim, inner) = around(&shape, axis);
        let chosen = chosen(condition, dim)?;
        let data = map_data!(x.data(), v => {
            let mut out = Vec::with_capacity(outer * chosen.len() * inner);
            for o in 0..outer {
                chosen.iter().for_each(|i| out.extend_from_slice(&v[(o * dim + i) * inner..][..inner]));
            }
            out
        });
        Ok(vec![Tensor::new(&compressed(&shape, axis, chosen.len()), data)?])
    },
);

/// The shape and axis to work on: the tensor's own, or one axis of everything.
pub(super) fn flattened(attrs: &Attrs, shape: &[usize]) -> Result<(Vec<usize>, usize), OpError> {
    if attrs.has("axis") {
        return Ok((shape.to_vec(), axis_of(attrs.int("axis", 0)?, shape.len())?));
    }
    Ok((vec![elements(shape)?], 0))
}

fn compressed(shape: &[usize], axis: usize, len: usize) -> Vec<usize> {
    let mut out = shape.to_vec();
    out[axis] = len;
    out
}

/// Indices below `dim` where the condition is true; a short condition is false from its end on.
fn chosen(condition: &Tensor, dim: usize) -> Result<Vec<usize>, OpError> {
    match condition.data() {
        Data::Bool(v) => Ok(v.iter().take(dim).enumerate().filter(|(_, c)| **c).map(|(i, _)| i).collect()),
        other => Err(OpError::unsupported(format!("a condition of {}", other.dtype()))),
    }
}

/// `NonZero`: `[rank, n]`, the index of every element that is not zero, in row-major order.
pub(super) static NON_ZERO: OpDef =
    OpDef::new("NonZero", "the indices of the elements that are not zero", depends_on_data, |_, inputs| {
        let x = need(inputs, 0, "X")?;
        // A scalar is a vector of one element, as ONNX Runtime has it.
        let shape = if x.shape().is_empty() { &[1][..] } else { x.shape() };
        let found: Vec<usize> = match x.data() {
            Data::Bool(v) => v.iter().enumerate().filter(|(_, b)| **b).map(|(i, _)| i).collect(),
            other => other.to_f64().iter().enumerate().filter(|(_, v)| **v != 0.0).map(|(i, _)| i).collect(),
        };
        let mut out = Vec::with_capacity(shape.len() * found.len());
        for (axis, stride) in crate::ops::strides_of(shape).into_iter().enumerate() {
            out.extend(found.iter().map(|i| (i / stride % shape[axis]) as i64));
        }
        Ok(vec![Tensor::i64(&[shape.len(), found.len()], out)?])
    });

/// `OneHot`: along a new axis of length `depth`, `values[1]` at each index and `values[0]` elsewhere.
///
/// An index outside `-depth..depth` gives `values[0]` everywhere.
pub(super) static ONE_HOT: OpDef = OpDef::new(
    "OneHot",
    "each index as a vector with one element set",
    |attrs, inputs| {
        let (indices, values) = (need(inputs, 0, "indices")?, need(inputs, 2, "values")?);
        let Some(depth) = &need(inputs, 1, "depth")?.value else { return Ok(None) };
        let (shape, _) = hot_shape(attrs, &indices.shape, depth_of(depth)?)?;
        Ok(Some(vec![Fact::new(values.dtype, shape)]))
    },
    |attrs, inputs| {
        let (indices, values) = (need(inputs, 0, "indices")?, need(inputs, 2, "values")?);
        let depth = depth_of(need(inputs, 1, "depth")?)?;
        let (shape, axis) = hot_shape(attrs, indices.shape(), depth)?;
        if values.len() != 2 {
            return Err(OpError::shape("values", "two elements", values.shape()));
        }
        let (_, _, inner) = around(&shape, axis);
        let indices = ints_of(indices);
        let n = elements(&shape)?;
        let data = map_data!(values.data(), v => {
            let mut out = vec![v[0]; n];
            set_hot(depth, inner, |i| indices[i], indices.len(), |at| out[at] = v[1]);
            out
        });
        Ok(vec![Tensor::new(&shape, data)?])
    },
)
.kernel(|l| {
    let (Some(depth), Some(dtype)) = (l.constant(1), l.dtype(2)) else { return Ok(None) };
    let depth = depth_of(depth)?;
    let (shape, axis) = hot_shape(l.attrs, l.shape(0)?, depth)?;
    let indices = match l.dtype(0) {
        Some(t @ (DType::I64 | DType::I32 | DType::F32)) => t,
        _ => return Ok(None),
    };
    if elements(l.shape(2)?)? != 2 || shape != l.output_shape(0) {
        return Ok(None);
    }
    let inner = around(&shape, axis).2;
    Ok(Some(Lowered::new(Hot { depth, inner, indices, unit: dtype.size_bytes() }, vec![0, 2])))
});

fn depth_of(t: &Tensor) -> Result<usize, OpError> {
    match ints_of(t)[..] {
        [d] if d >= 0 => Ok(d as usize),
        _ => Err(OpError::shape("depth", "one number that is not negative", ints_of(t))),
    }
}

fn hot_shape(attrs: &Attrs, indices: &[usize], depth: usize) -> Result<(Vec<usize>, usize), OpError> {
    let axis = axis_of(attrs.int("axis", -1)?, indices.len() + 1)?;
    let mut shape = indices.to_vec();
    shape.insert(axis, depth);
    elements(&shape)?;
    Ok((shape, axis))
}

/// Calls `set` with the place of every index that is in range.
fn set_hot(depth: usize, inner: usize, index: impl Fn(usize) -> i64, count: usize, mut set: impl FnMut(usize)) {
    for i in 0..count {
        let index = index(i);
        let at = if index < 0 { index.saturating_add(depth as i64) } else { index };
        if (0..depth as i64).contains(&at) {
            set((i / inner * depth + at as usize) * inner + i % inner);
        }
    }
}

struct Hot {
    depth: usize,
    inner: usize,
    indices: DType,
    unit: usize,
}

impl Kernel for Hot {
    fn name(&self) -> &'static str {
        "one-hot"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let unit = self.unit;
        let (off, on) = reads.bytes(1).split_at(unit);
        let y = writes.bytes(0);
        y.chunks_exact_mut(unit).for_each(|y| y.copy_from_slice(off));
        let set = |at: usize| y[at * unit..][..unit].copy_from_slice(on);
        match self.indices {
            DType::I64 => {
                let v = reads.of::<i64>(0);
                set_hot(self.depth, self.inner, |i| v[i], v.len(), set);
            }
            DType::I32 => {
                let v = reads.of::<i32>(0);
                set_hot(self.depth, self.inner, |i| i64::from(v[i]), v.len(), set);
            }
            _ => {
                let v = reads.of::<f32>(0);
                set_hot(self.depth, self.inner, |i| v[i] as i64, v.len(), set);
            }
        }
    }
}
