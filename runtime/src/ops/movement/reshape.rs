//! The same elements under another shape, and the shape itself.
use std::sync::Arc;

use super::operands::Operands;
use super::view::{View, view_op};
use crate::autodiff::Backward;
use crate::ops::shape::{axes_of, elements};
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, axis_of, need};
use crate::tensor::{Data, Tensor};

/// `Reshape`: 0 copies a dimension unless `allowzero`, one -1 is what is left.
pub(super) static RESHAPE: OpDef =
    view_op!("Reshape", "the same elements in the same order under another shape", reshape).vjp(reshaped);

/// The gradient under the shape of the operand.
fn reshaped(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, shape) = (b.dy()?, b.x_shape(0)?);
    let dx = b.reshape(dy, &shape)?;
    b.give(0, dx);
    Ok(())
}

fn reshape(o: &dyn Operands) -> Result<Option<View>, OpError> {
    let from = o.shape(0, "data")?;
    let Some(target) = o.list(1, "shape")? else { return Ok(None) };
    let target = target.ok_or(OpError::MissingInput { index: 1, name: "shape" })?;
    let allowzero = o.attrs().flag("allowzero", false)?;
    let wrong = || OpError::shape("shape", from, &target);
    let mut shape = Vec::with_capacity(target.len());
    let mut open = None;
    for (i, &d) in target.iter().enumerate() {
        shape.push(match d {
            0 if !allowzero => *from.get(i).ok_or_else(wrong)?,
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            d => usize::try_from(d).map_err(|_| wrong())?,
        });
    }
    let have = elements(from)?;
    if let Some(i) = open {
        let rest = elements(&shape)?;
        // With no elements left every length would do; ONNX Runtime refuses to choose one.
        shape[i] = have.checked_div(rest).ok_or_else(wrong)?;
    }
    if elements(&shape)? != have {
        return Err(wrong());
    }
    Ok(Some(View::whole(from, shape)))
}

/// `Flatten`: axes before `axis` and from it on, as a matrix.
pub(super) static FLATTEN: OpDef =
    view_op!("Flatten", "a matrix of the axes before `axis` and those from it on", flatten).vjp(reshaped);

fn flatten(o: &dyn Operands) -> Result<Option<View>, OpError> {
    let from = o.shape(0, "input")?;
    let axis = match o.attrs().int("axis", 1)? {
        a if a == from.len() as i64 => from.len(),
        a => axis_of(a, from.len())?,
    };
    let shape = vec![elements(&from[..axis])?, elements(&from[axis..])?];
    Ok(Some(View::whole(from, shape)))
}

/// `Squeeze`: axes of length one left out; all of them when none is named.
pub(super) static SQUEEZE: OpDef = view_op!("Squeeze", "without axes of length one", squeeze).vjp(reshaped);

fn squeeze(o: &dyn Operands) -> Result<Option<View>, OpError> {
    let from = o.shape(0, "data")?;
    let Some(axes) = o.list(1, "axes")? else { return Ok(None) };
    let axes = match axes {
        Some(axes) => axes_of(&axes, from.len())?,
        None => (0..from.len()).filter(|&i| from[i] == 1).collect(),
    };
    if let Some(&a) = axes.iter().find(|&&a| from[a] != 1) {
        return Err(OpError::shape(format!("axis {a} to squeeze"), 1, from[a]));
    }
    let shape = (0..from.len()).filter(|i| !axes.contains(i)).map(|i| from[i]).collect();
    Ok(Some(View::whole(from, shape)))
}

/// `Unsqueeze`: `axes` count in the result.
pub(super) static UNSQUEEZE: OpDef = view_op!("Unsqueeze", "with axes of length one inserted", unsqueeze).vjp(reshaped);

/// ONNX Runtime's `ExpandDims`: one axis of length one; its only input besides the data is that axis.
pub(super) static EXPAND_DIMS: OpDef =
    view_op!("ExpandDims", "with one axis of length one inserted", unsqueeze).domain(MICROSOFT).vjp(reshaped);

fn unsqueeze(o: &dyn Operands) -> Result<Option<View>, OpError> {
    let from = o.shape(0, "data")?;
    let Some(axes) = o.list(1, "axes")? else { return Ok(None) };
    let axes = axes.ok_or(OpError::MissingInput { index: 1, name: "axes" })?;
    let rank = from.len() + axes.len();
    let axes = axes_of(&axes, rank)?;
    let mut rest = from.iter();
    let shape = (0..rank).map(|i| if axes.contains(&i) { 1 } else { rest.next().copied().unwrap_or(1) }).collect();
    Ok(Some(View::whole(from, shape)))
}

/// `Shape`: dimensions `start..end` of the operand.
pub(super) static SHAPE: OpDef = OpDef::new(
    "Shape",
    "the dimensions of a tensor, or some of them",
    |attrs, inputs| {
        let dims = dims_of(attrs, &need(inputs, 0, "data")?.shape)?;
        Ok(Some(vec![Fact::constant(Arc::new(dims))]))
    },
    |attrs, inputs| Ok(vec![dims_of(attrs, need(inputs, 0, "data")?.shape())?]),
);

fn dims_of(attrs: &Attrs, shape: &[usize]) -> Result<Tensor, OpError> {
    let rank = shape.len() as i64;
    let bound = |v: i64| if v < 0 { v.saturating_add(rank) } else { v }.clamp(0, rank) as usize;
    let (start, end) = (bound(attrs.int("start", 0)?), bound(attrs.int("end", rank)?));
    let dims: Vec<i64> = shape[start..end.max(start)].iter().map(|&d| d as i64).collect();
    Ok(Tensor::i64(&[dims.len()], dims)?)
}

/// `Size`: the number of elements.
pub(super) static SIZE: OpDef = OpDef::new(
    "Size",
    "the number of elements of a tensor",
    |_, inputs| Ok(Some(vec![Fact::constant(Arc::new(count_of(&need(inputs, 0, "data")?.shape)?))])),
    |_, inputs| Ok(vec![count_of(need(inputs, 0, "data")?.shape())?]),
);

fn count_of(shape: &[usize]) -> Result<Tensor, OpError> {
    Ok(Tensor::new(&[], Data::I64(vec![elements(shape)? as i64]))?)
}
