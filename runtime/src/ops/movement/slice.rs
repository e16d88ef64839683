//! Parts and repetitions of a tensor.
use super::operands::Operands;
use super::unview::unviewed;
use super::view::{View, view_op};
use crate::ops::shape::{axes_of, broadcast, broadcast_strides, elements};
use crate::ops::{OpDef, OpError, axis_of, strides_of};

/// `Slice`: along each named axis the elements from `start` to `end`, exclusive, by `step`.
///
/// Lists are attributes before version 10. What lies outside the axis is clamped to it.
pub(super) static SLICE: OpDef =
    view_op!("Slice", "every so many elements of a range, along any axes", slice).vjp(|b| unviewed(b, slice));

fn slice(o: &dyn Operands) -> Result<Option<View>, OpError> {
    let from = o.shape(0, "data")?;
    let (Some(starts), Some(ends), Some(axes), Some(steps)) =
        (o.list(1, "starts")?, o.list(2, "ends")?, o.list(3, "axes")?, o.list(4, "steps")?)
    else {
        return Ok(None);
    };
    let starts = starts.ok_or(OpError::MissingInput { index: 1, name: "starts" })?;
    let ends = ends.ok_or(OpError::MissingInput { index: 2, name: "ends" })?;
    let n = starts.len();
    let axes = axes_of(&axes.unwrap_or_else(|| (0..n as i64).collect()), from.len())?;
    let steps = steps.unwrap_or_else(|| vec![1; n]);
    for (name, len) in [("ends", ends.len()), ("axes", axes.len()), ("steps", steps.len())] {
        if len != n {
            return Err(OpError::shape(format!("`{name}` of a slice"), n, len));
        }
    }
    let mut view = View::whole(from, from.to_vec());
    for (i, &axis) in axes.iter().enumerate() {
        let (first, len) = range(starts[i], ends[i], steps[i], from[axis])?;
        if len > 0 {
            view.base += first * view.strides[axis] as usize;
        }
        view.lengths[axis] = len;
        // A step beyond the axis is never taken.
        view.strides[axis] *= steps[i].clamp(-(from[axis] as i64), from[axis] as i64) as isize;
    }
    view.shape.clone_from(&view.lengths);
    if view.lengths.contains(&0) {
        view.base = 0;
    }
    Ok(Some(view))
}

/// First index and number of indices of a slice of an axis of length `dim`.
fn range(start: i64, end: i64, step: i64, dim: usize) -> Result<(usize, usize), OpError> {
    let d = dim as i64;
    let wrap = |v: i64| if v < 0 { v.saturating_add(d) } else { v };
    let (start, end) = (wrap(start), wrap(end));
    if dim == 0 && step != 0 {
        return Ok((0, 0));
    }
    // In i128 neither a difference nor a step can overflow.
    let (first, len) = match step {
        0 => return Err(OpError::attribute("steps", "has a step of 0")),
        s if s > 0 => {
            let (a, b) = (start.clamp(0, d), end.clamp(0, d));
            (a, (i128::from(b) - i128::from(a) + i128::from(s) - 1) / i128::from(s))
        }
        s => {
            let (a, b) = (start.clamp(0, d - 1), end.clamp(-1, d - 1));
            let s = -i128::from(s);
            (a, (i128::from(a) - i128::from(b) + s - 1) / s)
        }
    };
    Ok((first as usize, len.max(0) as usize))
}

/// `Expand`: the operand and the target shape broadcast to each other by NumPy's rules.
pub(super) static EXPAND: OpDef = view_op!("Expand", "repeated along axes of length one (NumPy broadcasting)", expand)
    .vjp(|b| {
        let dy = b.dy()?;
        b.give_unbroadcast(0, dy)
    });

fn expand(o: &dyn Operands) -> Result<Option<View>, OpError> {
    let from = o.shape(0, "input")?;
    let Some(target) = o.list(1, "shape")? else { return Ok(None) };
    let target = target.ok_or(OpError::MissingInput { index: 1, name: "shape" })?;
    let target: Option<Vec<usize>> = target.iter().map(|&d| usize::try_from(d).ok()).collect();
    let target = target.ok_or_else(|| OpError::attribute("shape", "has a negative dimension"))?;
    let shape = broadcast(from, &target)?;
    elements(&shape)?;
    let strides = broadcast_strides(from, &shape);
    Ok(Some(View::strided(shape, strides)))
}

/// `Tile`: the whole operand `repeats[i]` times along axis `i`; before version 6 along one axis.
pub(super) static TILE: OpDef = view_op!("Tile", "the whole tensor several times along each axis", tile).vjp(|b| {
    let (dy, shape) = (b.dy()?, b.x_shape(0)?);
    let tiled = b.shape(dy).to_vec();
    let split: Vec<usize> = (0..shape.len()).flat_map(|i| [tiled[i] / shape[i].max(1), shape[i]]).collect();
    let dy = b.reshape(dy, &split)?;
    let dx = b.sum(dy, &(0..shape.len()).map(|i| 2 * i).collect::<Vec<_>>())?;
    let dx = b.reshape(dx, &shape)?;
    b.give(0, dx);
    Ok(())
});

fn tile(o: &dyn Operands) -> Result<Option<View>, OpError> {
    let from = o.shape(0, "input")?;
    let Some(repeats) = o.list(1, "repeats")? else { return Ok(None) };
    let mut repeats = repeats.ok_or(OpError::MissingInput { index: 1, name: "repeats" })?;
    if o.attrs().opset < 6 && o.dtype(2).is_some() {
        let Some(axis) = o.list(2, "axis")? else { return Ok(None) };
        let (Some([axis]), &[tiles]) = (axis.as_deref(), &repeats[..]) else {
            return Err(OpError::attribute("tiles", "and axis are not one number each"));
        };
        let axis = axis_of(*axis, from.len())?;
        repeats = vec![1; from.len()];
        repeats[axis] = tiles;
    }
    if repeats.len() != from.len() {
        return Err(OpError::shape("repeats", format!("{} numbers", from.len()), &repeats));
    }
    let mut view = View { shape: Vec::new(), lengths: Vec::new(), strides: Vec::new(), base: 0 };
    for ((&d, &r), s) in from.iter().zip(&repeats).zip(strides_of(from)) {
        let r = usize::try_from(r)
            .map_err(|_| OpError::attribute("repeats", format!("{repeats:?} has a negative number")))?;
        view.shape.push(elements(&[d, r])?);
        view.lengths.extend([r, d]);
        view.strides.extend([0, s as isize]);
    }
    elements(&view.shape)?;
    Ok(Some(view))
}
